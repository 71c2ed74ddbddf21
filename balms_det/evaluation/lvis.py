"""LVIS's or COCO's metrics for boxes and masks, with Detectron2's interface, keys and values.

A file in LVIS format is scored by LVIS's rules, one in COCO format by COCO's. Both give the AP of
rare, common and frequent classes and of each class.

Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", arXiv:1908.03195. The
references are the ``lvis`` package (lvis-api) and pycocotools, to whose last bit these results are
equal.

Shapes: T IoU thresholds, P recall points, K classes (in the order of their category ids), A area
ranges (all, small, medium, large).
"""

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation.ground_truth import (
    category_ids_of,
    check_masks_to_score,
    positions_of_classes,
    read_ground_truth,
    tasks_to_score,
    with_frequencies,
)
from balms_det.evaluation.predictions import (
    ImagePredictions,
    compressed_masks,
    gather_predictions,
    write_predictions,
)
from balms_det.evaluation.report import format_per_class, format_results
from balms_det.evaluation.scoring import (
    PrecisionOf,
    class_aps,
    class_records,
    hotcoco_precision,
    metrics,
)
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")


class LVISEvaluator(DatasetEvaluator):
    """Scores predictions on a registered data set, as Detectron2's evaluators of its format do.

    Predictions are kept as arrays and compressed masks. Two processes or more send theirs to the
    main process in rounds of a few images, so that no process pickles all of its predictions at
    once, and no file system needs to be shared.

    Attributes:
        per_class: after `evaluate`, in the main process, a record for each class: ``category_id``,
            ``name``, ``frequency``, ``image_count`` (training images, or None where the annotation
            file does not say) and, for each task, ``bbox_AP`` or ``segm_AP`` in percent, None for
            a class without ground truth.
    """

    per_class: list[dict[str, Any]]

    def __init__(
        self,
        dataset_name: str,
        *,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | os.PathLike[str] | None = None,
        max_dets_per_image: int | None = None,
        precision_of: PrecisionOf = hotcoco_precision,
        class_stats: ClassStats | None = None,
        regroup: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: a registered set whose metadata has ``json_file``, ``thing_classes`` and,
                unless category ids are the class indices plus one, as Detectron2 has it for LVIS,
                ``thing_dataset_id_to_contiguous_id``.
            tasks: "bbox", "segm" or both; by default "bbox", and "segm" if predictions have masks.
            distributed: whether to collect predictions from all processes.
            output_dir: where to write the predictions (``lvis_instances_results.json``) and the
                results (``lvis_results.json``, ``lvis_per_class.json``); by default nowhere.
            max_dets_per_image: highest-scoring detections of an image that count: of all classes by
                LVIS's rules, default 300, and of each class by COCO's, default 100.
            precision_of: computes the precision of one task; default hotcoco.
            class_stats: of the model's training set. Its classes are found in the data set by
                name, in any order; its groups and counts serve files that state none.
            regroup: whether these groups go before those that the file states.

        Raises:
            InputError: an argument is not allowed, or the annotation file cannot be used.
        """
        _check_arguments(tasks, max_dets_per_image)
        metadata = _metadata_to_score(dataset_name)
        self._dataset_name = dataset_name
        self._category_ids = category_ids_of(
            metadata.thing_classes, metadata.get("thing_dataset_id_to_contiguous_id")
        )
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._precision_of = precision_of
        if class_stats is not None:
            order = positions_of_classes(class_stats.names, metadata.thing_classes, dataset_name)
            self._category_ids = self._category_ids[order]
        # Read before inference, so that a fault in the file shows before hours have been spent.
        self._ground_truth: AnnotationFile | None = None
        if not distributed or comm.is_main_process():
            ground_truth = read_ground_truth(PathManager.get_local_path(metadata.json_file))
            self._check_classes(ground_truth)
            if class_stats is not None:
                ids = self._category_ids.tolist()
                ground_truth = with_frequencies(ground_truth, ids, class_stats, regroup=regroup)
            self._ground_truth = ground_truth
            default_cap = 300 if ground_truth.format == "lvis" else 100
            self._max_dets = max_dets_per_image or default_cap
        self.reset()

    @property
    def category_ids(self) -> np.ndarray:
        """The id in the annotation file of each class of the model, int64 (K,)."""
        return self._category_ids

    @property
    def max_detections(self) -> int:
        """The cap that `max_dets_per_image` sets; only in the main process."""
        return self._max_dets

    def check_masks(self) -> None:
        """Refuse ground truth in which some, and not all, objects lack a mask.

        Raises:
            InputError: names the first object without one.
        """
        if self._ground_truth is not None and self._ground_truth.has_masks:
            check_masks_to_score(self._ground_truth)

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: dict[int, ImagePredictions] = {}
        self.per_class = []

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Take in the predictions for some images.

        Args:
            inputs: Detectron2's dictionaries of the images; ``image_id`` is read.
            outputs: for each image ``{"instances": Instances}`` with ``pred_boxes`` (XYXY),
                ``scores``, ``pred_classes``, and ``pred_masks`` (N, H, W) or ``pred_masks_rle``.

        Raises:
            InputError: an image comes a second time, or a class is unknown to the data set.
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = image["image_id"]
            if image_id in self._predictions:
                raise self._repeated_image(image_id)
            self._predictions[image_id] = self._compact(image_id, output["instances"])

    def _compact(self, image_id: int, instances: Instances) -> ImagePredictions:
        classes = instances.pred_classes.cpu().numpy()
        if classes.max(initial=0) >= len(self._category_ids):
            raise InputError(
                f"the model predicts class {classes.max()} in image {image_id}, but the data set "
                f"{self._dataset_name!r} has {len(self._category_ids)} classes; set "
                "MODEL.ROI_HEADS.NUM_CLASSES and the weights to those of the data set"
            )
        boxes = instances.pred_boxes.tensor.float().cpu()
        return ImagePredictions(
            image_id=image_id,
            image_size=instances.image_size,
            boxes=BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).numpy(),
            scores=instances.scores.float().cpu().numpy(),
            category_ids=self._category_ids[classes],
            masks=compressed_masks(instances),
        )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Score what was processed; writes, logs and returns the results.

        Images of the data set that were not processed count as images without detections.

        Returns:
            task -> {AP, AP50, AP75, APs, APm, APl, APr, APc, APf} in percent. As in Detectron2, a
            value without any ground truth to measure it on is -100, lvis-api's -1 in percent.
            Empty in other processes than the main one, and where the annotation file has no
            annotations (a test set), for which only predictions are written.

        Raises:
            InputError: predictions and data set do not fit; the predictions have been written.
        """
        predictions = list(self._predictions.values())
        if self._distributed:
            predictions = gather_predictions(predictions)
        if self._ground_truth is None:
            return OrderedDict()
        predictions.sort(key=lambda prediction: prediction.image_id)
        return self.evaluate_predictions(predictions)

    def evaluate_predictions(
        self, predictions: Sequence[ImagePredictions]
    ) -> OrderedDict[str, dict[str, float]]:
        """Return as :meth:`evaluate`, for predictions of all processes, in the order of their
        image ids.

        Only in the main process.
        """
        ground_truth = self._ground_truth
        assert ground_truth is not None, "the ground truth is read by the main process"
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            path = self._output_dir / "lvis_instances_results.json"
            write_predictions(path, predictions)
            logger.info("Wrote the predictions to %s", path)
        if not ground_truth.annotations:
            logger.info("%s has no annotations to evaluate on", ground_truth.path)
            return results

        results = self.score(predictions)
        if self._output_dir is not None:
            _write_json(self._output_dir / "lvis_results.json", results)
            _write_json(self._output_dir / "lvis_per_class.json", self.per_class)
        logger.info(
            "Results on %s with at most %d detections per image%s, in percent:\n%s\n\n%s",
            self._dataset_name,
            self._max_dets,
            "" if ground_truth.format == "lvis" else " and class",
            format_results(results),
            format_per_class(self.per_class),
        )
        return results

    def score(self, predictions: Sequence[ImagePredictions]) -> OrderedDict[str, dict[str, float]]:
        """Score predictions, in the order of their image ids; nothing is written or logged.

        Only in the main process. Sets `per_class`.

        Returns:
            As :meth:`evaluate`.

        Raises:
            InputError: predictions and data set do not fit, or the set has no annotations.
        """
        ground_truth = self._ground_truth
        assert ground_truth is not None, "the ground truth is read by the main process"
        if not ground_truth.annotations:
            raise InputError(
                f"{ground_truth.path} has no annotations to score against; give a data set that has"
            )
        self._check_images(ground_truth, predictions)
        if not any(len(prediction.scores) for prediction in predictions):
            logger.warning("The model detected nothing at all: every AP is 0")
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        aps_of = {}
        for task in tasks_to_score(self._tasks, ground_truth, predictions):
            precision = self._precision_of(ground_truth, predictions, task, self._max_dets)
            results[task] = metrics(precision, ground_truth.categories)
            aps_of[f"{task}_AP"] = class_aps(precision)
        self.per_class = class_records(ground_truth.categories, aps_of)
        return results

    def _check_classes(self, ground_truth: AnnotationFile) -> None:
        listed = [category["id"] for category in ground_truth.categories]
        unknown = np.setdiff1d(self._category_ids, listed)
        if unknown.size:
            raise InputError(
                f"{ground_truth.path} does not list category {unknown[0]}, which is one of the "
                f"{len(self._category_ids)} classes of {self._dataset_name!r}; register the data "
                "set with the classes of this file"
            )

    def _check_images(
        self, ground_truth: AnnotationFile, predictions: Sequence[ImagePredictions]
    ) -> None:
        """Check that every image was listed, and came only once; `predictions` are sorted."""
        for previous, prediction in itertools.pairwise(predictions):
            if previous.image_id == prediction.image_id:
                raise self._repeated_image(prediction.image_id)
        listed = {image["id"] for image in ground_truth.images}
        for prediction in predictions:
            if prediction.image_id not in listed:
                raise InputError(
                    f"image {prediction.image_id} was predicted on but is not listed in "
                    f"{ground_truth.path}; evaluate on the images of that file"
                )

    def _repeated_image(self, image_id: int) -> InputError:
        return InputError(
            f"image {image_id} of {self._dataset_name!r} was predicted on twice, which would count "
            "its detections twice; visit each image once, and call reset() before another run"
        )


def _check_arguments(tasks: Sequence[str] | None, max_dets_per_image: int | None) -> None:
    for task in tasks or ():
        if task not in TASKS:
            raise InputError(f"the evaluation task is {task!r}; choose from {', '.join(TASKS)}")
    if max_dets_per_image is not None and max_dets_per_image < 1:
        raise InputError(
            f"max_dets_per_image is {max_dets_per_image}; set it to 1 or more (LVIS: 300)"
        )


def _metadata_to_score(dataset_name: str) -> Any:
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("json_file", "thing_classes"):
        if metadata.get(key) is None:
            raise InputError(
                f"the data set {dataset_name!r} has no {key!r} in its metadata, so that it "
                "cannot be evaluated; register it with `--dataset NAME JSON IMAGE_ROOT`"
            )
    return metadata


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))
