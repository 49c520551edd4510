"""Archives: worker processes, a Dask cluster, kills at any moment; always the same output."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orcawatch.simulate import SceneSettings, simulate_scene, write_scene

pytestmark = pytest.mark.parts

# What tells when something was done, and on which machine.
OWN = {"started_utc", "ended_utc", "finished_utc", "boot", "started_steady_s"}
TABLES = ("detections", "sessions", "ledger", "levels", "scanned")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of six seconds with calls, and one that is none."""
    folder = tmp_path_factory.mktemp("archive") / "in"
    for number in range(6):
        settings = SceneSettings(
            duration_s=6, rate_hz=32000, seed=number + 3, calls_per_minute=20, whistle_share=0, snr_low_db=15,
            hydrophones_m=((0, 0, 0), (2, 0, 0)),
        )  # fmt: skip
        write_scene(simulate_scene(settings), folder / f"buoy_20260301_00000{number}.flac")
    (folder / "notes.wav").write_text("no audio")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "orcawatch.cli", "scan", *map(str, arguments)]


def scanned(archive: Path, output: Path, *arguments: object) -> str:
    """Standard output of a scan, which finds one file faulty."""
    call = command(archive, "--output", output, "--format", "jsonl", "--timezone", "UTC", *arguments)
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    return done.stdout.replace(str(output), "OUTPUT")


def contents(output: Path) -> dict[str, Any]:
    """All that a scan leaves, without times of running."""
    with closing(sqlite3.connect(output / "detections.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        rows = {name: [own(dict(row)) for row in connection.execute(f"SELECT * FROM {name}")] for name in TABLES}
    clips = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (output / "clips").iterdir()}
    pictures = sorted(file.name for file in (output / "snapshots").iterdir())
    return {**rows, "clips": clips, "pictures": pictures, "aside": (output / "set-aside.csv").read_text()}


def own(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what another run has otherwise."""
    return {name: value for name, value in row.items() if name not in OWN}


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Standard output and all that is left of a scan in one process that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole") / "out"
    printed = scanned(archive, output, "--workers", 1)
    return printed, contents(output)


def test_a_scan_finds_calls_with_their_times(whole: tuple[str, dict[str, Any]]) -> None:
    printed, left = whole
    found = [json.loads(line) for line in printed.splitlines()]
    assert len(found) >= 5 and all(one["start_utc"].startswith("2026-03-01T00:00:0") for one in found)
    assert [one["id"] for one in found] == list(range(1, len(found) + 1))
    assert len(left["clips"]) == len(found) and "notes.wav cannot be read as audio" in left["aside"]


@pytest.mark.parametrize("workers", [2, 3])
def test_worker_processes_leave_the_same(
    archive: Path, tmp_path: Path, whole: tuple[str, dict[str, Any]], workers: int
) -> None:
    assert (scanned(archive, tmp_path / "out", "--workers", workers), contents(tmp_path / "out")) == whole


def test_a_second_scan_prints_the_same_and_does_nothing(
    archive: Path, tmp_path: Path, whole: tuple[str, dict[str, Any]]
) -> None:
    scanned(archive, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "clips").iterdir()}
    assert (scanned(archive, tmp_path / "out"), contents(tmp_path / "out")) == whole
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "clips").iterdir()} == before


@pytest.mark.parametrize("seed", range(2))
def test_a_scan_that_is_killed_goes_on(
    archive: Path, tmp_path: Path, whole: tuple[str, dict[str, Any]], seed: int
) -> None:
    """SIGKILL of the scan, its workers are left to end by themselves; three times, at any moment."""
    rng = random.Random(seed)
    for _ in range(3):
        call = command(archive, "--output", tmp_path / "out", "--timezone", "UTC", "--workers", 1 + seed % 2)
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.8, 3.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert (scanned(archive, tmp_path / "out", "--workers", 2), contents(tmp_path / "out")) == whole


def put(file: Path, content: bytes) -> None:
    """Write a file that seems not to have changed."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=times)


def test_a_retry_that_is_killed_goes_on(archive: Path, tmp_path: Path) -> None:
    """Three files that could not be read have been mended; SIGKILL twice, at any moment."""
    folder, rng = shutil.copytree(archive, tmp_path / "in"), random.Random(1)
    mended = {file: file.read_bytes() for file in sorted(folder.glob("*.flac"))[1:4]}
    for file, content in mended.items():
        put(file, bytes(len(content)))
    before = scanned(folder, tmp_path / "whole", "--workers", 2)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for file, content in mended.items():
        put(file, content)
    assert scanned(folder, tmp_path / "whole") == before
    whole = scanned(folder, tmp_path / "whole", "--retry", "--workers", 1), contents(tmp_path / "whole")
    assert len(whole[0].splitlines()) > len(before.splitlines()) and whole[1]["aside"].count("\n") == 2
    for _ in range(2):
        call = command(folder, "--output", tmp_path / "killed", "--timezone", "UTC", "--retry", "--workers", 2)
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=rng.uniform(1.5, 6))
    assert (scanned(folder, tmp_path / "killed", "--retry", "--workers", 2), contents(tmp_path / "killed")) == whole


def test_a_file_that_changed_is_scanned_again_unless_it_was_reviewed(archive: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(archive, tmp_path / "in")
    before = scanned(folder, tmp_path / "out").splitlines()
    first, second = sorted(folder.glob("*.flac"))[:2]
    first.write_bytes(second.read_bytes())
    after = [json.loads(line) for line in scanned(folder, tmp_path / "out").splitlines()]
    of_first = [(one["start_s"], one["score"]) for one in after if one["file"] == str(first)]
    assert of_first == [(one["start_s"], one["score"]) for one in after if one["file"] == str(second)]
    assert max(one["id"] for one in after) > len(before)
    with closing(sqlite3.connect(tmp_path / "out" / "detections.sqlite")) as connection, connection:
        connection.execute("UPDATE detections SET verdict = 'orca' WHERE source = ?", (str(second),))
    second.touch()
    call = command(folder, "--output", tmp_path / "out", "--timezone", "UTC")
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "of its detections have verdicts" in done.stderr
    assert f"{second} has changed since it was scanned" in (tmp_path / "out" / "set-aside.csv").read_text()


def test_another_way_of_scanning_needs_another_folder(archive: Path, tmp_path: Path) -> None:
    scanned(archive, tmp_path / "out")
    (tmp_path / "s.yaml").write_text("start_threshold: 0.9\n")
    call = command(archive, "--output", tmp_path / "out", "--timezone", "UTC", "--config", tmp_path / "s.yaml")
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "start_threshold not set, not 0.9" in done.stderr and "--output" in done.stderr


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program, ended at the end."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def test_two_dask_workers_leave_the_same(archive: Path, tmp_path: Path, whole: tuple[str, dict[str, Any]]) -> None:
    distributed = pytest.importorskip("distributed")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    file = tmp_path / "scheduler.json"
    with started(*dask, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)):
        until = time.monotonic() + 60
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", "--nthreads", "1"]
        with started(*worker), started(*worker):
            with distributed.Client(address, timeout=30) as client:
                client.wait_for_workers(2, timeout=60)
            printed = scanned(archive, tmp_path / "out", "--dask", address)
    assert (printed, contents(tmp_path / "out")) == whole


def test_a_cluster_that_is_not_there_is_told(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    call = command(archive, "--output", tmp_path / "out", "--dask", "tcp://127.0.0.1:1")
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr


def test_a_file_that_ends_its_process_is_set_aside(archive: Path, tmp_path: Path) -> None:
    """The worker that opens it is killed, each time; all others are scanned."""
    code = (
        "import os, signal\nfrom orcawatch import staging\nopened = staging.source_of\n"
        "def source_of(path, settings, name=''):\n"
        "    if name.endswith('3.flac') and os.getpid() != int(os.environ['PARENT']):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return opened(path, settings, name)\nstaging.source_of = source_of\n"
    )
    (tmp_path / "deadly.py").write_text(code)
    script = (
        "import os; os.environ.setdefault('PARENT', str(os.getpid()))\n"
        "from orcawatch import workers\nimport deadly\n"
        "workers.begin = deadly_begin = __import__('deadly_begin').begin\n"
        "from orcawatch.cli import main\n"
        "if __name__ == '__main__':\n    main(prog_name='orcawatch')\n"
    )
    (tmp_path / "deadly_begin.py").write_text(
        "from orcawatch import workers\noriginal = workers.begin\n"
        "def begin(*how):\n    import deadly\n    original(*how)\n"
    )
    (tmp_path / "program.py").write_text(script)
    call = [sys.executable, "program.py", "scan", archive, "--output", "out", "--workers", "2", "--format", "jsonl"]
    done = subprocess.run(list(map(str, call)), cwd=tmp_path, capture_output=True, text=True, check=False)
    found = {Path(json.loads(line)["file"]).name for line in done.stdout.splitlines()}
    assert done.returncode == 3 and "3.flac cannot be scanned: the process that scanned it ended twice" in done.stderr
    assert len(found) >= 3 and not any(name.endswith("3.flac") for name in found)
