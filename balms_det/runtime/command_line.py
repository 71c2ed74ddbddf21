"""How the command-line tools end: an error of the user's input is one sentence."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from balms_det.runtime.errors import InputError

_UNWRITABLE = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


def run_tool(tool: Callable[[], Any]) -> None:
    """Run a command-line tool.

    An InputError, and a file that cannot be written, end it with one sentence and exit status 2; an
    interrupt with 130, a closed pipe with 141. A status that it returns is its exit status.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_input_error)
    try:
        status = tool()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(
            "interrupted; add --resume to continue a training from its last checkpoint",
            file=sys.stderr,
        )
        sys.exit(130)
    except BrokenPipeError:
        # Nobody reads the output any more; flushing it at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sentence = input_error_sentence(error) or _unwritable(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    if status:
        sys.exit(status)


def input_error_sentence(error: BaseException) -> str | None:
    """Return the sentence of the InputError that `error` is or reports from another process.

    Workers of a data loader and spawned processes hand their errors on as text, with the
    traceback around it.
    """
    marker = f"{InputError.__module__}.{InputError.__name__}: "
    for line in reversed(str(error).splitlines()):
        if marker in line:
            return line.split(marker, 1)[1]
    return str(error) if isinstance(error, InputError) else None


def _unwritable(error: Exception) -> str | None:
    """Return the sentence of a place where nothing can be written, or None."""
    if not isinstance(error, OSError) or error.errno not in _UNWRITABLE:
        return None
    place = error.filename or "the output"
    return f"{place}: {error.strerror}; choose a place that can be written and has room"


def _is_no_input_error(record: logging.LogRecord) -> bool:
    """Keep Detectron2 from logging the traceback of an error whose sentence will be printed."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or input_error_sentence(error) is None
