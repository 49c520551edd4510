"""The README and the pages it leads to: no placeholder, no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.fullmatch(r"[A-Z]{4,}", line) or "TODO" in line] == []


def test_readme_names_commands_that_exist() -> None:
    from click import Context

    from orcawatch.cli import main

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|/)orcawatch ([a-z]+)", text, re.MULTILINE))
    assert named and named <= set(main.list_commands(Context(main)))


def test_configuration_in_the_readme_is_right(tmp_path: Path) -> None:
    from orcawatch.config import load_settings

    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "orcawatch.yaml").write_text(block)
    settings = load_settings(tmp_path / "orcawatch.yaml")
    assert len(settings.hydrophones) == settings.source.device_channels == 4
    assert settings.sinks[0].kind == "mqtt"
