"""Run by every Python that a test starts on this device: once torch is imported, install it.

The tests put this folder into PYTHONPATH. Processes that never import torch stay as they are.
"""

import importlib.abc
import importlib.machinery
import os
import sys

_TESTS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class _AfterTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        # torch itself is imported by the device, once somebody needs one of these.
        if fullname not in ("torchvision", "balms_det.losses", "detectron2"):
            return None
        sys.meta_path.remove(self)
        sys.path.append(_TESTS)
        import second_device

        second_device.install()
        sys.path.remove(_TESTS)
        return None


is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""  # as CUDA reads it
if "BALMS_DET_TEST_DEVICE_IS_EMULATED" in os.environ and not is_hidden:
    sys.meta_path.insert(0, _AfterTorch())
