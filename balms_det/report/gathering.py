"""Gathering what a report shows, from the files of its runs."""

import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

import balms_det
from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import AnnotationFile, read_annotation_file
from balms_det.evaluation.budget import best_of_each_class
from balms_det.evaluation.confusion import federated_confusion
from balms_det.evaluation.federated import federated_view
from balms_det.evaluation.ground_truth import tasks_to_score
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.evaluation.result_file import read_predictions
from balms_det.evaluation.scoring import class_aps, class_indices, metrics, precision_of
from balms_det.report.average_precision import NO_CAP, compared, evaluation_of, intervals
from balms_det.report.crops import worst_class_crops
from balms_det.report.data import (
    CLASS_BUDGET,
    Classes,
    Detail,
    Difference,
    Options,
    ReportData,
    RunData,
)
from balms_det.report.scorer import ALL_CLASSES, Matches, Scorer
from balms_det.report.sources import RunFiles
from balms_det.runtime.errors import InputError
from balms_det.runtime.memory import give_back_freed_memory

LVIS_CAP = 300
CAPS = (10, 30, 100, 300)
CAP_METRICS = ("AP", "APr", "APc", "APf")
PACKAGES = ("torch", "torchvision", "detectron2", "hotcoco", "numpy", "plotly")


def gather(
    annotations: str,
    runs: Sequence[RunFiles],
    options: Options,
    stats: ClassStats | None = None,
) -> ReportData:
    """Read the files and measure.

    Args:
        annotations: file of the ground truth, in LVIS or COCO format.
        runs: the subject, and others to compare with it.
        options: of the report.
        stats: of the training set; see :func:`federated_view`. By default, on a set in COCO format,
            those that the first run has left.

    Raises:
        InputError: a file cannot be used, or predictions and ground truth do not fit.
    """
    file = read_annotation_file(annotations)
    if not file.annotations:
        raise InputError(f"{annotations}: there are no annotations to score against")
    if stats is None and file.format == "coco" and runs[0].class_stats is not None:
        stats = ClassStats.load(runs[0].class_stats)
    truth = federated_view(file, stats)
    cap = LVIS_CAP if truth.format == "lvis" else None
    tasks: list[str] = [options.task] if options.task else []
    measured: list[RunData] = []
    detail: Detail | None = None
    first: hotcoco.COCOeval | None = None
    for run in runs:
        predictions = _predictions_of(run, truth)
        tasks = tasks_to_score(tasks or None, truth, predictions)
        evaluations = {task: evaluation_of(truth, predictions, task, cap) for task in tasks}
        causes = Scorer(truth, predictions, tasks[0], cap)
        data = _run_data(run, causes, evaluations)
        if detail is None:
            detail = _detail(causes, predictions, data, options)
        measured.append(_compared(data, evaluations[tasks[-1]], first, truth, options.bootstrap))
        first = first or evaluations[tasks[-1]]
        del predictions, evaluations, causes
        give_back_freed_memory()
    assert detail is not None, "there is a run"
    return ReportData(
        annotations=Path(annotations).name,
        digest=_digest(annotations),
        format=truth.format,
        num_images=len(truth.images),
        task=tasks[-1],
        cause_task=tasks[0],
        bootstrap=options.bootstrap,
        image_cap=cap,
        classes=_classes(truth),
        runs=measured,
        detail=detail,
        versions=_versions(),
    )


def _run_data(
    run: RunFiles, causes: Scorer, evaluations: Mapping[str, hotcoco.COCOeval]
) -> RunData:
    """Return what is measured on a run alone, without intervals.

    Args:
        run: its files.
        causes: of the task that the causes are measured on.
        evaluations: of each task; the AP of classes is that of the last.
    """
    categories = causes.truth.categories
    precision = {task: precision_of(evaluation) for task, evaluation in evaluations.items()}
    calibration = causes.calibration()
    ece = calibration[ALL_CLASSES]["per_category"]
    return RunData(
        files=run,
        scores={task: metrics(values, categories) for task, values in precision.items()},
        class_ap=class_aps(list(precision.values())[-1]),
        class_ece=[ece.get(category["name"]) for category in categories],
        calibration=calibration,
    )


def _compared(
    data: RunData,
    evaluation: hotcoco.COCOeval,
    first: hotcoco.COCOeval | None,
    truth: AnnotationFile,
    samples: int,
) -> RunData:
    """Add the difference from the first run, or, to the first run itself, its intervals."""
    if first is not None:
        return dataclasses.replace(data, difference=_difference(first, evaluation, samples))
    if not samples:
        return data
    task = list(data.scores)[-1]
    return dataclasses.replace(data, intervals=intervals(evaluation, truth, task, samples))


def _detail(
    scorer: Scorer,
    predictions: Sequence[ImagePredictions],
    run: RunData,
    options: Options,
) -> Detail:
    truth, cap = scorer.truth, scorer.image_cap or NO_CAP
    known = {metric: run.scores[scorer.task][metric] for metric in CAP_METRICS}
    matches = scorer.matches()
    score = _balanced_score(scorer)
    crops = None
    if options.image_root is not None:
        crops = worst_class_crops(scorer, matches, run.class_ap, options.image_root)

    def scored(some: Sequence[ImagePredictions], image_cap: int | None) -> dict[str, float]:
        evaluation = evaluation_of(truth, some, scorer.task, image_cap)
        found = metrics(precision_of(evaluation), truth.categories)
        return {metric: found[metric] for metric in CAP_METRICS}

    return Detail(
        tide=scorer.tide(),
        caps={number: known if number == cap else scored(predictions, number) for number in CAPS},
        ap_fixed=scored(best_of_each_class(predictions, CLASS_BUDGET), None),
        ap50_pool=_ap50_pool(scorer, matches),
        detections=_detections_by_class(truth, predictions, cap),
        confusion=federated_confusion(
            truth, predictions, scorer.task, min_score=score, max_dets=cap
        ),
        confusion_score=score,
        crops=crops,
    )


def _difference(first: hotcoco.COCOeval, second: hotcoco.COCOeval, samples: int) -> Difference:
    found = compared(first, second, samples)
    spread: Mapping[str, Any] = found["ci"] or {}
    known = [metric for metric, value in found["metrics_a"].items() if value >= 0]
    return Difference(
        {metric: 100 * found["deltas"][metric] for metric in known},
        {metric: 196 * spread[metric]["std_err"] for metric in known if metric in spread},
        {metric: spread[metric]["prob_positive"] for metric in known if metric in spread},
    )


def _ap50_pool(scorer: Scorer, matches: Matches) -> float:
    scores = scorer.rows[matches.rows, 5]
    order = np.argsort(-scores, kind="stable")
    num_objects = len(matches.missed) + int(matches.is_right.sum())
    return 100 * hotcoco.metrics.average_precision(
        scores[order], matches.is_right[order], num_objects
    )


def _detections_by_class(
    truth: AnnotationFile, predictions: Sequence[ImagePredictions], cap: int
) -> np.ndarray:
    ids = np.array([category["id"] for category in truth.categories], np.int64)
    counts = np.zeros(len(ids) + 1, np.int64)
    for prediction in predictions:
        best = np.argsort(-prediction.scores, kind="stable")[:cap]
        np.add.at(counts, class_indices(prediction.category_ids[best], ids), 1)
    return counts[:-1]


def _predictions_of(run: RunFiles, truth: AnnotationFile) -> list[ImagePredictions]:
    """Return a run's predictions; masks that no image judges are empty, to save their memory."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.images}
    judged = {image["id"]: set(image["neg_category_ids"]) for image in truth.images}
    for annotation in truth.annotations:
        judged[annotation["image_id"]].add(annotation["category_id"])
    predictions = read_predictions(run.predictions, sizes)
    for position, prediction in enumerate(predictions):
        if prediction.image_id not in judged:
            raise InputError(
                f"{run.predictions}: image {prediction.image_id} was predicted on but is not "
                f"listed in {truth.path}; give the annotations of the set that was predicted on"
            )
        if prediction.masks is not None:
            known = judged[prediction.image_id]
            masks = b"\n".join(
                mask if category_id in known else b""
                for mask, category_id in zip(
                    prediction.masks.split(b"\n"), prediction.category_ids.tolist(), strict=True
                )
            )
            predictions[position] = dataclasses.replace(prediction, masks=masks)
    return predictions


def _balanced_score(scorer: Scorer) -> float:
    """Return the score above which there are as many detections that count as objects."""
    scores = scorer.rows[:, 5]
    number = sum(annotation["area"] > 0 for annotation in scorer.truth.annotations)
    if number >= len(scores):
        return 0.0
    return float(np.partition(scores, -number)[-number])


def _classes(truth: AnnotationFile) -> Classes:
    ids = np.array([category["id"] for category in truth.categories], np.int64)
    named = np.array([a["category_id"] for a in truth.annotations if a["area"] > 0], np.int64)
    return Classes(
        [category["name"] for category in truth.categories],
        [category["frequency"] for category in truth.categories],
        [category.get("image_count") for category in truth.categories],
        np.bincount(class_indices(named, ids), minlength=len(ids))[: len(ids)],
    )


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {"balms_det": balms_det.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
