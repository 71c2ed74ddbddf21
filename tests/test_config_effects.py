"""Keys that are set without effect are named, and no shipped configuration has one."""

import argparse
import logging
from pathlib import Path

import pytest

from balms_det import classification
from balms_det.config import config_file
from balms_det.config.effects import keys_without_effect
from balms_det.engine import load_config
from balms_det.losses.registry import LOSSES
from balms_det.options import options_of

CONFIGS = Path(config_file("methods/balsig.yaml")).parents[1]
LONG_TAIL = "MODEL.LONG_TAIL"


def load(name, *opts):
    return load_config(
        argparse.Namespace(config_file=name, opts=[str(opt) for opt in opts], dataset=[])
    )


@pytest.mark.parametrize(
    "loss, key, value",
    [
        ("ldam", "LOSS.MARGIN.TAU", 0.5),
        ("eql", "LOSS.MARGIN.TAU", 0.5),
        ("eql", "LOSS.MARGIN.START_ITER", 10),
        ("balanced_softmax", "LOSS.MARGIN.ROWS", "all"),
        ("balanced_softmax", "LOSS.MARGIN.CONSTANT", "drop"),
        ("balanced_sigmoid", "LOSS.SEESAW.P", 0.5),
        ("eqlv2", "LOSS.EQL.GAMMA", 0.5),
        ("focal", "LOSS.BAGS.BOUNDARIES", "(5, 50)"),
        ("softmax", "LOSS.CLASS_WEIGHTS.NORMALISE", "classes"),
        ("softmax", "LOSS.CLASS_WEIGHTS.START_ITER", 10),
        ("softmax", "COSINE_TEMPERATURE", 30.0),
        ("softmax", "CALIBRATION.STRENGTH", 0.5),
        ("softmax", "CALIBRATION.FRACTAL_POWER", 1.0),
    ],
)
def test_a_key_that_the_method_does_not_read_is_named_in_one_warning(caplog, loss, key, value):
    with caplog.at_level(logging.WARNING):
        load("lvis_r50+rfs", f"{LONG_TAIL}.LOSS.NAME", loss, f"{LONG_TAIL}.{key}", value)
    (record,) = [r for r in caplog.records if "no effect" in r.getMessage()]
    assert f"{LONG_TAIL}.{key}" in record.getMessage() and repr(loss) in record.getMessage()


def test_pasting_has_no_effect_on_cached_features():
    cache = (f"{LONG_TAIL}.DECOUPLE.ENABLED", True, f"{LONG_TAIL}.DECOUPLE.FEATURE_CACHE", "cache")
    cfg = load("lvis_r50+copy_paste", "MODEL.WEIGHTS", "first.pth", *cache)
    keys = ["INPUT.COPY_PASTE.PROB", "INPUT.COPY_PASTE.RARE_PROB"]
    assert keys_without_effect(cfg) == keys


@pytest.mark.parametrize(
    "opts",
    [
        ("LOSS.NAME", "balanced_softmax", "LOSS.MARGIN.TAU", 0.5, "LOSS.MARGIN.START_ITER", 9),
        ("LOSS.NAME", "balanced_sigmoid", "LOSS.MARGIN.ROWS", "all"),
        ("LOSS.NAME", "softmax", "LOSS.TAIL_THRESHOLD", 0.1),
        ("CLASSIFIER", "cosine", "COSINE_TEMPERATURE", 30.0),
        ("MASK_CLASSIFIER", "cosine", "COSINE_TEMPERATURE", 30.0),
        ("CALIBRATION.NAME", "fracal", "CALIBRATION.FRACTAL_POWER", 1.0),
        ("CALIBRATION.NAME", "norcal", "CALIBRATION.STRENGTH", 0.5),
        ("LOSS.CLASS_WEIGHTS.NAME", "inverse", "LOSS.CLASS_WEIGHTS.START_ITER", 5),
    ],
)
def test_a_key_that_is_read_is_not_named(opts):
    keys = [f"{LONG_TAIL}.{opt}" if i % 2 == 0 else opt for i, opt in enumerate(opts)]
    assert keys_without_effect(load("lvis_r50+rfs", *keys)) == []


def test_every_option_of_a_loss_is_read_by_its_loss_and_by_no_plain_one():
    cfg = load("lvis_r50+rfs")
    cfg.defrost()
    for name, loss in LOSSES.items():
        for item in options_of(loss.options):
            if item.key == "TAIL_THRESHOLD":
                continue
            *path, last = item.key.split(".")
            node = cfg.MODEL.LONG_TAIL.LOSS
            for step in path:
                node = node[step]
            node[last] = "another"
            cfg.MODEL.LONG_TAIL.LOSS.NAME = "softmax"
            assert keys_without_effect(cfg) == [f"{LONG_TAIL}.LOSS.{item.key}"]
            cfg.MODEL.LONG_TAIL.LOSS.NAME = name
            assert keys_without_effect(cfg) == []
            node[last] = item.default


@pytest.mark.parametrize("method", sorted(path.stem for path in CONFIGS.glob("methods/*.yaml")))
@pytest.mark.parametrize("base", ["lvis_r50", "glyphs_lt_cpu"])
def test_no_shipped_composition_has_a_key_without_effect(base, method):
    # The meta step of learned rates is that of SGD.
    opts = ("MODEL.WEIGHTS", "first.pth", "SOLVER.OPTIMIZER", "SGD")
    assert keys_without_effect(load(f"{base}+{method}", *opts)) == []


@pytest.mark.parametrize("suite", ["digits_lt", "cifar10_lt"])
def test_no_shipped_classifier_has_a_key_without_effect(suite):
    for directory in ("methods", "second_stages"):
        for path in CONFIGS.glob(f"classification/{directory}/*.yaml"):
            cfg = classification.load_config(f"{suite}+{path.stem}")
            assert keys_without_effect(cfg) == []


def test_a_classifiers_keys_without_effect_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        classification.load_config("digits_lt+softmax", ["MODEL.LONG_TAIL.LOSS.MARGIN.TAU", "2.0"])
    assert "MARGIN.TAU" in caplog.text
