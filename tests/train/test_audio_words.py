"""Bags of audio words against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.training import audio_words
from orcawatch.training.audio_words import AudioWordsSettings

ENDS = np.array([7, 8, 30, 50])


@pytest.fixture()
def frames() -> Any:
    """Frames of four clips, one column of which never changes."""
    found = np.random.default_rng(4).standard_normal((50, 5)) * [1, 10, 0.1, 3, 0] + [0, 5, 0, 1, 2]
    return found.astype(np.float32)


def counts_by_loop(frames: Any, book: audio_words.Codebook, size: int, assignments: int) -> list[int]:
    """Every frame, every word, one at a time."""
    counts = [0] * size
    for frame in frames:
        seen = [(value - mean) / spread for value, mean, spread in zip(frame, book.mean, book.spread)]
        distances = [sum((a - b) ** 2 for a, b in zip(seen, word)) for word in book.words[:size]]
        for word in sorted(range(size), key=lambda k: distances[k])[:assignments]:
            counts[word] += 1
    return counts


@pytest.mark.parametrize("assignments", [1, 3])
def test_counts_against_a_plain_loop(frames: Any, assignments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    book = audio_words.learn(frames, audio_words.spans_of(ENDS)[:3], 12, seed=1)
    monkeypatch.setattr(audio_words, "BLOCK", 8)
    found = audio_words.counts(frames, book, (4, 12), assignments)
    for count, size in zip(found, (4, 12)):
        assert count.tolist() == counts_by_loop(frames, book, size, assignments)
        assert count.sum() == assignments * len(frames)


def test_words_are_standardised_training_frames(frames: Any) -> None:
    spans = [audio_words.spans_of(ENDS)[k] for k in (0, 2)]
    book = audio_words.learn(frames, spans, 10, seed=2)
    taught = np.concatenate([frames[span] for span in spans]).astype(np.float64)
    assert book.mean == pytest.approx(taught.mean(axis=0), rel=1e-6)
    assert book.spread == pytest.approx(np.where(taught.std(axis=0) > 0, taught.std(axis=0), 1), rel=1e-6)
    standardised = (taught - book.mean) / book.spread
    for word in book.words:
        assert np.abs(standardised - word).max(axis=1).min() < 1e-6


def test_rows_are_drawn_once_and_by_seed() -> None:
    spans = [slice(3, 10), slice(20, 21), slice(40, 52)]
    allowed = [row for span in spans for row in range(span.start, span.stop)]
    assert sorted(audio_words.draw(spans, len(allowed), 0)) == allowed
    few = audio_words.draw(spans, 5, 7)
    assert len(set(few)) == 5 and set(few) <= set(allowed)
    assert np.array_equal(few, audio_words.draw(spans, 5, 7))
    assert not np.array_equal(few, audio_words.draw(spans, 5, 8))


def test_too_few_frames_for_the_codebook(frames: Any) -> None:
    with pytest.raises(TrainingError, match=r"codebook of 8 words.*only 7"):
        audio_words.learn(frames, audio_words.spans_of(ENDS)[:1], 8, seed=0)


def test_a_bag_is_a_logarithm() -> None:
    assert audio_words.bag(np.array([0, 9, 99]), 1.0) == pytest.approx([0, 1, 2])
    assert audio_words.bag(np.array([0, 18, 198]), 2.0) == pytest.approx([0, 1, 2])


def test_spans_follow_the_ends() -> None:
    assert audio_words.spans_of(ENDS) == [slice(0, 7), slice(7, 8), slice(8, 30), slice(30, 50)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"sizes": (8, 4)}, "sizes must be 1 or more and ascending"),
        ({"sizes": ()}, "sizes must be 1 or more and ascending"),
        ({"sizes": (4, 8), "assignments": 5}, "assignments must be 1 to 4"),
        ({"size_chosen_on": "test"}, "size_chosen_on must be one of"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        AudioWordsSettings(**wrong)
