"""LVIS's metrics for boxes and masks, with Detectron2's interface, keys and values.

Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", arXiv:1908.03195. The
reference is the ``lvis`` package (lvis-api), to whose last bit these results are equal.

Shapes: T IoU thresholds, P recall points, K classes (in the order of their category ids), A area
ranges (all, small, medium, large).
"""

import itertools
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import hotcoco
import numpy as np
import orjson
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from balms_det.annotations.file import AnnotationFile, read_annotation_file
from balms_det.evaluation.predictions import (
    ImagePredictions,
    compressed_masks,
    gather_predictions,
    write_predictions,
)
from balms_det.evaluation.report import GROUP_NAMES, format_per_class, format_results
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError
from balms_det.runtime.garbage_collection import gc_disabled

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
BACKENDS = ("hotcoco", "lvis")

# Few enough that the dictionaries of a chunk are small beside all predictions.
_IMAGES_PER_CHUNK = 256


class LVISEvaluator(DatasetEvaluator):
    """Scores predictions on a registered LVIS-format data set, as Detectron2's LVISEvaluator does.

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
        max_dets_per_image: int = 300,
        backend: str = "hotcoco",
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
            max_dets_per_image: highest-scoring detections of an image that count, over all classes.
            backend: "hotcoco", or "lvis", the reference implementation, over 100 times slower.

        Raises:
            InputError: an argument is not allowed, or the annotation file cannot be used.
        """
        for task in tasks or ():
            if task not in TASKS:
                raise InputError(f"the evaluation task is {task!r}; choose from {', '.join(TASKS)}")
        if backend not in BACKENDS:
            raise InputError(
                f"TEST.LVIS_BACKEND is {backend!r}; choose one of {', '.join(BACKENDS)}"
            )
        if max_dets_per_image < 1:
            raise InputError(
                f"max_dets_per_image is {max_dets_per_image}; set it to 1 or more (LVIS: 300)"
            )
        metadata = MetadataCatalog.get(dataset_name)
        for key in ("json_file", "thing_classes"):
            if metadata.get(key) is None:
                raise InputError(
                    f"the data set {dataset_name!r} has no {key!r} in its metadata, so that it "
                    "cannot be evaluated; register it with `--dataset NAME JSON IMAGE_ROOT`"
                )
        self._dataset_name = dataset_name
        self._category_ids = _category_ids(
            metadata.thing_classes, metadata.get("thing_dataset_id_to_contiguous_id")
        )
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._max_dets = max_dets_per_image
        self._backend = backend
        # Read before inference, so that a fault in the file shows before hours have been spent.
        self._ground_truth: AnnotationFile | None = None
        if not distributed or comm.is_main_process():
            self._ground_truth = _read_ground_truth(PathManager.get_local_path(metadata.json_file))
            self._check_classes(self._ground_truth)
        self.reset()

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
        """As :meth:`evaluate`, for predictions of all processes, in the order of their image ids.

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
            "Results on %s with at most %d detections per image, in percent:\n%s\n\n%s",
            self._dataset_name,
            self._max_dets,
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
        precision_of = {"hotcoco": _hotcoco_precision, "lvis": _lvis_precision}[self._backend]
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        class_aps = {}
        for task in self._tasks_of(ground_truth, predictions):
            precision = precision_of(ground_truth, predictions, task, self._max_dets)
            results[task] = _metrics(precision, ground_truth.categories)
            class_aps[f"{task}_AP"] = _class_aps(precision)
        self.per_class = _class_records(ground_truth.categories, class_aps)
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

    def _tasks_of(
        self, ground_truth: AnnotationFile, predictions: Sequence[ImagePredictions]
    ) -> list[str]:
        """The tasks to score, having checked that masks are there if they are among them."""
        if self._tasks is not None:
            tasks = sorted(self._tasks)
        elif any(prediction.masks is not None for prediction in predictions):
            tasks = ["bbox", "segm"]
        else:
            tasks = ["bbox"]
        if "segm" in tasks:
            for prediction in predictions:
                if prediction.masks is None and len(prediction.scores):
                    raise InputError(
                        "masks cannot be evaluated, because the predictions for image "
                        f"{prediction.image_id} have none; set MODEL.MASK_ON to True or evaluate "
                        "boxes only"
                    )
            for annotation in ground_truth.annotations:
                if not annotation.get("segmentation"):
                    raise InputError(
                        f"{ground_truth.path}: annotation {annotation['id']} has no "
                        "'segmentation', so that masks cannot be evaluated; add it, or set "
                        "MODEL.MASK_ON to False"
                    )
        return tasks

    def _repeated_image(self, image_id: int) -> InputError:
        return InputError(
            f"image {image_id} of {self._dataset_name!r} was predicted on twice, which would count "
            "its detections twice; visit each image once, and call reset() before another run"
        )


def _category_ids(
    thing_classes: Sequence[str], to_contiguous: Mapping[int, int] | None
) -> np.ndarray:
    """Class index -> category id, int64 (K,)."""
    if to_contiguous is None:
        return np.arange(1, len(thing_classes) + 1)
    category_ids = np.zeros(len(thing_classes), dtype=np.int64)
    category_ids[list(to_contiguous.values())] = list(to_contiguous)
    return category_ids


def _read_ground_truth(path: str) -> AnnotationFile:
    """Read `path` and check that it has what LVIS's metrics need."""
    file = read_annotation_file(path)
    if not file.annotations:
        return file  # A test set: predictions are written, and nothing is scored.
    remedy = "give an annotation file in LVIS v1 format"
    for section, records, fields in [
        ("image", file.images, ("neg_category_ids", "not_exhaustive_category_ids")),
        ("category", file.categories, ("frequency",)),
        ("annotation", file.annotations, ("area",)),
    ]:
        for record in records:
            for field in fields:
                if field not in record:
                    raise InputError(
                        f"{path}: {section} {record['id']} has no {field!r}, without which LVIS's "
                        f"metrics are not defined; {remedy}"
                    )
    for category in file.categories:
        if category["frequency"] not in GROUP_NAMES:
            raise InputError(
                f"{path}: category {category['id']} has the frequency {category['frequency']!r}, "
                f"expected one of {', '.join(GROUP_NAMES)}; {remedy}"
            )
    category_ids = {category["id"] for category in file.categories}
    for annotation in file.annotations:
        if annotation["category_id"] not in category_ids:
            raise InputError(
                f"{path}: annotation {annotation['id']} is of category "
                f"{annotation['category_id']}, which is not listed; remove it or add the category"
            )
        if annotation["id"] == 0:
            raise InputError(
                f"{path}: an annotation has the id 0, which lvis-api takes for 'not matched'; "
                "number the annotations from 1"
            )
    return file


@gc_disabled()
def _hotcoco_precision(
    ground_truth: AnnotationFile, predictions: Sequence[ImagePredictions], task: str, max_dets: int
) -> np.ndarray:
    """Precision (T, P, K, A), -1 where there is no ground truth; a few images at a time.

    The cap and the federated rule (only classes that were verified to be present in or absent from
    an image are judged there) are applied here, before hotcoco sees a detection: for a thousand
    classes they leave a small part, and StreamingEval's own cap is per class. As lvis-api does,
    objects and detections without any area are left out, and crowds are objects like others.
    """
    fields = ["id", "image_id", "category_id", "bbox", "area"]
    if task == "segm":
        fields.append("segmentation")
    category_ids = np.array([category["id"] for category in ground_truth.categories])
    annotations = defaultdict(list)
    for annotation in ground_truth.annotations:
        if annotation["area"] > 0:
            annotations[annotation["image_id"]].append(annotation)
    detections = {prediction.image_id: prediction for prediction in predictions}

    params = hotcoco.Params(task)
    params.max_dets = [max_dets]
    evaluation = hotcoco.StreamingEval(
        ground_truth.categories, task, lvis_style=True, params=params
    )
    for images in _chunks(ground_truth.images):
        present = [annotations[image["id"]] for image in images]
        predicted = [detections.get(image["id"]) for image in images]
        judged = [
            [annotation["category_id"] for annotation in objects] + image["neg_category_ids"]
            for image, objects in zip(images, present, strict=True)
        ]
        rows, masks = _judged_detections(predicted, judged, category_ids, task, max_dets)
        evaluation.update(
            images,
            [{field: ann[field] for field in fields} for objects in present for ann in objects],
            rows,
            segmentation=masks if task == "segm" else None,
        )
    result = evaluation.finalize()
    result.accumulate()
    assert result.eval is not None
    precision: np.ndarray = result.eval["precision"]  # (T, P, K, A, 1): one cap on detections
    return precision[..., 0]


def _judged_detections(
    predicted: Sequence[ImagePredictions | None],
    judged: Sequence[Sequence[int]],
    category_ids: np.ndarray,
    task: str,
    max_dets: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The detections of some images that count, as hotcoco takes them.

    Args:
        predicted: for each image, None where nothing was predicted.
        judged: for each image the ids of the categories that are judged in it.
        category_ids: int64 (K,), ascending.
        task: "bbox" or "segm".
        max_dets: of an image.

    Returns:
        float64 (D, 7): image id, box (XYWH), score, category id; and D masks, or none for boxes.
    """
    some = [(i, p) for i, p in enumerate(predicted) if p is not None and len(p.scores)]
    if not some:
        return np.empty((0, 7)), []
    sizes = [len(prediction.scores) for _, prediction in some]
    image = np.repeat([position for position, _ in some], sizes)
    scores = np.concatenate([prediction.scores for _, prediction in some])
    categories = np.concatenate([prediction.category_ids for _, prediction in some])

    # Sorted by image, then score; and so the detections of an image are where they were.
    order = np.lexsort((-scores, image))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.zeros(len(order), dtype=bool)
    kept[order[rank < max_dets]] = True
    is_judged = np.zeros((len(predicted), len(category_ids) + 1), dtype=bool)
    judged_in = np.repeat(np.arange(len(judged)), [len(ids) for ids in judged])
    judged_ids = np.fromiter(itertools.chain.from_iterable(judged), np.int64, len(judged_in))
    is_judged[judged_in, _class_indices(judged_ids, category_ids)] = True
    is_judged[:, -1] = False
    kept &= is_judged[image, _class_indices(categories, category_ids)]

    rows = np.empty((kept.sum(), 7))
    rows[:, 0] = np.repeat([prediction.image_id for _, prediction in some], sizes)[kept]
    rows[:, 1:5] = np.concatenate([prediction.boxes for _, prediction in some])[kept]
    rows[:, 5] = scores[kept]
    rows[:, 6] = categories[kept]
    masks: list[dict[str, Any]] = []
    if task == "segm":
        parts = np.split(kept, np.cumsum(sizes)[:-1])
        for (_, prediction), part in zip(some, parts, strict=True):
            masks += prediction.rles(part)
        # Sizes are those of the masks. hotcoco takes them from the boxes, and uses these for
        # nothing else. (pycocotools' area() fails above 255 masks with NumPy 2.)
        rows[:, 1:5] = 0, 0, 0, 1
        rows[:, 3] = hotcoco.mask.area(masks)
    has_area = rows[:, 3] * rows[:, 4] > 0
    return rows[has_area], list(itertools.compress(masks, has_area))


def _class_indices(ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """Where each of `ids` is in the ascending `category_ids` (K,); K where it is not in them."""
    index = np.searchsorted(category_ids, ids)
    known = category_ids[np.minimum(index, len(category_ids) - 1)] == ids
    return np.where(known, index, len(category_ids))


def _lvis_precision(
    ground_truth: AnnotationFile, predictions: Sequence[ImagePredictions], task: str, max_dets: int
) -> np.ndarray:
    """Precision (T, P, K, A), -1 where there is no ground truth; by lvis-api."""
    from lvis import LVIS, LVISEval, LVISResults

    lvis_gt = LVIS(ground_truth.path)
    records = [record for prediction in predictions for record in prediction.records([task])]
    if records:
        lvis_dt = LVISResults(lvis_gt, records, max_dets=max_dets)
    else:  # LVISResults looks at the first record.
        lvis_dt = LVISResults.__new__(LVISResults)
        lvis_dt.logger = lvis_gt.logger
        lvis_dt.dataset = {**lvis_gt.dataset, "annotations": []}
        lvis_dt._create_index()
    evaluation = LVISEval(lvis_gt, lvis_dt, task)
    # lvis 0.5.3 uses np.float, which NumPy 1.24 removed.
    with mock.patch.object(np, "float", float, create=True):
        evaluation.evaluate()
        evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"]
    return precision


def _metrics(precision: np.ndarray, categories: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Detectron2's nine metrics, in percent, from the precision (T, P, K, A)."""
    frequencies = np.array([category["frequency"] for category in categories])
    all_sizes = precision[..., 0]
    selections = {
        "AP": all_sizes,
        "AP50": all_sizes[0],
        "AP75": all_sizes[5],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
        **{f"AP{group}": all_sizes[:, :, frequencies == group] for group in GROUP_NAMES},
    }
    return {name: _mean_percent(selection) for name, selection in selections.items()}


def _mean_percent(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return float(measured.mean() * 100) if measured.size else -100.0


def _class_aps(precision: np.ndarray) -> list[float | None]:
    """AP of each class in percent, None for classes without ground truth."""
    aps = (_mean_percent(precision[:, :, index, 0]) for index in range(precision.shape[2]))
    return [ap if ap >= 0 else None for ap in aps]


def _class_records(
    categories: Sequence[Mapping[str, Any]], class_aps: Mapping[str, Sequence[float | None]]
) -> list[dict[str, Any]]:
    return [
        {
            "category_id": category["id"],
            "name": category["name"],
            "frequency": category["frequency"],
            "image_count": category.get("image_count"),
            **{key: aps[index] for key, aps in class_aps.items()},
        }
        for index, category in enumerate(categories)
    ]


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _chunks(images: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(images), _IMAGES_PER_CHUNK):
        yield list(images[start : start + _IMAGES_PER_CHUNK])
