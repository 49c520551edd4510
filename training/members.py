"""The members of the vote: base-models, masked models and feature fusion, their masks and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from . import heads
from .heads import BLOCK, Head, HeadSettings, Masked
from .preparation import SPLITS
from .relevance_stage import neurons, of_head
from .stages import Inputs
from .storage import ArrayWriter, load_json, load_npz, progress, save_json, set_seed

Array = NDArray[np.float32]
Rows = Mapping[str, NDArray[Any]]

FUSION = "fusion"
MASKS = ("none", "minimal", "negative")
SUFFIXES = dict(zip(MASKS, ("", "_min", "_neg")))
EXPLAINED = 2**16  # rows that one iNNvestigate process explains
TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class Member:
    """One classifier.

    Attributes
    ----------
    name : a backbone's or `fusion`, with `_min` or `_neg`.
    backbones : whose features it takes, side by side.
    mask : `none`, `minimal` or `negative`.
    """

    name: str
    backbones: tuple[str, ...]
    mask: str

    def to_json(self) -> dict[str, Any]:
        """As `selection.json` tells it; `relevance_of` are the base-models whose relevance makes the negative mask."""
        source = list(self.backbones) if self.mask == "negative" else None
        return {"name": self.name, "backbones": list(self.backbones), "mask": self.mask, "relevance_of": source}


def members_of(name: str, backbones: Sequence[str], inputs: Inputs) -> list[Member]:
    """The distinct members over these backbones: a minimal mask that keeps everything makes none (see `dropped`)."""
    identity = all(read_report(inputs, backbone)["minimal_is_identity"] for backbone in backbones)
    kept = [mask for mask in MASKS if not (mask == "minimal" and identity)]
    return [Member(name + SUFFIXES[mask], tuple(backbones), mask) for mask in kept]


def all_members(names: Sequence[str], inputs: Inputs) -> list[Member]:
    """Members of every backbone and, where there are several, of their fusion (paper section 2.1)."""
    found = [member for name in names for member in members_of(name, [name], inputs)]
    return found + (members_of(FUSION, names, inputs) if len(names) > 1 else [])


def dropped(names: Sequence[str], inputs: Inputs) -> list[dict[str, str]]:
    """Members that are left out because their minimal mask keeps every feature, and why."""
    left = []
    for name in names:
        report = read_report(inputs, name)
        if report["minimal_is_identity"]:
            reason = f"the minimal mask keeps all {report['features']} features, so it is {name} itself"
            left.append({"name": f"{name}_min", "reason": reason})
    if len(left) == len(names) > 1:
        left.append({"name": f"{FUSION}_min", "reason": f"no minimal mask removes a feature, so it is {FUSION} itself"})
    return left


# --- inputs of the members --------------------------------------------------------------------------------------------


def read_report(inputs: Inputs, backbone: str) -> dict[str, Any]:
    """What the masks stage says of a backbone's masks."""
    report: dict[str, Any] = load_json(inputs[f"masks-{backbone}"] / "report.json")
    return report


def read_features(folder: Path) -> tuple[Array, dict[str, NDArray[Any]]]:
    """Features, memory-mapped, and their rows."""
    return np.load(folder / "features.npy", mmap_mode="r"), load_npz(folder / "rows.npz")


def read_masked(member: Member, inputs: Inputs, chosen: NDArray[np.int64]) -> Masked:
    """A member's features under its masks, of the chosen rows."""
    features = [np.load(inputs[f"features-{name}"] / "features.npy", mmap_mode="r") for name in member.backbones]
    return Masked(features, [_read_mask(member.mask, inputs, name) for name in member.backbones], chosen)


def _read_mask(mask: str, inputs: Inputs, backbone: str) -> NDArray[Any] | None:
    return None if mask == "none" else np.load(inputs[f"masks-{backbone}"] / f"{mask}.npy", mmap_mode="r")


def read_rows(backbones: Sequence[str], inputs: Inputs) -> dict[str, NDArray[Any]]:
    """The rows that the backbones' features share; `taught` is the mean of their teachers.

    Raises
    ------
    TrainingError : the backbones cut different windows.
    """
    found = [load_npz(inputs[f"features-{name}"] / "rows.npz") for name in backbones]
    for name, rows in zip(backbones, found):
        if any(not np.array_equal(rows[key], found[0][key]) for key in ("clip", "start", "passed")):
            raise TrainingError(
                f"{name} has {len(rows['clip'])} windows, {backbones[0]} {len(found[0]['clip'])}, or at other rows: a "
                "vote needs the same windows; give all front ends the same frames and hop_s"
            )
    return {**found[0], "taught": np.mean([rows["taught"] for rows in found], axis=0)}


# --- stages -----------------------------------------------------------------------------------------------------------


def train_base(head: HeadSettings, settings: Any, inputs: Inputs, folder: Path) -> None:
    """The base-model on all features of a backbone: `heads.npz` and `history.json`."""
    name = settings["name"]
    _train_all([Member(name, (name,), "none")], head, settings["seed"], inputs, folder)


def train_masked(head: HeadSettings, settings: Any, inputs: Inputs, folder: Path) -> None:
    """The members on a backbone's masked features: `heads.npz` and `history.json`."""
    name = settings["name"]
    _train_all(members_of(name, [name], inputs)[1:], head, settings["seed"], inputs, folder)


def train_fusion(head: HeadSettings, settings: Any, inputs: Inputs, folder: Path) -> None:
    """The members on all backbones' features: `heads.npz` and `history.json`."""
    _train_all(members_of(FUSION, settings["names"], inputs), head, settings["seed"], inputs, folder)


def _train_all(members: Sequence[Member], head: HeadSettings, seed: int, inputs: Inputs, folder: Path) -> None:
    trained, history = {}, {}
    for member in members:
        trained[member.name], history[member.name] = _train(member, head, seed + MASKS.index(member.mask), inputs)
    heads.save_heads(folder / "heads.npz", trained)
    save_json(folder / "history.json", history)


def _train(member: Member, settings: HeadSettings, seed: int, inputs: Inputs) -> Any:
    rows = read_rows(member.backbones, inputs)
    train = np.flatnonzero(rows["split"] == TRAIN)
    taught = rows["taught"][train] if settings.teacher_share else None
    learned = heads.Rows(
        features=read_masked(member, inputs, train),
        orca=rows["orca"][train],
        targets=heads.targets(rows["orca"][train], taught, settings.teacher_share),
        groups=rows["group"][train],
        bags=rows["passed"][train] * (rows["clip"].max() + 1) + rows["clip"][train],
    )
    set_seed(seed)
    with progress(None, member.name, "epoch") as bar:
        bar.reset(settings.epochs)
        return heads.train_head(learned, settings, seed, lambda epoch: bar.update())


def explain_base(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Deep Taylor relevance of every row's features for the base-model's own prediction: `relevance.npy`.

    `report.json` counts by split what explained the windows (see `relevance_stage.neurons`).
    """
    name = settings["name"]
    features, rows = read_features(inputs[f"features-{name}"])
    head = heads.load_heads(inputs[f"base-{name}"] / "heads.npz")[name]
    counted: dict[str, dict[str, int]] = {}
    peak_mb = 0.0
    with ArrayWriter(folder / "relevance.npy") as file:
        for start in range(0, len(features), EXPLAINED):
            some = slice(start, start + EXPLAINED)
            found = of_head(head, np.array(features[some]))
            file.append(found.values)
            peak_mb = max(peak_mb, found.peak_mb)
            _add_counts(counted, found, rows["split"][some])
    report = {"all_zero": counted, "peak_mb": peak_mb, "versions": found.versions}
    save_json(folder / "report.json", report)


def _add_counts(counted: dict[str, dict[str, int]], found: Any, split: NDArray[np.int8]) -> None:
    for k in np.unique(split):
        sums = counted.setdefault(SPLITS[k], {})
        for key, number in neurons(found, split == k).items():
            sums[key] = sums.get(key, 0) + number


def make_masks(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Minimal mask from the training rows, negative masks of every row (paper section 2.4).

    `minimal.npy` (features,), `negative.npy` (rows, features) as uint8, and `report.json`.
    """
    from ..masking import minimal_mask, negative_mask

    name, keep = settings["name"], settings["minimal_keep"]
    rows = load_npz(inputs[f"features-{name}"] / "rows.npz")
    relevance = np.load(inputs[f"relevance-{name}"] / "relevance.npy", mmap_mode="r")
    size, train = relevance.shape[1], rows["split"] == TRAIN
    removed = 0.0
    with ArrayWriter(folder / "negative.npy", np.uint8) as file:
        for start in range(0, len(relevance), BLOCK):
            some = slice(start, start + BLOCK)
            negative = np.asarray(negative_mask(np.array(relevance[some]))).astype(np.uint8)
            file.append(negative)
            removed += float((size - negative.sum(axis=1, dtype=int))[~train[some]].sum())
    minimal = minimal_mask(_average(relevance, train)[None], min(keep, size))
    np.save(folder / "minimal.npy", minimal)
    report = {
        "features": size,
        "minimal_keep": int(minimal.sum()),
        "minimal_is_identity": bool(minimal.all()),
        "negative_removed_on_average": removed / max(1, int((~train).sum())),
    }
    save_json(folder / "report.json", report)


def _average(relevance: Array, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    total = np.zeros(relevance.shape[1])
    for start in range(0, len(relevance), BLOCK):
        some = slice(start, start + BLOCK)
        total += relevance[some][chosen[some]].sum(axis=0, dtype=np.float64)
    return total / chosen.sum()  # type: ignore[no-any-return]


def score_members(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Confidences of all members on the windows that are not for training: `scores.npz`.

    members, scores (windows, members), taught (windows, backbones), and of each window clip, start, orca, split, group.
    """
    names = settings["names"]
    rows = read_rows(names, inputs)
    chosen = np.flatnonzero(rows["split"] != TRAIN)
    members, trained = all_members(names, inputs), read_heads(names, inputs)
    scores = np.stack([_scores(trained[m.name], read_masked(m, inputs, chosen)) for m in members], axis=1)
    taught = [load_npz(inputs[f"features-{name}"] / "rows.npz")["taught"][chosen] for name in names]
    described: dict[str, Any] = {key: rows[key][chosen] for key in ("clip", "start", "orca", "split", "group")}
    kept = [member.name for member in members]
    np.savez(folder / "scores.npz", members=kept, scores=scores, taught=np.stack(taught, axis=1), **described)


def _scores(head: Head, features: Masked) -> Array:
    return np.concatenate([heads.scores(block, head) for block in features.blocks()])


def read_heads(names: Sequence[str], inputs: Inputs) -> dict[str, dict[str, Array]]:
    """Heads of all members."""
    stages = [f"{stage}-{name}" for name in names for stage in ("base", "masked")]
    stages += [FUSION] if len(names) > 1 else []
    return {name: head for stage in stages for name, head in heads.load_heads(inputs[stage] / "heads.npz").items()}
