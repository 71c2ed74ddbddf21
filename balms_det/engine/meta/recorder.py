"""A recorder of the inputs and gradients of a detector's classifiers, by hooks.

Shapes as in :mod:`balms_det.bilevel`.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from balms_det.modeling import LongTailPredictor
from balms_det.runtime.transfers import to_device


@dataclass(frozen=True)
class HeadRecord:
    """The inputs and gradients of a classifier in one forward pass.

    Attributes:
        features: (R, D).
        gt_classes: (R,) in [0, K].
        image_of_row: (R,) which image of the batch each row is from.
        row_gradients: (R, C) of the training loss; None before, or without, its backward pass.
    """

    features: Tensor
    gt_classes: Tensor
    image_of_row: Tensor
    row_gradients: Tensor | None = None


class Recorder:
    """Listens to the classifiers of a detector through PyTorch's hooks, changing nothing.

    Attributes:
        predictors: of the box head, one for each stage of a cascade.
        dataset_indices: of the images of the last batch, where its loader gives them.
        records: of the last forward pass in training mode, one for each predictor.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: a GeneralizedRCNN with this package's ROI heads, not its distributed wrapper.
        """
        heads = model.roi_heads
        several = isinstance(heads.box_predictor, nn.ModuleList)
        self.predictors: list[LongTailPredictor] = (
            list(heads.box_predictor) if several else [heads.box_predictor]
        )
        self.dataset_indices: list[int | None] = []
        self.records: list[HeadRecord] = []
        self._image_of_row = torch.zeros(0, dtype=torch.int64)
        self._features = torch.zeros(0)
        model.register_forward_pre_hook(self._begin)
        heads.box_pooler.register_forward_pre_hook(self._see_boxes)
        for predictor in self.predictors:
            predictor.cls_score.register_forward_hook(self._see_features)
            predictor.criterion.register_forward_pre_hook(self._see_classes)

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self.dataset_indices = [image.get("dataset_index") for image in args[0]]
        self.records = []
        # Cached features come in the place of images, and no boxes are pooled.
        self._count_rows([image["features"] for image in args[0] if "features" in image])

    def _see_boxes(self, pooler: nn.Module, args: tuple[Any, ...]) -> None:
        self._count_rows(args[1])

    def _count_rows(self, per_image: Sequence[Sized]) -> None:
        counts = torch.tensor([len(rows) for rows in per_image], dtype=torch.int64)
        self._image_of_row = torch.arange(len(counts)).repeat_interleave(counts)

    def _see_features(self, layer: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
        self._features = args[0].detach()

    def _see_classes(self, criterion: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        logits, gt_classes = args
        image_of_row = to_device(self._image_of_row, gt_classes.device)
        self.records.append(HeadRecord(self._features, gt_classes, image_of_row))
        if logits.requires_grad:
            position = len(self.records) - 1

            def see_gradient(gradient: Tensor) -> None:
                self.records[position] = replace(self.records[position], row_gradients=gradient)

            logits.register_hook(see_gradient)
