"""Detectron2's ROI heads with a long-tailed classifier; everything else is theirs."""

from typing import Any

from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.structures import Instances
from torch import Tensor

from balms_det.modeling.inference import PredictedBoxes
from balms_det.modeling.predictor import LongTailPredictor


@ROI_HEADS_REGISTRY.register()
class LongTailROIHeads(StandardROIHeads):
    """Mask R-CNN's heads, classified by a :class:`LongTailPredictor`."""

    @classmethod
    def _init_box_head(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = LongTailPredictor(cfg, ret["box_head"].output_shape)
        return ret


@ROI_HEADS_REGISTRY.register()
class LongTailCascadeROIHeads(CascadeROIHeads):
    """Cascade R-CNN's heads, each stage classified by a :class:`LongTailPredictor`."""

    @classmethod
    def _init_box_head(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            # Each stage regresses boxes in units of its own.
            LongTailPredictor(cfg, head.output_shape, box2box_transform=stock.box2box_transform)
            for head, stock in zip(ret["box_heads"], ret["box_predictors"], strict=True)
        ]
        return ret

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Return as Detectron2's, which in inference always calls its own selection."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        levels = [features[name] for name in self.box_in_features]
        image_sizes = [image.image_size for image in proposals]
        probs: list[tuple[Tensor, ...]] = []
        boxes: tuple[Tensor, ...] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            predictions = self._run_stage(levels, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            probs.append(predictor.predict_probs(predictions, proposals))
        mean_probs = [sum(stages) * (1.0 / len(probs)) for stages in zip(*probs, strict=True)]
        return [
            predictor.select(PredictedBoxes(image_boxes), scores, size)[0]
            for image_boxes, scores, size in zip(boxes, mean_probs, image_sizes, strict=True)
        ]
