"""A teacher for small data: a linear classifier on descriptors of a spectrogram, which a network learns to imitate.

A network that is trained from scratch on a few hundred calls learns the recorders. A strongly regularised linear
classifier on some nine hundred statistics of the same windows does not, and it can be asked about any augmented
window, so that the network sees endlessly many windows with a graded answer (distillation: Hinton et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError

Array = NDArray[np.float32]
Array64 = NDArray[np.float64]

CEPSTRA = 24
LAGS = 24
NEWTON_STEPS = 30


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is fitted.

    Attributes
    ----------
    strength : of its regularisation, see `fit_logistic`.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse a strength that fits nothing."""
        if self.strength <= 0:
            raise TrainingError(f"strength must be above 0, not {self.strength}")


def ranked(values: Array, shares: tuple[float, ...]) -> list[Array]:
    """Percentiles over the frames, without interpolation: of (windows, frames, n), one (windows, n) a share."""
    ordered = np.sort(values, axis=1)
    return [ordered[:, round(share * (values.shape[1] - 1))] for share in shares]


def cosines(bands: int) -> Array:
    """Orthonormal cosine transform (type 2) of the bands to the first cepstra: shape (bands, cepstra)."""
    order, place = np.arange(min(CEPSTRA, bands)), np.arange(bands)[:, None]
    table = np.sqrt(2 / bands) * np.cos(np.pi * order * (2 * place + 1) / (2 * bands))
    table[:, 0] /= np.sqrt(2)
    return np.asarray(table, np.float32)


def autocorrelation(spectrograms: Array) -> Array:
    """Autocorrelation of each frame along frequency at lags of 1 band and more, divided by that at 0.

    Harmonics at even distances show here. Shape (windows, frames, bands) in, (windows, frames, lags) out; a flat frame
    gives zeros.
    """
    centred = spectrograms - spectrograms.mean(axis=2, keepdims=True)
    size = centred.shape[2]
    power = np.abs(np.fft.rfft(centred, 2 * size, axis=2)) ** 2
    lags = np.fft.irfft(power, axis=2)[:, :, 1 : min(LAGS, size)]
    energy = np.square(centred).sum(axis=2, keepdims=True) + 0.1
    return np.asarray(lags / energy, np.float32)


def describe(spectrograms: Array) -> Array:
    """Statistics of finished spectrograms over their frames.

    Of each band: mean, spread, percentiles, and how much it changes from frame to frame and to the next band. Of the
    cepstra of the frames and of their autocorrelation along frequency: mean, spread, percentiles.

    Parameters
    ----------
    spectrograms : shape (windows, frames, bands).

    Returns
    -------
    float32, shape (windows, descriptors): 915 for 64 bands.
    """
    return np.concatenate(
        [*_levels(spectrograms), *_cepstra(spectrograms @ cosines(spectrograms.shape[2])), *_harmonics(spectrograms)],
        axis=1,
    )


def _levels(level: Array) -> list[Array]:
    step, leap, slope = np.diff(level, axis=1), level[:, 4:] - level[:, :-4], np.diff(level, axis=2)
    percentiles = ranked(level, (0.05, 0.25, 0.5, 0.75, 0.95))
    changes = [step.std(1), np.abs(leap).mean(1), slope.std(1), np.abs(slope).mean(1)]
    return [level.mean(1), level.std(1), *percentiles, *changes]


def _cepstra(cepstra: Array) -> list[Array]:
    percentiles = ranked(cepstra, (0.1, 0.5, 0.9))
    return [cepstra.mean(1), cepstra.std(1), *percentiles, np.diff(cepstra, axis=1).std(1)]


def _harmonics(spectrograms: Array) -> list[Array]:
    lags = autocorrelation(spectrograms)
    return [lags.mean(1), lags.std(1), *ranked(lags, (0.9,))]


@dataclass(frozen=True)
class Teacher:
    """A logistic regression on standardised descriptors.

    Attributes
    ----------
    mean, spread : of each descriptor over the training windows, shape (descriptors,).
    weights : shape (descriptors,).
    bias : a number.
    """

    mean: Array
    spread: Array
    weights: Array
    bias: float

    def confidence(self, spectrograms: Array) -> Array:
        """Confidence of orca of finished spectrograms (windows, frames, bands): float32, shape (windows,), 0 to 1."""
        standardised = (describe(spectrograms) - self.mean) / self.spread
        logits = standardised @ self.weights + np.float32(self.bias)
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))), np.float32)


def fit_logistic(inputs: Array, labels: NDArray[np.bool_], weights: Array, strength: float) -> tuple[Array64, float]:
    """Logistic regression with a squared penalty, by Newton's method.

    Minimises strength * sum(weights * cross-entropy) + |w|^2 / 2 over w and the bias, which has no penalty.

    Parameters
    ----------
    inputs : shape (rows, columns).
    labels, weights : shape (rows,).
    strength : the less, the more regular.

    Returns
    -------
    w, shape (columns,), and the bias.
    """
    x = np.concatenate([inputs.astype(np.float64), np.ones((len(inputs), 1))], axis=1)
    penalty = np.append(np.ones(inputs.shape[1]), 1e-9)
    found = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -80, 80)))
        gradient = strength * x.T @ (weights * (p - labels)) + penalty * found
        curvature = (x.T * (strength * weights * p * (1 - p))) @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        found = found - step
        if np.abs(step).max() < 1e-6:
            break
    return found[:-1], float(found[-1])


def fit_teacher(spectrograms: Array, labels: NDArray[np.bool_], strength: float) -> Teacher:
    """The teacher of finished spectrograms, shape (windows, frames, bands); else as `fit_descriptors`."""
    found = np.concatenate([describe(spectrograms[i : i + 256]) for i in range(0, len(spectrograms), 256)])
    return fit_descriptors(found, labels, strength)


def fit_descriptors(described: Array, labels: NDArray[np.bool_], strength: float) -> Teacher:
    """The teacher of windows of which `describe` has told, both classes of equal weight.

    Parameters
    ----------
    described : shape (windows, descriptors).
    labels : True where orca, shape (windows,).
    strength : see `fit_logistic`.

    Raises
    ------
    TrainingError : one class only.
    """
    numbers = np.bincount(labels.astype(int), minlength=2)
    if not numbers.all():
        raise TrainingError(f"a teacher needs orca and noise, but all {len(labels)} windows are of one class")
    mean, spread = described.mean(axis=0), described.std(axis=0) + np.float32(1e-3)
    weights = (len(labels) / (2 * numbers))[labels.astype(int)]
    w, bias = fit_logistic((described - mean) / spread, labels, weights, strength)
    return Teacher(mean, spread, w.astype(np.float32), bias)
