"""Pairwise Class Balance, a regulariser of softmax, Seesaw and EQLv2 (arXiv:2201.02784)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SOFTMAX
from balms_det.losses.elements import at_least_float32
from balms_det.losses.equalization import EQLv2, EQLv2Options
from balms_det.losses.loss import Loss, RunningState, State, TrainingClasses
from balms_det.losses.plain import softmax_loss
from balms_det.losses.seesaw import Seesaw, SeesawOptions, seesaw_logits
from balms_det.losses.weights import has_begun
from balms_det.options import AT_LEAST_0, FRACTION, Options, option


def confusion_observe(scores: Tensor, gt_classes: Tensor) -> dict[str, Tensor]:
    """Return the sum of the scores of each class's rows, (K, K), and their number, (K,).

    Args:
        scores: (R, K) of the foreground classes.
        gt_classes: (R,) in [0, K]; background rows do not count.
    """
    num_classes = scores.shape[1]
    sums = scores.new_zeros(num_classes + 1, num_classes, dtype=torch.float64)
    sums.index_add_(0, gt_classes, scores.double())
    rows = torch.zeros(num_classes + 1, dtype=torch.int64, device=scores.device)
    rows.index_add_(0, gt_classes, torch.ones_like(gt_classes))
    return {"confusion": sums[:-1], "confusion_rows": rows[:-1]}


def confusion_advance(
    state: State, sums: State, *, momentum: float, rows_sum_to_one: bool
) -> dict[str, Tensor]:
    """Move the row of each class in the batch towards the mean score of its examples there.

        M_y <- a M_y + (1 - a) mean of the scores of class y's rows

    Args:
        state: "confusion", (K, K), M_yj the running score of class j on objects of class y; and
            "confusion_rows", (K,), the rows seen.
        sums: of :func:`confusion_observe`, over all processes.
        momentum: a, in [0, 1].
        rows_sum_to_one: whether each row that moved is divided by its sum (authors' code, for
            softmaxes).
    """
    number = sums["confusion_rows"]
    means = sums["confusion"] / number.clamp(min=1)[:, None]
    moved = momentum * state["confusion"] + (1 - momentum) * means
    if rows_sum_to_one:
        moved = moved / moved.sum(dim=1, keepdim=True).clamp(min=torch.finfo(moved.dtype).tiny)
    confusion = torch.where(number[:, None] > 0, moved, state["confusion"])
    return {"confusion": confusion, "confusion_rows": state["confusion_rows"] + number}


def pairwise_targets(confusion: Tensor, gt_classes: Tensor, *, sum_to_one: bool) -> Tensor:
    """Return the soft targets of a batch: column y of the confusion, for each row of class y.

    A class whose objects are taken for class y gets a part of y's examples, which pushes it back.

    Args:
        confusion: (K, K) M.
        gt_classes: (R,) in [0, K].
        sum_to_one: whether the targets of a row are M_jy / sum_i M_iy, or M_jy.

    Returns:
        (R, K), zero in background rows.
    """
    columns = confusion.t()
    if sum_to_one:
        total = columns.sum(dim=1, keepdim=True)
        columns = columns / total.clamp(min=torch.finfo(columns.dtype).tiny)
    return F.pad(columns, (0, 0, 0, 1))[gt_classes]


@dataclass(frozen=True)
class PCBOptions(Options):
    """Options of :class:`SoftmaxPCB`, :class:`SeesawPCB` and :class:`EQLv2PCB`."""

    share: float = option(
        "PCB.ALPHA",
        0.4,
        "alpha: share of the soft targets in the loss of an object. The authors take 0.4 with "
        "softmax, 0.2 with EQLv2 and 0.05 with Seesaw.",
        allowed=FRACTION,
        source="authors' code of arXiv:2201.02784",
    )
    momentum: float = option(
        "PCB.MOMENTUM",
        0.99,
        "Momentum of the running confusion matrix.",
        allowed=FRACTION,
        source="authors' code of arXiv:2201.02784",
    )
    start_iter: int = option(
        "PCB.START_ITER",
        0,
        "Iteration from which the soft targets count (authors: epoch 17 of 24). They also wait "
        "until an object of each class has been seen.",
        allowed=AT_LEAST_0,
        source="authors' code of arXiv:2201.02784",
    )


class _Confusion:
    """The running confusion matrix of a loss, beside the loss's own state, and how it counts.

    Attributes:
        state: the running state of both.
    """

    def __init__(
        self,
        num_classes: int,
        options: PCBOptions,
        iteration: Callable[[], int] | None,
        *,
        exclusive: bool,
        base: RunningState | None = None,
    ) -> None:
        """
        Args:
            num_classes: K.
            options: the share, the momentum and the first iteration.
            iteration: that training has come to; None where `start_iter` is 0.
            exclusive: whether scores are those of a softmax over the classes, or of sigmoids.
            base: the loss's own running state.
        """
        self._num_classes, self._options, self._iteration = num_classes, options, iteration
        self._exclusive, self._base = exclusive, base
        initial: dict[str, Tensor] = {
            "confusion": torch.zeros(num_classes, num_classes, dtype=torch.float64),
            "confusion_rows": torch.zeros(num_classes, dtype=torch.int64),
        }
        self.state = RunningState(
            {**(base.initial if base else {}), **initial},
            self._observe,
            self._advance,
            base.order if base else "before",
        )

    def _observe(
        self, logits: Tensor, gt_classes: Tensor, state: State, weights: Tensor | None
    ) -> dict[str, Tensor]:
        classes = at_least_float32(logits)[:, : self._num_classes]
        scores = classes.softmax(dim=1) if self._exclusive else classes.sigmoid()
        base = self._base
        sums = base.observe(logits, gt_classes, state, weights) if base else {}
        return {**sums, **confusion_observe(scores, gt_classes)}

    def _advance(self, state: State, sums: State) -> dict[str, Tensor]:
        moved = confusion_advance(
            state, sums, momentum=self._options.momentum, rows_sum_to_one=self._exclusive
        )
        if self._base is None:
            return moved
        own = {name: state[name] for name in self._base.initial}
        return {**self._base.advance(own, sums), **moved}

    def targets(self, gt_classes: Tensor, state: State) -> Tensor:
        """Return (R, K) soft targets."""
        return pairwise_targets(state["confusion"], gt_classes, sum_to_one=self._exclusive)

    def share(self, gt_classes: Tensor, state: State) -> Tensor:
        """Return (R,) shares of the soft targets, zero for the background and before they count."""
        foreground = gt_classes < len(state["confusion"])
        begun = has_begun(self._options.start_iter, self._iteration)
        all_seen = (state["confusion_rows"] > 0).all()
        return self._options.share * begun * (foreground & all_seen)


class SoftmaxPCB(Loss):
    """Softmax cross-entropy with Pairwise Class Balance (arXiv:2201.02784; megvii-research/PCB).

        -(1 - alpha) log p_y - alpha sum_j t_j log p_j,  t_j = M_jy / sum_i M_iy

    p is the softmax over classes and background, and M that of :func:`confusion_advance`, over the
    classes alone and with the batch at hand. Background rows have the plain loss. The authors'
    iterative learning, in which a head refines its own boxes three times with a growing alpha, is
    not implemented: alpha is that of their last step.
    """

    name = "softmax_pcb"
    options = PCBOptions
    link = SOFTMAX

    def __init__(
        self,
        num_classes: int,
        *,
        iteration: Callable[[], int] | None = None,
        share: float = PCBOptions.share,
        momentum: float = PCBOptions.momentum,
        start_iter: int = PCBOptions.start_iter,
    ) -> None:
        """
        Args:
            num_classes: K.
            iteration: that training has come to; None where `start_iter` is 0.
            share, momentum, start_iter: as of :class:`PCBOptions`.
        """
        super().__init__()
        options = self.options(share=share, momentum=momentum, start_iter=start_iter)
        self._confusion = _Confusion(num_classes, options, iteration, exclusive=True)
        self.state = self._confusion.state

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"num_classes": training.num_classes, "iteration": training.iteration}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        rows = softmax_loss(logits, gt_classes, reduction="none")
        soft = _soft_rows(logits, self._confusion.targets(gt_classes, state))
        return rows + self._confusion.share(gt_classes, state).to(rows) * (soft - rows)


@dataclass(frozen=True)
class SeesawPCBOptions(PCBOptions, SeesawOptions):
    """Options of :class:`SeesawPCB`."""


class SeesawPCB(Seesaw):
    """Seesaw loss with Pairwise Class Balance: as :class:`SoftmaxPCB`, with p Seesaw's softmax.

    With objectness that softmax is over the classes, and the loss of the objectness stays.
    """

    name = "seesaw_pcb"
    options = SeesawPCBOptions

    def __init__(
        self,
        num_classes: int,
        *,
        iteration: Callable[[], int] | None = None,
        p: float = SeesawOptions.p,
        q: float = SeesawOptions.q,
        eps: float = SeesawOptions.eps,
        objectness: bool = SeesawOptions.objectness,
        share: float = PCBOptions.share,
        momentum: float = PCBOptions.momentum,
        start_iter: int = PCBOptions.start_iter,
    ) -> None:
        """
        Args:
            num_classes: K.
            iteration: that training has come to; None where `start_iter` is 0.
            p, q, eps, objectness: as of :class:`Seesaw`.
            share, momentum, start_iter: as of :class:`PCBOptions`.
        """
        super().__init__(num_classes, p=p, q=q, eps=eps, objectness=objectness)
        options = PCBOptions(share=share, momentum=momentum, start_iter=start_iter)
        self._confusion = _Confusion(
            num_classes, options, iteration, exclusive=True, base=self.state
        )
        self.state = self._confusion.state

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {**super().arguments(training), "iteration": training.iteration}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        rows = super().elements(logits, gt_classes, state)
        options = self._options
        classes = seesaw_logits(
            logits, gt_classes, state["class_samples"],
            p=options.p, q=options.q, eps=options.eps, objectness=options.objectness,
        )  # fmt: skip
        # Background rows, whose share is zero, may have no class among these logits.
        y = gt_classes.clamp(max=classes.shape[1] - 1)
        hard = softmax_loss(classes, y, reduction="none")
        soft = _soft_rows(classes, self._confusion.targets(gt_classes, state))
        return rows + self._confusion.share(gt_classes, state).to(rows) * (soft - hard)


@dataclass(frozen=True)
class EQLv2PCBOptions(PCBOptions, EQLv2Options):
    """Options of :class:`EQLv2PCB`."""


class EQLv2PCB(EQLv2):
    """EQLv2 with Pairwise Class Balance (arXiv:2201.02784; megvii-research/PCB).

    The targets of an object's row are (1 - alpha) [j = y] + alpha M_jy in the loss, in its weights
    and in the gradients that are added up. M is of sigmoids, and its rows need not sum to one. It
    is that of the batches before; the authors' has the batch at hand, too.
    """

    name = "eqlv2_pcb"
    options = EQLv2PCBOptions

    def __init__(
        self,
        num_classes: int,
        *,
        iteration: Callable[[], int] | None = None,
        gamma: float = EQLv2Options.gamma,
        mu: float = EQLv2Options.mu,
        alpha: float = EQLv2Options.alpha,
        share: float = PCBOptions.share,
        momentum: float = PCBOptions.momentum,
        start_iter: int = PCBOptions.start_iter,
    ) -> None:
        """
        Args:
            num_classes: K.
            iteration: that training has come to; None where `start_iter` is 0.
            gamma, mu, alpha: as of :class:`EQLv2`.
            share, momentum, start_iter: as of :class:`PCBOptions`.
        """
        super().__init__(num_classes, gamma=gamma, mu=mu, alpha=alpha)
        options = PCBOptions(share=share, momentum=momentum, start_iter=start_iter)
        self._confusion = _Confusion(
            num_classes, options, iteration, exclusive=False, base=self.state
        )
        self.state = self._confusion.state

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {**super().arguments(training), "iteration": training.iteration}

    def targets(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        hard = super().targets(logits, gt_classes, state)
        soft = F.pad(self._confusion.targets(gt_classes, state), (0, 1)).to(hard)
        share = self._confusion.share(gt_classes, state).to(hard)[:, None]
        return hard + share * (soft - hard)


def _soft_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (R,) cross-entropies of softmaxes with soft targets of their first K columns."""
    log_probs = at_least_float32(logits).log_softmax(dim=1)[:, : targets.shape[1]]
    return -(targets.to(log_probs) * log_probs).sum(dim=1)
