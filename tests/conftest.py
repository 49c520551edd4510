"""Take the root off the path: there, ./orcawatch would hide the installed package's mapped subpackages."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partialmethod
from inspect import signature
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

DATA = ROOT.parent / "shared" / "data"

# As click 8.2 has it: `stdout` without the other stream, `output` with both. Python 3.9 gets click 8.1.
if "mix_stderr" in signature(CliRunner).parameters:
    CliRunner.__init__ = partialmethod(CliRunner.__init__, mix_stderr=False)
    Result.output = property(lambda result: result.stdout + result.stderr)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the recordings beside the repository; the test is skipped where there is none."""
    if not (DATA / "labels.csv").is_file():
        pytest.skip("the recordings are not beside this clone (../shared/data/labels.csv is missing)")
    return DATA


@contextmanager
def _no_room() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture()
def no_room() -> Callable[[], AbstractContextManager[None]]:
    """Within `with no_room():` no file of this process may grow beyond 8 KB, as on a full disk."""
    return _no_room
