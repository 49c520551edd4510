"""The pipeline of the paper as stages, and the folder it ends in.

data (-> teacher) -> backbone -> features -> base -> relevance -> masks -> masked, once per backbone
(`features-vggish`, ...); then fusion -> scores -> result, the baselines beside them, and the report. Recordings of the
test split are read only where the recipe asks for their prediction.

What a run leaves for those who export it: `RUN/result/` (a link to the newest artifact), with

- `selection.json`: `name`, `seed`, `recipe` (as read), `backbones` (list of name, feature_size, front_end, input_shape,
  weights file, weights_source: where training began, spectrograms file, representative file, history of the
  fine-tuning), `members` (list of name, backbones, mask: `none` | `minimal` | `negative`, relevance_of: the base-models
  whose relevance for their own prediction makes the negative masks, or null; in the order of every members' axis
  below), `dropped` (members left out because they equal another, with the reason), `vote` (names), `hop_s`,
  `channel_fusion`, `thresholds` (start, stop and what they cost on devel, also by kind of sound:
  `false_alarms_by_kind`, each [false alarms, noise clips]), `metrics` (`members` by name and `vote`: ROC AUC of devel
  clips with value, low, high, draws; `nested`: the choice of the vote measured on recordings it was not made on;
  `teacher`, where there is one: its own confidence, averaged over the backbones' teachers; `uncalibrated_vote`, where
  slope or shift are set: the vote with both taken out of the same heads' confidences again), `all_zero` (by backbone
  and split: `rows`, windows without relevance `all_zero`, and `orca`, windows explained by the orca neuron; the rest is
  explained by the noise neuron), `masks` (by backbone: features kept and removed), `data` (fingerprint, layout, splits,
  sources, recordings, set aside), `costs` (seconds and memory by stage), `versions`.
- `analysis.json`: what `analysis` makes of the scores (selection, calibration, false alarms).
- `backbone-NAME.npz`: `weight_000`, `weight_001`, ... in the order of Keras' `get_weights()` of the folded network,
  `orcawatch.folding.fold` of the plugin's `build_keras()`.
- `heads.npz`: `MEMBER/hidden_kernel` (features, 256), `MEMBER/hidden_bias`, `MEMBER/kernel` (256, 2), `MEMBER/bias`;
  logits are [noise, orca]. A member takes its backbones' features side by side, each times its mask.
- `masks.npz`: `NAME/minimal`, 0 or 1 per feature (all 1 where the mask keeps everything).
- `devel_scores.npz`: `members`; per clip `file_name`, `label`, `group`, `kind`, `seconds`, `clip_scores` (clips,
  members), `vote_clip_scores`; per window `window_clip` (index of the clip), `window_start` (first row of the window)
  and `window_scores` (windows, members). `test_scores.npz` likewise, where the test split was predicted.
- `devel_spectrograms-NAME.npy`: the finished spectrograms of those devel windows, (windows, height, width), so that an
  exported bundle can be compared window by window; `representative-NAME.npy`: spectrograms of training windows drawn
  by recording, for quantization.
- `ranking.csv`, `ranking.md`, `curves.npz` (`MEMBER/recall`, ... and `vote/...`), `recipe.yaml`.

`RUN/report/` is a link to the newest report (`report`): `report.html`, `report.md` and their pictures.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import yaml

from ..backbone import Backbone
from ..errors import TrainingError
from . import backbones, baselines, dataset, distribute, document, members, preparation, report, results
from .dataset import Dataset
from .recipe import BackboneSettings, Recipe, backbone_of, has_teacher, read_recipe, to_dict, with_data, with_weights
from .stages import Runner, Stage, is_locked
from .storage import progress

HERE = "orcawatch.training"


def _own(*names: str) -> tuple[str, ...]:
    return tuple(f"{HERE}.{name}" for name in names)


DATA_CODE = _own("dataset", "storage")
SIMULATED_CODE = (*_own("simulated"), "orcawatch.calls", "orcawatch.noise", "orcawatch.simulate")
SPECTROGRAM_CODE = (*DATA_CODE, *_own("preparation"), "orcawatch.spectrogram", "orcawatch.windows")
TEACHER_CODE = (*SPECTROGRAM_CODE, *_own("teacher"))
AUGMENT_CODE = (*TEACHER_CODE, *_own("augment"))
FOLDING_CODE = ("orcawatch.folding",)
TUNING_CODE = (*AUGMENT_CODE, *_own("batches", "distribute", "finetune", "graph_front_end"))
HEAD_CODE = _own("heads", "members", "storage")
RELEVANCE_CODE = (*HEAD_CODE, *_own("relevance_stage", "innvestigate_worker"))
MASK_CODE = (*_own("members", "storage"), "orcawatch.masking")
RESULT_CODE = (
    *("orcawatch.metrics", "orcawatch.ranking", "orcawatch.spectrogram"),
    *_own("analysis", "backbones", "dataset", "heads", "members", "preparation", "recipe", "storage"),
)
REPORT_CODE = (
    *_own("analysis", "dataset", "document", "examples", "findings", "pictures", "predictions", "run_files"),
    *_own("sections", "tables", "words"),
    *(f"orcawatch.{module}" for module in ("relevance", "folding", "masking", "metrics", "ranking")),
)
RESULT, REPORT = "result", "report"
RECIPE = "recipe.yaml"
RUNS = Path("runs")
POLL_S = 1.0
PATIENCE_S = 300.0  # that a worker waits for a chief that does not work


def plugin_code(plugin: Backbone) -> tuple[str, ...]:
    """Import names of a plugin's module and of those that it takes from its own package."""
    own = sys.modules[type(plugin).__module__]
    package = own.__name__.rpartition(".")[0]
    used = [value.__name__ for value in vars(own).values() if isinstance(value, ModuleType)]
    named = [getattr(value, "__module__", None) or "" for value in vars(own).values()]
    beside = {name for name in (*used, *named) if package and name.startswith(f"{package}.")}
    return tuple(sorted(beside | {own.__name__}))


def build_runner(recipe: Recipe, run: Path) -> Runner:
    """The stages of a recipe over its data, in the run's folder; nothing is computed yet but the data's fingerprint.

    Raises
    ------
    TrainingError : the recipe names no data folder, or the data cannot be trained on.
    """
    if recipe.data.folder is None:
        raise TrainingError("the recipe names no data.folder: give one with --data FOLDER")
    folders = [Path(folder) for folder in (recipe.data.folder, *recipe.data.further)]
    found = dataset.read_all(recipe.data.layout, folders, recipe.data.on_corrupt, recipe.data.predict_test)
    plugins = {name: backbone_of(name, settings) for name, settings in recipe.backbones.items()}
    stages = [_data_stage(recipe, found, plugins)]
    for name, settings in recipe.backbones.items():
        stages += _backbone_stages(recipe, name, settings, plugins)
    stages += _vote_stages(recipe, plugins)
    compared = _baseline_stages(recipe, plugins)
    return Runner(run, [*stages, *compared, _report_stage(recipe, plugins, compared)])


def _data_stage(recipe: Recipe, found: Dataset, plugins: Mapping[str, Backbone]) -> Stage:
    free = [[c.file_name, c.channel, c.kind, c.source, c.repository, c.licence, c.site] for c in found.clips]
    ends = [plugin.front_end for plugin in plugins.values()]
    settings = {
        "fingerprint": dataset.fingerprint(found.clips),
        "described": free,
        "layout": recipe.data.layout,
        "recordings": found.recordings,
        "on_corrupt": recipe.data.on_corrupt,
        "simulated_clips": recipe.data.simulated_clips,
        "seed": recipe.seed,
        "set_aside": [asdict(fault) for fault in found.set_aside],
        "rates_hz": sorted({end.rate_hz for end in ends}),
        "shortest_s": max(end.frame_samples / end.rate_hz for end in ends),
        "lowest_rate_hz": max(end.lowest_rate_hz for end in ends),
    }
    work = partial(preparation.load_data, found.clips)
    return Stage("data", work, settings, modules=(*DATA_CODE, *SIMULATED_CODE))


def _backbone_stages(
    recipe: Recipe, name: str, settings: BackboneSettings, plugins: Mapping[str, Backbone]
) -> list[Stage]:
    return [
        *([_teacher_stage(recipe, name, plugins)] if has_teacher(recipe, name) else []),
        _backbone_stage(recipe, name, settings, plugins[name]),
        _features_stage(recipe, name, plugins),
        *_head_stages(recipe, name),
    ]


def _cutting(recipe: Recipe, name: str, plugins: Mapping[str, Backbone]) -> dict[str, Any]:
    """What decides a backbone's windows; every front end counts, because windows are those that all have."""
    front_end = plugins[name].front_end
    return {
        "name": name,
        "front_end": front_end.to_dict(),
        "hop_frames": preparation.hop_frames(recipe.windows.hop_s, front_end),
        "grids": [preparation.grid_of(plugin.front_end) for plugin in plugins.values()],
    }


def _teacher_stage(recipe: Recipe, name: str, plugins: Mapping[str, Backbone]) -> Stage:
    cause = {**_cutting(recipe, name, plugins), "strength": recipe.teacher.strength}
    work = partial(preparation.make_teacher, plugins[name].front_end)
    return Stage(f"teacher-{name}", work, cause, ("data",), TEACHER_CODE)


def _backbone_stage(recipe: Recipe, name: str, settings: BackboneSettings, plugin: Backbone) -> Stage:
    as_read, tuning = to_dict(recipe), settings.fine_tune
    cause = {
        **as_read["backbones"][name],
        "name": name,
        "front_end": plugin.front_end.to_dict(),
        "weights": backbones.weights_source(settings),
        "weights_digest": backbones.weights_digest(plugin, settings.weights),
        "augmentation": as_read["augmentation"] if tuning else None,
        "seed": recipe.seed,
    }
    code = (*plugin_code(plugin), *FOLDING_CODE, *(TUNING_CODE if tuning else ()))
    work = partial(backbones.make_backbone, plugin, settings, recipe.augmentation)
    teacher = (f"teacher-{name}",) if tuning and tuning.teacher_weight else ()
    return Stage(f"backbone-{name}", work, cause, ("data", *teacher), code)


def _features_stage(recipe: Recipe, name: str, plugins: Mapping[str, Backbone]) -> Stage:
    passes = recipe.features.augmented_passes
    cause = {
        **_cutting(recipe, name, plugins),
        "passes": passes,
        "augmentation": to_dict(recipe)["augmentation"] if passes else None,
        "seed": recipe.seed,
    }
    work = partial(backbones.compute_features, plugins[name], recipe.augmentation)
    teacher = (f"teacher-{name}",) if has_teacher(recipe, name) else ()
    code = (*plugin_code(plugins[name]), *FOLDING_CODE, *AUGMENT_CODE)
    return Stage(f"features-{name}", work, cause, ("data", f"backbone-{name}", *teacher), code)


def _head_stages(recipe: Recipe, name: str) -> list[Stage]:
    features, base, relevance, masks = (f"{stage}-{name}" for stage in ("features", "base", "relevance", "masks"))
    cause = {"head": to_dict(recipe)["head"], "seed": recipe.seed, "name": name}
    keep = {"name": name, "minimal_keep": recipe.masks.minimal_keep}
    masked = partial(members.train_masked, recipe.head)
    return [
        Stage(base, partial(members.train_base, recipe.head), cause, (features,), HEAD_CODE),
        Stage(relevance, members.explain_base, {"name": name}, (features, base), RELEVANCE_CODE),
        Stage(masks, members.make_masks, keep, (features, relevance), MASK_CODE),
        Stage(f"masked-{name}", masked, cause, (features, masks), HEAD_CODE),
    ]


def _per_backbone(names: Sequence[str], *stages: str) -> tuple[str, ...]:
    return tuple(f"{stage}-{name}" for name in names for stage in stages)


def _vote_stages(recipe: Recipe, plugins: Mapping[str, Backbone]) -> list[Stage]:
    names = list(recipe.backbones)
    inputs = _per_backbone(names, "features", "masks")
    heads_of = (*_per_backbone(names, "base", "masked"), *([members.FUSION] if len(names) > 1 else []))
    cause = {"head": to_dict(recipe)["head"], "seed": recipe.seed, "names": names}
    fusion = Stage(members.FUSION, partial(members.train_fusion, recipe.head), cause, inputs, HEAD_CODE)
    scores = Stage("scores", members.score_members, {"names": names}, (*inputs, *heads_of), HEAD_CODE)
    return [*([fusion] if len(names) > 1 else []), scores, _result_stage(recipe, plugins, heads_of)]


def _result_stage(recipe: Recipe, plugins: Mapping[str, Backbone], heads_of: Sequence[str]) -> Stage:
    names = list(recipe.backbones)
    teachers = [f"teacher-{name}" for name in names if has_teacher(recipe, name)]
    inputs = (
        "data",
        *teachers,
        *_per_backbone(names, "backbone", "features", "relevance", "masks"),
        *heads_of,
        "scores",
    )
    as_read = to_dict(recipe)
    for name in ("folder", "further"):
        as_read["data"].pop(name)
    as_read.pop("baselines")
    for name, settings in recipe.backbones.items():
        as_read["backbones"][name]["weights"] = None if settings.from_scratch else backbones.weights_source(settings)
    cause = {"recipe": as_read, "cutting": {name: _cutting(recipe, name, plugins) for name in names}}
    return Stage(RESULT, partial(results.make_result, recipe), cause, inputs, RESULT_CODE)


def _baseline_stages(recipe: Recipe, plugins: Mapping[str, Backbone]) -> list[Stage]:
    if recipe.baselines is None:
        return []
    rate_hz = max(plugin.front_end.rate_hz for plugin in plugins.values())
    return baselines.stages(recipe.baselines, rate_hz=rate_hz, seed=recipe.seed, draws=recipe.vote.draws)


def _report_stage(recipe: Recipe, plugins: Mapping[str, Backbone], compared: Sequence[Stage]) -> Stage:
    tables = [stage.name for stage in compared if stage.name.startswith("baseline-")]
    code = (*REPORT_CODE, *(name for plugin in plugins.values() for name in plugin_code(plugin)))
    templates = {path.name: dataset.file_digest(path) for path in sorted(document.TEMPLATES.glob("*.j2"))}
    return Stage(REPORT, report.make_report, {"templates": templates}, ("data", RESULT, *tables), code)


# --- running them -----------------------------------------------------------------------------------------------------


def prepare(
    target: Path,
    data: Path | None = None,
    folder: Path | None = None,
    weights: Mapping[str, str] | None = None,
    from_scratch: Sequence[str] = (),
    further: Sequence[Path] = (),
) -> tuple[Recipe, Runner]:
    """Recipe and stages of a recipe file, or of a run's folder (which keeps its recipe).

    Parameters
    ----------
    target : recipe, or folder of a run.
    data : folder of the recordings, before the recipe's; relative ones count from the working folder.
    folder : of the run; `runs/NAME` where none is given and the target is a recipe.
    weights, from_scratch : see `recipe.with_weights`.
    further : folders that are read with `data` as one data set.
    """
    distribute.strategy()  # before any other TensorFlow operation
    recipe = read_recipe(target / RECIPE if target.is_dir() else target)
    folders = [str(data), *map(str, further)] if data else [recipe.data.folder, *recipe.data.further]
    recipe = with_data(recipe, folders[0], [one for one in folders[1:] if one])
    recipe = with_weights(recipe, weights or {}, from_scratch)
    return recipe, build_runner(recipe, target if target.is_dir() else folder or RUNS / recipe.name)


def run(recipe: Recipe, runner: Runner) -> list[str]:
    """Run what is missing and point `result` and `report` at the newest; the names of the stages that ran.

    In a process that is a worker but not the chief (`distribute`), only fine-tune with the others.

    Raises
    ------
    TrainingError : published weights are neither there nor to be had (before anything is computed), or a stage fails.
    """
    if not distribute.is_chief():
        return join(recipe, runner)
    if check_weights(recipe, runner):
        runner = build_runner(recipe, runner.folder)
    try:
        return runner.run(lambda: _write_recipe(recipe, runner.folder))
    finally:  # also where a later stage failed: an older result must not stand beside the new recipe
        for name in (RESULT, REPORT):
            if runner.artifact(name).is_dir():
                _point(runner.folder / name, runner.artifact(name))


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    written = folder / (RECIPE + ".partial")
    written.write_text(yaml.safe_dump(to_dict(recipe), sort_keys=False), encoding="utf-8")
    written.replace(folder / RECIPE)


def check_weights(recipe: Recipe, runner: Runner) -> bool:
    """Try to load the weights of every backbone that is still to be made, so that none is missing hours later.

    Returns
    -------
    True where files came by download, so that the digests of the stages that take them have changed.
    """
    loaded = {name: settings for name, settings in recipe.backbones.items() if settings.weights is not None}
    before = [
        backbones.weights_digest(backbone_of(name, settings), settings.weights) for name, settings in loaded.items()
    ]
    for name, settings in progress(loaded.items(), "weights", "backbone"):
        if not runner.artifact(f"backbone-{name}").is_dir():
            plugin = backbone_of(name, settings)
            plugin.load_weights(plugin.build_keras(), str(settings.weights))
    after = [
        backbones.weights_digest(backbone_of(name, settings), settings.weights) for name, settings in loaded.items()
    ]
    return after != before


def join(recipe: Recipe, runner: Runner) -> list[str]:
    """Fine-tune together with the chief: wait for what each backbone needs, then work; nothing is written.

    Raises
    ------
    TrainingError : no process works in the run's folder, and what is waited for does not come.
    """
    mine = [s for s in runner.stages if s.name in {f"backbone-{name}" for name in recipe.backbones}]
    missing = [stage for stage in mine if not runner.artifact(stage.name).is_dir()]
    tuned = [stage for stage in missing if stage.settings["fine_tune"]]
    for stage in tuned:
        inputs = {name: runner.artifact(name) for name in stage.inputs}
        _wait_for(inputs, runner.folder)
        with TemporaryDirectory() as folder:
            stage.work(stage.settings, inputs, Path(folder))
    return [stage.name for stage in tuned]


def _wait_for(inputs: Mapping[str, Path], folder: Path) -> None:
    """Return once every input is there; raise TrainingError where nobody has worked in the folder for PATIENCE_S."""
    seen = time.monotonic()
    while missing := [name for name, path in inputs.items() if not path.is_dir()]:
        if is_locked(folder):
            seen = time.monotonic()
        elif time.monotonic() - seen > PATIENCE_S:
            raise TrainingError(
                f"waited {PATIENCE_S:g} s for {missing} in {folder}, where no process works: see what the first worker "
                "said, and start all workers again with the same recipe, data and weights"
            )
        time.sleep(POLL_S)


def _point(link: Path, target: Path) -> None:
    """Replace the link in one step, so that a reader sees the old result or the new one."""
    partial_link = link.with_name(link.name + ".partial")
    partial_link.unlink(missing_ok=True)
    partial_link.symlink_to(os.path.relpath(target, link.parent))
    partial_link.replace(link)
