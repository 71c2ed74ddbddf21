"""Find the strength of a test-time calibration from one set of stored predictions.

First store the predictions of a trained model on held-out images, uncalibrated, with more of them
than will count in the end and without a threshold:

    balms-det train --config-file RUN/config.yaml --eval-only OUTPUT_DIR RUN/loose \\
        MODEL.WEIGHTS RUN/model_final.pth \\
        TEST.DETECTIONS_PER_IMAGE 1000 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
    balms-det calibrate --config-file RUN/loose/config.yaml --method norcal

Writes calibration_METHOD.json and calibration_METHOD.png (AP, APr, APc and APf against the
strength) to --output.

With a sigmoid classifier the result is that of an evaluation with this MODEL.LONG_TAIL.CALIBRATION,
provided that no detection that matters is missing from the stored ones: the order within a class
stays, and so does the selection by non-maximum suppression. With Cascade R-CNN, which averages the
probabilities of its stages, and with a softmax, which would need the other classes of the proposal,
it is an approximation; evaluate once more with the strength that you choose. Choose it on other
images than those that you report on.

Tau-normalisation needs the classifier's logits and cannot be swept from scores.
"""

import argparse
import logging
from collections.abc import Sequence

from balms_det.runtime.arguments import add_dataset_argument, add_overrides


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--method", choices=["logit_adjustment", "norcal", "fracal"], default="logit_adjustment"
    )
    parser.add_argument(
        "--strengths",
        type=lambda text: [float(strength) for strength in text.split(",")],
        default=[round(0.1 * step, 1) for step in range(16)],
        metavar="S,S,...",
        help="strengths to try, 0 or more; default 0,0.1,...,1.5",
    )
    parser.add_argument(
        "--predictions",
        metavar="JSON",
        help="default: OUTPUT_DIR/inference/lvis_instances_results.json",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="data set predicted on; default: the first of DATASETS.TEST"
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="detections that count after calibration; default 300 of an image for a data set in "
        "LVIS format, 100 of each class in COCO format",
    )
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR")
    add_dataset_argument(parser)
    add_overrides(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from balms_det.engine.calibrate import calibrate  # seconds to import, which help does not need

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    calibrate(args)
