"""The emulated device refuses what a GPU refuses, and counts what a host waits for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import second_device
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.gpu
def test_devices_do_not_mix(device):
    ours, theirs = torch.ones(2, device=device), torch.ones(2)
    with pytest.raises(RuntimeError, match="same device"):
        ours + theirs
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([ours, theirs])
    with pytest.raises(RuntimeError, match="indices should be"):
        theirs[torch.zeros(1, dtype=torch.int64, device=device)]
    with pytest.raises(TypeError, match="numpy"):
        ours.numpy()
    assert (ours + torch.tensor(1.0)).tolist() == [2, 2]  # a scalar of the host is a number


@pytest.mark.gpu
def test_a_fork_after_use_is_refused(device):
    torch.ones(1, device=device)
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, device=device)
        except RuntimeError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_under_autocast_is_that_of_the_cpu(device, dtype):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    results = []
    for where in (torch.device("cpu"), device):
        moved = nn.Linear(4, 3).to(where)
        moved.load_state_dict(layer.state_dict())
        with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
            loss = moved(x.to(where)).softmax(1).square().sum()
        loss.backward()
        results.append(torch.cat([loss[None], moved.weight.grad.flatten()]).cpu())
    torch.testing.assert_close(*results, atol=0 if dtype == torch.float32 else 1e-2, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.tensor([0, 1]).to(x.device), 1),
        (lambda x: torch.tensor([0, 1]).to(x.device, non_blocking=True), 0),
        (lambda x: x[x > 0], 1),
        (lambda x: x[x > 0].sum().item(), 2),
        (lambda x: (x > 0).nonzero(), 1),
        (lambda x: x.masked_fill(x > 0, 1), 0),
        (lambda x: torch.where(x > 0, x, 0), 0),
        (lambda x: x.new_zeros(3), 0),
        (lambda x: torch.bincount(x.long()), 1),
        (lambda x: torch.cuda.synchronize(), 1),
    ],
)
def test_waits_are_counted(emulated, work, waits):
    x = torch.ones(3, device=emulated)
    with second_device.listening() as heard:
        work(x)
    assert heard.total() == waits, heard.table()
    work(x)  # and no longer than asked for
    assert heard.total() == waits


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")
@pytest.mark.skipif(second_device.name_of_device() != "cpu", reason="the tests run on it already")
@pytest.mark.e2e
def test_a_part_of_the_tests_on_the_second_device():
    """What needs another device than the CPU (`gpu`)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
    done = subprocess.run(
        [*command, "-m", "gpu and not slow", "tests"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.e2e
def test_a_machine_without_a_compiler_is_told(tmp_path):
    command = [sys.executable, "-m", "pytest", "--device", "cuda", "tests/test_second_device.py"]
    environ = {**os.environ, "CXX": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""}
    environ.pop(second_device.EMULATED_VARIABLE, None)
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "there is no compiler 'no-such-compiler'" in done.stderr
