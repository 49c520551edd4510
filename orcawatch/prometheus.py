"""Figures for Prometheus: what the daemon is told of itself, served where a port is configured."""

from __future__ import annotations

import logging
import platform
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from threading import BoundedSemaphore, Lock, Thread
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .durable import Complaint
from .sinks import Facts

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry, Histogram
    from prometheus_client.metrics_core import Metric

    from .config import MetricsSettings
    from .outbox import Depth

log = logging.getLogger(__name__)

RETRY_S = 60.0  # between two tries to serve: a name instead of an address may take seconds to look up
INFERENCE_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # borders of the histogram
JOIN_S = 5.0
VISITORS = 4  # at once; who comes while there are so many is turned away
SILENT_S = 5.0  # a visitor that says nothing for so long is turned away, too


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
        self._wanted: tuple[int, str, CollectorRegistry] | None = None  # what is to be served, and where
        self._retry_at_s = 0.0
        self._complaint = Complaint(log)
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    def about(self, station: str, bundle: str, bundle_digest: str) -> None:
        """What listens, and with what."""
        with self._lock:
            self._about = {"station": station, "bundle": bundle, "bundle_digest": bundle_digest}

    def take(self, facts: Facts, depths: Mapping[str, Depth] | None = None) -> None:
        """How the daemon is now, and what waits in each queue (None: as before)."""
        with self._lock:
            self._facts = facts
            self._depths = self._depths if depths is None else depths
        if self._wanted is not None and self._server is None and time.monotonic() >= self._retry_at_s:
            self._begin(*self._wanted)

    def detected(self, utc: datetime) -> None:
        """There was a detection."""
        with self._lock:
            self._last_detection_s = utc.timestamp()

    def inferred(self, seconds: float) -> None:
        """A window was scored, and took so long."""
        if self._inference is not None:
            self._inference.observe(seconds)

    def serve(self, settings: MetricsSettings) -> None:
        """Serve the figures at `http://ADDRESS:PORT/metrics`; nothing is done where no port is configured.

        Where the address cannot be had, because its network is not up yet for instance, the log says so and `take`
        tries again: nobody stops listening for it.
        """
        if settings.port is not None:
            self._wanted = settings.port, settings.address, self.registry()
            self._begin(*self._wanted)

    def _begin(self, port: int, address: str, registry: CollectorRegistry) -> None:
        place = f"{address} port {port}"
        try:
            self._server, self._thread = begun(port, address, registry)
        except OSError as fault:
            self._retry_at_s = time.monotonic() + RETRY_S
            self._complaint.say(
                f"metrics cannot be served at {place}: {fault}; where that stays, choose another `metrics.port` or "
                "`metrics.address`"
            )
        else:
            self._complaint.end(f"metrics are served at {place}")

    def close(self) -> None:
        """End the server; closing twice is allowed."""
        server, thread, self._wanted = self._server, self._thread, None
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.shutdown()
            server.server_close()
            thread.join(JOIN_S)

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


def begun(port: int, address: str, registry: CollectorRegistry) -> tuple[WSGIServer, Thread]:
    """A server of the figures, in a thread of its own; raises OSError where the address cannot be had.

    prometheus_client's own makes a thread for everybody who connects, however many, and waits for ever for what they
    say: strangers could take the threads that the watch needs.
    """
    from socketserver import TCPServer, ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    from prometheus_client import make_wsgi_app

    places = BoundedSemaphore(VISITORS)

    class Handler(WSGIRequestHandler):
        timeout = SILENT_S

        def log_message(self, format: str, *about: object) -> None:
            pass

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

        def server_bind(self) -> None:
            TCPServer.server_bind(self)  # HTTPServer's would ask the network for this machine's name, and wait for it
            self.server_name, self.server_port = address, self.server_address[1]
            self.setup_environ()

        def process_request(self, request: Any, client_address: Any) -> None:
            if not places.acquire(blocking=False):
                self.shutdown_request(request)
                return
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread can be started
                places.release()
                raise

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                places.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.debug("%s was not told the figures", client_address, exc_info=True)

    server = Server((address, port), Handler)
    server.set_app(make_wsgi_app(registry))
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread
