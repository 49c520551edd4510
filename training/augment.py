"""Augmentation: more training material from few recordings, by pure functions of arrays and a random generator.

Waveforms are float32, shape (samples,), at the front end's rate; spectrograms are finished log-mel windows,
float32, shape (windows, frames, bands). Nothing here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..spectrogram import FrontEnd

if TYPE_CHECKING:
    from .dataset import LoadedClip

Array = NDArray[np.float32]
Generator = np.random.Generator


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


def mix(waveform: Array, noise: Array, snr_db: float) -> Array:
    """Waveform plus noise, the noise scaled so that their powers over the whole length differ by `snr_db`.

    Where either is silent there is no such ratio, and the waveform comes back as it is.
    """
    powers = [float(np.mean(np.square(part, dtype=np.float64))) for part in (waveform, noise)]
    if not all(powers):
        return waveform
    factor = np.sqrt(powers[0] / powers[1] * 10 ** (-snr_db / 10))
    return np.asarray(waveform + noise * np.float32(factor), np.float32)


def rotate(waveform: Array, rate_hz: int, shift_s: float, generator: Generator) -> Array:
    """The waveform shifted by up to `shift_s` seconds either way; what leaves at one end comes in at the other."""
    longest = round(shift_s * rate_hz)
    return np.roll(waveform, int(generator.integers(-longest, longest + 1)))


def cut(waveform: Array, samples: int, generator: Generator) -> Array:
    """`samples` samples from anywhere in the waveform, which is repeated from its start where it is too short."""
    start = int(generator.integers(max(0, len(waveform) - samples) + 1))
    return waveform[(start + np.arange(samples)) % len(waveform)]


def mask_stretches(spectrograms: Array, axis: int, number: int, longest: int, generator: Generator) -> Array:
    """Replace up to `longest` neighbouring frames (axis 1) or bands (axis 2) by each window's mean, `number` times."""
    size = spectrograms.shape[axis]
    if longest > size:
        raise TrainingError(f"a mask must be at most {size} wide (the window's size), not {longest}")
    masked = spectrograms.copy()
    means = spectrograms.mean(axis=(1, 2))
    for window, mean in zip(np.moveaxis(masked, axis, 1), means):
        for _ in range(number):
            length = int(generator.integers(longest + 1))
            start = int(generator.integers(size - length + 1))
            window[start : start + length] = mean
    return masked


def mask(spectrograms: Array, settings: Augmentation, generator: Generator) -> Array:
    """SpecAugment's masks (Park et al. 2019), without its time warping; the shape stays."""
    masked = mask_stretches(spectrograms, 1, settings.time_masks, settings.time_mask_frames, generator)
    return mask_stretches(masked, 2, settings.band_masks, settings.band_mask_bands, generator)


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
    rate_hz: int = 16000,
) -> Array:
    """A whole clip shifted, with noise mixed in, at another level: shape (samples,) as it was; None changes nothing."""
    chosen = settings or NONE
    return vary(rotate(clip.waveform, rate_hz, chosen.shift_s, generator), noise, chosen, generator)


def window_samples(front_end: FrontEnd) -> int:
    """Samples that one window of a front end takes, at its rate."""
    return (front_end.frames - 1) * front_end.hop_samples + front_end.frame_samples


def draw_window(clip: LoadedClip, front_end: FrontEnd, settings: Augmentation, generator: Generator) -> Array:
    """One window's audio from anywhere in a clip, shape (samples,); too short a clip is rotated, then repeated."""
    size, waveform = window_samples(front_end), clip.waveform
    if len(waveform) < size:
        waveform = rotate(waveform, front_end.rate_hz, settings.shift_s, generator)
    return cut(waveform, size, generator)


def training_batch(
    clips: Sequence[LoadedClip],
    noise: Sequence[LoadedClip],
    settings: Augmentation,
    front_end: FrontEnd,
    generator: Generator,
) -> Array:
    """One augmented window of each clip.

    Parameters
    ----------
    clips : whose windows; the same clip may come more than once.
    noise : the clips that may be mixed in.

    Returns
    -------
    Finished spectrograms without masks (see `mask`): float32, shape (clips, frames, bands).
    """
    windows = [vary(draw_window(clip, front_end, settings, generator), noise, settings, generator) for clip in clips]
    rows = front_end.rows(np.stack(windows, axis=1))
    return np.asarray(front_end.finish(rows.transpose(1, 0, 2)), np.float32)
