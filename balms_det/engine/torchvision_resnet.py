"""Loading torchvision's ResNets into Detectron2's."""

import logging
import re
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]

# torchvision's names of a ResNet's layers, and Detectron2's.
_FROM_TORCHVISION = [
    (re.compile(r"^conv1\."), "stem.conv1."),
    (re.compile(r"^bn1\."), "stem.conv1.norm."),
    (re.compile(r"^layer(\d)"), lambda match: f"res{int(match[1]) + 1}"),
    (re.compile(r"\.bn(\d)\."), r".conv\1.norm."),
    (re.compile(r"\.downsample\.0\."), ".shortcut."),
    (re.compile(r"\.downsample\.1\."), ".shortcut.norm."),
]
# How torchvision's ImageNet weights were trained.
_TORCHVISION_INPUT = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def from_torchvision(state: StateDict, ours: StateDict) -> StateDict:
    """Return a torchvision ResNet's state under the names of the model's, without its
    classifier."""
    prefix = next(
        (name.removesuffix("stem.conv1.weight") for name in ours if "stem.conv1.weight" in name), ""
    )
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _FROM_TORCHVISION:
            name = pattern.sub(replacement, name)
        # Frozen batch norm does not count its batches.
        if not name.startswith("fc.") and (
            prefix + name in ours or not name.endswith("num_batches_tracked")
        ):
            renamed[prefix + name] = value
    return renamed


def warn_of_another_input(path: str, model: torch.nn.Module) -> None:
    """Warn where a model gets other input than torchvision's ResNets were trained with."""
    settings: dict[str, Any] = {}
    if hasattr(model, "pixel_mean"):
        settings = {
            "INPUT.FORMAT": model.input_format,
            "MODEL.PIXEL_MEAN": model.pixel_mean.flatten().tolist(),
            "MODEL.PIXEL_STD": model.pixel_std.flatten().tolist(),
        }
    for name, module in model.named_modules():
        if name.endswith("res3.0") and hasattr(module, "conv3"):
            settings["MODEL.RESNETS.STRIDE_IN_1X1"] = module.conv1.stride == (2, 2)
    wrong = [
        f"{key} {expected}"
        for key, expected in _TORCHVISION_INPUT.items()
        if key in settings and not _equal(settings[key], expected)
    ]
    if wrong:
        logger.warning(
            "%s: torchvision's ResNets expect other settings than the model has; set %s",
            path,
            ", ".join(wrong),
        )


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return bool(np.allclose(value, expected, atol=0.5))
    return bool(value == expected)
