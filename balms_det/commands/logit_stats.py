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

from balms_det.commands.arguments import add_dataset_argument, add_overrides


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
    from balms_det.engine.logit_stats import logit_stats  # seconds to import

    logit_stats(args)
