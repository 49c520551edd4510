from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from orcawatch import plugin
from orcawatch.config import Settings, SinkSettings, load_settings, reference_page
from orcawatch.config_command import command
from orcawatch.errors import ConfigError, InputError
from orcawatch.keys import text
from orcawatch.shown import every_key


@dataclass(frozen=True)
class BellSettings(SinkSettings):
    """A sink with a secret."""

    password: str | None = text(None, "To get in.", "none", secret=True)
    url: str = text("", "Where.")


@pytest.fixture(autouse=True)
def bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin: a sink of kind `bell`."""
    entry = SimpleNamespace(load=lambda: SimpleNamespace(Settings=BellSettings))
    monkeypatch.setattr(plugin, "entry_points", lambda group: {"bell": entry})


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def written(tmp_path: Path, content: str) -> Path:
    (tmp_path / "orcawatch.yaml").write_text(content)
    return tmp_path / "orcawatch.yaml"


def faults_of(tmp_path: Path, content: str) -> list[str]:
    """The lines about faults, without the first one, which counts them."""
    with pytest.raises(ConfigError) as caught:
        printed("check", written(tmp_path, content))
    assert caught.value.exit_code == 2
    first, *rest = str(caught.value).splitlines()
    assert re.search(rf"has {len(rest)} faults?:$", first)
    return [line.strip() for line in rest]


GOOD = """
station: north
output: out
source: {device: USB, device_channels: 4, rate_hz: 96000}
channels: [0, 2]
hydrophones: [{serial: A, sensitivity_db: -170}, {serial: B, sensitivity_db: -171}]
adc_peak_v: 2
"""


def test_right_file_is_said_to_be_right(tmp_path: Path) -> None:
    output = printed("check", written(tmp_path, GOOD))
    assert re.search(
        r"orcawatch.yaml is right: 11 of \d+ keys are set, bundle first-light \w+ \(the shipped one\) is whole", output
    )
    assert "warning" not in output and not (tmp_path / "out").exists()


def test_faults_of_keys_and_of_the_machine_come_together(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    faults = faults_of(
        tmp_path,
        "hopp_s: 0.5\nsource: {file: notes.txt}\nbundle: none\noutput: notes.txt/out\nsnapshots: maybe\n",
    )
    for found, part in zip(
        faults,
        (
            "hopp_s is no key; did you mean hop_s?",
            "snapshots must be true or false, not 'maybe'",
            f"bundle: {tmp_path}/none is not a bundle",
            f"source.file: {tmp_path}/notes.txt cannot be read as audio",
            f"output {tmp_path}/notes.txt/out cannot be a folder: {tmp_path}/notes.txt is a file",
        ),
    ):
        assert part in found
    assert len(faults) == 5


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("source: {device_channels: 2}\nchannels: [0, 3]", "channels must be 0 to 1 (the source has 2), not [3]"),
        (
            "source: {device_channels: 4}\nhydrophones: [{serial: A}]",
            "hydrophones must be as many as the used channels (4), not 1",
        ),
        ("source: {rate_hz: 4000}", "source: sample rate must be at least"),
        ("stop_threshold: 0.99", "stop_threshold must be at most start_threshold, not 0.99 over"),
        ("hop_s: 0.015", "hop_s must be 0.01 to 0.96 s (one window) in steps of 0.01 s, not 0.015 s"),
        ("source: {file: none.wav}", "source.file: "),
    ],
)
def test_fault_between_keys_and_machine(tmp_path: Path, content: str, fault: str) -> None:
    (found,) = faults_of(tmp_path, content + "\n")
    assert found.startswith(fault)


def test_audio_file_is_checked_against_channels(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(tmp_path / "a.wav", np.zeros((1000, 2), np.float32), 44100)
    hydrophones = "hydrophones: [{serial: A}, {serial: B}, {serial: C}]\n"
    (fault,) = faults_of(tmp_path, "source: {file: a.wav}\n" + hydrophones)
    assert fault.startswith("hydrophones must be as many as the used channels (2), not 3")
    assert "is right" in printed("check", written(tmp_path, "source: {file: a.wav}\nchannels: [1]\n"))


@pytest.mark.parametrize("content", ["- 1\n", "hydrophones: 5\noverload: {steps: 5}\n", "output: 5\nbundle: [b]\n"])
def test_values_of_the_wrong_shape_are_faults(tmp_path: Path, content: str) -> None:
    assert all(" must " in fault for fault in faults_of(tmp_path, content))


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    for content in ("a: [\n", "\x00"):
        with pytest.raises(ConfigError, match="cannot be read as YAML"):
            printed("check", written(tmp_path, content))
    with pytest.raises(ConfigError, match="cannot be read"):
        printed("show", tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ("adc_peak_v: 2", "hydrophones[0].sensitivity_db must be given for levels in dB re 1 uPa"),
        ("hydrophones: [{sensitivity_db: -170}]", "adc_peak_v must be given for levels in dB re 1 uPa"),
        ("hydrophones: [{serial: A}, {serial: A}, {serial: B}]", "A is the serial number of several"),
        ("threads: 64", "threads is 64, but this machine has"),
        ("retention: {min_free_mb: 900000000}", "retention keeps 900000016 MB free of the disk under"),
        ("retention: {max_clips_mb: 900000000}", "retention.max_clips_mb is 900000000, which the disk under"),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(tmp_path: Path, content: str, warning: str) -> None:
    output = printed("check", written(tmp_path, content + "\n"))
    assert "warning: " in output and warning in output and "is right" in output


def shown_settings(tmp_path: Path, output: str) -> Settings:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "again.yaml").write_text(output)
    return load_settings(tmp_path / "elsewhere" / "again.yaml")


def test_what_is_shown_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        GOOD
        + "bundle: b\nsinks: [{kind: bell}, {kind: bell, name: '2: [x', send: []}]\nduty: {on_s: 60, every_s: 600}\n",
    )
    assert shown_settings(tmp_path, printed("show", file)) == load_settings(file)


def test_defaults_are_shown_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = shown_settings(tmp_path, printed("show"))
    assert found == Settings(output=tmp_path / "orcawatch-out")


def test_each_value_says_whether_the_file_sets_it(tmp_path: Path) -> None:
    output = printed("show", written(tmp_path, GOOD + "sinks: [{kind: bell, url: x}]\nheartbeat_s: 600\n"))
    marks = dict(re.findall(r"^[ -]*(\w+): .*?# (set|default.*)$", output, re.MULTILINE))
    assert marks["station"] == marks["device"] == marks["heartbeat_s"] == marks["url"] == "set"
    assert marks["hop_s"] == "default: the bundle's" and marks["threads"] == "default"
    assert marks["gain_db"] == "default" and marks["serial"] == "set"
    values = [line for line in output.splitlines() if "  # " in line]
    assert len(values) == sum(1 for _ in every_key(load_settings(tmp_path / "orcawatch.yaml")))


def test_secrets_are_masked(tmp_path: Path) -> None:
    content = "sinks: [{kind: bell, password: rose, url: 'https://me:tulip@bells.example/x?y=1'}]\n"
    output = printed("show", written(tmp_path, content))
    assert "rose" not in output and "tulip" not in output
    assert "password: '***'" in output and "https://***@bells.example/x?y=1" in output


def test_file_with_faults_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 1 fault"):
        printed("show", written(tmp_path, "threads: 0\n"))


def test_reference_is_the_page() -> None:
    assert printed("show", "--reference") == reference_page()


def test_reference_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one of the two"):
        printed("show", "--reference", written(tmp_path, ""))


def test_key_names_in_faults_are_ours(tmp_path: Path) -> None:
    """Whatever a message begins with, an operator must find it in the file or the reference."""
    names = {key.split(".")[0].split("[")[0] for key, _, _ in every_key(Settings())} | {"hydrophones", "sinks"}
    faults = faults_of(tmp_path, "bundle: no\nsource: {file: no.wav}\noutput: /dev/null/x\nstop_threshold: 1\n")
    assert {re.split(r"[ .:\[]", fault)[0] for fault in faults} <= names
