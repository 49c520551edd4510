"""Figures for Prometheus: what the daemon is told of itself, served where a port is configured."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .serving import SOCKET, Serving
from .sinks import Facts

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram
    from prometheus_client.metrics_core import Metric

    from .config import MetricsSettings
    from .outbox import Depth

INFERENCE_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # borders of the histogram


class Metrics:
    """What Prometheus is told. Every method may be called whether or not it is served, from any thread.

    Parameters
    ----------
    hydrophones : serial numbers in the order of `Facts.levels_db`; where they are missing or empty, positions from 0.
    """

    def __init__(self, hydrophones: Sequence[str] = ()) -> None:
        self._hydrophones = tuple(hydrophones)
        self._lock = Lock()
        self._facts: Facts | None = None
        self._depths: Mapping[str, Depth] = {}
        self._about: Mapping[str, str] = {}
        self._last_detection_s: float | None = None
        self._inference: Histogram | None = None
        self._serving: Serving | None = None

    def about(self, station: str, bundle: str, bundle_digest: str) -> None:
        """What listens, and with what."""
        with self._lock:
            self._about = {"station": station, "bundle": bundle, "bundle_digest": bundle_digest}

    def take(self, facts: Facts, depths: Mapping[str, Depth] | None = None) -> None:
        """How the daemon is now, and what waits in each queue (None: as before)."""
        with self._lock:
            self._facts = facts
            self._depths = self._depths if depths is None else depths
        if self._serving is not None:
            self._serving.look()

    def detected(self, utc: datetime) -> None:
        """There was a detection."""
        with self._lock:
            self._last_detection_s = utc.timestamp()

    def inferred(self, seconds: float) -> None:
        """A window was scored, and took so long."""
        if self._inference is not None:
            self._inference.observe(seconds)

    def serve(self, settings: MetricsSettings, output: Path | None = None) -> None:
        """Serve the figures at `http://ADDRESS:PORT/metrics`; nothing is done where no port is configured.

        With an output folder, at a socket in it: `orcawatch uplink` hands them on (see `orcawatch.serving`).
        Where the address cannot be had, because its network is not up yet for instance, the log says so and `take`
        tries again: nobody stops listening for it.
        """
        if settings.port is not None:
            from prometheus_client import make_wsgi_app

            place = (settings.address, settings.port) if output is None else output / SOCKET
            self._serving = Serving(place, make_wsgi_app(self.registry()))

    def close(self) -> None:
        """End the server; closing twice is allowed."""
        if self._serving is not None:
            self._serving.close()
            self._serving = None

    def registry(self) -> CollectorRegistry:
        """A registry of prometheus_client with these figures."""
        from prometheus_client import CollectorRegistry, Histogram

        registry = CollectorRegistry()
        self._inference = Histogram(
            "orcawatch_inference_seconds", "Time to score one window.", registry=registry, buckets=INFERENCE_S
        )
        registry.register(Figures(self))
        return registry

    def families(self) -> Iterator[Metric]:
        """The figures as of now."""
        with self._lock:
            facts, depths, about, last_s = self._facts, self._depths, self._about, self._last_detection_s
        yield info("orcawatch_build", {"version": __version__, "python": platform.python_version(), **about})
        if last_s is not None:
            yield gauge("orcawatch_last_detection_timestamp_seconds", "Start of the last detection.", last_s)
        if facts is not None:
            yield from state(facts)
            yield from accounts(facts)
            yield levels(facts, self._hydrophones)
        yield from queues(depths)


class Figures:
    """Asks for the figures when Prometheus does: `collect` is what a registry calls."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """As `Metrics.families`."""
        return self._metrics.families()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are not needed beforehand."""
        return ()


def state(facts: Facts) -> Iterator[Metric]:
    """How the daemon is."""
    yield gauge("orcawatch_uptime_seconds", "Since the daemon started.", facts.uptime_s)
    yield gauge("orcawatch_disk_free_bytes", "On the output folder's disk.", facts.disk_free_mb * 1e6)
    yield gauge("orcawatch_behind_seconds", "Audio that waits to be scored.", facts.behind_s)
    yield gauge("orcawatch_overload_step", "Step of the overload ladder; 0 is all of it.", facts.step)
    yield gauge("orcawatch_clock_synchronised", "1 where the clock is synchronised, 0 where not.", facts.synchronised)
    yield gauge("orcawatch_clock_drift_ppm", "Of the sound card against the system clock.", facts.drift_ppm)
    yield labelled("orcawatch_temperature_celsius", "Of the machine.", "sensor", facts.temperatures_c)


def accounts(facts: Facts) -> Iterator[Metric]:
    """Seconds by what became of them, and counters."""
    from prometheus_client.metrics_core import CounterMetricFamily

    spent = CounterMetricFamily(
        "orcawatch_seconds", "Of the session, by what became of them.", labels=("kind", "cause")
    )
    for (kind, cause), seconds in sorted(facts.account.items()):
        spent.add_metric((kind, cause), seconds)
    yield spent
    stopped = CounterMetricFamily(
        "orcawatch_stopped", "Windows of single channels that a gate of the cascade stopped.", labels=["gate"]
    )
    for gate, windows in facts.stopped.items():
        stopped.add_metric([gate], windows)
    yield stopped
    for name, value in sorted(facts.counters.items()):
        words = name[: -len("_s")] + "_seconds" if name.endswith("_s") else name
        yield CounterMetricFamily(f"orcawatch_{words}", f"{words} since the daemon started.", value)


def levels(facts: Facts, hydrophones: Sequence[str]) -> Metric:
    """The last level of each hydrophone."""
    names = [*hydrophones, *[""] * (len(facts.levels_db) - len(hydrophones))]
    by_name = {name or str(place): level for place, (name, level) in enumerate(zip(names, facts.levels_db))}
    return labelled("orcawatch_level_db", "Last sound level, in the unit of the log.", "hydrophone", by_name)


def queues(depths: Mapping[str, Depth]) -> Iterator[Metric]:
    """What waits for each sink."""
    from prometheus_client.metrics_core import CounterMetricFamily

    for name, text in (("messages", "that wait"), ("bytes", "that wait"), ("parked", "messages that were refused")):
        values = {sink: getattr(depth, name) for sink, depth in depths.items()}
        yield labelled(f"orcawatch_outbox_{name}", f"Of each sink: {text}.", "sink", values)
    dropped = CounterMetricFamily(
        "orcawatch_outbox_dropped", "Messages given up, the queue being full.", labels=["sink"]
    )
    for sink, depth in depths.items():
        dropped.add_metric([sink], depth.dropped)
    yield dropped


def gauge(name: str, text: str, value: float | None) -> Metric:
    """One figure; without a value where it is not known."""
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric((), float(value))
    return family


def labelled(name: str, text: str, label: str, values: Mapping[str, Any]) -> Metric:
    """Figures of one name, told apart by a label."""
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), float(value))
    return family


def info(name: str, values: Mapping[str, str]) -> Metric:
    """Text, as labels of a figure that is always 1."""
    from prometheus_client.metrics_core import InfoMetricFamily

    return InfoMetricFamily(name, "What listens, and with what.", dict(values))
