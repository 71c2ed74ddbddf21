"""Rare, common and frequent classes, by LVIS's limits, other limits, or thirds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import are_groups, grouped, thirds
from balms_det.annotations.repeat_factors import advised_threshold, class_repeat_factors

COUNTS = np.array([500, 3, 20, 100, 101, 10, 11])


def test_limits_are_the_most_images_of_a_group():
    assert "".join(grouped(COUNTS, "10,100", "x" * 7)) == "frccfrc"
    assert "".join(grouped(COUNTS, "20, 200", "x" * 7)) == "frrccrr"
    assert "".join(grouped(COUNTS, "lvis", "rcfrcfr")) == "rcfrcfr"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_thirds_have_equal_sizes_and_follow_the_counts(counts):
    groups = thirds(np.array(counts))
    sizes = [groups.count(group) for group in "rcf"]
    assert max(sizes) - min(sizes) <= 1
    for rarer, other in ("rc", "cf", "rf"):
        most = max((n for n, g in zip(counts, groups, strict=True) if g == rarer), default=0)
        of_other = [n for n, g in zip(counts, groups, strict=True) if g == other]
        assert most <= min(of_other, default=99)


@pytest.mark.parametrize("value", ["", "third", "10", "10,5", "a,b", "1,2,3", "-1,5", 7, None])
def test_other_values_are_no_groups(value):
    assert not are_groups(value)


def test_statistics_with_other_groups_keep_everything_else():
    names = [f"class {i}" for i in range(len(COUNTS))]
    stats = ClassStats(COUNTS, COUNTS, 600, 600, range(7), names, ["f"] * 7)
    changed = stats.with_groups("thirds")
    assert changed.groups != stats.groups
    before, after = stats.to_dict(), changed.to_dict()
    assert [{**c, "group": ""} for c in before["classes"]] == [
        {**c, "group": ""} for c in after["classes"]
    ]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_the_advised_threshold_repeats_two_thirds_of_the_classes(counts):
    counts = np.array(counts)
    threshold = advised_threshold(counts, 1000)
    present = counts[counts > 0]
    if not len(present):
        assert threshold == 0
        return
    factors = class_repeat_factors(present / 1000, threshold)
    assert (factors > 1).sum() <= len(present) * 2 / 3
    if len(set(present.tolist())) == len(present):
        assert (factors > 1).sum() == len(present) * 2 // 3
