"""The baselines of Table 3: machines, choices, fusion, openSMILE, and all stages through the runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.metrics import auc_interval, roc_auc
from orcawatch.training import baselines, functionals, linear, preparation
from orcawatch.training.audio_words import AudioWordsSettings
from orcawatch.training.autoencoder import AutoencoderSettings
from orcawatch.training.baselines import BaselineSettings, OpensmileSettings
from orcawatch.training.linear import SvmSettings
from orcawatch.training.stages import Runner, Stage

RATE_HZ = 16000
SVM = SvmSettings(complexities=(1e-3, 1e-1), folds=2)


def write_data(folder: Path, clips: list[dict[str, Any]], waveforms: list[Any]) -> None:
    """What a data stage leaves, of waveforms at 16 kHz."""
    described = {"path": "", "channel": 0, "kind": "", "source": "", "repository": "", "licence": ""}
    content = [{**described, **clip, "seconds": len(w) / RATE_HZ} for clip, w in zip(clips, waveforms)]
    (folder / "clips.json").write_text(json.dumps({"data": {}, "clips": content}))
    np.save(folder / f"waveforms-{RATE_HZ}.npy", np.concatenate(waveforms).astype(np.float32))
    np.save(folder / f"ends-{RATE_HZ}.npy", np.cumsum([len(waveform) for waveform in waveforms]))


def made(seed: int = 3, test: bool = True) -> tuple[list[dict[str, Any]], list[Any]]:
    """Four tones and four hisses for training, as many for devel (two clips a recording), two of test without labels."""
    generator, clips, waveforms = np.random.default_rng(seed), [], []
    for split in ("train", "devel"):
        for k in range(8):
            label = ("orca", "noise")[k % 2]
            clips.append({"label": label, "split": split, "group": f"{split}-{label}-{k // 4}"})
            waveforms.append(sound(label, generator))
    for label in ("orca", "noise") if test else ():
        clips.append({"label": "?", "split": "test", "group": f"test-{label}"})
        waveforms.append(sound(label, generator))
    return [{"file_name": f"{k}.wav", **clip} for k, clip in enumerate(clips)], waveforms


def sound(label: str, generator: np.random.Generator) -> Any:
    """A tone with harmonics in noise, or noise alone, .25 to .4 s."""
    t = np.arange(int(generator.uniform(0.25, 0.4) * RATE_HZ)) / RATE_HZ
    hiss = 0.05 * generator.standard_normal(len(t))
    pitch = generator.uniform(600, 1000)
    tone = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in (1, 2, 3))
    return hiss + (0.2 * tone if label == "orca" else 0)


def data_stage(content: tuple[list[dict[str, Any]], list[Any]]) -> Stage:
    """A data stage that writes made clips."""
    return Stage("data", lambda settings, inputs, folder: write_data(folder, *content), {"made": "here"})


# --- linear machines --------------------------------------------------------------------------------------------------


def spread(seed: int, clips: int, features: int) -> tuple[Any, Any]:
    """Features of two classes that overlap."""
    generator = np.random.default_rng(seed)
    orca = np.arange(clips) % 3 == 0
    return generator.standard_normal((clips, features)) + 0.8 * orca[:, None] * (np.arange(features) < 3), orca


def test_scale_against_a_loop() -> None:
    values = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, np.nan], [8.0, 5.0, 6.0]], np.float32)
    scaled = linear.fit_scale(values, "standard").apply(values)
    for column in range(3):
        known = [v for v in values[:, column] if np.isfinite(v)]
        mean = sum(known) / len(known)
        deviation = (sum((v - mean) ** 2 for v in known) / len(known)) ** 0.5 or 1
        expected = [(v - mean) / deviation if np.isfinite(v) else 0 for v in values[:, column]]
        assert scaled[:, column] == pytest.approx(expected)
    ranged = linear.fit_scale(values, "range").apply(values)
    assert (np.nanmin(ranged, axis=0) == 0).all() and ranged[:, 0].max() == ranged[:, 2].max() == 1


def test_plane_minimises_what_it_says() -> None:
    """Squared hinge with balanced classes plus the norm of weights and bias, and no nearby plane is better."""
    features, orca = spread(0, 30, 4)
    plane = linear.fit_plane(features, orca, 0.1, seed=1)
    sign, price = np.where(orca, 1, -1), np.where(orca, 30 / (2 * orca.sum()), 30 / (2 * (~orca).sum()))

    def cost(weights: Any, bias: float) -> float:
        hinges = [max(0, 1 - s * (w @ weights + bias)) ** 2 for s, w in zip(sign, features)]
        return 0.5 * (weights @ weights + bias**2) + 0.1 * float(np.sum(price * hinges))

    best = cost(plane.weights, plane.bias)
    generator = np.random.default_rng(1)
    for _ in range(50):
        assert cost(plane.weights + 0.01 * generator.standard_normal(4), plane.bias) > best
        assert cost(plane.weights, plane.bias + 0.01 * generator.standard_normal()) >= best - 1e-4
    assert plane.converged


def test_narrowing_changes_no_distance() -> None:
    features, orca = spread(0, 40, 90)
    learned, asked = features[:25], features[25:]
    narrow_learned, narrow_asked = linear.narrowed(learned, asked)
    assert narrow_learned.shape == (25, 25) and narrow_asked.shape == (15, 25)
    wide = linear.fit_plane(learned, orca[:25], 1e-3, 1)
    narrow = linear.fit_plane(narrow_learned, orca[:25], 1e-3, 1)
    assert narrow.distance(narrow_asked) == pytest.approx(wide.distance(asked), abs=1e-4)
    assert np.array_equal(linear.narrowed(features[:, :5], asked[:, :5])[1], asked[:, :5])


def test_folds_hold_recordings_together_and_both_classes() -> None:
    groups = np.array([f"o{k // 3}" for k in range(15)] + [f"n{k // 2}" for k in range(20)])
    orca = np.arange(35) < 15
    fold = linear.folds_of(groups, orca, 5, seed=1)
    assert all(len(set(fold[groups == name])) == 1 for name in set(groups))
    assert all(orca[fold == k].any() and not orca[fold == k].all() for k in range(5))
    assert np.array_equal(fold, linear.folds_of(groups, orca, 5, seed=1))
    assert linear.folds_of(groups, orca, 50, seed=1).max() == 4


def test_left_out_clips_are_scored_by_a_machine_that_never_saw_them() -> None:
    """With labels at random in every recording, left-out clips are not told apart though those seen are."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((60, 200))
    orca, groups = np.arange(60) % 2 == 0, np.array([str(k // 2) for k in range(60)])
    fold = linear.folds_of(groups, orca, 5, 0)
    unseen = linear.left_out(features, orca, fold, SvmSettings(complexities=(1.0,)), 1)[0]
    assert roc_auc(linear.fit_plane(features, orca, 1.0, 1).distance(features), orca) == 1
    assert abs(roc_auc(unseen, orca) - 0.5) < 0.25


@pytest.mark.parametrize("label", [True, False])
def test_one_class_is_refused(label: bool) -> None:
    with pytest.raises(TrainingError, match="all 6 clips are"):
        linear.folds_of(np.array(list("aabbcc")), np.full(6, label), 2, 0)


def test_one_recording_of_a_class_is_refused() -> None:
    with pytest.raises(TrainingError, match="here 1 hold orca and 2 hold noise"):
        linear.folds_of(np.array(list("aabbcc")), np.array([1, 1, 0, 0, 0, 0], bool), 2, 0)


def test_platt_keeps_the_order_and_is_calibrated() -> None:
    generator = np.random.default_rng(0)
    orca = np.arange(4000) % 2 == 0
    distances = 3 * (generator.standard_normal(4000) + 2 * orca - 1)
    confidence = linear.fit_platt(distances, orca).confidence(distances)
    assert roc_auc(confidence, orca) == roc_auc(distances, orca)
    assert confidence == pytest.approx(1 / (1 + np.exp(-2 * distances / 3)), abs=0.06)
    backwards = linear.fit_platt(-distances, orca).confidence(-distances)
    assert roc_auc(backwards, orca) == roc_auc(-distances, orca)


@pytest.mark.parametrize("on", ["train", "devel"])
def test_the_complexity_with_the_best_auc_is_taken(on: str) -> None:
    features, orca = spread(5, 90, 40)
    split = linear.Split(np.arange(90) < 60, np.arange(90) >= 60, orca, np.array([str(k // 4) for k in range(90)]))
    trained = linear.train(features, split, SvmSettings(complexities=(1e-5, 1e-3, 1e-1), chosen_on=on, folds=3), 1)
    aucs = [entry[f"{on}_auc"] for entry in trained.candidates]
    assert trained.best == max(aucs) == aucs[[e["complexity"] for e in trained.candidates].index(trained.complexity)]
    chosen = next(entry for entry in trained.candidates if entry["complexity"] == trained.complexity)
    assert roc_auc(trained.scores[60:], orca[60:]) == pytest.approx(chosen["devel_auc"])


def test_devel_clips_teach_nothing() -> None:
    features, orca = spread(5, 90, 40)
    split = linear.Split(np.arange(90) < 60, np.arange(90) >= 60, orca, np.array([str(k // 4) for k in range(90)]))
    flipped = linear.Split(split.train, split.devel, orca ^ split.devel, split.groups)
    settings = SvmSettings(complexities=(1e-3, 1e-1), folds=3)
    assert np.array_equal(
        linear.train(features, split, settings, 1).scores, linear.train(features, flipped, settings, 1).scores
    )


def test_fusion_is_the_mean() -> None:
    assert linear.fuse(np.array([[0.0, 0.5], [1.0, 0.25], [0.5, 0.0]])) == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"complexities": (1.0, 0.1)}, "ascending"),
        ({"complexities": ()}, "complexities"),
        ({"chosen_on": "test"}, "chosen_on must be one of"),
        ({"scaling": "none"}, "scaling must be one of"),
        ({"folds": 1}, "folds must be 2 or more"),
    ],
)
def test_wrong_settings_of_the_machine(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        SvmSettings(**wrong)


# --- openSMILE --------------------------------------------------------------------------------------------------------


def test_short_clips_are_repeated() -> None:
    waveform = np.arange(600, dtype=np.float32)
    longer = functionals.long_enough(waveform, RATE_HZ)
    assert len(longer) >= functionals.SHORTEST_S * RATE_HZ
    assert all(longer[k] == waveform[k % 600] for k in range(len(longer)))
    assert functionals.is_short(1599, RATE_HZ) and not functionals.is_short(1600, RATE_HZ)
    assert functionals.long_enough(np.ones(1600, np.float32), RATE_HZ).shape == (1600,)


def test_two_processes_give_what_one_gives() -> None:
    pytest.importorskip("opensmile")
    waveforms = [sound("orca", np.random.default_rng(k)).astype(np.float32) for k in range(3)]
    waveforms.append(waveforms[0][:500])
    levels = [functionals.FUNCTIONALS, functionals.DESCRIPTORS, functionals.DELTAS]
    one = list(functionals.describe_all(levels, RATE_HZ, waveforms, 1))
    two = list(functionals.describe_all(levels, RATE_HZ, waveforms, 2))
    assert [[rows.shape[1] for rows in clip] for clip in one] == [[6373, 65, 65]] * 4
    assert all(np.array_equal(a, b) for x, y in zip(one, two) for a, b in zip(x, y))
    assert all(np.isfinite(rows).all() for clip in one for rows in clip)


# --- stages -----------------------------------------------------------------------------------------------------------


def settings_of_all() -> BaselineSettings:
    """All three at a size for tests."""
    words = AudioWordsSettings(sizes=(4, 8), assignments=2, svm=SVM)
    network = AutoencoderSettings(
        seconds=0.4, bands=16, thresholds_db=(-40.0, -60.0), layers=1, units=4, epochs=1, batch_size=8, svm=SVM
    )
    return BaselineSettings(OpensmileSettings(SVM), words, network, workers=1)


def run_all(folder: Path, settings: BaselineSettings, content: Any) -> Runner:
    """All baselines over made clips."""
    runner = Runner(folder, [data_stage(content), *baselines.stages(settings, RATE_HZ, seed=1, draws=200)])
    runner.run()
    return runner


@pytest.fixture()
def step_by_step() -> Iterator[None]:
    """TensorFlow without graphs, whose tracing takes longer than these few steps."""
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("step_by_step")
def test_all_baselines_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opensmile")
    content, settings = made(), settings_of_all()
    runner = run_all(tmp_path / "run", settings, content)
    members = ["opensmile", "audio_words", "autoencoder"]
    scores = {}
    for name in (*members, "fusion"):
        folder = runner.artifact(f"baseline-{name}")
        report = json.loads((folder / "report.json").read_text())
        with np.load(folder / "scores.npz") as stored:
            table = {key: stored[key] for key in stored.files}
        asked = [clip for clip in content[0] if clip["split"] != "train"]
        assert list(table["file_name"]) == [clip["file_name"] for clip in asked]
        assert list(table["split"]) == [clip["split"] for clip in asked]
        assert list(table["label"])[-2:] == ["?", "?"] and list(table["channel"]) == [0] * 10
        devel = table["split"] == "devel"
        assert report["auc"]["value"] == roc_auc(table["score"][devel], table["label"][devel] == "orca")
        assert ((table["score"] >= 0) & (table["score"] <= 1)).all()
        orca, groups = table["label"][devel] == "orca", list(table["group"][devel])
        assert report["auc"] == asdict(auc_interval(table["score"][devel], orca, groups, 200, 1))
        assert report["name"] == name and report["versions"]["scikit-learn"]
        scores[name] = table["score"]
    assert scores["fusion"] == pytest.approx(np.mean([scores[name] for name in members], axis=0))
    assert scores["opensmile"][:8].tolist() and scores["opensmile"][-2] > scores["opensmile"][-1]
    told = json.loads((runner.artifact("baseline-audio_words") / "report.json").read_text())
    assert told["chosen"]["size"] in (4, 8) and "chosen on devel, so the AUC on devel is optimistic" in told["note"]
    fused = json.loads((runner.artifact("baseline-fusion") / "report.json").read_text())
    assert fused["chosen"] == {"members": members, "size_chosen_on_devel_by": ["audio_words"]}
    assert "optimistic" in fused["note"]
    check_another_machine_recomputes_no_features(tmp_path / "run", settings, content)
    check_same_seed_same_tables(tmp_path / "again", runner, settings, content, monkeypatch)


def check_another_machine_recomputes_no_features(run: Path, settings: BaselineSettings, content: Any) -> None:
    """Another complexity of one baseline: its machine and the fusion run again, nothing else."""
    other = BaselineSettings(
        OpensmileSettings(SvmSettings((1e-2,), folds=2)), settings.audio_words, settings.autoencoder
    )
    runner = Runner(run, [data_stage(content), *baselines.stages(other, RATE_HZ, seed=1, draws=200)])
    assert runner.run() == ["baseline-opensmile", "baseline-fusion"]


def check_same_seed_same_tables(
    folder: Path, first: Runner, settings: BaselineSettings, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run from nothing; openSMILE's rows are taken from the first, a test of its own says they are equal."""
    known = np.load(first.artifact("functionals") / "functionals.npy")
    monkeypatch.setattr(functionals, "describe_all", rows_of(first, known))
    second = run_all(folder, settings, content)
    for name in ("opensmile", "audio_words", "autoencoder", "fusion"):
        here, there = (runner.artifact(f"baseline-{name}") for runner in (first, second))
        assert (here / "report.json").read_text() == (there / "report.json").read_text()
        assert np.array_equal(np.load(here / "scores.npz")["score"], np.load(there / "scores.npz")["score"])


def rows_of(first: Runner, known: Any) -> Any:
    """A stand-in for openSMILE that gives back what it gave."""
    parts = [np.load(first.artifact("descriptors") / f"{part}.npy") for part in baselines.PARTS]
    ends = [np.load(first.artifact("descriptors") / f"ends-{part}.npy")[:-1] for part in baselines.PARTS]
    described = list(zip(*(np.split(rows, end) for rows, end in zip(parts, ends))))
    return lambda levels, *_: iter(described if len(levels) == 2 else [[row[None]] for row in known])


def test_intervals_are_of_the_recipes_seed(tmp_path: Path) -> None:
    generator, labels = np.random.default_rng(0), np.array(["orca", "noise"] * 12)
    columns = {"split": np.full(24, "devel"), "label": labels, "group": np.array([f"{k // 3}" for k in range(24)])}
    np.savez(tmp_path / "scores.npz", score=generator.random(24), **columns)
    (tmp_path / "report.json").write_text(json.dumps({"name": "one", "chosen": {}, "versions": {}}))
    settings = BaselineSettings(OpensmileSettings(SVM), AudioWordsSettings(sizes=(4,), assignments=2, svm=SVM))
    stage = baselines.stages(settings, RATE_HZ, seed=5, draws=50)[-1]
    (tmp_path / "fused").mkdir()
    stage.work(stage.settings, dict.fromkeys(stage.inputs, tmp_path), tmp_path / "fused")
    with np.load(tmp_path / "fused" / "scores.npz") as stored:
        expected = [auc_interval(stored["score"], labels == "orca", list(stored["group"]), 50, seed) for seed in (5, 0)]
    found = json.loads((tmp_path / "fused" / "report.json").read_text())["auc"]
    assert found == asdict(expected[0])
    assert found["low"] != expected[1].low


def test_training_data_of_one_class(tmp_path: Path) -> None:
    clips, waveforms = made(test=False)
    for clip in clips[:8]:
        clip["label"] = "noise"
    write_data(tmp_path, clips, waveforms)
    np.save(tmp_path / "functionals.npy", np.zeros((16, 3), np.float32))
    stage = baselines.stages(BaselineSettings(OpensmileSettings(SVM)), RATE_HZ, 1, 200)[1]
    with pytest.raises(TrainingError, match="all 8 clips are noise"):
        stage.work(stage.settings, {"data": tmp_path, "functionals": tmp_path}, tmp_path)


def test_only_the_chosen_baselines_are_stages() -> None:
    assert baselines.stages(BaselineSettings(), RATE_HZ, 1, 200) == []
    one = baselines.stages(BaselineSettings(opensmile=OpensmileSettings()), RATE_HZ, 1, 200)
    assert [stage.name for stage in one] == ["functionals", "baseline-opensmile"]


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"need no-such-package.*pip install 'orcawatch\[baselines\]'"):
        baselines.versions(["no-such-package"])
    functionals.extractor.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "opensmile", None)
    with pytest.raises(TrainingError, match=r"needs opensmile.*pip install 'orcawatch\[baselines\]'"):
        functionals.extractor(functionals.FUNCTIONALS)


def test_no_workers_are_refused() -> None:
    with pytest.raises(TrainingError, match="workers must be 1 or more"):
        BaselineSettings(workers=0)


def test_clips_that_are_repeated_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("opensmile")
    clips, waveforms = made(test=False)
    waveforms[0] = waveforms[0][:800]
    write_data(tmp_path, clips[:2], waveforms[:2])
    baselines.make_functionals(1, {"rate_hz": RATE_HZ}, {"data": tmp_path}, tmp_path)
    counted = json.loads((tmp_path / "report.json").read_text())
    assert counted == {"clips": 2, "repeated": 1, "not_finite": 0}
    assert np.load(tmp_path / "functionals.npy").shape == (2, 6373)
    assert len(preparation.read_waveforms(tmp_path, RATE_HZ)) == 2
