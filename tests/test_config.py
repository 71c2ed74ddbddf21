"""Configurations: the shipped files, and errors that a user can act on."""

import argparse
from pathlib import Path

import pytest
import yaml

from balms_det.config import config_file
from balms_det.engine import load_config, validate_config
from balms_det.runtime.errors import InputError

CONFIGS = Path(config_file("lvis_r50_balsig.yaml")).parent
METHODS = sorted(path.stem for path in CONFIGS.glob("methods/*.yaml"))
BACKBONES = ("lvis_r50", "lvis_r101")
SHIPPED = [
    *sorted(path.name for path in CONFIGS.glob("*.yaml")),
    *(f"{base}+{method}" for base in BACKBONES for method in METHODS),
]


def load(name="lvis_r50_balsig.yaml", *opts):
    return load_config(argparse.Namespace(config_file=name, opts=list(opts), dataset=[]))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads_and_is_valid(name):
    cfg = load(name)
    assert cfg.MODEL.ROI_HEADS.NAME == "LongTailROIHeads"


def test_children_are_deltas_of_one_base():
    balsig, rfs, deeper = (
        load(f"lvis_{name}") for name in ("r50+balsig", "r50+rfs", "r101+balsig")
    )
    assert balsig.MODEL.LONG_TAIL.LOSS.NAME == "balanced_sigmoid"
    assert rfs.MODEL.LONG_TAIL.LOSS.NAME == "softmax"
    rfs.MODEL.LONG_TAIL.LOSS.NAME = "balanced_sigmoid"
    assert rfs == balsig
    assert (balsig.MODEL.RESNETS.DEPTH, deeper.MODEL.RESNETS.DEPTH) == (50, 101)
    assert balsig.MODEL.ROI_HEADS.NUM_CLASSES == 1203
    assert balsig.DATALOADER.REPEAT_THRESHOLD == 0.001


def test_unknown_shipped_name_lists_the_known():
    with pytest.raises(InputError, match="lvis_r50_rfs.yaml"):
        config_file("lvis_r5_rfs.yaml")


def test_misspelt_key_in_a_file_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL:\n  LONG_TAIL:\n    LOSS:\n      PRIOR_PROP: 0.1\n")
    with pytest.raises(InputError, match=r"mine.yaml: .*PRIOR_PROP; did you mean .*PRIOR_PROB\?"):
        load(str(path))


def test_misspelt_key_on_the_command_line_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"command line: .*SOLVER.MAX_ITR; .*SOLVER.MAX_ITER\?"):
        load("lvis_r50_balsig.yaml", "SOLVER.MAX_ITR", "10")


def test_value_of_another_type_is_refused():
    with pytest.raises(InputError, match="SOLVER.MAX_ITER"):
        load("lvis_r50_balsig.yaml", "SOLVER.MAX_ITER", "many")


def test_override_without_value_is_refused():
    with pytest.raises(InputError, match="command line"):
        load("lvis_r50_balsig.yaml", "SOLVER.MAX_ITER")


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.yaml: there is no such"):
        load(str(tmp_path / "nowhere.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("MODEL: [1, 2")
    with pytest.raises(InputError, match="broken.yaml: this is not valid YAML"):
        load(str(broken))


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("MODEL.LONG_TAIL.LOSS.NAME", "balanced_sigmiod", "balanced_sigmoid"),
        ("MODEL.LONG_TAIL.COUNT_BY", "objects", "instances, images"),
        ("MODEL.LONG_TAIL.LOSS.MARGIN.CONSTANT", "double", "keep, drop"),
        ("MODEL.LONG_TAIL.LOSS.MARGIN.ROWS", "background", "foreground, all"),
        ("MODEL.LONG_TAIL.LOSS.MARGIN.TAU", -0.5, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.MARGIN.START_ITER", -1, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.PRIOR_PROB", 1.0, "between 0 and 1"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME", "effective", "none, inverse, effective_number"),
        ("SOLVER.META.LOSS", "sigmoid", "plain, shifted"),
        ("SOLVER.META.BASE_LR", 0.0, "more than 0"),
        ("SOLVER.META.INITIAL_POWER", -0.3, "0 or more"),
        ("SOLVER.META.TEMPERATURE", 0.0, "more than 0"),
        ("SOLVER.META.FEATURES_PER_CLASS", 0, "1 or more"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.BETA", 1.0, "less than 1"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.BETA", -0.1, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.START_ITER", -1, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.FEDERATED.NUM_CLASSES", 0, "1 or more"),
        ("MODEL.LONG_TAIL.LOSS.FEDERATED.FREQ_POWER", -0.5, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.FOCAL.GAMMA", -2.0, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.FOCAL.ALPHA", 1.5, "from 0 to 1, or -1"),
        ("MODEL.LONG_TAIL.LOSS.LDAM.MAX_MARGIN", -0.5, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.TAIL_THRESHOLD", 1.1, "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.EQL.GAMMA", -0.9, "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.EQLV2.GAMMA", 0.0, "more than 0"),
        ("MODEL.LONG_TAIL.LOSS.EQLV2.MU", -0.8, "more than 0"),
        ("MODEL.LONG_TAIL.LOSS.EQLV2.ALPHA", -4.0, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.SEESAW.P", -0.8, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.SEESAW.Q", -2.0, "0 or more"),
        ("MODEL.LONG_TAIL.LOSS.SEESAW.EPS", 0.0, "more than 0, at most 1"),
        ("MODEL.LONG_TAIL.LOSS.ACSL.SCORE_THRESHOLD", 1.7, "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.ACSL.BACKGROUND_RATIOS", (0.01, 0.1), "three numbers from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.ACSL.BACKGROUND_RATIOS", (0.01, 0.1, 8.0), "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.TAIL_THRESHOLD", -0.001, "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.LOCE.MOMENTUM", 1.1, "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.LOCE.BACKGROUND_SCORE", 0.0, "more than 0"),
        ("MODEL.LONG_TAIL.LOSS.ECM.BACKGROUND_RATIO", 0.0, "more than 0"),
        ("MODEL.LONG_TAIL.LOSS.TAIL_THRESHOLD", 2.0, "from 0 to 1"),
        ("MODEL.LONG_TAIL.LOSS.BAGS.BOUNDARIES", (10, 10, 100), "ascending counts, more than 0"),
        ("MODEL.LONG_TAIL.LOSS.BAGS.BETA", -8.0, "0 or more"),
        ("MODEL.LONG_TAIL.CLASSIFIER", "cosin", "linear, cosine"),
        ("MODEL.LONG_TAIL.MASK_CLASSIFIER", "norm", "linear, cosine"),
        ("MODEL.LONG_TAIL.COSINE_TEMPERATURE", 0.0, "more than 0"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "1 or more"),
        ("MODEL.LONG_TAIL.CALIBRATION.NAME", "nor_cal", "logit_adjustment, norcal"),
        ("MODEL.LONG_TAIL.CALIBRATION.STRENGTH", -1.0, "0 or more"),
        ("DATALOADER.SAMPLER_TRAIN", "ClassBalanced", "ClassBalancedTrainingSampler"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorSampler", "RepeatFactorTrainingSampler"),
        ("DATALOADER.REPEAT_THRESHOLD", 0.0, "more than 0"),
        ("SOLVER.OPTIMIZER", "Adam", "SGD, AdamW"),
        ("MODEL.LONG_TAIL.INFERENCE.BATCH_SIZE", 0, "1 or more"),
        ("MODEL.LONG_TAIL.INFERENCE.PRECISION", "half", "float32, bfloat16, float16"),
        ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "set it to False"),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "set it to False"),
    ],
)
def test_bad_value_is_refused_with_key_value_and_what_is_allowed(key, value, allowed):
    cfg = load()
    validate_config(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError) as caught:
        validate_config(cfg)
    message = str(caught.value)
    assert key in message and str(value) in message and allowed in message


def test_calibration_by_heads_that_have_none_is_refused():
    cfg = load("lvis_r50+norcal")
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(InputError, match="CALIBRATION.NAME is 'norcal'.*LongTailROIHeads"):
        validate_config(cfg)


@pytest.mark.parametrize("loss", ["softmax", "balanced_softmax", "seesaw", "loce", "bags"])
def test_federated_classes_are_refused_where_classes_depend_on_one_another(loss):
    cfg = load()
    cfg.MODEL.LONG_TAIL.LOSS.FEDERATED.ENABLED = True
    validate_config(cfg)
    cfg.MODEL.LONG_TAIL.LOSS.NAME = loss
    with pytest.raises(InputError, match=f"FEDERATED.ENABLED is True.*'{loss}'.*sigmoid, bal"):
        validate_config(cfg)


@pytest.mark.parametrize("heads", ["LongTailROIHeads", "StandardROIHeads"])
def test_both_federated_switches_are_refused(heads):
    cfg = load()
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.LONG_TAIL.LOSS.FEDERATED.ENABLED = True
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    with pytest.raises(
        InputError, match="FEDERATED.ENABLED is True.*USE_FED_LOSS; set it to False"
    ):
        validate_config(cfg)


def test_tau_normalisation_of_normalised_weights_is_refused():
    cfg = load("lvis_r50+tau_norm")
    validate_config(cfg)
    cfg.MODEL.LONG_TAIL.CLASSIFIER = "cosine"
    with pytest.raises(InputError, match="'tau_norm'.*CLASSIFIER is 'cosine'"):
        validate_config(cfg)


def test_cosine_masks_are_refused_for_a_head_without():
    cfg = load()
    cfg.MODEL.LONG_TAIL.MASK_CLASSIFIER = "cosine"
    validate_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    with pytest.raises(InputError, match="MASK_CLASSIFIER.*MaskRCNNConvUpsampleHead"):
        validate_config(cfg)


@pytest.mark.parametrize("name", ["lvis_r50_balms.yaml", "lvis_r50+balms_reweight"])
@pytest.mark.parametrize(
    "key, value, required",
    [
        ("SOLVER.OPTIMIZER", "AdamW", "SGD"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "False"),
        ("SOLVER.AMP.ENABLED", True, "False"),
        ("SOLVER.BIAS_LR_FACTOR", 2.0, "1.0"),
        ("MODEL.LONG_TAIL.CLASSIFIER", "cosine", "linear"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.START_ITER", 9, "0"),
        ("MODEL.LONG_TAIL.LOSS.NAME", "seesaw", "balanced_softmax, balanced_sigmoid"),
        ("MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES", ["backbone"], "box_predictor.cls_score"),
        ("MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads", "box_predictor.0.cls_score"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "LongTailROIHeads"),
    ],
)
def test_what_the_meta_step_does_not_cover_is_refused(name, key, value, required):
    cfg = load(name)
    validate_config(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError) as caught:
        validate_config(cfg)
    message = str(caught.value)
    assert required in message
    assert key in message or "cls_score frozen" in message
    assert "MetaTrainingSampler" in message or "CLASS_WEIGHTS.NAME is 'learned'" in message


def test_sampler_and_reweighter_at_once_are_refused():
    cfg = load("lvis_r50_balms.yaml")
    cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME = "learned"
    with pytest.raises(InputError, match="only one of them can learn"):
        validate_config(cfg)


def test_the_cpu_is_chosen_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = load("lvis_r50_balsig.yaml", "SOLVER.AMP.ENABLED", "True")
    assert cfg.MODEL.DEVICE == "cpu"
    assert not cfg.SOLVER.AMP.ENABLED
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert load().MODEL.DEVICE == "cuda"


@pytest.mark.parametrize("method", ["balsig", "rfs", "balms"])
def test_a_file_is_the_composition_that_it_names(method):
    assert load(f"lvis_r50_{method}.yaml") == load(f"lvis_r50+{method}")


@pytest.mark.parametrize("base", BACKBONES)
def test_a_second_stage_starts_from_the_first_on_the_same_base(base):
    for method, first in [("crt", "rfs"), ("balms", "rfs"), ("decoupled_balsig", "sigmoid")]:
        assert load(f"{base}+{method}").MODEL.WEIGHTS == f"output/{base}_{first}/model_final.pth"


def test_a_method_goes_on_any_base_and_the_later_file_wins(tmp_path):
    glyphs = load("glyphs_quickstart+seesaw")
    assert glyphs.MODEL.LONG_TAIL.LOSS.NAME == "seesaw"
    assert glyphs.MODEL.ROI_HEADS.NUM_CLASSES == 10
    own = tmp_path / "own.yaml"
    own.write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 7}}\nVERSION: 2\n")
    assert load(f"lvis_r50+{own}").MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert load(f"{own}+eql").MODEL.LONG_TAIL.LOSS.NAME == "eql"
    joined = tmp_path / "joined.yaml"
    files = [str(CONFIGS / "bases" / "lvis_r50.yaml"), str(CONFIGS / "methods" / "eql.yaml")]
    joined.write_text(f"_BASE_: {files}\nMODEL: {{LONG_TAIL: {{LOSS: {{NAME: focal}}}}}}\n")
    cfg = load(str(joined))
    assert cfg.MODEL.LONG_TAIL.LOSS.NAME == "focal" and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1203


def test_a_later_base_wins_over_an_earlier_one(tmp_path):
    for name, loss in [("a", "focal"), ("b", "eql")]:
        (tmp_path / f"{name}.yaml").write_text(
            f"MODEL: {{LONG_TAIL: {{LOSS: {{NAME: {loss}}}}}}}\nVERSION: 2\n"
        )
    for bases, loss in [("[a.yaml, b.yaml]", "eql"), ("[b.yaml, a.yaml]", "focal")]:
        (tmp_path / "joined.yaml").write_text(f"_BASE_: {bases}\n")
        assert load(str(tmp_path / "joined.yaml")).MODEL.LONG_TAIL.LOSS.NAME == loss


def test_a_second_stage_in_a_list_starts_from_the_first_stage_on_the_base_of_the_list(tmp_path):
    path = tmp_path / "mine.yaml"
    files = [str(CONFIGS / "bases" / "lvis_r101.yaml"), str(CONFIGS / "methods" / "crt.yaml")]
    path.write_text(f"_BASE_: {files}\n")
    assert load(str(path)) == load("lvis_r101+crt")


def test_a_path_may_contain_plus_signs(tmp_path):
    path = tmp_path / "lvis_r101+seesaw" / "a+b.yaml"
    path.parent.mkdir()
    path.write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 7}}\nVERSION: 2\n")
    assert load(str(path)).MODEL.ROI_HEADS.NUM_CLASSES == 7
    joined = load(f"{path}+eql")
    assert joined.MODEL.ROI_HEADS.NUM_CLASSES == 7 and joined.MODEL.LONG_TAIL.LOSS.NAME == "eql"
    assert load(f"lvis_r50+{path}").MODEL.ROI_HEADS.NUM_CLASSES == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("_BASE_: top.yaml", r"top.yaml: _BASE_ leads back to this file \(.* -> .*\)"),
        ("_BASE_: [between.yaml]", r"top.yaml: _BASE_ leads back .*top.* -> .*between.* -> .*top"),
        ("_BASE_: nowhere.yaml", "top.yaml: _BASE_ names .*nowhere.yaml, but there is no such"),
        ("_BASE_: https://host.invalid/a.yaml", "top.yaml: .*https://host.invalid.*local files"),
        ("_BASE_: 3", "top.yaml: _BASE_ is 3; set it to a file, or to a list"),
        ("_BASE_: []", r"top.yaml: _BASE_ is \[\]; set it to a file, or to a list"),
        ("_BASE_: broken.yaml", "broken.yaml: this is not valid YAML"),
        ("", "top.yaml: .*KEY: VALUE settings, but this file holds nothing"),
        ("- 1", r"top.yaml: .*KEY: VALUE settings, but this file holds \[1\]"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(tmp_path, content, message):
    top = tmp_path / "top.yaml"
    top.write_text(content)
    (tmp_path / "between.yaml").write_text("_BASE_: top.yaml")
    (tmp_path / "broken.yaml").write_text("MODEL: [1, 2")
    with pytest.raises(InputError, match=message) as caught:
        load(str(top))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_base", [False, True])
def test_a_file_runs_no_code(tmp_path, in_base):
    trace = tmp_path / "trace"
    path = tmp_path / "code.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{trace}]\nVERSION: 2\n")
    if in_base:
        (tmp_path / "child.yaml").write_text("_BASE_: code.yaml\n")
    with pytest.raises(InputError, match="code.yaml: this is not valid YAML .*os.mkdir"):
        load(str(tmp_path / "child.yaml" if in_base else path))
    assert not trace.exists()


def test_shipped_files_are_found_from_any_directory(tmp_path, monkeypatch):
    expected = load("lvis_r50+balsig")
    monkeypatch.chdir(tmp_path)
    for name in ("lvis_r50_balsig.yaml", "configs/lvis_r50_balsig.yaml", "lvis_r50+balsig"):
        assert load(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lvis_r5+balsig", "lvis_r5: there is no such.*lvis_r101"),
        ("lvis_r50+balsg", "balsg: there is no such.*balsig"),
        ("lvis_r50+", "there is no such"),
    ],
)
def test_an_unknown_part_of_a_name_is_refused_with_the_known_ones(name, message):
    with pytest.raises(InputError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("MODEL.LONG_TAIL.POSTHOC.NAME", "it is called MODEL.LONG_TAIL.CALIBRATION now"),
        ("MODEL.LONG_TAIL.LOSS.EQL.LAMBDA", "set MODEL.LONG_TAIL.LOSS.TAIL_THRESHOLD"),
        ("MODEL.LONG_TAIL.LOSS.DROPLOSS.LAMBDA", "set MODEL.LONG_TAIL.LOSS.TAIL_THRESHOLD"),
        ("MODEL.LONG_TAIL.LOSS.GOL.LAMBDA", "set MODEL.LONG_TAIL.LOSS.TAIL_THRESHOLD"),
        ("TEST.LVIS_BACKEND", "remove it"),
    ],
)
def test_former_keys_are_refused_with_what_takes_their_place(tmp_path, key, remedy):
    with pytest.raises(InputError, match=f"command line: the configuration key {key}.*{remedy}"):
        load("lvis_r50_balsig.yaml", key, "0")
    node = "x"
    for name in reversed(key.split(".")):
        node = {name: node}
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({**node, "VERSION": 2}))
    with pytest.raises(InputError, match=f"old.yaml: the configuration key .*gone; .*{remedy}"):
        load(str(path))
