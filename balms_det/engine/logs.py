"""What of a run's log is shown on the screen: one screen before the first iteration."""

import logging
import re
import sys

from detectron2.utils.logger import setup_logger

_LOGGERS = ("fvcore", "detectron2", "balms_det")
# Their information is for log.txt: environment, configuration, data set tables, parameters.
_FOR_THE_FILE = (
    "detectron2",
    "detectron2.checkpoint",
    "detectron2.data",
    "fvcore.common.checkpoint",
)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def set_up_logs(output_dir: str, rank: int) -> None:
    """Log to the screen and to ``log.txt``, which has everything, without color codes.

    Call it before Detectron2's ``default_setup``, which then finds its loggers set up.

    Args:
        output_dir: directory of ``log.txt``.
        rank: of this process; only rank 0 has a screen.
    """
    for name in _LOGGERS:
        # As default_setup calls it: the function returns the same logger for the same arguments.
        logger = (
            setup_logger(output_dir, distributed_rank=rank)
            if name == "detectron2"
            else setup_logger(output_dir, distributed_rank=rank, name=name)
        )
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(_is_for_the_screen)
            elif handler.formatter is not None:
                handler.setFormatter(_WithoutColor(handler.formatter))


def _is_for_the_screen(record: logging.LogRecord) -> bool:
    if record.levelno != logging.INFO:
        return record.levelno > logging.INFO
    # The colored formatter abbreviates "detectron2" in place.
    name = re.sub(r"^d2\b", "detectron2", record.name)
    return name not in _FOR_THE_FILE and not name.startswith(
        tuple(f"{prefix}." for prefix in _FOR_THE_FILE if prefix != "detectron2")
    )


class _WithoutColor(logging.Formatter):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR.sub("", self._formatter.format(record))
