"""The last stage's parts: what the vote must contain, equal windows, false alarms by kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.training import results
from orcawatch.training.dataset import Clip
from orcawatch.training.members import Member

MEMBERS = [Member("a", ("a",), "none"), Member("a_neg", ("a",), "negative")]


def test_a_rule_that_no_member_satisfies_is_refused_and_any_lifts_it() -> None:
    assert results.required(MEMBERS, "negative") == ["a_neg"]
    assert results.required(MEMBERS, "any") is None
    with pytest.raises(
        TrainingError, match=r"must_contain is minimal, but the members' masks are \['negative', 'none'\]"
    ):
        results.required(MEMBERS, "minimal")


def test_representative_windows_are_drawn_by_recording_and_class() -> None:
    """One recording of 900 windows and twenty of two: every recording is in, and both classes."""
    group = np.array(["long"] * 900 + [f"short{k // 2}" for k in range(40)] + ["calls"] * 300)
    orca = group == "calls"
    rows = {"split": np.zeros(1240, int), "passed": np.zeros(1240, int), "orca": orca, "group": group}
    drawn = results.draw_representative(rows, 1)
    assert len(drawn) == len(set(drawn)) == results.REPRESENTATIVE
    assert orca[drawn].sum() == results.REPRESENTATIVE // 2
    assert set(group[drawn]) == set(group)
    np.testing.assert_array_equal(drawn, results.draw_representative(rows, 1))
    aside = {**rows, "passed": np.ones(1240, int)}
    assert len(results.draw_representative(aside, 1)) == 0


def test_false_alarms_are_counted_by_kind_of_noise_alone() -> None:
    kinds = [("orca", "orca"), ("noise", "whale"), ("noise", "whale"), ("noise", "")]
    clips = [Clip("f", Path("f"), 0, label, "devel", "g", kind, "", "", "", 1.0) for label, kind in kinds]
    assert results.false_alarms_by_kind(clips, {0, 2}) == {"not stated": [0, 1], "whale": [1, 2]}
