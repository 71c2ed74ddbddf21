"""Progress bars that log lines do not break."""

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_T = TypeVar("_T")


def progress_bar(
    items: Iterable[_T],
    description: str,
    *,
    total: int | None = None,
    unit: str = "image",
    show: bool = True,
) -> Iterator[_T]:
    """Yield the items, and show how many have passed.

    Log lines appear above the bar.

    Args:
        items: to pass on.
        description: stands before the bar.
        total: number of the items; default their length, if they have one.
        unit: of the rate.
        show: False draws no bar.
    """
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    loggers = [logger for logger in known if isinstance(logger, logging.Logger) and logger.handlers]
    with logging_redirect_tqdm(loggers):
        yield from tqdm(items, description, total, unit=unit, disable=not show)
