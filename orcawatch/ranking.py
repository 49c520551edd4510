"""Every average vote of the members, ranked by ROC AUC, and the choice among them (paper sections 2.1 and 3)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import TrainingError
from .metrics import Interval, Resamples, percentile_interval, resample, resampled_aucs, roc_auc_rows

Floats = NDArray[np.floating[Any]]
BLOCK = 256  # combinations whose votes are held at once
OPTIMISTIC = (
    "The best of {rows} combinations, chosen on the set it is measured on, is optimistic. The nested figure chooses on "
    "resampled recordings and measures on the recordings that were not drawn."
)


@dataclass(frozen=True)
class Row:
    """One combination: its members and its ROC AUC."""

    members: tuple[str, ...]
    auc: float


@dataclass(frozen=True)
class Nested:
    """What the choice of a vote is worth on recordings it was not chosen on, and how stable the choice is.

    Attributes
    ----------
    auc : mean over the draws of the AUC on the recordings left out, with its percentile interval.
    combinations : every combination chosen, with the share of the draws that chose it, the most frequent first.
    members : for each member the share of the draws whose choice held it.
    against : for each name asked for, the AUC of the choice minus that of this member, both on the recordings left out.
    """

    auc: Interval
    combinations: tuple[tuple[tuple[str, ...], float], ...]
    members: dict[str, float]
    against: dict[str, Interval]


@dataclass(frozen=True)
class Priced:
    """One combination with its cost on the edge.

    Attributes
    ----------
    members, auc : as `Row`.
    backbones : the union of those its members need; each is computed once.
    ms : time per window of these backbones, in milliseconds.
    mb : size of these backbones, in megabytes.
    """

    members: tuple[str, ...]
    auc: float
    backbones: tuple[str, ...]
    ms: float
    mb: float


def combinations(count: int) -> NDArray[np.bool_]:
    """All non-empty subsets of `count` members: shape (2^count - 1, count)."""
    numbers = np.arange(1, 2**count)[:, None]
    return np.asarray((numbers >> np.arange(count)) & 1 == 1)


def votes(scores: Floats, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average confidence of each combination: scores (samples, members), chosen (rows, members) -> (rows, samples).

    Members are added in their order for every sample alike, so equal scores give equal votes.
    """
    columns = np.ascontiguousarray(np.asarray(scores, np.float64).T)
    return np.array([columns[row].mean(axis=0) for row in chosen])


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

    Raises
    ------
    TrainingError : one class only, or a score that is not finite.
    """
    chosen = _by_size(combinations(len(members)))
    blocks = [chosen[i : i + BLOCK] for i in range(0, len(chosen), BLOCK)]
    aucs = np.concatenate([roc_auc_rows(votes(scores, block), labels) for block in blocks])
    return [Row(_named(members, chosen[k]), float(aucs[k])) for k in np.argsort(-aucs, kind="stable")]


def _by_size(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Smaller combinations first, each size in the order given."""
    return chosen[np.argsort(chosen.sum(axis=1), kind="stable")]


def _named(members: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, there in zip(members, chosen) if there)


def select(rows: Sequence[Row], must_contain: Sequence[str] | None) -> Row:
    """The best row that holds at least one of `must_contain`; the best of all where that is None.

    Raises
    ------
    TrainingError : no row holds one of them.
    """
    for row in rows:
        if _allows(row.members, must_contain):
            return row
    raise TrainingError(f"no combination contains one of {must_contain}: train such a member, or lift the rule")


def _allows(members: Sequence[str], must_contain: Sequence[str] | None) -> bool:
    return must_contain is None or bool(set(members) & set(must_contain))


def nested_selection(
    members: Sequence[str],
    scores: Floats,
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    must_contain: Sequence[str] | None,
    draws: int,
    seed: int,
    against: Sequence[str] = (),
) -> Nested:
    """What the choice of a vote is worth on recordings it was not chosen on.

    Per draw the best combination is chosen on the recordings drawn, and its AUC measured on the recordings left out
    (about 37 %), so the figure is that of a choice made on fewer recordings than there are.

    Parameters
    ----------
    members, scores, labels : as `rank`.
    groups : the recording of each clip.
    must_contain : as `select`.
    draws, seed : resamples and their seed.
    against : members beside which the choice is to be measured.

    Raises
    ------
    TrainingError : as `rank` and `select`, or too few recordings for any draw to hold and leave out both classes.
    """
    allowed = _by_size(_allowed(members, must_contain))
    drawn = resample(groups, draws, seed)
    picked = _best_per_draw(scores, allowed, labels, drawn)
    measured = _measured(scores, allowed, labels, drawn.left_out(), picked)
    usable = np.isfinite(measured)
    others = resampled_aucs(_columns(scores, members, against), labels, drawn.left_out())
    shares = allowed[picked[usable]].mean(axis=0) if usable.any() else np.zeros(len(members))
    return Nested(
        auc=_mean(measured),
        combinations=_counted(members, allowed, picked[usable]),
        members={name: float(share) for name, share in zip(members, shares)},
        against={name: _mean(measured - other) for name, other in zip(against, others)},
    )


def _allowed(members: Sequence[str], must_contain: Sequence[str] | None) -> NDArray[np.bool_]:
    chosen = combinations(len(members))
    kept = chosen[[_allows(_named(members, row), must_contain) for row in chosen]]
    if not len(kept):
        raise TrainingError(f"no combination contains one of {must_contain}: train such a member, or lift the rule")
    return kept


def _best_per_draw(
    scores: Floats, allowed: NDArray[np.bool_], labels: NDArray[np.bool_], drawn: Resamples
) -> NDArray[np.int64]:
    """Place in `allowed` of the best combination on each draw, the first of equal ones; -1 where a class is missing."""
    picked, best = np.full(len(drawn.times), -1), np.full(len(drawn.times), -np.inf)
    for start in range(0, len(allowed), BLOCK):
        block = votes(scores, allowed[start : start + BLOCK])
        aucs = np.nan_to_num(resampled_aucs(block, labels, drawn), nan=-np.inf)
        top = aucs.max(axis=0)
        picked = np.where(top > best, start + aucs.argmax(axis=0), picked)
        best = np.maximum(top, best)
    return picked


def _measured(
    scores: Floats,
    allowed: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    left: Resamples,
    picked: NDArray[np.int64],
) -> NDArray[np.float64]:
    """AUC of each draw's choice on the recordings left out; not a number where a class is missing."""
    measured = np.full(len(picked), np.nan)
    for place in np.unique(picked[picked >= 0]):
        draws = np.flatnonzero(picked == place)
        measured[draws] = resampled_aucs(votes(scores, allowed[[place]]), labels, left.part(draws))[0]
    return measured


def _mean(drawn: NDArray[np.float64]) -> Interval:
    usable = drawn[np.isfinite(drawn)]
    return percentile_interval(float(usable.mean()) if len(usable) else np.nan, drawn)


def _columns(scores: Floats, members: Sequence[str], names: Sequence[str]) -> NDArray[np.float64]:
    return np.asarray(scores, np.float64).T[np.array([list(members).index(name) for name in names], np.int64)]


def _counted(
    members: Sequence[str], allowed: NDArray[np.bool_], picked: NDArray[np.int64]
) -> tuple[tuple[tuple[str, ...], float], ...]:
    """Combinations with the share of the draws that chose them; of equal shares the smaller first."""
    counts = sorted(Counter(picked.tolist()).items(), key=lambda one: (-one[1], one[0]))
    return tuple((_named(members, allowed[place]), number / len(picked)) for place, number in counts)


def price(
    rows: Sequence[Row], members: Sequence[Mapping[str, Any]], costs: Mapping[str, tuple[float, float]]
) -> list[Priced]:
    """What each combination costs on the edge: the backbones of its members together, each once.

    The heads are left out: they cost a thousandth of a backbone's time.

    Parameters
    ----------
    rows : the ranking.
    members : descriptions with `name` and `backbones`, of every member of the rows.
    costs : backbone -> (milliseconds per window, megabytes).

    Raises
    ------
    TrainingError : a backbone without a cost.
    """
    needs = {str(member["name"]): tuple(member["backbones"]) for member in members}
    missing = sorted({name for backbones in needs.values() for name in backbones} - set(costs))
    if missing:
        raise TrainingError(f"no cost is known of {missing}: measure milliseconds per window and megabytes of each")
    return [_priced(row, needs, costs) for row in rows]


def _priced(row: Row, needs: Mapping[str, tuple[str, ...]], costs: Mapping[str, tuple[float, float]]) -> Priced:
    backbones = tuple(dict.fromkeys(name for member in row.members for name in needs[member]))
    ms, mb = (float(sum(costs[name][k] for name in sorted(backbones))) for k in (0, 1))
    return Priced(row.members, row.auc, backbones, ms, mb)


def pareto(priced: Sequence[Priced], by: str) -> list[Priced]:
    """The Pareto front of AUC against `ms` or `mb`: the cheapest first, each better than all that cost no more.

    Of combinations equal in both the one that comes first in `priced` stands.
    """
    front: list[Priced] = []
    for one in sorted(priced, key=lambda one: (getattr(one, by), -one.auc)):
        if not front or one.auc > front[-1].auc:
            front.append(one)
    return front


def within_budget(
    priced: Sequence[Priced],
    most_ms: float | None = None,
    most_mb: float | None = None,
    must_contain: Sequence[str] | None = None,
) -> Priced:
    """The vote for the buoy: the best combination that costs no more than the budget.

    Parameters
    ----------
    priced : the ranking with its costs (see `price`), the highest AUC first.
    most_ms, most_mb : milliseconds per window and megabytes; None where there is no limit.
    must_contain : as `select`.

    Raises
    ------
    TrainingError : nothing fits; the text names the cheapest combination.
    """
    allowed = [one for one in priced if _allows(one.members, must_contain)]
    if not allowed:
        raise TrainingError(f"no combination contains one of {must_contain}: train such a member, or lift the rule")
    limits = [(by, most) for by, most in (("ms", most_ms), ("mb", most_mb)) if most is not None]
    for one in allowed:
        if all(getattr(one, by) <= most for by, most in limits):
            return one
    cheapest = min(allowed, key=lambda one: max(getattr(one, by) / most if most > 0 else np.inf for by, most in limits))
    wanted = " and ".join(f"{most:g} {by.replace('mb', 'MB')}" for by, most in limits)
    raise TrainingError(
        f"no vote fits {wanted} per window: the cheapest is {' + '.join(cheapest.members)} with {cheapest.ms:g} ms and "
        f"{cheapest.mb:g} MB; raise the budget, or train a smaller backbone or input"
    )


def to_csv(members: Sequence[str], rows: Sequence[Row]) -> str:
    """The whole ranking as CSV: rank, auc, then 1 or 0 per member."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "auc", *members])
    for number, row in enumerate(rows, 1):
        writer.writerow([number, f"{row.auc:.6f}", *[int(name in row.members) for name in members]])
    return text.getvalue()


def to_markdown(members: Sequence[str], rows: Sequence[Row], notes: Sequence[str], best: int = 50) -> str:
    """The best rows of the ranking as a table like the paper's Table 1, with notes below."""
    lines = ["| No. | " + " | ".join(members) + " | AUC |", "|---" * (len(members) + 2) + "|"]
    for number, row in enumerate(rows[:best], 1):
        ticks = " | ".join("x" if name in row.members else " " for name in members)
        lines.append(f"| {number} | {ticks} | {row.auc:.4f} |")
    rest = [f"The best {best} of {len(rows)} rows; ranking.csv holds all."] if len(rows) > best else []
    return "\n".join([*lines, "", *rest, *notes, ""])
