"""What to leave out when inference falls behind, in steps that are stated beforehand.

The ladder decides from the backlog alone: the seconds of audio that have come and are not scored yet. It computes and
does nothing else; the daemon does what the step says, and enters it in the ledger and the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

from .bundle import Bundle
from .detector import Grid

FULL = "full"
NEAR_ZERO = 0.2  # of the threshold: a backlog up to this is none
SOON = 10.0  # times the first wait: an overload that comes so soon after a way back shows that it was too early
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Step:
    """How much is scored.

    Attributes
    ----------
    name : all that differs from step 0, in words: `hop 0.96 s, 2 of 4 channels`.
    hop_s : distance between windows.
    columns : which of the used channels are scored, as indices; the others have no score.
    vote : the members whose confidences are averaged.
    """

    name: str
    hop_s: float
    columns: tuple[int, ...]
    vote: tuple[str, ...]


Change = tuple[str, dict[str, Any]]  # in words, and the fields of a `Step`


def steps(bundle: Bundle, channels: int, wanted: Sequence[str] = ("hop", "channels", "members")) -> tuple[Step, ...]:
    """The ladder for a bundle and a number of channels; each step keeps what the ones before it left out.

    Parameters
    ----------
    bundle : gives the hop, the grid of windows, and the members and their backbones.
    channels : number of used channels.
    wanted : what may be left out, in this order: `hop` doubles the hop up to one window, `channels` halves the scored
        channels down to the first, `members` leaves the voting members of the cheapest backbone alone.

    Returns
    -------
    Step 0, where nothing is left out, and those after it; kinds that have nothing to leave out add none.

    Raises
    ------
    ValueError : an unknown or repeated kind, or no channels.
    BundleError, InputError : as `orcawatch.detector.Grid`.
    """
    if channels < 1 or len(set(wanted)) < len(wanted) or not set(wanted) <= set(CHANGES):
        raise ValueError(
            f"steps must be different kinds from {list(CHANGES)}, for at least 1 channel; "
            f"not {list(wanted)} for {channels}"
        )
    found = [Step(FULL, bundle.hop_s, tuple(range(channels)), bundle.vote)]
    words: dict[str, str] = {}
    for kind in wanted:
        for text, change in CHANGES[kind](bundle, channels):
            words[kind] = text
            found.append(replace(found[-1], name=", ".join(words.values()), **change))
    return tuple(found)


def _longer_hops(bundle: Bundle, channels: int) -> Iterator[Change]:
    grid = Grid({name: entry.front_end for name, entry in bundle.backbones.items()}, bundle.hop_s)
    hop = grid.hop
    while hop < grid.frames:
        hop = min(2 * hop, grid.frames)
        hop_s = round(hop * grid.step_s, 9)
        yield f"hop {hop_s:g} s", {"hop_s": hop_s}


def _fewer_channels(bundle: Bundle, channels: int) -> Iterator[Change]:
    kept = channels
    while kept > 1:
        kept = (kept + 1) // 2
        columns = tuple(index * channels // kept for index in range(kept))
        yield f"{kept} of {channels} channels", {"columns": columns}


def _cheaper_members(bundle: Bundle, channels: int) -> Iterator[Change]:
    """Where some of the vote's members listen to one backbone only: those of the cheapest such backbone."""
    alone = {member: needed[0] for member in bundle.vote if len(needed := bundle.backbones_of([member])) == 1}
    if alone and len(bundle.backbones_of(bundle.vote)) > 1:
        cheapest = min(sorted(set(alone.values())), key=lambda name: _bytes(bundle, name))
        vote = tuple(member for member, backbone in alone.items() if backbone == cheapest)
        yield f"{cheapest} alone", {"vote": vote}


CHANGES: Mapping[str, Callable[[Bundle, int], Iterator[Change]]] = {
    "hop": _longer_hops,
    "channels": _fewer_channels,
    "members": _cheaper_members,
}


def _bytes(bundle: Bundle, backbone: str) -> int:
    """Size of a backbone's features file, which goes with what it costs: manifests hold no time of single backbones."""
    return (bundle.folder / bundle.backbones[backbone].file).stat().st_size


class Ladder:
    """Which step to be on, from the backlog alone: the same backlogs give the same steps.

    Down: one step when the backlog reaches `step_up_s`; the next when it has not shrunk `step_up_s` seconds later.
    Back: one step when the backlog was near zero (at most a fifth of `step_up_s`) for a wait, at first `recover_s`. A
    step that is overloaded again soon after the way back to it (10 times `recover_s`) is waited for twice as long the
    next time, up to an hour; one that held is waited for `recover_s` again. Each step has a wait of its own, so that
    the way back from a burst is not slowed by a steady load.

    Parameters
    ----------
    steps : from `steps`.
    step_up_s : backlog at which more is left out, seconds of audio.
    recover_s : how long the backlog is near zero before less is left out, seconds.

    Attributes
    ----------
    steps : as given.
    number : index of the step in force.
    step_up_s, recover_s : as given; they may be replaced at any time.
    """

    def __init__(self, steps: Sequence[Step], step_up_s: float, recover_s: float) -> None:
        self.steps = tuple(steps)
        self.number = 0
        self.step_up_s = step_up_s
        self.recover_s = recover_s
        self._patience = [1] * len(self.steps)  # times `recover_s`: the wait before the way back to each step
        self._back_s = [float("-inf")] * len(self.steps)  # when the way back led to each step
        self._calm_s: float | None = None  # since when the backlog is near zero
        self._mark: tuple[float, float] | None = None  # (time, backlog) that the next backlog is compared with

    @property
    def step(self) -> Step:
        """The step in force."""
        return self.steps[self.number]

    def update(self, behind_s: float, now_s: float) -> Step | None:
        """Take note of the backlog.

        Parameters
        ----------
        behind_s : audio that has come and is not scored yet, seconds.
        now_s : a time that never goes back: the steady clock's, or audio heard (holes counted), seconds.

        Returns
        -------
        The new step where it changes; `number` is its index.
        """
        if behind_s <= NEAR_ZERO * self.step_up_s:
            self._mark = None
            return self._calm(now_s)
        self._calm_s = None
        return self._busy(behind_s, now_s)

    def _busy(self, behind_s: float, now_s: float) -> Step | None:
        if self._mark is not None:
            if now_s - self._mark[0] < self.step_up_s:
                return None
            if behind_s < self._mark[1]:
                self._mark = (now_s, behind_s)
                return None
        if behind_s < self.step_up_s:
            return None
        self._mark = (now_s, behind_s)
        return self._down(now_s)

    def _down(self, now_s: float) -> Step | None:
        if self.number == len(self.steps) - 1:
            return None
        soon = now_s - self._back_s[self.number] < SOON * self.recover_s
        self._patience[self.number] = 2 * self._patience[self.number] if soon else 1
        self.number += 1
        return self.step

    def _calm(self, now_s: float) -> Step | None:
        self._calm_s = now_s if self._calm_s is None else self._calm_s
        if self.number == 0 or now_s - self._calm_s < self._wait_s(self.number - 1):
            return None
        self.number -= 1
        self._calm_s = self._back_s[self.number] = now_s
        return self.step

    def _wait_s(self, number: int) -> float:
        """How long the backlog must be near zero before the way back to a step."""
        return min(self._patience[number] * self.recover_s, max(LONGEST_WAIT_S, self.recover_s))
