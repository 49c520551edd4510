"""Compare what scores.py wrote on several systems: `compare.py FILE ...`. Every Python will do; nothing else is needed.

The largest difference of any confidence (of every window, channel and member) to the first file, as a table. Exit code 1
where windows differ, or a confidence by TOLERANCE or more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOLERANCE = 0.002


def main(files: list[str]) -> int:
    found = [json.loads(Path(file).read_text()) for file in files]
    print("| machine | Python | interpreter | NumPy | confidences | largest difference | mean |")
    print("|---|---|---|---|---|---|---|")
    return max([row(one, found[0]) for one in found], default=0)


def row(one: dict, first: dict) -> int:
    """Print a system's line; 1 where it is not within the tolerance."""
    ours, theirs = confidences(one), confidences(first)
    same = one["windows"] == first["windows"] and len(ours) == len(theirs)
    differences = [abs(our - their) for our, their in zip(ours, theirs)]
    told = f"{max(differences):.1g} | {sum(differences) / len(differences):.1g}" if same else "other windows | "
    system = f"{one['machine']} | {one['python']} | {one['interpreter']} | {one['numpy']}"
    print(f"| {system} | {len(ours)} | {told} |")
    return int(not same or not max(differences) < TOLERANCE)


def confidences(one: dict) -> list[float]:
    """All confidences in one row."""
    return [score for window in one["scores"] for channel in window for score in channel]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
