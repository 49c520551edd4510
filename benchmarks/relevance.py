"""Time of the relevance of a whole set: this project's pass against iNNvestigate's.

`python benchmarks/relevance.py RUN [--windows N] [--network-windows N]`, in the training environment; RUN is the folder
of a run. The heads take every devel window at once, the networks a few. Our times leave TensorFlow's tracing out;
iNNvestigate's are those of its analysis (which builds its graph first), and with the start of its process.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from orcawatch.errors import TrainingError
from orcawatch.relevance import head_relevance
from orcawatch.training import heads, storage
from orcawatch.training.parity import batches, compiled_pass, load, relative_difference
from orcawatch.training.relevance_stage import Relevance, analyse, head_model, of_network

COLUMNS = ("relevance of", "windows", "ours s", "iNNvestigate s", "with its start s", "MB", "largest difference")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and its seconds."""
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def row(name: str, own: Any, own_s: float, theirs: Callable[[], Relevance] | None) -> list[str]:
    """One line of the table; the difference is relative to the largest relevance."""
    cells = [name, str(len(own)), f"{own_s:.2f}"]
    if theirs is None:
        return [*cells, "has no such rules", "-", "-", "-"]
    try:
        found, whole_s = timed(theirs)
    except TrainingError as fault:
        return [*cells, str(fault).splitlines()[-1][:100], "-", "-", "-"]
    difference = f"{relative_difference(own, found.values):.1e}"
    return [*cells, f"{found.seconds:.2f}", f"{whole_s:.2f}", f"{found.peak_mb:.0f}", difference]


def rows(entry: dict[str, Any], result: Path, head: heads.Head, windows: int, network_windows: int) -> list[list[str]]:
    """The lines of one backbone: its head on `windows`, the whole network on `network_windows`."""
    _, backbone, batch = load(entry, result, windows)
    features = np.concatenate([backbone.predict_on_batch(some) for some in batches(batch)])
    all_heads = tf.function(lambda x: head_relevance(x, head, "highest"))
    all_heads(features)  # traces
    of_features, seconds = timed(lambda: all_heads(features).numpy())
    found = [row(f"{entry['name']} head", of_features, seconds, lambda: analyse(head_model(head), features))]
    chosen = np.linspace(0, len(batch) - 1, min(network_windows, len(batch))).astype(int)
    spectrograms, start = batch[chosen], of_features[chosen]
    for rules in ("gradient", "conserve"):
        compiled = compiled_pass(backbone, rules)
        pairs = list(zip(batches(spectrograms), batches(start)))
        compiled(*pairs[0])  # traces
        own, seconds = timed(lambda: np.concatenate([compiled(*pair).numpy() for pair in pairs]))  # noqa: B023
        theirs = partial(of_network, backbone, head, spectrograms) if rules == "gradient" else None
        found.append(row(f"{entry['name']} network, {rules}", own, seconds, theirs))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--windows", type=int, default=10**9, help="devel windows of the heads [all]")
    parser.add_argument("--network-windows", type=int, default=8, help="windows through the networks [8]")
    given = parser.parse_args()
    result = given.run if (given.run / "selection.json").is_file() else given.run / "result"
    selection, trained = storage.load_json(result / "selection.json"), heads.load_heads(result / "heads.npz")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for entry in selection["backbones"]:
        for cells in rows(entry, result, trained[entry["name"]], given.windows, given.network_windows):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
