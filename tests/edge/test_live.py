"""Live capture where failure must be scripted: a fake capture process that speaks the pipe's protocol."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch import feed, live
from orcawatch.clock import Clocks, SampleClock
from orcawatch.config import SourceSettings
from orcawatch.errors import AudioError
from orcawatch.feed import Chunk, Ended, Waiting
from orcawatch.live import LiveSource, Track
from orcawatch.records import AudioBlock, ClockChange, Item, Missing
from orcawatch.soundcard import Opened

pytestmark = pytest.mark.parts

RATE_HZ = 1000
CHANNELS = 2
CARD = Opened("Fake card", "ALSA", RATE_HZ, CHANNELS, "float32", 0.1)

FAKE = """
import json, os, struct, sys, time
plan, options = sys.argv[1:3]
runs = plan + ".runs"
with open(runs, "a") as file:
    file.write(options + "\\n")
steps = json.load(open(plan))
steps = steps[min(len(open(runs).readlines()), len(steps)) - 1]
began, first, counter, sequence, flags = time.time(), 0, 0, 0, 0

def write(kind, content, rows=0):
    global sequence
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    head = struct.pack("<4sBB2xIIIQQQ", b"OWSC", kind, flags, sequence, len(content), rows, first, now, now)
    os.write(1, head + content)
    sequence += 1

for what, value in steps:
    if what == "open":
        rate, channels = value
        write(1, json.dumps(dict(name="Fake card", hostapi="ALSA", rate_hz=rate, channels=channels,
                                 sample_format="float32", latency_s=0.1)).encode())
    elif what == "audio":  # so many rows in blocks of 20 ms, as time passes
        for _ in range(value // (rate // 50)):
            rows = rate // 50
            late = began + (counter + rows) / rate - time.time()
            time.sleep(max(0, late))
            write(2, b"".join(struct.pack("<f", counter + row) * channels for row in range(rows)), rows)
            first, counter, flags = first + rows, counter + rows, 0
    elif what == "burst":  # so many rows at once
        write(2, b"".join(struct.pack("<f", counter + row) * channels for row in range(value)), value)
        first, counter, flags = first + value, counter + value, 0
    elif what == "overrun":
        counter, flags = counter + value, 1
    elif what == "drop":
        counter, first = counter + value, first + value
    elif what == "fault":
        write(3, json.dumps({"text": value}).encode())
    elif what == "write":
        os.write(1, value.encode())
    elif what == "say":
        os.write(2, value.encode())
    elif what == "sequence":
        sequence = value
    elif what == "sleep":
        time.sleep(value)
    elif what == "exit":
        sys.exit(value)
time.sleep(600)
"""


@dataclass
class Card:
    """The fake capture process: what it does at each start, and what it was asked for."""

    folder: Path

    def command(self, *runs: Sequence[tuple[str, Any]]) -> list[str]:
        """The command; the last run repeats."""
        program, plan = self.folder / "card.py", self.folder / "plan.json"
        program.write_text(FAKE)
        plan.write_text(json.dumps(runs))
        return [sys.executable, str(program), str(plan)]

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The options of each start so far."""
        return [json.loads(line) for line in (self.folder / "plan.json.runs").read_text().splitlines()]


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card whose seams are measured within 0.2 s, and that is waited for no longer than 1 s."""
    monkeypatch.setattr(live, "HOLD_S", 0.2)
    monkeypatch.setattr(live, "MARGIN_S", 0.2)
    monkeypatch.setattr(feed, "OPEN_S", 1.0)
    return Card(tmp_path)


CHOICE = replace(
    SourceSettings(),
    device="Fake card",
    rate_hz=RATE_HZ,
    device_channels=CHANNELS,
    stalled_s=0.3,
    retry_least_s=0.1,
    retry_most_s=0.3,
)


def opened(rate_hz: int = RATE_HZ, channels: int = CHANNELS) -> tuple[str, Any]:
    return ("open", (rate_hz, channels))


def heard(source: LiveSource, least: int, seconds: float = 20.0) -> list[Item]:
    """Items of a source until `least` rows of audio came."""
    items, rows, until_s = [], 0, time.monotonic() + seconds
    for item in source.blocks():
        items.append(item)
        rows += len(item.samples) if isinstance(item, AudioBlock) else 0
        if rows >= least:
            return items
        assert time.monotonic() < until_s, f"only {rows} rows of {least} came: {items[-3:]}"
    return items


def holes(items: Sequence[Item]) -> list[tuple[str, str, int]]:
    """Kind, cause and size of what is missing; neighbours of one cause as one."""
    found: list[tuple[str, str, int]] = []
    for item in items:
        if not isinstance(item, Missing):
            continue
        rows = item.end_sample - item.start_sample
        if found and found[-1][:2] == (item.kind, item.cause):
            rows += found.pop()[2]
        found.append((item.kind, item.cause, rows))
    return found


def check_whole(items: Sequence[Item]) -> None:
    """Every position from 0 on is there once, in order."""
    position = 0
    for item in items:
        if isinstance(item, ClockChange):
            continue
        end = item.end_sample
        assert item.start_sample == position and end > position
        position = end


def offsets(items: Sequence[Item]) -> list[int]:
    """By block, its position less the counter in its first sample, as they change."""
    found = [item.start_sample - round(float(item.samples[0, 0])) for item in items if isinstance(item, AudioBlock)]
    return [offset for before, offset in zip([None, *found], found) if offset != before]


def test_audio_comes_as_it_was_captured(card: Card) -> None:
    with LiveSource(CHOICE, Clocks(), command=card.command([opened(), ("audio", 700)])) as source:
        assert source.open() and not source.waits
        items = heard(source, 700)
        assert (source.info.name, source.info.rate_hz, source.info.channels) == ("Fake card", RATE_HZ, CHANNELS)
        assert source.info.live and source.behind_s == source.shed_s == 0 and source.reopens == source.overruns == 0
    check_whole(items)
    assert holes(items) == [] and offsets(items) == [0]
    samples = np.concatenate([item.samples for item in items if isinstance(item, AudioBlock)])
    np.testing.assert_array_equal(samples, np.arange(700, dtype=np.float32)[:, None].repeat(CHANNELS, 1))


def test_overrun_is_as_long_as_the_clock_says_and_what_was_dropped_is_exact(card: Card) -> None:
    steps = [opened(), ("audio", 300), ("overrun", 250), ("audio", 400), ("drop", 123), ("audio", 200)]
    with LiveSource(CHOICE, Clocks(), command=card.command(steps)) as source:
        items = heard(source, 900)
        assert source.overruns == 1
    check_whole(items)
    (kind, cause, rows), dropped = holes(items)
    assert (kind, cause) == ("gap", "overrun") and abs(rows - 250) <= 15
    assert dropped == ("gap", "the capture process found no room", 123)


def test_overrun_that_lost_nothing_is_still_a_seam(card: Card) -> None:
    with LiveSource(
        CHOICE, Clocks(), command=card.command([opened(), ("audio", 300), ("overrun", 0), ("audio", 300)])
    ) as source:
        items = heard(source, 600)
    check_whole(items)
    ((_, cause, rows),) = holes(items)
    assert cause == "overrun" and 1 <= rows <= 15


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (("exit", 3), "the capture process ended (exit code 3): the cable broke"),
        (("sleep", 600), "it gave nothing for 0.3 s"),
        (("write", "ALSA lib pcm.c:" * 9), "the capture process wrote what is no audio (b'ALSA lib')"),
        (("fault", "'Fake card' ended its stream: was it pulled out?"), "was it pulled out?"),
        (("sequence", 7), "what is no audio"),
        (("open", (RATE_HZ, None)), "came back with None channels"),
        (opened(2 * RATE_HZ), "came back with 2 channels at 2000 Hz, and the stream has 2 at 1000 Hz"),
    ],
)
def test_card_that_goes_away_is_opened_again(
    card: Card, caplog: pytest.LogCaptureFixture, end: tuple[str, Any], text: str
) -> None:
    """The counter begins anew with the card; its positions go on with the clock."""
    caplog.set_level(logging.INFO, "orcawatch")
    first = [opened(), ("audio", 200), ("say", "the cable broke"), end, ("audio", 200)]
    command = card.command(first, [opened(), ("audio", 2000)])
    with LiveSource(CHOICE, Clocks(), command=command) as source:
        began_s = time.monotonic()
        items = heard(source, 400)
        passed_s = time.monotonic() - began_s
        assert source.reopens == 1
    check_whole(items)
    ((kind, cause, rows),) = holes(items)
    assert kind == "gap" and cause.startswith("device gone: ") and text in cause
    assert rows > 50 and 400 + rows <= 1000 * passed_s
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum(text in line for line in told) == 1
    assert any("'Fake card' gives audio again after" in line for line in told)


def test_card_that_is_absent_at_first_is_waited_for(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    absent = [("fault", "no sound card with an input is there: plug it in")]
    command = card.command(absent, absent, absent, absent, absent, [opened(), ("audio", 2000)])
    with LiveSource(CHOICE, Clocks(), command=command) as source:
        assert source.open()  # rate and channels are in the settings
        began_s = time.monotonic()
        items = heard(source, 400)
        passed_s = time.monotonic() - began_s
    check_whole(items)
    ((kind, cause, rows),) = holes(items)
    assert (kind, cause) == ("gap", "device gone: no sound card with an input is there: plug it in")
    assert 1000 * (passed_s - 0.4 - 0.5) < rows < 1000 * (passed_s - 0.4 + 0.01)
    assert passed_s > 0.1 + 0.2 + 0.3 + 0.3 + 0.3  # the waits double up to retry_most_s
    assert sum("plug it in" in record.getMessage() for record in caplog.records) == 1


def test_hole_has_the_cause_that_it_began_with(card: Card) -> None:
    """What the tries to open the card again say stands in the log."""
    pulled = [opened(), ("audio", 200), ("fault", "it was pulled out")]
    command = card.command(pulled, [("fault", "no such card")], [("fault", "nothing")], [opened(), ("audio", 900)])
    with LiveSource(CHOICE, Clocks(), command=command) as source:
        items = heard(source, 400)
    check_whole(items)
    assert [(kind, cause) for kind, cause, _ in holes(items)] == [("gap", "device gone: it was pulled out")]


def test_missing_comes_while_the_card_is_away(card: Card) -> None:
    with LiveSource(CHOICE, Clocks(), command=card.command([("fault", "nothing there")])) as source:
        arrivals_s, items = [time.monotonic()], []
        for item in source.blocks():
            items.append(item)
            arrivals_s.append(time.monotonic())
            if len(items) == 4:
                break
    check_whole(items)
    assert max(np.diff(arrivals_s)) < 1.0 and all(isinstance(item, Missing) for item in items)


def test_rate_and_channels_are_learnt_where_the_settings_leave_them_open(card: Card) -> None:
    command = card.command([("fault", "nothing there")], [opened(2000, 3), ("audio", 3000)], [opened(2000, 3)])
    choice = replace(CHOICE, device=None, rate_hz=None, device_channels=None)
    waits: list[int] = []
    with LiveSource(choice, Clocks(), needed=3, command=command) as source:
        with pytest.raises(AudioError, match=r"source\.rate_hz and source\.device_channels"):
            assert source.info
        assert source.open(on_wait=lambda: waits.append(1))
        assert (source.info.name, source.info.rate_hz, source.info.channels) == ("Fake card", 2000, 3)
        items = heard(source, 1000)
        check_whole(items)
        assert holes(items) == []
        assert [asked["channels"] for asked in card.asked] == [3, 3]
        assert [asked["rate_hz"] for asked in card.asked] == [None, None]


def test_default_input_is_the_same_card_when_it_is_opened_again(card: Card) -> None:
    """Where the card is pulled out, the system's default may become another one."""
    command = card.command([opened(), ("audio", 300), ("exit", 1)], [opened(), ("audio", 1000)])
    with LiveSource(replace(CHOICE, device=None, rate_hz=None), Clocks(), command=command) as source:
        assert source.open()
        heard(source, 400)
    first, second = card.asked[:2]
    assert (first["device"], first["hostapi"], first["rate_hz"]) == (None, None, None)
    assert (second["device"], second["hostapi"], second["rate_hz"]) == ("Fake card", "ALSA", RATE_HZ)


@pytest.mark.parametrize("configured", [True, False])
def test_stop_ends_a_source_whose_card_is_absent(card: Card, configured: bool) -> None:
    choice = CHOICE if configured else replace(CHOICE, rate_hz=None)
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    began_s = time.monotonic()
    with LiveSource(choice, Clocks(), command=card.command([("sleep", 600)])) as source:
        assert source.open(stop) == configured
        items = list(source.blocks()) if configured else []
    check_whole(items)
    assert 0.5 < time.monotonic() - began_s < 4.0


def test_program_that_is_not_there_is_a_card_that_is_absent(card: Card) -> None:
    with LiveSource(CHOICE, Clocks(), command=["/no/such/program"]) as source:
        item = next(iter(source.blocks()))
    assert isinstance(item, Missing) and "No such file" in item.cause


def test_slow_reader_loses_the_newest_exactly(card: Card) -> None:
    """Two seconds fit; while nobody asks, four come. The counter shows what is left."""
    steps = [opened(), ("audio", 400), *[("burst", 100)] * 40, ("audio", 200)]
    choice = replace(CHOICE, stalled_s=10.0)
    with LiveSource(choice, Clocks(), queue_s=2.0, command=card.command(steps)) as source:
        assert source.open()
        until_s = time.monotonic() + 10
        while source.shed_s < 2.0 and time.monotonic() < until_s:
            time.sleep(0.02)
        assert 1.9 <= source.behind_s <= 2.0
        items = heard(source, 2100)
        shed = round(source.shed_s * RATE_HZ)
    check_whole(items)
    assert holes(items) == [("shed", "inference is behind", shed)] and shed >= 2000
    assert offsets(items) == [0]  # what was shed keeps its place


@pytest.mark.parametrize("patience_s", [20.0, 0.3])
def test_what_waits_at_the_stop_is_still_yielded_for_a_while(
    card: Card, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """Two of three seconds wait when it is stopped, one was shed; who is too slow then sheds the rest, by name."""
    monkeypatch.setattr(live, "DRAIN_S", patience_s)
    steps = [opened(), ("audio", 400), *[("burst", 100)] * 30]
    choice, stop = replace(CHOICE, stalled_s=10.0), threading.Event()
    with LiveSource(choice, Clocks(), queue_s=2.0, command=card.command(steps)) as source:
        assert source.open(stop)
        until_s = time.monotonic() + 10
        while source.shed_s < 1.4 and time.monotonic() < until_s:
            time.sleep(0.02)
        stop.set()
        items = []
        for item in source.blocks():
            items.append(item)
            time.sleep(0.02)
        assert source.pid is not None and not Path(f"/proc/{source.pid}").exists()
    check_whole(items)
    rows = sum(len(item.samples) for item in items if isinstance(item, AudioBlock))
    found = holes(items)
    assert found[-1] == ("shed", "inference is behind", 1400) and items[-1].end_sample == 3400
    if patience_s > 1:
        assert rows == 2000 and len(found) == 1
    else:
        assert 0 < rows < 2000 and found[0] == ("shed", "stopped before it was scored", 2000 - rows)


def test_stop_while_the_card_is_away_tiles_up_to_that_moment(card: Card) -> None:
    stop = threading.Event()
    began_s = time.monotonic()
    threading.Timer(1.0, stop.set).start()
    with LiveSource(CHOICE, Clocks(), command=card.command([("fault", "nothing there")])) as source:
        source.open(stop)
        items = list(source.blocks())
        passed_s = time.monotonic() - began_s
    check_whole(items)
    assert 0.95 < items[-1].end_sample / RATE_HZ <= passed_s


def test_nothing_is_left_behind(card: Card) -> None:
    source = LiveSource(CHOICE, Clocks(), command=card.command([opened(), ("audio", 100000)]))
    heard(source, 400)
    assert source.pid is not None and Path(f"/proc/{source.pid}").exists()
    source.close()
    source.close()
    assert not Path(f"/proc/{source.pid}").exists()
    assert not any(thread.name == "capture" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("sample_format", "content", "expected"),
    [
        ("int16", np.array([[-32768, 16384]], "<i2").tobytes(), [[-1.0, 0.5]]),
        ("int32", np.array([[-(2**31), 2**30]], "<i4").tobytes(), [[-1.0, 0.5]]),
        ("int24", bytes([0, 0, 0x80, 0, 0, 0x40]), [[-1.0, 0.5]]),
        ("int24", bytes([1, 0, 0, 0xFF, 0xFF, 0xFF]), [[2.0**-23, -(2.0**-23)]]),
        ("float32", np.array([[-1.0, 0.25]], "<f4").tobytes(), [[-1.0, 0.25]]),
    ],
)
def test_every_sample_format_has_full_scale_one(
    sample_format: str, content: bytes, expected: list[list[float]]
) -> None:
    found = live.decoded(content, sample_format, 1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


class Moments:
    """Clocks that stand where they are put."""

    boot = "test"

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.ahead_s = 0.0
        self.is_synchronised: bool | None = True

    def steady_s(self) -> float:
        return self.now_s

    def suspended_s(self) -> float:
        return 0.0

    def utc(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self.now_s + self.ahead_s)

    def synchronised(self) -> bool | None:
        return self.is_synchronised


class World:
    """A card in simulated time: its samples are the true position, and every loss is known.

    Arrivals are early and late by turns, as PortAudio gives them over PulseAudio.
    """

    ROWS = 100

    def __init__(self) -> None:
        self.clocks = Moments()
        self.clock = SampleClock(RATE_HZ, self.clocks)
        self.track = Track(RATE_HZ, self.clock, self.clocks.now_s)
        self.items: list[Item] = []
        self.delivered = self.shed = self.dropped = 0
        self.blocks = 0
        self.first: int | None = None  # of the card's next row; None where there is no card
        self.suspended_s = 0.0

    def truth(self) -> int:
        """Rows that passed in the world since the start."""
        return round((self.clocks.now_s - 1000.0) * RATE_HZ)

    def audio(self, blocks: int, overrun: bool = False, shed: int = 0) -> None:
        if self.first is None:
            self.first = 0
            self.items += self.track.take(CARD)
        for _ in range(blocks):
            samples = np.arange(self.truth(), self.truth() + self.ROWS, dtype="<f4").repeat(CHANNELS).tobytes()
            self.clocks.now_s += self.ROWS / RATE_HZ
            self.blocks += 1
            late_s = 0.08 * (self.blocks % 2)
            chunk = Chunk(
                self.first, self.ROWS, overrun, self.clocks.now_s + late_s, self.suspended_s, samples, shed
            )  # fmt: skip
            self.first, overrun, shed = chunk.end, False, 0
            self.delivered += self.ROWS
            self.items += self.track.take(chunk)

    def lose(self, rows: int) -> None:
        self.clocks.now_s += rows / RATE_HZ

    def overrun(self, rows: int) -> None:
        self.lose(rows)
        self.audio(1, overrun=True)

    def drop(self, rows: int) -> None:
        self.lose(rows)
        self.first = (self.first or 0) + rows
        self.dropped += rows
        self.audio(1)

    def queue_full(self, rows: int) -> None:
        self.lose(rows)
        self.first = (self.first or 0) + rows
        self.shed += rows
        self.audio(1, shed=rows)

    def suspend(self, rows: int) -> None:
        self.lose(rows)
        self.suspended_s += rows / RATE_HZ
        self.audio(1)

    def gone(self, rows: int) -> None:
        self.items += self.track.take(Ended("the cable broke"))
        self.first = None
        for _ in range(rows // 500):
            self.lose(500)
            self.items += self.track.tick(self.clocks.now_s)

    def finish(self) -> None:
        self.items += self.track.take(Ended("the end"))


def test_positions_are_those_of_the_truth_through_losses_of_every_kind() -> None:
    world = World()
    world.audio(50)
    world.overrun(777)
    world.audio(50)
    world.drop(300)
    world.audio(50)
    world.suspend(3600 * RATE_HZ)
    world.audio(50)
    world.queue_full(900)
    world.audio(50)
    world.gone(30500)
    world.audio(50)
    world.lose(1234)  # nobody says so
    world.audio(200)
    world.finish()
    check_whole(world.items)
    assert [(kind, cause) for kind, cause, _ in holes(world.items)] == [
        ("gap", "overrun"),
        ("gap", "the capture process found no room"),
        ("gap", "suspended"),
        ("shed", "inference is behind"),
        ("gap", "device gone: the cable broke"),
        ("gap", "samples lost without notice"),
    ]
    sizes = [rows for _, _, rows in holes(world.items)]
    assert sizes[1] == 300 and sizes[3] == 900
    np.testing.assert_allclose(sizes, [777, 300, 3600 * RATE_HZ, 900, 30500, 1234], atol=2)
    last = [item for item in world.items if isinstance(item, AudioBlock)][-1]
    assert abs(last.start_sample - round(float(last.samples[0, 0]))) <= 2


def test_losses_without_notice_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A card that is slower than its rate loses some every few seconds; the ledger has them all."""
    world = World()
    world.audio(50)
    for _ in range(3):
        world.lose(500)
        world.audio(200)
    assert [cause for _, cause, _ in holes(world.items)] == ["samples lost without notice"]
    assert world.track.unnoticed == pytest.approx(1500, abs=5)
    assert sum("lost without notice" in record.getMessage() for record in caplog.records) == 1


def test_seams_that_follow_each_other_are_measured_together() -> None:
    """Forty overruns in eight seconds, as of a machine that is far too slow: every one is a hole, and the sum is right."""
    world = World()
    world.audio(50)
    for _ in range(40):
        world.audio(1)
        world.overrun(37)
    world.audio(50)
    world.finish()
    check_whole(world.items)
    sizes = [item.end_sample - item.start_sample for item in world.items if isinstance(item, Missing)]
    assert len(sizes) >= 40 and min(sizes) >= 1 and abs(sum(sizes) - 40 * 37) <= 2
    assert world.track.overruns == 40


ACTIONS = st.one_of(
    st.tuples(st.just("audio"), st.integers(1, 40)),
    st.tuples(st.sampled_from(["overrun", "drop", "queue_full", "lose"]), st.integers(1, 3000)),
    st.tuples(st.just("suspend"), st.integers(600, 100000)),
    st.tuples(st.just("gone"), st.integers(0, 20000)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=25))
def test_every_position_is_accounted_for_once_whatever_happens(script: list[tuple[str, int]]) -> None:
    """What came is yielded in order and whole; what was dropped or shed, while a card was open, is counted exactly."""
    world = World()
    world.audio(20)
    for name, amount in script:
        getattr(world, name)(amount)
        if name == "gone":
            world.audio(20)
    world.finish()
    check_whole(world.items)
    blocks = [item for item in world.items if isinstance(item, AudioBlock)]
    assert sum(len(block.samples) for block in blocks) == world.delivered
    counters = np.concatenate([block.samples[:, 0] for block in blocks]).astype(np.float64)
    assert np.all(np.diff(counters) > 0)
    found = holes(world.items)
    assert sum(rows for kind, _, rows in found if kind == "shed") == world.shed
    assert sum(rows for _, cause, rows in found if "no room" in cause) == world.dropped


CHUNKS = st.lists(st.one_of(st.integers(1, 500), st.just("get")), max_size=80)


@given(CHUNKS)
def test_queue_holds_no_more_than_its_room_and_counts_what_it_sheds(script: list[Any]) -> None:
    waiting, first, got, end = Waiting(), 0, 0, 0
    for action in [*script, *["get"] * 100, 1, "get"]:
        if action == "get":
            event = waiting.get(0)
            if isinstance(event, Chunk):
                assert event.first == end + event.shed
                got, end = got + event.rows, event.end
        else:
            waiting.put(Chunk(first, action, False, 0.0, 0.0, b""), 1000)
            first += action
        assert waiting.rows <= 1000
        assert got + waiting.rows + waiting.shed == first
    assert end == first


def test_overrun_of_a_chunk_that_is_shed_is_not_forgotten() -> None:
    waiting = Waiting()
    waiting.put(Chunk(0, 90, False, 0.0, 0.0, b""), 100)
    waiting.put(Chunk(90, 20, True, 0.1, 0.0, b""), 100)
    assert waiting.get(0) == Chunk(0, 90, False, 0.0, 0.0, b"")
    waiting.put(Chunk(110, 20, False, 0.2, 0.0, b""), 100)
    assert waiting.get(0) == Chunk(110, 20, True, 0.2, 0.0, b"", shed=20)


def test_end_of_a_card_tells_what_was_shed_before_it() -> None:
    waiting = Waiting()
    waiting.put(Chunk(0, 120, False, 0.0, 0.0, b""), 100)
    waiting.put(Ended("gone"), 100)
    assert waiting.get(0) == Ended("gone", shed=120)


def test_ends_that_nobody_takes_do_not_pile_up() -> None:
    """A card that is absent for a year is tried half a million times; what matters is why it was missing first."""
    waiting = Waiting()
    for text in ("nothing there", "still nothing", "still nothing"):
        waiting.put(Ended(text), 0)
    assert waiting.get(0) == Ended("nothing there") and waiting.get(0) is None


def test_change_of_the_system_clock_comes_where_the_stream_has_got_to() -> None:
    """The reader is four seconds behind when the clock is set; what was heard before keeps its time."""
    clocks = Moments()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    changes = live.Changes(clocks)
    before = clock.utc_at(0)
    clocks.now_s, clocks.ahead_s = 1004.0, 3600.0
    assert list(changes.until(100, clock)) == []
    clocks.now_s = 1006.0
    assert list(changes.until(3999, clock)) == []
    (change,) = changes.until(4000, clock)
    assert (change.sample, change.synchronised) == (4000, True) and change.jump_s == pytest.approx(3600.0)
    assert clock.utc_at(0) == before and clock.utc_at(4000) == before + timedelta(seconds=3604)
    assert list(changes.until(9000, clock)) == []
