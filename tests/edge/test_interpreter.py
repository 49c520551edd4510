from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch.bundle import SHIPPED
from orcawatch.errors import BundleError
from orcawatch.interpreter import Model, runtime_name

SCORE_A_SCENE = """
import json, numpy as np
from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.detector import Detector
from orcawatch.ensemble import Ensemble
from orcawatch.interpreter import runtime_name
from orcawatch.records import AudioBlock
from orcawatch.simulate import SceneSettings, simulate_scene

scene = simulate_scene(SceneSettings(duration_s=12, seed=5, calls_per_minute=20))
bundle = load_bundle(SHIPPED)
ensemble = Ensemble(bundle)
ensemble.cascade = bundle.cascade.opened
detector = Detector(ensemble, scene.rate_hz, scene.samples.shape[1], bundle.hop_s)
scores = detector.push(AudioBlock(scene.samples, 0)) + detector.finish()
print(json.dumps({"runtime": runtime_name(), "scores": [s.member_scores.tolist() for s in scores]}))
"""


def score_a_scene(python: str) -> dict[str, Any]:
    done = subprocess.run([python, "-c", SCORE_A_SCENE], capture_output=True, text=True, check=True, cwd="/")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_both_interpreters_give_the_same_scores() -> None:
    other = os.environ.get("OTHER_PYTHON")
    if other is None:
        pytest.skip("OTHER_PYTHON names no environment with the other interpreter (`make test` does)")
    ours, theirs = score_a_scene(sys.executable), score_a_scene(other)
    assert {ours["runtime"], theirs["runtime"]} == {"ai-edge-litert", "tflite-runtime"}
    difference = np.abs(np.array(ours["scores"]) - np.array(theirs["scores"]))
    print(f"\n{difference.size} confidences: largest difference {difference.max():.2g}, mean {difference.mean():.2g}")
    assert np.array(ours["scores"]).max() > 0.5
    assert difference.max() < 0.002


def test_runtime_is_one_of_the_edge() -> None:
    assert runtime_name() in ("ai-edge-litert", "tflite-runtime")


def test_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "heads.tflite").write_bytes(b"not a model, but long enough to look at")
    with pytest.raises(BundleError, match="is not a TFLite model"):
        Model(tmp_path / "heads.tflite")


def test_missing_signature_names_those_there() -> None:
    with pytest.raises(BundleError, match=r"no signature 'listen', only \['explain', 'score'\]"):
        Model(SHIPPED / "heads.tflite").call("listen", {})


def test_threads_share_a_model() -> None:
    """The loop scores while the recorder's thread explains: each gets what it would get alone."""
    model = Model(SHIPPED / "heads.tflite")
    generator = np.random.default_rng(0)
    inputs = [generator.exponential(size=(1, 512)).astype(np.float32) for _ in range(200)]

    def score(features: Any) -> Any:
        return model.call("score", {"vggish": features})["scores"]

    def explain(features: Any) -> Any:
        return model.call("explain", {"vggish": features})["vggish"]

    jobs = [(work, one) for one in inputs for work in (score, explain)]
    alone = [work(one) for work, one in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), jobs))
    for one, other in zip(alone, together):
        np.testing.assert_array_equal(one, other)
