"""Kill orcawatch at random moments, again and again: is anything that it acknowledged lost or doubled, or left broken?

    python benchmarks/kills.py [--what watch] [--rounds 1000] [--seed 0] [--output FOLDER]
    python benchmarks/kills.py --power [--rounds 200]          (root: mounts a small ext4)

Whatever runs is killed with SIGKILL at whatever it is doing and started again in the same folder. What it acknowledged
it has told on a pipe, or printed, before; after each kill that is compared with what is there.

watch     The daemon's own loop with database, ledger, clips, retention, outbox and a JSON lines sink, on an endless sea
          in which there is a call every 2.4 s, many times faster than real time; only the networks are left out (a
          window is scored by the energy between 1 and 4 kHz). Each row is told once `Store.add` has returned. The kill
          comes up to `--longest` seconds after it began to listen, or, one time in four, after it was started.
shadow    `orcawatch run`'s service with a shadow that scores as the current bundle does, on the same sea: what it found
          must be what the watch found, wherever its account says that it scored.
scan      `orcawatch scan` with two worker processes; the scan is killed, or, one time in four, one of the workers. What
          a scan has come to, over as many kills as it takes, must equal a scan that nobody disturbed, to the byte.
verdicts  `orcawatch review set`, of one verdict and of tables, while a watch writes to the same database; both are
          killed.
install   `orcawatch bundle install`, `rollback`, `install --shadow`, `shadow promote` and `shadow stop`.

For the last three, how long a life takes is measured first, and the kill comes at a random moment of it.

With `--power` the watch runs on a small ext4 in a file. At the kill, that file is copied as it is: what the kernel had
not yet written to the disk is lost, as when the power fails. The next round mounts the copy, so that ext4 replays its
journal.

Prints a table; exit code 1 where anything was lost, doubled or damaged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from killing import Account, print_table
from kills_install import install_rounds
from kills_power import power_rounds
from kills_scan import scan_rounds
from kills_shadow import shadow_rounds
from kills_verdicts import verdict_rounds
from kills_watch import kill_rounds

LONGEST_S = 0.25

Rounds = Callable[[int, int, float, Path], Account]

SCENARIOS: dict[str, Rounds] = {
    "watch": kill_rounds,
    "shadow": shadow_rounds,
    "scan": scan_rounds,
    "verdicts": verdict_rounds,
    "install": install_rounds,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=list(SCENARIOS), default="watch", help="what is killed [default: watch]")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=LONGEST_S, help="seconds until a watch is killed, at most")
    parser.add_argument("--output", type=Path, help="folder to work in, kept; a temporary one where it is left out")
    parser.add_argument("--power", action="store_true", help="cut the watch's power instead")
    chosen = parser.parse_args()
    began_s = time.monotonic()
    rounds, name = (power_rounds, "power") if chosen.power else (SCENARIOS[chosen.what], chosen.what)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.output or Path(temporary)
        account = rounds(chosen.rounds, chosen.seed, chosen.longest, folder / name)
    print_table(account, name, time.monotonic() - began_s)
    sys.exit(1 if account.faults else 0)


if __name__ == "__main__":
    main()
