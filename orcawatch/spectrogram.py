"""Front ends: from audio at any rate to the spectrogram that a backbone takes.

A front end works in two steps, so that each frame is computed once however the windows overlap:
`rows` turns audio into one row per frame (linear), `finish` turns the rows of one window into the
spectrogram (logarithm and normalisation, from that window alone). Training and the edge use this one module;
the constants travel in the bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from .errors import AudioError, BundleError

Array = NDArray[np.float32]

NORMALISATIONS = ("none", "band_floor")
POWER_NORMALISATIONS = ("peak", "band_floor")
FLOOR_RANK = 20  # of a window's 96 frames: about the 20th percentile
LEAST_MAGNITUDE = 1e-12  # a mean below it counts as digital silence
LEAST_POWER = 1e-24
ROWS_AT_ONCE = 128  # frames times channels that fit the processor's cache
VECTOR_ROWS = 16  # a multiple of what any processor transforms at once, in single precision
PRODUCT_ROWS = 4
PRODUCT_BANDS = 32
PATCH = (8, 2)  # rows and bands: with VGGish 80 ms of one partial


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
    def to_rows(self, relevance: Array) -> Array: ...
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


def linear_matrix(bands: int, bins: int, rate_hz: int, low_hz: float, high_hz: float) -> Array:
    """Weights of the linear-frequency bands: triangles evenly spaced in Hz, the weights of each adding up to 1.

    Shape (bins, bands). A flat spectrum gives equal bands, however the bins fall on them. Band k rises from edge k to
    its centre at edge k + 1 and falls to edge k + 2, so that every bin between the outer centres counts.
    """
    bin_hz = np.linspace(0.0, rate_hz / 2, bins)[:, None]
    edges = np.linspace(low_hz, high_hz, bands + 2)
    weights = np.maximum(0.0, 1.0 - np.abs(bin_hz - edges[1:-1]) / (edges[1] - edges[0]))
    return np.asarray(weights / weights.sum(axis=0), np.float32)


def resize_matrix(size: int, frames: int) -> Array:
    """Linear interpolation from `frames` to `size` rows as a matrix, shape (size, frames); its rows add up to 1.

    Row i lies at (i + 1/2) frames / size - 1/2, the convention of image resizing without aligned corners. Where fewer
    rows are made of more, the triangles are as wide as the step, so that no frame is skipped.
    """
    step = frames / size
    place = (np.arange(size)[:, None] + 0.5) * step - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(place - np.arange(frames)) / max(1.0, step))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def periodic_hann(samples: int) -> Array:
    """Hann window of one period, 0.5 - 0.5 cos(2 pi n / samples), shape (samples,)."""
    phase = 2 * np.pi * np.arange(samples) / samples
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


class Filterbank:
    """The spectra of frames, summed over bands.

    Some frames are worked on at a time, so that all of it stays in the processor's cache. The bands are summed some at
    a time, over the bins from the first to the last that any of them looks at.

    What a frame gives must not depend on how many others came with it, to the last bit. A library adds up in another
    order where rows are left over from a full vector, or where a product has another shape. So transforms are made
    `VECTOR_ROWS` at a time, old rows filling up the last ones, and products of `PRODUCT_ROWS` rows each.

    Parameters
    ----------
    hann : window of one frame, shape (frame_samples,).
    hop : samples from one frame to the next.
    fft_size : even, samples to which a frame is filled up with zeros.
    matrix : weights, shape (fft_size // 2 + 1, bands).
    power : whether magnitudes are squared before they are summed.
    """

    def __init__(self, hann: Array, hop: int, fft_size: int, matrix: Array, power: bool) -> None:
        self.hann = hann * np.float32(fft_size)  # by which the transforms divide
        self.hop = hop
        self.fft_size = fft_size
        self.bins, self.bands = matrix.shape
        self.parts = list(parts_of(matrix))
        self.power = power

    def rows(self, samples: Array) -> Array:
        """Sums of every whole frame: samples float32 (samples, channels) in, (frames, channels, bands) out."""
        channels, frames = samples.shape[1], max(0, (len(samples) - len(self.hann)) // self.hop + 1)
        found = np.empty((frames, channels, self.bands), np.float32)
        at_once = max(1, min(frames, ROWS_AT_ONCE // channels))
        desk = Desk(self, at_once, channels)
        for start in range(0, frames, at_once):
            part = found[start : start + at_once]
            desk.sum(samples[start * self.hop :], part)
        return found


def parts_of(matrix: Array) -> Iterator[tuple[slice, slice, Array]]:
    """A matrix (bins, bands) in parts of some bands each: their bins, the bands, and the weights of those."""
    for bands in np.array_split(np.arange(matrix.shape[1]), -(-matrix.shape[1] // PRODUCT_BANDS)):
        used = np.flatnonzero(matrix[:, bands].any(axis=1))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        yield bins, slice(bands[0], bands[-1] + 1), np.ascontiguousarray(matrix[bins, bands])


class Desk:
    """Room for what a filterbank works on at a time.

    Parameters
    ----------
    bank : whose constants hold.
    frames, channels : at most so many frames of exactly so many channels.
    """

    def __init__(self, bank: Filterbank, frames: int, channels: int) -> None:
        length, rows = len(bank.hann), in_vectors(frames * channels)
        self._bank = bank
        self._samples = np.empty((channels, (frames - 1) * bank.hop + length), np.float32)
        across, along = self._samples.strides
        self._framed = np.lib.stride_tricks.as_strided(
            self._samples, (frames, channels, length), (bank.hop * along, across, along)
        )
        self._padded = np.zeros((rows, bank.fft_size), np.float32)
        self._magnitudes = np.empty((rows, bank.bins), np.float32)
        self._sums = np.empty((rows, bank.bands), np.float32)

    def sum(self, samples: Array, found: Array) -> None:
        """Fill `found`, shape (frames, channels, bands), from the first of the samples (samples, channels)."""
        bank, frames, channels = self._bank, *found.shape[:2]
        length = (frames - 1) * bank.hop + len(bank.hann)
        self._samples[:, :length] = samples[:length].T
        padded = self._padded[: frames * channels].reshape(frames, channels, -1)
        np.multiply(self._framed[:frames], bank.hann, out=padded[..., : len(bank.hann)])
        rows = in_vectors(frames * channels)
        # This norm divides by `fft_size`, which `Filterbank.hann` makes good, and keeps NumPy 2 in single precision.
        spectra = np.fft.rfft(self._padded[:rows], norm="forward")
        magnitudes = np.abs(spectra, out=self._magnitudes[:rows])
        if bank.power:
            np.square(magnitudes, out=magnitudes)
        magnitudes, sums = (
            array[:rows].reshape(rows // PRODUCT_ROWS, PRODUCT_ROWS, -1) for array in (self._magnitudes, self._sums)
        )
        for bins, bands, weights in bank.parts:
            np.matmul(magnitudes[..., bins], weights, out=sums[..., bands])
        found[:] = self._sums[: frames * channels].reshape(found.shape)


def in_vectors(rows: int) -> int:
    """A number of rows filled up to whole vectors."""
    return -(-rows // VECTOR_ROWS) * VECTOR_ROWS


def logarithm(rows: Array, offset: float) -> Array:
    """log(rows + offset), natural."""
    level: Array = rows + np.float32(offset)
    np.log(level, out=level)
    return level


def above_floor(rows: Array, offset: float, least: float = LEAST_MAGNITUDE) -> Array:
    """Level of each cell above its band's floor, natural log units: see `LogMel`; shape (..., frames, bands).

    A window whose mean is below `least` counts as digital silence; zeros give zeros.
    """
    mean = rows.mean(axis=(-2, -1), keepdims=True)
    level = logarithm(rows / np.maximum(mean, np.float32(least)), offset)
    level -= np.partition(level, FLOOR_RANK - 1, axis=-2)[..., FLOOR_RANK - 1 : FLOOR_RANK, :]
    return np.maximum(level, 0, out=level)


def below_peak(power: Array, range_db: float) -> Array:
    """Level relative to the window's highest cell: that cell is 1, `range_db` below it 0; power (..., frames, bands).

    A window of digital silence gives zeros.
    """
    peak = np.maximum(power.max(axis=(-2, -1), keepdims=True), np.float32(LEAST_POWER))
    level_db = 10 * np.log10(np.maximum(power / peak, np.float32(10 ** (-range_db / 10))))
    return np.asarray(np.maximum(1 + level_db / np.float32(range_db), 0), np.float32)


def has_prominence(front_end: FrontEnd) -> bool:
    """Whether its spectrograms are levels above each band's floor, which is what `prominence` looks at."""
    rows, bands, _ = front_end.shape
    return getattr(front_end, "normalise", "") == "band_floor" and rows >= PATCH[0] and bands >= PATCH[1]


def prominence(spectrogram: Array) -> float:
    """How far the most prominent patch of a finished spectrogram stands out: the highest mean of `PATCH` cells.

    Parameters
    ----------
    spectrogram : shape (frames, bands), normalised by `band_floor`: levels above each band's floor.
    """
    frames, bands = PATCH
    sums = sum(spectrogram[:, band : spectrogram.shape[1] - bands + 1 + band] for band in range(bands))
    running = np.zeros((len(spectrogram) + 1, spectrogram.shape[1] - bands + 1))
    np.cumsum(sums, axis=0, dtype=np.float64, out=running[1:])
    return float((running[frames:] - running[:-frames]).max()) / (frames * bands)


class Framed:
    """What front ends share that cut audio into frames of `frame_s` every `hop_s`."""

    rate_hz: int
    frame_s: float
    hop_s: float

    @property
    def frame_samples(self) -> int:
        """Length of one frame, samples at `rate_hz`."""
        return round(self.frame_s * self.rate_hz)

    @property
    def hop_samples(self) -> int:
        """Distance between frames, samples at `rate_hz`."""
        return round(self.hop_s * self.rate_hz)

    @cached_property
    def _hann(self) -> Array:
        return periodic_hann(self.frame_samples)


@dataclass(frozen=True)
class LogMel(Framed):
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
    def _bank(self) -> Filterbank:
        return Filterbank(self._hann, self.hop_samples, self.fft_size, self._matrix, power=False)

    def rows(self, samples: Array) -> Array:
        """Mel magnitudes of every whole frame.

        Parameters
        ----------
        samples : float32, shape (samples, channels), at `rate_hz`.

        Returns
        -------
        float32, shape (frames, channels, bands); no frame where fewer than `frame_samples` came.
        """
        return self._bank.rows(samples)

    def finish(self, rows: Array) -> Array:
        """Logarithm of one or more windows' rows, shape (..., frames, bands) in and out."""
        if self.normalise == "none":
            return logarithm(rows, self.offset)
        return above_floor(rows, self.offset)

    def to_rows(self, relevance: Array) -> Array:
        """Relevance of the spectrogram as relevance of its rows: the same, shape (..., frames, bands)."""
        return relevance

    def to_dict(self) -> dict[str, Any]:
        """Every constant, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class LinearPower(Framed):
    """Power spectrogram over linear frequency for the Inceptions: 0.96 s as an image of `size` times `size`.

    A periodic Hann window every 10 ms (LogMel's grid, so that the windows of all backbones align), power spectrum,
    `size` bands evenly spaced from 300 Hz to 10 kHz, level in dB, time interpolated from 96 frames to `size` rows.
    The image lies in 0 to 1. Source: paper section 2.2, a power spectrogram because mel compresses the high bands; its
    constants are ours.

    `normalise` is `peak`: a cell is 1 at the window's highest level and 0 from `range_db` below it; or `band_floor`, as
    in `LogMel`: the level above the floor of the cell's own band, of which `range_db` is 1. There, levels lower than
    `range_db` below the window's mean power do not count.

    Raises
    ------
    BundleError : the normalisation is unknown, a frame is longer than `fft_size`, bands lie outside the spectrum or
        closer than its bins.
    """

    rate_hz: int = 24000
    frame_s: float = 0.025
    hop_s: float = 0.010
    fft_size: int = 1024
    size: int = 299
    low_hz: float = 300.0
    high_hz: float = 10000.0
    range_db: float = 60.0
    frames: int = 96
    normalise: str = "peak"
    kind: str = "linear_power"

    def __post_init__(self) -> None:
        if self.normalise not in POWER_NORMALISATIONS:
            raise BundleError(
                f"normalise must be one of {POWER_NORMALISATIONS}, not {self.normalise!r}; upgrade orcawatch"
            )
        if self.frame_samples > self.fft_size:
            raise BundleError(f"fft_size must be at least a frame's {self.frame_samples} samples, not {self.fft_size}")
        if not 0 <= self.low_hz < self.high_hz <= self.rate_hz / 2:
            raise BundleError(
                f"low_hz and high_hz must rise from 0 to {self.rate_hz // 2}, not {self.low_hz:g} and {self.high_hz:g}"
            )
        if not 1 <= self.size <= self._most_bands:
            raise BundleError(
                f"size must be 1 to {self._most_bands}, not {self.size}: some bands would hold no bin of the spectrum; "
                "a larger fft_size allows more"
            )

    @property
    def _most_bands(self) -> int:
        return int((self.high_hz - self.low_hz) / (self.rate_hz / self.fft_size)) - 1

    @property
    def lowest_rate_hz(self) -> int:
        """Audio below this rate holds less than the lower half of the bands and is refused."""
        return round(self.low_hz + self.high_hz)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (time, frequency, planes)."""
        return self.size, self.size, 1

    @cached_property
    def frequencies_hz(self) -> NDArray[np.float64]:
        """Centre of each band, Hz, shape (size,)."""
        return np.linspace(self.low_hz, self.high_hz, self.size + 2)[1:-1]

    @cached_property
    def _matrix(self) -> Array:
        return linear_matrix(self.size, self.fft_size // 2 + 1, self.rate_hz, self.low_hz, self.high_hz)

    @cached_property
    def _bank(self) -> Filterbank:
        return Filterbank(self._hann, self.hop_samples, self.fft_size, self._matrix, power=True)

    @cached_property
    def _stretch(self) -> Array:
        return resize_matrix(self.size, self.frames)

    def rows(self, samples: Array) -> Array:
        """Power in each band of every whole frame.

        Parameters
        ----------
        samples : float32, shape (samples, channels), at `rate_hz`.

        Returns
        -------
        float32, shape (frames, channels, size); no frame where fewer than `frame_samples` came.
        """
        return self._bank.rows(samples)

    def finish(self, rows: Array) -> Array:
        """Images of one or more windows' rows: shape (..., frames, size) in, (..., size, size) in 0 to 1 out."""
        return np.asarray(self._stretch @ self._levels(rows))

    def _levels(self, rows: Array) -> Array:
        if self.normalise == "peak":
            return below_peak(rows, self.range_db)
        level_db = above_floor(rows, 10 ** (-self.range_db / 10), LEAST_POWER) * np.float32(10 / np.log(10))
        return np.asarray(np.minimum(level_db / np.float32(self.range_db), 1), np.float32)

    def to_rows(self, relevance: Array) -> Array:
        """Relevance of the image (..., size, size) as relevance of its rows (..., frames, size); the sum is kept.

        Each image row's relevance goes to the frames that it was interpolated from, by their weights: the transpose of
        the interpolation.
        """
        return np.asarray(self._stretch.T @ relevance)

    def to_dict(self) -> dict[str, Any]:
        """Every constant, for the manifest."""
        return asdict(self)


KINDS: dict[str, Any] = {"log_mel": LogMel, "linear_power": LinearPower}


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

    Resamples with one `soxr` stream, unless the audio is at the front end's rate, and keeps what the next frame needs.

    Parameters
    ----------
    front_end : what to compute.
    rate_hz : rate of the audio that comes.
    channels : its number of channels.
    at_once : rows that are computed together: a call costs as much as ten rows. What lacks some of them waits.

    Raises
    ------
    AudioError : the rate is too low for the front end's bands, or there are no channels.
    """

    def __init__(self, front_end: FrontEnd, rate_hz: int, channels: int, at_once: int = 1) -> None:
        if channels < 1:
            raise AudioError(f"audio must have at least 1 channel, not {channels}")
        if rate_hz < front_end.lowest_rate_hz:
            raise AudioError(
                f"sample rate must be at least {front_end.lowest_rate_hz} Hz, not {rate_hz} Hz: "
                f"the calls' band is missing from slower audio; record at {front_end.rate_hz} Hz or more"
            )
        self._front_end = front_end
        self._resampler = (
            None
            if rate_hz == front_end.rate_hz
            else soxr.ResampleStream(rate_hz, front_end.rate_hz, channels, dtype="float32")
        )
        self._at_once = at_once
        self._length = 0  # of what waits
        self._none = np.zeros((0, channels), np.float32)
        self._no_rows = front_end.rows(self._none)
        self._waiting: list[Array] = []

    def push(self, samples: Array) -> Array:
        """Rows that these samples complete; samples float32 (samples, channels), rows as `FrontEnd.rows`.

        Raises
        ------
        ValueError : the samples have another shape or type.
        """
        if samples.shape[1:] != self._none.shape[1:] or samples.dtype != np.float32:
            raise ValueError(
                f"blocks must be float32 of shape (samples, {self._none.shape[1]}), not {samples.dtype} {samples.shape}"
            )
        return self._rows(
            samples if self._resampler is None else self._resampler.resample_chunk(samples), self._at_once
        )

    def finish(self) -> Array:
        """Rows that were still held back; the stream cannot be used afterwards."""
        last = self._none if self._resampler is None else self._resampler.resample_chunk(self._none, last=True)
        return self._rows(last, 1)

    def _rows(self, new: Array, at_once: int) -> Array:
        """As many times `at_once` rows as there are with the new samples."""
        self._waiting.append(new)
        self._length += len(new)
        hop, frame = self._front_end.hop_samples, self._front_end.frame_samples
        frames = max(0, (self._length - frame) // hop + 1) // at_once * at_once
        if not frames:
            self._waiting[-1] = new.copy()  # who gave it may write into it
            return self._no_rows
        waiting = np.concatenate(self._waiting) if len(self._waiting) > 1 else new
        rows = self._front_end.rows(waiting[: (frames - 1) * hop + frame])
        self._waiting = [waiting[len(rows) * hop :].copy()]
        self._length = len(self._waiting[0])
        return rows


def rows_of(front_end: FrontEnd, samples: Array, rate_hz: int) -> Array:
    """Rows of a whole recording: samples (samples, channels) in, rows (frames, channels, bands) out."""
    stream = RowStream(front_end, rate_hz, samples.shape[1])
    rows, last = stream.push(np.ascontiguousarray(samples)), stream.finish()
    return np.concatenate([rows, last]) if len(last) else rows
