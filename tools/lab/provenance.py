"""The provenance of a stored number: machine, versions, commit."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "torchvision", "detectron2", "hotcoco", "lvis", "faster-coco-eval", "mmdet", "numpy",
    "onnxruntime", "openvino", "nncf",
)  # fmt: skip


def environment(device: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """For a record: ``{"machine": ..., "versions": {...}}``.

    Args:
        device: what computed; None for a GPU if there is one.
        threads: that a CPU computed with; None is left out.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"machine": _machine(device, threads), "versions": _versions()}


def describe(record: Mapping[str, Any]) -> str:
    """Machine and versions of a record as a part of a sentence."""
    return f"{record['machine']}; {describe_versions(record)}"


def describe_versions(record: Mapping[str, Any]) -> str:
    return ", ".join(" ".join(item) for item in record["versions"].items())


def commit(root: Path) -> str | None:
    """Return the commit that is checked out at `root`, "-dirty" where its code was changed; or
    None.

    Stored runs and what is made of them, in ``docs/``, are not code: every run would change them
    for the next.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine(device: str, threads: int | None) -> str:
    """Return the GPU, or the processor with its cores and memory; neither a name nor a path."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    parts = [model, f"{os.cpu_count()} cores"]
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{memory / 1024**3:.0f} GiB")
    parts.append(torch.backends.cpu.get_cpu_capability())
    if threads is not None:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join(parts)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # an optional one
    return found
