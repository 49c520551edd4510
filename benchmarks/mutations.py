"""How a seed is changed into malformed input, for benchmarks/fuzz.py: not a benchmark itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 1 << 17  # bytes of an input
MOST_EDITS = 8
HEADS = ((64, 512, LONGEST), (LONGEST,))  # how far from the start changes lie: heads matter more than what follows

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**63, 2**64, 10**30, -0.0, 0.1, 1e-320, 1e308, float("nan"),
    float("inf"), "", " ", "\0", "a" * 300, "..", "/", "/dev/zero", "../x", "\ud800", "\N{SNOWMAN}", "1e3", "-", "%",
    [], [[]], [None], [0, 0], ["", ""], {}, {"": None}, {"a": {}}, [1] * 1000, [{}], "2026-02-30", "00:00", "1:2:3",
    "nan",
)  # fmt: skip
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def mutated(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with up to `MOST_EDITS` changes."""
    content = bytearray(draw.choice(seeds))
    heads = draw.choice(HEADS)
    for _ in range(draw.randint(1, MOST_EDITS)):
        at = min(draw.randrange(len(content) + 1), draw.choice(heads))
        draw.choice(CHANGES)(draw, content, at, seeds)
    return bytes(content[:LONGEST])


def flip(draw: random.Random, content: bytearray, at: int, seeds: Sequence[bytes]) -> None:
    """Change a bit."""
    if at < len(content):
        content[at] ^= 1 << draw.randrange(8)


def overwrite(draw: random.Random, content: bytearray, at: int, seeds: Sequence[bytes]) -> None:
    """Put a number that is at a border of something."""
    size = draw.choice((1, 2, 4, 8))
    number = draw.choice(NUMBERS) % 2 ** (8 * size)
    content[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))  # type: ignore[arg-type]


def remove(draw: random.Random, content: bytearray, at: int, seeds: Sequence[bytes]) -> None:
    """Take some bytes out."""
    del content[at : at + draw.choice((1, 4, 64, len(content)))]


def repeat(draw: random.Random, content: bytearray, at: int, seeds: Sequence[bytes]) -> None:
    """Say something again."""
    size = draw.choice((1, 4, 64))
    content[at:at] = content[at : at + size] * draw.choice((1, 2, 100))


def splice(draw: random.Random, content: bytearray, at: int, seeds: Sequence[bytes]) -> None:
    """Go on with a piece of another seed."""
    other = draw.choice(seeds)
    first = draw.randrange(len(other) + 1)
    content[at : at + draw.choice((0, 64, len(content)))] = other[first : first + draw.choice((8, 64, len(other)))]


CHANGES = (flip, flip, overwrite, overwrite, remove, repeat, splice)


def edited(template: Any, content: bytes) -> Any:
    """A tree of lists and mappings with some places changed: three bytes tell a place and what comes there."""
    tree = json.loads(json.dumps(template))
    for first in range(0, min(len(content), 3 * MOST_EDITS), 3):
        place, what, how = content[first : first + 3].ljust(3, b"\0")
        spots = list(places(tree))
        if not spots:
            break
        holder, key = spots[(place + 256 * (how >> 3)) % len(spots)]
        change(holder, key, how % 8, VALUES[what % len(VALUES)], spots[what % len(spots)])
    return tree


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or mapping, index or key) of a tree."""
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def change(holder: Any, key: Any, how: int, value: Any, other: tuple[Any, Any]) -> None:
    """Put a value in, put in a copy of another part, take a part out, rename it, or say it twice."""
    copied = json.loads(json.dumps(other[0][other[1]]))
    if how < 4:
        holder[key] = json.loads(json.dumps(value))
    elif how == 4:
        holder[key] = copied
    elif how == 5:
        del holder[key]
    elif isinstance(holder, dict):
        holder[str(value)] = holder[key] if how == 6 else copied
    else:
        holder.append(holder[key])
