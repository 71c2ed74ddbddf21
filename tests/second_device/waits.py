"""How often the host waits for the device, and whose code makes it wait."""

import collections
import contextlib
import re
import sys
from collections.abc import Iterator
from types import FrameType

# A wait is named after the innermost frame in the code of one of these.
_OWNERS = {
    "balms_det": "/balms_det/(?!tests/)",
    "Detectron2": "/detectron2/",
    "PyTorch's optimizers and gradient scaler": "/torch/(?:optim|amp)/",
}
_listeners: list["Heard"] = []


def heard(kind: str, operation: str) -> None:
    """Tell all listeners of what the device was asked."""
    for listener in _listeners:
        listener.add(kind, operation)


class Heard:
    """What a block asked of the device.

    Attributes:
        counts: of (kind, operation, owner, place), with kind "wait" (the host waits), "copy" (it
            does not) or "hazard" (it does not, and should).
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str, str, str]] = collections.Counter()

    def add(self, kind: str, operation: str) -> None:
        """Count one operation of the code that is running."""
        self.counts[kind, operation, *_owner_and_place(sys._getframe(1))] += 1

    def total(self, kind: str = "wait", owner: str | None = None) -> int:
        """Return how many were heard, of one owner or of all."""
        return sum(
            number
            for (heard_kind, _, heard_owner, _), number in self.counts.items()
            if heard_kind == kind and owner in (None, heard_owner)
        )

    def table(self, owner: str | None = None) -> str:
        """Return lines of number, kind, operation, owner and place, for messages."""
        return "\n".join(
            f"{number} x {' | '.join(key)}"
            for key, number in self.counts.most_common()
            if owner in (None, key[2])
        )


def _owner_and_place(frame: FrameType | None) -> tuple[str, str]:
    """Return whose code the innermost frame of known code is, and its file, line and function."""
    while frame is not None:
        path = frame.f_code.co_filename.replace("\\", "/")
        installed = re.sub(r".*/site-packages(?=/)", "", path)
        for owner, pattern in _OWNERS.items():
            if re.search(pattern, installed) and "/second_device/" not in installed:
                file = "/".join(installed.split("/")[-3:])
                return owner, f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "others", "(a thread of autograd)"


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Count what the block asks of the device."""
    from second_device.build import extension

    listener = Heard()
    _listeners.append(listener)
    extension().listen(heard)
    try:
        yield listener
    finally:
        _listeners.remove(listener)
        if not _listeners:
            extension().listen(None)
