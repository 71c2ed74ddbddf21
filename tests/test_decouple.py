"""Two-stage training: what is frozen does not move, and the second stage starts from the first."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules
from tiny_model import batch, tiny_cfg
from torch import nn

from balms_det.classifier import CLASSIFIERS
from balms_det.config import config_file, merge_config_files
from balms_det.data import register_dataset
from balms_det.decouple import freeze_except
from balms_det.engine import (
    LongTailCheckpointer,
    LongTailTrainer,
    build_checkpointer,
    build_long_tail_model,
)
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, generate

CLASSIFIER = "roi_heads.box_predictor.cls_score"
SCALE = f"{CLASSIFIER}.scale"
DECOUPLE = "MODEL.LONG_TAIL.DECOUPLE"
LWS = ["MODEL.LONG_TAIL.CLASSIFIER", "lws", f"{DECOUPLE}.TRAIN_MODULES", [SCALE]]
CASCADE = ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"]
CASCADE_CLASSIFIERS = [f"roi_heads.box_predictor.{i}.cls_score" for i in range(3)]


def built(*opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid", *opts))


def frozen(*opts, train_modules=(CLASSIFIER,)):
    model = built(*opts)
    freeze_except(model, train_modules)
    return model


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def train_steps(model, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        with EventStorage():
            loss = sum(model.train()(batch()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_training_moves_the_named_module_and_nothing_else():
    """Not a bit of the rest, the statistics of batch normalisation included."""
    model = frozen()
    before = snapshot(model)
    train_steps(model)
    assert changed(model, before) == {f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"}


def test_without_freezing_weights_and_batch_statistics_do_move():
    """The test above can fail."""
    model = built()
    before = snapshot(model)
    train_steps(model, steps=1)
    assert {
        "backbone.bottom_up.stem.conv1.norm.running_mean",
        "backbone.bottom_up.stem.conv1.weight",
        "roi_heads.mask_head.mask_fcn1.weight",
    } <= changed(model, before)


def test_a_cascade_trains_the_classifier_of_every_stage():
    model = frozen(*CASCADE, train_modules=CASCADE_CLASSIFIERS)
    before = snapshot(model)
    train_steps(model)
    assert changed(model, before) == {
        f"{path}.{name}" for path in CASCADE_CLASSIFIERS for name in ("weight", "bias")
    }


def test_any_module_can_train_with_its_batch_statistics():
    lateral = "backbone.fpn_lateral5"
    model = frozen(train_modules=[CLASSIFIER, lateral])
    before = snapshot(model)
    train_steps(model)
    moved = changed(model, before)
    assert {f"{lateral}.weight", f"{lateral}.norm.running_mean"} <= moved
    assert all(name.startswith((f"{CLASSIFIER}.", f"{lateral}.")) for name in moved)


def test_what_a_trained_module_had_frozen_itself_stays_frozen():
    model = frozen("MODEL.BACKBONE.FREEZE_AT", 2, train_modules=["backbone"])
    assert not model.backbone.bottom_up.stem.conv1.weight.requires_grad
    assert model.backbone.bottom_up.res3[0].conv1.weight.requires_grad


def test_frozen_layers_stay_in_evaluation_mode_and_parts_with_two_outputs_follow_the_model():
    model = built()
    dropout = nn.Dropout()
    model.roi_heads.box_head.add_module("dropout", dropout)
    freeze_except(model, [CLASSIFIER])
    head = model.roi_heads
    for mode in (True, False, True):
        model.train(mode)
        assert not dropout.training
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert model.backbone.train(mode) is model.backbone
        assert not any(m.training for m in model.backbone.modules())
        for part in (model, model.proposal_generator, head, head.mask_head):
            assert part.training == mode
        # The criterion, too: some keep count of what they have seen in training.
        assert head.box_predictor.cls_score.training == mode
        assert head.box_predictor.criterion.training == mode
    assert get_bn_modules(model) == []  # so Detectron2's PreciseBN leaves the statistics alone


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_copy_is_as_frozen_and_independent_of_the_original(duplicate):
    model = frozen()
    other = duplicate(model).train()
    assert not other.backbone.training and other.roi_heads.training
    other.backbone.train().bottom_up.register_buffer("mark", torch.zeros(1))
    assert not hasattr(model.backbone.bottom_up, "mark")


def test_a_path_that_matches_nothing_lists_close_ones():
    with pytest.raises(InputError, match=rf"'roi_heads.cls_score'.* {CLASSIFIER}"):
        frozen(train_modules=["roi_heads.cls_score"])
    with pytest.raises(InputError, match="box_predictor.0.cls_score"):
        frozen(*CASCADE, train_modules=[CLASSIFIER])


@pytest.mark.parametrize("path", ["", f"{CLASSIFIER}.weight", "cls_score", "roi_heads.box_pooler"])
def test_only_the_exact_path_of_a_module_with_parameters_will_do(path):
    with pytest.raises(InputError, match="no module with parameters"):
        frozen(train_modules=[path])


# LWS


def test_lws_starts_as_the_linear_classifier_and_scales_each_logit():
    torch.manual_seed(0)
    linear, scaled = (CLASSIFIERS[name](5, 3) for name in ("linear", "lws"))
    assert set(scaled.state_dict()) == {"weight", "bias", "scale.factor"}
    scaled.load_state_dict(linear.state_dict(), strict=False)
    features = torch.randn(4, 5)
    assert torch.equal(scaled(features), linear(features))
    with torch.no_grad():
        scaled.scale.factor.copy_(torch.tensor([2.0, 0.5, -1.0]))
    rows = linear(features).tolist()
    expected = [[s * x for s, x in zip((2, 0.5, -1), row, strict=True)] for row in rows]
    torch.testing.assert_close(scaled(features), torch.tensor(expected))


def test_lws_trains_one_scale_per_logit_and_nothing_else():
    model = frozen(
        *LWS, f"{DECOUPLE}.ENABLED", True, "MODEL.WEIGHTS", "a.pth", train_modules=[SCALE]
    )
    before = snapshot(model)
    assert before[f"{SCALE}.factor"].shape == (10,)
    train_steps(model)
    assert changed(model, before) == {f"{SCALE}.factor"}


# From the first stage to the second


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    generate(folder, GlyphOptions(train_images=8, val_images=2, size=64, min_scale=0.2))
    register_dataset("decouple_train", str(folder / "glyphs_train.json"), str(folder))


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A checkpoint, and what it holds."""
    folder = tmp_path_factory.mktemp("stage1")
    torch.manual_seed(1)
    model = build_model(tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid"))
    LongTailCheckpointer(model, str(folder)).save("model_final")
    return folder / "model_final.pth", model.state_dict()


def second_stage_cfg(output, weights, *opts):
    return tiny_cfg(
        "MODEL.LONG_TAIL.LOSS.NAME", "sigmoid", f"{DECOUPLE}.ENABLED", True,
        "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output, "DATASETS.TRAIN", ("decouple_train",),
        "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2,
        "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, *opts,
    )  # fmt: skip


def second_stage(output, weights, *opts, resume=False):
    torch.manual_seed(2)
    trainer = LongTailTrainer(second_stage_cfg(output, weights, *opts))
    trainer.initial = snapshot(trainer.model)
    trainer.resume_or_load(resume=resume)
    return trainer


REINIT = [f"{DECOUPLE}.REINIT", [CLASSIFIER]]


@pytest.mark.usefixtures("glyphs")
def test_the_second_stage_continues_the_first(first_stage, tmp_path):
    path, state = first_stage
    assert changed(second_stage(tmp_path, path).model, state) == set()


@pytest.mark.usefixtures("glyphs")
def test_what_is_reinitialised_starts_as_built_and_the_rest_as_the_first_stage_ended(
    first_stage, tmp_path
):
    path, state = first_stage
    trainer = second_stage(tmp_path, path, *REINIT)
    assert changed(trainer.model, state) == {f"{CLASSIFIER}.weight"}  # biases all start alike
    assert f"{CLASSIFIER}.weight" not in changed(trainer.model, trainer.initial)


@pytest.mark.usefixtures("glyphs")
def test_the_trainer_trains_the_classifier_alone_and_resuming_keeps_what_it_learned(
    first_stage, tmp_path
):
    path, state = first_stage
    trainer = second_stage(tmp_path, path, *REINIT)
    trainer.train()
    learned = snapshot(trainer.model)
    classifier = {f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"}
    assert changed(trainer.model, state) == classifier
    assert classifier <= changed(trainer.model, trainer.initial)

    resumed = second_stage(tmp_path, path, *REINIT, resume=True)
    assert resumed.start_iter == 2
    assert changed(resumed.model, learned) == set()

    # Evaluation, too, takes a second stage's checkpoint as it is.
    cfg = second_stage_cfg(tmp_path, tmp_path / "model_final.pth", *REINIT)
    model = build_long_tail_model(cfg, None)
    build_checkpointer(cfg, model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    assert changed(model, learned) == set()


@pytest.mark.usefixtures("glyphs")
def test_a_classifier_of_another_shape_needs_to_be_reinitialised(first_stage, tmp_path):
    path, state = first_stage
    softmax = ["MODEL.LONG_TAIL.LOSS.NAME", "softmax"]
    with pytest.raises(InputError, match=r"cls_score.weight is \[10, 256\], the model's \[11, 256"):
        second_stage(tmp_path, path, *softmax)
    trainer = second_stage(tmp_path, path, *softmax, *REINIT)
    moved = set(state) - {f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"}
    assert not changed(trainer.model, {name: state[name] for name in moved})


@pytest.mark.usefixtures("glyphs")
def test_a_checkpoint_without_the_frozen_heads_is_no_first_stage(first_stage, tmp_path):
    path, state = first_stage
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(InputError, match="freezes proposal_generator.*MODEL.WEIGHTS"):
        second_stage(tmp_path, tmp_path / "backbone.pth")


@pytest.mark.usefixtures("glyphs")
def test_lws_loads_a_linear_classifier(first_stage, tmp_path):
    path, state = first_stage
    trainer = second_stage(tmp_path, path, *LWS)
    assert changed(trainer.model, state) == set()
    trainer.train()
    assert changed(trainer.model, trainer.initial | state) == {f"{SCALE}.factor"}


@pytest.mark.usefixtures("glyphs")
def test_a_reinitialised_path_that_matches_nothing_is_refused(first_stage, tmp_path):
    opts = [f"{DECOUPLE}.REINIT", [SCALE]]
    with pytest.raises(InputError, match=f"DECOUPLE.REINIT names '{CLASSIFIER}.scale'"):
        second_stage(tmp_path, first_stage[0], *opts)


# Configurations


WITH_WEIGHTS = ["MODEL.WEIGHTS", "a.pth", f"{DECOUPLE}.ENABLED", True]


@pytest.mark.parametrize(
    "opts, words",
    [
        ([f"{DECOUPLE}.ENABLED", True], ["DECOUPLE.ENABLED is True", "MODEL.WEIGHTS is ''"]),
        ([*WITH_WEIGHTS, f"{DECOUPLE}.TRAIN_MODULES", []], ["TRAIN_MODULES is empty"]),
        ([*WITH_WEIGHTS, f"{DECOUPLE}.REINIT", ["backbone"]], ["'backbone'", "TRAIN_MODULES"]),
        (["MODEL.LONG_TAIL.CLASSIFIER", "lsw"], ["CLASSIFIER is 'lsw'", "linear, cosine, lws"]),
        (["MODEL.LONG_TAIL.CLASSIFIER", "lws"], ["'lws'", "DECOUPLE.ENABLED is False"]),
        (
            [*WITH_WEIGHTS, *LWS, "MODEL.LONG_TAIL.CALIBRATION.NAME", "tau_norm"],
            ["'tau_norm'", "CLASSIFIER is 'lws'"],
        ),
        ([*WITH_WEIGHTS, "MODEL.LONG_TAIL.CLASSIFIER", "lws"], [f"set it to '{SCALE}'"]),
    ],
)
def test_bad_combinations_are_refused_when_the_configuration_is_read(opts, words):
    with pytest.raises(InputError) as caught:
        tiny_cfg(*opts)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_shipped_second_stages_fit_their_model():
    configs = Path(config_file("methods/crt.yaml")).parents[1]
    for path in sorted(configs.glob("methods/*.yaml")):
        cfg = tiny_cfg()
        merge_config_files(cfg, f"lvis_r50+{path.stem}")
        if cfg.MODEL.LONG_TAIL.DECOUPLE.ENABLED:
            tiny = tiny_cfg()
            tiny.MODEL.LONG_TAIL = cfg.MODEL.LONG_TAIL
            model = build_long_tail_model(tiny, None)
            trained = [name for name, p in model.named_parameters() if p.requires_grad]
            lws = cfg.MODEL.LONG_TAIL.CLASSIFIER == "lws"
            expected = ["scale.factor"] if lws else ["weight", "bias"]
            assert trained == [f"{CLASSIFIER}.{name}" for name in expected], path
