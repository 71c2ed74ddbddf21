"""Time and memory of one work, done by us and by a peer on the same input.

Times are of the same process, ours and the peer's in turn, so that what else the machine does
touches both alike; what is compared is their medians.
"""

import cProfile
import gc
import math
import pstats
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from balms_det.runtime.memory import give_back_freed_memory

_PROC = Path("/proc/self")
_MB = 1024 * 1024
_LEAST_SHARE = 0.005  # of the time of all operations, for one to be named


@dataclass(frozen=True)
class Comparison:
    """A measurement: two callables that do the same work.

    Attributes:
        peer_name: whose way of doing it `peer` is, e.g. "detectron2".
        ours: does the work once and returns its outputs.
        peer: the same by the peer; None where there is none.
        difference: the largest absolute difference between the outputs of `ours` and of `peer`, or
            several by name; None where these are not comparable.
        variant: tells several comparisons of one work apart.
        dtype: of `ours`.
        sizes: how much work it is, by name.
        peer_part: the part of the work that `peer` does, where all of it would take too long; its
            time is divided by it.
    """

    peer_name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any] | None
    difference: Callable[[Any, Any], float | Mapping[str, float]] | None = None
    variant: str = ""
    dtype: str = "float32"
    sizes: Mapping[str, int] = field(default_factory=dict)
    peer_part: float = 1.0


def measure(
    comparison: Comparison, *, device: str, repeat: int, operations: bool = False
) -> dict[str, Any]:
    """Return the measured part of a record: times in seconds, memory in MB (2^20 bytes).

    Both sides first run once to warm up (unless `repeat` is one, for works that take minutes), once
    for their outputs and memory, and then `repeat` times in turn for their times. While they warm
    up, the floating-point operations (FLOPs) of their convolutions and matrix products are counted,
    and what these take at least is what a large matrix product of as many takes.

    With `operations` both run once more, and the record tells how long each of PyTorch's operations
    took, without those that it called: "ours_operations_s" and "peer_operations_s", by name. Where
    PyTorch does less than half of the work, it is Python's functions instead.

    A peer that runs out of memory has None for its numbers and "peer_error" "out of memory".
    """
    gc.collect()
    gc.freeze()  # collections between the runs need not look at what is there already
    try:
        return _measure(comparison, device, repeat, operations)
    finally:
        gc.unfreeze()


def _measure(comparison: Comparison, device: str, repeat: int, operations: bool) -> dict[str, Any]:
    ours = _Side(comparison.ours, device)
    peer = _Side(comparison.peer, device) if comparison.peer else None
    error = None
    if repeat > 1:
        ours.count_flops()
    outputs = ours.measure_memory()
    differences: dict[str, float] = {}
    if peer is not None:
        try:
            with _memory_limit(device):
                if repeat > 1:
                    peer.count_flops()
                peer_outputs = peer.measure_memory()
        except (MemoryError, RuntimeError) as failure:
            if not _is_out_of_memory(failure):
                raise
            peer, error = None, "out of memory"
        else:
            if comparison.difference is not None:
                found = comparison.difference(outputs, peer_outputs)
                differences = dict(found) if isinstance(found, Mapping) else {"": float(found)}
                # JSON would turn others to null: "not compared".
                assert all(map(math.isfinite, differences.values()))
            del peer_outputs
    del outputs
    sides = [side for side in (ours, peer) if side]
    for i in range(repeat):
        for side in sides if i % 2 == 0 else sides[::-1]:
            side.measure_time()

    part = comparison.peer_part
    ours_s = statistics.median(ours.seconds)
    peer_s = statistics.median(peer.seconds) / part if peer else None
    record = {
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s if peer_s is not None else None,
        "ours_range_s": [min(ours.seconds), max(ours.seconds)],
        "peer_range_s": [min(peer.seconds) / part, max(peer.seconds) / part] if peer else None,
        "ours_peak_mb": ours.peak_mb,
        "peer_peak_mb": peer.peak_mb if peer else None,
        "max_abs_diff": max(differences.values(), default=None),
        "repeat": repeat,
    }
    if ours.flops:
        speed = _flops_per_second(device, comparison.dtype)
        record["ours_arithmetic_s"] = ours.flops / speed
        record["peer_arithmetic_s"] = peer.flops / speed / part if peer else None
    if operations:
        record["ours_operations_s"] = ours.time_operations()
        record["peer_operations_s"] = peer.time_operations() if peer else None
    if len(differences) > 1:
        record["differences"] = differences
    if part != 1:
        record["peer_part"] = part
    if error:
        record["peer_error"] = error
    return record


class _Side:
    """One of the two, with what has been measured of it."""

    def __init__(self, work: Callable[[], Any], device: str) -> None:
        self.run = work
        self.seconds: list[float] = []
        self.peak_mb: float | None = None
        self.flops = 0
        self._on_cuda = torch.device(device).type == "cuda"

    def count_flops(self) -> None:
        with FlopCounterMode(display=False) as counter:
            self.run()
        self.flops = counter.get_total_flops()

    def time_operations(self) -> dict[str, float]:
        """Seconds in each operation, longest first, and in all small ones together, "other"."""
        activities = [ProfilerActivity.CUDA if self._on_cuda else ProfilerActivity.CPU]
        with profile(activities=activities, acc_events=True) as profiled:
            start = time.perf_counter()
            self.run()
            self._synchronize()
            elapsed = time.perf_counter() - start
        times = {
            event.key.removeprefix("aten::"): 1e-6
            * (event.self_device_time_total if self._on_cuda else event.self_cpu_time_total)
            for event in profiled.key_averages()
        }
        if not self._on_cuda and sum(times.values()) < elapsed / 2:
            times = _time_functions(self.run)
        least = _LEAST_SHARE * sum(times.values())
        named = {name: t for name, t in times.items() if t >= least}
        named = dict(sorted(named.items(), key=lambda item: -item[1]))
        return {**named, "other": sum(times.values()) - sum(named.values())}

    def measure_time(self) -> None:
        gc.collect()  # or a collection of the other side's garbage may fall into this one's time
        self._synchronize()
        start = time.perf_counter()
        outputs = self.run()
        self._synchronize()
        self.seconds.append(time.perf_counter() - start)
        del outputs

    def measure_memory(self) -> Any:
        """Run once, note the largest memory beyond what was held before, return the outputs."""
        gc.collect()
        peak = _cuda_memory if self._on_cuda else _process_memory
        with peak() as measured:
            outputs = self.run()
            self._synchronize()
        self.peak_mb = measured.get("peak_mb")
        return outputs

    def _synchronize(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize()


def _time_functions(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds in each Python function, built-in ones included, without those that it called."""
    with cProfile.Profile() as profiled:
        work()
    times: dict[str, float] = defaultdict(float)
    for (file, _, name), (_, _, seconds, *_) in pstats.Stats(profiled).stats.items():  # type: ignore[attr-defined]
        if file == "~":  # "<method 'update' of 'StreamingEval' objects>", "<built-in method open>"
            method = re.fullmatch("<method '(.+)' of '(.+)' objects>", name)
            name = f"{method[2]}.{method[1]}" if method else name.strip("<>").split()[-1]
        else:
            name = f"{Path(file).stem}.{name}"
        times[name] += seconds
    return dict(times)


@contextmanager
def _cuda_memory() -> Iterator[dict[str, float]]:
    """Measures what PyTorch allocates on the GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    measured: dict[str, float] = {}
    yield measured
    measured["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / _MB


@contextmanager
def _process_memory() -> Iterator[dict[str, float]]:
    """Measures this process's resident memory, on Linux.

    Memory that was freed but kept for later allocations would hide new ones; so it is given back
    first, and the kernel's high-water mark is set back to what is held now.
    """
    measured: dict[str, float] = {}
    if not _give_back_memory():
        yield measured
        return
    before = _process_status("VmRSS")
    yield measured
    measured["peak_mb"] = (_process_status("VmHWM") - before) / _MB


def _give_back_memory() -> bool:
    """Return freed memory to the kernel and reset the high-water mark; False where impossible."""
    if not give_back_freed_memory():
        return False
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:  # a kernel that keeps the file closed
        return False
    return True


def _process_status(name: str) -> int:
    """Return a field of the process's status, in bytes."""
    for line in (_PROC / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise KeyError(name)


@contextmanager
def _memory_limit(device: str) -> Iterator[None]:
    """Let a work that needs more memory than the machine has fail, instead of being killed."""
    if torch.device(device).type == "cuda" or not sys.platform.startswith("linux"):
        yield  # CUDA allocations fail by themselves
        return
    import resource

    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = 1024 * int(fields["MemAvailable"].split()[0])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    # A part of what counts as available is not, when it comes to it; and libraries have reserved
    # more than they hold, which counts against the limit but takes up no memory yet.
    limit = _process_status("RssAnon") + int(0.8 * available)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _flops_per_second(device: str, dtype: str, size: int = 2048) -> float:
    """Return the speed of a product of two square matrices, the best of five."""
    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    product = _Side(lambda: matrix @ matrix, device)
    for _ in range(5):
        product.measure_time()
    return 2 * size**3 / min(product.seconds)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return any(part in str(error) for part in ("can't allocate memory", "bad_alloc"))
