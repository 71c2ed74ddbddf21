"""What an exported model is: everything that its graphs do not say, in model.json beside them."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balms_det.runtime.errors import InputError

FILE_NAME = "model.json"
VERSION = 1


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes the input of the first graph, (1, 3, H, W) float32.

    Attributes:
        channels: "RGB" or "BGR", their order.
        shortest_edge: length in pixels to which the shorter edge is resized; 0 leaves the image.
        longest_edge: what the longer edge may not exceed.
        divisor: edges are padded, on the right and below, to a multiple of it.
        pixel_mean: of each channel, the value of padding. The graph subtracts it.
    """

    channels: str
    shortest_edge: int
    longest_edge: int
    divisor: int
    pixel_mean: tuple[float, ...]


@dataclass(frozen=True)
class BoxCoder:
    """How deltas move boxes (Detectron2's Box2BoxTransform)."""

    weights: tuple[float, ...]
    scale_clamp: float


@dataclass(frozen=True)
class Proposals:
    """The first graph, and how its outputs become proposals.

    Attributes:
        graph: file; from the image to the maps of `features`, then for each of L levels objectness
            logits (H, W, A), then for each level deltas (H, W, A, 4).
        features: names of the first outputs.
        strides: (L,) pixels.
        anchor_offset: of the first anchor from the image's corner, in strides.
        cell_anchors: for each level A boxes around the origin.
        coder: decodes deltas.
        pre_nms_topk: best anchors of each level that are suppressed.
        post_nms_topk: best proposals of all levels that remain.
        nms_thresh: IoU.
        min_box_size: boxes must be wider and higher, in pixels.
    """

    graph: str
    features: tuple[str, ...]
    strides: tuple[int, ...]
    anchor_offset: float
    cell_anchors: tuple[tuple[tuple[float, ...], ...], ...]
    coder: BoxCoder
    pre_nms_topk: int
    post_nms_topk: int
    nms_thresh: float
    min_box_size: float


@dataclass(frozen=True)
class Levels:
    """Which feature map a box is pooled from (FPN, arXiv:1612.03144, eq. 1).

    Attributes:
        features: names of the maps from `min_level` on.
        min_level: log2 of the stride of the first.
        canonical_size: edge in pixels of boxes at `canonical_level`.
    """

    features: tuple[str, ...]
    min_level: int
    canonical_size: float
    canonical_level: float


@dataclass(frozen=True)
class BoxStage:
    """A graph from feature maps and (R_l, 4) boxes of each level to (R, K) calibrated
    probabilities and (R, 4) or (R, 4 * K) deltas; a cascade has several."""

    graph: str
    coder: BoxCoder


@dataclass(frozen=True)
class Boxes:
    """The box head and the selection of detections.

    Attributes:
        score_thresh: detections score higher.
        nms_thresh: IoU above which a box is dropped for a better one of its class.
        topk: most detections of an image; negative keeps all.
    """

    levels: Levels
    stages: tuple[BoxStage, ...]
    score_thresh: float
    nms_thresh: float
    topk: int


@dataclass(frozen=True)
class Masks:
    """A graph from feature maps, boxes of each level and, unless `class_agnostic`, (N,) int64
    classes in the same order, to (N, M, M) probabilities; `size` is M."""

    graph: str
    levels: Levels
    class_agnostic: bool
    size: int


@dataclass(frozen=True)
class Classes:
    """Facts about the K classes; counts and groups are None where they are unknown."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    groups: tuple[str, ...] | None = None
    image_counts: tuple[int, ...] | None = None
    instance_counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Description:
    """An exported model.

    Attributes:
        format: "onnx", "openvino" or "torchscript".
        precision: "float32", "bfloat16" or "int8".
        producer: what wrote it, with its version.
        license: of the weights, where the exporter was told.
        masks: None for a model without them.
    """

    format: str
    precision: str
    producer: str
    license: str | None
    image: ImageInput
    proposals: Proposals
    boxes: Boxes
    masks: Masks | None
    classes: Classes
    version: int = VERSION

    def graphs(self) -> list[str]:
        """Return the files of all graphs, in the order in which they run."""
        masks = [self.masks.graph] if self.masks else []
        return [self.proposals.graph, *(stage.graph for stage in self.boxes.stages), *masks]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write model.json into `folder`."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_description(folder: str | os.PathLike[str]) -> Description:
    """Read the model.json in `folder`.

    Raises:
        InputError: there is none, or it is not one that this version reads.
    """
    path = Path(folder) / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the description of an exported model cannot be read ({error}); give the "
            "folder that `balms-det export` wrote"
        ) from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise InputError(
            f"{path}: the description has version {version!r}, but this balms_det reads version "
            f"{VERSION}; export the model again"
        )
    try:
        return _description(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the description is incomplete or not understood ({error!r}); export the "
            "model again"
        ) from error


def _description(content: dict[str, Any]) -> Description:
    proposals, boxes, masks = content["proposals"], content["boxes"], content["masks"]
    stages = tuple(
        BoxStage(**{**stage, "coder": _coder(stage["coder"])}) for stage in boxes["stages"]
    )
    parts = {
        "image": ImageInput(**_frozen(content["image"])),
        "proposals": Proposals(
            **{**_frozen(proposals), "coder": _coder(proposals["coder"])},
        ),
        "boxes": Boxes(**{**boxes, "levels": _levels(boxes["levels"]), "stages": stages}),
        "masks": masks and Masks(**{**masks, "levels": _levels(masks["levels"])}),
        "classes": Classes(**_frozen(content["classes"])),
    }
    return Description(**{**content, **parts})


def _coder(content: dict[str, Any]) -> BoxCoder:
    return BoxCoder(**_frozen(content))


def _levels(content: dict[str, Any]) -> Levels:
    return Levels(**_frozen(content))


def _frozen(content: dict[str, Any]) -> dict[str, Any]:
    """Return the same with tuples in the place of lists."""
    return {key: _as_tuple(value) for key, value in content.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
