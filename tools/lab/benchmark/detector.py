"""Works of the detector: parts of it, a whole image, a training step; the peer is Detectron2."""

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from balms_det.modeling import (
    LongTailMaskHead,
    LongTailPredictor,
    criterion_from_options,
    prepared_for_inference,
    speed_up_training,
    use_matrix_products,
)
from lab.benchmark.inputs import (
    IMAGE_SIZE,
    annotated,
    class_logits,
    class_stats,
    image_with_proposals,
    model_config,
    our_model,
    photograph,
    propose_objects,
    seeded,
    spread_scores,
    stock_model,
)
from lab.benchmark.measure import Comparison

SCORE_THRESHOLD = 0.0001  # as in configs/base_lvis.yaml
NMS_THRESHOLD = 0.5


def box_selection(
    device: str, *, classes: int = 1203, proposals: int = 1000, detections: int = 300
) -> Iterator[Comparison]:
    """From class probabilities and box deltas of one image to detections, class-wise NMS included.

    Args:
        device: "cpu" or "cuda".
        classes: K.
        proposals: R.
        detections: how many are kept.
    """
    options = {
        "box2box_transform": Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        "num_classes": classes,
        "test_score_thresh": SCORE_THRESHOLD,
        "test_nms_thresh": NMS_THRESHOLD,
        "test_topk_per_image": detections,
    }
    shape = ShapeSpec(channels=8)  # the layers themselves are no part of the work
    stock = FastRCNNOutputLayers(shape, **options, use_sigmoid_ce=True)
    sigmoid = {"LOSS": {"NAME": "sigmoid"}}
    criterion = criterion_from_options(num_classes=classes, options=sigmoid)
    ours = LongTailPredictor(shape, **options, criterion=criterion)
    stock, ours = stock.to(device), ours.to(device)
    image = image_with_proposals(proposals).to(device)
    for variant, logits in class_logits(proposals, classes).items():
        logits = logits.to(device)
        deltas = (0.5 * torch.randn(proposals, 4 * classes, generator=seeded())).to(device)
        candidates = int((logits.sigmoid() > SCORE_THRESHOLD).sum())
        # Detectron2's classifier has a column for the background, and ignores it with a sigmoid.
        padded = F.pad(logits, (0, 1))

        yield Comparison(
            "detectron2",
            lambda logits=logits, deltas=deltas: ours.inference((logits, deltas), [image])[0][0],
            lambda padded=padded, deltas=deltas: stock.inference((padded, deltas), [image])[0][0],
            largest_differences_of_detections,
            variant=variant,
            sizes={"candidates": candidates},
        )


def mask_head(device: str, *, classes: int = 1203, detections: int = 300) -> Iterator[Comparison]:
    """From pooled features of the detections of one image to a mask of each, 28 x 28.

    Args:
        device: "cpu" or "cuda".
        classes: K.
        detections: N.
    """
    channels, side = 256, 14
    shape = ShapeSpec(channels=channels, height=side, width=side)
    layers = {"num_classes": classes, "conv_dims": [channels] * 5}
    stock = MaskRCNNConvUpsampleHead(shape, **layers)
    with torch.no_grad():  # the layer starts so near to zero that all masks would be 0.5
        stock.predictor.weight.normal_(std=0.1, generator=seeded())
    ours = LongTailMaskHead(shape, **layers)
    ours.load_state_dict(stock.state_dict())
    stock, ours = stock.eval().to(device), ours.eval().to(device)
    generator = seeded()
    features = torch.randn(detections, channels, side, side, generator=generator).to(device)
    found = Instances(IMAGE_SIZE)
    found.pred_classes = torch.randint(classes, (detections,), generator=generator).to(device)

    def masks(head: torch.nn.Module) -> Tensor:
        with torch.inference_mode():
            return head(features, [found])[0].pred_masks

    heads = {"defaults": ours}
    if torch.device(device).type == "cpu":
        heads["fast convolutions"] = copy.deepcopy(ours)
        use_matrix_products(heads["fast convolutions"])
    for variant, head in heads.items():
        yield Comparison(
            "detectron2",
            partial(masks, head),
            partial(masks, stock),
            largest_difference,
            variant=variant,
        )


def image(
    device: str,
    *,
    classes: int = 1203,
    proposals: int = 1000,
    detections: int = 300,
    side: int = 800,
) -> Iterator[Comparison]:
    """One photograph through a Mask R-CNN R50-FPN, from pixels to masks of its own size.

    The weights are random, and the class scores made to spread as those of a trained detector.

    Args:
        device: "cpu" or "cuda".
        classes: K.
        proposals: that the RPN hands on.
        detections: how many are kept.
        side: the shorter one of the network's input, in pixels.
    """
    cfg, ours, stock, inputs = random_detectors(device, classes, proposals, detections, side)
    modes: dict[str, dict[str, Any]] = {
        "defaults": {},
        "fast convolutions": {"FAST_CONVOLUTIONS": True},
    }
    if device == "cuda":
        modes["half precision"] = {"PRECISION": "float16"}
        modes["fast convolutions, half precision"] = {
            **modes["fast convolutions"],
            **modes["half precision"],
        }
    for variant, options in modes.items():
        inference = cfg.MODEL.LONG_TAIL.INFERENCE.clone()
        inference.update(options)
        # In half precision against Detectron2 in half precision.
        peer_inference = cfg.MODEL.LONG_TAIL.INFERENCE.clone()
        peer_inference.PRECISION = inference.PRECISION
        yield Comparison(
            "detectron2",
            partial(detect, prepared_for_inference(ours, inference), inputs),
            partial(detect, prepared_for_inference(stock, peer_inference), inputs),
            largest_differences_of_detections,
            variant=variant,
            dtype=inference.PRECISION,
        )


def random_detectors(
    device: str, classes: int, proposals: int, detections: int, side: int
) -> tuple[CfgNode, torch.nn.Module, torch.nn.Module, dict[str, Any]]:
    """Return a configuration, our model and Detectron2's with the same weights, and an image.

    Args:
        device, classes, proposals, detections, side: as of :func:`image`.
    """
    cfg = model_config(
        device, classes,
        "MODEL.RPN.POST_NMS_TOPK_TEST", proposals, "TEST.DETECTIONS_PER_IMAGE", detections,
    )  # fmt: skip
    ours = our_model(cfg, "softmax").eval()
    stock = stock_model(cfg, ours).eval()
    inputs = photograph(side)
    spread_scores(ours, inputs)
    stock.load_state_dict(ours.state_dict())
    return cfg, ours, stock, inputs


@torch.inference_mode()
def detect(model: torch.nn.Module, inputs: dict[str, Any]) -> Instances:
    """Return the detections in one image."""
    return model([inputs])[0]["instances"]


def train_step(
    device: str, *, classes: int = 1203, proposals: int = 1000, images: int = 1, side: int = 800
) -> Iterator[Comparison]:
    """Forward, backward and SGD step of a Mask R-CNN R50-FPN.

    The learning rate is zero, so that every repetition does the same work.

    Args:
        device: "cpu" or "cuda".
        classes: K.
        proposals: that the RPN hands on, of which 512 per image are sampled.
        images: in a batch.
        side: the shorter one of an image, in pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "class_stats.json"
        class_stats(classes).save(stats)
        cfg = model_config(
            device, classes,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN", proposals, "MODEL.LONG_TAIL.STATS_FILE", stats,
        )  # fmt: skip
        batch = [annotated(photograph(side, seed), classes, seed) for seed in range(images)]
        softmax, balanced_sigmoid = (our_model(cfg, n) for n in ("softmax", "balanced_sigmoid"))
        stock = stock_model(cfg, softmax)
        models = {"softmax": softmax, "balanced_sigmoid": balanced_sigmoid}
        if device == "cpu":
            models["softmax, fast training"] = copy.deepcopy(softmax)
            speed_up_training(models["softmax, fast training"])
        for model in (stock, *models.values()):
            propose_objects(model)
        # Detectron2's mixed precision, SOLVER.AMP, is for GPUs.
        for dtype in ("float32", "float16") if device == "cuda" else ("float32",):
            peer = _TrainStep(stock, batch, dtype)
            for variant, model in models.items():
                is_softmax = model is not balanced_sigmoid
                yield Comparison(
                    "detectron2" if is_softmax else "detectron2 softmax",
                    _TrainStep(model, batch, dtype),
                    peer,
                    _largest_difference_of_losses if is_softmax else None,
                    variant=variant,
                    dtype=dtype,
                )


class _TrainStep:
    """One step of training; returns the losses."""

    def __init__(
        self, model: torch.nn.Module, batch: list[dict[str, Any]], dtype: str = "float32"
    ) -> None:
        self._model = model.train()
        self._autocast = torch.autocast(
            model.device.type, getattr(torch, dtype), enabled=dtype != "float32"
        )
        self._batch = batch
        self._optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9
        )

    def __call__(self) -> dict[str, Tensor]:
        torch.manual_seed(0)  # which proposals are sampled
        with EventStorage(), self._autocast:
            losses = self._model(self._batch)
        self._optimizer.zero_grad()
        sum(losses.values()).backward()
        self._optimizer.step()
        values = {name: loss.detach() for name, loss in losses.items()}
        self._optimizer.zero_grad()
        return values


def largest_differences_of_detections(ours: Instances, peer: Instances) -> dict[str, float]:
    """Return the largest differences of "scores" and of box coordinates in "pixels".

    Two detections are the same if they have one class, and their boxes are nearest to each other
    and less than a pixel apart. A detection that only one side has counts with its score.
    """
    ours_boxes, peer_boxes = ours.pred_boxes.tensor.double(), peer.pred_boxes.tensor.double()
    distance = torch.cdist(ours_boxes, peer_boxes, p=float("inf"))
    distance[ours.pred_classes[:, None] != peer.pred_classes] = float("inf")
    if not distance.numel():
        scores = torch.cat([ours.scores, peer.scores, ours.scores.new_zeros(1)])
        return {"scores": float(scores.max()), "pixels": 0.0}
    nearest, index = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[index] == torch.arange(len(ours), device=index.device)
    same = mutual & (nearest < 1)
    alone = torch.ones_like(peer.scores, dtype=torch.bool)
    alone[index[same]] = False
    scores = (ours.scores[same] - peer.scores[index[same]]).abs()
    zero = scores.new_zeros(1)
    return {
        "scores": float(torch.cat([scores, ours.scores[~same], peer.scores[alone], zero]).max()),
        "pixels": float(torch.cat([nearest[same], zero]).max()),
    }


def largest_difference(ours: Tensor, peer: Tensor) -> float:
    return float((ours.double() - peer.double()).abs().max()) if ours.numel() else 0.0


def _largest_difference_of_losses(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> float:
    assert ours.keys() == peer.keys()
    return max(largest_difference(ours[name], peer[name]) for name in ours)
