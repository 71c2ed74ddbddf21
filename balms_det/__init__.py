"""Long-tailed instance segmentation on Detectron2: Balanced Sigmoid and its peers.

The names below are the package's surface. Importing the package imports none of them; the first use
of a name imports its module. Using ``add_balms_config`` or a head from here registers the ROI heads
with Detectron2, so one import is enough:

    from balms_det import add_balms_config
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Each public name and its module.
_SURFACE = {
    "BalancedSigmoid": "balms_det.losses",
    "BalancedSoftmax": "balms_det.losses",
    "ClassStats": "balms_det.annotations.class_stats",
    "Criterion": "balms_det.losses.criterion",
    "LVISEvaluator": "balms_det.evaluation",
    "LongTailCascadeROIHeads": "balms_det.modeling",
    "LongTailMaskHead": "balms_det.modeling",
    "LongTailPredictor": "balms_det.modeling",
    "LongTailROIHeads": "balms_det.modeling",
    "LongTailTrainer": "balms_det.engine",
    "LOSSES": "balms_det.losses.registry",
    "Loss": "balms_det.losses",
    "add_balms_config": "balms_det.config",
    "build_criterion": "balms_det.losses.criterion",
    "config_file": "balms_det.config",
}
__all__ = ["__version__", *_SURFACE]

if TYPE_CHECKING:
    from balms_det.annotations.class_stats import ClassStats as ClassStats
    from balms_det.config import add_balms_config as add_balms_config
    from balms_det.config import config_file as config_file
    from balms_det.engine import LongTailTrainer as LongTailTrainer
    from balms_det.evaluation import LVISEvaluator as LVISEvaluator
    from balms_det.losses import BalancedSigmoid as BalancedSigmoid
    from balms_det.losses import BalancedSoftmax as BalancedSoftmax
    from balms_det.losses import Loss as Loss
    from balms_det.losses.criterion import Criterion as Criterion
    from balms_det.losses.criterion import build_criterion as build_criterion
    from balms_det.losses.registry import LOSSES as LOSSES
    from balms_det.modeling import LongTailCascadeROIHeads as LongTailCascadeROIHeads
    from balms_det.modeling import LongTailMaskHead as LongTailMaskHead
    from balms_det.modeling import LongTailPredictor as LongTailPredictor
    from balms_det.modeling import LongTailROIHeads as LongTailROIHeads


def __getattr__(name: str) -> Any:
    if name not in _SURFACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "add_balms_config":
        importlib.import_module("balms_det.modeling")  # registers the ROI heads
    return getattr(importlib.import_module(_SURFACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
