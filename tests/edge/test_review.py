"""Verdicts from the command line, and the data set that is made of them."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from orcawatch.cli import main
from orcawatch.errors import InputError
from orcawatch.reviewed import Choices, export, split_of
from orcawatch.store import Detection, Store
from orcawatch.training.dataset import read_all
from orcawatch.verdicts import Writer, give, history

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
RATE_HZ = 16000
CLIP_S = 6.0
EVENT_S = (2.0, 3.5)  # within the clip
DETECTIONS = 6


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], input=stdin)


def detection(number: int) -> Detection:
    """A detection of two channels whose clip starts `EVENT_S[0]` before it; every file holds two."""
    at_s = 100.0 * (number % 2) + 10
    return Detection(
        None, f"sea/{number // 2}.flac", at_s, at_s + EVENT_S[1] - EVENT_S[0], NOON + timedelta(seconds=at_s), 0.9,
        (0, 1), (0.8, 0.9), 1, "test", "0" * 64, clip=f"clips/{number + 1}.flac", station="Haro",
        clip_start_s=at_s - EVENT_S[0],
    )  # fmt: skip


def write_clip(path: Path, seed: int) -> None:
    """Two channels of noise; what is in the event is loud, and louder on the second."""
    samples = np.random.default_rng(seed).normal(0, 0.001, (round(CLIP_S * RATE_HZ), 2))
    first, last = (round(at_s * RATE_HZ) for at_s in EVENT_S)
    samples[first:last] *= (100, 200)
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "found"
    (folder / "clips").mkdir(parents=True)
    with Store(folder / "detections.sqlite") as store:
        for number in range(DETECTIONS):
            store.add(detection(number))
            write_clip(folder / "clips" / f"{number + 1}.flac", number)
    return folder


def say(output: Path, **verdicts: str | None) -> None:
    """say(output, d1="orca", d2=None)"""
    with Writer(output / "detections.sqlite") as writer:
        for name, verdict in verdicts.items():
            give(writer, int(name[1:]), verdict, "a,\nnote", "Ada", NOON)


def labels(data: Path) -> list[dict[str, str]]:
    with (data / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- list and set -----------------------------------------------------------------------------------------------------


def test_detections_are_listed_and_chosen(output: Path) -> None:
    say(output, d1="orca", d3="not_orca")
    rows = list(csv.DictReader(io.StringIO(run("review", "list", output).output)))
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert (rows[0]["verdict"], rows[0]["start_utc"], rows[0]["score"]) == (
        "orca",
        "2026-06-01T12:00:10+00:00",
        "0.900",
    )
    chosen = run("review", "list", output, "--verdict", "none", "--source", "1.flac").output
    assert [row["id"] for row in csv.DictReader(io.StringIO(chosen))] == ["4"]


def test_verdicts_are_set_by_ids(output: Path) -> None:
    done = run("review", "set", output, 1, 2, "--verdict", "not_orca", "--note", "a squeak", "--reviewer", "Ben")
    assert done.exit_code == 0, done.output
    with Store.reader(output / "detections.sqlite") as reader:
        found = reader.detections()
        assert [one.verdict for one in found[:3]] == ["not_orca", "not_orca", None]
        assert [(said.note, said.reviewer) for said in history(reader, 2)] == [("a squeak", "Ben")]
    run("review", "set", output, 1, "--verdict", "none")
    with Store.reader(output / "detections.sqlite") as reader:
        assert reader.detections()[0].verdict is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_verdicts_are_set_by_a_table(output: Path, separator: str) -> None:
    rows = (("id", "verdict", "note"), ("1", "orca", "two whales"), ("2", "", ""), ("3", "unsure", ""))
    table = "\n".join(separator.join(row) for row in rows)
    done = run("review", "set", output, "--from", "-", "--reviewer", "Ada", stdin=table)
    assert done.exit_code == 0, done.output
    with Store.reader(output / "detections.sqlite") as reader:
        assert [one.verdict for one in reader.detections()[:4]] == ["orca", None, "unsure", None]


def test_what_is_listed_can_be_set_again(output: Path, tmp_path: Path) -> None:
    say(output, d4="unsure")
    note = 'two, "far"; ü\r\nor\rthree'
    with Writer(output / "detections.sqlite") as writer:
        give(writer, 1, "orca", note, "Ada", NOON)
    table = tmp_path / "table.csv"
    table.write_text(run("review", "list", output).output, encoding="utf-8")
    say(output, d1=None, d4="orca")
    assert run("review", "set", output, "--from", table).exit_code == 0
    with Store.reader(output / "detections.sqlite") as reader:
        found = reader.detections()
    assert [one.verdict for one in found] == ["orca", None, None, "unsure", None, None]
    assert found[0].verdict_note == 'two, "far"; ü\nor\nthree'
    assert found[0].reviewer == "Ada"


@pytest.mark.parametrize(
    ("arguments", "stdin", "text"),
    [
        (["1"], None, "say --verdict"),
        ([], None, "by their ids, or a table"),
        (["99", "--verdict", "orca"], None, "no detection 99"),
        (["--from", "-"], "id,verdict\n1,whale\nx,orca\n", "line 2: id '1', verdict 'whale'; line 3: id 'x'"),
        (["--from", "-"], "number,verdict\n1,orca\n", "lacks the columns id"),
        (["--from", "-", "--note", "x"], "id,verdict\n1,orca\n", "brings its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_said_and_nothing_is(
    output: Path, arguments: list[str], stdin: str | None, text: str
) -> None:
    done = run("review", "set", output, *arguments, stdin=stdin)
    assert done.exit_code == 2
    assert text in done.output
    with Store.reader(output / "detections.sqlite") as reader:
        assert {one.verdict for one in reader.detections()} == {None}


# --- export -----------------------------------------------------------------------------------------------------------


def test_a_data_set_is_made_of_verdicts(output: Path, tmp_path: Path) -> None:
    say(output, d1="orca", d3="not_orca", d5="unsure")
    data = tmp_path / "data"
    done = run("review", "export", output, data, "--devel-share", 0, "--licence", "CC0")
    assert done.output.startswith(f"{data}: 2 clips added, 0 changed, 0 kept, 0 taken out; 1 detections are unsure")
    call, noise = labels(data)
    assert (call["label"], call["kind"], call["group"], call["site"]) == ("orca", "orca", "0.flac", "Haro")
    assert (noise["label"], noise["kind"], noise["note"], noise["licence"]) == ("noise", "reviewed", "a, note", "CC0")
    sound, rate_hz = soundfile.read(data / "wav" / call["file_name"])
    assert (len(sound) / rate_hz, sound.shape[1]) == (EVENT_S[1] - EVENT_S[0] + 0.5, 2)
    whole, _ = soundfile.read(data / "wav" / noise["file_name"])
    assert np.array_equal(whole, soundfile.read(output / "clips" / "3.flac")[0])
    clips = json.loads((data / "manifest.json").read_text())["clips"].values()
    origin = next(one for one in clips if one["id"] == 1)
    assert (origin["reviewer"], origin["bundle_digest"], origin["output"]) == ("Ada", "0" * 64, str(output.resolve()))


def test_training_reads_it_with_every_channel(output: Path, tmp_path: Path) -> None:
    say(output, d1="orca", d3="not_orca")
    export([output], tmp_path / "data", Choices(devel_share=0))
    clips = read_all("labels", [tmp_path / "data"], one_class=True).clips
    assert [(clip.label, clip.channel, clip.site) for clip in clips] == [
        ("orca", 0, "Haro"), ("orca", 1, "Haro"), ("noise", 0, "Haro"), ("noise", 1, "Haro"),
    ]  # fmt: skip


def test_clips_to_judge_by_are_the_best_channel_alone(output: Path, tmp_path: Path) -> None:
    say(output, d1="not_orca")
    export([output], tmp_path / "data", Choices(devel_share=1))
    row = labels(tmp_path / "data")[0]
    sound, _ = soundfile.read(tmp_path / "data" / "wav" / row["file_name"])
    assert row["split"] == "devel"
    assert np.array_equal(sound, soundfile.read(output / "clips" / "1.flac")[0][:, 1])


def test_a_silent_channel_teaches_nothing(output: Path, tmp_path: Path) -> None:
    samples, rate_hz = soundfile.read(output / "clips" / "1.flac")
    samples[:, 0] = 0
    soundfile.write(output / "clips" / "1.flac", samples, rate_hz)
    say(output, d1="orca")
    export([output], tmp_path / "data", Choices(devel_share=0))
    assert soundfile.info(tmp_path / "data" / "wav" / labels(tmp_path / "data")[0]["file_name"]).channels == 1


def test_running_it_again_adds_and_changes_only_what_is_new(output: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    say(output, d1="orca", d2="not_orca", d3="orca")
    export([output], data, Choices())
    times = {path.name: path.stat().st_mtime_ns for path in (data / "wav").iterdir()}
    say(output, d1="not_orca", d3=None, d4="orca")
    outcome = export([output], data, Choices())
    assert (outcome.added, outcome.changed, outcome.kept, outcome.dropped) == (1, 1, 1, 1)
    files = {row["file_name"] for row in labels(data)}
    assert files == {path.name for path in (data / "wav").iterdir()}
    kept = files & set(times)
    assert len(kept) == 1
    assert all((data / "wav" / name).stat().st_mtime_ns == times[name] for name in kept)
    again = export([output], data, Choices())
    assert (again.added, again.changed, again.kept, again.dropped) == (0, 0, 3, 0)


def test_a_recording_keeps_its_side_whatever_the_share_says_later(output: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    say(output, d1="not_orca")
    export([output], data, Choices(devel_share=0))
    say(output, d2="not_orca", d3="not_orca")
    export([output], data, Choices(devel_share=1))
    assert {row["group"]: row["split"] for row in labels(data)} == {"0.flac": "train", "1.flac": "devel"}


def test_the_split_is_drawn_by_recording_and_always_the_same() -> None:
    sides = [split_of(f"{number}.flac", 0.2) for number in range(2000)]
    assert 0.17 < sides.count("devel") / len(sides) < 0.23
    assert sides == [split_of(f"{number}.flac", 0.2) for number in range(2000)]
    assert all(split_of(f"{n}.flac", 0.5) == "devel" for n, side in enumerate(sides) if side == "devel")


def test_live_detections_of_a_day_are_one_recording(output: Path, tmp_path: Path) -> None:
    with sqlite3.connect(output / "detections.sqlite") as connection:
        session = "INSERT INTO sessions (id, source, live, rate_hz, channels) VALUES (?, 'card', 1, 16000, '[0, 1]')"
        connection.executemany(session, [(1,), (2,)])
        connection.execute("UPDATE detections SET session = 1 + id % 2, source = 'card'")
        connection.execute("UPDATE detections SET start_utc = '2026-06-02T00:00:10+00:00' WHERE id = 6")
    say(output, d1="orca", d2="orca", d6="orca")
    export([output], tmp_path / "data", Choices())
    assert [row["group"] for row in labels(tmp_path / "data")] == [
        "Haro 2026-06-01",
        "Haro 2026-06-01",
        "Haro 2026-06-02",
    ]


def test_clips_that_are_gone_are_counted_and_named(output: Path, tmp_path: Path) -> None:
    say(output, d1="orca", d2="orca", d3="orca", d4="orca")
    export([output], tmp_path / "data", Choices())
    with sqlite3.connect(output / "detections.sqlite") as connection:
        connection.execute("UPDATE detections SET removed = 'to make room' WHERE id IN (1, 5)")
        connection.execute("UPDATE detections SET clip = NULL WHERE id = 6")
    (output / "clips" / "2.flac").unlink()
    say(output, d2="not_orca", d5="orca", d6="orca")
    done = run("review", "export", output, tmp_path / "data")
    assert "0 clips added, 0 changed, 3 kept, 1 taken out" in done.output  # what was exported before is kept
    assert "3 verdicts have no clip any more" in done.output
    assert "detection 5 of" in done.output
    assert "to make room" in done.output


def test_two_output_folders_make_one_data_set_and_a_copy_is_not_counted_twice(output: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "clips").mkdir(parents=True)
    with Store(other / "detections.sqlite") as store:
        store.add(replace(detection(0), source="elsewhere.flac", station="Lime Kiln"))
    write_clip(other / "clips" / "1.flac", 9)
    say(output, d1="orca")
    say(other, d1="not_orca")
    outcome = export([output, other, output], tmp_path / "data", Choices())
    assert sorted(row["site"] for row in labels(tmp_path / "data")) == ["Haro", "Lime Kiln"]
    assert outcome.added == 2
    export([output], tmp_path / "data", Choices())
    assert len(labels(tmp_path / "data")) == 2  # what came from the other one stays


def test_what_is_no_exported_data_set_is_not_touched(output: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "labels.csv").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        export([output], data, Choices())
    assert (data / "labels.csv").read_text() == "mine"
    assert run("review", "export", output).exit_code == 2
    assert run("review", "export", output, tmp_path / "new", "--devel-share", 2).exit_code == 2
    assert run("review", "export", tmp_path / "nowhere", tmp_path / "new").exit_code == 2
    assert not (tmp_path / "new").exists()
