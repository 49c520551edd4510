"""What the program must not contain, and what hostile text must not do. See docs/security.md."""

from __future__ import annotations

import ast
import configparser
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from orcawatch.bundle import SHIPPED as BUNDLE
from orcawatch.bundle import manifest_digest
from orcawatch.cli import Lines, main
from orcawatch.config import read_settings
from orcawatch.errors import ConfigError
from orcawatch.store import Detection, Store
from orcawatch.verdicts import give

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("orcawatch", "plugins", "training", "deploy", "systemd")
# What runs code that somebody wrote into data, or hands text to a shell; and names of files that others can foresee.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "commands", "imp",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
    "torch.load", "tarfile.TarFile.extractall", "xml.etree.ElementTree.parse", "xml.etree.ElementTree.fromstring",
}  # fmt: skip
METHODS = {"extractall", "read_pickle", "to_pickle", "load_model"}
KEYWORDS = {"allow_pickle": False, "shell": False, "verify": True, "check_hostname": True}
# path, what: why it may be there.
EXCEPTIONS = {
    ("training/parity.py", "load_model"): "ours: it fills a network that the plugin has built with weights of a run",
    ("training/recipe.py", "__import__"): "the module of a class of ours, to look up its annotations",
}


def sources() -> Iterator[Path]:
    for folder in SHIPPED:
        yield from sorted((ROOT / folder).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty where it is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted(node.value)):
        return f"{front}.{node.attr}"
    return ""


def found_in(text: str) -> set[str]:
    """What is forbidden in a program."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} & MODULES
            found |= {name for alias in node.names if (name := f"{node.module}.{alias.name}") in CALLS}
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            found |= {name} & CALLS
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                found.add(node.func.attr)
            for keyword in node.keywords:
                allowed = KEYWORDS.get(keyword.arg or "")
                if allowed is not None and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is allowed
                ):
                    found.add(f"{keyword.arg}=")
            if name in ("np.load", "numpy.load") and len(node.args) > 2:
                found.add("np.load by position")
    return found


def test_nothing_that_is_shipped_runs_data_or_hands_text_to_a_shell() -> None:
    found = {(str(path.relative_to(ROOT)), what) for path in sources() for what in found_in(path.read_text("utf-8"))}
    assert found == set(EXCEPTIONS), sorted(found ^ set(EXCEPTIONS))


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "import shelve as s", "eval('1')", "exec(code)", "yaml.load(x)", "np.load(p, allow_pickle=True)",
     "np.load(p, None, True)", "np.load(p, allow_pickle=wanted)", "subprocess.run(c, shell=True)", "tempfile.mktemp()",
     "from tempfile import mktemp", "import os\nos.system('x')", "tape.extractall()", "import joblib.numpy_pickle", "requests.get(u, verify=False)"],
)  # fmt: skip
def test_the_search_above_finds(text: str) -> None:
    assert found_in(text)


def test_arrays_that_hold_objects_are_not_opened(tmp_path: Path) -> None:
    """A picture's arrays, exchanged on the card: NumPy would run what is in them only where it is allowed."""
    from orcawatch.web.looking import stored_curves

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "harm",))  # type: ignore[return-value]

    harmful = np.array([Harm()], dtype=object)
    np.savez(tmp_path / "a.npz", score_times_s=harmful, channels=harmful, channel_scores=harmful)
    with pytest.raises(ValueError, match="allow_pickle"):
        stored_curves(tmp_path / "a.npz")
    assert not (tmp_path / "harm").exists()
    with np.load(tmp_path / "a.npz", allow_pickle=True) as arrays:
        assert arrays["channels"] is not None  # it would have
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch harm']", "station: !!python/name:os.system ''", "a: &a [*a, *a]\nb: *a",
     "a: &a {b: 1}\nc: &c [*a,*a,*a,*a,*a,*a,*a,*a]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]"],
)  # fmt: skip
def test_a_hostile_configuration_is_a_fault_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text(text)
    try:
        _, _, faults = read_settings(file)
        assert faults
    except ConfigError:
        pass
    assert not (tmp_path / "harm").exists()


def test_dependencies_have_bounds() -> None:
    """What is installed on a station, and what the extras add, is not any version; what only tests need may be."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: text for name, text in setup["options.extras_require"].items() if name not in ("test", "parts")}
    for name, text in {"install_requires": setup["options"]["install_requires"], **extras}.items():
        for line in text.strip().splitlines():
            wanted = line.split("#")[0].split(";")[0].strip()
            assert not wanted or re.search(r"(>=|==|<)\s*\d", wanted), f"{name}: {line} takes any version"
            assert "://" not in line and "@" not in line, f"{name}: {line} comes from elsewhere"


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202ecod\r\nforged"


def test_terminals_are_not_commanded_by_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(1)
    soundfile.write(tmp_path / "in" / "sea.wav", rng.normal(0, 0.1, 32000), 16000)
    (tmp_path / "in" / "sea.wav").rename(tmp_path / "in" / f"{HOSTILE}.wav")
    (tmp_path / "in" / f"bad{HOSTILE}.wav").write_bytes(b"no audio")
    config = tmp_path / "all.yaml"
    config.write_text("start_threshold: 0.0\nstop_threshold: 0.0\nsnapshots: false\n")
    told = ""
    for words in (
        ("scan", "in", "--output", "out", "--config", str(config)),
        ("scan", "in", "--output", "out2", "--format", "csv", "--config", str(config)),
        ("review", "list", "out"),
        ("explain", "in", "--out", "looks"),
    ):
        command = [sys.executable, "-m", "orcawatch.cli", *words]
        done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, timeout=120)
        told += (done.stdout + done.stderr).decode()
    assert "forged" in told and "\\x1b" in told and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]|\nforged", told)


def test_terminals_are_not_commanded_by_logs_errors_and_bundles(tmp_path: Path) -> None:
    record = logging.LogRecord("orcawatch", logging.WARNING, "", 0, "the far side said %s\tso\n", (HOSTILE,), None)
    line = Lines().format(record)
    assert "\x1b" not in line and "\r" not in line and "\tso\n" in line
    done = CliRunner().invoke(main, ["bundle", "inspect", str(tmp_path / HOSTILE)])
    assert done.exit_code == 2 and "\x1b" not in done.output and "\\x1b" in done.output
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["name"] = manifest["remark"] = HOSTILE
    manifest["digest"] = manifest_digest(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(main, ["bundle", "inspect", str(bundle)])
    assert done.exit_code == 0 and "\x1b" not in done.output and "owned" in done.output


@pytest.mark.parametrize("clip", ["../secret.wav", "{}/secret.wav", "clips/../../secret.wav", "clips/link.wav"])
def test_a_database_of_somebody_else_brings_no_file_from_outside_into_training_data(tmp_path: Path, clip: str) -> None:
    output = tmp_path / "found"
    (output / "clips").mkdir(parents=True)
    soundfile.write(tmp_path / "secret.wav", np.zeros((48000, 1)), 16000)
    (output / "clips" / "link.wav").symlink_to(tmp_path / "secret.wav")
    found = Detection(
        None, "sea.wav", 1.0, 2.0, None, 0.9, (0,), (0.9,), 0, "b", "0" * 64, clip=clip.format(tmp_path),
        clip_start_s=0.0, verdict="orca",
    )  # fmt: skip
    with Store(output / "detections.sqlite") as store:
        number = store.add(found)
        give(store, number, "orca", "", "me", datetime(2026, 3, 1, tzinfo=timezone.utc))
    done = CliRunner().invoke(main, ["review", "export", str(output), str(tmp_path / "data")])
    assert "leads out of" in done.output and not list((tmp_path / "data").rglob("*.wav")), done.output
