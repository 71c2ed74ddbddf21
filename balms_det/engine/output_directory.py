"""The output directory of a run: it can be written, and no other run is lost in it."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from balms_det.runtime.errors import InputError

# What a run leaves, and --overwrite deletes; logs and results of evaluations stay.
_OF_A_RUN = ("*.pth", "last_checkpoint", "metrics.json", "events.out.tfevents.*")
_CHECKPOINTS = ("*.pth", "last_checkpoint")
_LOCK = ".lock"

# Held by this process until it ends.
_locks: list[FileLock] = []


def make_writable(directory: str) -> None:
    """Create a directory where there is none, and try to write in it.

    Raises:
        InputError: it cannot be created or written.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        raise InputError(
            f"{directory}: this OUTPUT_DIR cannot be written ({error.strerror}); set OUTPUT_DIR to "
            "a directory that can be, and has room"
        ) from error


def claim_for_training(directory: str, *, resume: bool, overwrite: bool) -> None:
    """Take a directory for a training of this process.

    Args:
        directory: OUTPUT_DIR.
        resume: whether the training goes on with the checkpoints that are there.
        overwrite: whether to delete those of an earlier run.

    Raises:
        InputError: it cannot be written, another process trains in it, or it has checkpoints that
            the training would neither continue nor may delete.
    """
    make_writable(directory)
    lock = FileLock(os.path.join(directory, _LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{directory}: another process trains in this OUTPUT_DIR; set OUTPUT_DIR to another "
            "directory, or wait"
        ) from error
    _locks.append(lock)
    if resume:
        return
    found = sorted(path.name for pattern in _CHECKPOINTS for path in Path(directory).glob(pattern))
    if found and not overwrite:
        raise InputError(
            f"{directory}: this OUTPUT_DIR has the checkpoints of another run ({found[-1]}); add "
            "--resume to continue it, --overwrite to delete it, or set OUTPUT_DIR to another "
            "directory"
        )
    for pattern in _OF_A_RUN:
        for path in Path(directory).glob(pattern):
            path.unlink()
