import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import second_device
import torch

from balms_det.runtime.dependency_warnings import KNOWN

OWN_PROCESS = "BALMS_DET_OWN_PROCESS"  # set in the process of one test
STARTUP = Path(second_device.__file__).parent / "startup"


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="the device of the tests; cuda is a GPU, or the emulated one of tests/second_device",
    )


def pytest_configure(config):
    """Prepare the device, and filter dependencies' warnings by the list that the commands use."""
    use_device(config.getoption("--device"))
    for known in KNOWN:
        message, module = re.escape(known.message), re.escape(known.module)
        line = f"ignore:{message}:{known.category.__name__}:{module}"
        config.addinivalue_line("filterwarnings", line)


def use_device(name):
    """Let this process, and those that it starts, see the tests' device and no other."""
    os.environ[second_device.DEVICE_VARIABLE] = name
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif second_device.is_installed() or not torch.cuda.is_available():
        try:
            second_device.install()
        except second_device.NoCompiler as error:
            raise pytest.UsageError(str(error)) from error
        os.environ[second_device.EMULATED_VARIABLE] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        paths = [str(STARTUP), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and second_device.name_of_device() == "cpu":
            item.add_marker(pytest.mark.skip(reason="runs with --device cuda (make test-gpu)"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Call a test with the marker own_process in a process of its own."""
    if not pyfuncitem.get_closest_marker("own_process") or os.environ.get(OWN_PROCESS):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    done = subprocess.run(
        [*command, "--device", second_device.name_of_device()],
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, OWN_PROCESS: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return True


@pytest.fixture(scope="session")
def device():
    """The device that the tests are run on, `--device`."""
    return torch.device(second_device.name_of_device())


@pytest.fixture(scope="session")
def emulated(device):
    """The emulated device, of which alone waits are counted."""
    if not second_device.is_installed():
        pytest.skip("waits are counted on the emulated device, where the code is the same")
    return device


@pytest.fixture
def two_devices(device):
    """Each of two processes has a device: the CPU, or a GPU of its own."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("each process of a training needs a GPU of its own")


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
