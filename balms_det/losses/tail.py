"""Tail classes by one threshold on the image frequency, shared by the losses that spare them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from balms_det.losses.loss import Loss, TrainingClasses
from balms_det.options import FRACTION, Options, option


@dataclass(frozen=True)
class TailOptions(Options):
    """Options of losses that spare tail classes."""

    tail_threshold: float = option(
        "TAIL_THRESHOLD",
        0.0011,
        "Tail classes are in less than this fraction of the annotated images (lambda of "
        "Equalization Loss, DropLoss and GOL). The papers take 0.00176 for LVIS v0.5.",
        allowed=FRACTION,
        source="authors' code of arXiv:2003.05176 and 2207.09972, LVIS v1",
    )


class TailLoss(Loss):
    """A loss that treats tail classes differently.

    Attributes:
        is_tail: (K,) bool.
    """

    options = TailOptions
    needs_stats = True

    is_tail: Tensor

    def __init__(
        self, image_freq: Tensor, *, tail_threshold: float = TailOptions.tail_threshold
    ) -> None:
        """
        Args:
            image_freq: (K,) fraction of the annotated training images that contain each class.
            tail_threshold: classes below are tail classes, in [0, 1].
        """
        super().__init__()
        TailOptions(tail_threshold=tail_threshold)
        self.hold(is_tail=image_freq < tail_threshold)

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"image_freq": training.image_freq}
