"""Compile the extension in native/, once, and put it in the place of CUDA."""

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from second_device import torch_cuda

_FOLDER = Path(__file__).resolve().parent
_NATIVE = _FOLDER / "native"
_BUILDS = _FOLDER.parent.parent / ".cache" / "second_device"
# Libraries of operators whose CUDA kernels are replaced.
_LIBRARIES = ("aten", "torchvision", "detectron2")
_extension: ModuleType | None = None


class NoCompiler(RuntimeError):
    """There is no C++ compiler to build the device with."""


def is_installed() -> bool:
    """Return whether the device of this process is this one, and not a GPU."""
    return _extension is not None


def extension() -> ModuleType:
    """Return the extension; :func:`install` has been called."""
    assert _extension is not None, "install() comes first"
    return _extension


def install() -> None:
    """Make "cuda" a device of this process.

    The first call on a machine compiles for about a minute, into .cache/second_device.

    Raises:
        NoCompiler: names what is missing.
    """
    global _extension
    if _extension is not None:
        return
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise NoCompiler(
            f"the tests' second device is a C++ extension, and there is no compiler {compiler!r}; "
            "install one (Debian: apt-get install g++), name it in CXX, or run on a GPU"
        )
    import torchvision  # noqa: F401  # Its kernels are replaced too.

    built = _build()
    names = {
        name
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
        if name.split("::")[0] in _LIBRARIES
    }
    names |= {"aten::convolution", "aten::convolution_backward"}  # or cuDNN would be chosen
    with _quiet():  # PyTorch warns of every kernel that is replaced.
        built.install(sorted(names), _unchecked())
    _extension = built
    torch_cuda.patch(built)


def _build() -> ModuleType:
    from torch.utils.cpp_extension import load

    sources = sorted(_NATIVE.iterdir())
    digest = hashlib.sha256(torch.__version__.encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = _BUILDS / digest.hexdigest()[:16]  # so that no build of other sources is loaded
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUDA_HOME", "/nonexistent")
    return load(
        "second_device_native",
        [str(source) for source in sources if source.suffix == ".cpp"],
        build_directory=str(folder),
        extra_cflags=["-O1", "-w"],
        with_cuda=False,
    )


def _unchecked() -> list[str]:
    """Return the operations for which CUDA's wrappers compare no devices."""
    import torchgen

    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    names = []
    for entry in re.split(r"\n(?=- func: )", table.read_text(encoding="utf-8")):
        match = re.match(r"- func: ([\w.]+)\(", entry)
        if match and "device_check: NoCheck" in entry:
            names.append(f"aten::{match[1]}")
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what C++ writes to the standard error."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
