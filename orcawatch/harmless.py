"""Text of strangers (names of files, of devices, of bundles, notes) as a terminal may show it."""

from __future__ import annotations

import re

# What terminals take for commands, and what turns the direction of writing round.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str, keep: str = "") -> str:
    """The text with control characters written out, as `\\x1b`, but for those in `keep`."""
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else escaped(found[0]), text)


def escaped(character: str) -> str:
    """One character as Python writes it in ASCII."""
    return character.encode("unicode_escape").decode("ascii")
