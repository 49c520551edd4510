"""When recordings began: names of recorders, metadata, zones, changes of summer time."""

from __future__ import annotations

import struct
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orcawatch.config import load_settings
from orcawatch.errors import ConfigError
from orcawatch.files import FileSource
from orcawatch.guano import guano_text, with_guano_chunk
from orcawatch.times import Times, stamp_by, stamp_in, text_chunks

THEN = datetime(2019, 9, 20, 16, 38, 58, tzinfo=timezone.utc)
SILENCE = np.zeros(16000, np.float32)


def written(path: Path) -> Path:
    """A second of silence."""
    soundfile.write(path, SILENCE, 16000)
    return path


def began(path: Path, zone: str | None = None, pattern: str | None = None) -> datetime | None:
    """What a file's source says of its start."""
    return FileSource(path, times=Times.of(zone, pattern)).info.start_utc


@pytest.mark.parametrize(
    "name",
    [
        "20190920_163858.WAV",
        "20190920_163858T.WAV",
        "5678.190920163858.wav",
        "SITE-1_20190920_163858.wav",
        "SBW1559_20190920_163858.wav",
        "SOCAL31H_190920_163858.x.wav",
        "2019-09-20_16-38-58.flac",
    ],
)
def test_names_without_a_zone_tell_a_time_only_where_the_zone_is_given(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    assert began(path) is None
    assert began(path, "UTC") == THEN
    assert began(path, "-07:00") == THEN + timedelta(hours=7) == began(path, "America/Vancouver")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("AMAR173.1.20190920T163858Z.wav", THEN),
        ("icListenHF1251_20190920T163858.250Z.wav", THEN + timedelta(seconds=0.25)),
        ("buoy_20190920T093858-0700.wav", THEN),
    ],
)
def test_names_with_a_zone_need_none(tmp_path: Path, name: str, expected: datetime) -> None:
    assert began(written(tmp_path / name)) == expected == began(tmp_path / name, "Europe/Oslo")


@pytest.mark.parametrize("name", ["devel_00001.flac", "123456789012345678.wav", "20191320_163858.wav", "12.wav"])
def test_other_names_tell_none(name: str) -> None:
    assert stamp_in(name) is None


@pytest.mark.parametrize("stamp", ["20190920T163858+16:00", "20190920T163858-0775"])
def test_stamps_with_an_offset_that_no_zone_has_tell_none(tmp_path: Path, stamp: str) -> None:
    assert stamp_in(f"S_{stamp}.wav") is None
    assert began(written(tmp_path / f"S_{stamp}.wav"), "UTC") is None


def test_hours_that_summer_time_skips_or_repeats_are_no_time(tmp_path: Path) -> None:
    for name, expected in (
        ("20190310_023000.wav", None),  # skipped
        ("20191103_013000.wav", None),  # there twice
        ("20191103_023000.wav", datetime(2019, 11, 3, 10, 30, tzinfo=timezone.utc)),
    ):
        assert began(written(tmp_path / name), "America/Vancouver") == expected
    assert began(tmp_path / "20191103_013000.wav", "-08:00") == datetime(2019, 11, 3, 9, 30, tzinfo=timezone.utc)


def test_the_pattern_says_where_the_stamp_stands(tmp_path: Path) -> None:
    path = written(tmp_path / "ORCA7_20.09.2019-16h38m58_20200101_000000.wav")
    assert began(path, "UTC", "%d.%m.%Y-%Hh%Mm%S") == THEN
    assert began(path, "UTC", "SITE_%y%m%d-%H%M%S") is None
    assert stamp_by("A.B_%Y%j%H", "AxB_201926316.wav") is None is stamp_by("%Y%m%d%H", "2019130116")


def test_guano_of_wav_and_flac_comes_before_the_name(tmp_path: Path) -> None:
    text = guano_text({"Timestamp": "2019-09-20T09:38:58.5-07:00"})
    wav = written(tmp_path / "20200101_000000.wav")
    wav.write_bytes(with_guano_chunk(wav.read_bytes(), text))
    flac = tmp_path / "20200101_000000.flac"
    with soundfile.SoundFile(flac, "w", 16000, 1) as file:
        file.comment = text
        file.write(SILENCE)
    assert began(wav, "UTC") == began(flac) == THEN + timedelta(seconds=0.5)


def test_guano_without_a_zone_needs_one(tmp_path: Path) -> None:
    path = written(tmp_path / "x.wav")
    path.write_bytes(with_guano_chunk(path.read_bytes(), guano_text({"Timestamp": "2019-09-20T16:38:58"})))
    assert (began(path), began(path, "UTC")) == (None, THEN)


def test_audiomoth_says_its_zone(tmp_path: Path) -> None:
    path = tmp_path / "20190920_093858.WAV"
    with soundfile.SoundFile(path, "w", 16000, 1, format="WAV") as file:
        file.comment = "Recorded at 09:38:58 20/09/2019 (UTC-7) by AudioMoth 24F319055FDF2F5B at gain 2."
        file.write(SILENCE)
    assert began(path) == THEN


def test_broadcast_header_is_taken_last(tmp_path: Path) -> None:
    path = written(tmp_path / "x.wav")
    wav = path.read_bytes()
    bext = b"\0" * 320 + b"2019-09-2016:38:58" + b"\0" * 264
    body = wav[8:12] + struct.pack("<4sI", b"bext", len(bext)) + bext + wav[12:]
    path.write_bytes(wav[:4] + struct.pack("<I", len(body)) + body)
    assert (began(path), began(path, "UTC")) == (None, THEN)


def test_a_chunk_longer_than_any_file_ends_the_search(tmp_path: Path) -> None:
    """Found by fuzzing: it ended the scan."""
    path = tmp_path / "x.wav"
    soundfile.write(path, SILENCE, 16000, format="RF64")
    content = bytearray(path.read_bytes())
    assert content[12:16] == b"ds64"
    content[28:36] = b"\xff" * 8  # the length of the audio
    path.write_bytes(content)
    assert text_chunks(path) == {}


@pytest.mark.parametrize(
    "key, value, text",
    [
        ("timezone", "Mars/Olympus", "files.timezone must be UTC, an offset such as -08:00"),
        ("timezone", "+26:00", "files.timezone must be UTC, an offset such as -08:00"),
        ("time_format", "%Y%q", "files.time_format holds %q, which is not known"),
        ("time_format", "%Y%m%d", "files.time_format must tell year, day and hour"),
        ("time_format", "%Y%m%d%H%H", "files.time_format holds %H twice"),
    ],
)
def test_wrong_zones_and_patterns_are_refused(tmp_path: Path, key: str, value: str, text: str) -> None:
    (tmp_path / "s.yaml").write_text(f"files:\n  {key}: '{value}'\n")
    with pytest.raises(ConfigError, match=text):
        load_settings(tmp_path / "s.yaml")
