"""LogN: the statistics of logits, their files, and the detector that is corrected with them."""

import argparse
import json

import numpy as np
import oracles
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from tiny_model import tiny_cfg

from balms_det.calibration import LogitMoments, LogitStats, normalized_logits
from balms_det.commands import logit_stats as command
from balms_det.config import config_file
from balms_det.data import register_dataset
from balms_det.engine import LongTailCheckpointer, build_long_tail_model, load_config
from balms_det.engine.logit_stats import collect_logit_stats
from balms_det.modeling import LongTailPredictor
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, generate

K = 5
CALIBRATION = "MODEL.LONG_TAIL.CALIBRATION"


def random_logits(num_rows=37, seed=0, scale=2.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(num_rows, K, generator=generator, dtype=torch.float64)


STATS = LogitStats(
    torch.tensor([-1.0, -5.0, -6.5, -6.4, -2.0], dtype=torch.float64),
    torch.tensor([2.0, 1.0, 0.3, 0.5, 1.5], dtype=torch.float64),
    1000,
)


def test_normalised_logits_agree_with_the_oracle():
    logits = random_logits()
    actual = normalized_logits(logits, STATS.means, STATS.deviations)
    expected = oracles.normalised_logits(logits, STATS.means.tolist(), STATS.deviations.tolist())
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_class_of_the_least_mean_is_only_scaled_and_equal_statistics_only_scale():
    logits = random_logits()
    actual = normalized_logits(logits, STATS.means, STATS.deviations)
    torch.testing.assert_close(actual[:, 2], logits[:, 2] / 0.3)
    equal = normalized_logits(logits, torch.full((K,), -3.0), torch.ones(K))
    assert torch.equal(equal, logits)


def test_strength_zero_changes_nothing_and_half_lies_between():
    logits = random_logits()
    assert torch.equal(normalized_logits(logits, STATS.means, STATS.deviations, 0.0), logits)
    half = normalized_logits(logits, STATS.means, torch.ones(K), 0.5)
    whole = normalized_logits(logits, STATS.means, torch.ones(K), 1.0)
    torch.testing.assert_close(half, (logits + whole) / 2)


@pytest.mark.parametrize("sizes", [[37], [1, 30, 0, 6], [1] * 37])
def test_moments_do_not_depend_on_the_batches(sizes):
    logits = random_logits(shift=1e4)  # sums of squares would lose the deviation
    moments = LogitMoments(K)
    for batch in logits.split(sizes):
        moments.add(batch)
    stats = moments.stats()
    np.testing.assert_allclose(stats.means, np.mean(logits.numpy(), axis=0), rtol=1e-13)
    np.testing.assert_allclose(stats.deviations, np.std(logits.numpy(), axis=0, ddof=1), rtol=1e-9)
    assert stats.num_rows == 37


def test_statistics_are_those_of_batch_norm():
    logits = random_logits()
    moments = LogitMoments(K)
    moments.add(logits)
    norm = torch.nn.BatchNorm1d(K, momentum=1.0, affine=False).double()
    norm(logits)
    stats = moments.stats()
    torch.testing.assert_close(stats.means, norm.running_mean)
    torch.testing.assert_close(stats.deviations, norm.running_var.sqrt())


def test_a_constant_logit_has_a_positive_deviation_and_one_row_is_refused():
    moments = LogitMoments(K)
    moments.add(torch.zeros(1, K))
    with pytest.raises(InputError, match="gave 1 proposals"):
        moments.stats()
    moments.add(torch.zeros(3, K))
    assert (moments.stats().deviations > 0).all()


def test_statistics_survive_their_file(tmp_path):
    STATS.save(tmp_path / "stats.json")
    loaded = LogitStats.load(tmp_path / "stats.json")
    assert torch.equal(loaded.means, STATS.means)
    assert torch.equal(loaded.deviations, STATS.deviations)
    assert loaded.num_rows == 1000
    with pytest.raises(InputError, match="cannot be written"):
        STATS.save(tmp_path / "no" / "stats.json")


@pytest.mark.parametrize(
    "change",
    [
        {"logit_stats_version": 2},
        {"means": [0.0] * (K - 1)},
        {"means": "many"},
        {"deviations": [0.0] * K},
        {"deviations": None},
        {"num_rows": None},
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, change):
    path = tmp_path / "stats.json"
    STATS.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=f"{path}: .*balms-det logit-stats"):
        LogitStats.load(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="these are no logit statistics"):
        LogitStats.load(path)


# The predictor


def config(*opts):
    path = config_file("glyphs_quickstart.yaml")
    opts = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        K,
        f"{CALIBRATION}.NAME",
        "logn",
        *opts,
    ]
    return load_config(
        argparse.Namespace(config_file=path, opts=[str(opt) for opt in opts], dataset=[])
    )


@pytest.fixture
def stats_path(tmp_path):
    STATS.save(tmp_path / "stats.json")
    return tmp_path / "stats.json"


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_predictor_normalises_the_classes_and_leaves_the_background(stats_path, loss):
    cfg = config("MODEL.LONG_TAIL.LOSS.NAME", loss, f"{CALIBRATION}.LOGIT_STATS", stats_path)
    predictor = LongTailPredictor(cfg, ShapeSpec(channels=8)).eval()
    logits = torch.randn(6, K + (loss == "softmax"), generator=torch.Generator().manual_seed(1))
    boxes = Instances((9, 9), proposal_boxes=Boxes(torch.zeros(6, 4)))
    (actual,) = predictor.predict_probs((logits, None), [boxes])
    foreground = oracles.normalised_logits(
        logits[:, :K], STATS.means.tolist(), STATS.deviations.tolist()
    )
    corrected = torch.cat([torch.tensor(foreground), logits[:, K:]], dim=1)
    expected = corrected.softmax(dim=1) if loss == "softmax" else corrected.sigmoid()
    torch.testing.assert_close(actual[:, : expected.shape[1]], expected)


@pytest.mark.parametrize(
    "opts, message",
    [
        ([], "LOGIT_STATS is ''.*balms-det logit-stats"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 7], "of 5 classes, but .*NUM_CLASSES is 7"),
        (["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"], "choose another calibration"),
    ],
)
def test_logn_that_cannot_work_is_refused(stats_path, opts, message):
    stats = [f"{CALIBRATION}.LOGIT_STATS", stats_path] if opts else []
    with pytest.raises(InputError, match=message):
        LongTailPredictor(config(*stats, *opts), ShapeSpec(channels=8))


def test_the_name_of_the_base_is_filled_in():
    cfg = load_config(argparse.Namespace(config_file="lvis_r101+logn", opts=[], dataset=[]))
    assert cfg.MODEL.LONG_TAIL.CALIBRATION.LOGIT_STATS == "output/lvis_r101_rfs/logit_stats.json"


# A detector


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A registered data set and the checkpoint of a detector."""
    folder = tmp_path_factory.mktemp("logits")
    generate(folder, GlyphOptions(train_images=5, val_images=2, size=64, min_scale=0.2))
    register_dataset("logits_train", str(folder / "glyphs_train.json"), str(folder))
    torch.manual_seed(1)
    model = build_long_tail_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "softmax"), None)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    LongTailCheckpointer(model, str(folder)).save("model_final")
    yield folder, model
    DatasetCatalog.remove("logits_train")


def detector_cfg(*opts):
    return tiny_cfg(
        *("MODEL.LONG_TAIL.LOSS.NAME", "softmax", "DATASETS.TRAIN", ("logits_train",)),
        *("DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
        *("INPUT.MIN_SIZE_TRAIN", (64,), *opts),
    )


def collected(cfg, model):
    seed_all_rng(0)
    return collect_logit_stats(cfg, model)


def test_collecting_sees_the_sampled_proposals_of_one_epoch_and_changes_nothing(trained):
    _, model = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []
    classifier = model.roi_heads.box_predictor.cls_score
    handle = classifier.register_forward_hook(lambda _, __, logits: seen.append(logits))
    cfg = detector_cfg()
    stats = collected(cfg, model)
    handle.remove()
    assert len(seen) == 3  # batches of two images of five
    logits = torch.cat(seen).double().numpy()[:, :10]
    assert stats.num_rows == len(logits) > 0
    np.testing.assert_allclose(stats.means, logits.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(stats.deviations, logits.std(axis=0, ddof=1), rtol=1e-10)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_cached_features_give_about_the_same_statistics(trained, tmp_path):
    """They are rounded to half precision, and other proposals are sampled."""
    _, model = trained
    cache = "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE"
    stats = collected(detector_cfg(), model)
    cached = collected(detector_cfg(cache, tmp_path / "cache"), model)
    assert any((tmp_path / "cache").iterdir())
    gap = (stats.means - cached.means).abs() / stats.deviations
    assert (gap < 0.5).all()


def test_the_command_writes_statistics_that_an_evaluation_uses(trained, tmp_path, capsys):
    folder, _ = trained
    opts = [
        *("MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path),
        *("MODEL.LONG_TAIL.LOSS.NAME", "softmax", "DATASETS.TRAIN", "('logits_train',)"),
        *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(64,)"),
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.DEVICE", "cpu", "SEED", 0),
    ]
    command.main(["--config-file", "glyphs_quickstart", *map(str, opts)])
    path = tmp_path / "logit_stats.json"
    assert str(path) in capsys.readouterr().out
    stats = LogitStats.load(path)
    assert len(stats.means) == 10
    cfg = tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "softmax", f"{CALIBRATION}.NAME", "logn",
                   f"{CALIBRATION}.LOGIT_STATS", path)  # fmt: skip
    model = build_long_tail_model(cfg, None)
    assert torch.equal(model.roi_heads.box_predictor.logit_calibration.means, stats.means)
    with pytest.raises(InputError, match="MODEL.WEIGHTS is ''"):
        command.main(["--config-file", "glyphs_quickstart", "MODEL.WEIGHTS", ""])


def test_collecting_for_a_cascade_is_refused(trained):
    cfg = detector_cfg("MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads")
    with pytest.raises(InputError, match="LongTailCascadeROIHeads.*one classifier"):
        collect_logit_stats(cfg, torch.nn.Module())
