"""The whole pipeline on tiny recordings, and what it leaves."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from click.testing import CliRunner

from orcawatch.errors import TrainingError
from orcawatch.metrics import roc_auc
from orcawatch.relevance import head_relevance
from orcawatch.training import backbones, heads, members, pipeline, preparation
from orcawatch.training.cli import train
from orcawatch.training.finetune import FineTuneSettings
from orcawatch.training.recipe import BackboneSettings, backbone_of, read_recipe, to_dict

RECIPE = {
    "name": "tiny",
    "seed": 5,
    "windows": {"hop_s": 0.48},
    "head": {"epochs": 12, "batch_size": 16, "learning_rate": 0.003},
    "masks": {"minimal_keep": 5},
    "vote": {"draws": 100},
}


@pytest.fixture()
def recipe_file(tmp_path: Path, tiny_plugin: str) -> Path:
    """A recipe over the tiny backbone with stored weights."""
    from tensorflow.keras.utils import set_random_seed

    from orcawatch.backbone import load_backbone
    from orcawatch.training.backbones import save_weights

    set_random_seed(1)
    save_weights(tmp_path / "weights.npz", load_backbone(tiny_plugin).build_keras())
    path = tmp_path / "tiny.yaml"
    backbones = {tiny_plugin: {"weights": str(tmp_path / "weights.npz")}}
    path.write_text(yaml.safe_dump({**RECIPE, "backbones": backbones}))
    return path


@pytest.fixture()
def finished(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    recipe, runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")
    pipeline.run(recipe, runner)
    return tmp_path / "run"


def test_a_run_leaves_what_its_docstring_says(finished: Path, tiny_data: Path, recipe_file: Path) -> None:
    result = finished / "result"
    selection = json.loads((result / "selection.json").read_text())
    assert [m["name"] for m in selection["members"]] == ["tiny", "tiny_min", "tiny_neg"]
    assert [m["mask"] for m in selection["members"]] == ["none", "minimal", "negative"]
    assert "tiny_neg" in selection["vote"]
    assert 0 <= selection["thresholds"]["stop"] <= selection["thresholds"]["start"] <= 1
    assert selection["data"]["sources"][0] == {
        "repository": "tests/made",
        "licence": "CC0",
        "split": "devel",
        "clips": 12,
    }
    assert selection["data"]["recordings"] == "given"
    assert not {"teacher", "uncalibrated_vote"} & set(selection["metrics"])
    assert selection["versions"]["innvestigate"] == "2.1.2"
    assert len((result / "ranking.csv").read_text().splitlines()) == 1 + 7
    check_scores(result, selection)
    # a second run computes nothing, from the recipe and from the run's folder
    before = (result / "selection.json").read_bytes()
    assert pipeline.run(*pipeline.prepare(recipe_file, tiny_data, finished)) == []
    assert pipeline.run(*pipeline.prepare(finished)) == []
    assert (result / "selection.json").read_bytes() == before
    check_resumes(finished)


TAUGHT = {
    "backbones": {
        "tiny": {
            "front_end": {"normalise": "band_floor", "offset": 0.001},
            "from_scratch": True,
            "fine_tune": {"steps": 2, "batch_size": 4, "evaluations": 1},
        }
    },
    "augmentation": {"gain_db": 0},
    "features": {"augmented_passes": 1},
    "head": {**RECIPE["head"], "teacher_share": 0.75, "slope": 2.0, "shift": 4.0},
}


def test_a_taught_and_calibrated_run_from_scratch(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    recipe_file.write_text(yaml.safe_dump({**RECIPE, **TAUGHT}))
    recipe, runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")
    assert pipeline.run(recipe, runner)[:3] == ["data", "teacher-tiny", "backbone-tiny"]
    result = tmp_path / "run" / "result"
    selection = json.loads((result / "selection.json").read_text())
    assert {"step", "loss", "label_loss", "teacher_loss"} <= set(selection["backbones"][0]["history"])
    assert selection["backbones"][0]["weights_source"] == "from scratch"
    check_scores(result, selection)
    check_compared(result, selection, runner.artifact("teacher-tiny"))
    check_alarms(result, selection)
    check_explained(selection, runner.artifact("features-tiny"), result)


SECOND = """
from orcawatch.spectrogram import LogMel
from tiny_backbone import Tiny


class Second(Tiny):
    name = "second"

    def __init__(self, front_end=None):
        super().__init__(front_end or LogMel(rate_hz=20000, frame_s=0.04, fft_size=1024, high_hz=9000))
"""


@pytest.fixture()
def two_backbones(recipe_file: Path, tiny_plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe over two backbones whose front ends differ in rate and frame."""
    site = tmp_path / "second"
    info = site / "second_backbone-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "second_backbone.py").write_text(SECOND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: second-backbone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orcawatch.backbones]\nsecond = second_backbone:Second\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    tuned = {"from_scratch": True, "fine_tune": {"steps": 1, "batch_size": 4, "evaluations": 1, "teacher_weight": 0}}
    content = yaml.safe_load(recipe_file.read_text())
    content["backbones"]["second"] = tuned
    content["head"]["epochs"] = 3
    more = {"features": {"augmented_passes": 1}, "augmentation": {}, "data": {"predict_test": True}}
    recipe_file.write_text(yaml.safe_dump({**content, **more}, sort_keys=False))
    return recipe_file


def test_two_backbones_and_their_fusion_with_a_test_split(
    two_backbones: Path, tiny_data: Path, tmp_path: Path, tables: SimpleNamespace
) -> None:
    rows = tables.read(tiny_data / "labels.csv")
    for k, label in enumerate(("?", "orca")):
        soundfile.write(tiny_data / "wav" / f"test_{k}.wav", 0.1 * np.random.default_rng(k).random(30000), 22050)
        rows.append({"file_name": f"test_{k}.wav", "label": label, "split": "test", "group": f"test-{k}"})
    tables.write(tiny_data / "labels.csv", rows)
    recipe, runner = pipeline.prepare(two_backbones, tiny_data, tmp_path / "run")
    pipeline.run(recipe, runner)
    result = tmp_path / "run" / "result"
    selection = json.loads((result / "selection.json").read_text())
    names = [name + suffix for name in ("tiny", "second", "fusion") for suffix in ("", "_min", "_neg")]
    assert [member["name"] for member in selection["members"]] == names
    assert selection["members"][-1] == {
        "name": "fusion_neg",
        "backbones": ["tiny", "second"],
        "mask": "negative",
        "relevance_of": ["tiny", "second"],
    }
    assert len((result / "ranking.csv").read_text().splitlines()) == 1 + 511
    check_fusion(result)
    tested = np.load(result / "test_scores.npz")
    assert list(tested["file_name"]) == ["test_0.wav", "test_1.wav"]
    assert list(tested["label"]) == ["?", "orca"]
    assert tested["clip_scores"].shape == (2, 9)
    for name in ("tiny", "second"):
        assert len(np.load(result / f"representative-{name}.npy")) == min(256, sum_of_training_windows(runner, name))
    assert (tmp_path / "run" / "report" / "report.html").stat().st_size > 10000
    assert pipeline.run(*pipeline.prepare(tmp_path / "run")) == []


def sum_of_training_windows(runner: Any, name: str) -> int:
    """Training windows as they are."""
    rows = np.load(runner.artifact(f"features-{name}") / "rows.npz")
    return int(np.sum((rows["split"] == members.TRAIN) & (rows["passed"] == 0)))


def check_fusion(result: Path) -> None:
    """The fusion members' scores follow from the spectrograms of both backbones, their masks and base-models."""
    trained, masks = heads.load_heads(result / "heads.npz"), np.load(result / "masks.npz")
    parts: dict[str, list[Any]] = {"fusion": [], "fusion_min": [], "fusion_neg": []}
    for name, choice in read_recipe(result / "recipe.yaml").backbones.items():
        plugin = backbone_of(name, choice)
        model = backbones.load_model(plugin, result / f"backbone-{name}.npz")
        spectrograms = np.load(result / f"devel_spectrograms-{name}.npy")
        features = model.predict(spectrograms.reshape(-1, *plugin.front_end.shape), verbose=0)
        relevance = np.asarray(head_relevance(features, trained[name], "highest"))
        parts["fusion"].append(features)
        parts["fusion_min"].append(features * masks[f"{name}/minimal"])
        parts["fusion_neg"].append(features * (relevance <= relevance.mean(axis=1, keepdims=True)))
    scores = np.load(result / "devel_scores.npz")
    for name, features in parts.items():
        found = scores["window_scores"][:, list(scores["members"]).index(name)]
        np.testing.assert_allclose(found, heads.scores(np.concatenate(features, axis=1), trained[name]), atol=1e-5)


def check_compared(result: Path, selection: dict, teacher: Path) -> None:
    """The teacher alone and the vote without slope and shift, from what the run leaves."""
    scores = np.load(result / "devel_scores.npz")
    windows, orca = scores["window_scores"].astype(np.float64), scores["label"] == "orca"
    found = preparation.load_teacher({"teacher-tiny": teacher}, "tiny")
    taught = found.confidence(np.load(result / "devel_spectrograms-tiny.npy"))
    plain = 1 / (1 + np.exp(-(np.log(windows / (1 - windows)) + 4) / 2))
    vote = [list(scores["members"]).index(name) for name in selection["vote"]]
    for name, confidences in (("teacher", taught), ("uncalibrated_vote", plain[:, vote].mean(axis=1))):
        clips = [confidences[scores["window_clip"] == k].mean() for k in range(12)]
        assert selection["metrics"][name]["value"] == pytest.approx(roc_auc(np.array(clips), orca))
    d = np.log(windows[:, 0] / (1 - windows[:, 0])) + 4
    assert np.abs(d).mean() < 20  # the shift is in the scores, and finite


def check_alarms(result: Path, selection: dict) -> None:
    """False alarms by kind are the noise clips whose highest vote reaches the start threshold."""
    scores, limits = np.load(result / "devel_scores.npz"), selection["thresholds"]
    vote = scores["window_scores"][:, [list(scores["members"]).index(name) for name in selection["vote"]]].mean(axis=1)
    highest = np.array([vote[scores["window_clip"] == k].max() for k in range(12)])
    alarms = int(np.sum(highest[scores["label"] == "noise"] >= limits["start"]))
    assert limits["false_alarms_by_kind"] == {"ambient": [alarms, 6]}
    assert limits["false_alarms"] == alarms


def check_explained(selection: dict, features: Path, result: Path) -> None:
    """The counts of what explained the windows follow from the base-model's logits."""
    rows, base = np.load(features / "rows.npz"), heads.load_heads(result / "heads.npz")["tiny"]
    logits = heads.forward(np.load(features / "features.npy"), base)
    for split in ("train", "devel"):
        some = logits[rows["split"] == preparation.SPLITS.index(split)]
        counted = selection["all_zero"]["tiny"][split]
        assert counted["rows"] == len(some)
        assert counted["orca"] == np.sum((some.argmax(axis=1) == 1) & (some[:, 1] > 0))


def check_scores(result: Path, selection: dict) -> None:
    """The stored scores follow from the stored spectrograms, weights, masks and this project's relevance rules."""
    plugin = backbone_of("tiny", read_recipe(result / "recipe.yaml").backbones["tiny"])
    model = plugin.build_keras()
    with np.load(result / "backbone-tiny.npz") as stored:
        model.set_weights([stored[name] for name in sorted(stored.files)])
    spectrograms = np.load(result / "devel_spectrograms-tiny.npy")
    features = model.predict(spectrograms.reshape(-1, *plugin.front_end.shape), verbose=0)
    trained, masks = heads.load_heads(result / "heads.npz"), np.load(result / "masks.npz")
    relevance = np.asarray(head_relevance(features, trained["tiny"], "highest"))
    negative = (relevance <= relevance.mean(axis=1, keepdims=True)).astype(np.float32)
    expected = [
        heads.scores(features, trained["tiny"]),
        heads.scores(features * masks["tiny/minimal"], trained["tiny_min"]),
        heads.scores(features * negative, trained["tiny_neg"]),
    ]
    scores = np.load(result / "devel_scores.npz")
    np.testing.assert_allclose(scores["window_scores"], np.stack(expected, axis=1), atol=1e-5)
    assert masks["tiny/minimal"].sum() == 5
    clips = np.stack([scores["window_scores"][scores["window_clip"] == k].mean(axis=0) for k in range(12)])
    np.testing.assert_allclose(scores["clip_scores"], clips, atol=1e-6)
    vote = clips[:, [list(scores["members"]).index(name) for name in selection["vote"]]].mean(axis=1)
    assert selection["metrics"]["vote"]["value"] == pytest.approx(roc_auc(vote, scores["label"] == "orca"))


def check_resumes(finished: Path) -> None:
    """A missing artifact is made again, the same to the byte, and nothing else is."""
    recipe, runner = pipeline.prepare(finished)
    masks = runner.artifact("masks-tiny")
    before = np.load(masks / "negative.npy")
    shutil.rmtree(masks)
    assert pipeline.run(recipe, runner) == ["masks-tiny"]
    np.testing.assert_array_equal(np.load(masks / "negative.npy"), before)


def test_the_same_seed_gives_the_same_tables(
    finished: Path, recipe_file: Path, tiny_data: Path, tmp_path: Path
) -> None:
    recipe, runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "again")
    pipeline.run(recipe, runner)
    for name in ("ranking.csv", "ranking.md", "heads.npz", "devel_scores.npz"):
        assert (tmp_path / "again" / "result" / name).read_bytes() == (finished / "result" / name).read_bytes()


def test_a_minimal_mask_that_keeps_all_makes_no_member(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump({**content, "masks": {"minimal_keep": 512}}))
    run = CliRunner().invoke(
        train,
        ["run", str(recipe_file), "--data", str(tiny_data), "--run", str(tmp_path / "run")],
        catch_exceptions=False,
    )
    assert run.exit_code == 0
    assert "left out: tiny_min: the minimal mask keeps all 12 features, so it is tiny itself" in run.stdout
    selection = json.loads((tmp_path / "run" / "result" / "selection.json").read_text())
    assert [m["name"] for m in selection["members"]] == ["tiny", "tiny_neg"]
    assert len((tmp_path / "run" / "result" / "ranking.csv").read_text().splitlines()) == 1 + 3
    status = CliRunner().invoke(train, ["status", str(tmp_path / "run")], catch_exceptions=False).stdout
    assert len([line for line in status.splitlines() if " done " in line]) == 10


def test_augmented_passes_add_training_rows_and_the_teacher_answers_all(
    recipe_file: Path, tiny_data: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(recipe_file.read_text())
    taught = {"features": {"augmented_passes": 2}, "augmentation": {}, "head": {"teacher_share": 0.5}}
    recipe_file.write_text(yaml.safe_dump({**content, **taught}))
    runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")[1]
    done: dict[str, Path] = {}
    for stage in runner.stages[:4]:
        done[stage.name] = tmp_path / "stages" / stage.name
        done[stage.name].mkdir(parents=True)
        stage.work(stage.settings, done, done[stage.name])
    rows = np.load(done["features-tiny"] / "rows.npz")
    features = np.load(done["features-tiny"] / "features.npy")
    clean = rows["passed"] == 0
    train = rows["split"] == members.TRAIN
    assert train[~clean].all()
    assert [np.sum(rows["passed"] == k) for k in (1, 2)] == [np.sum(train & clean)] * 2
    first, second = (features[rows["passed"] == k] for k in (1, 2))
    assert not np.allclose(first, features[train & clean])
    assert not np.allclose(first, second)
    sure = np.abs(rows["taught"] - rows["orca"])[train & clean]
    assert sure.mean() < 0.4 and sure.max() <= 1
    assert np.isfinite(rows["taught"]).all()


def test_test_recordings_are_never_read(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    """One test file is no audio, the other is not there: reading or looking for either would fail."""
    table = tiny_data / "labels.csv"
    rows = "held_back.flac,orca,test,kept-back,orca,,,1.0,\nabsent.flac,noise,test,kept-away,ambient,,,1.0,\n"
    table.write_text(table.read_text() + rows)
    (tiny_data / "wav" / "held_back.flac").write_text("this is no audio")
    _, runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")
    runner.stages[0].work(runner.stages[0].settings, {}, tmp_path)
    clips = [clip["file_name"] for clip in json.loads((tmp_path / "clips.json").read_text())["clips"]]
    assert len(clips) == 24 and not {"held_back.flac", "absent.flac"} & set(clips)


def test_a_change_of_the_seed_or_the_teacher_trains_again(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    def folders(**more: Any) -> dict[str, Path]:
        recipe_file.write_text(yaml.safe_dump({**RECIPE, **TAUGHT, **more}))
        runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")[1]
        return {stage.name: runner.artifact(stage.name) for stage in runner.stages}

    before = folders()
    seeded, taught = folders(seed=6), folders(teacher={"strength": 0.01})
    unchanged = [{name for name in before if after[name] == before[name]} for after in (seeded, taught)]
    assert "backbone-tiny" not in unchanged[0]
    assert unchanged[1] == {"data"}


def test_weights_are_known_by_what_their_files_hold(tmp_path: Path) -> None:
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta"):
        (tmp_path / name).write_text(name)
    by_prefix = backbones.weights_digest(object(), str(tmp_path / "model.ckpt"))
    assert list(by_prefix) == ["model.ckpt.index", "model.ckpt.data-00000-of-00001"]
    (tmp_path / "model.ckpt.index").write_text("other")
    assert backbones.weights_digest(object(), str(tmp_path / "model.ckpt")) != by_prefix
    kept = SimpleNamespace(weights_file=lambda source: tmp_path / f"{source}.meta")
    assert list(backbones.weights_digest(kept, "model.ckpt")) == ["model.ckpt.meta"]
    assert backbones.weights_digest(object(), "not-there-yet") == backbones.weights_digest(object(), None) == {}


def test_no_teacher_is_fitted_where_nothing_learns_from_it(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    alone = {"backbones": {"tiny": {"from_scratch": True, "fine_tune": {"steps": 1, "teacher_weight": 0}}}}
    recipe_file.write_text(yaml.safe_dump({**RECIPE, **alone}))
    runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")[1]
    assert "teacher-tiny" not in [stage.name for stage in runner.stages]


def test_a_worker_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PATIENCE_S", 0.2)
    monkeypatch.setattr(pipeline, "POLL_S", 0.05)
    with pytest.raises(TrainingError, match=r"waited 0.2 s for \['data'\] .* where no process works"):
        pipeline._wait_for({"data": tmp_path / "data"}, tmp_path)
    (tmp_path / "data").mkdir()
    pipeline._wait_for({"data": tmp_path / "data"}, tmp_path)


def test_the_modules_beside_a_plugin_count() -> None:
    modules = pipeline.plugin_code(backbone_of("inception_v3", BackboneSettings(weights="imagenet")))
    assert modules == ("orcawatch.plugins.inception", "orcawatch.plugins.weights")


def test_from_scratch_with_frozen_batch_norm_is_refused() -> None:
    from tensorflow.keras import Model, layers

    first = layers.Input((8, 8, 1))
    model = Model(first, layers.GlobalAveragePooling2D()(layers.BatchNormalization()(first)), name="net")
    choice = BackboneSettings(from_scratch=True, fine_tune=FineTuneSettings(batch_norm="frozen"))
    with pytest.raises(TrainingError, match=r"net from scratch needs fine_tune\.batch_norm: trained"):
        backbones._require_normalisation(model, choice)
    backbones._require_normalisation(model, replace(choice, fine_tune=FineTuneSettings(batch_norm="trained")))


def test_no_data_folder_is_a_clear_error(recipe_file: Path) -> None:
    with pytest.raises(TrainingError, match="give one with --data"):
        pipeline.prepare(recipe_file)


def test_further_folders_are_part_of_the_data_and_of_the_runs_recipe(
    recipe_file: Path, tiny_data: Path, tmp_path: Path, tables: SimpleNamespace
) -> None:
    reviewed = tmp_path / "reviewed"
    (reviewed / "wav").mkdir(parents=True)
    soundfile.write(reviewed / "wav" / "squeak.flac", np.full((22050, 2), 0.1), 22050)
    row = {"file_name": "squeak.flac", "label": "noise", "split": "train", "group": "mooring", "repository": "own"}
    tables.write(reviewed / "labels.csv", [row])
    alone = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")[1].artifact("data")
    found, runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run", further=[reviewed])
    assert runner.artifact("data") != alone
    runner.stages[0].work(runner.stages[0].settings, {}, tmp_path)
    data = json.loads((tmp_path / "clips.json").read_text())["data"]
    assert {"repository": "own", "licence": "not stated", "split": "train", "clips": 2} in data["sources"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(to_dict(found)))
    assert pipeline.prepare(tmp_path / "run")[1].artifact("data") == runner.artifact("data")
