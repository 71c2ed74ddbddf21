"""Stored measurements as tables and figures."""

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from balms_det.runtime.errors import InputError
from balms_det.runtime.figures import save_figure
from lab import markdown
from lab.provenance import describe_versions

Record = Mapping[str, Any]

_OPERATIONS = 5  # of each side, that have rows


def table(records: Sequence[Record]) -> str:
    """Return a table with a row for each record, and below it machine, versions and commands."""
    varied = [name for name in _sizes(records) if len({r["sizes"].get(name) for r in records}) > 1]
    counted = any("ours_arithmetic_s" in record for record in records)
    arithmetic = ["arithmetic", "peer's arithmetic"] if counted else []
    headers = [
        *("work", *varied, "peer", "ours", "peer's", "ratio"),
        *(*arithmetic, "peak MB", "peer's MB", "diff."),
    ]
    rows = []
    for record in records:
        rows.append(
            [
                _name(record),
                *(_cell(record["sizes"].get(size), ",") for size in varied),
                record["peer"],
                _seconds(record, "ours"),
                _seconds(record, "peer"),
                _cell(record["ratio"], ".3g"),
                *(
                    _time(record.get(f"{side}_arithmetic_s"))
                    for side in ("ours", "peer")
                    if counted
                ),
                _cell(record["ours_peak_mb"], ".0f"),
                _cell(record["peer_peak_mb"], ".0f"),
                _difference(record),
            ]
        )
    lines = markdown.table(headers, rows, left=(0, headers.index("peer")))
    return "\n".join([lines, "", *_circumstances(records)])


def operation_tables(records: Sequence[Record]) -> str:
    """Return the time of each operation, a table for each record, and how it was measured.

    Records without times of operations have no table; without any such record, the result is
    empty.
    """
    timed = [record for record in records if "ours_operations_s" in record]
    return "\n".join([*map(_operations, timed), *_circumstances(timed)]) if timed else ""


def _operations(record: Record) -> str:
    """Return the time of both sides by operation, the longest first."""
    ours, peer = record["ours_operations_s"], record["peer_operations_s"] or {}
    chosen: set[str] = set()
    for times in (ours, peer):
        chosen.update(sorted(times.keys() - {"other"}, key=times.__getitem__)[-_OPERATIONS:])
    names = sorted(chosen, key=lambda name: (-max(ours.get(name, 0), peer.get(name, 0)), name))
    names.append("other")
    rows = []
    for times in (ours, peer):
        rest = sum(times.values()) - sum(times.get(name, 0) for name in names[:-1])
        rows.append([*(times.get(name) for name in names[:-1]), rest if times else None])
    rows = [[name, *map(_time, pair)] for name, *pair in zip(names, *rows, strict=True)]
    table = markdown.table(["operation", "ours", "peer's"], rows)
    return f"{_name(record)}:\n\n{table}\n"


def summary(records: Sequence[Record]) -> str:
    """Return a table of speed and memory relative to the peer, with a row for each record.

    Records without a peer's time are left out. "-" marks a value that was not measured or not
    compared.
    """
    rows = [
        [
            _name(record),
            record["peer"],
            f"{_time(record['peer_s'])} → {_time(record['ours_s'])}",
            f"{record['ratio']:.3g}",
            _share(record["ours_peak_mb"], record["peer_peak_mb"]),
            _difference(record),
        ]
        for record in records
        if record["ratio"] is not None
    ]
    headers = ["work", "peer", "time", "speedup", "memory ratio", "diff."]
    machines = dict.fromkeys(record["machine"] for record in records)
    return markdown.table(headers, rows, left=(0, 1)) + f"\n\n{'; '.join(machines)}."


def plot_scaling(records: Sequence[Record], path: str) -> None:
    """Draw times and peak memory, ours and the peer's, against the size that varies.

    Raises:
        InputError: no size takes several values, or the file cannot be written.
    """
    size = next(
        (n for n in ("classes", "proposals") if len({r["sizes"].get(n) for r in records}) > 1), None
    )
    if size is None:
        raise InputError(
            "there is nothing to plot over: all records have the same number of classes and of "
            "proposals; measure several with tools/benchmark.py WORK --classes 80 365 1203"
        )
    series = defaultdict(list)
    for record in records:
        if size in record["sizes"]:
            series[record["work"], record["variant"]].append(record)
    figure = Figure(figsize=(3.4 * len(series), 5.6), layout="constrained")
    axes = figure.subplots(2, len(series), squeeze=False)
    for column, ((work, variant), measured) in zip(axes.T, series.items(), strict=True):
        measured.sort(key=lambda record: record["sizes"][size])
        for row, (quantity, label) in zip(
            column, (("{}_s", "seconds"), ("{}_peak_mb", "peak memory, MB")), strict=True
        ):
            for side, name, color in (
                ("ours", "ours", "#0072b2"),
                ("peer", measured[0]["peer"], "#d55e00"),
            ):
                points = [(r["sizes"][size], r[quantity.format(side)]) for r in measured]
                points = [(n, value) for n, value in points if value is not None]
                row.plot(*zip(*points, strict=True), "o-", color=color, label=name, markersize=4)
            row.set_xscale("log")
            row.set_yscale("log")
            row.set_xlabel(size)
            row.set_ylabel(label)
            row.spines[["top", "right"]].set_visible(False)
        column[0].set_title(f"{work}\n{textwrap.fill(variant, 36)}", fontsize=10)
        column[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path, dpi=120)


def _name(record: Record) -> str:
    precision = "" if record["dtype"] == "float32" else record["dtype"]
    return ", ".join(part for part in (record["work"], record["variant"], precision) if part)


def _sizes(records: Sequence[Record]) -> list[str]:
    """Return the names of the sizes, in the order in which they occur."""
    return list(dict.fromkeys(name for record in records for name in record["sizes"]))


def _circumstances(records: Sequence[Record]) -> list[str]:
    """Return sentences on how the records were measured, and the commands as a code block."""
    sizes: dict[str, set[int]] = defaultdict(set)
    for record in records:
        for name, value in record["sizes"].items():
            sizes[name].add(value)
    same = [f"{value:,} {name}" for name, values in sizes.items() for value in values]
    fixed = [text for text in same if len(sizes[text.split()[1]]) == 1]
    repeats = sorted({str(record["repeat"]) for record in records})
    if repeats == ["1"]:
        measured = "times of a single run"
    else:
        runs = " or ".join(repeats)
        measured = f"medians of {runs} runs, in parentheses the fastest and the slowest"
    conditions = [", ".join(fixed)] if fixed else []
    conditions += [measured, "memory without model and input"]
    lines = [f"{'; '.join(conditions)}."]
    parts = {r["peer_part"]: r["peer"] for r in records if "peer_part" in r}
    for part, peer in parts.items():
        lines.append(f"{peer} did {part:.3g} of the work; its time is scaled to the whole.")
    for machine in dict.fromkeys(record["machine"] for record in records):
        lines.append(f"{machine}.")
    for versions in dict.fromkeys(map(describe_versions, records)):
        lines.append(f"{versions}.")
    commands = dict.fromkeys(record["command"] for record in records)
    return [" ".join(lines), "", "```", *commands, "```"]


def _seconds(record: Record, side: str) -> str:
    """Return a median with its range, or why there is none."""
    median = record[f"{side}_s"]
    if median is None:
        return record.get("peer_error", "-")
    scale = _scale(median)[0]
    low, high = (scale * value for value in record[f"{side}_range_s"])
    return f"{_time(median)} ({low:.3g} to {high:.3g})"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    scale, unit = _scale(seconds)
    return f"{scale * seconds:.3g} {unit}"


def _scale(seconds: float) -> tuple[int, str]:
    return (1, "s") if seconds >= 1 else (1000, "ms")


def _share(ours: float | None, peer: float | None) -> str:
    return "-" if ours is None or not peer else f"{ours / peer:.2g}"


def _difference(record: Record) -> str:
    """Return the largest difference; several that are not zero with their names."""
    largest = _cell(record["max_abs_diff"], ".1e", zero="0")
    if not record["max_abs_diff"] or "differences" not in record:
        return largest
    return ", ".join(f"{value:.1e} {name}" for name, value in record["differences"].items())


def _cell(value: float | None, form: str, zero: str | None = None) -> str:
    if value is None:
        return "-"
    return zero if zero is not None and value == 0 else f"{value:{form}}"
