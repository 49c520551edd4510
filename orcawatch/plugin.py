"""Entry points: the door through which our own plugins and anyone's come in."""

from __future__ import annotations

import sys
from typing import Any


def entry_points(group: str) -> dict[str, Any]:
    """The entry points of installed packages in a group, by name."""
    if sys.version_info >= (3, 10):
        from importlib import metadata
    else:
        import importlib_metadata as metadata
    return {entry.name: entry for entry in metadata.entry_points(group=group)}
