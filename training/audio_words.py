"""Bags of audio words: how often a clip's low-level descriptors come near each word of a codebook.

As the openXBOW baseline of ComParE 2019 (Schmitt and Schuller 2017; Schuller et al. 2019): descriptors standardised
over the training frames, one codebook for the 65 descriptors and one for their 65 deltas, words drawn at random from
the training frames, each frame counted for its nearest words, lg(count + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from .linear import CHOSEN_ON, SvmSettings, check_choice

Array = NDArray[np.float32]
Array64 = NDArray[np.float64]
Indices = NDArray[np.int64]

BLOCK = 2048  # frames at a time


@dataclass(frozen=True)
class AudioWordsSettings:
    """How bags are made; the challenge's values are the defaults.

    Attributes
    ----------
    sizes : words of a codebook, ascending; there are two codebooks of each size, and the smaller ones are the first
        words of the largest.
    assignments : nearest words that a frame counts for, in each codebook.
    per_second : count per second of clip; the challenge counts per clip, so that a bag also tells how long its clip is.
    size_chosen_on : the split on which the size with the best AUC is taken. `devel`, as in the challenge, makes the AUC
        on devel optimistic; `train` uses training recordings left out in turn.
    svm : of the linear machine.
    """

    sizes: tuple[int, ...] = (125, 250, 500, 1000, 2000)
    assignments: int = 10
    per_second: bool = False
    size_chosen_on: str = "devel"
    svm: SvmSettings = field(default_factory=SvmSettings)

    def __post_init__(self) -> None:
        """Refuse bags that cannot be made."""
        check_choice("size_chosen_on", self.size_chosen_on, CHOSEN_ON)
        if not self.sizes or sorted(set(self.sizes)) != list(self.sizes) or self.sizes[0] < 1:
            raise TrainingError(f"sizes must be 1 or more and ascending, not {list(self.sizes)}")
        if not 1 <= self.assignments <= self.sizes[0]:
            raise TrainingError(f"assignments must be 1 to {self.sizes[0]} (the smallest size), not {self.assignments}")


@dataclass(frozen=True)
class Codebook:
    """Words and the scale of the frames that are compared with them.

    Attributes
    ----------
    mean, spread : of the training frames, shape (columns,).
    words : standardised, shape (words, columns).
    """

    mean: Array64
    spread: Array64
    words: Array

    def standardised(self, frames: Array) -> Array:
        """Frames (frames, columns) as the words see them."""
        return np.asarray((frames - self.mean) / self.spread, np.float32)


def spans_of(ends: Indices) -> list[slice]:
    """Rows of each clip in a file that holds all of them, from where each ends."""
    return [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends)]


def moments(frames: Array, spans: Sequence[slice]) -> tuple[Array64, Array64]:
    """Mean and spread of the chosen frames, one clip in memory at a time: two of shape (columns,); no spread is 1."""
    number = sum(span.stop - span.start for span in spans)
    mean = sum((np.sum(frames[span], axis=0, dtype=np.float64) for span in spans), np.zeros(frames.shape[1])) / number
    squares = (np.square(frames[span] - mean).sum(axis=0) for span in spans)
    spread = np.sqrt(sum(squares, np.zeros(frames.shape[1])) / number)
    return mean, np.where(spread > 0, spread, 1.0)


def draw(spans: Sequence[slice], number: int, seed: int) -> Indices:
    """Rows drawn at random from the spans, none twice, in random order: shape (number,).

    Raises
    ------
    TrainingError : there are fewer rows.
    """
    lengths = np.array([span.stop - span.start for span in spans])
    if lengths.sum() < number:
        raise TrainingError(
            f"a codebook of {number} words is drawn from the training frames, but there are only {lengths.sum()}: name "
            "smaller sizes for the audio words"
        )
    drawn = np.random.default_rng(seed).choice(lengths.sum(), number, replace=False)
    before = np.cumsum(lengths) - lengths
    which = np.searchsorted(before + lengths, drawn, side="right")
    return np.asarray(np.array([span.start for span in spans])[which] + drawn - before[which])


def learn(frames: Array, spans: Sequence[slice], number: int, seed: int) -> Codebook:
    """A codebook of words drawn from the frames (frames, columns) of the training clips' spans."""
    mean, spread = moments(frames, spans)
    drawn = draw(spans, number, seed)
    book = Codebook(mean, spread, np.zeros((0, frames.shape[1]), np.float32))
    return Codebook(mean, spread, book.standardised(frames[np.sort(drawn)][np.argsort(np.argsort(drawn))]))


def counts(frames: Array, book: Codebook, sizes: Sequence[int], assignments: int) -> list[Indices]:
    """How many frames (frames, columns) count for each word, of the first `size` words for each size: shapes (size,).

    A frame counts for its `assignments` nearest words (Euclidean). The distances of a block of frames are one matrix
    product, |f - w|^2 = |f|^2 - 2 f w + |w|^2, whose first term is the same for all words.
    """
    found = [np.zeros(size, np.int64) for size in sizes]
    norms = np.square(book.words).sum(axis=1)
    for start in range(0, len(frames), BLOCK):
        block = book.standardised(frames[start : start + BLOCK])
        distances = norms - 2 * (block @ book.words.T)
        for count in found:
            size = len(count)
            nearest = np.argpartition(distances[:, :size], assignments - 1, axis=1)[:, :assignments]
            count += np.bincount(nearest.ravel(), minlength=size)
    return found


def bag(count: Indices, seconds: float) -> Array:
    """A bag, lg(count / seconds + 1), of counts (words,); `seconds` 1 for counts per clip."""
    return np.asarray(np.log10(count / seconds + 1), np.float32)
