"""Make a bundle out of a training run, and verify it window by window through the edge's own code.

Reads only the folder that a run leaves (`RUN/result`, laid out as `orcawatch.training.pipeline` documents).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..backbone import load_backbone
from ..bundle import CARD, Bundle, load_bundle, write_bundle
from ..ensemble import Ensemble
from ..errors import InputError
from ..interpreter import runtime_name
from ..metrics import Interval, auc_interval
from ..spectrogram import front_end_from_dict
from .card import model_card

Array = NDArray[np.float32]
Progress = Callable[[Any], Any]


@dataclass(frozen=True)
class Run:
    """The result of a training run, read."""

    folder: Path
    selection: Mapping[str, Any]

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays of one of its npz files."""
        with np.load(self.folder / name) as stored:
            return dict(stored)


def read_run(folder: Path) -> Run:
    """Read `folder/result/selection.json`; raises InputError where the run is not finished."""
    result = folder / "result"
    path = result / "selection.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no finished run: {path} is missing; `orcawatch train run` makes it")
    return Run(result, json.loads(path.read_text(encoding="utf-8")))


def build_bundle(run: Run, folder: Path, quantization: str, progress: Progress = iter) -> None:
    """Export the run's vote, measure the export on the run's devel windows, and write both as a bundle.

    Parameters
    ----------
    run : from `read_run`.
    folder : the bundle's, which must not exist.
    quantization : of the backbones: `float32` or `dynamic`. Heads and masks stay float32.
    progress : wraps the iteration over the windows, for a progress bar.
    """
    files, manifest = _export(run, quantization)
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch) / "bundle", manifest, {**files, CARD: b""})
        exported = verify_bundle(run, Path(scratch) / "bundle", progress)
    manifest = {**manifest, "exported": asdict(exported)}
    write_bundle(folder, manifest, {**files, CARD: model_card(manifest).encode()})


def _export(run: Run, quantization: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files of the bundle but for its card, and its manifest but for the export's own figures."""
    from .export import export_heads

    backbones = _needed_backbones(run.selection)
    files = {f"{entry['name']}.tflite": _export_backbone(run, entry, quantization) for entry in backbones}
    sizes = {entry["name"]: int(entry["feature_size"]) for entry in backbones}
    heads = _heads(run, [entry for entry in run.selection["members"] if entry["backbone"] in sizes])
    files["heads.tflite"] = export_heads(heads, run.selection["vote"], sizes)
    return files, _manifest(run.selection, backbones, [head["name"] for head in heads], quantization)


def _needed_backbones(selection: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The backbones whose features a member of the vote takes."""
    voting = {entry["backbone"] for entry in selection["members"] if entry["name"] in selection["vote"]}
    return [entry for entry in selection["backbones"] if entry["name"] in voting]


def _export_backbone(run: Run, entry: Mapping[str, Any], quantization: str) -> bytes:
    from .export import export_backbone

    model = load_backbone(entry["name"], front_end_from_dict(entry["front_end"])).build_keras()
    weights = run.arrays(entry["weights"])
    model.set_weights([weights[name] for name in sorted(weights)])
    return export_backbone(model, quantization)


def _heads(run: Run, members: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The heads as `export.export_heads` takes them."""
    weights, masks = run.arrays("heads.npz"), run.arrays("masks.npz")
    heads = []
    for entry in members:
        head = {"name": entry["name"], "backbones": [entry["backbone"]], "mask": entry["mask"]}
        head["weights"] = _of_member(weights, entry["name"])
        if entry["mask"] == "minimal":
            head["minimal_mask"] = masks[f"{entry['backbone']}/minimal"]
        if entry["mask"] == "negative":
            head["base"] = _of_member(weights, entry["relevance_of"])
        heads.append(head)
    return heads


def _of_member(weights: Mapping[str, Array], member: str) -> dict[str, Array]:
    return {part: weights[f"{member}/{part}"] for part in ("hidden_kernel", "hidden_bias", "kernel", "bias")}


def _manifest(
    selection: Mapping[str, Any], backbones: list[Mapping[str, Any]], members: list[str], quantization: str
) -> dict[str, Any]:
    described = [
        {
            "name": entry["name"],
            "file": f"{entry['name']}.tflite",
            "feature_size": entry["feature_size"],
            "front_end": entry["front_end"],
            "quantization": quantization,
        }
        for entry in backbones
    ]
    copied = ("name", "vote", "hop_s", "channel_fusion", "thresholds", "metrics", "all_zero", "masks", "data")
    return {
        **{key: selection[key] for key in copied},
        "backbones": described,
        "heads": {"file": "heads.tflite", "quantization": "float32"},
        "members": members,
        "relevance": {
            "mask_neuron": "highest",
            "snapshot_neuron": "orca, from the confidence",
            "average_pooling": "conserve",
        },
        "training": {key: selection[key] for key in ("seed", "recipe", "versions", "dropped")},
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "orcawatch": __version__,
    }


@dataclass(frozen=True)
class Verification:
    """How a bundle, through the edge's code, compares with the training side on the devel split.

    Attributes
    ----------
    runtime : the TFLite interpreter's package.
    windows : how many were compared.
    largest_difference : of a window's confidence by member, and of a clip's score by `vote`.
    auc : ROC AUC of clips by the exported members and `vote`, with intervals by recording.
    trained_auc : the same of the training side's scores.
    """

    runtime: str
    windows: int
    largest_difference: Mapping[str, float]
    auc: Mapping[str, Interval]
    trained_auc: Mapping[str, Interval]


def verify_bundle(run: Run, folder: Path, progress: Progress = iter) -> Verification:
    """Score every devel window of the run with the bundle and compare.

    Parameters
    ----------
    run : the run that the bundle was made from.
    folder : the bundle.
    progress : wraps the iteration over the windows, for a progress bar.
    """
    ensemble = Ensemble(load_bundle(folder))
    bundle, devel = ensemble.bundle, run.arrays("devel_scores.npz")
    scores = _score_windows(run, ensemble, len(devel["window_clip"]), progress)
    trained = devel["window_scores"][:, [list(devel["members"]).index(name) for name in bundle.members]]
    exported_clips, trained_clips = (_clip_scores(one, devel["window_clip"], bundle) for one in (scores, trained))
    differences = {name: float(np.abs(scores - trained)[:, k].max()) for k, name in enumerate(bundle.members)}
    differences["vote"] = float(np.abs(exported_clips["vote"] - trained_clips["vote"]).max())
    return Verification(
        runtime_name(), len(scores), differences, _aucs(exported_clips, devel), _aucs(trained_clips, devel)
    )


def _score_windows(run: Run, ensemble: Ensemble, windows: int, progress: Progress) -> Array:
    """Members' confidences of the run's devel windows, shape (windows, members)."""
    spectrograms = {
        name: np.load(run.folder / f"devel_spectrograms-{name}.npy", mmap_mode="r")
        for name in ensemble.bundle.backbones
    }
    given = ({name: np.array(stored[k]) for name, stored in spectrograms.items()} for k in progress(range(windows)))
    return np.stack([ensemble.score_spectrograms(window) for window in given])


def _aucs(clips: Mapping[str, NDArray[np.float64]], devel: Mapping[str, Any]) -> dict[str, Interval]:
    orca, groups = devel["label"] == "orca", list(devel["group"])
    return {name: auc_interval(scores, orca, groups) for name, scores in clips.items()}


def _clip_scores(
    window_scores: Array, window_clip: NDArray[np.int64], bundle: Bundle
) -> dict[str, NDArray[np.float64]]:
    """Mean over each clip's windows, by member and for the vote."""
    counts = np.bincount(window_clip)
    by_member = {
        name: np.bincount(window_clip, weights=window_scores[:, k]) / counts for k, name in enumerate(bundle.members)
    }
    return {**by_member, "vote": np.mean([by_member[name] for name in bundle.vote], axis=0)}
