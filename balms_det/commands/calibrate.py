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
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from balms_det.calibration import Calibration, calibration_from_stats
from balms_det.data import check_registered
from balms_det.engine import add_dataset_argument, load_config, resolve_class_stats
from balms_det.evaluation import (
    ImagePredictions,
    LVISEvaluator,
    format_results,
    plot_sweep,
    read_predictions,
    sweep,
)
from balms_det.losses.criterion import activation_of
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

SYMBOLS = {"logit_adjustment": "tau", "norcal": "gamma", "fracal": "strength"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--method", choices=list(SYMBOLS), default="logit_adjustment")
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
        default=300,
        metavar="N",
        help="detections of an image that count after calibration; default 300, as LVIS",
    )
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR")
    add_dataset_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser.parse_args(argv)


def split_of(args: argparse.Namespace, cfg: Any) -> str:
    name = args.split or (cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else None)
    if name is None:
        raise InputError("DATASETS.TEST is empty; name the data set predicted on with --split")
    check_registered(name)
    return str(name)


def warn_of_full_images(predictions: Sequence[ImagePredictions], cap: int) -> None:
    """Warn where the cap on stored detections may have cut off some that calibration would lift."""
    num_full = sum(len(prediction.scores) >= cap for prediction in predictions)
    if num_full:
        print(
            f"warning: {num_full} images have TEST.DETECTIONS_PER_IMAGE ({cap}) detections stored, "
            "so that others which calibration would lift may be missing; store more of them",
            file=sys.stderr,
        )


def best_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the task, strength and value of the highest AP, of masks where there are any."""
    task = "segm" if "segm" in records[0] else "bbox"
    best = max(records, key=lambda record: record[task]["AP"])
    return {"task": task, "strength": best["strength"], "AP": best[task]["AP"]}


def write(outcome: Mapping[str, Any], output: Path) -> None:
    """Write the records and their figure, and print the best strength as configuration keys."""
    method, best = outcome["method"], outcome["best"]
    symbol, stem = SYMBOLS[method], f"calibration_{method}"
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(output / f"{stem}.json") as file:
        file.write(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    title = f"{method} on {outcome['split']}"
    plot_sweep(outcome["records"], output / f"{stem}.png", title=title, xlabel=symbol)
    print(
        f"The highest {best['task']} AP is {best['AP']:.2f}, at {symbol} = {best['strength']:g}: "
        f"MODEL.LONG_TAIL.CALIBRATION.NAME {method} "
        f"MODEL.LONG_TAIL.CALIBRATION.STRENGTH {best['strength']:g}"
        + ("." if outcome["exact"] else " (an approximation; see --help).")
    )
    print(f"{stem}.json and {stem}.png are in {output}.")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = load_config(args)
    long_tail = cfg.MODEL.LONG_TAIL
    if long_tail.CALIBRATION.NAME != "none":
        raise InputError(
            f"{args.config_file}: MODEL.LONG_TAIL.CALIBRATION.NAME is "
            f"{long_tail.CALIBRATION.NAME!r}, so that its predictions are calibrated already; "
            "store them with 'none'"
        )
    if min(args.strengths) < 0:
        raise InputError(f"--strengths has {min(args.strengths)}; give values of 0 or more")
    split = split_of(args, cfg)
    stats = resolve_class_stats(cfg.MODEL.LONG_TAIL.STATS_FILE or cfg.MODEL.WEIGHTS)
    exclusive = activation_of(long_tail, stats.num_classes).exclusive
    exact = not exclusive and cfg.MODEL.ROI_HEADS.NAME == "LongTailROIHeads"

    path = args.predictions or os.path.join(
        cfg.OUTPUT_DIR, "inference", "lvis_instances_results.json"
    )
    evaluator = LVISEvaluator(
        split,
        distributed=False,
        max_dets_per_image=args.max_detections,
    )
    predictions = read_predictions(path)
    warn_of_full_images(predictions, cfg.TEST.DETECTIONS_PER_IMAGE)

    def calibration(strength: float) -> Calibration:
        return calibration_from_stats(
            args.method,
            strength,
            stats,
            long_tail.COUNT_BY,
            exclusive=exclusive,
            fractal_power=long_tail.CALIBRATION.FRACTAL_POWER,
        )

    records = []
    symbol = SYMBOLS[args.method]
    strengths = sorted(set(args.strengths))
    for record in sweep(evaluator, predictions, stats.category_ids, calibration, strengths):
        records.append(record)
        metrics = {task: values for task, values in record.items() if task != "strength"}
        print(f"{symbol} = {record['strength']:g}\n{format_results(metrics)}\n", flush=True)

    outcome = {
        "method": args.method,
        "split": split,
        "count_by": long_tail.COUNT_BY,
        "max_detections": args.max_detections,
        "exact": exact,
        "best": best_of(records),
        "records": records,
    }
    write(outcome, Path(args.output or cfg.OUTPUT_DIR))
