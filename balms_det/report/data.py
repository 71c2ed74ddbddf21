"""What a report shows.

All values are in percent or percentage points unless said otherwise; None where there is nothing to
measure on. Shapes: K classes, in the order of their category ids.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from balms_det.evaluation.confusion import Confusion
from balms_det.report.crops import ClassCrops
from balms_det.report.sources import RunFiles

# Detections of each class over the data set, in AP-Fixed (arXiv:2102.01066).
CLASS_BUDGET = 10_000


@dataclass(frozen=True)
class Options:
    """What is asked of a report.

    Attributes:
        task: "bbox" or "segm"; None for AP of masks where there are any, and the causes on boxes.
        bootstrap: samples for each interval; 0 for no intervals.
        image_root: directory of the images; None leaves the crops out.
    """

    task: str | None = None
    bootstrap: int = 100
    image_root: str | None = None


@dataclass(frozen=True)
class Classes:
    """The classes of the ground truth, each field (K,).

    Attributes:
        train_images: training images with the class.
        objects: in the ground truth.
    """

    names: list[str]
    groups: list[str]
    train_images: list[int | None]
    objects: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A run minus the first one, on the same images.

    Attributes:
        change: metric -> percentage points.
        half_width: metric -> half of the 95 % interval's width; empty without a bootstrap.
        better: metric -> the part of the bootstrap samples in which the run is better, 0 to 1.
    """

    change: dict[str, float]
    half_width: dict[str, float]
    better: dict[str, float]


@dataclass(frozen=True)
class RunData:
    """What is measured on every run.

    Attributes:
        files: of the run.
        scores: task -> metric -> value.
        class_ap: (K,).
        class_ece: (K,), 0 to 1.
        calibration: group -> hotcoco's calibration, 0 to 1.
        intervals: metric -> half of the 95 % interval's width; of the first run, with a bootstrap.
        difference: from the first run; None for the first.
    """

    files: RunFiles
    scores: dict[str, dict[str, float]]
    class_ap: list[float | None]
    class_ece: list[float | None]
    calibration: dict[str, dict[str, Any]]
    intervals: dict[str, float] = field(default_factory=dict)
    difference: Difference | None = None


@dataclass(frozen=True)
class Detail:
    """What is measured on the first run only.

    Attributes:
        tide: group -> type of error -> percentage points; see :meth:`Scorer.tide`.
        caps: detections per image -> metric -> value.
        ap_fixed: metric -> value.
        ap50_pool: AP50 of the detections of all classes in one ranking.
        detections: int64 (K,); those within the cap, whether judged or not.
        confusion: at `confusion_score`.
        confusion_score: lowest score of the detections in the confusion matrix.
        crops: of the worst rare classes; None without images.
    """

    tide: dict[str, dict[str, float]]
    caps: dict[int, dict[str, float]]
    ap_fixed: dict[str, float]
    ap50_pool: float
    detections: np.ndarray
    confusion: Confusion
    confusion_score: float
    crops: list[ClassCrops] | None


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        annotations: name of the annotation file.
        digest: SHA-256 of that file.
        format: "lvis" or "coco".
        task: whose AP is shown in detail.
        cause_task: on which :class:`Detail` and calibration are measured.
        bootstrap: samples of the intervals.
        image_cap: detections of an image that count; None for all.
        runs: the first one is the subject, the others are compared with it.
        detail: of the first run.
        versions: package -> version.
    """

    annotations: str
    digest: str
    format: str
    num_images: int
    task: str
    cause_task: str
    bootstrap: int
    image_cap: int | None
    classes: Classes
    runs: list[RunData]
    detail: Detail
    versions: dict[str, str]
