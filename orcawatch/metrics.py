"""How good scores are: ROC AUC with intervals by recording, curves, and the thresholds of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import TrainingError

Floats = NDArray[np.floating[Any]]
DRAWS = 2000
RECALL = 0.9  # share of orca clips that the start threshold must find


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile interval.

    Attributes
    ----------
    value : the figure.
    low, high : 2.5 % and 97.5 % points of the resampled figure.
    draws : resamples used (those that held both classes).
    """

    value: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class Thresholds:
    """When an event starts and stops, and what that costs on the set it was chosen on.

    Attributes
    ----------
    start, stop : scores, 0 <= stop <= start <= 1.
    recall : share of orca clips with a window at or above `start`.
    precision : share of orca clips among clips with a window at or above `start`.
    false_alarms : noise clips with a window at or above `start`.
    false_alarms_per_hour : the same per hour of noise.
    """

    start: float
    stop: float
    recall: float
    precision: float
    false_alarms: int
    false_alarms_per_hour: float


def _both_classes(labels: NDArray[np.bool_]) -> None:
    if labels.all() or not labels.any():
        only = "orca" if len(labels) and labels.all() else "noise"
        raise TrainingError(f"ROC AUC needs orca and noise, but all {len(labels)} labels are {only}")


def roc_auc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that an orca scores above noise, ties counted half.

    Parameters
    ----------
    scores : shape (samples,).
    labels : True where orca, shape (samples,).

    Raises
    ------
    TrainingError : one class only.
    """
    return float(roc_auc_rows(np.asarray(scores)[None], labels)[0])


def roc_auc_rows(scores: Floats, labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """ROC AUC of every row of scores (rows, samples): shape (rows,); the formula of `roc_auc`."""
    _both_classes(labels)
    return np.array([wins.mean() for wins in (_wins(row[labels], row[~labels]) for row in scores)])


def _wins(orca: Floats, noise: Floats) -> NDArray[np.float64]:
    """For each orca score the share of noise scores below it, ties counted half."""
    ordered = np.sort(noise)
    below = np.searchsorted(ordered, orca, side="left")
    not_above = np.searchsorted(ordered, orca, side="right")
    return (below + not_above) / (2.0 * len(noise))


@dataclass(frozen=True)
class GroupedWins:
    """Pairs won between the recordings, from which the AUC of any resample of recordings follows.

    Attributes
    ----------
    wins : pairs that orca of recording g won against noise of recording h, shape (groups, groups).
    orca, noise : clips of each recording, shape (groups,).
    """

    wins: NDArray[np.float64]
    orca: NDArray[np.float64]
    noise: NDArray[np.float64]

    def auc(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """AUC where recording g is taken times[., g] times: shape (draws,), not a number where a class is missing."""
        pairs = (times @ self.orca) * (times @ self.noise)
        won = np.einsum("dg,dg->d", times @ self.wins, times)
        return np.asarray(np.divide(won, pairs, out=np.full(len(times), np.nan), where=pairs > 0))


def grouped_wins(scores: Floats, labels: NDArray[np.bool_], groups: Sequence[str]) -> GroupedWins:
    """Count the pairs won between recordings; scores and labels (samples,), groups one name per sample."""
    _both_classes(labels)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    member = np.eye(len(names))[index]
    orca, noise = scores[labels][:, None], scores[~labels][None]
    won = (orca > noise) + 0.5 * (orca == noise)
    wins = member[labels].T @ won @ member[~labels]
    return GroupedWins(wins, member[labels].sum(axis=0), member[~labels].sum(axis=0))


def resamples(groups: int, draws: int, seed: int) -> NDArray[np.float64]:
    """How often each recording is drawn, with replacement, `groups` of them per draw: shape (draws, groups)."""
    chosen = np.random.default_rng(seed).integers(0, groups, (draws, groups))
    return np.stack([np.bincount(row, minlength=groups) for row in chosen]).astype(np.float64)


def percentile_interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    """The figure with the 2.5 % and 97.5 % points of its resamples; those that are not a number do not count."""
    usable = drawn[np.isfinite(drawn)]
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value, float(low), float(high), len(usable))


def auc_interval(
    scores: Floats, labels: NDArray[np.bool_], groups: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """ROC AUC with its bootstrap percentile interval by recording (whole recordings are drawn, not clips).

    Parameters
    ----------
    scores, labels : shape (samples,).
    groups : the recording of each sample.
    draws, seed : number of resamples and their seed.
    """
    pairs = grouped_wins(np.asarray(scores, np.float64), labels, groups)
    times = resamples(len(pairs.orca), draws, seed)
    return percentile_interval(roc_auc(scores, labels), pairs.auc(times))


def curves(scores: Floats, labels: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Points of the ROC and precision-recall curves, from the highest threshold to the lowest.

    Returns
    -------
    `threshold`, `false_positive_rate`, `recall`, `precision`, each of shape (distinct scores,): a clip counts as
    called at a score of `threshold` or more.
    """
    _both_classes(labels)
    threshold = np.unique(scores)[::-1].astype(np.float64)
    hits = np.array([np.sum(scores[labels] >= t) for t in threshold], np.float64)
    false = np.array([np.sum(scores[~labels] >= t) for t in threshold], np.float64)
    return {
        "threshold": threshold,
        "false_positive_rate": false / (~labels).sum(),
        "recall": hits / labels.sum(),
        "precision": hits / (hits + false),
    }


def event_thresholds(
    window_scores: Floats, window_clip: NDArray[np.int64], labels: NDArray[np.bool_], seconds: Floats
) -> Thresholds:
    """Thresholds of events by one rule, from the scores of windows.

    An event starts with the first window that reaches `start`, so a clip counts as called when its *highest window*
    does (its mean, which the AUC uses, plays no part). `start` is the highest threshold that finds `RECALL` of the orca
    clips: a false alarm costs a glance at a picture, a missed bout is gone. It is placed half way to the next lower
    score so that it does not sit on a clip. `stop` is half way between `start` and the median score of the noise
    windows: an event lasts while windows stay nearer to a call than to noise.

    Parameters
    ----------
    window_scores : the vote's score of each window, shape (windows,).
    window_clip : index of each window's clip, shape (windows,).
    labels : True where the clip is orca, shape (clips,).
    seconds : length of each clip, shape (clips,).
    """
    highest = np.full(len(labels), -np.inf)
    np.maximum.at(highest, window_clip, window_scores)
    points = curves(highest, labels)
    best = int(np.argmax(points["recall"] >= RECALL))
    lower = points["threshold"][best + 1] if best + 1 < len(points["threshold"]) else 0.0
    start = float((points["threshold"][best] + lower) / 2)
    floor = float(np.median(window_scores[~labels[window_clip]]))
    false_alarms = int(np.sum(highest[~labels] >= start))
    return Thresholds(
        start=start,
        stop=(start + min(floor, start)) / 2,
        recall=float(points["recall"][best]),
        precision=float(points["precision"][best]),
        false_alarms=false_alarms,
        false_alarms_per_hour=float(false_alarms / seconds[~labels].sum() * 3600),
    )


def clip_means(window_scores: Floats, window_clip: NDArray[np.int64], clips: int) -> NDArray[np.float64]:
    """Mean over each clip's windows: scores (windows, ...) in, (clips, ...) out; every clip has a window."""
    total = np.zeros((clips, *window_scores.shape[1:]))
    np.add.at(total, window_clip, window_scores)
    number = np.bincount(window_clip, minlength=clips).reshape(-1, *[1] * (window_scores.ndim - 1))
    return np.asarray(total / number)
