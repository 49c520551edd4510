"""A picture small enough for a thin link."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 20_000
WIDTHS = (720, 540, 400, 300, 200, 120, 60)  # the widest that fits is taken,
QUALITIES = (75, 50, 30)  # and of that the best


def thumbnail(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """A picture as a small JPEG; it is never enlarged.

    Parameters
    ----------
    path : the picture, for instance a snapshot's PNG.
    most_bytes : length of the result, at most.

    Raises
    ------
    OSError : the file cannot be read, is no picture, or does not fit even at its smallest.
    """
    from PIL import Image

    with Image.open(path) as file:
        picture = flattened(file)
    for width in WIDTHS:
        small = picture if picture.width <= width else resized(picture, width)
        for quality in QUALITIES:
            if len(encoded := jpeg(small, quality)) <= most_bytes:
                return encoded
    raise OSError(f"{path} takes {len(encoded)} bytes as its smallest thumbnail; at most {most_bytes} are allowed")


def flattened(picture: Image.Image) -> Image.Image:
    """The picture on white, without transparency, which JPEG does not have."""
    from PIL import Image

    if picture.mode in ("RGB", "L"):
        return picture.copy()
    whole = picture.convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    return Image.alpha_composite(white, whole).convert("RGB")


def resized(picture: Image.Image, width: int) -> Image.Image:
    """The picture at another width."""
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), reducing_gap=3.0)


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as JPEG."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality, optimize=True)
    return encoded.getvalue()
