"""Train a classifier on a long tail, and test it.

    balms-det classify --config-file digits_lt+balms \\
        IMBALANCE 100

A second stage needs its first stage's checkpoint: train digits_lt+softmax first, with the same
IMBALANCE and SEED. Checkpoints and results.json are in OUTPUT_DIR. Keys and their meaning are in
balms_det/classification/options.py.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from balms_det.runtime.arguments import add_overrides

logger = logging.getLogger("balms_det")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE.yaml")
    parser.add_argument("--resume", action="store_true", help="continue OUTPUT_DIR's run")
    add_overrides(parser)
    args = parser.parse_args(argv)
    # Seconds to import, which help does not need.
    import orjson

    from balms_det.classification import Trainer, load_config
    from balms_det.runtime.atomic_file import atomic_file
    from balms_det.runtime.memory import keep_freed_memory

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    cfg = load_config(args.config_file, args.opts)
    trainer = Trainer(cfg)
    counts = trainer.stats.image_counts
    logger.info(
        "%d training images; the largest class has %d, the smallest %d",
        counts.sum(),
        counts.max(),
        counts.min(),
    )
    if args.resume:
        trainer.resume()
    trainer.train()
    results = trainer.test()
    with atomic_file(Path(cfg.OUTPUT_DIR, "results.json")) as file:
        file.write(orjson.dumps(results.to_dict(), option=orjson.OPT_INDENT_2))
    groups = ((name, getattr(results, name)) for name in ("many", "medium", "few"))
    shown = ", ".join(f"{name} {100 * score:.1f}" for name, score in groups if score is not None)
    logger.info(
        "accuracy %.1f %% (%s); results are in %s", 100 * results.accuracy, shown, cfg.OUTPUT_DIR
    )
