"""What the daemon tells systemd: the datagrams of sd_notify(3), without its library."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Callable

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0  # a service manager that does not read must not stop the watch
FEEDS = 4  # per interval of the watchdog


class Notifier:
    """Sends the service's state to the socket that systemd names in `NOTIFY_SOCKET`; without one, to nobody.

    Parameters
    ----------
    environment : where `NOTIFY_SOCKET` is looked up: a path, or `@` and an abstract name.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._refused = False

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is done."""
        self._send("READY=1", *([f"STATUS={one_line(status)}"] if status else []))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={one_line(text)}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog, at once (see `Watchdog`)."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(TIMEOUT_S)
                sender.sendto("\n".join(lines).encode(), abstract(self._address))
            self._refused = False
        except OSError as fault:
            if not self._refused:
                log.warning("systemd does not take %s on %s: %s", lines[0], self._address, fault)
            self._refused = True


class Watchdog:
    """Tells systemd that audio is being processed, some times in the interval that it set (`WatchdogSec=`).

    Feed it from the loop that processes, and from nowhere else: a timer or a thread of its own would keep a hung daemon
    alive.

    Parameters
    ----------
    environment : where `WATCHDOG_USEC` and `WATCHDOG_PID` are looked up.
    clock : seconds that never go back.

    Attributes
    ----------
    interval_s : after so long without a word systemd ends this process; None where it does not watch it.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval_s = interval_s(environment)
        self._notifier = Notifier(environment)
        self._clock = clock
        self._next_s = -float("inf")

    def processed(self) -> None:
        """Call this after every block of audio, and after every stretch of a second without."""
        if self.interval_s is None or (now_s := self._clock()) < self._next_s:
            return
        self._notifier.alive()
        self._next_s = now_s + self.interval_s / FEEDS


def interval_s(environment: Mapping[str, str]) -> float | None:
    """The watchdog's interval, where it is meant for this process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    ours = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) and ours else None


def abstract(address: str) -> str:
    """The address as the kernel wants it: systemd writes the zero byte of an abstract one as `@`."""
    return "\0" + address[1:] if address.startswith("@") else address


def one_line(text: str) -> str:
    """Text that cannot be taken for more than one assignment."""
    return " ".join(text.split())
