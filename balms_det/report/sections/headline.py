"""AP, APr, APc and APf with their intervals, and the differences from other runs."""

from balms_det.report.data import ReportData
from balms_det.report.html import (
    RUN_COLORS,
    Section,
    axis,
    figure,
    layout,
    paragraph,
    table,
    with_interval,
)

METRICS = ("AP", "APr", "APc", "APf", "AP50", "AP75")
PLOTTED = METRICS[:4]
TASK_TITLES = {"bbox": "boxes", "segm": "masks"}


def section(data: ReportData) -> Section:
    intro = (
        f"Average precision (AP) of {TASK_TITLES[data.task]} in percent, on {data.num_images} "
        "images: over all classes, and over the rare (APr), common (APc) and frequent (APf) ones."
    )
    if data.bootstrap:
        intro += (
            f" ± is half of a 95 % interval, from {data.bootstrap} bootstrap samples of the images."
        )
    rows = []
    for run in data.runs:
        for task, scores in reversed(run.scores.items()):
            known = run.intervals if task == data.task else {}
            values = [with_interval(scores[metric], known.get(metric)) for metric in METRICS]
            rows.append([run.files.name, TASK_TITLES[task], *values])
    body = paragraph(intro) + table(["run", "task", *METRICS], rows, left=2)
    body += figure("headline") + _differences(data)
    return Section("headline", "Summary", body, {"headline": _bars(data)})


def _bars(data: ReportData) -> dict[str, object]:
    """Return the figure of the runs' AP by group."""
    traces = []
    for index, run in enumerate(data.runs):
        scores = run.scores[data.task]
        values = [max(scores[metric], 0) for metric in PLOTTED]
        trace = {
            "type": "bar",
            "name": run.files.name,
            "x": list(PLOTTED),
            "y": values,
            "marker": {"color": RUN_COLORS[index % len(RUN_COLORS)]},
            "hovertemplate": "%{x}: %{y:.2f}<extra>%{fullData.name}</extra>",
        }
        if run.intervals:
            half_widths = [run.intervals.get(metric, 0) for metric in PLOTTED]
            trace["error_y"] = {"type": "data", "array": half_widths}
        traces.append(trace)
    return {"data": traces, "layout": layout(axis(""), axis("percent", rangemode="tozero"))}


def _differences(data: ReportData) -> str:
    compared = [run for run in data.runs if run.difference is not None]
    if not compared:
        return ""
    rows = []
    for run in compared:
        found = run.difference
        assert found is not None, "it is one of those"
        row = [
            with_interval(found.change.get(m), found.half_width.get(m), signed=True)
            for m in METRICS
        ]
        better = found.better.get("AP")
        rows.append([run.files.name, *row, "–" if better is None else f"{better:.0%}"])
    text = (
        f"Difference from {data.runs[0].files.name} on the same images, in percentage points. "
        "An interval that contains 0 shows no difference. The last column is the part of the "
        "bootstrap samples in which the run has the higher AP."
    )
    return paragraph(text) + table(["run", *METRICS, "AP is higher"], rows)
