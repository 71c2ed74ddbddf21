"""How fast the training loop is fed: python tools/classifier_throughput.py --json FILE

Two loops train the same network on the same images with the release's augmentation (crop, mirror,
AutoAugment, Cutout): ours, and the one that tutorials show, of torchvision's transforms in a
DataLoader with worker processes, a network in PyTorch's default memory format and its default SGD.
They run in turn. The first record is of the batches alone, the second of training with the network
of configs/classification/cifar10_lt_cpu_softmax.yaml, or on a GPU of cifar10_lt_softmax.yaml. The
images are random numbers, which takes as long as photographs.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import orjson
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from balms_det.atomic_file import atomic_file
from balms_det.classification import load_config
from balms_det.classification.augment import Augmentation
from balms_det.classification.networks import build_network
from balms_det.command_line import run_tool
from balms_det.config import config_file
from balms_det.provenance import environment

BATCH = 512
TIMED = 8  # batches
# Batches before these, in which worker processes start and fill their queues.
SKIPPED = 6
IMAGES = (SKIPPED + TIMED) * BATCH

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
Step = Callable[[Tensor, Tensor], object]


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
                # A square of a quarter of the picture: Cutout.
                transforms.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._pictures[index]), self._labels[index]


def our_batches(images: Tensor, labels: Tensor, device: torch.device) -> Batches:
    images, labels = images.to(device), labels.to(device)
    augment = Augmentation(crop_padding=4, flip=True, autoaugment=True, cutout=16)
    generator = torch.Generator()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for indices in torch.randperm(IMAGES, generator=generator).to(device).split(BATCH):
            yield augment(images[indices], generator), labels[indices]

    return batches


def peer_batches(images: Tensor, labels: Tensor, device: torch.device, workers: int) -> Batches:
    loader = DataLoader(PictureDataset(images, labels), BATCH, shuffle=True, num_workers=workers)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for pictures, targets in loader:
            yield pictures.to(device), targets.to(device)

    return batches


def seconds(batches: Iterator[tuple[Tensor, Tensor]], step: Step) -> float:
    """Time of `step` on TIMED batches."""
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


def our_step(device: torch.device) -> Step:
    """As balms_det.classification.Trainer: it normalises, and its layout suits small networks."""
    network = _network(device).to(memory_format=torch.channels_last)
    return _training_step(network, network, fused=True)


def peer_step(device: torch.device) -> Step:
    network = _network(device)
    normalised = torch.nn.Sequential(network.backbone, network.classifier)
    return _training_step(network, normalised, fused=None)


def _network(device: torch.device) -> torch.nn.Module:
    name = "cifar10_lt_softmax" if device.type == "cuda" else "cifar10_lt_cpu_softmax"
    return build_network(load_config(config_file(f"classification/{name}.yaml")), 10).to(device)


def _training_step(network: torch.nn.Module, forward: torch.nn.Module, fused: bool | None) -> Step:
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=fused
    )

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where the records are written")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader (default: 2)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (default: 5)")
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (IMAGES,))
    loops = {
        "ours": our_batches(images, labels, device),
        "peer": peer_batches(images, labels, device, args.workers),
    }
    steps: dict[str, dict[str, Step]] = {
        "batches alone": dict.fromkeys(loops, lambda images, labels: None),
        "training": {"ours": our_step(device), "peer": peer_step(device)},
    }
    records = []
    for work, step in steps.items():
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(args.repeat):
            for name, batches in loops.items():
                times[name].append(seconds(batches(), step[name]))
        ours_s, peer_s = (statistics.median(values) for values in times.values())
        records.append(
            {
                "work": work,
                "device": device.type,
                "images": TIMED * BATCH,
                "peer": f"torchvision transforms in a DataLoader with {args.workers} workers",
                "ours_s": ours_s,
                "peer_s": peer_s,
                "ratio": peer_s / ours_s,
                "repeat": args.repeat,
                "load_average": round(os.getloadavg()[0], 1),
                **environment(device.type, torch.get_num_threads()),
            }
        )
        print(f"{work}: {records[-1]['ratio']:.1f} times as fast", flush=True)
    with atomic_file(args.json) as file:
        file.write(orjson.dumps(records, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    run_tool(main)
