from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orcawatch.thumbnail import MOST_BYTES, thumbnail

SNAPSHOT = Path(__file__).parents[2] / "docs" / "snapshot.png"


def opened(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    assert picture.format == "JPEG"
    picture.load()
    return picture


def test_a_snapshot_becomes_small_and_keeps_its_shape() -> None:
    small = thumbnail(SNAPSHOT)
    before, after = Image.open(SNAPSHOT), opened(small)
    assert len(small) <= MOST_BYTES < SNAPSHOT.stat().st_size
    assert after.width >= 400 and abs(after.width / after.height - before.width / before.height) < 0.01
    reference = before.convert("RGB").resize(after.size)
    difference = np.abs(np.asarray(after, float) - np.asarray(reference, float))
    assert difference.mean() < 8  # of 255; a white one would differ by 55


@pytest.mark.parametrize("most_bytes", [10_000, 3000, 1500])
def test_any_limit_holds(most_bytes: int) -> None:
    small = thumbnail(SNAPSHOT, most_bytes)
    assert len(small) <= most_bytes and opened(small).width < 720


def test_a_picture_that_is_small_stays_as_large_as_it_is_and_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    after = opened(thumbnail(tmp_path / "clear.png"))
    assert after.size == (40, 30) and after.getpixel((5, 5)) == (255, 255, 255)
    Image.new("L", (40, 30), 77).save(tmp_path / "grey.png")
    assert opened(thumbnail(tmp_path / "grey.png")).mode == "L"


def test_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.png"):
        thumbnail(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match="cannot identify"):
        thumbnail(tmp_path / "text.png")
    with pytest.raises(OSError, match=r"takes \d+ bytes as its smallest thumbnail; at most 300 are allowed"):
        thumbnail(SNAPSHOT, 300)
