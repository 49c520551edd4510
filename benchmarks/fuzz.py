"""Malformed input for everything that reads files, settings and requests: is it refused with a word, or read right?

    python benchmarks/fuzz.py TARGET ... [--inputs 100000] [--seed 0] [--folder FOLDER]

Targets: see `TARGETS`. Inputs are changed seeds; where `atheris` is installed (`pip install atheris`), coverage of
orcawatch guides the changes, else they are drawn at random (`--blind` forces that). An input may end in a right answer
or in an OrcawatchError (over HTTP: in any status but 500). Anything else is a defect: another exception, more than
`SLOW_S` of processor time, more than `MEMORY_MB` of memory beyond those at the start, a crash of the process. Each is
told once, by where it happened, with the input in FOLDER.

Prints a table; exit code 1 where there are defects. `tests/edge/test_fuzz.py` runs some hundred inputs of each target.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_targets import HANG_S, LAST, NEVER_GUIDED, TARGETS, Run, Target, place_of
from mutations import LONGEST, mutated

SLOW_S = 5.0
MEMORY_MB = 1500
ROUNDS = 100  # times that a campaign is begun again after the process ended
STATE = "state.json"
CURRENT = "current"  # the input that is tried, where changes are drawn at random; libFuzzer keeps its own
SAVED = 100  # inputs between two times that it is written how far a campaign came


@dataclass
class Campaign:
    """What became of the inputs of one target.

    Attributes
    ----------
    name : of the target.
    folder : where inputs that show a defect are kept.
    inputs : so far.
    outcomes : how often what came out.
    defects : by where it happened, the input's file.
    """

    name: str
    folder: Path
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: dict[str, str] = field(default_factory=dict)

    def judge(self, run: Run, content: bytes) -> None:
        """Try one input."""
        from orcawatch.errors import OrcawatchError

        began_s = time.process_time()
        try:
            outcome = run(content)
        except OrcawatchError:
            outcome = "refused"
        except Exception as fault:
            outcome = "DEFECT"
            self.note(place_of(fault), content)
        if (took_s := time.process_time() - began_s) > SLOW_S:
            self.note(f"takes {took_s:.0f} s", content)
        self.inputs += 1
        self.outcomes[outcome] += 1

    def note(self, what: str, content: bytes) -> None:
        """Keep the input that shows a defect, the shortest one."""
        path = self.folder / f"{self.name}-{len(self.defects)}"
        known = self.defects.get(what)
        if known is None:
            self.defects[what] = path.name
            path.write_bytes(content)
            print(f"{self.name}: {what}: {path}", flush=True)
        elif len(content) < (self.folder / known).stat().st_size:
            (self.folder / known).write_bytes(content)


@contextlib.contextmanager
def ready(name: str, place: Path) -> Iterator[Target]:
    """A target in a folder of its own, with the process bounded."""
    root, server = logging.getLogger(), logging.getLogger("waitress")
    told, spoken = root.handlers[:], server.propagate
    target = TARGETS[name](place)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    root.handlers[:], server.propagate = [LAST], False
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEMORY_MB << 20), before[1]))
    try:
        yield target
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        root.handlers[:], server.propagate = told, spoken
        target.close()


def blind(campaign: Campaign, target: Target, inputs: int, seed: int) -> None:
    """Try seeds, then changed ones, drawn at random; a campaign that was interrupted goes on with others."""
    draw = random.Random(seed + campaign.inputs)
    for content in () if campaign.inputs else target.seeds:
        campaign.judge(target.run, content)
    while campaign.inputs < inputs:
        content = mutated(draw, target.seeds)
        (campaign.folder / f"{campaign.name}-{CURRENT}").write_bytes(content)
        campaign.judge(target.run, content)
        if campaign.inputs % SAVED == 0:
            save(campaign)


def scratch() -> Any:
    """A temporary folder, in memory where there is one: most targets write a file for each input."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="orcawatch-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


def guided(name: str, folder: Path, inputs: int, seed: int) -> None:
    """One life of a campaign under atheris; how far it came is written every now and then."""
    import atheris

    state = resumed(name, folder)
    with scratch() as place:
        with atheris.instrument_imports(include=["orcawatch", "yaml", "waitress", "werkzeug", "tarfile", "zipfile"]):
            opening = ready(name, Path(place))
            target = opening.__enter__()
        corpus = folder / f"{name}-corpus"
        corpus.mkdir(exist_ok=True)
        for index, content in enumerate(target.seeds):
            (corpus / f"seed-{index}").write_bytes(content)

        def one(content: bytes) -> None:
            state.judge(target.run, content)
            if state.inputs % SAVED == 0 or state.inputs >= inputs:
                save(state)
            if state.inputs >= inputs:
                shutil.rmtree(place, ignore_errors=True)
                os._exit(0)

        longest = max(4096, 2 * max(map(len, target.seeds)))
        options = [
            f"-timeout={HANG_S}", f"-seed={seed + state.inputs + 1}", "-verbosity=0",
            f"-max_len={min(LONGEST, longest)}",
            f"-artifact_prefix={folder / name}-", f"-rss_limit_mb={2 * MEMORY_MB}", "-len_control=0", str(corpus),
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()


def resumed(name: str, folder: Path) -> Campaign:
    """A campaign as far as it came."""
    state = Campaign(name, folder)
    if (folder / f"{name}-{STATE}").exists():
        known = json.loads((folder / f"{name}-{STATE}").read_text())
        state.inputs, state.defects, state.outcomes = known["inputs"], known["defects"], Counter(known["outcomes"])
    return state


def save(state: Campaign) -> None:
    """Write how far a campaign came."""
    known = {"inputs": state.inputs, "outcomes": state.outcomes, "defects": state.defects}
    path = state.folder / f"{state.name}-{STATE}"
    path.with_suffix(".new").write_text(json.dumps(known))
    path.with_suffix(".new").replace(path)


def campaign(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Lives of one campaign until it is done; what it found."""
    folder: Path = chosen.folder
    command = [sys.executable, __file__, name, "--one-life", "--folder", str(folder), "--inputs", str(chosen.inputs)]
    command += ["--blind"] if chosen.blind else []
    found: dict[str, Any] = {"inputs": 0, "outcomes": {}, "defects": {}}
    ended: dict[str, str] = {}
    for life in range(ROUNDS):
        with (folder / f"{name}-stderr.txt").open("wb") as said:  # some decoders talk
            # another seed for each life: the same one would come to the same end
            done = subprocess.run([*command, "--seed", str(chosen.seed + 1000 * life)], check=False, stderr=said)
        if (folder / f"{name}-{STATE}").exists():
            found = json.loads((folder / f"{name}-{STATE}").read_text())
        if done.returncode == 0:
            break
        kept = f"{name}-crash-of-life-{life}"
        if (folder / f"{name}-{CURRENT}").exists():
            (folder / f"{name}-{CURRENT}").replace(folder / kept)
        ended[f"the process ended with {done.returncode}"] = kept
    return {**found, "defects": {**found["defects"], **ended}}


def one_life(name: str, chosen: argparse.Namespace) -> None:
    """A campaign, or what is left of it, in this process."""
    if not chosen.blind and name not in NEVER_GUIDED:
        guided(name, chosen.folder, chosen.inputs, chosen.seed)
        return
    state = resumed(name, chosen.folder)
    with scratch() as place, ready(name, Path(place)) as target:
        blind(state, target, chosen.inputs, chosen.seed)
    save(state)
    os._exit(0)  # the server's thread runs on


def has_atheris() -> bool:
    """Whether coverage can guide."""
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("fuzz-out"), help="where inputs that show defects are kept")
    parser.add_argument("--blind", action="store_true", help="draw changes at random")
    parser.add_argument("--one-life", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    chosen.folder = chosen.folder.resolve()
    chosen.blind = chosen.blind or not has_atheris()
    names = list(TARGETS) if "all" in chosen.targets else chosen.targets
    if chosen.one_life:
        one_life(names[0], chosen)
        return
    found = {name: campaign(name, chosen) for name in names}
    print(f"| target | inputs ({'at random' if chosen.blind else 'guided by coverage'}) | outcomes | defects |")
    print("|---|---|---|---|")
    for name, one in found.items():
        outcomes = ", ".join(f"{what} {count}" for what, count in sorted(one["outcomes"].items()))
        print(f"| {name} | {one['inputs']} | {outcomes} | {'; '.join(one['defects']) or 'none'} |")
    sys.exit(any(one["defects"] for one in found.values()))


if __name__ == "__main__":
    main()
