"""What benchmarks found: figures with their goals, as JSON, as a table, and as the page docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD = ("| what | measured | goal | met | |", "|---|---|---|---|---|")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes
    ----------
    what : was measured.
    value : None where it could not be measured; `note` says why.
    unit : of it.
    most, least : the goal; None where there is none.
    note : what limits it, or how it was measured.
    """

    what: str
    value: float | None
    unit: str = ""
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def goal(self) -> float | None:
        """The goal's bound."""
        return self.least if self.most is None else self.most

    @property
    def met(self) -> str:
        """Whether the goal is met; by how much not."""
        if self.value is None or self.goal is None:
            return ""
        if (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least):
            return "yes"
        return f"no: {self.value / self.goal:.2f} of it"

    @property
    def row(self) -> str:
        """Its line of a table."""
        bound = "" if self.goal is None else f"{'at least' if self.most is None else 'at most'} {shown(self.goal)}"
        measured = "-" if self.value is None else f"{shown(self.value)} {self.unit}".strip()
        return f"| {self.what} | {measured} | {bound} | {self.met} | {self.note.replace('|', '/')} |"


def shown(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    return "\n".join([*HEAD, *(figure.row for figure in figures)])


def finish(figures: Sequence[Figure], file: Path | None) -> None:
    """Print a script's table, and write its figures where a file is given."""
    print(table(figures))
    if file is not None:
        file.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """What `finish` wrote."""
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def parts_of(report: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """Figures of a report of bench.py, by part."""
    return {name: [Figure(**one) for one in part["figures"]] for name, part in report["parts"].items()}


def goals(report: Mapping[str, Any]) -> str:
    """The table of the figures with goals, and of the parts that could not run."""
    found = [figure for figures in parts_of(report).values() for figure in figures if figure.goal is not None]
    return table([*found, *lacking(report)])


def lacking(report: Mapping[str, Any]) -> list[Figure]:
    """A line for each part that could not run."""
    return [Figure(name, None, note=part["missing"]) for name, part in report["parts"].items() if part["missing"]]


def page(report: Mapping[str, Any]) -> str:
    """The page docs/benchmarks.md."""
    machine = report["machine"]
    about = [f"| {name} | {value} |" for name, value in machine.items()]
    sections = []
    for name, figures in parts_of(report).items():
        part = report["parts"][name]
        told = f"Not measured: {part['missing']}." if part["missing"] else table(figures)
        sections += [f"## {part['title']}\n\n{part['about']}\n\n{told}\n"] if figures or part["missing"] else []
    return "\n".join(
        [INTRODUCTION, "| machine | |", "|---|---|", *about, "", "## Goals", "", goals(report), "", *sections]
    )


INTRODUCTION = """# Benchmarks

`make bench` measures all of this on your machine (half an hour), and `python benchmarks/bench.py --table
orcawatch-out/bench.json` makes this page of what it wrote. What needs a run of the training, or its environment, is
measured where they are there (`make bench BENCH="--run RUN --bundle BUNDLE"`); else its line says what is missing.

- *Of a core* is processor time over the time of the audio: at 0.05 of a core, one core could listen to 20 such arrays.
- Processor time is that of the measured process alone, so that another load of the machine counts little; times *by the
  clock* want a quiet machine.
- What is compared with something else is measured beside it in one process, taking turns.
- Memory is the highest that was resident (`VmHWM`), shared pages and the models' files included; of a watch together
  with the processes that draw its pictures, what they share counted once.
- *At a core's best* is the time that the multiply-adds of a network's convolutions and dense layers take at the
  highest rate that a core reaches on its registers, in 8 bits for weights of 8 bits, else in float32
  (`benchmarks/peak.c`): where a network is near that, only a smaller one is faster, or one that is heard less often
  ([cascade](cascade.md)).
- How long after a call its row is there (`benchmarks/latency.py` defines it exactly) is mostly waiting that is asked
  for: an event ends `events.merge_gap_s` after its last call, and the card's driver buffers `source.latency_s`. What
  the machine adds is `after the deciding window`.
"""
