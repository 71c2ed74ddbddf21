"""Copies from the host to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`; the host does not wait for the copy.

    The copy is from pinned memory, which PyTorch keeps until the device has read it, so that
    `tensor` may be temporary. A tensor of a device is copied as by ``Tensor.to``.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
