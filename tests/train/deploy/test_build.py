from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from orcawatch.bundle import load_bundle
from orcawatch.deploy.build import build_bundle, plan_bundle, verify_bundle
from orcawatch.deploy.cli import deploy
from orcawatch.deploy.models import store
from orcawatch.deploy.run import Run, read_run
from orcawatch.ensemble import Ensemble
from orcawatch.errors import BundleError, InputError, OrcawatchError
from orcawatch.load import steps
from orcawatch.records import Window

VOTE = ("small_mel_neg", "small_power", "fusion_neg")


def build(run: Run, folder: Path, quantization: str, vote: tuple[str, ...] = VOTE, everything: bool = False) -> Path:
    build_bundle(run, folder, plan_bundle(run, dict.fromkeys(run.backbones, quantization), vote, everything))
    return folder


@pytest.mark.parametrize(
    ("quantization", "tolerance"), [("float32", 1e-4), ("float16", 0.02), ("dynamic", 0.2), ("int8", 0.3)]
)
def test_bundle_scores_as_the_training_side_did(run: Run, tmp_path: Path, quantization: str, tolerance: float) -> None:
    bundle = load_bundle(build(run, tmp_path / "bundle", quantization, everything=True))
    assert (list(bundle.members), bundle.vote) == ([m["name"] for m in run.members], VOTE)
    assert [one.front_end for one in bundle.backbones.values()] == [run.front_end(name) for name in run.backbones]
    assert [one.files for one in bundle.backbones.values()] == [
        [f"{name}.tflite", f"{name}-explain.tflite"] for name in run.backbones
    ]
    found = verify_bundle(run, tmp_path / "bundle")
    assert found.windows == len(run.arrays("devel_scores.npz")["window_clip"])
    assert max(found.largest_difference.values()) < tolerance
    assert set(found.auc) == {*bundle.members, "vote"}


def test_thresholds_of_the_runs_vote_are_the_training_sides(run: Run, tmp_path: Path) -> None:
    bundle = load_bundle(build(run, tmp_path / "bundle", "float32"))
    expected = run.selection["thresholds"]
    assert bundle.start_threshold == pytest.approx(expected["start"], abs=1e-4)
    assert bundle.stop_threshold == pytest.approx(expected["stop"], abs=1e-4)
    found = bundle.manifest["thresholds"]
    assert (found["recall"], found["false_alarms"]) == (expected["recall"], expected["false_alarms"])
    assert sum(alarms for alarms, _ in found["false_alarms_by_kind"].values()) == found["false_alarms"]
    assert {kind: clips for kind, (_, clips) in found["false_alarms_by_kind"].items()} == {
        "other_species": 6,
        "ship": 6,
    }


def test_overload_leaves_the_cheapest_backbone_alone(run: Run, tmp_path: Path) -> None:
    """The members that listen to it score as before; the other backbone is not run, and its members have no score."""
    bundle = load_bundle(build(run, tmp_path / "bundle", "float32", everything=True))
    step = steps(bundle, 1)[-1]
    cheapest = min(bundle.backbones.values(), key=lambda entry: (bundle.folder / entry.file).stat().st_size).name
    assert step.name.endswith(f"{cheapest} alone") and bundle.backbones_of(step.vote) == (cheapest,)
    ensemble = Ensemble(bundle)
    generator = np.random.default_rng(0)
    rows = {
        name: generator.random((1, entry.front_end.frames, entry.front_end.shape[1]), np.float32)
        for name, entry in bundle.backbones.items()
    }
    window = Window(0, 1, rows)
    whole = ensemble.score(window)
    (other,) = set(bundle.backbones) - {cheapest}
    ensemble._backbones[other].features = None  # type: ignore[assignment,method-assign]
    found = ensemble.score(window, step.columns, step.vote)
    alone = [bundle.backbones_of([name]) == (cheapest,) for name in bundle.members]
    np.testing.assert_array_equal(found.member_scores[0][alone], whole.member_scores[0][alone])
    assert np.isnan(found.member_scores[0][np.logical_not(alone)]).all()
    columns = [bundle.members.index(name) for name in step.vote]
    assert found.score == pytest.approx(whole.member_scores[0, columns].mean())


def test_only_what_the_vote_needs_is_in_it(run: Run, tmp_path: Path) -> None:
    alone = load_bundle(build(run, tmp_path / "alone", "dynamic", ("small_mel_neg",)))
    assert (alone.members, list(alone.backbones)) == (("small_mel_neg",), ["small_mel"])
    assert sorted(alone.manifest["files"]) == [
        "heads.tflite",
        "model-card.md",
        "small_mel-explain.tflite",
        "small_mel.tflite",
    ]
    assert list(alone.manifest["metrics"]["members"]) == ["small_mel_neg"]
    served = load_bundle(build(run, tmp_path / "served", "dynamic", ("small_mel_neg",), everything=True))
    assert served.members == ("small_mel", "small_mel_min", "small_mel_neg")


def test_another_vote_has_its_own_figures_and_no_nested_one(run: Run, tmp_path: Path) -> None:
    chosen = load_bundle(build(run, tmp_path / "chosen", "float32")).manifest
    other = load_bundle(build(run, tmp_path / "other", "float32", ("small_mel_neg",))).manifest
    assert "nested" in chosen["metrics"] and "nested" not in other["metrics"]
    assert "uncalibrated_vote" not in other["metrics"] and "teacher" in other["metrics"]
    assert other["metrics"]["vote"] == other["metrics"]["members"]["small_mel_neg"]
    assert other["thresholds"]["start"] != chosen["thresholds"]["start"]
    assert "picked by hand or by budget" in (tmp_path / "other" / "model-card.md").read_text()


def test_mixed_variants_by_backbone(run: Run, tmp_path: Path) -> None:
    arguments = ["bundle", str(run.root), str(tmp_path / "b"), "--quantization", "float32"]
    done = CliRunner().invoke(deploy, [*arguments, "--quantization", "small_power=int8"], catch_exceptions=False)
    assert (
        "vote small_mel_neg + small_power + fusion_neg, backbones: small_mel float32, small_power int8" in done.output
    )
    described = load_bundle(tmp_path / "b").manifest["backbones"]
    assert [(one["quantization"], one["explained_by"]) for one in described] == [
        ("float32", "float32"),
        ("int8", "dynamic"),
    ]


def test_card_tells_the_manifests_figures(run: Run, tmp_path: Path) -> None:
    card = (build(run, tmp_path / "bundle", "int8", everything=True) / "model-card.md").read_text()
    manifest = load_bundle(tmp_path / "bundle").manifest
    megabytes = [f"{one['bytes'] / 1e6:.1f}" for one in manifest["backbones"]]
    for words in (
        "Trained partly from scratch",
        "With slope and shift taken out of the same heads' confidences again, the same vote reaches 0.900",
        f"| small_mel | none: from scratch | 96 x 64 x 1 | 20 | int8 | dynamic | {megabytes[0]} |",
        f"| small_power | ImageNet, as published | 24 x 24 x 1 | 16 | int8 | dynamic | {megabytes[1]} |",
        "- fusion_neg: on the features of small_mel, small_power.",
        "Also in the bundle, without a vote: small_mel, small_mel_min, small_power_min, small_power_neg, fusion, fusion_min",
        f"A window takes {manifest['exported']['window_ms']:.1f} ms",
        "someone/sounds | MIT | devel | 3",
        "sigmoid(2 d - 4)",
        "that teacher alone reaches 0.900 (0.800 to 0.950)",
        "(nested): 0.900",
        "No recording stands",
        "Left out: other_min: it is other.",
    ):
        assert words in card
    assert all(f"\n| {name} | " in card for name in (*manifest["members"], "vote"))


def test_verify_prints_every_member(run: Run, tmp_path: Path) -> None:
    build(run, tmp_path / "bundle", "float32")
    done = CliRunner().invoke(deploy, ["verify", str(run.root), str(tmp_path / "bundle")], catch_exceptions=False)
    assert all(f"\n| {name} | " in done.output for name in (*VOTE, "vote"))


def test_full_disk_leaves_no_bundle(run: Run, tmp_path: Path, no_room: Any) -> None:
    build(run, tmp_path / "before", "float32")
    with no_room(), pytest.raises(OrcawatchError, match="make room"):
        build(run, tmp_path / "bundle", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


def test_full_disk_leaves_no_half_model(tmp_path: Path, no_room: Any) -> None:
    with no_room(), pytest.raises(OrcawatchError, match=r"a.tflite \(0.1 MB\) could not be written: .*make room"):
        store(tmp_path / "models" / "a.tflite", bytes(100_000))
    assert not list((tmp_path / "models").iterdir())


def test_existing_bundle_is_not_touched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(InputError, match="exists already"):
        build(run, tmp_path / "bundle", "float32")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantization", "int4"], "not 'int4'"),
        (["--quantization", "large=int8"], r"backbones are \['small_mel', 'small_power'\], not 'large'"),
        (["--vote", "small_mel + large"], r"a vote is made of small_mel \+ .*not of \['large'\]"),
        (["--vote", "fusion", "--most-ms", "5"], "not both"),
    ],
)
def test_wrong_wishes_are_refused(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CliRunner().invoke(deploy, ["bundle", str(run.root), str(tmp_path / "b"), *arguments], catch_exceptions=False)


def test_unfinished_and_old_runs_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        read_run(tmp_path)
    (tmp_path / "result").mkdir()
    old = {**run.selection, "members": [{"name": "vggish", "backbone": "vggish", "mask": "none"}]}
    (tmp_path / "result" / "selection.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="older version"):
        read_run(tmp_path)


def test_damaged_export_is_refused_by_the_bundle(run: Run, tmp_path: Path) -> None:
    folder = build(run, tmp_path / "bundle", "float16")
    content = bytearray((folder / "small_mel-explain.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "small_mel-explain.tflite").write_bytes(content)
    with pytest.raises(BundleError, match=r"small_mel-explain\.tflite is damaged"):
        verify_bundle(run, folder)


def test_int8_without_representative_spectrograms_is_refused(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run" / "result")
    (tmp_path / "run" / "result" / "representative-small_mel.npy").unlink()
    with pytest.raises(InputError, match=r"representative-NAME\.npy"):
        build(read_run(tmp_path / "run"), tmp_path / "bundle", "int8", ("small_mel",))
    assert not np.any([path.suffix == ".tflite" for path in (tmp_path / "run").rglob("*")])
