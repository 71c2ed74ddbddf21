"""Warnings of dependencies that a user of this package cannot act on, silenced by name.

Each entry says whose warning it is and why nobody here can avoid it. Whatever is not listed is
shown. The commands and the tests use the same list.
"""

import logging
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownWarning:
    """A warning of a dependency.

    Attributes:
        message: regular expression that the message begins with.
        category: of the warning.
        module: regular expression of the module that it is attributed to.
        reason: why it is silenced.
    """

    message: str
    category: type[Warning]
    module: str
    reason: str


KNOWN = (
    KnownWarning(
        "pkg_resources is deprecated as an API",
        UserWarning,
        r"detectron2\.model_zoo\.model_zoo",
        "Detectron2 imports pkg_resources, and setuptools is pinned below 81 for it.",
    ),
    KnownWarning(
        "torch.meshgrid",
        UserWarning,
        r"torch\.functional",
        "Detectron2's anchor generator calls it without `indexing`.",
    ),
    KnownWarning(
        "`torch.jit.script` is deprecated",
        DeprecationWarning,
        r"torch\.jit\._script",
        "Detectron2 and fvcore script functions when they are imported.",
    ),
    KnownWarning(
        "__array__ implementation doesn't accept a copy keyword",
        DeprecationWarning,
        r"(pycocotools\.mask|detectron2\.evaluation\.coco_evaluation)",
        "pycocotools' compiled arrays predate NumPy 2.",
    ),
    KnownWarning(
        "The given NumPy array is not writable",
        UserWarning,
        r"detectron2\.data\.detection_utils",
        "Detectron2 makes tensors of decoded masks, which nobody writes to.",
    ),
    KnownWarning(
        "Detected pickle protocol 4 in the checkpoint",
        UserWarning,
        r"torch\._weights_only_unpickler",
        "Other releases saved their checkpoints so; loading them works.",
    ),
    KnownWarning(
        "The 'warn' method is deprecated",
        DeprecationWarning,
        r"lvis\.",
        "lvis-api, the reference of evaluation, logs with `warn`.",
    ),
)
# Loggers of PyTorch that warn when a module is imported or traced, whatever the user does.
_LOGGERS = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")


def ignore_known_warnings() -> None:
    """Silence the known warnings of dependencies in this process."""
    for known in KNOWN:
        warnings.filterwarnings("ignore", known.message, known.category, known.module)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
