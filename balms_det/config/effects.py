"""Options that are set and that the chosen method does not read."""

import logging
from collections.abc import Iterator
from typing import Any

from balms_det.calibration import CalibrationOptions
from balms_det.config.inputs import CopyPasteOptions
from balms_det.config.nodes import LongTailOptions
from balms_det.losses.criterion import CriterionOptions
from balms_det.losses.registry import all_options, loss_named
from balms_det.losses.weights import ClassWeightsOptions
from balms_det.options import Options, options_of, value_at

logger = logging.getLogger(__name__)

_LOSS = "MODEL.LONG_TAIL.LOSS"
# They fit a data set rather than a method: a base sets them for all methods.
_OF_THE_DATA_SET = ("TAIL_THRESHOLD",)


def keys_without_effect(cfg: Any) -> list[str]:
    """Return the keys whose value is not the default, and which the chosen method does not read.

    Args:
        cfg: the whole configuration, of a detector or of a classifier.
    """
    return list(dict.fromkeys(_without_effect(cfg)))


def warn_of_keys_without_effect(cfg: Any) -> None:
    """Name in one warning the keys that :func:`keys_without_effect` finds."""
    keys = keys_without_effect(cfg)
    if keys:
        logger.warning(
            "%s: these keys have no effect with MODEL.LONG_TAIL.LOSS.NAME %r and the other "
            "settings; remove them",
            ", ".join(keys),
            cfg.MODEL.LONG_TAIL.LOSS.NAME,
        )


def _without_effect(cfg: Any) -> Iterator[str]:
    long_tail = cfg.MODEL.LONG_TAIL
    method = loss_named(long_tail.LOSS.NAME)
    read = {item.key for item in options_of(method.options)}
    for options in all_options():
        yield from _changed(cfg, _LOSS, options, skip={*read, *_OF_THE_DATA_SET})
    if not method.has_margin:
        yield from _changed(cfg, _LOSS, CriterionOptions, only={"MARGIN.START_ITER"})
    if long_tail.LOSS.CLASS_WEIGHTS.NAME in ("none", "learned"):
        keys = {"CLASS_WEIGHTS.NORMALISE", "CLASS_WEIGHTS.START_ITER"}
        yield from _changed(cfg, _LOSS, ClassWeightsOptions, only=keys)
    calibration = long_tail.get("CALIBRATION", {}).get("NAME")
    if calibration == "none":
        yield from _changed(
            cfg, "MODEL.LONG_TAIL", CalibrationOptions, only={"CALIBRATION.STRENGTH"}
        )
    if calibration not in (None, "fracal"):
        keys = {"CALIBRATION.FRACTAL_POWER"}
        yield from _changed(cfg, "MODEL.LONG_TAIL", CalibrationOptions, only=keys)
    if calibration not in (None, "logn"):
        keys = {"CALIBRATION.LOGIT_STATS"}
        yield from _changed(cfg, "MODEL.LONG_TAIL", CalibrationOptions, only=keys)
    if long_tail.DECOUPLE.get("FEATURE_CACHE"):  # Pasting would need the images.
        yield from _changed(cfg, "INPUT", CopyPasteOptions)
    if "cosine" not in (long_tail.CLASSIFIER, long_tail.get("MASK_CLASSIFIER")):
        yield from _changed(cfg, "MODEL.LONG_TAIL", LongTailOptions, only={"COSINE_TEMPERATURE"})


def _changed(
    cfg: Any,
    prefix: str,
    options: type[Options],
    *,
    skip: set[str] | None = None,
    only: set[str] | None = None,
) -> Iterator[str]:
    """Yield the keys of some options that have another value than their default."""
    for item in options_of(options):
        if item.key in (skip or ()) or (only is not None and item.key not in only):
            continue
        value = value_at(cfg, f"{prefix}.{item.key}")
        # yacs reads a list as a tuple where the default is one.
        same = tuple(value) == tuple(item.default) if _is_sequence(value) else value == item.default
        if not same:
            yield f"{prefix}.{item.key}"


def _is_sequence(value: object) -> bool:
    return isinstance(value, list | tuple)
