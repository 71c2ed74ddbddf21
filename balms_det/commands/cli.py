"""The command line `balms-det COMMAND ...`."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import balms_det
from balms_det.options import closest
from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError

# Each command's module in this directory is called like it; it is imported when it is chosen.
COMMANDS = {
    "train": "train or evaluate a detector",
    "demo": "draw a model's predictions on images",
    "stats": "count the classes of a data set and draw its long tail",
    "check": "list every fault of a data set",
    "logit-stats": "collect the logits of a detector, for the calibration logn",
    "export": "write a detector for OpenVINO, ONNX Runtime or TorchScript",
    "calibrate": "sweep the strength of a test-time calibration over stored predictions",
    "report": "write a page that shows where a detector fails",
    "classify": "train and test a classifier on a long tail",
    "make-glyphs": "generate a long-tailed data set; nothing is downloaded",
    "methods": "list the methods with paper, formula, needs and published number",
    "keys": "explain the configuration keys",
    "install-detectron2": "install Detectron2 where there is none",
}


def usage() -> str:
    """Return the help of the command line, one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(
        [
            "usage: balms-det COMMAND ...",
            "",
            *lines,
            "",
            "`balms-det COMMAND --help` explains a command, `balms-det --version` is the version.",
        ]
    )


def run_command(name: str) -> Any:
    """Import a command, call its main function and return what that returns.

    Raises:
        InputError: there is no such command, or it needs a package that is not installed.
    """
    if name not in COMMANDS:
        close = closest(name, COMMANDS)
        remedy = f"did you mean {close}?" if close else f"choose one of {', '.join(COMMANDS)}"
        raise InputError(f"there is no command {name!r}; {remedy}")
    try:
        return importlib.import_module(f"balms_det.commands.{name.replace('-', '_')}").main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "detectron2":
            raise
        raise InputError(
            f"`balms-det {name}` needs Detectron2, which is not installed; run `balms-det "
            "install-detectron2`, or install it from its own repository"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"balms_det {balms_det.__version__}")
    else:
        # The command reads these, and its help shows the name.
        sys.argv = [f"balms-det {name}", *arguments]
        run_tool(lambda: run_command(name))
