"""Values as people write them, made what the types of their keys ask for."""

from collections.abc import Sequence
from typing import Any

from balms_det.options import value_at
from balms_det.runtime.errors import InputError


def fitted_file(cfg: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file with integers as floats where the keys are floats.

    Args:
        cfg: a CfgNode with all keys.
        content: nested settings; unknown keys are kept as they are.
    """
    return {
        name: (
            fitted_file(cfg[name], value)
            if isinstance(value, dict) and isinstance(cfg.get(name), dict)
            else _fitted(cfg.get(name), value)
        )
        for name, value in content.items()
    }


def fitted_overrides(cfg: Any, overrides: Sequence[Any]) -> list[Any]:
    """Return KEY VALUE ... of a command line, with values that fit the types of their keys.

    An integer serves for a float, and a plain name, or names with commas between them, for a
    tuple of names.

    Raises:
        InputError: a flag stands among them, or a key has no value.
    """
    for word in overrides:
        if isinstance(word, str) and word.startswith("--"):
            raise InputError(
                f"{word} stands after the first KEY VALUE of the command line; put flags before"
            )
    if len(overrides) % 2:
        raise InputError(
            f"the command line ends in {overrides[-1]!r}, but settings are pairs, KEY VALUE; give "
            "each key one value, in quotes where it has spaces"
        )
    fitted: list[Any] = []
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        fitted += [key, _fitted_text(cfg, key, value)]
    return fitted


def _fitted_text(cfg: Any, key: str, value: Any) -> Any:
    try:
        present = value_at(cfg, key)
    except (KeyError, TypeError):
        return value  # yacs tells that there is no such key.
    if not isinstance(value, str):
        return _fitted(present, value)
    if isinstance(present, tuple) and value and not value.lstrip().startswith(("(", "[")):
        if all(isinstance(item, str) for item in present):
            return str(tuple(part.strip() for part in value.split(",")))
    if type(present) is float:
        try:
            return str(float(int(value)))
        except ValueError:
            return value
    return value


def _fitted(present: Any, value: Any) -> Any:
    return float(value) if type(present) is float and type(value) is int else value
