"""Options that state their default, allowed values, meaning and source once.

A frozen dataclass lists the options of one part: a loss, a calibration, the inference modes. Each
field is made by :func:`option`. From these fields come the checks of a constructor's arguments, the
keys of a configuration node with their ranges, and the reference of keys in the documents.
"""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from balms_det.runtime.errors import InputError


@dataclass(frozen=True)
class Range:
    """The values that a number, or a list of numbers, may have.

    Attributes:
        holds: whether a value is allowed.
        allowed: the allowed values in words, to end "set it to ...".
    """

    holds: Callable[[Any], object]
    allowed: str

    def refusal(self, key: str, value: object) -> str | None:
        """Return the sentence that refuses `value`, or None."""
        return None if self.holds(value) else f"{key} is {value!r}; set it to {self.allowed}"


@dataclass(frozen=True)
class Choices:
    """The names that a string may have."""

    names: Collection[str]

    @property
    def allowed(self) -> str:
        return ", ".join(self.names)

    def refusal(self, key: str, value: object) -> str | None:
        """Return the sentence that refuses `value`, or None."""
        return None if value in self.names else f"{key} is {value!r}; choose one of {self.allowed}"


AT_LEAST_0 = Range(lambda value: value >= 0, "0 or more")
AT_LEAST_1 = Range(lambda value: value >= 1, "1 or more")
ABOVE_0 = Range(lambda value: value > 0, "more than 0")
FRACTION = Range(lambda value: 0 <= value <= 1, "a number from 0 to 1")


@dataclass(frozen=True)
class Option:
    """One option: a field of an options dataclass.

    Attributes:
        name: of the field and of the constructor's argument.
        key: path of its configuration key below the node of its family, e.g. "MARGIN.TAU".
        default: its value where nothing is given.
        allowed: the values it may have; None where its type is the only limit.
        meaning: what it does, in one or two sentences.
        source: paper or code that the default is from; "" where it is ours.
    """

    name: str
    key: str
    default: Any
    allowed: Range | Choices | None
    meaning: str
    source: str

    def check(self, value: object, *, key: str | None = None) -> None:
        """Refuse a value that is not allowed.

        Raises:
            InputError: names the key, the value and what is allowed.
        """
        refusal = self.allowed.refusal(key or self.name, value) if self.allowed else None
        if refusal:
            raise InputError(refusal)


def option(
    key: str,
    default: Any,
    meaning: str,
    *,
    allowed: Range | Choices | None = None,
    source: str = "",
) -> Any:
    """Make a field of an options dataclass; arguments as the attributes of :class:`Option`."""
    metadata = {"option": (key, allowed, meaning, source)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of options dataclasses; constructing one checks its values."""

    def __post_init__(self) -> None:
        for item in options_of(type(self)):
            item.check(getattr(self, item.name))

    @classmethod
    def from_node(cls, node: Any) -> Self:
        """Return the options that a configuration node holds under their keys."""
        return cls(**{item.name: value_at(node, item.key) for item in options_of(cls)})


def options_of(options: type[Options]) -> Iterator[Option]:
    """Yield the options that a dataclass lists, in its order."""
    for item in dataclasses.fields(options):
        key, allowed, meaning, source = item.metadata["option"]
        default = item.default
        if default is dataclasses.MISSING:
            assert item.default_factory is not dataclasses.MISSING
            default = item.default_factory()
        yield Option(item.name, key, default, allowed, meaning, source)


def add_keys(node: Any, options: type[Options]) -> None:
    """Return add the keys of an options dataclass, with their defaults, to a configuration node."""
    for item in options_of(options):
        *path, name = item.key.split(".")
        place = node
        for step in path:
            if step not in place:
                place[step] = type(node)()
            place = place[step]
        place[name] = item.default


def check_keys(cfg: Any, prefix: str, options: type[Options]) -> None:
    """Refuse a configuration whose value for an option is not allowed.

    Args:
        cfg: the whole configuration.
        prefix: path of the node that the keys of `options` lie below; empty for the root.

    Raises:
        InputError: names the whole key, its value and what is allowed.
    """
    for item in options_of(options):
        key = f"{prefix}.{item.key}" if prefix else item.key
        try:
            value = value_at(cfg, key)
        except KeyError:
            continue  # A classifier's configuration lacks what only detectors have.
        item.check(value, key=key)


def closest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that `name` most resembles, or None where none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def value_at(node: Any, key: str) -> Any:
    """Return the value under a dotted key of a configuration node."""
    for step in key.split("."):
        node = node[step]
    return node
