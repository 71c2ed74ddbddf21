"""Every combination of a loss with the other parts works or is refused with a reason."""

from pathlib import Path

import pytest

from balms_det.calibration import CALIBRATIONS
from balms_det.losses.registry import LOSSES
from lab import combinations

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods" / "COMBINATIONS.md"

pytestmark = pytest.mark.e2e  # all of them take seconds


@pytest.fixture(scope="module")
def refusals():
    return combinations.try_all()


def test_the_table_is_that_of_the_page(refusals):
    table = combinations.outcome_table(refusals)
    page = PAGE.read_text(encoding="utf-8")
    assert f"<!-- report: combinations -->\n\n{table}\n\n<!-- /report -->" in page


def test_all_of_them_are_tried(refusals):
    sizes = [len(choices) for choices in combinations.PARTS.values()]
    assert sizes == [2, 3, 2, len(CALIBRATIONS)]
    assert len(refusals) == len(LOSSES) * 2 * 3 * 2 * len(CALIBRATIONS)


def test_sigmoid_losses_go_with_everything_but_where_a_plain_loss_is_needed(refusals):
    independent = {name for name, loss in LOSSES.items() if loss.has_independent_classes()}
    assert {"sigmoid", "balanced_sigmoid", "eql", "eqlv2", "gol"} <= independent
    for (loss, _, sampler, *_), reason in refusals.items():
        if loss in independent and sampler != "Meta Sampler":
            assert reason == ""


def test_a_combination_is_refused_only_for_one_of_its_parts(refusals):
    assert list(combinations.refused_for_another_reason(refusals)) == []
    for loss, *choices in refusals:
        alone = [refusals[combinations.alone(loss, choice)] for choice in choices]
        assert bool(refusals[(loss, *choices)]) == any(alone)


def test_a_reason_tells_key_value_and_remedy(refusals):
    for (loss, *_), reason in refusals.items():
        if reason:
            assert reason.startswith(("MODEL.", "DATALOADER."))
            assert repr(loss) in reason and "; choose one of " in reason
