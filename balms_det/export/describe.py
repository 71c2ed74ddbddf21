"""The description of a detector: what its graphs do not say."""

from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead

import balms_det
from balms_det.annotations.class_stats import ClassStats
from balms_det.deploy.description import (
    BoxCoder,
    Boxes,
    BoxStage,
    Classes,
    Description,
    ImageInput,
    Levels,
    Masks,
    Proposals,
)
from balms_det.deploy.engines import SUFFIXES
from balms_det.export.graphs import box_stages, is_class_agnostic
from balms_det.modeling import LongTailPredictor
from balms_det.runtime.errors import InputError


def describe(
    model: Any,
    *,
    form: str,
    precision: str,
    image: ImageInput,
    classes: Classes,
    license: str | None,
) -> Description:
    """Return the description of `model`, exported in a format and a precision.

    Raises:
        InputError: the model has a part that cannot be exported.
    """
    check_exportable(model)
    suffix = SUFFIXES[form]
    heads = model.roi_heads
    stages = box_stages(heads)
    predictor = stages[-1][1]
    return Description(
        format=form,
        precision=precision,
        producer=f"balms_det {balms_det.__version__}",
        license=license,
        image=image,
        proposals=_proposals(model, suffix),
        boxes=Boxes(
            levels=_levels(heads.box_pooler, heads.box_in_features),
            stages=tuple(
                BoxStage(f"box_head_{i}{suffix}", _coder(stage.box2box_transform))
                for i, (_, stage) in enumerate(stages)
            ),
            score_thresh=predictor.test_score_thresh,
            nms_thresh=predictor.test_nms_thresh,
            topk=predictor.test_topk_per_image,
        ),
        masks=_masks(heads, suffix) if heads.mask_on else None,
        classes=classes,
    )


def image_input(cfg: Any, model: Any) -> ImageInput:
    """Return how a configuration and its model take images."""
    return ImageInput(
        channels="RGB" if cfg.INPUT.FORMAT == "RGB" else "BGR",
        shortest_edge=cfg.INPUT.MIN_SIZE_TEST,
        longest_edge=cfg.INPUT.MAX_SIZE_TEST,
        divisor=max(1, model.backbone.size_divisibility),
        pixel_mean=tuple(model.pixel_mean.flatten().tolist()),
    )


def with_counts(classes: Classes, stats: ClassStats | None) -> Classes:
    """Return `classes` with the counts of the training set, where they are known."""
    if stats is None:
        return classes
    return Classes(
        names=classes.names,
        category_ids=classes.category_ids,
        groups=classes.groups,
        image_counts=tuple(map(int, stats.image_counts)),
        instance_counts=tuple(map(int, stats.instance_counts)),
    )


def check_exportable(model: Any) -> None:
    """Refuse models that the graphs of this package are not cut from.

    Raises:
        InputError: names the part.
    """
    parts = {
        "MODEL.META_ARCHITECTURE": (model, GeneralizedRCNN),
        "MODEL.ANCHOR_GENERATOR.NAME": (_part(model, "anchor_generator"), DefaultAnchorGenerator),
        "MODEL.ROI_HEADS.NAME": (getattr(model, "roi_heads", None), StandardROIHeads),
    }
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, StandardROIHeads):
        for _, predictor in box_stages(heads):
            parts["MODEL.ROI_HEADS.NAME"] = (predictor, LongTailPredictor)
        if heads.mask_on:
            parts["MODEL.ROI_MASK_HEAD.NAME"] = (heads.mask_head, MaskRCNNConvUpsampleHead)
    for key, (part, supported) in parts.items():
        if not isinstance(part, supported):
            raise InputError(
                f"{key}: {type(part).__name__} cannot be exported; use a {supported.__name__}"
            )
    if model.roi_heads.keypoint_on:
        raise InputError("MODEL.KEYPOINT_ON: keypoints cannot be exported; set it to False")


def _part(model: Any, name: str) -> Any:
    return getattr(getattr(model, "proposal_generator", None), name, None)


def _proposals(model: Any, suffix: str) -> Proposals:
    rpn, anchors = model.proposal_generator, model.proposal_generator.anchor_generator
    return Proposals(
        graph=f"backbone{suffix}",
        features=tuple(pooled_features(model)),
        strides=tuple(map(int, anchors.strides)),
        anchor_offset=float(anchors.offset),
        cell_anchors=tuple(
            tuple(map(tuple, cells.tolist())) for _, cells in anchors.cell_anchors.named_buffers()
        ),
        coder=_coder(rpn.box2box_transform),
        pre_nms_topk=rpn.pre_nms_topk[False],
        post_nms_topk=rpn.post_nms_topk[False],
        nms_thresh=rpn.nms_thresh,
        min_box_size=float(rpn.min_box_size),
    )


def pooled_features(model: Any) -> list[str]:
    """Return the names of the backbone's maps that RoIs are pooled from."""
    heads = model.roi_heads
    names = [*heads.box_in_features, *(heads.mask_in_features if heads.mask_on else ())]
    return list(dict.fromkeys(names))


def _masks(heads: Any, suffix: str) -> Masks:
    resolution = heads.mask_pooler.output_size[0]
    return Masks(
        graph=f"mask_head{suffix}",
        levels=_levels(heads.mask_pooler, heads.mask_in_features),
        class_agnostic=is_class_agnostic(heads.mask_head),
        size=2 * resolution,  # the head's transposed convolution doubles it
    )


def _levels(pooler: ROIPooler, features: list[str]) -> Levels:
    return Levels(
        features=tuple(features),
        min_level=pooler.min_level,
        canonical_size=float(pooler.canonical_box_size),
        canonical_level=float(pooler.canonical_level),
    )


def _coder(transform: Any) -> BoxCoder:
    return BoxCoder(tuple(map(float, transform.weights)), float(transform.scale_clamp))
