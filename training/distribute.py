"""Several GPUs and several workers: which `tf.distribute` strategy this process trains under.

One process a machine. Where several machines (or several processes on one) train together, each gets the environment
variable TF_CONFIG as TensorFlow describes it, with its own `task`::

    TF_CONFIG='{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}'

and runs the same command. Every worker then makes its share of each batch, and all end with the same weights. Only the
chief (`is_chief`) needs to write them; the others must still take part until the end.
"""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

from ..errors import TrainingError

VARIABLE = "TF_CONFIG"


def task() -> dict[str, Any]:
    """This process' place among the workers, from TF_CONFIG: `type` and `index`; empty where it works alone.

    Raises
    ------
    TrainingError : TF_CONFIG is no JSON, or names workers but not which of them this process is.
    """
    try:
        described = json.loads(os.environ.get(VARIABLE) or "{}")
    except json.JSONDecodeError as fault:
        raise TrainingError(f"{VARIABLE} must be JSON, as TensorFlow describes it: {fault}") from fault
    if not described.get("cluster"):
        return {}
    found: dict[str, Any] = described.get("task", {})
    if not {"type", "index"} <= set(found):
        raise TrainingError(f'{VARIABLE} names a cluster; it must also hold "task": {{"type": ..., "index": ...}}')
    return found


def is_chief() -> bool:
    """True in the process that writes logs and results: the only one, the task `chief`, or else worker 0."""
    own = task()
    if not own:
        return True
    with_chief = "chief" in json.loads(os.environ[VARIABLE])["cluster"]
    return bool(own["type"] == "chief" if with_chief else own["type"] == "worker" and int(own["index"]) == 0)


def strategy() -> Any:
    """The strategy of this process, a `tf.distribute.Strategy`.

    Several workers where TF_CONFIG names them, all GPUs of this machine where it has more than one, and else
    TensorFlow's default, which does not distribute. Workers must call this before any other TensorFlow operation of
    the process, seeds and models included; it waits until all of them are there. Later calls give the same object.

    Raises
    ------
    TrainingError : TF_CONFIG is wrong, or TensorFlow has already computed something.
    """
    import tensorflow as tf

    if task():
        return _of_workers()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return _of_gpus()
    return tf.distribute.get_strategy()


@cache
def _of_gpus() -> Any:
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


@cache
def _of_workers() -> Any:
    import tensorflow as tf

    kind = tf.distribute.experimental.CommunicationImplementation
    chosen = kind.AUTO if tf.config.list_physical_devices("GPU") else kind.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=chosen)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except RuntimeError as fault:
        raise TrainingError(
            f"the workers cannot be joined any more: {fault} Call training.distribute.strategy() first in the process"
        ) from fault
