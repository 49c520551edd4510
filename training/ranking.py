"""The ranking, as `results` takes it: see `orcawatch.ranking`, which holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ranking
from ..metrics import Interval
from ..ranking import OPTIMISTIC, Row, rank, select, to_csv, to_markdown

__all__ = ["OPTIMISTIC", "Row", "nested_selection", "rank", "select", "to_csv", "to_markdown"]


def nested_selection(
    members: Sequence[str],
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    must_contain: Sequence[str] | None,
    draws: int,
    seed: int,
) -> Interval:
    """The figure alone of `orcawatch.ranking.nested_selection`."""
    return ranking.nested_selection(members, scores, labels, groups, must_contain, draws, seed).auc
