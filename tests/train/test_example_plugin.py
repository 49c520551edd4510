"""The example of a plugin installs from its own folder, and passes its own tests: conformance kit and weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

COVE = Path(__file__).resolve().parents[2] / "examples" / "plugins" / "cove"


def test_example_installs_and_conforms(tmp_path: Path) -> None:
    source = shutil.copytree(COVE, tmp_path / "cove")  # a build leaves files beside what it builds
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", target, source], check=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, source / "tests"]
    done = subprocess.run(
        pytest, env={**os.environ, "PYTHONPATH": str(target)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
