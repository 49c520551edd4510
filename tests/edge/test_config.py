from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orcawatch.config import OUTPUT, Settings, load_settings, overridden, reference_page
from orcawatch.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def faults_of(tmp_path: Path, text: str) -> str:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    return str(caught.value)


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_settings(tmp_path / "empty.yaml") == Settings()
    assert Settings().output == OUTPUT and Settings().clips.pre_roll_s == 2.0


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "station: north\nsource: {file: a.wav, realtime: true}\nbundle: b\noutput: /var/orca\nchannels: [2, 0]\n"
        "channel_fusion: mean\nhop_s: 0.24\nstart_threshold: 0.7\nstop_threshold: 0.5\n"
        "events: {merge_gap_s: 2, min_duration_s: 0.1, max_duration_s: 60}\nclips: {pre_roll_s: 1, post_roll_s: 3}\n"
        "snapshots: false\nthreads: 2\n"
    )
    settings = load_settings(tmp_path / "all.yaml")
    defaults = Settings()
    for item in fields(Settings):
        assert getattr(settings, item.name) != getattr(defaults, item.name), item.name
    for name in ("source", "events", "clips"):
        for item in fields(getattr(defaults, name)):
            assert getattr(getattr(settings, name), item.name) != getattr(getattr(defaults, name), item.name), item.name
    assert settings.source.file == tmp_path / "a.wav" and settings.bundle == tmp_path / "b"
    assert settings.output == Path("/var/orca") and settings.channels == (2, 0)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = faults_of(
        tmp_path,
        "statoin: x\nhop_s: 2\nthreads: two\nchannels: [0, 0]\nstart_threshold: 0.3\nstop_threshold: 0.5\n"
        "events: {merge_gap: 1, min_duration_s: 20, max_duration_s: 10}\nclips: 5\nsource: {realtime: maybe}\n"
        "channel_fusion: median\noutput: ''\nsnapshots: 1\n",
    )
    for part in (
        "has 12 faults",
        "statoin is no key; did you mean station?",
        "hop_s must be a number from 0.01 to 0.96 s, or null (the bundle's), not 2",
        "threads must be a whole number from 1 to 64, not 'two'",
        "channels must be a list of different channel numbers from 0, or null (all), not [0, 0]",
        "stop_threshold must be at most start_threshold (0.3), not 0.5",
        "events.merge_gap is no key; did you mean events.merge_gap_s?",
        "events.min_duration_s must be at most events.max_duration_s (10), not 20",
        "clips must hold keys and values, not 5",
        "source.realtime must be true or false, not 'maybe'",
        "channel_fusion must be max or mean, or null (the bundle's), not 'median'",
        "output must be a path, not ''",
        "snapshots must be true or false, not 1",
    ):
        assert part in text


@pytest.mark.parametrize(
    "value", ["true", "'1'", ".nan", ".inf", "-1", "61", "[1]", "null"]
)  # fmt: skip
def test_number_takes_numbers_in_range_only(tmp_path: Path, value: str) -> None:
    assert "clips.pre_roll_s must be a number from 0 to 60 s" in faults_of(tmp_path, f"clips: {{pre_roll_s: {value}}}")


@pytest.mark.parametrize("text", ["a: [", "\x00"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert "cannot be read as YAML" in faults_of(tmp_path, text)


def test_list_in_place_of_keys_and_strange_key(tmp_path: Path) -> None:
    assert "the file must hold keys and values" in faults_of(tmp_path, "- 1\n")
    assert "zzz is no key; allowed here: station, source" in faults_of(tmp_path, "zzz: 1\n")


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert "hop_s is given twice" in faults_of(tmp_path, "hop_s: 0.48\nhop_s: 0.24\n")


def test_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    assert "a is no key" in faults_of(tmp_path, "a: &a {b: *a}\n")


def test_section_without_content_has_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("clips:\nevents:\nstation: north\n")
    assert load_settings(tmp_path / "s.yaml") == Settings(station="north")


def test_more_threads_than_cores_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cores = os.cpu_count() or 1
    for threads in (1, cores + 1):
        (tmp_path / "s.yaml").write_text(f"threads: {threads}\n")
        load_settings(tmp_path / "s.yaml")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"threads is {cores + 1}, but this machine has {cores} cores")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml cannot be read"):
        load_settings(tmp_path / "none.yaml")


def test_settings_override_the_bundle(ensemble: Any) -> None:
    bundle = overridden(ensemble.bundle, Settings(hop_s=0.24, channel_fusion="mean", start_threshold=0.9))
    assert (bundle.hop_s, bundle.channel_fusion, bundle.start_threshold, bundle.stop_threshold) == (
        0.24,
        "mean",
        0.9,
        0.3,
    )
    assert overridden(ensemble.bundle, Settings()) == ensemble.bundle
    with pytest.raises(ConfigError, match=r"not 0.3 over 0.2"):
        overridden(ensemble.bundle, Settings(start_threshold=0.2))


def test_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference_page(), "run: orcawatch config show --reference > docs/configuration.md"
