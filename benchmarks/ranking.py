"""Time and memory of the ranking at the size of ComParE 2019, and of the honest choice among its rows.

    python benchmarks/ranking.py [DRAWS]

Eleven members, 2047 combinations. `ranking` is the AUC of all of them on 3,515 clips; `nested` chooses among them on
DRAWS (200) resamples where each clip is its own recording, and on ten times DRAWS where 476 clips are of 121.
Seconds of the wall and of the processor differ where the machine is shared.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from orcawatch import ranking

MEMBERS = [f"m{k}" for k in range(11)]


def scored(clips: int, orca: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of correlated members, AUC about .9, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(clips) < orca
    shared = generator.standard_normal(clips) + 1.8 * labels
    logits = shared[:, None] + 0.5 * generator.standard_normal((clips, len(MEMBERS)))
    return 1 / (1 + np.exp(-logits)), labels


def timed(name: str, work: Callable[[], Any]) -> None:
    """Print one row of the table."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {name} | {wall:.2f} | {processor:.2f} | {peak_mb:.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    scores, labels = scored(3515, 800, 1)
    small, small_labels = scored(476, 50, 2)
    groups = [f"g{k // 5}" if k < 50 else f"n{k % 111}" for k in range(476)]
    every = [f"c{k}" for k in range(3515)]
    print("| what | s, wall | s, processor | peak MB |\n|---|---|---|---|")
    timed("ranking: 2047 combinations of 3,515 clips", lambda: ranking.rank(MEMBERS, scores, labels))
    timed(
        f"nested: 121 recordings, 476 clips, {10 * draws} draws",
        lambda: ranking.nested_selection(MEMBERS, small, small_labels, groups, None, 10 * draws, 1),
    )
    timed(
        f"nested: 3,515 recordings and clips, {draws} draws",
        lambda: ranking.nested_selection(MEMBERS, scores, labels, every, None, draws, 1),
    )


if __name__ == "__main__":
    main()
