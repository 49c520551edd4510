"""The last stage: rank the votes, choose one, set its thresholds, and lay out what is exported."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .. import metrics
from . import heads, ranking, steps
from .dataset import Clip
from .recipe import ANY_MEMBER, Recipe, backbone_of
from .stages import RECORD, Inputs

Array = NDArray[np.floating[Any]]

log = logging.getLogger(__name__)

PACKAGES = ("orcawatch", "tensorflow", "innvestigate", "numpy", "soxr", "soundfile")


@dataclass(frozen=True)
class Devel:
    """The members' scores on the devel split.

    Attributes
    ----------
    members : their names.
    clips : the devel clips.
    window_clip, window_start : index into `clips` and first row of each window.
    windows : confidences, shape (windows, members).
    means : mean confidences, shape (clips, members).
    labels, groups : True where orca, and the recording, by clip.
    """

    members: tuple[str, ...]
    clips: tuple[Clip, ...]
    window_clip: NDArray[np.int64]
    window_start: NDArray[np.int64]
    windows: Array
    means: Array
    labels: NDArray[np.bool_]
    groups: tuple[str, ...]

    def vote(self, members: Sequence[str], scores: Array) -> Array:
        """Average of the named members' columns."""
        return np.asarray(scores[:, [self.members.index(name) for name in members]].mean(axis=1))


def make_result(recipe: Recipe, settings: Any, inputs: Inputs, folder: Path) -> None:
    """Fill the result folder as `pipeline` describes it."""
    names = tuple(recipe.backbones)
    devel = collect(inputs, names)
    described = describe_members(inputs, names)
    must = [m["name"] for m in described if recipe.vote.must_contain in (m["mask"], ANY_MEMBER)]
    rows = ranking.rank(devel.members, devel.means, devel.labels)
    chosen = ranking.select(rows, must)
    selection = {
        "name": recipe.name,
        "seed": recipe.seed,
        "backbones": [_backbone(recipe, name, inputs) for name in names],
        "members": described,
        "dropped": dropped(inputs, names),
        "vote": list(chosen.members),
        "hop_s": recipe.windows.hop_s,
        "channel_fusion": recipe.vote.channel_fusion,
        "thresholds": asdict(thresholds(devel, chosen.members)),
        "metrics": measure(devel, chosen.members, must, recipe),
        **_reports(inputs, names),
        "data": steps.load_json(inputs["data"] / "clips.json")["data"],
        "recipe": settings,
        "costs": costs(inputs),
        "versions": versions(),
    }
    steps.save_json(folder / "selection.json", selection)
    _write_tables(folder, devel, rows, selection)
    _write_arrays(folder, devel, chosen.members, inputs, names)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    log.info("vote %s, AUC %.4f on devel", "+".join(chosen.members), chosen.auc)


def collect(inputs: Inputs, names: Sequence[str]) -> Devel:
    """Scores of every backbone's members side by side; windows must be the same for all backbones."""
    clips = steps.read_clips(inputs["data"])
    devel = [k for k, clip in enumerate(clips) if clip.split == "devel"]
    stored = [steps.load_npz(inputs[f"scores-{name}"] / "scores.npz") for name in names]
    windows = np.concatenate([one["scores"] for one in stored], axis=1)
    window_clip = np.searchsorted(devel, stored[0]["clip"])
    kept = tuple(clips[k] for k in devel)
    return Devel(
        members=tuple(str(member) for one in stored for member in one["members"]),
        clips=kept,
        window_clip=window_clip,
        window_start=stored[0]["start"],
        windows=windows,
        means=metrics.clip_means(windows, window_clip, len(kept)),
        labels=np.array([clip.label == "orca" for clip in kept]),
        groups=tuple(clip.group for clip in kept),
    )


def describe_members(inputs: Inputs, names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, backbone, mask and relevance source of each member, in the order of the scores."""
    found = []
    for name in names:
        found.append({"name": name, "backbone": name, "mask": "none", "relevance_of": None})
        for member, mask, _ in steps.masked_members(name, inputs[f"masks-{name}"]):
            kind, source = ("minimal", None) if mask.ndim == 1 else ("negative", name)
            found.append({"name": member, "backbone": name, "mask": kind, "relevance_of": source})
    return found


def dropped(inputs: Inputs, names: Sequence[str]) -> list[dict[str, str]]:
    """Members left out of the ranking because their minimal mask keeps every feature."""
    out = []
    for name in names:
        report = steps.load_json(inputs[f"masks-{name}"] / "report.json")
        if report["minimal_is_identity"]:
            reason = f"the minimal mask keeps all {report['features']} features, so it is {name} itself"
            log.info("%s_min is left out: %s", name, reason)
            out.append({"name": f"{name}_min", "reason": reason})
    return out


def thresholds(devel: Devel, vote: Sequence[str]) -> metrics.Thresholds:
    """Thresholds of the vote's events; see `metrics.event_thresholds`."""
    seconds = np.array([clip.seconds for clip in devel.clips])
    return metrics.event_thresholds(devel.vote(vote, devel.windows), devel.window_clip, devel.labels, seconds)


def measure(devel: Devel, vote: Sequence[str], must: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """ROC AUC of devel clips with intervals: each member, the vote, and the choice of the vote."""
    draws, seed = recipe.vote.draws, recipe.seed

    def interval(scores: Array) -> dict[str, Any]:
        return asdict(metrics.auc_interval(scores, devel.labels, devel.groups, draws, seed))

    nested = ranking.nested_selection(devel.members, devel.means, devel.labels, devel.groups, must, draws, seed)
    return {
        "split": "devel",
        "score": "mean orca confidence over a clip's windows",
        "interval": f"percentile bootstrap by recording, 95 %, {draws} draws, seed {seed}",
        "members": {name: interval(devel.means[:, k]) for k, name in enumerate(devel.members)},
        "vote": interval(devel.vote(vote, devel.means)),
        "nested": asdict(nested),
        "note": ranking.OPTIMISTIC.format(rows=2 ** len(devel.members) - 1),
    }


def costs(inputs: Inputs) -> dict[str, Any]:
    """Wall time and memory of the stages before this one."""
    records = {name: steps.load_json(folder / RECORD) for name, folder in inputs.items()}
    return {name: {"wall_s": record["wall_s"], "peak_mb": record["peak_mb"]} for name, record in records.items()}


def versions() -> dict[str, str]:
    """Versions of what computed this."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _backbone(recipe: Recipe, name: str, inputs: Inputs) -> dict[str, Any]:
    plugin = backbone_of(name, recipe.backbones[name])
    return {
        "name": name,
        "feature_size": plugin.feature_size,
        "front_end": plugin.front_end.to_dict(),
        "weights": f"backbone-{name}.npz",
        "spectrograms": f"devel_spectrograms-{name}.npy",
        "history": steps.load_json(inputs[f"backbone-{name}"] / "history.json"),
    }


def _reports(inputs: Inputs, names: Sequence[str]) -> dict[str, Any]:
    relevance = {name: steps.load_json(inputs[f"relevance-{name}"] / "report.json") for name in names}
    masks = {name: steps.load_json(inputs[f"masks-{name}"] / "report.json") for name in names}
    return {"all_zero": {name: report["all_zero"] for name, report in relevance.items()}, "masks": masks}


def _write_tables(folder: Path, devel: Devel, rows: Sequence[ranking.Row], selection: Mapping[str, Any]) -> None:
    nested = selection["metrics"]["nested"]
    notes = [
        selection["metrics"]["note"],
        f"Nested: {nested['value']:.4f} (95 % interval {nested['low']:.4f} to {nested['high']:.4f}).",
        f"Chosen: {' + '.join(selection['vote'])}.",
        *[f"Left out: {left['name']}: {left['reason']}." for left in selection["dropped"]],
    ]
    (folder / "ranking.csv").write_text(ranking.to_csv(devel.members, rows), encoding="utf-8")
    (folder / "ranking.md").write_text(ranking.to_markdown(devel.members, rows, notes), encoding="utf-8")


def _write_arrays(folder: Path, devel: Devel, vote: Sequence[str], inputs: Inputs, names: Sequence[str]) -> None:
    trained, masks = {}, {}
    for name in names:
        trained.update(heads.load_heads(inputs[f"base-{name}"] / "heads.npz"))
        trained.update(heads.load_heads(inputs[f"masked-{name}"] / "heads.npz"))
        masks[f"{name}/minimal"] = np.load(inputs[f"masks-{name}"] / "minimal.npy")
        shutil.copyfile(inputs[f"backbone-{name}"] / "weights.npz", folder / f"backbone-{name}.npz")
        _write_spectrograms(folder, name, inputs)
    heads.save_heads(folder / "heads.npz", {name: trained[name] for name in devel.members})
    np.savez(folder / "masks.npz", **masks)
    np.savez(folder / "devel_scores.npz", **_score_arrays(devel, vote))
    np.savez(folder / "curves.npz", **_curve_arrays(devel, vote))


def _write_spectrograms(folder: Path, name: str, inputs: Inputs) -> None:
    clip = steps.load_npz(inputs[f"scores-{name}"] / "scores.npz")["clip"]
    all_windows = steps.load_npz(inputs[f"windows-{name}"] / "windows.npz")["clip"]
    spectrograms = np.load(inputs[f"windows-{name}"] / "spectrograms.npy", mmap_mode="r")
    np.save(folder / f"devel_spectrograms-{name}.npy", spectrograms[np.isin(all_windows, clip)])


def _score_arrays(devel: Devel, vote: Sequence[str]) -> dict[str, Any]:
    return {
        "members": np.array(devel.members),
        "file_name": np.array([clip.file_name for clip in devel.clips]),
        "label": np.array([clip.label for clip in devel.clips]),
        "group": np.array(devel.groups),
        "clip_scores": devel.means,
        "vote_clip_scores": devel.vote(vote, devel.means),
        "window_clip": devel.window_clip,
        "window_start": devel.window_start,
        "window_scores": devel.windows,
    }


def _curve_arrays(devel: Devel, vote: Sequence[str]) -> dict[str, Any]:
    columns = {name: devel.means[:, k] for k, name in enumerate(devel.members)}
    columns["vote"] = devel.vote(vote, devel.means)
    return {
        f"{name}/{key}": values
        for name, column in columns.items()
        for key, values in metrics.curves(column, devel.labels).items()
    }


def summary(folder: Path) -> str:
    """A result folder in a few lines of Markdown: members, vote, thresholds."""
    found = steps.load_json(folder / "selection.json")
    lines = ["| devel ROC AUC | value | 95 % interval by recording |", "|---|---|---|"]
    measured = found["metrics"]
    figures = {**measured["members"], "vote": measured["vote"], "nested choice": measured["nested"]}
    lines += [f"| {name} | {f['value']:.4f} | {f['low']:.4f} to {f['high']:.4f} |" for name, f in figures.items()]
    left = [f"left out: {one['name']}: {one['reason']}" for one in found["dropped"]]
    return "\n".join([*lines, "", f"vote: {' + '.join(found['vote'])}", _limits(found), _zeros(found), *left])


def _limits(found: Mapping[str, Any]) -> str:
    limits = found["thresholds"]
    return (
        f"thresholds: start {limits['start']:.3f}, stop {limits['stop']:.3f}; on devel: recall {limits['recall']:.2f}, "
        f"precision {limits['precision']:.2f}, {limits['false_alarms_per_hour']:.0f} false alarms an hour of noise"
    )


def _zeros(found: Mapping[str, Any]) -> str:
    counted = [
        f"{name} {split} {count['all_zero']} of {count['rows']}"
        for name, splits in found["all_zero"].items()
        for split, count in splits.items()
    ]
    return f"windows without relevance: {', '.join(counted)}"
