"""The stage runner: whole or absent, not twice, resumable."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orcawatch.errors import TrainingError
from orcawatch.training import stages
from orcawatch.training.stages import Runner, Stage


def write(settings: Any, inputs: stages.Inputs, folder: Path) -> None:
    """Write the settings and what came in."""
    came = {name: (path / "out").read_text() for name, path in inputs.items()}
    (folder / "out").write_text(json.dumps([settings, came]))


def fail(settings: Any, inputs: stages.Inputs, folder: Path) -> None:
    """Write half of the output and fail."""
    (folder / "out").write_text("half")
    raise TrainingError("the disk is full")


def chain(first: int = 1, second: int = 2) -> list[Stage]:
    """Two stages, the second on the first."""
    return [Stage("one", write, {"n": first}), Stage("two", write, {"n": second}, ("one",))]


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    assert Runner(tmp_path, chain()).run() == ["one", "two"]
    assert Runner(tmp_path, chain()).run() == []
    assert [state.done for state in Runner(tmp_path, chain()).status()] == [True, True]


def test_a_change_reruns_what_depends_on_it_alone(tmp_path: Path) -> None:
    Runner(tmp_path, chain()).run()
    assert Runner(tmp_path, chain(second=3)).run() == ["two"]
    assert Runner(tmp_path, chain(first=5)).run() == ["one", "two"]
    assert Runner(tmp_path, chain()).run() == []


def test_the_record_tells_cause_and_cost(tmp_path: Path) -> None:
    runner = Runner(tmp_path, chain())
    runner.run()
    record = json.loads((runner.artifact("two") / "stage.json").read_text())
    assert record["settings"] == {"n": 2}
    assert runner.artifact("one").name.split("-")[1] == record["inputs"]["one"][:16]
    assert record["wall_s"] >= 0
    assert set(record["versions"]) == set(stages.PACKAGES)
    assert record["peak_mb"] > 1


def test_a_failed_stage_leaves_no_artifact_and_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "two-of-another-recipe.partial").mkdir(parents=True)
    broken = [chain()[0], Stage("two", fail, {}, ("one",))]
    with pytest.raises(TrainingError, match="the disk is full"):
        Runner(tmp_path, broken).run()
    assert [state.done for state in Runner(tmp_path, broken).status()] == [True, False]
    mended = Runner(tmp_path, chain())
    assert mended.run() == ["two"]
    assert not list((tmp_path / "artifacts").glob("*.partial"))


def fill_disk(settings: Any, inputs: stages.Inputs, folder: Path) -> None:
    """Write more than there is room for."""
    with (folder / "out").open("wb") as file:
        for _ in range(settings["megabytes"]):
            file.write(bytes(2**20))


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_run_resumes_once_there_is_room(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(5 * 2**20))
    heavy = [chain()[0], Stage("two", fill_disk, {"megabytes": 4}, ("one",))]
    with pytest.raises(TrainingError, match=r"stage two: the disk of .* is full .* the stages before it are kept"):
        Runner(small_disk / "run", heavy).run()
    assert not list((small_disk / "run" / "artifacts").glob("*.partial"))
    (small_disk / "other").unlink()
    assert Runner(small_disk / "run", heavy).run() == ["two"]


SLOW = """
import time
from pathlib import Path

def quick(settings, inputs, folder):
    (folder / "out").write_text("done")

def slow(settings, inputs, folder):
    (folder / "half").write_text("half")
    if not Path("go").exists():
        print("started", flush=True)
        time.sleep(60)
    (folder / "out").write_text("done")
"""
KILLED = """
from pathlib import Path
from orcawatch.training.stages import Runner, Stage
from slow_work import quick, slow

runner = Runner(Path("run"), [Stage("quick", quick, {}), Stage("slow", slow, {}, ("quick",))])
print(",".join(runner.run()), flush=True)
"""


def test_a_run_killed_inside_a_stage_resumes_at_that_stage(tmp_path: Path) -> None:
    (tmp_path / "slow_work.py").write_text(SLOW)
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, "killed.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        os.kill(process.pid, signal.SIGKILL)
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "run" / "artifacts").iterdir())
    assert left == ["quick", "slow"]
    assert [path for path in (tmp_path / "run" / "artifacts").iterdir() if path.suffix == ".partial"]
    (tmp_path / "go").touch()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "slow\n"
    assert not [path for path in (tmp_path / "run" / "artifacts").iterdir() if path.suffix == ".partial"]


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    done: list[str] = []
    assert not stages.is_locked(tmp_path)
    with stages.locked(tmp_path), pytest.raises(TrainingError, match="another process trains in"):
        assert stages.is_locked(tmp_path)
        Runner(tmp_path, chain()).run(lambda: done.append("first"))
    assert not stages.is_locked(tmp_path) and not done


def test_a_stage_must_come_after_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stage two takes \['one'\]"):
        Runner(tmp_path, chain()[::-1])


def test_code_counts_but_comments_and_docstrings_do_not() -> None:
    plain = stages.code_digest("def f(x):\n    return x + 1\n")
    assert stages.code_digest('def f(x):\n    """Say."""\n    # more\n    return  x+1\n') == plain
    assert stages.code_digest("def f(x):\n    return x + 2\n") != plain


MODULE = """
def work(settings, inputs, folder):
    (folder / "out").write_text(str(Answer().value))

class Answer:
    value = {value}
"""


def digest_of(tmp_path: Path, name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Digest of a stage whose work stands in a module with that value."""
    (tmp_path / f"{name}.py").write_text(MODULE.format(value=value))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    stages.module_digest.cache_clear()
    return stages.stage_digest(Stage("s", partial(importlib.import_module(name).work), {}), {})


def test_the_whole_module_of_the_work_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what no function is: here a class attribute."""
    one, same, other = (digest_of(tmp_path, name, n, monkeypatch) for name, n in (("a", 1), ("b", 1), ("c", 2)))
    assert one == same != other


def test_further_modules_and_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = stages.stage_digest(Stage("s", write, {}), {})
    assert stages.stage_digest(Stage("s", write, {}, modules=("orcawatch.metrics",)), {}) != plain
    monkeypatch.setattr(stages, "versions", lambda: {"numpy": "0.1"})
    assert stages.stage_digest(Stage("s", write, {}), {}) != plain
