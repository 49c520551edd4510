"""What the devel scores say beyond the ranking: intervals, honest selection, calibration, false alarms at a recall.

Every interval is a percentile bootstrap by recording: whole recordings are drawn, never single clips of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics, ranking
from ..errors import TrainingError

Floats = NDArray[np.floating[Any]]
MOST_FREQUENT = 20  # combinations named in the stability of the choice


@dataclass(frozen=True)
class Scores:
    """The members' orca confidences on one labelled split.

    Attributes
    ----------
    members : descriptions in the order of the columns, each with `name`, `backbones` and `mask`.
    clips : of the clips, shape (clips, members).
    windows : of the windows, shape (windows, members).
    window_clip : index of each window's clip, shape (windows,); every clip has a window.
    labels : True where the clip is orca, shape (clips,).
    groups : the recording of each clip.
    seconds : length of each clip, shape (clips,).
    """

    members: Sequence[Mapping[str, Any]]
    clips: Floats
    windows: Floats
    window_clip: NDArray[np.int64]
    labels: NDArray[np.bool_]
    groups: Sequence[str]
    seconds: Floats

    @property
    def names(self) -> list[str]:
        """Names of the members."""
        return [str(member["name"]) for member in self.members]

    @property
    def unmasked(self) -> list[str]:
        """Names of the members without a mask: the base-models, and the fusion of their features."""
        return [str(member["name"]) for member in self.members if member["mask"] == "none"]

    def vote(self, names: Sequence[str], scores: Floats) -> NDArray[np.float64]:
        """Average of the named members' columns."""
        chosen = np.array([name in names for name in self.names])
        return np.asarray(ranking.votes(scores, chosen[None])[0])


def analyse(
    scores: Scores,
    vote: Sequence[str],
    must_contain: Sequence[str] | None = None,
    draws: int = metrics.DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Analyse the members and their vote; the same scores, settings and seed give the same content.

    Parameters
    ----------
    scores : of the split that the vote was chosen on.
    vote : names of its members.
    must_contain : the rule that the vote was chosen by, as `ranking.select`.
    draws, seed : resamples of every interval and their seed.

    Returns
    -------
    What `json` can write. INTERVAL is {"value", "low", "high", "draws"}: the figure, its 95 % interval, and the number
    of resamples that gave it.

    - `interval`: how the intervals were made, in words.
    - `clips`: {"orca", "noise", "orca_recordings", "noise_recordings", "noise_hours"}.
    - `vote`: [names].
    - `auc`: {"members": {name: INTERVAL}, "vote": INTERVAL}; the vote's figure is optimistic, see `nested`.
    - `average_precision`: the same form, and `chance`: the share of orca clips, on which the figure depends.
    - `nested`: what a vote chosen in the same way is worth on recordings it was not chosen on:
      {"auc": INTERVAL, "against": {unmasked member: INTERVAL of the difference on the same recordings},
      "members": {name: share of the draws whose choice held it}, "distinct": number of combinations chosen,
      "combinations": [{"members": [names], "share": of the draws}], the twenty most frequent}.
    - `differences`: {unmasked member: INTERVAL of the vote's AUC minus its AUC}, paired by resample; the vote was
      chosen on these recordings, so beside it see `nested` / `against`.
    - `calibration`: {"folds", "slope", "shift", "before": FIGURES, "after": FIGURES}, with FIGURES {"brier", "ece",
      "reliability": {"confidence", "share", "count", "low", "high"}, each a list with one number per bin}. `slope` and
      `shift` of sigmoid(slope * logit(vote) + shift) are fitted on all recordings; the figures `after` are of clips
      calibrated by the recordings of the other folds. The map rises, so it leaves the AUC as it is.
      {"left_out": why} where a class has too few recordings.
    - `false_alarms`: one per recall of `metrics.RECALLS`, by the highest window of each clip: {"wanted", "threshold",
      "recall", "precision": INTERVAL, "false_alarms": clips, "false_alarms_per_hour": INTERVAL, per hour of noise}.

    Raises
    ------
    TrainingError : one class only, a score that is not finite, or too few recordings for an interval.
    """
    clip_vote = scores.vote(vote, scores.clips)
    rows = np.concatenate([np.asarray(scores.clips, np.float64).T, clip_vote[None]])
    return {
        "interval": f"percentile bootstrap by recording, 95 %, {draws} draws, seed {seed}",
        "clips": _counts(scores),
        "vote": list(vote),
        "auc": _named(scores.names, _aucs(rows, scores, draws, seed)),
        "average_precision": _average_precision(rows, scores, draws, seed),
        "nested": _nested(scores, must_contain, draws, seed),
        "differences": _differences(clip_vote, scores, draws, seed),
        "calibration": _calibration(clip_vote, scores, seed),
        "false_alarms": _false_alarms(scores, vote, draws, seed),
    }


def _counts(scores: Scores) -> dict[str, Any]:
    labels, groups = scores.labels, np.asarray(scores.groups)
    return {
        "orca": int(labels.sum()),
        "noise": int((~labels).sum()),
        "orca_recordings": len(np.unique(groups[labels])),
        "noise_recordings": len(np.unique(groups[~labels])),
        "noise_hours": float(np.sum(scores.seconds[~labels]) / 3600),
    }


def _named(names: Sequence[str], intervals: Sequence[metrics.Interval]) -> dict[str, Any]:
    """Intervals of the members, and of the vote, which is the last."""
    return {"members": {name: asdict(one) for name, one in zip(names, intervals)}, "vote": asdict(intervals[-1])}


def _aucs(rows: Floats, scores: Scores, draws: int, seed: int) -> list[metrics.Interval]:
    values = metrics.roc_auc_rows(rows, scores.labels)
    drawn = metrics.resampled_aucs(rows, scores.labels, metrics.resample(scores.groups, draws, seed))
    return [metrics.percentile_interval(float(value), row) for value, row in zip(values, drawn)]


def _average_precision(rows: Floats, scores: Scores, draws: int, seed: int) -> dict[str, Any]:
    found = [metrics.average_precision_interval(row, scores.labels, scores.groups, draws, seed) for row in rows]
    return {**_named(scores.names, found), "chance": float(np.mean(scores.labels))}


def _nested(scores: Scores, must_contain: Sequence[str] | None, draws: int, seed: int) -> dict[str, Any]:
    found = ranking.nested_selection(
        scores.names, scores.clips, scores.labels, scores.groups, must_contain, draws, seed, scores.unmasked
    )
    return {
        "auc": asdict(found.auc),
        "against": {name: asdict(one) for name, one in found.against.items()},
        "members": found.members,
        "distinct": len(found.combinations),
        "combinations": [{"members": list(m), "share": share} for m, share in found.combinations[:MOST_FREQUENT]],
    }


def _differences(vote: Floats, scores: Scores, draws: int, seed: int) -> dict[str, Any]:
    others = np.asarray(scores.clips, np.float64).T[[scores.names.index(name) for name in scores.unmasked]]
    found = metrics.paired_differences(vote, others, scores.labels, scores.groups, draws, seed)
    return {name: asdict(one) for name, one in zip(scores.unmasked, found)}


def _calibration(vote: Floats, scores: Scores, seed: int) -> dict[str, Any]:
    try:
        held_out = metrics.cross_calibrated(vote, scores.labels, scores.groups, metrics.FOLDS, seed)
    except TrainingError as error:
        return {"left_out": str(error)}
    return {
        "folds": metrics.FOLDS,
        **asdict(metrics.fit_platt(vote, scores.labels)),
        "before": _figures(vote, scores.labels),
        "after": _figures(held_out, scores.labels),
    }


def _figures(confidences: Floats, labels: NDArray[np.bool_]) -> dict[str, Any]:
    points = metrics.reliability(confidences, labels)
    return {
        "brier": metrics.brier(confidences, labels),
        "ece": metrics.expected_calibration_error(confidences, labels),
        "reliability": {name: values.tolist() for name, values in points.items()},
    }


def _false_alarms(scores: Scores, vote: Sequence[str], draws: int, seed: int) -> list[dict[str, Any]]:
    windows = scores.vote(vote, scores.windows)
    points = metrics.false_alarms_at_recall(
        windows, scores.window_clip, scores.labels, scores.groups, scores.seconds, metrics.RECALLS, draws, seed
    )
    return [asdict(point) for point in points]
