"""A fused bundle's maps, from the exported files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orcawatch.bundle import load_bundle
from orcawatch.deploy.build import build_bundle, plan_bundle
from orcawatch.deploy.run import Run
from orcawatch.detector import Grid, Stretch
from orcawatch.ensemble import Ensemble
from orcawatch.snapshot import explain_audio, shares

RATE_HZ = 24000


@pytest.mark.parametrize("quantization", ["float32", "float16"])
def test_maps_of_all_backbones_add_up_to_the_votes_score(run: Run, tmp_path: Path, quantization: str) -> None:
    vote = ("small_mel_neg", "small_power", "fusion_neg")
    build_bundle(run, tmp_path / "b", plan_bundle(run, dict.fromkeys(run.backbones, quantization), vote, False))
    ensemble = Ensemble(load_bundle(tmp_path / "b"))
    audio = np.random.default_rng(0).normal(0, 0.1, (2 * RATE_HZ, 1)).astype(np.float32)
    front_ends = {name: entry.front_end for name, entry in ensemble.bundle.backbones.items()}
    stretch = Stretch(front_ends, Grid(front_ends, 0.48), RATE_HZ, 1, 0)
    for window in [*stretch.push(audio), *stretch.finish()]:
        (found,) = ensemble.explain([window], 0)
        assert list(found) == ["small_mel", "small_power"]
        for name, (rows, relevance) in found.items():
            assert rows.shape == relevance.shape == window.rows[name][0].shape
            assert relevance.min() >= 0 and relevance.sum() > 0
        total = sum(float(relevance.sum()) for _, relevance in found.values())
        # what only a bias drives has no input to give its relevance to
        assert total == pytest.approx(float(ensemble.score(window).channel_scores[0]), rel=0.05)
    explanation = explain_audio(ensemble, audio[:, 0], RATE_HZ)
    assert [part.backbone for part in explanation.maps] == list(found) and sum(shares(explanation)) == pytest.approx(1)
