"""Score every window of a scene with the shipped bundle, and write what was found with what on what as JSON.

python tests/arm/scores.py SCENE FILE

It runs in any environment that orcawatch is installed in; compare.py sets such files side by side.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import soundfile

from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.detector import Detector
from orcawatch.ensemble import Ensemble
from orcawatch.interpreter import runtime_name
from orcawatch.records import AudioBlock


def main(scene: str, file: str) -> None:
    samples, rate_hz = soundfile.read(scene, dtype="float32", always_2d=True)
    bundle = load_bundle(SHIPPED)
    ensemble = Ensemble(bundle)
    ensemble.cascade = bundle.cascade.opened
    detector = Detector(ensemble, rate_hz, samples.shape[1], bundle.hop_s)
    scores = detector.push(AudioBlock(samples, 0)) + detector.finish()
    found = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "interpreter": runtime_name(),
        "numpy": np.__version__,
        "windows": [[score.start_sample, score.end_sample] for score in scores],
        "scores": [score.member_scores.tolist() for score in scores],  # windows, channels, members
    }
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
