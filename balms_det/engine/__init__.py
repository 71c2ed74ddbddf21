"""Configuration, training and checkpoints."""

from balms_det.engine.checkpoint import LongTailCheckpointer, checkpoint_of_run, class_stats_in
from balms_det.engine.setup import (
    add_dataset_argument,
    argument_parser,
    load_config,
    prepare_calibration,
    prepare_class_stats,
)
from balms_det.engine.trainer import LongTailTrainer, build_checkpointer
from balms_det.engine.validate import validate_config

__all__ = [
    "LongTailCheckpointer",
    "LongTailTrainer",
    "add_dataset_argument",
    "argument_parser",
    "build_checkpointer",
    "checkpoint_of_run",
    "class_stats_in",
    "load_config",
    "prepare_calibration",
    "prepare_class_stats",
    "validate_config",
]
