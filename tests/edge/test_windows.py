from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcawatch.windows import WindowStream, windows_of


@given(
    length=st.integers(1, 400),
    size=st.integers(1, 96),
    hop=st.integers(1, 96),
    borders=st.lists(st.integers(1, 400), max_size=8),
)
def test_every_row_is_scored_and_blocks_do_not_matter(length: int, size: int, hop: int, borders: list[int]) -> None:
    hop = min(hop, size)
    rows = np.arange(length, dtype=np.float32)[:, None]
    starts, windows = windows_of(rows, size, hop)
    assert set(windows.ravel()) == set(range(length))
    assert all(np.diff(starts) > 0) and all(np.diff(starts) <= hop)
    stream = WindowStream(size, hop)
    pieces = np.split(rows, sorted(b for b in borders if b < length))
    pairs = [pair for piece in pieces for pair in stream.push(piece)] + list(stream.finish())
    np.testing.assert_array_equal([start for start, _ in pairs], starts)
    np.testing.assert_array_equal([window for _, window in pairs], windows)


def test_last_window_ends_with_the_audio() -> None:
    starts, _ = windows_of(np.zeros((200, 3), np.float32), 96, 48)
    assert list(starts) == [0, 48, 96, 104]


def test_short_audio_is_repeated() -> None:
    _, windows = windows_of(np.arange(3, dtype=np.float32)[:, None], 8, 4)
    assert list(windows[0, :, 0]) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_empty_stretch_has_no_window() -> None:
    assert list(WindowStream(4, 2).finish()) == []


@pytest.mark.parametrize("hop", [0, 97])
def test_hop_that_would_leave_rows_unscored_is_refused(hop: int) -> None:
    with pytest.raises(ValueError, match="1 to 96"):
        WindowStream(96, hop)
