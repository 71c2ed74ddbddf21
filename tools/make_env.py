"""Make the environment that everything here runs in: `make env` calls this.

With --venv, a virtual environment is made there; without, the packages go into the environment of
the interpreter that runs this. Versions are those of constraints.txt. Running it again is safe.

This file must be understood by old Pythons too, or they could not be told what is wrong.
"""

import argparse
import os
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
IMPORTS = "import torch, torchvision, cv2, hotcoco, lvis, detectron2.modeling, balms_det"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", help="folder of the virtual environment to make")
    args = parser.parse_args()

    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            "error: this is Python %d.%d (%s), but balms_det needs Python %d.%d to %d.%d; install "
            "one and run `make PYTHON=/path/to/it ...`, or put it first on PATH as python3"
            % (sys.version_info[:2] + (sys.executable,) + OLDEST + NEWEST)
        )
    python = sys.executable
    if args.venv:
        python = os.path.join(args.venv, "bin", "python")
        if not os.path.exists(python):
            say("Making a virtual environment in %s" % args.venv)
            run([sys.executable, "-m", "venv", args.venv], "the virtual environment cannot be made")

    say("Installing the packages of constraints.txt (PyTorch is large: this takes minutes)")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    no_packages = (
        "the packages cannot be installed (pip's reason is above); connect this machine to a "
        "Python package index, or point pip to one that it can reach, and run this again"
    )
    run(pip + ["-c", CONSTRAINTS, "-e", ROOT + "[dev]"], no_packages)
    run(
        [python, os.path.join(ROOT, "tools", "install_detectron2.py")],
        "Detectron2 is not usable (the reason is above)",
    )
    if subprocess.call([python, "-c", "import cv2"], stderr=subprocess.DEVNULL) != 0:
        # OpenCV's usual build needs libGL, which machines without a screen may lack.
        version = "opencv-python-headless==" + pinned("opencv-python")
        run(pip + ["--force-reinstall", "--no-deps", version], no_packages)
    run(
        [python, "-W", "ignore", "-c", IMPORTS],
        "the environment is installed but broken (the failing import is above); "
        "run `make clean` and try again",
    )
    say("The environment is ready: %s" % python)


def pinned(package):
    """Return the version of `package` in constraints.txt."""
    with open(CONSTRAINTS) as file:
        pins = dict(line.strip().split("==") for line in file if "==" in line)
    return pins[package]


def run(command, failure):
    if subprocess.call(command) != 0:
        sys.exit("error: " + failure)


def say(message):
    print(message)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
