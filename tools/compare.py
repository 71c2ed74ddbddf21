"""Run methods on the benchmark Glyphs-LT, or on photographs, and write docs/RESULTS.md.

    python tools/compare.py --suite glyphs_lt_cpu --methods rfs balsig --seeds 1 2 3 --jobs 2
    python tools/compare.py --suite glyphs_lt_cpu --ablation margin --seeds 1
    python tools/compare.py --suite ccp_lt_cpu --photos datasets/ccp_lt --methods rfs balsig
    python tools/compare.py --report
    python tools/compare.py --report --into README.md

Data and pretrained weights are made on the way, and what a method starts from is run first. Runs
that are stored already are left as they are; one that was interrupted, or stopped by --minutes,
continues where it stopped when the same command is given again. Each result is one file in
docs/runs/glyphs_lt/SUITE/. --into puts a short table of the suite between <!-- report: SUITE -->
and <!-- /report --> in another document.
"""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import orjson

from balms_det.evaluation import read_predictions
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError
from lab import markdown
from lab.glyphs_lt import intervals, page
from lab.glyphs_lt.ablations import ABLATIONS, methods_named
from lab.glyphs_lt.data import Photographs
from lab.glyphs_lt.methods import METHODS
from lab.glyphs_lt.plan import OutOfTime, Run, Workspace, is_stored, predictions_file
from lab.glyphs_lt.runs import perform, registered_data
from lab.glyphs_lt.suites import SUITES, Suite, suite_named

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="glyphs_lt_cpu", metavar="|".join(SUITES))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help=f"default: all of {', '.join(METHODS)}; or the variants of the ablation",
    )
    parser.add_argument(
        "--ablation", default="", metavar="NAME", help=f"one of {', '.join(ABLATIONS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: 1 2 3")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after this time; run again to continue",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at the same time (default: 1)"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="of a suite of photographs: what datasets/prepare_ccp.py wrote",
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("output/glyphs_lt"), metavar="DIR")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "docs" / "runs" / "glyphs_lt", metavar="DIR"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "RESULTS.md", metavar="FILE")
    parser.add_argument(
        "--report", action="store_true", help="run nothing; write the page from the stored runs"
    )
    parser.add_argument("--into", type=Path, metavar="DOCUMENT.md", help="update its short table")
    return parser.parse_args(argv)


def perform_all(runs: Sequence[Run], workspace: Workspace, folder: Path, jobs: int) -> None:
    """Perform runs, `jobs` at a time; the first that fails ends those that have not begun."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(perform, run, workspace, folder, root=ROOT): run for run in runs}
        try:
            for future in as_completed(futures):
                run, result = futures[future], future.result()
                metrics = result["caps"][str(result["cap"])]["segm"]
                values = " ".join(f"{m} {metrics[m]:.1f}" for m in intervals.METRICS)
                print(f"{run.method.name}, seed {run.seed}: {values}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def compare_with_base(
    suite: Suite, seeds: Sequence[int], workspace: Workspace, folder: Path
) -> None:
    """Store the intervals of all methods of which every seed's predictions are at hand."""
    path = folder / suite.name / page.INTERVALS
    stored: dict[str, Any] = orjson.loads(path.read_bytes()) if path.is_file() else {}

    def complete(name: str) -> list[Run] | None:
        runs = [Run(suite, METHODS[name], seed) for seed in seeds]
        there = all(is_stored(r, folder) and predictions_file(r, workspace).is_file() for r in runs)
        return runs if there else None

    def predictions(runs: Sequence[Run]) -> list[Any]:
        return [read_predictions(predictions_file(run, workspace)) for run in runs]

    baseline = complete(suite.base)
    if baseline is None:
        return
    base_keys = [run.key() for run in baseline]
    if stored.get("base_keys") != base_keys:
        stored = {"baseline": suite.base, "base_keys": base_keys, "confidence": 0.95}
        stored |= {"seeds": list(seeds), "methods": {}}
    _, annotations = registered_data(baseline[0], workspace)
    base_predictions = predictions(baseline)
    for name in METHODS:
        runs = complete(name)
        keys = [run.key() for run in runs or ()]
        if (
            runs is None
            or name == suite.base
            or stored["methods"].get(name, {}).get("keys") == keys
        ):
            continue
        print(f"{name}: intervals of the difference from {suite.base}", flush=True)
        cap = orjson.loads(runs[0].stored(folder).read_bytes())["cap"]
        compared = intervals.differences(
            annotations, base_predictions, predictions(runs), cap=cap, confidence=0.95
        )
        stored["methods"][name] = {"keys": keys, **compared}
        with atomic_file(path) as file:
            file.write(orjson.dumps(stored, option=orjson.OPT_INDENT_2))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    suite = suite_named(args.suite)
    methods = methods_named(args.methods, args.ablation)
    seeds = args.seeds or list(suite.seeds)
    if args.ablation and isinstance(suite.data, Photographs):
        raise InputError(
            f"--ablation is {args.ablation!r}, but --suite {suite.name} has no ablations; choose "
            "a suite of glyphs"
        )
    if not args.report:
        workspace = Workspace(
            args.output.resolve(),
            ROOT / "tools" / "train_net.py",
            workers=os.cpu_count() or 1,
            # Runs at the same time must not meet at one port.
            arguments=("--num-gpus", str(args.num_gpus), "--dist-url", "auto"),
            deadline=time.monotonic() + 60 * args.minutes,
            photos=args.photos and args.photos.resolve(),
        )
        # Seed by seed, so that a table with every method is there as early as can be; first those
        # that others start from.
        runs = [Run(suite, method, seed, args.ablation) for seed in seeds for method in methods]
        runs.sort(key=lambda run: (run.seed, run.base is not None))
        try:
            perform_all(runs, workspace, args.runs, args.jobs)
            if not args.ablation:
                compare_with_base(suite, seeds, workspace, args.runs)
        except OutOfTime:
            print("The time is over; the same command continues from here.")
    page.write_page(args.runs, args.page)
    print(f"Wrote {args.page}.")
    if args.into:
        markdown.update_blocks(args.into, {suite.name: page.short_table(suite, args.runs)})


if __name__ == "__main__":
    run_tool(main)
