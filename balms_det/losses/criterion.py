"""The loss of a training: weights of rows, masks of classes, and running state around a loss.

Shapes as in :mod:`balms_det.losses`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.losses.activations import Activation
from balms_det.losses.elements import reduce_losses
from balms_det.losses.loss import InferenceOnly, Loss, TrainingClasses
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.registry import LOSSES, loss_named, options_in
from balms_det.losses.weights import (
    ClassWeights,
    ClassWeightsOptions,
    FederatedClasses,
    FederatedOptions,
    Iteration,
    LearnedClassWeights,
    build_class_weights,
    build_federated,
    has_begun,
)
from balms_det.options import AT_LEAST_0, Choices, Options, Range, option


@dataclass(frozen=True)
class CriterionOptions(Options):
    """The loss and the parts that every loss shares."""

    name: str = option(
        "NAME",
        "balanced_sigmoid",
        "The classification loss.",
        allowed=Choices(LOSSES),
    )
    prior_prob: float = option(
        "PRIOR_PROB",
        0.001,
        "Probability p that a sigmoid classifier gives every class before training, through the "
        "bias -log((1 - p) / p). Softmax classifiers start with a bias of zero.",
        allowed=Range(lambda p: 0 < p < 1, "a probability between 0 and 1, both excluded"),
        source="release",
    )
    margin_start_iter: int = option(
        "MARGIN.START_ITER",
        0,
        "Iteration from which the margin of Balanced Sigmoid, or the shift of Balanced Softmax, "
        "applies; before it the loss is the plain one.",
        allowed=AT_LEAST_0,
        source="deferred as the re-weighting of arXiv:1906.07413",
    )


class Criterion(nn.Module):
    """The loss of a training: ``criterion(logits, gt_classes)``.

    Weights of rows and masks of classes are applied here, to the elements of whichever loss. Only
    the criterion changes running state: in training mode, without gradient, and with the sums of
    all processes.

    Tensors derived from the training set follow the model's device and stay out of its state dict,
    because they belong to the training set at hand and not to the one that a checkpoint was trained
    on. Running state is in the state dict, and so is what the activation needs to interpret the
    logits.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        start_iter: int = 0,
        iteration: Iteration | None = None,
        class_weights: ClassWeights | LearnedClassWeights | None = None,
        federated: FederatedClasses | None = None,
    ) -> None:
        """
        Args:
            loss: of one method on one training set.
            start_iter: training iteration from which a loss with a margin applies; before it, its
                plain loss does.
            iteration: returns the iteration of the training; None where nothing is deferred.
            class_weights: on the rows of the loss; None for equal ones.
            federated: selects the classes of each batch; None for all.
        """
        super().__init__()
        assert federated is None or loss.activation.independent_classes
        self.activation = loss.activation
        self.loss = loss
        self.class_weights = class_weights
        self.federated = federated
        self._start_iter = start_iter if loss.has_margin else 0
        self._iteration = iteration
        for name, tensor in (loss.state.initial if loss.state else {}).items():
            self.register_buffer(name, tensor.clone())

    def forward(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Return the scalar loss of (R, num_logits) logits against (R,) classes in [0, K].

        Raises:
            InputError: the loss needs class statistics and the model was built without.
        """
        loss = self._current_loss()
        weights = self._weights(logits, gt_classes)
        order = loss.state.order if loss.state and self.training else None
        if order == "before":
            self._update_state(logits, gt_classes, weights)
        elements = loss.elements(logits, gt_classes, self._state())
        if order == "after":
            self._update_state(logits, gt_classes, weights)
        if weights is not None:
            elements = elements * (weights[:, 0] if elements.dim() == 1 else weights)
        return reduce_losses(elements, "proposals")

    def unweighted(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Return the loss without weights of rows and masks of classes; it changes no state."""
        value: Tensor = self._current_loss()(logits, gt_classes, state=self._state())
        return value

    def _current_loss(self) -> Loss:
        if has_begun(self._start_iter, self._iteration):
            return self.loss
        return PLAIN_LOSSES[self.activation]

    def _weights(self, logits: Tensor, gt_classes: Tensor) -> Tensor | None:
        """Return the factors on the elements, (R, 1) or (R, num_logits); None where all are one."""
        weights = None if self.class_weights is None else self.class_weights(gt_classes)
        if weights is not None:
            weights = weights[:, None]
        if self.federated is not None:
            mask = self.federated(gt_classes)
            # A logit of the background counts in every batch.
            mask = F.pad(mask.to(logits), (0, logits.shape[1] - len(mask)), value=1)
            weights = mask.expand(len(logits), -1) if weights is None else weights * mask
        return weights

    @torch.no_grad()
    def _update_state(self, logits: Tensor, gt_classes: Tensor, weights: Tensor | None) -> None:
        running = self.loss.state
        assert running is not None
        sums = running.observe(logits.detach(), gt_classes, self._state(), weights)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for total in sums.values():
                dist.all_reduce(total)
        for name, tensor in running.advance(self._state(), sums).items():
            getattr(self, name).copy_(tensor)

    def _state(self) -> dict[str, Tensor]:
        # Copies: what a loss keeps for its backward pass must not change under it.
        names = self.loss.state.initial if self.loss.state else {}
        return {name: getattr(self, name).clone() for name in names}


def activation_of(long_tail: Any, num_classes: int) -> Activation:
    """Return the activation of the loss that a MODEL.LONG_TAIL node describes."""
    loss = loss_named(long_tail.LOSS.NAME)
    return loss.activation_of(options_in(long_tail.LOSS, loss), num_classes)


def build_criterion(
    long_tail: Any,
    num_classes: int,
    stats: ClassStats | None,
    iteration: Iteration | None = None,
) -> Criterion:
    """Build the criterion that a MODEL.LONG_TAIL node describes.

    Args:
        long_tail: ``cfg.MODEL.LONG_TAIL``.
        num_classes: K.
        stats: of the training set; None builds a criterion for inference only.
        iteration: returns the trainer's iteration, not a count of calls: it starts over with a
            schedule and continues with one that is resumed. None where no START_ITER is set.

    Raises:
        InputError: MODEL.LONG_TAIL.LOSS.NAME is unknown.
    """
    node = long_tail.LOSS
    method = loss_named(node.NAME)
    options = options_in(node, method)
    class_weights = ClassWeightsOptions.from_node(node)
    federated = FederatedOptions.from_node(node)
    is_cosine = long_tail.CLASSIFIER == "cosine"
    training = TrainingClasses(
        num_classes,
        stats,
        long_tail.COUNT_BY,
        logit_scale=long_tail.COSINE_TEMPERATURE if is_cosine else 1.0,
        iteration=iteration,
    )
    needs_stats = method.needs_stats or class_weights.name != "none" or federated.enabled
    if stats is None and needs_stats:
        return Criterion(InferenceOnly(method, options, training))
    return Criterion(
        method.build(training, options),
        start_iter=node.MARGIN.START_ITER,
        iteration=iteration,
        class_weights=build_class_weights(training, class_weights, iteration),
        federated=build_federated(training, federated),
    )
