"""Scoring a model on the data sets of a configuration."""

import logging
import os
from collections import OrderedDict
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.data import build_test_loader
from balms_det.evaluation import LVISEvaluator
from balms_det.modeling import prepared_for_inference

logger = logging.getLogger(__name__)


def build_evaluator(
    cfg: Any, dataset_name: str, class_stats: ClassStats | None = None
) -> DatasetEvaluator:
    """Build the evaluator of a data set.

    Args:
        cfg: the configuration.
        dataset_name: of a registered set.
        class_stats: of the model's training set; None where nobody knows them.

    Returns:
        :class:`LVISEvaluator` for boxes and masks of an annotation file; Detectron2's COCO
        evaluator for keypoints, and for sets that are registered without a file.
    """
    output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
    if MetadataCatalog.get(dataset_name).get("json_file") is None or cfg.MODEL.KEYPOINT_ON:
        return COCOEvaluator(dataset_name, output_dir=output_dir)
    return LVISEvaluator(
        dataset_name,
        output_dir=output_dir,
        class_stats=class_stats,
        regroup=cfg.MODEL.LONG_TAIL.GROUPS != "lvis",
    )


def evaluate(
    cfg: Any, model: nn.Module, class_stats: ClassStats | None = None
) -> OrderedDict[str, Any]:
    """Evaluate a model on DATASETS.TEST, run as MODEL.LONG_TAIL.INFERENCE says.

    Args:
        cfg: the configuration.
        model: on its device.
        class_stats: of the model's training set; None where nobody knows them.

    Returns:
        The results of the data set, or of each by its name where there are several.
    """
    prepared = prepared_for_inference(model, cfg.MODEL.LONG_TAIL.INFERENCE)
    results: OrderedDict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        loader = build_test_loader(cfg, name)
        evaluator = build_evaluator(cfg, name, class_stats)
        results[name] = inference_on_dataset(prepared, loader, evaluator)
        if comm.is_main_process():
            logger.info("Evaluation results for %s in csv format:", name)
            print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results
