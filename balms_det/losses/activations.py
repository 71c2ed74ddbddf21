"""What a classifier's logits mean: how many there are, their probabilities, where they start.

Shapes as in :mod:`balms_det.losses`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balms_det.annotations.class_stats import missing_class_stats


class Activation:
    """The link between logits and class probabilities.

    Attributes:
        exclusive: whether classes and background compete, so that probabilities sum to one.
        independent_classes: whether every class is a binary problem of its own, so that the loss
            has one element for each logit and single classes can be left out of it.
    """

    exclusive = False
    independent_classes = False

    def num_logits(self, num_classes: int) -> int:
        """Return the columns of the classifier for `num_classes` foreground classes."""
        raise NotImplementedError

    def probs(self, logits: Tensor) -> Tensor:
        """Return (R, num_logits) logits -> (R, K + 1) float32 probabilities, background last."""
        raise NotImplementedError

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        """Return (num_logits,) bias of the classifier before training."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        # By value: models are copied and pickled, and their activations with them.
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(type(self))


class Softmax(Activation):
    """K classes and background exclude one another."""

    exclusive = True

    def num_logits(self, num_classes: int) -> int:
        return num_classes + 1

    def probs(self, logits: Tensor) -> Tensor:
        return F.softmax(logits.float(), dim=-1)

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        return torch.zeros(num_classes + 1)


class Sigmoid(Activation):
    """Each class on its own; the background is the absence of all and has no logit."""

    independent_classes = True

    def num_logits(self, num_classes: int) -> int:
        return num_classes

    def probs(self, logits: Tensor) -> Tensor:
        # Detectron2's inference expects a background column and throws it away.
        return F.pad(logits.float().sigmoid(), (0, 1))

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        # Without it, thousands of negative classes swamp the first updates (RetinaNet, 3.3).
        return torch.full((num_classes,), -math.log((1 - prior_prob) / prior_prob))


class SigmoidWithBackground(Activation):
    """Each class and the background on its own."""

    independent_classes = True

    def __init__(self, needs_absence: bool) -> None:
        """
        Args:
            needs_absence: whether a class is as probable as it and the absence of background
                together, or whether its own sigmoid stands alone.
        """
        self._needs_absence = needs_absence

    def num_logits(self, num_classes: int) -> int:
        return num_classes + 1

    def probs(self, logits: Tensor) -> Tensor:
        probs = logits.float().sigmoid()
        if not self._needs_absence:
            return probs
        background = probs[:, -1:]
        return torch.cat([probs[:, :-1] * (1 - background), background], dim=1)

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        return SIGMOID.initial_bias(num_classes + 1, prior_prob)


class SoftmaxWithObjectness(Activation):
    """K classes exclude one another; two more logits tell an object from the background."""

    exclusive = True

    def num_logits(self, num_classes: int) -> int:
        return num_classes + 2

    def probs(self, logits: Tensor) -> Tensor:
        classes, objectness = torch.split(logits.float(), [logits.shape[1] - 2, 2], dim=1)
        objectness = F.softmax(objectness, dim=1)
        return torch.cat([F.softmax(classes, dim=1) * objectness[:, :1], objectness[:, 1:]], dim=1)

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        return torch.zeros(num_classes + 2)


class Gumbel(Activation):
    """Each class on its own, with the distribution function of a Gumbel: exp(-exp(-z))."""

    independent_classes = True

    def num_logits(self, num_classes: int) -> int:
        return num_classes

    def probs(self, logits: Tensor) -> Tensor:
        return F.pad((-(-logits.float()).exp()).exp(), (0, 1))

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        return torch.full((num_classes,), -math.log(-math.log(prior_prob)))


def group_log_sums(classes: Tensor, others: Tensor, class_groups: Tensor) -> Tensor:
    """Return the logarithm of the softmax's denominator of each group and row.

    Args:
        classes: (R, K) logits.
        others: (R, G) logits of the groups' "others".
        class_groups: (K,) in [0, G).

    Returns:
        (R, G).
    """
    return torch.stack(
        [
            torch.cat(
                [classes.masked_fill(class_groups != group, -torch.inf), others[:, group, None]],
                dim=1,
            ).logsumexp(dim=1)
            for group in range(others.shape[1])
        ],
        dim=1,
    )


class GroupSoftmax(Activation, nn.Module):
    """Objects against background, and within each group of classes one of them, or another.

    The logits are those of :func:`~balms_det.losses.bags.group_softmax_loss`. Which classes share a
    softmax is saved with the model: its logits mean nothing without.
    """

    # Tensors decide: only the same object is equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    class_groups: Tensor

    def __init__(self, class_groups: Tensor, num_groups: int) -> None:
        """
        Args:
            class_groups: (K,) int64 in [0, num_groups), or -1 where only a checkpoint will tell.
            num_groups: G.
        """
        super().__init__()
        self.register_buffer("class_groups", class_groups)
        self._num_groups = num_groups
        self._note_whether_known()

    def _note_whether_known(self) -> None:
        """Look at the groups where they are set: every call that looks would wait for a GPU."""
        self._is_known = not bool((self.class_groups < 0).any())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note_whether_known()

    def num_logits(self, num_classes: int) -> int:
        return num_classes + self._num_groups + 2

    def probs(self, logits: Tensor) -> Tensor:
        if not self._is_known:
            raise missing_class_stats("the loss 'bags', whose classes share softmaxes by count,")
        sizes = [len(self.class_groups), self._num_groups, 2]
        classes, others, objectness = torch.split(logits.float(), sizes, dim=1)
        log_sums = group_log_sums(classes, others, self.class_groups)
        objectness = F.softmax(objectness, dim=1)
        probs = (classes - log_sums[:, self.class_groups]).exp()
        return torch.cat([probs * objectness[:, :1], objectness[:, 1:]], dim=1)

    def initial_bias(self, num_classes: int, prior_prob: float) -> Tensor:
        return torch.zeros(self.num_logits(num_classes))


SOFTMAX, SIGMOID, GUMBEL = Softmax(), Sigmoid(), Gumbel()
SIGMOID_WITH_BACKGROUND = SigmoidWithBackground(needs_absence=True)
SIGMOID_BESIDE_BACKGROUND = SigmoidWithBackground(needs_absence=False)
SOFTMAX_WITH_OBJECTNESS = SoftmaxWithObjectness()
