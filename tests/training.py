"""What tests of whole trainings share."""

import torch
from detectron2.engine import HookBase

from balms_det.engine.meta import MetaLearning


class SeedEveryStep(HookBase):
    """RoIs are sampled with PyTorch's global generator, which no checkpoint of Detectron2 holds."""

    def before_step(self):
        torch.manual_seed(self.trainer.iter)


def meta_of(trainer):
    (hook,) = [h for h in trainer.loop._hooks if isinstance(h, MetaLearning)]
    return hook


def assert_equal(first, second):
    """Of the states of two models."""
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
