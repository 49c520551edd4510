"""Every average vote of the members, ranked by ROC AUC, and the choice among them (paper sections 2.1 and 3)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..metrics import Interval, grouped_wins, percentile_interval, resamples, roc_auc_rows

Floats = NDArray[np.floating[Any]]
BLOCK = 256
OPTIMISTIC = (
    "The best of {rows} combinations, chosen on the set it is measured on, is optimistic. The nested figure chooses on "
    "resampled recordings and measures on the recordings that were not drawn."
)


@dataclass(frozen=True)
class Row:
    """One combination: its members and its ROC AUC."""

    members: tuple[str, ...]
    auc: float


def combinations(count: int) -> NDArray[np.bool_]:
    """All non-empty subsets of `count` members: shape (2^count - 1, count)."""
    numbers = np.arange(1, 2**count)[:, None]
    return np.asarray((numbers >> np.arange(count)) & 1 == 1)


def votes(scores: Floats, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average confidence of each combination: scores (samples, members), chosen (rows, members) -> (rows, samples)."""
    weights = chosen / chosen.sum(axis=1, keepdims=True)
    return np.asarray(weights @ np.asarray(scores, np.float64).T)


def rank(members: Sequence[str], scores: Floats, labels: NDArray[np.bool_]) -> list[Row]:
    """Rank every non-empty combination of distinct members.

    Parameters
    ----------
    members : their names.
    scores : orca confidences of the clips, shape (clips, members).
    labels : True where orca, shape (clips,).

    Returns
    -------
    2^members - 1 rows, the highest AUC first; of equal ones the smaller combination, then the order of members.
    """
    chosen = combinations(len(members))
    aucs = np.concatenate(
        [roc_auc_rows(votes(scores, chosen[i : i + BLOCK]), labels) for i in range(0, len(chosen), BLOCK)]
    )
    order = np.lexsort((np.arange(len(chosen)), chosen.sum(axis=1), -aucs))
    return [Row(tuple(np.asarray(members)[chosen[i]].tolist()), float(aucs[i])) for i in order]


def select(rows: Sequence[Row], must_contain: Sequence[str] | None) -> Row:
    """The best row that holds at least one of `must_contain`; the best of all where that is None.

    Raises
    ------
    TrainingError : no row holds one of them.
    """
    for row in rows:
        if must_contain is None or set(row.members) & set(must_contain):
            return row
    raise TrainingError(f"no combination contains one of {must_contain}: train such a member, or lift the rule")


def nested_selection(
    members: Sequence[str],
    scores: Floats,
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    must_contain: Sequence[str] | None,
    draws: int,
    seed: int,
) -> Interval:
    """What the choice of a vote is worth on recordings it was not chosen on.

    Per draw the best combination is chosen on the recordings drawn, and its AUC measured on the recordings left out.

    Parameters
    ----------
    members, scores, labels : as `rank`.
    groups : the recording of each clip.
    must_contain : as `select`.
    draws, seed : resamples and their seed.

    Returns
    -------
    The mean over the draws, with its percentile interval.
    """
    chosen = _allowed(members, must_contain)
    rows = votes(scores, chosen)
    times = resamples(len(set(groups)), draws, seed)
    left_out = (times == 0).astype(np.float64)
    best, measured = np.full(draws, -np.inf), np.full(draws, np.nan)
    for row in rows:
        pairs = grouped_wins(row, labels, groups)
        inside = np.nan_to_num(pairs.auc(times), nan=-np.inf)
        better = inside > best
        best[better] = inside[better]
        measured[better] = pairs.auc(left_out[better])
    return percentile_interval(float(np.nanmean(measured)), measured)


def _allowed(members: Sequence[str], must_contain: Sequence[str] | None) -> NDArray[np.bool_]:
    chosen = combinations(len(members))
    if must_contain is None:
        return chosen
    return chosen[chosen[:, [name in must_contain for name in members]].any(axis=1)]


def to_csv(members: Sequence[str], rows: Sequence[Row]) -> str:
    """The ranking as CSV: rank, auc, then 1 or 0 per member."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "auc", *members])
    for number, row in enumerate(rows, 1):
        writer.writerow([number, f"{row.auc:.6f}", *[int(name in row.members) for name in members]])
    return text.getvalue()


def to_markdown(members: Sequence[str], rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The ranking as a table like the paper's Table 1, with notes below."""
    lines = ["| No. | " + " | ".join(members) + " | AUC |", "|---" * (len(members) + 2) + "|"]
    for number, row in enumerate(rows, 1):
        ticks = " | ".join("x" if name in row.members else " " for name in members)
        lines.append(f"| {number} | {ticks} | {row.auc:.4f} |")
    return "\n".join([*lines, "", *notes, ""])
