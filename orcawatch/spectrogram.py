"""Front ends: from audio at any rate to the spectrogram that a backbone takes.

A front end works in two steps, so that each frame is computed once however the windows overlap:
`rows` turns audio into one row per frame (linear), `finish` turns the rows of one window into the
spectrogram (logarithm and normalisation, from that window alone). Training and the edge use this one module;
the constants travel in the bundle.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from .errors import AudioError, BundleError

Array = NDArray[np.float32]

NORMALISATIONS = ("none", "band_floor")
FLOOR_RANK = 20  # of a window's 96 frames: about the 20th percentile


class FrontEnd(Protocol):
    """What every front end offers; `rows` and `finish` are pure functions of their arguments."""

    @property
    def kind(self) -> str: ...
    @property
    def rate_hz(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def frame_samples(self) -> int: ...
    @property
    def hop_samples(self) -> int: ...
    @property
    def lowest_rate_hz(self) -> int: ...
    @property
    def frequencies_hz(self) -> NDArray[np.float64]: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...

    def rows(self, samples: Array) -> Array: ...
    def finish(self, rows: Array) -> Array: ...
    def to_dict(self) -> dict[str, Any]: ...


def hertz_to_mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Mel value of a frequency, the HTK formula that VGGish uses: 1127 ln(1 + f / 700)."""
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0))


def mel_edges(bands: int, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Borders and centres of the bands in mel, evenly spaced: shape (bands + 2,), band k from k to k + 2."""
    low, high = float(hertz_to_mel(low_hz)), float(hertz_to_mel(high_hz))
    return np.linspace(low, high, bands + 2)


def mel_matrix(bands: int, bins: int, rate_hz: int, low_hz: float, high_hz: float) -> Array:
    """Weights of the mel bands, triangles that are linear in mel.

    Shape (bins, bands). Source: Hershey et al. 2017, the published VGGish code (`mel_features.py`), whose
    triangles differ from librosa's, which are linear in Hz. The bin of 0 Hz has no weight.
    """
    bin_mel = hertz_to_mel(np.linspace(0.0, rate_hz / 2, bins))[:, None]
    edges = mel_edges(bands, low_hz, high_hz)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bin_mel - lower) / (centre - lower)
    falling = (upper - bin_mel) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return np.asarray(weights, np.float32)


def above_floor(rows: Array, offset: float) -> Array:
    """Level of each cell above its band's floor, natural log units: see `LogMel`; shape (..., frames, bands).

    A window of digital silence gives zeros.
    """
    mean = rows.mean(axis=(-2, -1), keepdims=True)
    level = np.log(rows / np.maximum(mean, np.float32(1e-12)) + np.float32(offset))
    floor = np.partition(level, FLOOR_RANK - 1, axis=-2)[..., FLOOR_RANK - 1 : FLOOR_RANK, :]
    return np.asarray(np.maximum(level - floor, 0), np.float32)


@dataclass(frozen=True)
class LogMel:
    """VGGish's log-mel spectrogram: 0.96 s as 96 frames of 64 mel bands.

    A periodic Hann window of 25 ms every 10 ms, magnitude spectrum, mel bands from 125 to 7500 Hz, log(mel + offset).
    Source: Hershey et al. 2017 and the published VGGish code.

    `normalise` is `none`, as published (what AudioSet's weights need), or `band_floor`: each window is first divided by
    its own mean, so that the recorder's gain does not count, then each band's floor (the `FLOOR_RANK`-th lowest of its
    frames) is subtracted from the logarithm and what lies below it is 0, so that the recorder's colour and a steady
    background do not count. Its output is >= 0 and is 0 where there is only background, which also makes deep Taylor's
    z+ rule point at what stands out.
    """

    rate_hz: int = 16000
    frame_s: float = 0.025
    hop_s: float = 0.010
    fft_size: int = 512
    bands: int = 64
    low_hz: float = 125.0
    high_hz: float = 7500.0
    offset: float = 0.01
    frames: int = 96
    normalise: str = "none"
    kind: str = "log_mel"

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISATIONS:
            raise BundleError(f"normalise must be one of {NORMALISATIONS}, not {self.normalise!r}; upgrade orcawatch")

    @property
    def frame_samples(self) -> int:
        """Length of one frame, samples at `rate_hz`."""
        return round(self.frame_s * self.rate_hz)

    @property
    def hop_samples(self) -> int:
        """Distance between frames, samples at `rate_hz`."""
        return round(self.hop_s * self.rate_hz)

    @property
    def lowest_rate_hz(self) -> int:
        """Audio below this rate holds less than the lower half of the bands and is refused."""
        return self.rate_hz // 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one spectrogram: (frames, bands, planes)."""
        return self.frames, self.bands, 1

    @cached_property
    def frequencies_hz(self) -> NDArray[np.float64]:
        """Centre of each band, Hz, shape (bands,)."""
        centres = mel_edges(self.bands, self.low_hz, self.high_hz)[1:-1]
        return np.asarray(700.0 * np.expm1(centres / 1127.0))

    @cached_property
    def _matrix(self) -> Array:
        return mel_matrix(self.bands, self.fft_size // 2 + 1, self.rate_hz, self.low_hz, self.high_hz)

    @cached_property
    def _hann(self) -> Array:
        phase = 2 * np.pi * np.arange(self.frame_samples) / self.frame_samples
        return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)

    def rows(self, samples: Array) -> Array:
        """Mel magnitudes of every whole frame.

        Parameters
        ----------
        samples : float32, shape (samples, channels), at `rate_hz`.

        Returns
        -------
        float32, shape (frames, channels, bands); no frame where fewer than `frame_samples` came.
        """
        if len(samples) < self.frame_samples:
            return np.zeros((0, samples.shape[1], self.bands), np.float32)
        view = np.lib.stride_tricks.sliding_window_view(samples, self.frame_samples, axis=0)
        framed = view[:: self.hop_samples] * self._hann
        magnitude = np.abs(np.fft.rfft(framed, self.fft_size)).astype(np.float32)
        return np.asarray(magnitude @ self._matrix)

    def finish(self, rows: Array) -> Array:
        """Logarithm of one or more windows' rows, shape (..., frames, bands) in and out."""
        if self.normalise == "none":
            return np.asarray(np.log(rows + np.float32(self.offset)))
        return above_floor(rows, self.offset)

    def to_dict(self) -> dict[str, Any]:
        """Every constant, for the manifest."""
        return asdict(self)


KINDS: dict[str, Any] = {"log_mel": LogMel}


def front_end_from_dict(settings: dict[str, Any]) -> FrontEnd:
    """The front end that a manifest describes; raises BundleError for an unknown kind or constant."""
    kind = settings.get("kind")
    if kind not in KINDS:
        raise BundleError(f"front end must be one of {sorted(KINDS)}, not {kind!r}; upgrade orcawatch")
    allowed = {field.name for field in fields(KINDS[kind])}
    if unknown := sorted(set(settings) - allowed):
        raise BundleError(f"front end {kind} has no constant {unknown}; upgrade orcawatch")
    front_end: FrontEnd = KINDS[kind](**settings)
    return front_end


class RowStream:
    """Rows of a stream of blocks, the same to the bit wherever the block borders fall.

    Resamples with one `soxr` stream and keeps what the next frame needs.

    Parameters
    ----------
    front_end : what to compute.
    rate_hz : rate of the audio that comes.
    channels : its number of channels.

    Raises
    ------
    AudioError : the rate is too low for the front end's bands, or there are no channels.
    """

    def __init__(self, front_end: FrontEnd, rate_hz: int, channels: int) -> None:
        if channels < 1:
            raise AudioError(f"audio must have at least 1 channel, not {channels}")
        if rate_hz < front_end.lowest_rate_hz:
            raise AudioError(
                f"sample rate must be at least {front_end.lowest_rate_hz} Hz, not {rate_hz} Hz: "
                "the calls' band is missing from slower audio; record at 16000 Hz or more"
            )
        self._front_end = front_end
        self._resampler = soxr.ResampleStream(rate_hz, front_end.rate_hz, channels, dtype="float32")
        self._kept = np.zeros((0, channels), np.float32)

    def push(self, samples: Array) -> Array:
        """Rows that these samples complete; samples float32 (samples, channels), rows as `FrontEnd.rows`."""
        return self._advance(self._resampler.resample_chunk(samples))

    def finish(self) -> Array:
        """Rows that the resampler still held back; the stream cannot be used afterwards."""
        return self._advance(self._resampler.resample_chunk(self._kept[:0], last=True))

    def _advance(self, resampled: Array) -> Array:
        waiting = np.concatenate([self._kept, resampled])
        rows = self._front_end.rows(waiting)
        self._kept = waiting[len(rows) * self._front_end.hop_samples :]
        return rows


def rows_of(front_end: FrontEnd, samples: Array, rate_hz: int) -> Array:
    """Rows of a whole recording: samples (samples, channels) in, rows (frames, channels, bands) out."""
    stream = RowStream(front_end, rate_hz, samples.shape[1])
    return np.concatenate([stream.push(np.ascontiguousarray(samples)), stream.finish()])
