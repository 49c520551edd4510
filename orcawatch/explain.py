"""Explain recordings: what each backbone looked at in a file's highest-scoring stretch (Figure 1 of the paper)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from .capture import Recorded, Through
from .detector import Scorer
from .errors import AudioError, InputError
from .files import FileSource
from .listener import Listener
from .records import AudioBlock, WindowScore
from .scan import Recording
from .snapshot import LONGEST_S, explain_audio, picture_arrays, score_arrays, shares, write_picture
from .staging import OnAudio, Watched

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Explained:
    """What was made of one recording.

    Attributes
    ----------
    picture : path of the PNG; the arrays lie beside it, `.npz`.
    channel : the explained channel, as the source counts them.
    start_s, end_s : the explained stretch, seconds of the file.
    heard_s : how much audio it was chosen from.
    score : the channel's highest score in it.
    shares : by backbone, its part of all relevance; nan where nothing speaks for orca.
    """

    picture: Path
    channel: int
    start_s: float
    end_s: float
    heard_s: float
    score: float
    shares: dict[str, float]

    @property
    def is_choice(self) -> bool:
        """Whether the stretch is less than what was heard."""
        return self.end_s - self.start_s < self.heard_s - 1e-6

    @property
    def choice(self) -> str:
        """The stretch as a choice, in words."""
        return f"the highest-scoring {self.end_s - self.start_s:.1f} s of {self.heard_s:.1f} s"

    def __str__(self) -> str:
        what = f"channel {self.channel}, {self.start_s:.2f} to {self.end_s:.2f} s, score {self.score:.3f}"
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items() if not np.isnan(share))
        choice = f" ({self.choice})" if self.is_choice else ""
        return f"{what}{choice}; relevance: {parts or 'none, nothing speaks for orca'}"


class Part(Through[Recorded]):
    """A source's audio from `start_s` on, at most `length_s` of it; positions stay those of the source.

    Raises
    ------
    AudioError : while it is read, the source ends before the part begins.
    """

    def __init__(self, source: Recorded, start_s: float, length_s: float | None) -> None:
        super().__init__(source)
        rate_hz = source.info.rate_hz
        self._start = round(start_s * rate_hz)
        self._end = None if length_s is None else self._start + max(1, round(length_s * rate_hz))

    def blocks(self) -> Iterator[AudioBlock]:
        """The source's blocks, cut to the part."""
        heard = 0
        for block in self._source.blocks():
            heard = block.end_sample
            if self._end is not None and block.start_sample >= self._end:
                return
            if block.end_sample > self._start:
                yield self._cut(block)
        if heard <= self._start:
            seconds = heard / self.info.rate_hz
            raise AudioError(
                f"{self.info.name} is {seconds:.3f} s long: there is nothing from "
                f"{self._start / self.info.rate_hz:g} s on; give an earlier --start"
            )

    def _cut(self, block: AudioBlock) -> AudioBlock:
        start = max(block.start_sample, self._start)
        end = block.end_sample if self._end is None else min(block.end_sample, self._end)
        return AudioBlock(block.samples[start - block.start_sample : end - block.start_sample], start)


def check_names(recordings: Sequence[Recording]) -> None:
    """Raise InputError where two recordings' pictures would have one name."""
    if twice := [name for name, count in Counter(item.name for item in recordings).items() if count > 1]:
        raise InputError(f"{twice[0]} is the name of two files: explain one folder at a time")


def explain_recording(
    recording: Recording,
    ensemble: Scorer,
    out: Path,
    channel: int | None,
    part_s: tuple[float, float | None],
    on_audio: OnAudio,
    stop: Flag,
) -> tuple[Explained | None, AudioError | None]:
    """Explain a recording's highest-scoring stretch of at most 12 s: `out`/NAME.png and .npz.

    The file is read twice, to score every window and for the audio of the stretch.

    Parameters
    ----------
    recording : an audio file.
    ensemble : scores and explains.
    out : folder of the pictures.
    channel : the one to explain; None for the one of highest score.
    part_s : where in the file to look: start, and length or None for all that follows.
    on_audio : called with the seconds of each block, after it was scored.
    stop : set it to end early; then nothing is made.

    Returns
    -------
    What was made, and why the file, or part of it, could not be read or scored. A damaged file is explained as far as
    it goes.

    Raises
    ------
    InputError : a channel below 0.
    OSError : the picture cannot be written.
    """
    try:
        file = FileSource(recording.path)
        listener = Listener(Part(Watched(file, on_audio), *part_s), ensemble, None if channel is None else (channel,))
        windows = [window for _, some in listener.listen(stop) for window in some]
        if stop.is_set():
            return None, AudioError("it was stopped")
        if windows:
            path = out / recording.name
            return _explain(file, ensemble, windows, listener.channels, recording.name, path), _fault(listener)
        return None, _fault(listener)
    except AudioError as fault:
        return None, fault


def _fault(listener: Listener) -> AudioError | None:
    totals = listener.totals()
    return totals.fault or (None if totals.whole else AudioError(totals.refusal()))


def _explain(
    file: FileSource, ensemble: Scorer, windows: Sequence[WindowScore], channels: Sequence[int], name: str, path: Path
) -> Explained:
    rate_hz = file.info.rate_hz
    column, inside = best_stretch(windows, round(LONGEST_S * rate_hz))
    start, end = inside[0].start_sample, inside[-1].end_sample
    explanation = explain_audio(ensemble, read_stretch(file, start, end)[:, channels[column]], rate_hz)
    found = Explained(
        picture=path.with_name(path.name + ".png"),
        channel=channels[column],
        start_s=start / rate_hz,
        end_s=end / rate_hz,
        heard_s=(windows[-1].end_sample - windows[0].start_sample) / rate_hz,
        score=float(max(window.channel_scores[column] for window in inside)),
        shares=dict(zip((part.backbone for part in explanation.maps), shares(explanation))),
    )
    arrays = picture_arrays(ensemble.bundle, explanation, found.start_s)
    arrays |= score_arrays(inside, channels, found.channel, 0, rate_hz)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture({**arrays, "title": np.array([name, *_lines(found)])}, path)
    return found


def _lines(found: Explained) -> list[str]:
    """What the picture's heading says below the file's name."""
    lines = [f"channel {found.channel}, score {found.score:.2f}"]
    if found.is_choice:
        lines.append(found.choice)
    if np.isnan(list(found.shares.values())).any():
        lines.append("no relevance: nothing speaks for orca")
    return lines


def best_stretch(windows: Sequence[WindowScore], longest: int) -> tuple[int, Sequence[WindowScore]]:
    """The channel of the highest score and, around that window, the stretch of the highest sum of its scores.

    Parameters
    ----------
    windows : in order; where one starts after the end of the one before lies a hole, which no stretch spans.
    longest : samples of a stretch at most, unless one window is longer.

    Returns
    -------
    Index of the channel among the scores' columns, and the stretch's windows.
    """
    scores = np.stack([window.channel_scores for window in windows])
    peak, column = np.unravel_index(scores.argmax(), scores.shape)
    best = slice(int(peak), int(peak) + 1)
    for first in range(int(peak), -1, -1):
        last = _last(windows, first, longest)
        if last < peak:
            break
        if scores[first : last + 1, column].sum() > scores[best, column].sum():
            best = slice(first, last + 1)
    return int(column), windows[best]


def _last(windows: Sequence[WindowScore], first: int, longest: int) -> int:
    """The last window of the longest stretch that begins with `first`."""
    last = first
    while (
        last + 1 < len(windows)
        and windows[last + 1].start_sample <= windows[last].end_sample
        and windows[last + 1].end_sample - windows[first].start_sample <= longest
    ):
        last += 1
    return last


def read_stretch(source: Recorded, start: int, end: int) -> Array:
    """Samples from `start` to `end` of a source, float32, shape (samples, channels); it is not read further."""
    parts = []
    for block in source.blocks():
        if block.end_sample > start:
            parts.append(block.samples[max(0, start - block.start_sample) : end - block.start_sample])
        if block.end_sample >= end:
            break
    return np.concatenate(parts)
