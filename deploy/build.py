"""Make a bundle out of a training run, and verify it window by window through the edge's own code."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..bundle import CARD, load_bundle, write_bundle
from ..cascade import Cascade
from ..ensemble import Ensemble
from ..errors import InputError
from ..interpreter import runtime_name
from ..metrics import Interval, auc_interval, clip_highest, clip_means, event_thresholds
from ..spectrogram import FrontEnd, has_prominence, prominence, rows_of
from ..windows import windows_of
from . import cascade as cascades
from .card import model_card
from .faint import Mixture, draw, gain, mix
from .models import Exported, exported
from .quantize import Progress
from .run import Array, Audio, Run, heads, needed_backbones

Floats = NDArray[np.floating[Any]]
Windows = Iterator[tuple[int, dict[str, Array]]]
HEADS = "heads.tflite"
# Figures of the selection's metrics that belong to its own vote alone.
OF_THE_VOTE = ("vote", "nested", "uncalibrated_vote")


@dataclass(frozen=True)
class Plan:
    """What a bundle is to hold.

    Attributes
    ----------
    vote : the members whose confidences are averaged.
    members : the heads in it, the vote's among them.
    quantization : variant of each backbone in it.
    most_lost : share of called windows that a cascade may lose (see `cascade.choose`); None for no cascade.
    """

    vote: tuple[str, ...]
    members: tuple[str, ...]
    quantization: Mapping[str, str]
    most_lost: float | None = None


def plan_bundle(
    run: Run,
    quantization: Mapping[str, str],
    vote: Sequence[str],
    all_members: bool = False,
    most_lost: float | None = None,
    gates: Sequence[str] = (),
) -> Plan:
    """The vote's members and the backbones they need; with `all_members` every head that those backbones can serve.

    Parameters
    ----------
    run : from `read_run`.
    quantization : variant by backbone, for each that the vote needs.
    vote : names of members.
    all_members : keep the heads outside the vote too; they cost little and their scores can be compared.
    most_lost : as `Plan`.
    gates : cheap backbones outside the vote that the cascade may hear first.

    Raises
    ------
    InputError : an empty vote, a backbone without a variant, an unknown gate, or gates without a cascade.
    """
    if (unknown := sorted(set(gates) - set(run.backbones))) or (gates and most_lost is None):
        raise InputError(
            f"gates are backbones of the run, {list(run.backbones)}, for a cascade; not {unknown or list(gates)}"
            + ("" if unknown else " without one")
        )
    needed = needed_backbones(run, vote)
    backbones = [name for name in run.backbones if name in {*needed, *gates}]
    if not needed:
        raise InputError(f"a vote needs one of {[entry['name'] for entry in run.members]}, not {list(vote)}")
    if missing := [name for name in backbones if name not in quantization]:
        raise InputError(f"no quantization is given for {missing}")
    served = [entry["name"] for entry in run.members if all_members and set(entry["backbones"]) <= set(backbones)]
    members = tuple(entry["name"] for entry in run.members if entry["name"] in {*vote, *served})
    return Plan(tuple(vote), members, {name: quantization[name] for name in backbones}, most_lost)


def build_bundle(run: Run, folder: Path, plan: Plan, progress: Progress = iter) -> None:
    """Export a vote, measure the export on the run's devel windows, and write both as a bundle.

    The thresholds are those of the exported scores, by the rule that the training side uses.

    Parameters
    ----------
    run : from `read_run`.
    folder : the bundle's, which must not exist.
    plan : from `plan_bundle`.
    progress : wraps the iteration over the windows, for a progress bar.

    Raises
    ------
    BundleError : the folder exists.
    OrcawatchError : the disk refuses; nothing is left under the folder's name.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already: name a new folder, or move the old bundle away")
    models = {name: exported(run, name, quantization) for name, quantization in plan.quantization.items()}
    cascade = _choose(run, plan, models, progress)
    plan, models = _kept(run, plan, cascade, models)
    files, manifest = _files(run, plan, models, cascade), _manifest(run, plan, models)
    heard = _pass(run, plan.vote if cascade.gates else (), manifest | _described(cascade), files, progress)
    passed = heard.recorded
    found = {
        "exported": asdict(_verification(run, passed)),
        "thresholds": _thresholds(run, plan.vote, passed),
    }
    if cascade.gates:
        found |= _described(cascade, _evidence(run, plan, cascade, heard))
    manifest = {**manifest, **found}
    write_bundle(folder, manifest, {**files, CARD: model_card(manifest).encode()})


def _pass(
    run: Run, vote: Sequence[str], manifest: Mapping[str, Any], files: Mapping[str, bytes], progress: Progress
) -> Heard:
    """The run's devel windows through a bundle that is kept for that long, and what this vote calls of them, fainter.

    Where there is no vote, or the run's audio is gone, there are no fainter calls.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        write_bundle(folder, manifest, {**files, CARD: b""})
        names = [one["name"] for one in manifest["backbones"]]
        recorded, audio = score_windows(folder, devel_windows(run, names, progress)), run.audio()
        mixtures = _mixtures(run, vote, recorded) if vote and audio is not None else []
        if not mixtures or audio is None:
            return Heard(recorded, (), None)
        return Heard(recorded, mixtures, score_windows(folder, mixed_windows(run, names, audio, mixtures, progress)))


def _mixtures(run: Run, vote: Sequence[str], passed: Passed) -> list[Mixture]:
    """Devel's calls in other noise of devel."""
    devel = run.arrays("devel_scores.npz")
    highest = clip_highest(_votes(passed, vote), devel["window_clip"], len(devel["label"]))
    called = highest >= _thresholds(run, vote, passed)["stop"]
    return draw(devel["label"] == "orca", called, devel["group"].tolist(), run.resampling["seed"])


def _choose(run: Run, plan: Plan, models: Mapping[str, Exported], progress: Progress) -> Cascade:
    """The cascade, from the windows through a bundle with all heads that its backbones can serve."""
    if plan.most_lost is None or run.selection["channel_fusion"] != "max":  # it holds for each channel, not their mean
        return Cascade()
    served = tuple(entry["name"] for entry in run.members if set(entry["backbones"]) <= set(models))
    whole = replace(plan, members=served)
    heard = _pass(run, plan.vote, _manifest(run, whole, models), _files(run, whole, models, Cascade()), progress)
    return cascades.choose(_scored(run, plan.vote, heard), plan.most_lost)


def _kept(run: Run, plan: Plan, cascade: Cascade, models: Mapping[str, Exported]) -> tuple[Plan, dict[str, Exported]]:
    """The plan with the heads of the gates, and without backbones that neither the vote nor a gate hears."""
    gating = {name for gate in cascade.gates for name in gate.members}
    members = tuple(entry["name"] for entry in run.members if entry["name"] in {*plan.members, *gating})
    backbones = needed_backbones(run, members)
    quantization = {name: plan.quantization[name] for name in backbones}
    return replace(plan, members=members, quantization=quantization), {name: models[name] for name in backbones}


def _scored(run: Run, vote: Sequence[str], heard: Heard) -> cascades.Scored:
    """The windows as a cascade is chosen on them."""
    clips, recorded = _clips_heard(run, heard), heard.recorded
    return cascades.Scored(
        recorded.members,
        heard.joined(lambda passed: passed.scores),
        heard.joined(lambda passed: _votes(passed, vote)),
        {entry["name"]: entry["backbones"] for entry in run.members},
        needed_backbones(run, vote),
        heard.prominences,
        recorded.milliseconds,
        clips.orca[clips.of_window],
        np.array(clips.recordings)[clips.of_window],
        clips.snr_db[clips.of_window],
        _thresholds(run, vote, recorded)["stop"],
    )


def _clips_heard(run: Run, heard: Heard) -> cascades.Clips:
    """The devel clips, and after them the mixtures."""
    devel = run.arrays("devel_scores.npz")
    of_window = heard.recorded.clips
    if heard.faint is not None:
        of_window = np.append(of_window, len(devel["label"]) + heard.faint.clips)
    return cascades.with_mixtures(devel["label"] == "orca", devel["group"].tolist(), heard.mixtures, of_window)


def _votes(passed: Passed, vote: Sequence[str]) -> Array:
    return np.asarray(passed.scores[:, [passed.members.index(name) for name in vote]].mean(axis=1))


def _described(cascade: Cascade, evidence: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The manifest's `cascade`; nothing where there is none."""
    return {"cascade": {**asdict(cascade), "evidence": evidence}} if cascade.gates else {}


def _evidence(run: Run, plan: Plan, cascade: Cascade, heard: Heard) -> dict[str, Any]:
    start = _thresholds(run, plan.vote, heard.recorded)["start"]
    scored, clips, bound = _scored(run, plan.vote, heard), _clips_heard(run, heard), plan.most_lost or 0.0
    cascaded = heard.joined(lambda passed: passed.cascaded)
    return cascades.evidence(scored, cascade, cascaded, clips, start, bound, **run.resampling)


def _files(run: Run, plan: Plan, models: Mapping[str, Exported], cascade: Cascade) -> dict[str, bytes]:
    """Content of the bundle's files but for its card."""
    from .export import export_heads

    files = {
        name: path.read_bytes()
        for backbone, one in models.items()
        for name, path in zip(_file_names(backbone).values(), one.files)
    }
    sizes = {name: int(run.backbones[name]["feature_size"]) for name in models}
    return {**files, HEADS: export_heads(heads(run, plan.members), plan.vote, sizes, cascade.gates)}


def _file_names(backbone: str) -> dict[str, str]:
    return {"file": f"{backbone}.tflite", "explain_file": f"{backbone}-explain.tflite"}


def _manifest(run: Run, plan: Plan, models: Mapping[str, Exported]) -> dict[str, Any]:
    """The manifest but for the export's own figures; its thresholds are the selection's until those are known."""
    selection = run.selection
    return {
        **{key: selection[key] for key in ("name", "hop_s", "channel_fusion", "thresholds", "data")},
        "vote": list(plan.vote),
        "members": list(plan.members),
        "fusion": {one["name"]: one["backbones"] for one in run.members if one["name"] in plan.members},
        "metrics": _metrics(run, plan),
        **{key: _of(selection[key], models) for key in ("all_zero", "masks")},
        "backbones": [_backbone(run, name, one) for name, one in models.items()],
        "heads": {"file": HEADS, "quantization": "float32"},
        "relevance": {
            "mask_neuron": "highest",
            "snapshot_neuron": "orca, from the confidence",
            "average_pooling": "conserve",
        },
        "training": {key: selection[key] for key in ("seed", "recipe", "versions", "dropped")},
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "orcawatch": __version__,
    }


def _of(by_backbone: Mapping[str, Any], backbones: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in by_backbone.items() if name in backbones}


def _backbone(run: Run, name: str, one: Exported) -> dict[str, Any]:
    entry = run.backbones[name]
    return {
        "name": name,
        **{kind: file for (kind, file), _ in zip(_file_names(name).items(), one.files)},
        **{key: entry[key] for key in ("feature_size", "front_end", "weights_source", "input_shape")},
        "quantization": one.quantization,
        "explained_by": one.explained_by,
        "bytes": one.bytes,
    }


def _metrics(run: Run, plan: Plan) -> dict[str, Any]:
    """Figures of the training side for what is in the bundle; the choice's own only where the vote is the run's."""
    trained, devel = run.selection["metrics"], run.arrays("devel_scores.npz")
    same = set(plan.vote) == set(run.selection["vote"])
    kept = {key: value for key, value in trained.items() if key != "members" and (same or key not in OF_THE_VOTE)}
    aucs = _aucs(run, _clips(devel, _trained(devel, plan.members), plan.members, plan.vote))
    return {
        **kept,
        "members": {name: asdict(found) for name, found in aucs.items() if name != "vote"},
        "vote": asdict(aucs["vote"]),
        "chosen_by": "the run's own selection" if same else "hand or budget, not by the run's own selection",
    }


@dataclass(frozen=True)
class Verification:
    """How a bundle, through the edge's code, compares with the training side on the devel split.

    Attributes
    ----------
    runtime : the TFLite interpreter's package.
    windows : how many were compared.
    window_ms : median processor time per window of all backbones and heads, one thread, on the machine that made it.
    largest_difference : of a window's confidence by member, and of a clip's score by `vote`.
    auc : ROC AUC of clips by the exported members, the `vote` and, where there is one, the `cascade`, with intervals by
        recording.
    trained_auc : the same of the training side's scores.
    """

    runtime: str
    windows: int
    window_ms: float
    largest_difference: Mapping[str, float]
    auc: Mapping[str, Interval]
    trained_auc: Mapping[str, Interval]


@dataclass(frozen=True)
class Passed:
    """Windows through a bundle.

    Attributes
    ----------
    clips : index of each window's clip, or mixture, shape (windows,).
    members, vote : the bundle's.
    scores : members' confidences, shape (windows, members).
    cascaded : score of each window under the bundle's cascade, shape (windows,).
    gated : whether it has one.
    prominences : of the spectrograms by backbone, each shape (windows,).
    milliseconds : median processor time of a window by backbone.
    window_ms : the same of all backbones and heads.
    """

    clips: NDArray[np.int64]
    members: tuple[str, ...]
    vote: tuple[str, ...]
    scores: Array
    cascaded: Array
    gated: bool
    prominences: Mapping[str, Array]
    milliseconds: Mapping[str, float]
    window_ms: float


@dataclass(frozen=True)
class Heard:
    """What a cascade is chosen and judged on, through a bundle.

    Attributes
    ----------
    recorded : the devel windows.
    mixtures : devel's calls in other noise.
    faint : their windows; None where there are no mixtures.
    """

    recorded: Passed
    mixtures: Sequence[Mixture]
    faint: Passed | None

    @property
    def parts(self) -> list[Passed]:
        """The devel windows, and those of the mixtures, where there are any."""
        return [self.recorded] if self.faint is None else [self.recorded, self.faint]

    def joined(self, of: Callable[[Passed], Array]) -> Array:
        """Something of all windows, those of the mixtures last."""
        return np.concatenate([of(passed) for passed in self.parts])

    @property
    def prominences(self) -> dict[str, Array]:
        """As those of `Passed`, of all windows."""
        names = self.recorded.prominences
        return {name: np.concatenate([passed.prominences[name] for passed in self.parts]) for name in names}


def verify_bundle(run: Run, folder: Path, progress: Progress = iter) -> Verification:
    """Score every devel window of the run with the bundle and compare.

    Parameters
    ----------
    run : the run that the bundle was made from.
    folder : the bundle.
    progress : wraps the iteration over the windows, for a progress bar.
    """
    return _verification(run, score_windows(folder, devel_windows(run, load_bundle(folder).backbones, progress)))


def devel_windows(run: Run, names: Iterable[str], progress: Progress = iter) -> Windows:
    """Every devel window: the index of its clip, and its finished spectrograms by backbone."""
    clips = run.arrays("devel_scores.npz")["window_clip"].tolist()
    stored = {name: run.spectrograms(name) for name in names}
    for k in progress(range(len(clips))):
        yield clips[k], {name: np.array(one[k]) for name, one in stored.items()}


def mixed_windows(
    run: Run, names: Iterable[str], audio: Audio, mixtures: Sequence[Mixture], progress: Progress = iter
) -> Windows:
    """Every window of the mixtures: the index of its mixture, and its finished spectrograms by backbone."""
    front_ends = {name: run.front_end(name) for name in names}
    highest = max(run.front_end(name).rate_hz for name in run.backbones)  # one gain, whatever the bundle holds of them
    waves = {rate: audio.devel(rate) for rate in {highest, *(one.rate_hz for one in front_ends.values())}}
    for number in progress(range(len(mixtures))):
        one = mixtures[number]
        factor = gain(waves[highest][one.call], waves[highest][one.noise], highest, one)
        mixed = {rate: mix(found[one.call], found[one.noise], one, factor) for rate, found in waves.items()}
        rows = {name: rows_of(of, mixed[of.rate_hz][:, None], of.rate_hz)[:, 0] for name, of in front_ends.items()}
        shared = min(map(len, rows.values()))
        cut = {name: _windows(of, rows[name][:shared], run.selection["hop_s"]) for name, of in front_ends.items()}
        for k in range(min(map(len, cut.values()))):
            yield number, {name: found[k] for name, found in cut.items()}


def _windows(front_end: FrontEnd, rows: Array, hop_s: float) -> Array:
    """Finished spectrograms of a clip's rows, shape (windows, height, width)."""
    hop = max(1, round(hop_s * front_end.rate_hz / front_end.hop_samples))
    return np.asarray(front_end.finish(windows_of(rows, front_end.frames, hop)[1]), np.float32)


def score_windows(folder: Path, windows: Windows) -> Passed:
    """Pass windows, each with the index of its clip, through a bundle, as the edge does, on one thread."""
    ensemble = Ensemble(load_bundle(folder))
    backbones = ensemble.bundle.backbones
    still = [name for name, one in backbones.items() if has_prominence(one.front_end)]
    clips, scores, cascaded, seconds, prominences = [], [], [], [], []
    for clip, spectrograms in windows:
        clips.append(clip)
        heard = ensemble.hear(spectrograms)
        times = [seconds_of(partial(heard.features, [name])) for name in backbones]
        start = time.process_time()
        scores.append(ensemble.all_members(heard))
        seconds.append([*times, time.process_time() - start])
        cascaded.append(ensemble.channel(heard)[1])
        prominences.append([prominence(heard.spectrogram(name)) for name in still])
    medians = np.median(seconds, axis=0) * 1e3
    return Passed(
        np.array(clips),
        ensemble.bundle.members,
        ensemble.bundle.vote,
        np.stack(scores),
        np.array(cascaded),
        bool(ensemble.cascade.gates),
        dict(zip(still, np.transpose(prominences))),
        dict(zip(backbones, medians.tolist())),
        float(np.median(np.sum(seconds, axis=1))) * 1e3,
    )


def seconds_of(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _verification(run: Run, passed: Passed) -> Verification:
    devel = run.arrays("devel_scores.npz")
    trained = _trained(devel, passed.members)
    found, exact = (_clips(devel, scores, passed.members, passed.vote) for scores in (passed.scores, trained))
    differences = {name: float(np.abs(passed.scores - trained)[:, k].max()) for k, name in enumerate(passed.members)}
    differences["vote"] = float(np.abs(found["vote"] - exact["vote"]).max())
    if passed.gated:
        found["cascade"] = clip_means(passed.cascaded, devel["window_clip"], len(devel["label"]))
        exact["cascade"] = exact["vote"]
        differences["cascade"] = float(np.abs(found["cascade"] - exact["cascade"]).max())
    aucs = (_aucs(run, clips) for clips in (found, exact))
    return Verification(runtime_name(), len(trained), passed.window_ms, differences, *aucs)


def _clips(devel: Mapping[str, Any], scores: Array, members: Sequence[str], vote: Sequence[str]) -> dict[str, Floats]:
    """Mean over each clip's windows, by member and for the vote; scores (windows, members)."""
    means = clip_means(scores, devel["window_clip"], len(devel["label"]))
    by_member: dict[str, Floats] = {name: means[:, k] for k, name in enumerate(members)}
    return {**by_member, "vote": np.mean([by_member[name] for name in vote], axis=0)}


def _trained(devel: Mapping[str, Any], members: Sequence[str]) -> Array:
    """Confidences by the training side, shape (windows, members)."""
    return np.asarray(devel["window_scores"][:, [list(devel["members"]).index(name) for name in members]])


def _aucs(run: Run, clips: Mapping[str, Floats]) -> dict[str, Interval]:
    devel = run.arrays("devel_scores.npz")
    orca, groups = devel["label"] == "orca", list(devel["group"])
    return {name: auc_interval(scores, orca, groups, **run.resampling) for name, scores in clips.items()}


def _thresholds(run: Run, vote: Sequence[str], passed: Passed) -> dict[str, Any]:
    """Thresholds of the exported vote's events (see `metrics.event_thresholds`), with the false alarms by kind."""
    devel = run.arrays("devel_scores.npz")
    scores = passed.scores[:, [passed.members.index(name) for name in vote]].mean(axis=1)
    found = event_thresholds(scores, devel["window_clip"], devel["label"] == "orca", devel["seconds"])
    called = set(devel["window_clip"][scores >= found.start].tolist())
    noise = {k: str(kind) for k, kind in enumerate(devel["kind"]) if devel["label"][k] == "noise"}
    alarms = Counter(kind for k, kind in noise.items() if k in called)
    by_kind = {kind: [alarms[kind], number] for kind, number in sorted(Counter(noise.values()).items())}
    return {**asdict(found), "false_alarms_by_kind": by_kind}
