"""Cached features: the same rows train the same, and nothing stale or unfinished counts."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from filelock import FileLock, Timeout
from tiny_model import batch, tiny_cfg
from training import SeedEveryStep, assert_equal, meta_of

from balms_det.data import (
    LongTailDatasetMapper,
    build_train_loader,
    load_train_dataset,
    register_dataset,
)
from balms_det.decouple import freeze_except
from balms_det.engine import LongTailCheckpointer, LongTailTrainer, build_checkpointer
from balms_det.engine import feature_cache as fc
from balms_det.engine.feature_cache import extraction, store
from balms_det.engine.meta import Recorder
from balms_det.modeling import sampled_roi_features, train_on_features
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, generate

CLASSIFIER = "roi_heads.box_predictor.cls_score"
DECOUPLE = "MODEL.LONG_TAIL.DECOUPLE"
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features_set")
    generate(folder, GlyphOptions(train_images=NUM_IMAGES, val_images=2, size=64, min_scale=0.2))
    register_dataset("features_train", str(folder / "glyphs_train.json"), str(folder))
    yield folder
    DatasetCatalog.remove("features_train")


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """Path and state of a detector's checkpoint."""
    folder = tmp_path_factory.mktemp("first_stage")
    torch.manual_seed(1)
    model = build_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid"))
    LongTailCheckpointer(model, str(folder)).save("model_final")
    return folder / "model_final.pth", model.state_dict()


@pytest.fixture
def cfg(folder, first_stage, tmp_path):
    return second_stage_cfg(first_stage, tmp_path)


def second_stage_cfg(first_stage, output, *opts):
    return tiny_cfg(
        "MODEL.LONG_TAIL.LOSS.NAME", "sigmoid", f"{DECOUPLE}.ENABLED", True,
        "MODEL.WEIGHTS", first_stage[0], "OUTPUT_DIR", output, "DATASETS.TEST", (),
        "DATASETS.TRAIN", ("features_train",), "DATALOADER.NUM_WORKERS", 0,
        "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.MAX_ITER", 2,
        "SOLVER.WARMUP_ITERS", 0, f"{DECOUPLE}.FEATURE_CACHE", output / "cache", *opts,
    )  # fmt: skip


def frozen_model(cfg, state=None):
    torch.manual_seed(0)
    model = build_model(cfg)
    if state is not None:
        model.load_state_dict(state)
    freeze_except(model, [CLASSIFIER])
    return model.train()


def gradients(model, inputs):
    with EventStorage():
        losses = model(inputs)
    model.zero_grad()
    losses["loss_cls"].backward()
    return losses["loss_cls"].item(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("loss", ["sigmoid", "softmax", "eqlv2", "seesaw"])
def test_the_same_rows_give_the_same_loss_and_gradient(loss):
    model = frozen_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", loss))
    first_state = copy.deepcopy(model)
    on_features = copy.deepcopy(model)
    torch.manual_seed(5)
    expected_loss, expected = gradients(model, batch())
    torch.manual_seed(5)
    with EventStorage():
        rows = sampled_roi_features(on_features, batch())
    train_on_features(on_features)
    inputs = [{"features": features, "gt_classes": classes} for features, classes in rows]
    loss, actual = gradients(on_features, inputs)
    assert loss == expected_loss and len(actual) == 2
    assert all(map(torch.equal, actual, expected))
    assert any(gradient.abs().max() > 0 for gradient in actual)

    again = copy.deepcopy(first_state)
    train_on_features(again)
    halved = [{**each, "features": each["features"].half()} for each in inputs]
    _, rounded = gradients(again, halved)
    for one, other in zip(rounded, expected, strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()


def test_inference_is_not_touched():
    model = frozen_model(tiny_cfg()).eval()
    with torch.no_grad():
        expected = model(batch())
        train_on_features(model)
        actual = model(batch())
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one["instances"].scores, other["instances"].scores)


def test_images_without_objects_have_background_rows():
    model = frozen_model(tiny_cfg())
    with EventStorage():
        rows = sampled_roi_features(model, batch(objects=0))
    assert all((classes == 10).all() and len(classes) for _, classes in rows)


def extract(cfg, state):
    return fc.cached_features(cfg, frozen_model(cfg, state), load_train_dataset(cfg))


def rows_as_bytes(features, classes):
    features = features.cpu()
    return [(f.half().numpy().tobytes(), int(c)) for f, c in zip(features, classes, strict=True)]


FEW_SAMPLED = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]


@pytest.mark.parametrize("rows, kept_of_each", [(0, 20), (17, 17), (300, 300)])
def test_the_cache_holds_all_that_training_samples_from(
    folder, first_stage, tmp_path, rows, kept_of_each
):
    """All proposals on an object, and the others as far as there is room."""
    opts = [*FEW_SAMPLED, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, f"{DECOUPLE}.FEATURE_ROWS", rows]
    cfg = second_stage_cfg(first_stage, tmp_path, *opts)
    cache = extract(cfg, first_stage[1])
    dataset = load_train_dataset(cfg)
    model = frozen_model(cfg, first_stage[1])
    images = list(extraction._Slots(dataset, LongTailDatasetMapper(cfg, True), range(NUM_IMAGES)))
    for start in range(0, NUM_IMAGES, 2):
        with EventStorage():
            per_image = sampled_roi_features(model, images[start : start + 2], at_most=10_000)
        for slot, (features, classes) in enumerate(per_image, start=start):
            count = cache.num_rows[slot]
            kept = rows_as_bytes(torch.from_numpy(cache.features[slot, :count]),
                                 cache.classes[slot, :count])  # fmt: skip
            all_rows = rows_as_bytes(features, classes)
            assert set(kept) <= set(all_rows)
            positives = [row for row in all_rows if row[1] < 10]
            assert sorted(row for row in kept if row[1] < 10) == sorted(positives)
            assert len(kept) == min(len(all_rows), kept_of_each)


def test_training_samples_as_detectron2_does_and_each_row_alike(first_stage, tmp_path):
    cfg = second_stage_cfg(first_stage, tmp_path, *FEW_SAMPLED)
    count, positive, size = 40, 12, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    at_most = int(size * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
    classes = np.full((1, count), 10, np.int32)
    classes[0, :positive] = 3
    features = np.arange(count, dtype=np.float16).reshape(1, count, 1)
    cache = fc.FeatureCache(features, classes, np.array([count], np.int32), num_images=1)
    sample = fc.SampleOfProposals(cache, size, cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION, 10)
    torch.manual_seed(0)
    drawn = np.zeros(count)
    times = 3000
    for _ in range(times):
        rows = sample({"dataset_index": 0})
        which = rows["features"][:, 0].long()
        assert len(which.unique()) == len(which) == size
        assert torch.equal(rows["gt_classes"], torch.from_numpy(classes[0, which]).long())
        assert (which < positive).sum() == min(positive, at_most)
        drawn[which] += 1
    expected = np.full(count, (size - min(positive, at_most)) / (count - positive))
    expected[:positive] = min(positive, at_most) / positive
    tolerance = 5 * np.sqrt(expected * (1 - expected) / times) + 1e-12
    assert (np.abs(drawn / times - expected) <= tolerance).all()


def test_random_numbers_are_left_as_they_were(cfg, first_stage):
    model = frozen_model(cfg, first_stage[1])
    dataset = load_train_dataset(cfg)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    fc.cached_features(cfg, model, dataset)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()


@pytest.mark.gpu
def test_workers_augment_while_a_gpu_extracts(folder, first_stage, tmp_path, device):
    """A worker is forked from a process that has used the GPU, whose generator it cannot ask."""
    caches = []
    for workers in (0, 1):
        opts = ["DATALOADER.NUM_WORKERS", workers]
        cfg = second_stage_cfg(first_stage, tmp_path / str(workers), *opts)
        model, dataset = frozen_model(cfg, first_stage[1]), load_train_dataset(cfg)
        state = torch.cuda.get_rng_state(device)
        caches.append(fc.cached_features(cfg, model, dataset))
        assert torch.equal(torch.cuda.get_rng_state(device), state)
    assert np.array_equal(caches[0].features, caches[1].features)


def test_an_extraction_cut_short_goes_on_and_ends_the_same(
    folder, first_stage, tmp_path, monkeypatch
):
    monkeypatch.setattr(extraction, "_BATCHES_PER_FLUSH", 1)
    whole = extract(second_stage_cfg(first_stage, tmp_path / "whole"), first_stage[1])
    cfg = second_stage_cfg(first_stage, tmp_path / "cut")
    computed = []

    def failing(model, images, **options):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(len(images))
        return sampled_roi_features(model, images, **options)

    monkeypatch.setattr(extraction, "sampled_roi_features", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(cfg, first_stage[1])
    computed.clear()
    cut = extract(cfg, first_stage[1])
    assert computed == [2]  # of the six images, those that were missing
    for name in ("features", "classes", "num_rows"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name))


def test_processes_meet_while_another_run_holds_the_cache(tmp_path, monkeypatch):
    """A barrier would give up before the other run has its features."""
    monkeypatch.setattr(store, "_PATIENCE_S", 0.01)
    other = FileLock(f"{tmp_path / 'cache'}.lock")
    other.acquire()
    met = []

    def all_gather(mine):
        met.append(mine)
        if len(met) == 3:
            other.release()
        return [mine, False]

    monkeypatch.setattr(store.comm, "all_gather", all_gather)
    with store.locked(tmp_path / "cache"):
        assert met == [False, False, False, True]
        with pytest.raises(Timeout):
            FileLock(other.lock_file).acquire(timeout=0)
    FileLock(other.lock_file).acquire(timeout=0)


def test_other_processes_wait_for_the_main_one(tmp_path, monkeypatch):
    answers = [[False, False], [False, False], [True, False]]
    monkeypatch.setattr(store.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(store.comm, "all_gather", lambda mine: answers.pop(0))
    with store.locked(tmp_path / "cache"):
        assert not answers
    assert not list(tmp_path.iterdir())


def test_half_precision_is_copied_to_the_device_as_it_is(monkeypatch):
    model = frozen_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid"))
    width = model.roi_heads.box_predictor.cls_score.in_features
    train_on_features(model)
    moved = []

    def to_device(tensor, device):
        moved.append(tensor.dtype)
        return tensor.to(device)

    monkeypatch.setattr("balms_det.modeling.roi_features.to_device", to_device)
    features = torch.zeros(3, width, dtype=torch.float16)
    with EventStorage():
        model([{"features": features, "gt_classes": torch.tensor([0, 10, 3])}])
    assert moved == [torch.float16, torch.int64, torch.int64]


def test_rows_that_were_written_but_not_committed_do_not_count(cfg, first_stage):
    cache = extract(cfg, first_stage[1])
    cache.num_rows[3] = -1
    cache.features[3] = 7
    cache.num_rows.flush()
    again = extract(cfg, first_stage[1])
    assert not len(again.missing()) and not (again.features[3] == 7).all()


def test_nothing_is_computed_twice(cfg, first_stage, monkeypatch):
    extract(cfg, first_stage[1])
    monkeypatch.setattr(extraction, "_extract", None)
    extract(cfg, first_stage[1])


def key_of(cfg, state, dataset=None):
    return fc.cache_key(cfg, frozen_model(cfg, state), dataset or load_train_dataset(cfg))


def test_features_are_known_by_what_they_depend_on(cfg, first_stage, folder):
    state = first_stage[1]
    key = key_of(cfg, state)
    keys = {key}
    for name in (
        "backbone.fpn_lateral5.weight",
        "backbone.bottom_up.stem.conv1.norm.running_mean",
        "proposal_generator.rpn_head.objectness_logits.bias",
        "roi_heads.box_head.fc1.bias",
    ):
        other = {**state, name: state[name] + 1e-3}
        keys.add(key_of(cfg, other))
    for option, value in (
        ("INPUT.MIN_SIZE_TRAIN", (80,)),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 10),
        (f"{DECOUPLE}.FEATURE_VIEWS", 2),
        (f"{DECOUPLE}.FEATURE_ROWS", 33),
    ):
        other_cfg = cfg.clone()
        other_cfg.merge_from_list([option, value])
        keys.add(key_of(other_cfg, state))
    dataset = list(load_train_dataset(cfg))
    dataset[0]["annotations"][0]["category_id"] += 1
    keys.add(key_of(cfg, state, dataset))
    picture = load_train_dataset(cfg)[0]["file_name"]
    status = os.stat(picture)
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    keys.add(key_of(cfg, state))
    assert len(keys) == 12
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key_of(cfg, state) == key


def test_mixed_precision_gives_other_features(cfg, first_stage):
    key = key_of(cfg, first_stage[1])
    mixed = cfg.clone()
    mixed.SOLVER.AMP.ENABLED = True
    assert key_of(mixed, first_stage[1]) != key


def test_classifier_loss_and_seed_share_the_features(cfg, first_stage):
    state = first_stage[1]
    key = key_of(cfg, state)
    name = f"{CLASSIFIER}.weight"
    assert key_of(cfg, {**state, name: state[name] + 1}) == key
    for option, value in (
        ("SEED", 7),
        ("SOLVER.BASE_LR", 0.5),
        ("MODEL.LONG_TAIL.LOSS.NAME", "focal"),
        ("DATALOADER.SAMPLER_TRAIN", "ClassBalancedTrainingSampler"),
    ):
        other = cfg.clone()
        other.merge_from_list([option, value])
        assert key_of(other, state) == key


def test_a_broken_cache_is_refused(cfg, first_stage):
    extract(cfg, first_stage[1])
    (path,) = cache_folder(cfg).glob("*/features.npy")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="features.npy.*cannot be read.*remove"):
        extract(cfg, first_stage[1])


def cache_folder(cfg):
    return Path(cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE)


def test_features_that_half_precision_cannot_hold_are_refused(cfg, first_stage):
    state = {**first_stage[1]}
    state["roi_heads.box_head.fc1.bias"] = state["roi_heads.box_head.fc1.bias"] + 1e6
    with pytest.raises(InputError, match="not finite in half precision"):
        extract(cfg, state)


def test_no_room_is_said_before_anything_is_written(cfg, first_stage, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="GB are free; .*DECOUPLE.FEATURE_ROWS"):
        extract(cfg, first_stage[1])
    assert not [path for path in cache_folder(cfg).iterdir() if path.is_dir()]


def test_views_are_augmentations_of_their_own(folder, first_stage, tmp_path):
    opts = [f"{DECOUPLE}.FEATURE_VIEWS", 2, "INPUT.RANDOM_FLIP", "horizontal"]
    cache = extract(second_stage_cfg(first_stage, tmp_path, *opts), first_stage[1])
    assert len(cache.features) == 2 * NUM_IMAGES
    sample = fc.SampleOfProposals(cache, 512, 1.0, 10)

    def views_of(image):
        drawn = (sample({"dataset_index": image})["features"].numpy() for _ in range(20))
        return len({tuple(sorted(row.tobytes() for row in rows)) for rows in drawn})

    # Of six images, one at least is flipped in one view and not in the other.
    assert {views_of(image) for image in range(NUM_IMAGES)} == {1, 2}


# In training


def trained(cfg, *, resume=False):
    torch.manual_seed(2)
    trainer = LongTailTrainer(cfg)
    trainer.loop.register_hooks([SeedEveryStep()])
    trainer.resume_or_load(resume=resume)
    iter(trainer.loop._data_loader_iter)  # which takes a seed from PyTorch's generator
    trainer.train()
    return trainer


def test_the_trainer_moves_the_classifier_alone_and_saves_the_whole_model(cfg, first_stage):
    trainer = trained(cfg)
    state = first_stage[1]
    after = trainer.model.state_dict()
    moved = {name for name in state if not torch.equal(after[name], state[name])}
    assert moved == {f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"}
    model = build_model(cfg)
    build_checkpointer(cfg, model).load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert all(map(torch.equal, model.state_dict().values(), after.values()))


@pytest.mark.parametrize(
    "sampler", ["RepeatFactorTrainingSampler", "ClassBalancedTrainingSampler", "TrainingSampler"]
)
def test_every_sampler_and_method_train_on_the_same_features(
    folder, first_stage, tmp_path, sampler, monkeypatch
):
    opts = ["DATALOADER.SAMPLER_TRAIN", sampler, f"{DECOUPLE}.REINIT", [CLASSIFIER]]
    trained(second_stage_cfg(first_stage, tmp_path, *opts))
    monkeypatch.setattr(extraction, "_extract", None)
    for loss in ("softmax", "eqlv2", "seesaw"):
        trained(second_stage_cfg(first_stage, tmp_path, *opts, "MODEL.LONG_TAIL.LOSS.NAME", loss))


LEARNED = {
    "sampler": ["DATALOADER.SAMPLER_TRAIN", "MetaTrainingSampler"],
    "reweighter": ["MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME", "learned"],
}


@pytest.mark.parametrize("learned", LEARNED.values(), ids=LEARNED)
def test_rates_are_learned_from_features(folder, first_stage, tmp_path, learned):
    opts = [*learned, "MODEL.LONG_TAIL.STATS_FILE", folder / "glyphs_train.json"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 6, "SOLVER.OPTIMIZER", "SGD"]
    cfg = second_stage_cfg(first_stage, tmp_path, *opts)
    whole = trained(cfg)
    assert (meta_of(whole).rates() != 0.5).any()
    if "MetaTrainingSampler" not in learned:
        return  # Detectron2's samplers start over on resuming
    for name in ("model_final.pth", "model_0000005.pth"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == 4
    assert torch.equal(meta_of(resumed).rates(), meta_of(whole).rates())
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_meta_learning_sees_in_features_what_it_sees_in_images(first_stage):
    """Images, classes and gradients of the same rows, with and without the detector around them."""
    model = frozen_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid"), first_stage[1])
    recorder = Recorder(model)
    inputs = [{**image, "dataset_index": i} for i, image in zip((7, 3), batch(), strict=True)]

    def seen(inputs):
        torch.manual_seed(5)
        with EventStorage():
            model(inputs)["loss_cls"].backward()
        return recorder.dataset_indices, recorder.records[0]

    indices, from_images = seen(inputs)
    torch.manual_seed(5)
    with EventStorage():
        rows = sampled_roi_features(model, inputs)
    train_on_features(model)
    of_features, from_features = seen(
        [
            {"dataset_index": index, "features": features, "gt_classes": classes}
            for index, (features, classes) in zip(indices, rows, strict=True)
        ]
    )
    assert of_features == indices == [7, 3]
    assert vars(from_features).keys() == vars(from_images).keys()
    for name, expected in vars(from_images).items():
        torch.testing.assert_close(getattr(from_features, name), expected)


def test_the_loader_draws_the_same_images_as_without_cache(cfg, first_stage):
    dataset = load_train_dataset(cfg)
    cache = extract(cfg, first_stage[1])

    def positions(loader, position_of):
        return [
            position_of(image)
            for _, images in zip(range(9), loader, strict=False)
            for image in images
        ]

    torch.manual_seed(4)
    drawn = positions(
        fc.build_feature_loader(cfg, dataset, cache), lambda rows: rows["dataset_index"]
    )
    ids = [record["image_id"] for record in dataset]
    expected = positions(build_train_loader(cfg), lambda im: ids.index(im["image_id"]))
    assert drawn == expected


@pytest.mark.parametrize(
    "opts, words",
    [
        ([f"{DECOUPLE}.TRAIN_MODULES", ["roi_heads.box_head"]], ["'roi_heads.box_head'"]),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], ["StandardROIHeads"]),
        ([f"{DECOUPLE}.START_ITER", 1], ["START_ITER is 1"]),
        ([f"{DECOUPLE}.FEATURE_VIEWS", 0], ["FEATURE_VIEWS is 0", "1 or more"]),
        ([f"{DECOUPLE}.FEATURE_ROWS", 3], ["FEATURE_ROWS is 3", "set it to 0 or no less"]),
        ([f"{DECOUPLE}.FEATURE_ROWS", -1], ["FEATURE_ROWS is -1", "0 or more"]),
    ],
)
def test_where_more_than_the_classifier_sees_images_the_cache_is_refused(
    opts, words, first_stage, tmp_path
):
    with pytest.raises(InputError) as caught:
        second_stage_cfg(first_stage, tmp_path, *opts)
    assert all(word in str(caught.value) for word in words), caught.value
