"""The reference pages equal the code."""

from __future__ import annotations

import importlib.util
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from orcawatch.schema import STEPS, migrate

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script that makes them."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, made in a process of their own: commands remember how they were called first."""
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, str(DOCS / "reference.py"), str(folder)], check=True)
    return folder


@pytest.mark.parts  # signatures look different from one Python to the next
@pytest.mark.parametrize("page", ["commands.md", "library.md", "database.md"])
def test_page_is_up_to_date(made: Path, page: str) -> None:
    same = (DOCS / page).read_bytes() == (made / page).read_bytes()
    assert same, "run: python docs/reference.py"


def test_every_table_is_told(reference: ModuleType) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        migrate(connection, 0, STEPS)
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        assert {name for (name,) in connection.execute(query)} == set(reference.TABLES)
