"""How long a second bundle scores beside the first, and how it fares: a small file beside the installed bundles."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime


@dataclass(frozen=True)
class Trial:
    """How long the shadow scores, and how it fares.

    Attributes
    ----------
    folder : of the shadow, in `bundles/`.
    since_utc, until_utc : timezone-aware; `until_utc` None for no end.
    starts : of watches that have not come to a proper end, or to ten minutes, with this shadow.
    fault : why it was switched off; empty while it was not.
    """

    folder: str
    since_utc: datetime
    until_utc: datetime | None = None
    starts: int = 0
    fault: str = ""

    def to_text(self) -> str:
        """As JSON."""
        times = {"since_utc": self.since_utc.isoformat(), "until_utc": self.until_utc and self.until_utc.isoformat()}
        return json.dumps({**asdict(self), **times}, indent=1) + "\n"


def trial_of(text: str) -> Trial:
    """The reverse of `Trial.to_text`; raises ValueError, KeyError, TypeError or AttributeError where it is none."""
    content = json.loads(text)
    until = content["until_utc"]
    times = {
        "since_utc": datetime.fromisoformat(content["since_utc"]),
        "until_utc": None if until is None else datetime.fromisoformat(until),
    }
    found = Trial(**{**content, **times})
    if any(moment is not None and moment.tzinfo is None for moment in times.values()):
        raise ValueError("its times have no timezone")
    if [type(found.folder), type(found.starts), type(found.fault)] != [str, int, str]:
        raise ValueError("it holds values of other kinds")
    return found
