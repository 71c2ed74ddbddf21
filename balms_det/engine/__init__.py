"""Configuration, class statistics, training and checkpoints."""

from balms_det.engine.checkpoint import LongTailCheckpointer, checkpoint_of_run
from balms_det.engine.class_stats import (
    class_stats_in,
    inference_class_stats,
    resolve_class_stats,
    training_class_stats,
)
from balms_det.engine.data_checks import check_data, fitted_to_data
from balms_det.engine.evaluate import build_evaluator, evaluate
from balms_det.engine.launch import launch
from balms_det.engine.run import run
from balms_det.engine.setup import load_config
from balms_det.engine.trainer import (
    LongTailTrainer,
    build_checkpointer,
    build_long_tail_model,
)
from balms_det.engine.validate import validate_config

__all__ = [
    "LongTailCheckpointer",
    "LongTailTrainer",
    "build_checkpointer",
    "build_evaluator",
    "build_long_tail_model",
    "check_data",
    "checkpoint_of_run",
    "class_stats_in",
    "evaluate",
    "fitted_to_data",
    "inference_class_stats",
    "launch",
    "load_config",
    "resolve_class_stats",
    "run",
    "training_class_stats",
    "validate_config",
]
