"""The last stage: rank the votes, choose one, set its thresholds, and lay out what is exported."""

from __future__ import annotations

import logging
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .. import metrics
from ..errors import TrainingError
from . import heads, ranking, steps
from .dataset import NOT_STATED, Clip
from .heads import HeadSettings
from .recipe import ANY_MEMBER, Recipe, backbone_of
from .stages import RECORD, Inputs

Array = NDArray[np.floating[Any]]

log = logging.getLogger(__name__)


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
    taught : confidence of each backbone's teacher, shape (windows, backbones); not a number where there is none.
    labels, groups : True where orca, and the recording, by clip.
    """

    members: tuple[str, ...]
    clips: tuple[Clip, ...]
    window_clip: NDArray[np.int64]
    window_start: NDArray[np.int64]
    windows: Array
    means: Array
    taught: Array
    labels: NDArray[np.bool_]
    groups: tuple[str, ...]

    def vote(self, members: Sequence[str], scores: Array) -> Array:
        """Average of the named members' columns."""
        return np.asarray(scores[:, [self.members.index(name) for name in members]].mean(axis=1))

    def clip_means(self, windows: Array) -> Array:
        """Mean over each clip's windows: (windows, ...) in, (clips, ...) out."""
        return metrics.clip_means(windows, self.window_clip, len(self.clips))


def make_result(recipe: Recipe, settings: Any, inputs: Inputs, folder: Path) -> None:
    """Fill the result folder as `pipeline` describes it."""
    names = tuple(recipe.backbones)
    devel = collect(inputs, names)
    described = describe_members(inputs, names)
    must = required(described, recipe.vote.must_contain)
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
        "thresholds": thresholds(devel, chosen.members),
        "metrics": measure(devel, chosen.members, must, recipe),
        **_reports(inputs, names),
        "data": steps.load_json(inputs["data"] / "clips.json")["data"],
        "recipe": settings,
        "costs": costs(inputs),
        "versions": versions(inputs),
    }
    steps.save_json(folder / "selection.json", selection)
    _write_tables(folder, devel, rows, selection)
    _write_arrays(folder, devel, chosen.members, inputs, names)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    log.info("vote %s, AUC %.4f on devel", "+".join(chosen.members), chosen.auc)


def collect(inputs: Inputs, names: Sequence[str]) -> Devel:
    """Scores of every backbone's members side by side.

    Raises
    ------
    TrainingError : the backbones' windows are not the same.
    """
    clips = steps.read_clips(inputs["data"])
    devel = [k for k, clip in enumerate(clips) if clip.split == "devel"]
    stored = [steps.load_npz(inputs[f"scores-{name}"] / "scores.npz") for name in names]
    check_windows(dict(zip(names, stored)))
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
        taught=np.stack([one["taught"] for one in stored], axis=1),
        labels=np.array([clip.label == "orca" for clip in kept]),
        groups=tuple(clip.group for clip in kept),
    )


def check_windows(stored: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Raise TrainingError unless all backbones cut the same windows (`clip`, `start`): a vote averages over them."""
    first = next(iter(stored))
    for name, one in stored.items():
        if any(not np.array_equal(one[key], stored[first][key]) for key in ("clip", "start")):
            raise TrainingError(
                f"{name} cuts {len(one['clip'])} devel windows and {first} {len(stored[first]['clip'])}, or at other "
                "rows: a vote needs the same windows; give both front ends the same frames and hop_samples"
            )


def required(described: Sequence[Mapping[str, Any]], must_contain: str) -> list[str] | None:
    """Names of the members of which the vote must contain one; None where any vote may be chosen.

    Raises
    ------
    TrainingError : no member has the mask that the vote must contain.
    """
    if must_contain == ANY_MEMBER:
        return None
    names = [member["name"] for member in described if member["mask"] == must_contain]
    if not names:
        there = sorted({member["mask"] for member in described})
        raise TrainingError(
            f"vote.must_contain is {must_contain}, but the members' masks are {there}: name one of these or "
            f"{ANY_MEMBER!r}, or keep fewer features (masks.minimal_keep)"
        )
    return names


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


def thresholds(devel: Devel, vote: Sequence[str]) -> dict[str, Any]:
    """Thresholds of the vote's events (see `metrics.event_thresholds`), with the false alarms by kind of sound."""
    scores, seconds = devel.vote(vote, devel.windows), np.array([clip.seconds for clip in devel.clips])
    found = metrics.event_thresholds(scores, devel.window_clip, devel.labels, seconds)
    called = set(devel.window_clip[scores >= found.start].tolist())
    return {**asdict(found), "false_alarms_by_kind": false_alarms_by_kind(devel.clips, called)}


def false_alarms_by_kind(clips: Sequence[Clip], called: set[int]) -> dict[str, list[int]]:
    """False alarms and number of noise clips of each kind of sound; `called` holds the indices of the clips called."""
    noise = {k: clip.kind or NOT_STATED for k, clip in enumerate(clips) if clip.label == "noise"}
    alarms = Counter(kind for k, kind in noise.items() if k in called)
    return {kind: [alarms[kind], number] for kind, number in sorted(Counter(noise.values()).items())}


def measure(devel: Devel, vote: Sequence[str], must: Sequence[str] | None, recipe: Recipe) -> dict[str, Any]:
    """ROC AUC of devel clips with intervals: each member, the vote, the choice of the vote, and `_compared`."""
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
        **{name: interval(scores) for name, scores in _compared(devel, vote, recipe.head).items()},
        "note": ranking.OPTIMISTIC.format(rows=2 ** len(devel.members) - 1),
    }


def _compared(devel: Devel, vote: Sequence[str], head: HeadSettings) -> dict[str, Array]:
    """Clip scores beside which the vote's are to be seen: of the teacher alone, and of the vote without calibration."""
    found = {}
    taught = devel.taught[:, np.isfinite(devel.taught).all(axis=0)]
    if taught.size:
        found["teacher"] = devel.clip_means(taught.mean(axis=1))
    if (head.slope, head.shift) != (1, 0):
        plain = heads.uncalibrated(devel.windows, head.slope, head.shift)
        found["uncalibrated_vote"] = devel.vote(vote, devel.clip_means(plain))
    return found


def costs(inputs: Inputs) -> dict[str, Any]:
    """Wall time and memory of the stages before this one."""
    records = {name: steps.load_json(folder / RECORD) for name, folder in inputs.items()}
    return {name: {"wall_s": record["wall_s"], "peak_mb": record["peak_mb"]} for name, record in records.items()}


def versions(inputs: Inputs) -> dict[str, str]:
    """Versions of what computed the stages, as they recorded them, and of what lays out their result."""
    recorded = steps.load_json(inputs["data"] / RECORD)["versions"]
    return {"python": platform.python_version(), "orcawatch": version("orcawatch"), **recorded}


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
