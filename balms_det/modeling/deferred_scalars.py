"""Logging of scalars that are on a device, without waiting for it in every iteration."""

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor

# Detectron2's writers write in iterations 19, 39 and so on.
_PERIOD = 20


@dataclass(frozen=True)
class _Scalar:
    """A call of :func:`put_scalar`, with the storage's prefix and iteration at that time."""

    prefix: str
    name: str
    iteration: int
    value: Tensor
    skip_nan: bool


# The scalars that wait, by EventStorage.
_pending: "weakref.WeakKeyDictionary[Any, list[_Scalar]]" = weakref.WeakKeyDictionary()


def put_scalar(name: str, value: Tensor, *, skip_nan: bool = False) -> None:
    """Put a scalar into Detectron2's EventStorage, by the time that its writers write.

    A scalar on the host is put at once.

    Args:
        name: below the storage's current prefix.
        value: ().
        skip_nan: put no NaN.
    """
    storage = get_event_storage()
    prefix, iteration = storage._current_prefix, int(storage.iter)
    pending = _pending.setdefault(storage, [])
    pending.append(_Scalar(prefix, name, iteration, value.detach(), skip_nan))
    if value.device.type == "cpu" or (iteration + 1) % _PERIOD == 0:
        put_pending_scalars(storage, value.device)


def put_pending_scalars(storage: Any, device: torch.device | None = None) -> None:
    """Put what is pending into `storage`, with one wait for each device.

    Args:
        storage: an EventStorage.
        device: of the scalars; None for all.
    """
    pending = _pending.get(storage, [])
    devices = {scalar.value.device for scalar in pending} if device is None else {device}
    for each in devices:
        ready = [scalar for scalar in pending if scalar.value.device == each]
        values = torch.stack([scalar.value.double() for scalar in ready]).tolist()
        for scalar, value in zip(ready, values, strict=True):
            if not (scalar.skip_nan and math.isnan(value)):
                _put(storage, scalar, value)
    _pending[storage] = [scalar for scalar in pending if scalar.value.device not in devices]


def _put(storage: Any, scalar: _Scalar, value: float) -> None:
    current = storage._current_prefix
    storage._current_prefix = scalar.prefix
    try:
        storage.put_scalar(scalar.name, value, cur_iter=scalar.iteration)
    finally:
        storage._current_prefix = current
