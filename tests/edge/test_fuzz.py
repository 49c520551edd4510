"""Malformed input, some hundred of each kind, as in `benchmarks/fuzz.py`; and that a defect would be found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcawatch import plugin
from orcawatch.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fuzz

pytestmark = pytest.mark.parts

INPUTS = {"database": 25, "write-ahead": 25, "http": 60, "settings": 100}  # the others: 150


@pytest.fixture(autouse=True)
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer looks the installed packages up once; afterwards they are looked up again."""
    monkeypatch.setattr(plugin, "entry_points", plugin.entry_points)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory."""
    with fuzz.scratch() as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_malformed_input_is_refused_or_read_right(name: str, place: Path, tmp_path: Path) -> None:
    found, inputs = fuzz.Campaign(name, tmp_path), INPUTS.get(name, 150)
    with fuzz.ready(name, place) as target:
        fuzz.blind(found, target, inputs, seed=6)
    assert not found.defects
    assert found.inputs >= inputs and len(found.outcomes) > 1  # some are taken, some not


def test_defects_are_found_and_their_shortest_inputs_kept(tmp_path: Path) -> None:
    def run(content: bytes) -> str:
        if content.startswith(b"refused"):
            raise InputError("not this one")
        return str(1 // len(content))

    campaign = fuzz.Campaign("broken", tmp_path)
    for content in (b"a", b"refused", b"", b"x"):
        campaign.judge(run, content)
    (what,) = campaign.defects
    assert what.startswith("ZeroDivisionError test_fuzz.py") and campaign.outcomes["DEFECT"] == 1
    assert (tmp_path / campaign.defects[what]).read_bytes() == b""
    assert campaign.outcomes["refused"] == 1


def test_a_campaign_that_was_interrupted_goes_on_with_other_inputs(tmp_path: Path) -> None:
    told = list[bytes]()

    def run(content: bytes) -> str:
        told.append(content)
        return "taken"

    for inputs in (300, 500):
        fuzz.blind(fuzz.resumed("broken", tmp_path), fuzz.Target([bytes(1000)], run), inputs, seed=1)
    assert len(told) == 500 == fuzz.resumed("broken", tmp_path).outcomes["taken"]
    assert told[0] == bytes(1000) != told[300] and told[1:100] != told[301:400]


ENDS = """
import os
from pathlib import Path
import fuzz
mark = Path(__file__).with_name("mark")
def once(folder):
    tried = []
    def run(content):
        tried.append(content)
        if len(tried) == 150 and not mark.exists():
            mark.write_bytes(content)
            os.abort()
        return "taken"
    return fuzz.Target([bytes(100)], run)
fuzz.TARGETS["once"] = once
fuzz.__file__ = __file__
fuzz.main()
"""


def test_an_input_that_ends_the_process_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    asked = ["once", "--blind", "--inputs", "300", "--folder", str(tmp_path / "kept")]
    given = {**os.environ, "PYTHONPATH": str(Path(fuzz.__file__).parent)}
    command = [sys.executable, str(tmp_path / "ends.py"), *asked]
    done = subprocess.run(command, capture_output=True, text=True, env=given)
    assert done.returncode == 1 and "| once | 300 | taken 300 | the process ended with -6 |" in done.stdout
    assert (tmp_path / "kept" / "once-crash-of-life-0").read_bytes() == (tmp_path / "mark").read_bytes()


def test_no_input_may_take_all_memory(place: Path, tmp_path: Path) -> None:
    campaign = fuzz.Campaign("hungry", tmp_path)
    with fuzz.ready("stamps", place):
        campaign.judge(lambda content: str(len(bytearray(2 * fuzz.MEMORY_MB << 20))), b"x")
    assert [what.split()[0] for what in campaign.defects] == ["MemoryError"]
