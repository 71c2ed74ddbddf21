"""Facts of the authors' papers and code that a configuration or a document must repeat."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from torch.nn import functional as F

from balms_det import losses
from balms_det.annotations.class_stats import ClassStats
from balms_det.config import add_balms_config
from balms_det.losses.criterion import build_criterion
from balms_det.losses.weights import ClassWeights

RUNS = Path(__file__).resolve().parents[1] / "docs" / "runs"
# Shaped like LVIS v1: a few classes hold most instances, and most classes have a few.
LONG_TAIL = [50_000, 20_000, 3_000, 400, 60, 20, 8, 3, 1, 1]


def class_stats(instance_counts, image_counts=None, num_images=None, num_annotated_images=None):
    image_counts = instance_counts if image_counts is None else image_counts
    annotated = num_annotated_images or max(image_counts)
    return ClassStats(
        image_counts=np.array(image_counts),
        instance_counts=np.array(instance_counts),
        num_images=num_images or annotated,
        num_annotated_images=annotated,
        category_ids=tuple(range(1, len(instance_counts) + 1)),
        names=tuple(f"class {j}" for j in range(len(instance_counts))),
        groups=("r",) * len(instance_counts),
    )


def criterion(stats, *keys):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.merge_from_list(
        [f"MODEL.LONG_TAIL.LOSS.{key}" if i % 2 == 0 else key for i, key in enumerate(keys)]
    )
    return build_criterion(cfg.MODEL.LONG_TAIL, stats.num_classes, stats)


def test_ldam_on_cifar10_is_the_papers_number():
    published = json.loads((RUNS / "classification" / "published.json").read_text())
    assert published["accuracy"]["cifar10_lt"]["10"]["ldam"] == 90.2


@pytest.mark.parametrize("name", ["eql", "softmax_eql", "droploss", "gol"])
def test_tail_classes_are_a_fraction_of_the_annotated_images(name):
    """Of 1,000 images 900 are annotated: 10 images are 1.11% of these, and 1% of all."""
    stats = class_stats([10, 9, 500], [10, 9, 500], num_images=1000, num_annotated_images=900)
    built = criterion(stats, "NAME", name, "TAIL_THRESHOLD", 0.011)
    assert built.loss.is_tail.tolist() == [False, True, False]


def test_tail_of_lvis_v1_is_the_authors():
    """815 classes; over all images, of which 782 have no annotation, there would be 817."""
    counts = [record["image_count"] for record in LVIS_CATEGORY_IMAGE_COUNT]
    stats = class_stats(counts, counts, num_images=100_170, num_annotated_images=99_388)
    assert criterion(stats, "NAME", "eql").loss.is_tail.sum() == 815


WEIGHTINGS = [("inverse",), ("effective_number", "CLASS_WEIGHTS.BETA", 0.999)]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda weighting: weighting[0])
def test_class_weights_leave_the_balance_of_foreground_and_background(weighting):
    """The mean factor of a training instance is one, as the background's is."""
    built = criterion(class_stats(LONG_TAIL), "CLASS_WEIGHTS.NAME", *weighting)
    factors = built.class_weights.weights.double()
    assert np.average(factors[:-1], weights=LONG_TAIL) == pytest.approx(1, rel=1e-5)
    assert factors[-1] == 1
    over_classes = criterion(
        class_stats(LONG_TAIL),
        *("CLASS_WEIGHTS.NAME", *weighting, "CLASS_WEIGHTS.NORMALISE", "classes"),
    ).class_weights.weights.double()
    assert over_classes[:-1].mean() == pytest.approx(1, rel=1e-5)
    assert np.average(over_classes[:-1], weights=LONG_TAIL) < 0.05  # what the default avoids
    ratios = factors[:-1] / over_classes[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(len(LONG_TAIL)), rtol=1e-6, atol=0)


def test_ldam_drw_is_its_authors_weighted_mean():
    """On a batch without background, as theirs are: PyTorch's cross-entropy with weights."""
    weights = losses.effective_number_weights(torch.tensor(LONG_TAIL), beta=0.9999)
    built = criterion(
        class_stats(LONG_TAIL),
        *("NAME", "ldam", "CLASS_WEIGHTS.NAME", "effective_number"),
        *("CLASS_WEIGHTS.BETA", 0.9999, "CLASS_WEIGHTS.NORMALISE", "batch"),
    )
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, len(LONG_TAIL) + 1, generator=generator)
    gt = torch.randint(len(LONG_TAIL), (12,), generator=generator)
    margins = F.one_hot(gt, logits.shape[1]) * built.loss.margins
    expected = F.cross_entropy(logits - margins, gt, weight=F.pad(weights, (0, 1)).float())
    torch.testing.assert_close(built(logits, gt), expected)


def test_weights_over_a_batch_leave_the_background_and_no_foreground_alone():
    weights = ClassWeights(torch.tensor([4.0, 1.0, 0.5]), 0, None, per_batch=True)
    gt = torch.tensor([0, 3, 1, 1, 3])
    torch.testing.assert_close(weights(gt), torch.tensor([2.0, 1.0, 0.5, 0.5, 1.0]))
    assert weights(torch.tensor([3, 3])).tolist() == [1, 1]
    assert weights(torch.tensor([], dtype=torch.int64)).shape == (0,)


def test_weights_of_no_instance_at_all_stay():
    weights = torch.tensor([2.0, 0.5], dtype=torch.float64)
    assert torch.equal(losses.normalised_over_instances(weights, torch.zeros(2)), weights)


@pytest.mark.parametrize("is_positive", [True, False])
def test_gumbel_gradient_is_that_of_the_formula_where_the_authors_code_floors_it(is_positive):
    """PyTorch's binary cross-entropy of probabilities divides by p (1 - p) or 1e-12."""
    gt = torch.tensor([0 if is_positive else 1])
    for z, same in [(-3.9, False), (-3.0, True), (0.0, True), (3.0, True), (9.9, True)]:
        ours = torch.tensor([[z]], dtype=torch.float64, requires_grad=True)
        losses.gumbel_optimised_loss(ours, gt, torch.tensor([False]), reduction="sum").backward()
        theirs = torch.tensor([[z]], dtype=torch.float64, requires_grad=True)
        target = torch.full_like(theirs, float(is_positive)).detach()
        F.binary_cross_entropy((-(-theirs).exp()).exp(), target, reduction="sum").backward()
        p = np.exp(-np.exp(-z))
        formula = -np.exp(-z) if is_positive else p * np.exp(-z) / (1 - p)
        assert ours.grad.item() == pytest.approx(formula, rel=1e-6)
        if same:
            assert theirs.grad.item() == pytest.approx(formula, rel=1e-6)
        else:
            assert abs(theirs.grad.item()) < 1e-6
