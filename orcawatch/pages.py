"""Rows out of the raw pages of an SQLite file and its write-ahead log, where SQLite itself gives up.

The formats are those of https://www.sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

TABLE_LEAF = 0x0D
PAGE_B = 4096  # where the file does not say
HEAD_B = 32  # of a write-ahead log
FRAME_B = 24  # head of each of its frames
MAGIC = {0x377F0682: "<", 0x377F0683: ">"}  # byte order of the checksums

EVERYTHING = (0, 1 << 63)

Row = tuple[int, tuple[Any, ...]]


@dataclass(frozen=True)
class Frame:
    """One page in a write-ahead log.

    Attributes
    ----------
    number : of the page, from 1.
    commits : whether a transaction ends with it.
    salt : the same for all frames since the log was last begun anew.
    page : its bytes.
    chained : whether it follows on the frame before it unharmed.
    """

    number: int
    commits: bool
    salt: bytes
    page: bytes
    chained: bool


@dataclass(frozen=True)
class WriteAhead:
    """What is in a write-ahead log.

    Attributes
    ----------
    whole_head : whether its first 32 bytes are right.
    frames : those of its present run, in order; where the head is damaged, those of the first whole one's run.
    """

    whole_head: bool
    frames: Sequence[Frame]

    @property
    def broken(self) -> bool:
        """Whether SQLite would pass over transactions that were committed.

        One commit behind a damaged frame may be one that a power cut kept from ever being acknowledged; two are not.
        """
        bad = next((index for index, frame in enumerate(self.frames) if not frame.chained), len(self.frames))
        return not self.whole_head or sum(frame.commits and frame.chained for frame in self.frames[bad:]) > 1

    def pages(self) -> Iterator[Frame]:
        """Every unharmed page of a committed transaction, the newest first."""
        last = max((index for index, frame in enumerate(self.frames) if frame.commits and frame.chained), default=-1)
        return (frame for frame in reversed(self.frames[: last + 1]) if frame.chained)


def write_ahead(content: bytes) -> WriteAhead:
    """Take a write-ahead log apart."""
    if len(content) < HEAD_B:
        return WriteAhead(True, [])
    magic, _, page_b = struct.unpack(">3I", content[:12])
    order = MAGIC.get(magic, "<")
    total = checksum(content[:24], (0, 0), order)
    whole = magic in MAGIC and total == struct.unpack(">2I", content[24:32]) and is_size(page_b)
    frames = list(_frames(content, page_b if whole else PAGE_B, order, total))
    salt = content[16:24] if whole else next((frame.salt for frame in frames if frame.chained), b"")
    last = max((index for index, frame in enumerate(frames) if frame.salt == salt), default=-1)
    return WriteAhead(
        whole, [replace(frame, chained=frame.chained and frame.salt == salt) for frame in frames[: last + 1]]
    )


def _frames(content: bytes, page_b: int, order: str, total: tuple[int, int]) -> Iterator[Frame]:
    """Each frame's checksum goes on from that of the frame before, which is stored in that one's head."""
    for at in range(HEAD_B, len(content) - FRAME_B - page_b + 1, FRAME_B + page_b):
        number, size, one, two = struct.unpack(">2I8x2I", content[at : at + FRAME_B])
        page = content[at + FRAME_B : at + FRAME_B + page_b]
        right = checksum(page, checksum(content[at : at + 8], total, order), order) == (one, two)
        yield Frame(number, size > 0, content[at + 8 : at + 16], page, right)
        total = one, two


def checksum(content: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    """SQLite's checksum of a whole number of 8-byte pairs, going on from `start`."""
    one, two = start
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2]):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def is_size(page_b: int) -> bool:
    """Whether SQLite has pages of that size."""
    return 512 <= page_b <= 65536 and page_b & (page_b - 1) == 0


def size_of_pages(path: Path) -> int:
    """Bytes of a page, from the file's head; `PAGE_B` where that is damaged."""
    with path.open("rb") as file:
        head = file.read(18)
    stored = int.from_bytes(head[16:18], "big")
    size = 65536 if stored == 1 else stored
    return size if is_size(size) else PAGE_B


def pages_of(path: Path, page_b: int) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of every whole page of a database that the disk gives."""
    read = page_reader(path, page_b)
    for number in range(1, path.stat().st_size // page_b + 1):
        if page := read(number):
            yield number, page


def page_reader(path: Path, page_b: int) -> Callable[[int], bytes]:
    """A function that reads one page of a database by its number; b"" where there is none, or the disk refuses."""

    def read(number: int) -> bytes:
        with suppress(OSError), path.open("rb") as file:
            file.seek((number - 1) * page_b)
            return file.read(page_b) if number else b""
        return b""

    return read


def rows_of(number: int, page: bytes, read: Callable[[int], bytes]) -> Iterator[Row]:
    """(rowid, values) of each row on a page that is a leaf of a table; what cannot be read is left out.

    Parameters
    ----------
    number : of the page.
    page : its bytes.
    read : gives other pages by number, for rows that do not fit on one.
    """
    head = 100 if number == 1 else 0
    if page[head] != TABLE_LEAF:
        return
    cells = int.from_bytes(page[head + 3 : head + 5], "big")
    for index in range(min(cells, len(page) // 4)):
        at = int.from_bytes(page[head + 8 + 2 * index : head + 10 + 2 * index], "big")
        try:
            yield _row(page, at, read)
        except (ValueError, IndexError, struct.error):
            continue


def span(number: int, page: bytes) -> tuple[int, int]:
    """Rowids of the first and the last row on a page that is a leaf of a table: (1, 0) where it is none.

    Where the page is damaged, everything may be on it.
    """
    head = 100 if number == 1 else 0
    cells = int.from_bytes(page[head + 3 : head + 5], "big")
    if page[head] != TABLE_LEAF or not 0 < cells <= len(page) // 4:
        return 1, 0
    try:
        first, last = _rowid(page, head + 8), _rowid(page, head + 6 + 2 * cells)
    except IndexError:
        return EVERYTHING
    return (first, last) if first <= last else EVERYTHING


def _rowid(page: bytes, pointer: int) -> int:
    _, at = varint(page, int.from_bytes(page[pointer : pointer + 2], "big"))
    return varint(page, at)[0]


def _row(page: bytes, at: int, read: Callable[[int], bytes]) -> Row:
    length, at = varint(page, at)
    rowid, at = varint(page, at)
    here = local_bytes(length, len(page))
    payload = page[at : at + here]
    if here < length:
        payload += overflow(int.from_bytes(page[at + here : at + here + 4], "big"), length - here, read)
    if len(payload) != length:
        raise ValueError("the row goes beyond what is there")
    return rowid, record(payload)


def local_bytes(length: int, page_b: int) -> int:
    """How much of a row of some length lies on its own page."""
    most = page_b - 35
    if length <= most:
        return length
    least = (page_b - 12) * 32 // 255 - 23
    here = least + (length - least) % (page_b - 4)
    return here if here <= most else least


def overflow(number: int, length: int, read: Callable[[int], bytes]) -> bytes:
    """The rest of a row, from the pages that it is spread over."""
    content = b""
    while number and len(content) < length:
        page = read(number)
        if len(page) < 5:
            raise ValueError("a page of the row is missing")
        number, content = int.from_bytes(page[:4], "big"), content + page[4:]
    return content[:length]


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for index in range(8):
        byte = content[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    value = value << 8 | content[at + 8]
    return value - (1 << 64) if value >> 63 else value, at + 9


def record(payload: bytes) -> tuple[Any, ...]:
    """The values of a row."""
    head, at = varint(payload, 0)
    kinds = []
    while at < head:
        kind, at = varint(payload, at)
        kinds.append(kind)
    values = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("the row's lengths do not fit")
    return tuple(values)


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return {0: None, 8: 0, 9: 1}[kind], at
    if kind == 7:
        return struct.unpack(">d", payload[at : at + 8])[0], at + 8
    if kind < 7:
        end = at + (1, 2, 3, 4, 6, 8)[kind - 1]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind < 12:
        raise ValueError("no such kind of value")
    end = at + (kind - 12) // 2
    return (payload[at:end].decode("utf-8") if kind % 2 else payload[at:end]), end
