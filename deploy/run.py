"""What a training run left, read: the folder `RUN/result`, laid out as `orcawatch.training.pipeline` documents.

Of the stages before it only the decoded audio is looked at, for the fainter calls of a cascade.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbone import load_backbone
from ..errors import InputError
from ..spectrogram import FrontEnd, front_end_from_dict

Array = NDArray[np.float32]
DATA = "data"  # the stage that decoded the clips
DIGITS = 16  # of a stage's digest, in the name of its folder
PARTS = ("hidden_kernel", "hidden_bias", "kernel", "bias")
ANY_MEMBER = "any"


@dataclass(frozen=True)
class Run:
    """The result of a training run.

    Attributes
    ----------
    root : the run's folder.
    selection : `result/selection.json`.
    selection_digest : SHA-256 of that file, which says of which result a measurement is.
    """

    root: Path
    selection: Mapping[str, Any]
    selection_digest: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.root / "result"

    @property
    def members(self) -> list[Mapping[str, Any]]:
        """Descriptions of the members, in the order of the scores' columns."""
        return list(self.selection["members"])

    @property
    def backbones(self) -> dict[str, Mapping[str, Any]]:
        """Descriptions of the backbones by name, in their order."""
        return {entry["name"]: entry for entry in self.selection["backbones"]}

    @property
    def resampling(self) -> dict[str, int]:
        """Draws and seed of the intervals, as the training side takes them."""
        return {"draws": int(self.selection["recipe"]["vote"]["draws"]), "seed": int(self.selection["seed"])}

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays of one of its npz files."""
        with np.load(self.folder / name) as stored:
            return dict(stored)

    def front_end(self, backbone: str) -> FrontEnd:
        """What makes a backbone's spectrograms."""
        return front_end_from_dict(self.backbones[backbone]["front_end"])

    def spectrograms_path(self, backbone: str) -> Path:
        """Where the devel spectrograms are."""
        return self.folder / f"devel_spectrograms-{backbone}.npy"

    def spectrograms(self, backbone: str) -> Array:
        """Finished devel spectrograms, (windows, height, width), in a memory-mapped file."""
        return np.asarray(np.load(self.spectrograms_path(backbone), mmap_mode="r"))

    def audio(self) -> Audio | None:
        """The devel clips as decoded; None where the folder of the run's data stage is gone."""
        record = self.folder / "stage.json"
        if not record.is_file():
            return None
        digest = json.loads(record.read_bytes())["inputs"][DATA]
        folder = self.root / "artifacts" / f"{DATA}-{digest[:DIGITS]}"
        return Audio(folder) if folder.is_dir() else None

    def must_contain(self) -> list[str] | None:
        """Members of which the vote must hold one by the recipe; None where any will do."""
        mask = self.selection["recipe"]["vote"]["must_contain"]
        return None if mask == ANY_MEMBER else [entry["name"] for entry in self.members if entry["mask"] == mask]


@dataclass(frozen=True)
class Audio:
    """What the run's data stage decoded.

    Attributes
    ----------
    folder : the stage's artifact, as `orcawatch.training.preparation.load_data` writes it.
    """

    folder: Path

    def devel(self, rate_hz: int) -> list[Array]:
        """Each devel clip in the order of `devel_scores.npz`, shape (samples,), in a memory-mapped file.

        `rate_hz` is the rate of a backbone of the run.
        """
        clips = json.loads((self.folder / "clips.json").read_bytes())["clips"]
        ends = np.load(self.folder / f"ends-{rate_hz}.npy")
        together = np.load(self.folder / f"waveforms-{rate_hz}.npy", mmap_mode="r")
        return [wave for wave, clip in zip(np.split(together, ends[:-1]), clips) if clip["split"] == "devel"]


def read_run(folder: Path) -> Run:
    """Read `folder/result/selection.json`; raises InputError where the run is not finished, or is of an older form."""
    path = folder / "result" / "selection.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no finished run: {path} is missing; `orcawatch train run` makes it")
    content = path.read_bytes()
    run = Run(folder, json.loads(content), hashlib.sha256(content).hexdigest())
    if any("backbones" not in entry for entry in run.members):
        raise InputError(f"{path} was written by an older version: `orcawatch train run` brings the run up to date")
    return run


def parse_vote(run: Run, text: str | None) -> list[str]:
    """The members that `A+B+C` names, in their own order; the run's vote where that is None.

    Raises
    ------
    InputError : an unknown member, or none.
    """
    if text is None:
        return list(run.selection["vote"])
    known, named = [entry["name"] for entry in run.members], [part.strip() for part in text.split("+")]
    if unknown := [name for name in named if name not in known]:
        raise InputError(f"a vote is made of {' + '.join(known)}, not of {unknown}")
    return [name for name in known if name in named]


def needed_backbones(run: Run, members: Sequence[str]) -> list[str]:
    """The backbones whose features these members take, in their order."""
    taken = {name for entry in run.members if entry["name"] in members for name in entry["backbones"]}
    return [name for name in run.backbones if name in taken]


def heads(run: Run, members: Sequence[str]) -> list[dict[str, Any]]:
    """The members' heads as `export.export_heads` takes them; a base-model is one object for all that need it."""
    weights, masks = run.arrays("heads.npz"), run.arrays("masks.npz")
    models = {entry["name"]: {part: weights[f"{entry['name']}/{part}"] for part in PARTS} for entry in run.members}
    return [_head(entry, models, masks) for entry in run.members if entry["name"] in members]


def _head(entry: Mapping[str, Any], models: Mapping[str, Any], masks: Mapping[str, Array]) -> dict[str, Any]:
    head = {key: entry[key] for key in ("name", "backbones", "mask")}
    head["weights"] = models[entry["name"]]
    if entry["mask"] == "minimal":
        head["minimal_masks"] = {name: masks[f"{name}/minimal"] for name in entry["backbones"]}
    if entry["mask"] == "negative":
        head["bases"] = {name: models[base] for name, base in zip(entry["backbones"], entry["relevance_of"])}
    return head


def network(run: Run, backbone: str) -> Any:
    """The trained backbone as a folded Keras model."""
    from ..folding import fold

    model = fold(load_backbone(backbone, run.front_end(backbone)).build_keras())
    weights = run.arrays(run.backbones[backbone]["weights"])
    model.set_weights([weights[name] for name in sorted(weights)])
    return model
