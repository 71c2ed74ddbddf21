"""What comes out of the cache is what went in, whatever happened to the files meanwhile."""

import copy
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_lvis_json, register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler

from balms_det.annotations.class_pairs import class_pairs
from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import read_annotation_file
from balms_det.data import (
    build_train_loader,
    dataset_class_stats,
    load_dataset_dicts,
    register_dataset,
)
from balms_det.data import cache as cache_module
from balms_det.data.cache import CachedDataset, CachedDatasets, open_annotations
from balms_det.data.catalog import cached_dataset
from balms_det.data.samplers import build_train_sampler
from balms_det.runtime.errors import InputError

K = 4
IDS = [3, 10, 11, 40]  # of the categories


def make_content(seed=0, *, images=12, crowds=True):
    """Ids in any order; masks of whole and other numbers, RLE, such as are dropped, or none."""
    rng = np.random.default_rng(seed)
    whole = [[1, 2, 30, 2, 30, 40], [5, 5, 9.25, 5, 9, 9e0]]
    segmentations = [
        whole,
        [[0.1, 0.2, 7.7, 0.30000000000000004, 5.5, 1e-7], [1.0, 2.0]],
        [[1.0, 2.0, 3.0, 4.0]],
        {"size": [48, 64], "counts": "T3d0Xl2"},
        {"size": [48, 64], "counts": [100, 20, 2952]},
        None,
    ]
    image_ids = rng.permutation(images * 3)[:images].tolist()
    annotations = []
    for image_id in image_ids[2:]:
        for _ in range(rng.integers(0, 5)):
            segmentation = segmentations[rng.integers(len(segmentations))]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(rng.choice(IDS[:-1])),
                "bbox": [0, 1.5, float(rng.random()), 7],
                "area": 9.0,
            }
            if segmentation is not None:
                annotation["segmentation"] = segmentation
            if crowds and rng.random() < 0.3:
                annotation["iscrowd"] = 1
            annotations.append(annotation)
    rng.shuffle(annotations)
    return {
        "images": [
            {
                "id": image_id,
                "height": 48,
                "width": 64,
                "coco_url": f"http://images.example/träin/{image_id:03}.jpg",
                "neg_category_ids": [11],
                "not_exhaustive_category_ids": [],
            }
            for image_id in image_ids
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": f"clàss {i}", "frequency": "rcf"[i % 3]} for i in reversed(IDS)
        ],
    }


@pytest.fixture
def write(tmp_path):
    def write(content, name="set.json"):
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder for caches."""
    folder = tmp_path / "caches"
    monkeypatch.setenv("BALMS_DET_CACHE", str(folder))
    return folder


@pytest.fixture
def unregister():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def uncached(path, root="/pictures"):
    return load_dataset_dicts(read_annotation_file(path), root)


def cached(path, root="/pictures"):
    return CachedDataset(open_annotations(path), root)


def assert_same(actual, expected):
    """The same values of the same types in the same order."""
    assert list(actual) == expected
    assert repr(list(actual)) == repr(expected)


@pytest.mark.parametrize("seed", range(5))
def test_dictionaries_and_statistics_are_those_of_the_file(write, folder, seed):
    path = write(make_content(seed))
    for _ in range(2):  # built, and mapped
        assert_same(cached(path), uncached(path))
        opened = open_annotations(path)
        assert opened.class_stats.to_dict() == ClassStats.from_json(path).to_dict()
        assert opened.format == "lvis"
    assert len(list(folder.glob("*.cache"))) == 1


def test_files_of_other_formats_and_without_annotations(write, folder):
    content = make_content()
    for image in content["images"]:
        image["file_name"] = image.pop("coco_url")[-7:]
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in content["categories"]:
        del category["frequency"]
    path = write(content)
    assert open_annotations(path).format == "coco"
    assert_same(cached(path), uncached(path))
    for images in (content["images"], []):
        path = write({**content, "images": images, "annotations": []})
        assert_same(cached(path), uncached(path))
        assert len(cached(path).class_pairs()[0]) == 0


def test_it_is_a_sequence(write):
    path = write(make_content())
    dataset, expected = cached(path), uncached(path)
    assert len(dataset) == len(expected)
    assert dataset[3:7] == expected[3:7]
    assert dataset[-1] == expected[-1]
    for index in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_changes_to_a_dictionary_are_not_kept(write):
    dataset = cached(write(make_content()))
    record = dataset[5]
    expected = copy.deepcopy(record)
    record["annotations"] = None
    record.pop("height")
    assert dataset[5] == expected
    with pytest.raises(ValueError, match="read-only"):
        dataset.cache.class_index[0] = 1


def test_a_file_that_changes_without_looking_so_is_read_again(write, folder):
    """Neither its name nor its size, nor its time."""
    content = make_content()
    path = write(content)
    before = os.stat(path)
    first = list(cached(path))
    content["annotations"][0]["bbox"][3] = 8
    write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    assert list(cached(path)) != first
    assert_same(cached(path), uncached(path))


DAMAGES = {
    "nothing written": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "zeroed": lambda data: bytes(len(data)),
    "second half zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "another number": lambda data: data.replace(b'"height":48', b'"height":84', 1),
    "last byte": lambda data: data[:-1] + b"x",
    "no cache at all": lambda data: b"{}" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(write, folder, damage):
    path = write(make_content())
    cached(path)
    (stored,) = folder.glob("*.cache")
    whole = stored.read_bytes()
    damaged = DAMAGES[damage](whole)
    assert damaged != whole
    stored.write_bytes(damaged)
    assert_same(cached(path), uncached(path))
    assert stored.read_bytes() == whole


def test_a_process_that_dies_while_building_leaves_nothing_that_is_used(write, folder, monkeypatch):
    path = write(make_content())

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.zlib, "crc32", die)
        with pytest.raises(KeyboardInterrupt):
            cached(path)
    assert not list(folder.glob("*.cache"))
    leftover = folder / ".annotations.0123.partial"  # of one that could not even clean up
    leftover.write_bytes(b"half")
    assert_same(cached(path), uncached(path))
    assert not leftover.exists()


def test_what_is_parsed_is_what_the_cache_is_called_after(write, folder, monkeypatch):
    """A file that is replaced between being looked up and being read."""
    first, second = make_content(0), make_content(1)
    path = write(first)
    read_bytes = cache_module.read_bytes

    def replaced_before_reading(path):
        write(second)
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "read_bytes", replaced_before_reading)
        assert_same(cached(path), uncached(write(second, "second.json")))
    write(first)
    assert_same(cached(path), uncached(path))


def test_a_folder_that_cannot_be_written_is_named(write, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BALMS_DET_CACHE", str(tmp_path / "file" / "caches"))
    with pytest.raises(InputError, match="file/caches: the cache .* BALMS_DET_CACHE to a folder"):
        open_annotations(write(make_content()))


def test_the_folder_is_the_users_unless_said_otherwise(write, tmp_path, monkeypatch):
    path = write(make_content())
    monkeypatch.delenv("BALMS_DET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_annotations(path).path.parent == tmp_path / "home" / ".cache" / "balms_det"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_annotations(path).path.parent == tmp_path / "xdg" / "balms_det"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), "no list 'images'"),
        (
            lambda content: content["annotations"][0].update(category_id=99),
            "no category has the id 99",
        ),
        (lambda content: content["images"][0].pop("coco_url"), "neither 'file_name'"),
    ],
)
def test_files_that_cannot_be_used_are_refused_and_not_cached(write, folder, change, message):
    content = make_content(crowds=False)
    change(content)
    path = write(content)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        open_annotations(path)
    assert not list(folder.glob("*.cache"))
    with pytest.raises(InputError, match="nowhere.json: the file cannot be read"):
        open_annotations("nowhere.json")


def test_pairs_of_image_and_class_are_those_of_the_dictionaries(write):
    dataset = cached(write(make_content(3, images=40)))
    for ours, theirs in zip(class_pairs(dataset), class_pairs(list(dataset)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    images, classes = dataset.class_pairs(crowds=True)
    expected = [(i, a["category_id"]) for i, r in enumerate(dataset) for a in r["annotations"]]
    assert list(zip(images.tolist(), classes.tolist(), strict=True)) == expected
    assert len(expected) > len(dataset.class_pairs()[0])  # there are crowds


def test_empty_images_are_left_out_as_detectron2_does(write, tmp_path, unregister):
    path = write(make_content(3, images=40))
    register_dataset("some", path, str(tmp_path))
    dataset = cached_dataset("some").without_empty_images()
    assert 0 < len(dataset) < 40
    assert list(dataset) == get_detection_dataset_dicts(["some"])
    for ours, theirs in zip(class_pairs(dataset), class_pairs(list(dataset)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_several_sets_follow_one_another(write, tmp_path, unregister):
    for seed in range(2):
        path = write(make_content(seed, images=20), f"{seed}.json")
        register_dataset(f"set {seed}", path, str(tmp_path))
    names = ["set 0", "set 1"]
    both = CachedDatasets([cached_dataset(name).without_empty_images() for name in names])
    assert [both[i] for i in range(len(both))] == get_detection_dataset_dicts(names)
    for ours, theirs in zip(class_pairs(both), class_pairs(list(both)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_repeat_factors_are_detectron2s(write):
    """Those count crowds."""
    dataset = cached(write(make_content(3, images=40)))
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.7
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    sampler = build_train_sampler(cfg, dataset)
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        list(dataset), 0.7
    )
    parts = sampler._int_part + sampler._frac_part
    assert torch.equal(parts, expected)
    assert expected.max() > 1
    assert build_train_sampler(cfg, list(dataset)) is None  # Detectron2 makes it


def test_a_loader_holds_no_dictionaries(write, tmp_path, unregister):
    register_dataset("held", write(make_content(3, images=40)), str(tmp_path))
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("held",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    loader = build_train_loader(cfg)
    assert isinstance(loader.dataset.dataset.dataset._dataset, CachedDataset)
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"  # loads the sets by itself
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [("held", 1.0)]
    assert build_train_loader(cfg)


def test_a_set_without_objects_is_refused(write, tmp_path, unregister):
    register_dataset("empty", write({**make_content(), "annotations": []}), str(tmp_path))
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("empty",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    with pytest.raises(InputError, match="no image of empty has an annotation"):
        build_train_loader(cfg)


def lvis_content():
    """What Detectron2's LVIS loader takes: ids from one without gaps, and polygons."""
    content = make_content(3, images=30, crowds=False)
    for category in content["categories"]:
        category["id"] = IDS.index(category["id"]) + 1
    for annotation in content["annotations"]:
        annotation["category_id"] = IDS.index(annotation["category_id"]) + 1
        annotation["segmentation"] = [[1, 2, 30, 2, 30, 40.5]]
    return content


def test_lvis_as_detectron2_registers_it_is_cached(write, tmp_path, unregister):
    path, root = write(lvis_content()), f"{tmp_path}/"
    classes = [f"own name {i}" for i in range(K)]
    register_lvis_instances("lvis", {"thing_classes": classes}, path, root)
    expected = load_lvis_json(path, root)
    for record in expected:
        for annotation in record["annotations"]:
            annotation["iscrowd"] = 0  # Detectron2's default
    assert list(cached_dataset("lvis")) == expected
    assert dataset_class_stats(["lvis"]).names == tuple(classes)


def test_other_data_sets_are_left_to_their_own_functions(write, tmp_path, unregister):
    content = make_content(crowds=False)  # with gaps in the ids, where Detectron2 subtracts one
    register_lvis_instances("gaps", {"thing_classes": list("abcd")}, write(content), "x/")
    register_lvis_instances("gone", {"thing_classes": list("abcd")}, "nowhere.json", "x/")
    DatasetCatalog.register("own", lambda: [])
    MetadataCatalog.get("own").set(json_file=write(content), image_root="x/")
    assert [cached_dataset(name) for name in ("gaps", "gone", "own")] == [None, None, None]


def test_another_process_is_handed_a_path_and_no_content(write):
    dataset = cached(write(make_content(images=40))).without_empty_images()
    handed = pickle.dumps(dataset)
    assert len(handed) < 2000
    assert list(pickle.loads(handed)) == list(dataset)


def _open_in_process(barrier, path, builds, results, index):
    build = cache_module._write

    def noted(*arguments):
        with open(builds, "a") as file:
            file.write("built\n")
        build(*arguments)

    cache_module._write = noted
    barrier.wait()
    Path(results, str(index)).write_text(repr(list(cached(path))))


@pytest.mark.e2e
@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_race_build_once_and_read_the_same(write, folder, tmp_path, damaged):
    path = write(make_content(images=300))
    if damaged:
        stored = open_annotations(path).path
        stored.write_bytes(stored.read_bytes()[:-100])
    context = multiprocessing.get_context("fork")  # starts in no time, for a close race
    barrier = context.Barrier(4)
    (tmp_path / "results").mkdir()
    arguments = (barrier, path, str(tmp_path / "builds"), str(tmp_path / "results"))
    processes = [context.Process(target=_open_in_process, args=(*arguments, i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "builds").read_text() == "built\n"
    expected = repr(uncached(path))
    assert [file.read_text() for file in (tmp_path / "results").iterdir()] == [expected] * 4
    assert len(list(folder.glob("*.cache"))) == 1
    assert not list(folder.glob(".*.partial"))
