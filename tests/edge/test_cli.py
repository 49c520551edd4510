from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable

import click
import numpy as np
import pytest

from orcawatch import __version__
from orcawatch.bundle import write_bundle
from orcawatch.cli import EXTRAS, GROUP, load_command, main
from orcawatch.config import Settings
from orcawatch.errors import OrcawatchError
from orcawatch.printer import Printer
from orcawatch.simulate import SceneSettings
from orcawatch.store import Detection, Store

CONFTEST = Path(__file__).with_name("conftest.py")
COMMANDS = ["bundle", "deploy", "explain", "run", "scan", "simulate", "train"]
# The real command line in a process of its own, with the fake ensemble in place of a bundle's.
WITH_FAKE = f"""
import os, runpy, signal
from orcawatch import cli, config, daemon
fake = runpy.run_path({str(CONFTEST)!r})["FakeEnsemble"]()
score, seen, last = fake.score, [], int(os.environ.get("STOP_AT", 0))
def stopping(window, *how):
    seen.append(window)
    if len(seen) == last:
        os.kill(os.getpid(), signal.SIGTERM)
    return score(window, *how)
fake.score = stopping
def open_ensemble(settings, bundle=None):
    fake.bundle = config.overridden(fake.bundle, settings)
    return fake
daemon.open_ensemble = open_ensemble
cli.main(prog_name="orcawatch")
"""


def command(*arguments: object, fake: bool = True) -> list[str]:
    program = ["-c", WITH_FAKE] if fake else ["-m", "orcawatch.cli"]
    return [sys.executable, *program, *map(str, arguments)]


def ran(folder: Path, *arguments: object, fake: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, fake=fake), cwd=folder, capture_output=True, text=True, timeout=60)


def imported(statement: str, folder: Path) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_version(tmp_path: Path) -> None:
    done = ran(tmp_path, "--version", fake=False)
    assert (done.returncode, done.stdout) == (0, f"orcawatch, version {__version__}\n")


@pytest.mark.parametrize(
    "name", ["", "run", "scan", "explain", "simulate", "bundle", "bundle inspect", "bundle verify"]
)
def test_help_of_every_command(tmp_path: Path, name: str) -> None:
    done = ran(tmp_path, *name.split(), "--help", fake=False)
    assert done.returncode == 0 and done.stdout.startswith("Usage: ")
    assert name == "bundle" or "Exit codes:\n    0  everything went well" in done.stdout


def test_root_help_lists_all_commands_and_loads_none(tmp_path: Path) -> None:
    code = "from orcawatch.cli import main\nmain(['--help'], standalone_mode=False)"
    heavy = {"tensorflow", "librosa", "matplotlib", "numpy", "orcawatch.training.cli", "orcawatch.deploy.cli"}
    printed = imported(code, tmp_path)  # the help's words, and the modules
    assert set(COMMANDS) <= printed and not heavy & printed


def test_command_whose_packages_are_missing_says_how_to_install_them() -> None:
    class Entry:
        name, value = "train", "orcawatch.training.cli:train"

        def load(self) -> Any:
            raise ModuleNotFoundError("No module named 'tensorflow'")

    with pytest.raises(OrcawatchError, match=r"No module named 'tensorflow'.*pip install 'orcawatch\[train\]'"):
        load_command(Entry())


def test_commands_of_other_packages_are_listed_in_the_package() -> None:
    text = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text()
    assert GROUP in text and all(f"{name} = " in text for name in EXTRAS)


def test_scan_prints_one_json_object_per_detection(recording: Path, tmp_path: Path) -> None:
    done = ran(tmp_path, "scan", recording, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [round(detection["start_s"]) for detection in found] == [2, 6]
    for detection in found:
        assert list(detection)[:6] == ["start_s", "end_s", "score", "channel_scores", "snapshot", "clip"]
        assert 0 <= detection["score"] <= 1 and len(detection["channel_scores"]) == 2
        assert (tmp_path / detection["snapshot"]).is_file() and (tmp_path / detection["clip"]).is_file()
        assert detection["snapshot"].startswith("orcawatch-out/") and detection["file"] == str(recording)
    assert re.search(r"1 files, 10.0 s scored in .* times real time, 2 detections in orcawatch-out", done.stderr)


def test_csv_and_text(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("snapshots: false\n")
    done = ran(tmp_path, "scan", recording.parent, "--config", "s.yaml", "--format", "csv", "--output", "o", "--quiet")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [round(float(row["start_s"])) for row in rows] == [2, 6] and done.stderr == ""
    assert rows[0]["clip"] == "o/clips/000001_calls_1.68s.flac"
    done = ran(tmp_path, "scan", recording, "--config", "s.yaml", "--output", "p")
    assert f"{recording}: 1.68 to 4.08 s: orca 0." in done.stdout and "on channel 1 (of 0, 1); p/" in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_clip_scores(recording: Path, tmp_path: Path) -> None:
    (recording.parent / "a.wav").write_text("text")
    done = ran(tmp_path, "scan", recording.parent, "--clip-scores", "scores.csv")
    assert done.returncode == 3 and done.stdout == ""
    assert "a.wav cannot be read as audio" in done.stderr and "1 scores in scores.csv; 1 files skipped" in done.stderr
    (row,) = csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text()))
    assert row["file_name"] == "calls.flac" and 0 < float(row["score"]) < 1
    assert not (tmp_path / "orcawatch-out").exists()


def test_run_with_settings_and_with_input(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        f"source: {{file: {recording}}}\noutput: kept\nstation: north\nchannels: [1]\nsnapshots: false\n"
    )
    done = ran(tmp_path.parent, "run", "--config", tmp_path / "s.yaml", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 2 and found[0]["station"] == "north" and len(found[0]["channel_scores"]) == 1
    assert all((line["channels"], line["best_channel"]) == ([1], 1) for line in found)
    assert found[0]["clip"] == str(tmp_path / "kept/clips/000001_calls_1.68s.flac") and found[0]["snapshot"] is None
    assert "10.00 s read, 10.00 s scored, 0.00 s refused, 0.00 s missing" in done.stderr
    again = ran(tmp_path, "run", "--input", recording, "--format", "jsonl")
    assert [json.loads(line)["start_s"] for line in again.stdout.splitlines()] == [line["start_s"] for line in found]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_realtime_run_cleanly(
    tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path], number: signal.Signals
) -> None:
    path = write(tmp_path / "long.wav", make_audio(16000, 60.0, 1, [(0.5, 60.0)]), 16000)
    with subprocess.Popen(
        command("run", "--input", path, "--realtime", "--format", "jsonl"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_until(lambda: (tmp_path / "orcawatch-out" / "detections.sqlite").exists())
        time.sleep(2.0)
        os.kill(process.pid, number)
        output, log = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in log
    (detection,) = [json.loads(line) for line in output.splitlines()]
    assert (tmp_path / detection["clip"]).is_file() and (tmp_path / detection["snapshot"]).is_file()
    assert f"{number.name}: stopping" in log and "1 events" in log


@pytest.mark.parametrize("arguments", [["--format", "jsonl"], ["--clip-scores", "s.csv"]])
def test_signal_ends_a_scan_with_its_summary(
    tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path], arguments: list[str]
) -> None:
    write(tmp_path / "in" / "a.wav", make_audio(16000, 5.0, 1, [(2.0, 3.0)]), 16000)
    write(tmp_path / "in" / "b.wav", make_audio(16000, 60.0, 1, []), 16000)
    done = subprocess.run(
        command("scan", "in", *arguments),
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "STOP_AT": "30"}, timeout=60,
    )  # fmt: skip
    output, log = done.stdout, done.stderr
    assert done.returncode == 3 and "Traceback" not in log and "SIGTERM: stopping" in log
    if "jsonl" in arguments:
        assert len(output.splitlines()) == 1 and "1 detections in orcawatch-out; 1 files not scored in full" in log
    else:
        assert (tmp_path / "s.csv").read_text().splitlines()[1].startswith("a.wav,0.")
        assert "b.wav has no score: it was stopped" in log and "1 scores in s.csv; 1 files skipped" in log


@pytest.mark.parametrize("name", ["run", "scan"])
def test_full_disk_loses_clips_but_no_rows(
    tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path], name: str
) -> None:
    """A file-size limit refuses the clips, as a full disk does; the database's files are smaller."""
    sea = make_audio(44100, 20.0, 4, [(3.0, 15.0)]) + np.random.default_rng(1).normal(0, 0.1, (882000, 4))
    path = write(tmp_path / "long.wav", sea.astype(np.float32), 44100)
    line = shlex.join(command(name, *([path] if name == "scan" else ["--input", path]), "--format", "jsonl"))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 400; {line}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert "clip of detection 1 failed: [Errno 27] File too large" in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    with Store(tmp_path / "orcawatch-out" / "detections.sqlite") as store:
        rows = store.detections()
    assert len(rows) == len(found) >= 1 and found[0]["clip"] is None is rows[0].clip
    assert list((tmp_path / "orcawatch-out" / "clips").iterdir()) == []


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["run", "--input", "none.wav"], "orcawatch: none.wav is not a file; check the path"),
        (["run", "--input", "text.wav"], "orcawatch: text.wav cannot be read as audio: Format not recognised; give"),
        (["run", "--config", "wrong.yaml"], "statoin is no key; did you mean station?"),
        (["scan", "empty"], "orcawatch: empty holds no audio file"),
        (["scan", "none"], "orcawatch: none does not exist; check the path"),
        (["scan"], "Missing argument 'PATH...'"),
        (["scan", "text.wav", "--format", "xml"], "'xml' is not one of 'text', 'jsonl', 'csv'"),
        (["simulate", "x", "--wind", "99"], "orcawatch: wind_m_s must be a number from 0 to 30 m/s, not 99"),
        (["bundle", "verify", "empty"], "orcawatch: empty is not a bundle: it has no manifest.json"),
        (
            ["scan", "text.wav", "--clip-scores", "s.csv", "--format", "text"],
            "--format is about detections and --clip-sc",
        ),
        (["scan", "text.wav", "--clip-scores", "empty"], "orcawatch: empty cannot be written: it is a folder; name"),
        (["scan", "text.wav", "--config", "twice.yaml"], "twice.yaml has 1 fault"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.wav").write_text("text")
    (tmp_path / "wrong.yaml").write_text("statoin: x\n")
    (tmp_path / "twice.yaml").write_text("channels: [1, 1]\n")
    done = ran(tmp_path, *arguments)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert text in done.stderr


def test_truncated_file_is_scanned_as_far_as_it_goes(recording: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.flac"
    cut.write_bytes(recording.read_bytes()[: recording.stat().st_size * 3 // 5])
    (tmp_path / "s.yaml").write_text("snapshots: false\n")
    done = ran(tmp_path, "scan", cut, "--config", "s.yaml", "--format", "jsonl")
    assert done.returncode == 3 and len(done.stdout.splitlines()) == 1
    assert "cut.flac is damaged: " in done.stderr and " s of 10.000 s could be read" in done.stderr
    assert ran(tmp_path, "run", "--input", cut, "--config", "s.yaml").returncode == 2


def test_damaged_bundle_is_refused(recording: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", {"name": "x"}, {"vggish.tflite": b"network"})
    (tmp_path / "b" / "vggish.tflite").write_bytes(b"netwark")
    for arguments in (["scan", recording, "--bundle", "b"], ["bundle", "verify", "b"], ["bundle", "inspect", "b"]):
        done = ran(tmp_path, *arguments, fake=False)
        assert done.returncode == 2 and "vggish.tflite is damaged: its SHA-256 is" in done.stderr


def test_nobody_reading_the_output_is_no_traceback(recording: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("scan", recording, "--format", "jsonl"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        log = process.stderr.read().decode()
    assert "Traceback" not in log


def test_simulate_writes_a_scene(tmp_path: Path) -> None:
    done = ran(tmp_path, "simulate", "scene", "--seconds", 5, "--rate", 16000, "--hydrophone", 0, 0, 0, "--ship")
    assert (done.returncode, done.stdout) == (0, "scene.flac\n")
    truth = json.loads((tmp_path / "scene.json").read_text())
    assert truth["hydrophones_m"] == [[0, 0, 0]] and truth["scene"]["ship"] is True


def test_shipped_bundle_scans_a_simulated_scene(tmp_path: Path) -> None:
    ran(tmp_path, "simulate", "scene", "--seconds", 20, "--seed", 7, "--snr-low", 12, fake=False)
    done = ran(tmp_path, "scan", "scene.flac", "--format", "jsonl", fake=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found and all(len(detection["channel_scores"]) == 4 for detection in found)
    assert all((tmp_path / detection["snapshot"]).is_file() for detection in found)


def test_simulate_has_the_defaults_of_the_simulator() -> None:
    simulate = main.commands["simulate"]
    options = {option.name: option.default for option in simulate.params if isinstance(option, click.Option)}
    for item in fields(SceneSettings):
        assert item.name in options
        assert item.name == "hydrophones_m" or options[item.name] == item.default


@pytest.mark.parametrize("how, text", [("jsonl", '"channel_scores": [0.9, null]'), ("csv", ",0.9 -,")])
def test_channel_that_was_not_scored_is_no_number(capsys: pytest.CaptureFixture[str], how: str, text: str) -> None:
    """As under overload: NaN is no JSON."""
    detection = Detection(1, "sea", 1.0, 2.0, None, 0.9, (0, 1), (0.9, float("nan")), 0, "fake", "0" * 64)
    Printer(how, Settings())(detection)
    assert text in capsys.readouterr().out


def test_small_matrices_are_multiplied_by_one_thread_and_those_of_the_training_by_all() -> None:
    program = (
        "import os, sys\n"
        "from orcawatch.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit: print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    given = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    for name, threads in (("run", "1"), ("scan", "1"), ("deploy", "None")):
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, env=given)
        assert done.stdout.splitlines()[-1] == threads, name
