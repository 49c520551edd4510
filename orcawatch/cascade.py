"""The cascade: cheap backbones first on every channel, the heavier ones only where they can change the outcome.

`orcawatch.deploy.cascade` chooses it, the manifest holds it with its evidence, `orcawatch.ensemble` follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Gate:
    """One stage of the cascade: after the cheap backbones, whether the heavier ones can matter on this channel.

    Its sign is the average confidence of `members`, or, before any backbone, how far anything stands out of the
    background. Where the sign is below `threshold`, the vote is not taken: the channel's score is
    `intercept + slope * sign`, kept below the threshold at which events stop, so that no event starts or goes on.

    Attributes
    ----------
    backbones : heard by then, the cheapest first; none for the gate that looks at the spectrogram alone.
    members : whose confidences are averaged; they need none but these backbones.
    signature : of the heads' file: features of `backbones` -> confidences of `members`.
    prominence_of : the backbone whose spectrogram is looked at where there are no members (`spectrogram.prominence`).
    threshold : of the sign, chosen by `orcawatch.deploy.cascade`.
    intercept, slope : the line through the vote of the channels that were stopped here.
    """

    backbones: tuple[str, ...]
    members: tuple[str, ...]
    signature: str
    prominence_of: str
    threshold: float
    intercept: float
    slope: float

    @property
    def name(self) -> str:
        """What it goes by: `prominence`, or the backbones that are heard by then, `vggish + inception_v3`."""
        return " + ".join(self.backbones) or "prominence"

    def score(self, sign: float, below: float) -> float:
        """The channel's score where the gate stops it: 0 or more, and less than `below`."""
        return float(min(max(self.intercept + self.slope * sign, 0.0), np.nextafter(np.float32(below), np.float32(0))))


@dataclass(frozen=True)
class CountedGate(Gate):
    """A gate that tells its name for each window of a channel that it stops."""

    stopped: Callable[[str], object]

    def score(self, sign: float, below: float) -> float:
        """As the gate's; asked for only where it stops."""
        self.stopped(self.name)
        return super().score(sign, below)


@dataclass(frozen=True)
class Cascade:
    """Cheap backbones first on every channel, the heavier ones only where they can change the outcome.

    Attributes
    ----------
    gates : one after the other, each with more backbones than the one before; none where everything is heard.
    holds_from : the lowest stop threshold for which the gates were chosen.
    """

    gates: tuple[Gate, ...] = ()
    holds_from: float = 0.0

    @property
    def opened(self) -> Cascade:
        """The same gates, which let everything pass: whatever a window can cost, or break, is then heard."""
        return Cascade(tuple(replace(gate, threshold=-np.inf) for gate in self.gates), self.holds_from)

    @property
    def plain(self) -> Cascade:
        """The same gates, which tell nobody."""
        names = [item.name for item in fields(Gate)]
        return Cascade(
            tuple(Gate(**{name: getattr(gate, name) for name in names}) for gate in self.gates), self.holds_from
        )

    def counted(self, stopped: Callable[[str], object]) -> Cascade:
        """The same gates, which call `stopped` with their name for each window of a channel that they stop."""
        names = [item.name for item in fields(Gate)]
        gates = [CountedGate(**{name: getattr(gate, name) for name in names}, stopped=stopped) for gate in self.gates]
        return Cascade(tuple(gates), self.holds_from)


def cascade_from(found: Mapping[str, Any] | None) -> Cascade:
    """The cascade that a manifest describes; one without gates where it describes none."""
    if found is None:
        return Cascade()
    gates = [
        Gate(
            tuple(entry["backbones"]),
            tuple(entry["members"]),
            str(entry["signature"]),
            str(entry["prominence_of"]),
            float(entry["threshold"]),
            float(entry["intercept"]),
            float(entry["slope"]),
        )
        for entry in found["gates"]
    ]
    return Cascade(tuple(gates), float(found["holds_from"]))


def check_cascade(
    cascade: Cascade,
    members: Sequence[str],
    backbones: Sequence[str],
    backbones_of: Callable[[Sequence[str]], Sequence[str]],
) -> None:
    """Raise ValueError where gates do not fit each other, or the bundle's members and backbones."""
    heard = set[str]()
    if not 0 <= cascade.holds_from <= 1:
        raise ValueError(f"holds_from must be 0 to 1, not {cascade.holds_from:g}")
    for number, gate in enumerate(cascade.gates):
        if number == 0 and not gate.backbones and not gate.members and gate.prominence_of in backbones:
            _check_numbers(gate)
            continue
        if not heard < set(gate.backbones) < set(backbones):
            raise ValueError(
                f"each gate of the cascade must hear more of {list(backbones)} than the one before, and not all of "
                f"them; not {list(gate.backbones)} after {sorted(heard)}"
            )
        heard = set(gate.backbones)
        if not gate.members or not set(gate.members) <= set(members) or gate.prominence_of:
            raise ValueError(f"a gate must name members of {list(members)}, not {list(gate.members)}")
        if not set(backbones_of(gate.members)) <= heard:
            raise ValueError(f"{list(gate.members)} need other backbones than their gate's {sorted(heard)}")
        _check_numbers(gate)


def _check_numbers(gate: Gate) -> None:
    if not all(np.isfinite([gate.threshold, gate.intercept, gate.slope])) or gate.slope < 0:
        raise ValueError("a gate's threshold, intercept and slope must be finite, and the slope at least 0")


def cascade_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    """A manifest's cascade in words, with its evidence."""
    if found is None:
        yield "none: every backbone is heard on every window"
        return
    for gate in found["gates"]:
        if gate["prominence_of"]:
            of, least = gate["prominence_of"], gate["threshold"]
            yield f"nothing but the spectrogram of {of} first: on from a prominence of {least:.2f}"
        else:
            heard, members = " + ".join(gate["backbones"]), " + ".join(gate["members"])
            yield f"{heard} first: on from {gate['threshold']:.4f} of {members}"
    if shown := found.get("evidence"):
        yield from _evidence_lines(shown)


def _lost(shown: Mapping[str, Any]) -> str:
    """How many, with the upper end of the share where any are: with none the resampled recordings tell nothing."""
    if not shown["lost"]:
        return "none"
    return f"{shown['lost']} (at most {shown['lost_upper']:.1%}, 95 % by recording)"


def _level(one: Mapping[str, Any]) -> str:
    return f"{one['lost']} of {one['called']} at {one['snr_db']:g} dB"


def _faint_lines(shown: Mapping[str, Any] | None) -> Iterator[str]:
    """What is lost of calls mixed into other noise."""
    if shown is None:
        yield "chosen on clips as recorded alone: what it loses of fainter calls is not known"
        return
    recall = shown["recall"]
    yield (
        f"the same calls fainter, in other noise, on which it was chosen, too: {_lost(shown)} of {shown['called']} "
        f"called windows in {shown['recordings']} recordings lost ({', '.join(map(_level, shown['by_snr']))}); "
        f"found {recall['cascade']} of {recall['full']}"
    )
    if apart := shown["left_out"]:
        yield f"the same calls fainter, chosen without the recording: {_lost(apart)} called windows lost"


def _clips(kinds: Sequence[Mapping[str, Any]]) -> str:
    """How many clips of which label and source."""
    of = [f"{one['label']} of {one['source']}" if one["source"] else one["label"] for one in kinds]
    return ", ".join(f"{one['clips']} clips {name} ({one['recordings']} recordings)" for one, name in zip(kinds, of))


def _evidence_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    loss, time, recall = shown["auc_loss"], shown["milliseconds"], shown["recall"]
    passed = {kind: ", ".join(f"{share:.1%}" for share in shares) for kind, shares in shown["passed"].items()}
    if data := shown.get("data"):
        yield f"chosen on {_clips(data['clips'])}; SHA-256 {data['fingerprint']}"
    yield f"devel: {passed['noise']} of the windows of noise go on, {passed['orca']} of those of orca clips"
    yield (
        f"devel, on which it was chosen: {_lost(shown)} of {shown['called']} called windows in {shown['recordings']} "
        f"recordings lost; of {shown['called_orca']} of orca clips {shown['lost_orca']}; "
        f"clips found {recall['cascade']} of {recall['full']}"
    )
    yield (
        f"devel: ROC AUC {shown['auc']:.4f}, of the full vote {shown['auc_full']:.4f}; "
        f"loss {loss['value']:+.4f} ({loss['low']:+.4f} to {loss['high']:+.4f})"
    )
    if apart := shown["left_out"]:
        one = apart["auc_loss"]
        yield (
            f"devel, chosen without the recording: {_lost(apart)} called windows lost, "
            f"{apart['lost_orca']} of orca clips; "
            f"ROC AUC loss {one['value']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
        )
    yield from _faint_lines(shown.get("faint"))
    yield f"backbones take {time['cascade']:.2f} ms a window of noise, without the cascade {time['full']:.2f} ms"
