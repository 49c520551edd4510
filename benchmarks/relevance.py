"""Time of the relevance of a whole set: this project's pass against iNNvestigate's.

    python benchmarks/relevance.py RUN [--windows N] [--network-windows 8] [--json FILE]

In the training environment; RUN is the folder of a run. The heads take every devel window at once, the networks a few.
Our times leave TensorFlow's tracing out; iNNvestigate's are those of its analysis (which builds its graph first), and
with the start of its process. All are by the clock, one pass after the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import click
import numpy as np
import tensorflow as tf
from figures import Figure, finish

from orcawatch.errors import TrainingError
from orcawatch.relevance import head_relevance
from orcawatch.training import heads, storage
from orcawatch.training.parity import batches, compiled_pass, load, relative_difference
from orcawatch.training.relevance_stage import Relevance, analyse, head_model, of_network


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and its seconds."""
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def compared(name: str, own: Any, own_s: float, theirs: Callable[[], Relevance]) -> Iterator[Figure]:
    """Our time and the ratio; the difference is relative to the largest relevance."""
    yield ours(name, own, own_s)
    try:
        found, whole_s = timed(theirs)
    except TrainingError as fault:
        yield Figure(f"{name}: iNNvestigate's time over ours", None, note=str(fault).splitlines()[-1][:100])
        return
    told = f"{found.seconds:.2f} s, with its start {whole_s:.2f} s, {found.peak_mb:.0f} MB; largest difference "
    told += f"{relative_difference(own, found.values):.1e}"
    yield Figure(f"{name}: iNNvestigate's time over ours", found.seconds / own_s, "x", note=told)


def ours(name: str, own: Any, own_s: float) -> Figure:
    """Our time a window."""
    return Figure(name, 1000 * own_s / len(own), "ms", note=f"a window, of {len(own)}")


def figures(
    entry: dict[str, Any], result: Path, head: heads.Head, windows: int, network_windows: int
) -> Iterator[Figure]:
    """Those of one backbone: its head on `windows`, the whole network on `network_windows`."""
    _, backbone, batch = load(entry, result, windows)
    features = np.concatenate([backbone.predict_on_batch(some) for some in batches(batch)])
    all_heads = tf.function(lambda x: head_relevance(x, head, "highest"), autograph=False)
    all_heads(features)  # traces
    of_features, seconds = timed(lambda: all_heads(features).numpy())
    yield from compared(f"{entry['name']}, head", of_features, seconds, lambda: analyse(head_model(head), features))
    chosen = np.linspace(0, len(batch) - 1, min(network_windows, len(batch))).astype(int)
    spectrograms, start = batch[chosen], of_features[chosen]
    for rules in ("gradient", "conserve"):
        compiled = compiled_pass(backbone, rules)
        pairs = list(zip(batches(spectrograms), batches(start)))
        compiled(*pairs[0])  # traces
        own, seconds = timed(lambda: np.concatenate([compiled(*pair).numpy() for pair in pairs]))  # noqa: B023
        if rules == "gradient":
            theirs = partial(of_network, backbone, head, spectrograms)
            yield from compared(f"{entry['name']}, network, iNNvestigate's rules", own, seconds, theirs)
        else:  # iNNvestigate has no such rules
            yield ours(f"{entry['name']}, network, our rules", own, seconds)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--windows", type=click.IntRange(1), default=10**9, help="Devel windows of the heads. [default: all]")
@click.option("--network-windows", type=click.IntRange(1), default=8, show_default=True, help="Through the networks.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(run: Path, windows: int, network_windows: int, file: Path | None) -> None:
    """Print the table."""
    result = run if (run / "selection.json").is_file() else run / "result"
    selection, trained = storage.load_json(result / "selection.json"), heads.load_heads(result / "heads.npz")
    found = [
        figure
        for entry in selection["backbones"]
        for figure in figures(entry, result, trained[entry["name"]], windows, network_windows)
    ]
    finish(found, file)


if __name__ == "__main__":
    main()
