"""Rank the votes, choose one, set its thresholds, and lay out what is exported and reported."""

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

from .. import metrics, ranking
from ..errors import TrainingError
from . import analysis, heads, members
from .backbones import weights_source
from .dataset import NOT_STATED, Clip
from .heads import HeadSettings
from .members import Member
from .preparation import SPLITS, read_clips, windows_of_data
from .recipe import ANY_MEMBER, Recipe, backbone_of
from .stages import RECORD, Inputs
from .storage import ArrayWriter, load_json, load_npz, save_json

Array = NDArray[np.floating[Any]]

REPRESENTATIVE = 256  # training windows for quantization

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The members' scores on one split.

    Attributes
    ----------
    members : their names.
    clips : the split's clips.
    clip_index : index of each among all clips.
    window_clip, window_start : index into `clips` and first row of each window.
    windows : confidences, shape (windows, members).
    means : mean confidences, shape (clips, members).
    taught : confidence of each backbone's teacher, shape (windows, backbones); not a number where there is none.
    labels, groups : True where orca, and the recording, by clip.
    """

    members: tuple[str, ...]
    clips: tuple[Clip, ...]
    clip_index: NDArray[np.int64]
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
    devel = collect(inputs, "devel")
    described = members.all_members(names, inputs)
    must = required(described, recipe.vote.must_contain)
    rows = ranking.rank(devel.members, devel.means, devel.labels)
    chosen = ranking.select(rows, must)
    analysed = analysis.analyse(_analysed(devel, described), chosen.members, must, recipe.vote.draws, recipe.seed)
    selection = {
        "name": recipe.name,
        "seed": recipe.seed,
        "backbones": [_backbone(recipe, name, inputs) for name in names],
        "members": [member.to_json() for member in described],
        "dropped": members.dropped(names, inputs),
        "vote": list(chosen.members),
        "hop_s": recipe.windows.hop_s,
        "channel_fusion": recipe.vote.channel_fusion,
        "thresholds": thresholds(devel, chosen.members),
        "metrics": measure(devel, chosen.members, analysed, recipe),
        **_reports(inputs, names),
        "data": load_json(inputs["data"] / "clips.json")["data"],
        "recipe": settings["recipe"],
        "costs": costs(inputs),
        "versions": versions(inputs),
    }
    save_json(folder / "selection.json", selection)
    save_json(folder / "analysis.json", analysed)
    _write_tables(folder, devel, rows, selection)
    _write_arrays(folder, devel, chosen.members, inputs, names)
    for name in names:
        _write_spectrograms(folder, recipe, name, settings["cutting"][name], devel, inputs)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings["recipe"], sort_keys=False), encoding="utf-8")
    for left in selection["dropped"]:
        log.info("%s is left out: %s", left["name"], left["reason"])
    log.info("vote %s, AUC %.4f on devel", "+".join(chosen.members), chosen.auc)


def collect(inputs: Inputs, split: str) -> Split:
    """Scores of all members on one split."""
    clips = read_clips(inputs["data"])
    stored = load_npz(inputs["scores"] / "scores.npz")
    index = np.flatnonzero([clip.split == split for clip in clips])
    chosen = stored["split"] == SPLITS.index(split)
    windows, window_clip = stored["scores"][chosen], np.searchsorted(index, stored["clip"][chosen])
    kept = tuple(clips[k] for k in index)
    return Split(
        members=tuple(str(member) for member in stored["members"]),
        clips=kept,
        clip_index=index,
        window_clip=window_clip,
        window_start=stored["start"][chosen],
        windows=windows,
        means=metrics.clip_means(windows, window_clip, len(kept)),
        taught=stored["taught"][chosen],
        labels=np.array([clip.label == "orca" for clip in kept]),
        groups=tuple(clip.group for clip in kept),
    )


def _analysed(devel: Split, described: Sequence[Member]) -> analysis.Scores:
    return analysis.Scores(
        members=[member.to_json() for member in described],
        clips=devel.means,
        windows=devel.windows,
        window_clip=devel.window_clip,
        labels=devel.labels,
        groups=devel.groups,
        seconds=np.array([clip.seconds for clip in devel.clips]),
    )


def required(described: Sequence[Member], must_contain: str) -> list[str] | None:
    """Names of the members of which the vote must contain one; None where any vote may be chosen.

    Raises
    ------
    TrainingError : no member has the mask that the vote must contain.
    """
    if must_contain == ANY_MEMBER:
        return None
    names = [member.name for member in described if member.mask == must_contain]
    if not names:
        there = sorted({member.mask for member in described})
        raise TrainingError(
            f"vote.must_contain is {must_contain}, but the members' masks are {there}: name one of these or "
            f"{ANY_MEMBER!r}, or keep fewer features (masks.minimal_keep)"
        )
    return names


def thresholds(devel: Split, vote: Sequence[str]) -> dict[str, Any]:
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


def measure(devel: Split, vote: Sequence[str], analysed: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """ROC AUC of devel clips with intervals: each member, the vote, the choice of the vote, and `_compared`."""

    def interval(scores: Array) -> dict[str, Any]:
        return asdict(metrics.auc_interval(scores, devel.labels, devel.groups, recipe.vote.draws, recipe.seed))

    return {
        "split": "devel",
        "score": "mean orca confidence over a clip's windows",
        "interval": analysed["interval"],
        **analysed["auc"],
        "nested": analysed["nested"]["auc"],
        **{name: interval(scores) for name, scores in _compared(devel, vote, recipe.head).items()},
        "note": ranking.OPTIMISTIC.format(rows=2 ** len(devel.members) - 1),
    }


def _compared(devel: Split, vote: Sequence[str], head: HeadSettings) -> dict[str, Array]:
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
    records = {name: load_json(folder / RECORD) for name, folder in inputs.items()}
    return {name: {"wall_s": record["wall_s"], "peak_mb": record["peak_mb"]} for name, record in records.items()}


def versions(inputs: Inputs) -> dict[str, str]:
    """Versions of what computed the stages, as they recorded them, and of what lays out their result."""
    recorded = load_json(inputs["data"] / RECORD)["versions"]
    return {"python": platform.python_version(), "orcawatch": version("orcawatch"), **recorded}


def _backbone(recipe: Recipe, name: str, inputs: Inputs) -> dict[str, Any]:
    plugin = backbone_of(name, recipe.backbones[name])
    return {
        "name": name,
        "feature_size": plugin.feature_size,
        "front_end": plugin.front_end.to_dict(),
        "input_shape": list(plugin.front_end.shape),
        "weights": f"backbone-{name}.npz",
        "weights_source": weights_source(recipe.backbones[name]),
        "spectrograms": f"devel_spectrograms-{name}.npy",
        "representative": f"representative-{name}.npy",
        "history": load_json(inputs[f"backbone-{name}"] / "history.json"),
    }


def _reports(inputs: Inputs, names: Sequence[str]) -> dict[str, Any]:
    relevance = {name: load_json(inputs[f"relevance-{name}"] / "report.json") for name in names}
    masks = {name: members.read_report(inputs, name) for name in names}
    return {"all_zero": {name: report["all_zero"] for name, report in relevance.items()}, "masks": masks}


def _write_tables(folder: Path, devel: Split, rows: Sequence[ranking.Row], selection: Mapping[str, Any]) -> None:
    nested = selection["metrics"]["nested"]
    notes = [
        selection["metrics"]["note"],
        f"Nested: {nested['value']:.4f} (95 % interval {nested['low']:.4f} to {nested['high']:.4f}).",
        f"Chosen: {' + '.join(selection['vote'])}.",
        *[f"Left out: {left['name']}: {left['reason']}." for left in selection["dropped"]],
    ]
    (folder / "ranking.csv").write_text(ranking.to_csv(devel.members, rows), encoding="utf-8")
    (folder / "ranking.md").write_text(ranking.to_markdown(devel.members, rows, notes), encoding="utf-8")


def _write_arrays(folder: Path, devel: Split, vote: Sequence[str], inputs: Inputs, names: Sequence[str]) -> None:
    trained = members.read_heads(names, inputs)
    masks: dict[str, Any] = {f"{name}/minimal": np.load(inputs[f"masks-{name}"] / "minimal.npy") for name in names}
    for name in names:
        shutil.copyfile(inputs[f"backbone-{name}"] / "weights.npz", folder / f"backbone-{name}.npz")
    heads.save_heads(folder / "heads.npz", {name: trained[name] for name in devel.members})
    np.savez(folder / "masks.npz", **masks)
    np.savez(folder / "devel_scores.npz", **_score_arrays(devel, vote))
    np.savez(folder / "curves.npz", **_curve_arrays(devel, vote))
    test = collect(inputs, "test")
    if test.clips:
        np.savez(folder / "test_scores.npz", **_score_arrays(test, vote))


def _write_spectrograms(
    folder: Path, recipe: Recipe, name: str, cutting: Mapping[str, Any], devel: Split, inputs: Inputs
) -> None:
    """The devel windows' spectrograms, and the representative training windows'."""
    front_end = backbone_of(name, recipe.backbones[name]).front_end
    with ArrayWriter(folder / f"devel_spectrograms-{name}.npy") as file:
        for some in windows_of_data(front_end, inputs["data"], cutting, devel.clip_index.tolist(), f"devel {name}"):
            file.append(some.spectrograms)
    rows = load_npz(inputs[f"features-{name}"] / "rows.npz")
    drawn = draw_representative(rows, recipe.seed)
    wanted = {(int(rows["clip"][k]), int(rows["start"][k])) for k in drawn}
    with ArrayWriter(folder / f"representative-{name}.npy") as file:
        clips = sorted({clip for clip, _ in wanted})
        for some in windows_of_data(front_end, inputs["data"], cutting, clips, f"representative {name}"):
            chosen = [(some.clip, int(start)) in wanted for start in some.starts]
            file.append(some.spectrograms[chosen])


def draw_representative(rows: Mapping[str, NDArray[Any]], seed: int) -> NDArray[np.int64]:
    """Indices of at most REPRESENTATIVE training windows as they are: recordings take turns, classes alike."""
    generator = np.random.default_rng(seed)
    as_they_are = (rows["split"] == members.TRAIN) & (rows["passed"] == 0)
    order = generator.permutation(np.flatnonzero(as_they_are))
    turns: Counter[tuple[bool, str]] = Counter()
    keys = []
    for k in order:
        recording = (bool(rows["orca"][k]), str(rows["group"][k]))
        keys.append((turns[recording], k))
        turns[recording] += 1
    orca = [k for _, k in sorted(keys) if rows["orca"][k]][: REPRESENTATIVE // 2]
    noise = [k for _, k in sorted(keys) if not rows["orca"][k]][: REPRESENTATIVE - len(orca)]
    return np.sort(np.array([*orca, *noise]))


def _score_arrays(split: Split, vote: Sequence[str]) -> dict[str, Any]:
    return {
        "members": np.array(split.members),
        "file_name": np.array([clip.file_name for clip in split.clips]),
        "label": np.array([clip.label for clip in split.clips]),
        "group": np.array(split.groups),
        "kind": np.array([clip.kind or NOT_STATED for clip in split.clips]),
        "seconds": np.array([clip.seconds for clip in split.clips]),
        "clip_scores": split.means,
        "vote_clip_scores": split.vote(vote, split.means),
        "window_clip": split.window_clip,
        "window_start": split.window_start,
        "window_scores": split.windows,
    }


def _curve_arrays(devel: Split, vote: Sequence[str]) -> dict[str, Any]:
    columns = {name: devel.means[:, k] for k, name in enumerate(devel.members)}
    columns["vote"] = devel.vote(vote, devel.means)
    return {
        f"{name}/{key}": values
        for name, column in columns.items()
        for key, values in metrics.curves(column, devel.labels).items()
    }


def summary(folder: Path) -> str:
    """A result folder in a few lines of Markdown: members, vote, thresholds."""
    found = load_json(folder / "selection.json")
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
