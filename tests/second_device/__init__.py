"""A CUDA device for tests on machines without a GPU; README.md says what it shows.

``install()`` before anything asks for ``torch.cuda``, and ``"cuda"`` is a device of its own.
``with listening() as heard:`` counts how often the host would wait for it.
"""

import os

from second_device.build import NoCompiler, install, is_installed
from second_device.waits import Heard, listening

__all__ = ["Heard", "NoCompiler", "install", "is_installed", "listening", "name_of_device"]

# What conftest.py tells the processes that tests start.
DEVICE_VARIABLE = "BALMS_DET_TEST_DEVICE"
EMULATED_VARIABLE = "BALMS_DET_TEST_DEVICE_IS_EMULATED"


def name_of_device() -> str:
    """Return "cpu" or "cuda": where the tests run (pytest's `--device`)."""
    return os.environ.get(DEVICE_VARIABLE, "cpu")
