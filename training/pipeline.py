"""The pipeline of the paper as stages, and the folder it ends in.

data -> windows (-> teacher) -> backbone -> features -> base -> relevance -> masks -> masked -> scores -> result, the
middle ones once per backbone (`windows-vggish`, ...). Recordings of the test split are never read.

What a run leaves for those who export it: `RUN/result/` (a link to the newest artifact), with

- `selection.json`: `name`, `seed`, `recipe` (as read), `backbones` (list of name, feature_size, front_end, weights
  file, spectrograms file, history of the fine-tuning), `members` (list of name, backbone, mask: `none` | `minimal` |
  `negative`, relevance_of: the base-model whose relevance for its own prediction makes the negative mask, or null; in
  the order of every members' axis below), `dropped` (members left out because they equal another, with the reason),
  `vote` (names), `hop_s`, `channel_fusion`, `thresholds` (start, stop and what they cost on devel, also by kind of
  sound: `false_alarms_by_kind`, each [false alarms, noise clips]), `metrics`
  (`members` by name and `vote`: ROC AUC of devel clips with value, low, high, draws; `nested`: the choice of the vote
  measured on recordings it was not made on; `teacher`, where there is one: its own confidence, averaged over the
  backbones' teachers; `uncalibrated_vote`, where slope or shift are set: the vote without them), `all_zero` (by
  backbone and split: `rows`, windows without relevance `all_zero`, and `orca`, windows explained by the orca neuron;
  the rest is explained by the noise neuron), `masks` (by backbone: features kept and removed), `data` (fingerprint,
  splits, sources, recordings, set aside), `costs` (seconds and memory by stage), `versions`.
- `backbone-NAME.npz`: `weight_000`, `weight_001`, ... in the order of Keras' `get_weights()` of the plugin's
  `build_keras()`.
- `heads.npz`: `MEMBER/hidden_kernel` (features, 256), `MEMBER/hidden_bias`, `MEMBER/kernel` (256, 2), `MEMBER/bias`;
  logits are [noise, orca]. A masked member takes features times its mask.
- `masks.npz`: `NAME/minimal`, 0 or 1 per feature (all 1 where the mask keeps everything).
- `devel_scores.npz`: `members`, `file_name`, `label`, `group`, `clip_scores` (clips, members), `vote_clip_scores`;
  per window `window_clip` (index of the clip), `window_start` (first row of the window) and `window_scores`
  (windows, members).
- `devel_spectrograms-NAME.npy`: the finished spectrograms of those windows, (windows, frames, bands), so that an
  exported bundle can be compared window by window.
- `ranking.csv`, `ranking.md`, `curves.npz` (`MEMBER/recall`, ... and `vote/...`), `recipe.yaml`.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..backbone import Backbone
from ..errors import TrainingError
from . import dataset, results, steps
from .dataset import Dataset
from .recipe import BackboneSettings, Recipe, backbone_of, has_teacher, read_recipe, to_dict, with_data
from .stages import Runner, Stage

HERE = "orcawatch.training"
DATA_CODE = (f"{HERE}.dataset",)
SIMULATED_CODE = (f"{HERE}.simulated", "orcawatch.calls", "orcawatch.noise", "orcawatch.simulate")
SPECTROGRAM_CODE = (*DATA_CODE, "orcawatch.spectrogram", "orcawatch.windows")
TEACHER_CODE = (*DATA_CODE, f"{HERE}.teacher")
AUGMENT_CODE = (*SPECTROGRAM_CODE, f"{HERE}.augment", f"{HERE}.teacher")
TUNING_CODE = (*AUGMENT_CODE, f"{HERE}.finetune")
HEAD_CODE = (f"{HERE}.heads",)
RELEVANCE_CODE = (*HEAD_CODE, f"{HERE}.relevance_stage", f"{HERE}.innvestigate_worker")
MASK_CODE = ("orcawatch.masking",)
RESULT_CODE = (
    *("orcawatch.metrics", "orcawatch.spectrogram"),
    *(f"{HERE}.{module}" for module in ("dataset", "heads", "ranking", "recipe", "steps")),
)
RESULT = "result"
RECIPE = "recipe.yaml"
RUNS = Path("runs")


def build_runner(recipe: Recipe, run: Path) -> Runner:
    """The stages of a recipe over its data, in the run's folder; nothing is computed yet but the data's fingerprint.

    Raises
    ------
    TrainingError : the recipe names no data folder, or the data cannot be trained on.
    """
    if recipe.data.folder is None:
        raise TrainingError("the recipe names no data.folder: give one with --data FOLDER")
    found = dataset.READERS[recipe.data.layout](Path(recipe.data.folder), recipe.data.on_corrupt)
    stages = [_data_stage(recipe, found)]
    for name, settings in recipe.backbones.items():
        stages += _backbone_stages(recipe, name, settings, backbone_of(name, settings))
    return Runner(run, [*stages, _result_stage(recipe)])


def _data_stage(recipe: Recipe, found: Dataset) -> Stage:
    free = [[c.file_name, c.channel, c.kind, c.source, c.repository, c.licence] for c in found.clips]
    settings = {
        "fingerprint": dataset.fingerprint(found.clips),
        "described": free,
        "recordings": found.recordings,
        "on_corrupt": recipe.data.on_corrupt,
        "simulated_clips": recipe.data.simulated_clips,
        "seed": recipe.seed,
        "set_aside": [asdict(fault) for fault in found.set_aside],
    }
    return Stage("data", partial(steps.load_data, found.clips), settings, modules=(*DATA_CODE, *SIMULATED_CODE))


def _backbone_stages(recipe: Recipe, name: str, settings: BackboneSettings, plugin: Backbone) -> list[Stage]:
    return [
        _windows_stage(recipe, name, plugin),
        *([_teacher_stage(recipe, name)] if has_teacher(recipe, name) else []),
        _backbone_stage(recipe, name, settings, plugin),
        _features_stage(recipe, name, plugin),
        *_head_stages(recipe, name),
    ]


def _windows_stage(recipe: Recipe, name: str, plugin: Backbone) -> Stage:
    work = partial(steps.cut_windows, plugin.front_end)
    return Stage(f"windows-{name}", work, _cutting(recipe, plugin), ("data",), SPECTROGRAM_CODE)


def _cutting(recipe: Recipe, plugin: Backbone) -> dict[str, Any]:
    front_end = plugin.front_end
    return {"front_end": front_end.to_dict(), "hop_frames": steps.hop_frames(recipe.windows.hop_s, front_end)}


def _backbone_stage(recipe: Recipe, name: str, settings: BackboneSettings, plugin: Backbone) -> Stage:
    as_read, tuning = to_dict(recipe), settings.fine_tune
    cause = {
        **as_read["backbones"][name],
        "name": name,
        "front_end": plugin.front_end.to_dict(),
        "weights_digest": steps.weights_digest(plugin, settings.weights),
        "augmentation": as_read["augmentation"] if tuning else None,
        "seed": recipe.seed,
    }
    code = (type(plugin).__module__, *(TUNING_CODE if tuning else ()))
    work = partial(steps.make_backbone, plugin, settings, recipe.augmentation)
    teacher = (f"teacher-{name}",) if tuning and tuning.teacher_weight else ()
    return Stage(f"backbone-{name}", work, cause, ("data", *teacher), code)


def _teacher_stage(recipe: Recipe, name: str) -> Stage:
    cause = {"name": name, "strength": recipe.teacher.strength}
    return Stage(f"teacher-{name}", steps.make_teacher, cause, ("data", f"windows-{name}"), TEACHER_CODE)


def _features_stage(recipe: Recipe, name: str, plugin: Backbone) -> Stage:
    passes = recipe.features.augmented_passes
    cause = {
        **_cutting(recipe, plugin),
        "name": name,
        "passes": passes,
        "augmentation": to_dict(recipe)["augmentation"] if passes else None,
        "seed": recipe.seed,
    }
    work = partial(steps.compute_features, plugin, recipe.augmentation)
    teacher = (f"teacher-{name}",) if has_teacher(recipe, name) else ()
    inputs = ("data", f"windows-{name}", f"backbone-{name}", *teacher)
    return Stage(f"features-{name}", work, cause, inputs, (type(plugin).__module__, *AUGMENT_CODE))


def _head_stages(recipe: Recipe, name: str) -> list[Stage]:
    features, base, relevance, masks, masked = (
        f"{s}-{name}" for s in ("features", "base", "relevance", "masks", "masked")
    )
    cause = {"head": to_dict(recipe)["head"], "seed": recipe.seed, "name": name}
    keep = {"name": name, "minimal_keep": recipe.masks.minimal_keep}
    return [
        Stage(base, partial(steps.train_base, recipe.head), cause, (features,), HEAD_CODE),
        Stage(relevance, steps.explain_base, {"name": name}, (features, base), RELEVANCE_CODE),
        Stage(masks, steps.make_masks, keep, (features, relevance), MASK_CODE),
        Stage(masked, partial(steps.train_masked, recipe.head), cause, (features, masks), HEAD_CODE),
        Stage(f"scores-{name}", steps.score_devel, {"name": name}, (features, masks, base, masked), HEAD_CODE),
    ]


def _result_stage(recipe: Recipe) -> Stage:
    per_backbone = ("windows", "backbone", "features", "base", "relevance", "masks", "masked", "scores")
    inputs = ("data", *(f"{stage}-{name}" for name in recipe.backbones for stage in per_backbone))
    recipe_dict = to_dict(recipe)
    recipe_dict["data"].pop("folder")
    return Stage("result", partial(results.make_result, recipe), recipe_dict, inputs, RESULT_CODE)


# --- running them -----------------------------------------------------------------------------------------------------


def prepare(target: Path, data: Path | None = None, folder: Path | None = None) -> tuple[Recipe, Runner]:
    """Recipe and stages of a recipe file, or of a run's folder (which keeps its recipe).

    Parameters
    ----------
    target : recipe, or folder of a run.
    data : folder of the recordings, before the recipe's; relative ones count from the working folder.
    folder : of the run; `runs/NAME` where none is given and the target is a recipe.
    """
    recipe = read_recipe(target / RECIPE if target.is_dir() else target)
    recipe = with_data(recipe, str(data) if data else recipe.data.folder)
    return recipe, build_runner(recipe, target if target.is_dir() else folder or RUNS / recipe.name)


def run(recipe: Recipe, runner: Runner) -> list[str]:
    """Run what is missing and point `result` at the newest result; the names of the stages that ran."""
    runner.folder.mkdir(parents=True, exist_ok=True)
    (runner.folder / RECIPE).write_text(yaml.safe_dump(to_dict(recipe), sort_keys=False), encoding="utf-8")
    ran = runner.run()
    _point(runner.folder / RESULT, runner.artifact("result"))
    return ran


def _point(link: Path, target: Path) -> None:
    """Replace the link in one step, so that a reader sees the old result or the new one."""
    partial_link = link.with_name(link.name + ".partial")
    partial_link.unlink(missing_ok=True)
    partial_link.symlink_to(os.path.relpath(target, link.parent))
    partial_link.replace(link)
