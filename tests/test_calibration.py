"""Test-time calibration: formulas against loops, limiting cases, and the predictor that uses it."""

import argparse
import dataclasses

import numpy as np
import oracles
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from second_device import name_of_device
from torch.nn import functional as F

from balms_det.annotations.class_stats import ClassStats
from balms_det.calibration import (
    CALIBRATIONS,
    Calibration,
    LogitStats,
    calibration_from_stats,
    fracal_weights,
    logit_adjustment_weights,
    norcal_weights,
    reweight_exclusive,
    reweight_odds,
    tau_normalized_logits,
)
from balms_det.config import config_file
from balms_det.engine import inference_class_stats, load_config
from balms_det.losses import balanced_softmax_shifts
from balms_det.losses.registry import LOSSES
from balms_det.modeling import LongTailPredictor
from balms_det.runtime.errors import InputError

K = 6
COUNTS = torch.tensor([4000, 900, 30, 7, 1, 0])
DIMENSIONS = torch.tensor([1.9, 1.6, 1.7, 1.2, 1.0, 1.0], dtype=torch.float64)
NAMES = ("logit_adjustment", "norcal", "fracal")
RTOL = 1e-10


def logits(exclusive, num_rows=40, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randn(num_rows, K + exclusive, generator=generator, dtype=dtype)


def probabilities(exclusive, **kwargs):
    """(R, K + 1) as the two activations give them, in the dtype of the logits."""
    eta = logits(exclusive, **kwargs)
    return F.softmax(eta, dim=1) if exclusive else F.pad(eta.sigmoid(), (0, 1))


def calibration_of(name, strength, counts=COUNTS, *, exclusive):
    dimensions = DIMENSIONS[: len(counts)]
    return Calibration(name, strength, counts, exclusive=exclusive, box_dimensions=dimensions)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["softmax", "sigmoid"])
def exclusive(request):
    return request.param


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_logit_adjustment_of_a_softmax_agrees_with_the_oracle_on_logits(tau):
    eta = logits(True)
    actual = reweight_exclusive(F.softmax(eta, dim=1), logit_adjustment_weights(COUNTS, tau))
    shifted = torch.tensor(oracles.adjusted_logits(eta, COUNTS.tolist(), tau), dtype=torch.float64)
    np.testing.assert_allclose(actual, oracles.softmax_rows(shifted), rtol=RTOL)


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_logit_adjustment_of_a_sigmoid_agrees_with_the_oracle_on_logits(tau):
    eta = logits(False)
    actual = reweight_odds(eta.sigmoid(), logit_adjustment_weights(COUNTS, tau))
    shifted = torch.tensor(oracles.adjusted_logits(eta, COUNTS.tolist(), tau), dtype=torch.float64)
    np.testing.assert_allclose(actual, shifted.sigmoid(), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.3, 0.6, 1.0])
def test_norcal_agrees_with_the_oracle(exclusive, gamma):
    probs = probabilities(exclusive)
    expected = oracles.norcal(probs, COUNTS.tolist(), gamma, normalise=exclusive)
    if exclusive:
        actual = reweight_exclusive(probs, norcal_weights(COUNTS, gamma))
        np.testing.assert_allclose(actual, expected, rtol=RTOL)
    calibration = calibration_of("norcal", gamma, COUNTS, exclusive=exclusive)
    np.testing.assert_allclose(calibration(probs), expected, rtol=1e-5)


def test_logit_adjustment_undoes_what_balanced_softmax_adds_in_training():
    """The softmax that a balanced softmax was trained through gives back its raw logits' one."""
    eta = logits(True)
    trained_through = F.softmax(eta + balanced_softmax_shifts(COUNTS), dim=1)
    adjusted = reweight_exclusive(trained_through, logit_adjustment_weights(COUNTS, 1.0))
    torch.testing.assert_close(adjusted, F.softmax(eta, dim=1), rtol=RTOL, atol=0)


FREQUENCIES = [max(n, 1) / 5000 for n in COUNTS.tolist()]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_fracal_of_a_softmax_agrees_with_the_oracle_on_logits(power):
    eta = logits(True)
    weights = fracal_weights(COUNTS, DIMENSIONS, total=5000, power=power)
    actual = reweight_exclusive(F.softmax(eta, dim=1), weights)
    expected = oracles.fracal_softmax(eta, FREQUENCIES, DIMENSIONS.tolist(), power)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_fracal_of_sigmoids_agrees_with_the_oracle_on_logits(power):
    eta = logits(False)
    calibration = Calibration(
        *("fracal", 1.0, COUNTS),
        exclusive=False,
        box_dimensions=DIMENSIONS,
        total=5000,
        fractal_power=power,
    )
    actual = calibration(F.pad(eta.sigmoid(), (0, 1)))[:, :-1]
    expected = oracles.fracal_sigmoid(eta, FREQUENCIES, DIMENSIONS.tolist(), power)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_fracal_with_equal_counts_and_dimensions_keeps_the_classes_order(exclusive):
    """A softmax loses to its background by D^lambda alone; two equal classes stay equal."""
    weights = fracal_weights(
        torch.full((K,), 7), torch.full((K,), 1.5), power=2.0, exclusive=exclusive
    )
    expected = 1.5**-2 if exclusive else 1.0
    torch.testing.assert_close(weights, torch.full((K,), expected, dtype=torch.float64))


def test_fracal_counts_over_all_images_as_its_authors_do():
    stats = dataclasses.replace(class_stats(), num_images=6000, box_dimensions=DIMENSIONS.numpy())
    by_images = calibration_from_stats("fracal", 1.0, stats, "images", exclusive=True)
    by_instances = calibration_from_stats("fracal", 1.0, stats, "instances", exclusive=True)
    expected = fracal_weights(COUNTS, DIMENSIONS, total=6000)
    torch.testing.assert_close(by_images.weights, expected.float())
    total = int(COUNTS.clamp(min=1).sum())
    expected = fracal_weights(COUNTS, DIMENSIONS, total=total)
    torch.testing.assert_close(by_instances.weights, expected.float())


def test_fracal_without_dimensions_is_refused_with_the_remedy():
    stats = dataclasses.replace(class_stats(), box_dimensions=None)
    with pytest.raises(InputError, match="'fracal' needs the box dimensions.*STATS_FILE"):
        calibration_from_stats("fracal", 1.0, stats, "images", exclusive=True)
    norcal = calibration_from_stats("norcal", 1.0, stats, "images", exclusive=True)
    torch.testing.assert_close(norcal.weights, norcal_weights(COUNTS, 1.0).float())


def test_strength_zero_is_the_identity_to_the_last_bit(name, exclusive):
    calibration = calibration_of(name, 0.0, COUNTS, exclusive=exclusive)
    probs = probabilities(exclusive, dtype=torch.float32)
    assert torch.equal(calibration(probs), probs)
    scores, classes = probs[:, 0], torch.arange(len(probs)) % K
    assert torch.equal(calibration.rescore(scores, classes), scores)


def test_equal_counts_change_nothing_under_logit_adjustment(exclusive):
    calibration = calibration_of("logit_adjustment", 1.0, torch.full((K,), 9), exclusive=exclusive)
    probs = probabilities(exclusive)
    torch.testing.assert_close(calibration(probs), probs)


def test_softmax_rows_still_sum_to_one_and_sigmoids_keep_their_background(name, exclusive):
    probs = probabilities(exclusive, dtype=torch.float32)
    corrected = calibration_of(name, 0.8, COUNTS, exclusive=exclusive)(probs)
    assert corrected.shape == probs.shape and corrected.dtype == probs.dtype
    assert ((corrected >= 0) & (corrected <= 1)).all()
    if exclusive:
        torch.testing.assert_close(corrected.sum(dim=1), torch.ones(len(probs)))
    else:
        assert torch.equal(corrected[:, -1], probs[:, -1])


def test_order_within_a_class_of_sigmoids_stays(name):
    probs = probabilities(False, num_rows=500)
    corrected = calibration_of(name, 1.0, COUNTS, exclusive=False)(probs)
    assert torch.equal(corrected.argsort(dim=0)[:, :-1], probs.argsort(dim=0)[:, :-1])


def test_stronger_moves_scores_from_head_to_tail(name, exclusive):
    probs = probabilities(exclusive)
    head, tail = 0, 3
    ratios = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        corrected = calibration_of(name, strength, COUNTS, exclusive=exclusive)(probs)
        if name == "fracal" and not exclusive and strength > 0:  # of two sigmoids the second acts
            corrected = corrected / probs
        if name != "norcal" and not exclusive:  # which acts on the odds
            corrected = corrected / (1 - corrected)
        ratios.append(corrected[:, tail] / corrected[:, head])
    for weaker, stronger in zip(ratios, ratios[1:], strict=False):
        assert (stronger > weaker).all()


def test_extreme_probabilities_and_classes_never_seen_stay_finite(name, exclusive):
    for strength in (0.5, 3.0):
        calibration = calibration_of(name, strength, COUNTS, exclusive=exclusive)
        extreme = torch.zeros(3, K + 1)
        extreme[0, -1] = extreme[1, 0] = extreme[2, 5] = 1.0
        assert calibration(extreme).isfinite().all()
    unseen = calibration_of(name, 1.0, torch.zeros(K), exclusive=exclusive)
    assert unseen(probabilities(exclusive)).isfinite().all()


def test_no_rois_are_no_error(name, exclusive):
    calibration = calibration_of(name, 1.0, COUNTS, exclusive=exclusive)
    assert calibration(torch.zeros(0, K + 1)).shape == (0, K + 1)


def test_inputs_are_left_alone(name, exclusive):
    probs = probabilities(exclusive)
    before = probs.clone()
    calibration_of(name, 1.0, COUNTS, exclusive=exclusive)(probs)
    assert torch.equal(probs, before)


def test_rescoring_single_detections_equals_calibrating_the_rows_of_sigmoids(name):
    probs = probabilities(False, dtype=torch.float32)
    calibration = calibration_of(name, 0.7, COUNTS, exclusive=False)
    classes = torch.arange(len(probs)) % K
    rows = torch.arange(len(probs))
    assert torch.equal(
        calibration.rescore(probs[rows, classes], classes), calibration(probs)[rows, classes]
    )


def test_rescoring_is_exact_for_a_softmax_of_one_class_and_background(name):
    probs = F.softmax(torch.randn(20, 2, dtype=torch.float64), dim=1)
    calibration = calibration_of(name, 0.7, torch.tensor([50]), exclusive=True)
    rescored = calibration.rescore(probs[:, 0], torch.zeros(20, dtype=torch.long))
    torch.testing.assert_close(rescored, calibration(probs)[:, 0])


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_normalisation_is_that_of_the_classifiers_rows(tau):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(K, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(K, generator=generator, dtype=torch.float64)
    features = torch.randn(15, 8, generator=generator, dtype=torch.float64)
    expected = np.zeros((15, K))
    for i, x in enumerate(features.tolist()):
        for j, row in enumerate(weight.tolist()):
            norm = sum(w * w for w in row) ** 0.5
            dot = sum(w / norm**tau * value for w, value in zip(row, x, strict=True))
            expected[i, j] = dot + bias[j].item()
    actual = tau_normalized_logits(F.linear(features, weight, bias), weight, bias, tau)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_tau_normalisation_leaves_a_row_of_zeros():
    weight, bias = torch.zeros(2, 4), torch.tensor([0.5, -1.0])
    assert torch.equal(
        tau_normalized_logits(bias.expand(3, 2), weight, bias, 1.0), bias.expand(3, 2)
    )


# The predictor


def class_stats(counts=COUNTS):
    return ClassStats(
        image_counts=np.asarray(counts),
        instance_counts=np.asarray(counts),
        num_images=5000,
        num_annotated_images=5000,
        category_ids=tuple(range(1, K + 1)),
        names=tuple(f"class {j}" for j in range(K)),
        groups=("f", "f", "c", "r", "r", "r"),
        box_dimensions=DIMENSIONS.numpy(),
    )


def config(*opts):
    path = config_file("glyphs_quickstart.yaml")
    opts = ["MODEL.DEVICE", name_of_device(), "MODEL.ROI_HEADS.NUM_CLASSES", str(K), *opts]
    return load_config(argparse.Namespace(config_file=path, opts=opts, dataset=[]))


@pytest.fixture
def predictor(tmp_path):
    """Builds a predictor with the same weights whatever the options."""
    path = tmp_path / "stats.json"
    class_stats().save(path)

    def build(*opts):
        cfg = config("MODEL.LONG_TAIL.STATS_FILE", str(path), *opts)
        torch.manual_seed(0)
        built = LongTailPredictor(cfg, ShapeSpec(channels=16)).eval()
        torch.nn.init.normal_(built.cls_score.weight, std=0.5)
        return built

    return build


@pytest.fixture(autouse=True)
def logit_stats(tmp_path, monkeypatch):
    """What the calibration "logn" reads, in the directory that the test runs in."""
    monkeypatch.chdir(tmp_path)
    stats = LogitStats(torch.linspace(-6, -1, K).double(), torch.linspace(0.5, 2, K).double(), 99)
    stats.save("logit_stats.json")
    return stats


def posthoc(name, strength):
    return [
        *(["MODEL.LONG_TAIL.CALIBRATION.LOGIT_STATS", "logit_stats.json"] * (name == "logn")),
        "MODEL.LONG_TAIL.CALIBRATION.NAME",
        name,
        "MODEL.LONG_TAIL.CALIBRATION.STRENGTH",
        str(strength),
    ]


def image(num_proposals=30):
    generator = torch.Generator().manual_seed(5)
    corners = 60 * torch.rand(num_proposals, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20], dim=1)
    features = torch.randn(num_proposals, 16, generator=generator)
    return features, [Instances((100, 100), proposal_boxes=Boxes(boxes))]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CALIBRATIONS)
def test_strength_zero_predicts_as_without_calibration(predictor, loss, name):
    features, proposals = image()
    options = ["MODEL.LONG_TAIL.LOSS.NAME", loss]
    plain, zero = predictor(*options), predictor(*options, *posthoc(name, 0.0))
    (expected,) = plain.predict_probs(plain(features), proposals)
    (actual,) = zero.predict_probs(zero(features), proposals)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", sorted(set(CALIBRATIONS) - {"none"}))
def test_calibration_changes_predictions_but_neither_training_nor_checkpoints(
    predictor, loss, name
):
    features, proposals = image()
    options = ["MODEL.LONG_TAIL.LOSS.NAME", loss]
    plain, calibrated = predictor(*options), predictor(*options, *posthoc(name, 1.0))
    outputs = plain(features)
    (before,) = plain.predict_probs(outputs, proposals)
    (after,) = calibrated.predict_probs(calibrated(features), proposals)
    assert not torch.allclose(before, after)
    gt = torch.arange(len(features)) % (K + 1)
    losses = []
    for built in (plain, calibrated):
        torch.manual_seed(0)  # for losses that draw
        losses.append(built.criterion(outputs[0], gt))
    assert torch.equal(*losses)
    assert plain.state_dict().keys() == calibrated.state_dict().keys()


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_tau_norm_predicts_with_normalised_weights_beside_the_background(predictor, loss):
    features, proposals = image()
    options = ["MODEL.LONG_TAIL.LOSS.NAME", loss]
    plain, normalised = predictor(*options), predictor(*options, *posthoc("tau_norm", 0.7))
    with torch.no_grad():
        rows = plain.cls_score.weight[:K]
        rows /= rows.norm(dim=1, keepdim=True) ** 0.7
        (expected,) = plain.predict_probs(plain(features), proposals)
        (actual,) = normalised.predict_probs(normalised(features), proposals)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_those_of_rescoring_all_of_an_uncalibrated_sigmoid(predictor, name):
    """What tools/calibrate.py relies on: suppression within classes is not touched."""
    features, proposals = image()
    every = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "-1"]
    plain = predictor(*every)
    (stored,), _ = plain.inference(plain(features), proposals)
    assert len(stored) < len(features) * K  # some were suppressed
    calibrated = predictor(*every[:3], "12", *posthoc(name, 0.5))
    (expected,), _ = calibrated.inference(calibrated(features), proposals)

    rescored = calibrated.calibration.rescore(stored.scores, stored.pred_classes)
    best = rescored.argsort(descending=True)[:12]
    assert torch.equal(rescored[best], expected.scores)
    assert torch.equal(stored.pred_classes[best], expected.pred_classes)
    assert torch.equal(stored.pred_boxes.tensor[best], expected.pred_boxes.tensor)
    assert not torch.equal(best, stored.scores.argsort(descending=True)[:12])


@pytest.mark.parametrize("name", NAMES)
def test_model_that_calibrates_without_statistics_is_refused(name):
    with pytest.raises(InputError, match="STATS_FILE"):
        LongTailPredictor(config(*posthoc(name, 1.0)), ShapeSpec(channels=16))


def test_statistics_come_from_the_checkpoint_when_a_model_calibrates(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {}, "class_stats": class_stats().to_dict()}, path)
    cfg = config(*posthoc("norcal", 0.5))
    stats = inference_class_stats(cfg, str(path))
    assert stats.instance_counts.tolist() == COUNTS.tolist()
    class_stats((9,) * K).save(tmp_path / "mine.json")
    given = config(
        *posthoc("norcal", 0.5), "MODEL.LONG_TAIL.STATS_FILE", str(tmp_path / "mine.json")
    )
    assert inference_class_stats(given, str(path)).instance_counts.tolist() == [9] * K


def test_checkpoint_without_statistics_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {}}, path)
    with pytest.raises(InputError, match="model.pth.*STATS_FILE"):
        inference_class_stats(config(*posthoc("norcal", 0.5)), str(path))
    for opts in ([], posthoc("tau_norm", 0.5)):
        assert inference_class_stats(config(*opts), str(path)) is None
