"""All losses by name, found in the files of this directory.

A new loss is one file beside this one that defines a :class:`~balms_det.losses.loss.Loss` with a
`name`; nothing lists it anywhere else.
"""

import importlib
import pkgutil
from typing import Any

import balms_det.losses
from balms_det.losses.loss import Loss
from balms_det.options import Options, closest
from balms_det.runtime.errors import InputError

# They use the losses and define none.
_WITHOUT_LOSSES = ("criterion", "registry")
# The order of the tables in documents: baselines, ours, then the others by name.
_FIRST = ("softmax", "sigmoid", "balanced_softmax", "balanced_sigmoid")


def find_losses() -> dict[str, type[Loss]]:
    """Import every file of the directory and return its named losses."""
    for module in pkgutil.iter_modules(balms_det.losses.__path__):
        if module.name not in _WITHOUT_LOSSES:
            importlib.import_module(f"balms_det.losses.{module.name}")
    found = {loss.name: loss for loss in _subclasses(Loss) if loss.name}
    return {name: found[name] for name in (*_FIRST, *sorted(found.keys() - {*_FIRST}))}


def _subclasses(parent: type[Loss]) -> list[type[Loss]]:
    return [loss for child in parent.__subclasses__() for loss in (child, *_subclasses(child))]


LOSSES = find_losses()


def loss_named(name: str) -> type[Loss]:
    """Return the class of a loss.

    Raises:
        InputError: there is none of that name.
    """
    if name not in LOSSES:
        close = closest(name, LOSSES)
        hint = f"did you mean {close!r}? " if close else ""
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS.NAME is {name!r}; {hint}choose one of {', '.join(LOSSES)}"
        )
    return LOSSES[name]


def all_options() -> list[type[Options]]:
    """Return the options dataclasses of all losses, in the order of the losses."""
    return [loss.options for loss in LOSSES.values()]


def options_in(node: Any, loss: type[Loss]) -> Options:
    """Return the options of a loss that a MODEL.LONG_TAIL.LOSS node holds."""
    return loss.options.from_node(node)
