"""How good scores are: ROC AUC with intervals by recording, curves, calibration, false alarms, thresholds of events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import TrainingError

Floats = NDArray[np.floating[Any]]
DRAWS = 2000
RECALL = 0.9  # share of orca clips that the start threshold must find
RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95)  # at which false alarms are reported
DRAW_BLOCK = 64  # resamples whose running sums are held at once
BINS = 10  # of a reliability diagram
FOLDS = 5
NORMAL_95 = 1.959963984540054  # 97.5 % point of the normal distribution
NEAREST = 1e-12  # confidences are kept this far from 0 and 1 before their logit is taken
LEAST_SLOPE = 1e-3  # of a calibration: above 0, so that the order of scores stays


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


def _check(scores: Floats, labels: NDArray[np.bool_]) -> None:
    """Refuse one class only, and scores that are not a number."""
    if labels.all() or not labels.any():
        only = "orca" if len(labels) and labels.all() else "noise"
        raise TrainingError(f"ROC AUC needs orca and noise, but all {len(labels)} labels are {only}")
    wrong = int(np.size(scores) - np.isfinite(scores).sum())
    if wrong:
        raise TrainingError(f"{wrong} of {np.size(scores)} scores are not finite: find the member that gave them")


def roc_auc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that an orca scores above noise, ties counted half.

    Parameters
    ----------
    scores : shape (samples,).
    labels : True where orca, shape (samples,).

    Raises
    ------
    TrainingError : one class only, or a score that is not finite.
    """
    return float(roc_auc_rows(np.asarray(scores)[None], labels)[0])


def roc_auc_rows(scores: Floats, labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """ROC AUC of every row of scores (rows, samples): shape (rows,); the formula of `roc_auc`.

    Pairs are counted in whole numbers, so equal orders give equal figures to the last bit.
    """
    _check(scores, labels)
    orca, noise = np.sort(scores[:, labels], axis=1), np.sort(scores[:, ~labels], axis=1)
    won = [_half_wins(*rows) for rows in zip(orca, noise)]
    return np.asarray(np.array(won, np.float64) / (2.0 * orca.shape[1] * noise.shape[1]))


def _half_wins(orca: Floats, noise: Floats) -> int:
    """Pairs that orca won, twice, and those that were tied, once; both sorted."""
    return int(np.searchsorted(noise, orca, "left").sum() + np.searchsorted(noise, orca, "right").sum())


@dataclass(frozen=True)
class Resamples:
    """Resamples of whole recordings.

    Attributes
    ----------
    times : how often each recording is drawn, shape (draws, recordings).
    index : the recording of each clip, shape (clips,).
    """

    times: NDArray[np.int32]
    index: NDArray[np.int64]

    def left_out(self) -> Resamples:
        """Every recording that was not drawn, once."""
        return Resamples((self.times == 0).astype(np.int32), self.index)

    def part(self, draws: slice | NDArray[np.int64]) -> Resamples:
        """Some of the draws."""
        return Resamples(self.times[draws], self.index)

    def clips(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How often each clip that is kept is drawn: shape (kept clips, draws)."""
        return np.ascontiguousarray(self.times[:, self.index[kept]].T, dtype=np.int64)


def resamples(groups: int, draws: int, seed: int) -> NDArray[np.int32]:
    """How often each recording is drawn, with replacement, `groups` of them per draw: shape (draws, groups)."""
    chosen = np.random.default_rng(seed).integers(0, groups, (draws, groups))
    return np.stack([np.bincount(row, minlength=groups) for row in chosen]).astype(np.int32)


def resample(groups: Sequence[str], draws: int, seed: int) -> Resamples:
    """Resamples of the recordings that `groups` names, one name per clip."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return Resamples(resamples(len(names), draws, seed), index)


def resampled_aucs(scores: Floats, labels: NDArray[np.bool_], drawn: Resamples) -> NDArray[np.float64]:
    """ROC AUC of every row of scores on every resample, in time proportional to clips x rows x draws.

    Each row is sorted once. On a resample the noise clips below an orca clip are then a running sum of how often the
    sorted noise clips were drawn.

    Parameters
    ----------
    scores : shape (rows, clips).
    labels : True where orca, shape (clips,).
    drawn : the resamples.

    Returns
    -------
    Shape (rows, draws); not a number where a resample lacks a class.
    """
    _check(scores, labels)
    sorted_rows = [_sorted_noise(row[labels], row[~labels]) for row in scores]
    found = np.empty((len(scores), len(drawn.times)))
    for start in range(0, found.shape[1], DRAW_BLOCK):
        part = slice(start, start + DRAW_BLOCK)
        found[:, part] = _block_aucs(sorted_rows, labels, drawn.part(part))
    return found


SortedNoise = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _sorted_noise(orca: Floats, noise: Floats) -> SortedNoise:
    """Order of the noise clips, and for each orca clip the number of them below it and not above it."""
    order = np.argsort(noise)
    ordered = noise[order]
    return order, np.searchsorted(ordered, orca, "left"), np.searchsorted(ordered, orca, "right")


def _block_aucs(rows: Sequence[SortedNoise], labels: NDArray[np.bool_], drawn: Resamples) -> NDArray[np.float64]:
    orca, noise = drawn.clips(labels), drawn.clips(~labels)
    pairs = (orca.sum(axis=0) * noise.sum(axis=0)).astype(np.float64)
    won = np.array([_drawn_half_wins(row, orca, noise) for row in rows], np.float64).reshape(-1, len(pairs))
    return np.asarray(np.divide(won, 2 * pairs, out=np.full(won.shape, np.nan), where=pairs > 0))


def _drawn_half_wins(row: SortedNoise, orca: NDArray[np.int64], noise: NDArray[np.int64]) -> NDArray[np.int64]:
    order, below, not_above = row
    running = np.zeros((len(order) + 1, noise.shape[1]), np.int64)
    np.cumsum(noise[order], axis=0, out=running[1:])
    won = 2 * np.einsum("nd,nd->d", orca, running[below])
    tied = np.flatnonzero(not_above > below)
    return np.asarray(won + np.einsum("nd,nd->d", orca[tied], running[not_above[tied]] - running[below[tied]]))


def percentile_interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    """The figure with the 2.5 % and 97.5 % points of its resamples; those that are not a number do not count.

    Raises
    ------
    TrainingError : no resample gave the figure.
    """
    usable = drawn[np.isfinite(drawn)]
    if not len(usable):
        raise TrainingError(
            f"none of {len(drawn)} resamples of recordings holds what the figure needs (orca and noise, drawn and left "
            "out): more recordings of the rarer class are needed, two at least"
        )
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
    rows = np.asarray(scores, np.float64)[None]
    return percentile_interval(roc_auc(scores, labels), resampled_aucs(rows, labels, resample(groups, draws, seed))[0])


def paired_differences(
    scores: Floats,
    others: Floats,
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Interval]:
    """ROC AUC of `scores` (clips,) minus that of each row of `others` (rows, clips), on the same resamples.

    The recordings that are hard for one are hard for the other, so these intervals are narrower than those of the
    figures themselves suggest.
    """
    rows = np.concatenate([np.asarray(scores, np.float64)[None], np.asarray(others, np.float64)])
    values, drawn = roc_auc_rows(rows, labels), resampled_aucs(rows, labels, resample(groups, draws, seed))
    return [percentile_interval(float(values[0] - values[k]), drawn[0] - drawn[k]) for k in range(1, len(rows))]


def curves(scores: Floats, labels: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Points of the ROC and precision-recall curves, from the highest threshold to the lowest.

    Returns
    -------
    `threshold`, `false_positive_rate`, `recall`, `precision`, each of shape (distinct scores,): a clip counts as
    called at a score of `threshold` or more.
    """
    _check(scores, labels)
    order, last = _falling(scores)
    hits = np.cumsum(labels[order])[last].astype(np.float64)
    false = last + 1 - hits
    return {
        "threshold": np.asarray(scores, np.float64)[order][last],
        "false_positive_rate": false / (~labels).sum(),
        "recall": hits / labels.sum(),
        "precision": hits / (hits + false),
    }


def _falling(scores: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of falling scores, and in it the last place of each distinct score."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    ordered = np.asarray(scores)[order]
    return order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))


def average_precision(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Area under the precision-recall steps: the sum of each gain of recall times the precision there."""
    points = curves(scores, labels)
    return float(np.sum(np.diff(points["recall"], prepend=0.0) * points["precision"]))


@dataclass(frozen=True)
class _Calls:
    """Clips called down to each distinct score, on each resample: all of shape (distinct scores, draws)."""

    hits: NDArray[np.int64]
    false: NDArray[np.int64]

    def precision(self) -> NDArray[np.float64]:
        """Share of orca among the clips called, 0 where none is."""
        return np.asarray(self.hits / np.maximum(self.hits + self.false, 1))

    def recall(self) -> NDArray[np.float64]:
        """Share of the orca clips called; not a number where there is none."""
        return np.where(self.hits[-1] > 0, self.hits / np.maximum(self.hits[-1], 1), np.nan)


def _calls(scores: Floats, labels: NDArray[np.bool_], drawn: Resamples) -> _Calls:
    order, last = _falling(scores)
    times = drawn.clips(np.ones(len(labels), bool))[order]
    orca = labels[order][:, None]
    return _Calls(np.cumsum(times * orca, axis=0)[last], np.cumsum(times * ~orca, axis=0)[last])


def _blocks(drawn: Resamples) -> Iterator[Resamples]:
    for start in range(0, len(drawn.times), DRAW_BLOCK):
        yield drawn.part(slice(start, start + DRAW_BLOCK))


def average_precision_interval(
    scores: Floats, labels: NDArray[np.bool_], groups: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Average precision with its bootstrap percentile interval by recording; parameters as `auc_interval`."""
    parts = [_calls(scores, labels, part) for part in _blocks(resample(groups, draws, seed))]
    drawn = [np.sum(np.diff(p.recall(), axis=0, prepend=0.0) * p.precision(), axis=0) for p in parts]
    return percentile_interval(average_precision(scores, labels), np.concatenate(drawn))


@dataclass(frozen=True)
class OperatingPoint:
    """What finding a share of the orca clips costs.

    Attributes
    ----------
    wanted : the share of orca clips to find.
    threshold : score that the highest window of a clip must reach.
    recall : share of orca clips that do.
    precision : share of orca clips among those that do.
    false_alarms : noise clips that do.
    false_alarms_per_hour : the same per hour of noise.
    """

    wanted: float
    threshold: float
    recall: float
    precision: Interval
    false_alarms: int
    false_alarms_per_hour: Interval


def false_alarms_at_recall(
    window_scores: Floats,
    window_clip: NDArray[np.int64],
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    seconds: Floats,
    recalls: Sequence[float] = RECALLS,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[OperatingPoint]:
    """Threshold, precision and false alarms where a chosen share of the orca clips is found.

    A clip counts as called when its highest window reaches the threshold, and the threshold is placed half way to the
    next lower score, both as in `event_thresholds`. The intervals draw whole recordings and choose the threshold anew
    on each draw, so they hold the uncertainty of the threshold as well.

    Parameters
    ----------
    window_scores, window_clip, labels, seconds : as `event_thresholds`.
    groups : the recording of each clip.
    recalls : shares of the orca clips, above 0 and at most 1.
    draws, seed : number of resamples and their seed.

    Raises
    ------
    TrainingError : a recall out of range, or one class only.
    """
    wrong = [recall for recall in recalls if not 0 < recall <= 1]
    if wrong:
        raise TrainingError(f"a recall to reach must be above 0 and at most 1, not {wrong}")
    highest, noise_s = clip_highest(window_scores, window_clip, len(labels)), np.where(labels, 0.0, seconds)
    parts = [_drawn_points(highest, labels, part, noise_s, recalls) for part in _blocks(resample(groups, draws, seed))]
    drawn = np.concatenate(parts, axis=-1)
    return [_point(highest, labels, noise_s, recall, drawn[:, k]) for k, recall in enumerate(recalls)]


def _drawn_points(
    highest: Floats, labels: NDArray[np.bool_], drawn: Resamples, noise_s: Floats, recalls: Sequence[float]
) -> NDArray[np.float64]:
    """Precision and false alarms per hour where each recall is reached: shape (2, recalls, draws)."""
    calls = _calls(highest, labels, drawn)
    hours = noise_s @ drawn.clips(np.ones(len(labels), bool)) / 3600
    usable, every = (calls.hits[-1] > 0) & (hours > 0), np.arange(len(hours))
    at = np.stack([np.argmax(calls.hits >= recall * calls.hits[-1] - 1e-9, axis=0) for recall in recalls])
    per_hour = calls.false[at, every] / np.where(hours > 0, hours, 1)
    return np.where(usable, np.stack([calls.precision()[at, every], per_hour]), np.nan)


def _point(
    highest: Floats, labels: NDArray[np.bool_], noise_s: Floats, recall: float, drawn: NDArray[np.float64]
) -> OperatingPoint:
    points = curves(highest, labels)
    best, threshold = _reaching(points, recall)
    false = int(np.sum(highest[~labels] >= threshold))
    return OperatingPoint(
        wanted=float(recall),
        threshold=threshold,
        recall=float(points["recall"][best]),
        precision=percentile_interval(float(points["precision"][best]), drawn[0]),
        false_alarms=false,
        false_alarms_per_hour=percentile_interval(float(false / noise_s.sum() * 3600), drawn[1]),
    )


def _reaching(points: dict[str, NDArray[np.float64]], recall: float) -> tuple[int, float]:
    """First point of the curves with that recall, and the threshold half way from it to the next lower score."""
    best = int(np.argmax(points["recall"] >= recall - 1e-12))
    lower = points["threshold"][best + 1] if best + 1 < len(points["threshold"]) else 0.0
    return best, float((points["threshold"][best] + lower) / 2)


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
    highest = clip_highest(window_scores, window_clip, len(labels))
    points = curves(highest, labels)
    best, start = _reaching(points, RECALL)
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


def clip_highest(window_scores: Floats, window_clip: NDArray[np.int64], clips: int) -> NDArray[np.float64]:
    """Highest score of each clip's windows: (windows,) in, (clips,) out; every clip has a window."""
    highest = np.full(clips, -np.inf)
    np.maximum.at(highest, window_clip, window_scores)
    return highest


def wilson(hits: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's 95 % score interval of a share: hits of count, element by element (Wilson 1927)."""
    square = NORMAL_95**2
    share = hits / count
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 * np.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def reliability(
    confidences: Floats, labels: NDArray[np.bool_], bins: int = BINS, by: str = "count"
) -> dict[str, NDArray[np.float64]]:
    """Points of a reliability diagram: how often a confidence is right (DeGroot and Fienberg 1983).

    Parameters
    ----------
    confidences : orca confidences of the clips, 0 to 1, shape (clips,).
    labels : True where orca, shape (clips,).
    bins : number of bins at most; empty ones are left out.
    by : `count` for bins of about equal numbers of clips (equal confidences share a bin), `width` for equal widths.

    Returns
    -------
    Per bin `confidence` (mean), `share` (of orca), `count`, and `low`, `high`: Wilson's interval of the share, which
    takes clips as independent and is too narrow where a recording gives many.

    Raises
    ------
    TrainingError : confidences out of 0 to 1, or an unknown kind of bin.
    """
    index = _bin_index(np.asarray(confidences, np.float64), bins, by)
    count = np.bincount(index)
    kept = count > 0
    count, hits = count[kept], np.bincount(index, labels)[kept]
    low, high = wilson(hits, count)
    mean = np.bincount(index, confidences)[kept] / count
    return {"confidence": mean, "share": hits / count, "count": count.astype(np.float64), "low": low, "high": high}


def _bin_index(confidences: NDArray[np.float64], bins: int, by: str) -> NDArray[np.int64]:
    if bins < 1 or by not in ("count", "width"):
        raise TrainingError(f"bins must be 1 or more of equal 'count' or 'width', not {bins} of equal {by!r}")
    if not len(confidences) or not (confidences.min() >= 0 and confidences.max() <= 1):
        raise TrainingError("a reliability diagram needs confidences, each 0 to 1: calibrate the scores first")
    places = np.linspace(0, 1, bins + 1)[1:-1]
    edges = places if by == "width" else np.unique(np.quantile(confidences, places))
    return np.searchsorted(edges, confidences, side="right")


def expected_calibration_error(
    confidences: Floats, labels: NDArray[np.bool_], bins: int = BINS, by: str = "count"
) -> float:
    """Mean distance of confidence and share of orca over the bins of `reliability`, weighted by clips (Naeini 2015)."""
    points = reliability(confidences, labels, bins, by)
    distance = np.abs(points["confidence"] - points["share"])
    return float(np.sum(points["count"] * distance) / points["count"].sum())


def brier(confidences: Floats, labels: NDArray[np.bool_]) -> float:
    """Mean squared distance of confidence and label (Brier 1950)."""
    return float(np.mean((np.asarray(confidences, np.float64) - labels) ** 2))


def logit(confidences: Floats) -> NDArray[np.float64]:
    """log(p / (1 - p)), p kept `NEAREST` away from 0 and 1."""
    p = np.clip(np.asarray(confidences, np.float64), NEAREST, 1 - NEAREST)
    return np.asarray(np.log(p) - np.log1p(-p))


def sigmoid(logits: Floats) -> NDArray[np.float64]:
    """1 / (1 + exp(-z)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(np.asarray(logits, np.float64) / 2)))


@dataclass(frozen=True)
class Platt:
    """A calibration: sigmoid(slope * logit(confidence) + shift). The slope is above 0, so that the order stays."""

    slope: float
    shift: float

    def apply(self, confidences: Floats) -> NDArray[np.float64]:
        """Calibrated confidences, of the same shape."""
        return sigmoid(self.slope * logit(confidences) + self.shift)


def fit_platt(confidences: Floats, labels: NDArray[np.bool_]) -> Platt:
    """Platt's calibration by his smoothed targets (Platt 1999), with Newton steps that never rise (Lin et al. 2007).

    Parameters
    ----------
    confidences : orca confidences, 0 to 1, shape (clips,).
    labels : True where orca, shape (clips,).

    Raises
    ------
    TrainingError : one class only, or a confidence that is not finite.
    """
    _check(confidences, labels)
    orca, noise = int(labels.sum()), int((~labels).sum())
    targets = np.where(labels, (orca + 1) / (orca + 2), 1 / (noise + 2))
    inputs = np.stack([logit(confidences), np.ones(len(labels))], axis=1)
    slope, shift = _logistic(inputs, targets, np.array([1.0, 0.0]))
    if slope < LEAST_SLOPE:
        slope = LEAST_SLOPE
        shift = _logistic(inputs[:, 1:], targets, np.zeros(1), slope * inputs[:, 0])[0]
    return Platt(float(slope), float(shift))


def _loss(inputs: Floats, targets: Floats, weights: Floats, offset: Floats | float) -> float:
    z = inputs @ weights + offset
    return float(np.sum(np.logaddexp(0, z) - targets * z))


def _logistic(
    inputs: Floats, targets: Floats, weights: NDArray[np.float64], offset: Floats | float = 0.0
) -> NDArray[np.float64]:
    """Weights of the logistic regression of targets (0 to 1) on inputs (samples, k), by damped Newton steps."""
    for _ in range(100):
        p = sigmoid(inputs @ weights + offset)
        gradient = inputs.T @ (p - targets)
        if np.abs(gradient).max() < 1e-9 * len(targets):
            break
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + 1e-12 * np.eye(len(weights))
        weights = _descend(inputs, targets, weights, np.asarray(np.linalg.solve(curvature, gradient)), offset)
    return weights


def _descend(
    inputs: Floats, targets: Floats, weights: NDArray[np.float64], step: Floats, offset: Floats | float
) -> NDArray[np.float64]:
    """The longest of the halved steps that does not raise the loss; none where all do."""
    before = _loss(inputs, targets, weights, offset)
    for power in range(40):
        tried = weights - step / 2**power
        if _loss(inputs, targets, tried, offset) <= before:
            return np.asarray(tried)
    return weights


def recording_folds(
    labels: NDArray[np.bool_], groups: Sequence[str], folds: int = FOLDS, seed: int = 0
) -> NDArray[np.int64]:
    """Fold of each clip, whole recordings together, those with orca and those without spread evenly: shape (clips,).

    Raises
    ------
    TrainingError : a class is in one fold only, so that it cannot be left out.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    orca, noise = (np.bincount(index, kind, len(names)) > 0 for kind in (labels, ~labels))
    generator, fold = np.random.default_rng(seed), np.empty(len(names), np.int64)
    for kind in (orca, ~orca):
        fold[generator.permutation(np.flatnonzero(kind))] = np.arange(kind.sum()) % folds
    left = [set(fold[kind]) for kind in (orca, noise)]
    if min(len(one) for one in left) < 2:
        raise TrainingError(
            f"cross-validation by recording needs each class in two folds or more of {folds}, but orca is in "
            f"{orca.sum()} recordings and noise in {noise.sum()}: add recordings"
        )
    return fold[index]


def cross_calibrated(
    confidences: Floats, labels: NDArray[np.bool_], groups: Sequence[str], folds: int = FOLDS, seed: int = 0
) -> NDArray[np.float64]:
    """Confidences calibrated by `fit_platt` on the recordings of the other folds: shape (clips,)."""
    fold, found = recording_folds(labels, groups, folds, seed), np.empty(len(labels))
    for k in np.unique(fold):
        inside = fold == k
        found[inside] = fit_platt(confidences[~inside], labels[~inside]).apply(confidences[inside])
    return found
