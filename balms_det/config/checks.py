"""Configurations made by hand: what is asked of them, and errors that can be acted on."""

from collections.abc import Callable
from typing import Any

import yaml

from balms_det.options import Choices, Range, closest, value_at
from balms_det.runtime.errors import InputError

_LONG_TAIL = "MODEL.LONG_TAIL"
# Keys of earlier versions, and what takes their place.
_FORMER_KEYS = {
    f"{_LONG_TAIL}.POSTHOC": f"it is called {_LONG_TAIL}.CALIBRATION now",
    **{
        f"{_LONG_TAIL}.LOSS.{loss}": (
            f"one threshold serves all losses now: set {_LONG_TAIL}.LOSS.TAIL_THRESHOLD"
        )
        for loss in ("EQL.LAMBDA", "DROPLOSS", "GOL")
    },
    "TEST.LVIS_BACKEND": "remove it: hotcoco scores all evaluations, equal to lvis-api",
}


def merge_config(
    cfg: Any,
    merge: Callable[[], object],
    source: str,
    reference: str = "docs/CONFIGURATION.md and Detectron2's documentation",
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
    except (AssertionError, TypeError, ValueError) as error:
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
    for old, remedy in _FORMER_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return InputError(f"{source}: the configuration key {key} is gone; {remedy}")
    close = closest(key, _keys(cfg))
    remedy = f"did you mean {close}?" if close else f"see {reference}"
    return InputError(f"{source}: there is no configuration key {key}; {remedy}")


def _keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(prefix + name)
        if isinstance(value, dict):  # a CfgNode is one
            keys += _keys(value, f"{prefix}{name}.")
    return keys


def check_allowed(cfg: Any, key: str, allowed: Range | Choices) -> None:
    """Refuse the value of a key that is not among `allowed`.

    Raises:
        InputError: names the key, its value and what is allowed.
    """
    refusal = allowed.refusal(key, value_at(cfg, key))
    if refusal:
        raise InputError(refusal)


def check(cfg: Any, key: str, holds: object, remedy: str) -> None:
    """Refuse the value of a key unless `holds`.

    Args:
        remedy: what to set it to, to end "set it to ...".

    Raises:
        InputError: naming the key, its value and the remedy.
    """
    if not holds:
        raise InputError(f"{key} is {value_at(cfg, key)!r}; set it to {remedy}")
