"""Configurations: the shipped files, and errors that a user can act on."""

import argparse
from pathlib import Path

import pytest

from balms_det.config import config_file
from balms_det.engine import load_config, validate_config
from balms_det.runtime.errors import InputError

CONFIGS = Path(config_file("lvis_r50_balsig.yaml")).parent
SHIPPED = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*.yaml"))


def load(name="lvis_r50_balsig.yaml", *opts):
    path = name if Path(name).is_absolute() else config_file(name)
    return load_config(argparse.Namespace(config_file=path, opts=list(opts), dataset=[]))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads_and_is_valid(name):
    cfg = load(name)
    assert cfg.MODEL.ROI_HEADS.NAME == "LongTailROIHeads"


def test_children_are_deltas_of_one_base():
    balsig, rfs, deeper = (
        load(f"lvis_{name}.yaml") for name in ("r50_balsig", "r50_rfs", "r101_balsig")
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
    cfg = load("lvis_r50_norcal.yaml")
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
    cfg = load("lvis_r50_tau_norm.yaml")
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


@pytest.mark.parametrize("name", ["lvis_r50_balms.yaml", "lvis_r50_balms_reweight.yaml"])
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
