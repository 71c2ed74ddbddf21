"""Works of the detector: parts of it, a whole image, a training step; the peer is Detectron2.

Inputs are generated. Class scores, whose distribution decides how long selection takes, come in two
kinds: those of a sigmoid classifier before training, every one above the threshold, and such as a
trained one has, a few classes of each RoI scored well and a long tail of weak ones.
"""

from collections.abc import Iterator

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor

from balms_det.benchmark.measure import Comparison
from balms_det.modeling import LongTailPredictor, criterion_from_options

IMAGE_SIZE = (800, 1066)  # height and width in pixels of a usual photograph, as LVIS is tested
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
    image = _image_with_proposals(proposals, device)
    for variant, logits in _class_logits(proposals, classes).items():
        logits = logits.to(device)
        deltas = (0.5 * torch.randn(proposals, 4 * classes, generator=_seeded())).to(device)
        candidates = int((logits.sigmoid() > SCORE_THRESHOLD).sum())
        # Detectron2's classifier has a column for the background, and ignores it with a sigmoid.
        padded = torch.nn.functional.pad(logits, (0, 1))

        yield Comparison(
            "detectron2",
            lambda logits=logits, deltas=deltas: ours.inference((logits, deltas), [image])[0][0],
            lambda padded=padded, deltas=deltas: stock.inference((padded, deltas), [image])[0][0],
            largest_difference_of_detections,
            variant=variant,
            sizes={"candidates": candidates},
        )


def largest_difference_of_detections(ours: Instances, peer: Instances) -> float:
    """Of scores in [0, 1] and of box coordinates in pixels, over detections that are the same.

    Two are the same if they are of one class, and their boxes nearest to each other and less than a
    pixel apart. A detection that only one side has counts with its score.
    """
    ours_boxes, peer_boxes = ours.pred_boxes.tensor.double(), peer.pred_boxes.tensor.double()
    distance = torch.cdist(ours_boxes, peer_boxes, p=float("inf"))
    distance[ours.pred_classes[:, None] != peer.pred_classes] = float("inf")
    if not distance.numel():
        return float(torch.cat([ours.scores, peer.scores, ours.scores.new_zeros(1)]).max())
    nearest, index = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[index] == torch.arange(len(ours), device=index.device)
    same = mutual & (nearest < 1)
    alone = torch.ones_like(peer.scores, dtype=torch.bool)
    alone[index[same]] = False
    scores = (ours.scores[same] - peer.scores[index[same]]).abs()
    differences = [nearest[same], scores, ours.scores[~same], peer.scores[alone]]
    return max(float(values.max()) for values in differences if values.numel())


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _image_with_proposals(count: int, device: str) -> Instances:
    """One image with `count` proposals, several about each of a few dozen objects."""
    generator = _seeded(1)
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
    image.proposal_boxes = boxes.to(device)
    return image


def _class_logits(proposals: int, classes: int) -> dict[str, Tensor]:
    """(R, K) logits of a sigmoid classifier before and after training."""
    generator = _seeded(2)
    noise = torch.randn(proposals, classes, generator=generator)
    # A prior of 0.001, as the classifier starts.
    untrained = -6.9 + 0.1 * noise
    # Weak scores that spread over the threshold, and five plausible classes in each RoI.
    trained = -11 + 2 * noise
    plausible = torch.randint(classes, (proposals, 5), generator=generator)
    trained.scatter_(1, plausible, -3 + 2 * torch.randn(proposals, 5, generator=generator))
    return {"trained scores": trained, "untrained scores": untrained}
