"""What a classifier's logits mean, and the loss that trains them.

A :class:`Method` joins an activation of :mod:`balms_det.losses.activations` to a pure loss;
``METHODS`` lists them by name, and that list is all that a new loss has to be added to. A
:class:`Criterion` is a method with its constants, computed from class statistics; the predictor
asks it and has no branch for any method.

Shapes as in :mod:`balms_det.losses`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from balms_det import losses
from balms_det.annotations.class_stats import ClassStats
from balms_det.bilevel import reweighter_weights
from balms_det.losses.activations import (
    GUMBEL,
    SIGMOID,
    SIGMOID_BESIDE_BACKGROUND,
    SIGMOID_WITH_BACKGROUND,
    SOFTMAX,
    SOFTMAX_WITH_OBJECTNESS,
    Activation,
    GroupSoftmax,
)
from balms_det.runtime.errors import InputError


@dataclass(frozen=True)
class RunningState:
    """What a loss learns from the batches that it sees, as pure functions of named tensors.

    Attributes:
        initial: the tensors before training, from the number of classes. They become buffers of
            the criterion and are saved with the model.
        observe: ``observe(logits, gt_classes, ...)``, what one batch adds up to, as sums over its
            rows; the sums of several processes are added.
        advance: ``advance(state, sums, ...)``, the next state.
        order: whether the authors' loss looks at the state "before" the batch or "after" it.
    """

    initial: Callable[[int], dict[str, Tensor]]
    observe: Callable[..., dict[str, Tensor]]
    advance: Callable[..., dict[str, Tensor]]
    order: Literal["before", "after"]


@dataclass(frozen=True)
class Method:
    """One way to train the classifier.

    Its functions take, by keyword, whichever of these their signatures name: the `tensors`, the
    `options`, the tensors of the running `state` and of the activation, and ``weights``, the factor
    that the criterion puts on each element of the loss (None for 1).

    Attributes:
        activation: the meaning of the logits, or a function to it from the MODEL.LONG_TAIL node,
            the number of classes and the class statistics (None at inference without).
        loss: ``loss(logits, gt_classes, ..., reduction)``; with the reduction "none" it gives (R,)
            or (R, num_logits).
        tensors: from the class statistics and the MODEL.LONG_TAIL node, tensors that move with
            the model. None where the loss needs no statistics.
        options: from the same node, plain arguments.
        deferred: those of the tensors that are zero until LOSS.MARGIN.START_ITER.
        state: None for losses that remember nothing.
    """

    activation: Activation | Callable[[Any, int, ClassStats | None], Activation]
    loss: Callable[..., Tensor]
    tensors: Callable[[ClassStats, Any], dict[str, Tensor]] | None = None
    options: Callable[[Any], dict[str, Any]] = lambda long_tail: {}
    deferred: tuple[str, ...] = ()
    state: RunningState | None = None

    @property
    def has_independent_classes(self) -> bool:
        """Whether single classes can be left out of the loss."""
        return isinstance(self.activation, Activation) and self.activation.independent_classes

    def __reduce__(self) -> tuple[Callable[[str], "Method"], tuple[str]]:
        # By its name, for models are copied and pickled, and functions without a name are not.
        return _method_named, (next(n for n, method in METHODS.items() if method is self),)


def _method_named(name: str) -> Method:
    return METHODS[name]


def _sigmoid_margins(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
    by_images = long_tail.COUNT_BY == "images"
    margins = losses.balanced_sigmoid_margins(
        torch.tensor(stats.counts(long_tail.COUNT_BY)),
        # An image holds several classes, so the total is of images, not of (image, class) pairs.
        total=stats.num_annotated_images if by_images else None,
        constant=long_tail.LOSS.MARGIN.CONSTANT,
    )
    return {"margins": long_tail.LOSS.MARGIN.TAU * margins}


def _softmax_shifts(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
    shifts = losses.balanced_softmax_shifts(torch.tensor(stats.counts(long_tail.COUNT_BY)))
    return {"shifts": long_tail.LOSS.MARGIN.TAU * shifts}


def _ldam_margins(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
    counts = torch.tensor(stats.counts(long_tail.COUNT_BY))
    return {"margins": losses.ldam_margins(counts, max_margin=long_tail.LOSS.LDAM.MAX_MARGIN)}


def _tail_classes(node: str) -> Callable[[ClassStats, Any], dict[str, Tensor]]:
    """The classes with an image frequency below the LAMBDA of a node of LOSS."""

    def tail_classes(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
        image_freq = torch.tensor(stats.image_counts) / max(stats.num_images, 1)
        return {"is_tail": image_freq < long_tail.LOSS[node].LAMBDA}

    return tail_classes


def _frequency_groups(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
    return {"frequency_groups": torch.tensor(["rcf".index(group) for group in stats.groups])}


def _effective_class_margins(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
    counts = torch.tensor(stats.counts(long_tail.COUNT_BY))
    ratio = {"background_ratio": long_tail.LOSS.ECM.BACKGROUND_RATIO}
    return {
        "shifts": losses.effective_class_margin_shifts(counts, **ratio),
        "element_weights": losses.effective_class_margin_weights(counts, **ratio),
    }


def _seesaw_activation(long_tail: Any, num_classes: int, stats: ClassStats | None) -> Activation:
    return SOFTMAX_WITH_OBJECTNESS if long_tail.LOSS.SEESAW.OBJECTNESS else SOFTMAX


def _group_softmax(long_tail: Any, num_classes: int, stats: ClassStats | None) -> Activation:
    boundaries = long_tail.LOSS.BAGS.BOUNDARIES
    groups = torch.full((num_classes,), -1)
    if stats is not None:
        counts = torch.tensor(stats.counts(long_tail.COUNT_BY))
        groups = losses.instance_count_groups(counts, boundaries)
    return GroupSoftmax(groups, len(boundaries) + 1)


def _no_tensors(stats: ClassStats, long_tail: Any) -> dict[str, Tensor]:
    """For a loss that needs the statistics, but gets what it needs through its activation."""
    return {}


def _ldam_scale(long_tail: Any) -> dict[str, Any]:
    # The margin is one of the cosine, which the cosine classifier has multiplied.
    is_cosine = long_tail.CLASSIFIER == "cosine"
    return {"scale": long_tail.COSINE_TEMPERATURE if is_cosine else 1.0}


def _options(node: str, *keys: str) -> Callable[[Any], dict[str, Any]]:
    """Options that are called like their keys of a node of LOSS, in lower case."""
    return lambda long_tail: {key.lower(): long_tail.LOSS[node][key] for key in keys}


EQLV2_STATE = RunningState(
    # Double precision: in single, the sums of a long training would swallow what is added.
    lambda num_classes: {
        name: torch.zeros(num_classes, dtype=torch.float64) for name in ("pos_grads", "neg_grads")
    },
    losses.eqlv2_gradients,
    losses.accumulated,
    "after",
)
SEESAW_STATE = RunningState(
    lambda num_classes: {"class_samples": torch.zeros(num_classes, dtype=torch.int64)},
    losses.seesaw_samples,
    losses.accumulated,
    "before",
)
EQUILIBRIUM_STATE = RunningState(
    lambda num_classes: {"mean_scores": torch.full((num_classes,), 0.01, dtype=torch.float64)},
    losses.equilibrium_observe,
    losses.equilibrium_advance,
    "before",
)

METHODS: dict[str, Method] = {
    "softmax": Method(SOFTMAX, losses.softmax_loss),
    "sigmoid": Method(SIGMOID, losses.sigmoid_loss),
    "balanced_softmax": Method(
        SOFTMAX, losses.shifted_softmax_loss, _softmax_shifts, deferred=("shifts",)
    ),
    "balanced_sigmoid": Method(
        SIGMOID,
        losses.balanced_sigmoid_loss,
        _sigmoid_margins,
        _options("MARGIN", "ROWS"),
        deferred=("margins",),
    ),
    "focal": Method(SIGMOID, losses.focal_loss, options=_options("FOCAL", "GAMMA", "ALPHA")),
    "ldam": Method(SOFTMAX, losses.ldam_loss, _ldam_margins, _ldam_scale),
    "eql": Method(SIGMOID, losses.equalization_loss, _tail_classes("EQL")),
    "softmax_eql": Method(
        SOFTMAX, losses.softmax_equalization_loss, _tail_classes("EQL"), _options("EQL", "GAMMA")
    ),
    "eqlv2": Method(
        SIGMOID_WITH_BACKGROUND,
        losses.eqlv2_loss,
        options=_options("EQLV2", "GAMMA", "MU", "ALPHA"),
        state=EQLV2_STATE,
    ),
    "seesaw": Method(
        _seesaw_activation,
        losses.seesaw_loss,
        options=_options("SEESAW", "P", "Q", "EPS", "OBJECTNESS"),
        state=SEESAW_STATE,
    ),
    "acsl": Method(
        SIGMOID_BESIDE_BACKGROUND,
        losses.adaptive_class_suppression_loss,
        _frequency_groups,
        _options("ACSL", "SCORE_THRESHOLD", "BACKGROUND_RATIOS"),
    ),
    "droploss": Method(SIGMOID, losses.drop_loss, _tail_classes("DROPLOSS")),
    "loce": Method(
        SOFTMAX,
        losses.equilibrium_loss,
        options=_options("LOCE", "MOMENTUM", "BACKGROUND_SCORE"),
        state=EQUILIBRIUM_STATE,
    ),
    "ecm": Method(
        SIGMOID_WITH_BACKGROUND,
        losses.effective_class_margin_loss,
        _effective_class_margins,
    ),
    "gol": Method(GUMBEL, losses.gumbel_optimised_loss, _tail_classes("GOL")),
    "bags": Method(
        _group_softmax, losses.group_softmax_loss, _no_tensors, _options("BAGS", "BETA")
    ),
}


# The loss of the Meta Sampler and Reweighter on their meta batch: without margins and weights.
PLAIN_LOSSES: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    SOFTMAX: losses.softmax_loss,
    SIGMOID: losses.sigmoid_loss,
}


Iteration = Callable[[], int]


class ClassWeights(nn.Module):
    """A factor on the loss of every row, by the row's class; the background's is one."""

    weights: Tensor

    def __init__(self, weights: Tensor, start_iter: int, iteration: Iteration | None) -> None:
        """
        Args:
            weights: (K,) factors of the foreground classes.
            start_iter: training iteration from which they apply; before it, every factor is one
                (deferred re-weighting, arXiv:1906.07413).
            iteration: that training has come to; None where `start_iter` is 0.
        """
        super().__init__()
        weights = F.pad(weights, (0, 1), value=1).to(torch.get_default_dtype())
        self.register_buffer("weights", weights, persistent=False)
        self._start_iter = start_iter
        self._iteration = iteration

    def forward(self, gt_classes: Tensor) -> Tensor | None:
        """(R,) factors, or None before they apply."""
        begun = _has_begun(self._start_iter, self._iteration)
        return self.weights[gt_classes] if begun else None


class LearnedClassWeights(nn.Module):
    """The Meta Reweighter: a factor on every row by its class's learned rate.

    The trainer learns the rates, from 1/2 on, and saves them; inference does not need them.
    """

    rate_logits: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("rate_logits", torch.zeros(num_classes), persistent=False)

    def forward(self, gt_classes: Tensor) -> Tensor:
        """(R,) factors."""
        return reweighter_weights(gt_classes, self.rate_logits)


class FederatedClasses(nn.Module):
    """The classes that count in a batch: its own, and others drawn by their frequency."""

    rates: Tensor

    def __init__(self, rates: Tensor, num_sampled: int) -> None:
        """
        Args:
            rates: (K,) non-negative; proportional to the chance of being drawn.
            num_sampled: classes that count, if the batch does not hold more.
        """
        super().__init__()
        self.register_buffer("rates", rates.float(), persistent=False)
        self._num_sampled = num_sampled

    def forward(self, gt_classes: Tensor) -> Tensor:
        """(K,) mask."""
        return losses.federated_classes(gt_classes, self.rates, self._num_sampled)


class Criterion(nn.Module):
    """The loss of one method on one data set's classes: ``criterion(logits, gt_classes)``.

    Weights of rows and masks of classes are applied here, to the elements of whichever loss. Here,
    too, and nowhere else, running state is changed: in training mode only, without gradient, and
    with the sums of all processes.

    What is derived from the training set follows the model's device but stays out of its state
    dict, because it belongs to the training set at hand and not to the one that a checkpoint was
    trained on. Running state is in the state dict, and so is what the activation needs to make
    sense of the logits.

    Without statistics it still gives probabilities, which is all that inference needs.
    """

    def __init__(
        self,
        method: Method,
        *,
        num_classes: int,
        activation: Activation,
        tensors: dict[str, Tensor] | None,
        options: dict[str, Any],
        start_iter: int = 0,
        iteration: Iteration | None = None,
        class_weights: ClassWeights | LearnedClassWeights | None = None,
        federated: FederatedClasses | None = None,
    ) -> None:
        """
        Args:
            method: an entry of METHODS.
            num_classes: K.
            activation: the method's, for this data set.
            tensors: the method's tensor arguments, or None when there are no class statistics to
                compute them from.
            options: the method's plain arguments.
            start_iter: training iteration from which the method's deferred tensors apply; before
                it they are zero.
            iteration: that training has come to; None where nothing is deferred.
            class_weights: on the rows of the loss; None for equal ones.
            federated: selects the classes of each batch; None for all.
        """
        super().__init__()
        assert federated is None or activation.independent_classes
        self.activation = activation
        self.class_weights = class_weights
        self.federated = federated
        self._method = method
        self._num_classes = num_classes
        self._options = options
        self._start_iter = start_iter
        self._iteration = iteration
        self._ready = tensors is not None
        self._tensor_names = tuple(tensors or ())
        for name, tensor in (tensors or {}).items():
            # Bool and integer tensors are masks and indices.
            dtype = torch.get_default_dtype() if tensor.is_floating_point() else tensor.dtype
            tensor = tensor.to(dtype)
            self.register_buffer(name, tensor, persistent=False)
        state = method.state.initial(num_classes) if method.state else {}
        self._state_names = tuple(state)
        for name, tensor in state.items():
            self.register_buffer(name, tensor)

    def forward(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Scalar loss of (R, num_logits) logits against (R,) classes in [0, K].

        Raises:
            InputError: the loss needs class statistics and the model was built without.
        """
        if not self._ready:
            raise InputError(
                f"{self._method.loss.__name__} needs class statistics: set "
                "MODEL.LONG_TAIL.STATS_FILE to the training annotations, or to a file written by "
                "tools/class_stats.py"
            )
        weights = self._weights(logits, gt_classes)
        order = self._method.state.order if self._method.state and self.training else None
        if order == "before":
            self._update_state(logits, gt_classes, weights)
        arguments = self._arguments(self._method.loss, weights)
        elements = self._method.loss(logits, gt_classes, **arguments, reduction="none")
        if order == "after":
            self._update_state(logits, gt_classes, weights)
        if weights is not None:
            elements = elements * (weights[:, 0] if elements.dim() == 1 else weights)
        return losses.reduce_losses(elements, "proposals")

    def unweighted(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """The same loss without weights of rows and masks of classes, which changes no state."""
        arguments = self._arguments(self._method.loss, None)
        return self._method.loss(logits, gt_classes, **arguments)

    def _weights(self, logits: Tensor, gt_classes: Tensor) -> Tensor | None:
        """Factors on the loss, (R, 1) or (R, num_logits); None where all are one."""
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
        running = self._method.state
        assert running is not None
        sums = running.observe(
            logits.detach(), gt_classes, **self._arguments(running.observe, weights)
        )
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for total in sums.values():
                dist.all_reduce(total)
        arguments = self._arguments(running.advance, weights)
        for name, tensor in running.advance(self._state(), sums, **arguments).items():
            getattr(self, name).copy_(tensor)

    def _state(self) -> dict[str, Tensor]:
        # Copies: what a loss keeps for its backward pass must not change under it.
        return {name: getattr(self, name).clone() for name in self._state_names}

    def _arguments(self, function: Callable[..., Any], weights: Tensor | None) -> dict[str, Any]:
        """What `function` names of the tensors, options, running state and weights."""
        activation = self.activation
        available: dict[str, Any] = {
            **(dict(activation.named_buffers()) if isinstance(activation, nn.Module) else {}),
            **{name: self._tensor(name) for name in self._tensor_names},
            **self._options,
            **self._state(),
            "weights": weights,
        }
        named = inspect.signature(function).parameters
        return {name: value for name, value in available.items() if name in named}

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name)
        if name in self._method.deferred and not _has_begun(self._start_iter, self._iteration):
            return torch.zeros_like(tensor)
        return tensor


def _has_begun(start_iter: int, iteration: Iteration | None) -> bool:
    """Whether training has come to an iteration."""
    if start_iter == 0:
        return True
    assert iteration is not None, "what is deferred needs the trainer's iteration"
    return iteration() >= start_iter


def build_criterion(
    long_tail: Any,
    num_classes: int,
    stats: ClassStats | None,
    iteration: Iteration | None = None,
) -> Criterion:
    """The criterion that a MODEL.LONG_TAIL node describes.

    Args:
        long_tail: ``cfg.MODEL.LONG_TAIL``.
        num_classes: K.
        stats: of the training set; None builds a criterion for inference only.
        iteration: the trainer's, and not a count of calls: it starts over with a schedule, and
            goes on with one that is resumed. None where no START_ITER is set.

    Raises:
        InputError: MODEL.LONG_TAIL.LOSS.NAME is unknown.
    """
    name = long_tail.LOSS.NAME
    if name not in METHODS:
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS.NAME is {name!r}; choose one of {', '.join(METHODS)}"
        )
    method = METHODS[name]
    activation = method.activation
    if not isinstance(activation, Activation):
        activation = activation(long_tail, num_classes, stats)
    needs_stats = (
        method.tensors is not None
        or long_tail.LOSS.CLASS_WEIGHTS.NAME != "none"
        or long_tail.LOSS.FEDERATED.ENABLED
    )
    tensors: dict[str, Tensor] | None = None if needs_stats and stats is None else {}
    if method.tensors is not None and stats is not None:
        tensors = method.tensors(stats, long_tail)
    return Criterion(
        method,
        num_classes=num_classes,
        activation=activation,
        tensors=tensors,
        options=method.options(long_tail),
        start_iter=long_tail.LOSS.MARGIN.START_ITER,
        iteration=iteration,
        class_weights=None if stats is None else _class_weights(stats, long_tail, iteration),
        federated=None if stats is None else _federated(stats, long_tail),
    )


def _class_weights(
    stats: ClassStats, long_tail: Any, iteration: Iteration | None
) -> ClassWeights | LearnedClassWeights | None:
    node = long_tail.LOSS.CLASS_WEIGHTS
    counts = torch.tensor(stats.counts(long_tail.COUNT_BY))
    if node.NAME == "none":
        return None
    if node.NAME == "learned":
        return LearnedClassWeights(stats.num_classes)
    if node.NAME == "inverse":
        weights = losses.inverse_frequency_weights(counts)
    else:
        weights = losses.effective_number_weights(counts, beta=node.BETA)
    return ClassWeights(weights, node.START_ITER, iteration)


def _federated(stats: ClassStats, long_tail: Any) -> FederatedClasses | None:
    node = long_tail.LOSS.FEDERATED
    if not node.ENABLED:
        return None
    rates = torch.tensor(stats.image_counts).double() ** node.FREQ_POWER
    return FederatedClasses(rates, node.NUM_CLASSES)
