from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcawatch.notify import Notifier, Watchdog


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def received(self) -> list[str]:
        """All datagrams that have come; sending is done when sendto returns."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@orcawatch-test-{os.getpid()}"
    found = Manager(name)
    yield found
    found.close()


def test_states_reach_the_socket(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.ready("listening to 4 channels")
    notifier.status("3 detections")
    notifier.ready()
    notifier.stopping()
    notifier.alive()
    assert manager.received() == [
        "READY=1\nSTATUS=listening to 4 channels",
        "STATUS=3 detections",
        "READY=1",
        "STOPPING=1",
        "WATCHDOG=1",
    ]


def test_a_reload_says_when_it_began(manager: Manager) -> None:
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": manager.address}).reloading()
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    state, begun = manager.received()[0].splitlines()
    assert state == "RELOADING=1"
    assert before_us <= int(begun.split("MONOTONIC_USEC=")[1]) <= after_us


def test_a_status_cannot_smuggle_in_a_state(manager: Manager) -> None:
    Notifier({"NOTIFY_SOCKET": manager.address}).status("device gone\nREADY=1")
    assert manager.received() == ["STATUS=device gone READY=1"]


def test_nothing_is_sent_without_a_socket(manager: Manager) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}):
        Notifier(environment).ready()
        Watchdog({**environment, "WATCHDOG_USEC": "1"}).processed()
    assert manager.received() == []


def test_a_manager_that_is_gone_is_said_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": address})
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.status("still here")
    assert len(caplog.messages) == 1 and "READY=1" in caplog.messages[0]
    again = Manager(address)
    notifier.status("back")
    assert again.received() == ["STATUS=back"]
    again.close()


def test_a_manager_that_does_not_read_cannot_block(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orcawatch.notify.TIMEOUT_S", 0.05)
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    began_s = time.monotonic()
    while not caplog.messages and time.monotonic() < began_s + 20:
        notifier.alive()  # until the kernel's queue is full
    assert "timed out" in caplog.text or "unavailable" in caplog.text
    assert len(manager.received()) > 1


def test_the_watchdog_is_fed_by_work_and_not_more_often_than_needed(manager: Manager) -> None:
    now_s = [100.0]
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    watchdog = Watchdog(environment, lambda: now_s[0])
    assert watchdog.interval_s == 60.0
    for _ in range(600):  # a minute in blocks of 0.1 s
        watchdog.processed()
        now_s[0] += 0.1
    assert manager.received() == ["WATCHDOG=1"] * 4
    now_s[0] += 3600
    assert manager.received() == []  # time alone sends nothing
    watchdog.processed()
    assert manager.received() == ["WATCHDOG=1"]


@pytest.mark.parametrize("changes", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_is_not_for_us_is_not_fed(manager: Manager, changes: dict[str, str]) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000", **changes}
    watchdog = Watchdog(environment)
    watchdog.processed()
    assert watchdog.interval_s is None and manager.received() == []
