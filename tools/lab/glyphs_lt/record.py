"""The record of a stored run: how it was made, and its scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balms_det.evaluation import (
    best_of_each_image,
    read_predictions,
    score_with_caps,
    score_with_class_budget,
)

_CURVE_POINTS = 60


def training_history(output_dir: Path) -> list[dict[str, Any]]:
    """Return the records of ``metrics.json`` that are of training, each iteration's last one."""
    path = output_dir / "metrics.json"
    lines = path.read_text().splitlines() if path.is_file() else []
    by_iteration = {
        record["iteration"]: record for record in map(json.loads, lines) if "time" in record
    }
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def training_seconds(history: Sequence[Mapping[str, Any]]) -> float:
    """How long training took, without what is done between iterations."""
    if not history:
        return 0.0
    seconds = [record["time"] for record in history]  # each a median over its iterations
    return float(sum(seconds) / len(seconds) * (1 + history[-1]["iteration"]))


def learning_curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return at most 60 points of the classifier's loss and accuracy on foreground RoIs."""
    measured = [record for record in history if "fast_rcnn/fg_cls_accuracy" in record]
    points = measured[:: max(1, -(-len(measured) // _CURVE_POINTS))]
    return {
        "iteration": [record["iteration"] + 1 for record in points],
        # Detectron2 logs a loss that is the only one under the name of the sum.
        "loss_cls": [round(record.get("loss_cls", record["total_loss"]), 4) for record in points],
        "accuracy": [round(100 * record["fast_rcnn/fg_cls_accuracy"], 1) for record in points],
    }


def scores(
    dataset_name: str,
    predictions_file: Path,
    *,
    cap: int,
    caps: Sequence[int],
    class_budget: int,
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """Return all that is measured on one run's stored predictions, in percent.

    Args:
        dataset_name: the registered validation set.
        predictions_file: ``lvis_instances_results.json``.
        cap: detections of an image that the main table and the records per class count.
        caps: further ones.
        class_budget: of AP-Fixed.
        category_ids: of all classes, ascending.
    """
    predictions = read_predictions(predictions_file)
    by_cap = score_with_caps(dataset_name, predictions, sorted({cap, *caps}))
    fixed = score_with_class_budget(dataset_name, predictions, class_budget)
    kept = best_of_each_image(predictions, cap)
    counted = np.concatenate([np.zeros(0, np.int64), *(each.category_ids for each in kept)])
    return {
        "caps": {str(c): _rounded(result) for c, result in by_cap.items()},
        "fixed": _rounded(fixed),
        "per_class": {
            "segm_AP": _class_aps(by_cap[cap]),
            "fixed_segm_AP": _class_aps(fixed),
            "detections": [int((counted == i).sum()) for i in category_ids],
        },
    }


def _rounded(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        task: {metric: round(value, 4) for metric, value in result[task].items()}
        for task in ("bbox", "segm")
    }


def _class_aps(result: Mapping[str, Any]) -> list[float | None]:
    aps = [record["segm_AP"] for record in result["per_class"]]
    return [None if ap is None else round(ap, 2) for ap in aps]
