from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile

from orcawatch import daemon
from orcawatch.config import ClipSettings, EventSettings, Settings
from orcawatch.daemon import Totals, file_name, run, stop_signals
from orcawatch.errors import AudioError, InputError
from orcawatch.records import AudioBlock, StreamInfo
from orcawatch.store import Detection, Store

RATE_HZ = 16000
CALLS = [(2.0, 3.5), (6.0, 7.0), (12.0, 12.8)]


class FakeSource:
    """Yields given stretches of audio, (start_sample, samples), in blocks of `rows`; may break at the end."""

    def __init__(
        self,
        stretches: Sequence[tuple[int, Any]],
        rows: int = 4000,
        fault: str = "",
        waits: bool = True,
        start_utc: datetime | None = None,
    ) -> None:
        self.info = StreamInfo("sea/x y.flac", RATE_HZ, stretches[0][1].shape[1], start_utc)
        self.waits = waits
        self.yielded = 0
        self._stretches = stretches
        self._rows = rows
        self._fault = fault

    def blocks(self) -> Iterator[AudioBlock]:
        for start, samples in self._stretches:
            for first in range(0, len(samples), self._rows):
                self.yielded += 1
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
    write = daemon.write_clip

    def counting(path: Path, samples: Any, rate_hz: int) -> Any:
        seen.append(len(stored(settings)))
        return write(path, samples, rate_hz)

    monkeypatch.setattr(daemon, "write_clip", counting)
    listened(FakeSource([(0, sea)]), ensemble, settings)
    assert len(seen) == 3 and all(count >= number + 1 for number, count in enumerate(seen))


def test_full_disk_loses_clips_but_no_rows(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, samples: Any, rate_hz: int) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(daemon, "write_clip", full)
    settings = settings_in(tmp_path)
    found, totals = listened(FakeSource([(0, sea)]), ensemble, settings)
    assert len(stored(settings)) == len(found) == totals.failed == 3
    assert all(detection.clip is None for detection in found)
    assert "clip of detection 1 failed: [Errno 28] No space left on device" in caplog.text


def test_live_stream_sheds_clips_that_take_too_long_and_a_file_waits(
    sea: Any, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "WAITING", 1)
    gate = threading.Event()
    write = daemon.write_clip

    def slow(path: Path, samples: Any, rate_hz: int) -> Any:
        gate.wait(10)
        return write(path, samples, rate_hz)

    monkeypatch.setattr(daemon, "write_clip", slow)
    live = FakeSource([(0, sea)], waits=False)
    threading.Timer(0.5, gate.set).start()
    found, totals = listened(live, ensemble, settings_in(tmp_path / "live"))
    assert [detection.id for detection in found] == [1, 2, 3]
    assert totals.shed == sum(detection.clip is None for detection in found) > 0
    found, totals = listened(FakeSource([(0, sea)]), ensemble, settings_in(tmp_path / "file"))
    assert totals.shed == 0 and all(detection.clip for detection in found)


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
    source = FakeSource([(0, sea)])
    settings = settings_in(tmp_path)
    found: list[Detection] = []

    def first(detection: Detection) -> None:
        found.append(detection)
        stop.set()

    totals = run(source, ensemble, settings, first, stop)
    assert totals.fault is None and totals.read_s < 15 and stored(settings) == found


def test_selected_channels_are_scored_and_kept(sea: Any, ensemble: Any, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, channels=(0,))
    found, _ = listened(FakeSource([(0, sea)]), ensemble, settings)
    assert all(len(detection.channel_scores) == 1 for detection in found)
    assert soundfile.info(str(settings.output / str(found[0].clip))).channels == 1
    with pytest.raises(InputError, match="0 to 1"):
        listened(FakeSource([(0, sea)]), ensemble, replace(settings, channels=(2,)))


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
    detection = Detection(7, "/sea/x y.flac", 12.5, 13.0, None, 0.9, (0.9,), 0, "b", "d")
    assert file_name(detection) == "000007_x_y_12.50s"
    with_utc = replace(detection, start_utc=datetime(2026, 1, 2, 3, 4, 5, 250000, tzinfo=timezone.utc))
    assert file_name(with_utc) == "000007_x_y_20260102T030405.250000Z"
