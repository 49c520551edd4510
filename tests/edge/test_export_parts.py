"""Exports read back by other programs: crowsetta and pandas; and the example that draws a season."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch.export import write_exports
from orcawatch.exporter import ALL_FILES
from orcawatch.formats import BANDS, LABELS
from orcawatch.store import Detection, Store

pytestmark = pytest.mark.parts
pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install 'orcawatch[parts]'")

ROOT = Path(__file__).resolve().parents[2]
AWKWARD = ('=1+1 "S4"\tJ pod\nsecond line', '"quoted"', "sm\u00e5 \U0001f40b", "-5", "NA", "", "a,b;c")


def loaded(path: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight days with 700 detections, two of them with clips."""
    output = tmp_path_factory.mktemp("season")
    loaded(ROOT / "benchmarks" / "many.py").fill(output, 700, days=8, clips=2, level_every_s=900)
    return output


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detections in three files with awkward notes, and their tables."""
    output = tmp_path_factory.mktemp("archive")
    with Store(output / "detections.sqlite") as store:
        for number, note in enumerate(AWKWARD * 3):
            store.add(made(number, note))
    write_exports(output, ["raven", "audacity", "csv", "jsonl"], output / "tables")
    return output


def made(number: int, note: str) -> Detection:
    """A detection with figures of its own."""
    start_s = 10.0 * number + 0.123456
    return Detection(
        None, f"/sea/{number % 3}.wav", start_s, start_s + 1.000001 + number / 7, None, 0.5 + number / 50, (0, 1),
        (0.1, 0.5 + number / 50), 1, "first-light", "ab" * 32, station="Reef",
        numbers={"band_low_hz": 500.0 + number, "band_high_hz": 4000.55 + number},
        verdict=(None, "orca", "not_orca", "unsure")[number % 4], verdict_note=note,
    )  # fmt: skip


def detections(output: Path) -> list[Detection]:
    """All of them."""
    with Store.reader(output / "detections.sqlite") as reader:
        return reader.detections()


def in_file(output: Path, number: int) -> list[Detection]:
    """Those of one sound file, by time."""
    return [found for found in detections(output) if found.source == f"/sea/{number}.wav"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_crowsetta_reads_our_selection_tables(archive: Path, number: int) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    table = archive / "tables" / "raven" / f"{number}.selections.txt"
    raven = crowsetta.formats.by_name("raven").from_file(table, audio_path=f"/sea/{number}.wav")
    boxes, found = raven.to_annot().bboxes, in_file(archive, number)
    assert [box.label for box in boxes] == [LABELS[one.verdict] for one in found]
    np.testing.assert_allclose([box.onset for box in boxes], [one.start_s for one in found], atol=1e-6)
    np.testing.assert_allclose([box.offset for box in boxes], [one.end_s for one in found], atol=1e-6)
    np.testing.assert_allclose([box.low_freq for box in boxes], [one.numbers[BANDS[0]] for one in found], atol=0.051)
    np.testing.assert_allclose([box.high_freq for box in boxes], [one.numbers[BANDS[1]] for one in found], atol=0.051)


def test_crowsetta_writes_and_reads_them_again(archive: Path, tmp_path: Path) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    form = crowsetta.formats.by_name("raven")
    first = form.from_file(archive / "tables" / "raven" / "1.selections.txt")
    first.to_file(tmp_path / "again.txt")
    assert form.from_file(tmp_path / "again.txt").to_bbox() == first.to_bbox()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_crowsetta_reads_our_label_tracks(archive: Path, number: int) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    track = archive / "tables" / "audacity" / f"{number}.labels.txt"
    boxes = crowsetta.formats.by_name("aud-bbox").from_file(track).to_bbox()
    found = in_file(archive, number)
    assert [box.label.split(" 0.")[0].split(" 1.")[0] for box in boxes] == [LABELS[one.verdict] for one in found]
    np.testing.assert_allclose([box.onset for box in boxes], [one.start_s for one in found], atol=1e-6)
    np.testing.assert_allclose([box.offset for box in boxes], [one.end_s for one in found], atol=1e-6)
    np.testing.assert_allclose([box.low_freq for box in boxes], [one.numbers[BANDS[0]] for one in found], atol=1e-6)
    np.testing.assert_allclose([box.high_freq for box in boxes], [one.numbers[BANDS[1]] for one in found], atol=1e-6)


def test_crowsetta_reads_the_clips_table_of_a_live_season(season: Path) -> None:
    crowsetta = pytest.importorskip("crowsetta")
    write_exports(season, ["raven"], season / "tables")
    [table] = (season / "tables" / "raven" / "live").iterdir()
    boxes = crowsetta.formats.by_name("raven").from_file(table).to_bbox()
    newest = detections(season)[-2:]
    lengths_s = [one.end_s - one.start_s for one in newest]
    np.testing.assert_allclose([box.offset - box.onset for box in boxes], lengths_s, atol=2e-6)
    assert boxes[0].onset == pytest.approx(2.0, abs=1e-4), "clips begin 2 s before"


def test_pandas_reads_the_table_of_all_files(archive: Path) -> None:
    """Without sessions the files' lengths are not known, so that there is none; the single ones add up."""
    assert not (archive / "tables" / "raven" / ALL_FILES).exists()
    tables = [pandas.read_csv(path, sep="\t") for path in (archive / "tables" / "raven").iterdir()]
    assert sum(map(len, tables)) == len(AWKWARD) * 3


def test_pandas_reads_csv_and_json_lines_alike(season: Path) -> None:
    write_exports(season, ["csv", "jsonl"], season / "tables")
    table = pandas.read_csv(season / "tables" / "detections.csv", keep_default_na=False, na_values=[""])
    lines = pandas.read_json(season / "tables" / "detections.jsonl", lines=True, convert_dates=False)
    assert list(table.columns) == list(lines.columns)
    assert len(table) == len(lines) == 700
    for name in ("id", "start_s", "end_s", "score", "best_channel", "bearing_deg", "band_high_hz", "rate_hz"):
        np.testing.assert_allclose(table[name].to_numpy(float), lines[name].to_numpy(float), rtol=1e-12)
    starts = pandas.to_datetime(table["start_utc"], utc=True)
    np.testing.assert_array_equal(starts, pandas.to_datetime(lines["start_utc"], utc=True))
    assert starts.is_monotonic_increasing
    assert set(table["verdict"].dropna()) == set(lines["verdict"].dropna()) == {"orca", "not_orca", "unsure"}
    assert [json.loads(text) for text in table["levels_db"]] == list(lines["levels_db"])


def test_notes_come_back_in_pandas(archive: Path) -> None:
    table = pandas.read_csv(archive / "tables" / "detections.csv", dtype=str, keep_default_na=False)
    notes = table["verdict_note"].str.replace(r"^'('*[=+\-@\t\r])", r"\1", regex=True)
    assert list(notes) == list(AWKWARD * 3)


# --- the season -------------------------------------------------------------------------------------------------------


def test_the_season_is_that_of_orcawatch_effort(season: Path) -> None:
    days = loaded(ROOT / "examples" / "season.py").season(season / "detections.sqlite")[0]
    report = subprocess.run(
        [sys.executable, "-m", "orcawatch.cli", "effort", str(season), "-q"], check=True, capture_output=True, text=True
    ).stdout
    lines = [line.split() for line in report.splitlines() if line.startswith("2026-")]
    assert [f"{day:%Y-%m-%d}" for day in days.index] == [line[0] for line in lines]
    figures = np.array([[float(word.lstrip("<")) for word in line[1:6]] for line in lines])
    ours = np.column_stack(
        [days["recorded"] + days["reduced"], days["reduced"], days["gap"], days["off_duty"], days["shed"]]
    )
    np.testing.assert_allclose(ours, figures, atol=0.0011)
    counted = days[["orca", "unsure", "not_reviewed", "not_orca"]].sum(axis=1)
    assert [str(count) for count in counted] == [line[8] for line in lines]


def test_rates_are_what_is_not_refused_by_the_hours_of_listening(season: Path) -> None:
    days, found, sound, unit = loaded(ROOT / "examples" / "season.py").season(season / "detections.sqlite")
    kept, hours_h = days[["orca", "unsure", "not_reviewed"]].sum(axis=1), days["recorded"] + days["reduced"]
    np.testing.assert_allclose(days["per_hour"].to_numpy(), (kept / hours_h).where(hours_h >= 1).to_numpy())
    assert (len(found), unit) == (700, "dB re 1 uPa")
    assert (sound[0.05] <= sound[0.5]).all()
    assert sound[0.5].between(85, 125).all()


def test_the_season_is_drawn(season: Path, tmp_path: Path) -> None:
    picture = tmp_path / "season.png"
    command = [sys.executable, str(ROOT / "examples" / "season.py"), str(season), str(picture)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 9
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[0] > 1000
    assert (pixels[..., :3] < 0.99).any(axis=-1).mean() > 0.1, "not an empty page"


@pytest.mark.parametrize(("option", "text"), [([], "--files takes the sessions"), (["--files"], "has no session")])
def test_a_season_without_times_is_told(archive: Path, tmp_path: Path, option: list[str], text: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / "season.py"), str(archive), str(tmp_path / "x.png"), *option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert text in done.stderr


def test_the_made_season_is_sound(season: Path) -> None:
    """What benchmarks/many.py leaves is what a buoy would: no overlaps, verdicts in the journal, files where rows say."""
    with closing(sqlite3.connect(season / "detections.sqlite")) as connection:
        journal = connection.execute(
            "SELECT detection, verdict, note, reviewer FROM verdicts ORDER BY detection"
        ).fetchall()
        sessions = connection.execute("SELECT count(*) FROM sessions WHERE live").fetchone()[0]
    found = detections(season)
    starts = [one.start_utc for one in found if one.start_utc]
    assert (sessions, len(starts)) == (3, 700)
    assert starts == sorted(starts)
    assert [(one.id, one.verdict, one.verdict_note, one.reviewer) for one in found if one.verdict] == journal
    there = [one for one in found if one.removed is None]
    assert [one.id for one in there] == [699, 700]
    assert all((season / name).is_file() for one in there for name in (one.clip, one.snapshot) if name)
