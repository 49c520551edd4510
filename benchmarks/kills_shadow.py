"""The scenario `shadow` of benchmarks/kills.py: a watch with a shadow bundle, killed again and again.

The shadow scores as the current bundle does, so that it finds the same: whatever its account says that it scored, it
must have found what the watch found there, and nothing else. It is switched off when the watch has ended three times
while it was young; then it is installed again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

from killing import Forked, command
from kills_watch import (
    FULL_EVERY,
    READY,
    Ensemble,
    Sea,
    Watched,
    check_end,
    check_round,
    looked_into,
    one_life,
    settings_in,
    tell_rows,
)

from orcawatch import daemon, shadowing
from orcawatch.bundle import Bundle, load_bundle, write_bundle
from orcawatch.bundles import InForce
from orcawatch.daemon import DATABASE
from orcawatch.durable import PARTIAL
from orcawatch.outbox import Outbox
from orcawatch.service import Service
from orcawatch.shadow import summary
from orcawatch.shadowing import MOST_STARTS, Beside, Span
from orcawatch.shelf import Shelf
from orcawatch.spectrogram import LogMel

SCORED, BEGUN = "scored", "begun"
OFTEN_S = 1.0  # of audio between two writes of the shadow, in place of half a minute: few lives take that long


class Watch(Service):
    """The service of `orcawatch run`, which listens to the sea, and in which both bundles score by energy."""

    def __init__(self, output: Path, sea: Sea, pipe: int) -> None:
        settings = settings_in(output)
        super().__init__(lambda: settings, settings, Flag())
        self._sea = sea
        self._pipe = pipe

    def outbox(self, session: int | None) -> Outbox | None:
        """As the service's; told when it is there."""
        opened = super().outbox(session)
        os.write(self._pipe, f"{READY}\n".encode())
        return opened

    def _source(self, *given: Any) -> Any:
        return self._sea

    def _ensemble_of(self, bundle: Bundle) -> Any:
        os.write(self._pipe, f"{BEGUN}\n".encode())
        found = Ensemble()
        found.bundle = shadow_of(found.bundle, bundle)
        return found


def shadow_of(energy: Bundle, installed: Bundle) -> Bundle:
    """The bundle by energy, as the installed one is called."""
    return replace(energy, name=installed.name, manifest={**energy.manifest, "digest": installed.digest})


def shadowed_watch(output: Path, sea: Sea, ensemble: Ensemble) -> Callable[[int], int]:
    """The work of a victim; what the shadow has written is told as `scored SESSION SAMPLE`."""

    def work(pipe: int) -> int:
        tell_rows(output, pipe)
        put = Beside._put

        told: list[str] = []
        write = Beside.write

        def noting(beside: Beside, connection: Any, session: int, spans: Sequence[Span]) -> None:
            put(beside, connection, session, spans)
            told.extend(f"{SCORED} {session} {span.end_sample}\n" for span in spans)

        def telling(beside: Beside) -> None:
            write(beside)
            os.write(pipe, "".join(told).encode())
            told.clear()

        Beside._put, Beside.write = noting, telling  # type: ignore[method-assign]
        shadowing.WRITE_S = OFTEN_S
        daemon.open_working = lambda settings: (InForce(ensemble.bundle, "current"), ensemble)  # type: ignore
        with Watch(output, sea, pipe) as watch:
            watch.watch(None, False, lambda detection: None)
        return 1

    return work


def tiny(folder: Path) -> Path:
    """A bundle that is whole; nobody runs its files."""
    backbone = {
        "name": "energy", "file": "energy.tflite", "explain_file": "energy-explain.tflite", "feature_size": 4,
        "front_end": LogMel().to_dict(),
    }  # fmt: skip
    manifest = {
        "name": "shadow", "backbones": [backbone], "heads": {"file": "heads.tflite"}, "members": ["energy"],
        "vote": ["energy"], "hop_s": 0.48, "channel_fusion": "max", "thresholds": {"start": 0.5, "stop": 0.3},
    }  # fmt: skip
    names = ("energy.tflite", "energy-explain.tflite", "heads.tflite", "model-card.md")
    write_bundle(folder, manifest, {name: name.encode() for name in names})
    return folder


@dataclass
class Shadowed(Watched):
    """What was told by a watch and its shadow.

    Attributes
    ----------
    scored : by session, how far the shadow had scored and written, samples.
    begun : how often it was begun since it was installed.
    """

    scored: dict[int, int] = field(default_factory=dict)
    begun: int = 0

    def take_shadow(self, lines: str) -> None:
        """What a victim told of its shadow."""
        for words in (line.split() for line in lines.split("\n")[:-1]):
            if words[0] == SCORED:
                self.scored[int(words[1])] = int(words[2])
            self.begun += words[0] == BEGUN


def shadow_rounds(kills: int, seed: int, longest_s: float, folder: Path) -> Shadowed:
    """Kill, look, install the shadow again where it was switched off."""
    rng, account = random.Random(seed), Shadowed()
    sea, ensemble, partials, output = Sea(), Ensemble(), set[Path](), folder / "out"
    output.mkdir(parents=True)
    bundle, shelf = tiny(folder / "tiny"), Shelf(output)
    digest = load_bundle(bundle).digest
    shelf.install_shadow(bundle, None)
    while account.kills < kills:
        process = one_life(shadowed_watch(output, sea, ensemble), rng, longest_s)
        process.kill()
        ended = process.end()
        started = account.take(ended.told, ended.killed)
        account.take_shadow(ended.told)
        if (output / DATABASE).exists() and account.told:
            partials = check_round(account, output, partials, started)
            check_trial(account, shelf, bundle)
            check_shadow(account, output, digest)
        if account.kills % FULL_EVERY == 0 and account.scored:
            check_report(account, output)
        account.tell(kills)
    check_end(account, output)
    check_report(account, output)
    return account


def check_trial(account: Shadowed, shelf: Shelf, bundle: Path) -> None:
    """The shadow is there and was not begun too often; it is installed again where it was switched off."""
    trial = shelf.trial()
    account.expect(trial is not None, "the shadow has gone")
    account.expect(account.begun <= MOST_STARTS, f"a shadow was begun {account.begun} times")
    if trial is not None and trial.fault:
        account.expect("times without a proper end" in trial.fault, f"switched off: {trial.fault}")
        shelf.install_shadow(bundle, None)
        account.counts["times that the shadow was switched off"] += 1
        account.begun = 0
        left = [path.name for path in shelf.folder.glob(f"*{PARTIAL}")]
        account.expect(not left, f"left in the bundles' folder: {left}")


def check_shadow(account: Shadowed, output: Path, digest: str) -> None:
    """Of the newest session: stretches do not overlap; what was told is there; both have found the same in them."""
    with looked_into(output / DATABASE) as connection:
        session = connection.execute("SELECT max(session) FROM shadowed").fetchone()[0]
        query = "SELECT start_sample, end_sample FROM shadowed WHERE session = ? ORDER BY start_sample"
        spans = connection.execute(query, (session,)).fetchall()
        ends = [0, *(end for _, end in spans)]
        account.expect(all(start >= end for (start, _), end in zip(spans, ends)), f"stretches overlap: {spans}")
        scored = account.scored.get(session or 0, 0)
        account.expect(ends[-1] >= scored, f"told as scored to {scored}, written to {ends[-1]}")
        doubled = "SELECT start_sample FROM shadows GROUP BY session, start_sample HAVING count(*) > 1"
        account.expect(not connection.execute(doubled).fetchall(), "a detection of the shadow is there twice")


def check_report(account: Shadowed, output: Path) -> None:
    """`orcawatch bundle shadow report` works, and says that both found the same in the time that both scored."""
    ended = Forked(command("bundle", "shadow", "report", "--output", output)).end()
    account.expect(ended.code == 0, f"the report failed: {ended.told}")
    with looked_into(output / DATABASE) as connection:
        found = summary(connection)
    if found is None:
        return
    account.counts["detections that both have"] = found.both
    account.counts["seconds that both scored"] = round(found.compared_s)
    alone = [pair for pair in found.pairs if pair.found_by != "both"]
    account.expect(
        not alone, f"{found.only_current} of the watch, {found.only_shadow} of the shadow alone: {alone[:3]}"
    )
