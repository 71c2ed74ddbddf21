"""Values as people write them."""

import argparse

import pytest
from detectron2.config import get_cfg

from balms_det.config import add_balms_config, merge_config_files
from balms_det.config.values import fitted_overrides
from balms_det.engine import load_config
from balms_det.runtime.errors import InputError


def load(*opts, config_file=""):
    return load_config(argparse.Namespace(config_file=config_file, opts=list(opts), dataset=[]))


def test_an_integer_serves_for_a_float():
    cfg = load("SOLVER.BASE_LR", "1", "MODEL.LONG_TAIL.LOSS.MARGIN.TAU", "2")
    assert (cfg.SOLVER.BASE_LR, cfg.MODEL.LONG_TAIL.LOSS.MARGIN.TAU) == (1.0, 2.0)
    assert type(cfg.SOLVER.BASE_LR) is float
    with pytest.raises(InputError, match="SOLVER.MAX_ITER|Type mismatch"):
        load("SOLVER.MAX_ITER", "1.5")


def test_an_integer_serves_for_a_float_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("VERSION: 2\nSOLVER:\n  BASE_LR: 1\n  MAX_ITER: 7\n")
    cfg = get_cfg()
    add_balms_config(cfg)
    merge_config_files(cfg, str(path))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (1.0, 7)


def test_names_serve_for_a_tuple_of_names():
    assert load("DATASETS.TRAIN", "one").DATASETS.TRAIN == ("one",)
    assert load("DATASETS.TRAIN", "one, two").DATASETS.TRAIN == ("one", "two")
    assert load("DATASETS.TRAIN", "('one',)").DATASETS.TRAIN == ("one",)
    assert load("DATASETS.TRAIN", "()").DATASETS.TRAIN == ()


def test_what_cannot_be_a_pair_is_named():
    cfg = get_cfg()
    with pytest.raises(InputError, match="--resume stands after"):
        fitted_overrides(cfg, ["SEED", "1", "--resume"])
    with pytest.raises(InputError, match="ends in 'SEED'"):
        fitted_overrides(cfg, ["SOLVER.MAX_ITER", "1", "SEED"])


def test_registered_sets_are_kept_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load("DATASETS.REGISTER", "[['absent', 'no.json', 'images']]")
    # Its files are not present: a model's predictions need no training set.
    assert cfg.DATASETS.REGISTER == [
        ["absent", str(tmp_path / "no.json"), str(tmp_path / "images")]
    ]
    with pytest.raises(InputError, match="DATASETS.REGISTER is"):
        load("DATASETS.REGISTER", "[['only a name']]")
