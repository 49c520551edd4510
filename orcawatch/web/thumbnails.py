"""Small pictures for the list: the spectrogram of a snapshot, without its axes."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

WIDTH, HEIGHT = 236, 198  # of the place in the list, twice for fine screens
QUALITY = 60
KEPT = 500  # pictures of some 6 kB
BOX = (0.113, 0.873)  # left and right of the spectrogram, as shares of a snapshot's width
BOX_ROWS = (0.140, 0.455)  # its top and bottom, as shares of the width, too: below are as many maps as backbones


@lru_cache(maxsize=KEPT)
def small(path: Path, modified_ns: int) -> bytes:
    """A JPEG of the first panel of a snapshot; raises OSError where it cannot be read.

    Parameters
    ----------
    path : the PNG.
    modified_ns : when it was last changed, so that another picture of the same name is made anew.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            width, height = file.size
            top, bottom = (min(height, round(share * width)) for share in BOX_ROWS)
            panel = file.crop((round(BOX[0] * width), top, round(BOX[1] * width), max(bottom, top + 1)))
    except (SyntaxError, ValueError, Image.DecompressionBombError) as fault:  # what Pillow says of damaged files
        raise OSError(f"{path} is no picture: {fault}") from fault
    encoded = io.BytesIO()
    panel.convert("RGB").resize((WIDTH, HEIGHT)).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()
