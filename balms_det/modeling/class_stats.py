"""Giving a model that is built already the class statistics of its training set."""

from typing import Any

from torch import nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.calibration import build_calibration
from balms_det.losses.criterion import build_criterion
from balms_det.modeling.predictor import LongTailPredictor, check_class_stats, training_iteration


def provide_class_stats(model: nn.Module, long_tail: Any, stats: ClassStats) -> None:
    """Give every predictor of a model its criterion and calibration, in place.

    Detectron2 builds a model from the configuration alone, so its predictors start with a criterion
    for inference. Parameters and buffers that checkpoints hold keep names, shapes and initial
    values.

    Args:
        model: as built, before it is distributed; without predictors of this package it stays as it
            is.
        long_tail: ``cfg.MODEL.LONG_TAIL``.
        stats: of the training set.

    Raises:
        InputError: the statistics have another number of classes than the model.
    """
    for predictor in model.modules():
        if not isinstance(predictor, LongTailPredictor):
            continue
        check_class_stats(stats, predictor.num_classes, "the class statistics")
        criterion = build_criterion(long_tail, predictor.num_classes, stats, training_iteration)
        calibration = build_calibration(long_tail, stats, exclusive=criterion.activation.exclusive)
        device = predictor.cls_score.weight.device
        predictor.criterion = criterion.train(predictor.criterion.training).to(device)
        predictor.calibration = None if calibration is None else calibration.to(device)
