"""Distribution: two worker processes on this machine end with the weights of one, but for rounding.

Run as a script, this file is one of the workers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.spectrogram import LogMel
from orcawatch.training import distribute
from orcawatch.training.augment import Augmentation
from orcawatch.training.finetune import FineTuneSettings, fine_tune

FRONT_END = LogMel(normalise="band_floor", offset=0.001)
FROZEN = FineTuneSettings(steps=6, batch_size=8, learning_rate=0.01, teacher_weight=0, average_decay=0.5)
CASES = {
    "frozen": replace(FROZEN, head_steps=3),
    "trained": replace(FROZEN, batch_norm="trained", statistics_batches=3),
}
TOLERANCE = 2e-5  # of weights of about 1; found are 2e-7 frozen, 3e-6 trained, and 5e-2 where other windows are drawn
PATIENCE_S = 300


def clips() -> list[Any]:
    """Hiss, and hiss with a tone."""
    made = []
    for seed in range(12):
        waveform = 0.02 * np.random.default_rng(seed).standard_normal(20000)
        waveform[6000:14000] += (seed % 2) * 0.2 * np.sin(np.arange(8000))
        label = "orca" if seed % 2 else "noise"
        described = {"label": label, "group": str(seed), "kind": label, "source": "s"}
        made.append(SimpleNamespace(waveform=waveform.astype(np.float32), **described))
    return made


def network() -> Any:
    """Convolution, batch norm, residual add; equal weights every time."""
    import tensorflow as tf
    from tensorflow.keras import Model, layers

    tf.keras.utils.set_random_seed(1)
    first = layers.Input(FRONT_END.shape)
    x = layers.Conv2D(6, 3, strides=4, use_bias=False)(first)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Add()([x, layers.Conv2D(6, 1)(x)])
    return Model(first, layers.GlobalAveragePooling2D()(x))


def quiet(items: Iterable[Any], what: str, unit: str) -> Iterable[Any]:
    """A progress bar that shows nothing."""
    return items


def trained(case: str, seed: int, strategy: Any, logs: Path | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Weights and history of a short training."""
    model = network()
    settings, augmentation = CASES[case], Augmentation(time_masks=1)
    history = fine_tune(model, clips(), settings, augmentation, FRONT_END, quiet, seed, None, logs, strategy)
    return model.get_weights(), history


def work(folder: Path) -> None:
    """What one worker does; `apart` trains each worker with another seed, as if they did not share their batches."""
    strategy, index = distribute.strategy(), distribute.task()["index"]
    assert distribute.strategy() is strategy
    found = {case: trained(case, 0, strategy, folder / "logs" if case == "frozen" else None) for case in CASES}
    found["apart"] = trained("frozen", index, strategy)
    weights = {f"{case}-{k}": weight for case, (all_, _) in found.items() for k, weight in enumerate(all_)}
    np.savez(folder / f"{index}.npz", **weights)
    (folder / f"{index}.json").write_text(json.dumps({case: history for case, (_, history) in found.items()}))


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens to."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two workers have left their weights and histories."""
    folder = tmp_path_factory.mktemp("workers")
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    running = []
    for index in range(2):
        described = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, distribute.VARIABLE: json.dumps(described)}
        with (folder / f"{index}.log").open("w") as log:
            command = [sys.executable, __file__, str(folder)]
            running.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log))
    try:
        codes = [process.wait(PATIENCE_S) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], (folder / "0.log").read_text()[-3000:] + (folder / "1.log").read_text()[-3000:]
    return folder


def weights_of(folder: Path, worker: int, case: str) -> list[Any]:
    """What a worker has left."""
    with np.load(folder / f"{worker}.npz") as stored:
        return [stored[f"{case}-{k}"] for k in range(len(network().get_weights()))]


def difference(one: list[Any], other: list[Any]) -> float:
    """The largest of any weight."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other))


@pytest.mark.parametrize("case", list(CASES))
def test_two_workers_give_the_weights_of_one(case: str, workers: Path) -> None:
    alone, history = trained(case, 0, None)
    assert difference(alone, network().get_weights()) > 0.01  # it did learn
    assert difference(alone, weights_of(workers, 0, case)) < TOLERANCE
    assert difference(weights_of(workers, 0, case), weights_of(workers, 1, case)) == 0
    theirs = json.loads((workers / "1.json").read_text())[case]
    assert theirs["phase"] == history["phase"] and np.allclose(theirs["loss"], history["loss"], atol=TOLERANCE)


def test_workers_that_draw_different_batches_would_be_noticed(workers: Path) -> None:
    alone, _ = trained("frozen", 0, None)
    assert difference(alone, weights_of(workers, 0, "apart")) > 100 * TOLERANCE


def test_only_the_chief_writes_the_log(workers: Path) -> None:
    assert len(list((workers / "logs").glob("events.out.tfevents.*"))) == 1


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    import tensorflow as tf

    three = SimpleNamespace(num_replicas_in_sync=3)
    assert tf.distribute.get_strategy().num_replicas_in_sync == 1
    with pytest.raises(TrainingError, match="multiple of the 3 replicas that share each batch, not 8"):
        fine_tune(network(), clips(), CASES["frozen"], None, FRONT_END, quiet, 0, None, None, three)


def test_a_process_that_works_alone_is_the_chief(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.delenv(distribute.VARIABLE, raising=False)
    assert distribute.is_chief() and distribute.task() == {}
    assert distribute.strategy() is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("kinds", "own", "chief"),
    [
        (["worker"], {"type": "worker", "index": 0}, True),
        (["worker"], {"type": "worker", "index": 1}, False),
        (["chief", "worker"], {"type": "worker", "index": 0}, False),
        (["chief", "worker"], {"type": "chief", "index": 0}, True),
    ],
)
def test_one_worker_is_the_chief(
    kinds: list[str], own: dict[str, Any], chief: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"cluster": {kind: ["localhost:1", "localhost:2"] for kind in kinds}, "task": own}
    monkeypatch.setenv(distribute.VARIABLE, json.dumps(described))
    assert distribute.is_chief() == chief


@pytest.mark.parametrize(
    ("text", "told"), [("{", "must be JSON"), ('{"cluster": {"worker": ["a:1"]}}', 'must also hold "task"')]
)
def test_a_wrong_description_of_the_workers_is_refused(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(distribute.VARIABLE, text)
    with pytest.raises(TrainingError, match=told):
        distribute.strategy()


def test_joining_the_workers_too_late_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    assert float(tf.constant(1.0)) == 1.0
    described = {"cluster": {"worker": ["localhost:1", "localhost:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv(distribute.VARIABLE, json.dumps(described))
    with pytest.raises(TrainingError, match="first in the process"):
        distribute.strategy()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
