"""What a watch leaves in the database beside its detections: ledger, levels, steps of the ladder."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile
from clocks import FakeClocks

from orcawatch.config import DutySettings, HydrophoneSettings, LevelSettings, OverloadSettings, Settings
from orcawatch.daemon import Upkeep, run
from orcawatch.duty import OnDuty
from orcawatch.records import AudioBlock, ClockChange, Item, Missing
from orcawatch.store import Detection

RATE_HZ = 16000
START = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def sea(make_audio: Callable[..., Any]) -> Any:
    return make_audio(RATE_HZ, 40.0, 2, [(5.0, 6.5), (30.0, 31.5)])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    hydrophones = (HydrophoneSettings("H-17", -170.0), HydrophoneSettings("H-18", -171.0, gain_db=20.0))
    return Settings(
        output=tmp_path / "out", snapshots=False, station="north", hydrophones=hydrophones, adc_peak_v=2.0,
        levels=LevelSettings(every_s=10), overload=OverloadSettings(step_up_s=2, recover_s=60),
    )  # fmt: skip


def blocks(sea: Any, rows: int = 1600) -> list[Item]:
    return [AudioBlock(sea[first : first + rows], first) for first in range(0, len(sea), rows)]


def watched(source: Any, ensemble: Any, settings: Settings, **options: Any) -> list[Detection]:
    found: list[Detection] = []
    run(source, ensemble, settings, found.append, **options)
    return found


def rows(settings: Settings, query: str) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(settings.output / "detections.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query).fetchall()


def stretches(settings: Settings) -> list[tuple[str, str, str, int, int]]:
    found = rows(settings, "SELECT * FROM ledger WHERE start_sample IS NOT NULL ORDER BY id")
    names = ("kind", "cause", "step_name", "start_sample", "end_sample")
    return [tuple(row[name] for name in names) for row in found]  # type: ignore[misc]


def check_tiling(spans: Sequence[tuple[str, str, str, int, int]], samples: int) -> None:
    assert spans[0][3] == 0 and spans[-1][4] == samples
    assert all(one[4] == two[3] for one, two in zip(spans, spans[1:]))


def test_ledger_tells_what_each_sample_was(sea: Any, ensemble: Any, settings: Settings, scripted: Any) -> None:
    damaged = sea.copy()
    damaged[160000:176000, 1] = np.nan
    items = blocks(damaged[:320000])
    items += [Missing(320000, 336000, "gap", "overrun"), Missing(336000, 400000, "off_duty", "duty cycle")]
    items += [AudioBlock(sea[:16000], 400000)]
    watched(scripted(items), ensemble, settings)
    spans = stretches(settings)
    check_tiling(spans, 416000)
    assert [(kind, cause) for kind, cause, *_ in spans] == [
        ("recorded", ""),
        ("gap", "refused: no finite samples"),
        ("recorded", ""),
        ("gap", "overrun"),
        ("off_duty", "duty cycle"),
        ("recorded", ""),
    ]
    assert spans[1][3:] == (160000, 176000)


def test_detections_carry_serials_levels_and_positions(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any
) -> None:
    first, second = watched(scripted(blocks(sea), start_utc=START), ensemble, settings)
    (session,) = rows(settings, "SELECT * FROM sessions")
    for detection in (first, second):
        assert (detection.session, detection.hydrophones) == (session["id"], ("H-17", "H-18"))
        assert detection.level_unit == "dB re 1 uPa"
        assert detection.start_utc == START + timedelta(seconds=detection.start_sample / RATE_HZ)
        assert detection.start_s == detection.start_sample / RATE_HZ
    span = sea[first.start_sample : first.end_sample].astype(float)
    rms = np.sqrt(((span - span.mean(axis=0)) ** 2).mean(axis=0))
    expected_db = 20 * np.log10(rms * 2.0) - np.array([-170.0, -171.0]) - np.array([0.0, 20.0])
    np.testing.assert_allclose(first.levels_db, expected_db, atol=0.01)


def test_levels_are_logged_all_the_time(sea: Any, ensemble: Any, settings: Settings, scripted: Any) -> None:
    watched(scripted(blocks(sea), start_utc=START), ensemble, settings)
    found = rows(settings, "SELECT * FROM levels ORDER BY id")
    assert [(row["start_sample"], row["end_sample"]) for row in found] == [
        (first, first + 160000) for first in range(0, 640000, 160000)
    ]
    assert found[1]["start_utc"] == (START + timedelta(seconds=10)).isoformat()
    assert {row["unit"] for row in found} == {"dB re 1 uPa"}
    quiet, loud = (json.loads(found[index]["levels_db"]) for index in (1, 0))
    assert all(one < two - 20 for one, two in zip(quiet, loud))


def test_overload_takes_steps_down_the_ladder_and_back(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The backlog grows for the first half of the stream; then it is gone, and so are the steps after a minute each."""
    clocks = FakeClocks(start=START)

    def behind(index: int) -> float:
        clocks.now_s = 1000.0 + 4.0 * index
        return 5.0 + index * 0.05 if index < 100 else 0.0

    caplog.set_level(logging.INFO)
    watched(scripted(blocks(sea), behind=behind), ensemble, settings, clocks=clocks)
    spans = stretches(settings)
    check_tiling(spans, len(sea))
    names = [name for _, _, name, *_ in spans]
    assert names == ["", "hop 0.96 s", "hop 0.96 s, 1 of 2 channels", "hop 0.96 s", ""]
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("overload: ")]
    assert [text.split(",")[0] for text in told] == ["overload: hop 0.96 s"] * 3 + ["overload: full"]
    levels = [record.levelname for record in caplog.records if record.getMessage() in told]
    assert levels == ["WARNING", "WARNING", "INFO", "INFO"]


def test_audio_that_is_dropped_is_told_once_and_when_it_is_over(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def shed(start: int) -> Item:
        return Missing(start, start + 16000, "shed", "inference is behind")

    heard = [AudioBlock(sea[:16000], start) for start in (0, 32000, 64000)]
    items = [heard[0], shed(16000), heard[1], shed(48000), heard[2]]
    settings = replace(settings, overload=OverloadSettings(steps=()))
    watched(scripted(items, behind=lambda index: 20.0 if index < 4 else 0.0), ensemble, settings)
    told = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert [text.split(",")[0] for text in told] == [
        "audio is dropped: inference is behind", "no audio is dropped any more",
    ]  # fmt: skip


def test_channels_that_were_not_scored_have_no_score(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any
) -> None:
    clocks = FakeClocks(start=START)

    def behind(index: int) -> float:
        clocks.now_s = 1000.0 + 4.0 * index
        return 5.0 + index * 0.05

    settings = replace(settings, overload=OverloadSettings(step_up_s=2, steps=("channels",)))
    first, second = watched(scripted(blocks(sea), behind=behind), ensemble, settings, clocks=clocks)
    for detection in (first, second):
        assert detection.channel_scores[0] > 0.5 and np.isnan(detection.channel_scores[1])
        assert detection.best_channel == 0
    texts = rows(settings, "SELECT channel_scores FROM detections")
    assert all(json.loads(row["channel_scores"])[1] is None for row in texts)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_each_sample_is_in_one_row(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any, seed: int
) -> None:
    """Audio that is no number, holes told and not told, overload, duty and jumps of the clock, through the whole loop."""
    dice = random.Random(seed)
    items = list(anything(dice, sea))
    behind = [dice.choice([0.0, 0.0, 6.0, 20.0]) for _ in items]
    source = OnDuty(scripted(items, behind=behind.__getitem__, start_utc=START), DutySettings(13, 20))
    kept = Keeping()
    watched(source, ensemble, settings, clocks=FakeClocks(start=START), upkeep=kept)
    spans = stretches(settings)
    check_tiling(sorted(spans, key=lambda span: span[3]), items[-1].end_sample)
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for kind, cause, _, start, end in spans:
        found[kind, cause] += (end - start) / RATE_HZ
    assert found == pytest.approx(kept.seconds) and len(found) >= 4


class Keeping(Upkeep):
    """Keeps what the loop has counted at the end."""

    def ended(self, loop: Any) -> None:
        self.seconds = dict(loop.seconds)


def anything(dice: random.Random, sea: Any) -> Iterator[Item]:
    """Forty items between audio."""
    position = 0
    chosen = dice.choices(["audio", "bad", "gap", "shed", "clock", "hole"], [6, 2, 1, 1, 1, 1], k=40)
    for what in ["audio", *chosen, "audio"]:
        length = dice.randrange(1, 24000)
        if what == "clock":
            yield ClockChange(position, START, dice.choice([0.0, 3600.0, -3600.0]), True, True)
            continue
        if what in ("audio", "bad"):
            first = dice.randrange(len(sea) - length)
            samples = sea[first : first + length].copy()
            samples[: dice.randrange(length) if what == "bad" else 0, dice.randrange(2)] = np.nan
            yield AudioBlock(samples, position)
        elif what != "hole":
            yield Missing(position, position + 3 * length, what, "in the script")
        position += length * (1 if what in ("audio", "bad", "hole") else 3)


def test_files_have_no_ladder(sea: Any, ensemble: Any, settings: Settings, scripted: Any) -> None:
    source = scripted(blocks(sea), behind=lambda index: 100.0)
    source.waits = True
    watched(source, ensemble, settings)
    assert {name for _, _, name, *_ in stretches(settings)} == {""}


class Changing(Upkeep):
    """Takes other settings at a position, as a reload does."""

    def __init__(self, at: int, settings: Settings, bundle: Any) -> None:
        self._at = at
        self._settings = settings
        self._bundle = bundle

    def processed(self, loop: Any) -> None:
        if loop.position >= self._at:
            loop.change(self._settings, self._bundle)


def test_reloaded_settings_are_taken_while_it_listens(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any
) -> None:
    """Between the two calls: no score reaches the new threshold, and clips would have another length."""
    other = replace(ensemble.bundle, start_threshold=1.0)
    found = watched(scripted(blocks(sea)), ensemble, settings, upkeep=Changing(320000, settings, other))
    assert [round(detection.start_s) for detection in found] == [5]


def test_reload_between_a_call_and_its_clip_loses_none_of_it(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any
) -> None:
    """The call ends at 6.5 s; at 7.6 s its clip is to be a second longer than its post-roll of 2 s was to be."""
    other = replace(settings, clips=replace(settings.clips, post_roll_s=3.0))
    changing = Changing(round(7.6 * RATE_HZ), other, ensemble.bundle)
    first, _ = watched(scripted(blocks(sea)), ensemble, settings, upkeep=changing)
    samples, _ = soundfile.read(str(settings.output / str(first.clip)), dtype="float32")
    begin, end = first.start_sample - 2 * RATE_HZ, first.end_sample + 3 * RATE_HZ
    np.testing.assert_allclose(samples, sea[begin:end], atol=2e-7)


def test_clips_are_not_written_where_there_is_no_room(
    sea: Any, ensemble: Any, settings: Settings, scripted: Any
) -> None:
    class Full(Upkeep):
        def room(self, size: int) -> bool:
            return False

    found = watched(scripted(blocks(sea)), ensemble, settings, upkeep=Full())
    assert [detection.clip for detection in found] == [None, None]
    assert len(rows(settings, "SELECT id FROM detections")) == 2
