"""What PyTorch's Python code asks of CUDA beside its kernels, answered for one device."""

import collections
import os
from types import ModuleType
from typing import Any

import torch

from second_device import waits


def patch(extension: ModuleType) -> None:
    """Let ``torch.cuda`` and storages answer as with one GPU, in place."""
    _patch_forks_and_generators(extension)
    _patch_queries()
    _patch_storages()


def _patch_forks_and_generators(extension: ModuleType) -> None:
    """A process that is forked from one that has used CUDA cannot use it."""
    cuda, generator = torch.cuda, extension.generator()
    is_bad_fork = False

    def after_fork() -> None:
        nonlocal is_bad_fork
        if extension.calls():
            is_bad_fork = True
            extension.refuse_after_fork()

    def lazy_init() -> None:
        if is_bad_fork:
            raise RuntimeError(
                "Cannot re-initialize CUDA in forked subprocess. To use CUDA with "
                "multiprocessing, you must use the 'spawn' start method"
            )

    def get_rng_state(device: Any = "cuda") -> torch.Tensor:
        lazy_init()
        return generator.get_state()

    def set_rng_state(state: torch.Tensor, device: Any = "cuda") -> None:
        lazy_init()
        generator.set_state(state)

    os.register_at_fork(after_in_child=after_fork)
    cuda._is_in_bad_fork = lambda: is_bad_fork
    cuda._lazy_init = lazy_init
    cuda._initialized = True
    cuda.default_generators = (generator,)
    cuda.get_rng_state, cuda.set_rng_state = get_rng_state, set_rng_state


def _patch_queries() -> None:
    cuda = torch.cuda
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_name": "CUDA emulated on the CPU",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "empty_cache": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "is_current_stream_capturing": False,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }.items():
        setattr(cuda, name, _answering(value))
    cuda.graphs.is_current_stream_capturing = cuda.is_current_stream_capturing
    cuda.memory_stats = lambda device=None: collections.defaultdict(int)
    cuda.synchronize = lambda device=None: waits.heard("wait", "torch.cuda.synchronize")
    torch._C._cuda_getDeviceCount = _answering(1)
    torch._C._cuda_getDevice = _answering(0)


def _answering(value: Any) -> Any:
    return lambda *args, **kwargs: value


def _patch_storages() -> None:
    """Checkpoints move storages, which know of CPU and CUDA in Python alone."""
    base = torch.storage._StorageBase
    to_elsewhere = torch.UntypedStorage.to

    def to_cuda(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
        if self.device.type == "cuda":
            return self
        made = torch.empty(self.nbytes(), dtype=torch.uint8, device="cuda")
        return made.untyped_storage().copy_(self)

    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        if torch.device(device).type == "cuda":
            return to_cuda(self)
        return to_elsewhere(self, device=torch.device(device), non_blocking=non_blocking)

    def clone(self: Any) -> Any:
        if self.device.type != "cuda":
            return type(self)(self.nbytes(), device=self.device).copy_(self)
        with torch.no_grad():
            made = torch.empty(self.nbytes(), dtype=torch.uint8, device="cuda")
            return made.untyped_storage().copy_(self)

    for storage in (base, torch.UntypedStorage):
        storage.to, storage.clone, storage.cuda = to, clone, to_cuda
