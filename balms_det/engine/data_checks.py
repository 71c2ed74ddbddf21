"""What training and evaluation ask of the data sets, before a model is built."""

import logging
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from balms_det.annotations.class_stats import ClassStats
from balms_det.data import (
    CachedDataset,
    cached_dataset,
    check_num_classes,
    check_registered,
    missing_files,
)
from balms_det.engine.evaluate import build_evaluator
from balms_det.evaluation import LVISEvaluator
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)


def fitted_to_data(cfg: Any) -> Any:
    """Return the configuration without masks where no object of DATASETS.TRAIN has one.

    Raises:
        InputError: a data set is not registered or cannot be read.
    """
    if not cfg.MODEL.MASK_ON:
        return cfg
    for name in cfg.DATASETS.TRAIN:
        check_registered(name)
    if not cfg.DATASETS.TRAIN or any(map(_has_masks, cfg.DATASETS.TRAIN)):
        return cfg
    logger.info("No training annotation has a segmentation: MODEL.MASK_ON is set to False")
    fitted = cfg.clone()
    fitted.defrost()
    fitted.MODEL.MASK_ON = False
    if cfg.is_frozen():
        fitted.freeze()
    return fitted


def _has_masks(name: str) -> bool:
    """Return whether some object of a set may have a mask.

    Where the metadata says it, the cache is not opened again: that reads the whole file.
    """
    known = MetadataCatalog.get(name).get("has_masks")
    if known is None:
        dataset = cached_dataset(name)
        known = dataset is None or dataset.cache.has_masks
    return bool(known)


def check_data(cfg: Any, class_stats: ClassStats | None, *, training: bool = True) -> None:
    """Refuse data sets that would fail, or score something else than is meant, later.

    All images exist, and the classes and annotations of DATASETS.TEST can be scored. What spoils
    single objects or the meaning of a result is logged as a warning. Sets that only their own
    functions can load are not checked. The main process checks.

    Args:
        cfg: the configuration.
        class_stats: of the training set; None where nobody knows them.
        training: whether DATASETS.TRAIN is used.

    Raises:
        InputError: names data set, file and fault.
    """
    for name in cfg.DATASETS.TEST:
        check_registered(name)
        check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    if not comm.is_main_process():
        return
    trained: set[str] = set()
    if training:
        for name in cfg.DATASETS.TRAIN:
            trained |= _checked_images(name)
    for name in cfg.DATASETS.TEST:
        shared = trained & _checked_images(name)
        if shared:
            logger.warning(
                "%d images of %r are training images too: results on it say little about new "
                "images",
                len(shared),
                name,
            )
        evaluator = build_evaluator(cfg, name, class_stats)
        if cfg.MODEL.MASK_ON and isinstance(evaluator, LVISEvaluator):
            evaluator.check_masks()


def _checked_images(name: str) -> set[str]:
    """Return the files of a cached set's images; empty for another set.

    Raises:
        InputError: one of them does not exist.
    """
    dataset: CachedDataset | None = cached_dataset(name)
    if dataset is None:
        return set()
    for remark in dataset.cache.remarks:
        logger.warning("%s", remark)
    files = dataset.file_names
    missing = missing_files(files)
    if missing:
        raise InputError(
            f"{missing[0]}: this image of the data set {name!r} is missing ({len(missing)} of "
            f"{len(files)} images are); check the image root"
        )
    return set(files)
