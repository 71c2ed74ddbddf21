"""The classification losses alone: forward and backward over the logits of a batch.

Every loss stands against Detectron2's softmax, to show what its method costs; one that Detectron2
or mmdetection has too, also against theirs, with values and gradients compared.
"""

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import Tensor

from balms_det.losses.registry import LOSSES
from balms_det.modeling import criterion_from_options
from lab.benchmark.inputs import class_stats, seeded
from lab.benchmark.measure import Comparison

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_step(device: str, *, classes: int = 1203, rois: int = 1024) -> Iterator[Comparison]:
    """Every method's loss and its gradient, in training mode.

    Args:
        device: "cpu" or "cuda".
        classes: K.
        rois: R, of which a quarter are of objects.
    """
    gt_classes = torch.full((rois,), classes)
    gt_classes[: rois // 4] = torch.randint(classes, (rois // 4,), generator=seeded())
    gt_classes = gt_classes.to(device)
    all_logits = torch.randn(rois, classes + 16, generator=seeded()).to(device)

    def step(loss: Loss, num_logits: int) -> Callable[[], tuple[Tensor, Tensor]]:
        logits = all_logits[:, :num_logits].contiguous().requires_grad_()

        def run() -> tuple[Tensor, Tensor]:
            with EventStorage():
                value = loss(logits, gt_classes)
            return value.detach(), torch.autograd.grad(value, logits)[0]

        return run

    softmax = step(F.cross_entropy, classes + 1)
    with tempfile.TemporaryDirectory() as folder:
        stats_file = str(Path(folder) / "class_stats.json")
        class_stats(classes).save(stats_file)
        for name in LOSSES:

            def ours(name: str = name) -> Callable[[], tuple[Tensor, Tensor]]:
                criterion = criterion_from_options(
                    num_classes=classes, stats_file=stats_file, options={"LOSS": {"NAME": name}}
                )
                num_logits = criterion.activation.num_logits(classes)
                return step(criterion.to(device).train(), num_logits)

            difference = largest_difference_of_steps if name == "softmax" else None
            yield Comparison("detectron2 softmax", ours(), softmax, difference, variant=name)
            # Losses with running state start again, and both see the same batches.
            for peer, loss, num_logits in _the_same_elsewhere(name, classes, device):
                yield Comparison(
                    peer, ours(), step(loss, num_logits), largest_difference_of_steps, variant=name
                )


def largest_difference_of_steps(ours: tuple[Tensor, Tensor], peer: tuple[Tensor, Tensor]) -> float:
    """Return the largest difference of values, and of gradients by the logits that both have."""
    columns = min(ours[1].shape[1], peer[1].shape[1])
    gradients = ours[1][:, :columns] - peer[1][:, :columns]
    return max(float((ours[0] - peer[0]).abs()), float(gradients.abs().max()))


def _the_same_elsewhere(name: str, classes: int, device: str) -> Iterator[tuple[str, Loss, int]]:
    """Peers' implementations of a method: whose, the loss per RoI, and its number of logits."""
    if name == "sigmoid":
        layers = FastRCNNOutputLayers(
            ShapeSpec(channels=1),
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            num_classes=classes,
            use_sigmoid_ce=True,
        )
        yield "detectron2", layers.sigmoid_cross_entropy_loss, classes + 1
    try:
        mmdet = importlib.import_module("mmdet.models.losses")
    except ImportError:  # an optional peer
        return
    if name == "seesaw":
        seesaw = mmdet.SeesawLoss(num_classes=classes, reduction="sum").to(device)

        def seesaw_loss(logits: Tensor, gt_classes: Tensor) -> Tensor:
            return sum(seesaw(logits, gt_classes).values()) / len(logits)

        yield "mmdet", seesaw_loss, classes + 2
    if name == "eqlv2":
        yield "mmdet", mmdet.EQLV2Loss(num_classes=classes).to(device), classes + 1
