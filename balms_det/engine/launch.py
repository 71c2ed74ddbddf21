"""Starting the processes of a training."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.engine import launch as detectron2_launch

from balms_det.engine.setup import configured_device

# What CUDA reads: the GPUs that a process sees, separated by commas.
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Call ``main(args)`` in the processes that `args` ask for.

    Detectron2 takes NCCL and one GPU for each process wherever it sees a GPU. NCCL cannot
    communicate for a model on the CPU, so that the processes of such a model see no GPU.

    Args:
        main: a function of a module, of one process.
        args: of the command `balms-det train`.

    Raises:
        InputError: the configuration cannot be used.
    """
    in_several = args.num_gpus * args.num_machines > 1
    on_cpu = in_several and configured_device(args) == "cpu"
    with _without_gpus() if on_cpu else contextlib.nullcontext():
        detectron2_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


@contextlib.contextmanager
def _without_gpus() -> Iterator[None]:
    """Hide the GPUs from processes that are started inside."""
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = before
