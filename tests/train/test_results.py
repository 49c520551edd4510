"""The last stage's parts: what the vote must contain, equal windows, false alarms by kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.training import results
from orcawatch.training.dataset import Clip

MEMBERS = [{"name": "a", "mask": "none"}, {"name": "a_neg", "mask": "negative"}]


def test_a_rule_that_no_member_satisfies_is_refused_and_any_lifts_it() -> None:
    assert results.required(MEMBERS, "negative") == ["a_neg"]
    assert results.required(MEMBERS, "any") is None
    with pytest.raises(
        TrainingError, match=r"must_contain is minimal, but the members' masks are \['negative', 'none'\]"
    ):
        results.required(MEMBERS, "minimal")


@pytest.mark.parametrize("other", [{"start": [0, 50, 0]}, {"clip": [0, 1, 1]}, {"clip": [0, 0], "start": [0, 48]}])
def test_backbones_that_cut_other_windows_are_refused(other: dict[str, Any]) -> None:
    windows = {"clip": np.array([0, 0, 1]), "start": np.array([0, 48, 0])}
    results.check_windows({"a": windows, "b": dict(windows)})
    with pytest.raises(TrainingError, match="a vote needs the same windows"):
        results.check_windows({"a": windows, "b": {**windows, **{key: np.array(v) for key, v in other.items()}}})


def test_false_alarms_are_counted_by_kind_of_noise_alone() -> None:
    kinds = [("orca", "orca"), ("noise", "whale"), ("noise", "whale"), ("noise", "")]
    clips = [Clip("f", Path("f"), 0, label, "devel", "g", kind, "", "", "", 1.0) for label, kind in kinds]
    assert results.false_alarms_by_kind(clips, {0, 2}) == {"not stated": [0, 1], "whale": [1, 2]}
