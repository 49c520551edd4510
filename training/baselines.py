"""The baselines of the paper's Table 3 as stages: what ComParE 2019 compares with, on the same splits as the networks.

Per recipe section, each optional:

- `opensmile`: functionals -> `baseline-opensmile`: openSMILE's ComParE 2016 functionals (6373 a clip).
- `audio_words`: descriptors -> bags -> `baseline-audio_words`: bags of words over the set's low-level descriptors.
- `autoencoder`: levels -> representations -> `baseline-autoencoder`: recurrent autoencoders on mel spectrograms.
- `baseline-fusion`, where there are two or more: the mean of their confidences.

A clip is one sample, of whatever length; all end in a linear support vector machine (`linear`). The costly stages come
before the machines, so that another machine recomputes no features. A baseline's folder holds

- `scores.npz`: `file_name`, `channel`, `label`, `split`, `group`, `score` (confidence of orca) of every clip outside
  the training split;
- `report.json`: `name`, `auc` (value, low, high, draws: devel, interval by recording), `chosen`, `candidates` (AUC of
  all that was tried), `features` (what the feature stage counted), `versions`, `note`.

Source: Schuller et al. 2019, "The INTERSPEECH 2019 Computational Paralinguistics Challenge".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..metrics import auc_interval
from . import audio_words, autoencoder, functionals, linear
from .audio_words import AudioWordsSettings
from .autoencoder import AutoencoderSettings
from .dataset import Clip
from .linear import Split, SvmSettings, Trained
from .preparation import read_clips, read_waveforms
from .stages import Inputs, Stage
from .storage import ArrayWriter, load_json, load_npz, progress, save_json, set_seed

Array = NDArray[np.float32]

HERE = "orcawatch.training"
READING = (f"{HERE}.preparation", f"{HERE}.dataset", f"{HERE}.storage")
FUNCTIONALS_CODE = (*READING, f"{HERE}.functionals")
BAGS_CODE = (*READING, f"{HERE}.audio_words")
LEVELS_CODE = (*READING, f"{HERE}.autoencoder", "orcawatch.spectrogram")
MACHINE_CODE = (*READING, f"{HERE}.linear", "orcawatch.metrics")
PARTS = ("descriptors", "deltas")  # the two codebooks
FUSION = "fusion"


@dataclass(frozen=True)
class OpensmileSettings:
    """Functionals of openSMILE's ComParE 2016 set.

    Attributes
    ----------
    svm : of the linear machine.
    """

    svm: SvmSettings = field(default_factory=SvmSettings)


@dataclass(frozen=True)
class BaselineSettings:
    """Which baselines to compute; a section that is missing is left out.

    Attributes
    ----------
    opensmile, audio_words, autoencoder : see their classes.
    workers : processes that run openSMILE; as many as there are cores where it is missing. Results do not depend on it.
    """

    opensmile: OpensmileSettings | None = None
    audio_words: AudioWordsSettings | None = None
    autoencoder: AutoencoderSettings | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse no processes at all."""
        if self.workers is not None and self.workers < 1:
            raise TrainingError(f"workers must be 1 or more, not {self.workers}")


def stages(settings: BaselineSettings, rate_hz: int, seed: int, draws: int) -> list[Stage]:
    """The stages of the chosen baselines, to come after the stage `data`; none where no baseline is chosen.

    Parameters
    ----------
    settings : the recipe's section.
    rate_hz : one of the data stage's rates; the highest tells most.
    seed : of folds, solvers, codebooks, networks and the bootstrap.
    draws : bootstrap resamples by recording.

    Raises
    ------
    TrainingError : a package that a chosen baseline needs is not installed.
    """
    made: list[Stage] = []
    if settings.opensmile:
        made += _opensmile_stages(settings.opensmile, _workers(settings), rate_hz, seed, draws)
    if settings.audio_words:
        made += _audio_words_stages(settings.audio_words, _workers(settings), rate_hz, seed, draws)
    if settings.autoencoder:
        made += _autoencoder_stages(settings.autoencoder, rate_hz, seed, draws)
    members = [stage.name for stage in made if stage.name.startswith("baseline-")]
    if len(members) > 1:
        fusion = {"members": members, "seed": seed, "draws": draws}
        made.append(Stage(f"baseline-{FUSION}", fuse, fusion, tuple(members), MACHINE_CODE))
    return made


def _workers(settings: BaselineSettings) -> int:
    return settings.workers or os.cpu_count() or 1


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of installed packages by name; TrainingError where one is missing."""
    try:
        return {name: version(name) for name in packages}
    except PackageNotFoundError as fault:
        raise TrainingError(
            f"the recipe's baselines need {fault.name}, which is not installed: pip install 'orcawatch[baselines]', or "
            "take the section baselines out of the recipe"
        ) from fault


def _opensmile_stages(chosen: OpensmileSettings, workers: int, rate_hz: int, seed: int, draws: int) -> list[Stage]:
    cause = {"rate_hz": rate_hz, "versions": versions(["opensmile"])}
    machine = _machine("opensmile", chosen.svm, ["opensmile"], seed, draws)
    return [
        Stage("functionals", partial(make_functionals, workers), cause, ("data",), FUNCTIONALS_CODE),
        Stage(machine["stage"], score_opensmile, machine, ("data", "functionals"), MACHINE_CODE),
    ]


def _audio_words_stages(chosen: AudioWordsSettings, workers: int, rate_hz: int, seed: int, draws: int) -> list[Stage]:
    cause = {"rate_hz": rate_hz, "versions": versions(["opensmile"])}
    bags = {name: asdict(chosen)[name] for name in ("sizes", "assignments", "per_second")}
    choice = {"sizes": chosen.sizes, "size_chosen_on": chosen.size_chosen_on}
    machine = {**_machine("audio_words", chosen.svm, ["opensmile"], seed, draws), **choice}
    return [
        Stage("descriptors", partial(make_descriptors, workers), cause, ("data",), FUNCTIONALS_CODE),
        Stage("bags", make_bags, {**bags, "rate_hz": rate_hz, "seed": seed}, ("data", "descriptors"), BAGS_CODE),
        Stage(machine["stage"], score_audio_words, machine, ("data", "bags"), MACHINE_CODE),
    ]


def _autoencoder_stages(chosen: AutoencoderSettings, rate_hz: int, seed: int, draws: int) -> list[Stage]:
    network = {name: value for name, value in asdict(chosen).items() if name != "svm"}
    cause = {name: network[name] for name in ("bands", "low_hz", "high_hz", "seconds")}
    machine = _machine("autoencoder", chosen.svm, ["tensorflow"], seed, draws)
    return [
        Stage("levels", make_levels, {**cause, "rate_hz": rate_hz}, ("data",), LEVELS_CODE),
        Stage("representations", make_representations, {**network, "seed": seed}, ("data", "levels"), LEVELS_CODE),
        Stage(machine["stage"], score_autoencoder, machine, ("data", "representations"), MACHINE_CODE),
    ]


def _machine(name: str, svm: SvmSettings, packages: Sequence[str], seed: int, draws: int) -> dict[str, Any]:
    used = versions([*packages, "scikit-learn"])
    return {
        "name": name,
        "stage": f"baseline-{name}",
        "svm": asdict(svm),
        "seed": seed,
        "draws": draws,
        "versions": used,
    }


# --- features ---------------------------------------------------------------------------------------------------------


def counted(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """Yield the items, with a progress bar that knows how many there will be."""
    with progress(None, what) as bar:
        bar.reset(total)
        for item in items:
            yield item
            bar.update()


def make_functionals(workers: int, settings: Any, inputs: Inputs, folder: Path) -> None:
    """Functionals of every clip: `functionals.npy` (clips, 6373), and `report.json`."""
    rate_hz = settings["rate_hz"]
    waveforms = read_waveforms(inputs["data"], rate_hz)
    described = functionals.describe_all([functionals.FUNCTIONALS], rate_hz, waveforms, workers)
    not_finite = 0
    with ArrayWriter(folder / "functionals.npy") as writer:
        for (row,) in counted(described, len(waveforms), "functionals"):
            not_finite += not np.isfinite(row).all()
            writer.append(row)
    save_json(folder / "report.json", _count(waveforms, rate_hz, not_finite))


def _count(waveforms: Sequence[Array], rate_hz: int, not_finite: int) -> dict[str, int]:
    repeated = sum(functionals.is_short(len(waveform), rate_hz) for waveform in waveforms)
    return {"clips": len(waveforms), "repeated": repeated, "not_finite": int(not_finite)}


def make_descriptors(workers: int, settings: Any, inputs: Inputs, folder: Path) -> None:
    """Low-level descriptors of every clip and their deltas, one after the other.

    `descriptors.npy`, `deltas.npy` (rows, 65), where each clip ends in `ends-descriptors.npy`, `ends-deltas.npy`, and
    `report.json`. Values that are not finite become 0 and their clips are counted.
    """
    rate_hz = settings["rate_hz"]
    waveforms = read_waveforms(inputs["data"], rate_hz)
    levels = [functionals.DESCRIPTORS, functionals.DELTAS]
    lengths, not_finite = [], 0
    with ExitStack() as files:
        writers = [files.enter_context(ArrayWriter(folder / f"{part}.npy")) for part in PARTS]
        described = functionals.describe_all(levels, rate_hz, waveforms, workers)
        for both in counted(described, len(waveforms), "descriptors"):
            not_finite += not all(np.isfinite(rows).all() for rows in both)
            lengths.append([len(rows) for rows in both])
            for writer, rows in zip(writers, both):
                writer.append(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0))
    for part, ends in zip(PARTS, np.cumsum(lengths, axis=0).T):
        np.save(folder / f"ends-{part}.npy", ends)
    save_json(folder / "report.json", _count(waveforms, rate_hz, not_finite))


def make_bags(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Bags of every clip: `bags-SIZE.npy` (clips, 2 * SIZE), codebooks from the training clips, and `report.json`."""
    training = np.flatnonzero(_split(read_clips(inputs["data"])).train)
    ends = np.load(inputs["data"] / f"ends-{settings['rate_hz']}.npy")
    seconds = np.diff(ends, prepend=0) / settings["rate_hz"] if settings["per_second"] else np.ones(len(ends))
    bags = {size: np.zeros((len(ends), 2 * size), np.float32) for size in settings["sizes"]}
    for k, part in enumerate(PARTS):
        frames = np.load(inputs["descriptors"] / f"{part}.npy", mmap_mode="r")
        spans = audio_words.spans_of(np.load(inputs["descriptors"] / f"ends-{part}.npy"))
        taught = [spans[clip] for clip in training]
        book = audio_words.learn(frames, taught, max(settings["sizes"]), settings["seed"] + k)
        for clip, span in enumerate(progress(spans, f"words of {part}")):
            found = audio_words.counts(frames[span], book, settings["sizes"], settings["assignments"])
            for size, count in zip(settings["sizes"], found):
                bags[size][clip, k * size : (k + 1) * size] = audio_words.bag(count, seconds[clip])
    for size, table in bags.items():
        np.save(folder / f"bags-{size}.npy", table)
    save_json(folder / "report.json", load_json(inputs["descriptors"] / "report.json"))


def make_levels(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Mel power levels of every clip: `levels.npy` (clips, frames, bands), dB below the clip's highest."""
    constants = {name: settings[name] for name in ("rate_hz", "bands", "low_hz", "high_hz", "seconds")}
    with ArrayWriter(folder / "levels.npy") as writer:
        for waveform in progress(read_waveforms(inputs["data"], settings["rate_hz"]), "levels"):
            writer.append(autoencoder.levels(waveform, **constants)[None])


def make_representations(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Train an autoencoder per threshold on the training clips and represent every clip.

    `representations.npy` (clips, values), the thresholds side by side, and `report.json` with the loss by epoch.
    """
    chosen = AutoencoderSettings(**{name: value for name, value in settings.items() if name != "seed"})
    training = np.flatnonzero(_split(read_clips(inputs["data"])).train)
    level = np.load(inputs["levels"] / "levels.npy", mmap_mode="r")
    tables, losses = [], {}
    with progress(None, "autoencoders", "epoch") as bar:
        bar.reset(len(chosen.thresholds_db) * chosen.epochs)
        for k, threshold_db in enumerate(chosen.thresholds_db):
            seed = settings["seed"] + k
            set_seed(seed)
            network = autoencoder.build(level.shape[1], chosen)
            losses[f"{threshold_db:g}"] = autoencoder.train(
                network, level, training, threshold_db, chosen, seed, bar.update
            )
            tables.append(np.concatenate(list(autoencoder.represent(network, level, threshold_db, chosen.batch_size))))
    np.save(folder / "representations.npy", np.concatenate(tables, axis=1))
    save_json(folder / "report.json", {"clips": len(level), "loss": losses})


# --- machines ---------------------------------------------------------------------------------------------------------


def score_opensmile(settings: Any, inputs: Inputs, folder: Path) -> None:
    """The linear machine on the functionals; see the module for the files."""
    _score_one(np.load(inputs["functionals"] / "functionals.npy"), settings, inputs, "functionals", folder)


def score_autoencoder(settings: Any, inputs: Inputs, folder: Path) -> None:
    """The linear machine on the autoencoders' representations; see the module for the files."""
    _score_one(np.load(inputs["representations"] / "representations.npy"), settings, inputs, "representations", folder)


def score_audio_words(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Linear machines on the bags of every size, of which one size is taken; see the module for the files."""
    clips = read_clips(inputs["data"])
    on, trained = settings["size_chosen_on"], {}
    for size in settings["sizes"]:
        trained[size] = _train(np.load(inputs["bags"] / f"bags-{size}.npy"), clips, settings)
    size = max(trained, key=lambda size: _auc(trained[size], on))
    candidates = [{"size": size, **entry} for size, each in trained.items() for entry in each.candidates]
    chosen = {"size": size, "size_chosen_on": on, **_chosen(trained[size], settings)}
    described = {
        "chosen": chosen,
        "candidates": candidates,
        "features": load_json(inputs["bags"] / "report.json"),
        "versions": settings["versions"],
    }
    _save(settings["name"], clips, trained[size].scores, described, _resampling(settings), folder)


def _score_one(features: Array, settings: Any, inputs: Inputs, stage: str, folder: Path) -> None:
    clips = read_clips(inputs["data"])
    trained = _train(features, clips, settings)
    described = {
        "chosen": _chosen(trained, settings),
        "candidates": trained.candidates,
        "features": load_json(inputs[stage] / "report.json"),
        "versions": settings["versions"],
    }
    _save(settings["name"], clips, trained.scores, described, _resampling(settings), folder)


def _train(features: Array, clips: Sequence[Clip], settings: Any) -> Trained:
    return linear.train(features, _split(clips), _svm(settings), settings["seed"])


def _svm(settings: Any) -> SvmSettings:
    return SvmSettings(**{**settings["svm"], "complexities": tuple(settings["svm"]["complexities"])})


def _split(clips: Sequence[Clip]) -> Split:
    names = np.array([clip.split for clip in clips])
    orca = np.array([clip.label == "orca" for clip in clips])
    return Split(names == "train", names == "devel", orca, np.array([clip.group for clip in clips]))


def _auc(trained: Trained, on: str) -> float:
    """AUC of the chosen complexity on that split."""
    chosen = next(entry for entry in trained.candidates if entry["complexity"] == trained.complexity)
    return float(chosen[f"{on}_auc"])


def _chosen(trained: Trained, settings: Any) -> dict[str, Any]:
    return {"complexity": trained.complexity, "complexity_chosen_on": settings["svm"]["chosen_on"]}


def fuse(settings: Any, inputs: Inputs, folder: Path) -> None:
    """The mean of the members' confidences; see `linear.fuse`, and the module for the files."""
    stored = [load_npz(inputs[name] / "scores.npz") for name in settings["members"]]
    reports = [load_json(inputs[name] / "report.json") for name in settings["members"]]
    described = {
        "chosen": {"members": [report["name"] for report in reports], **_optimistic(reports)},
        "versions": {name: number for report in reports for name, number in report["versions"].items()},
    }
    table = {**stored[0], "score": linear.fuse(np.stack([each["score"] for each in stored]))}
    _save_table(FUSION, table, described, _resampling(settings), folder)


def _resampling(settings: Any) -> dict[str, int]:
    return {"draws": settings["draws"], "seed": settings["seed"]}


def _optimistic(reports: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What any member chose on devel, by kind of choice."""
    choices = ("complexity_chosen_on", "size_chosen_on")
    found = {key: [r["name"] for r in reports if r["chosen"].get(key) == "devel"] for key in choices}
    return {key.replace("_on", "_on_devel_by"): names for key, names in found.items() if names}


def _save(
    name: str,
    clips: Sequence[Clip],
    scores: Any,
    described: Mapping[str, Any],
    resampling: Mapping[str, int],
    folder: Path,
) -> None:
    asked = [k for k, clip in enumerate(clips) if clip.split != "train"]
    columns = ("file_name", "channel", "label", "split", "group")
    table = {column: np.array([getattr(clips[k], column) for k in asked]) for column in columns}
    _save_table(name, {**table, "score": scores[asked]}, described, resampling, folder)


def _save_table(
    name: str,
    table: Mapping[str, NDArray[Any]],
    described: Mapping[str, Any],
    resampling: Mapping[str, int],
    folder: Path,
) -> None:
    devel = table["split"] == "devel"
    orca, groups = table["label"][devel] == "orca", list(table["group"][devel])
    auc = auc_interval(table["score"][devel], orca, groups, **resampling)
    arrays: dict[str, Any] = dict(table)
    np.savez(folder / "scores.npz", **arrays)
    report = {"name": name, "auc": asdict(auc), **described, "note": note(name, described["chosen"])}
    save_json(folder / "report.json", report)


# --- words ------------------------------------------------------------------------------------------------------------


WHAT = {
    "opensmile": "openSMILE ComParE 2016 functionals of whole clips, linear support vector machine",
    "audio_words": "bags of audio words over openSMILE's low-level descriptors, linear support vector machine",
    "autoencoder": "recurrent autoencoders on mel spectrograms, linear support vector machine",
    FUSION: "mean of the confidences of the baselines (the challenge lets their classes vote, which gives no ranking)",
}


def note(name: str, chosen: Mapping[str, Any]) -> str:
    """A sentence or two for the report: what it is, and what was chosen on devel."""
    words = {"complexity_chosen_on": "complexity", "size_chosen_on": "size of the codebooks"}
    on_devel = [word for key, word in words.items() if chosen.get(key) == "devel"]
    if name == FUSION:
        on_devel = ["a choice of its members"] if any(key.endswith("_on_devel_by") for key in chosen) else []
    told = f"; {' and '.join(on_devel)} chosen on devel, so the AUC on devel is optimistic" if on_devel else ""
    return WHAT[name] + told
