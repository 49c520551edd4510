"""What the doctor says: findings, each with its cure, and the exit code that they come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

OK, SKIPPED, WARNING, FAULT = "ok", "skipped", "warning", "fault"
# 1, 2 and 3 mean for every command that something failed, was wrong in the call, or was left out.
CODES = {OK: 0, SKIPPED: 0, WARNING: 4, FAULT: 5}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    check : what was looked at, one word.
    level : `ok`; `skipped` (it could not be looked at, and nothing depends on it); `warning` (it works, but not as it
        should, or not for long); `fault` (the daemon will not do what it is for).
    found : what was found, with figures.
    cure : what to do; empty where nothing is wrong.
    """

    check: str
    level: str
    found: str
    cure: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """The highest of the findings' codes."""
    return max((CODES[finding.level] for finding in findings), default=0)


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Text for people: a line a finding, its cure below, and a sum."""
    for finding in findings:
        yield f"{finding.level:<8} {finding.check:<11} {finding.found}"
        if finding.cure:
            yield f"{'':<8} {'':<11} cure: {finding.cure}"
    yield summary(findings)


def summary(findings: Sequence[Finding]) -> str:
    """How many there are of each level."""
    counts = {level: sum(finding.level == level for finding in findings) for level in (FAULT, WARNING, OK, SKIPPED)}
    return (
        f"{count(counts[FAULT], 'fault')}, {count(counts[WARNING], 'warning')}, {count(counts[OK], 'check')} passed, "
        f"{counts[SKIPPED]} could not be made"
    )


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for programs."""
    return {"findings": [asdict(finding) for finding in findings], "exit_code": exit_code(findings)}


def halves(text: str) -> tuple[str, str]:
    """What an error says was found, and its cure."""
    found, _, cure = text.partition("; ") if "; " in text else text.rpartition(": ")
    return (found, cure) if found else (text, "")


def named(channels: Sequence[int]) -> str:
    """Channels in words: `channel 2`, `channels 0, 2`."""
    return f"channel{'s' * (len(channels) > 1)} {', '.join(map(str, channels))}"


def count(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plural(things: Sized) -> str:
    """The ending of a verb behind one or more things: `s` for one."""
    return "s" if len(things) == 1 else ""
