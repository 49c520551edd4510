from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch.clock import Clocks
from orcawatch.config import load_settings
from orcawatch.errors import ConfigError
from orcawatch.lines import LinesSettings, LinesSink
from orcawatch.outbox import Depth, Outbox, Queue, Sender, open_outbox
from orcawatch.records import ClockChange
from orcawatch.sinks import (
    Facts,
    Message,
    Origin,
    RefusedError,
    SinkError,
    Site,
    UnreachableError,
    clock_body,
    detection_body,
    effort_body,
    heartbeat_body,
    message,
    sink_class,
    temperatures_c,
    thumbnail_body,
)
from orcawatch.store import Detection, Store
from orcawatch.webhook import WebhookSettings, WebhookSink

UTC = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)
ORIGIN = Origin("Haro Strait", "boot-1", 7)
DETECTION = Detection(
    id=17, source="card", start_s=10.0, end_s=11.5, start_utc=UTC, score=0.9400141, channels=(0, 2),
    channel_scores=(0.5, math.nan), best_channel=0, bundle="first-light", bundle_digest="ab" * 32, session=7,
    numbers={"windows": 3.0}, start_sample=480000, end_sample=552000, synchronised=True, hydrophones=("H-1", "H-2"),
    levels_db=(101.5, math.nan), level_unit="dB re 1 uPa",
)  # fmt: skip


def msg(row: int = 1, kind: str = "detection", **body: Any) -> Message:
    return Message(row, kind, message(ORIGIN, kind, body, UTC, 12.3456))


# Messages


def test_a_message_is_one_line_of_json_with_an_id_of_its_own() -> None:
    first, second = (message(ORIGIN, "detection", detection_body(DETECTION), UTC, 12.34567) for _ in range(2))
    assert b"\n" not in first and first != second
    content = json.loads(first)
    assert len(content["id"]) == 32 and content["id"] != json.loads(second)["id"]
    assert {name: content[name] for name in ("kind", "schema", "station", "boot", "session", "steady_s")} == {
        "kind": "detection", "schema": 1, "station": "Haro Strait", "boot": "boot-1", "session": 7, "steady_s": 12.346,
    }  # fmt: skip
    body = content["body"]
    assert body["channel_scores"] == [0.5, None] and body["levels_db"] == [101.5, None]
    assert datetime.fromisoformat(body["start_utc"]) == UTC and body["detection"] == 17
    assert body["start_sample"] == 480000 and body["hydrophones"] == ["H-1", "H-2"]


def test_numbers_of_numpy_and_infinities_pass() -> None:
    values = {"a": np.float32(0.5), "b": np.int64(3), "c": np.float64(math.inf), "d": True, "e": (None, UTC)}
    body = json.loads(message(ORIGIN, "x", values, UTC, 0.0))["body"]
    assert body == {"a": 0.5, "b": 3, "c": None, "d": True, "e": [None, UTC.isoformat()]} and body["d"] is True


def test_effort_is_what_came_since_the_last() -> None:
    before = {("recorded", ""): 100.0, ("gap", "device gone"): 5.0}
    after = {("recorded", ""): 690.0, ("gap", "device gone"): 10.0, ("gap", "overrun"): 0.5, ("off_duty", "duty"): 4.5}
    body = effort_body(UTC, UTC + timedelta(minutes=10), before, after)
    assert body["seconds"] == {"recorded": 590.0, "gap": 5.5, "off_duty": 4.5, "shed": 0}
    assert [(cause["cause"], cause["seconds"]) for cause in body["causes"]] == [
        ("device gone", 5.0), ("overrun", 0.5), ("duty", 4.5),
    ]  # fmt: skip
    assert sum(body["seconds"].values()) == 600


def test_heartbeat_clock_and_thumbnail() -> None:
    facts = Facts(uptime_s=60.04, disk_free_mb=1234.56, levels_db=(99.99, math.nan), counters={"detections": 3})
    body = json.loads(message(ORIGIN, "heartbeat", heartbeat_body(facts, {"far": Depth(2, 300, "t", 1, 5)}), UTC, 0.0))
    assert body["body"]["outbox"] == {
        "far": {"messages": 2, "bytes": 300, "oldest_utc": "t", "parked": 1, "dropped": 5}
    }
    assert body["body"]["levels_db"] == [100.0, None] and body["body"]["disk_free_mb"] == 1234.6
    assert clock_body(ClockChange(5, UTC, 3600.0, False, True), 12.5)["jump_s"] == 3600.0
    thumb = thumbnail_body(DETECTION, b"\xff\xd8picture")
    assert thumb["detection"] == 17 and thumb["numbers"] == {"windows": 3.0} and thumb["image"] == "/9hwaWN0dXJl"


def test_temperatures_are_those_that_can_be_read(tmp_path: Path) -> None:
    for number, (kind, value) in enumerate([("cpu", "48123"), ("cpu", "50000"), ("off", "not now")]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{value}\n")
    assert temperatures_c(tmp_path) == {"cpu": 48.123, "cpu 1": 50.0}
    assert temperatures_c(tmp_path / "none") == {}


# The door


def test_our_sinks_come_through_the_entry_point() -> None:
    assert sink_class("jsonl") is LinesSink and sink_class("webhook") is WebhookSink
    with pytest.raises(ConfigError, match="one of jsonl, mqtt, webhook, not 'mqqt'; did you mean mqtt"):
        sink_class("mqqt")


THIRD_PARTY = '''
from dataclasses import dataclass
from pathlib import Path
from orcawatch.config import SinkSettings
from orcawatch.keys import path, whole
from orcawatch.sinks import UnreachableError

@dataclass(frozen=True)
class NotebookSettings(SinkSettings):
    """A notebook."""
    book: Path | None = path(None, "The book.", "none")
    pages: int = whole(10, 1, 100, "Pages.")

class Notebook:
    Settings = NotebookSettings
    overhead_bytes = 2

    def __init__(self, settings, site):
        self.settings, self.site = settings, site

    def open(self):
        if not self.settings.book.parent.is_dir():
            raise UnreachableError("no shelf")

    def send(self, message):
        with self.settings.book.open("ab") as book:
            book.write(message.payload + b"\\n")

    def close(self):
        pass
'''


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package of somebody else, with a sink."""
    place = tmp_path / "site"
    info = place / "field_notebook-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "field_notebook.py").write_text("from __future__ import annotations\n" + THIRD_PARTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: field-notebook\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orcawatch.sinks]\nnotebook = field_notebook:Notebook\n")
    monkeypatch.syspath_prepend(str(place))


def test_a_sink_of_somebody_else_comes_through_the_same_door(tmp_path: Path, notebook: None) -> None:
    file = tmp_path / "orcawatch.yaml"
    text = "station: north\noutput: out\nsinks:\n- {kind: notebook, book: notes/book.txt, send: [detection, effort]}\n"
    file.write_text(text + "- {kind: jsonl, name: log}\n")
    settings = load_settings(file)
    with Store(settings.output / "detections.sqlite") as store:
        with open_outbox(store, settings, Clocks(), 7) as outbox:
            for kind in ("detection", "heartbeat", "effort"):
                with store.transaction() as connection:
                    outbox.post(connection, kind, {"kind": kind})
            (tmp_path / "notes").mkdir()
            deadline = time.monotonic() + 20
            while outbox.depths()["notebook"].messages and time.monotonic() < deadline:
                time.sleep(0.05)
        assert outbox.depths() == {"notebook": Depth(), "log": Depth()}
    found = [json.loads(line)["kind"] for line in (tmp_path / "notes" / "book.txt").read_text().splitlines()]
    assert sorted(found) == ["detection", "effort"]
    (lines,) = (tmp_path / "out" / "messages").iterdir()
    assert len(lines.read_text().splitlines()) == 3


def test_keys_of_a_sink_are_checked_with_the_rest(tmp_path: Path, notebook: None) -> None:
    file = tmp_path / "orcawatch.yaml"
    file.write_text(
        "sinks:\n- {kind: notebook, pages: 1000, colour: red}\n- {kind: webhok}\n- {kind: webhook, url: 'ftp://x'}\n"
        "- {kind: mqtt, name: a, password_file: x, prefix: 'a/#'}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    for text in (
        "sinks[0].pages must be a whole number from 1 to 100, not 1000",
        "sinks[0].colour is no key",
        "did you mean webhook?",
        "sinks[2].url must begin with http:// or https:// and name a server, not 'ftp://x'",
        "sinks[3].host must name the broker",
        "sinks[3].prefix must be the beginning of a topic, without + and #",
        "sinks[3].password_file needs sinks[3].username",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/öre", "http://h/a b", "http://hö/", "http://h/\x01"])
def test_an_address_that_no_request_can_hold_is_refused(url: str) -> None:
    """Each message would break the sink, and be parked."""
    with pytest.raises(ConfigError, match="must be written with %"):
        WebhookSink(WebhookSettings(url=url), Site("s", Path("out")))


def test_loading_the_configuration_loads_no_network_library(tmp_path: Path) -> None:
    code = (
        "import sys, orcawatch.config; orcawatch.config.sink_kinds(); "
        "print([name for name in ('paho', 'ssl', 'http.client', 'PIL', 'prometheus_client', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[]\n"


# JSON lines


def lines_sink(folder: Path, now: datetime = UTC, **changes: Any) -> LinesSink:
    return LinesSink(LinesSettings(folder=folder, **changes), Site("s", folder), lambda: now)


def written(folder: Path) -> list[bytes]:
    return [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines(keepends=True)]


def test_lines_are_kept_in_files_by_size_and_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = [msg(row, text="x" * 300) for row in range(12)]
    size = len(sent[0].payload)
    sink = lines_sink(tmp_path / "a", file_mb=3.5 * size / 1e6, keep_files=3)
    sink.open()
    for one in sent[:7]:
        sink.send(one)
    names = [file.name for file in sorted((tmp_path / "a").iterdir())]
    assert names == [f"messages-{number:06d}-20260701.jsonl" for number in (1, 2, 3)]
    sink.close()
    later = lines_sink(tmp_path / "a", UTC - timedelta(days=400), file_mb=3.5 * size / 1e6, keep_files=3)
    later.open()  # the clock was set back: the files still follow each other
    for one in sent[7:]:
        later.send(one)
    later.close()
    names = [file.name for file in sorted((tmp_path / "a").iterdir())]
    assert names == ["messages-000003-20260701.jsonl", *(f"messages-{n:06d}-20250527.jsonl" for n in (4, 5))]
    assert written(tmp_path / "a")[-5:] == [one.payload + b"\n" for one in sent[7:]]
    assert "messages-000001-20260701.jsonl is deleted: `keep_files` is 3" in caplog.text


@pytest.mark.parametrize("cut", [1, 50, 200])
def test_half_a_line_is_removed_and_written_again(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    first, second = msg(1), msg(2)
    sink = lines_sink(tmp_path)
    sink.open()
    sink.send(first)
    sink.send(second)
    sink.close()
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size - cut)  # as a power cut leaves it
    sink.open()
    sink.send(second)
    sink.close()
    assert written(tmp_path) == [first.payload + b"\n", second.payload + b"\n"]
    assert "ends in half a line" in caplog.text


def test_what_was_written_but_not_marked_is_not_written_twice(tmp_path: Path) -> None:
    first, second = msg(1), msg(2)
    for sent in ([first], [first, second], [second]):  # killed before marking, twice
        sink = lines_sink(tmp_path)
        sink.open()
        for one in sent:
            sink.send(one)
        sink.close()
    assert written(tmp_path) == [first.payload + b"\n", second.payload + b"\n"]


def test_a_new_file_that_is_still_empty_does_not_hide_the_last_line(tmp_path: Path) -> None:
    sink = lines_sink(tmp_path)
    sink.open()
    sink.send(msg(1))
    sink.send(second := msg(2))
    sink.close()
    (tmp_path / "messages-000002-20260702.jsonl").touch()  # killed right after it was begun
    sink = lines_sink(tmp_path, UTC + timedelta(days=1))
    sink.open()
    sink.send(second)
    sink.send(third := msg(3))
    sink.close()
    assert written(tmp_path)[1:] == [second.payload + b"\n", third.payload + b"\n"]


@pytest.mark.parts
def test_killed_at_any_moment_every_line_is_there_once(tmp_path: Path) -> None:
    """A program that sends 300 messages through the outbox is killed again and again until all are sent."""
    database, folder = tmp_path / "detections.sqlite", tmp_path / "lines"
    with Store(database) as store:
        box = Outbox(database, [Queue("far", lines_sink(folder), ("detection",))], ORIGIN, Clocks())
        with store.transaction() as connection:
            for number in range(300):
                box.post(connection, "detection", {"number": number})
    rng, kills = np.random.default_rng(1), 0
    while True:
        child = subprocess.Popen([sys.executable, "-c", SENDER, str(database), str(folder)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"begun\n"
        time.sleep(rng.uniform(0, 0.05))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        child.stdout.close()
        if child.wait() == 0:
            break
        kills += 1
    numbers = [json.loads(line)["body"]["number"] for line in written(folder)]
    assert numbers == list(range(300)) and kills > 0


SENDER = """
import sys
from pathlib import Path
from orcawatch.clock import Clocks
from orcawatch.lines import LinesSettings, LinesSink
from orcawatch.outbox import Queue, Sender
from orcawatch.sinks import Site
database, folder = map(Path, sys.argv[1:])
sink = LinesSink(LinesSettings(folder=folder, file_mb=0.02), Site("s", folder))
sender = Sender(database, Queue("far", sink, ("detection",)), Clocks())
print("begun", flush=True)
while sender.step() == 0:
    pass
"""


def test_a_full_disk_is_an_error_and_the_file_stays_whole(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\nfrom orcawatch.lines import LinesSettings, LinesSink\n"
        "from orcawatch.sinks import Message, Site\nfolder = Path(sys.argv[1])\n"
        "sink = LinesSink(LinesSettings(folder=folder), Site('s', folder))\n"
        "for row in range(4):\n    sink.open()\n    try:\n        sink.send(Message(row, 'x', b'%d' % row * 300))\n"
        "    except OSError as fault:\n        print(fault)\n        sink.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[Errno 27] File too large"]
    lines_sink(tmp_path).open()
    assert written(tmp_path) == [b"%d" % row * 300 + b"\n" for row in range(3)]


def test_a_disk_that_is_nearly_full_is_left_to_the_log(tmp_path: Path) -> None:
    free_mb = shutil.disk_usage(tmp_path).free / 1e6
    with pytest.raises(UnreachableError, match=r"less than \S+ MB free \(`min_free_mb`\); delete what is not"):
        lines_sink(tmp_path, min_free_mb=round(free_mb + 1e6)).open()
    assert written(tmp_path) == []
    lines_sink(tmp_path, min_free_mb=0).open()


# Webhook


class Server(ThreadingHTTPServer):
    """Answers as the script says, then 200; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[Mapping[str, str], bytes]] = []
        self.script: list[tuple[int, Mapping[str, str]] | str] = []
        self.peers: set[Any] = set()
        self.let_go = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.peers.add(self.client_address)
        answer = server.script.pop(0) if server.script else (200, {})
        if answer == "hang":
            server.let_go.wait(20)
        if isinstance(answer, str):
            self.close_connection = True
            return
        status, headers = answer
        server.got.append((dict(self.headers), body)) if status == 200 else None
        text = b"not so\nfast" if status != 200 else b""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = headers.get("Connection") == "close"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(trust: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server() as server:
        if trust is not None:
            server.socket = trust.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.let_go.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def webhook(server: Server, **changes: Any) -> WebhookSink:
    given = {"url": f"http://127.0.0.1:{server.port}/in?key=secret", "timeout_s": 1, **changes}
    return WebhookSink(WebhookSettings(**given), Site("s", Path("out")))


def test_webhook_posts_json_over_one_connection(server: Server, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("# for the test\nAuthorization: Bearer abc\n\nX-Site:  north \n")
    sink = webhook(server, headers_file=headers)
    sent = [msg(row) for row in range(3)]
    for one in sent:
        sink.open()
        sink.send(one)
    headers.write_text("Authorization: Bearer new\n")
    sink.send(sent[0])
    sink.close()
    assert [body for _, body in server.got] == [one.payload for one in [*sent, sent[0]]] and len(server.peers) == 1
    first = server.got[0][0]
    assert first["Content-Type"] == "application/json" and first["Idempotency-Key"] == sent[0].id
    assert first["Authorization"] == "Bearer abc" and first["X-Site"] == "north"
    assert server.got[-1][0]["Authorization"] == "Bearer new"


@pytest.mark.parametrize("status", [301, 401, 403, 404, 408, 425, 429, 500, 502, 503])
def test_webhook_tries_again_what_is_not_the_messages_fault(server: Server, status: int) -> None:
    server.script = [(status, {})]
    with pytest.raises(SinkError, match=rf"http://127.0.0.1:{server.port}/in answers {status} not so fast") as caught:
        webhook(server).send(msg())
    assert caught.value.after_s is None and "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422])
def test_webhook_gives_up_a_message_that_is_refused(server: Server, status: int) -> None:
    server.script = [(status, {})]
    with pytest.raises(RefusedError, match=f"answers {status}"):
        webhook(server).send(msg())


def test_webhook_waits_as_long_as_it_is_asked_to(server: Server) -> None:
    date = (datetime.now(timezone.utc) + timedelta(seconds=100)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    server.script = [(503, {"Retry-After": "120"}), (429, {"Retry-After": date}), (503, {"Retry-After": "soon"})]
    waits = []
    for _ in range(3):
        with pytest.raises(SinkError) as caught:
            webhook(server).send(msg())
        waits.append(caught.value.after_s)
    assert waits[0] == 120 and 90 < waits[1] <= 100 and waits[2] is None


def test_webhook_that_hangs_or_hangs_up_is_no_acknowledgement(server: Server) -> None:
    server.script = ["hang", "drop"]
    sink = webhook(server)
    with pytest.raises(SinkError, match="does not answer: timed out"):
        sink.send(msg())
    with pytest.raises(SinkError, match="does not answer: Remote end closed connection"):
        sink.send(msg())
    sink.send(msg())
    assert len(server.got) == 1


def test_webhook_connects_anew_where_the_server_ended_an_idle_connection(server: Server) -> None:
    sink = webhook(server)
    sink.send(msg())
    server.script = ["drop"]
    sink.send(msg())
    server.script = [(200, {"Connection": "close"})]
    sink.send(msg())
    sink.send(msg())
    assert len(server.got) == 4 and len(server.peers) == 3


def test_webhook_says_what_is_in_the_way(server: Server, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(UnreachableError, match=r"cannot be reached: .*refused; check `url`"):
            webhook(server, url=url).send(msg())
    with pytest.raises(UnreachableError, match=r"headers_file .*none cannot be read"):
        webhook(server, headers_file=tmp_path / "none").send(msg())
    (tmp_path / "bad").write_text("A: b\nsecret\n")
    with pytest.raises(UnreachableError, match=r"line 2 of headers_file .* must be `Name: value`") as caught:
        webhook(server, headers_file=tmp_path / "bad").send(msg())
    assert "secret" not in str(caught.value)
    for url in ("ftp://x", "http://", "http://x:99999999", "x", "http://user:pw@x"):
        with pytest.raises(ConfigError, match="url must") as fault:
            webhook(server, url=url)
        assert "pw" not in str(fault.value)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority of our own, and a server's key and certificate for `localhost`."""
    folder = tmp_path_factory.mktemp("certificates")
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2"
    parts = "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    for name in ("server", "other"):
        command = f"{made} -keyout {name}.key -out {name}.pem -subj /CN={name} {parts}".split()
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed: apt-get install openssl")
    return folder


def test_webhook_checks_the_servers_certificate(certificates: Path) -> None:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with serving(trust) as server:
        url = f"https://localhost:{server.port}/in"
        webhook(server, url=url, ca_file=certificates / "server.pem").send(msg())
        for ca_file in (certificates / "other.pem", None):
            with pytest.raises(UnreachableError, match=r"CERTIFICATE_VERIFY_FAILED.*`ca_file`"):
                webhook(server, url=url, ca_file=ca_file).send(msg())
        with pytest.raises(UnreachableError, match=r"cannot be reached: .*No such file"):
            webhook(server, url=url, ca_file=certificates / "none.pem").send(msg())
    assert len(server.got) == 1


@pytest.mark.parts
def test_webhook_through_the_outbox_arrives_once_in_order(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A far side that answers 500, hangs up, asks for a pause, refuses one message: the others arrive, in order."""
    caplog.set_level(logging.INFO)
    with Store(tmp_path / "detections.sqlite") as store:
        queue = Queue("far", webhook(server), ("detection",))
        box = Outbox(store.path, [queue], ORIGIN, Clocks())
        with store.transaction() as connection:
            for number in range(20):
                box.post(connection, "detection", {"number": number})
        server.script = [(200, {}), (500, {}), "drop", (503, {"Retry-After": "1"}), (400, {})]
        sender = Sender(store.path, queue, Clocks(), jitter=lambda: 0.0)
        while box.depths()["far"].messages:
            time.sleep(sender.step())
        sender.close()
        assert box.depths()["far"].parked == 1
    numbers = [json.loads(body)["body"]["number"] for _, body in server.got]
    assert numbers == [0, *range(2, 20)]
    assert "answers 500" in caplog.text and "parked: http" in caplog.text
