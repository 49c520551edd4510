from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch.bundle import SHIPPED, load_bundle, write_bundle
from orcawatch.calls import pulsed_call
from orcawatch.cascade import Cascade
from orcawatch.detector import score_silence
from orcawatch.doctor import share_of_real_time
from orcawatch.ensemble import Ensemble, fuse_channels
from orcawatch.errors import BundleError
from orcawatch.interpreter import Model
from orcawatch.records import Window
from orcawatch.spectrogram import rows_of

RATE_HZ = 16000


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    """The shipped bundle, hearing everything."""
    found = Ensemble(load_bundle(SHIPPED))
    found.cascade = Cascade()
    return found


def window_of(ensemble: Ensemble, audio: np.ndarray) -> Window:
    rows = {
        name: np.ascontiguousarray(rows_of(entry.front_end, audio, RATE_HZ)[:96].transpose(1, 0, 2))
        for name, entry in ensemble.bundle.backbones.items()
    }
    return Window(0, 15600, rows)


@pytest.fixture(scope="module")
def window(ensemble: Ensemble) -> Window:
    """Sea-like noise on channel 0; the same with a pulsed call on channel 1."""
    noise = np.random.default_rng(0).normal(0, 0.01, (RATE_HZ, 2)).astype(np.float32)
    call = pulsed_call(np.random.default_rng(5), RATE_HZ)[:RATE_HZ]
    noise[: len(call), 1] += 0.3 * call
    return window_of(ensemble, noise)


def test_call_scores_over_noise(ensemble: Ensemble, window: Window) -> None:
    score = ensemble.score(window)
    assert score.channel_scores[1] > score.channel_scores[0]
    assert score.member_scores.shape == (2, len(ensemble.bundle.members))
    assert ((score.member_scores >= 0) & (score.member_scores <= 1)).all()


def test_noise_is_stopped_by_the_shipped_gate_and_a_call_is_not(ensemble: Ensemble, window: Window) -> None:
    found, full = Ensemble(ensemble.bundle).score(window), ensemble.score(window)
    assert np.isnan(found.member_scores[0]).all() and found.channel_scores[0] < ensemble.bundle.stop_threshold
    np.testing.assert_array_equal(found.member_scores[1], full.member_scores[1])
    assert found.score == full.score == found.channel_scores[1]


def test_silence_and_speed_are_of_every_network_although_a_gate_would_stop_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble, calls = Ensemble(load_bundle(SHIPPED)), []
    call = Model.call
    monkeypatch.setattr(Model, "call", lambda *given: calls.append(given[1]) or call(*given))
    score_silence(ensemble)
    assert calls == ["features", "score"] and ensemble.cascade.gates
    calls.clear()
    share_of_real_time(ensemble, RATE_HZ, 1, timer=iter([0.0, 9.0, 9.0]).__next__)
    assert {"features", "score"} == set(calls) and ensemble.cascade.gates

    def broken(*given: object) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(Model, "call", broken)
    with pytest.raises(BundleError, match="cannot score silence: no such operation"):
        score_silence(ensemble)
    assert ensemble.cascade.gates


def test_vote_is_the_mean_of_its_members(ensemble: Ensemble, window: Window) -> None:
    score = ensemble.score(window)
    columns = [ensemble.bundle.members.index(name) for name in ensemble.bundle.vote]
    np.testing.assert_allclose(score.channel_scores, score.member_scores[:, columns].mean(axis=1), atol=1e-6)
    assert score.score == pytest.approx(fuse_channels(score.channel_scores, ensemble.bundle.channel_fusion))


def test_channels_do_not_see_each_other(ensemble: Ensemble, window: Window) -> None:
    swapped = Window(0, 15600, {name: rows[::-1] for name, rows in window.rows.items()})
    np.testing.assert_array_equal(ensemble.score(swapped).channel_scores, ensemble.score(window).channel_scores[::-1])


def test_only_the_channels_asked_for_are_scored(ensemble: Ensemble, window: Window) -> None:
    whole, half = ensemble.score(window), ensemble.score(window, columns=(1,))
    assert np.isnan(half.member_scores[0]).all() and np.isnan(half.channel_scores[0])
    np.testing.assert_array_equal(half.member_scores[1], whole.member_scores[1])
    assert half.score == whole.channel_scores[1]


def test_only_the_members_asked_for_vote(ensemble: Ensemble, window: Window) -> None:
    alone = ensemble.score(window, vote=("vggish_min",))
    column = ensemble.bundle.members.index("vggish_min")
    np.testing.assert_array_equal(alone.channel_scores, ensemble.score(window).member_scores[:, column])


def test_explanation_has_the_spectrograms_shape_and_no_negative_relevance(ensemble: Ensemble, window: Window) -> None:
    ((name, (rows, relevance)),) = ensemble.explain([window], 1)[0].items()
    assert name == next(iter(ensemble.bundle.backbones))
    assert rows.shape == relevance.shape == (96, 64)
    np.testing.assert_array_equal(rows, window.rows[name][1])
    assert relevance.min() >= 0 and relevance.max() > 0


def test_relevance_adds_up_to_the_channels_score(ensemble: Ensemble, window: Window) -> None:
    assert len(ensemble.bundle.backbones) == 1
    score = ensemble.score(window).channel_scores[1]
    ((_, relevance),) = ensemble.explain([window], 1)[0].values()
    assert relevance.sum() == pytest.approx(score, rel=0.05)


class FakeModel:
    """Answers `explain` with fixed relevance; counts its calls."""

    def __init__(self, answers: dict[str, np.ndarray]) -> None:
        self._answers = answers

    def call(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert signature == "explain"
        return self._answers


def test_backbones_without_relevance_cost_no_pass(
    ensemble: Ensemble, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = ensemble.bundle.backbones
    silent = copy.copy(ensemble)
    silent._heads = FakeModel({name: np.zeros((1, 128), np.float32)})  # type: ignore[assignment]
    monkeypatch.setattr("orcawatch.backbone.Model", None)
    assert not silent.explain([window], 1)[0][name][1].any()


def test_windows_explained_together_are_explained_as_alone(ensemble: Ensemble, window: Window) -> None:
    other = Window(5, 6, {name: rows[::-1] for name, rows in window.rows.items()})
    together = ensemble.explain([window, other], 1)
    alone = [ensemble.explain([one], 1)[0] for one in (window, other)]
    for one, same in zip(together, alone):
        for name in one:
            np.testing.assert_array_equal(one[name], same[name])
    assert not np.array_equal(together[0][name][1], together[1][name][1])


def test_a_bundle_that_is_removed_while_it_listens_still_explains(window: Window, tmp_path: Path) -> None:
    ensemble = Ensemble(load_bundle(shutil.copytree(SHIPPED, tmp_path / "bundle")))
    shutil.rmtree(tmp_path / "bundle")
    assert ensemble.explain([window], 1)[0]["vggish"][1].any()


def test_a_file_that_is_overwritten_while_it_listens_is_not_run(window: Window, tmp_path: Path) -> None:
    ensemble = Ensemble(load_bundle(shutil.copytree(SHIPPED, tmp_path / "bundle")))
    with (tmp_path / "bundle" / "vggish-explain.tflite").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(BundleError, match="was written to since it was checked"):
        ensemble.explain([window], 1)


def test_the_relevance_pass_is_prepared_for_an_explanation_only(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, bool]] = []

    class Seen(Model):
        def __init__(self, path: Path, *about: Any, prepared: bool = True) -> None:
            made.append((path.name, prepared))
            super().__init__(path, *about, prepared=prepared)

    monkeypatch.setattr("orcawatch.backbone.Model", Seen)
    ensemble = Ensemble(load_bundle(SHIPPED))
    ensemble.score(window)
    assert made == [("vggish.tflite", True), ("vggish-explain.tflite", False)]
    ensemble.explain([window, window], 1)
    assert made[2:] == [("vggish-explain.tflite", True)]


@pytest.mark.parametrize(
    "changes",
    [
        lambda m: m["backbones"][0]["front_end"].update(bands=32),
        lambda m: m["backbones"][0].update(feature_size=7),
        lambda m: m["members"].append("another"),
    ],
)
def test_manifest_that_does_not_fit_the_models_is_refused(tmp_path: Path, changes: Any) -> None:
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    files = {name: (SHIPPED / name).read_bytes() for name in manifest["files"]}
    changes(manifest)
    write_bundle(tmp_path / "bundle", {k: v for k, v in manifest.items() if k not in ("files", "digest")}, files)
    with pytest.raises(BundleError, match="does not fit its manifest"):
        Ensemble(load_bundle(tmp_path / "bundle"))


def test_channel_fusion() -> None:
    scores = np.array([0.2, 0.8, 0.5], np.float32)
    assert fuse_channels(scores, "max") == pytest.approx(0.8)
    assert fuse_channels(scores, "mean") == pytest.approx(0.5)
