"""Mask R-CNN's mask head without the masks that nobody looks at.

Shapes: N instances, C channels, K foreground classes, masks of H x W.
"""

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Instances
from torch import Tensor

from balms_det.classifier import CosineConv2d

_CHUNK_ON_CPU = 32  # instances whose layers fit into a cache of some ten megabytes


@ROI_MASK_HEAD_REGISTRY.register()
class LongTailMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's head, computing for each instance the mask of its own class only.

    Detectron2 predicts the masks of all K classes and picks one; with 1,203 classes that is most of
    the head's time and memory. Parameters, their names, and results are the same, up to rounding:
    on a GPU with TF32, Detectron2's last layer, a convolution, rounds its inputs to TF32 unless
    torch.backends.cudnn.allow_tf32 is False. This one, a matrix product, does so only if
    torch.backends.cuda.matmul.allow_tf32 is True. TF32 has 10 bits of mantissa, so that logits
    differ by some 1e-3 of their size where the two settings differ, as they do by default.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, cosine_temperature: float | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: of the instances' features.
            cosine_temperature: of a :class:`CosineConv2d` in the place of the last layer; None for
                Detectron2's.
            kwargs: of :class:`MaskRCNNConvUpsampleHead`.
        """
        super().__init__(input_shape, **kwargs)
        if cosine_temperature is not None:
            shape = self.predictor.in_channels, self.predictor.out_channels
            self.predictor = CosineConv2d(*shape, cosine_temperature)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        long_tail = cfg.MODEL.LONG_TAIL
        is_cosine = long_tail.MASK_CLASSIFIER == "cosine"
        return {
            **super().from_config(cfg, input_shape),
            "cosine_temperature": long_tail.COSINE_TEMPERATURE if is_cosine else None,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            x: (N, C_in, H_in, W_in) features of the instances of all images.
            instances: per image; ``gt_classes`` says whose mask in training, ``pred_classes`` in
                inference.

        Returns:
            The loss in training; `instances` with ``pred_masks`` in inference.
        """
        field = "gt_classes" if self.training else "pred_classes"
        classes = [each.get(field) for each in instances if len(each)]
        classes = torch.cat(classes) if classes else x.new_zeros(0, dtype=torch.int64)
        # With one channel Detectron2's functions take the masks for class-agnostic ones.
        if self.training:
            logits = self.own_class_logits(x, classes)
            return {
                "loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight
            }
        # An instance's mask depends on no other's. A few at a time stay in a processor's cache.
        size = _CHUNK_ON_CPU if x.device.type == "cpu" else max(1, len(x))
        chunks = zip(x.split(size), classes.split(size), strict=True)
        logits = torch.cat([self.own_class_logits(*chunk) for chunk in chunks])
        mask_rcnn_inference(logits, instances)
        return instances

    def own_class_logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return (N, C_in, H_in, W_in) features, (N,) classes -> (N, 1, H, W) logits of these
        classes."""
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.children():
            if layer is not self.predictor:
                x = layer(x)
        if self.predictor.out_channels == 1:
            return self.predictor(x)
        weight = self.predictor.weight[classes]  # (N, C, 1, 1)
        if isinstance(self.predictor, CosineConv2d):
            x, weight = self.predictor.normalised(x, weight)
        bias = self.predictor.bias[classes][:, None, None]
        # A view, whatever the order of the features in memory: they are not copied.
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H * W, C)
        logits = torch.baddbmm(bias, pixels, weight.flatten(2))
        # Not len(x), which a traced graph would hold as a constant.
        return logits.view(x.shape[0], 1, x.shape[2], x.shape[3])
