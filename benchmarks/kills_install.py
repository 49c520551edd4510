"""The scenario `install` of benchmarks/kills.py: commands that change the installed bundles, killed at random moments.

The bundles are the shipped one under other names. After each kill the links lead to whole bundles, each to where it
led before or to where it was to lead, and `orcawatch bundle list` finds no fault. Then another change is made and not
killed: it must find all links as they were before the one that was killed, or all as they were to be after it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from killing import Account, Ended, Lengths, command

from orcawatch import bundle_command
from orcawatch.bundle import MANIFEST, SHIPPED, load_bundle, manifest_digest
from orcawatch.bundles import FOLDER, OF_OURS
from orcawatch.durable import PARTIAL
from orcawatch.interpreter import runtime
from orcawatch.shelf import LINKS, SHADOW, Shelf, folder_name

NAMES = "abcde"
WARMING = ("install", "install", "rollback", "shadow", "promote", "shadow", "stop")


class Links(NamedTuple):
    """Where the links lead: a name of `NAMES`, `shipped`, or nowhere."""

    current: str | None = None
    previous: str | None = None
    shadow: str | None = None


class Change(NamedTuple):
    """A change of the installed bundles; `name` is of the bundle that comes in, if one does."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


def after(links: Links, change: Change) -> Links | None:
    """The links after a change; None where it is refused."""
    current, previous, shadow = links
    if change.kind == "shadow":
        return links._replace(shadow=change.name)
    if change.kind == "install":
        return links if current == change.name else Links(change.name, current or previous, shadow)
    if change.kind == "rollback":
        back = OF_OURS if previous in (None, current) else previous
        return None if back == (current or OF_OURS) else Links(back, current, shadow)
    if shadow is None:
        return None
    if change.kind == "stop":
        return links._replace(shadow=None)
    return Links(shadow, current or previous) if current != shadow else links._replace(shadow=None)


class Station:
    """An output folder, bundles that are installed in it, and what is known of them."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "out"
        self.output.mkdir(parents=True)
        self.shelf = Shelf(self.output)
        self._paths = {name: renamed(folder / name, name) for name in NAMES}
        self._folders = {folder_name(load_bundle(path)): name for name, path in self._paths.items()}

    def links(self) -> Links:
        """Where the links lead now."""
        targets = [self.shelf.target(link) for link in LINKS]
        return Links(*(None if name is None else self._folders.get(name, name) for name in targets))

    def work(self, change: Change) -> Callable[[int], int]:
        """The command, which tells when the bundle was tried and the change begins."""
        words = {
            "install": ["install", self._paths.get(change.name)],
            "shadow": ["install", "--shadow", "--days", "1", self._paths.get(change.name)],
            "rollback": ["rollback"],
            "promote": ["shadow", "promote"],
            "stop": ["shadow", "stop"],
        }[change.kind]
        run = command("bundle", *words, "--quiet", "--output", self.output)

        def work(pipe: int) -> int:
            fits = bundle_command.fits

            def telling(settings: Any) -> Callable[[Any], object]:
                check = fits(settings)

                def checked(found: Any) -> None:
                    check(found)
                    os.write(pipe, b"tried\n")

                return checked

            bundle_command.fits = telling
            return run(pipe)

        return work

    def list(self, lengths: Lengths) -> Ended:
        """`orcawatch bundle list`."""
        return lengths.live("list", command("bundle", "list", "--output", self.output))


def renamed(folder: Path, name: str) -> Path:
    """The shipped bundle under another name."""
    folder.mkdir()
    for file in SHIPPED.iterdir():
        if file.name != MANIFEST:
            (folder / file.name).symlink_to(file)
    manifest = {**json.loads((SHIPPED / MANIFEST).read_text()), "name": name}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": manifest_digest(manifest)}))
    return folder


def drawn(links: Links, rng: random.Random) -> Change:
    """A change that is possible."""
    new = rng.choice([name for name in NAMES if name not in links])
    changes = [Change("install", new), Change("rollback"), Change("shadow", new), Change("promote"), Change("stop")]
    return rng.choice([change for change in changes if after(links, change) is not None])


def install_rounds(kills: int, seed: int, longest_s: float, folder: Path) -> Account:
    """Kill a change, look, make another one, look."""
    rng, account, lengths, station = random.Random(seed), Account(), Lengths(), Station(folder)
    runtime()
    for kind in WARMING:
        new = next(name for name in NAMES if name not in station.links())
        change_undisturbed(account, station, lengths, Change(kind, new if kind in ("install", "shadow") else ""), [])
    while account.kills < kills:
        before = station.links()
        change = drawn(before, rng)
        wanted = after(before, change) or before
        ended = lengths.kill(change.kind, station.work(change), rng)
        account.count_kill(ended.killed, "changes that were done before the kill")
        account.counts[f"killed: {change.kind}"] += ended.killed
        account.expect(ended.killed or ended.code == 0, f"{change} failed: {ended.told}")
        found = station.links()
        account.counts["killed before the first link was changed"] += ended.killed and found == before != wanted
        account.counts["killed between two links"] += ended.killed and found not in (before, wanted)
        account.expect(ended.killed or found == wanted, f"{change} of {before} came to {found}")
        check_between(account, station, lengths, change, before, wanted)
        change_undisturbed(account, station, lengths, drawn(found, rng), [before, wanted])
        account.tell(kills)
    return account


def check_between(
    account: Account, station: Station, lengths: Lengths, change: Change, before: Links, wanted: Links
) -> None:
    """Right after a kill: every link leads to where it led, or is to lead; what is there is whole."""
    links = station.links()
    for link, found, old, new in zip(LINKS, links, before, wanted):
        account.expect(found in (old, new), f"killed in {change}: {link} leads to {found}, not to {old} or {new}")
    listed = station.list(lengths)
    in_force = [line for line in listed.told.splitlines() if line.startswith("in force")]
    names = {"first-light" if name in (None, OF_OURS) else name for name in (before.current, wanted.current)}
    account.expect(listed.code == 0, f"killed in {change}: bundle list says {listed.told}")
    account.expect("fault" not in listed.told, f"killed in {change}: {listed.told}")
    account.expect("DAMAGED" not in listed.told, f"killed in {change}: {listed.told}")
    right = len(in_force) == 1 and in_force[0].split()[2] in names
    account.expect(right, f"killed in {change}: {in_force}, not one of {names}")
    trial = station.shelf.trial()
    account.expect(trial is None or trial.folder == station.shelf.target(SHADOW), f"killed in {change}: {trial}")


def change_undisturbed(
    account: Account, station: Station, lengths: Lengths, change: Change, starts: list[Links]
) -> None:
    """Another change, to its end: it begins from one of these states, and leaves nothing behind."""
    starts = starts or [station.links()]
    ended = lengths.live(change.kind, station.work(change))
    found, ends = station.links(), [after(start, change) for start in starts]
    refused = ended.code != 0 and None in ends and found in starts
    account.expect(refused or found in ends, f"{change} from {starts} came to {found}: {ended.told}")
    told = station.shelf.history()[-1]
    links = {link: station.shelf.target(link) for link in LINKS}
    account.expect({link: told.get(link) for link in LINKS} == links, f"the history says {told}, but it is {links}")
    trial = station.shelf.trial()
    account.expect((trial is None) == (found.shadow is None), f"{change}: {found.shadow} scores for {trial}")
    if ended.code == 0 and change.kind in ("install", "shadow"):
        there = {path.name for path in (station.output / FOLDER).iterdir() if path.is_dir() and not path.is_symlink()}
        account.expect(there == {name for name in links.values() if name} - {OF_OURS}, f"{change} leaves {there}")
        left = list((station.output / FOLDER).glob(f"*{PARTIAL}"))
        account.expect(not left, f"{change} leaves {left}")
