"""RoIAlign with a gradient that takes a processor a fraction of the time.

RoIAlign is linear in the features: what a bin holds is a weighted sum of pixels, whose weights are
products of one for the row and one for the column. So its gradient is a product with a sparse
matrix, which adds up the vectors of all channels at once; torchvision's goes from channel to
channel, and on one core.

Shapes: R regions, N images of C channels and H x W pixels, P x Q bins, S samples in a bin along one
axis, M pixels that a bin reaches along one axis.
"""

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align


class FastGradientROIAlign(ROIAlign):
    """Detectron2's layer; its gradient on a processor is the same up to rounding, and faster."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Return (N, C, H, W) features, (R, 5) image index and box -> (R, C, P, Q)."""
        if input.device.type != "cpu" or not (input.requires_grad and torch.is_grad_enabled()):
            return super().forward(input, rois)
        options = (self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
        return _ROIAlign.apply(input, rois.to(input.dtype), *options)


def use_fast_gradients(pooler: ROIPooler) -> None:
    """Put :class:`FastGradientROIAlign` in the place of every ROIAlign of `pooler`."""
    for index, layer in enumerate(pooler.level_poolers):
        if type(layer) is ROIAlign:
            options = (layer.spatial_scale, layer.sampling_ratio, layer.aligned)
            pooler.level_poolers[index] = FastGradientROIAlign(layer.output_size, *options)


class _ROIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rois: Tensor,
        bins: tuple[int, int],
        scale: float,
        sampling_ratio: int,
        aligned: bool,
    ) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.options = (features.shape, bins, scale, sampling_ratio, aligned)
        return roi_align(features, rois, bins, scale, sampling_ratio, aligned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        (n, channels, height, width), bins, scale, sampling_ratio, aligned = ctx.options
        box = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
        size = box[:, 2:] - box[:, :2]
        if not aligned:
            size = size.clamp(min=1)
        first_row, of_rows = _axis_weights(box[:, 1], size[:, 1], bins[0], height, sampling_ratio)
        first_col, of_cols = _axis_weights(box[:, 0], size[:, 0], bins[1], width, sampling_ratio)
        # (R, P, Q, M_rows, M_cols); what reaches beyond the features has a weight of zero.
        weights = of_rows[:, :, None, :, None] * of_cols[:, None, :, None, :]
        rows = (first_row[:, :, None] + torch.arange(of_rows.shape[2])).clamp(max=height - 1)
        cols = (first_col[:, :, None] + torch.arange(of_cols.shape[2])).clamp(max=width - 1)
        rows = rows + (rois[:, 0].long() * height)[:, None, None]
        pixels = rows[:, :, None, :, None] * width + cols[:, None, :, None, :]
        bin_of = torch.arange(gradient.shape[0] * bins[0] * bins[1]).view(-1, *bins, 1, 1)
        # Half precision has no such product.
        values = weights.flatten().to(torch.promote_types(weights.dtype, torch.float32))
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            matrix = torch.sparse_coo_tensor(
                torch.stack([pixels.flatten(), bin_of.expand_as(weights).flatten()]),
                values,
                (n * height * width, bin_of.numel()),
            )
            of_bins = gradient.permute(0, 2, 3, 1).reshape(-1, channels).to(values.dtype)
            result = torch.sparse.mm(matrix, of_bins).to(gradient.dtype)
        result = result.view(n, height, width, channels).permute(0, 3, 1, 2)
        return result, *[None] * 5


def _axis_weights(
    start: Tensor, length: Tensor, bins: int, size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Return the weight of each pixel in each bin along one axis.

    Args:
        start, length: (R,) of the regions, in pixels.
        bins: P.
        size: of the features along the axis.
        sampling_ratio: samples in a bin; 0 for as many as it has pixels, rounded up.

    Returns:
        (R, P) the first pixel that a bin reaches, and (R, P, M) the weights from there on, zero
        where it reaches no further.
    """
    if sampling_ratio > 0:
        samples = torch.full_like(length, sampling_ratio)
    else:
        samples = (length / bins).ceil().clamp(min=0)
    of_bin = torch.arange(max(int(samples.max()), 1) if len(samples) else 1)
    is_sample = of_bin < samples[:, None, None]  # (R, 1, S)
    divisor = samples.clamp(min=1)[:, None, None]
    step = (length / bins)[:, None, None]
    position = (
        start[:, None, None] + torch.arange(bins)[:, None] * step + (of_bin + 0.5) * step / divisor
    )  # (R, P, S)
    counts = is_sample & (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.long()
    high = (low + 1).clamp(max=size - 1)
    upper = position - low
    share = counts / divisor.to(position.dtype)
    first = low.masked_fill(~is_sample, size).amin(dim=2).clamp(max=size - 1)
    reach = int((high - first[:, :, None]).masked_fill(~counts, 0).max()) + 1 if len(low) else 1
    weights = position.new_zeros(*position.shape[:2], reach)
    for pixel, weight in ((low, 1 - upper), (high, upper)):
        # Samples that do not count have a weight of zero, wherever it goes.
        at = (pixel - first[:, :, None]).clamp(0, reach - 1)
        weights.scatter_add_(2, at, weight * share)
    return first, weights
