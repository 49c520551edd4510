from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orcawatch import plugin
from orcawatch.config import (
    OUTPUT,
    HydrophoneSettings,
    Settings,
    SinkSettings,
    load_settings,
    overridden,
    reference_page,
)
from orcawatch.errors import ConfigError
from orcawatch.keys import joined, leaves, path, text, whole

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


EVERY_KEY = """
station: north
source: {file: a.wav, realtime: true, hostapi: ALSA, device_channels: 4, rate_hz: 96000, sample_format: int24,
         block_s: 0.2, latency_s: 1, stalled_s: 9, retry_least_s: 2, retry_most_s: 30}
bundle: b
output: /var/orca
channels: [2, 0]
hydrophones:
  - {serial: H1, sensitivity_db: -169.5, gain_db: 26, position_m: [0, 1.5, -3]}
  - {serial: H2}
adc_peak_v: 2.5
latitude_deg: 48.5
longitude_deg: -123.2
sound_speed_m_s: 1490
heading_deg: 12
files: {timezone: Europe/Oslo, time_format: "%y%m%d-%H%M%S"}
web: {address: 0.0.0.0, port: 8080, token_file: token}
channel_fusion: mean
hop_s: 0.24
start_threshold: 0.7
stop_threshold: 0.5
events: {merge_gap_s: 2, min_duration_s: 0.1, max_duration_s: 60}
clips: {pre_roll_s: 1, post_roll_s: 3, format: wav}
cascade: false
snapshots: false
levels: {every_s: 10}
duty: {on_s: 600, every_s: 3600}
overload: {queue_s: 20, step_up_s: 4, recover_s: 30, steps: [channels]}
ledger: {checkpoint_s: 10}
retention: {max_age_days: 90, max_clips_mb: 2000, min_free_mb: 100, reserve_mb: 8, sweep_s: 60}
clock: {jump_s: 1}
bundles: {trusted_keys: [k.pub], require_signature: true}
uplink: apart
metrics: {port: 9400, address: 0.0.0.0}
heartbeat_s: 60
sinks: [{kind: bell, pulls: 3}]
threads: 2
"""


@dataclass(frozen=True)
class BellSettings(SinkSettings):
    """A sink that rings a bell."""

    pulls: int = whole(1, 1, 9, "How often.")
    password: str = text("", "To get in.", secret=True)
    log: Path | None = path(None, "Where each is noted.", "nowhere")  # noqa: RUF009


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin: a sink of kind `bell`."""
    entry = SimpleNamespace(load=lambda: SimpleNamespace(Settings=BellSettings))
    monkeypatch.setattr(plugin, "entry_points", lambda group: {"bell": entry})


def test_every_key_is_read(tmp_path: Path, bell: None) -> None:
    (tmp_path / "all.yaml").write_text(EVERY_KEY)
    settings = load_settings(tmp_path / "all.yaml")
    defaults = {where: value for where, _, value in leaves(Settings())}
    same = {where for where, _, value in leaves(settings) if value == defaults[where]}
    assert same == {"source.device"}  # it and source.file are one or the other
    assert settings.source.file == tmp_path / "a.wav" and settings.bundle == tmp_path / "b"
    assert settings.output == Path("/var/orca") and settings.channels == (2, 0)
    assert settings.hydrophones[0] == HydrophoneSettings("H1", -169.5, 26.0, (0.0, 1.5, -3.0))
    assert settings.hydrophones[1] == HydrophoneSettings("H2")
    assert settings.sinks == (BellSettings(kind="bell", pulls=3),)


def test_keys_of_a_plugin_are_checked_like_our_own(tmp_path: Path, bell: None) -> None:
    text = faults_of(
        tmp_path,
        "sinks:\n- {kind: bell, pulls: 10}\n- {kind: bel}\n- {kind: bell, pull: 1, send: [detektion]}\n- bell\n"
        "- {kind: bell, name: second, bytes_per_hour: 5}\n",
    )
    for part in (
        "has 7 faults",
        "sinks[0].pulls must be a whole number from 1 to 9, not 10",
        "sinks[1]: kind must be one of bell, not 'bel'; did you mean bell?",
        "sinks[2].pull is no key; did you mean sinks[2].pulls?",
        "sinks[2].send must be a list of different names from detection, thumbnail, effort, heartbeat, clock, not "
        "['detektion']",
        "sinks[3] must hold keys and values, not 'bell'",
        "sinks[4].bytes_per_hour must be a whole number from 100",
        "sinks: bell is the name of several; give each a `name` of its own",
    ):
        assert part in text


def test_secret_is_not_told(tmp_path: Path, bell: None) -> None:
    fault = faults_of(tmp_path, "sinks: [{kind: bell, password: 271828}]\n")
    assert "sinks[0].password must be text" in fault and "271828" not in fault


def test_path_of_a_plugin_is_relative_to_the_file(tmp_path: Path, bell: None) -> None:
    (tmp_path / "s.yaml").write_text("sinks: [{kind: bell}, {kind: bell, name: b, log: rung.txt}]\n")
    assert [sink.log for sink in load_settings(tmp_path / "s.yaml").sinks] == [None, tmp_path / "rung.txt"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("source: {file: a.wav, device: x}", "source.file and source.device are both given; keep one"),
        (
            "source: {retry_least_s: 60, retry_most_s: 5}",
            "source.retry_least_s must be at most source.retry_most_s (5)",
        ),
        ("source: {rate_hz: 44100.0}", "source.rate_hz must be a whole number from 1000 to 1000000 Hz, or null ("),
        (
            "source: {sample_format: int8}",
            "source.sample_format must be int16 or int24 or int32 or float32, not 'int8'",
        ),
        ("duty: {on_s: 60}", "duty.on_s and duty.every_s go together; give both or none"),
        ("duty: {on_s: 60, every_s: 30}", "duty.on_s must be at most duty.every_s (30), not 60"),
        ("overload: {queue_s: 4}", "overload.step_up_s must be at most overload.queue_s (4), not 5"),
        ("overload: {steps: [hop, hop]}", "overload.steps must be a list of different names"),
        ("channels: [0, 1]\nhydrophones: [{serial: A}]", "hydrophones must be as many as channels (2), not 1"),
        ("hydrophones: [{sensitivity_db: 169}]", "hydrophones[0].sensitivity_db must be a number from -260 to -60 dB"),
        ("hydrophones: [{position_m: [1, 2]}]", "hydrophones[0].position_m must be a list of 3 numbers, m, or null"),
        ("hydrophones: [{serial: A}, {serial: B, serail: C}]", "hydrophones[1].serail is no key; did you mean hydr"),
        ("hydrophones: {serial: A}", "hydrophones must be a list of groups of keys (each begins with `- `), not"),
        ("hydrophones:\n- {serial: A, serial: B}", "hydrophones[0].serial is given twice; keep one"),
        ("hydrophones: [{position_m: [0, 0, 1" + 400 * "0" + "]}]", "hydrophones[0].position_m must be a list of 3"),
        ("hydrophones: [{serial: 0117}]", "hydrophones[0].serial must be text, not 79; put it in quotes, as it stands"),
        ("sinks: [{kind: mqtt, host: h, version: 5}]", "version must be 5 or 3.1.1, not 5; put it in quotes"),
        ("output: ~nobody-of-this-name/out", "output must be a path, not '~nobody-of-this-name/out'"),
        ('output: "a\\0b"', "output must be a path, not 'a\\x00b'"),
    ],
)
def test_fault_is_named_with_its_path(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in faults_of(tmp_path, text + "\n")


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
    "value", ["true", "'1'", ".nan", ".inf", "-1", "61", "1" + 400 * "0", "[1]", "null"]
)  # fmt: skip
def test_number_takes_numbers_in_range_only(tmp_path: Path, value: str) -> None:
    assert "clips.pre_roll_s must be a number from 0 to 60 s" in faults_of(tmp_path, f"clips: {{pre_roll_s: {value}}}")


@pytest.mark.parametrize("text", ["a: [", "\x00", "station: 2026-02-30", "threads: " + 5000 * "1", 3000 * "["])
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


def test_every_key_has_a_unit_or_needs_none() -> None:
    """A number in a key that ends in a unit's letters must state that unit."""
    units = {
        "_s": "s",
        "_hz": "Hz",
        "_db": "dB",
        "_m": "m",
        "_v": "V",
        "_mb": "MB",
        "_days": "days",
        "bytes_per_hour": "bytes",
    }
    for where, item in every_key(Settings):
        kind = item.metadata["key"].kind
        for suffix, unit in units.items():
            if item.name.endswith(suffix):
                assert re.search(rf"\b{unit}\b", kind), where


def every_key(kind: type[Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for item in fields(kind):
        place = joined(where, item.name)
        if "section" in item.metadata:
            yield from every_key(item.metadata["section"], place)
        elif "sections" in item.metadata:
            for member in item.metadata["shown"]().values():
                yield from every_key(member, place + "[]")
        else:
            yield place, item


def test_reference_names_every_key() -> None:
    rows = [line for line in reference_page().splitlines() if line.startswith("| `")]
    for where, item in every_key(Settings):
        ending = f"| {item.metadata['key'].doc} | {'yes' if item.metadata['key'].reload else ''} |"
        assert any(row.startswith(f"| `{where}` |") and row.endswith(ending) for row in rows), where


def test_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference_page(), "run: orcawatch config show --reference > docs/configuration.md"
