"""This project's deep Taylor rules against iNNvestigate's, on the weights of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backbones, heads, storage
from .recipe import BackboneSettings, backbone_of
from .relevance_stage import HIGHEST, ORCA, all_zero, analyse, head_model, stack_model

Array = NDArray[np.float32]

NEURONS = {"highest": HIGHEST, "orca": ORCA}


def report(run: Path, windows: int) -> str:
    """Table of the largest differences, relative to the largest relevance, for heads and whole networks.

    Parameters
    ----------
    run : folder of a run, or its result folder.
    windows : devel windows that are compared, spread evenly.
    """
    result = run if (run / "selection.json").is_file() else run / "result"
    selection = storage.load_json(result / "selection.json")
    trained = heads.load_heads(result / "heads.npz")
    columns = ("network", "neuron", "windows", "all zero", "largest difference / largest relevance", "sum / logit")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for entry in selection["backbones"]:
        plugin = backbone_of(entry["name"], BackboneSettings(entry["front_end"], entry["weights"]))
        backbone = backbones.load_model(plugin, result / entry["weights"])
        spectrograms = _some(np.load(result / entry["spectrograms"], mmap_mode="r"), windows)
        batch = spectrograms.reshape(-1, *plugin.front_end.shape)
        for neuron in NEURONS:
            lines += _rows(entry["name"], backbone, trained[entry["name"]], batch, neuron)
    return "\n".join(lines)


def _some(spectrograms: Array, number: int) -> Array:
    chosen = np.linspace(0, len(spectrograms) - 1, min(number, len(spectrograms))).astype(int)
    return np.asarray(spectrograms[chosen])


def _rows(name: str, backbone: Any, head: heads.Head, batch: Array, neuron: str) -> list[str]:
    from ..relevance import backbone_relevance, head_relevance

    features = np.asarray(backbone.predict_on_batch(batch))
    of_features = head_relevance(features, head, neuron)
    own = backbone_relevance(backbone, batch, of_features, "gradient")
    conserved = np.asarray(backbone_relevance(backbone, batch, of_features, "conserve"))
    theirs = analyse(head_model(head), features, NEURONS[neuron])
    through = analyse(stack_model(backbone, head), batch, NEURONS[neuron], batch_size=8)
    return [
        _row(f"{name} head", neuron, np.asarray(of_features), theirs.values, theirs.logits),
        _row(f"{name} stack, gradient pooling", neuron, np.asarray(own), through.values, through.logits),
        _row(f"{name} stack, conserving pooling", neuron, conserved, None, through.logits),
    ]


def _row(name: str, neuron: str, own: Array, theirs: Array | None, logits: Array) -> str:
    start = logits.max(axis=1) if neuron == "highest" else logits[:, ORCA]
    some = start > 0
    total = own.reshape(len(own), -1).sum(axis=1, dtype=np.float64)
    conserved = f"{np.mean(total[some] / start[some]):.4f}" if some.any() else "-"
    difference = "-" if theirs is None else f"{relative_difference(own, theirs):.1e}"
    return f"| {name} | {neuron} | {len(own)} | {all_zero(own)} | {difference} | {conserved} |"


def relative_difference(own: Array, theirs: Array) -> float:
    """Largest difference over the largest relevance; 0 where there is no relevance at all."""
    return float(np.abs(own - theirs).max() / (np.abs(theirs).max() or 1.0))
