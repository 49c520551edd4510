"""The cascade of a bundle, chosen on devel's clips, and its calls again, fainter: cheap backbones first, the heavier
ones where they can matter.

Before any backbone a *gate* looks at how far anything stands out of the background; after the cheapest backbones it
takes the average confidence of members that need no others. Where that sign is below the gate's threshold the vote is
not taken on this channel (see `orcawatch.cascade.Gate`). Chosen are, for every stage,
the members and the threshold that stop most windows while, of the windows whose full vote is at or above the stop
threshold of events, at most a stated share (`--most-lost`) is stopped: not the share that was counted, but the upper
end of its 95 % interval, recordings resampled. That holds for the clips as recorded and for the fainter calls (`faint`)
each by itself: what is not lost of the many loud ones must not pay for the faint. Of all ways to lay out stages the one
is taken that costs the least time on noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cascade import Cascade, Gate
from ..metrics import clip_highest, clip_means, paired_differences, resamples, roc_auc
from .faint import Mixture, folds

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
MARGIN = 2e-3  # below the lowest sign to pass: no two interpreters may differ by more
DRAWS = 2000
LEAST_STOPPED = 10  # windows, for a line through them


@dataclass(frozen=True)
class Scored:
    """The windows that a cascade is chosen on.

    Attributes
    ----------
    members : names of the columns of `scores`.
    scores : confidences, shape (windows, members).
    vote : the full vote, shape (windows,).
    backbones_of : the backbones that a member listens to.
    needed : the backbones that the vote listens to.
    prominences : of the spectrograms by backbone, each shape (windows,); only of those that have one.
    milliseconds : per window, by backbone.
    orca : True for windows of orca clips, shape (windows,).
    recordings : of each window, of a mixture its call's, shape (windows,).
    snr_db : of calls mixed into other noise; not a number where a window is as it was recorded; shape (windows,).
    stop : threshold at which events stop.
    """

    members: Sequence[str]
    scores: Floats
    vote: Floats
    backbones_of: Mapping[str, Sequence[str]]
    needed: Sequence[str]
    prominences: Mapping[str, Floats]
    milliseconds: Mapping[str, float]
    orca: Flags
    recordings: NDArray[Any]
    snr_db: Floats
    stop: float

    @property
    def faint(self) -> Flags:
        """True for windows of calls mixed into other noise, shape (windows,)."""
        return np.isfinite(self.snr_db)

    @property
    def called(self) -> Flags:
        """True for windows whose full vote reaches the stop threshold, shape (windows,)."""
        return np.asarray(self.vote >= self.stop)

    def part(self, kept: Flags) -> Scored:
        """Some of the windows."""
        cut = {name: getattr(self, name)[kept] for name in ("scores", "vote", "orca", "recordings", "snr_db")}
        cut["prominences"] = {name: found[kept] for name, found in self.prominences.items()}
        return replace(self, **cut)


def choose(scored: Scored, most_lost: float, members: bool = True) -> Cascade:
    """The cascade that costs the least on noise; one without gates where none is cheaper than hearing everything.

    Parameters
    ----------
    scored : the windows through the exported bundle.
    most_lost : upper end of the share of called windows that all gates together may stop, as recorded and fainter.
    members : whether gates may listen to members; else there is the one that looks at the spectrogram alone.
    """
    order = by_cost(scored)
    stages = [
        tuple(order[:count])
        for count in range(len(order) if members else 1)
        if not set(scored.needed) <= set(order[:count])
    ]
    layouts = chain.from_iterable(combinations(stages, count) for count in range(len(stages) + 1))
    cascades = [Cascade(_gates(scored, layout, most_lost), scored.stop) for layout in layouts]
    found = [cascade for cascade in cascades if _is_heard(scored, cascade)]
    return min(found, key=lambda cascade: (cost(scored, cascade, ~scored.orca), len(cascade.gates)))


def _is_heard(scored: Scored, cascade: Cascade) -> bool:
    """Whether the spectrogram that is looked at is of a backbone that the vote or a gate hears."""
    heard = set(scored.needed).union(*(gate.backbones for gate in cascade.gates))
    return all(gate.prominence_of in heard for gate in cascade.gates if gate.prominence_of)


def by_cost(scored: Scored) -> list[str]:
    """The backbones, the cheapest first."""
    return sorted(scored.milliseconds, key=lambda name: (scored.milliseconds[name], name))


def _gates(scored: Scored, layout: Sequence[tuple[str, ...]], most_lost: float) -> tuple[Gate, ...]:
    """A gate for each stage where one can be had; each may lose its part of what may be lost."""
    gates: list[Gate] = []
    for number, heard in enumerate(layout, 1):
        passing = pass_gates(scored, gates) == len(gates)
        drafts = _drafts(scored, heard, f"gate_{number}") if heard else _still(scored, layout[-1])
        gate = _best(scored, drafts, passing, most_lost * number / len(layout))
        gates += [gate] if gate is not None else []
    return tuple(gates)


def _drafts(scored: Scored, heard: tuple[str, ...], name: str) -> list[Gate]:
    """Gates by all averages of members that need no other backbones, still without their numbers."""
    able = [one for one in scored.members if set(scored.backbones_of[one]) <= set(heard)]
    groups = chain.from_iterable(combinations(able, count) for count in range(1, len(able) + 1))
    return [Gate(heard, group, name, "", 0, 0, 0) for group in groups]


def _still(scored: Scored, heard: tuple[str, ...]) -> list[Gate]:
    """The gate before any backbone, by the spectrogram of the cheapest one that is heard in the end; or none."""
    able = [name for name in by_cost(scored) if name in {*scored.needed, *heard} and name in scored.prominences]
    return [Gate((), (), "", name, 0, 0, 0) for name in able[:1]]


def _best(scored: Scored, drafts: Sequence[Gate], passing: Flags, most_lost: float) -> Gate | None:
    """The one that stops the most noise, with its numbers; None where nothing can be stopped."""
    if not drafts:
        return None
    gates = [replace(gate, threshold=threshold(scored, sign(scored, gate), passing, most_lost)) for gate in drafts]
    stopped = [passing & (sign(scored, gate) < gate.threshold) for gate in gates]
    best = max(range(len(gates)), key=lambda k: (np.count_nonzero(stopped[k] & ~scored.orca), -len(gates[k].members)))
    recorded = stopped[best] & ~scored.faint
    if np.count_nonzero(recorded) < LEAST_STOPPED:
        return None
    intercept, slope = _line(sign(scored, gates[best])[recorded], scored.vote[recorded])
    return replace(gates[best], intercept=intercept, slope=slope)


def sign(scored: Scored, gate: Gate) -> Floats:
    """What a gate goes by, shape (windows,)."""
    if gate.prominence_of:
        return scored.prominences[gate.prominence_of]
    return np.asarray(scored.scores[:, [list(scored.members).index(name) for name in gate.members]].mean(axis=1))


def threshold(scored: Scored, signs: Floats, passing: Flags, most_lost: float) -> float:
    """The highest threshold that keeps the bound, less `MARGIN`; -inf where no window is called.

    It is kept by the windows as recorded and by those of fainter calls, each by itself.

    Parameters
    ----------
    signs : what the gate goes by, shape (windows,).
    passing : the windows that came through the gates before; those that did not are lost already.
    most_lost : upper end of the share lost, all gates together.
    """
    called = scored.called
    if not called.any():
        return -np.inf
    groups = [kind for kind in (~scored.faint, scored.faint) if (called & kind).any()]
    candidates = np.sort(signs[called & passing])
    low, high = 0, len(candidates) - 1  # the number of windows lost at this gate
    while low < high:
        middle = (low + high + 1) // 2
        lost = called & (~passing | (signs < candidates[middle]))
        kept = all(upper_share(lost, called & kind, scored.recordings) <= most_lost for kind in groups)
        low, high = (middle, high) if kept else (low, middle - 1)
    return float(candidates[low]) - MARGIN if len(candidates) else -np.inf


def upper_share(lost: Flags, called: Flags, recordings: NDArray[Any]) -> float:
    """Upper end of the 95 % interval of the share of called windows lost, recordings resampled (fixed seed).

    It is 0 where none is called.
    """
    if not called.any():
        return 0.0
    _, index = np.unique(recordings[called], return_inverse=True)
    number = np.bincount(index)
    times = _times(len(number))
    return float(np.percentile(times @ np.bincount(index, lost[called], len(number)) / (times @ number), 97.5))


@lru_cache
def _times(recordings: int) -> NDArray[np.int32]:
    return resamples(recordings, DRAWS, 0)


def _line(signs: Floats, votes: Floats) -> tuple[float, float]:
    """Intercept and slope of the least-squares line, the slope at least 0."""
    centred = signs - signs.mean(dtype=np.float64)
    spread = float(centred @ centred)
    slope = max(0.0, float(centred @ votes) / spread) if spread > 0 else 0.0
    return float(votes.mean(dtype=np.float64) - slope * signs.mean(dtype=np.float64)), slope


def pass_gates(scored: Scored, gates: Sequence[Gate]) -> NDArray[np.int64]:
    """How many gates each window passes, shape (windows,)."""
    passed = np.zeros(len(scored.vote), np.int64)
    for number, gate in enumerate(gates):
        passed += (passed == number) & (sign(scored, gate) >= gate.threshold)
    return passed


def channel_scores(scored: Scored, cascade: Cascade) -> Floats:
    """Score of each window under the cascade, shape (windows,)."""
    passed, found = pass_gates(scored, cascade.gates), np.array(scored.vote, np.float64)
    for number, gate in enumerate(cascade.gates):
        stopped = passed == number
        signs = sign(scored, gate)[stopped]
        found[stopped] = [gate.score(float(one), cascade.holds_from) for one in signs]
    return found


def cost(scored: Scored, cascade: Cascade, among: Flags) -> float:
    """Mean milliseconds of backbones per window, of the windows in `among`."""
    passed = pass_gates(scored, cascade.gates)[among]
    heard = [set(gate.backbones) for gate in cascade.gates]
    heard.append(set(scored.needed).union(*heard))
    each = np.array([sum(scored.milliseconds[name] for name in names) for names in heard])
    return float(each[passed].mean()) if len(passed) else float(each[-1])


@dataclass(frozen=True)
class Clips:
    """The clips that the windows belong to; each mixture (`faint.Mixture`) is one, too.

    Attributes
    ----------
    of_window : index of each window's clip, shape (windows,).
    orca : True for orca clips, shape (clips,).
    recordings : of each clip.
    snr_db : of mixtures; not a number where a clip is as it was recorded; shape (clips,).
    """

    of_window: NDArray[np.int64]
    orca: Flags
    recordings: Sequence[str]
    snr_db: Floats

    def part(self, faint: bool) -> Clips:
        """The mixtures, or the others; their windows are those of `Scored.faint`, or the others."""
        kept = np.isfinite(self.snr_db) == faint
        place, recordings = np.cumsum(kept) - 1, np.asarray(self.recordings)[kept].tolist()
        return Clips(place[self.of_window[kept[self.of_window]]], self.orca[kept], recordings, self.snr_db[kept])

    def means(self, windows: Floats) -> Floats:
        """Mean over each clip's windows."""
        return clip_means(windows, self.of_window, len(self.orca))

    def found(self, windows: Floats, start: float) -> Flags:
        """Orca clips with a window at or above `start`."""
        return np.asarray(self.orca & (clip_highest(windows, self.of_window, len(self.orca)) >= start))


def with_mixtures(
    orca: Flags, recordings: Sequence[str], mixtures: Sequence[Mixture], of_window: NDArray[np.int64]
) -> Clips:
    """Clips, and after them their mixtures.

    Parameters
    ----------
    orca, recordings : of the clips alone.
    of_window : of the windows of both, shape (windows,).
    """
    calls = [one.call for one in mixtures]
    return Clips(
        of_window,
        np.append(orca, orca[calls]) if calls else orca,
        [*recordings, *(recordings[call] for call in calls)],
        np.append(np.full(len(orca), np.nan), [one.snr_db for one in mixtures]),
    )


def evidence(
    scored: Scored,
    cascade: Cascade,
    cascaded: Floats,
    clips: Clips,
    start: float,
    most_lost: float,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What a cascade loses and saves on what it was chosen on.

    Parameters
    ----------
    scored : the windows with their full vote.
    cascaded : their scores under the cascade, through the edge's own code, shape (windows,).
    clips : of the windows.
    start : threshold at which events start.
    most_lost : the bound that the cascade was chosen for.
    draws, seed : of the intervals.

    Returns
    -------
    `most_lost`: the bound. Then of the windows as recorded:
    `called`: windows with a full vote at or above the stop threshold; `lost`: those of them
    that a gate stopped; `lost_upper`: upper end of that share's 95 % interval (0 where none is lost, which says little
    of few `recordings`: those with a called window). `called_orca`, `lost_orca`: of orca clips alone. `passed`: share
    of the windows of noise and of orca clips that came through each gate. `recall`: orca clips that the full vote
    finds, and the cascade of these.
    `auc`, `auc_full`: ROC AUC of clips; `auc_loss`: their difference, with its interval by recording.
    `left_out`: lost windows and loss of ROC AUC where each recording is judged by a cascade chosen without it; null
    where there are too few recordings. `milliseconds`: of backbones, per window of noise, with and without the cascade.
    `faint`: of the mixtures (see `_faint`); not there where there are none.
    """
    gates = len(cascade.gates)
    apart = left_out(scored, clips, most_lost, any(gate.members for gate in cascade.gates))
    faint, of = scored.faint, clips.part(faint=False)
    recorded, passed = scored.part(~faint), pass_gates(scored, cascade.gates)[~faint]
    full = of.means(recorded.vote)

    def loss(windows: Floats) -> dict[str, Any]:
        return asdict(paired_differences(full, of.means(windows)[None], of.orca, of.recordings, draws, seed)[0])

    def through(kind: Flags) -> list[float]:
        return [float((passed[kind] > number).mean()) for number in range(gates)]

    return {
        "most_lost": most_lost,
        **_called(recorded),
        **_lost(recorded, passed < gates),
        "passed": {"noise": through(~recorded.orca), "orca": through(recorded.orca)},
        "recall": _recall(of, recorded.vote, cascaded[~faint], start),
        "auc": roc_auc(of.means(cascaded[~faint]), of.orca),
        "auc_full": roc_auc(full, of.orca),
        "auc_loss": loss(cascaded[~faint]),
        "left_out": None
        if apart is None
        else {**_lost(recorded, apart[~faint] < scored.stop), "auc_loss": loss(apart[~faint])},
        "milliseconds": {
            "full": cost(scored, Cascade(), ~scored.orca),
            "cascade": cost(scored, cascade, ~scored.orca),
        },
        **({"faint": _faint(scored, cascade, cascaded, clips, start, apart)} if faint.any() else {}),
    }


def _faint(
    scored: Scored, cascade: Cascade, cascaded: Floats, clips: Clips, start: float, apart: Floats | None
) -> dict[str, Any]:
    """What is lost of calls mixed into other noise: names as in `evidence`, and by level (`by_snr`)."""
    faint = scored.part(scored.faint)
    stopped = pass_gates(faint, cascade.gates) < len(cascade.gates)
    levels = np.unique(faint.snr_db)
    return {
        **_called(faint),
        **_lost(faint, stopped),
        "recall": _recall(clips.part(faint=True), faint.vote, cascaded[scored.faint], start),
        "left_out": None if apart is None else _lost(faint, apart[scored.faint] < scored.stop),
        "by_snr": [
            {"snr_db": float(one), **{key: int(of[faint.snr_db == one].sum()) for key, of in counted.items()}}
            for counted in [{"called": faint.called, "lost": faint.called & stopped}]
            for one in levels
        ],
    }


def _called(scored: Scored) -> dict[str, int]:
    called = scored.called
    return {
        "called": int(called.sum()),
        "called_orca": int((called & scored.orca).sum()),
        "recordings": len(set(scored.recordings[called].tolist())),
    }


def _lost(scored: Scored, stopped: Flags) -> dict[str, Any]:
    lost = scored.called & stopped
    return {
        "lost": int(lost.sum()),
        "lost_upper": upper_share(lost, scored.called, scored.recordings),
        "lost_orca": int((lost & scored.orca).sum()),
    }


def _recall(clips: Clips, vote: Floats, cascaded: Floats, start: float) -> dict[str, int]:
    full, found = (clips.found(windows, start) for windows in (vote, cascaded))
    return {"full": int(full.sum()), "cascade": int((full & found).sum())}


def left_out(scored: Scored, clips: Clips, most_lost: float, members: bool) -> Floats | None:
    """Scores under cascades that were chosen without the window's recording, shape (windows,); None with too few."""
    recorded = clips.part(faint=False)
    fold_of = dict(zip(recorded.recordings, folds(recorded.orca, recorded.recordings).tolist()))
    fold = np.array([fold_of[name] for name in scored.recordings.tolist()])
    if len(set(fold.tolist())) < 2:
        return None
    found = np.empty(len(scored.vote))
    for number in np.unique(fold):
        inside = fold == number
        found[inside] = channel_scores(scored.part(inside), choose(scored.part(~inside), most_lost, members))
    return found
