"""Where class-balanced meta batches come from: a bank of features, or a forward pass.

Shapes as in :mod:`balms_det.bilevel`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from balms_det.engine.meta.recorder import HeadRecord, Recorder
from balms_det.losses.criterion import Criterion
from balms_det.runtime.transfers import to_device

# One class-balanced batch of features and classes, (M, D) and (M,).
MetaBatch = tuple[Tensor, Tensor]


class MetaSet(Protocol):
    """Where the meta batches are from."""

    def batches(self, records: list[HeadRecord]) -> list[MetaBatch]:
        """Return a meta batch for each of the training batch's records."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class FeatureBank:
    """Meta batches from the RoIs of past training batches, for features that training leaves alone.

    Every class that has occurred is as likely as any other, and its last RoIs are all equally so.
    A meta batch has as many foreground and background rows as the training batch; the background is
    the previous batch's. The current batch is left out, because its RoIs would confirm themselves.
    """

    def __init__(self, num_classes: int, per_class: int, seed: int) -> None:
        """
        Args:
            num_classes: K.
            per_class: RoIs that are kept of each class.
            seed: of the draws.
        """
        self._num_classes = num_classes
        self._per_class = per_class
        self._generator = torch.Generator().manual_seed(seed)
        # Per predictor: (K, S, D), (K,) ever kept, and (M, D).
        self._foreground: list[Tensor] = []
        self._seen: list[Tensor] = []
        self._background: list[Tensor] = []

    def batches(self, records: list[HeadRecord]) -> list[MetaBatch]:
        if not self._foreground:
            shape = self._num_classes, self._per_class
            self._foreground = [r.features.new_zeros(*shape, r.features.shape[1]) for r in records]
            self._seen = [torch.zeros(self._num_classes, dtype=torch.int64) for _ in records]
            self._background = [r.features[:0] for r in records]
        # A checkpoint's are on the CPU.
        device = records[0].features.device
        self._foreground = [features.to(device) for features in self._foreground]
        self._background = [features.to(device) for features in self._background]
        # The one wait for the device.
        on_host = torch.cat([record.gt_classes for record in records]).cpu()
        gt_classes = torch.split(on_host, [len(record.gt_classes) for record in records])
        drawn = [self._draw(stage, classes) for stage, classes in enumerate(gt_classes)]
        for stage, (record, classes) in enumerate(zip(records, gt_classes, strict=True)):
            self._keep(stage, record.features, classes)
        return drawn

    def _draw(self, stage: int, training_classes: Tensor) -> MetaBatch:
        """Return a meta batch for a training batch of (R,) classes, on the host."""
        seen, foreground = self._seen[stage], self._foreground[stage]
        background = self._background[stage]
        known = seen.nonzero()[:, 0]
        number = int((training_classes < self._num_classes).sum()) if len(known) else 0
        classes = known[self._random(number, len(known))]
        filled = seen[classes].clamp(max=self._per_class)
        slots = (torch.rand(number, generator=self._generator, dtype=torch.float64) * filled).long()
        device = foreground.device
        features = foreground[to_device(classes, device), to_device(slots, device)]
        gt_classes = F.pad(classes, (0, len(background)), value=self._num_classes)
        return torch.cat([features, background]), to_device(gt_classes, device)

    def _random(self, number: int, high: int) -> Tensor:
        return torch.randint(max(high, 1), (number,), generator=self._generator)

    def _keep(self, stage: int, features: Tensor, gt_classes: Tensor) -> None:
        """Keep a training batch's (R, D) features by their (R,) classes, which are on the host."""
        device = features.device
        is_foreground = gt_classes < self._num_classes
        self._background[stage] = features[to_device((~is_foreground).nonzero()[:, 0], device)]
        rows = is_foreground.nonzero()[:, 0]
        classes = gt_classes[rows]
        # The how-manieth of its class each row is: rings of the last S rows of each.
        order = classes.argsort(stable=True)
        counts = torch.bincount(classes, minlength=self._num_classes)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(order)) - starts[classes[order]]
        # Where there are more rows than a ring holds, keep the last ones.
        last = rank >= counts[classes[order]] - self._per_class
        order, rank = order[last], rank[last]
        slots = (self._seen[stage][classes[order]] + rank) % self._per_class
        place = to_device(classes[order], device), to_device(slots, device)
        self._foreground[stage][place] = features[to_device(rows[order], device)]
        self._seen[stage] += counts

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "foreground": self._foreground,
            "seen": self._seen,
            "background": self._background,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._seen = list(state["seen"])
        self._foreground = list(state["foreground"])
        self._background = list(state["background"])


class ForwardPass:
    """Meta batches from a forward pass of images that are drawn class-balanced."""

    def __init__(self, model: nn.Module, recorder: Recorder, loader: Iterable[Any]) -> None:
        """
        Args:
            model: whose features are asked for; none of its parameters or statistics change.
            recorder: of that model.
            loader: endless batches of images.
        """
        self._model = model
        self._recorder = recorder
        self._loader = loader
        self._images: Iterator[Any] | None = None

    def batches(self, records: list[HeadRecord]) -> list[MetaBatch]:
        if self._images is None:
            self._images = iter(self._loader)
        images = next(self._images)
        with _undisturbed(self._model), torch.no_grad(), EventStorage():
            self._model(images)
        return [(record.features, record.gt_classes) for record in self._recorder.records]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Let a model in training mode move neither batch statistics nor the state of a loss."""
    modules = [m for m in model.modules() if isinstance(m, _BatchNorm | Criterion) and m.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()
