"""The meta step of the Meta Reweighter on the classifier alone, against double backpropagation."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.bilevel import (
    head_gradient,
    log_weight_gradients,
    loss_and_logit_gradients,
    reweighter_rate_gradient,
    reweighter_weights,
    sgd_step,
)
from balms_det.losses import balanced_sigmoid_loss, balanced_sigmoid_margins, sigmoid_loss
from lab.benchmark.inputs import seeded
from lab.benchmark.measure import Comparison

_SGD = {"lr": 0.02, "momentum": 0.9}
_WEIGHT_DECAY = 1e-4


# Long: the functions of one measurement share its tensors.
def meta_step(
    device: str, *, classes: int = 1203, rois: int = 1024, features: int = 1024
) -> Iterator[Comparison]:
    """From RoI features of a training and a meta batch to the derivative at the class rates.

    The peer differentiates twice through a functional SGD step. The variant "whole" computes
    everything that the peer does; "in training" is what the trainer adds to a training step, whose
    forward and backward pass and whose new classifier it finds there, where the peer cannot use
    them: it needs a graph of its own.

    Args:
        device: "cpu" or "cuda".
        classes: K.
        rois: R of either batch, of which a quarter are of objects.
        features: D.
    """
    generator = seeded()

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def gt_classes() -> Tensor:
        gt = torch.full((rois,), classes)
        gt[: rois // 4] = torch.randint(classes, (rois // 4,), generator=generator)
        return gt.to(device)

    inputs, meta_inputs = randn(rois, features), randn(rois, features)
    gt, meta_gt = gt_classes(), gt_classes()
    theta = [0.01 * randn(classes, features), randn(classes) - 5]
    buffers = [0.01 * randn(classes, features), 0.01 * randn(classes)]
    rate_logits = randn(classes)
    counts = 20_000 // torch.arange(1, classes + 1)
    margins = balanced_sigmoid_margins(counts).to(inputs)

    def training_loss(logits: Tensor, weights: Tensor) -> Tensor:
        rows = balanced_sigmoid_loss(logits, gt, margins, reduction="none").sum(1)
        return (rows * weights).sum() / rois

    def stepped(parameters: list[Tensor], gradients: tuple[Tensor, ...]) -> list[Tensor]:
        return [
            sgd_step(p, g, v, weight_decay=_WEIGHT_DECAY, **_SGD)
            for p, g, v in zip(parameters, gradients, buffers, strict=True)
        ]

    def training_step() -> tuple[Tensor, list[Tensor]]:
        weights = reweighter_weights(gt, rate_logits)
        _, row_gradients = loss_and_logit_gradients(
            lambda logits: training_loss(logits, weights), F.linear(inputs, *theta)
        )
        return row_gradients, stepped(theta, head_gradient(inputs, row_gradients))

    def meta_gradient(row_gradients: Tensor, after: list[Tensor]) -> Tensor:
        _, errors = loss_and_logit_gradients(
            lambda logits: sigmoid_loss(logits, meta_gt), F.linear(meta_inputs, *after)
        )
        rows = log_weight_gradients(
            inputs, row_gradients, head_gradient(meta_inputs, errors), **_SGD
        )
        return reweighter_rate_gradient(rows, gt, rate_logits)

    def whole() -> Tensor:
        return meta_gradient(*training_step())

    def double_backpropagation() -> Tensor:
        leaf = rate_logits.clone().requires_grad_()
        parameters = [t.clone().requires_grad_() for t in theta]
        loss = training_loss(F.linear(inputs, *parameters), reweighter_weights(gt, leaf))
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        logits = F.linear(meta_inputs, *stepped(parameters, gradients))
        return torch.autograd.grad(sigmoid_loss(logits, meta_gt), leaf)[0]

    found = training_step()

    def in_training() -> Tensor:
        return meta_gradient(*found)

    works: list[tuple[str, Callable[[], Tensor]]] = [("whole", whole), ("in training", in_training)]
    for variant, ours in works:
        yield Comparison(
            "double backpropagation", ours, double_backpropagation, _relative, variant=variant
        )


def _relative(ours: Tensor, peer: Tensor) -> float:
    """Return the largest difference, in units of the largest derivative."""
    return float((ours - peer).abs().max() / peer.abs().max())
