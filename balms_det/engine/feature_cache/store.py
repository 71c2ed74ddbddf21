"""The files of a feature cache: features, classes and numbers of rows, memory-mapped.

Names and shapes as in :mod:`balms_det.engine.feature_cache`.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm
from filelock import FileLock, Timeout
from torch import Tensor

from balms_det.runtime.errors import InputError

_NOT_YET = -1
_PATIENCE_S = 60  # far below the half hour after which Detectron2's processes give up


@dataclass(frozen=True)
class FeatureCache:
    """Features and classes of the proposals of every training image.

    Attributes:
        features: float16 (V * N, R, D), memory-mapped, as are the others.
        classes: int32 (V * N, R), in [0, K].
        num_rows: int32 (V * N,), at most R; -1 for a slot that is not there yet.
        num_images: N.
    """

    features: np.memmap
    classes: np.memmap
    num_rows: np.memmap
    num_images: int

    @classmethod
    def open(
        cls, folder: Path, *, num_images: int, views: int, rows: int, width: int
    ) -> "FeatureCache":
        """Open the cache in `folder`, or start an empty one.

        Args:
            folder: named by :func:`cache_key`.
            num_images, views, rows, width: N, V, R and D.

        Raises:
            InputError: what is there is broken, or there is no room for it.
        """
        num_slots = views * num_images
        arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
            "features": (np.float16, (num_slots, rows, width)),
            "classes": (np.int32, (num_slots, rows)),
            "num_rows": (np.int32, (num_slots,)),
        }
        if comm.is_main_process() and not folder.exists():
            _create(folder, arrays)
        comm.synchronize()
        opened = {}
        for name, (dtype, shape) in arrays.items():
            path = folder / f"{name}.npy"
            try:
                np.load(path, mmap_mode="r")  # "r+" would lengthen a file that is too short.
                opened[name] = np.load(path, mmap_mode="r+")
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{path}: this part of the feature cache cannot be read ({error}); remove "
                    f"{folder}, and the features are computed anew"
                ) from error
            assert (opened[name].dtype, opened[name].shape) == (dtype, shape), path
        return cls(num_images=num_images, **opened)

    def missing(self) -> np.ndarray:
        """Return slots that are not there yet, ascending."""
        return np.flatnonzero(self.num_rows == _NOT_YET)

    def write(self, slots: Sequence[int], rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put features and classes into slots, which do not count before :meth:`commit`."""
        for slot, (features, classes) in zip(slots, rows, strict=True):
            half = features.half().cpu().numpy()
            if not np.isfinite(half).all():
                raise InputError(
                    f"the box head's features of image {slot % self.num_images} of the training "
                    "set are not finite in half precision, so that they cannot be cached; set "
                    "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE to '', or check MODEL.WEIGHTS"
                )
            self.features[slot, : len(half)] = half
            self.classes[slot, : len(half)] = classes.cpu().numpy()

    def commit(self, slots: Sequence[int], num_rows: Sequence[int]) -> None:
        """Let written slots count, once what they hold is on the disk."""
        self.features.flush()
        self.classes.flush()
        self.num_rows[list(slots)] = num_rows
        self.num_rows.flush()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs from filling the cache; the processes of this run wait, and go on together.

    A collective operation gives up after half an hour, and another run may compute for longer.
    The processes therefore meet again and again while they wait.
    """
    lock = FileLock(f"{folder}.lock") if comm.is_main_process() else None
    while not comm.all_gather(lock is not None and _acquired(lock, folder))[0]:
        pass
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(lock: FileLock, folder: Path) -> bool:
    """Wait a while for the lock, and return whether it is ours."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        return False
    except OSError as error:
        raise _not_writable(folder, error) from error
    return True


def _create(folder: Path, arrays: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Return an empty cache, which is there whole or not at all; its files take up room as they
    fill."""
    try:
        size = sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in arrays.values()
        )
        free = shutil.disk_usage(folder.parent).free
        if size > free:
            raise InputError(
                f"{folder}: the features take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
                "free; make room, name another folder in MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE, "
                f"or keep fewer than {arrays['features'][1][1]} proposals of an image with "
                "MODEL.LONG_TAIL.DECOUPLE.FEATURE_ROWS"
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir()
        for name, (dtype, shape) in arrays.items():
            array = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, shape)
            if name == "num_rows":
                array[:] = _NOT_YET
            array.flush()
        partial.replace(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder}: the feature cache cannot be written ({error.strerror}); name another folder in "
        "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE"
    )
