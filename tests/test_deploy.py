"""The NumPy half of exported models does what Detectron2, torchvision and this package do."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes as Detectron2Boxes
from torchvision.ops import nms as torchvision_nms

from balms_det.deploy import boxes as box_arithmetic
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
    read_description,
)
from balms_det.deploy.engines import load_graph
from balms_det.deploy.image import padded, resized
from balms_det.deploy.masks import paste_mask
from balms_det.deploy.proposals import find_proposals
from balms_det.deploy.selection import select
from balms_det.deploy.suppression import at_least_best, nms
from balms_det.runtime.errors import InputError

IMAGE = ImageInput("BGR", 60, 100, 32, (103.5, 116.25, 123.75))
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0), 4.0)
LEVELS = Levels(("p2", "p3", "p4", "p5"), 2, 224.0, 4.0)


def random_boxes(count, seed=0, extent=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = extent * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 40 * torch.rand(count, 2, generator=generator)], dim=1)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 700])
@pytest.mark.parametrize("nms_thresh", [0.0, 0.5, 1.0])
def test_suppression_is_that_of_torchvision(count, nms_thresh):
    boxes = random_boxes(count)
    scores = torch.arange(count, 0, -1).float()
    expected = torchvision_nms(boxes, scores, nms_thresh)
    assert nms(boxes.numpy(), nms_thresh).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [1, 5, 50, 100])
def test_the_best_are_all_that_reach_the_last_of_them(count):
    values = np.random.default_rng(0).integers(0, 8, 50).astype(np.float32)
    best = at_least_best(values, count)
    ranked = sorted(range(50), key=lambda i: (-values[i], i))
    least = values[ranked[min(count, 50) - 1]]
    assert best.tolist() == [i for i in ranked if values[i] >= least]


def test_boxes_are_decoded_as_by_detectron2():
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(200)
    deltas = 20 * torch.randn(200, 4, generator=generator)  # some beyond the clamp
    expected = Box2BoxTransform(CODER.weights, CODER.scale_clamp).apply_deltas(deltas, boxes)
    actual = box_arithmetic.decode(deltas.numpy(), boxes.numpy(), CODER)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6, atol=1e-5)


def test_boxes_go_to_the_levels_of_detectron2():
    edges = torch.tensor([0.0, 1, 55.9, 56, 111.9, 112, 113, 223.9, 224, 447.9, 448, 5000])
    boxes = torch.stack([edges * 0 + 3, edges * 0 + 5, edges + 3, edges + 5], dim=1)
    expected = assign_boxes_to_levels([Detectron2Boxes(boxes)], 2, 5, 224, 4)
    order, per_level = box_arithmetic.by_level(boxes.numpy(), LEVELS)
    assert [len(each) for each in per_level] == torch.bincount(expected, minlength=4).tolist()
    assert order.tolist() == expected.argsort(stable=True).tolist()
    np.testing.assert_array_equal(np.concatenate(per_level), boxes.numpy()[order])


def test_no_boxes_go_to_no_level():
    order, per_level = box_arithmetic.by_level(np.zeros((0, 4), np.float32), LEVELS)
    assert len(order) == 0 and [each.shape for each in per_level] == [(0, 4)] * 4


@pytest.mark.parametrize("pre_nms_topk", [30, 5000])
@pytest.mark.parametrize("post_nms_topk", [10, 1000])
@pytest.mark.parametrize("min_box_size", [0.0, 25.0])
def test_proposals_are_those_of_detectron2(pre_nms_topk, post_nms_topk, min_box_size):
    strides, image_size = (8, 16), (90, 120)
    anchors = DefaultAnchorGenerator(
        sizes=[[16, 24], [40, 64]], aspect_ratios=[0.5, 1.0, 2.0], strides=strides, offset=0.5
    )
    generator = torch.Generator().manual_seed(0)
    grids = [(12, 16), (6, 8)]
    objectness = [torch.randn(*grid, 6, generator=generator) for grid in grids]
    deltas = [0.3 * torch.randn(*grid, 6, 4, generator=generator) for grid in grids]
    objectness[0][0, 0, 0] = torch.inf
    deltas[1][0, 0, 0] = torch.nan
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    grid_anchors = anchors([torch.zeros(1, 1, *grid) for grid in grids])
    boxes = [
        transform.apply_deltas(each.reshape(-1, 4), level.tensor)[None]
        for each, level in zip(deltas, grid_anchors, strict=True)
    ]
    logits = [each.reshape(1, -1) for each in objectness]
    (expected,) = find_top_rpn_proposals(
        boxes, logits, [image_size], 0.7, pre_nms_topk, post_nms_topk, min_box_size, False
    )
    options = Proposals(
        graph="",
        features=(),
        strides=strides,
        anchor_offset=0.5,
        cell_anchors=tuple(cells.tolist() for cells in anchors.cell_anchors),
        coder=BoxCoder((1.0, 1.0, 1.0, 1.0), transform.scale_clamp),
        pre_nms_topk=pre_nms_topk,
        post_nms_topk=post_nms_topk,
        nms_thresh=0.7,
        min_box_size=min_box_size,
    )
    arrays = [[each.numpy() for each in kind] for kind in (objectness, deltas)]
    actual = find_proposals(*arrays, image_size, options)
    assert len(actual) > 9
    np.testing.assert_allclose(actual, expected.proposal_boxes.tensor.numpy(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("num_rois", [0, 3, 120])
@pytest.mark.parametrize("topk", [1, 20, 100_000, -1])
@pytest.mark.parametrize("score_thresh", [0.0, 0.6, 1.0])
def test_detections_are_those_of_detectron2(num_rois, topk, score_thresh):
    num_classes, size = 30, (120, 160)
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat([random_boxes(num_rois, seed) for seed in range(num_classes)], dim=1)
    count = num_rois * (num_classes + 1)
    scores = 1 + torch.randperm(count, generator=generator).view(num_rois, num_classes + 1)
    scores = scores / (count + 1)
    expected, rows_ = fast_rcnn_inference_single_image(boxes, scores, size, score_thresh, 0.5, topk)
    options = Boxes(LEVELS, (), score_thresh, 0.5, topk)
    per_class = boxes.view(num_rois, num_classes, 4).numpy()

    def boxes_at(rows, classes):
        return box_arithmetic.clip(per_class[rows, classes], size)

    rows, classes = select(scores[:, :-1].numpy(), boxes_at, options)
    assert rows.tolist() == rows_.tolist()
    assert classes.tolist() == expected.pred_classes.tolist()
    np.testing.assert_array_equal(boxes_at(rows, classes), expected.pred_boxes.tensor.numpy())


def test_equal_scores_are_selected_in_the_order_of_their_rois():
    boxes = np.array([[100.0 * i, 0, 100 * i + 10, 10] for i in range(50)], np.float32)
    scores = np.full((50, 1), 0.5, np.float32)
    options = Boxes(LEVELS, (), 0.1, 0.5, 7)
    rows, _ = select(scores, lambda rows, _: boxes[rows], options)
    assert rows.tolist() == list(range(7))


@pytest.mark.parametrize("size", [(40, 60), (300, 250)])
def test_masks_are_pasted_as_by_detectron2(size):
    height, width = size
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([width, height, width, height])
    corners = torch.rand(40, 2, 2, generator=generator).sort(dim=1).values
    boxes = corners.flatten(1) * extent
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    boxes[1] = torch.tensor([3.2, 4.1, 3.6, 4.3])  # within a pixel
    probs = torch.rand(40, 28, 28, generator=generator)
    expected = paste_masks_in_image(probs, boxes, size).numpy()
    actual = np.stack(
        [paste_mask(p, b, size) for p, b in zip(probs.numpy(), boxes.numpy(), strict=True)]
    )
    assert actual.shape == (40, height, width) and actual.dtype == bool
    # Rounded otherwise, a pixel at the threshold falls on its other side.
    assert (actual != expected).mean() < 1e-5


@pytest.mark.parametrize("size", [(40, 50), (200, 150), (30, 300), (60, 60), (61, 44)])
def test_images_are_resized_as_by_detectron2(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    shortest, longest = IMAGE.shortest_edge, IMAGE.longest_edge
    bgr = image[:, :, ::-1]
    transform = ResizeShortestEdge([shortest, shortest], longest).get_transform(bgr)
    np.testing.assert_array_equal(resized(image, IMAGE), transform.apply_image(bgr))
    as_it_is = dataclasses.replace(IMAGE, shortest_edge=0, channels="RGB")
    np.testing.assert_array_equal(resized(image, as_it_is), image)


def test_padding_has_the_mean_of_its_channel():
    image = np.random.default_rng(0).integers(0, 256, (33, 64, 3), dtype=np.uint8)
    result = padded(image, IMAGE)
    assert result.shape == (1, 3, 64, 64) and result.dtype == np.float32
    np.testing.assert_array_equal(result[0, :, :33], image.transpose(2, 0, 1))
    for channel, mean in enumerate(IMAGE.pixel_mean):
        assert (result[0, channel, 33:] == mean).all()


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
    ids=["gray", "float64", "empty"],
)
def test_other_arrays_than_images_are_refused(image):
    with pytest.raises(InputError, match=r"give uint8 of shape \(height, width, 3\)"):
        resized(image, IMAGE)


def description():
    return Description(
        format="onnx",
        precision="float32",
        producer="a test",
        license=None,
        image=IMAGE,
        proposals=Proposals(
            "a.onnx", ("p2",), (4,), 0.0, (((-1.0, -1.0, 1.0, 1.0),),), CODER, 9, 9, 0.7, 0.0
        ),
        boxes=Boxes(LEVELS, (BoxStage("b.onnx", CODER), BoxStage("c.onnx", CODER)), 0.1, 0.5, 9),
        masks=Masks("d.onnx", LEVELS, False, 28),
        classes=Classes(("cat",), (7,), ("r",), (1,), (2,)),
    )


@pytest.mark.parametrize("masks", [True, False])
def test_a_description_is_read_as_it_was_written(tmp_path, masks):
    written = description() if masks else dataclasses.replace(description(), masks=None)
    written.write(tmp_path)
    assert read_description(tmp_path) == written
    assert written.graphs() == ["a.onnx", "b.onnx", "c.onnx", "d.onnx"][: 4 if masks else 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=2), "version 2, but this balms_det reads"),
        (lambda content: content.pop("boxes"), "incomplete or not understood"),
        (lambda content: content["image"].update(colour=1), "incomplete or not understood"),
    ],
)
def test_a_description_that_is_not_understood_is_refused(tmp_path, change, message):
    description().write(tmp_path)
    path = tmp_path / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_description(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_description_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json"):
        read_description(tmp_path)


def test_a_missing_graph_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(InputError, match="the graph is missing"):
        load_graph(tmp_path / "a.onnx", "onnx", "float32", None)
    with pytest.raises(InputError, match="the format 'tf' is unknown"):
        load_graph(tmp_path / "a.tf", "tf", "float32", None)


@pytest.mark.parametrize(
    ("form", "module"),
    [("onnx", "onnxruntime"), ("openvino", "openvino"), ("torchscript", "torchvision")],
)
def test_an_absent_engine_is_one_sentence(tmp_path, monkeypatch, form, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (tmp_path / "graph").touch()
    with pytest.raises(InputError, match=f"the package '{module}' is not installed"):
        load_graph(tmp_path / "graph", form, "float32", None)


def test_the_runtime_imports_neither_torch_nor_detectron2(run_python):
    run_python(
        "import sys\n"
        "for name in ('torch', 'torchvision', 'detectron2', 'fvcore', 'cv2', 'hotcoco'):\n"
        "    sys.modules[name] = None\n"
        "from balms_det.deploy import Predictor\n"
        "import balms_det.deploy as deploy, pkgutil, importlib\n"
        "for module in pkgutil.iter_modules(deploy.__path__):\n"
        "    importlib.import_module(f'balms_det.deploy.{module.name}')\n"
        "found = {name.partition('.')[0] for name, module in sys.modules.items() if module}\n"
        "assert {'scipy', 'PIL', 'orjson', 'matplotlib'}.isdisjoint(found), found\n"
    )
