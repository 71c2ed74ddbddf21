"""What a new user with data of their own runs into ends as it should."""

from pathlib import Path

import pytest

from lab.own_data.points import CASES
from lab.own_data.runs import run_case, train_once

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound data set, and a detector that was trained on it."""
    return train_once(tmp_path_factory.mktemp("own_data"), ROOT)


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_ends_as_it_should(sound, tmp_path, case):
    outcome = run_case(case, sound, tmp_path, ROOT)
    assert outcome["holds"], outcome["summary"]
