"""Scores against precision, by frequency group."""

from typing import Any

from balms_det.report.data import ReportData
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


def section(data: ReportData) -> Section:
    text = (
        "How often a detection with a given score is right at IoU 0.5. On the dotted line scores "
        "are precisions; below it detections are over-confident. ECE, the expected calibration "
        "error, is the mean distance from the line over all detections (0 to 1)."
    )
    groups = list(data.runs[0].calibration)
    rows = [
        [run.files.name, *(number(run.calibration[group]["ece"], 3) for group in groups)]
        for run in data.runs
    ]
    headers = ["ECE", *(GROUP_TITLES[group] for group in groups)]
    body = paragraph(text) + table(headers, rows) + figure("calibration")
    return Section("calibration", "Calibration", body, {"calibration": _curves(data)})


def _curves(data: ReportData) -> dict[str, Any]:
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "calibrated",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"dash": "dot", "color": COLORS["all"]},
        "hoverinfo": "skip",
    }
    traces = [diagonal]
    for group, found in data.runs[0].calibration.items():
        bins = [part for part in found["bins"] if part["count"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": GROUP_TITLES[group],
                "x": [part["avg_confidence"] for part in bins],
                "y": [part["avg_accuracy"] for part in bins],
                "customdata": [part["count"] for part in bins],
                "line": {"color": COLORS[group]},
                "hovertemplate": "mean score %{x:.2f}<br>precision %{y:.2f}<br>"
                "detections %{customdata}<extra>%{fullData.name}</extra>",
            }
        )
    axes = axis("mean score", range=[0, 1]), axis("precision", range=[0, 1])
    return {"data": traces, "layout": layout(*axes)}
