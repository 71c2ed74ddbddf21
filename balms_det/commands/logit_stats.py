"""Collect the statistics of a detector's logits that the calibration "logn" needs.

    balms-det logit-stats --config-file RUN/config.yaml MODEL.WEIGHTS RUN/model_final.pth
    balms-det train --config-file RUN/config.yaml --eval-only MODEL.WEIGHTS RUN/model_final.pth \\
        MODEL.LONG_TAIL.CALIBRATION.NAME logn \\
        MODEL.LONG_TAIL.CALIBRATION.LOGIT_STATS RUN/logit_stats.json

One epoch of the training set passes through the detector, which stays as it is. With
MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE, the features of a second stage are used or kept.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from balms_det.runtime.arguments import add_dataset_argument, add_overrides
from balms_det.runtime.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """Collect the statistics and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="JSON", help="default: logit_stats.json in OUTPUT_DIR")
    add_dataset_argument(parser)
    add_overrides(parser)
    args = parser.parse_args(argv)
    # Seconds to import, which help does not need.
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.logger import setup_logger

    from balms_det.engine import build_checkpointer, build_long_tail_model, load_config
    from balms_det.engine.logit_stats import collect_logit_stats

    setup_logger(name="balms_det")
    cfg = load_config(args)
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is ''; set it to the checkpoint of a trained detector")
    cfg.MODEL.LONG_TAIL.CALIBRATION.NAME = "none"  # the logits as they are
    cfg.freeze()
    # The same proposals are sampled whenever it runs.
    seed_all_rng(max(cfg.SEED, 0))
    model = build_long_tail_model(cfg, None)
    build_checkpointer(cfg, model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    output = Path(args.output or Path(cfg.OUTPUT_DIR) / "logit_stats.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    stats = collect_logit_stats(cfg, model)
    stats.save(output)
    print(f"The logits of {stats.num_rows} proposals are summed up in {output}.")
