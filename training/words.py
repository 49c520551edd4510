"""Figures and lists as words of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def figure(value: float, digits: int = 3) -> str:
    """A figure of the report, such as `0.921`; a dash where it is no number."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "\u2013"


def interval(found: Mapping[str, Any], digits: int = 3) -> str:
    """`0.921 (0.856 to 0.979)`."""
    value, low, high = (figure(found[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def number(count: float) -> str:
    """`12,345`."""
    return f"{count:,.0f}"


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens of a name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def counted(count: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def signed(found: Mapping[str, Any], digits: int = 3) -> str:
    """`+0.012 (-0.003 to +0.020)` of a difference."""
    value, low, high = (f"{found[key]:+.{digits}f}".replace("-", "\u2212") for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def percent(share: float) -> str:
    """`12 %`, not to be broken."""
    return f"{100 * share:.0f}\u00a0%"
