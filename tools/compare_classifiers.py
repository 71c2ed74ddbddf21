"""Compare methods of long-tailed classification: python tools/compare_classifiers.py digits_lt

Trains every method of a suite at every imbalance with every seed, and stores one JSON file for
each run; a run that is stored already is skipped, and an interrupted run continues. A second
stage starts from the first stage of its seed, which is trained once.

    python tools/compare_classifiers.py digits_lt --seeds 5
    python tools/compare_classifiers.py cifar10_lt --opts DATA.ROOT /data/cifar
    python tools/compare_classifiers.py --report docs/CLASSIFICATION.md

--report updates the tables of a document, which stand between <!-- report: SUITE --> and
<!-- /report -->, and draws the plots beside it.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import orjson

from balms_det.classification import Trainer, load_config
from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError
from balms_det.runtime.memory import keep_freed_memory
from lab.classification.report import (
    comparison_table,
    plot_marginals,
    provenance,
    throughput_table,
)
from lab.classification.results import load_runs, run_file, store_run
from lab.markdown import update_blocks

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "runs" / "classification"

logger = logging.getLogger("balms_det")

FIRST_STAGE = "softmax"
CORE = (FIRST_STAGE, "balanced_softmax", "decoupled_balanced_softmax", "balms")
METHODS = (
    FIRST_STAGE, "cbw", "cbs", "focal", "cb", "ldam", "eql", "crt", "lws", "balanced_softmax",
    "decoupled_balanced_softmax", "balanced_softmax_cbs", "balms",
)  # fmt: skip
# By suite, the methods and imbalance factors that it compares; the first stage comes first.
SUITES = {
    "digits_lt": (METHODS, (100, 50, 10)),
    "cifar10_lt_cpu": (CORE, (200, 100, 10)),
    "cifar10_lt_cpu_long": (CORE, (200, 100, 10)),
    "cifar10_lt": (METHODS, (200, 100, 10)),
    "cifar100_lt": (METHODS, (200, 100, 10)),
}


def run(suite: str, method: str, imbalance: int, seed: int, opts: Sequence[str]) -> Trainer:
    """Train, or go on with, one run, and before it the first stage that it needs."""
    place = ["IMBALANCE", str(imbalance), "SEED", str(seed)]
    cfg = load_config(f"{suite}+{method}", [*opts, *place])
    if cfg.MODEL.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).is_file():
        run(suite, FIRST_STAGE, imbalance, seed, opts)
    trainer = Trainer(cfg)
    trainer.resume()
    trainer.train()
    return trainer


def compare(args: argparse.Namespace) -> None:
    """Store the runs of a suite that are not stored yet."""
    keep_freed_memory()
    methods, imbalances = SUITES[args.suite]
    for imbalance in args.imbalances or imbalances:
        for seed in range(args.seeds):
            for method in args.methods or methods:
                path = run_file(args.runs, args.suite, method, imbalance, seed)
                if path.is_file():
                    continue
                trainer = run(args.suite, method, imbalance, seed, args.opts)
                results = trainer.test()
                store_run(path, args.suite, method, trainer, results)
                logger.info(
                    "%s: accuracy %.1f %%, smallest class %d, %.0f s of training",
                    path.stem,
                    100 * results.accuracy,
                    trainer.stats.image_counts.min(),
                    trainer.seconds,
                )


def update(document: Path, folder: Path) -> None:
    """Put the tables of all stored runs into `document`, and their plots beside it.

    Raises:
        InputError: the document lacks the markers of a table.
    """
    published = orjson.loads((folder / "published.json").read_bytes())
    tables = {}
    for suite, (methods, imbalances) in SUITES.items():
        runs = load_runs(folder, suite)
        numbers = published["accuracy"].get(suite.partition("_cpu")[0], {})
        parts = [comparison_table(runs, methods, imbalances, numbers)]
        if runs:
            plot = Path("images") / f"{suite}_marginals.png"
            plot_marginals(runs, methods, imbalances, document.parent / plot)
            parts += [provenance(runs), f"![Marginal likelihood of the labels, by method]({plot})"]
        tables[suite] = "\n\n".join(parts)
    throughput = folder / "throughput.json"
    tables["throughput"] = throughput_table(orjson.loads(throughput.read_bytes()))
    update_blocks(document, tables)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", choices=SUITES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: the suite's")
    parser.add_argument("--imbalances", nargs="+", type=int, help="default: the suite's")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 (default: 1)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="directory of the stored runs")
    parser.add_argument("--report", type=Path, metavar="DOCUMENT.md", help="update its tables")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings of every run"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.suite:
        compare(args)
    if args.report:
        update(args.report, args.runs)
    if not (args.suite or args.report):
        raise InputError("neither a suite nor --report is given; give one of them")


if __name__ == "__main__":
    run_tool(main)
