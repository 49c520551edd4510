from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile

from orcawatch import drawing, recorder, store
from orcawatch.config import ClipSettings, EventSettings, HydrophoneSettings, Settings
from orcawatch.daemon import Upkeep, run, stop_signals
from orcawatch.errors import AudioError, InputError
from orcawatch.listener import Totals
from orcawatch.recorder import file_name
from orcawatch.records import AudioBlock, StreamInfo
from orcawatch.service import Service
from orcawatch.store import Detection, Store

RATE_HZ = 16000
CALLS = [(2.0, 3.5), (6.0, 7.0), (12.0, 12.8)]


def nothing() -> None:
    pass


class FakeSource:
    """Yields given stretches of audio, (start_sample, samples), in blocks of `rows`; may break at the end, and do things `at` samples."""

    def __init__(
        self,
        stretches: Sequence[tuple[int, Any]],
        rows: int = 4000,
        fault: str = "",
        waits: bool = True,
        start_utc: datetime | None = None,
        at: Mapping[int, Callable[[], object]] | None = None,
    ) -> None:
        self.info = StreamInfo("sea/x y.flac", RATE_HZ, stretches[0][1].shape[1], start_utc)
        self.waits = waits
        self.behind_s = 0.0
        self.clock = None
        self.yielded = 0
        self._stretches = stretches
        self._rows = rows
        self._fault = fault
        self._at = at or {}

    def utc_at(self, sample: int) -> datetime | None:
        return self.info.utc_at(sample)

    def blocks(self) -> Iterator[AudioBlock]:
        for start, samples in self._stretches:
            for first in range(0, len(samples), self._rows):
                self.yielded += 1
                self._at.get(start + first, nothing)()
                yield AudioBlock(samples[first : first + self._rows], start + first)
        if self._fault:
            raise AudioError(self._fault)


@pytest.fixture
def sea(make_audio: Callable[..., Any]) -> Any:
    """Fifteen seconds of two channels with `CALLS`."""
    return make_audio(RATE_HZ, 15.0, 2, CALLS)


def settings_in(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(**{"output": tmp_path / "out", "snapshots": False, **changes})


def listened(source: Any, ensemble: Any, settings: Settings, **options: Any) -> tuple[list[Detection], Totals]:
    found: list[Detection] = []
    return found, run(source, ensemble, settings, found.append, **options)


def stored(settings: Settings) -> list[Detection]:
    with Store(settings.output / "detections.sqlite") as store:
        return store.detections()


def test_each_event_has_a_row_a_clip_and_a_snapshot(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, snapshots=True, station="north")
    start_utc = datetime(2026, 1, 1, tzinfo=timezone.utc)
    found, totals = listened(FakeSource([(0, sea)], start_utc=start_utc), ensemble, settings)
    assert found == stored(settings) and totals.events == 3
    for detection, (start_s, end_s) in zip(found, CALLS):
        assert abs(detection.start_s - start_s) < 0.72 and abs(detection.end_s - end_s) < 0.72
        assert detection.start_utc == start_utc + timedelta(seconds=detection.start_s)
        assert (detection.source, detection.bundle, detection.best_channel) == ("sea/x y.flac", "fake", 1)
        assert detection.clip is not None and detection.snapshot is not None
        assert "relevance_in_band" in detection.numbers
        assert (settings.output / detection.snapshot).read_bytes().startswith(b"\x89PNG")
        assert (settings.output / detection.snapshot).with_suffix(".npz").is_file()


def test_pictures_of_a_long_watch_are_drawn_by_others(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    class Long(Upkeep):
        apart = True

    def hidden(*about: Any) -> Any:
        raise AssertionError("this process draws")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "draw", hidden)
        settings = settings_in(tmp_path, snapshots=True)
        found, totals = listened(FakeSource([(0, sea)]), ensemble, settings, upkeep=Long())
    assert totals.events == 3 and Service.apart
    for detection in found:
        assert (settings.output / str(detection.snapshot)).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("apart", [False, True])
def test_audio_is_let_go_before_it_is_explained(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    pieces, left = [], []
    init, make = recorder.Piece.__init__, recorder.make_snapshot

    def noted(piece: Any, *about: Any) -> None:
        init(piece, *about)
        pieces.append(piece)

    def looked(*about: Any) -> Any:
        left.append([len(piece.samples) for piece in pieces[: len(left) + 1]])
        return make(*about[:-1], apart)

    monkeypatch.setattr(recorder.Piece, "__init__", noted)
    monkeypatch.setattr(recorder, "make_snapshot", looked)
    found, _ = listened(FakeSource([(0, sea)]), ensemble, settings_in(tmp_path, snapshots=True))
    assert left == [[0], [0, 0], [0, 0, 0]] and all(one.clip and one.snapshot for one in found)


def test_a_long_event_waits_for_the_one_that_is_being_made(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "WAITING_MB", 1e-6)
    write, cut, order = recorder.write_clip, recorder.Roll.cut, []

    def slow(*about: Any) -> Any:
        time.sleep(0.2)
        order.append("made")
        return write(*about)

    def noted(roll: Any, *span: int) -> Any:
        order.append("cut")
        return cut(roll, *span)

    monkeypatch.setattr(recorder, "write_clip", slow)
    monkeypatch.setattr(recorder.Roll, "cut", noted)
    listened(FakeSource([(0, sea)]), ensemble, settings_in(tmp_path))
    assert order == ["cut", "cut", "made"] * 3  # of an event's row, of its clip


def test_clip_holds_the_event_with_its_rolls_at_the_original_rate(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, clips=ClipSettings(pre_roll_s=1.5, post_roll_s=2.25))
    found, _ = listened(FakeSource([(0, sea)]), ensemble, settings)
    for detection in found:
        samples, rate_hz = soundfile.read(str(settings.output / str(detection.clip)), dtype="float32")
        first = round(detection.start_s * RATE_HZ) - round(1.5 * RATE_HZ)
        last = min(round(detection.end_s * RATE_HZ) + round(2.25 * RATE_HZ), len(sea))
        assert rate_hz == RATE_HZ
        np.testing.assert_allclose(samples, sea[first:last], atol=2e-7)


@pytest.mark.parametrize("rows", [1600, 12345, 240000])
def test_block_length_changes_nothing(sea: Any, ensemble: Any, tmp_path: Path, rows: int) -> None:
    results = []
    for name, length in (("a", 4000), ("b", rows)):
        settings = settings_in(tmp_path / name)
        found, totals = listened(FakeSource([(0, sea)], length), ensemble, settings)
        results.append((found, totals, [(settings.output / str(d.clip)).read_bytes() for d in found]))
    assert results[0] == results[1]


def test_long_events_have_whole_clips(ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any]) -> None:
    sea = make_audio(RATE_HZ, 40.0, 1, [(3.0, 36.0)])
    settings = settings_in(tmp_path, events=EventSettings(max_duration_s=12.0, merge_gap_s=0.0))
    found, _ = listened(FakeSource([(0, sea)]), ensemble, settings)
    assert len(found) == 3
    for detection in found:
        length = soundfile.info(str(settings.output / str(detection.clip))).frames
        assert abs(length / RATE_HZ - (detection.end_s - detection.start_s + 4.0)) < 1e-3


def test_row_is_on_the_disk_before_its_clip_is_made(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    seen: list[int] = []
    write = recorder.write_clip

    def counting(path: Path, *about: Any) -> Any:
        seen.append(len(stored(settings)))
        return write(path, *about)

    monkeypatch.setattr(recorder, "write_clip", counting)
    listened(FakeSource([(0, sea)]), ensemble, settings)
    assert len(seen) == 3 and all(count >= number + 1 for number, count in enumerate(seen))


def test_live_stream_sheds_clips_that_take_too_long_and_a_file_waits(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "WAITING", 1)
    gate = threading.Event()
    write = recorder.write_clip

    def slow(path: Path, *about: Any) -> Any:
        gate.wait(10)
        return write(path, *about)

    monkeypatch.setattr(recorder, "write_clip", slow)
    live = FakeSource([(0, sea)], waits=False)
    threading.Timer(0.5, gate.set).start()
    found, totals = listened(live, ensemble, settings_in(tmp_path / "live"))
    assert [detection.id for detection in found] == [1, 2, 3]
    assert totals.shed == sum(detection.clip is None for detection in found) > 0
    found, totals = listened(FakeSource([(0, sea)]), ensemble, settings_in(tmp_path / "file"))
    assert totals.shed == 0 and all(detection.clip for detection in found)


@pytest.mark.parametrize(("megabytes", "shed"), [(0, 2), (1000, 0)])
def test_what_waits_for_clips_is_bounded_by_its_audio_too(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int, shed: int
) -> None:
    """A single event is always taken, however long it is."""
    monkeypatch.setattr(recorder, "WAITING_MB", megabytes)
    gate = threading.Event()
    write = recorder.write_clip
    monkeypatch.setattr(recorder, "write_clip", lambda *about: gate.wait(10) and write(*about))
    threading.Timer(1.0, gate.set).start()
    _, totals = listened(FakeSource([(0, sea)], waits=False), ensemble, settings_in(tmp_path))
    assert (totals.events, totals.shed) == (3, shed)


def test_shed_events_do_not_count_as_being_made(
    ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_audio: Callable[..., Any]
) -> None:
    """Two clips may be made at once: events 3 to 5 are shed, and 6, which comes after clip 1 was made, is not."""
    monkeypatch.setattr(recorder, "WAITING", 2)
    go, made = threading.Semaphore(0), threading.Semaphore(0)
    write = recorder.write_clip

    def slow(path: Path, *about: Any) -> Any:
        go.acquire(timeout=10)
        written = write(path, *about)
        made.release()
        return written

    def let_one_pass() -> None:
        go.release()
        made.acquire(timeout=10)
        time.sleep(0.1)

    monkeypatch.setattr(recorder, "write_clip", slow)
    sea = make_audio(RATE_HZ, 36.0, 1, [(1.0 + 5 * k, 2.0 + 5 * k) for k in range(7)])
    source = FakeSource([(0, sea)], waits=False, at={round(29.0 * RATE_HZ): let_one_pass, len(sea) - 4000: go.release})
    threading.Timer(2.0, go.release, [9]).start()
    found, totals = listened(source, ensemble, settings_in(tmp_path))
    assert [detection.id for detection in found if detection.clip] == [1, 2, 6]
    assert totals.shed == 4


def test_rows_that_cannot_be_written_are_tried_again(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the database while the first two events come."""
    monkeypatch.setattr(store, "BUSY_S", 0.05)
    monkeypatch.setattr(recorder, "RETRY_S", 1.0)
    settings = settings_in(tmp_path)
    with closing(connected(settings)) as other:
        at = {0: lambda: other.execute("BEGIN IMMEDIATE"), round(10.0 * RATE_HZ): other.rollback}
        found, totals = listened(FakeSource([(0, sea)], at=at), ensemble, settings)
    assert found == stored(settings) and [round(detection.start_s) for detection in found] == [2, 6, 12]
    assert [detection.clip is None for detection in found] == [True, True, False]
    assert (totals.events, totals.failed, totals.lost, totals.kept) == (3, 2, 0, False)


def test_rows_that_were_held_are_written_between_items(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long trouble a slow disk takes a thousand of them; the loop, and the watchdog, must not wait for all."""
    monkeypatch.setattr(store, "BUSY_S", 0.05)
    monkeypatch.setattr(recorder, "RETRY_S", 1.0)
    monkeypatch.setattr(recorder, "SAVING_S", 0.0)
    settings = settings_in(tmp_path)
    counts: list[int] = []

    class Counting(Upkeep):
        def processed(self, loop: Any) -> None:
            counts.append(len(stored(settings)) if loop.position > 10 * RATE_HZ else 0)

    with closing(connected(settings)) as other:
        at = {0: lambda: other.execute("BEGIN IMMEDIATE"), round(10.0 * RATE_HZ): other.rollback}
        listened(FakeSource([(0, sea)], at=at), ensemble, settings, upkeep=Counting())
    assert set(np.diff(counts)) == {0, 1} and counts[-1] == 3


def test_account_is_written_before_clips_are_waited_for(
    ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_audio: Callable[..., Any]
) -> None:
    """A service manager whose patience ends meanwhile takes the clip, and not the account."""
    settings = settings_in(tmp_path)
    write, ends = recorder.write_clip, []

    def slow(path: Path, *about: Any) -> Any:
        time.sleep(0.3)
        return write(path, *about)

    def report(detection: Detection) -> None:
        with closing(sqlite3.connect(settings.output / "detections.sqlite")) as database:
            ends.extend(database.execute("SELECT max(end_sample) FROM ledger").fetchone())

    monkeypatch.setattr(recorder, "write_clip", slow)
    sea = make_audio(RATE_HZ, 8.0, 1, [(2.0, 3.0)])
    run(FakeSource([(0, sea)]), ensemble, settings, report)
    assert ends == [len(sea)]


@pytest.mark.parametrize("room", [1000, 2])
def test_rows_that_are_never_written_are_lost_and_named(
    sea: Any,
    ensemble: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room: int,
) -> None:
    monkeypatch.setattr(store, "BUSY_S", 0.05)
    monkeypatch.setattr(recorder, "UNSAVED", room)
    settings = settings_in(tmp_path)
    with closing(connected(settings)) as other:
        source = FakeSource([(0, sea)], at={0: lambda: other.execute("BEGIN IMMEDIATE")})
        found, totals = listened(source, ensemble, settings)
    assert found == [] == stored(settings)
    assert (totals.read_s, totals.events, totals.failed, totals.lost, totals.kept) == (15.0, 3, 0, 3, False)
    assert sum("is lost (score 0." in record.getMessage() for record in caplog.records) == 3


def connected(settings: Settings) -> sqlite3.Connection:
    """Another connection to the database of detections."""
    Store(settings.output / "detections.sqlite").close()
    return sqlite3.connect(settings.output / "detections.sqlite", isolation_level=None)


def test_every_second_is_accounted_for(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    damaged = sea.copy()
    damaged[20000:20100, 0] = np.nan
    stretches = [(0, damaged), (len(sea) + 8000, sea), (2 * len(sea) + 9000, sea[:100])]
    _, totals = listened(FakeSource(stretches), ensemble, settings_in(tmp_path))
    assert totals.read_s == pytest.approx((2 * len(sea) + 100) / RATE_HZ)
    assert totals.refused_s == pytest.approx((100 + 100) / RATE_HZ)
    assert totals.read_s == pytest.approx(totals.scored_s + totals.refused_s)
    assert totals.gap_s == pytest.approx(9000 / RATE_HZ)
    assert totals.events == 6 and totals.fault is None and not totals.whole


def test_events_before_and_after_a_gap_have_their_own_clips(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    """The calls' stretches are cut at 6.5 s; the rest comes 0.1 s later."""
    half = int(6.5 * RATE_HZ)
    settings = settings_in(tmp_path)
    found, _ = listened(FakeSource([(0, sea[:half]), (half + 1600, sea[half:])]), ensemble, settings)
    assert len(found) == 4
    ends_s = [detection.end_s for detection in found]
    assert ends_s[1] == 6.5 or ends_s[1] == pytest.approx(6.5, abs=0.03)
    samples, _ = soundfile.read(str(settings.output / str(found[1].clip)), dtype="float32")
    np.testing.assert_allclose(samples, sea[half - len(samples) : half], atol=2e-7)


def test_overlapping_blocks_are_another_stretch(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    found, totals = listened(FakeSource([(0, sea), (len(sea) - 5000, sea)]), ensemble, settings)
    assert len(found) == 6
    for one, two in zip(found[:3], found[3:]):
        assert two.start_s - one.start_s == pytest.approx((len(sea) - 5000) / RATE_HZ)
        clips = [soundfile.read(str(settings.output / str(detection.clip)))[0] for detection in (one, two)]
        np.testing.assert_array_equal(*clips)
    assert totals.read_s == pytest.approx(30.0)


def test_source_that_breaks_is_heard_as_far_as_it_goes(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    found, totals = listened(FakeSource([(0, sea)], fault="the cable broke"), ensemble, settings_in(tmp_path))
    assert len(found) == 3 and str(totals.fault) == "the cable broke" and not totals.whole


def test_source_without_anything_to_score_is_a_fault(ensemble: Any, tmp_path: Path) -> None:
    silent = np.full((8000, 1), np.nan, np.float32)
    _, totals = listened(FakeSource([(0, silent)]), ensemble, settings_in(tmp_path))
    assert "holds nothing to score" in str(totals.fault) and totals.refused_s == 0.5


def test_stop_ends_early_and_keeps_what_was_heard(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    sea = np.tile(sea, (20, 1))
    source = FakeSource([(0, sea)])
    settings = settings_in(tmp_path)
    found: list[Detection] = []

    def first(detection: Detection) -> None:
        found.append(detection)
        stop.set()

    totals = run(source, ensemble, settings, first, stop)
    assert totals.fault is None and totals.read_s < 300 and stored(settings) == found


def test_selected_channels_are_scored_and_kept(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, channels=(0,))
    found, _ = listened(FakeSource([(0, sea)]), ensemble, settings)
    assert all(len(detection.channel_scores) == 1 for detection in found)
    assert soundfile.info(str(settings.output / str(found[0].clip))).channels == 1
    with pytest.raises(AudioError, match="0 to 1"):
        listened(FakeSource([(0, sea)]), ensemble, replace(settings, channels=(2,)))


def test_hydrophones_of_another_number_are_refused_before_anything_is_written(
    sea: Any, ensemble: Any, tmp_path: Path
) -> None:
    """A service manager starts the daemon again every few seconds."""
    settings = settings_in(tmp_path, hydrophones=(HydrophoneSettings("H-1"),) * 4)
    with pytest.raises(InputError, match=r"as many as the used channels \(2\), not 4"):
        listened(FakeSource([(0, sea)]), ensemble, settings)
    assert not settings.output.exists()


def test_detections_have_the_sources_channel_numbers(
    ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any]
) -> None:
    sea = make_audio(RATE_HZ, 6.0, 4, [(2.0, 3.5)])
    settings = settings_in(tmp_path, channels=(3, 1), snapshots=True)
    found, _ = listened(FakeSource([(0, sea)]), ensemble, settings)
    (detection,) = stored(settings)
    assert [detection] == found and (detection.channels, detection.best_channel) == ((3, 1), 3)
    assert detection.channel_scores[0] > detection.channel_scores[1]
    with np.load((settings.output / str(detection.snapshot)).with_suffix(".npz")) as arrays:
        assert (arrays["channels"].tolist(), arrays["best_channel"]) == ([3, 1], 3)


def test_refused_seconds_are_counted_by_channel(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    damaged = np.concatenate([sea, sea], axis=1)
    damaged[20000:36000, 2] = np.nan
    _, totals = listened(FakeSource([(0, damaged)]), ensemble, settings_in(tmp_path, channels=(1, 2)))
    assert totals.bad_s == {2: 1.0} and totals.refused_s == 1.0
    assert totals.refusal() == (
        "1.000 s of 15.000 s are refused: channel 2 was no audio for 1.000 s; "
        "exclude it with `channels:` if it stays so"
    )


def test_fault_in_the_report_is_not_swallowed(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    def broken(detection: Detection) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        run(FakeSource([(0, sea)]), ensemble, settings_in(tmp_path), broken)


def test_output_that_cannot_be_made_is_named(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"output folder .*out cannot be made"):
        listened(FakeSource([(0, sea)]), ensemble, settings_in(tmp_path))


def test_first_signal_stops_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_names_of_files_are_plain_and_unique() -> None:
    detection = Detection(7, "/sea/x y.flac", 12.5, 13.0, None, 0.9, (0,), (0.9,), 0, "b", "d")
    assert file_name(detection) == "000007_x_y_12.50s"
    long = replace(detection, source="/sea/" + "\U00020000" * 60 + ".flac")
    assert len(file_name(long).encode()) < 200 and file_name(long).count("\U00020000") == 37
    with_utc = replace(detection, start_utc=datetime(2026, 1, 2, 3, 4, 5, 250000, tzinfo=timezone.utc))
    assert file_name(with_utc) == "000007_x_y_20260102T030405.250000Z"
