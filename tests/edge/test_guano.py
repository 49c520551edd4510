from __future__ import annotations

import hashlib
import io
import wave
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from orcawatch._version import __version__
from orcawatch.clips import write_clip
from orcawatch.guano import clip_metadata, guano_text, with_guano_chunk
from orcawatch.store import Detection

guano = pytest.importorskip("guano", reason="the reference reader of GUANO is not installed: pip install guano")
mutagen_flac = pytest.importorskip(
    "mutagen.flac", reason="the reader of FLAC's tags is not installed: pip install mutagen"
)

RATE_HZ = 48000
START_UTC = datetime(2026, 7, 1, 12, 0, 0, 250000, tzinfo=timezone.utc)
DETECTION = Detection(
    id=17, source="UMC404HD 192k", start_s=10.0, end_s=11.5, start_utc=START_UTC, score=0.9400141, channels=(0, 2),
    channel_scores=(0.5, float("nan")), best_channel=0, bundle="first-light", bundle_digest="ab" * 32,
    station="Haro Strait 1", session=3, start_sample=480000, end_sample=552000, synchronised=True,
    hydrophones=("H-101", "H-103"), levels_db=(101.24, 99.0), level_unit="dB re 1 uPa",
)  # fmt: skip


def noise(channels: int, frames: int = 4801) -> Any:
    steps = np.random.default_rng(channels).integers(-(2**23), 2**23, (frames, channels))
    return (steps / 2**23).astype(np.float32)


def metadata() -> dict[str, str]:
    return clip_metadata(DETECTION, 480000 - 96000, 4801, RATE_HZ)


def check_fields(found: Any) -> None:
    assert found["GUANO|Version"] == "1.0"
    assert found["Timestamp"] == START_UTC - timedelta(seconds=2)
    assert found["Samplerate"] == RATE_HZ and found["Length"] == 0.1
    assert (found["Make"], found["Firmware Version"], found["Serial"]) == ("orcawatch", __version__, "H-101, H-103")
    assert found["Species Auto ID"] == "Orcinus orca"
    assert found["Note"] == "score 0.940; the event lies 2.000 to 3.500 s into this file"
    own = dict(found.items("orcawatch"))
    assert own["Detection"] == "17" and own["Station"] == "Haro Strait 1" and own["Score"] == "0.940014"
    assert own["Channel Scores"] == "0.500000, -" and own["Channels"] == "0, 2" and own["Best Channel"] == "0"
    assert own["Levels"] == "101.2, 99.0" and own["Level Unit"] == "dB re 1 uPa"
    assert own["Start Sample"] == "384000" and own["Clock Synchronised"] == "yes" and own["Session"] == "3"
    assert own["Bundle"] == "first-light" and own["Bundle Digest"] == "ab" * 32


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_wav_has_a_chunk_that_the_reference_reader_reads(tmp_path: Path, channels: int) -> None:
    samples = noise(channels)
    path = write_clip(tmp_path / "a.flac", samples, RATE_HZ, metadata(), "wav")
    found = guano.GuanoFile(str(path), strict=True)
    check_fields(found)
    assert path.name == "a.wav" and found.wav_params[:4] == (channels, 3, RATE_HZ, len(samples))
    np.testing.assert_array_equal(soundfile.read(path, dtype="float32", always_2d=True)[0], samples)
    with wave.open(str(path)) as plain:  # the standard library's reader, which knows no such chunk
        assert plain.getnframes() == len(samples)


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_flac_has_the_same_text_in_its_comment(tmp_path: Path, channels: int) -> None:
    samples = noise(channels)
    path = write_clip(tmp_path / "a.flac", samples, RATE_HZ, metadata())
    assert path.name == "a.flac"
    (text,) = mutagen_flac.FLAC(path)["comment"]
    check_fields(guano.GuanoFile.from_string(text, strict=True))
    np.testing.assert_array_equal(soundfile.read(path, dtype="float32", always_2d=True)[0], samples)
    left_aligned = np.rint(samples.astype(np.float64) * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
    written = mutagen_flac.FLAC(path).info.md5_signature
    assert f"{written:032x}" == hashlib.md5(left_aligned.tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_audio_is_the_same_with_and_without(tmp_path: Path, kind: str) -> None:
    samples = noise(3)
    paths = [
        write_clip(tmp_path / name, samples, RATE_HZ, fields, kind) for name, fields in (("a", None), ("b", metadata()))
    ]
    without, with_fields = (soundfile.read(path, dtype="int32")[0] for path in paths)
    np.testing.assert_array_equal(without, with_fields)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"a.{kind}", f"b.{kind}"]


def test_long_and_foreign_text_survives(tmp_path: Path) -> None:
    fields = {"Note": "first\nsecond\r\nthird", "orcawatch|Station": "Ærø \U0001f40b", "orcawatch|Long": "x" * 70000}
    path = write_clip(tmp_path / "a", noise(1), RATE_HZ, fields, "wav")
    found = guano.GuanoFile(str(path))
    assert found["Note"] == "first\nsecond\nthird" and found["orcawatch|Station"] == "Ærø \U0001f40b"
    assert found["orcawatch|Long"] == "x" * 70000
    flac = write_clip(tmp_path / "a", noise(1), RATE_HZ, fields)
    assert mutagen_flac.FLAC(flac)["comment"] == [guano_text(fields)]


@pytest.mark.parametrize("note", ["x", "xx"])
def test_chunks_are_of_even_length_and_the_file_is_as_long_as_it_says(tmp_path: Path, note: str) -> None:
    content = write_clip(tmp_path / "a", noise(1), RATE_HZ, {"Note": note}, "wav").read_bytes()
    assert len(content) % 2 == 0 and int.from_bytes(content[4:8], "little") == len(content) - 8


def test_what_is_not_known_is_left_out() -> None:
    bare = Detection(None, "x.flac", 1.0, 2.0, None, 0.5, (0,), (0.5,), 0, "b", "c")
    fields = clip_metadata(bare, 0, 16000, 16000)
    for name in ("Timestamp", "Serial", "orcawatch|Station", "orcawatch|Levels", "orcawatch|Clock Synchronised"):
        assert name not in fields
    assert fields["orcawatch|Event Start"] == "1.000" and fields["Note"].startswith("score 0.500")
    assert clip_metadata(replace(bare, synchronised=False), 0, 1, 16000)["orcawatch|Clock Synchronised"] == "no"


def test_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    for key in ("a:b", "a\nb", " "):
        with pytest.raises(ValueError, match="without colon and line break"):
            guano_text({key: "x"})
    with pytest.raises(ValueError, match="must be flac or wav, not 'mp3'"):
        write_clip(tmp_path / "a", noise(1), RATE_HZ, None, "mp3")
    big_endian = io.BytesIO()
    soundfile.write(big_endian, noise(1), RATE_HZ, format="WAV", endian="BIG")
    with pytest.raises(ValueError, match="RIFF"):
        with_guano_chunk(big_endian.getvalue(), "x")
