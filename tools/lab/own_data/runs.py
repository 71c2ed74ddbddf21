"""Running the cases, each in a folder of its own, and the table of their outcomes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.markdown import table as markdown_table
from lab.own_data.cases import TRAINED, Case, Outcome, train
from lab.own_data.data import write_set
from lab.own_data.points import CASES

_SECONDS = 300
_HEAD = """# What a new user runs into

A set in COCO format of four classes and twelve training images is spoilt in one way at a time, or a
command line is. "Before" is version {before}, "after" is this one. A tick says that what follows is
what is expected. `python tools/own_data.py` makes this page.

"""


def train_once(folder: Path, checkout: Path) -> Path:
    """Write a sound set below `folder`, train on it, and return its folder."""
    sound = folder / "sound"
    write_set(sound)
    done = _run(train()[:-1] + [TRAINED], sound, checkout)
    if done.status:
        raise RuntimeError(done.output[-3000:])
    return sound


def run_case(case: Case, sound: Path, folder: Path, checkout: Path) -> dict[str, Any]:
    """Run a case on a copy of the sound set, and return what followed.

    Args:
        case: to run.
        sound: folder of :func:`train_once`.
        folder: for the copy.
        checkout: root of the version to run.

    Returns:
        ``{"holds", "status", "summary"}``.
    """
    place = Path(shutil.copytree(sound, folder / re.sub(r"\W+", "_", case.name)))
    case.prepare(place)
    outcome = _run(case.command, place, checkout)
    try:
        holds = bool(case.holds(outcome))
    except OSError:  # a file that should have been written
        holds = False
    return {"holds": holds, "status": outcome.status, "summary": _summary(outcome, place)}


def _run(command: Sequence[str], place: Path, checkout: Path) -> Outcome:
    program = [] if command[0] == "-c" else ["-m", "balms_det"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "BALMS_DET_CACHE": str(place / "cache"),
    }
    try:
        done = subprocess.run(
            [sys.executable, *program, *command],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(-1, f"it did not end within {_SECONDS} s", place)
    return Outcome(done.returncode, f"{done.stdout}\n{done.stderr}", place)


def _summary(outcome: Outcome, place: Path) -> str:
    """Return how a command ended, in a few words that do not depend on the machine."""
    text = outcome.output.replace(str(place.resolve()), ".").replace(str(place), ".")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    lines = [line for line in text.splitlines() if line.strip()]
    if outcome.status == 0:
        return "ends with success"
    if "Traceback" in text:
        last = lines[-1] if lines else ""
        return f"traceback, {last[:90]}"
    last = (errors or lines or ["no output"])[-1].removeprefix("error: ")[:200]
    return f"usage: {last}" if last.startswith("balms-det") else last


def page(before: Mapping[str, Any], after: Mapping[str, Any], version: str = "0.1.0") -> str:
    """Return the page with the outcomes of both versions."""

    def cell(outcome: Mapping[str, Any]) -> str:
        summary = outcome["summary"].replace("|", "\\|").replace("<", "&lt;").replace("`", "")
        return f"{'✓' if outcome['holds'] else '✗'} `{summary}`"

    rows = [
        [case.group, case.name, case.expected, cell(before[case.name]), cell(after[case.name])]
        for case in CASES
    ]
    headers = ["point", "case", "expected", "before", "after"]
    return _HEAD.format(before=version) + markdown_table(headers, rows, left=range(5)) + "\n"
