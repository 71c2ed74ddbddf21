"""AP of a run, its intervals, and its differences from another run, by hotcoco.

Shapes: T IoU thresholds, P recall points, K classes.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco

from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.evaluation.scoring import hotcoco_evaluation

NO_CAP = 1_000_000
# COCO's limit on the detections of one class in an image.
_COCO_CLASS_CAP = 100


def class_cap(truth: AnnotationFile) -> int:
    """Return how many detections of one class count in an image; LVIS limits only all together."""
    return _COCO_CLASS_CAP if truth.format == "coco" else NO_CAP


def evaluation_of(
    truth: AnnotationFile,
    predictions: Sequence[ImagePredictions],
    task: str,
    image_cap: int | None,
) -> hotcoco.COCOeval:
    """Return an evaluation over objects of all sizes; its precision is (T, P, K, 1).

    Args:
        truth: with LVIS's fields, as :func:`balms_det.evaluation.federated.federated_view` returns
            it.
        predictions: of any of its images.
        task: "bbox" or "segm".
        image_cap: detections of an image that count; None for all.
    """
    return hotcoco_evaluation(
        truth,
        predictions,
        task,
        NO_CAP if image_cap is None else image_cap,
        max_dets_per_class=class_cap(truth),
        sizes=False,
    )


def intervals(
    evaluation: hotcoco.COCOeval, truth: AnnotationFile, task: str, samples: int
) -> dict[str, float]:
    """Return half the width of each metric's 95 % interval, in percentage points, by a bootstrap
    over images.

    It is 1.96 times hotcoco's standard error of the difference from an evaluation without
    detections, whose AP is 0 in every sample. hotcoco's percentiles are not used: a sample of
    images repeats some, which moves AP, so that they may not contain the AP itself.
    """
    nothing = evaluation_of(truth, [], task, None)
    spread = compared(nothing, evaluation, samples)["ci"] or {}
    return {metric: 196 * interval["std_err"] for metric, interval in spread.items()}


def compared(first: hotcoco.COCOeval, second: hotcoco.COCOeval, samples: int) -> Mapping[str, Any]:
    """Return hotcoco's comparison of two evaluations of the same ground truth."""
    with warnings.catch_warnings():
        # It names every parameter that is not that of the reference, on purpose here.
        warnings.filterwarnings("ignore", message="hotcoco: ", category=UserWarning)
        return hotcoco.compare(first, second, n_bootstrap=samples)
