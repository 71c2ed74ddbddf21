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
    """Decorate the main function of a spawned process: the process ends with it.

    It ends as multiprocessing ends a forked one: threads join, exit handlers run and streams are
    flushed, but the interpreter is not torn down. A thread of Gloo may still hold a tensor of
    the last collective after the main thread has its result. Releasing that tensor during the
    interpreter's teardown aborts the process (pytorch/pytorch#179291), and with it a complete
    training.

    An exception propagates, and a process that was not spawned gets the result of `main`.
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
