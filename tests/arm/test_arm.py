"""What a Raspberry Pi would run, through an emulator: the same detections as here. Nothing is timed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Station

HERE = Path(__file__).resolve().parent
ORCAWATCH = Path(sys.executable).with_name("orcawatch")
SIMULATE = ["--seconds", "20", "--calls", "20", "--seed", "3", "--rate", "48000"]  # a loud call, one that barely counts
TOLERANCE = 0.002  # of a confidence


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short scene, made here."""
    file = tmp_path_factory.mktemp("scene") / "scene.flac"
    subprocess.run([ORCAWATCH, "simulate", file, *SIMULATE], check=True)
    return file


@pytest.fixture(scope="module")
def detections(scene: Path) -> list[dict[str, Any]]:
    """Its detections on this machine."""
    run = [ORCAWATCH, "run", "--input", scene, "--output", scene.with_name("out"), "--format", "jsonl"]
    return records(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def scores(scene: Path) -> Iterator[list[Path]]:
    """Files of its scores: this machine's interpreters, then the stations that were tried; compared at the end."""
    pythons = [sys.executable, *filter(None, [os.environ.get("OTHER_PYTHON")])]
    files = [scene.with_name(f"{number}.json") for number in range(len(pythons))]
    for python, file in zip(pythons, files):
        subprocess.run([python, HERE / "scores.py", scene, file], check=True)
    yield files
    print()
    subprocess.run([sys.executable, HERE / "compare.py", *files], check=False)


def records(lines: str) -> list[dict[str, Any]]:
    """The records that `run --format jsonl` printed."""
    return [json.loads(line) for line in lines.splitlines()]


def test_the_station_is_what_it_is_said_to_be(station: Station) -> None:
    program = (
        "import platform; from orcawatch.interpreter import runtime_name; print(platform.machine(), runtime_name())"
    )
    assert station.run("python", "-c", program).split() == ["aarch64", station.interpreter]


def test_scores_of_all_windows_are_the_same(station: Station, scene: Path, scores: list[Path]) -> None:
    station.run("python", station.put(HERE / "scores.py"), station.put(scene), "/tmp/scores.json")
    file = scene.with_name(f"{station}.json")
    shutil.copy(station.seen("/tmp/scores.json"), file)
    scores.append(file)
    subprocess.run([sys.executable, HERE / "compare.py", scores[0], file], check=True)


def test_run_detects_the_same_events(station: Station, scene: Path, detections: list[dict[str, Any]]) -> None:
    shutil.rmtree(station.seen("/tmp/out"), ignore_errors=True)
    run = ["run", "--input", station.put(scene), "--output", "/tmp/out", "--format", "jsonl"]
    theirs = records(station.run("orcawatch", *run))
    assert len(detections) == 2
    assert [(one["start_s"], one["end_s"]) for one in theirs] == [(one["start_s"], one["end_s"]) for one in detections]
    for one, other in zip(theirs, detections):
        assert one["channel_scores"] == pytest.approx(other["channel_scores"], abs=TOLERANCE)
        assert one["levels_db"] == pytest.approx(other["levels_db"], abs=0.11)  # they are given to 0.1 dB
        assert all(station.seen(one[kind]).stat().st_size > 1000 for kind in ("snapshot", "clip"))


def test_doctor_finds_nothing_wrong_that_comes_with_the_machine(station: Station, scene: Path) -> None:
    told = station.run("orcawatch", "doctor", "--input", station.put(scene), "--json", codes=(0, 4, 5))
    said = {one["check"]: one for one in json.loads(told)["findings"]}
    for check in ("settings", "folder", "disk", "database", "bundle"):
        assert said[check]["level"] == "ok", said[check]


def test_simulate_computes_the_same_scene(station: Station, scene: Path) -> None:
    station.run("orcawatch", "simulate", "/tmp/own.flac", *SIMULATE)
    ours, theirs = (
        json.loads(file.read_text()) for file in (scene.with_suffix(".json"), station.seen("/tmp/own.json"))
    )
    assert len(ours["events"]) > 3
    assert [one["kind"] for one in theirs["events"]] == [one["kind"] for one in ours["events"]]
    for one, other in zip(theirs["events"], ours["events"]):
        assert one["start_s"] == pytest.approx(other["start_s"])
