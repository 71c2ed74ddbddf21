"""Long-tailed classification with the detector's losses, samplers and bilevel step."""

from balms_det.classification.config import default_config, load_config, validate_config
from balms_det.classification.criterion import ClassificationCriterion
from balms_det.classification.trainer import Trainer

__all__ = [
    "ClassificationCriterion",
    "Trainer",
    "default_config",
    "load_config",
    "validate_config",
]
