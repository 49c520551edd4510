"""The truth test: samples that hold a counter go through the live source into the ledger, and the ledger is the truth.

Only the card, the pipe and the clocks are simulated: `LiveSource`, `SampleClock`, `OnDuty`, `Ledger` and `Store` are
the real ones. A script pulls the card out, loses samples, sets the clock and suspends the machine; what it did is added
up as it happens, and compared with what the ledger says.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Union

import numpy as np
import pytest
from clocks import FakeClocks

from orcawatch.capture import Source
from orcawatch.clock import EPOCH
from orcawatch.config import DutySettings, SourceSettings
from orcawatch.duty import OnDuty
from orcawatch.feed import Chunk, Ended
from orcawatch.ledger import COLUMNS, Ledger, Session, Stretch, stretch
from orcawatch.live import LiveSource
from orcawatch.records import AudioBlock, ClockChange, Missing
from orcawatch.soundcard import Opened
from orcawatch.store import Store

pytestmark = pytest.mark.parts  # whichever interpreter is there makes no difference

RATE_HZ = 4000
BLOCK_S = 0.1
START = datetime(2026, 3, 1, 22, 15, tzinfo=timezone.utc)
DIGIT = 2**15  # counters are written as two digits, one a channel
LOOK_S = 1.6  # after a change of the clock, until the stream has looked at it
EACH_S = 0.005  # error of one overrun, suspend or opening
CARD = Opened("card", "ALSA", RATE_HZ, 2, "int16", 0.1)

Event = Union[Opened, Chunk, Ended]
Truth = defaultdict[tuple[str, str], float]


class World(FakeClocks):
    """A card, a machine and its clocks; what happens is scripted, what is true is kept.

    Attributes
    ----------
    truth : seconds by kind and cause.
    """

    def __init__(self, ppm: float, seed: int, synchronised: bool = True) -> None:
        super().__init__(synchronised, START)
        self.rate_hz = RATE_HZ * (1 + ppm * 1e-6)
        self.truth: Truth = defaultdict(float)
        self.offsets = [(self.now_s, self.utc_s)]
        self._dice = random.Random(seed)
        self._queue: deque[tuple[float, Event | Callable[[], object]]] = deque()
        self._starts: list[tuple[int, float]] = []  # counter, and when the card made that sample
        self._counter = 0
        self._first = 0  # of the card since it was opened
        self._at_s = self.now_s  # up to where the script reaches
        self._arrival_s = self.now_s
        self._shed = 0
        self._flag = False

    # The script: each call goes on where the last one ended.

    def open(self, after_s: float = 0.0) -> None:
        """The card begins."""
        self._at_s += after_s
        self._first = 0
        self._starts.append((self._counter, self._at_s))
        self._put(self._at_s, replace(CARD))

    def audio(self, seconds: float) -> None:
        """The card makes audio, and it comes through."""
        rows = round(BLOCK_S * RATE_HZ)
        for _ in range(round(seconds / BLOCK_S)):
            samples = self._samples(rows)
            self._pass(rows)
            arrival_s = self._at_s + self._late_s()
            self._put(arrival_s, Chunk(self._first, rows, self._flag, 0.0, self.suspended, samples, self._shed))
            self._first += rows
            self._flag, self._shed = False, 0
            self.truth["recorded", ""] += rows / self.rate_hz

    def overrun(self, rows: int) -> None:
        """The card loses samples, and says that it did, not how many."""
        self._lose(rows, "gap", "overrun")
        self._flag = True

    def drop(self, rows: int) -> None:
        """The capture process drops samples, and counts them."""
        self._lose(rows, "gap", "the capture process found no room")
        self._first += rows

    def shed(self, rows: int) -> None:
        """The queue to inference is full."""
        self._lose(rows, "shed", "inference is behind")
        self._first += rows
        self._shed = rows

    def unplug(self, seconds: float) -> None:
        """The card is gone, is missed after a second, and comes back."""
        self._put(self._at_s + 1.0, Ended("pulled"))
        self.truth["gap", "device gone: pulled"] += seconds
        self.open(seconds)

    def suspend(self, seconds: float) -> None:
        """The machine sleeps."""
        self._at_s = self._arrival_s = max(self._at_s, self._arrival_s)
        slept_from_s = self._at_s

        def sleep() -> None:
            self.now_s, self.suspended = max(self.now_s, slept_from_s + seconds), self.suspended + seconds

        self._put(self._at_s, sleep)
        late_s = slept_from_s - self._made(self._counter)
        self._at_s += seconds
        self._starts.append((self._counter, self._at_s))
        self.truth["gap", "suspended"] += seconds + late_s

    def jump(self, seconds: float, sure: bool = True) -> None:
        """Somebody sets the clock."""
        at_s = self._arrival_s

        def set_clock() -> None:
            if sure and not self.sure:
                self.offsets.clear()  # the time before is put right
            self.utc_s, self.sure = self.utc_s + seconds, sure
            self.offsets.append((self.now_s, self.utc_s))

        self._put(at_s, set_clock)

    def do(self, action: Callable[[], object]) -> None:
        """Something else happens."""
        self._put(self._arrival_s, action)

    def crash(self, seconds: float) -> None:
        """Nothing runs for so long; what is under way is gone."""
        self._queue.clear()
        self.now_s += seconds
        self._at_s = self._arrival_s = self.now_s
        self._flag, self._shed = False, 0

    # What the source sees.

    def start(self) -> None:
        """As a feed's; nothing is to be started."""

    close = start
    behind_s = 0.0

    @property
    def waiting(self) -> World:
        """As a feed's."""
        return self

    def get(self, timeout_s: float) -> Event | None:
        """As a queue's, while time goes on."""
        until_s = self.now_s + timeout_s
        while self._queue and self._queue[0][0] <= until_s:
            at_s, what = self._queue.popleft()
            self.now_s = max(self.now_s, at_s)
            if isinstance(what, Chunk):
                return replace(what, steady_s=at_s, suspended_s=self.suspended)
            if isinstance(what, (Opened, Ended)):
                return what
            what()
        self.now_s = max(self.now_s, until_s)
        return None

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return not self._queue

    # What is true.

    def made_s(self, samples: Any) -> float:
        """When the card made the first sample of a block."""
        return self._made(int(counters(samples[:1])[0]))

    def ahead_s(self, steady_s: float) -> float | None:
        """What UTC was ahead of the steady clock; None while the stream cannot know yet."""
        at, ahead_s = self.offsets[max(0, bisect_right(self.offsets, (steady_s, 1e18)) - 1)]
        new = 0 <= steady_s - at < LOOK_S or self.now_s - self.offsets[-1][0] < LOOK_S
        return None if new else ahead_s

    def _made(self, counter: int) -> float:
        first, start_s = self._starts[bisect_right(self._starts, (counter, 1e18)) - 1]
        return start_s + (counter - first) / self.rate_hz

    def _lose(self, rows: int, kind: str, cause: str) -> None:
        self._pass(rows)
        self.truth[kind, cause] += rows / self.rate_hz

    def _pass(self, rows: int) -> None:
        self._counter += rows
        self._at_s = self._made(self._counter)

    def _samples(self, rows: int) -> bytes:
        counter = np.arange(self._counter, self._counter + rows)
        return np.stack([counter % DIGIT, counter // DIGIT], axis=1).astype("<i2").tobytes()

    def _late_s(self) -> float:
        """Some ms, and now and then a few blocks at once."""
        burst_s = self._dice.uniform(0, 0.3) if self._dice.random() < 0.02 else 0.0
        return self._dice.expovariate(1 / 0.002) + burst_s

    def _put(self, at_s: float, what: Event | Callable[[], object]) -> None:
        self._arrival_s = max(self._arrival_s, at_s)
        self._queue.append((self._arrival_s, what))


def counters(samples: Any) -> Any:
    """The card's counter of each row of a block."""
    digits = np.rint(samples.astype(np.float64) * DIGIT).astype(np.int64)
    return digits[:, 0] + digits[:, 1] * DIGIT


class Listener:
    """A session that listens to a world, and checks each block as it comes."""

    def __init__(self, world: World, store: Store, duty: DutySettings | None = None) -> None:
        choice = replace(SourceSettings(), device="card", rate_hz=RATE_HZ, device_channels=2)
        live = LiveSource(choice, world, command=("false",))
        live._feed = world  # type: ignore[assignment]
        assert live.clock is not None
        self.world = world
        self.clock = live.clock
        self.source: Source = live if duty is None else OnDuty(live, duty)
        self.ledger = Ledger(store, Session("card", True, RATE_HZ, (0, 1)), self.clock, world)
        self.rows = 0
        self.position = 0
        self.checked = 0

    def listen(self, most: int | None = None) -> None:
        """Until nothing more happens, or for so many items."""
        for item in islice(self.source.blocks(), most):
            if isinstance(item, ClockChange):
                self.ledger.clock_changed(item)
                continue
            assert item.start_sample == self.position
            self.position = item.end_sample
            if isinstance(item, Missing):
                self.ledger.missing(item)
            else:
                self._hear(item)
            if self.world.over:
                return

    def _hear(self, block: AudioBlock) -> None:
        self.ledger.recorded(block.start_sample, block.end_sample)
        self.rows += len(block.samples)
        found = counters(block.samples)
        assert np.all(np.diff(found) == 1)
        self._check_utc(block)

    def _check_utc(self, block: AudioBlock) -> None:
        made_s = self.world.made_s(block.samples)
        ahead_s = self.world.ahead_s(made_s)
        if ahead_s is not None:
            utc = self.source.utc_at(block.start_sample)
            assert utc is not None
            assert (utc - EPOCH).total_seconds() == pytest.approx(made_s + ahead_s, abs=0.01)
            self.checked += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "log.sqlite") as store:
        yield store


def rows_of(store: Store) -> list[Stretch]:
    query = f"SELECT {COLUMNS} FROM ledger ORDER BY session, start_sample IS NOT NULL, start_sample"
    with store.transaction() as connection:
        return [stretch(row) for row in connection.execute(query)]


def totals(rows: list[Stretch]) -> Truth:
    """Seconds by kind and cause."""
    found: Truth = defaultdict(float)
    for row in rows:
        found[row.kind, row.cause] += row.duration_s
    return found


def samples_of(rows: list[Stretch], kind: str, cause: str = "") -> int:
    found = [row for row in rows if (row.kind, row.cause) == (kind, cause)]
    return sum((row.end_sample or 0) - (row.start_sample or 0) for row in found)


def check_tiles(rows: list[Stretch], world: World) -> None:
    """Every second from the first to the last row is in one row, with the UTC that belongs to it."""
    for row, following in zip(rows, rows[1:]):
        assert row.end_steady_s == following.start_steady_s
        assert following.start_sample in (None, 0) or row.end_sample == following.start_sample
    for row in rows:
        assert row.duration_s >= 0 and row.start_utc is not None and row.end_utc is not None
        assert (row.end_utc - row.start_utc).total_seconds() == pytest.approx(row.duration_s, abs=0.01)
        ahead_s = world.ahead_s((row.start_steady_s + row.end_steady_s) / 2)
        if ahead_s is not None:
            assert (row.start_utc - EPOCH).total_seconds() - row.start_steady_s == pytest.approx(ahead_s, abs=0.01)


# By name: how often, and what a world does.
HAPPENS: dict[str, tuple[int, Callable[[World, random.Random], None]]] = {
    "overrun": (12, lambda world, dice: world.overrun(dice.randrange(40, 3 * RATE_HZ))),
    "drop": (5, lambda world, dice: world.drop(dice.randrange(1, 5 * RATE_HZ))),
    "shed": (3, lambda world, dice: world.shed(dice.randrange(1, 60 * RATE_HZ))),
    "unplug": (5, lambda world, dice: world.unplug(dice.uniform(3, 900))),
    "suspend": (3, lambda world, dice: world.suspend(dice.uniform(60, 5 * 3600))),
    "forward": (2, lambda world, dice: world.jump(3600)),
    "back": (2, lambda world, dice: world.jump(-3600)),
}


@pytest.mark.parametrize(("ppm", "seed"), [(100.0, 1), (-100.0, 2), (0.0, 3)])
def test_the_ledger_is_the_truth(store: Store, ppm: float, seed: int) -> None:
    dice = random.Random(seed)
    world = World(ppm, seed)
    names = [name for name, (times, _) in HAPPENS.items() for _ in range(times)]
    dice.shuffle(names)
    world.open()
    world.audio(180)  # the drift is known from here on
    for name in names:
        HAPPENS[name][1](world, dice)
        world.audio(dice.uniform(5, 60))
    listener = Listener(world, store)
    listener.listen()
    listener.ledger.close()
    rows = rows_of(store)
    check_tiles(rows, world)
    found = totals(rows)
    assert found.keys() == world.truth.keys()
    for sort, truth_s in world.truth.items():
        times = len(names) if sort[0] == "recorded" else sum(row.cause == sort[1] for row in rows)
        assert found[sort] == pytest.approx(truth_s, abs=EACH_S * times), sort
    assert samples_of(rows, "recorded") == listener.rows
    assert listener.rows == round(world.truth["recorded", ""] * world.rate_hz)
    for kind, cause in (("gap", "the capture process found no room"), ("shed", "inference is behind")):
        assert samples_of(rows, kind, cause) == round(world.truth[kind, cause] * world.rate_hz)
    elapsed_s = sum(found.values())
    assert elapsed_s == pytest.approx(sum(world.truth.values()), abs=0.05)
    assert elapsed_s == pytest.approx(rows[-1].end_steady_s - rows[0].start_steady_s, abs=1e-6)
    assert listener.checked > 0.9 * listener.rows / (BLOCK_S * RATE_HZ)
    assert listener.clock.drift_ppm == pytest.approx(ppm, abs=10)


def test_a_start_without_a_clock_is_put_right(store: Store) -> None:
    world = World(50, 4, synchronised=False)
    right_s, world.utc_s = world.utc_s, world.utc_s - 300 * 86400
    world.offsets = [(world.now_s, world.utc_s)]
    world.open()
    world.audio(100)
    world.unplug(200)
    world.audio(100)
    world.jump(299 * 86400, sure=False)
    world.audio(50)
    world.jump(86400)
    world.audio(50)
    listener = Listener(world, store)
    listener.listen()
    listener.ledger.close()
    assert world.utc_s == right_s
    rows = rows_of(store)
    check_tiles(rows, world)
    assert all(row.synchronised for row in rows)
    assert [row.kind for row in rows] == ["recorded", "gap", "recorded", "recorded", "recorded"]
    for sort, truth_s in world.truth.items():
        assert totals(rows)[sort] == pytest.approx(truth_s, abs=EACH_S * 2), sort


def test_a_card_that_is_not_there_at_first_and_a_stop_between(store: Store) -> None:
    world = World(-100, 5)
    world._put(world.now_s + 0.5, Ended("no card"))
    world.open(300)
    world.audio(120)
    first = Listener(world, store)
    first.listen()
    first.ledger.close()
    ended_s = world._made(world._counter)
    world.crash(500)
    world.open(2)
    world.audio(120)
    second = Listener(world, store)
    second.listen()
    second.ledger.close()
    rows = rows_of(store)
    check_tiles(rows, world)
    assert [(row.kind, row.cause) for row in rows] == [
        ("gap", "device gone: no card"), ("recorded", ""), ("gap", "not running"), ("recorded", ""),
    ]  # fmt: skip
    assert rows[0].duration_s == pytest.approx(300, abs=EACH_S)
    assert rows[2].duration_s == pytest.approx(world._starts[-1][1] - ended_s, abs=2 * EACH_S)
    assert first.rows + second.rows == samples_of(rows, "recorded") == 240 * RATE_HZ


def test_steps_of_the_ladder_are_counted_to_the_sample(store: Store) -> None:
    world = World(0, 6)
    world.open()
    steps = [(0, ""), (1, "longer hop"), (2, "fewer channels"), (0, "")]
    listener = Listener(world, store)
    for step, name in steps:
        world.do(lambda step=step, name=name: listener.ledger.step(step, name))  # type: ignore[misc]
        world.audio(60)
    listener.listen()
    listener.ledger.close()
    rows = rows_of(store)
    check_tiles(rows, world)
    assert [(row.step, row.step_name) for row in rows] == steps
    assert [row.duration_s for row in rows] == pytest.approx([60] * 4, abs=2.0)  # audio is held before it is placed
    assert samples_of(rows, "recorded") == 240 * RATE_HZ


def test_duty_follows_utc(store: Store) -> None:
    world = World(100, 7)
    world.open()
    world.audio(400)
    world.unplug(500)
    world.audio(1300)
    listener = Listener(world, store, replace(DutySettings(), on_s=100, every_s=300))
    listener.listen()
    listener.ledger.close()
    rows = rows_of(store)
    check_tiles(rows, world)
    begun_s = world._starts[0][1] + world.utc_s
    end_s = world._made(world._counter) + world.utc_s
    for row in rows:
        assert row.start_utc is not None and row.end_utc is not None
        middle_s = ((row.start_utc - EPOCH).total_seconds() + (row.end_utc - EPOCH).total_seconds()) / 2
        assert (row.kind == "off_duty") == (middle_s % 300 >= 100)
    off_s = sum(1 for second in np.arange(begun_s + 0.05, end_s, 0.1) if second % 300 >= 100) * 0.1
    assert totals(rows)["off_duty", "duty cycle"] == pytest.approx(off_s, abs=0.2)
    assert sum(totals(rows).values()) == pytest.approx(end_s - begun_s, abs=2 * EACH_S)


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_any_moment_leaves_no_hole(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    world = World(30, seed)
    heard, away = 0, []
    for _ in range(4):
        world.open(dice.uniform(0.1, 3))
        for _ in range(3):
            world.audio(dice.uniform(2, 60))
            world.overrun(dice.randrange(40, RATE_HZ))
        world.audio(2)
        listener = Listener(world, store)
        listener.listen(dice.randrange(1, 1000))
        if dice.random() < 0.5:  # as a detection does
            with store.transaction() as connection:
                listener.ledger.extend(connection)
        heard += listener.rows
        away.append(dice.uniform(0.1, 600))
        world.crash(away[-1])
    world.open()
    world.audio(10)
    last = Listener(world, store)
    last.listen()
    last.ledger.close()
    rows = rows_of(store)
    check_tiles(rows, world)
    elapsed_s = rows[-1].end_steady_s - rows[0].start_steady_s
    assert sum(row.duration_s for row in rows) == pytest.approx(elapsed_s, abs=1e-6)
    assert rows[-1].end_steady_s == pytest.approx(world._made(world._counter), abs=EACH_S)
    idle = [row.duration_s for row in rows if row.cause == "not running"]
    assert len(idle) == 4
    for found_s, away_s in zip(idle, away):
        assert away_s < found_s < away_s + 40  # a checkpoint, what was held, and the card's start
    lost = heard + last.rows - samples_of(rows, "recorded")
    assert 0 <= lost <= 4 * 31 * RATE_HZ
