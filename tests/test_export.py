"""Exported models give the detections of the models that they were exported from."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from tiny_model import stats_file, tiny_cfg

from balms_det.commands import export as export_command
from balms_det.deploy import Predictor, read_description
from balms_det.deploy.description import Classes
from balms_det.engine import LongTailCheckpointer
from balms_det.export import ExportedModel, check_precision, export_model, image_input
from balms_det.export.describe import describe, pooled_features
from balms_det.export.graphs import graphs_of
from balms_det.export.int8 import FLOAT_LAYERS, without_empty_levels
from balms_det.losses.registry import LOSSES
from balms_det.runtime.errors import InputError

CLASSES = Classes(tuple(f"class {j}" for j in range(10)), tuple(range(1, 11)))
SPECIFIC = [
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False,
]  # fmt: skip
CASCADE = [
    "MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
    False,
]  # fmt: skip
COSINE = ["MODEL.LONG_TAIL.CLASSIFIER", "cosine", "MODEL.LONG_TAIL.MASK_CLASSIFIER", "cosine"]
LWS = ["MODEL.LONG_TAIL.CLASSIFIER", "lws", "MODEL.LONG_TAIL.DECOUPLE.ENABLED", True,
       "MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES", "['roi_heads.box_predictor.cls_score.scale']",
       "MODEL.WEIGHTS", "first_stage.pth"]  # fmt: skip


def loss(name):
    return ["MODEL.LONG_TAIL.LOSS.NAME", name]


def calibration(name):
    return ["MODEL.LONG_TAIL.CALIBRATION.NAME", name, "MODEL.LONG_TAIL.CALIBRATION.STRENGTH", 0.7]


MODELS = {
    "agnostic": [],
    "specific": SPECIFIC,
    "boxes-only": ["MODEL.MASK_ON", False],
    "cascade": CASCADE,
    "cosine": [*SPECIFIC, *COSINE],
    "lws": LWS,
    "detectron2-mask-head": [*SPECIFIC, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"],
    "rgb": ["INPUT.FORMAT", "RGB"],
    "softmax-norcal": [*loss("softmax"), *calibration("norcal")],
    "sigmoid-norcal": [*loss("sigmoid"), *calibration("norcal")],
    "sigmoid-logit-adjustment": [*loss("sigmoid"), *calibration("logit_adjustment")],
    "cascade-tau-norm": [*CASCADE, *calibration("tau_norm")],
    **{f"loss-{name}": loss(name) for name in LOSSES},
}


def tiny(tmp_path, *opts):
    """A configuration and a model whose detections are many and of all classes."""
    torch.manual_seed(0)
    stats = ["MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path)]
    few = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "INPUT.MIN_SIZE_TEST", 80]
    cfg = tiny_cfg(*stats, *few, *opts)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if "cls_score" in name or "bbox_pred" in name or "mask_head.predictor" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return cfg, model


def image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def in_process(cfg, model):
    """The predictor of a model whose graphs are its modules, neither traced nor written."""
    description = describe(
        model,
        form="torchscript",
        precision="float32",
        image=image_input(cfg, model),
        classes=CLASSES,
        license=None,
    )

    def runs(module):
        @torch.no_grad()
        def run(arrays):
            outputs = module(*(torch.from_numpy(np.array(array)) for array in arrays))
            return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else [outputs])]

        return run

    graphs = graphs_of(model, pooled_features(model))
    return Predictor(description, {f"{graph.name}.pt": runs(graph.module) for graph in graphs})


@torch.no_grad()
def expected_instances(model, resized, size):
    """Return what Detectron2 predicts on an (H, W, 3) image of the model's size and channels."""
    pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))).float()
    (output,) = model([{"image": pixels, "height": size[0], "width": size[1]}])
    return output["instances"]


def assert_same_detections(actual, expected):
    """Scores that are nearly equal may come in either order."""
    assert len(actual) == len(expected) > 0
    assert actual.image_size == expected.image_size
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=0, atol=1e-5)
    assert (np.diff(actual.scores) <= 0).all()
    boxes, classes = expected.pred_boxes.tensor.numpy(), expected.pred_classes.numpy()
    distances = np.abs(actual.boxes[:, None] - boxes[None]).max(axis=2)
    differs = (actual.classes[:, None] != classes) | (distances > 2e-3)
    differs |= np.abs(actual.scores[:, None] - expected.scores.numpy()) > 1e-5
    assert (~differs).sum(axis=0).min() > 0, "a detection is missing"
    order = np.where(differs, np.inf, distances).argmin(axis=0)
    assert len(set(order.tolist())) == len(order), "a detection is there twice"
    assert (actual.mask_probs is not None) == expected.has("pred_masks")
    if expected.has("pred_masks"):
        for i, mask in zip(order, expected.pred_masks.numpy(), strict=True):
            found = actual.mask(i)
            assert (mask & found).sum() >= 0.99 * (mask | found).sum()


@pytest.mark.parametrize("opts", MODELS.values(), ids=MODELS)
def test_a_model_in_graphs_and_numpy_detects_what_it_detects(tmp_path, opts):
    cfg, model = tiny(tmp_path, *opts)
    predictor = in_process(cfg, model)
    for size, output_size in [((64, 96), (80, 120)), ((101, 80), (101, 80))]:
        resized = image(size)
        actual = predictor.predict_resized(resized, output_size)
        assert_same_detections(actual, expected_instances(model, resized, output_size))


def test_an_image_without_proposals_has_no_detections(tmp_path):
    cfg, model = tiny(tmp_path, "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 1000)
    detections = in_process(cfg, model)(image((50, 60)))
    assert len(detections) == 0
    assert detections.boxes.shape == (0, 4)
    assert detections.mask_probs.shape == (0, 28, 28)


def test_rois_that_are_not_finite_are_no_detections(tmp_path):
    cfg, model = tiny(tmp_path)
    predictor = in_process(cfg, model)
    graph = predictor._graphs["box_head_0.pt"]

    def broken(arrays):
        probs, deltas = graph(arrays)
        probs[0], deltas[1] = np.nan, np.inf
        return [probs, deltas]

    predictor._graphs["box_head_0.pt"] = broken
    detections = predictor(image((50, 60)))
    assert len(detections) > 0
    assert np.isfinite(detections.scores).all() and np.isfinite(detections.boxes).all()


def test_detections_are_chosen_by_row(tmp_path):
    cfg, model = tiny(tmp_path)
    detections = in_process(cfg, model)(image((50, 60)))
    chosen = detections.at(detections.scores > np.median(detections.scores))
    assert 0 < len(chosen) < len(detections)
    np.testing.assert_array_equal(chosen.mask(1), detections.mask(1))


ENGINES = {"torchscript": "torch", "onnx": "onnxruntime", "openvino": "openvino"}


# After OpenVINO has converted a model of PyTorch, the process may end with a segmentation fault in
# what comes later.
OWN_PROCESS = {"openvino": pytest.mark.own_process}
FORMS = [pytest.param(name, marks=OWN_PROCESS.get(name, ())) for name in ENGINES]


@pytest.fixture(params=FORMS)
def form(request):
    # Not imported: that is left to the test's own process.
    if importlib.util.find_spec(ENGINES[request.param]) is None:
        pytest.skip(f"{ENGINES[request.param]} is not installed")
    return request.param


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["cosine", "cascade", "loss-bags"])
def test_an_exported_model_detects_what_it_detects(tmp_path, form, name):
    cfg, model = tiny(tmp_path, *MODELS[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    description = export_model(
        model, tmp_path, form=form, image=image_input(cfg, model), classes=CLASSES
    )
    assert not model.training and any(each.requires_grad for each in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    predictor = Predictor.from_exported(tmp_path, threads=1)
    assert predictor.description == description
    for size in [(64, 96), (101, 80), (33, 160)]:
        resized = image(size)
        actual = predictor.predict_resized(resized, size)
        assert_same_detections(actual, expected_instances(model, resized, size))


WITHOUT_TORCH = """
import sys
form, directory, image, output = sys.argv[1:]
for name in ("torch", "torchvision", "detectron2") if form != "torchscript" else ("detectron2",):
    sys.modules[name] = None
import numpy as np
from balms_det.deploy import Predictor
found = Predictor.from_exported(directory, threads=1)(np.load(image))
masks = np.stack([found.mask(i) for i in range(len(found))])
np.savez(output, boxes=found.boxes, scores=found.scores, classes=found.classes, masks=masks)
"""


@pytest.mark.e2e
def test_the_command_exports_what_runs_without_torch_and_detectron2(tmp_path, form, capsys):
    cfg, model = tiny(tmp_path, *SPECIFIC)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    LongTailCheckpointer(model, str(tmp_path)).save("model_final")
    output = tmp_path / form
    export_command.main(
        ["--weights", str(tmp_path / "model_final.pth"), "--format", form, "--output", str(output),
         "--license", "CC0-1.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.4"]
    )  # fmt: skip
    assert f"to {output}" in capsys.readouterr().out
    description = read_description(output)
    assert description.license == "CC0-1.0"
    assert description.boxes.nms_thresh == 0.4
    assert description.classes.names == CLASSES.names
    assert description.classes.image_counts == tuple(200 // (j + 1) for j in range(10))
    np.save(tmp_path / "image.npy", image((90, 70)))
    arguments = [form, output, tmp_path / "image.npy", tmp_path / "found.npz"]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    model.roi_heads.box_predictor.test_nms_thresh = 0.4
    expected = in_process(cfg, model)(image((90, 70)))
    assert len(expected) > 10
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=0, atol=1e-5)
    same = (found["classes"] == expected.classes) & (
        np.abs(found["boxes"] - expected.boxes).max(axis=1) < 2e-3
    )
    assert same.mean() > 0.9  # others have nearly equal scores and come in another order
    masks = np.stack([expected.mask(i) for i in range(len(expected))])
    assert (masks != found["masks"])[same].mean() < 1e-3


def test_an_exported_model_stands_for_a_detectron2_model(tmp_path):
    cfg, model = tiny(tmp_path)
    exported = ExportedModel(in_process(cfg, model))
    pixels = torch.randint(256, (3, 64, 80), generator=torch.Generator().manual_seed(0)).float()
    inputs = [{"image": pixels, "height": 100, "width": 125}, {"image": pixels}]
    with torch.no_grad():
        expected = model(inputs)
    for actual, output in zip(exported(inputs), expected, strict=True):
        actual, output = actual["instances"], output["instances"]
        assert len(actual) == len(output) and actual.image_size == output.image_size
        torch.testing.assert_close(actual.scores, output.scores, rtol=0, atol=1e-5)
        assert actual.pred_masks.shape == output.pred_masks.shape
        assert actual.pred_masks.dtype == torch.bool


def test_empty_levels_get_a_box_and_others_stay():
    maps = [np.zeros((1, 8, 4, 4), np.float32)] * 3
    boxes = [np.full((count, 4), count, np.float32) for count in (0, 2, 0)]
    filled = without_empty_levels([*maps, *boxes, np.array([5, 6])])
    assert [len(each) for each in filled[3:6]] == [1, 2, 1]
    assert filled[4] is boxes[1]
    assert filled[6].tolist() == [0, 5, 6, 0]
    assert without_empty_levels(maps[:1])[0] is maps[0]


@pytest.mark.e2e
@pytest.mark.own_process
def test_int8_leaves_the_last_layers_and_predicts_nearly_the_same(tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    cfg, model = tiny(tmp_path, *SPECIFIC)
    options = {"form": "openvino", "image": image_input(cfg, model), "classes": CLASSES}
    images = [image((64, 96), seed) for seed in range(8)]
    export_model(model, tmp_path / "float32", **options)
    export_model(model, tmp_path / "int8", precision="int8", calibration_images=images, **options)
    found = dict.fromkeys(FLOAT_LAYERS, 0)
    for path in sorted((tmp_path / "int8").glob("*.xml")):
        for node in openvino.Core().read_model(path).get_ops():
            if node.get_type_name() not in ("Convolution", "MatMul", "Gather"):
                continue
            kinds = {node.input_value(i).get_node().get_type_name() for i in (0, 1)}
            layers = [layer for layer in FLOAT_LAYERS if layer in node.get_friendly_name()]
            # Multiply: int8 weights times their scale.
            assert not (layers and kinds & {"FakeQuantize", "Multiply"}), node.get_friendly_name()
            for layer in layers:
                found[layer] += 1
    assert found.pop("head.predictor") == 0  # the masks here are of classes
    assert min(found.values()) > 0
    weights = [path.stat().st_size for path in sorted(tmp_path.glob("*/backbone.bin"))]
    assert weights[1] < 0.3 * weights[0]  # of float32, then int8
    full, small = (Predictor.from_exported(tmp_path / name) for name in ("float32", "int8"))
    assert small.description.precision == "int8"
    expected, actual = full(images[0]), small(images[0])
    np.testing.assert_allclose(np.sort(actual.scores), np.sort(expected.scores), atol=0.1)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "FastRCNNOutputLayers cannot be exported"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "ProposalNetwork cannot be exported"),
    ],
)
def test_other_models_are_refused(tmp_path, opts, message):
    cfg = tiny_cfg("MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path))
    cfg.merge_from_list(opts)
    model = build_model(cfg)
    options = {"image": None, "classes": CLASSES, "form": "torchscript"}
    with pytest.raises(InputError, match=message):
        export_model(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_precision_of_another_format_is_refused(tmp_path):
    options = {"image": None, "classes": CLASSES, "precision": "bfloat16"}
    with pytest.raises(InputError, match="bfloat16 is for --format openvino"):
        export_model(torch.nn.Identity(), tmp_path, form="torchscript", **options)


@pytest.mark.parametrize(("precision", "count"), [("int8", 0), ("float32", 3)])
def test_calibration_images_are_for_int8_alone(precision, count):
    with pytest.raises(InputError, match=f"is {precision} with {count} images of --calibration"):
        check_precision("openvino", precision, count)


def test_an_export_without_its_packages_is_one_sentence(tmp_path, monkeypatch):
    for form in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, form, None)
        with pytest.raises(InputError, match=f"run `pip install {form}`"):
            export_model(torch.nn.Identity(), tmp_path, form=form, image=None, classes=CLASSES)


def test_a_checkpoint_without_a_configuration_asks_for_one(tmp_path):
    arguments = ["--weights", str(tmp_path / "model.pth"), "--format", "onnx", "--output", "out"]
    with pytest.raises(InputError, match="name the one that it was trained with in --config-file"):
        export_command.parse_args(arguments)


def test_a_description_is_plain_json(tmp_path):
    cfg, model = tiny(tmp_path)
    description = in_process(cfg, model).description
    description.write(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["classes"]["names"] == list(CLASSES.names)
    assert read_description(tmp_path) == description
    assert dataclasses.replace(description, license="x") != description
