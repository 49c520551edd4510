"""Exports: what other programs read is what the database holds."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orcawatch import review, reviewed
from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.cli import main
from orcawatch.clock import Clocks
from orcawatch.config import Settings
from orcawatch.daemon import run
from orcawatch.effort import Span
from orcawatch.errors import InputError, OrcawatchError
from orcawatch.export import viewed, write_exports
from orcawatch.exporter import ALL_FILES, FORMATS
from orcawatch.files import FileSource
from orcawatch.formats import BOM, COLUMNS, RAVEN, csv_lines, guarded, json_lines, one_line
from orcawatch.ledger import FileTime, Ledger, Session
from orcawatch.occurrences import TERMS, identity
from orcawatch.printer import Printer
from orcawatch.records import AudioBlock
from orcawatch.selection import Row, Wanted
from orcawatch.store import Detection, Store
from orcawatch.tables import SUMS, Folder, table_names

UTC = timezone.utc
START = datetime(2026, 3, 1, 23, 59, 58, tzinfo=UTC)
RATE_HZ = 32000
# From the list of terms that TDWG publishes (simple Darwin Core), copied by hand; those that OBIS requires come first.
REQUIRED = {
    "occurrenceID", "eventDate", "decimalLongitude", "decimalLatitude", "scientificName", "scientificNameID",
    "occurrenceStatus", "basisOfRecord",
}  # fmt: skip
PUBLISHED = REQUIRED | {
    "scientificNameAuthorship", "kingdom", "phylum", "class", "order", "family", "genus", "taxonRank", "vernacularName",
    "geodeticDatum", "coordinateUncertaintyInMeters", "locationID", "locality", "samplingProtocol", "samplingEffort",
    "sampleSizeValue", "sampleSizeUnit", "eventID", "eventRemarks", "identifiedBy", "dateIdentified",
    "identificationVerificationStatus", "identificationQualifier", "identificationReferences", "identificationRemarks",
    "associatedMedia", "occurrenceRemarks", "recordedBy", "institutionCode", "datasetName",
}  # fmt: skip

NASTY = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30) | st.sampled_from(
    [
        "=1+1",
        "'=1",
        "-3",
        "+4",
        "@x",
        "\tx",
        "\rx",
        'a"b',
        '"',
        "a\tb\nc",
        "",
        " ",
        "'",
        "''-1",
        "NA",
        "\ufeffx",
        "\u2028",
    ]
)
A_NAME = st.text(st.characters(codec="utf-8", exclude_characters="\x00/"), min_size=1, max_size=30).map(
    "/sea/{}".format
)


def detection(**changes: Any) -> Detection:
    """An event of 1.5 s on the second of two channels."""
    found = Detection(
        id=None, source="/sea/a.wav", start_s=3.25, end_s=4.75, start_utc=START, score=0.912345, channels=(0, 1),
        channel_scores=(0.5, 0.912345), best_channel=1, bundle="first-light", bundle_digest="ab" * 32,
        numbers={"band_low_hz": 812.44, "band_high_hz": 4093.06}, station="Reef", start_sample=104000,
        end_sample=152000, synchronised=True, hydrophones=("H 1", "H 2"), levels_db=(-32.16, math.nan),
        level_unit="dB re full scale", bearing_deg=123.44, bearing_error_deg=6.06,
    )  # fmt: skip
    return replace(found, **changes)


def fill(
    output: Path,
    detections: Sequence[Detection],
    place: tuple[float, float] | None = (48.5, -123.15),
    utc: datetime | None = START,
    seconds: float = 60.0,
) -> None:
    """A database with a session for each source, as a scan makes it."""
    with Store(output / "detections.sqlite") as store:
        for source in dict.fromkeys(one.source for one in detections):
            latitude_deg, longitude_deg = place or (None, None)
            session = Session(
                source, False, RATE_HZ, (0, 1), (), "Reef", "first-light", "ab" * 32, latitude_deg, longitude_deg
            )
            timeline = FileTime(
                RATE_HZ, lambda sample: None if utc is None else utc + timedelta(seconds=sample / RATE_HZ)
            )
            ledger = Ledger(store, session, timeline, Clocks())
            ledger.recorded(0, round(seconds * RATE_HZ))
            for one in detections:
                if one.source == source:
                    store.add(replace(one, session=ledger.session))
            ledger.close()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows by column."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def read_raven(path: Path) -> list[dict[str, str]]:
    """Rows by column; nothing is quoted there."""
    head, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [dict(zip(head.split("\t"), line.split("\t"))) for line in lines]


def row_of(found: Detection) -> Row:
    """A detection of no run."""
    return Row(found, None)


# --- CSV and JSON lines -----------------------------------------------------------------------------------------------


def test_csv_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    fill(tmp_path, [detection(verdict="orca", verdict_note="S4", reviewer="Ann", verdict_utc=START), detection(id=2)])
    write_exports(tmp_path, ["csv", "jsonl"], tmp_path / "tables")
    rows = read_csv(tmp_path / "tables" / "detections.csv")
    lines = [json.loads(line) for line in (tmp_path / "tables" / "detections.jsonl").read_text().splitlines()]
    assert [tuple(row) for row in rows] == [tuple(line) for line in lines] == [COLUMNS, COLUMNS]
    first, line = rows[0], lines[0]
    assert (first["start_s"], first["end_s"], first["score"]) == ("3.25", "4.75", "0.912345")
    assert (line["start_s"], line["end_s"], line["score"], line["band_low_hz"]) == (3.25, 4.75, 0.912345, 812.4)
    assert first["start_utc"] == line["start_utc"] == "2026-03-01T23:59:58.000000+00:00"
    assert first["end_utc"] == line["end_utc"] == "2026-03-01T23:59:59.500000+00:00"
    assert (first["channels"], first["channel_scores"]) == ("0 1", "0.5 0.912345")
    assert json.loads(first["levels_db"]) == line["levels_db"] == [-32.2, None]
    assert json.loads(first["hydrophones"]) == line["hydrophones"] == ["H 1", "H 2"]
    assert (first["verdict"], first["verdict_note"], first["reviewer"]) == ("orca", "S4", "Ann")
    assert (rows[1]["verdict"], lines[1]["verdict"], lines[1]["verdict_note"]) == ("", None, "")
    assert (first["synchronised"], first["live"], first["rate_hz"]) == ("yes", "no", "32000")
    assert (line["latitude_deg"], line["longitude_deg"], line["session"]) == (48.5, -123.15, 1)


def test_columns_are_those_that_are_printed_as_far_as_both_have_them() -> None:
    found = detection(id=7, start_utc=START + timedelta(microseconds=1))
    printed = Printer("jsonl", Settings()).record(found)
    exported = json.loads(next(json_lines([row_of(found)])))
    assert COLUMNS[: len(Printer.COLUMNS)] == Printer.COLUMNS
    assert {name: exported[name] for name in printed} == printed


def test_times_are_utc_whatever_the_source_said(tmp_path: Path) -> None:
    local = START.astimezone(timezone(timedelta(hours=-8)))
    [line] = json_lines([row_of(detection(start_utc=local))])
    assert json.loads(line)["start_utc"] == "2026-03-01T23:59:58.000000+00:00"


@settings(deadline=None)
@given(note=NASTY, source=A_NAME, station=NASTY)
def test_text_comes_back_from_csv_and_no_cell_is_a_formula(note: str, source: str, station: str) -> None:
    text = "".join(csv_lines([row_of(detection(verdict_note=note, source=source, station=station))]))
    rows = list(csv.reader(io.StringIO(text.removeprefix(BOM), newline="")))
    assert len(rows) == 2
    found = dict(zip(rows[0], rows[1]))
    assert [plain(found[name]) for name in ("verdict_note", "file", "station")] == [note, source, station]
    words = [value for name, value in found.items() if name not in ("longitude_deg", "bearing_deg")]
    assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r")) for value in words)


def test_nul_is_replaced_since_not_every_python_takes_it_in_csv() -> None:
    found = detection(verdict_note="a\0b", station="\0", source="/sea/\0.wav")
    labels = dict.fromkeys(reviewed.COLUMNS, "\0")
    for text in ("".join(csv_lines([row_of(found)])), review.listed([found]), reviewed.labels_text([labels])):
        assert "\0" not in text and "\ufffd" in text


def plain(text: str) -> str:
    """What docs/formats.md says of guarded text."""
    return text[1:] if re.match(r"'+[=+\-@\t\r]", text) else text


@settings(deadline=None)
@given(text=NASTY)
def test_guard_can_be_undone(text: str) -> None:
    assert plain(guarded(text)) == text


@settings(deadline=None)
@given(note=NASTY)
def test_each_detection_is_one_line_of_json(note: str) -> None:
    [line] = json_lines([row_of(detection(verdict_note=note))])
    assert line.count("\n") == 1
    assert json.loads(line)["verdict_note"] == note


def test_scores_of_channels_that_were_not_scored(tmp_path: Path) -> None:
    rows = [row_of(detection(channel_scores=(math.nan, 0.912345)))]
    assert json.loads(next(json_lines(rows)))["channel_scores"] == [None, 0.912345]
    assert "'- 0.912345" in "".join(csv_lines(rows))


# --- Raven and Audacity -----------------------------------------------------------------------------------------------


def test_a_table_for_each_sound_file_and_one_for_all(tmp_path: Path) -> None:
    found = [
        detection(source="/sea/june/a.wav"), detection(source="/sea/june/a.wav", start_s=9, end_s=10),
        detection(source="/sea/july/a.wav", start_s=1, end_s=2.5, verdict="not_orca", verdict_note="a\tship\n!"),
    ]  # fmt: skip
    fill(tmp_path, found, seconds=600)
    write_exports(tmp_path, ["raven", "audacity"], tmp_path / "tables")
    raven, audacity = tmp_path / "tables" / "raven", tmp_path / "tables" / "audacity"
    june, july = (read_raven(raven / month / "a.selections.txt") for month in ("june", "july"))
    assert [tuple(row) for row in june] == [RAVEN, RAVEN]
    assert [row["Selection"] for row in june] == ["1", "2"]
    assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in june] == [
        ("3.250000", "4.750000"), ("9.000000", "10.000000"),
    ]  # fmt: skip
    assert (june[0]["Channel"], june[0]["View"], june[0]["Annotation"]) == ("2", "Spectrogram 1", "orca?")
    assert (june[0]["Low Freq (Hz)"], june[0]["High Freq (Hz)"], june[0]["Band"]) == ("812.4", "4093.1", "call")
    assert (june[0]["Begin File"], june[0]["Begin Path"]) == ("a.wav", "/sea/june/a.wav")
    assert (june[0]["Bearing (deg)"], june[0]["Bearing Error (deg)"]) == ("123.4", "6.1")
    assert (july[0]["Annotation"], july[0]["Verdict"], july[0]["Note"]) == ("not orca", "not_orca", "a ship !")
    all_of_them = read_raven(raven / ALL_FILES)
    places = [(row["Begin Path"], row["Begin Time (s)"], row["File Offset (s)"]) for row in all_of_them]
    assert places == [
        ("/sea/july/a.wav", "1.000000", "1.000000"),
        ("/sea/june/a.wav", "603.250000", "3.250000"),
        ("/sea/june/a.wav", "609.000000", "9.000000"),
    ]
    assert (audacity / "july" / "a.labels.txt").read_text() == (
        "1.000000\t2.500000\tnot orca 0.912 ch 2: a ship !\n\\\t812.440000\t4093.060000\n"
    )


def test_frequencies_are_the_calls_the_detectors_or_all_that_was_recorded(tmp_path: Path) -> None:
    shipped = load_bundle(SHIPPED)
    found = [detection(), detection(numbers={}, bundle_digest=shipped.digest), detection(numbers={})]
    fill(tmp_path, found)
    write_exports(tmp_path, ["raven"], tmp_path / "tables")
    rows = read_raven(tmp_path / "tables" / "raven" / "a.selections.txt")
    front_ends = [entry.front_end for entry in shipped.backbones.values()]
    low_hz = min(end.frequencies_hz[0] for end in front_ends)
    high_hz = max(end.frequencies_hz[-1] for end in front_ends)
    assert [(row["Low Freq (Hz)"], row["High Freq (Hz)"], row["Band"]) for row in rows] == [
        ("812.4", "4093.1", "call"),
        (f"{low_hz:.1f}", f"{min(high_hz, RATE_HZ / 2):.1f}", "detector"),
        ("0.0", "16000.0", "all"),
    ]


def test_live_selections_lie_on_the_calls_in_their_clips(
    tmp_path: Path, make_ensemble: Any, scripted: Any, make_audio: Any
) -> None:
    """The table opens the clips; each selection, on its channel, holds the tone and little beside it."""
    samples = make_audio(16000, 30.0, 3, [(8.0, 9.5), (20.0, 21.5)])
    blocks = [AudioBlock(samples[start : start + 1600], start) for start in range(0, len(samples), 1600)]
    source = scripted(blocks, channels=3, start_utc=START)
    run(source, make_ensemble(), Settings(output=tmp_path, channels=(2, 1), snapshots=False), lambda found: None)
    write_exports(tmp_path, ["raven", "audacity"], tmp_path / "tables")
    rows = read_raven(tmp_path / "tables" / "raven" / "live" / "session-000001.selections.txt")
    assert len(rows) == 2
    assert [row["Channel"] for row in rows] == ["1", "1"], "the loudest, 2, is the clip's first"
    before_s = 0.0
    for row in rows:
        clip, rate_hz = soundfile.read(row["Begin Path"])
        begin_s, end_s = (float(row[name]) - before_s for name in ("Begin Time (s)", "End Time (s)"))
        assert begin_s == pytest.approx(float(row["File Offset (s)"]))
        power = clip[:, int(row["Channel"]) - 1] ** 2
        inside = power[round(begin_s * rate_hz) : round(end_s * rate_hz)].sum()
        assert inside > 0.95 * power.sum()
        before_s += len(clip) / rate_hz
    labels = (tmp_path / "tables" / "audacity" / "live" / "session-000001.labels.txt").read_text().splitlines()
    starts_s = [float(line.split("\t")[0]) for line in labels[::2]]
    assert starts_s == pytest.approx([8.0, 20.0], abs=1.0)


def test_live_detections_without_a_clip_are_counted(
    tmp_path: Path, make_ensemble: Any, scripted: Any, make_audio: Any, caplog: pytest.LogCaptureFixture
) -> None:
    samples = make_audio(16000, 20.0, 2, [(8.0, 9.5)])
    source = scripted([AudioBlock(samples, 0)], start_utc=START)
    run(source, make_ensemble(), Settings(output=tmp_path, snapshots=False), lambda found: None)
    [clip] = (tmp_path / "clips").iterdir()
    clip.unlink()
    write_exports(tmp_path, ["raven"], tmp_path / "tables")
    assert not list((tmp_path / "tables").rglob("*.selections.txt"))
    assert "left out: 1 heard live and without a clip" in caplog.text


def test_a_scan_from_end_to_end(tmp_path: Path, make_ensemble: Any, recording: Path) -> None:
    output = tmp_path / "out"
    run(FileSource(recording), make_ensemble(), Settings(output=output, snapshots=False), lambda found: None)
    result = CliRunner().invoke(main, ["export", str(output), "--format", "raven", "--format", "csv", "--effort"])
    assert result.exit_code == 0, result.output
    rows = read_raven(output / "tables" / "raven" / "calls.selections.txt")
    assert [(row["Begin Path"], row["Channel"]) for row in rows] == [(str(recording.resolve()), "2")] * 2
    table = read_csv(output / "tables" / "detections.csv")
    assert [float(row["start_s"]) for row in table] == [
        pytest.approx(float(row["Begin Time (s)"]), abs=1e-3) for row in rows
    ]
    [effort] = read_csv(output / "tables" / "effort.csv")
    assert (effort["kind"], float(effort["duration_s"])) == ("recorded", 10.0)


@settings(deadline=None)
@given(note=NASTY)
def test_cells_of_raven_hold_neither_tabs_nor_lines(note: str) -> None:
    cell = one_line(note)
    assert len(cell.splitlines()) <= 1
    assert "\t" not in cell
    assert not cell.startswith('"')
    assert len(cell) == len(note)


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1), unique=True, max_size=8))
def test_names_of_tables_are_different_and_stay_in_the_folder(sources: list[str]) -> None:
    names = table_names(sources, "raven", ".selections.txt", ["raven/all.selections.txt"])
    assert list(names) == sources
    assert len({*names.values(), "raven/all.selections.txt"}) == len(sources) + 1
    for name in names.values():
        first, *parts = name.split("/")
        assert first == "raven"
        assert not {"", ".", ".."} & set(parts)
        assert all(len(part.encode()) <= 255 for part in parts)
        assert not re.search(r"[\x00-\x1f\x7f]", name)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources=st.lists(A_NAME, min_size=1, max_size=4, unique=True), note=NASTY)
def test_files_of_any_name_have_their_tables(
    tmp_path_factory: pytest.TempPathFactory, sources: list[str], note: str
) -> None:
    output = tmp_path_factory.mktemp("names")
    fill(output, [detection(source=source, verdict_note=note) for source in sources])
    write_exports(output, FORMATS, output / "tables")
    tables = [path for path in (output / "tables" / "raven").rglob("*.selections.txt") if path.name != ALL_FILES]
    assert len(tables) == len(set(sources))
    assert all(len(read_raven(path)) == 1 for path in tables)
    assert len(read_csv(output / "tables" / "detections.csv")) == len(sources)


# --- Darwin Core ------------------------------------------------------------------------------------------------------


def occurrences(output: Path, *options: str) -> list[dict[str, str]]:
    """The rows that the command prints."""
    result = CliRunner().invoke(main, ["export", str(output), "--format", "darwin-core", "-o", "-", *options])
    assert result.exit_code == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout, newline="")))


def test_occurrences_have_published_terms_and_all_that_obis_requires(tmp_path: Path) -> None:
    fill(tmp_path, [detection()])
    [row] = occurrences(tmp_path)
    assert tuple(row) == TERMS
    assert len(set(TERMS)) == len(TERMS)
    assert set(TERMS) <= PUBLISHED
    assert all(row[name] for name in REQUIRED)
    assert row["basisOfRecord"] == "MachineObservation"
    assert row["scientificNameID"] == "urn:lsid:marinespecies.org:taxname:137102"
    assert row["eventDate"] == "2026-03-01T23:59:58.000Z/2026-03-01T23:59:59.500Z"
    assert (row["decimalLatitude"], row["decimalLongitude"], row["geodeticDatum"]) == (
        "48.50000",
        "-123.15000",
        "EPSG:4326",
    )
    assert row["samplingEffort"] == "0.001 h recorded on 2026-03-01 UTC", "2 of its 60 s are before midnight"
    assert row["identificationVerificationStatus"] == "PredictedByMachine"
    assert "0.912" in row["identificationRemarks"]
    assert "ab" * 32 in row["identificationReferences"]
    assert row["occurrenceRemarks"].startswith("bearing from the hydrophones 123 degrees true")


def test_effort_is_that_of_the_day_at_the_station(tmp_path: Path) -> None:
    fill(tmp_path, [detection(start_utc=START + timedelta(hours=1))], seconds=2 * 3600 + 2)
    [row] = occurrences(tmp_path)
    assert row["samplingEffort"] == "2.000 h recorded on 2026-03-02 UTC"


def test_verdicts_decide_what_is_an_occurrence(tmp_path: Path) -> None:
    spans = [
        {"start_sample": 100000 * n, "verdict": verdict}
        for n, verdict in enumerate((None, "orca", "not_orca", "unsure"))
    ]
    fill(
        tmp_path,
        [detection(**span, reviewer="Ann", verdict_utc=START, verdict_note="faint,\n2 calls") for span in spans],
    )
    rows = occurrences(tmp_path)
    assert [row["identificationVerificationStatus"] for row in rows] == [
        "PredictedByMachine", "ValidatedByHuman", "PredictedByMachine",
    ]  # fmt: skip
    assert [row["identificationQualifier"] for row in rows] == ["", "", "cf. orca"]
    assert [row["identifiedBy"] for row in rows[1:]] == ["Ann", "Ann"]
    assert "a reviewer was not sure; reviewer's note: faint, 2 calls" in rows[2]["identificationRemarks"]


def test_what_lacks_time_or_place_is_counted_with_the_cure(tmp_path: Path) -> None:
    fill(tmp_path, [detection(), detection(start_sample=5, start_utc=None)], place=None)
    arguments = ["export", str(tmp_path), "--format", "darwin-core"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "1 no position: give latitude_deg and longitude_deg" in refused.output
    assert "1 no time: `orcawatch scan` again with files.timezone" in refused.output
    assert not (tmp_path / "tables" / "occurrences.csv").exists()
    placed = CliRunner().invoke(main, [*arguments, "--position", "60.1", "-20.5", "--uncertainty-m", "8000"])
    assert placed.exit_code == 0, placed.output
    assert "left out: 1 no time" in placed.output
    [row] = read_csv(tmp_path / "tables" / "occurrences.csv")
    assert (row["decimalLatitude"], row["decimalLongitude"]) == ("60.10000", "-20.50000")
    assert row["coordinateUncertaintyInMeters"] == "8000"


def test_identities_are_unique_and_stay(tmp_path: Path) -> None:
    found = [detection(start_sample=1000 * n, end_sample=1000 * n + 900) for n in range(20)]
    fill(tmp_path / "a", found)
    fill(tmp_path / "b", [detection(source="/sea/0.wav"), *found[::-1]])
    first, second = ([row["occurrenceID"] for row in occurrences(tmp_path / name)] for name in ("a", "b"))
    assert len(set(first)) == 20
    assert len(set(second)) == 21
    assert set(first) < set(second), "whatever else a database holds, and in whatever order"


def test_a_file_that_was_scanned_twice_gives_each_occurrence_once(tmp_path: Path) -> None:
    fill(tmp_path, [detection()])
    fill(tmp_path, [detection(score=0.8)])
    result = CliRunner().invoke(main, ["export", str(tmp_path), "--format", "darwin-core"])
    assert "left out: 1 found again in another scan" in result.output
    assert len(read_csv(tmp_path / "tables" / "occurrences.csv")) == 1


def test_a_corrected_clock_changes_no_identity_of_live_detections(
    tmp_path: Path, make_ensemble: Any, scripted: Any, make_audio: Any
) -> None:
    source = scripted([AudioBlock(make_audio(16000, 20.0, 2, [(8.0, 9.5)]), 0)], start_utc=START)
    run(source, make_ensemble(), Settings(output=tmp_path, snapshots=False), lambda found: None)
    with viewed(tmp_path) as export:
        [row] = export.rows()
    moved = replace(row, detection=replace(row.detection, start_utc=START + timedelta(days=1)))
    assert identity(moved) == identity(row)


def test_clips_have_addresses_where_they_are_published(tmp_path: Path) -> None:
    fill(
        tmp_path, [detection(clip="clips/000001 a.flac"), detection(start_sample=5, clip="clips/2.flac", removed="old")]
    )
    with_address = occurrences(tmp_path, "--media-url", "https://sea.example/buoy/")
    assert [row["associatedMedia"] for row in with_address] == ["https://sea.example/buoy/clips/000001%20a.flac", ""]
    assert {row["associatedMedia"] for row in occurrences(tmp_path)} == {""}


# --- what is wanted, and where it goes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "123"),
        (["--verdict", "orca"], "1"),
        (["--verdict", "orca", "--verdict", "none"], "13"),
        (["--least-score", "0.7"], "23"),
        (["--station", "Bank"], "3"),
        (["--source", "*.flac"], "2"),
        (["--source", "/sea/a.wav"], "1"),
        (["--since", "2026-03-02"], "2"),
        (["--until", "2026-03-02"], "1"),
        (["--since", "2026-03-01T23:59:58", "--until", "2026-03-01T23:59:59"], "1"),
    ],
)
def test_filters(tmp_path: Path, options: list[str], wanted: str) -> None:
    found = [
        detection(score=0.6, verdict="orca"),
        detection(source="/sea/b.flac", score=0.7, verdict="not_orca", start_utc=START + timedelta(seconds=2)),
        detection(source="/sea/c.wav", score=0.8, station="Bank", start_utc=None),
    ]
    fill(tmp_path, found)
    result = CliRunner().invoke(main, ["export", str(tmp_path), "--format", "jsonl", "-o", "-", *options])
    assert result.exit_code == 0, result.stderr
    assert "".join(str(json.loads(line)["id"]) for line in result.stdout.splitlines()) == wanted


def test_tables_that_were_edited_are_never_replaced(tmp_path: Path) -> None:
    fill(tmp_path, [detection(), detection(source="/sea/b.wav")])
    tables = tmp_path / "tables"
    write_exports(tmp_path, FORMATS, tables)
    write_exports(tmp_path, FORMATS, tables)
    edited = tables / "raven" / "a.selections.txt"
    edited.write_text(edited.read_text().replace("orca?", "humpback"))
    with pytest.raises(InputError, match=r"a\.selections\.txt would be replaced, but was edited"):
        write_exports(tmp_path, ["raven"], tables, Wanted(verdicts=("none",)))
    assert "humpback" in edited.read_text()
    write_exports(tmp_path, ["raven"], tables, overwrite=True)
    assert "humpback" not in edited.read_text()


def test_tables_of_files_that_are_not_wanted_any_more_go(tmp_path: Path) -> None:
    fill(tmp_path, [detection(), detection(source="/sea/b.wav", verdict="orca")])
    folder = tmp_path / "tables" / "audacity"
    write_exports(tmp_path, ["audacity"], tmp_path / "tables")
    assert sorted(path.name for path in folder.iterdir()) == ["a.labels.txt", "b.labels.txt"]
    write_exports(tmp_path, ["audacity"], tmp_path / "tables", Wanted(verdicts=("orca",)))
    assert [path.name for path in folder.iterdir()] == ["b.labels.txt"]


def test_a_writer_that_was_killed_before_the_end_does_no_harm(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with folder.writing("raven/a.txt") as table:
        table.write("one\n")
    assert (tmp_path / SUMS).read_text().endswith("  raven/a.txt\n"), "written before finish()"
    again = Folder(tmp_path)
    with again.writing("raven/a.txt") as table:
        table.write("two\n")
    assert (tmp_path / "raven" / "a.txt").read_text() == "two\n"


def test_a_table_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with folder.writing("a.csv") as table:
        table.write("old\n")
    with pytest.raises(KeyboardInterrupt), folder.writing("a.csv") as table:
        table.write("new")
        raise KeyboardInterrupt
    assert (tmp_path / "a.csv").read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [SUMS, "a.csv"]


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    fill(tmp_path, [detection()])
    (tmp_path / "tables").write_text("a file in the way")
    with pytest.raises(OrcawatchError, match="tables cannot be written"):
        write_exports(tmp_path, ["csv"], tmp_path / "tables")


def test_a_file_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path, [detection()])
    place = tmp_path / "mine.csv"
    arguments = ["export", str(tmp_path), "--format", "csv", "-o", str(place)]
    place.write_text("precious")
    refused = CliRunner().invoke(main, arguments)
    assert (refused.exit_code, place.read_text()) == (2, "precious")
    assert "is there already" in refused.output
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    assert len(read_csv(place)) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--format", "raven", "-o", "-"], "-o - is for one of"),
        (["--format", "csv", "--format", "jsonl", "-o", "-"], "-o - is for one of"),
        (["--format", "csv", "--effort", "-o", "x.csv"], "--effort is a second file"),
        (["--format", "csv", "--since", "spring"], "--since must be a day or a moment"),
        (["--format", "kml"], "Invalid value for '--format'"),
    ],
)
def test_usage(tmp_path: Path, options: list[str], text: str) -> None:
    fill(tmp_path, [detection()])
    result = CliRunner().invoke(main, ["export", str(tmp_path), *options])
    assert result.exit_code == 2
    assert text in result.output


def test_no_database(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(tmp_path), "--format", "csv"])
    assert result.exit_code == 2
    assert "detections.sqlite is not there" in result.output
    assert not (tmp_path / "tables").exists()


def test_nothing_found_is_an_empty_table(tmp_path: Path) -> None:
    fill(tmp_path, [detection()])
    write_exports(tmp_path, FORMATS, tmp_path / "tables", Wanted(span=Span(START + timedelta(days=9))))
    assert read_csv(tmp_path / "tables" / "detections.csv") == []
    assert (tmp_path / "tables" / "detections.jsonl").read_text() == ""
    assert read_csv(tmp_path / "tables" / "occurrences.csv") == []
    assert not (tmp_path / "tables" / "raven").exists()


def test_what_is_written_meanwhile_is_not_half_in_it(tmp_path: Path) -> None:
    fill(tmp_path, [detection(), detection()])
    with Store(tmp_path / "detections.sqlite") as store, viewed(tmp_path) as export:
        lines = export.lines("jsonl")
        first = next(lines)
        store.add(detection(score=0.1))
        assert [json.loads(line)["id"] for line in [first, *lines]] == [1, 2]
        assert len(store.detections()) == 3


def test_memory_does_not_grow_with_the_number_of_detections(tmp_path: Path) -> None:
    """Each row has 4 kB of notes, so that 600 of them, kept, would be 2.4 MB."""
    with Store(tmp_path / "detections.sqlite") as store:
        for number in range(600):
            store.add(detection(start_sample=number, verdict_note="x" * 4000))
    with viewed(tmp_path) as export:
        for how in ("csv", "jsonl", "raven", "audacity"):
            tracemalloc.start()
            export.write(how, Folder(tmp_path / "tables"))
            peak_b = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak_b < 1_000_000, how
    assert np.isclose((tmp_path / "tables" / "detections.jsonl").stat().st_size / 600, 5000, rtol=0.1)
