"""Generated inputs of the works, the same in every run, and models to put them through.

Class scores, whose distribution decides how long selection takes, come in two kinds: those of a
sigmoid classifier before training, every one above the threshold, and such as a trained one has, a
few classes of each RoI scored well and a long tail of weak ones.
"""

import argparse
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor

from balms_det.annotations.class_stats import ClassStats
from balms_det.config import config_file
from balms_det.engine import load_config

IMAGE_SIZE = (800, 1066)  # height and width in pixels of a usual photograph, as LVIS is tested


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_with_proposals(count: int) -> Instances:
    """One image with `count` proposals, several about each of a few dozen objects."""
    generator = seeded(1)
    height, width = IMAGE_SIZE
    objects = max(1, count // 25)
    centre = torch.rand(objects, 2, generator=generator) * torch.tensor([width, height])
    size = 16 * 20 ** torch.rand(objects, 2, generator=generator)  # 16 to 320 pixels
    which = torch.randint(objects, (count,), generator=generator)
    jitter = torch.randn(2, count, 2, generator=generator)
    centre = centre[which] + 0.15 * size[which] * jitter[0]
    size = size[which] * (0.15 * jitter[1]).exp()
    boxes = Boxes(torch.cat([centre - size / 2, centre + size / 2], dim=1))
    boxes.clip(IMAGE_SIZE)
    image = Instances(IMAGE_SIZE)
    image.proposal_boxes = boxes
    return image


def class_logits(proposals: int, classes: int) -> dict[str, Tensor]:
    """Return (R, K) logits of a sigmoid classifier before and after training."""
    generator = seeded(2)
    noise = torch.randn(proposals, classes, generator=generator)
    # A prior of 0.001, as the classifier starts.
    untrained = -6.9 + 0.1 * noise
    # Weak scores that spread over the threshold, and five plausible classes in each RoI.
    trained = -11 + 2 * noise
    plausible = torch.randint(classes, (proposals, 5), generator=generator)
    trained.scatter_(1, plausible, -3 + 2 * torch.randn(proposals, 5, generator=generator))
    return {"trained scores": trained, "untrained scores": untrained}


def photograph(side: int, seed: int = 0) -> dict[str, Any]:
    """Smooth noise of `side` by 4/3 `side` pixels, resized from 3/5 of that, like LVIS's."""
    height, width = side, side * 4 // 3
    noise = 255 * torch.rand(1, 3, 12, 16, generator=seeded(seed))
    pixels = F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 255)[0]
    return {"image": pixels, "height": height * 3 // 5, "width": width * 3 // 5}


def annotated(inputs: dict[str, Any], classes: int, seed: int = 0) -> dict[str, Any]:
    """With a dozen objects, LVIS's mean."""
    generator = seeded(seed)
    height, width = inputs["image"].shape[1:]
    extent = torch.tensor([width, height])
    size = extent * (0.15 + 0.35 * torch.rand(12, 2, generator=generator))
    corner = (extent - size) * torch.rand(12, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], dim=1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(classes, (12,), generator=generator)
    instances.gt_masks = PolygonMasks(
        [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes.double().tolist()]
    )
    return {**inputs, "instances": instances}


def class_stats(classes: int) -> ClassStats:
    """Return statistics in which the j-th class has 1/j of the first one's objects."""
    counts = [max(1, 50_000 // (j + 1)) for j in range(classes)]
    return ClassStats(
        image_counts=counts,
        instance_counts=counts,
        num_images=100_000,
        num_annotated_images=100_000,
        category_ids=range(1, classes + 1),
        names=[f"class {j}" for j in range(classes)],
        groups=["f" if count > 100 else "c" if count > 10 else "r" for count in counts],
    )


def model_config(device: str, classes: int, *opts: Any) -> CfgNode:
    """Return the configuration of lvis_r50_rfs.yaml with random weights."""
    own = ("MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", classes)
    path = config_file("lvis_r50_rfs.yaml")
    opts = [str(opt) for opt in (*own, *opts)]
    return load_config(argparse.Namespace(config_file=path, opts=opts, dataset=[]))


def our_model(cfg: CfgNode, loss: str) -> torch.nn.Module:
    """Return a detector with that loss, randomly initialised."""
    cfg = cfg.clone()
    cfg.MODEL.LONG_TAIL.LOSS.NAME = loss
    torch.manual_seed(0)
    ours = build_model(cfg)
    for name, buffer in ours.backbone.named_buffers():
        # Random residual branches, each adding up, would let the activations grow without bound.
        if name.endswith("conv3.norm.weight"):
            buffer.fill_(0.2)
    return ours


def stock_model(cfg: CfgNode, ours: torch.nn.Module) -> torch.nn.Module:
    """Detectron2's detector, its parameters those of `ours` of the same name and shape."""
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    stock = build_model(cfg)
    shapes = {name: value.shape for name, value in stock.state_dict().items()}
    state = {n: v for n, v in ours.state_dict().items() if v.shape == shapes.get(n)}
    stock.load_state_dict(state, strict=False)
    return stock


def propose_objects(model: torch.nn.Module) -> None:
    """Put ten boxes about each object among the proposals in training, as a trained RPN does.

    A random one finds hardly any, and the mask and box losses would have next to nothing to do.
    """

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
        for image, targets in zip(output[0], inputs[2], strict=True):
            objects = targets.gt_boxes.tensor.repeat(10, 1)[: len(image)]
            size = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
            jitter = torch.randn(objects.shape, generator=seeded()).to(objects)
            image.proposal_boxes.tensor[: len(objects)] = objects + 0.05 * size * jitter

    model.proposal_generator.register_forward_hook(hook)


@torch.no_grad()
def spread_scores(model: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Scale a softmax classifier so that its logits spread as those of a trained one.

    Before training, all classes of all proposals score alike.
    """
    classifier = model.roi_heads.box_predictor.cls_score
    logits: list[Tensor] = []
    handle = classifier.register_forward_hook(lambda *call: logits.append(call[2]))
    model([inputs])
    handle.remove()
    classifier.weight.mul_(2 / logits[0].std())
    classifier.bias[-1] = 11.0  # most proposals are background
