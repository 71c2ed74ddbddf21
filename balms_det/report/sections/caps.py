"""AP under other budgets of detections, and which classes fill the budget."""

from typing import Any

import numpy as np

from balms_det.report.data import CLASS_BUDGET, ReportData
from balms_det.report.html import (
    COLORS,
    GROUP_TITLES,
    Section,
    axis,
    figure,
    layout,
    number,
    paragraph,
    table,
)
from balms_det.report.sections.headline import TASK_TITLES

_GROUP_OF_METRIC = {"AP": "all", "APr": "r", "APc": "c", "APf": "f"}
NUM_CLASSES = 15


def section(data: ReportData) -> Section:
    detail = data.detail
    text = (
        f"AP of {TASK_TITLES[data.cause_task]} when only the best detections of each image count. "
        "LVIS counts 300. A rare class whose detections have low scores gains by a larger number. "
        f"AP-Fixed counts the best {CLASS_BUDGET} detections of each class over the data set and "
        "has no limit for an image (arXiv:2102.01066); it is limited by the detections in the "
        "result file."
    )
    rows = [
        [f"{cap} detections per image", *(number(scores[m]) for m in _GROUP_OF_METRIC)]
        for cap, scores in detail.caps.items()
    ]
    rows.append(["AP-Fixed", *(number(detail.ap_fixed[m]) for m in _GROUP_OF_METRIC)])
    body = paragraph(text) + figure("caps") + table(["", *_GROUP_OF_METRIC], rows)
    pooled = number(detail.ap50_pool)
    body += paragraph(
        f"AP50-Pool is {pooled}: the detections of all classes in one ranking at IoU 0.5, which "
        "also asks whether the scores of different classes compare."
    )
    body += paragraph("Which classes fill the detections:") + _fill(data)
    return Section("budget", "Detections per image", body, {"caps": _curve(data)})


def _curve(data: ReportData) -> dict[str, Any]:
    caps = data.detail.caps
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": metric,
            "x": list(caps),
            "y": [scores[metric] for scores in caps.values()],
            "line": {"color": COLORS[group]},
            "hovertemplate": "%{x} detections: %{y:.1f}<extra>%{fullData.name}</extra>",
        }
        for metric, group in _GROUP_OF_METRIC.items()
        if next(iter(caps.values()))[metric] >= 0
    ]
    x = axis("detections per image", type="log", tickvals=list(caps))
    return {"data": traces, "layout": layout(x, axis("percent", rangemode="tozero"))}


def _fill(data: ReportData) -> str:
    """Return the tables of groups and of the classes with the most detections."""
    detections, objects = data.detail.detections, data.classes.objects
    groups = np.array(data.classes.groups)

    def row(title: str, members: np.ndarray) -> list[str]:
        parts = [
            100 * counts[members].sum() / max(counts.sum(), 1) for counts in (detections, objects)
        ]
        return [title, *map(number, parts)]

    headers = ["percent of", "detections", "objects"]
    rows = [row(GROUP_TITLES[group], groups == group) for group in "rcf"]
    most = np.argsort(-detections, kind="stable")[:NUM_CLASSES]
    by_class = [row(f"{data.classes.names[i]} ({groups[i]})", np.array([i])) for i in most.tolist()]
    return table(headers, rows) + table(headers, by_class)
