"""AP of each class against its training count, and the table of all classes."""

from typing import Any

from balms_det.report.data import ReportData
from balms_det.report.html import (
    COLORS,
    GROUP_TITLES,
    Section,
    axis,
    cells,
    escaped,
    figure,
    layout,
    number,
    paragraph,
)


def section(data: ReportData) -> Section:
    text = (
        "AP of each class against the number of training images that contain it. Classes without "
        "an object in this set have no AP. In the table, a column's heading sorts by it. Found, "
        "confused and missed are percentages of the class's objects; false positives are counted "
        f"in detections. Both use detections of at least {data.detail.confusion_score:.3f}, as "
        "many as there are objects."
    )
    figures = {"by-count": _scatter(data)}
    body = paragraph(text) + figure("by-count", tall=True)
    if len(data.runs) > 1:
        figures["change-by-count"] = _changes(data)
        body += figure("change-by-count")
    return Section("classes", "Classes", body + _filters() + _table(data), figures)


def _scatter(data: ReportData) -> dict[str, Any]:
    aps = data.runs[0].class_ap
    return {
        "data": [_points(data, group, aps, "AP") for group in "rcf"],
        "layout": layout(_counts(), axis("AP (percent)", rangemode="tozero")),
    }


def _changes(data: ReportData) -> dict[str, Any]:
    """Return the figure of the first other run's difference of each class."""
    first, other = data.runs[:2]
    changes = [_change(a, b) for a, b in zip(first.class_ap, other.class_ap, strict=True)]
    title = f"{other.files.name} − {first.files.name}: AP (points)"
    return {
        "data": [_points(data, group, changes, "change of AP") for group in "rcf"],
        "layout": layout(_counts(), axis(title)),
    }


def _counts() -> dict[str, Any]:
    return axis("training images with the class", type="log")


def _change(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _points(data: ReportData, group: str, values: list[float | None], label: str) -> dict[str, Any]:
    """Return the trace of a group's classes."""
    classes = data.classes
    shown = [
        i for i, value in enumerate(values) if classes.groups[i] == group and value is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": GROUP_TITLES[group],
        # A class without training images is shown at one half, left of those with one.
        "x": [classes.train_images[i] or 0.5 for i in shown],
        "y": [round(value, 2) for i in shown if (value := values[i]) is not None],
        "text": [classes.names[i] for i in shown],
        "customdata": [[classes.train_images[i], int(classes.objects[i])] for i in shown],
        "hovertemplate": "<b>%{text}</b><br>training images: %{customdata[0]}<br>objects here: "
        f"%{{customdata[1]}}<br>{label}: %{{y:.1f}}<extra></extra>",
        "marker": {"color": COLORS[group], "size": 7, "opacity": 0.75},
    }


def _filters() -> str:
    boxes = "".join(
        f'<label><input type="checkbox" class="group" value="{group}" checked> '
        f"{GROUP_TITLES[group]}</label>"
        for group in "rcf"
    )
    return (
        '<div class="filters"><input type="search" id="class-search" placeholder="search a class" '
        f'aria-label="search a class">{boxes}<span id="class-count"></span></div>'
    )


def _table(data: ReportData) -> str:
    first = data.runs[0]
    others = data.runs[1:]
    headers = ["class", "group", "training images", "objects", "AP"]
    headers += [f"Δ AP {run.files.name}" for run in others]
    headers += ["found", "confused", "missed", "false positives", "ECE"]
    head = "".join(f"<th><button>{escaped(header)}</button></th>" for header in headers)
    matrix, repeated = data.detail.confusion.matrix, data.detail.confusion.repeated
    false = matrix.sum(axis=0)[:-1] - matrix.diagonal()[:-1] + repeated.sum(axis=0)
    classes = data.classes
    rows = []
    for i, name in enumerate(classes.names):
        objects = matrix[i].sum()
        found, missed = matrix[i, i], matrix[i, -1]
        parts = [found, objects - found - missed, missed]
        changes = [_change(first.class_ap[i], run.class_ap[i]) for run in others]
        count = classes.train_images[i]
        row = [
            name,
            GROUP_TITLES[classes.groups[i]],
            "–" if count is None else count,
            int(classes.objects[i]),
            number(first.class_ap[i]),
            *(number(change, signed=True) for change in changes),
            *(number(100 * part / objects if objects else None, 0) for part in parts),
            int(false[i]),
            number(first.class_ece[i], 2),
        ]
        rows.append(f'<tr data-group="{classes.groups[i]}">{cells(row, 2)}</tr>')
    return (
        '<div class="scroll limited"><table id="class-table"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
