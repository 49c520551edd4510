"""Clocks that a test sets. Not a test."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from orcawatch.clock import EPOCH


class FakeClocks:
    """Clocks that a test sets; `utc_s` is what UTC is ahead of the steady clock.

    Parameters
    ----------
    synchronised : what they say of themselves.
    start : UTC when they are made.
    """

    def __init__(
        self, synchronised: bool | None = True, start: datetime = datetime(2026, 3, 1, tzinfo=timezone.utc)
    ) -> None:
        self.boot = "first"
        self.now_s = 1000.0
        self.utc_s = (start - EPOCH).total_seconds() - self.now_s
        self.suspended = 0.0
        self.sure = synchronised

    def steady_s(self) -> float:
        return self.now_s

    def suspended_s(self) -> float:
        return self.suspended

    def utc(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now_s + self.utc_s)

    def synchronised(self) -> bool | None:
        return self.sure

    def restart(self, boot: str, off_s: float) -> None:
        """The machine was off for so long; UTC goes on, the steady clock begins anew."""
        self.utc_s += self.now_s + off_s - 20
        self.boot, self.now_s = boot, 20.0
