"""A loss is an object: explicit arguments, options with ranges, and a link.

The link is the activation that turns the logits into probabilities; a loss *has a* link, so that
whoever trains with the loss also predicts with the right probabilities.

    loss = BalancedSigmoid(counts, tau=1.0, rows="foreground")
    value = loss(logits, gt_classes)
    probs = loss.activation.probs(logits)

Shapes as in :mod:`balms_det.losses`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats, CountBy, missing_class_stats
from balms_det.losses.activations import Activation
from balms_det.losses.elements import Reduction, reduce_losses
from balms_det.options import Options

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class RunningState:
    """What a loss learns from the batches that it sees, as pure functions of named tensors.

    Attributes:
        initial: the tensors before training. They become buffers of the criterion and are saved
            with the model.
        observe: ``observe(logits, gt_classes, state, weights)`` returns the sums of one batch over
            its rows, which are added over all processes. `weights`, broadcast to the elements of
            the loss, are the criterion's factors on them, or None.
        advance: ``advance(state, sums)`` returns the next state.
        order: whether the authors' loss uses the state "before" or "after" the batch updates it:
            with "before" the state is updated first.
    """

    initial: State
    observe: Callable[[Tensor, Tensor, State, Tensor | None], dict[str, Tensor]]
    advance: Callable[[State, State], dict[str, Tensor]]
    order: Literal["before", "after"]


@dataclass(frozen=True)
class TrainingClasses:
    """The facts about a training set and classifier that losses are built from.

    Attributes:
        num_classes: K.
        stats: class statistics of the training set, or None where they are unknown.
        count_by: what n_j counts, "instances" or "images".
        logit_scale: factor that a cosine classifier puts on its cosines; 1 for a linear one.
        iteration: returns the iteration that training has come to; None where nothing is deferred.
    """

    num_classes: int
    stats: ClassStats | None
    count_by: CountBy = "instances"
    logit_scale: float = 1.0
    iteration: Callable[[], int] | None = None

    @property
    def known(self) -> ClassStats:
        """The class statistics.

        Raises:
            InputError: they are unknown.
        """
        if self.stats is None:
            raise missing_class_stats("the loss")
        return self.stats

    @property
    def counts(self) -> Tensor:
        """(K,) int64 n_j."""
        return torch.tensor(self.known.counts(self.count_by))

    @property
    def total(self) -> int | None:
        """n where it is not the sum of the n_j: an image holds several classes."""
        return self.known.num_annotated_images if self.count_by == "images" else None

    @property
    def image_freq(self) -> Tensor:
        """(K,) fraction of the annotated images that contain each class."""
        return torch.tensor(self.known.image_counts) / max(self.known.num_annotated_images, 1)


class Loss(nn.Module):
    """Base of all losses: ``loss(logits, gt_classes)`` is a scalar, per proposal.

    A subclass sets the class attributes, computes its tensors in the constructor and returns the
    loss's elements from :meth:`elements`. A subclass with a `name` is a method of the package: it
    is found by its file, and its options are configuration keys.

    Attributes:
        name: value of MODEL.LONG_TAIL.LOSS.NAME that chooses the loss.
        options: dataclass of its options; the constructor takes each by keyword.
        link: its activation, or None where that depends on options (:meth:`activation_of`).
        needs_stats: whether it is computed from class statistics.
        has_margin: whether LOSS.MARGIN.START_ITER may defer it: before, its plain loss trains.
        state: what it remembers from batch to batch, or None.
    """

    name: ClassVar[str] = ""
    options: ClassVar[type[Options]] = Options
    link: ClassVar[Activation | None] = None
    needs_stats: ClassVar[bool] = False
    has_margin: ClassVar[bool] = False

    state: RunningState | None = None

    def __init__(self, activation: Activation | None = None) -> None:
        """
        Args:
            activation: default :attr:`link`.
        """
        super().__init__()
        activation = activation or self.link
        assert activation is not None, "a loss without a fixed link passes its activation"
        # Held without registration: the criterion saves it under a name of its own.
        self._held_activation = (activation,)

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        """Return the constructor's arguments beside the options."""
        return {}

    @classmethod
    def activation_of(cls, options: Options, num_classes: int) -> Activation:
        """Return the activation without class statistics, which inference does not need."""
        assert cls.link is not None
        return cls.link

    @classmethod
    def has_independent_classes(cls) -> bool:
        """Return whether single classes can be left out of the loss."""
        return cls.link is not None and cls.link.independent_classes

    @classmethod
    def build(cls, training: TrainingClasses, options: Options) -> Self:
        """Construct the loss for a training set.

        Raises:
            InputError: the loss needs class statistics that are unknown.
        """
        chosen = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
        return cls(**cls.arguments(training), **chosen)

    @property
    def activation(self) -> Activation:
        """The link between logits and probabilities."""
        return self._held_activation[0]

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        """Return the (R,) or (R, num_logits) elements of the loss, before any weight.

        Args:
            logits: (R, num_logits).
            gt_classes: (R,) int64 in [0, K], K the background.
            state: the running state's tensors; empty for a loss without one.
        """
        raise NotImplementedError

    def forward(
        self,
        logits: Tensor,
        gt_classes: Tensor,
        *,
        state: State | None = None,
        reduction: Reduction = "proposals",
    ) -> Tensor:
        """Return the loss.

        Args:
            logits: (R, num_logits).
            gt_classes: (R,) int64 in [0, K], K the background.
            state: of a loss with running state; default its initial state. A
                :class:`~balms_det.losses.criterion.Criterion` keeps and updates it.
            reduction: "proposals" (sum / R), "sum", or "none" for the elements.
        """
        if state is None:
            initial = {} if self.state is None else self.state.initial
            state = {name: tensor.to(logits.device) for name, tensor in initial.items()}
        return reduce_losses(self.elements(logits, gt_classes, state), reduction)

    def hold(self, **tensors: Tensor) -> None:
        """Register tensors that follow the loss's device and stay out of its state dict.

        They belong to the training set at hand, not to the one that a checkpoint was trained on.
        """
        for name, tensor in tensors.items():
            # Bool and integer tensors are masks and indices.
            dtype = torch.get_default_dtype() if tensor.is_floating_point() else tensor.dtype
            self.register_buffer(name, tensor.to(dtype), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if isinstance(self.activation, nn.Module):
            self.activation._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


class InferenceOnly(Loss):
    """Stands for a loss whose class statistics are unknown: gives probabilities, cannot train."""

    def __init__(self, method: type[Loss], options: Options, training: TrainingClasses) -> None:
        """
        Args:
            method: the loss.
            options: of the loss.
            training: without class statistics.
        """
        super().__init__(method.activation_of(options, training.num_classes))
        self._method_name = method.name
        if not method.needs_stats:
            # The loss itself is complete; its running state is part of checkpoints.
            self.state = method.build(training, options).state

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        """Refuse to train.

        Raises:
            InputError: always.
        """
        raise missing_class_stats(f"the loss {self._method_name!r}")
