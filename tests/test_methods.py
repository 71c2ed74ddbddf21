"""The list of methods: complete, true to the configurations, and the same in the documents."""

import argparse
import re
from pathlib import Path

import pytest

from balms_det.calibration import CALIBRATIONS
from balms_det.commands import methods as command
from balms_det.config import config_file
from balms_det.config.method_list import METHODS, SOURCES
from balms_det.config.methods import describe_methods, method_needs, method_table
from balms_det.engine import load_config
from balms_det.losses.criterion import build_criterion
from balms_det.losses.loss import InferenceOnly
from balms_det.runtime.errors import InputError

CONFIGS = Path(config_file("methods/balsig.yaml")).parents[1]
BY_NAME = {method.name: method for method in METHODS}


@pytest.fixture(params=METHODS, ids=lambda method: method.name)
def method(request):
    return request.param


def test_every_configuration_is_listed_once():
    names = [method.name for method in METHODS]
    assert sorted(names) == sorted(path.stem for path in CONFIGS.glob("methods/*.yaml"))


def test_papers_formulas_and_sources_are_given(method):
    assert re.fullmatch(r"\d{4}\.\d{5}|slides|", method.paper)
    assert method.title and method.formula and not method.formula.endswith(".")
    if method.published is not None:
        assert method.published.source in SOURCES
        assert method.published.r50 or method.published.r101
        for mask, box in filter(None, (method.published.r50, method.published.r101)):
            assert re.fullmatch(r"\d\d\.\d( / \d\d\.\d){3}|\d\d\.\d", mask)
            assert re.fullmatch(r"\d\d\.\d", box)


def test_needs_are_those_of_the_composed_configuration(method):
    args = argparse.Namespace(config_file=f"lvis_r50+{method.name}", opts=[], dataset=[])
    cfg = load_config(args)
    long_tail, needs = cfg.MODEL.LONG_TAIL, "; ".join(method_needs(method))
    without_stats = build_criterion(long_tail, 1203, None, lambda: 0)
    calibration = long_tail.CALIBRATION.NAME
    needs_stats = isinstance(without_stats.loss, InferenceOnly) or CALIBRATIONS[calibration]
    assert ("class statistics" in needs) == needs_stats
    assert ("corrects a trained detector" in needs) == (calibration not in ("none", "logn"))
    assert ("logit statistics" in needs) == (calibration == "logn")
    assert ("box dimensions" in needs) == (calibration == "fracal")
    assert ("second stage" in needs) == long_tail.DECOUPLE.ENABLED
    if long_tail.DECOUPLE.ENABLED:
        (first,) = re.findall(r"second stage on `(\w+)`", needs)
        assert cfg.MODEL.WEIGHTS == f"output/lvis_r50_{first}/model_final.pth"
        assert first in BY_NAME
    assert ("bit masks" in needs) == (cfg.INPUT.COPY_PASTE.PROB > 0)
    assert ("plain SGD" in needs) == (method.name in ("balms", "balms_reweight"))


@pytest.mark.parametrize(
    "name, mask, box",
    [
        ("seesaw", "26.4", "27.6"),
        ("seesaw_normed_mask", "26.8", "27.6"),
        ("loce", "26.6", "27.4"),
        ("ecm", "27.5", "27.9"),
        ("fracal", "28.5 / 23.0 / 28.1 / 31.5", "28.4"),
    ],
)
def test_published_numbers_of_r50_are_those_of_their_sources(name, mask, box):
    assert BY_NAME[name].published.r50 == (mask, box)


def test_the_table_is_that_of_the_page():
    page = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert f"<!-- report: methods -->\n\n{method_table()}\n\n<!-- /report -->" in page


def test_the_command_lists_all_or_one(capsys):
    command.main([])
    printed = capsys.readouterr().out
    for method in METHODS:
        assert f"{method.name}: {method.title}\n" in printed
        assert method.formula in printed
    for line in ("  paper    ", "  formula  ", "  needs    ", "  number   "):
        assert printed.count(line) == len(METHODS)
    command.main(["ecm"])
    one = capsys.readouterr().out
    assert one == describe_methods([BY_NAME["ecm"]]) + "\n"
    assert "arXiv:2301.09724" in one and "R-50 mask AP 27.5, box AP 27.9" in one
    assert "class statistics" in one and "authors' repository" in one


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="there is no method 'seesw'; did you mean seesaw?"):
        command.main(["seesw"])


@pytest.mark.e2e
def test_the_command_works_without_detectron2(run_python):
    run_python(
        "import sys\n"
        "sys.modules['detectron2'] = None\n"
        "from balms_det.commands import methods\n"
        "methods.main(['balsig'])\n"
    )
