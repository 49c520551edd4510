"""Take the root off the path: there, ./orcawatch would hide the installed package's mapped subpackages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the recordings beside the repository; the test is skipped where there is none."""
    if not (DATA / "labels.csv").is_file():
        pytest.skip("the recordings are not beside this clone (../shared/data/labels.csv is missing)")
    return DATA
