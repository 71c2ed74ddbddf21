"""TIDE's types of error by frequency group (Bolya et al., arXiv:2008.08115)."""

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
from balms_det.report.sections.headline import TASK_TITLES

TYPES = {
    "Cls": "confused: on an object of another class",
    "Loc": "misplaced: overlaps its object too little",
    "Both": "confused and misplaced",
    "Dupe": "duplicate of a right detection",
    "Bkg": "on the background",
    "Miss": "object that no detection finds",
}
SPECIAL = {"FP": "all false positives", "FN": "all objects that are not found"}


def section(data: ReportData) -> Section:
    tide = data.detail.tide
    text = (
        f"TIDE on {TASK_TITLES[data.cause_task]}: how many percentage points AP50 would rise if "
        "all errors of one type were repaired. The types overlap in their effect, so that they do "
        "not add up to 100 − AP50. FP and FN repair all false positives or all missed objects."
    )
    names = {**TYPES, **SPECIAL}
    rows = [
        [name, meaning, *(number(tide[group][name], 2, signed=True) for group in tide)]
        for name, meaning in names.items()
    ]
    rows.append(["AP50", "as it is", *(number(tide[group]["AP50"], 2) for group in tide)])
    headers = ["error", "meaning", *(GROUP_TITLES[group] for group in tide)]
    bars = [
        {
            "type": "bar",
            "name": GROUP_TITLES[group],
            "x": list(names),
            "y": [changes[name] for name in names],
            "marker": {"color": COLORS[group]},
            "hovertemplate": "%{x}: %{y:+.2f}<extra>%{fullData.name}</extra>",
        }
        for group, changes in tide.items()
    ]
    layouts = layout(axis("error that is repaired"), axis("AP50 gained (points)"))
    body = paragraph(text) + figure("tide") + table(headers, rows, left=2)
    return Section("errors", "Errors by type", body, {"tide": {"data": bars, "layout": layouts}})
