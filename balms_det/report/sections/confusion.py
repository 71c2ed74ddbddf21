"""The federated confusion matrix: between groups, and the pairs of classes that are worst."""

from typing import Any

import numpy as np

from balms_det.report.data import ReportData
from balms_det.report.html import GROUP_TITLES, Section, figure, number, paragraph, table
from balms_det.report.sections.headline import TASK_TITLES

NUM_PAIRS = 40
_GROUPS = "rcf"


def section(data: ReportData) -> Section:
    detail = data.detail
    text = (
        f"What objects are detected as ({TASK_TITLES[data.cause_task]}, IoU 0.5). An image judges "
        "the classes that are annotated in it or verified to be absent; detections of other "
        "classes count neither as confusions nor as false positives. Detections of at least "
        f"{detail.confusion_score:.3f} are used, as many as there are objects."
    )
    groups = (
        "Between groups: each row is 100 % of a group's objects. Found is the right class; the "
        "columns of groups are wrong classes; the last row counts false positives on no object."
    )
    pairs = "The most frequent confusions of two classes, and the worst ones of rare classes."
    body = paragraph(text) + paragraph(groups) + _between(data) + figure("confusion")
    body += paragraph(pairs) + _pairs(data)
    return Section("confusions", "Confusions", body, {"confusion": _heatmap(data)})


def _parts(data: ReportData) -> np.ndarray:
    """Return counts (4, 5) of objects by group, and of false positives; columns: found, wrong class
    that is rare, common, frequent, and missed."""
    confusion = data.detail.confusion
    between = confusion.between(data.classes.groups, _GROUPS)
    found = np.zeros(4, np.int64)
    diagonal = confusion.matrix.diagonal()[:-1]
    np.add.at(found, [_GROUPS.index(group) for group in data.classes.groups], diagonal)
    wrong = between[:, :3] - np.diag(found)[:, :3]
    return np.column_stack([found, wrong, between[:, 3]])


def _between(data: ReportData) -> str:
    parts = _parts(data)
    headers = ["objects", "number", "found", *(f"as {GROUP_TITLES[g]}" for g in _GROUPS), "missed"]
    rows = []
    for group, counts in zip(_GROUPS, parts, strict=False):
        total = counts.sum()
        percent = [number(100 * part / total if total else None) for part in counts]
        rows.append([GROUP_TITLES[group], int(total), *percent])
    rows.append(["(background, detections)", "", "", *(int(n) for n in parts[3, 1:4]), ""])
    return table(headers, rows)


def _heatmap(data: ReportData) -> dict[str, Any]:
    parts = _parts(data)[:3]
    percent = 100 * parts / np.maximum(parts.sum(axis=1, keepdims=True), 1)
    columns = ["found", *(f"as {GROUP_TITLES[group]}" for group in _GROUPS), "missed"]
    trace = {
        "type": "heatmap",
        "x": columns,
        "y": [GROUP_TITLES[group] for group in _GROUPS],
        "z": percent.round(2).tolist(),
        "texttemplate": "%{z:.1f} %",
        "colorscale": "Blues",
        "reversescale": True,
        "zmin": 0,
        "zmax": 100,
        "hovertemplate": "%{y} objects %{x}: %{z:.1f} %<extra></extra>",
    }
    return {"data": [trace], "layout": {"yaxis": {"autorange": "reversed", "automargin": True}}}


def _pairs(data: ReportData) -> str:
    matrix = data.detail.confusion.matrix[:-1, :-1].copy()
    objects = data.detail.confusion.matrix[:-1].sum(axis=1)
    np.fill_diagonal(matrix, 0)
    rare = np.array([group == "r" for group in data.classes.groups])
    chosen = {**dict.fromkeys(_worst(matrix)), **dict.fromkeys(_worst(matrix * rare[:, None]))}
    rows = []
    for true, other in chosen:
        rows.append(
            [
                data.classes.names[true],
                data.classes.groups[true],
                data.classes.names[other],
                data.classes.groups[other],
                int(matrix[true, other]),
                number(100 * matrix[true, other] / objects[true]),
            ]
        )
    if not rows:
        return paragraph("No object is detected as another class.")
    headers = ["objects of", "", "detected as", "", "objects", "percent of the class"]
    return table(headers, rows, left=4)


def _worst(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Return the (row, column) of the largest cells, the largest first."""
    flat = np.argsort(-matrix, axis=None, kind="stable")[: NUM_PAIRS // 2]
    rows, columns = np.unravel_index(flat, matrix.shape)
    found = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in found if matrix[row, column] > 0]
