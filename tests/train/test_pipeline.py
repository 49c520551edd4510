"""The whole pipeline on tiny recordings, and what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from orcawatch.errors import TrainingError
from orcawatch.metrics import roc_auc
from orcawatch.relevance import head_relevance
from orcawatch.training import heads, pipeline
from orcawatch.training.cli import train
from orcawatch.training.recipe import backbone_of, read_recipe

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
    from orcawatch.training.steps import save_weights

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
    assert selection["data"]["licences"][0] == {"split": "devel", "licence": "CC0", "clips": 12}
    assert len((result / "ranking.csv").read_text().splitlines()) == 1 + 7
    check_scores(result, selection)
    # a second run computes nothing, from the recipe and from the run's folder
    before = (result / "selection.json").read_bytes()
    assert pipeline.run(*pipeline.prepare(recipe_file, tiny_data, finished)) == []
    assert pipeline.run(*pipeline.prepare(finished)) == []
    assert (result / "selection.json").read_bytes() == before
    check_resumes(finished)


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
    for stage in runner.stages[:5]:
        done[stage.name] = tmp_path / "stages" / stage.name
        done[stage.name].mkdir(parents=True)
        stage.work(stage.settings, done, done[stage.name])
    rows = np.load(done["features-tiny"] / "rows.npz")
    features = np.load(done["features-tiny"] / "features.npy")
    clean = rows["passed"] == 0
    assert rows["train"][~clean].all()
    assert [np.sum(rows["passed"] == k) for k in (1, 2)] == [np.sum(rows["train"] & clean)] * 2
    first, second = (features[rows["passed"] == k] for k in (1, 2))
    assert not np.allclose(first, features[rows["train"] & clean])
    assert not np.allclose(first, second)
    sure = np.abs(rows["taught"] - rows["orca"])[rows["train"] & clean]
    assert sure.mean() < 0.4 and sure.max() <= 1
    assert np.isfinite(rows["taught"]).all()


def test_test_recordings_are_never_read(recipe_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    table = tiny_data / "labels.csv"
    table.write_text(table.read_text() + "held_back.flac,orca,test,kept-back,orca,,1.0,\n")
    shutil.copy(tiny_data / "wav" / "devel_orca_0.flac", tiny_data / "wav" / "held_back.flac")
    _, runner = pipeline.prepare(recipe_file, tiny_data, tmp_path / "run")
    runner.stages[0].work(runner.stages[0].settings, {}, tmp_path)
    assert "held_back" not in (tmp_path / "clips.json").read_text()


def test_no_data_folder_is_a_clear_error(recipe_file: Path) -> None:
    with pytest.raises(TrainingError, match="give one with --data"):
        pipeline.prepare(recipe_file)
