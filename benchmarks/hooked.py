"""The real command with a watch on what it costs, for the benchmarks: not one itself.

    python benchmarks/hooked.py FIGURES.json COMMAND ...      as `orcawatch COMMAND ...`

Writes the processor time of `orcawatch run` from its first scored window to its end, what of it each part took (in
whatever thread), and when the first window was scored. The watch costs some microseconds a call.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

WHOLE = ("snapshots",)  # whatever is called inside belongs to them
DRAWING = "drawing, in processes of its own"
# By part: module and class, and its methods; None for functions that a module imported.
PARTS: dict[str, list[tuple[str, str | None, tuple[str, ...]]]] = {
    "reading audio": [("files", "FileSource", ("blocks",))],
    "front end": [
        ("spectrogram", "RowStream", ("push", "finish")),
        ("spectrogram", "LogMel", ("finish",)),
        ("spectrogram", "LinearPower", ("finish",)),
    ],
    "backbones": [("backbone", "EdgeBackbone", ("features",))],
    "heads and vote": [("ensemble", "Ensemble", ("score",))],
    "levels": [("levels", "LevelMeter", ("push", "finish")), ("logbook", None, ("event_levels",))],
    "bearing": [("bearing", "Compass", ("bearing",))],
    "clips": [("clips", "Roll", ("push", "cut")), ("recorder", None, ("write_clip",))],
    "database": [
        ("logbook", "Logbook", ("heard", "missing", "add", "attach", "post", "close")),
        ("ledger", "Ledger", ("checkpoint",)),
    ],
}


class Watch:
    """Processor time of parts; what a part calls of another one counts for that one."""

    def __init__(self) -> None:
        self._threads: list[Counter[str]] = []
        self._here = threading.local()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count for a part what the block takes."""
        stack = self._stack()
        self._count(stack)
        stack.append(stack[-1] if stack[-1] in WHOLE else name)
        try:
            yield
        finally:
            self._count(stack)
            stack.pop()

    def seconds(self) -> Counter[str]:
        """By part; `` is what was outside of all parts."""
        total: Counter[str] = Counter()
        for one in self._threads:
            total.update(one)
        return total

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted; of a generator function, what each item takes."""

        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            with self.part(name):
                found = function(*given, **named)
            return self._items(name, found) if isinstance(found, Iterator) else found

        return call

    def _items(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while True:
            with self.part(name):
                item = next(items, end)
            if item is end:
                return
            yield item

    def _stack(self) -> list[str]:
        if not hasattr(self._here, "stack"):
            self._here.stack, self._here.counts, self._here.mark_s = [""], Counter(), time.thread_time()
            self._threads.append(self._here.counts)
        stack: list[str] = self._here.stack
        return stack

    def _count(self, stack: list[str]) -> None:
        now_s = time.thread_time()
        self._here.counts[stack[-1]] += now_s - self._here.mark_s
        self._here.mark_s = now_s


def hook(watch: Watch) -> None:
    """Put the watch around the parts."""
    for name, places in PARTS.items():
        for module, owner, functions in places:
            found = import_module(f"orcawatch.{module}")
            holder = found if owner is None else getattr(found, owner)
            for function in functions:
                setattr(holder, function, watch.timed(name, getattr(holder, function)))
    recorder = import_module("orcawatch.recorder").Recorder
    recorder._snapshot = watch.timed("snapshots", recorder._snapshot)


class Notes:
    """What the loop says of itself, at the first scored window and at the last item."""

    def __init__(self, watch: Watch) -> None:
        self.first: dict[str, Any] = {}
        self.windows = self.position = self.rate_hz = self.events = 0
        self._watch = watch

    def heard(self, watcher: Any, loop: Any, item: Any, windows: Any) -> None:
        """As `orcawatch.service.Watcher.heard`."""
        self.position, self.rate_hz, self.events = loop.position, loop.source.info.rate_hz, loop.recorder.events
        self.windows += len(windows)
        if windows and not self.first:
            parts = self._watch.seconds()
            self.first = {**now(), "position": loop.position, "windows": self.windows, "parts": parts}

    def figures(self) -> dict[str, Any]:
        """What was found, from the first window to now."""
        first, last = self.first, now()
        parts = self._watch.seconds()
        parts.subtract(first["parts"])
        parts[DRAWING] = last["children_s"] - first["children_s"]
        return {
            "first_window_at_s": first["steady_s"],
            "first_processor_s": first["processor_s"],
            "first_peak_mb": first["peak_mb"],
            "audio_s": (self.position - first["position"]) / self.rate_hz,
            "processor_s": last["processor_s"] - first["processor_s"],
            "wall_s": last["steady_s"] - first["steady_s"],
            "peak_mb": last["peak_mb"],
            "windows": self.windows - first["windows"],
            "events": self.events,
            "parts": {name: seconds for name, seconds in parts.items() if name},
        }


def now() -> dict[str, float]:
    """Clocks, processor time with that of children that have ended, and memory of this process at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_mb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    children_s = ended.ru_utime + ended.ru_stime
    processor_s = time.process_time() + children_s
    return {
        "steady_s": time.monotonic(),
        "processor_s": processor_s,
        "children_s": children_s,
        "peak_mb": peak_mb,
    }


def main() -> None:
    """Run the command; write the figures when it ends."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does, before NumPy is loaded
    from orcawatch import cli, service

    watch = Watch()
    notes = Notes(watch)
    hook(watch)
    service.Watcher.heard = lambda watcher, *about: notes.heard(watcher, *about)  # type: ignore[method-assign]
    try:
        cli.main(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps(notes.figures(), indent=1))


if __name__ == "__main__":
    main()
