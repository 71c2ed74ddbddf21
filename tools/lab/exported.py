"""Exported models beside the model that they were exported from: their detections and their AP."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances, pairwise_iou

from balms_det.data import build_test_loader
from balms_det.deploy import Predictor
from balms_det.engine import (
    LongTailCheckpointer,
    build_evaluator,
    build_long_tail_model,
    inference_class_stats,
)
from balms_det.export import ExportedModel
from lab import markdown
from lab.provenance import describe, environment

# Two detections of one class are the same within these; the masks' IoU is at least the last.
_PIXELS, _SCORE, _MASK_IOU = 0.05, 1e-4, 0.99
_METRICS = ("AP", "APr", "APc", "APf")


def compare(cfg: Any, directories: Sequence[Path]) -> dict[str, Any]:
    """Return a run to store: AP of MODEL.WEIGHTS and of exported models on DATASETS.TEST[0].

    Args:
        cfg: a configuration, with the checkpoint and a registered data set that fits into memory.
        directories: that `balms-det export` wrote from the same checkpoint.
    """
    name = cfg.DATASETS.TEST[0]
    inputs = [each for batch in build_test_loader(cfg, name) for each in batch]
    stats = inference_class_stats(cfg, cfg.MODEL.WEIGHTS)
    model = build_long_tail_model(cfg, stats).eval()
    LongTailCheckpointer(model, class_stats=stats).load(cfg.MODEL.WEIGHTS)
    expected = _predictions(model, inputs)
    exports = [
        {
            "format": "pytorch",
            "precision": "float32",
            "results": _score(cfg, name, inputs, expected),
        }
    ]
    for directory in directories:
        predictor = Predictor.from_exported(directory)
        found = _predictions(ExportedModel(predictor), inputs)
        pairs = list(zip(found, expected, strict=True))
        total = sum(max(len(a["instances"]), len(b["instances"])) for a, b in pairs)
        exports.append(
            {
                "format": predictor.description.format,
                "precision": predictor.description.precision,
                "results": _score(cfg, name, inputs, found),
                "same": sum(same_detections(a["instances"], b["instances"]) for a, b in pairs),
                "detections": total,
            }
        )
    return {"images": len(inputs), "exports": exports, **environment("cpu")}


@torch.inference_mode()
def _predictions(model: torch.nn.Module, inputs: Sequence[Any]) -> list[dict[str, Instances]]:
    return [model([each])[0] for each in inputs]


def _score(cfg: Any, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def same_detections(found: Instances, expected: Instances) -> int:
    """Return how many of the expected detections of an image are found: of the same class, and
    within 0.05 pixels, 1e-4 of the score and, where there are masks, from an IoU of 0.99."""
    if not (len(found) and len(expected)):
        return 0
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    near = torch.cdist(boxes, others, p=float("inf")) <= _PIXELS
    near &= found.pred_classes[:, None] == expected.pred_classes
    near &= (found.scores[:, None] - expected.scores).abs() <= _SCORE
    count = 0
    for j in range(len(expected)):
        # Of several the one that overlaps most, so that equal boxes do not stand for one another.
        candidates = near[:, j].nonzero()[:, 0]
        if not len(candidates):
            continue
        overlaps = pairwise_iou(found.pred_boxes[candidates], expected.pred_boxes[j : j + 1])
        best = candidates[overlaps[:, 0].argmax()]
        near[best] = False
        count += not expected.has("pred_masks") or _mask_iou(found, expected, best, j) >= _MASK_IOU
    return count


def _mask_iou(found: Instances, expected: Instances, i: Any, j: int) -> float:
    mask, other = found.pred_masks[i], expected.pred_masks[j]
    union = (mask | other).sum()
    return float((mask & other).sum() / union) if union else 1.0


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.2f}"  # -100: there was nothing to measure it on


def table(run: Mapping[str, Any]) -> str:
    """Return a table with a row for each export, and below it how it was measured."""
    tasks = list(run["exports"][0]["results"])
    rows = [
        [
            export["format"],
            export["precision"],
            *(_cell(export["results"][task][m]) for task in tasks for m in _METRICS),
            f"{100 * export['same'] / export['detections']:.2f} %" if "same" in export else "-",
        ]
        for export in run["exports"]
    ]
    kinds = {"bbox": "box", "segm": "mask"}
    headers = [f"{kinds[task]} {metric}" for task in tasks for metric in _METRICS]
    lines = markdown.table(["format", "precision", *headers, "same detections"], rows, left=(0, 1))
    return f"{lines}\n\n{run['images']} images; {describe(run)}."
