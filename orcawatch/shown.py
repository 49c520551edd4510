"""Settings as text: every key with its value as it would stand in the file, secrets masked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from .keys import joined

MASK = "***"
LOGIN = re.compile(r"//[^/@\s]+@")  # name and password inside an address


def every_key(settings: Any, where: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield (path, field, value) of every key of a settings object, also inside its groups and lists of groups."""
    for item in fields(settings):
        value, place = getattr(settings, item.name), joined(where, item.name)
        if "key" in item.metadata:
            yield place, item, value
        for name, group in members(item, value, place):
            yield from every_key(group, name)


def members(item: Field[Any], value: Any, place: str) -> list[tuple[str, Any]]:
    """The groups of keys in a field, with their paths."""
    if "section" in item.metadata:
        return [(place, value)]
    if "sections" in item.metadata:
        return [(f"{place}[{index}]", group) for index, group in enumerate(value)]
    return []


def shown(item: Field[Any], value: Any) -> str:
    """A value as it would stand in the file; a secret is masked."""
    if item.metadata["key"].secret and value:
        return f"'{MASK}'"
    return LOGIN.sub(f"//{MASK}@", in_yaml(value))


def in_yaml(value: Any) -> str:
    """A value in YAML, on one line."""
    import yaml

    line = yaml.safe_dump(plain(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
    return str(line).split("\n...")[0].strip()


def plain(value: Any) -> Any:
    """A setting as the YAML writer takes it; whole numbers lose their point."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
