"""The curves of training, from metrics.json."""

from typing import Any

from balms_det.report.data import ReportData
from balms_det.report.html import RUN_COLORS, Section, axis, figure, layout, paragraph

MAX_POINTS = 300
# Figure -> the metrics that it shows where a run has them.
CURVES = {
    "losses": ("total_loss", "loss_cls", "loss_box_reg", "loss_mask"),
    "accuracy": ("fast_rcnn/cls_accuracy", "fast_rcnn/fg_cls_accuracy", "mask_rcnn/accuracy"),
    "evaluations": ("segm/AP", "segm/APr", "segm/APc", "segm/APf", "bbox/AP"),
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def section(data: ReportData) -> Section | None:
    figures = {}
    for name, metrics in CURVES.items():
        traces = [
            _curve(run.files.name, index, position, metric, points)
            for index, run in enumerate(data.runs)
            for position, metric in enumerate(metrics)
            if (points := _points(run.files.history, metric))
        ]
        if traces:
            y = axis("percent" if name == "evaluations" else name, rangemode="tozero")
            figures[f"training-{name}"] = {
                "data": traces,
                "layout": layout(axis("iteration"), y),
            }
    if not figures:
        return None
    text = "Losses, accuracies and evaluations during training, from the runs' metrics.json."
    return Section("training", "Training", paragraph(text) + "".join(map(figure, figures)), figures)


def _points(history: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Return (iteration, value), at most 300 evenly spaced ones with the last."""
    points = [(record["iteration"], record[metric]) for record in history if metric in record]
    step = -(-len(points) // MAX_POINTS)
    return points[::-1][:: max(step, 1)][::-1]


def _curve(
    run: str, index: int, position: int, metric: str, points: list[tuple[int, float]]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "name": f"{run}: {metric}",
        "x": [iteration for iteration, _ in points],
        "y": [round(value, 5) for _, value in points],
        "line": {"color": RUN_COLORS[index % len(RUN_COLORS)], "dash": _DASHES[position]},
    }
