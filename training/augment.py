"""Augmentation: more training material from few recordings, by pure functions of arrays and a random generator.

Waveforms are float32, shape (samples,), at the front end's rate; spectrograms are finished windows of any front end,
float32, shape (windows, frames, bands). Nothing here changes its arguments.

A training batch is made in two steps: `draw_plan` draws what happens to each window, which takes no audio, and
`waveforms` does it to any part of the plan. So several workers can each make their share of one and the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..spectrogram import FrontEnd

if TYPE_CHECKING:
    from .dataset import LoadedClip

Array = NDArray[np.float32]
Whole = NDArray[np.int64]
Generator = np.random.Generator

TOGETHER = 8  # windows whose spectra are computed at a time: what the processor's cache holds


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random, and how strongly; the defaults are the recipe of `docs/training.md`.

    Attributes
    ----------
    gain_db : level changes by up to this much up or down, uniform; 0 leaves it.
    noise_share : share of windows, of both classes alike, into which another clip's noise is mixed; 0 to 1.
    noise_snr_db : lowest and highest ratio of the window's power to the mixed noise's, uniform in dB.
    shift_s : a clip that is used whole, or shorter than a window, is rotated by up to this much either way, seconds.
        From longer clips a window is cut anywhere.
    time_masks, band_masks : SpecAugment (Park et al. 2019): number of stretches of frames, and of bands, of each
        window that are replaced by the window's mean; 0 for none.
    time_mask_frames, band_mask_bands : longest stretch; the length is uniform from 0.
    """

    gain_db: float = 12.0
    noise_share: float = 0.5
    noise_snr_db: tuple[float, float] = (-3.0, 15.0)
    shift_s: float = 0.48
    time_masks: int = 0
    time_mask_frames: int = 16
    band_masks: int = 0
    band_mask_bands: int = 8

    def __post_init__(self) -> None:
        """Refuse strengths that mean nothing."""
        if not 0 <= self.noise_share <= 1:
            raise TrainingError(f"noise_share must be 0 to 1, not {self.noise_share}")
        if self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise TrainingError(f"noise_snr_db must be (lowest, highest), not {self.noise_snr_db}")
        counted = ("time_masks", "time_mask_frames", "band_masks", "band_mask_bands")
        for name in ("gain_db", "shift_s", *counted):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} must be 0 (off) or more, not {getattr(self, name)}")


NONE = Augmentation(gain_db=0, noise_share=0, shift_s=0)


def change_level(waveform: Array, gain_db: float) -> Array:
    """The waveform at `gain_db` more."""
    return np.asarray(waveform * np.float32(10 ** (gain_db / 20)), np.float32)


def noise_factor(waveforms: Array, noise: Array, snr_db: float | NDArray[np.float64]) -> Array:
    """What to multiply noise by, so that the powers over the whole length differ by `snr_db`; 0 where one is silent.

    Shapes (..., samples) and (...) in, (...) out.
    """
    powers = [np.einsum("...i,...i->...", part, part, dtype=np.float64) for part in (waveforms, noise)]
    heard = (powers[0] > 0) & (powers[1] > 0)
    ratio = np.where(heard, powers[0], 0) / np.where(heard, powers[1], 1)
    return np.asarray(np.sqrt(ratio * 10 ** (-np.asarray(snr_db) / 10)), np.float32)


def mix(waveform: Array, noise: Array, snr_db: float) -> Array:
    """Waveform plus noise, the noise scaled so that their powers over the whole length differ by `snr_db`.

    Where either is silent there is no such ratio, and the waveform comes back as it is.
    """
    return np.asarray(waveform + noise * noise_factor(waveform, noise, snr_db), np.float32)


def rotate(waveform: Array, rate_hz: int, shift_s: float, generator: Generator) -> Array:
    """The waveform shifted by up to `shift_s` seconds either way; what leaves at one end comes in at the other."""
    longest = round(shift_s * rate_hz)
    return np.roll(waveform, int(generator.integers(-longest, longest + 1)))


def cut(waveform: Array, samples: int, generator: Generator) -> Array:
    """`samples` samples from anywhere in the waveform, which is repeated from its start where it is too short."""
    start = int(generator.integers(max(0, len(waveform) - samples) + 1))
    return waveform[(start + np.arange(samples)) % len(waveform)]


def draw_stretches(windows: int, size: int, number: int, longest: int, generator: Generator) -> Whole:
    """`number` stretches of 0 to `longest` neighbours out of `size` for each window: shape (windows, number, 2).

    The last axis holds the first and one past the last.

    Raises
    ------
    TrainingError : stretches longer than the window.
    """
    if number and longest > size:
        raise TrainingError(f"a mask must be at most {size} wide (the window's size), not {longest}")
    length = generator.integers(longest + 1, size=(windows, number))
    start = np.floor(generator.random((windows, number)) * (size - length + 1)).astype(np.int64)
    return np.stack([start, start + length], axis=-1)


def hide(spectrograms: Array, axis: int, stretches: Whole) -> Array:
    """Replace each window's stretches of frames (axis 1) or bands (axis 2) by that window's mean."""
    if not stretches.shape[1]:
        return spectrograms
    place = np.arange(spectrograms.shape[axis])
    inside = ((place >= stretches[..., :1]) & (place < stretches[..., 1:])).any(axis=1)
    means = spectrograms.mean(axis=(1, 2), keepdims=True)
    return np.where(np.expand_dims(inside, 3 - axis), means, spectrograms)


def draw_masks(windows: int, shape: Sequence[int], settings: Augmentation, generator: Generator) -> tuple[Whole, Whole]:
    """Stretches of frames and of bands of windows of the shape (frames, bands, ...), see `draw_stretches`."""
    frames = draw_stretches(windows, shape[0], settings.time_masks, settings.time_mask_frames, generator)
    return frames, draw_stretches(windows, shape[1], settings.band_masks, settings.band_mask_bands, generator)


def mask(spectrograms: Array, settings: Augmentation, generator: Generator) -> Array:
    """SpecAugment's masks (Park et al. 2019), without its time warping; the shape stays."""
    frames, bands = draw_masks(len(spectrograms), spectrograms.shape[1:], settings, generator)
    return hide(hide(spectrograms, 1, frames), 2, bands)


def vary(waveform: Array, noise: Sequence[LoadedClip], settings: Augmentation, generator: Generator) -> Array:
    """Mix in noise and change the level, as the settings say.

    Parameters
    ----------
    waveform : shape (samples,).
    noise : the clips from which a stretch of the same length may be mixed in.
    settings, generator : how much, and the source of chance.
    """
    if noise and generator.random() < settings.noise_share:
        other = noise[int(generator.integers(len(noise)))].waveform
        snr_db = generator.uniform(*settings.noise_snr_db)
        waveform = mix(waveform, cut(other, len(waveform), generator), float(snr_db))
    return change_level(waveform, float(generator.uniform(-settings.gain_db, settings.gain_db)))


def augment_clip(
    clip: LoadedClip,
    noise: Sequence[LoadedClip],
    settings: Augmentation | None,
    generator: Generator,
    rate_hz: int,
) -> Array:
    """A whole clip shifted, with noise mixed in, at another level: shape (samples,) as it was; None changes nothing.

    `rate_hz` is the rate of all the waveforms.
    """
    chosen = settings or NONE
    return vary(rotate(clip.waveform, rate_hz, chosen.shift_s, generator), noise, chosen, generator)


def window_samples(front_end: FrontEnd) -> int:
    """Samples that one window of a front end takes, at its rate."""
    return (front_end.frames - 1) * front_end.hop_samples + front_end.frame_samples


@dataclass(frozen=True)
class Plan:
    """What happens to each window of a batch; every array has one entry a window.

    Attributes
    ----------
    clip : index of the window's clip.
    start : its first sample there; a clip too short for a window is repeated, and rotated by starting within it.
    noise : index of the clip that is mixed in, -1 for none.
    noise_start : first sample there.
    snr_db, gain_db : of the noise, and of the result.
    frame_masks, band_masks : see `draw_stretches`.
    """

    clip: Whole
    start: Whole
    noise: Whole
    noise_start: Whole
    snr_db: NDArray[np.float64]
    gain_db: NDArray[np.float64]
    frame_masks: Whole
    band_masks: Whole

    def part(self, rows: slice) -> Plan:
        """The plan of some of the windows."""
        return Plan(*[getattr(self, field.name)[rows] for field in fields(self)])


def draw_starts(lengths: Whole, samples: int, generator: Generator) -> Whole:
    """First samples of stretches from anywhere in waveforms of these lengths; 0 where they are too short."""
    return np.floor(generator.random(len(lengths)) * np.maximum(lengths - samples + 1, 1)).astype(np.int64)


def draw_plan(
    clip: Whole, lengths: Whole, noise: Whole, settings: Augmentation, front_end: FrontEnd, generator: Generator
) -> Plan:
    """What to do to the windows of a batch.

    Parameters
    ----------
    clip : index of each window's clip, shape (windows,).
    lengths : samples of every clip, shape (clips,).
    noise : indices of the clips that may be mixed in.

    Raises
    ------
    TrainingError : masks wider than the window.
    """
    windows, samples = len(clip), window_samples(front_end)
    longest = round(settings.shift_s * front_end.rate_hz)
    shifts = generator.integers(-longest, longest + 1, windows) % lengths[clip]
    starts = np.where(lengths[clip] < samples, shifts, draw_starts(lengths[clip], samples, generator))
    mixed = (generator.random(windows) < settings.noise_share) & (len(noise) > 0)
    other = noise[generator.integers(len(noise), size=windows)] if len(noise) else np.zeros(windows, np.int64)
    other_starts = draw_starts(lengths[other], samples, generator)
    snr_db = generator.uniform(*settings.noise_snr_db, windows)
    gain_db = generator.uniform(-settings.gain_db, settings.gain_db, windows)
    masks = draw_masks(windows, front_end.shape, settings, generator)
    return Plan(clip, starts, np.where(mixed, other, -1), other_starts, snr_db, gain_db, *masks)


def stretch(waveform: Array, start: int, samples: int) -> Array:
    """`samples` samples of a waveform from `start` on, which goes on at its beginning after its end."""
    if start + samples <= len(waveform):
        return waveform[start : start + samples]
    return waveform[(start + np.arange(samples)) % len(waveform)]


def gather(clips: Sequence[LoadedClip], which: Whole, starts: Whole, samples: int) -> Array:
    """One stretch of each of the clips `which`: shape (windows, samples); reads nothing else of the waveforms."""
    gathered = np.empty((len(which), samples), np.float32)
    for row, clip, start in zip(gathered, which.tolist(), starts.tolist()):
        row[:] = stretch(clips[clip].waveform, start, samples)
    return gathered


def waveforms(plan: Plan, clips: Sequence[LoadedClip], samples: int) -> Array:
    """The augmented windows of a plan, or of a part of one: float32, shape (windows, samples)."""
    found = gather(clips, plan.clip, plan.start, samples)
    mixed = np.flatnonzero(plan.noise >= 0)
    noise = gather(clips, plan.noise[mixed], plan.noise_start[mixed], samples)
    noise *= noise_factor(found[mixed], noise, plan.snr_db[mixed])[:, None]
    found[mixed] += noise
    found *= (10 ** (plan.gain_db / 20)).astype(np.float32)[:, None]
    return found


def spectrograms(windows: Array, front_end: FrontEnd) -> Array:
    """Finished spectrograms without masks: windows (windows, samples) in, float32 (windows, frames, bands) out.

    A few windows at a time, which is faster than all at once, as the spectra stay in the processor's cache.
    """
    found = np.empty((len(windows), *front_end.shape[:2]), np.float32)
    for first in range(0, len(windows), TOGETHER):
        rows = front_end.rows(windows[first : first + TOGETHER].T)
        found[first : first + TOGETHER] = front_end.finish(rows.transpose(1, 0, 2))
    return found
