"""Configurations made by hand: errors that can be acted on, and the ranges of the losses' keys."""

import difflib
import itertools
from collections.abc import Callable
from typing import Any

import yaml

from balms_det.errors import InputError


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


def loss_ranges(loss: Any) -> list[tuple[str, Any, Callable[[Any], bool], str]]:
    """Of a MODEL.LONG_TAIL.LOSS node: key under it, value, whether a value is allowed, what is."""

    def not_negative(value: float) -> bool:
        return value >= 0

    def positive(value: float) -> bool:
        return value > 0

    def fraction(value: float) -> bool:
        return 0 <= value <= 1

    at_least_0, above_0, from_0_to_1 = "0 or more", "more than 0", "a number from 0 to 1"
    weights = loss.CLASS_WEIGHTS
    return [
        ("CLASS_WEIGHTS.BETA", weights.BETA, lambda beta: 0 <= beta < 1, "0 or more, less than 1"),
        ("CLASS_WEIGHTS.START_ITER", weights.START_ITER, not_negative, at_least_0),
        ("FEDERATED.NUM_CLASSES", loss.FEDERATED.NUM_CLASSES, lambda n: n >= 1, "1 or more"),
        ("FEDERATED.FREQ_POWER", loss.FEDERATED.FREQ_POWER, not_negative, at_least_0),
        ("FOCAL.GAMMA", loss.FOCAL.GAMMA, not_negative, at_least_0),
        (
            "FOCAL.ALPHA",
            loss.FOCAL.ALPHA,
            lambda alpha: alpha == -1 or fraction(alpha),
            f"{from_0_to_1}, or -1 to leave it out",
        ),
        ("LDAM.MAX_MARGIN", loss.LDAM.MAX_MARGIN, not_negative, at_least_0),
        ("EQL.LAMBDA", loss.EQL.LAMBDA, fraction, from_0_to_1),
        ("EQL.GAMMA", loss.EQL.GAMMA, fraction, from_0_to_1),
        ("EQLV2.GAMMA", loss.EQLV2.GAMMA, positive, above_0),
        ("EQLV2.MU", loss.EQLV2.MU, positive, above_0),
        ("EQLV2.ALPHA", loss.EQLV2.ALPHA, not_negative, at_least_0),
        ("SEESAW.P", loss.SEESAW.P, not_negative, at_least_0),
        ("SEESAW.Q", loss.SEESAW.Q, not_negative, at_least_0),
        ("SEESAW.EPS", loss.SEESAW.EPS, lambda eps: 0 < eps <= 1, "more than 0, at most 1"),
        ("ACSL.SCORE_THRESHOLD", loss.ACSL.SCORE_THRESHOLD, fraction, from_0_to_1),
        (
            "ACSL.BACKGROUND_RATIOS",
            loss.ACSL.BACKGROUND_RATIOS,
            lambda ratios: len(ratios) == 3 and all(map(fraction, ratios)),
            "three numbers from 0 to 1, of rare, common and frequent classes",
        ),
        ("DROPLOSS.LAMBDA", loss.DROPLOSS.LAMBDA, fraction, from_0_to_1),
        ("LOCE.MOMENTUM", loss.LOCE.MOMENTUM, fraction, from_0_to_1),
        ("LOCE.BACKGROUND_SCORE", loss.LOCE.BACKGROUND_SCORE, positive, above_0),
        ("ECM.BACKGROUND_RATIO", loss.ECM.BACKGROUND_RATIO, positive, above_0),
        ("GOL.LAMBDA", loss.GOL.LAMBDA, fraction, from_0_to_1),
        (
            "BAGS.BOUNDARIES",
            loss.BAGS.BOUNDARIES,
            lambda limits: all(a < b for a, b in itertools.pairwise((0, *limits))),
            "ascending counts, more than 0",
        ),
        ("BAGS.BETA", loss.BAGS.BETA, not_negative, at_least_0),
    ]
