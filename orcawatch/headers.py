"""What an audio file's header states, against what the file holds: a copy that broke off, a recorder without power."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

UNKNOWN = 2**62  # libsndfile's length of a stream whose header states none is 2^63 - 1 frames
SPARE_S = 0.1  # what lies past the stated end and is no longer than this is no audio
LOOK = 65536  # bytes past the stated end that are looked at
WIDTHS = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1,
}  # fmt: skip
# Where libsndfile's log has the stated size of the audio, and how many bytes of that are no audio.
STATED = {
    "WAV": (re.compile(r"^data : (\d+)\b", re.MULTILINE), 0),
    "WAVEX": (re.compile(r"^data : (\d+)\b", re.MULTILINE), 0),
    "RF64": (re.compile(r"^ *Data size : (\d+)", re.MULTILINE), 0),
    "W64": (re.compile(r"^data : (\d+)\b", re.MULTILINE), 24),
    "AIFF": (re.compile(r"^ SSND : (\d+)", re.MULTILINE), 8),
    "AU": (re.compile(r"^ *Data Size +: (\d+)", re.MULTILINE), 0),
}
CUT_OFF = re.compile(r"^ *data : (\d+) \(should be (\d+)\)", re.MULTILINE)
NO_END = re.compile(r"lacks an end-of-stream|without an End-Of-Stream", re.IGNORECASE)


@dataclass(frozen=True)
class Chunks:
    """How a container lays out its chunks: name, size, content.

    Attributes
    ----------
    first : position of the first chunk.
    digits, order : bytes of a size, and their order.
    audio : name of the chunk that holds the audio.
    offset : bytes between that chunk's head and its first sample.
    even : whether a chunk starts at an even position.
    """

    first: int
    digits: int
    order: Any
    audio: bytes
    offset: int
    even: bool


CHUNKS = {
    "WAV": Chunks(12, 4, "little", b"data", 0, True),
    "WAVEX": Chunks(12, 4, "little", b"data", 0, True),
    "RF64": Chunks(12, 4, "little", b"data", 0, True),
    "AIFF": Chunks(12, 4, "big", b"SSND", 8, True),
    "CAF": Chunks(8, 8, "big", b"data", 4, False),
    "AU": Chunks(0, 4, "big", b".snd", 0, False),  # one head, whose first number is the audio's position
}


def stated_frames(file: Any) -> int | None:
    """Length in an open `soundfile.SoundFile`'s header, frames; None where it states none.

    libsndfile's own figure is what a file that broke off still holds.
    """
    if file.frames >= UNKNOWN:
        return None
    if file.subtype not in WIDTHS or file.format not in STATED:
        return _stated_of_compressed(file)
    pattern, extra = STATED[file.format]
    found = pattern.search(file.extra_info)
    if found is None or is_placeholder(int(found[1])):
        return int(file.frames)
    return max(int(file.frames), (int(found[1]) - extra) // row_bytes(file))


def _stated_of_compressed(file: Any) -> int:
    found = CUT_OFF.search(file.extra_info)
    if found is None or is_placeholder(int(found[1])) or not 0 < int(found[2]) < int(found[1]):
        return int(file.frames)
    return int(file.frames * int(found[1]) / int(found[2]))


def is_placeholder(size: int) -> bool:
    """Whether a size is one that programs write where they do not know it: 0, or just below 2 or 4 GiB."""
    return (size + 4096) % 2**31 <= 4096


def lacks_end(file: Any) -> bool:
    """Whether an Ogg stream breaks off; its header states no length."""
    return NO_END.search(file.extra_info) is not None


def unstated_frames(path: Path, file: Any) -> int:
    """Frames that lie past the end that the header states: the recorder had no time to write how many they are."""
    if file.subtype not in WIDTHS or file.format not in CHUNKS:
        return 0
    with path.open("rb") as raw:
        start = _audio_start(raw, CHUNKS[file.format])
        end = path.stat().st_size if start is None else start + file.frames * row_bytes(file)
        rows = (path.stat().st_size - end) // row_bytes(file)
        return rows if rows > SPARE_S * file.samplerate and _is_audio(raw, end, CHUNKS[file.format]) else 0


def row_bytes(file: Any) -> int:
    """Bytes of one frame of uncompressed audio."""
    return int(file.channels) * WIDTHS[file.subtype]


def _audio_start(raw: BinaryIO, chunks: Chunks) -> int | None:
    """Position of the first sample; None where the chunks do not lead there."""
    head = 4 + chunks.digits
    position = chunks.first
    while True:
        name, size = _chunk(raw, position, chunks)
        if name == b".snd":
            return size
        if name == chunks.audio:
            return position + head + chunks.offset
        if len(name) < 4:
            return None
        position += head + size + (size % 2 if chunks.even else 0)


def _chunk(raw: BinaryIO, position: int, chunks: Chunks) -> tuple[bytes, int]:
    raw.seek(position)
    name = raw.read(4)
    return name, int.from_bytes(raw.read(chunks.digits), chunks.order)


def _is_audio(raw: BinaryIO, end: int, chunks: Chunks) -> bool:
    """Whether what follows is neither another chunk, nor a tag, nor filled with zeros."""
    position = end + (end % 2 if chunks.even else 0)
    name, size = _chunk(raw, position, chunks)
    left = raw.seek(0, os.SEEK_END) - raw.seek(position)
    if name.startswith(b"ID3") or (name.isascii() and name.decode("ascii", "replace").isprintable() and size <= left):
        return False
    return any(raw.read(LOOK))
