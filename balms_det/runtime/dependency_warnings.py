"""Warnings of dependencies that a user of this package cannot act on, silenced by name.

Each entry says whose warning it is and why nobody here can avoid it. Whatever is not listed is
shown. The commands and the tests use the same list.
"""

import logging
import os
import re
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownWarning:
    """A warning of a dependency.

    Attributes:
        message: how it begins, without commas and colons, which separate in PYTHONWARNINGS.
        category: a built-in class of warnings.
        module: the module that it is attributed to.
        reason: why it is silenced.
    """

    message: str
    category: type[Warning]
    module: str
    reason: str


_ARRAY_COPY = "__array__ implementation doesn't accept a copy keyword"
_MASK_TENSORS = "Detectron2 makes tensors of decoded masks, which nobody writes to."
_OLD_NAMES = "Detectron2 calls mixed precision by its former names."

KNOWN = (
    KnownWarning(
        "pkg_resources is deprecated as an API",
        UserWarning,
        "detectron2.model_zoo.model_zoo",
        "Detectron2 imports pkg_resources, and setuptools is pinned below 81 for it.",
    ),
    KnownWarning(
        "torch.meshgrid",
        UserWarning,
        "torch.functional",
        "Detectron2's anchor generator calls it without `indexing`.",
    ),
    KnownWarning(
        "`torch.jit.script` is deprecated",
        DeprecationWarning,
        "torch.jit._script",
        "Detectron2 and fvcore script functions when they are imported.",
    ),
    KnownWarning(
        "`torch.jit.load` is deprecated",
        DeprecationWarning,
        "torch.jit._serialization",
        "TorchScript is a format that is exported to.",
    ),
    KnownWarning(
        _ARRAY_COPY,
        DeprecationWarning,
        "pycocotools.mask",
        "pycocotools' compiled arrays predate NumPy 2.",
    ),
    KnownWarning(
        _ARRAY_COPY,
        DeprecationWarning,
        "detectron2.evaluation.coco_evaluation",
        "pycocotools' compiled arrays predate NumPy 2.",
    ),
    KnownWarning(
        "The given NumPy array is not writable",
        UserWarning,
        "detectron2.data.detection_utils",
        _MASK_TENSORS,
    ),
    KnownWarning(
        "Detected pickle protocol",
        UserWarning,
        "torch._weights_only_unpickler",
        "Other releases saved their checkpoints so; loading them works.",
    ),
    KnownWarning(
        "Grad strides do not match bucket view",
        UserWarning,
        "torch.autograd.graph",
        "Gradients of channels-last convolutions are copied between processes.",
    ),
    KnownWarning(
        "`torch.cuda.amp.GradScaler(args...)` is deprecated",
        FutureWarning,
        "detectron2.engine.train_loop",
        _OLD_NAMES,
    ),
    KnownWarning(
        "`torch.cuda.amp.autocast(args...)` is deprecated",
        FutureWarning,
        "detectron2.engine.train_loop",
        _OLD_NAMES,
    ),
    KnownWarning(
        "The 'warn' method is deprecated",
        DeprecationWarning,
        "lvis.results",
        "lvis-api, the reference of evaluation, logs with `warn`.",
    ),
)
# Loggers of PyTorch that warn when a module is imported or traced, whatever the user does.
_LOGGERS = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")


def ignore_known_warnings() -> None:
    """Silence the known warnings of dependencies, in this process and in those that it starts.

    Filters of the user, from ``python -W`` or PYTHONWARNINGS, come first.
    """
    for known in KNOWN:
        message, module = re.escape(known.message), re.escape(known.module)
        warnings.filterwarnings("ignore", message, known.category, module, append=True)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # A spawned process imports Detectron2 before this package, but reads these variables first.
    filters = [f"ignore:{k.message}:{k.category.__name__}:{k.module}" for k in KNOWN]
    _put_first("PYTHONWARNINGS", filters)
    _put_first("TORCH_LOGS", [f"-{name}" for name in _LOGGERS])


def _put_first(variable: str, items: list[str]) -> None:
    """Put items at the beginning of an environment variable's list, where the user's win."""
    present = [item for item in os.environ.get(variable, "").split(",") if item]
    missing = [item for item in items if item not in present]
    os.environ[variable] = ",".join([*missing, *present])
