"""The MQTT sink against a real broker: Debian's mosquitto."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np
import pytest

from orcawatch.clock import Clocks
from orcawatch.mqtt import MqttSettings, MqttSink
from orcawatch.outbox import Outbox, Queue, Sender
from orcawatch.sinks import Message, Origin, RefusedError, SinkError, Site, UnreachableError, message
from orcawatch.store import Store

pytestmark = pytest.mark.parts

ALL = ("detection", "thumbnail", "effort", "heartbeat", "clock")
RANKS = {"detection": 0, "clock": 0, "effort": 1, "heartbeat": 2, "thumbnail": 3}
ORIGIN = Origin("north", "boot-1", 7)
START_UTC = datetime(2026, 7, 1, tzinfo=timezone.utc)
PATIENCE_S = 30.0


def until(reached: Callable[[], object], what: str) -> None:
    """Wait for a condition of another process."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline_s, f"no {what} within {PATIENCE_S:g} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


class Broker:
    """A mosquitto of our own; it keeps sessions in its folder."""

    def __init__(self, folder: Path, *more: str) -> None:
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("mosquitto is not installed: apt-get install mosquitto")
        self.port = free_port()
        folder.mkdir(exist_ok=True)
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {folder}/"]
        lines += ["autosave_interval 1", "autosave_on_changes true", "max_queued_messages 0", "log_type none"]
        lines += ["user root"] if os.geteuid() == 0 else []
        lines += more or ("allow_anonymous true",)
        self._command = [program, "-c", str(folder / "mosquitto.conf")]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until(self._answers, "broker")

    def end(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.end()


class Receiver:
    """A subscriber with a session that the broker keeps while it is away; notes what arrives, doubles too."""

    def __init__(self, port: int, name: str = "receiver") -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.got: list[tuple[str, bytes, bool]] = []
        self._changed = Condition()
        self._subscribed = False
        self._client = Client(CallbackAPIVersion.VERSION2, name, clean_session=False)
        self._client.on_connect = lambda client, *_: client.subscribe("orcawatch/#", qos=1)
        self._client.on_subscribe = lambda *_: self._set_subscribed()
        self._client.on_message = lambda client, data, found: self._take(found)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)

    def __enter__(self) -> Receiver:
        self._client.loop_start()
        self.wait(lambda: self._subscribed)
        return self

    def __exit__(self, *fault: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait(self, reached: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(reached, 60), f"{len(self.got)} messages arrived, then none for long"

    def of_station(self) -> list[Any]:
        """The messages, decoded, without the status."""
        return [json.loads(body) for topic, body, _ in self.got if not topic.endswith("/status")]

    def statuses(self) -> list[bytes]:
        return [body for topic, body, _ in self.got if topic.endswith("/status")]

    def _set_subscribed(self) -> None:
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _take(self, found: Any) -> None:
        with self._changed:
            self.got.append((found.topic, found.payload, found.retain))
            self._changed.notify_all()


def sink_of(port: int, station: str = "north", **changes: Any) -> MqttSink:
    given = {"kind": "mqtt", "host": "127.0.0.1", "port": port, "timeout_s": 5, **changes}
    return MqttSink(MqttSettings(**given), Site(station, Path("out")))


def msg(row: int = 1, kind: str = "detection", **body: Any) -> Message:
    return Message(row, kind, message(ORIGIN, kind, body, START_UTC, 1.0))


class Scripted(Clocks):
    """Times of our choice for what is put into the outbox."""

    boot = "boot-1"

    def __init__(self) -> None:
        self.now_s = 0.0

    def steady_s(self) -> float:
        return self.now_s

    def utc(self) -> datetime:
        return START_UTC + timedelta(seconds=self.now_s)


def filled(path: Path, sink: Any, days: float, thumbnail_bytes: int) -> list[tuple[int, str]]:
    """Put a heartbeat each ten minutes, an effort each hour and 20 detections with thumbnails a day; (number, kind)."""
    clocks = Scripted()
    posted: list[tuple[int, str]] = []
    with Store(path) as store:
        box = Outbox(path, [Queue("mqtt", sink, ALL)], ORIGIN, clocks)
        for day in range(round(days * 24)):
            with store.transaction() as connection:
                for tenth in range(6):
                    due = ["heartbeat", *(["effort"] if tenth == 5 else [])]
                    due += ["detection", "thumbnail"] if (day * 6 + tenth) % 36 in (5, 6, 7, 20, 30) else []
                    clocks.now_s += 600
                    for kind in due:
                        size = thumbnail_bytes if kind == "thumbnail" else 400
                        box.post(connection, kind, {"number": len(posted), "text": "x" * size})
                        posted.append((len(posted), kind))
    return posted


def in_order(posted: Sequence[tuple[int, str]]) -> list[int]:
    """The numbers as they are to arrive: by priority, the oldest first."""
    return [number for number, _ in sorted(posted, key=lambda item: (RANKS[item[1]], item[0]))]


def once(found: Sequence[Any]) -> list[Any]:
    """What is left where a receiver drops what it has already, by id."""
    return list({content["id"]: content for content in found}.values())


def drained(sender: Sender) -> None:
    while (wait_s := sender.step()) == 0:
        pass
    assert wait_s == 1.0


def test_topics_payloads_and_status(broker: Broker) -> None:
    with Receiver(broker.port) as receiver:
        sink = sink_of(broker.port, "Haro Strait/1 #+")
        sent = [msg(1), msg(2, "heartbeat"), msg(3, "thumbnail")]
        for one in sent:
            sink.open()
            sink.send(one)
        receiver.wait(lambda: len(receiver.got) == 4)
        sink.close()
        receiver.wait(lambda: len(receiver.got) == 5)
    kinds = [topic.rpartition("/")[2] for topic, _, _ in receiver.got]
    assert kinds == ["status", "detection", "heartbeat", "thumbnail", "status"]
    assert {topic.rpartition("/")[0] for topic, _, _ in receiver.got} == {"orcawatch/Haro_Strait_1_"}
    assert [body for _, body, _ in receiver.got] == [b"online", *(one.payload for one in sent), b"offline"]
    with Receiver(broker.port, "late") as late:  # the status is kept for those who come later, messages are not
        late.wait(lambda: late.got)
        assert late.got == [("orcawatch/Haro_Strait_1_/status", b"offline", True)]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_broker_says_so_when_a_station_dies(broker: Broker, version: str) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom orcawatch.mqtt import MqttSettings, MqttSink\n"
        "from orcawatch.sinks import Site\n"
        "sink = MqttSink(MqttSettings(host='127.0.0.1', port=int(sys.argv[1]), version=sys.argv[2]), Site('n', Path()))\n"
        "sink.open()\nprint('open', flush=True)\ntime.sleep(60)\n"
    )
    with Receiver(broker.port) as receiver:
        command = [sys.executable, "-c", code, str(broker.port), version]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"open\n"
            child.kill()
        receiver.wait(lambda: receiver.statuses() == [b"online", b"offline"])


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_new_connection_ends_one_that_is_half_dead(broker: Broker, version: str) -> None:
    with Receiver(broker.port) as receiver:
        first, second = sink_of(broker.port, version=version), sink_of(broker.port, version=version)
        first.open()
        second.open()
        second.send(msg())
        receiver.wait(lambda: len(receiver.of_station()) == 1)
        with pytest.raises(SinkError, match="ended the connection"):
            first.send(msg())
        first.close()
        second.open()
        second.send(msg())
        receiver.wait(lambda: len(receiver.of_station()) == 2)
        assert receiver.statuses()[-1] == b"online"
        second.close()


def test_an_outage_of_30_days_is_replayed_once_in_order(tmp_path: Path) -> None:
    """4,320 heartbeats, 720 efforts, 600 detections, 600 thumbnails of 20 kB wait; then the broker comes up."""
    broker = Broker(tmp_path / "broker")
    database = tmp_path / "detections.sqlite"
    sink = sink_of(broker.port)
    posted = filled(database, sink, 30, 27_000)
    assert Counter(kind for _, kind in posted) == {"heartbeat": 4320, "effort": 720, "detection": 600, "thumbnail": 600}
    sender = Sender(database, Queue("mqtt", sink, ALL), Clocks(), jitter=lambda: 0.0)
    assert sender.step() > 0  # the outage
    broker.start()
    try:
        with Receiver(broker.port) as receiver:
            time.sleep(sender.step())
            began_s = time.monotonic()
            drained(sender)
            logging.info("%d messages in %.1f s", len(posted), time.monotonic() - began_s)
            receiver.wait(lambda: len(receiver.of_station()) >= len(posted))
            sender.close()
            receiver.wait(lambda: receiver.statuses()[-1:] == [b"offline"])  # nothing comes after it
    finally:
        broker.end()
    numbers = [content["body"]["number"] for content in receiver.of_station()]
    assert numbers == in_order(posted)
    assert len({content["id"] for content in receiver.of_station()}) == len(posted)


SENDER = """
import sys, time
from pathlib import Path
from orcawatch.clock import Clocks
from orcawatch.mqtt import MqttSettings, MqttSink
from orcawatch.outbox import Queue, Sender
from orcawatch.sinks import Site
database, port = Path(sys.argv[1]), int(sys.argv[2])
sink = MqttSink(MqttSettings(host="127.0.0.1", port=port, timeout_s=5), Site("north", Path()))
sender = Sender(database, Queue("mqtt", sink, ("detection", "thumbnail", "effort", "heartbeat")), Clocks())
print("begun", flush=True)
while (wait_s := sender.step()) != 1.0:
    time.sleep(min(wait_s, 0.2))
sender.close()
"""


def numbers_of(found: Sequence[Any]) -> set[int]:
    """The numbers of messages."""
    return {content["body"]["number"] for content in found}


def sent_about(database: Path, moments: Sequence[datetime]) -> set[int]:
    """Numbers of the messages that were acknowledged within 50 ms of one of these moments."""
    with Store(database) as store, store.transaction() as connection:
        rows = connection.execute("SELECT sent_utc, payload FROM outbox").fetchall()
    near = timedelta(milliseconds=50)
    return {
        json.loads(payload)["body"]["number"]
        for sent_utc, payload in rows
        if any(abs(datetime.fromisoformat(sent_utc) - moment) <= near for moment in moments)
    }


@pytest.mark.parametrize("broker_dies_by", [signal.SIGTERM, signal.SIGKILL])
def test_sender_and_broker_killed_in_the_middle(tmp_path: Path, broker_dies_by: int) -> None:
    """The sender is killed up to 15 times and the broker 3 times during the replay of 5 days; the receiver drops doubles.

    A broker that is killed may lose what it has just acknowledged: this one answers, then saves. Of all others none is.
    """
    broker = Broker(tmp_path / "broker")
    database = tmp_path / "detections.sqlite"
    posted = filled(database, sink_of(broker.port), 5, 5000)
    broker.start()
    rng, kills, ends = np.random.default_rng(2), 0, list[datetime]()
    command = [sys.executable, "-c", SENDER, str(database), str(broker.port)]
    try:
        with Receiver(broker.port) as receiver:
            while True:
                child = subprocess.Popen(command, stdout=subprocess.PIPE)
                assert child.stdout is not None and child.stdout.readline() == b"begun\n"
                if kills < 15:
                    time.sleep(rng.uniform(0.05, 0.2))
                    if kills % 5 == 2:
                        ends.append(datetime.now(timezone.utc))
                        broker.end(broker_dies_by)
                        broker.start()
                    child.kill()
                child.stdout.close()
                if child.wait() == 0:
                    break
                kills += 1
            doubtful = sent_about(database, ends) if broker_dies_by == signal.SIGKILL else set()
            needed = {number for number, _ in posted} - doubtful
            receiver.wait(lambda: numbers_of(receiver.of_station()) >= needed)
    finally:
        broker.end()
    with Store(database) as store, store.transaction() as connection:
        (twice,) = connection.execute("SELECT count(*) FROM outbox WHERE tries > 1").fetchone()
    found = receiver.of_station()
    doubles = len(found) - len(once(found))
    print(
        f"{len(posted)} messages; sender killed {kills} times, broker 3 times by {broker_dies_by!r}: {doubles} doubles;"
    )
    print(f"the sender tried {twice} messages again, what is more than that the broker made of its saved session")
    assert kills > 10 and twice <= kills + 3  # a quick machine has sent all before the last kill
    missing = {number for number, _ in posted} - numbers_of(found)
    assert missing <= doubtful and len(missing) <= len(ends)
    assert [content["body"]["number"] for content in once(found)] == [n for n in in_order(posted) if n not in missing]


def test_the_budget_holds_at_the_broker(broker: Broker, tmp_path: Path) -> None:
    """15 hours of simulated time with 10 kB an hour: detections first, thumbnails with what is left."""
    database = tmp_path / "detections.sqlite"
    sink = sink_of(broker.port)
    posted = filled(database, sink, 1, 5000)
    clocks = Scripted()
    sender = Sender(database, Queue("mqtt", sink, ALL, bytes_per_hour=10_000), clocks)
    hours = []
    with Receiver(broker.port) as receiver:
        for hour in range(1, 16):
            while clocks.now_s < hour * 3600:
                clocks.now_s += sender.step()
            with_overhead = sum(len(body) + 120 for topic, body, _ in receiver.got if not topic.endswith("status"))
            hours.append(with_overhead)
        sender.close()
        receiver.wait(lambda: receiver.statuses()[-1:] == [b"offline"])
        found = receiver.of_station()
    assert [content["body"]["number"] for content in found] == in_order(posted)[: len(found)]
    assert all(sent <= 10_000 * (hour + 2) for hour, sent in enumerate(hours)) and hours[-1] > 0.95 * 10_000 * 15


def test_connections_leave_nothing_behind(broker: Broker) -> None:
    """Handles, threads and memory cycles: a year has many connections, and nobody need collect garbage for them."""
    sinks = [sink_of(broker.port), sink_of(free_port())]

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def connected() -> None:
        sinks[0].open()
        sinks[0].close()
        with pytest.raises(UnreachableError):
            sinks[1].open()

    connected()
    before = held()
    gc.disable()
    try:
        for _ in range(20):
            connected()
        assert held() == before
    finally:
        gc.enable()


# Getting in


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority of our own, a broker's certificate that it signed, and another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    commands = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=ca",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout other.key -out other.pem -subj /CN=other",
        "req -newkey rsa:2048 -nodes -keyout broker.key -out broker.csr -subj /CN=broker",
        "x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out broker.pem -extfile names",
    )
    try:
        for command in commands:
            subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: apt-get install openssl")
    return folder


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_encryption_and_password(tmp_path: Path, certificates: Path, version: str) -> None:
    users = tmp_path / "users"
    made = subprocess.run(["mosquitto_passwd", "-c", "-b", str(users), "buoy", "s3cret"], capture_output=True)
    assert made.returncode == 0, made.stderr
    lines = [f"{name} {certificates / file}" for name, file in (("certfile", "broker.pem"), ("keyfile", "broker.key"))]
    broker = Broker(tmp_path / "broker", *lines, "allow_anonymous false", f"password_file {users}")
    broker.start()
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("s3cret\n")
    wrong.write_text("guess\n")
    ca, other = certificates / "ca.pem", certificates / "other.pem"
    user: dict[str, Any] = {"tls": True, "ca_file": ca, "username": "buoy", "password_file": right, "version": version}
    try:
        sink = sink_of(broker.port, **user)
        sink.open()
        sink.send(msg())
        sink.close()
        name = f"MQTT broker 127.0.0.1:{broker.port} "
        for changes, text in (
            ({"password_file": wrong}, r"does not let us in: .*(Not authorized|user name).*; check `username` and"),
            ({"username": None, "password_file": None}, r"does not let us in: .*check `username`"),
            ({"ca_file": other}, r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED.*; check `ca_file`"),
            ({"ca_file": None}, r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED.*; check `ca_file`"),
            ({"tls": False, "ca_file": None}, r"(cannot be reached|ended the connection|does not)"),
        ):
            with pytest.raises(UnreachableError, match=re.escape(name) + text) as caught:
                sink_of(broker.port, **{**user, **changes}).open()
            assert "guess" not in str(caught.value) and "s3cret" not in str(caught.value)
        for changes in ({"password_file": tmp_path / "none"}, {"ca_file": tmp_path / "none"}):
            with pytest.raises(UnreachableError, match=r"No such file.*check `password_file` and `ca_file`"):
                sink_of(broker.port, **{**user, **changes}).open()
    finally:
        broker.end()


def test_a_broker_that_is_not_there_or_does_not_answer() -> None:
    port = free_port()
    with pytest.raises(UnreachableError, match=f"MQTT broker 127.0.0.1:{port} cannot be reached: .*refused"):
        sink_of(port).open()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", port))
        deaf.listen()
        with pytest.raises(UnreachableError, match="does not answer"):
            sink_of(port, timeout_s=1).open()


def test_a_broker_that_hangs_acknowledges_nothing(broker: Broker) -> None:
    sink = sink_of(broker.port, timeout_s=1)
    sink.open()
    process = broker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(SinkError, match="does not acknowledge"):
        sink.send(msg())
    process.send_signal(signal.SIGCONT)
    sink.close()
    sink.open()
    sink.send(msg())
    sink.close()


def test_a_lost_connection_is_noticed_while_nothing_is_sent(broker: Broker) -> None:
    sink = sink_of(broker.port)
    sink.open()
    link = sink._link
    assert link is not None
    broker.end(signal.SIGKILL)
    until(lambda: not link.up, "notice")
    with pytest.raises(UnreachableError, match="refused"):
        sink.open()
    broker.start()
    with Receiver(broker.port) as receiver:
        sink.open()
        receiver.wait(lambda: receiver.statuses() == [b"online"])
        sink.close()


def test_what_the_broker_rejects_is_no_acknowledgement(tmp_path: Path) -> None:
    rights = tmp_path / "rights"
    rights.write_text("topic write orcawatch/north/status\ntopic write orcawatch/north/detection\n")
    broker = Broker(tmp_path / "broker", "allow_anonymous true", f"acl_file {rights}")
    broker.start()
    try:
        sink = sink_of(broker.port)
        sink.open()
        sink.send(msg())
        with pytest.raises(
            SinkError, match="rejects orcawatch/north/effort: Not authorized; check its limits"
        ) as caught:
            sink.send(msg(2, "effort"))
        assert not isinstance(caught.value, RefusedError)
        sink.close()
    finally:
        broker.end()


def test_a_message_that_is_too_large_for_the_broker_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that tells its limit is not sent the message; one that hangs up is sent the others first."""
    for name, limit, parked in (("told", "max_packet_size 2000", 1), ("untold", "message_size_limit 2000", 0)):
        broker, clocks = Broker(tmp_path / name, "allow_anonymous true", limit), Scripted()
        broker.start()
        queue, database = Queue("mqtt", sink_of(broker.port), ALL), tmp_path / f"{name}.sqlite"
        with Store(database) as store:
            box = Outbox(database, [queue], ORIGIN, clocks)
            for size in (3000, 10, 20):
                with store.transaction() as connection:
                    box.post(connection, "detection", {"text": "x" * size})
            sender = Sender(database, queue, clocks)
            while clocks.now_s < 7200:
                clocks.now_s += sender.step() or 0.001
            sender.close()
            depth = box.depths()["mqtt"]
            assert (depth.parked, depth.messages) == (parked, 1 - parked)
        broker.end()
    assert "takes at most 2000 bytes at once, not 3" in caplog.text and "it goes last from now on" in caplog.text
