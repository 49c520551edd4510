"""The README's commands for training, in its order; only the recipe is another, of a tiny backbone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from orcawatch.simulate import SceneSettings, simulate_scene, write_scene

RECIPE = {
    "name": "tiny",
    "head": {"epochs": 3, "batch_size": 16},
    "masks": {"minimal_keep": 5},
    "vote": {"draws": 100},
    "backbones": {"tiny": {"from_scratch": True, "fine_tune": {"steps": 2, "batch_size": 8}}},
}
ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    """The commands under `Train your own`, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Train your own")[1]
    lines = [
        re.sub(r"\s+#.*", "", line).strip() for line in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].splitlines()
    ]
    return [line for line in lines if line.startswith("orcawatch ")]


def test_every_command_is_run(tmp_path: Path, tiny_data: Path, plugin_folder: Path) -> None:
    (tmp_path / "DATA").symlink_to(tiny_data)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    scene = SceneSettings(duration_s=5, rate_hz=16000, seed=7)
    write_scene(simulate_scene(scene), tmp_path / "RECORDINGS" / "scene.flac")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = [re.sub(r"\S*recipes/\S+\.yaml", "tiny.yaml", command) for command in commands()]
    for command in run:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path, "PYTHONPATH": str(plugin_folder)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert len(run) >= 7
