from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch import outbox
from orcawatch.config import SinkSettings
from orcawatch.errors import OrcawatchError
from orcawatch.outbox import Budget, Outbox, Queue, Sender, connected, next_message
from orcawatch.recovery import rescue
from orcawatch.sinks import Message, Origin, RefusedError, SinkError, UnreachableError
from orcawatch.store import Detection, Store
from orcawatch.turn import LOCK, NOBODY, nobody_sends, take_turn

ALL = ("detection", "thumbnail", "effort", "heartbeat", "clock")
ORIGIN = Origin("north", "boot-1", 7)
START_UTC = datetime(2026, 7, 1, tzinfo=timezone.utc)
DETECTION = Detection(None, "x", 0.0, 1.0, None, 0.9, (0,), (0.9,), 0, "b", "c")


class FakeClocks:
    """Time that passes when it is told to."""

    boot = "boot-1"

    def __init__(self) -> None:
        self.now_s = 100.0
        self.offset = timedelta()

    def steady_s(self) -> float:
        return self.now_s

    def utc(self) -> datetime:
        return START_UTC + timedelta(seconds=self.now_s) + self.offset


class FakeSink:
    """Takes messages while `faults` is empty; else raises what stands first in it."""

    Settings = SinkSettings
    overhead_bytes = 0

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.faults: list[BaseException] = []
        self.away: Callable[[], BaseException | None] = lambda: None  # asked at each open()
        self.closed = 0

    def open(self) -> None:
        if (fault := self.away()) is not None:
            raise fault

    def send(self, message: Message) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.got.append(message)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "detections.sqlite") as store:
        yield store


@pytest.fixture
def clocks() -> FakeClocks:
    return FakeClocks()


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


def queue_of(sink: Any, **changes: Any) -> Queue:
    return replace(Queue("far", sink, ALL), **changes)


def made(store: Store, clocks: FakeClocks, *queues: Queue) -> tuple[Outbox, Sender]:
    """An outbox, and the sender of its first queue, which the tests step themselves."""
    return Outbox(store.path, queues, ORIGIN, clocks), Sender(store.path, queues[0], clocks, jitter=lambda: 1.0)


def post(outbox: Outbox, store: Store, *kinds: str, body: Any = None) -> None:
    for kind in kinds:
        with store.transaction() as connection:
            outbox.post(connection, kind, body or {})


def stepped(sender: Sender, clocks: FakeClocks, seconds: float) -> int:
    """Let simulated time pass; how many steps that took."""
    end_s, steps = clocks.now_s + seconds, 0
    while clocks.now_s < end_s:
        clocks.now_s = min(end_s, clocks.now_s + sender.step())
        steps += 1
    return steps


def kinds(sink: FakeSink) -> list[str]:
    return [message.kind for message in sink.got]


def test_the_highest_priority_goes_first_and_within_it_the_oldest(
    store: Store, clocks: FakeClocks, sink: FakeSink
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "thumbnail", "heartbeat", "detection", "effort", "clock", "thumbnail", "detection")
    stepped(sender, clocks, 2)
    assert kinds(sink) == ["detection", "clock", "detection", "effort", "heartbeat", "thumbnail", "thumbnail"]
    rows = [message.row for message in sink.got]
    assert rows[:3] == sorted(rows[:3]) and rows[-2] < rows[-1] and len(set(rows)) == 7
    sender.close()


def test_a_message_shares_the_fate_of_its_detection(store: Store, clocks: FakeClocks, sink: FakeSink) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    with pytest.raises(RuntimeError), store.transaction() as connection:
        box.post(connection, "detection", {"detection": 1})
        raise RuntimeError("power cut")
    assert box.depths()["far"].messages == 0
    row = store.add(DETECTION, lambda connection, id: box.post(connection, "detection", {"detection": id}))
    assert box.depths()["far"].messages == 1
    stepped(sender, clocks, 2)
    (message,) = sink.got
    content = json.loads(message.payload)
    assert content["body"] == {"detection": row} and content["id"] == message.id
    assert (content["station"], content["boot"], content["session"]) == ("north", "boot-1", 7)
    assert datetime.fromisoformat(content["created_utc"]) == START_UTC + timedelta(seconds=100)
    sender.close()


def test_each_sink_is_sent_what_it_takes_under_one_id(store: Store, clocks: FakeClocks) -> None:
    near, far = FakeSink(), FakeSink()
    queues = (queue_of(near, name="near"), queue_of(far, kinds=("detection",)))
    box = Outbox(store.path, queues, ORIGIN, clocks)
    assert box.takes("thumbnail") and not Outbox(store.path, queues[1:], ORIGIN, clocks).takes("thumbnail")
    post(box, store, "detection", "heartbeat")
    for queue in queues:
        sender = Sender(store.path, queue, clocks)
        stepped(sender, clocks, 2)
        sender.close()
    assert kinds(near) == ["detection", "heartbeat"] and kinds(far) == ["detection"]
    assert near.got[0].id == far.got[0].id != near.got[1].id


@pytest.mark.parts
def test_an_outage_of_30_days_is_replayed_once_in_order(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    """4,320 heartbeats, 720 efforts, 600 detections and their thumbnails; the far side comes back after 30 days."""
    caplog.set_level(logging.INFO)
    box, sender = made(store, clocks, queue_of(sink))
    end_s = clocks.now_s + 30 * 86400
    tries = []
    sink.away = lambda: tries.append(1) or (UnreachableError("no network") if clocks.now_s < end_s else None)
    posted: list[tuple[int, str]] = []
    for tenth in range(30 * 144):
        due = ["heartbeat", *(["effort"] if tenth % 6 == 0 else [])]
        due += ["detection", "thumbnail"] if tenth % 36 in (5, 6, 7, 20, 30) else []
        with store.transaction() as connection:
            for kind in due:
                box.post(connection, kind, {"number": len(posted)})
                posted.append((len(posted), kind))
        stepped(sender, clocks, 600)
    assert not sink.got and box.depths()["far"].messages == len(posted) == 4320 + 720 + 600 + 600
    outages = [record for record in caplog.records if "no network" in record.message]
    assert 8000 < len(tries) < 9000 and len(outages) <= 30 * 24 + 1  # tried every 5 minutes, told once an hour
    stepped(sender, clocks, 301)
    got = [json.loads(message.payload) for message in sink.got]
    assert len({content["id"] for content in got}) == len(got) == len(posted)
    order = {"detection": 0, "effort": 1, "heartbeat": 2, "thumbnail": 3}
    expected = sorted(posted, key=lambda item: (order[item[1]], item[0]))
    assert [(content["body"]["number"], content["kind"]) for content in got] == expected
    assert caplog.records[-1].message == "sink far works again" and box.depths()["far"].messages == 0
    sender.close()


def test_waits_double_up_to_a_limit_with_jitter(store: Store, clocks: FakeClocks, sink: FakeSink) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection")
    sink.faults = [SinkError("busy") for _ in range(12)]
    waits = []
    while sink.faults:
        waits.append(sender.step())
        clocks.now_s += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert sink.closed == 12 and not sink.got
    assert sender.step() == 0 and sink.got[0].tries == 12
    early = Sender(store.path, queue_of(sink), clocks, jitter=lambda: 0.0)
    post(box, store, "detection")
    sink.faults = [SinkError("busy")]
    assert early.step() == 0.5
    assert early.step() == 0.5 and not sink.faults  # it does not try again before its time
    for one in (sender, early):
        one.close()


def test_a_connection_that_comes_back_while_nothing_waits_is_told(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    sink.away = lambda: UnreachableError("no network") if clocks.now_s < 2000 else None
    stepped(sender, clocks, 3000)
    assert [record.message for record in caplog.records] == [
        "sink far: no network; tried again in 1.0 s", "sink far works again",
    ]  # fmt: skip
    post(box, store, "detection")
    sink.faults = [SinkError("busy")]
    assert sender.step() == 1.0  # the waits begin anew
    sender.close()


def test_the_far_side_may_ask_for_a_longer_wait(store: Store, clocks: FakeClocks, sink: FakeSink) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection")
    sink.faults = [SinkError("busy", 1234.0), SinkError("busy", 0.1), SinkError("busy", 1e12)]
    waits = []
    while sink.faults:
        waits.append(sender.step())
        clocks.now_s += waits[-1]
    assert waits == [1234, 2, 86400]
    sender.close()


def test_what_is_refused_is_parked_and_told_and_the_next_goes(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection", "detection")
    sink.faults = [RefusedError("400 no field `x`")]
    stepped(sender, clocks, 5)
    assert len(sink.got) == 1
    depth = box.depths()["far"]
    assert (depth.messages, depth.parked) == (0, 1)
    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1 and "refused and parked: 400 no field `x`" in told[0]
    with store.transaction() as connection:  # as docs/sinks.md says, once the far side was mended
        connection.execute("UPDATE outbox SET refused = NULL WHERE sink = 'far'")
    stepped(sender, clocks, 5)
    assert len(sink.got) == 2 and box.depths()["far"].parked == 0
    sender.close()


def test_a_sink_that_breaks_on_one_message_does_not_hold_the_others_for_ever(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection", "detection")
    sink.faults = [ZeroDivisionError("bug") for _ in range(20)]
    stepped(sender, clocks, 2 * 3600)
    assert len(sink.got) == 1 and box.depths()["far"].parked == 1
    assert "broke on it 20 times: ZeroDivisionError('bug')" in caplog.text
    sender.close()


def test_a_message_that_never_gets_through_lets_the_others_go(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    """The far side hangs up on the large one: it is kept, and goes last, also behind what comes later."""
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection", body={"text": "x" * 1000})
    post(box, store, "detection", "heartbeat", "thumbnail")
    take = sink.send

    def hang_up(message: Message) -> None:
        if len(message.payload) > 1000:
            raise SinkError("hung up")
        take(message)

    sink.send = hang_up  # type: ignore[method-assign]
    stepped(sender, clocks, 2 * 3600)
    assert kinds(sink) == ["detection", "heartbeat", "thumbnail"]
    assert "row 1 of the outbox was tried 20 times or more" in caplog.text
    post(box, store, "heartbeat")
    stepped(sender, clocks, 301)
    assert len(sink.got) == 4 and box.depths()["far"].messages == 1
    sink.send = take  # type: ignore[method-assign]
    stepped(sender, clocks, 301)
    assert len(sink.got) == 5
    sender.close()


def test_a_far_side_that_takes_nothing_for_long_leaves_the_order_alone(
    store: Store, clocks: FakeClocks, sink: FakeSink
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, *["detection", "heartbeat"] * 5)
    sink.faults = [SinkError("no answer") for _ in range(2000)]
    stepped(sender, clocks, 2001 * 300)
    rows = [message.row for message in sink.got]
    assert rows == [1, 3, 5, 7, 9, 2, 4, 6, 8, 10] and sink.got[0].tries > 1800
    sender.close()


def test_an_acknowledged_message_that_could_not_be_marked_is_not_sent_again(
    store: Store, clocks: FakeClocks, sink: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BUSY_S", 0.01)
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection", "detection")
    with closing(connected(store.path)) as other:
        take = sink.send
        sink.send = lambda message: (take(message), other.execute("BEGIN IMMEDIATE"))  # type: ignore[method-assign]
        assert sender.step() > 0  # it was sent, and the database is locked when it is to be marked
        assert sink.closed == 0  # which is no reason to give up the connection
        sink.send = take  # type: ignore[method-assign]
        stepped(sender, clocks, 30)
        assert len(sink.got) == 1
        other.execute("ROLLBACK")
    stepped(sender, clocks, 300)
    assert [message.tries for message in sink.got] == [0, 0] and len({m.id for m in sink.got}) == 2
    sender.close()


def test_a_crash_between_sending_and_marking_sends_again_under_the_same_id(
    store: Store, clocks: FakeClocks, sink: FakeSink
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection")
    with closing(connected(store.path)) as connection:
        crashed = next_message(connection, "far")
    assert crashed is not None
    sink.send(crashed)
    stepped(sender, clocks, 2)
    first, second = sink.got
    assert first.id == second.id and first.payload == second.payload
    sender.close()


def test_sent_messages_are_deleted_after_an_hour_also_where_the_clock_was_wrong(
    store: Store, clocks: FakeClocks, sink: FakeSink
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    clocks.offset = timedelta(days=400)
    post(box, store, "detection")
    stepped(sender, clocks, 2)
    clocks.offset = timedelta()
    post(box, store, "detection")
    stepped(sender, clocks, 2)
    with closing(connected(store.path)) as connection:
        count = "SELECT count(*) FROM outbox"
        assert connection.execute(count).fetchone() == (2,)
        stepped(sender, clocks, 700)
        assert connection.execute(count).fetchone() == (1,)  # the one that was sent in the future is gone
        stepped(sender, clocks, 3600)
        assert connection.execute(count).fetchone() == (0,)
    sender.close()


# Budget


class Metered(FakeSink):
    """Notes when what was sent."""

    overhead_bytes = 50

    def __init__(self, clocks: FakeClocks) -> None:
        super().__init__()
        self._clocks = clocks
        self.sent: list[tuple[float, int]] = []

    def send(self, message: Message) -> None:
        super().send(message)
        self.sent.append((self._clocks.now_s, len(message.payload) + self.overhead_bytes))

    def most_in(self, seconds: float) -> int:
        """The most bytes within any span of so many seconds."""
        return max(sum(size for at, size in self.sent if start <= at < start + seconds) for start, _ in self.sent)


def test_the_budget_holds_in_every_hour_and_over_restarts(store: Store, clocks: FakeClocks) -> None:
    sink = Metered(clocks)
    queue = queue_of(sink, bytes_per_hour=10_000)
    box = Outbox(store.path, [queue], ORIGIN, clocks)
    for number in range(200):
        post(box, store, "detection", "thumbnail", body={"number": number, "text": "x" * 300})
    began_s = clocks.now_s
    for _ in range(60):  # the program is started again every ten minutes, and the machine is off for a minute
        sender = Sender(store.path, queue, clocks)
        stepped(sender, clocks, 540)
        sender.close()
        clocks.now_s += 60
    hours = (clocks.now_s - began_s) / 3600
    total = sum(size for _, size in sink.sent)
    assert sink.most_in(3600) <= 2 * 10_000  # a full bucket, and what flows in while it is emptied
    assert 0.97 * 10_000 * hours < total <= 10_000 * (hours + 1)
    assert set(kinds(sink)) == {"detection"}  # thumbnails wait for them


def test_a_message_larger_than_the_budget_goes_and_the_average_holds(store: Store, clocks: FakeClocks) -> None:
    sink = Metered(clocks)
    box, sender = made(store, clocks, queue_of(sink, bytes_per_hour=10_000))
    began_s = clocks.now_s
    post(box, store, "thumbnail", "thumbnail", body={"image": "x" * 27_000})
    for _ in range(12 * 6):
        post(box, store, "heartbeat", body={"text": "x" * 300})
        stepped(sender, clocks, 600)
    assert kinds(sink).count("thumbnail") == 2 and kinds(sink).count("heartbeat") == 72
    for at_s, _ in sink.sent:
        so_far = sum(size for when_s, size in sink.sent if when_s <= at_s)
        assert so_far <= 10_000 * (1 + (at_s - began_s) / 3600) + 27_500  # never more than one large message ahead
    sender.close()


def test_what_does_not_reach_the_network_costs_nothing(store: Store, clocks: FakeClocks) -> None:
    sink = Metered(clocks)
    box, sender = made(store, clocks, queue_of(sink, bytes_per_hour=1000))
    post(box, store, "detection", body={"text": "x" * 500})
    sink.faults = [UnreachableError("refused") for _ in range(5)]
    stepped(sender, clocks, 60)
    assert len(sink.got) == 1 and sink.got[0].tries == 0
    post(box, store, "detection", body={"text": "x" * 500})
    sink.faults = [SinkError("no answer")]
    stepped(sender, clocks, 3500)  # the first half of the budget is used; the try without answer takes the other
    assert len(sink.got) == 1
    stepped(sender, clocks, 3600)
    assert len(sink.got) == 2
    sender.close()


@settings(max_examples=200, deadline=None)
@given(st.integers(100, 10**6), st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e5)), max_size=30))
def test_budget_equals_plain_accounting(per_hour: int, messages: Sequence[tuple[int, float]]) -> None:
    """By the law of the bucket: what was sent up to now is at most what flowed in, a bucket, and one message."""
    budget, now_s, sent = Budget(per_hour, per_hour, 0.0), 0.0, 0
    for size, pause_s in messages:
        now_s += pause_s
        wait_s = budget.wait_s(size, now_s)
        assert 0 <= wait_s <= 3600 * (1 + 10**6 / per_hour) + 1
        now_s += wait_s
        assert budget.wait_s(size, now_s) <= 1e-3 * 3600
        budget.left -= size
        sent += size
        assert sent <= per_hour * (1 + now_s / 3600) + max(0, size - per_hour) + 1


# Bounds


def test_a_full_queue_drops_the_oldest_thumbnails_and_never_detections(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    sink.away = lambda: UnreachableError("no network")
    box, sender = made(store, clocks, queue_of(sink, most_bytes=100_000))
    for number in range(50):
        post(box, store, "detection", "heartbeat", body={"number": number})
        post(box, store, "thumbnail", body={"number": number, "image": "x" * 10_000})
    depth = box.depths()["far"]
    assert depth.bytes <= 100_000 and depth.dropped == 150 - depth.messages > 30
    sink.away = lambda: None
    stepped(sender, clocks, 600)
    numbers = {kind: [json.loads(m.payload)["body"]["number"] for m in sink.got if m.kind == kind] for kind in ALL}
    assert numbers["detection"] == numbers["heartbeat"] == list(range(50))
    assert numbers["thumbnail"] == list(range(50 - len(numbers["thumbnail"]), 50))
    assert "the queue of sink far is full (0.1 MB): dropped 2 thumbnail" in caplog.text
    sender.close()


def test_thumbnails_go_before_older_heartbeats(store: Store, clocks: FakeClocks, sink: FakeSink) -> None:
    box, sender = made(store, clocks, queue_of(sink, most_bytes=40_000))
    for kind in ("effort", "heartbeat", "thumbnail"):
        post(box, store, *[kind] * 4, body={"text": "x" * 3000})
    post(box, store, *["effort"] * 4, body={"text": "x" * 3000})
    stepped(sender, clocks, 10)
    assert kinds(sink).count("effort") == 8 and kinds(sink).count("thumbnail") == 0
    post(box, store, *["effort"] * 20, body={"text": "x" * 3000})
    stepped(sender, clocks, 10)
    rows = [message.row for message in sink.got[-11:]]
    assert rows == list(range(rows[0], 37)) and box.depths()["far"].dropped == 16 + 20 - len(sink.got)  # the oldest go
    sender.close()


def test_detections_stay_also_where_nothing_else_is_left_to_drop(
    store: Store, clocks: FakeClocks, sink: FakeSink
) -> None:
    box, sender = made(store, clocks, queue_of(sink, most_bytes=20_000))
    post(box, store, "heartbeat", "effort")
    for _ in range(100):
        post(box, store, "detection", body={"text": "x" * 400})
    post(box, store, "thumbnail", "heartbeat")
    stepped(sender, clocks, 10)
    assert kinds(sink) == ["detection"] * 100
    assert box.depths()["far"].dropped == 4
    clocks.now_s += 60  # by now all was sent, and a heartbeat has room again
    post(box, store, "heartbeat")
    stepped(sender, clocks, 2)
    assert kinds(sink)[-1] == "heartbeat"
    sender.close()


def test_parked_messages_go_first_but_detections(store: Store, clocks: FakeClocks, sink: FakeSink) -> None:
    box, sender = made(store, clocks, queue_of(sink, most_bytes=50_000))
    sink.faults = [RefusedError("400") for _ in range(6)]
    for _ in range(3):
        post(box, store, "detection", "heartbeat", body={"text": "x" * 5000})
    stepped(sender, clocks, 5)
    sink.away = lambda: UnreachableError("no network")
    post(box, store, "thumbnail")
    for _ in range(6):
        post(box, store, "detection", body={"text": "x" * 5000})
    depth = box.depths()["far"]
    assert (depth.messages, depth.parked, depth.dropped) == (7, 3, 3)
    sink.away = lambda: None
    stepped(sender, clocks, 301)
    assert kinds(sink) == ["detection"] * 6 + ["thumbnail"]
    sender.close()


def test_messages_of_a_sink_that_is_gone_are_told_of_and_kept(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    post(Outbox(store.path, [queue_of(sink, name="old")], ORIGIN, clocks), store, "detection", "effort")
    with Outbox(store.path, [], ORIGIN, clocks):
        pass
    assert "2 messages wait for sink old, which the configuration does not name" in caplog.text
    sender = Sender(store.path, queue_of(sink, name="old"), clocks)
    stepped(sender, clocks, 5)
    assert len(sink.got) == 2
    sender.close()


# Threads


class RealClocks(FakeClocks):
    """Time as it is."""

    def steady_s(self) -> float:
        return time.monotonic()

    def utc(self) -> datetime:
        return datetime.now(timezone.utc)


class HangingSink(FakeSink):
    """Hangs in send() until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.let_go = threading.Event(), threading.Event()

    def send(self, message: Message) -> None:
        self.hangs.set()
        self.let_go.wait(30)
        super().send(message)


@pytest.mark.parts
def test_a_sink_that_hangs_holds_up_neither_put_nor_others_nor_the_end(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    clocks, stuck, well = RealClocks(), HangingSink(), FakeSink()
    box = Outbox(store.path, [queue_of(stuck, name="stuck"), queue_of(well, name="well")], ORIGIN, clocks)
    with box:
        post(box, store, "detection")
        assert stuck.hangs.wait(10)
        began_s = clocks.steady_s()
        for _ in range(200):
            post(box, store, "detection")
        put_s = (clocks.steady_s() - began_s) / 200
        deadline_s = clocks.steady_s() + 30
        while len(well.got) < 201 and clocks.steady_s() < deadline_s:
            time.sleep(0.02)
        box.close(0.2)
        assert len(well.got) == 201 and not stuck.got
        assert box.depths()["stuck"].messages == 201 and box.depths()["well"].messages == 0
    assert put_s < 0.1
    assert "sink stuck hangs and is left behind" in caplog.text
    stuck.let_go.set()


def test_the_end_sends_what_is_left(store: Store, sink: FakeSink) -> None:
    box = Outbox(store.path, [queue_of(sink)], ORIGIN, RealClocks())
    with box:
        post(box, store, *["detection"] * 50)
        box.close(30.0)
    assert len(sink.got) == 50 and box.depths()["far"].messages == 0


def test_a_database_that_is_gone_for_a_while_is_used_again(
    store: Store, clocks: FakeClocks, sink: FakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection")
    store.close()
    hidden = store.path.with_name("hidden")
    store.path.rename(hidden)
    assert sender.step() > 0 and "could not be used: unable to open" in caplog.text
    assert not store.path.exists()
    hidden.rename(store.path)
    stepped(sender, clocks, 5)
    assert len(sink.got) == 1
    sender.close()


def test_the_oldest_waiting_message_is_found_without_a_scan(store: Store) -> None:
    with store.transaction() as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT id, kind, payload, tries FROM outbox WHERE sink = ? AND sent_utc IS NULL "
            "AND refused IS NULL AND id IS NOT ? ORDER BY priority DESC, id LIMIT 1",
            ("far", None),
        ).fetchall()
    text = " ".join(str(row[-1]) for row in plan)
    assert "USING INDEX outbox_waiting" in text and "TEMP B-TREE" not in text, text


def test_a_database_that_was_rescued_while_running_is_the_one_that_is_sent_from(
    store: Store, clocks: FakeClocks, sink: FakeSink
) -> None:
    box, sender = made(store, clocks, queue_of(sink))
    post(box, store, "detection")
    assert sender.step() == 0
    rescue(store.path, "a test")
    post(box, store, "detection")
    stepped(sender, clocks, 10)
    assert len(sink.got) == 2 and box.depths()["far"].messages == 0


class SlowClocks(FakeClocks):
    """Two seconds pass from one look to the next."""

    def steady_s(self) -> float:
        self.now_s += 2
        return self.now_s


def test_a_queue_that_takes_long_to_count_is_counted_rarely(store: Store, sink: FakeSink) -> None:
    """The daemon asks every 5 s in the thread that listens."""
    clocks = SlowClocks()
    box = Outbox(store.path, [queue_of(sink)], ORIGIN, clocks)
    post(box, store, "detection")
    assert box.depths()["far"].messages == 1
    post(box, store, "detection")
    assert box.depths()["far"].messages == 1
    clocks.now_s += outbox.LOOKS_REST * 2
    assert box.depths()["far"].messages == 2


def test_a_queue_full_of_detections_is_looked_through_rarely(
    store: Store, sink: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens in the transaction of a detection, in the thread that listens."""
    looks: list[str] = []
    monkeypatch.setattr(outbox, "waiting_bytes", lambda connection, name: looks.append(name) or 10**6)
    clocks = SlowClocks()
    box = Outbox(store.path, [queue_of(sink, most_bytes=10)], ORIGIN, clocks)
    for _ in range(3):
        post(box, store, "detection")
        clocks.now_s += outbox.FULL_S
    assert len(looks) == 1
    clocks.now_s += outbox.LOOKS_REST * 2
    post(box, store, "detection")
    assert len(looks) == 2


def test_a_database_error_is_told(store: Store, clocks: FakeClocks, sink: FakeSink) -> None:
    box = Outbox(store.path.with_name("none.sqlite"), [queue_of(sink)], ORIGIN, clocks)
    with pytest.raises(OrcawatchError, match=r"none\.sqlite cannot be read"):
        box.depths()
    with pytest.raises(OrcawatchError, match=r"none\.sqlite cannot be read"):
        box.start()


def until(done: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_watch_sends_only_while_it_holds_the_lock(
    store: Store, sink: FakeSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "TURN_S", 0.05)
    folder = store.path.parent
    other = take_turn(folder)
    assert other is not None and take_turn(folder) is None
    box = Outbox(store.path, [queue_of(sink)], ORIGIN, RealClocks(), output=folder)
    post(box, store, "detection")
    with box:
        time.sleep(0.5)
        assert sink.got == [] and caplog.text.count("another process sends what waits there") == 1
        other.close()
        until(lambda: sink.got)
        assert take_turn(folder) is None and not nobody_sends(folder)
    assert nobody_sends(folder) and "any more: this one does" in caplog.text
    with Outbox(store.path, [queue_of(sink)], ORIGIN, RealClocks(), output=folder):
        assert not nobody_sends(folder)  # at once, where nobody else has it


def test_a_lock_that_cannot_be_made_is_told_and_tried_again(
    store: Store, sink: FakeSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "TURN_S", 0.05)
    lock = store.path.parent / LOCK
    lock.symlink_to(store.path.parent / "elsewhere")  # no link is followed, by root least of all
    box = Outbox(store.path, [queue_of(sink)], ORIGIN, RealClocks(), output=store.path.parent)
    post(box, store, "detection")
    with box:
        time.sleep(0.3)
        assert sink.got == [] and "uplink-lock cannot be taken" in caplog.text
        assert not (store.path.parent / "elsewhere").exists()
        lock.unlink()
        until(lambda: sink.got)


def test_a_watch_says_again_and_again_that_nobody_sends(
    store: Store, sink: FakeSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "LOOK_FIRST_S", 0.05)
    monkeypatch.setattr(outbox, "LOOK_S", 0.05)
    folder = store.path.parent
    box = Outbox(store.path, [queue_of(sink)], ORIGIN, RealClocks(), sends=False, output=folder)
    post(box, store, "detection")
    with box:
        until(lambda: caplog.messages.count(NOBODY) >= 2)
        lock = None
        while lock is None:
            lock = take_turn(folder)
        time.sleep(0.1)
        caplog.clear()
        time.sleep(0.3)
        assert NOBODY not in caplog.messages and sink.got == []
        lock.close()
        until(lambda: NOBODY in caplog.messages)
