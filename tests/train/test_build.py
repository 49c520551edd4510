from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from orcawatch.backbone import load_backbone
from orcawatch.bundle import load_bundle
from orcawatch.deploy.build import build_bundle, read_run, verify_bundle
from orcawatch.deploy.cli import deploy
from orcawatch.errors import InputError
from orcawatch.masking import negative_mask
from orcawatch.relevance import head_forward, head_relevance
from orcawatch.spectrogram import LogMel

WINDOWS, CLIPS = 12, 6
MEMBERS = ("vggish", "vggish_min", "vggish_neg")
INTERVAL = {"value": 0.9, "low": 0.8, "high": 0.95, "draws": 10}


def random_head(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"hidden_kernel": (512, 256), "hidden_bias": (256,), "kernel": (256, 2), "bias": (2,)}
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def selection() -> dict[str, Any]:
    member = {"backbone": "vggish", "relevance_of": None}
    return {
        "name": "tiny",
        "seed": 1,
        "recipe": {"backbones": {"vggish": {"weights": None}}, "head": {"slope": 2.0, "shift": 4.0}},
        "backbones": [
            {
                "name": "vggish",
                "feature_size": 512,
                "front_end": LogMel(normalise="band_floor").to_dict(),
                "weights": "backbone-vggish.npz",
            }
        ],
        "members": [
            {**member, "name": "vggish", "mask": "none"},
            {**member, "name": "vggish_min", "mask": "minimal"},
            {**member, "name": "vggish_neg", "mask": "negative", "relevance_of": "vggish"},
        ],
        "dropped": [],
        "vote": ["vggish", "vggish_neg"],
        "hop_s": 0.48,
        "channel_fusion": "max",
        "thresholds": {
            "start": 0.7,
            "stop": 0.4,
            "recall": 0.8,
            "precision": 0.9,
            "false_alarms": 3,
            "false_alarms_per_hour": 9.0,
            "false_alarms_by_kind": {"ship": [1, 4], "other_species": [2, 5]},
        },
        "metrics": {"nested": INTERVAL, "teacher": INTERVAL, "uncalibrated_vote": INTERVAL},
        "all_zero": {"vggish": {"devel": {"all_zero": 2, "rows": 12, "orca": 5}}},
        "masks": {},
        "data": {
            "fingerprint": "0" * 64,
            "splits": [{"split": "devel", "label": "orca", "clips": 3, "seconds": 9.0, "groups": 2}],
            "recordings": "given",
            "sources": [{"repository": "someone/sounds", "licence": "MIT", "split": "devel", "clips": 3}],
        },
        "versions": {"tensorflow": "2.14.1"},
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training run leaves, with random weights and the scores that they give."""
    folder = tmp_path_factory.mktemp("run")
    result = folder / "result"
    result.mkdir()
    tf.keras.utils.set_random_seed(4)
    model = load_backbone("vggish").build_keras()
    spectrograms = np.random.default_rng(0).gamma(1.0, 1.0, (WINDOWS, 96, 64)).astype(np.float32)
    features = model.predict(spectrograms[..., None], verbose=0)
    heads = {name: random_head(k) for k, name in enumerate(MEMBERS)}
    mask = (np.arange(512) % 4 == 0).astype(np.float32)
    kept = negative_mask(head_relevance(features, heads["vggish"], "highest")).numpy()
    masks = {"vggish": 1.0, "vggish_min": mask, "vggish_neg": kept}
    logits = {name: head_forward(features * masks[name], heads[name])[1].numpy() for name in MEMBERS}
    scores = np.stack([tf.nn.softmax(logits[name]).numpy()[:, 1] for name in MEMBERS], axis=1)
    np.savez(
        result / "devel_scores.npz",
        members=np.array(MEMBERS),
        label=np.array(["orca", "noise"] * (CLIPS // 2)),
        group=np.array([f"recording {k}" for k in range(CLIPS)]),
        window_clip=np.arange(WINDOWS) // 2,
        window_scores=scores,
    )
    np.save(result / "devel_spectrograms-vggish.npy", spectrograms)
    weights = {f"weight_{k:03}": value for k, value in enumerate(model.get_weights())}
    np.savez(result / "backbone-vggish.npz", **weights)
    np.savez(result / "heads.npz", **{f"{m}/{part}": v for m, head in heads.items() for part, v in head.items()})
    np.savez(result / "masks.npz", **{"vggish/minimal": mask})
    (result / "selection.json").write_text(json.dumps(selection()))
    return folder


@pytest.mark.parametrize(("quantization", "tolerance"), [("float32", 1e-4), ("dynamic", 0.1)])
def test_bundle_scores_as_the_training_side_did(
    run_folder: Path, tmp_path: Path, quantization: str, tolerance: float
) -> None:
    run = read_run(run_folder)
    build_bundle(run, tmp_path / "bundle", quantization)
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.members, bundle.vote) == (MEMBERS, ("vggish", "vggish_neg"))
    assert bundle.backbones["vggish"].front_end == LogMel(normalise="band_floor")
    found = verify_bundle(run, tmp_path / "bundle")
    assert found.windows == WINDOWS
    assert max(found.largest_difference.values()) < tolerance


def test_card_tells_the_manifests_figures(run_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(deploy, ["bundle", str(run_folder), str(tmp_path / "bundle")], catch_exceptions=False)
    assert "MB, backbones dynamic" in done.output
    card = (tmp_path / "bundle" / "model-card.md").read_text()
    stated = (
        "Trained from scratch",
        "someone/sounds | MIT | devel | 3",
        "sigmoid(2 d - 4)",
        "of the kind `other_species`",
    )
    for words in (*stated, "that teacher alone reaches 0.900 (0.800 to 0.950)", "is orca for 5", "No recording stands"):
        assert words in card
    assert "vggish_neg | " in card and "| ship | 1 | 4 |" in card


def test_verify_prints_every_member(run_folder: Path, tmp_path: Path) -> None:
    build_bundle(read_run(run_folder), tmp_path / "bundle", "float32")
    done = CliRunner().invoke(deploy, ["verify", str(run_folder), str(tmp_path / "bundle")], catch_exceptions=False)
    assert all(f"\n| {name} | " in done.output for name in (*MEMBERS, "vote"))


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        read_run(tmp_path)
