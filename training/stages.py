"""A small stage runner: artifacts that are whole or absent, named by the digest of what caused them.

`RUN/artifacts/STAGE-DIGEST/` holds a stage's files and `stage.json`. The digest is the SHA-256 of the stage's name,
its settings, its inputs' digests and its source code (comments, docstrings and layout do not count; of `work` what it
reaches in its own module counts). A stage whose digest has an artifact is not run again; a stage that was killed
leaves a `.partial` folder, which the next run removes.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import resource
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from ..errors import TrainingError

log = logging.getLogger(__name__)

RECORD = "stage.json"
DIGITS = 16

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
    modules : import names of further modules that the work calls; `work` itself always counts.
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
    tree = ast.parse(textwrap.dedent(source))
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


def function_digest(function: FunctionType) -> str:
    """SHA-256 of a function's source and that of every function of its own module that it reaches."""
    found: dict[str, FunctionType] = {}
    waiting = [function]
    while waiting:
        current = waiting.pop()
        if current.__name__ not in found:
            found[current.__name__] = current
            waiting += [other for other in _named(current) if other.__module__ == function.__module__]
    digests = [code_digest(inspect.getsource(found[name])) for name in sorted(found)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _named(function: FunctionType) -> list[FunctionType]:
    """Functions that a function's code names, inner functions' code included."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    named = [function.__globals__.get(name) for name in sorted(names)]
    return [value for value in named if isinstance(value, FunctionType)]


def _work_digest(work: Work) -> str:
    function = work.func if isinstance(work, partial) else work
    if not isinstance(function, FunctionType):
        raise TypeError(f"a stage's work must be a function or a partial of one, not {work!r}")
    return function_digest(function)


def stage_digest(stage: Stage, digests: Mapping[str, str]) -> str:
    """SHA-256 of everything that causes a stage's artifact; `digests` holds those of its inputs."""
    cause = {
        "name": stage.name,
        "settings": stage.settings,
        "inputs": {name: digests[name] for name in stage.inputs},
        "code": [_work_digest(stage.work), *[module_digest(name) for name in stage.modules]],
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

    def run(self) -> list[str]:
        """Run what is missing, in order; the names of the stages that ran.

        Raises
        ------
        TrainingError : another process runs stages in this folder.
        """
        with locked(self.folder):
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
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _reset_peak()
        started = time.monotonic()
        stage.work(stage.settings, {name: self.artifact(name) for name in stage.inputs}, partial)
        cost = {"wall_s": round(time.monotonic() - started, 3), "peak_mb": round(peak_mb(), 1)}
        record = {"name": stage.name, "digest": self._digests[stage.name], "settings": stage.settings, **cost}
        inputs = {name: self._digests[name] for name in stage.inputs}
        (partial / RECORD).write_text(json.dumps({**record, "inputs": inputs}, indent=1) + "\n", encoding="utf-8")
        _sync(partial)
        partial.rename(target)
        log.info("stage %s done in %.1f s, %.0f MB", stage.name, cost["wall_s"], cost["peak_mb"])


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


def _sync(folder: Path) -> None:
    """Bring every file to the disk before the folder gets its final name."""
    for path in [entry for entry in folder.iterdir() if entry.is_file()]:
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
