"""How a process that was spawned to train with others ends."""

import atexit
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def exit_without_teardown(main: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate what a process is spawned to do: the process ends as soon as that is done.

    It ends as multiprocessing ends a forked one: threads join, exit handlers run and streams are
    flushed, but the interpreter is not torn down. For the threads of Gloo may still hold a tensor
    of the last collective whose result the main thread has already; to let go of it while the
    interpreter is being torn down aborts the process (pytorch/pytorch#179291), and with it a
    training that was complete.

    An exception leaves `main` as ever, and so does its result in a process that nobody spawned.
    """

    @functools.wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        result = main(*args, **kwargs)
        if multiprocessing.parent_process() is not None:
            _end_process()
        return result

    return run


def _end_process() -> None:
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
