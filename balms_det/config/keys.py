"""The configuration keys that this package adds to Detectron2's.

They are generated from dataclasses of options, which state default, allowed values, meaning and
source of each: those of the losses (:mod:`balms_det.losses`), of the calibration
(:mod:`balms_det.calibration`) and of :mod:`balms_det.config.nodes`; docs/CONFIGURATION.md has all.
"""

from typing import Any

from balms_det.calibration import CalibrationOptions
from balms_det.config.inputs import CopyPasteOptions, LargeScaleJitterOptions
from balms_det.config.nodes import (
    DatasetOptions,
    DecoupleOptions,
    InferenceOptions,
    LongTailOptions,
    MetaOptions,
    OptimizerOptions,
)
from balms_det.losses.criterion import CriterionOptions
from balms_det.losses.registry import all_options
from balms_det.losses.weights import ClassWeightsOptions, FederatedOptions
from balms_det.options import Options, add_keys, check_keys

LOSS_NODE = "MODEL.LONG_TAIL.LOSS"


def option_groups() -> list[tuple[str, type[Options]]]:
    """Return every options dataclass with the path of the node that its keys lie below."""
    losses: list[type[Options]] = [
        CriterionOptions,
        *all_options(),
        ClassWeightsOptions,
        FederatedOptions,
    ]
    return [
        ("MODEL.LONG_TAIL", LongTailOptions),
        *((LOSS_NODE, options) for options in losses),
        ("MODEL.LONG_TAIL", CalibrationOptions),
        ("MODEL.LONG_TAIL", DecoupleOptions),
        ("MODEL.LONG_TAIL", InferenceOptions),
        ("DATASETS", DatasetOptions),
        ("INPUT", CopyPasteOptions),
        ("INPUT", LargeScaleJitterOptions),
        ("SOLVER", OptimizerOptions),
        ("SOLVER", MetaOptions),
    ]


def add_balms_config(cfg: Any) -> None:
    """Return add this package's keys, with their defaults, to a Detectron2 configuration, in
    place."""
    for path, options in option_groups():
        node = cfg
        for step in path.split("."):
            if step not in node:
                node[step] = type(cfg)()
            node = node[step]
        add_keys(node, options)


def check_options(cfg: Any) -> None:
    """Refuse a value that its option does not allow.

    Keys that `cfg` does not have, as a classifier's lacks those of detectors, are passed over.

    Raises:
        InputError: names the key, its value and what is allowed.
    """
    for path, options in option_groups():
        check_keys(cfg, path, options)
