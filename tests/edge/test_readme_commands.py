"""Every command of the README is run: here, in its order, from a fresh copy; or by the test that is named here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from orcawatch.simulate import SceneSettings, simulate_scene, write_scene
from orcawatch.store import Reader

pytestmark = pytest.mark.parts

ROOT = Path(__file__).resolve().parents[2]
# Commands that are run elsewhere: where, and words that show it there.
ELSEWHERE = {
    "make demo": (".ci/run", "make demo"),
    "make test": (".ci/run", "make test"),
    "python3 -m venv mine": ("deploy/environment.sh", "-m venv"),
    ". mine/bin/activate": ("deploy/environment.sh", "$folder/bin/python"),
    "pip install .": ("deploy/environment.sh", "-m pip install"),
    "orcawatch listen": ("tests/edge/test_listen.py", "listen"),
    "orcawatch devices": ("tests/edge/test_soundcard.py", "devices"),
    "orcawatch doctor --config orcawatch.yaml": ("tests/edge/test_doctor.py", "doctor"),
    "sudo install -D orcawatch.yaml /etc/orcawatch/config.yaml": (
        "tests/boot/power_cuts.py",
        "/etc/orcawatch/config.yaml",
    ),
    "sudo /opt/orcawatch/bin/orcawatch deploy install": ("tests/boot/test_boot.py", "orcawatch deploy install"),
    "sudo orcawatch effort /var/lib/orcawatch": ("tests/boot/test_boot.py", "effort"),
    "deploy/environment.sh train train,baselines": ("Makefile", "deploy/environment.sh train train,baselines"),
    ". .venv/train/bin/activate": ("Makefile", ".venv/train/bin"),
    "orcawatch train": ("tests/train/test_readme_commands.py", "## Train your own"),
    "orcawatch deploy": ("tests/train/test_readme_commands.py", "## Train your own"),
    "orcawatch scan RECORDINGS/ --bundle my_bundle": ("tests/train/test_readme_commands.py", "## Train your own"),
    "orcawatch bundle rollback": ("tests/edge/test_bundles.py", "rollback"),
    "orcawatch bundle compare": ("tests/edge/test_compare.py", "compare"),
}
ENDLESS = {"orcawatch serve": "http://127.0.0.1:8765/"}  # started, asked for that page, and ended


def commands() -> list[str]:
    """The README's commands, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def elsewhere(command: str) -> tuple[str, str] | None:
    """Where a command is run that is not run here."""
    return next((place for start, place in ELSEWHERE.items() if command.startswith(start)), None)


@pytest.mark.parametrize("start", ELSEWHERE)
def test_what_is_run_elsewhere_is(start: str) -> None:
    file, words = ELSEWHERE[start]
    assert any(command.startswith(start) for command in commands()), f"{start} is no longer in the README"
    assert words in (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: recordings, one of them as FILE, a configuration, a bundle."""
    folder = tmp_path_factory.mktemp("user")
    settings = SceneSettings(duration_s=20, rate_hz=32000, seed=7, calls_per_minute=12, snr_low_db=12)
    scene = write_scene(simulate_scene(settings), folder / "RECORDINGS" / "scene_20260301T120000Z.flac")
    shutil.copy(scene, folder / "FILE")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "orcawatch" / "first_light", folder / "BUNDLE")
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (folder / "orcawatch.yaml").write_text(block)
    return folder


def test_all_others_are_run_here(place: Path) -> None:
    """In the README's order, in one folder: what one leaves, the next one finds."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = 0
    for command in commands():
        if elsewhere(command) is not None:
            continue
        url = next((url for start, url in ENDLESS.items() if command.startswith(start)), None)
        if url is None:
            done = subprocess.run(
                command, shell=True, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        else:
            serve(command, url, place, path)
        run += 1
    assert run >= 8
    with Reader(place / "orcawatch-out" / "detections.sqlite") as reader:
        assert reader.detections()


def serve(command: str, url: str, place: Path, path: str) -> None:
    """Start a command, wait for its page, end it."""
    process = subprocess.Popen(f"exec {command}", shell=True, cwd=place, env={**os.environ, "PATH": path})
    try:
        assert answers(url, 30.0)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def answers(url: str, seconds: float) -> bool:
    """Whether a page comes within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as found:
                return bool(found.status == 200)
        except OSError:
            time.sleep(0.2)
    return False
