"""This project's deep Taylor rules against iNNvestigate's, on the weights of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbone import Backbone
from ..errors import TrainingError
from . import backbones, heads, storage
from .plain_relevance import plain_relevance
from .recipe import BackboneSettings, backbone_of
from .relevance_stage import HIGHEST, ORCA, Relevance, all_zero, analyse, head_model, of_network

Array = NDArray[np.float32]

NEURONS = {"highest": HIGHEST, "orca": ORCA}
BATCH = 4  # windows at a time through a whole network
LIMIT_S = 1200.0
COLUMNS = ("what", "neuron", "windows", "all zero", "against", "largest difference / largest relevance", "sum / start")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what : the network and the rules.
    neuron : `highest` or `orca`.
    own : our relevance, windows first.
    start : what the pass starts with, shape (windows,): the chosen logit's positive part.
    against : what it is compared with; empty where with nothing.
    difference : the largest difference over the largest relevance; None where there is nothing to compare with.
    """

    what: str
    neuron: str
    own: Array
    start: Array
    against: str
    difference: float | None

    def cells(self) -> list[str]:
        """The row as text."""
        some = self.start > 0
        total = self.own.reshape(len(self.own), -1).sum(axis=1, dtype=np.float64)
        kept = f"{np.mean(total[some] / self.start[some]):.4f}" if some.any() else "-"
        difference = "-" if self.difference is None else f"{self.difference:.1e}"
        counts = [str(len(self.own)), str(all_zero(self.own))]
        return [self.what, self.neuron, *counts, self.against or "-", difference, kept]


def report(run: Path, windows: int, limit_s: float = LIMIT_S) -> str:
    """Table of the differences, for the heads and the whole networks; notes where iNNvestigate could not run.

    The heads and, under its own rules (`gradient`), the whole networks are compared with iNNvestigate. Where that does
    not run, and for the conserving rules, which iNNvestigate does not have, one window is compared with plain loops in
    double precision.

    Parameters
    ----------
    run : folder of a run, or its result folder.
    windows : devel windows that are compared, spread evenly.
    limit_s : time that iNNvestigate has for one network and neuron.
    """
    result = run if (run / "selection.json").is_file() else run / "result"
    selection = storage.load_json(result / "selection.json")
    trained = heads.load_heads(result / "heads.npz")
    notes: list[str] = []
    rows = [
        row
        for entry in selection["backbones"]
        for row in _of_backbone(entry, result, trained[entry["name"]], windows, limit_s, notes)
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *(r.cells() for r in rows))]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def load(entry: Mapping[str, Any], result: Path, windows: int) -> tuple[Backbone, Any, Array]:
    """Plugin, folded network and some devel spectrograms (windows, height, width, planes) of a result's backbone."""
    plugin = backbone_of(entry["name"], BackboneSettings(entry["front_end"], entry["weights"]))
    stored = np.load(result / entry["spectrograms"], mmap_mode="r")
    chosen = np.linspace(0, len(stored) - 1, min(windows, len(stored))).astype(int)
    batch = np.asarray(stored[chosen]).reshape(-1, *plugin.front_end.shape)
    return plugin, backbones.load_model(plugin, result / entry["weights"]), batch


@dataclass(frozen=True)
class Case:
    """A trained network, some windows, and the neuron to explain.

    Attributes
    ----------
    name, neuron : of the backbone; `highest` or `orca`.
    backbone, head : folded network and base-model.
    batch : spectrograms, shape (windows, height, width, planes).
    features : pooled, shape (windows, features).
    of_features : our relevance of them.
    start : what the pass starts with, shape (windows,).
    """

    name: str
    neuron: str
    backbone: Any
    head: heads.Head
    batch: Array
    features: Array
    of_features: Array
    start: Array


def _of_backbone(
    entry: Mapping[str, Any], result: Path, head: heads.Head, windows: int, limit_s: float, notes: list[str]
) -> list[Row]:
    _, backbone, batch = load(entry, result, windows)
    features = np.concatenate([backbone.predict_on_batch(some) for some in batches(batch)])
    cases = [_case(entry["name"], neuron, backbone, head, batch, features) for neuron in NEURONS]
    return [row for case in cases for row in (_of_head(case), *_of_network(case, limit_s, notes))]


def _case(name: str, neuron: str, backbone: Any, head: heads.Head, batch: Array, features: Array) -> Case:
    from ..relevance import head_forward, head_relevance

    logits = np.asarray(head_forward(features, head)[1])
    start = np.maximum(logits.max(axis=1) if neuron == "highest" else logits[:, ORCA], 0)
    of_features = np.asarray(head_relevance(features, head, neuron))
    return Case(name, neuron, backbone, head, batch, features, of_features, start)


def _of_head(case: Case) -> Row:
    theirs = analyse(head_model(case.head), case.features, NEURONS[case.neuron])
    difference = relative_difference(case.of_features, theirs.values)
    return Row(f"{case.name} head", case.neuron, case.of_features, case.start, "iNNvestigate", difference)


def _of_network(case: Case, limit_s: float, notes: list[str]) -> list[Row]:
    """Rows of the whole network under iNNvestigate's rules and under the conserving ones."""
    theirs = _theirs(case, limit_s, notes)
    found = []
    for rules in ("gradient", "conserve"):
        own = through(case.backbone, case.batch, case.of_features, rules)
        against, difference = _compared(case, rules, own, theirs)
        found.append(Row(f"{case.name} network, {rules}", case.neuron, own, case.start, against, difference))
    return found


def _theirs(case: Case, limit_s: float, notes: list[str]) -> Relevance | None:
    what = f"- {case.name} network, {case.neuron}: iNNvestigate"
    try:
        found = of_network(case.backbone, case.head, case.batch, NEURONS[case.neuron], BATCH, limit_s)
    except TrainingError as fault:
        notes.append(f"{what} could not run: {fault}")
        return None
    notes.append(f"{what} took {found.seconds:.1f} s for {len(case.batch)} windows, {found.peak_mb:.0f} MB")
    return found


def _compared(case: Case, rules: str, own: Array, theirs: Relevance | None) -> tuple[str, float | None]:
    """What our relevance is compared with, and the difference."""
    if rules == "gradient" and theirs is not None:
        return "iNNvestigate", relative_difference(own, theirs.values)
    window = int(case.of_features.sum(axis=1).argmax())
    if not case.of_features[window].any():
        return "", None
    plain = plain_relevance(case.backbone, case.batch[window], case.of_features[window], rules)
    return "plain loops, one window", relative_difference(own[window], plain)


def through(backbone: Any, spectrograms: Array, of_features: Array, rules: str) -> Array:
    """Our relevance of spectrograms (windows, height, width, planes), a few windows at a time."""
    compiled = compiled_pass(backbone, rules)
    return np.concatenate([compiled(x, r).numpy() for x, r in zip(batches(spectrograms), batches(of_features))])


def compiled_pass(backbone: Any, rules: str) -> Any:
    """The pass through a whole network as a TensorFlow function of spectrograms and their features' relevance."""
    import tensorflow as tf

    from ..relevance import backbone_relevance

    return tf.function(lambda x, r: backbone_relevance(backbone, x, r, rules), autograph=False)


def batches(values: Array) -> list[Array]:
    """`BATCH` rows at a time."""
    return [values[k : k + BATCH] for k in range(0, len(values), BATCH)]


def relative_difference(own: Any, theirs: Any) -> float:
    """Largest difference over the largest relevance; 0 where there is no relevance at all."""
    return float(np.abs(own - theirs).max() / (np.abs(theirs).max() or 1.0))
