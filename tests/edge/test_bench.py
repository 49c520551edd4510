"""The harness of `make bench`, with tiny sizes: its figures mean nothing here, but it must have them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orcawatch.bundle import SHIPPED, load_bundle

pytestmark = pytest.mark.parts

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def bench(*options: str) -> str:
    """What the command prints."""
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report(tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What the command wrote and printed."""
    file = tmp_path / "bench.json"
    told = bench("--quick", "--json", str(file), *options)
    return dict(json.loads(file.read_text())), told


def values(found: dict[str, Any], part: str) -> dict[str, float]:
    """Figures of a part, by name."""
    assert found["parts"][part]["missing"] == ""
    return {one["what"]: one["value"] for one in found["parts"][part]["figures"]}


def test_the_daemon_is_measured_part_by_part(tmp_path: Path) -> None:
    found, told = report(tmp_path, "--part", "daemon")
    shares = values(found, "daemon")
    for sea in ("quiet", "mixed", "worst"):
        whole = shares[f"first-light, {sea}"]
        parts = {name: share for name, share in shares.items() if name.startswith(f"first-light, {sea}:")}
        parts.pop(f"first-light, {sea}: its backbones on every window, at the least", None)
        peak_mb = parts.pop(f"first-light, {sea}: peak memory")
        assert 50 < peak_mb < 2000
        assert sum(parts.values()) == pytest.approx(whole)
        # A part that none of our code runs any more has no time: PARTS in benchmarks/hooked.py names another function.
        assert {"front end", "heads and vote", "levels", "database", "clips"} <= {name.split(": ")[1] for name in parts}
    assert shares["first-light, worst: snapshots"] > 0
    assert shares["first-light, worst: backbones"] > shares["first-light, worst: front end"]
    assert found["machine"]["shipped bundle"].endswith(load_bundle(SHIPPED).digest[:12])
    assert "| first-light, quiet | " in told and "at most 0.05" in told


def test_what_is_missing_is_told_and_the_rest_is_measured(tmp_path: Path) -> None:
    parts = ("--part", "relevance", "--part", "front end", "--part", "ranking")
    found, told = report(tmp_path, *parts, "--train", str(tmp_path / "none"), "--librosa", str(tmp_path / "none"))
    assert "no training environment" in found["parts"]["relevance"]["missing"]
    assert "no librosa" in found["parts"]["front end"]["missing"]
    assert values(found, "ranking")["the same by a naive loop, over ours"] > 1
    assert "| relevance | - |" in told and "no training environment" in told
    page = bench("--table", str(tmp_path / "bench.json"))
    assert page.startswith("# Benchmarks\n") and "## Ranking" in page and "Not measured: no librosa" in page


def test_a_part_that_fails_is_told_with_its_last_word(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    found, _ = report(tmp_path, "--part", "networks", "--bundle", str(tmp_path / "bundle"))
    assert found["parts"]["networks"]["missing"].startswith("networks.py ended with 1: ")
    assert "is not a bundle" in found["parts"]["networks"]["missing"]


def test_multiply_adds_are_counted_from_the_file() -> None:
    from operations import multiply_adds

    bundle = load_bundle(SHIPPED)
    files = [bundle.folder / name for name in bundle.backbones["vggish"].files]
    asked = {signature: found for file in files for signature, found in multiply_adds(file).items()}
    assert list(asked) == ["features", "explain"]
    # By hand: VGGish's convolutions, 3 x 3, on 96 x 64 and on halves of it.
    layers = [(96, 64, 1, 64), (48, 32, 64, 128), (24, 16, 128, 256), (24, 16, 256, 256)]
    layers += [(12, 8, 256, 512), (12, 8, 512, 512)]
    assert sum(asked["features"].values()) == sum(9 * rows * bands * into * out for rows, bands, into, out in layers)
    assert asked["features"]["int8"] > 0.99 * sum(asked["features"].values())
    assert sum(asked["explain"].values()) > 2 * sum(asked["features"].values())


def test_a_goal_says_by_how_much_it_is_missed() -> None:
    from figures import Figure

    assert Figure("a", 0.04, most=0.05).met == "yes"
    assert Figure("a", 0.06, most=0.05).met == "no: 1.20 of it"
    assert Figure("a", 4.0, least=5.0).met == "no: 0.80 of it"
    assert Figure("a", 5.0, least=5.0).met == "yes"
    assert Figure("a", None, least=5.0).met == Figure("a", 1.0).met == ""
