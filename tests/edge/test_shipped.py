"""The shipped bundle, through the command that users run."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from orcawatch.bundle import SHIPPED
from orcawatch.metrics import auc_interval
from orcawatch.simulate import SceneSettings, simulate_scene, write_scene

ORCAWATCH = str(Path(sys.executable).with_name("orcawatch"))


def test_devel_auc_is_above_090_and_is_the_cards(data_folder: Path, tmp_path: Path) -> None:
    with (data_folder / "labels.csv").open() as file:
        devel = {row["file_name"]: row for row in csv.DictReader(file) if row["split"] == "devel"}
    files = [str(data_folder / "wav" / name) for name in devel]
    table = tmp_path / "scores.csv"
    subprocess.run([ORCAWATCH, "scan", *files, "--clip-scores", str(table)], check=True, cwd=tmp_path)
    with table.open() as file:
        scores = {row["file_name"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores.keys() == devel.keys()
    found = auc_interval(
        np.array([scores[name] for name in devel]),
        np.array([row["label"] == "orca" for row in devel.values()]),
        [row["group"] for row in devel.values()],
    )
    print(f"\ndevel ROC AUC {found.value:.4f} ({found.low:.3f} to {found.high:.3f})")
    assert found.value > 0.90
    stated = json.loads((SHIPPED / "manifest.json").read_text())["metrics"]["vote"]["value"]
    assert abs(found.value - stated) < 0.005


def test_calls_of_a_simulated_scene_are_found(tmp_path: Path) -> None:
    scene = simulate_scene(SceneSettings(duration_s=60, seed=7, snr_low_db=10))
    write_scene(scene, tmp_path / "scene")
    command = [ORCAWATCH, "scan", str(tmp_path / "scene.flac"), "--format", "jsonl", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    calls = [event for event in scene.truth["events"] if event["kind"] == "pulsed_call"]
    heard = [any(one["start_s"] < c["end_s"] and c["start_s"] < one["end_s"] for one in found) for c in calls]
    assert len(calls) >= 2 and sum(heard) >= len(calls) / 2
    for one in found:
        assert Path(one["snapshot"]).is_file() and Path(one["clip"]).is_file()
        assert len(one["channel_scores"]) == 4
