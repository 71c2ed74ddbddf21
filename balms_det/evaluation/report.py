"""Evaluation results as readable tables; a value that does not exist is shown as "-"."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from balms_det.annotations.frequency_groups import GROUP_NAMES

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")

_MAX_CLASSES_LISTED = 30


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with one row per task ("bbox", "segm") and the nine metrics.

    Args:
        results: task -> metric -> percent; negative where there is no ground truth to measure on.
    """
    rows = [
        [task, *(_cell(metrics.get(metric)) for metric in METRICS)]
        for task, metrics in results.items()
    ]
    return _table(["task", *METRICS], rows)


def format_per_class(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a summary by frequency group and, up to 30 classes, a row per class, most frequent
    first.

    A thousand classes would fill many screens: then only the summary is given, with the number of
    classes that the model never gets right.

    Args:
        records: one per class, as `LVISEvaluator` writes them to ``lvis_per_class.json``.
    """
    tasks = [task for task in ("bbox", "segm") if records and f"{task}_AP" in records[0]]
    summary = _format_groups(records, tasks)
    if len(records) > _MAX_CLASSES_LISTED:
        return summary
    rows = [
        [
            record["name"],
            record["frequency"],
            _cell(record["image_count"]),
            *(_cell(record[f"{task}_AP"]) for task in tasks),
        ]
        for record in sorted(records, key=lambda record: -(record["image_count"] or 0))
    ]
    headers = ["class", "group", "training images", *(f"{task} AP" for task in tasks)]
    return f"{summary}\n\n{_table(headers, rows)}"


def _format_groups(records: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    rows = []
    for group, name in GROUP_NAMES.items():
        members = [record for record in records if record["frequency"] == group]
        row = [name, len(members), 0]
        for task in tasks:
            scores = [r[f"{task}_AP"] for r in members if r[f"{task}_AP"] is not None]
            mean = sum(scores) / len(scores) if scores else None
            row[2] = len(scores)  # the same for every task: classes with ground truth
            row += [_cell(mean), scores.count(0.0)]
        rows.append(row)
    per_task = [header for task in tasks for header in (f"{task} AP", f"{task} AP = 0")]
    return _table(["group", "classes", "scored", *per_task], rows)


def _cell(value: float | None) -> str:
    if value is None or not value >= 0:  # also NaN
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = ["right"] * (len(headers) - 1)
    return str(
        tabulate(
            rows,
            headers,
            tablefmt="pipe",
            colalign=("left", *numeric) if rows else None,
            disable_numparse=True,
        )
    )
