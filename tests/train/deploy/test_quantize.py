from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from orcawatch.deploy import models
from orcawatch.deploy.cli import deploy
from orcawatch.deploy.models import export_digest, exported
from orcawatch.deploy.quantize import measure, median_ms, quantize, snr_db, window_scores
from orcawatch.deploy.run import Run, needed_backbones, parse_vote, read_run
from orcawatch.deploy.variants import QUANTIZATIONS
from orcawatch.errors import InputError, TrainingError
from orcawatch.masking import negative_mask
from orcawatch.metrics import roc_auc
from orcawatch.relevance import head_relevance

RUN_A_VARIANT = """
import sys, numpy as np
from pathlib import Path
from orcawatch.backbone import EdgeBackbone
from orcawatch.interpreter import runtime_name
from orcawatch.spectrogram import LinearPower

folder, features, explain = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
edge = EdgeBackbone(Path(features), Path(explain), LinearPower(size=24), 16)
spectrograms = np.load(folder / "spectrograms.npy")
found = np.stack([edge.features(one) for one in spectrograms])
print(runtime_name())
np.savez(folder / "found.npz", features=found, map=edge.explain(spectrograms[:1], found[:1])[0])
"""


@pytest.fixture(scope="module")
def found(run: Run) -> dict[str, Any]:
    return quantize(run, QUANTIZATIONS, timed_windows=3)


def test_every_backbone_and_variant_is_described(run: Run, found: dict[str, Any]) -> None:
    assert list(found["backbones"]) == list(run.backbones)
    for name, entry in found["backbones"].items():
        assert list(entry["variants"]) == list(QUANTIZATIONS)
        for variant, one in entry["variants"].items():
            files = exported(run, name, variant).files
            assert one["bytes"] == sum(one["files"].values()) == sum(path.stat().st_size for path in files)
            assert list(one["files"]) == ["features", "explain"]
            assert one["features_ms"] > 0 and one["explain_ms"] > 0
        assert entry["variants"]["float32"]["snr_db"] is None
        assert entry["variants"]["float32"]["mask_bits_flipped"] == 0
        noise = [entry["variants"][variant]["snr_db"] for variant in ("float16", "dynamic", "int8")]
        assert noise[0] > noise[1] > 20 and noise[0] > noise[2] > 15


def test_members_lose_what_their_scores_say(run: Run, found: dict[str, Any]) -> None:
    devel = run.arrays("devel_scores.npz")
    orca = devel["label"] == "orca"
    for k, entry in enumerate(run.members):
        features = {name: measure(run, name, "int8", 3).features for name in entry["backbones"]}
        scores = window_scores(run, features, [entry["name"]])[:, 0]
        means = scores.reshape(-1, 2).mean(axis=1)
        trained = devel["window_scores"][:, k].reshape(-1, 2).mean(axis=1)
        one = found["members"][entry["name"]]
        assert one["trained"]["value"] == pytest.approx(roc_auc(trained, orca))
        assert one["variants"]["int8"]["auc"]["value"] == pytest.approx(roc_auc(means, orca))
        loss = one["variants"]["int8"]["loss"]
        assert loss["value"] == pytest.approx(roc_auc(trained, orca) - roc_auc(means, orca))
        assert loss["low"] <= loss["high"]
        difference = np.abs(scores - devel["window_scores"][:, k]).max()
        assert one["variants"]["int8"]["largest_difference"] == pytest.approx(difference)
        assert one["variants"]["float32"]["largest_difference"] < 1e-4


def test_vote_adds_up_its_backbones(run: Run, found: dict[str, Any]) -> None:
    vote = found["vote"]
    assert (vote["members"], vote["backbones"]) == (run.selection["vote"], list(run.backbones))
    for variant in QUANTIZATIONS:
        parts = [entry["variants"][variant] for entry in found["backbones"].values()]
        assert vote["variants"][variant]["bytes"] == sum(part["bytes"] for part in parts)
        assert vote["variants"][variant]["features_ms"] == pytest.approx(sum(part["features_ms"] for part in parts))


def test_flipped_mask_bits_are_counted_as_a_loop_does(run: Run, found: dict[str, Any]) -> None:
    base = {
        part: run.arrays("heads.npz")[f"small_mel/{part}"]
        for part in ("hidden_kernel", "hidden_bias", "kernel", "bias")
    }
    masks = []
    for variant in ("float32", "int8"):
        features = measure(run, "small_mel", variant, 3).features
        masks.append(negative_mask(head_relevance(features, base, "highest")).numpy())
    flips = sum(a != b for row, other in zip(*masks) for a, b in zip(row, other))
    assert found["backbones"]["small_mel"]["variants"]["int8"]["mask_bits_flipped"] == pytest.approx(
        flips / masks[0].size
    )
    assert 0 < masks[0].mean() < 1


def test_snr_of_known_noise() -> None:
    exact = np.full((10, 4), 2.0, np.float32)
    assert snr_db(exact, exact + np.float32(0.02)) == pytest.approx(40, abs=0.01)
    assert snr_db(exact, exact) is None


def test_median_time_leaves_out_the_first_call() -> None:
    made: list[int] = []
    assert median_ms([lambda k=k: made.append(k) for k in range(3)]) >= 0
    assert made == [0, 0, 1, 2]


def test_nothing_is_converted_or_measured_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(run, ["dynamic"], timed_windows=3)
    monkeypatch.setattr(models, "_convert", lambda *given: pytest.fail(f"converted again: {given}"))
    before = {path: path.stat().st_mtime_ns for path in (run.root / "deploy").rglob("*.*")}
    quantize(run, ["dynamic"], timed_windows=3)
    assert {path: path.stat().st_mtime_ns for path in (run.root / "deploy").rglob("*.*")} == before


def test_other_devel_spectrograms_are_measured_anew(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "result")
    other = read_run(tmp_path)
    first = measure(other, "small_mel", "float32", 3)
    path = tmp_path / "result" / "devel_spectrograms-small_mel.npy"
    swapped = np.load(path)[::-1]
    np.save(path, swapped)
    second = measure(other, "small_mel", "float32", 3)
    assert second.exported == first.exported
    np.testing.assert_array_equal(second.features, first.features[::-1])
    assert not np.array_equal(second.features, first.features)
    np.save(path, swapped[::-1])
    np.testing.assert_array_equal(measure(other, "small_mel", "float32", 3).features, first.features)
    assert len(list((tmp_path / "deploy" / "measured").iterdir())) == 2


def test_other_weights_or_examples_are_other_files(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "result")
    other = read_run(tmp_path)
    both = [(variant, export_digest(run, "small_mel", variant)) for variant in QUANTIZATIONS]
    assert both == [(variant, export_digest(other, "small_mel", variant)) for variant in QUANTIZATIONS]
    examples = np.load(tmp_path / "result" / "representative-small_mel.npy")
    np.save(tmp_path / "result" / "representative-small_mel.npy", examples[1:])
    changed = [variant for variant, digest in both if digest != export_digest(other, "small_mel", variant)]
    assert changed == ["int8"]
    weights = other.arrays("backbone-small_mel.npz")
    np.savez(tmp_path / "result" / "backbone-small_mel.npz", **{name: 2 * value for name, value in weights.items()})
    assert all(digest != export_digest(other, "small_mel", variant) for variant, digest in both)
    assert len({digest for _, digest in both}) == len(QUANTIZATIONS)


def test_command_writes_what_it_prints(run: Run, tmp_path: Path) -> None:
    arguments = ["quantize", str(run.root), "--variants", "dynamic, int8", "--timed-windows", "3"]
    done = CliRunner().invoke(deploy, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "quantization.md").read_text() in done.output
    written = json.loads((tmp_path / "quantization.json").read_text())
    assert list(written["vote"]["variants"]) == ["float32", "dynamic", "int8"]
    assert written["selection"] == hashlib.sha256((run.folder / "selection.json").read_bytes()).hexdigest()
    size = written["backbones"]["small_power"]["variants"]["int8"]["bytes"] / 1e6
    assert f"\n| small_power | int8 | {size:.1f} | " in done.output
    assert f"\n| fusion_neg | {written['members']['fusion_neg']['trained']['value']:.4f} | " in done.output
    with pytest.raises(InputError, match="not 'int4'"):
        CliRunner().invoke(deploy, ["quantize", str(run.root), "--variants", "int4"], catch_exceptions=False)


def test_budget_chooses_the_best_vote_that_fits(run: Run, tmp_path: Path) -> None:
    mb = {name: measure(run, name, "dynamic", 3).exported.bytes / 1e6 for name in run.backbones}
    most = max(mb.values()) * 1.01
    arguments = ["budget", str(run.root), "--most-mb", str(most), "--timed-windows", "3", "--out", str(tmp_path)]
    done = CliRunner().invoke(deploy, arguments, catch_exceptions=False)
    written = json.loads((tmp_path / "budget.json").read_text())
    assert (tmp_path / "budget.md").read_text() in done.output
    assert written["selection"] == hashlib.sha256((run.folder / "selection.json").read_bytes()).hexdigest()
    assert written["costs"]["small_mel"]["mb"] == pytest.approx(mb["small_mel"])
    assert written["must_contain"] == ["small_mel_neg", "small_power_neg", "fusion_neg"]
    features = {name: measure(run, name, "dynamic", 3).features for name in run.backbones}
    names = [entry["name"] for entry in run.members]
    clips = window_scores(run, features, names).reshape(-1, 2, len(names)).mean(axis=1)
    orca = run.arrays("devel_scores.npz")["label"] == "orca"
    best = 0.0
    for size in range(1, len(names) + 1):
        for chosen in combinations(range(len(names)), size):
            vote = [names[k] for k in chosen]
            fits = sum(mb[name] for name in needed_backbones(run, vote)) <= most
            if fits and any(name.endswith("_neg") for name in vote):
                best = max(best, roc_auc(clips[:, chosen].mean(axis=1), orca))
    assert written["chosen"]["auc"] == pytest.approx(best)
    assert written["chosen"]["mb"] <= most < written["trained"]["mb"]
    for by, front in written["front"].items():
        assert [one["auc"] for one in front] == sorted(one["auc"] for one in front)
        assert [one[by] for one in front] == sorted(one[by] for one in front)
    with pytest.raises(TrainingError, match=r"no vote fits 1e-09 MB"):
        CliRunner().invoke(
            deploy, ["budget", str(run.root), "--most-mb", "1e-9", "--timed-windows", "3"], catch_exceptions=False
        )


def test_bundle_of_the_budget_holds_its_vote(run: Run, tmp_path: Path) -> None:
    mb = max(measure(run, name, "dynamic", 3).exported.bytes / 1e6 for name in run.backbones) * 1.01
    arguments = ["--most-mb", str(mb), "--timed-windows", "3"]
    CliRunner().invoke(deploy, ["budget", str(run.root), *arguments, "--out", str(tmp_path)], catch_exceptions=False)
    CliRunner().invoke(deploy, ["bundle", str(run.root), str(tmp_path / "b"), *arguments], catch_exceptions=False)
    chosen = json.loads((tmp_path / "budget.json").read_text())["chosen"]
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["vote"] == chosen["members"]
    assert [one["name"] for one in manifest["backbones"]] == chosen["backbones"]
    assert manifest["exported"]["auc"]["vote"]["value"] == pytest.approx(chosen["auc"])


def test_votes_are_read_in_the_members_order(run: Run) -> None:
    assert parse_vote(run, "fusion_neg + small_mel") == ["small_mel", "fusion_neg"]
    assert parse_vote(run, None) == run.selection["vote"]
    assert needed_backbones(run, ["small_mel_min"]) == ["small_mel"]
    assert needed_backbones(run, ["fusion"]) == ["small_mel", "small_power"]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_both_interpreters_run_every_variant(run: Run, tmp_path: Path, quantization: str) -> None:
    pythons = [path for path in os.environ.get("EDGE_PYTHONS", "").split(os.pathsep) if path]
    if not pythons:
        pytest.skip("EDGE_PYTHONS names no edge environments, one per interpreter (`make test` does)")
    one = measure(run, "small_power", quantization, 3)
    np.save(tmp_path / "spectrograms.npy", run.spectrograms("small_power")[:5])
    maps = []
    for python in pythons:
        command = [python, "-c", RUN_A_VARIANT, str(tmp_path), *map(str, one.exported.files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        assert done.stdout.strip() in ("ai-edge-litert", "tflite-runtime")
        with np.load(tmp_path / "found.npz") as found:
            assert (
                snr_db(one.features[:5], found["features"]) is None or snr_db(one.features[:5], found["features"]) > 25
            )
            maps.append(found["map"])
        assert maps[-1].shape == (96, 24) and maps[-1].sum() == pytest.approx(one.features[0].sum(), rel=0.05)
