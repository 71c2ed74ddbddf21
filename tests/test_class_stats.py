"""Counts against a dictionary loop, and statistics files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_status import exit_status

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import frequency_group
from balms_det.runtime.errors import InputError

TOOL = Path(__file__).parents[1] / "tools" / "class_stats.py"


def counted_in_loops(content):
    """Every number of ClassStats, by dictionaries and sets alone."""
    images_of, instances = {}, {}
    for category in content["categories"]:
        images_of[category["id"]], instances[category["id"]] = set(), 0
    annotated = set()
    for annotation in content["annotations"]:
        if annotation.get("iscrowd"):
            continue
        images_of[annotation["category_id"]].add(annotation["image_id"])
        instances[annotation["category_id"]] += 1
        annotated.add(annotation["image_id"])
    ids = sorted(images_of)
    return {
        "image_counts": [len(images_of[i]) for i in ids],
        "instance_counts": [instances[i] for i in ids],
        "category_ids": tuple(ids),
        "num_images": len(content["images"]),
        "num_annotated_images": len(annotated),
    }


def make_content(category_ids, image_ids, annotations):
    return {
        "images": [{"id": i, "height": 9, "width": 9, "file_name": f"{i}.png"} for i in image_ids],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [0, 0, 1, 1],
                **({} if crowd is None else {"iscrowd": crowd}),
            }
            for number, (image_id, category_id, crowd) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
    }


@st.composite
def contents(draw):
    """Ids with gaps and in any order, images without annotations, classes without instances."""
    ids = st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True)
    category_ids, image_ids = draw(ids), draw(ids)
    annotation = st.tuples(
        st.sampled_from(image_ids), st.sampled_from(category_ids), st.sampled_from([None, 0, 1])
    )
    return make_content(category_ids, image_ids, draw(st.lists(annotation, max_size=40)))


def write(folder, content, name="set.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def assert_counts(stats, expected):
    for field, value in expected.items():
        actual = getattr(stats, field)
        assert (actual.tolist() if isinstance(actual, np.ndarray) else actual) == value, field


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("class_stats")


@settings(deadline=None)
@given(content=contents())
def test_counts_of_a_file_equal_the_loop(folder, content):
    stats = ClassStats.from_json(write(folder, content))
    assert_counts(stats, counted_in_loops(content))
    assert stats.names == tuple(f"class {i}" for i in stats.category_ids)
    assert stats.groups == tuple(frequency_group(count) for count in stats.image_counts)


@settings(deadline=None)
@given(content=contents())
def test_counts_of_dataset_dicts_equal_those_of_the_file(folder, content):
    of_file = ClassStats.from_json(write(folder, content))
    index = {category_id: i for i, category_id in enumerate(of_file.category_ids)}
    dicts = [
        {
            "height": image["height"],
            "width": image["width"],
            "annotations": [
                {
                    "category_id": index[a["category_id"]],
                    "iscrowd": a.get("iscrowd", 0),
                    "bbox": a["bbox"],
                    "bbox_mode": 1,
                }
                for a in content["annotations"]
                if a["image_id"] == image["id"]
            ],
        }
        for image in content["images"]
    ]
    of_dicts = ClassStats.from_dataset_dicts(
        dicts, of_file.names, category_ids=of_file.category_ids
    )
    assert of_dicts.to_dict() == of_file.to_dict()


@settings(deadline=None)
@given(content=contents())
def test_a_statistics_file_gives_back_the_same_statistics(folder, content):
    stats = ClassStats.load(write(folder, content))  # an annotation file, first
    path = folder / "stats.json"
    stats.save(path)
    read = ClassStats.load(path)
    assert read.to_dict() == stats.to_dict()
    assert read.image_counts.dtype == read.instance_counts.dtype == np.int64


@settings(deadline=None)
@given(content=contents())
def test_combining_a_data_set_with_itself_doubles_all_counts(folder, content):
    stats = ClassStats.from_json(write(folder, content))
    assert ClassStats.combine([stats]).to_dict() == stats.to_dict()
    both = ClassStats.combine([stats, stats])
    expected = counted_in_loops(content)
    assert_counts(
        both,
        {
            "image_counts": [2 * n for n in expected["image_counts"]],
            "instance_counts": [2 * n for n in expected["instance_counts"]],
            "num_images": 2 * expected["num_images"],
            "num_annotated_images": 2 * expected["num_annotated_images"],
            "category_ids": expected["category_ids"],
        },
    )


def test_combined_groups_are_kept_where_the_parts_agree():
    parts = [
        ClassStats.from_dataset_dicts(
            [{"annotations": [{"category_id": 0}, {"category_id": 1}]}] * 8, "ab", groups=groups
        )
        for groups in ("fr", "ff")
    ]
    assert ClassStats.combine(parts).groups == ("f", "c")  # class b: 16 images


def test_parts_of_different_classes_are_not_combined():
    with pytest.raises(InputError, match="different classes"):
        ClassStats.combine([ClassStats.from_dataset_dicts([], name) for name in "ab"])


@pytest.mark.parametrize(
    ("image_count", "group"), [(0, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")]
)
def test_frequency_groups_change_after_ten_and_a_hundred_images(image_count, group):
    dicts = [{"annotations": [{"category_id": 0}, {"category_id": 0}]}] * image_count
    stats = ClassStats.from_dataset_dicts(dicts, ["only"])
    assert stats.groups == (group,)
    assert stats.instance_counts.tolist() == [2 * image_count]


def test_the_files_own_frequency_is_kept(tmp_path):
    content = make_content([3, 4], [1], [(1, 3, None)])
    content["categories"][0]["frequency"] = "f"
    assert ClassStats.from_json(write(tmp_path, content)).groups == ("f", "r")
    content["categories"][0]["frequency"] = "often"
    with pytest.raises(InputError, match="'frequency' 'often', expected 'r', 'c' or 'f'"):
        ClassStats.from_json(write(tmp_path, content))


def test_counts_are_chosen_by_name_and_cannot_be_changed():
    stats = ClassStats.from_dataset_dicts([{"annotations": [{"category_id": 0}] * 3}], ["only"])
    assert stats.counts("instances").tolist() == [3]
    assert stats.counts("images").tolist() == [1]
    for by in ("instances", "images"):
        with pytest.raises(ValueError, match="read-only"):
            stats.counts(by)[0] = 7
    with pytest.raises(InputError, match="not by 'pixels'"):
        stats.counts("pixels")


def test_changing_the_arrays_given_does_not_change_the_statistics():
    counts = np.array([4])
    stats = ClassStats(counts, counts, 9, 9, (1,), ("only",), ("r",))
    counts[0] = 5
    assert stats.image_counts.tolist() == stats.instance_counts.tolist() == [4]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ((1, 99, None), "annotation 2 has the category_id 99.*balms-det check"),
        ((99, 3, None), "annotation 2 has the image_id 99.*balms-det check"),
    ],
)
def test_unknown_ids_are_refused_by_name(tmp_path, annotation, message):
    path = write(tmp_path, make_content([3], [1], [(1, 3, None), annotation, (1, 3, 0)]))
    for read in (ClassStats.from_json, ClassStats.load):
        with pytest.raises(InputError, match=f"^{path}: {message}"):
            read(path)


@pytest.mark.parametrize("index", [-1, 2])
def test_dataset_dicts_with_other_classes_are_refused(index):
    dicts = [{"file_name": "a.png", "annotations": [{"category_id": index}]}]
    with pytest.raises(InputError, match=f"a.png: an annotation has the category_id {index}"):
        ClassStats.from_dataset_dicts(dicts, ["a", "b"])


GOOD = ClassStats.from_dataset_dicts(
    [{"annotations": [{"category_id": 0}, {"category_id": 0}, {"category_id": 1}]}, {}], "ab"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a",)}, "'names' has shape"),
        ({"image_counts": np.array([1, 1, 1])}, "'image_counts' has shape"),
        ({"category_ids": (2, 2)}, "do not ascend"),
        ({"groups": ("r", "x")}, "'x' is not a frequency group"),
        ({"instance_counts": np.array([2, 0])}, "class 'b' has 0 instances in 1"),
        ({"image_counts": np.array([-1, 1])}, "class 'a' has 2 instances in -1"),
        ({"num_annotated_images": 0}, "which cannot be"),
        ({"num_annotated_images": 3}, "3 of 2 images"),
        ({"box_dimensions": np.array([1.5])}, "'box_dimensions' has shape"),
        ({"box_dimensions": np.array([1.0, 0.5])}, "class 'b' has the box dimension 0.5"),
        ({"box_dimensions": np.array([1.0, np.nan])}, "class 'b' has the box dimension nan"),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(GOOD, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_stats_version": 99}, "'class_stats_version' is 99, expected 1"),
        ({"classes": [{"category_id": 1}]}, "there is no 'image_count'"),
        ({"num_annotated_images": 7}, "7 of 2 images"),
    ],
)
def test_a_statistics_file_that_cannot_be_used_is_named(tmp_path, change, message):
    path = write(tmp_path, {**GOOD.to_dict(), **change})
    with pytest.raises(InputError, match=f"^{path}: class statistics: .*{message}"):
        ClassStats.load(path)


def test_other_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="LVIS or COCO"):
        ClassStats.load(write(tmp_path, {"num_images": 4}))


def test_saving_replaces_the_file_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "stats.json"
    GOOD.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="stats.json: the statistics cannot be written"):
        ClassStats.from_dataset_dicts([], ["other"]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written"):
        GOOD.save(tmp_path / "no" / "such" / "folder.json")


def test_the_tool_prints_a_summary_and_writes_statistics_and_plot(tmp_path, capsys):
    content = make_content([1, 2, 3], [1, 2], [(1, 1, 0), (1, 1, 0), (1, 1, 0), (2, 3, 0)])
    path = write(tmp_path, content)
    out, plot = tmp_path / "stats.json", tmp_path / "plot.png"
    assert exit_status(TOOL, path, "--json", out, "--plot", plot) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("3 classes, 4 instances, 2 images, 2 of them annotated\n")
    assert "1 classes have no instance" in printed
    assert "imbalance 3 " in printed
    assert ClassStats.load(out).to_dict() == ClassStats.from_json(path).to_dict()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_tool_summarises_a_data_set_without_annotations(tmp_path, capsys):
    path = write(tmp_path, make_content([1], [], []))
    assert exit_status(TOOL, path, "--plot", tmp_path / "plot.png") == 0
    assert "1 classes have no instance" in capsys.readouterr().out


def test_the_tool_ends_with_one_sentence_and_status_2(tmp_path, capsys):
    path = write(tmp_path, make_content([1], [], []))
    for arguments, message in [
        ([tmp_path / "nowhere.json"], "cannot be read"),
        ([path, "--plot", tmp_path / "plot.docx"], "plot.docx: the plot cannot be written"),
        ([path, "--plot", tmp_path / "no" / "plot.png"], "plot.png: the plot cannot be written"),
        ([path, "--json", tmp_path / "no" / "stats.json"], "stats.json: the statistics cannot"),
        (["unheard_of"], "'unheard_of' is not registered"),
    ]:
        assert exit_status(TOOL, *arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and message in printed
