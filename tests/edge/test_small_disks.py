"""The store, retention and the whole loop on real small file systems that fill up, turn read-only or go away."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import pytest

from orcawatch.config import ClipSettings, RetentionSettings, Settings
from orcawatch.daemon import Upkeep, run
from orcawatch.errors import OrcawatchError
from orcawatch.records import AudioBlock, StreamInfo
from orcawatch.recovery import open_store
from orcawatch.retention import Retention, free_b
from orcawatch.store import Detection, FullError, Store

pytestmark = pytest.mark.parts

RATE_HZ = 16000
START = datetime(2026, 5, 1, tzinfo=timezone.utc)
DETECTION = Detection(None, "sea", 1.0, 2.0, START, 0.5, (0,), (0.5,), 0, "b", "d")
BIG = replace(DETECTION, numbers={f"n{index}": index / 7 for index in range(3000)})
RESERVE = RetentionSettings(min_free_mb=0, reserve_mb=3, sweep_s=3600)


class Disk:
    """A small file system at `place`."""

    def __init__(self, place: Path, options: tuple[str, ...]) -> None:
        self.place = place
        self._options = options
        place.mkdir()
        self.mount()

    def mount(self, *more: str) -> None:
        done = subprocess.run(["mount", *self._options, *more, str(self.place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine cannot mount {' '.join(self._options)}: {done.stderr.strip()}")

    def go(self) -> None:
        """Vanish, also while files are open."""
        subprocess.run(["umount", "-l", str(self.place)], check=True)

    def break_down(self) -> None:
        """As ext4 does when it finds itself damaged: nothing can be written any more."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.place)], check=True)

    def fill(self, leave_b: int = 0) -> None:
        """Somebody else takes the room."""
        with (self.place / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while free_b(self.place) > leave_b:
                file.write(bytes(max(min(free_b(self.place) - leave_b, 1 << 20), 512)))

    def empty(self) -> None:
        """They give it back."""
        (self.place / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """A function that makes a `tmpfs` or an `ext4` of some MB; they are removed at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount small file systems")
    made: list[Disk] = []

    def make(kind: str, size_mb: int) -> Disk:
        if kind == "tmpfs":
            options = ("-t", "tmpfs", "-o", f"size={size_mb}m,nr_inodes=200", "none")
        else:
            image = tmp_path / f"{len(made)}.img"
            options = ("-t", "ext4", "-o", "loop", str(image))
            format_ext4(image, size_mb)
        made.append(Disk(tmp_path / f"disk{len(made)}", options))
        return made[-1]

    yield make
    for one in made:
        subprocess.run(["umount", "-l", str(one.place)], capture_output=True, check=False)


def format_ext4(image: Path, size_mb: int) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image.touch()
    os.truncate(image, size_mb << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)


class Sea:
    """A live stream as fast as it is taken; does things at some seconds."""

    waits = False
    behind_s = 0.0
    clock = None

    def __init__(self, samples: Any, at: Mapping[float, Callable[[], object]]) -> None:
        self.info = StreamInfo("sea", RATE_HZ, samples.shape[1], START)
        self._samples = samples
        self._at = {round(second * RATE_HZ): act for second, act in at.items()}

    def utc_at(self, sample: int) -> datetime | None:
        return self.info.utc_at(sample)

    def blocks(self) -> Iterator[AudioBlock]:
        for first in range(0, len(self._samples), RATE_HZ // 4):
            if first in self._at:
                self._at[first]()
            yield AudioBlock(self._samples[first : first + RATE_HZ // 4], first)


class Watch(Upkeep):
    """Only the disk is looked after; clips are waited for, so that what happens when is certain."""

    def __init__(self, output: Path, settings: RetentionSettings) -> None:
        self._output, self._settings = output, settings

    @contextmanager
    def watching(self, store: Store) -> Iterator[None]:
        with Retention(store, self._output, self._settings) as self.retention:
            yield

    def processed(self, loop: Any) -> None:
        while any(not making.done() for making in loop.recorder._making):
            time.sleep(0.001)

    def room(self, size: int) -> bool:
        return self.retention.room(size)


CALLS = [(second, second + 1.2) for second in range(4, 84, 8)]


@pytest.fixture(scope="module")
def sea(make_audio: Callable[..., Any]) -> Any:
    """Eighty-eight seconds of two channels with ten calls, eight seconds apart."""
    return make_audio(RATE_HZ, 88.0, 2, CALLS)


def watched(sea: Any, ensemble: Any, disk: Disk, at: Mapping[float, Callable[[], object]]) -> list[Detection]:
    """Listen; the detections afterwards, after checks that hold whatever the disk did."""
    output = disk.place / "out"
    settings = Settings(output=output, snapshots=False, clips=ClipSettings(pre_roll_s=1, post_roll_s=1))
    totals = run(Sea(sea, at), ensemble, settings, lambda detection: None, upkeep=Watch(output, RESERVE))
    assert (totals.events, totals.lost, totals.read_s) == (len(CALLS), 0, 88.0)
    with open_store(output / "detections.sqlite") as store:
        rows = store.detections()
        with store.transaction() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            spans = connection.execute(
                "SELECT start_sample, end_sample FROM ledger WHERE session = 1 AND start_sample IS NOT NULL "
                "ORDER BY start_sample"
            ).fetchall()
    assert [round(row.start_s - call[0]) for row, call in zip(rows, CALLS)] == [0] * len(CALLS)
    assert spans[0][0] == 0 and spans[-1][1] == len(sea)
    assert all(one[1] == two[0] for one, two in zip(spans, spans[1:]))
    assert all((output / str(row.clip)).is_file() for row in rows if row.clip is not None)
    assert not list(output.glob("**/*.partial"))
    return rows


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_stops_clips_and_nothing_else(
    disk: Callable[..., Disk], sea: Any, ensemble: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """From 30 to 60 s there is not a byte free, but for the reserve."""
    small = disk(kind, 32)
    held: list[bool] = []
    look = lambda: held.append((small.place / "out" / "reserve").exists())  # noqa: E731
    at = {26.0: look, 30.0: small.fill, 59.0: look, 60.0: small.empty}
    rows = watched(sea, ensemble, small, at)
    assert [row.clip is not None for row in rows] == [True] * 3 + [False] * 4 + [True] * 3
    assert held == [True, False]
    assert caplog.text.count("no clip is kept") == 1 and caplog.text.count("is given up for the log") == 1
    assert "has room for clips again" in caplog.text


def test_a_disk_that_turns_read_only_is_waited_for(
    disk: Callable[..., Disk], sea: Any, ensemble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At 30 s ext4 gives up; at 60 s it is mounted anew. What was detected meanwhile is written then, without clip."""
    small = disk("ext4", 32)

    def repair() -> None:
        small.go()
        small.mount()

    rows = watched(sea, ensemble, small, {30.0: small.break_down, 60.0: repair})
    assert [row.clip is not None for row in rows[:3]] == [True] * 3 and rows[-1].clip is not None
    assert [row.clip for row in rows[3:7]] == [None] * 4
    told = [record.getMessage() for record in caplog.records if record.name == "orcawatch.store"]
    assert len(told) == 2 and "could not be used" in told[0] and "can be written to again" in told[1]


def test_a_disk_that_vanishes_is_waited_for(disk: Callable[..., Disk], sea: Any, ensemble: Any) -> None:
    """Nothing is written into the empty mount point meanwhile."""
    small = disk("ext4", 32)
    under: list[list[Path]] = []

    def come_back() -> None:
        under.append(list(small.place.iterdir()))
        small.mount()

    rows = watched(sea, ensemble, small, {30.0: small.go, 60.0: come_back})
    assert under == [[]]
    assert [row.clip is not None for row in rows[:3]] == [True] * 3 and rows[-1].clip is not None


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_the_log_goes_on_in_the_reserve_to_its_last_byte(disk: Callable[..., Disk], kind: str) -> None:
    """Nothing that was acknowledged is lost when that too is full; with room again it goes on."""
    small = disk(kind, 24)
    with open_store(small.place / "out" / "detections.sqlite") as store:
        retention = Retention(store, small.place / "out", RESERVE)
        retention.begin()
        small.fill()
        ids = []
        with pytest.raises(FullError, match="is full"):
            while len(ids) < 1000:
                ids.append(store.add(BIG))
        assert len(ids) * 60_000 > 1_000_000 and not retention.reserve.held
        assert [row.id for row in store.detections()] == ids
        small.empty()
        ids.append(store.add(BIG))
        retention.sweep()
        assert retention.reserve.held
    with open_store(small.place / "out" / "detections.sqlite") as store:
        assert [row.id for row in store.detections()] == ids
        assert not list(store.path.parent.glob("*damaged*"))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_clips_go_until_so_much_of_the_disk_is_free(disk: Callable[..., Disk], kind: str) -> None:
    small = disk(kind, 32)
    with open_store(small.place / "detections.sqlite") as store:
        (small.place / "clips").mkdir()
        for _ in range(20):
            id = store.add(DETECTION)
            (small.place / "clips" / f"{id}.flac").write_bytes(bytes(1_000_000))
            store.attach(id, clip=f"clips/{id}.flac")
        wanted_mb = free_b(small.place) / 1e6 + 7
        Retention(store, small.place, replace(RESERVE, min_free_mb=wanted_mb)).sweep()
        assert wanted_mb * 1e6 - 500_000 <= free_b(small.place) < (wanted_mb + 1.5) * 1e6
        assert (small.place / "reserve").exists()
        gone = [row.id for row in store.detections() if row.removed]
        assert gone == list(range(1, len(gone) + 1)) and 9 <= len(gone) <= 11
        assert len(list((small.place / "clips").iterdir())) == 20 - len(gone)


def test_on_a_disk_without_a_byte_clips_are_deleted_first_and_told_then(disk: Callable[..., Disk]) -> None:
    """There is no reserve, and no room to say why in the row."""
    small = disk("tmpfs", 8)
    with open_store(small.place / "detections.sqlite") as store:
        (small.place / "clips").mkdir()
        id = store.add(DETECTION)
        (small.place / "clips" / "1.flac").write_bytes(bytes(1_000_000))
        store.attach(id, clip="clips/1.flac")
        small.fill()
        with pytest.raises(FullError):
            while True:
                store.add(BIG)
        Retention(store, small.place, replace(RESERVE, min_free_mb=1, reserve_mb=0)).sweep()
        assert store.detections()[0].removed == "less than 1 MB free on the disk"
        assert not (small.place / "clips" / "1.flac").exists()


def test_a_disk_without_room_for_another_file_takes_no_clip(disk: Callable[..., Disk]) -> None:
    small = disk("tmpfs", 8)
    with open_store(small.place / "detections.sqlite") as store:
        retention = Retention(store, small.place, RESERVE)
        retention.begin()
        assert retention.room(1000)
        for index in range(180):
            (small.place / f"file{index}").touch()
        assert not retention.room(1000)


def test_a_read_only_disk_can_be_looked_at(disk: Callable[..., Disk], tmp_path: Path) -> None:
    """As a card from the buoy: closed in order, after a power cut, and without the index of the log."""
    small = disk("ext4", 16)
    with Store(small.place / "closed" / "d.sqlite") as store:
        store.add(DETECTION)
        for name, parts in {"cut": ("", "-wal", "-shm"), "bare": ("", "-wal")}.items():
            (small.place / name).mkdir()
            for part in parts:
                shutil.copy(f"{store.path}{part}", small.place / name)
    before = {file: file.read_bytes() for file in small.place.glob("*/*")}
    small.go()
    small.mount("-o", "ro")
    for name in ("closed", "cut", "bare"):
        with Store.reader(small.place / name / "d.sqlite") as reader:
            assert reader.detections() == [replace(DETECTION, id=1)]
            with pytest.raises(OrcawatchError), reader.transaction() as connection:
                connection.execute("DELETE FROM detections" if name != "bare" else "DELETE FROM nowhere")
        with pytest.raises(OrcawatchError, match=r"readonly|disk I/O error|unable to open"):
            open_store(small.place / name / "d.sqlite")
    assert {file: file.read_bytes() for file in small.place.glob("*/*")} == before


def test_a_damaged_database_on_a_full_disk_is_begun_anew(
    disk: Callable[..., Disk], caplog: pytest.LogCaptureFixture
) -> None:
    """There is no room for its rows; they stay in the file that was moved aside."""
    small = disk("ext4", 32)
    path = small.place / "detections.sqlite"
    with Store(path) as store:
        for _ in range(60):
            store.add(BIG)
    content = bytearray(path.read_bytes())
    content[:100] = os.urandom(100)
    path.write_bytes(content)
    small.fill(1_000_000)
    with caplog.at_level(logging.ERROR), open_store(path) as store:
        assert store.detections() == [] and store.add(DETECTION) > 0
    (aside,) = small.place.glob("*damaged*")
    assert aside.read_bytes() == content and "they stay there" in caplog.text
