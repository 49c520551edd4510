"""A small stage runner: artifacts that are whole or absent, named by the digest of what caused them.

`RUN/artifacts/STAGE-DIGEST/` holds a stage's files and `stage.json`. The digest is the SHA-256 of the stage's name,
its settings, its inputs' digests, the versions of `PACKAGES`, and the source of the modules it uses (whole modules;
comments, docstrings and layout do not count). A stage whose digest has an artifact is not run again; a stage that was
killed leaves a `.partial` folder, which the next run removes, whatever its recipe.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import TrainingError

log = logging.getLogger(__name__)

RECORD = "stage.json"
PACKAGES = ("tensorflow", "innvestigate", "numpy", "soxr", "soundfile")
DIGITS = 16
FULL_MB = 1.0  # free space at which a failure is taken for a full disk

Inputs = Mapping[str, Path]
Work = Callable[[Any, Inputs, Path], None]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes
    ----------
    name : unique, used in the folder's name.
    work : function of (settings, input folders by stage name, output folder) that writes files into the output folder.
    settings : JSON-able; everything that the work depends on besides its inputs and its code.
    inputs : names of the stages before it.
    modules : import names of the other modules that the work uses; its own module always counts.
    """

    name: str
    work: Work
    settings: Any
    inputs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """How a stage stands: `done` with its cost, or `missing`."""

    name: str
    folder: Path
    done: bool
    wall_s: float | None
    peak_mb: float | None


def code_digest(source: str) -> str:
    """SHA-256 of Python source as the interpreter sees it: comments, docstrings and layout do not change it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = body[1:] if body else []
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def module_digest(name: str) -> str:
    """`code_digest` of a module's file, found without running it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise TrainingError(f"module {name} is not installed")
    return code_digest(Path(spec.origin).read_text(encoding="utf-8"))


@cache
def versions() -> dict[str, str]:
    """Versions of `PACKAGES`, by name."""
    return {name: version(name) for name in PACKAGES}


def work_module(work: Work) -> str:
    """Import name of the module that a stage's work, a function or a partial of one, stands in."""
    module: str = (work.func if isinstance(work, partial) else work).__module__
    return module


def stage_digest(stage: Stage, digests: Mapping[str, str]) -> str:
    """SHA-256 of everything that causes a stage's artifact; `digests` holds those of its inputs."""
    cause = {
        "name": stage.name,
        "settings": stage.settings,
        "inputs": {name: digests[name] for name in stage.inputs},
        "code": [module_digest(name) for name in (work_module(stage.work), *stage.modules)],
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(cause, sort_keys=True).encode()).hexdigest()


class Runner:
    """Runs stages into a folder, each once.

    Parameters
    ----------
    folder : the run's folder.
    stages : in an order in which inputs come before those who take them.

    Raises
    ------
    TrainingError : a stage takes an input that does not come before it.
    """

    def __init__(self, folder: Path, stages: Sequence[Stage]) -> None:
        self.folder = folder
        self.stages = tuple(stages)
        self._digests: dict[str, str] = {}
        for stage in stages:
            if unknown := [name for name in stage.inputs if name not in self._digests]:
                raise TrainingError(f"stage {stage.name} takes {unknown}, which no stage before it makes")
            self._digests[stage.name] = stage_digest(stage, self._digests)

    def artifact(self, name: str) -> Path:
        """Folder of a stage's artifact, whether it exists or not."""
        return self.folder / "artifacts" / f"{name}-{self._digests[name][:DIGITS]}"

    def run(self, first: Callable[[], None] = lambda: None) -> list[str]:
        """Run what is missing, in order; the names of the stages that ran. What a killed run left half is removed.

        Parameters
        ----------
        first : called once this process has the folder for itself.

        Raises
        ------
        TrainingError : another process runs stages in this folder.
        """
        with locked(self.folder):
            first()
            for unfinished in (self.folder / "artifacts").glob("*.partial"):
                shutil.rmtree(unfinished)
            missing = [stage for stage in self.stages if not self.artifact(stage.name).is_dir()]
            for stage in missing:
                self._run(stage)
        return [stage.name for stage in missing]

    def status(self) -> list[State]:
        """How every stage stands."""
        return [_state(stage.name, self.artifact(stage.name)) for stage in self.stages]

    def _run(self, stage: Stage) -> None:
        log.info("stage %s ...", stage.name)
        target = self.artifact(stage.name)
        unfinished = target.with_name(target.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _reset_peak()
        started = time.monotonic()
        try:
            stage.work(stage.settings, {name: self.artifact(name) for name in stage.inputs}, unfinished)
            cost = {"wall_s": round(time.monotonic() - started, 3), "peak_mb": round(peak_mb(), 1)}
            self._record(stage, cost, unfinished)
            _sync(unfinished)
        except Exception as fault:
            _raise_if_full(stage.name, unfinished, fault)
            raise
        unfinished.rename(target)
        log.info("stage %s done in %.1f s, %.0f MB", stage.name, cost["wall_s"], cost["peak_mb"])

    def _record(self, stage: Stage, cost: Mapping[str, float], folder: Path) -> None:
        record = {
            "name": stage.name,
            "digest": self._digests[stage.name],
            "settings": stage.settings,
            **cost,
            "inputs": {name: self._digests[name] for name in stage.inputs},
            "versions": versions(),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _state(name: str, folder: Path) -> State:
    if not folder.is_dir():
        return State(name, folder, False, None, None)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return State(name, folder, True, record["wall_s"], record["peak_mb"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder for one process; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise TrainingError(f"another process trains in {folder}: wait for it, or name another --run") from fault
        yield


def _raise_if_full(name: str, unfinished: Path, fault: Exception) -> None:
    """Raise TrainingError where a stage failed for want of disk; what it had written is removed.

    Not every library passes the system's error number on, so the free space is looked at too.
    """
    free_mb = shutil.disk_usage(unfinished).free / 2**20
    if getattr(fault, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or free_mb < FULL_MB:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise TrainingError(
            f"stage {name}: the disk of {unfinished.parent} is full ({free_mb:.1f} MB free): make room and run the "
            "same command again; the stages before it are kept"
        ) from fault


def is_locked(folder: Path) -> bool:
    """Whether a process runs stages in the folder."""
    try:
        with (folder / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _sync(folder: Path) -> None:
    """Bring every file to the disk before the folder gets its final name."""
    for path in [entry for entry in folder.rglob("*") if entry.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _reset_peak() -> None:
    """Let the kernel forget this process's highest memory so far (Linux; elsewhere the peak is the process's)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log.debug("the peak of memory cannot be reset here")


def peak_mb() -> float:
    """Highest memory of this process since the last stage began, MB of 1024 kB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
