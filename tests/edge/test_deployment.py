"""What docs/deployment.md tells people to type exists, and its numbers are right."""

from __future__ import annotations

import math
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import numpy as np
import pytest

from orcawatch.cli import main
from orcawatch.config import HydrophoneSettings, load_settings
from orcawatch.config_command import misfits, oddities
from orcawatch.keys import leaves
from orcawatch.levels import PRESSURE, calibration
from orcawatch.store import Store

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
OTHER_PAGES = [ROOT / "docs" / "doctor.md", ROOT / "systemd" / "README.md", ROOT / "systemd" / "config.yaml"]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def typed() -> Iterator[str]:
    """Every command line of orcawatch on the page."""
    for block in blocks("sh"):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]*orcawatch [^`\n]*)`", PAGE)


def calls() -> Iterator[list[str]]:
    """Words behind each `orcawatch` that is a command: the program, not the user, the folder or the service."""
    for line in typed():
        for part in re.split(r"[;|>]|&&", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["sudo"]:
                words = words[3:] if words[1:2] == ["-u"] else words[1:]
            if words and words[0].split("/")[-1] == "orcawatch":
                yield words[1:]


def test_page_has_the_commands_that_a_deployment_needs() -> None:
    named = {" ".join(word for word in call[:2] if re.fullmatch("[a-z]+", word)) for call in calls()}
    assert {"devices", "doctor", "config check", "config show", "deploy install", "deploy status"} <= named
    assert {"effort", "simulate", "run", "bundle verify"} <= {name.removesuffix(" retrieved") for name in named}


@pytest.mark.parametrize("words", list(calls()), ids=" ".join)
def test_command_exists_with_its_options(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    known = {name for option in command.params for name in option.opts + option.secondary_opts}
    assert {word for word in words if word.startswith("--")} <= known | {"--help", "--version"}


def test_settings_on_the_page_are_right(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(block)
    settings = load_settings(tmp_path / "config.yaml")
    assert misfits(settings) == []
    assert [text for text in oddities(settings) if "retention" not in text] == []
    assert settings.output == Path("/var/lib/orcawatch") and len(settings.hydrophones) == 4


def test_keys_that_are_named_exist(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(block)
    known = {key for key, _, _ in leaves(load_settings(tmp_path / "config.yaml"))}
    known |= {key.split(".")[0] for key in known}
    sections = {key.split(".")[0] for key in known if "." in key}
    for page in [PAGE, *(path.read_text(encoding="utf-8") for path in OTHER_PAGES)]:
        named = re.findall(r"`([a-z_]+\.[a-z_]+)`", page)
        assert [name for name in named if name.split(".")[0] in sections and name not in known] == []


def test_queries_on_the_page_run(tmp_path: Path) -> None:
    Store(tmp_path / "detections.sqlite").close()
    text = " ".join(blocks("sh")).replace("\\\n", " ")
    queries = re.findall(r'"(SELECT [^"]*|PRAGMA [^"]*)"', text)
    assert len(queries) == 3
    with closing(sqlite3.connect(tmp_path / "detections.sqlite")) as connection:
        for query in queries:
            connection.execute(query).fetchall()


def test_worked_example_of_the_calibration() -> None:
    """Sensitivity -176.5 dB re 1 V/uPa, 20 dB of gain, 2 V at full scale; an RMS of 0.01."""
    scale = calibration([HydrophoneSettings(sensitivity_db=-176.5, gain_db=20)], 2.0, 1)
    (level_db,) = scale.decibels(np.array([0.01]))
    (loudest_db,) = scale.decibels(np.array([1.0]))
    assert scale.unit == PRESSURE
    assert f"= **{level_db:.1f} {PRESSURE}**" in PAGE and f"Full scale itself is {loudest_db:.1f} {PRESSURE}" in PAGE
    assert f"is 0.5 / 10^(-12.0 / 20) = {0.5 / 10 ** (-12.0 / 20):.2f}" in PAGE
    assert math.isclose(level_db, -40 + 20 * math.log10(2.0) + 176.5 - 20)
