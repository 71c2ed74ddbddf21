import re
import subprocess
import sys

import pytest
import torch

from balms_det.runtime.dependency_warnings import KNOWN


def pytest_configure(config):
    """Filter dependencies' warnings by the list that the commands use."""
    for known in KNOWN:
        message, module = re.escape(known.message), re.escape(known.module)
        line = f"ignore:{message}:{known.category.__name__}:{module}"
        config.addinivalue_line("filterwarnings", line)


# The tests' tensors are small: threads cost more than they give.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def annotation_caches(tmp_path_factory):
    """Keeps what tests cache, also in processes that they start, away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALMS_DET_CACHE", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter, with arguments; it must succeed."""

    def run(code, *arguments):
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return run
