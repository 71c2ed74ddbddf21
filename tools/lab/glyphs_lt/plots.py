"""Draw the figures of docs/RESULTS.md from stored runs alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from balms_det.runtime.figures import save_figure

Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> its runs, a seed each


def plot_ap_by_frequency(runs: Runs, path: Path) -> None:
    """Draw the mask AP of each class, the mean over seeds, against its training images."""
    figure, axes = _figure("training images of the class", "mask AP, percent")
    for _, title, of_method in _titled(runs):
        counts = np.array(of_method[0]["classes"]["image_count"])
        aps = np.array(
            [[np.nan if ap is None else ap for ap in run["per_class"]["segm_AP"]]
             for run in of_method]
        ).mean(axis=0)  # fmt: skip
        order = np.argsort(counts, kind="stable")
        (line,) = axes.plot(counts[order], _smoothed(aps[order]), label=title)
        axes.plot(counts[order], aps[order], ".", color=line.get_color(), alpha=0.5)
    axes.set_xscale("log")
    _save(figure, axes, path)


def plot_predicted_labels(runs: Runs, path: Path) -> None:
    """Draw the share of each class in the counted detections, from frequent to rare."""
    figure, axes = _figure("classes, the most frequent in training first", "share of detections")
    for _, title, of_method in _titled(runs):
        order = np.argsort(of_method[0]["classes"]["image_count"], kind="stable")[::-1]
        counts = np.array([run["per_class"]["detections"] for run in of_method], float)
        shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).mean(axis=0)
        axes.plot(np.arange(1, len(order) + 1), shares[order], label=title)
    axes.set_yscale("log")
    _save(figure, axes, path)


def plot_learning_curves(runs: Runs, path: Path) -> None:
    """Draw how often the highest logit of a foreground proposal is right, in training."""
    figure, axes = _figure("iteration", "accuracy on foreground proposals, percent")
    for _, title, of_method in _titled(runs):
        curves = [run["learning_curve"] for run in of_method]
        length = min(len(curve["iteration"]) for curve in curves)
        if length:
            accuracy = np.mean([curve["accuracy"][:length] for curve in curves], axis=0)
            axes.plot(curves[0]["iteration"][:length], _smoothed(accuracy), label=title)
    _save(figure, axes, path)


def plot_ap_by_cap(runs: Runs, path: Path, metric: str) -> None:
    """Draw a metric of masks against the cap on detections per image."""
    figure, axes = _figure("detections per image that count", f"mask {metric}, percent")
    for _, title, of_method in _titled(runs):
        caps = sorted(map(int, of_method[0]["caps"]))
        values = np.mean(
            [[run["caps"][str(cap)]["segm"][metric] for cap in caps] for run in of_method], axis=0
        )
        axes.plot(caps, values, marker=".", label=title)
    axes.set_xscale("log")
    _save(figure, axes, path)


def _titled(runs: Runs) -> list[tuple[str, str, Sequence[Mapping[str, Any]]]]:
    return [(name, of_method[0]["title"], of_method) for name, of_method in runs.items()]


def _smoothed(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Return a running mean over `width` neighbours, fewer at the ends."""
    half = width // 2
    return np.array(
        [np.nanmean(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]
    )


def _figure(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _save(figure: Figure, axes: Any, path: Path) -> None:
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
