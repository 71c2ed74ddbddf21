"""An exported model in the place of the model that it was exported from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from balms_det.deploy import Detections, Predictor


class ExportedModel(nn.Module):
    """Takes and returns what a Detectron2 model does in inference, and runs an exported model.

    Evaluation and drawing work with it: ``engine.evaluate`` and the evaluators ask a model for
    nothing else.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.eval()

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """Return ``{"instances": Instances}`` for each image, on the CPU.

        Args:
            batched_inputs: with "image", (3, H, W) of the size and with the channels that the model
                takes, as Detectron2's test mapper gives it, and "height" and "width" of the output.
        """
        return [{"instances": self._predict(each)} for each in batched_inputs]

    def _predict(self, each: Mapping[str, Any]) -> Instances:
        image = each["image"].permute(1, 2, 0).numpy()
        height, width = image.shape[:2]
        size = each.get("height", height), each.get("width", width)
        return as_instances(self.predictor.predict_resized(image, size))


def as_instances(detections: Detections) -> Instances:
    """Return detections as Detectron2 has them, with ``pred_masks`` (N, height, width) bool."""
    instances = Instances(detections.image_size)
    instances.pred_boxes = Boxes(torch.from_numpy(detections.boxes))
    instances.scores = torch.from_numpy(detections.scores)
    instances.pred_classes = torch.from_numpy(detections.classes)
    if detections.mask_probs is not None:
        masks = np.zeros((len(detections), *detections.image_size), dtype=bool)
        for i in range(len(detections)):
            masks[i] = detections.mask(i)
        instances.pred_masks = torch.from_numpy(masks)
    return instances
