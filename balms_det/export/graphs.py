"""The parts of a detector that become graphs.

A graph has no decision that depends on its data: RoIs come sorted by the feature map they are
pooled from. Proposals, selection and pasting of masks lie between the graphs, in
:mod:`balms_det.deploy`.

Shapes: L levels, R_l RoIs of level l, R their sum, K classes, M the edge of masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

from balms_det.modeling import LongTailMaskHead, LongTailPredictor

# Traced with an image of this edge: a multiple of every backbone's divisor.
_EXAMPLE_EDGE = 128

Axes = dict[str, tuple[int, ...]]  # by the name of an input or output


@dataclass(frozen=True)
class Graph:
    """A module to be traced.

    Attributes:
        name: of its file, without a suffix.
        module: takes and returns tensors.
        inputs: example tensors by name.
        dynamic: for each input and output the axes whose length varies.
        outputs: names.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Axes


class BackboneGraph(nn.Module):
    """(1, 3, H, W) pixels -> feature maps, then logits (H_l, W_l, A) and deltas (H_l, W_l, A, 4)
    of each level of the RPN."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, features: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.rpn = model.backbone, model.proposal_generator
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        self._features = features

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone((image - self.mean) / self.std)
        objectness, deltas = self.rpn.rpn_head([maps[name] for name in self.rpn.in_features])
        return (
            *(maps[name] for name in self._features),
            *(logits[0].permute(1, 2, 0) for logits in objectness),
            *(
                each.view(-1, 4, each.shape[2], each.shape[3]).permute(2, 3, 0, 1)
                for each in deltas
            ),
        )


class BoxGraph(nn.Module):
    """L feature maps and L arrays of boxes (R_l, 4) -> (R, K) calibrated probabilities, and deltas
    (R, 4) or (R, 4 * K)."""

    def __init__(self, pooler: ROIPooler, head: nn.Module, predictor: LongTailPredictor) -> None:
        super().__init__()
        self.pooler, self.head, self.predictor = pooler, head, predictor

    def forward(self, *maps_and_boxes: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.predictor(self.head(_pooled(self.pooler, maps_and_boxes)))
        return self.predictor.calibrated_probs(logits)[:, :-1], deltas


class MaskGraph(nn.Module):
    """L feature maps, L arrays of boxes (R_l, 4) and, unless masks are of no class, (R,) classes
    -> (R, M, M) probabilities."""

    def __init__(self, pooler: ROIPooler, head: nn.Module) -> None:
        super().__init__()
        self.pooler, self.head = pooler, head

    def forward(self, *inputs: Tensor) -> Tensor:
        num_arrays = 2 * len(self.pooler.level_poolers)
        features = _pooled(self.pooler, inputs[:num_arrays])
        classes = inputs[-1]  # not looked at where masks are of no class
        # Detectron2's own head has the same layers.
        logits: Tensor = LongTailMaskHead.own_class_logits(self.head, features, classes)
        return logits.sigmoid()[:, 0]


def _pooled(pooler: ROIPooler, maps_and_boxes: Sequence[Tensor]) -> Tensor:
    """Return (R, C, P, P) features of the boxes of all levels."""
    num_levels = len(pooler.level_poolers)
    maps, boxes = maps_and_boxes[:num_levels], maps_and_boxes[num_levels:]
    return torch.cat(
        [
            pool(level_map, F.pad(level_boxes, (1, 0)))  # all of image 0
            for pool, level_map, level_boxes in zip(pooler.level_poolers, maps, boxes, strict=True)
        ]
    )


def graphs_of(model: Any, features: Sequence[str]) -> list[Graph]:
    """Return the graphs of a GeneralizedRCNN on the CPU, in the order in which they run.

    Args:
        features: names of the backbone's maps that RoIs are pooled from.
    """
    rpn, heads = model.proposal_generator, model.roi_heads
    backbone = BackboneGraph(model, features).eval()
    image = torch.zeros(1, 3, _EXAMPLE_EDGE, _EXAMPLE_EDGE)
    per_level = [f"{kind}_{name}" for kind in ("objectness", "deltas") for name in rpn.in_features]
    axes: Axes = {"image": (2, 3), **dict.fromkeys(features, (2, 3))}
    axes |= dict.fromkeys(per_level, (0, 1))
    graphs = [Graph("backbone", backbone, {"image": image}, (*features, *per_level), axes)]
    with torch.no_grad():
        maps = dict(zip(features, backbone(image), strict=False))
    for i, (head, predictor) in enumerate(box_stages(heads)):
        module = BoxGraph(heads.box_pooler, head, predictor).eval()
        inputs, axes = _roi_inputs(maps, heads.box_in_features)
        axes |= {"probs": (0,), "deltas": (0,)}
        graphs.append(Graph(f"box_head_{i}", module, inputs, ("probs", "deltas"), axes))
    if heads.mask_on:
        mask_graph = MaskGraph(heads.mask_pooler, heads.mask_head).eval()
        inputs, axes = _roi_inputs(maps, heads.mask_in_features)
        if not is_class_agnostic(heads.mask_head):
            inputs["classes"] = torch.zeros(len(heads.mask_in_features), dtype=torch.int64)
            axes["classes"] = (0,)
        axes["masks"] = (0,)
        graphs.append(Graph("mask_head", mask_graph, inputs, ("masks",), axes))
    return graphs


def box_stages(heads: Any) -> list[tuple[nn.Module, Any]]:
    """Return the box head and predictor of each stage; a cascade has several."""
    if isinstance(heads.box_predictor, nn.ModuleList):
        return list(zip(heads.box_head, heads.box_predictor, strict=True))
    return [(heads.box_head, heads.box_predictor)]


def is_class_agnostic(mask_head: Any) -> bool:
    """Return whether a mask head predicts one mask for all classes."""
    return bool(mask_head.predictor.out_channels == 1)


def _roi_inputs(maps: Mapping[str, Tensor], names: Sequence[str]) -> tuple[dict[str, Tensor], Axes]:
    """Return example maps and boxes, one box of each level, and which of their axes vary."""
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    boxes = {f"boxes_{name}": box for name in names}
    inputs = {name: maps[name] for name in names} | boxes
    return inputs, {**dict.fromkeys(names, (2, 3)), **dict.fromkeys(boxes, (0,))}
