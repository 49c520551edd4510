"""The command `orcawatch listen`: a microphone or an array, live in the terminal."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Callable

import click

from .cli import EXIT_CODES, FAILED, FILE, bundle_option, chosen_settings, config_option, logged, output_option
from .config import MetricsSettings, RetentionSettings, Settings
from .daemon import stop_signals
from .listener import Totals
from .lookout import MOST_COLUMNS, Lookout, NotesHandler
from .palette import Palette
from .printer import Printer
from .screen import CONTRASTS_DB, Screen, View
from .service import serve
from .telling import Lines, Teller, detection_line
from .terminal import Terminal, can_draw

Load = Callable[[], Settings]

log = logging.getLogger(__name__)

FRAME_S = 0.25  # two columns
END_S = 1.0
UNSAVED_MB = 50.0  # of clips that nobody keeps


@click.command(epilog=EXIT_CODES)
@config_option
@click.option("--device", metavar="NAME", help="The sound card, or a part of its name (`orcawatch devices`).")
@click.option("--input", "file", type=FILE, metavar="FILE", help="Play an audio file in its place, in real time.")
@bundle_option
@output_option
@click.option("--plain", is_flag=True, help="Lines for logs and pipes; by itself where there is no terminal.")
@click.option(
    "--every", "every_s", type=click.FloatRange(min=1), default=10.0, show_default=True, metavar="SECONDS",
    help="With --plain: between two lines of levels and scores.",
)  # fmt: skip
@click.option("--channel", type=click.IntRange(min=0), metavar="N", help="Show this channel first. [default: all]")
@click.option("--no-save", is_flag=True, help="Keep no detections, and send none; the key s saves clips nevertheless.")
@logged
@click.pass_context
def command(
    ctx: click.Context,
    config: Path | None,
    device: str | None,
    file: Path | None,
    bundle: Path | None,
    output: Path | None,
    plain: bool,
    every_s: float,
    channel: int | None,
    no_save: bool,
) -> None:
    """Watch a microphone or an array live: spectrograms, scores, levels, detections.

    The same as `orcawatch run`, with eyes: detections, clips and the ledger go to the output folder. Without --config
    and --device it listens to one channel of the system's default input. Keys: ? explains them.
    """

    def load() -> Settings:
        return listened(chosen_settings(config, bundle, output), config is not None, device, file)

    settings = load()
    with kept(load, no_save) as chosen:
        if plain or not can_draw():
            name, totals = told(chosen, settings, file, every_s, channel)
        else:
            name, totals = shown(chosen, settings, file, channel)
    finish(ctx, name, totals)


def finish(ctx: click.Context, name: str, totals: Totals) -> None:
    """Say what became of it, and exit as `orcawatch run` does."""
    log.info("%s: %s", name or "nothing was heard", totals)
    if totals.fault is not None and totals.kept:
        raise totals.fault
    if totals.fault is not None:
        log.error("%s", totals.fault)
    ctx.exit(0 if totals.kept else FAILED)


def listened(settings: Settings, configured: bool, device: str | None, file: Path | None) -> Settings:
    """The settings with the command line's device; a microphone that nobody configured has one channel."""
    source = settings.source
    if device is not None:
        source = replace(source, device=device, file=None)
    elif not configured and file is None:
        source = replace(source, device_channels=1)
    return replace(settings, source=source)


@contextmanager
def kept(load: Load, no_save: bool) -> Iterator[Load]:
    """How settings are read: with `no_save`, they name a folder that is removed afterwards, and no sinks."""
    if not no_save:
        yield load
        return
    with tempfile.TemporaryDirectory(prefix="orcawatch-listen-") as folder:
        retention = RetentionSettings(max_clips_mb=UNSAVED_MB, min_free_mb=0, reserve_mb=0, sweep_s=60)
        yield lambda: replace(
            load(), output=Path(folder), snapshots=False, sinks=(), metrics=MetricsSettings(), retention=retention
        )


def told(load: Load, settings: Settings, file: Path | None, every_s: float, channel: int | None) -> tuple[str, Totals]:
    """Listen, with lines for logs and pipes."""
    with stop_signals() as stop, Lines(stop) as lines:
        report = detection_line(lines, Printer("text", settings).line)
        return serve(load, file, True, report, stop, Teller(lines, every_s, channel))


def shown(load: Load, settings: Settings, file: Path | None, channel: int | None) -> tuple[str, Totals]:
    """Listen, with a view of the terminal; what was logged as a warning is told again when it has gone."""
    lookout = Lookout(True, channel, settings.output)
    with Terminal() as terminal, stop_signals() as stop, noted(lookout):
        viewer = Viewer(terminal, lookout, channel, stop)
        with viewer:
            result = serve(load, file, True, lookout.detected, stop, lookout)
            lookout.finish()
    if viewer.fault is not None:
        raise viewer.fault
    for note in lookout.sight(0).notes[-5:]:
        if note.grave:
            log.warning("%s", note.text)
    return result


@contextmanager
def noted(lookout: Lookout) -> Iterator[None]:
    """Log to the view, and to standard error where that is no terminal."""
    root = logging.getLogger()
    before = list(root.handlers)
    root.handlers[:] = [*(before if not sys.stderr.isatty() else []), NotesHandler(lookout)]
    try:
        yield
    finally:
        root.handlers[:] = before


class Viewer:
    """Draws and reads keys in a thread of its own, so that a slow terminal holds nothing. A context.

    Parameters
    ----------
    terminal : where.
    lookout : what is seen.
    channel : shown first; None for all.
    stop : set to end the watch.

    Attributes
    ----------
    fault : what ended the view, other than a wish.
    """

    def __init__(self, terminal: Terminal, lookout: Lookout, channel: int | None, stop: Flag) -> None:
        self.fault: Exception | None = None
        self._terminal = terminal
        self._lookout = lookout
        self._stop = stop
        self._over = Flag()
        self._view = View(channel, keys=terminal.keys)
        self._screen = Screen(Palette(terminal.colours, terminal.unicode), terminal.unicode)
        self._size = (0, 0)
        self._thread = Thread(target=self._go, name="view", daemon=True)

    def __enter__(self) -> Viewer:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._over.set()
        self._thread.join(END_S)

    def _go(self) -> None:
        try:
            while not self._over.is_set():
                began_s = time.monotonic()
                self._draw()
                self._wait(began_s + FRAME_S)
        except OSError as fault:
            log.debug("the terminal is gone: %s", fault)
            self._stop.set()
        except Exception as fault:  # told when the terminal is as it was
            self.fault = fault
            self._stop.set()

    def _wait(self, until_s: float) -> None:
        """Take keys until the next picture is due, or a key has changed it."""
        while (left_s := until_s - time.monotonic()) > 0:
            pressed = list(self._terminal.key_presses(left_s))
            for key in pressed:
                self._press(key)
            if pressed:
                return

    def _draw(self) -> None:
        width, height = self._terminal.size
        if (width, height) != self._size:
            self._size = width, height
            self._terminal.forget()
        sight = self._lookout.sight(MOST_COLUMNS)
        self._view.ending = self._stop.is_set()
        lines = self._screen.lines(sight, self._view, width, height, datetime.now(timezone.utc))
        self._terminal.draw(lines, width)

    def _press(self, key: str) -> None:
        view = self._view
        action = {"q": self._stop.set, "closed": self._stop.set, "s": self._lookout.save, " ": self._pause}.get(key)
        if action is not None:
            action()
        elif key in "?h":
            view.help = not view.help
        elif key == "escape":
            view.help = False
        elif key in "+=":
            view.contrast = max(0, view.contrast - 1)
        elif key in "-_":
            view.contrast = min(len(CONTRASTS_DB) - 1, view.contrast + 1)
        else:
            view.channel = self._chosen(key)

    def _pause(self) -> None:
        view = self._view
        self._lookout.freeze(view.frozen is None)
        view.frozen = None if view.frozen is not None else self._lookout.sight(MOST_COLUMNS)

    def _chosen(self, key: str) -> int | None:
        """The channel that is shown after a key."""
        hearing, now = self._lookout.sight(0).hearing, self._view.channel
        channels = () if hearing is None else hearing.channels
        if key == "a":
            return None
        if key.isdecimal() and int(key) in channels:
            return int(key)
        if key.isdecimal() and channels:
            self._lookout.note(f"there is no channel {key}: channels are {', '.join(map(str, channels))}")
        steps = {"left": -1, "right": 1}.get(key)
        if steps is None or not channels:
            return now
        if now not in channels:
            return channels[0 if steps > 0 else -1]
        return channels[(channels.index(now) + steps) % len(channels)]
