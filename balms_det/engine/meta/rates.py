"""The rates that are learned: how a batch's gradients become a gradient of them.

Shapes as in :mod:`balms_det.bilevel`.
"""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from balms_det.bilevel import class_means, reweighter_rate_gradient, sampler_rate_gradient
from balms_det.data import MetaTrainingSampler
from balms_det.engine.meta.recorder import Recorder
from balms_det.modeling import LongTailPredictor


class SamplerRates:
    """The rates of the Meta Sampler: how a batch's gradients become a gradient of them."""

    def __init__(self, sampler: MetaTrainingSampler, temperature: float) -> None:
        self.sampler = sampler
        self.rate_logits = sampler.rate_logits
        self._temperature = temperature

    def gradient(self, recorder: Recorder, rows: list[Tensor]) -> Tensor:
        """Return (K,) dM/dpsi, its mean over the processes still to be taken.

        Args:
            recorder: of the training batch.
            rows: per predictor, (R,) dM/dlog w.
        """
        draws = [self.sampler.take(index) for index in recorder.dataset_indices]
        per_image = torch.zeros(len(draws), device=rows[0].device)
        for record, gradients in zip(recorder.records, rows, strict=True):
            per_image.index_add_(0, record.image_of_row, gradients)
        per_image = per_image.to(self.rate_logits)
        classes = torch.tensor([draw.drawn_class for draw in draws])
        totals = per_image.new_zeros(2, len(self.rate_logits))
        totals.index_add_(1, classes, torch.stack([per_image, torch.ones_like(per_image)]))
        sums, counts = mean_over_processes(totals, rows[0].device)
        relaxed = torch.stack([draw.relaxed for draw in draws])
        return sampler_rate_gradient(
            class_means(sums, counts), relaxed, self.rate_logits, temperature=self._temperature
        )


class ReweighterRates:
    """The rates of the Meta Reweighter, which all stages of a cascade share."""

    def __init__(self, predictors: list[LongTailPredictor]) -> None:
        weights = [predictor.criterion.class_weights for predictor in predictors]
        self.rate_logits = weights[0].rate_logits
        for others in weights[1:]:
            others.rate_logits = self.rate_logits

    def gradient(self, recorder: Recorder, rows: list[Tensor]) -> Tensor:
        """Return as of :class:`SamplerRates`."""
        return sum(
            reweighter_rate_gradient(gradients, record.gt_classes, self.rate_logits)
            for record, gradients in zip(recorder.records, rows, strict=True)
        )


def mean_over_processes(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the mean, computed on `device` and the same bits in every process."""
    if comm.get_world_size() == 1:
        return tensor
    total = tensor.to(device)
    dist.all_reduce(total)
    return (total / comm.get_world_size()).to(tensor)
