"""Configurations made by hand: what is asked of them, and errors that can be acted on."""

import difflib
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import yaml

from balms_det.runtime.errors import InputError


def merge_config(
    cfg: Any,
    merge: Callable[[], object],
    source: str,
    reference: str = "balms_det/config.py and Detectron2's",
) -> None:
    """Run `merge`, turning what yacs and the YAML parser raise into one clear sentence.

    Args:
        cfg: a CfgNode, into which `merge` puts settings.
        source: where they are from, for the error.
        reference: where the keys are explained, for the error.

    Raises:
        InputError: a key is unknown, a value of another type, or a file not valid YAML.
    """
    try:
        merge()
    except KeyError as error:
        raise _unknown_key(cfg, str(error.args[0]), source, reference) from error
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        if reason.startswith("Non-existent key"):
            raise _unknown_key(cfg, reason, source, reference) from error
        raise InputError(f"{source}: {reason}; correct this setting") from error
    except yaml.YAMLError as error:
        raise InputError(
            f"{source}: this is not valid YAML ({' '.join(str(error).split())})"
        ) from error


def _unknown_key(cfg: Any, message: str, source: str, reference: str) -> InputError:
    key = message.split(":")[-1].strip()
    close = difflib.get_close_matches(key, list(_keys(cfg)), n=1, cutoff=0.6)
    remedy = f"did you mean {close[0]}?" if close else f"see {reference}"
    return InputError(f"{source}: there is no configuration key {key}; {remedy}")


def _keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(prefix + name)
        if isinstance(value, dict):  # a CfgNode is one
            keys += _keys(value, f"{prefix}{name}.")
    return keys


@dataclass(frozen=True)
class Range:
    """The values that a number, or a list of them, may have.

    Attributes:
        holds: whether a value is among them.
        allowed: which they are, to end "set it to ...".
    """

    holds: Callable[[Any], object]
    allowed: str


AT_LEAST_0 = Range(lambda value: value >= 0, "0 or more")
AT_LEAST_1 = Range(lambda value: value >= 1, "1 or more")
ABOVE_0 = Range(lambda value: value > 0, "more than 0")
FRACTION = Range(lambda value: 0 <= value <= 1, "a number from 0 to 1")


def check_choices(cfg: Any, choices: Mapping[str, Collection[str]]) -> None:
    """Refuse a name that is not one of the choices of its key.

    Raises:
        InputError: naming the key, its value and the choices.
    """
    for key, allowed in choices.items():
        value = _setting(cfg, key)
        if value not in allowed:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(allowed)}")


def check_ranges(cfg: Any, ranges: Mapping[str, Range]) -> None:
    """Refuse a value that is out of the range of its key.

    Raises:
        InputError: naming the key, its value and the range.
    """
    for key, value_range in ranges.items():
        check(cfg, key, value_range.holds(_setting(cfg, key)), value_range.allowed)


def check(cfg: Any, key: str, holds: object, remedy: str) -> None:
    """Refuse the value of a key unless `holds`.

    Args:
        remedy: what to set it to, to end "set it to ...".

    Raises:
        InputError: naming the key, its value and the remedy.
    """
    if not holds:
        raise InputError(f"{key} is {_setting(cfg, key)!r}; set it to {remedy}")


def _setting(cfg: Any, key: str) -> Any:
    return reduce(getitem, key.split("."), cfg)


LOSS_RANGES = {
    f"MODEL.LONG_TAIL.LOSS.{key}": value_range
    for key, value_range in {
        "PRIOR_PROB": Range(lambda p: 0 < p < 1, "a probability between 0 and 1, both excluded"),
        "MARGIN.TAU": AT_LEAST_0,
        "MARGIN.START_ITER": AT_LEAST_0,
        "CLASS_WEIGHTS.BETA": Range(lambda beta: 0 <= beta < 1, "0 or more, less than 1"),
        "CLASS_WEIGHTS.START_ITER": AT_LEAST_0,
        "FEDERATED.NUM_CLASSES": AT_LEAST_1,
        "FEDERATED.FREQ_POWER": AT_LEAST_0,
        "FOCAL.GAMMA": AT_LEAST_0,
        "FOCAL.ALPHA": Range(
            lambda alpha: alpha == -1 or FRACTION.holds(alpha),
            f"{FRACTION.allowed}, or -1 to leave it out",
        ),
        "LDAM.MAX_MARGIN": AT_LEAST_0,
        "EQL.LAMBDA": FRACTION,
        "EQL.GAMMA": FRACTION,
        "EQLV2.GAMMA": ABOVE_0,
        "EQLV2.MU": ABOVE_0,
        "EQLV2.ALPHA": AT_LEAST_0,
        "SEESAW.P": AT_LEAST_0,
        "SEESAW.Q": AT_LEAST_0,
        "SEESAW.EPS": Range(lambda eps: 0 < eps <= 1, "more than 0, at most 1"),
        "ACSL.SCORE_THRESHOLD": FRACTION,
        "ACSL.BACKGROUND_RATIOS": Range(
            lambda ratios: len(ratios) == 3 and all(map(FRACTION.holds, ratios)),
            "three numbers from 0 to 1, of rare, common and frequent classes",
        ),
        "DROPLOSS.LAMBDA": FRACTION,
        "LOCE.MOMENTUM": FRACTION,
        "LOCE.BACKGROUND_SCORE": ABOVE_0,
        "ECM.BACKGROUND_RATIO": ABOVE_0,
        "GOL.LAMBDA": FRACTION,
        "BAGS.BOUNDARIES": Range(
            lambda limits: all(a < b for a, b in itertools.pairwise((0, *limits))),
            "ascending counts, more than 0",
        ),
        "BAGS.BETA": AT_LEAST_0,
    }.items()
}

META_RANGES = {
    "SOLVER.META.BASE_LR": ABOVE_0,
    "SOLVER.META.INITIAL_POWER": AT_LEAST_0,
    "SOLVER.META.TEMPERATURE": ABOVE_0,
}
