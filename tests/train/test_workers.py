"""Two workers run one recipe together: `orcawatch train run` in two processes with TF_CONFIG, against one alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RECIPE = {
    "name": "workers",
    "backbones": {
        "tiny": {
            "from_scratch": True,
            "fine_tune": {"steps": 4, "batch_size": 8, "evaluations": 2, "learning_rate": 0.01, "label_weight": 1.0},
        }
    },
    "augmentation": {"gain_db": 3},
    "head": {"epochs": 2},
    "masks": {"minimal_keep": 5},
    "vote": {"draws": 100},
}
TOLERANCE = 2e-5  # of weights of about 1
PATIENCE_S = 300


def start(recipe: Path, data: Path, run: Path, plugins: Path, config: dict[str, Any] | None) -> Any:
    """One process of a run."""
    environment = {**os.environ, "PYTHONPATH": str(plugins), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if config is not None:
        environment["TF_CONFIG"] = json.dumps(config)
    command = [
        sys.executable,
        "-m",
        "orcawatch.cli",
        "train",
        "run",
        str(recipe),
        "--data",
        str(data),
        "--run",
        str(run),
    ]
    return subprocess.Popen(
        command, cwd=run.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: Any) -> str:
    """What the process said; it must have ended well."""
    said: str = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, said[-3000:]
    return said


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def weights(run: Path) -> dict[str, Any]:
    """The backbone's weights that a run left."""
    with np.load(run / "result" / "backbone-tiny.npz") as stored:
        return dict(stored)


def test_two_workers_leave_the_run_of_one(tiny_data: Path, plugin_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    addresses = [f"localhost:{free_port()}" for _ in range(2)]
    together = [
        start(
            recipe,
            tiny_data,
            tmp_path / "both",
            plugin_folder,
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": k}},
        )
        for k in range(2)
    ]
    chief, other = (finish(process) for process in together)
    finish(start(recipe, tiny_data, tmp_path / "one", plugin_folder, None))
    assert "stages run: data, " in chief
    assert "stages run: backbone-tiny\n" in other
    one, both = weights(tmp_path / "one"), weights(tmp_path / "both")
    for name, weight in one.items():
        np.testing.assert_allclose(both[name], weight, atol=TOLERANCE)
    histories = [json.loads((tmp_path / run / "result/selection.json").read_text()) for run in ("one", "both")]
    assert histories[0]["backbones"][0]["history"]["step"] == histories[1]["backbones"][0]["history"]["step"]
