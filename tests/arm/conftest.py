"""A small Debian of 64-bit ARM, whose programs run through an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "arm"
TOOLS = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static"}


@dataclass(frozen=True)
class Station:
    """A computer of 64-bit ARM with one of the interpreters.

    Attributes
    ----------
    interpreter : as records call it.
    environment : name of its folder in /opt.
    """

    interpreter: str
    environment: str

    def __str__(self) -> str:
        return f"aarch64-{self.interpreter}"

    def seen(self, path: str) -> Path:
        """A file or folder of its own, seen from here."""
        return CACHE / "root" / path.lstrip("/")

    def put(self, file: Path) -> str:
        """Copy a file to its /tmp; its path there."""
        shutil.copy(file, self.seen("/tmp"))
        return f"/tmp/{file.name}"

    def run(self, program: str, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        """What a program of its environment prints; an AssertionError where its exit code is another."""
        command = [HERE / "inside.sh", self.seen("/"), f"/opt/{self.environment}/bin/{program}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
        assert done.returncode in codes, f"{program} {' '.join(words)} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout


STATIONS = (Station("ai-edge-litert", "litert"), Station("tflite-runtime", "tflite"))


def missing() -> str:
    """Why nothing can be emulated here; empty where it can."""
    lacking = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "only root can make a root folder of 64-bit ARM"
    if lacking:
        return f"missing: {' '.join(lacking)} (apt-get install, or `make arm`)"
    if "binfmt_misc" not in Path("/proc/filesystems").read_text():
        return "this kernel runs no programs of other architectures (no binfmt_misc)"
    return ""


@pytest.fixture(scope="session")
def installed() -> None:
    """The Debian with this tree's wheel in its environments."""
    if reason := missing():
        pytest.skip(reason)
    subprocess.run([HERE / "build.sh", CACHE, sys.executable], check=True)


@pytest.fixture(scope="session", params=STATIONS, ids=str)
def station(installed: None, request: pytest.FixtureRequest) -> Station:
    """Each station in turn."""
    found: Station = request.param
    return found
