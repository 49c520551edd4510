"""Whatever runs, killed at random moments, as in `benchmarks/kills.py`, a few times."""

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


def counts(folder: Path, *options: str) -> dict[str, int]:
    """The script's table."""
    call = [sys.executable, str(SCRIPT), *options, "--seed", "7", "--output", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {what: int(count) for what, count in re.findall(r"^\| (.+?) \| (\d+) \|$", done.stdout, re.MULTILINE)}
    assert found["faults"] == 0
    return found


def test_no_acknowledged_detection_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    found = counts(tmp_path, "--rounds", "14", "--longest", "0.5")
    assert found["detections"] >= found["acknowledged detections"] > 2
    assert found["killed while detecting"] > 1


def test_nor_by_power_cuts(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root can mount a small ext4, and mkfs.ext4 must be installed")
    found = counts(tmp_path, "--power", "--rounds", "8", "--longest", "0.5")
    assert found["detections"] >= found["acknowledged detections"] > 2


def test_a_shadow_that_is_killed_has_found_what_its_account_says(tmp_path: Path) -> None:
    found = counts(tmp_path, "--what", "shadow", "--rounds", "12", "--longest", "0.6")
    assert found["detections that both have"] > 2 and found["times that the shadow was switched off"] > 0


def test_a_scan_that_is_killed_ends_as_one_that_nobody_disturbed(tmp_path: Path) -> None:
    found = counts(tmp_path, "--what", "scan", "--rounds", "1")
    killed = found.get("scans killed", 0) + found.get("workers killed", 0)
    assert found["scans that came to their end"] > 0 and killed > 0


def test_no_verdict_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    found = counts(tmp_path, "--what", "verdicts", "--rounds", "6")
    assert found["verdicts acknowledged"] > 3 and found["commands killed"] == 6


def test_bundles_are_the_old_ones_or_the_new_ones_whenever_a_change_is_killed(tmp_path: Path) -> None:
    found = counts(tmp_path, "--what", "install", "--rounds", "2")
    assert sum(count for what, count in found.items() if what.startswith("killed: ")) == 2
