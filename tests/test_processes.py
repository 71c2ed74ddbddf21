"""Processes that were spawned end in good order, whatever Gloo's threads still do."""

import atexit
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from balms_det.engine import launch
from balms_det.runtime.arguments import training_parser
from balms_det.runtime.processes import exit_without_teardown


@exit_without_teardown
def reduce_and_end(rank, folder):
    """End while a thread of Gloo runs Python, as it does when it lets go of a tensor."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    begun = threading.Event()

    def linger(_):
        begun.set()
        time.sleep(0.5)

    work = dist.all_reduce(torch.ones(1), async_op=True)
    work.get_future().then(linger)
    assert begun.wait(60)


@pytest.mark.e2e
def test_a_thread_of_gloo_may_outlive_the_main_thread(tmp_path):
    mp.spawn(reduce_and_end, (str(tmp_path),), nprocs=2)


@exit_without_teardown
def leave_traces(_, folder):
    atexit.register(Path(folder, "exit_handler").touch)

    def finish():
        time.sleep(0.2)
        Path(folder, "thread").touch()

    threading.Thread(target=finish).start()
    os.dup2(os.open(f"{folder}/stdout", os.O_WRONLY | os.O_CREAT), 1)
    print("the last words", end="")


@pytest.mark.e2e
def test_threads_join_exit_handlers_run_and_streams_are_flushed(tmp_path):
    mp.spawn(leave_traces, (str(tmp_path),), nprocs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"exit_handler", "thread", "stdout"}
    assert (tmp_path / "stdout").read_text() == "the last words"


@exit_without_teardown
def fail(_):
    raise ValueError("a reason")


@pytest.mark.e2e
def test_an_exception_reaches_who_spawned_the_process():
    with pytest.raises(mp.ProcessRaisedException, match="ValueError: a reason"):
        mp.spawn(fail, nprocs=1)


@exit_without_teardown
def answer():
    return 42


def test_in_a_process_that_nobody_spawned_the_result_is_returned():
    assert answer() == 42


def leave_backend(args):
    Path(args.folder, str(dist.get_rank())).write_text(dist.get_backend())


def launched(folder, device):
    """Return the arguments of two processes for a model on `device`."""
    args = training_parser().parse_args(["--num-gpus", "2", "--dist-url", "auto"])
    args.opts, args.folder = ["MODEL.DEVICE", device], str(folder)
    return args


@pytest.mark.e2e
@pytest.mark.gpu
def test_processes_of_a_model_on_the_cpu_see_no_gpu(tmp_path, monkeypatch):
    """NCCL cannot communicate for a model on the CPU, and there may be too few GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    launch(leave_backend, launched(tmp_path, "cpu"))
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["gloo", "gloo"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("before", ["0,1", None])
def test_only_a_model_on_the_cpu_is_launched_without_gpus(device, before, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    seen = []
    monkeypatch.setattr(
        sys.modules["balms_det.engine.launch"],
        "detectron2_launch",
        lambda main, number, **kwargs: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")),
    )
    launch(leave_backend, launched("", device))
    assert seen == ["" if device == "cpu" else before]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
