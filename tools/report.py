"""Turn runs into tables: python tools/report.py OUTPUT_DIR|RUN.json ... [--save F] [--into F]

Every number in this project's documents comes from a stored run through this tool.

    python tools/report.py output/demo                       print the run's table as Markdown
    python tools/report.py output/demo --save docs/runs/quickstart.json
    python tools/report.py docs/runs/quickstart.json --into README.md
    python tools/report.py docs/runs/performance/*.json --into docs/performance/MEASUREMENTS.md
    python tools/report.py docs/runs/performance/*.json --operations
        --into docs/performance/OPERATIONS.md
    python tools/report.py docs/runs/performance/classes.json --plot docs/images/classes.png
    python tools/report.py docs/runs/performance/{heads,image,train,evaluation}.json
        --summary performance --into README.md

A file that tools/benchmark.py --json wrote is a run too; --plot draws its times against the number
of classes or proposals. --into replaces the text between <!-- report: RUN --> and <!-- /report -->
in a document, where RUN is the stored run's file name without .json. --operations makes the tables
of the time of each operation instead, and leaves out runs without such times. --summary makes one
short table of all given measurements, under the given name.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from balms_det.config.methods import method_table
from balms_det.config.reference import key_reference
from balms_det.evaluation.report import METRICS
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError
from lab import exported as exported_report
from lab import markdown
from lab.benchmark import report as benchmark_report
from lab.glyphs_lt.record import training_history, training_seconds
from lab.provenance import describe, environment


def load_run(path: Path) -> dict[str, Any]:
    """Return a stored run, or the run whose OUTPUT_DIR is `path`.

    Raises:
        InputError: there are no results.
    """
    if path.is_file():
        run = orjson.loads(path.read_bytes())
        return {"name": path.stem, "records": run} if isinstance(run, list) else run
    results = path / "inference" / "lvis_results.json"
    metrics = path / "metrics.json"
    if not (results.is_file() and metrics.is_file()):
        raise InputError(
            f"{path}: there is no finished run ({results} and {metrics} are needed); give the "
            "OUTPUT_DIR of a run that was evaluated"
        )
    history = training_history(path)
    return {
        "name": path.name,
        "results": orjson.loads(results.read_bytes()),
        "iterations": 1 + history[-1]["iteration"],
        "minutes_of_training": round(training_seconds(history) / 60, 1),
        **environment(),
    }


def trained_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return a table with a row for each run and task, and below it how each was made."""
    rows = [
        [run["name"], task, *("-" if scores[m] < 0 else f"{scores[m]:.1f}" for m in METRICS)]
        for run in runs
        for task, scores in run["results"].items()
    ]
    made = [
        f"{run['name']}: {run['iterations']} iterations, {run['minutes_of_training']} minutes "
        f"of training; {describe(run)}."
        for run in runs
    ]
    table = markdown.table(["run", "task", *METRICS], rows, left=(0, 1))
    return "\n".join([table, "", *made])


def _measurements(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for run in runs for record in run.get("records", [])]


def table(runs: Sequence[dict[str, Any]], *, operations: bool = False) -> str:
    """Return the tables of trained runs and of measurements, or of the latter's operations."""
    measured = _measurements(runs)
    if operations:
        return benchmark_report.operation_tables(measured)
    trained = [run for run in runs if "results" in run]
    exported = [run for run in runs if "exports" in run]
    tables = [
        *([benchmark_report.table(measured)] if measured else []),
        *([trained_table(trained)] if trained else []),
        *map(exported_report.table, exported),
    ]
    return "\n\n".join(tables)


def combinations_table() -> str:
    """Return the table of which methods go together, from trying all of them."""
    from lab import combinations  # It imports Detectron2, which takes seconds.

    return combinations.outcome_table(combinations.try_all())


# Blocks of documents that are made from the package itself.
GENERATED = {"keys": key_reference, "methods": method_table, "combinations": combinations_table}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="OUTPUT_DIR|RUN.json")
    parser.add_argument("--keys", action="store_true", help="the reference of configuration keys")
    parser.add_argument("--methods", action="store_true", help="the table of methods")
    parser.add_argument(
        "--combinations", action="store_true", help="the table of which methods go together"
    )
    parser.add_argument("--save", type=Path, metavar="RUN.json", help="store the (one) run")
    parser.add_argument("--into", type=Path, metavar="DOCUMENT.md", help="update its table")
    parser.add_argument("--operations", action="store_true", help="tables by operation instead")
    parser.add_argument("--summary", metavar="NAME", help="one short table of all measurements")
    parser.add_argument("--plot", type=Path, metavar="PLOT.png", help="draw measurements")
    args = parser.parse_args(argv)

    generated = {name: make for name, make in GENERATED.items() if getattr(args, name)}
    if generated:
        if not args.into:
            parser.error(f"--{next(iter(generated))} needs --into DOCUMENT.md")
        markdown.update_blocks(args.into, {name: make() for name, make in generated.items()})
        return
    if not args.runs:
        parser.error("no run is given: name the OUTPUT_DIR of a run, or a stored run")
    runs = [load_run(path) for path in args.runs]
    if args.plot:
        benchmark_report.plot_scaling(_measurements(runs), str(args.plot))
    if args.save:
        if len(runs) != 1:
            raise InputError(f"--save stores one run, but {len(runs)} are given; give one")
        runs[0]["name"] = args.save.stem
        with atomic_file(args.save) as file:
            file.write(orjson.dumps(runs[0], option=orjson.OPT_INDENT_2))
    summary = benchmark_report.summary(_measurements(runs)) if args.summary else None
    if not args.into:
        print(summary or table(runs, operations=args.operations))
    elif summary:
        markdown.update_blocks(args.into, {args.summary: summary})
    else:
        tables = {run["name"]: table([run], operations=args.operations) for run in runs}
        markdown.update_blocks(args.into, {name: text for name, text in tables.items() if text})


if __name__ == "__main__":
    run_tool(main)
