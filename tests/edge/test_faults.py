"""The daemon's loop while the disk refuses calls with EIO now and then: what was acknowledged stays, once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import kills_watch  # noqa: E402

pytestmark = pytest.mark.parts

ENOUGH = 12  # acknowledged detections
PATIENCE_S = 90.0
WATCH = """
import sys
sys.path.insert(0, sys.argv[2])
import kills_watch
kills_watch.victim(kills_watch.Path(sys.argv[1]), kills_watch.Sea(), kills_watch.Ensemble(), 1)
"""


@pytest.mark.parametrize(("call", "when"), [("pwrite64", "25+75"), ("fdatasync", "10+7")])
def test_a_disk_that_refuses_some_calls_loses_nothing_acknowledged(tmp_path: Path, call: str, when: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    output = tmp_path / "out"
    kills_watch.open_store(output / kills_watch.DATABASE).close()
    paths = [part for name in ("", "-wal") for part in ("-P", str(output / f"{kills_watch.DATABASE}{name}"))]
    inject = ["strace", "-f", "-o", str(tmp_path / "trace"), *paths, "-e", f"inject={call}:error=EIO:when={when}"]
    lines = tmp_path / "lines"
    with lines.open("wb") as told:
        watch = subprocess.Popen(
            [*inject, sys.executable, "-c", WATCH, str(output), str(BENCHMARKS)], stdout=told, start_new_session=True
        )
    until_s = time.monotonic() + PATIENCE_S
    while lines.read_bytes().count(b"\n") <= ENOUGH and watch.poll() is None and time.monotonic() < until_s:
        time.sleep(0.1)
    ended = watch.poll()
    os.killpg(watch.pid, signal.SIGKILL)
    watch.wait()
    assert ended is None, (tmp_path / "victim.log").read_text()
    account = kills_watch.Watched(power=True)
    account.take(lines.read_text(), killed=True)
    assert len(account.told) >= ENOUGH
    assert "EIO" in (tmp_path / "trace").read_text()
    kills_watch.check_all(account, output)
    kills_watch.check_start(account, output)
    kills_watch.check_all(account, output)
    assert not account.faults
