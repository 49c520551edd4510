"""A long watch: what goes on beside the loop of `orcawatch run`, from systemd to sinks."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from threading import Event as Flag
from types import FrameType
from typing import Callable

from . import daemon
from .bundle import SHIPPED, Bundle
from .bundles import InForce, installed
from .capture import Source
from .clock import Clocks
from .config import Settings, overridden
from .daemon import Loop, Upkeep
from .duty import OnDuty
from .ensemble import Ensemble
from .errors import OrcawatchError
from .files import FileSource
from .listener import Totals
from .live import LiveSource
from .notify import Notifier, Watchdog
from .outbox import Depth, Outbox, open_outbox
from .prometheus import Metrics
from .recorder import OnDetection
from .records import Item, WindowScore
from .reload import reload
from .retention import Retention
from .shadowing import Shadows
from .shelf import Shelf
from .sinks import Facts, effort_body, heartbeat_body, temperatures_c
from .store import Detection, Store
from .times import Times

log = logging.getLogger(__name__)

TELL_S = 5.0  # between two looks at what is told to systemd and to Prometheus


class Watcher:
    """Somebody who looks on; this one does not. The loop calls, and waits until it returns.

    Attributes
    ----------
    attended : whether it is a person at a terminal: when that is closed (SIGHUP), the watch ends.
    """

    attended = False

    def begins(self, settings: Settings, bundle: Bundle) -> None:
        """The bundle is open, with the settings' overrides; the source is waited for next."""

    def heard(self, loop: Loop, item: Item | None, windows: Sequence[WindowScore]) -> None:
        """As `Upkeep.heard`."""


def serve(
    load: Callable[[], Settings],
    input_file: Path | None,
    realtime: bool,
    on_detection: OnDetection,
    stop: Flag,
    watcher: Watcher | None = None,
) -> tuple[str, Totals]:
    """Listen to the settings' source until it ends or is to stop.

    Parameters
    ----------
    load : reads the settings; called again on SIGHUP.
    input_file : a file to listen to, in place of the settings' source.
    realtime : play a file at its own speed.
    on_detection, stop : as for `orcawatch.daemon.run`.
    watcher : who looks on.

    Returns
    -------
    Name of the source, and the account.

    Raises
    ------
    OrcawatchError : it could not begin.
    """
    settings = load()
    with Service(load, settings, stop, watcher) as service:
        return service.watch(input_file, realtime, on_detection)


class Ending(Flag):
    """Set where one session is to end, and where the whole watch is."""

    def __init__(self, stop: Flag) -> None:
        super().__init__()
        self._all = stop

    def is_set(self) -> bool:
        """Whether either is."""
        return super().is_set() or self._all.is_set()


class Service(Upkeep):
    """Tells systemd and Prometheus how things are, reloads, keeps the disk free, and feeds the sinks.

    Parameters
    ----------
    load : reads the settings again.
    settings : in force.
    stop : set when the watch is to end.
    watcher : who looks on.
    """

    apart = True

    def __init__(
        self, load: Callable[[], Settings], settings: Settings, stop: Flag, watcher: Watcher | None = None
    ) -> None:
        self.clocks = Clocks()
        self.notifier = Notifier()
        self.metrics = Metrics([hydrophone.serial for hydrophone in settings.hydrophones])
        self._watchdog = Watchdog()
        self._load = load
        self._settings = settings
        self._stop = stop
        self._watcher = watcher or Watcher()
        self._asked = False  # to reload; no `Event`: the handler of a second signal could wait for its lock for ever
        self._duty: OnDuty[LiveSource] | None = None
        self._live: LiveSource | None = None
        self._retention: Retention | None = None
        self._outbox: Outbox | None = None
        self._store: Store | None = None
        self._bundle: Bundle | None = None  # without the settings' overrides
        self._next: tuple[Bundle, Ensemble] | None = None  # what the next session scores with
        self._ending = Ending(stop)
        self._open, self._watch = ExitStack(), ExitStack()
        self._shadows = Shadows(Shelf(settings.output), self._ensemble_of, self.clocks.utc)
        self._tell_at = self._look_at = 0.0
        self._began_s = self._beat_at = self.clocks.steady_s()
        self._since: tuple[datetime, Mapping[tuple[str, str], float]] = (self.clocks.utc(), {})

    def __enter__(self) -> Service:
        self._open.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, self._on_hangup))
        return self

    def __exit__(self, *about: object) -> None:
        self._open.close()

    def watch(self, input_file: Path | None, realtime: bool, on_detection: OnDetection) -> tuple[str, Totals]:
        """As `serve`."""
        settings = self._settings
        found, ensemble = daemon.open_working(settings)
        self._bundle = found.bundle
        self._open.enter_context(daemon.only_writer(settings.output))
        self._open.callback(self.metrics.close)  # while it is the only writer: the next one may have a socket there
        self._look_after(self._open.enter_context(daemon.open_store(settings.output)), self._open)
        self._note(found)
        self.metrics.serve(settings.metrics, settings.output if settings.uplink == "apart" else None)
        while True:
            name, totals = self._session(ensemble, input_file, realtime, on_detection)
            if self._next is None or self._stop.is_set():
                return name, totals
            log.info("%s: %s", name, totals)
            (self._bundle, ensemble), self._next = self._next, None
            self._ending.clear()

    def _session(
        self, ensemble: Ensemble, input_file: Path | None, realtime: bool, on_detection: OnDetection
    ) -> tuple[str, Totals]:
        """Listen with one bundle."""
        settings, self._since = self._settings, (self.clocks.utc(), {})
        self._watcher.begins(settings, ensemble.bundle)
        with ExitStack() as opened:
            source = self._source(input_file, realtime, opened)
            self.metrics.about(settings.station, ensemble.bundle.name, ensemble.bundle.digest)
            self.notifier.ready("listening" if self._live is None else "waiting for the device")
            if self._live is not None and not self._live.open(self._ending, self._watchdog.processed):
                return "", Totals()
            report = self._reporting(on_detection)
            return source.info.name, daemon.run(source, ensemble, settings, report, self._ending, self, self.clocks)

    def store(self, output: Path) -> AbstractContextManager[Store]:
        """The database in the output folder; the one that was opened before the source was waited for stays open."""
        return daemon.open_store(output) if self._store is None else nullcontext(self._store)

    @contextmanager
    def watching(self, store: Store) -> Iterator[None]:
        """The disk is looked after; a watch begins so before READY: to compare many clips with rows takes long."""
        with ExitStack() as self._watch:
            if self._store is not store:
                self._look_after(store, self._watch)
            yield
        self._outbox = None

    def _look_after(self, store: Store, stack: ExitStack) -> None:
        self._store = store
        self._retention = stack.enter_context(Retention(store, self._settings.output, self._settings.retention))

    def _note(self, found: InForce) -> None:
        """Enter in the bundles' history that another than the installed one scores."""
        if found.faults:
            try:
                Shelf(self._settings.output).note_fall_back(found)
            except OrcawatchError as fault:
                log.warning("%s", fault)

    def outbox(self, session: int | None) -> Outbox | None:
        """Where messages about this session wait, with the sinks' threads running; None where there are no sinks."""
        if self._settings.sinks and self._store is not None:
            self._outbox = self._watch.enter_context(open_outbox(self._store, self._settings, self.clocks, session))
        return self._outbox

    def heard(self, loop: Loop, item: Item | None, windows: Sequence[WindowScore]) -> None:
        """Let the shadow hear it, and show it to who looks on."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + TELL_S
            self._shadows.look(loop, self._settings)
        self._shadows.heard(loop, item)
        self._watcher.heard(loop, item, windows)

    def processed(self, loop: Loop) -> None:
        """Feed the watchdog; now and then tell how things are; reload where that was asked for."""
        self._watchdog.processed()
        if self._stop.is_set():
            self.notifier.stopping()
        if self._asked:
            self._reload(loop)
        now_s = time.monotonic()
        if now_s >= self._tell_at:
            self._tell_at = now_s + TELL_S
            self._tell(loop)

    def ended(self, loop: Loop) -> None:
        """A last sign of life, with the effort since the one before."""
        self._shadows.end()
        self._look_at = 0.0
        self._beat_at = self.clocks.steady_s()
        self._tell(loop)

    def scored(self, seconds: float) -> None:
        """Note how long a window took."""
        self.metrics.inferred(seconds)

    def _reporting(self, on_detection: OnDetection) -> OnDetection:
        """The same, and the metrics know of it."""

        def report(detection: Detection) -> None:
            self.metrics.detected(detection.start_utc or self.clocks.utc())
            self._shadows.detected(detection)
            on_detection(detection)

        return report

    def _ensemble_of(self, bundle: Bundle) -> Ensemble:
        return daemon.open_ensemble(self._settings, bundle)

    def room(self, size: int) -> bool:
        """Whether the disk has room for a clip."""
        return self._retention is None or self._retention.room(size)

    def _source(self, input_file: Path | None, realtime: bool, opened: ExitStack) -> Source:
        settings = self._settings
        path = input_file or settings.source.file
        if path is not None:
            times = Times.of(settings.files.timezone, settings.files.time_format)
            if realtime or settings.source.realtime:
                return FileSource(path, True, settings.source.block_s, times=times)
            return FileSource(path, times=times)
        live = LiveSource(
            settings.source, self.clocks, queue_s=settings.overload.queue_s, needed=needed_channels(settings),
            jump_s=settings.clock.jump_s,
        )  # fmt: skip
        self._live = opened.enter_context(live)
        self._duty = OnDuty(live, settings.duty)
        return self._duty

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, True
        if self._watcher.attended and not again:
            self._stop.set()

    def _reload(self, loop: Loop) -> None:
        self._asked = False
        self.notifier.reloading()
        if self._bundle is not None:
            self._settings = reload(self._load, self._settings, self._bundle)
            loop.change(self._settings, overridden(self._bundle, self._settings))
        if self._retention is not None:
            self._retention.settings = self._settings.retention
        if self._duty is not None:
            self._duty.duty = self._settings.duty
        self._shadows.change(self._settings)
        self._take_bundle()
        self.notifier.ready()

    def _take_bundle(self) -> None:
        """End the session where another bundle is in force now, so that the next one begins with it.

        It is opened, and has scored silence, before; otherwise the watch goes on with the old one.
        """
        settings = self._settings
        folder = next((folder for _, folder in installed(settings.output)), SHIPPED)
        if self._bundle is None or settings.bundle is not None or folder == self._bundle.folder:
            return
        try:
            found, ensemble = daemon.open_working(settings)
        except (OrcawatchError, OSError) as fault:
            log.error("reload: the bundle stays as it is; %s", fault)
            return
        if found.faults or found.bundle.digest == self._bundle.digest:
            return
        if self._live is None:
            log.warning("reload: the bundle %s waits for a restart: a file is listened to", found)
            return
        log.warning("reload: the bundle %s takes over; a new session begins", found)
        self._next = found.bundle, ensemble
        self._ending.set()

    def _tell(self, loop: Loop) -> None:
        facts = self._facts(loop)
        self.notifier.status(status(facts, loop))
        depths = self._depths()
        self.metrics.take(facts, depths)
        if self._outbox is not None and self.clocks.steady_s() >= self._beat_at:
            self._beat(loop, facts, depths)

    def _depths(self) -> dict[str, Depth]:
        """What waits for the sinks; nothing is known of it while the disk refuses."""
        try:
            return {} if self._outbox is None else self._outbox.depths()
        except OrcawatchError as fault:
            log.debug("%s", fault)
            return {}

    def _beat(self, loop: Loop, facts: Facts, depths: Mapping[str, Depth]) -> None:
        """Sign of life, and effort since the last one."""
        self._beat_at = self.clocks.steady_s() + self._settings.heartbeat_s
        since_utc, before = self._since
        now_utc = self.clocks.utc()
        effort = effort_body(since_utc, now_utc, before, facts.account)
        if loop.logbook.post(("heartbeat", heartbeat_body(facts, depths)), ("effort", effort)):
            self._since = now_utc, facts.account

    def _facts(self, loop: Loop) -> Facts:
        clock, latest = loop.source.clock, loop.logbook.latest
        return Facts(
            uptime_s=self.clocks.steady_s() - self._began_s,
            disk_free_mb=free_mb(self._settings.output),
            behind_s=loop.source.behind_s,
            step=loop.ladder.number,
            step_name=loop.ladder.step.name,
            synchronised=self.clocks.synchronised(),
            drift_ppm=None if clock is None else clock.drift_ppm,
            temperatures_c=temperatures_c(),
            levels_db=() if latest is None else latest.levels_db,
            level_unit="" if latest is None else latest.unit,
            hydrophones=[hydrophone.serial for hydrophone in self._settings.hydrophones],
            counters=counters(loop, self._live),
            stopped=dict(loop.ensemble.stopped),
            account=dict(loop.seconds),
        )


def free_mb(folder: Path) -> float:
    """Room on a folder's disk; not a number where the disk is gone, which the store tells."""
    try:
        return shutil.disk_usage(folder).free / 1e6
    except OSError:
        return math.nan


def counters(loop: Loop, live: LiveSource | None) -> dict[str, float]:
    """Figures since the start, by name."""
    recorder = loop.recorder
    found: dict[str, float] = {
        "windows": loop.listener.windows,
        "channel_windows": loop.ensemble.scored,
        "detections": recorder.events,
        "clips_shed": recorder.shed,
        "clips_failed": recorder.failed,
        "detections_lost": recorder.lost,
    }
    if live is not None:
        found |= {"overruns": live.overruns, "reopens": live.reopens, "unnoticed_s": live.unnoticed_s}
    return found


def needed_channels(settings: Settings) -> int | None:
    """How many channels of a device the settings ask for; None for what it has."""
    if settings.channels is not None:
        return max(settings.channels) + 1
    return len(settings.hydrophones) or None


def status(facts: Facts, loop: Loop) -> str:
    """One line for `systemctl status`."""
    seconds: dict[str, float] = {}
    for (kind, _), spent in facts.account.items():
        seconds[kind] = seconds.get(kind, 0.0) + spent
    spans = ", ".join(f"{kind.replace('_', ' ')} {spent / 3600:.2f} h" for kind, spent in sorted(seconds.items()))
    gates = [f"{name} {share:.0%}" for name, share in shares(facts.stopped, loop.ensemble.scored).items()]
    stopped = f"; stopped by {', '.join(gates)}" if gates else ""
    return f"{spans or 'nothing heard yet'}; {loop.recorder.events} detections; {facts.step_name}{stopped}"


def shares(stopped: Mapping[str, int], scored: int) -> dict[str, float]:
    """Of the windows of single channels, those that each gate stopped; none before there was a window."""
    return {name: count / scored for name, count in stopped.items()} if scored else {}
