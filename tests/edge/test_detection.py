"""The page of a detection, without a browser: what is sent, what is refused, and what is said where things are missing."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from orcawatch import verdicts
from orcawatch.config import Settings
from orcawatch.daemon import open_store
from orcawatch.store import Detection, Store
from orcawatch.web import facts, looking, media, pictures
from orcawatch.web.app import create_app
from orcawatch.web.axes import clock_ticks, frequency_ticks, seconds_ticks
from orcawatch.web.looking import Desk, Failed, Look, Wish
from orcawatch.web.media import Shelf

TOKEN = "a-token-of-the-tests"
RATE_HZ = 16000
ROW = Detection(
    id=None, source="<b>buoy</b>", start_s=10.0, end_s=12.0, start_utc=datetime(2026, 3, 1, 9, 59, 58, tzinfo=timezone.utc),
    score=0.8, channels=(0, 2), channel_scores=(0.3, 0.8), best_channel=2, bundle="gone", bundle_digest="ab" * 32,
    clip="clips/a.flac", clip_start_s=8.0, synchronised=True, hydrophones=("A1", "B2"), levels_db=(-40.0, -20.5),
    level_unit="dB re full scale",
)  # fmt: skip


@pytest.fixture
def output(tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]) -> Path:
    write(tmp_path / "out" / "clips" / "a.flac", make_audio(RATE_HZ, 6.0, 2, [(2.0, 4.0)]), RATE_HZ, "PCM_24")
    return tmp_path / "out"


def add(output: Path, **changes: Any) -> int:
    with open_store(output) as store:
        return store.add(replace(ROW, **changes))


@pytest.fixture
def client(output: Path) -> Any:
    found = create_app(replace(Settings(), output=output), TOKEN).test_client()
    found.get(f"/?token={TOKEN}")
    return found


def judged(client: Any, id: int, page: str = "", **fields: str) -> Any:
    csrf = client.application.extensions["orcawatch"].access.csrf
    return client.post(f"/detection/{id}/verdict{page}", data={"csrf": csrf, **fields})


def test_each_channel_is_played_as_recorded(client: Any, output: Path) -> None:
    id = add(output)
    clip, _ = soundfile.read(output / "clips" / "a.flac", dtype="float32")
    for name, right in (("0", clip[:, 0]), ("2", clip[:, 1]), ("mix", clip.mean(axis=1))):
        answer = client.get(f"/detection/{id}/clip.wav?channel={name}")
        heard, rate_hz = soundfile.read(io.BytesIO(answer.data), dtype="float32")
        assert answer.mimetype == "audio/wav" and rate_hz == RATE_HZ and np.abs(heard - right).max() < 2 / 2**15
    assert client.get(f"/detection/{id}/clip.wav?channel=1").status_code == 404


def test_a_part_of_the_sound_may_be_asked_for(client: Any, output: Path) -> None:
    id = add(output)
    whole = client.get(f"/detection/{id}/clip.wav")
    part = client.get(f"/detection/{id}/clip.wav", headers={"Range": "bytes=1000-1999"})
    assert part.status_code == 206 and part.data == whole.data[1000:2000]
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(whole.data)}"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"


def test_pictures_are_png_of_pixels_only(client: Any, output: Path) -> None:
    from PIL import Image

    id = add(output)
    answer = client.get(f"/detection/{id}/picture/2.png")
    with Image.open(io.BytesIO(answer.data)) as picture:
        assert answer.mimetype == "image/png" and picture.height == pictures.ROWS and picture.width <= pictures.COLUMNS
    assert client.get(f"/detection/{id}/picture/7.png").status_code == 404
    assert client.get(f"/detection/{id}/picture/2.png?of=relevance&backbone=x").status_code == 404


@pytest.mark.parametrize("clip", ["../../etc/passwd", "/etc/passwd", "clips/link.flac", "clips/none.flac", "clips"])
def test_files_elsewhere_are_not_sent(client: Any, output: Path, clip: str) -> None:
    (output / "clips" / "link.flac").symlink_to("/etc/passwd")
    id = add(output, clip=clip, snapshot=clip)
    for path in ("clip.wav", "file/clip", "file/snapshot", "file/figures", "file/other", "picture/2.png"):
        assert client.get(f"/detection/{id}/{path}").status_code == 404
    assert client.get(f"/detection/{id}").status_code == 200


def test_names_of_files_and_people_are_text(client: Any, output: Path) -> None:
    id = add(output)
    judged(client, id, verdict="orca", note="<script>alert(1)</script>", reviewer='"><b>Eve')
    page = client.get(f"/detection/{id}").text
    assert "&lt;b&gt;buoy&lt;/b&gt;" in page and "<b>buoy" not in page
    assert "<script>alert" not in page and "<b>Eve" not in page


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clip": None}, "There is no clip"),
        ({"clip": "clips/none.flac"}, "is not in the output folder"),
        ({"removed": "the disk was full", "clip": "clips/none.flac"}, "not kept any more: the disk was full"),
        ({"synchronised": False}, "was not synchronised"),
        ({"start_utc": None, "synchronised": None}, "not known"),
        ({"channel_scores": (float("nan"), 0.8)}, "not scored"),
        ({"bearing_note": "channel 2 is dead"}, "channel 2 is dead"),
        ({"bearing_deg": 359.6, "bearing_error_deg": 8.0}, "0° ± 8°"),
        ({}, "is not here any more"),
        (
            {"channels": (0,), "channel_scores": (0.8,), "best_channel": 0, "hydrophones": (), "levels_db": ()},
            "Channel 0",
        ),
    ],
)
def test_what_is_missing_is_told(client: Any, output: Path, changes: dict[str, Any], text: str) -> None:
    page = client.get(f"/detection/{add(output, **changes)}")
    assert page.status_code == 200 and text in page.text


def test_a_number_that_is_none_is_not_found(client: Any, output: Path) -> None:
    add(output)
    for id in ("9", "99999999999999999999999999"):
        assert client.get(f"/detection/{id}").status_code == 404
        assert judged(client, 9, verdict="orca").status_code in (400, 404)


def test_a_form_goes_on_to_the_next_that_waits(client: Any, output: Path) -> None:
    for hour in (1, 2, 3):
        add(output, start_utc=datetime(2026, 3, 1, hour, tzinfo=timezone.utc))
    answer = judged(client, 3, "?since=2026-03-01", verdict="orca", note=" seen\r\nit ", reviewer="Ada")
    assert answer.status_code == 303 and answer.location == "/detection/2?since=2026-03-01"
    with Store.reader(output / "detections.sqlite") as reader:
        (given,) = verdicts.history(reader, 3)
    assert (given.verdict, given.note, given.reviewer) == ("orca", "seen\nit", "Ada")
    assert 'value="Ada"' in client.get("/detection/2").text
    back = judged(client, 3, verdict="", note="", reviewer="Ada")
    assert back.location == "/detection/3"


def test_who_was_quicker_is_told(client: Any, output: Path) -> None:
    id = add(output)
    judged(client, id, verdict="not_orca", reviewer="Bea", seen="0")
    late = judged(client, id, verdict="orca", note="mine", seen="0")
    assert late.status_code == 409 and "Bea" in late.text and "mine</textarea>" in late.text
    assert judged(client, id, verdict="orca", seen="1").status_code == 303


def test_nothing_typed_is_lost_where_it_cannot_be_saved(client: Any, output: Path) -> None:
    id = add(output)
    too_long = judged(client, id, verdict="orca", note="a" * (verdicts.LONGEST_NOTE + 1))
    assert too_long.status_code == 400 and "Not saved" in too_long.text
    with sqlite3.connect(output / "detections.sqlite", isolation_level=None) as other:
        other.execute("PRAGMA user_version = 1000")
    refused = judged(client, id, verdict="orca", note="precious")
    other.close()
    assert refused.status_code == 503


def test_a_clip_that_is_no_audio_is_told(client: Any, output: Path) -> None:
    (output / "clips" / "a.flac").write_bytes(b"no audio")
    page = client.get(f"/detection/{add(output)}")
    assert page.status_code == 200 and "cannot be played" in page.text


def test_a_tone_of_full_scale_has_0_db_at_its_frequency() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(5 * RATE_HZ) / RATE_HZ).astype(np.float32)
    levels_db = pictures.spectrogram_db(tone, RATE_HZ, (125.0, 7500.0), "mel")
    middle = levels_db[len(levels_db) // 2]
    assert -1 < middle.max() <= 0.1
    assert abs(pictures.row_middles_hz((125.0, 7500.0), "mel")[middle.argmax()] - 1000) < 15


def test_a_click_stands_in_its_column() -> None:
    click = np.zeros(5 * RATE_HZ, np.float32)
    click[3 * RATE_HZ] = 1
    levels_db = pictures.spectrogram_db(click, RATE_HZ, (125.0, 7500.0), "mel").mean(axis=1)
    loud = np.flatnonzero(levels_db > levels_db.max() - 3)
    assert abs((loud.mean() + 0.5) / len(levels_db) - 3 / 5) < 0.002


def test_a_long_clip_keeps_its_short_sounds() -> None:
    click = np.zeros(120 * 8000, np.float32)
    click[70 * 8000] = 1
    levels_db = pictures.spectrogram_db(click, 8000, (125.0, 3500.0), "linear").mean(axis=1)
    assert len(levels_db) <= pictures.COLUMNS and abs(levels_db.argmax() / len(levels_db) - 70 / 120) < 0.002


@pytest.mark.parametrize(("colours", "name"), [(pictures.MAGMA, "magma"), (pictures.VIRIDIS, "viridis")])
def test_colours_are_those_of_the_snapshots(colours: tuple[str, ...], name: str) -> None:
    from matplotlib import colormaps

    right = colormaps[name](np.linspace(0, 1, pictures.COLOURS))[:, :3]
    assert np.abs(pictures.between([pictures.channels(colour) for colour in colours]) / 255 - right).max() < 0.06


def test_relevance_of_an_even_window_is_one_average() -> None:
    even = np.full((96, 64), 0.5 / (96 * 64), np.float32)
    assert np.allclose(pictures.times_average(even, 96 * 64, 0.5), 1)


def test_marks_of_the_axes() -> None:
    assert [(tick.at, tick.text) for tick in seconds_ticks(4.0)] == [
        (0, "0"), (12.5, "0.5"), (25, "1"), (37.5, "1.5"), (50, "2"), (62.5, "2.5"), (75, "3"), (87.5, "3.5"), (100, "4"),
    ][:: 1 if len(seconds_ticks(4.0)) == 9 else 2]  # fmt: skip
    clock = clock_ticks(datetime(2026, 3, 1, 23, 59, 58, 500000, tzinfo=timezone.utc), 4.0)
    assert [(tick.at, tick.text) for tick in clock] == [
        (12.5, "23:59:59"),
        (37.5, "00:00:00"),
        (62.5, "00:00:01"),
        (87.5, "00:00:02"),
    ]
    heights = [tick.at for tick in frequency_ticks((125.0, 7500.0), "mel")]
    assert heights == sorted(heights) and min(np.diff(heights)) >= 8


def test_the_event_lies_where_the_clip_says() -> None:
    clip = media.Clip(Path("a.flac"), RATE_HZ, 2, 6 * RATE_HZ, 0)
    found = facts.timeline(ROW, clip, None)
    assert found.event_s == (2.0, 4.0) and found.start_utc == datetime(2026, 3, 1, 9, 59, 56, tzinfo=timezone.utc)
    assert facts.timeline(replace(ROW, clip_start_s=None), clip, (1.0, 3.0)).event_s == (1.0, 3.0)
    assert facts.timeline(replace(ROW, clip_start_s=None), clip, None).event is None


def test_a_needle_points_where_the_sound_came_from() -> None:
    east = facts.compass(90.0, 10.0)
    assert east is not None and east.tip == (90.0, 50.0) and east.wedge.startswith("M50 50L89.39 43.05")
    assert facts.compass(None, None) is None


def test_the_shelf_is_bounded_and_makes_things_once() -> None:
    shelf, made = Shelf(100), []
    for key in ("a", "a", "b", "c"):
        shelf.made(key, lambda key=key: made.append(key) or b"x" * 40)  # type: ignore[misc]
    assert len(made) == 3 and shelf.get("a") is None and shelf.get("c") == b"x" * 40
    shelf.put("huge", b"", 1000)
    assert shelf.get("huge") is None


def test_looks_are_made_one_by_one_and_kept(output: Path, make_ensemble: Any) -> None:
    clip = media.clip_of(output / "clips" / "a.flac")
    desk = Desk(Shelf(), lambda folder: make_ensemble())
    found = wait(desk, Wish(clip, 1, Path("fake"), 0.9))
    assert isinstance(found, Look) and found.panels[0].backbone == "fake0"
    scores = np.array(found.curve)
    assert scores[(scores[:, 0] > 2.5) & (scores[:, 0] < 3.5), 1].min() > 0.5 > scores[scores[:, 0] < 1, 1].max()
    assert isinstance(wait(desk, Wish(clip, 5, Path("fake"), 0.9)), Failed)


def test_what_nobody_waits_for_is_not_made(output: Path, make_ensemble: Any) -> None:
    clip, now_s, opened = media.clip_of(output / "clips" / "a.flac"), [0.0], []
    desk = Desk(Shelf(), lambda folder: opened.append(folder) or make_ensemble(), lambda: now_s[0])  # type: ignore[func-returns-value]
    desk._thread = object()  # type: ignore[assignment]  # nobody works yet
    desk.ask(Wish(clip, 0, Path("old"), 0.9))
    now_s[0] = looking.WANTED_S + 1
    desk.ask(Wish(clip, 1, Path("new"), 0.9))
    assert desk._next().folder == Path("new") and not desk._wishes


def wait(desk: Desk, wish: Wish) -> Any:
    import time

    until_s = time.monotonic() + 20
    while (found := desk.ask(wish)) is None and time.monotonic() < until_s:
        time.sleep(0.05)
    return found


def test_a_verdict_on_no_detection_is_404(client: Any, output: Path) -> None:
    add(output)
    for id in (99, 2**63, 2**70):
        assert judged(client, id, verdict="orca").status_code == 404


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04 cut short"])
def test_damaged_arrays_are_passed_over(client: Any, output: Path, content: bytes) -> None:
    id = add(output)
    for file in (output / "snapshots").glob("*.npz"):
        file.write_bytes(content)
    assert client.get(f"/detection/{id}").status_code == 200
