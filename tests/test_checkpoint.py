"""Checkpoints people already have load by name; what does not fit is refused in one sentence.

The files are made up, with the names and shapes of the real ones.
"""

import logging
import pickle
import zipfile

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from second_device import name_of_device
from tiny_model import stats_file, tiny_cfg
from torchvision.models import resnet18

from balms_det.annotations.class_stats import ClassStats
from balms_det.engine import LongTailCheckpointer, class_stats_in
from balms_det.runtime.errors import InputError

K = 10
SPECIFIC = [
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False,
]  # fmt: skip
SIGMOID = ["MODEL.LONG_TAIL.LOSS.NAME", "sigmoid"]
SOFTMAX = ["MODEL.LONG_TAIL.LOSS.NAME", "softmax"]
PREDICTOR = "roi_heads.box_predictor"


def built(*opts, seed=0):
    torch.manual_seed(seed)
    return build_model(tiny_cfg(*(opts or SIGMOID)))


def snapshot(model):
    """The state of a model, on the host, as the checkpoints of these tests have it."""
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def load(model, path, **kwargs):
    LongTailCheckpointer(model, **kwargs).load(str(path))
    return model


def refusal(model, path, **kwargs):
    with pytest.raises(InputError) as caught:
        load(model, path, **kwargs)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.fixture(scope="module")
def detector():
    """A trained detector's state, of other values than any model that loads it starts with."""
    model = built(*SIGMOID, *SPECIFIC, seed=9)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def with_classes(state, num_classes, background):
    """`state` with the layers of a detector of other classes."""
    sizes = {
        "cls_score": num_classes + background,
        "bbox_pred": 4 * num_classes,
        "mask_head.predictor": num_classes,
    }
    return {
        name: torch.rand(size, *value.shape[1:])
        if (size := next((s for layer, s in sizes.items() if f"{layer}." in name), None))
        else value
        for name, value in state.items()
    }


def assert_loaded(model, state):
    after = snapshot(model)
    assert state and all(torch.equal(after[name], torch.as_tensor(state[name])) for name in state)


# Detectron2's model zoo


def save_zoo_pickle(state, path):
    """As Detectron2's model zoo has its detectors: NumPy arrays in a pickle."""
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def test_a_detector_of_the_model_zoo_loads_into_softmax_methods(detector, tmp_path):
    state = with_classes(detector, K, background=1)
    path = save_zoo_pickle(state, tmp_path / "model_final.pkl")
    for loss in ("softmax", "balanced_softmax"):
        stats = ["MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path)]
        model = built("MODEL.LONG_TAIL.LOSS.NAME", loss, *stats, *SPECIFIC)
        assert_loaded(load(model, path), state)


def test_a_background_column_too_many_or_too_few_is_explained(detector, tmp_path):
    path = save_zoo_pickle(with_classes(detector, K, background=1), tmp_path / "softmax.pkl")
    message = refusal(built(*SIGMOID, *SPECIFIC), path)
    assert f"{PREDICTOR}.cls_score.weight is [11, 256], the model's [10, 256]" in message
    assert "the checkpoint's classifier has a column for the background" in message
    assert "LOSS.NAME" in message and "REINIT_MISMATCHED" in message
    path = save_zoo_pickle(detector, tmp_path / "sigmoid.pkl")
    message = refusal(built(*SOFTMAX, *SPECIFIC), path)
    assert "the model's classifier has a column for the background" in message


def test_other_classes_are_refused_and_every_layer_is_named(detector, tmp_path):
    path = save_zoo_pickle(with_classes(detector, 80, background=1), tmp_path / "coco.pkl")
    message = refusal(built(*SIGMOID, *SPECIFIC), path)
    for layer in (f"{PREDICTOR}.cls_score", f"{PREDICTOR}.bbox_pred", "mask_head.predictor"):
        assert f"{layer}.weight is [" in message and f"{layer}.bias is [" in message
    assert "NUM_CLASSES" in message and "background" not in message


def test_exactly_the_misfits_start_afresh_on_demand_and_are_listed(detector, tmp_path, caplog):
    coco = with_classes(detector, 80, background=1)
    path = save_zoo_pickle(coco, tmp_path / "coco.pkl")
    model = built(*SIGMOID, *SPECIFIC)
    before = snapshot(model)
    with caplog.at_level(logging.WARNING):
        load(model, path, reinit_mismatched=True)
    misfits = {name for name in coco if coco[name].shape != detector[name].shape}
    assert len(misfits) == 6
    assert_loaded(model, {name: coco[name] for name in coco if name not in misfits})
    assert_loaded(model, {name: before[name] for name in misfits})
    listing = next(r.getMessage() for r in caplog.records if "started afresh" in r.getMessage())
    assert all(name in listing for name in misfits)
    # It is said once.
    assert not any(f"{PREDICTOR}.cls_score" in r.getMessage() for r in caplog.records[1:])


def test_a_layer_starts_afresh_as_a_whole(detector, tmp_path, caplog):
    """A bias or a normalisation that happens to fit means nothing beside another weight."""
    state = dict(detector)
    layers = ["roi_heads.box_head.fc1", "backbone.fpn_output3"]
    for layer in layers:
        weight = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = weight.repeat(1, 2, *[1] * (weight.ndim - 2))
    torch.save({"model": state}, tmp_path / "wider.pth")
    model = built(*SIGMOID, *SPECIFIC)
    before = snapshot(model)
    load(model, tmp_path / "wider.pth", reinit_mismatched=True)
    afresh = {name for name in state if name.startswith(tuple(f"{layer}." for layer in layers))}
    assert {"roi_heads.box_head.fc1.bias", "backbone.fpn_output3.norm.running_mean"} < afresh
    assert_loaded(model, {name: before[name] for name in afresh})
    assert_loaded(model, {name: state[name] for name in state if name not in afresh})
    assert "and with them" in caplog.text and "roi_heads.box_head.fc1.bias" in caplog.text


# The authors' release


@pytest.mark.parametrize("learner", ["learner.fc.0.weight", "learner.module.fc.0.weight"])
def test_the_release_loads_into_sigmoid_methods_without_its_learner(
    detector, tmp_path, caplog, learner
):
    name = f"{PREDICTOR}.{learner}"
    extra = {name: torch.rand(1, K), "pixel_mean": torch.rand(3, 1, 1)}
    torch.save({"model": {**detector, **extra}, "iteration": 21999}, tmp_path / "balms.pth")
    stats = ["MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path)]
    model = built("MODEL.LONG_TAIL.LOSS.NAME", "balanced_sigmoid", *stats, *SPECIFIC)
    with caplog.at_level(logging.INFO):
        load(model, tmp_path / "balms.pth")
    assert_loaded(model, detector)
    about = [record for record in caplog.records if "learner" in record.getMessage()]
    assert [record.levelname for record in about] == ["INFO"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_files_from_before_zip_archives_load(detector, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"model": detector}, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_loaded(load(built(*SIGMOID, *SPECIFIC), path), detector)
    assert class_stats_in(str(path)) is None


def test_names_of_a_distributed_model_lose_their_prefix(detector, tmp_path):
    torch.save({f"module.{name}": v for name, v in detector.items()}, tmp_path / "ddp.pth")
    assert_loaded(load(built(*SIGMOID, *SPECIFIC), tmp_path / "ddp.pth"), detector)


# ResNets of torchvision


@pytest.fixture(scope="module")
def torchvision_resnet():
    torch.manual_seed(3)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in resnet18(num_classes=5).state_dict().items()
    }


# Detectron2's name and torchvision's of every kind of layer there is.
SAME_LAYER = {
    "stem.conv1.weight": "conv1.weight",
    "stem.conv1.norm.weight": "bn1.weight",
    "stem.conv1.norm.running_var": "bn1.running_var",
    "res2.0.conv1.weight": "layer1.0.conv1.weight",
    "res2.1.conv2.norm.bias": "layer1.1.bn2.bias",
    "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
    "res3.0.shortcut.norm.running_mean": "layer2.0.downsample.1.running_mean",
    "res5.1.conv2.weight": "layer4.1.conv2.weight",
}


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_resnet_of_torchvision_loads_as_it_is(torchvision_resnet, tmp_path, prefix, norm):
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save({prefix + name: value for name, value in torchvision_resnet.items()}, path)
    model = built(*SIGMOID, "MODEL.RESNETS.NORM", norm)
    before = snapshot(model)
    load(model, path)
    resnet = snapshot(model.backbone.bottom_up)
    for ours, theirs in SAME_LAYER.items():
        assert torch.equal(resnet[ours], torchvision_resnet[theirs]), ours
    for name, value in snapshot(model).items():
        in_resnet = name.startswith("backbone.bottom_up.") and not name.endswith("batches_tracked")
        assert torch.equal(value, before[name]) != in_resnet, name


def test_torchvision_and_detectron2_agree_on_what_the_weights_compute(torchvision_resnet, tmp_path):
    """Name by name and by their meaning: the features are the same."""
    torch.save(torchvision_resnet, tmp_path / "resnet18.pth")
    ours = load(built(), tmp_path / "resnet18.pth").backbone.bottom_up.eval()
    theirs = resnet18(num_classes=5).eval().to(name_of_device())
    theirs.load_state_dict(torchvision_resnet)
    x = torch.rand(1, 3, 64, 64).to(name_of_device())
    with torch.no_grad():
        features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage, layer in enumerate([theirs.layer1, theirs.layer2, theirs.layer3], start=2):
            features = layer(features)
            torch.testing.assert_close(ours(x)[f"res{stage}"], features)


def test_the_settings_that_torchvision_needs_are_named_where_they_differ(
    torchvision_resnet, tmp_path, caplog
):
    torch.save(torchvision_resnet, tmp_path / "resnet18.pth")
    load(built(), tmp_path / "resnet18.pth")
    (warning,) = (r.getMessage() for r in caplog.records if "torchvision" in r.getMessage())
    assert "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in warning
    caplog.clear()
    right = [
        "INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD", [58.395, 57.12, 57.375],
    ]  # fmt: skip
    load(built(*right), tmp_path / "resnet18.pth")
    assert "torchvision's" not in caplog.text


# ResNets that Detectron2 converts


# Few channels, so that deep ones are small.
NARROW = [
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.NORM", "FrozenBN",
]  # fmt: skip


def resnet_state(*opts):
    """Random values under the names of a ResNet by itself."""
    return {
        name: torch.rand_like(value)
        for name, value in snapshot(built(*opts).backbone.bottom_up).items()
    }


def test_a_resnet_converted_from_torchvision_loads(tmp_path):
    """The format of Detectron2's tools/convert-torchvision-to-d2.py."""
    state = resnet_state("MODEL.RESNETS.NORM", "FrozenBN")
    arrays = {name: value.numpy() for name, value in state.items()}
    arrays["stem.fc.weight"] = np.zeros((5, 512), np.float32)
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "r18.pkl").write_bytes(pickle.dumps(content))
    model = load(built("MODEL.RESNETS.NORM", "FrozenBN"), tmp_path / "r18.pkl")
    assert_loaded(model, {f"backbone.bottom_up.{name}": value for name, value in state.items()})


def save_caffe2_pickle(state, path):
    """As Detectron2's ImageNetPretrained/MSRA/R-50.pkl: Caffe2's names, no batch statistics."""
    arrays = {"fc1000_w": np.zeros((5, 8), np.float32)}
    for name, value in state.items():
        if not name.endswith(("mean", "var")):
            name = name.replace("stem.conv1.norm", "res.conv1.bn").replace("stem.conv1", "conv1")
            name = name.replace("conv3", "branch2c").replace("conv2", "branch2b")
            if not name.startswith(("conv1", "res.conv1")):
                name = name.replace("conv1", "branch2a").replace("shortcut", "branch1")
            name = name.replace(".norm", ".bn")
            kind = "s" if "bn.weight" in name else "wb"[name.endswith("bias")]
            arrays[f"{name.rpartition('.')[0].replace('.', '_')}_{kind}"] = value.numpy()
    path.write_bytes(pickle.dumps(arrays))
    return path


def test_a_resnet_of_caffe2_loads_and_one_of_another_depth_is_refused(tmp_path):
    depth = "MODEL.RESNETS.DEPTH"
    states = {d: resnet_state(*NARROW, depth, d) for d in (50, 101)}
    paths = {d: save_caffe2_pickle(states[d], tmp_path / f"R-{d}.pkl") for d in states}
    expected = {
        f"backbone.bottom_up.{name}": value
        for name, value in states[50].items()
        if not name.endswith(("mean", "var"))
    }
    assert len(expected) == 159  # 53 convolutions, each with a normalisation's scale and shift
    assert_loaded(load(built(*NARROW, depth, 50), paths[50]), expected)
    message = refusal(built(*NARROW, depth, 101), paths[50])
    assert "backbone.bottom_up.res4.6.conv1.weight is not in it" in message and depth in message
    message = refusal(built(*NARROW, depth, 50), paths[101])
    assert "res4.10.conv1.weight has no place in the model" in message and depth in message


def test_a_resnet_of_torchvision_of_another_depth_is_refused(torchvision_resnet, tmp_path):
    torch.save(torchvision_resnet, tmp_path / "resnet18.pth")
    deeper = built("MODEL.RESNETS.DEPTH", 34)
    assert "MODEL.RESNETS.DEPTH" in refusal(deeper, tmp_path / "resnet18.pth")
    bottleneck = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    message = refusal(built(*bottleneck), tmp_path / "resnet18.pth")
    assert "MODEL.RESNETS.DEPTH" in message and "more)" in message


# Files that are no checkpoint of this model


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        assert "there is no such checkpoint" in refusal(built(), path)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_truncated_empty_and_foreign_files_are_named(detector, tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "pkl":
        save_zoo_pickle(detector, whole)
    else:
        torch.save({"model": detector}, whole)
    contents = {
        "truncated": whole.read_bytes()[: whole.stat().st_size // 2],
        "empty": b"",
        "text": b"MODEL:\n  WEIGHTS: ''\n",
        "list": pickle.dumps([1, 2]),
        "picture": b"\xff\xd8\xff\xe0" + bytes(range(256)),
    }
    model = built(*SIGMOID, *SPECIFIC)
    for name, content in contents.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        message = refusal(model, path)
        assert "cannot be read" in message or "no state dict" in message, message
        assert "MODEL.WEIGHTS" in message
    assert_loaded(load(model, whole), detector)  # An earlier failure leaves nothing behind.


@pytest.mark.parametrize(
    "content",
    [{}, {"model": {}}, {"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, torch.zeros(3), [1]],
    ids=["empty", "empty-model", "other-framework", "tensor", "list"],
)
def test_torch_files_of_something_else_are_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    message = refusal(built(), tmp_path / "other.pth")
    assert "cannot be read" in message or "no state dict" in message


def test_a_checkpoint_without_a_matching_name_is_refused(tmp_path):
    torch.save({"encoder.weight": torch.rand(3)}, tmp_path / "encoder.pth")
    message = refusal(built(), tmp_path / "encoder.pth")
    assert "none of its 1 parameters" in message and "'encoder.weight'" in message


def test_statistics_travel_with_a_checkpoint_and_unreadable_ones_are_named(tmp_path):
    stats = ClassStats.load(stats_file(tmp_path))
    LongTailCheckpointer(built(), str(tmp_path), class_stats=stats).save("model")
    path = tmp_path / "model.pth"
    found = class_stats_in(str(path))
    np.testing.assert_array_equal(found.image_counts, stats.image_counts)
    assert found.names == stats.names
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="model.pth: the checkpoint cannot be read"):
        class_stats_in(str(path))
