"""How the strength of a calibration moves AP between rare and frequent classes."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from balms_det.calibration import Calibration
from balms_det.evaluation.lvis import LVISEvaluator
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.runtime.errors import InputError
from balms_det.runtime.figures import save_figure

PLOTTED = ("AP", "APr", "APc", "APf")


def sweep(
    evaluator: LVISEvaluator,
    predictions: Sequence[ImagePredictions],
    category_ids: Sequence[int],
    calibration: Callable[[float], Calibration],
    strengths: Iterable[float],
) -> Iterator[dict[str, Any]]:
    """Score the same detections, with scores calibrated at one strength after the other.

    Args:
        evaluator: of the data set that was predicted on.
        predictions: in the order of their image ids, uncalibrated.
        category_ids: (K,) of the classes whose counts `calibration` knows, in their order.
        calibration: from a strength.
        strengths: each 0 or more.

    Yields:
        For each strength ``{"strength": ..., "bbox": {...}, "segm": {...}}`` with the evaluator's
        metrics in percent.

    Raises:
        InputError: a detection is of a category that is not in `category_ids`.
    """
    ids = np.asarray(category_ids)
    order = np.argsort(ids)
    class_indices = []
    for prediction in predictions:
        unknown = prediction.category_ids[~np.isin(prediction.category_ids, ids)]
        if unknown.size:
            raise InputError(
                f"a detection in image {prediction.image_id} is of category {unknown[0]}, which "
                "the class statistics do not list; give the statistics of the set that the model "
                "was trained on"
            )
        position = np.searchsorted(ids, prediction.category_ids, sorter=order)
        class_indices.append(torch.from_numpy(order[position]))
    for strength in strengths:
        rescore = calibration(strength).rescore
        rescored = [
            dataclasses.replace(
                prediction,
                scores=rescore(torch.from_numpy(prediction.scores), classes).numpy(),
            )
            for prediction, classes in zip(predictions, class_indices, strict=True)
        ]
        yield {"strength": strength, **evaluator.score(rescored)}


def plot_sweep(
    records: Sequence[dict[str, Any]], path: str | os.PathLike[str], *, title: str, xlabel: str
) -> None:
    """Draw AP, APr, APc and APf against the strength, a panel for each task.

    Args:
        records: of :func:`sweep`.
        path: of the figure; its suffix is the format.
        title: of the figure.
        xlabel: what the strength is.
    """
    tasks = [key for key in records[0] if key != "strength"]
    figure = Figure(figsize=(4.5 * len(tasks), 3.8), layout="constrained")
    strengths = [record["strength"] for record in records]
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for metric in PLOTTED:
            values = np.array([record[task][metric] for record in records])
            # A group without ground truth has no AP.
            values = np.where(values < 0, np.nan, values)
            axes.plot(strengths, values, marker=".", label=metric)
        axes.set(title=task, xlabel=xlabel, ylabel="percent")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    save_figure(figure, path, dpi=150)
