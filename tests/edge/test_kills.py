"""The daemon killed at random moments, as in `benchmarks/kills.py`, a few times."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parts

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"


def counts(*options: str) -> dict[str, int]:
    """The script's table."""
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {what: int(count) for what, count in re.findall(r"^\| (.+?) \| (\d+) \|$", done.stdout, re.MULTILINE)}


def test_no_acknowledged_detection_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    found = counts("--rounds", "20", "--seed", "7", "--output", str(tmp_path))
    assert found["faults"] == 0
    assert found["detections"] >= found["acknowledged detections"] > 20
    assert found["killed while detecting"] > 5


def test_nor_by_power_cuts(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root can mount a small ext4, and mkfs.ext4 must be installed")
    found = counts("--power", "--rounds", "10", "--seed", "7", "--output", str(tmp_path))
    assert found["faults"] == 0
    assert found["detections"] >= found["acknowledged detections"] > 5
