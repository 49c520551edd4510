"""The scenario `verdicts` of benchmarks/kills.py: verdicts are given while a watch writes, and both are killed.

A verdict, or a table of them, is acknowledged when `orcawatch review set` ends well. Each command gives a note of its
own, by which what it wrote is found.
"""

from __future__ import annotations

import csv
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killing import Forked, Lengths, command
from kills_watch import FULL_EVERY, PATIENCE_S, Ensemble, Sea, Watched, check_end, check_round, looked_into, watch

from orcawatch import review
from orcawatch.daemon import DATABASE
from orcawatch.verdicts import VERDICTS

MOST = 30  # verdicts of one table
LATEST = 200  # detections that may get one
WARMING = 3
SAID = (*VERDICTS, review.UNREVIEWED)

Given = dict[int, str]  # verdict by detection


@dataclass
class Reviewed(Watched):
    """What was told by a watch and by those who gave verdicts.

    Attributes
    ----------
    given : verdicts that were acknowledged, by the note of the command.
    perhaps : those of commands that were killed: SQLite may have written the whole commit to its log, and may have been
        killed before it told others, who then find it when all have opened the database anew.
    """

    given: dict[str, Given] = field(default_factory=dict)
    perhaps: dict[str, Given] = field(default_factory=dict)


def verdict_rounds(kills: int, seed: int, longest_s: float, folder: Path) -> Reviewed:
    """Kill a watch and who gives verdicts beside it, each at a moment of its own; start again, compare."""
    rng, account, lengths = random.Random(seed), Reviewed(), Lengths()
    sea, ensemble, partials, output = Sea(), Ensemble(), set[Path](), folder / "out"
    output.mkdir(parents=True)
    first_detections(account, output, sea, ensemble, longest_s)
    for index in range(WARMING):
        give(account, lengths, output, f"warming {index}", drawn(account, rng), None)
    while account.counts["commands killed"] < kills:
        process = Forked(watch(output, sea, ensemble))
        process.wait_for_word(PATIENCE_S)
        note, given = f"kill {account.kills}", drawn(account, rng)
        time.sleep(rng.uniform(0, longest_s))
        give(account, lengths, output, note, given, rng)
        process.kill()
        ended = process.end()
        started = account.take(ended.told, ended.killed)
        partials = check_round(account, output, partials, started)
        if account.kills % FULL_EVERY == 0:
            check_verdicts(account, output)
        account.tell(kills)
    check_end(account, output)
    check_verdicts(account, output)
    return account


def first_detections(account: Reviewed, output: Path, sea: Sea, ensemble: Ensemble, longest_s: float) -> None:
    """A watch, until it has told some detections."""
    while len(account.told) < MOST:
        process = Forked(watch(output, sea, ensemble))
        process.wait_for_word(PATIENCE_S)
        time.sleep(longest_s)
        process.kill()
        ended = process.end()
        account.take(ended.told, ended.killed)


def drawn(account: Reviewed, rng: random.Random) -> Given:
    """Verdicts for one of the latest detections, or for several."""
    latest = sorted(account.told)[-LATEST:]
    number = 1 if rng.random() < 0.5 else rng.randint(2, MOST)
    return {id: rng.choice(SAID) for id in rng.sample(latest, min(number, len(latest)))}


def give(account: Reviewed, lengths: Lengths, output: Path, note: str, given: Given, rng: random.Random | None) -> None:
    """Let a process give verdicts, and kill it at a random moment; without `rng` it comes to its end. Look at them."""
    words: Sequence[object] = ["review", "set", output, "--reviewer", "kills"]
    if len(given) == 1:
        [(id, said)] = given.items()
        work = command(*words, id, "--verdict", said, "--note", note)
    else:
        work = command(*words, "--from", table(output.parent / "table.csv", note, given))
    work = telling(work)
    ended = lengths.live("set", work) if rng is None else lengths.kill("set", work, rng)
    account.expect(ended.killed or ended.code == 0, f"{note}: {ended.told}")
    account.counts["commands killed"] += ended.killed
    account.counts["commands that ended before the kill"] += not ended.killed
    with looked_into(output / DATABASE) as connection:
        written = written_with(connection, note)
        account.expect(written == sorted(given.items()) or (ended.killed and not written), f"{note}: {written}")
        account.counts["killed after the commit"] += ended.killed and bool(written)
    (account.given if ended.code == 0 else account.perhaps)[note] = given


def telling(work: Callable[[int], int]) -> Callable[[int], int]:
    """The same, which tells when it begins to write."""

    def told(pipe: int) -> int:
        write = review.give_all

        def writing(*given: Any) -> None:
            os.write(pipe, b"writes\n")
            write(*given)

        review.give_all = writing
        return work(pipe)

    return told


def table(path: Path, note: str, given: Given) -> Path:
    """A table of verdicts."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "verdict", "note"), *((id, said, note) for id, said in given.items())])
    return path


def written_with(connection: sqlite3.Connection, note: str) -> list[tuple[int, str]]:
    """(detection, verdict) in the journal by the command with a note, in order."""
    query = "SELECT detection, verdict FROM verdicts WHERE note = ? ORDER BY detection"
    return [(id, review.UNREVIEWED if said is None else said) for id, said in connection.execute(query, (note,))]


def check_verdicts(account: Reviewed, output: Path) -> None:
    """The journal holds what was acknowledged, each once and nothing else; detections say what it says last."""
    with looked_into(output / DATABASE) as connection:
        there = {note for (note,) in connection.execute("SELECT DISTINCT note FROM verdicts")}
        for note, given in {**account.given, **account.perhaps}.items():
            written = written_with(connection, note)
            right = written == sorted(given.items()) or (note in account.perhaps and not written)
            account.expect(right, f"{note}: {given} was given, {written} is there")
        account.expect(set(account.given) <= there, f"lost: {set(account.given) - there}")
        last = {
            row[0]: row[1:] for row in connection.execute("SELECT detection, verdict, note FROM verdicts ORDER BY id")
        }
        query = "SELECT id, verdict, verdict_note FROM detections WHERE verdict IS NOT NULL OR verdict_note != ''"
        found = {id: about for id, *about in connection.execute(query)}
        differ = [id for id in {*last, *found} if tuple(found.get(id, ())) != last.get(id)]
        account.expect(not differ, f"detections {differ[:5]} and the journal say different things")
    account.counts["verdicts acknowledged"] = sum(map(len, account.given.values()))
