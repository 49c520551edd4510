from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from orcawatch import retention as module
from orcawatch.config import RetentionSettings
from orcawatch.durable import make_folder, remove_partials, write_bytes
from orcawatch.errors import OrcawatchError
from orcawatch.recorder import file_name
from orcawatch.retention import Reserve, Retention
from orcawatch.store import Detection, Store

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
KB = 1000
SOUND_B, PICTURE_B, ARRAYS_B = 60 * KB, 30 * KB, 10 * KB
NO_LIMITS = RetentionSettings(min_free_mb=0, reserve_mb=0)


class FakeClocks:
    """A clock that stands at `NOW`."""

    boot = "b"
    trusted: bool | None = True

    def steady_s(self) -> float:
        return 0.0

    def suspended_s(self) -> float:
        return 0.0

    def utc(self) -> datetime:
        return NOW

    def synchronised(self) -> bool | None:
        return self.trusted


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "out" / "detections.sqlite") as store:
        for name in ("clips", "snapshots"):
            (tmp_path / "out" / name).mkdir()
        yield store


def put(store: Store, count: int, attach: bool = True, **changes: Any) -> list[Detection]:
    """Detections with clip, picture and arrays; 100 KB each."""
    blank = Detection(None, "sea", 1.0, 2.0, NOW, 0.5, (0,), (0.5,), 0, "b", "d")
    return [put_one(store, replace(blank, **changes), attach) for _ in range(count)]


def put_one(store: Store, detection: Detection, attach: bool) -> Detection:
    added = replace(detection, id=store.add(detection))
    name = file_name(added)
    output = store.path.parent
    (output / "clips" / f"{name}.flac").write_bytes(bytes(SOUND_B))
    (output / "snapshots" / f"{name}.png").write_bytes(bytes(PICTURE_B))
    (output / "snapshots" / f"{name}.npz").write_bytes(bytes(ARRAYS_B))
    found = replace(added, clip=f"clips/{name}.flac", snapshot=f"snapshots/{name}.png")
    if attach:
        store.attach(int(added.id or 0), found.clip, found.snapshot)
    return found


def judge(store: Store, id: int, verdict: str) -> None:
    with store.transaction() as connection:
        connection.execute("UPDATE detections SET verdict = ? WHERE id = ?", (verdict, id))


def kept(store: Store, settings: RetentionSettings, clocks: Any = None) -> tuple[int, list[int | None]]:
    """Sweep; (how many went, numbers of those that stay), after a look at what holds always."""
    count = len(store.detections())
    removed = Retention(store, store.path.parent, settings, clocks or FakeClocks()).sweep()
    rows = store.detections()
    assert len(rows) == count
    for row in rows:
        assert all(file.is_file() == (row.removed is None) for file in files_of(store, row)), row
    return removed, [row.id for row in rows if row.removed is None]


def files_of(store: Store, row: Detection) -> Sequence[Path]:
    output = store.path.parent
    picture = output / str(row.snapshot)
    return (output / str(row.clip), picture, picture.with_suffix(".npz"))


def files(store: Store) -> list[Path]:
    """All clips, pictures and arrays that are there."""
    return [file for name in module.FOLDERS for file in (store.path.parent / name).iterdir()]


def test_nothing_goes_within_the_limits(store: Store) -> None:
    put(store, 5)
    assert kept(store, NO_LIMITS) == (0, [1, 2, 3, 4, 5])
    roomy = RetentionSettings(max_age_days=1, max_clips_mb=1, min_free_mb=1, reserve_mb=0)
    assert kept(store, roomy) == (0, [1, 2, 3, 4, 5])


def test_the_oldest_that_nobody_reviewed_go_first_and_orcas_last(store: Store) -> None:
    put(store, 12)
    for id, verdict in {1: "orca", 2: "unsure", 3: "not_orca", 5: "orca", 6: "not_orca", 7: "unsure"}.items():
        judge(store, id, verdict)
    order = [4, 8, 9, 10, 11, 12, 3, 6, 2, 7, 1]
    for most in range(11, 0, -1):
        _, left = kept(store, replace(NO_LIMITS, max_clips_mb=most / 10))
        assert left == sorted({*range(1, 13)} - set(order[: 12 - most]))


def test_rows_say_why(store: Store) -> None:
    put(store, 1, start_utc=NOW - timedelta(days=40))
    put(store, 3)
    kept(store, RetentionSettings(max_age_days=30.5, max_clips_mb=0.2, min_free_mb=0, reserve_mb=0))
    assert [row.removed for row in store.detections()] == ["older than 30.5 days", "more than 0.2 MB", None, None]
    kept(store, RetentionSettings(min_free_mb=1e9, reserve_mb=0))
    assert {row.removed for row in store.detections()[2:]} == {"less than 1e+09 MB free on the disk"}


def test_the_old_go_whatever_their_verdict(store: Store) -> None:
    elsewhere = timezone(timedelta(hours=-8))
    for days in (31, 30.1, 29.9, 3):
        put(store, 1, start_utc=(NOW - timedelta(days=days)).astimezone(elsewhere))
    judge(store, 2, "orca")
    assert kept(store, replace(NO_LIMITS, max_age_days=30)) == (2, [3, 4])


def test_a_clock_that_is_wrong_makes_nothing_old(store: Store) -> None:
    put(store, 1, start_utc=datetime(1970, 1, 1, tzinfo=timezone.utc), synchronised=False)
    put(store, 1, start_utc=NOW - timedelta(days=99), synchronised=True)
    clocks = FakeClocks()
    clocks.trusted = False
    assert kept(store, replace(NO_LIMITS, max_age_days=30), clocks) == (0, [1, 2])
    clocks.trusted = None
    assert kept(store, replace(NO_LIMITS, max_age_days=30), clocks) == (1, [1])


def test_without_a_time_the_files_tell_the_age(store: Store) -> None:
    for days in (40, 20):
        (found,) = put(store, 1, start_utc=None)
        for file in files_of(store, found):
            os.utime(file, ((NOW - timedelta(days=days)).timestamp(),) * 2)
    assert kept(store, replace(NO_LIMITS, max_age_days=30)) == (1, [2])


def test_the_disk_is_kept_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much goes as is missing, no more. The free room is scripted; test_small_disks.py has real ones."""
    put(store, 10)
    output = store.path.parent
    there = lambda: sum(file.stat().st_size for file in output.glob("*/*"))  # noqa: E731
    monkeypatch.setattr(module, "free_b", lambda folder: 3_000_000 - there())
    assert kept(store, replace(NO_LIMITS, min_free_mb=2.35)) == (4, [5, 6, 7, 8, 9, 10])
    assert kept(store, replace(NO_LIMITS, min_free_mb=2.35)) == (0, [5, 6, 7, 8, 9, 10])


def test_many_go_in_batches(store: Store) -> None:
    put(store, 50)
    assert kept(store, replace(NO_LIMITS, max_clips_mb=1)) == (40, list(range(41, 51)))


def test_settings_may_be_replaced(store: Store) -> None:
    put(store, 5)
    retention = Retention(store, store.path.parent, NO_LIMITS)
    assert retention.sweep() == 0
    retention.settings = replace(NO_LIMITS, max_clips_mb=0.1)
    assert retention.sweep() == 4


def test_where_no_file_is_there_rows_stay_as_they_are(store: Store) -> None:
    """Somebody took the disk with the clips."""
    put(store, 3)
    for name in ("clips", "snapshots"):
        (store.path.parent / name).rename(store.path.parent / f"{name} elsewhere")
    retention = Retention(store, store.path.parent, replace(NO_LIMITS, max_clips_mb=0.1, min_free_mb=1e9))
    assert retention.sweep() == 0 and [row.removed for row in store.detections()] == [None] * 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_in_between_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Killed after some of a row's three files were deleted."""
    put(store, 2)
    unlink, left = Path.unlink, [after]

    def dying(path: Path, missing_ok: bool = False) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(Killed):
        Retention(store, store.path.parent, replace(NO_LIMITS, max_clips_mb=0.1)).sweep()
    monkeypatch.undo()
    assert [row.removed for row in store.detections()] == ["more than 0.1 MB", None]
    Retention(store, store.path.parent, NO_LIMITS).begin()
    first, second = (files_of(store, row) for row in store.detections())
    assert not any(file.exists() for file in first) and all(file.exists() for file in second)


def test_what_cannot_be_deleted_is_told_and_tried_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A folder stands where the clip was."""
    (found,) = put(store, 1)
    put(store, 1)
    clip = store.path.parent / str(found.clip)
    clip.unlink()
    clip.mkdir()
    (clip / "x").touch()
    retention = Retention(store, store.path.parent, replace(NO_LIMITS, max_clips_mb=0.1))
    retention.sweep()
    retention.sweep()
    assert caplog.text.count("cannot be deleted") == 1
    (clip / "x").unlink()
    clip.rmdir()
    retention.sweep()
    assert "can be deleted again" in caplog.text
    assert not any(file.exists() for file in files_of(store, found))


def test_few_files_that_cannot_be_deleted_do_not_keep_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A part of the disk is damaged; then all of it."""
    monkeypatch.setattr(module, "STUBBORN", 3)
    found = put(store, 12)
    bad = {store.path.parent / str(found[0].clip)}
    unlink = Path.unlink

    def damaged(path: Path, missing_ok: bool = False) -> None:
        if path in bad:
            raise OSError(117, "Structure needs cleaning", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", damaged)
    retention = Retention(store, store.path.parent, replace(NO_LIMITS, max_clips_mb=0.8))
    for _ in range(3):
        retention.sweep()
    gone = [row for row in store.detections() if row.removed is not None]
    assert [file.exists() for row in gone for file in files_of(store, row)].count(True) == 1
    assert "Structure needs cleaning" in caplog.text and sum(file.stat().st_size for file in files(store)) <= 800 * KB
    bad |= set(files(store))
    retention.settings = replace(NO_LIMITS, max_clips_mb=0.1)
    for _ in range(5):
        retention.sweep()
    assert sum(row.removed is not None for row in store.detections()) <= len(gone) + module.BATCH
    bad.clear()
    retention.sweep()
    assert "can be deleted again" in caplog.text
    assert not any(file.exists() for row in gone for file in files_of(store, row))


@pytest.mark.parametrize("place", ["../precious", "{}/precious", "clips/../../precious", "precious", "clips", ""])
def test_nothing_elsewhere_is_deleted(store: Store, tmp_path: Path, place: str) -> None:
    """A row out of a damaged database names another file."""
    for folder in (tmp_path, store.path.parent):
        (folder / "precious").touch()
    for kind in ({"clip": place.format(tmp_path)}, {"snapshot": place.format(tmp_path)}):
        store.add(replace(Detection(None, "sea", 1.0, 2.0, NOW, 0.5, (0,), (0.5,), 0, "b", "d"), **kind))
    put(store, 1)
    retention = Retention(store, store.path.parent, replace(NO_LIMITS, max_clips_mb=0.01))
    retention.sweep()
    assert (tmp_path / "precious").exists() and (store.path.parent / "precious").exists() and not files(store)


def test_files_are_compared_with_rows_at_start(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    output = store.path.parent
    (whole,) = put(store, 1)
    (unattached,) = put(store, 1, attach=False, source="other sea", start_utc=NOW + timedelta(hours=1))
    (gone,) = put(store, 1)
    (output / str(gone.clip)).unlink()
    for stray in ("clips/000007_sea_20260601T000000.000000Z.flac", "clips/000001_another.flac", "clips/notes.txt"):
        (output / stray).write_bytes(b"x")
    for partial in ("clips/x.flac.partial", "snapshots/y.png.partial", "reserve.partial"):
        (output / partial).touch()
    Retention(store, output, NO_LIMITS).begin()
    rows = store.detections()
    assert rows[0] == whole and rows[1] == unattached and rows[2] == gone
    assert not list(output.glob("**/*.partial"))
    told = {line.split(": ")[0]: set(line.split(": ")[1].split(", ")) for line in caplog.messages}
    assert told == {
        "3 half-written files were removed": {"reserve.partial", "x.flac.partial", "y.png.partial"},
        "3 files were attached to their detections": {file.name for file in files_of(store, unattached)},
        "3 files belong to no detection; they are kept": {
            "000001_another.flac", "000007_sea_20260601T000000.000000Z.flac", "notes.txt",
        },
        "1 files of detections are gone": {str(gone.clip)},
    }  # fmt: skip


def test_a_file_of_another_detection_with_that_number_is_not_attached(store: Store) -> None:
    (found,) = put(store, 1, attach=False)
    with store.transaction() as connection:
        connection.execute("UPDATE detections SET start_utc = '2026-06-02T00:00:00+00:00'")
    Retention(store, store.path.parent, NO_LIMITS).begin()
    assert store.detections()[0].clip is None and files_of(store, found)[0].exists()


def test_files_without_a_row_go_after_those_that_nobody_reviewed(store: Store) -> None:
    output = store.path.parent
    put(store, 2)
    put(store, 1)
    judge(store, 3, "not_orca")
    for name, age_s in (("old", 2000), ("young", 1000)):
        (output / "clips" / name).write_bytes(bytes(100 * KB))
        os.utime(output / "clips" / name, (NOW.timestamp() - age_s,) * 2)
    retention = Retention(store, output, NO_LIMITS)
    retention.begin()
    left = []
    for most in (0.4, 0.3, 0.2, 0.1):
        retention.settings = replace(NO_LIMITS, max_clips_mb=most)
        retention.sweep()
        left.append(
            (
                [row.id for row in store.detections() if row.removed is None],
                sorted(file.name for file in (output / "clips").iterdir() if file.name in ("old", "young")),
            )
        )
    assert left == [([2, 3], ["old", "young"]), ([3], ["old", "young"]), ([3], ["young"]), ([3], [])]


def test_the_reserve_is_taken_whole_and_given_up(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 3_000_000)
    assert not reserve.held and not reserve.give_up()
    reserve.take()
    found = (tmp_path / "reserve").stat()
    assert reserve.held and found.st_size == 3_000_000 and found.st_blocks * 512 >= 3_000_000
    reserve.take()
    assert reserve.give_up() and not reserve.held


def test_a_low_disk_gives_the_reserve_to_the_log_and_takes_it_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [100_000_000]
    monkeypatch.setattr(module, "free_b", lambda folder: free[0])
    retention = Retention(store, store.path.parent, replace(NO_LIMITS, reserve_mb=1))
    retention.begin()
    put(store, 1)
    assert retention.reserve.held
    free[0] = 1_500_000
    put(store, 1)
    assert not retention.reserve.held
    free[0] = 3_500_000
    retention.sweep()
    assert not retention.reserve.held
    free[0] = 5_000_000
    retention.sweep()
    assert retention.reserve.held


def test_room_leaves_the_reserve_to_the_log(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    output = store.path.parent
    free = module.free_b(output)
    retention = Retention(store, output, replace(NO_LIMITS, reserve_mb=2))
    margin = 50_000_000
    assert retention.room(1000) and not retention.room(free + margin)
    huge = Retention(store, output, replace(NO_LIMITS, reserve_mb=(free + margin) / 1e6))
    assert not huge.room(0)
    assert caplog.text.count("no clip is kept") == 2
    assert not Retention(store, output / "nowhere", NO_LIMITS).room(0)


def test_the_thread_sweeps_when_there_was_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_S", 0.0)
    put(store, 4)
    swept = threading.Semaphore(0)
    sweep = Retention.sweep
    monkeypatch.setattr(Retention, "sweep", lambda retention: (sweep(retention), swept.release())[0])
    settings = replace(NO_LIMITS, max_clips_mb=1, sweep_s=3600)
    with Retention(store, store.path.parent, settings) as retention:
        assert swept.acquire(timeout=20)
        retention.settings = replace(settings, max_clips_mb=0.1)
        assert not retention.room(1 << 60)
        assert swept.acquire(timeout=20)
    assert len([row for row in store.detections() if row.removed]) == 3
    assert not retention._thread.is_alive()


def test_a_store_that_is_gone_is_told_only(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (store.path.parent / "detections.sqlite").rename(store.path.parent / "x.sqlite")
    retention = Retention(store, store.path.parent, replace(NO_LIMITS, max_clips_mb=1))
    retention.begin()
    assert retention.sweep() == 0
    assert "could not be looked through" in caplog.text
    with pytest.raises(OrcawatchError):
        store.add(Detection(None, "sea", 1.0, 2.0, NOW, 0.5, (0,), (0.5,), 0, "b", "d"))


def test_folders_and_partial_files(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    write_bytes(tmp_path / "a" / "b" / "c" / "d.flac", b"x")
    (tmp_path / "a" / "b" / "c" / "e.flac.partial").touch()
    assert remove_partials(tmp_path / "a" / "b" / "c") == ["e.flac.partial"]
    assert [file.name for file in (tmp_path / "a" / "b" / "c").iterdir()] == ["d.flac"]
    with pytest.raises(OSError):
        make_folder(tmp_path / "a" / "b" / "c" / "d.flac" / "e")
