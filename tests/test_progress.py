"""Progress bars: the items pass through, and log lines stay whole."""

import logging
import sys

import pytest

from balms_det.runtime.progress import progress_bar


class Terminal:
    """A stream that says it is a terminal and keeps what is written."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("show", [True, False])
def test_items_pass_whether_or_not_the_bar_is_shown(show):
    assert list(progress_bar(iter("abc"), "Reading", total=3, show=show)) == ["a", "b", "c"]


def test_log_lines_stand_on_lines_of_their_own(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("balms_det.test_progress")
    handler = logging.StreamHandler(terminal)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        for number in progress_bar(range(3), "Reading"):
            logger.warning("line %d", number)
    finally:
        logger.removeHandler(handler)
    assert "Reading" in terminal.text
    lines = [line for line in terminal.text.replace("\r", "\n").splitlines() if "line" in line]
    assert lines == ["line 0", "line 1", "line 2"]


def test_a_bar_is_not_drawn_where_it_is_not_wanted(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress_bar(range(3), "Reading", show=False)) == [0, 1, 2]
    assert terminal.text == ""
