"""Time and memory of the ranking at the size of ComParE 2019, and of the honest choice among its rows.

    python benchmarks/ranking.py [--draws 200] [--naive 200] [--json FILE]

Eleven members, 2047 combinations. `ranking` is the AUC of all of them on 3,515 clips; the naive loop takes one
combination after the other, averages its members and compares every orca clip's vote with every other clip's, for a
number of combinations spread over all of them, scaled to all. Both must agree. `nested` chooses among them on DRAWS
resamples where each clip is its own recording, and on ten times DRAWS where 476 clips are of 121. Seconds are those of
the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import Figure, finish
from hooked import now

from orcawatch import ranking

MEMBERS = [f"m{k}" for k in range(11)]


def scored(clips: int, orca: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of correlated members, AUC about .9, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(clips) < orca
    shared = generator.standard_normal(clips) + 1.8 * labels
    logits = shared[:, None] + 0.5 * generator.standard_normal((clips, len(MEMBERS)))
    return 1 / (1 + np.exp(-logits)), labels


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and its processor time, s."""
    began_s = time.process_time()
    found = work()
    return found, time.process_time() - began_s


def naive(scores: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> list[float]:
    """AUC of each combination by its definition."""
    aucs = []
    for row in chosen:
        votes = scores[:, row].mean(axis=1)
        orca, other = votes[labels][:, None], votes[~labels]
        aucs.append(float((orca > other).mean() + 0.5 * (orca == other).mean()))
    return aucs


@click.command()
@click.option("--draws", type=click.IntRange(1), default=200, show_default=True, help="Of the nested choice.")
@click.option("--naive", "count", type=click.IntRange(1, 2047), default=200, show_default=True,
              help="Combinations that the naive loop takes.")  # fmt: skip
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(draws: int, count: int, file: Path | None) -> None:
    """Print the table."""
    scores, labels = scored(3515, 800, 1)
    small, small_labels = scored(476, 50, 2)
    groups = [f"g{k // 5}" if k < 50 else f"n{k % 111}" for k in range(476)]
    every = [f"c{k}" for k in range(3515)]
    rows, rank_s = timed(lambda: ranking.rank(MEMBERS, scores, labels))
    chosen = ranking.combinations(len(MEMBERS))
    some = chosen[np.linspace(0, len(chosen) - 1, count).astype(int)]
    slow, naive_s = timed(lambda: naive(scores, labels, some))
    aucs = {row.members: row.auc for row in rows}
    apart = max(abs(aucs[tuple(np.array(MEMBERS)[row])] - auc) for row, auc in zip(some, slow))
    if apart > 1e-9:
        raise click.ClickException(f"the naive loop's AUCs are up to {apart:g} apart from the ranking's")
    _, few_s = timed(lambda: ranking.nested_selection(MEMBERS, small, small_labels, groups, None, 10 * draws, 1))
    _, many_s = timed(lambda: ranking.nested_selection(MEMBERS, scores, labels, every, None, draws, 1))
    found = [
        Figure(f"ranking of {len(rows)} combinations of 3,515 clips", rank_s, "s", most=1),
        Figure("the same by a naive loop, over ours", naive_s / count * len(rows) / rank_s, "x"),
        Figure(f"nested choice, 121 recordings, 476 clips, {10 * draws} draws", few_s, "s"),
        Figure(f"nested choice, 3,515 recordings and clips, {draws} draws", many_s, "s"),
        Figure("ranking, peak memory", now()["peak_mb"], "MB"),
    ]
    finish(found, file)


if __name__ == "__main__":
    main()
