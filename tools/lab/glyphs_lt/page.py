"""Write docs/RESULTS.md: tables and figures that are computed from the stored runs alone."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from balms_det.runtime.errors import InputError
from lab import markdown
from lab.glyphs_lt import plots
from lab.glyphs_lt.ablations import ABLATIONS
from lab.glyphs_lt.intervals import METRICS
from lab.glyphs_lt.methods import METHODS
from lab.glyphs_lt.suites import SUITES, Suite
from lab.provenance import describe

StoredRun = Mapping[str, Any]
Runs = dict[str, list[StoredRun]]  # method -> its runs, in the order of their seeds

INTERVALS = "intervals.json"
# Few enough to be told apart in a figure.
_DRAWN = (
    "rfs", "norcal", "eql", "crt", "seesaw", "balsoftmax", "balsig", "decoupled_balsig", "balms",
)  # fmt: skip
_STAGES = {
    "joint": "joint",
    "second": "second stage on {base}",
    "test": "test time, on {base}",
}


def _at_cap(task: str, metric: str) -> Callable[[StoredRun], float]:
    return lambda run: float(run["caps"][str(run["cap"])][task][metric])


def _rarest_third(run: StoredRun) -> float:
    """Return the mean AP of the third of the classes with the fewest training images, or -1.

    This group exists at any imbalance, unlike LVIS's groups.
    """
    counts = run["classes"]["image_count"]
    rarest = sorted(range(len(counts)), key=counts.__getitem__)[: len(counts) // 3]
    aps = [run["per_class"]["segm_AP"][index] for index in rarest]
    measured = [ap for ap in aps if ap is not None]
    return statistics.mean(measured) if measured else -1.0


_AP_COLUMNS = {metric: _at_cap("segm", metric) for metric in METRICS}
_FIXED_COLUMN = {"AP-Fixed": lambda run: float(run["fixed"]["segm"]["AP"])}
_MAIN_COLUMNS = {**_AP_COLUMNS, **_FIXED_COLUMN, "box AP": _at_cap("bbox", "AP")}
_ABLATION_COLUMNS = {**_AP_COLUMNS, "rarest third": _rarest_third, **_FIXED_COLUMN}

_INTRODUCTION = """\
# Results

`tools/compare.py` generates this page from the runs that are stored in `docs/runs/glyphs_lt/`.
[GLYPHS_LT.md](GLYPHS_LT.md) describes the benchmark and how to run any row again;
[METHODS.md](METHODS.md) says which method to choose. Values are percent: the mean over seeds ± the
standard deviation. APr, APc and APf are the AP of LVIS's groups of rare, common and frequent
classes.
"""


def load_runs(folder: Path, order: Sequence[str]) -> Runs:
    """Return the stored runs of a directory by method, in the given order."""
    runs: Runs = {name: [] for name in order}
    for path in sorted(folder.glob("*-s*.json")):
        run = orjson.loads(path.read_bytes())
        runs.setdefault(run["method"], []).append(run)
    return {
        name: sorted(of_method, key=lambda run: run["seed"])
        for name, of_method in runs.items()
        if of_method
    }


def write_page(runs_dir: Path, page: Path) -> None:
    """Write the page, and its figures in images/ beside it.

    Args:
        runs_dir: ``docs/runs/glyphs_lt``.
        page: ``docs/RESULTS.md``.
    """
    parts = [_INTRODUCTION]
    for suite in SUITES.values():
        folder = runs_dir / suite.name
        runs = load_runs(folder, list(METHODS))
        parts.append(f"## {suite.name}\n")
        if not runs:
            parts.append("This suite is defined but not run yet.\n")
            continue
        parts += _of_suite(suite, runs, folder, page)
        for name, ablation in ABLATIONS.items():
            variants = load_runs(folder / name, [variant.name for variant in ablation.variants])
            if variants:
                parts.append(f"### {ablation.question}\n")
                parts.append(f"`--suite {suite.name} --ablation {name}`\n")
                parts.append(_table(_with_bases(variants, runs), _ABLATION_COLUMNS) + "\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def short_table(suite: Suite, runs_dir: Path) -> str:
    """Return a table of a few methods' AP, with machine and versions, for another document.

    Raises:
        InputError: no run of the suite is stored.
    """
    runs = load_runs(runs_dir / suite.name, list(METHODS))
    if not runs:
        raise InputError(f"{runs_dir / suite.name} holds no runs; run the suite without --report")
    drawn = {name: runs[name] for name in _DRAWN if name in runs}
    first = next(iter(runs.values()))[0]
    return (
        _table(drawn, _AP_COLUMNS)
        + f"\n\n{suite.name}, masks, percent, mean ± standard deviation; {describe(first)}."
    )


def _of_suite(suite: Suite, runs: Runs, folder: Path, page: Path) -> list[str]:
    cap = next(iter(runs.values()))[0]["cap"]
    parts = [
        f"AP of masks; the {cap} best detections of each image count.\n",
        _table(runs, _MAIN_COLUMNS) + "\n",
    ]
    path = folder / INTERVALS
    if path.is_file():
        parts += _intervals(orjson.loads(path.read_bytes()), runs)
    parts += [
        "### AP against the cap on detections\n",
        _caps_table(runs, "AP") + "\n",
        _caps_table(runs, "APr") + "\n",
        "### AP-Fixed\n",
        f"The {suite.class_budget} best detections of each class over the whole validation set "
        f"count, without a cap per image (arXiv:2102.01066). They are chosen among the "
        f"{suite.stored} stored detections of each image.\n",
        markdown.table(
            ["method", *METRICS],
            [
                [_title(of_method), *_cells(of_method, lambda run: run["fixed"]["segm"])]
                for of_method in runs.values()
            ],
        )
        + "\n",
    ]
    drawn = {name: runs[name] for name in _DRAWN if name in runs}
    joint = {name: r for name, r in runs.items() if r[0]["stage"] == "joint"}
    figures: list[tuple[str, str, Callable[[Path], None]]] = [
        (
            "ap_by_frequency",
            "AP of each class against its training images",
            lambda path: plots.plot_ap_by_frequency(drawn, path),
        ),
        (
            "apr_by_cap",
            "APr against the cap",
            lambda path: plots.plot_ap_by_cap(drawn, path, "APr"),
        ),
        (
            "predicted_labels",
            "Which classes fill the detections",
            lambda path: plots.plot_predicted_labels(drawn, path),
        ),
        (
            "learning_curves",
            "Learning curves of joint training",
            lambda path: plots.plot_learning_curves(joint, path),
        ),
    ]
    parts.append("### Figures\n")
    for name, caption, draw in figures:
        relative = f"images/{suite.name}_{name}.png"
        draw(page.parent / relative)
        parts.append(f"![{caption}]({relative})\n\n{caption}.\n")
    parts += ["### Commands, time and commits\n", _provenance(runs) + "\n"]
    return parts


def _table(runs: Runs, columns: Mapping[str, Callable[[StoredRun], float]]) -> str:
    rows = []
    for of_method in runs.values():
        rows.append(
            [
                _title(of_method),
                _STAGES[of_method[0]["stage"]].format(base=of_method[0]["base"]),
                *(
                    _mean_deviation([value_of(run) for run in of_method])
                    for value_of in columns.values()
                ),
                str(len(of_method)),
            ]
        )
    return markdown.table(["method", "trained", *columns, "seeds"], rows, left=(0, 1))


def _with_bases(variants: Runs, runs: Runs) -> Runs:
    """Return the variants, with the base before each that only corrects it at test time."""
    shown: Runs = {}
    for name, of_variant in variants.items():
        base = of_variant[0]["base"]
        if of_variant[0]["stage"] == "test" and base in runs:
            seeds = [run["seed"] for run in of_variant]
            shown[base] = [run for run in runs[base] if run["seed"] in seeds]
        shown[name] = of_variant
    return shown


def _caps_table(runs: Runs, metric: str) -> str:
    caps = sorted({int(cap) for r in runs.values() for run in r for cap in run["caps"]})
    rows = [
        [
            _title(of_method),
            *(
                _mean_deviation([run["caps"][str(cap)]["segm"][metric] for run in of_method])
                for cap in caps
            ),
        ]
        for of_method in runs.values()
    ]
    return markdown.table([f"{metric}, detections per image:", *map(str, caps)], rows)


def _intervals(stored: Mapping[str, Any], runs: Runs) -> list[str]:
    titles = {name: _title(of_method) for name, of_method in runs.items()}
    rows = []
    for name in titles:
        compared = stored["methods"].get(name)
        if compared:
            rows.append(
                [
                    titles[name],
                    *(
                        "{difference:+.1f} [{lower:+.1f}, {upper:+.1f}]".format(**compared[metric])
                        for metric in METRICS
                    ),
                ]
            )
    baseline = titles[stored["baseline"]]
    return [
        f"### Differences from {baseline}\n",
        f"With {stored['confidence']:.0%} bootstrap intervals over images; the runs of seeds "
        f"{', '.join(map(str, stored['seeds']))} are pooled.\n",
        markdown.table(["method", *METRICS], rows) + "\n",
    ]


def _provenance(runs: Runs) -> str:
    rows = []
    for of_method in runs.values():
        minutes = statistics.mean(run["minutes_of_training"] for run in of_method)
        rows.append(
            [
                _title(of_method),
                f"`--methods {of_method[0]['method']}`",
                str(of_method[0]["iterations"]),
                f"{minutes:.1f}",
                ", ".join(sorted({str(run["commit"]) for run in of_method})),
            ]
        )
    first = next(iter(runs.values()))[0]
    return (
        markdown.table(
            ["method", "command", "iterations", "minutes", "commit"], rows, left=(0, 1, 4)
        )
        + f"\n\nOn {describe(first)}."
    )


def _title(of_method: Sequence[StoredRun]) -> str:
    return str(of_method[0]["title"])


def _cells(
    of_method: Sequence[StoredRun], metrics_of: Callable[[StoredRun], Mapping[str, float]]
) -> list[str]:
    return [_mean_deviation([metrics_of(run)[metric] for run in of_method]) for metric in METRICS]


def _mean_deviation(values: Sequence[float]) -> str:
    if min(values) < 0:
        return "-"  # no ground truth to measure on
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
