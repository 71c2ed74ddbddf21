"""Losses in plain PyTorch name the argument that does not fit, and take frequencies."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balms_det import losses
from balms_det.losses import balanced
from balms_det.runtime.errors import InputError

LOGITS, LABELS = torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1])
# Every public function that takes logits and the classes of their rows.
FUNCTIONS = {
    name: function
    for name, function in vars(losses).items()
    if inspect.isfunction(function)
    and name.endswith("_loss")
    and {"logits", "gt_classes"} <= set(inspect.signature(function).parameters)
}


@given(
    counts=st.lists(st.integers(1, 10**6), min_size=2, max_size=8),
    scale=st.sampled_from([1e-7, 1e-3, 0.5, 1.0, 1e4]),
)
def test_balanced_softmax_does_not_depend_on_the_scale(counts, scale):
    counts = torch.tensor(counts, dtype=torch.float64)
    logits = torch.randn(6, len(counts), dtype=torch.float64, generator=torch.Generator())
    labels = torch.arange(6) % len(counts)
    expected = losses.balanced_softmax_loss(labels, logits, counts)
    frequencies = counts / counts.sum()
    for scaled in (frequencies, frequencies * scale):
        torch.testing.assert_close(
            losses.balanced_softmax_loss(labels, logits, scaled), expected, rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(
            balanced.balanced_softmax_shifts(scaled), balanced.balanced_softmax_shifts(counts)
        )


def test_classes_without_an_example_stay_finite():
    for counts in ([0, 5, 7], [0.0, 0.2, 0.8], [0, 0, 0]):
        counts = torch.tensor(counts)
        assert losses.balanced_softmax_loss(LABELS, LOGITS, counts).isfinite()
        assert balanced.balanced_softmax_shifts(counts).isfinite().all()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([0.7, 0.2, 0.1], "values between 0 and 1"),
        ([5, -1, 2], "negative, infinite or not numbers"),
        ([5, float("nan"), 2], "negative, infinite or not numbers"),
        ([[5, 1, 2]], r"class_counts has the shape \(1, 3\), expected \(K,\)"),
        ([], r"class_counts has the shape \(0,\)"),
    ],
)
def test_margins_need_counts(counts, message):
    with pytest.raises(InputError, match=message):
        losses.balanced_sigmoid_margins(torch.tensor(counts))


def others(function):
    """Return arguments of one class too many for everything that is not logits and classes."""
    return {
        name: torch.ones(9, dtype=torch.bool if name == "is_tail" else torch.int64)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in ("logits", "gt_classes")
    }


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("logits", "classes", "message"),
    [
        (torch.zeros(3), LABELS, r"logits has the shape \(3,\), expected \(R, classes\)"),
        (LOGITS, LABELS[:4], r"gt_classes has the shape \(4,\), expected \(5,\)"),
        (LOGITS, LABELS[:, None], r"gt_classes has the shape \(5, 1\), expected \(5,\)"),
        (LOGITS, LABELS.float(), "gt_classes has the dtype torch.float32, expected integers"),
    ],
)
def test_every_loss_names_logits_and_classes_that_do_not_fit(name, logits, classes, message):
    with pytest.raises(InputError, match=message):
        FUNCTIONS[name](logits, classes, **others(FUNCTIONS[name]))


@pytest.mark.parametrize("argument", ["margins", "shifts", "is_tail", "mean_scores"])
def test_values_for_another_number_of_classes_are_named(argument):
    found = [f for f in FUNCTIONS.values() if argument in inspect.signature(f).parameters]
    assert found
    for function in found:
        with pytest.raises(InputError, match=rf"{argument} has the shape \(9,\), expected \("):
            function(LOGITS, LABELS, **others(function))


def test_arguments_of_the_release_are_named_as_there():
    with pytest.raises(InputError, match=r"labels has the shape \(4,\), expected \(5,\)"):
        losses.balanced_softmax_loss(LABELS[:4], LOGITS, torch.ones(3))
    with pytest.raises(InputError, match=r"sample_per_class has the shape \(4,\), expected \(3,\)"):
        losses.balanced_softmax_loss(LABELS, LOGITS, torch.ones(4))
