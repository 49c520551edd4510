from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from orcawatch import serving
from orcawatch._version import __version__
from orcawatch.config import MetricsSettings
from orcawatch.outbox import Depth
from orcawatch.prometheus import Metrics
from orcawatch.sinks import Facts

FACTS = Facts(
    uptime_s=60.0, disk_free_mb=1234.5, behind_s=2.5, step=1, step_name="hop 0.96 s", synchronised=True,
    drift_ppm=-12.5, temperatures_c={"cpu": 48.1}, levels_db=(101.5, math.nan, 99.0),
    counters={"detections": 3, "overruns": 2, "unnoticed_s": 1.5}, stopped={"prominence": 70, "vggish": 0},
    account={("recorded", ""): 3590.0, ("gap", "device gone"): 9.5, ("gap", "overrun"): 0.5, ("off_duty", "duty"): 60.0},
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def scraped(port: int) -> Mapping[str, float]:
    """What Prometheus would read, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            sample.name + "".join(f"|{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def test_figures_are_served_as_of_now() -> None:
    metrics, port = Metrics(("H-1", "", "H-3")), free_port()
    metrics.serve(MetricsSettings(port=port))
    try:
        python = "{}.{}.{}".format(*sys.version_info)
        assert f"orcawatch_build_info|python={python}|version={__version__}" in scraped(port)
        metrics.about("north", "first-light", "ab" * 32)
        metrics.take(FACTS, {"far": Depth(4320, 2_000_000, "2026-07-01", 1, 5)})
        metrics.detected(datetime(2026, 7, 1, tzinfo=timezone.utc))
        for seconds in (0.004, 0.03, 30.0):
            metrics.inferred(seconds)
        found = scraped(port)
        build = f"bundle=first-light|bundle_digest={'ab' * 32}|python={python}|station=north|version={__version__}"
        expected = {
            f"orcawatch_build_info|{build}": 1,
            "orcawatch_uptime_seconds": 60,
            "orcawatch_disk_free_bytes": 1234.5e6,
            "orcawatch_behind_seconds": 2.5,
            "orcawatch_overload_step": 1,
            "orcawatch_clock_synchronised": 1,
            "orcawatch_clock_drift_ppm": -12.5,
            "orcawatch_temperature_celsius|sensor=cpu": 48.1,
            "orcawatch_level_db|hydrophone=H-1": 101.5,
            "orcawatch_level_db|hydrophone=H-3": 99.0,
            "orcawatch_seconds_total|cause=|kind=recorded": 3590,
            "orcawatch_seconds_total|cause=device gone|kind=gap": 9.5,
            "orcawatch_seconds_total|cause=overrun|kind=gap": 0.5,
            "orcawatch_seconds_total|cause=duty|kind=off_duty": 60,
            "orcawatch_detections_total": 3,
            "orcawatch_stopped_total|gate=prominence": 70,
            "orcawatch_stopped_total|gate=vggish": 0,
            "orcawatch_overruns_total": 2,
            "orcawatch_unnoticed_seconds_total": 1.5,
            "orcawatch_outbox_messages|sink=far": 4320,
            "orcawatch_outbox_bytes|sink=far": 2e6,
            "orcawatch_outbox_parked|sink=far": 1,
            "orcawatch_outbox_dropped_total|sink=far": 5,
            "orcawatch_last_detection_timestamp_seconds": datetime(2026, 7, 1, tzinfo=timezone.utc).timestamp(),
            "orcawatch_inference_seconds_count": 3,
            "orcawatch_inference_seconds_bucket|le=0.005": 1,
            "orcawatch_inference_seconds_bucket|le=0.05": 2,
            "orcawatch_inference_seconds_bucket|le=+Inf": 3,
        }
        assert {name: found.get(name) for name in expected} == expected
        assert math.isnan(found["orcawatch_level_db|hydrophone=1"])
        assert not [name for name in found if name.startswith(("python_", "process_"))]
        metrics.take(Facts(uptime_s=65.0))
        later = scraped(port)
        assert later["orcawatch_uptime_seconds"] == 65 and later["orcawatch_outbox_messages|sink=far"] == 4320
        assert "orcawatch_clock_drift_ppm" not in later and "orcawatch_clock_synchronised" not in later
    finally:
        metrics.close()


def test_the_end_frees_the_port_and_the_thread() -> None:
    port, before = free_port(), threading.active_count()
    for _ in range(3):
        metrics = Metrics()
        metrics.serve(MetricsSettings(port=port))
        assert scraped(port)
        metrics.close()
        metrics.close()
    assert threading.active_count() == before


def test_a_port_that_is_taken_is_told_and_had_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address may come with its network: the station must listen meanwhile."""
    monkeypatch.setattr(serving, "RETRY_S", 0.0)
    metrics = Metrics()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        metrics.serve(MetricsSettings(port=port))
        metrics.take(Facts())
    (told,) = caplog.messages
    assert f"127.0.0.1 port {port}: " in told and "in use; where that stays, choose another `metrics.port`" in told
    metrics.take(Facts())
    assert "are served" in caplog.messages[-1] and scraped(port)
    metrics.close()
    metrics.take(Facts())
    with pytest.raises(OSError):
        scraped(port)


def test_figures_at_a_socket_are_handed_on_however_long_its_path_is(tmp_path: Path) -> None:
    output, port = tmp_path / ("x" * 120), free_port()
    output.mkdir()
    metrics = Metrics()
    metrics.serve(MetricsSettings(port=port, address="192.0.2.1"), output)
    with serving.Serving(("127.0.0.1", port), serving.relayed(output)) as relay:
        relay.look()
        metrics.about("north", "first-light", "ab" * 32)
        metrics.take(FACTS)
        assert scraped(port)["orcawatch_detections_total"] == 3
        metrics.close()
        assert not list(output.iterdir())
        with pytest.raises(HTTPError, match="503"):
            scraped(port)
    with pytest.raises(OSError):
        scraped(port)


def test_no_file_is_taken_away_for_a_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / serving.SOCKET).write_text("mine")
    metrics = Metrics()
    metrics.serve(MetricsSettings(port=1), tmp_path)
    metrics.close()
    assert (tmp_path / serving.SOCKET).read_text() == "mine" and "cannot be served" in caplog.text


def test_a_disk_without_sockets_is_told_with_a_cure_that_helps(caplog: pytest.LogCaptureFixture) -> None:
    """/proc takes none, as vfat does."""
    metrics = Metrics()
    metrics.serve(MetricsSettings(port=1), Path("/proc"))
    metrics.close()
    (told,) = caplog.messages
    assert "/proc/metrics-socket: [Errno" in told and "`uplink: inside`" in told and "metrics.port" not in told


def test_without_a_port_everything_may_be_called_and_nothing_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom datetime import datetime, timezone\nfrom orcawatch.config import MetricsSettings\n"
        "from orcawatch.prometheus import Metrics\nfrom orcawatch.sinks import Facts\n"
        "metrics = Metrics()\nmetrics.serve(MetricsSettings())\nmetrics.about('a', 'b', 'c')\nmetrics.take(Facts(), {})\n"
        "metrics.detected(datetime.now(timezone.utc))\nmetrics.inferred(0.1)\nmetrics.close()\n"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "False\n"


def test_strangers_take_neither_threads_nor_the_figures_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds that connect and say nothing, or a byte now and then, or far too much."""
    monkeypatch.setattr(serving, "SILENT_S", 0.5)
    metrics, port = Metrics(()), free_port()
    before = threading.active_count()
    metrics.serve(MetricsSettings(port=port))
    try:
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
        for connection in silent[:50]:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 100_000)
        assert threading.active_count() <= before + 1 + serving.VISITORS
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, HTTPException):
                assert scraped(port)
                break
            assert time.monotonic() < deadline, "who says nothing is never turned away"
            time.sleep(0.1)
        for connection in silent:
            connection.close()
    finally:
        metrics.close()


def test_without_threads_visitors_are_turned_away_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(socket, "getfqdn", lambda name="": pytest.fail("the network is asked for this machine's name"))
    metrics, port = Metrics(()), free_port()
    metrics.serve(MetricsSettings(port=port))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for _ in range(2 * serving.VISITORS):
                with pytest.raises((OSError, HTTPException)):
                    scraped(port)
        assert scraped(port)
    finally:
        metrics.close()
