"""Finding the strength of a test-time calibration from stored predictions."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from balms_det.annotations.class_stats import ClassStats, missing_class_stats
from balms_det.calibration import Calibration, calibration_from_stats
from balms_det.data import check_registered
from balms_det.engine.class_stats import inference_class_stats
from balms_det.engine.setup import load_config
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


def _refuse(args: argparse.Namespace, calibration: str) -> None:
    if calibration != "none":
        raise InputError(
            f"{args.config_file}: MODEL.LONG_TAIL.CALIBRATION.NAME is {calibration!r}, so that its "
            "predictions are calibrated already; store them with 'none'"
        )
    if min(args.strengths) < 0:
        raise InputError(f"--strengths has {min(args.strengths)}; give values of 0 or more")


def _statistics(cfg: Any) -> ClassStats:
    stats = inference_class_stats(cfg, cfg.MODEL.WEIGHTS)
    if stats is None:
        raise missing_class_stats(f"the checkpoint {cfg.MODEL.WEIGHTS!r}")
    return stats


def calibrate(args: argparse.Namespace) -> None:
    """Score stored predictions at each strength, and write the records and their figure.

    Args:
        args: of the command `balms-det calibrate`.

    Raises:
        InputError: an argument, the configuration or a file cannot be used.
    """
    cfg = load_config(args)
    long_tail = cfg.MODEL.LONG_TAIL
    _refuse(args, long_tail.CALIBRATION.NAME)
    split = split_of(args, cfg)
    stats = _statistics(cfg)
    exclusive = activation_of(long_tail, stats.num_classes).exclusive
    exact = not exclusive and cfg.MODEL.ROI_HEADS.NAME == "LongTailROIHeads"

    path = args.predictions or os.path.join(
        cfg.OUTPUT_DIR, "inference", "lvis_instances_results.json"
    )
    evaluator = LVISEvaluator(
        split,
        distributed=False,
        max_dets_per_image=args.max_detections,
        class_stats=stats,
        regroup=long_tail.GROUPS != "lvis",
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

    ids, records = evaluator.category_ids.tolist(), []
    symbol = SYMBOLS[args.method]
    strengths = sorted(set(args.strengths))
    for record in sweep(evaluator, predictions, ids, calibration, strengths):
        records.append(record)
        metrics = {task: values for task, values in record.items() if task != "strength"}
        print(f"{symbol} = {record['strength']:g}\n{format_results(metrics)}\n", flush=True)

    outcome = {
        "method": args.method,
        "split": split,
        "count_by": long_tail.COUNT_BY,
        "max_detections": evaluator.max_detections,
        "exact": exact,
        "best": best_of(records),
        "records": records,
    }
    write(outcome, Path(args.output or cfg.OUTPUT_DIR))
