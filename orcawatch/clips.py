"""Audio around an event: the last seconds in memory, and clips on the disk."""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from .durable import write_bytes
from .guano import guano_text, with_guano_chunk
from .records import AudioBlock

Array = NDArray[np.float32]
log = logging.getLogger(__name__)

FLAC_CHANNELS = 8  # the format's limit
ROWS_AT_ONCE = 1 << 14  # that are encoded
FULL_SCALE = 2**23  # steps of a 24-bit sample


class Roll:
    """The last seconds of a stream, in one buffer that is allocated once.

    Not locked: push and cut from the same thread; what `cut` returns is a copy that any thread may use.

    Parameters
    ----------
    rate_hz : samples per second of each channel.
    channels : number of channels.
    seconds : how much is kept, gaps not counted.

    Raises
    ------
    ValueError : nothing could be kept.
    """

    def __init__(self, rate_hz: int, channels: int, seconds: float) -> None:
        rows = round(rate_hz * seconds)
        if rows < 1 or channels < 1:
            raise ValueError(f"a roll must keep at least 1 sample of 1 channel, not {rows} ({seconds} s) of {channels}")
        self._ring: Array = np.zeros((rows, channels), np.float32)
        self._pushed = 0  # rows ever kept; row r lies at r % len(ring)
        self._end = 0  # position in the stream just past the last row
        # (position in the stream, row) at which each stretch without holes starts
        self._stretches: deque[tuple[int, int]] = deque()

    def push(self, block: AudioBlock) -> None:
        """Keep a block and forget what is older than the roll is long; a jump in position starts a new stretch.

        Raises
        ------
        ValueError : the block has other channels, or starts before the end of the one before.
        """
        self._check(block)
        if not len(block.samples):
            return
        if not self._stretches or block.start_sample > self._end:
            self._stretches.append((block.start_sample, self._pushed))
        self._write(block.samples)
        self._end = block.end_sample
        self._forget()

    def cut(self, start_sample: int, end_sample: int) -> tuple[Array, int]:
        """The asked span as far as it is there, from one stretch without holes.

        The stretch that holds the middle of the asked span is taken, or the nearest one where none does.

        Returns
        -------
        samples : float32, shape (n, channels), a copy; n is 0 where that stretch holds nothing of the span.
        first_sample : position of the first row in the stream.
        """
        spans = self._spans()
        if not spans:
            return self._ring[:0].copy(), start_sample
        middle = (start_sample + end_sample) / 2
        first, last, row = min(spans, key=lambda span: max(span[0] - middle, middle - span[1], 0))
        start = min(max(start_sample, first), last)
        end = min(max(end_sample, start), last)
        return self._rows(row + start - first, row + end - first), start

    def blocks(self) -> Iterator[AudioBlock]:
        """What is kept, in order: a block, with a copy of the samples, for each stretch without holes."""
        for first, last, row in self._spans():
            yield AudioBlock(self._rows(row, row + last - first), first)

    def _check(self, block: AudioBlock) -> None:
        if block.samples.ndim != 2 or block.samples.shape[1] != self._ring.shape[1]:
            raise ValueError(
                f"samples must have shape (samples, {self._ring.shape[1]}) like the roll, not {block.samples.shape}"
            )
        if self._stretches and block.start_sample < self._end:
            raise ValueError(
                f"a block must start at sample {self._end} (the end of the one before) or later, "
                f"not {block.start_sample}"
            )

    def _write(self, samples: Array) -> None:
        size = len(self._ring)
        kept = samples[-size:]
        at = (self._pushed + len(samples) - len(kept)) % size
        before_wrap = min(len(kept), size - at)
        self._ring[at : at + before_wrap] = kept[:before_wrap]
        self._ring[: len(kept) - before_wrap] = kept[before_wrap:]
        self._pushed += len(samples)

    def _forget(self) -> None:
        """Drop stretches of which no row is left."""
        oldest = self._pushed - len(self._ring)
        while len(self._stretches) > 1 and self._stretches[1][1] <= oldest:
            self._stretches.popleft()

    def _spans(self) -> list[tuple[int, int, int]]:
        """(first position, position past the last, first row) of each stretch, as far as it is kept."""
        ends = [*[row for _, row in self._stretches][1:], self._pushed]
        oldest = self._pushed - len(self._ring)
        spans = []
        for (position, row), end in zip(self._stretches, ends):
            first = max(row, oldest)
            spans.append((position + first - row, position + end - row, first))
        return spans

    def _rows(self, first: int, last: int) -> Array:
        size = len(self._ring)
        start, before_wrap = first % size, min(last - first, size - first % size)
        rest = last - first - before_wrap
        return np.concatenate([self._ring[start : start + before_wrap], self._ring[:rest]])


def write_clip(
    path: Path, samples: Array, rate_hz: int, metadata: Mapping[str, str] | None = None, kind: str = "flac"
) -> Path:
    """Write a clip, whole or not at all.

    24 bits: they keep every bit of a 16- or 24-bit sound card (a call 90 dB below full scale still has 8 bits), and
    audio of 16 bits takes no more room in FLAC than in a 16-bit file, because FLAC leaves out the empty bits.
    FLAC holds 8 channels at most: more go into a WAV file. Samples beyond full scale are clipped, those that are
    not a number become 0; both are counted in a warning.

    Parameters
    ----------
    path : where; the suffix is set to `.flac` or `.wav`.
    samples : float32, shape (samples, channels), full scale 1.0.
    rate_hz : samples per second.
    metadata : GUANO fields (`orcawatch.guano.clip_metadata`), in a WAV file's `guan` chunk or a FLAC
        file's comment; None for none.
    kind : `flac` or `wav`.

    Returns
    -------
    The path that was written: record this one.

    Raises
    ------
    ValueError : there are no samples, or there is no such kind.
    OSError : the disk refuses.
    """
    if samples.ndim != 2 or not samples.size:
        raise ValueError(f"a clip must have shape (samples, channels) with some of each, not {samples.shape}")
    if kind not in ("flac", "wav"):
        raise ValueError(f"kind of a clip must be flac or wav, not {kind!r}")
    kind = kind if samples.shape[1] <= FLAC_CHANNELS else "wav"
    path = path.with_suffix(f".{kind}")
    content, altered = _encoded(samples, rate_hz, None if metadata is None else guano_text(metadata), kind)
    if altered:
        log.warning("%s: %d of %d samples were beyond full scale or no number", path, altered, samples.size)
    write_bytes(path, content)
    return path


def _encoded(samples: Array, rate_hz: int, text: str | None, kind: str) -> tuple[bytes, int]:
    """The file's bytes, and how many samples were altered; made piece by piece, for the steps take much room.

    WAV is plain PCM without speaker positions, which hydrophones have none of.
    """
    encoded, altered = io.BytesIO(), 0
    with soundfile.SoundFile(encoded, "w", rate_hz, samples.shape[1], "PCM_24", format=kind.upper()) as file:
        if text is not None and kind == "flac":
            file.comment = text
        for first in range(0, len(samples), ROWS_AT_ONCE):
            steps, beyond = _to_24_bit(samples[first : first + ROWS_AT_ONCE])
            file.write(steps)
            altered += beyond
    content = encoded.getvalue()
    return content if text is None or kind == "flac" else with_guano_chunk(content, text), altered


def _to_24_bit(samples: Array) -> tuple[NDArray[np.int32], int]:
    """Samples as left-aligned 24-bit integers, and how many were beyond full scale or no number.

    Scaled by 2^23 exactly (libsndfile would scale floats by 2^23 - 1), so that 16-bit audio stays 16-bit audio.
    """
    altered = int(np.count_nonzero(~(np.abs(samples) <= 1)))
    steps = np.rint(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0) * np.float64(FULL_SCALE))
    limited = np.clip(steps, -FULL_SCALE, FULL_SCALE - 1).astype(np.int32)
    return limited << 8, altered
