"""How fast a training loop is fed: ours, and the one that tutorials show.

Both train the same network on the same images with the release's augmentation (crop, mirror,
AutoAugment, Cutout): the other with torchvision's transforms in a DataLoader with worker processes,
a network in PyTorch's default memory format and its default SGD. Each runs in a process of its own.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from balms_det.classification.augment import Augmentation
from balms_det.classification.config import load_config
from balms_det.classification.networks import Classifier, build_network
from balms_det.runtime.memory import keep_freed_memory

TIMED = 8  # batches
# Batches before these, in which worker processes start and fill their queues.
SKIPPED = 6

Step = Callable[[Tensor, Tensor], object]


class Loop:
    """One of the two, "ours" or "peer", in a process that it has to itself."""

    def __init__(self, side: str, *, workers: int, batch: int) -> None:
        """
        Args:
            workers: of the peer's DataLoader.
            batch: images in one.
        """
        self._process = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(side, workers, batch),
        )

    def seconds(self, *, trains: bool) -> float:
        """Time of ``TIMED`` batches, with the network's training step or without it."""
        return self._process.submit(_seconds, trains).result()

    def close(self) -> None:
        self._process.shutdown()


def _start(side: str, workers: int, batch: int) -> None:
    """Make this process one side's."""
    global _batches, _step
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    number = (SKIPPED + TIMED) * batch
    images = torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (number,), generator=generator)
    if side == "ours":
        # As tools/train_classifier.py does.
        keep_freed_memory()
        _batches, _step = _our_batches(images, labels, batch, device), _our_step(device)
    else:
        loader = DataLoader(
            PictureDataset(images, labels), batch, shuffle=True, num_workers=workers
        )
        _batches, _step = _peer_batches(loader, device), _peer_step(device)


# Of this process.
_batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
_step: Step


def _seconds(trains: bool) -> float:
    step: Step = _step if trains else lambda images, labels: None
    batches = _batches()
    for images, labels in islice(batches, SKIPPED):
        step(images, labels)
    _wait()
    started = time.perf_counter()
    for images, labels in islice(batches, TIMED):
        step(images, labels)
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _our_batches(
    images: Tensor, labels: Tensor, batch: int, device: torch.device
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    images, labels = images.to(device), labels.to(device)
    augment = Augmentation(crop_padding=4, flip=True, autoaugment=True, cutout=16)
    generator = torch.Generator()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=generator).to(device)
        for indices in torch.split(order, batch):
            yield augment(images.index_select(0, indices), generator), labels[indices]

    return batches


def _peer_batches(
    loader: DataLoader[tuple[Tensor, int]], device: torch.device
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for pictures, targets in loader:
            yield pictures.to(device), targets.to(device)

    return batches


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """As a tutorial has it: one PIL image at a time, through a composition of transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self._labels = labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.5] * 3, std=[0.25] * 3),
                # A square of a quarter of the image: Cutout.
                transforms.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._pictures[index]), self._labels[index]


def _our_step(device: torch.device) -> Step:
    """Return as balms_det.classification.Trainer: it normalises, and its layout suits small
    networks."""
    network = _network(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _training_step(network, network, fused=True)


def _peer_step(device: torch.device) -> Step:
    network = _network(device)
    normalised = torch.nn.Sequential(network.backbone, network.classifier)
    return _training_step(network, normalised, fused=None)


def _network(device: torch.device) -> Classifier:
    name = "cifar10_lt+softmax" if device.type == "cuda" else "cifar10_lt_cpu+softmax"
    return build_network(load_config(name), 10).to(device)


def _training_step(network: torch.nn.Module, forward: torch.nn.Module, fused: bool | None) -> Step:
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=fused
    )

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
