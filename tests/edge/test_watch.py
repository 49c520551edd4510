"""`orcawatch run` as a service manager sees it: readiness, watchdog, reload, metrics, a clean end."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Callable

import pytest

import orcawatch.service
from orcawatch.bundle import SHIPPED
from orcawatch.clock import Clocks
from orcawatch.config import ClockSettings, Settings, SourceSettings
from orcawatch.daemon import run
from orcawatch.records import AudioBlock
from orcawatch.service import Service

pytestmark = pytest.mark.parts

ORCAWATCH = str(Path(sys.executable).with_name("orcawatch"))
CONFIGURATION = """\
station: north
source:
  file: sea.flac
  realtime: true
output: out
snapshots: false
start_threshold: {threshold}
heartbeat_s: 5
metrics:
  port: {port}
sinks:
  - kind: jsonl
"""


class Manager:
    """Stands for systemd: the socket that a service talks to, and the service."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "2000000"}
        self.log = (folder / "log").open("w+")
        self.service = subprocess.Popen(command, cwd=folder, env=environment, stderr=self.log, stdout=self.log)

    def wait_for(self, start: str) -> str:
        """The next thing told that begins so."""
        while True:
            self.told += self._socket.recv(4096).decode().split("\n")
            if found := [line for line in self.told if line.startswith(start)]:
                self.told.clear()
                return found[0]

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def close(self) -> None:
        self.service.kill()
        self.service.wait()
        self._socket.close()
        self.log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def watch(tmp_path: Path, make_audio: Any, write: Callable[..., Path], port: int) -> Iterator[Manager]:
    write(tmp_path / "sea.flac", make_audio(16000, 120.0, 2, []), 16000)
    (tmp_path / "orcawatch.yaml").write_text(CONFIGURATION.format(threshold=0.9, port=port))
    manager = Manager(tmp_path, ORCAWATCH, "run", "--config", "orcawatch.yaml")
    yield manager
    manager.close()


def test_service_tells_how_it_is_and_reloads_and_ends_cleanly(watch: Manager, tmp_path: Path, port: int) -> None:
    watch.wait_for("READY=1")
    watch.wait_for("WATCHDOG=1")
    assert "recorded" in watch.wait_for("STATUS=recorded")

    (tmp_path / "orcawatch.yaml").write_text(CONFIGURATION.format(threshold=0.95, port=port))
    watch.service.send_signal(signal.SIGHUP)
    watch.wait_for("RELOADING=1")
    watch.wait_for("READY=1")
    assert "reload: start_threshold: 0.9 -> 0.95" in watch.text()

    (tmp_path / "orcawatch.yaml").write_text("start_treshold: 0.5\n")
    watch.service.send_signal(signal.SIGHUP)
    watch.wait_for("RELOADING=1")
    watch.wait_for("READY=1")
    assert "start_treshold is no key; did you mean start_threshold?" in watch.text()

    figures = scraped(port)
    assert 'orcawatch_seconds_total{cause="",kind="recorded"}' in figures

    watch.service.send_signal(signal.SIGTERM)
    watch.wait_for("STOPPING=1")
    assert watch.service.wait(30) == 0
    with closing(sqlite3.connect(tmp_path / "out" / "detections.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
        ((kind, samples),) = database.execute("SELECT kind, end_sample - start_sample FROM ledger").fetchall()
    recorded_s = samples / 16000
    assert kind == "recorded"
    (file,) = (tmp_path / "out" / "messages").glob("*.jsonl")
    messages = [json.loads(line) for line in file.open()]
    efforts = [message["body"]["seconds"]["recorded"] for message in messages if message["kind"] == "effort"]
    assert sum(efforts) == pytest.approx(recorded_s) and recorded_s > 0
    beats = [message["body"] for message in messages if message["kind"] == "heartbeat"]
    assert len(beats) == len(efforts) and beats[-1]["outbox"]["jsonl"]["parked"] == 0


def test_watchdog_is_fed_by_work_and_not_by_time(watch: Manager) -> None:
    """A stopped process says nothing: what systemd's watchdog is for."""
    watch.wait_for("READY=1")
    watch.wait_for("WATCHDOG=1")
    watch.service.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    watch._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            watch._socket.recv(4096)
    watch._socket.settimeout(1.5)
    with pytest.raises(TimeoutError):
        watch._socket.recv(4096)
    watch._socket.settimeout(30)
    watch.service.send_signal(signal.SIGCONT)
    watch.wait_for("WATCHDOG=1")


def test_second_watch_into_the_same_folder_is_refused(watch: Manager, tmp_path: Path) -> None:
    watch.wait_for("READY=1")
    for command in (["run", "--config", "orcawatch.yaml"], ["scan", "sea.flac", "--output", "out"]):
        second = subprocess.run([ORCAWATCH, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and "another orcawatch already writes into out" in second.stderr


ABSENT = """\
source:
  device: nowhere
  rate_hz: 16000
  device_channels: 2
bundle: bundle
output: out
start_threshold: {threshold}
metrics:
  port: {port}
"""


def test_nothing_that_listening_can_do_without_ends_the_watch(tmp_path: Path, port: int) -> None:
    """No card, the port of the metrics taken, the bundle gone at a reload; READY comes when the folder is in order."""
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    half = tmp_path / "out" / "clips" / "1.flac.partial"
    half.parent.mkdir(parents=True)
    half.touch()
    (tmp_path / "orcawatch.yaml").write_text(ABSENT.format(threshold=0.9, port=port))
    with socket.create_server(("127.0.0.1", port)):
        manager = Manager(tmp_path, ORCAWATCH, "run", "--config", "orcawatch.yaml")
        try:
            manager.wait_for("READY=1")
            assert not half.exists()
            assert "metrics cannot be served at 127.0.0.1" in manager.text()
            manager.wait_for("STATUS=gap")
            shutil.rmtree(tmp_path / "bundle")
            (tmp_path / "orcawatch.yaml").write_text(ABSENT.format(threshold=0.95, port=port))
            manager.service.send_signal(signal.SIGHUP)
            manager.wait_for("RELOADING=1")
            manager.wait_for("READY=1")
            assert "reload: start_threshold: 0.9 -> 0.95" in manager.text()
            manager.service.send_signal(signal.SIGTERM)
            assert manager.service.wait(30) == 0
        finally:
            manager.close()


def service_in(tmp_path: Path, **changes: Any) -> Service:
    settings = Settings(output=tmp_path / "out", snapshots=False, **changes)
    return Service(lambda: settings, settings, threading.Event())


def test_output_that_goes_away_does_not_end_the_watch(
    tmp_path: Path, make_audio: Any, ensemble: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is not mounted from 2 to 4 s; how things are is told all the time."""
    monkeypatch.setattr(orcawatch.service, "TELL_S", 0.0)
    service, told = service_in(tmp_path), []
    monkeypatch.setattr(service.metrics, "take", lambda facts, depths: told.append(facts.disk_free_mb))
    sea = make_audio(16000, 6.0, 2, [])
    moves = {2: ("out", "away"), 4: ("away", "out")}

    def items() -> Iterator[AudioBlock]:
        for second in range(6):
            if second in moves:
                before, after = moves[second]
                (tmp_path / before).rename(tmp_path / after)
            yield AudioBlock(sea[16000 * second : 16000 * (second + 1)], 16000 * second)

    totals = run(scripted(items()), ensemble, service._settings, lambda detection: None, upkeep=service)
    assert totals.read_s == 6.0
    assert [math.isnan(free) for free in told[:6]] == [False, False, True, True, False, False]


@pytest.mark.parametrize(("jump_s", "seen"), [(0.5, True), (10.0, False)])
def test_jump_of_the_clock_is_what_the_settings_say(tmp_path: Path, jump_s: float, seen: bool) -> None:
    choice = replace(SourceSettings(), device="nowhere", rate_hz=16000, device_channels=2)
    service = service_in(tmp_path, source=choice, clock=ClockSettings(jump_s))
    service.clocks = clocks = Jumping()  # type: ignore[assignment]
    clock = service._source(None, False, service._open).clock
    assert clock is not None and clock.check(0) is None
    clocks.ahead_s = 5.0
    assert (clock.check(0) is not None) == seen


class Jumping(Clocks):
    """The machine's clocks, but for how far UTC is ahead."""

    ahead_s = 0.0

    def utc(self) -> datetime:
        return super().utc() + timedelta(seconds=self.ahead_s)

    def synchronised(self) -> bool:
        return True
