"""ROI heads and losses. Importing this registers the ROI heads with Detectron2."""

from balms_det.modeling.classifier import CLASSIFIERS, ScaledLinear
from balms_det.modeling.criterion import METHODS, PLAIN_LOSSES, Criterion, build_criterion
from balms_det.modeling.decouple import find_modules, freeze_except, is_within
from balms_det.modeling.execution import PRECISIONS, prepared_for_inference, use_winograd
from balms_det.modeling.lazy import criterion_from_options
from balms_det.modeling.mask_head import LongTailMaskHead
from balms_det.modeling.predictor import LongTailPredictor
from balms_det.modeling.roi_features import sampled_roi_features, train_on_features
from balms_det.modeling.roi_heads import LongTailCascadeROIHeads, LongTailROIHeads

__all__ = [
    "CLASSIFIERS",
    "METHODS",
    "PLAIN_LOSSES",
    "PRECISIONS",
    "Criterion",
    "LongTailCascadeROIHeads",
    "LongTailMaskHead",
    "LongTailPredictor",
    "LongTailROIHeads",
    "ScaledLinear",
    "build_criterion",
    "criterion_from_options",
    "find_modules",
    "freeze_except",
    "is_within",
    "prepared_for_inference",
    "sampled_roi_features",
    "train_on_features",
    "use_winograd",
]
