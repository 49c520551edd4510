"""Cut the power of a listening machine again and again, at random moments, and count what is lost.

    python tests/boot/power_cuts.py 15

Not a test: each cut takes some ten seconds. Root, and what `make boot` installs, are needed.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from conftest import CACHE, HERE, Machine

SETTINGS = """
output: /var/lib/orcawatch
source: {device: pulse, rate_hz: 44100, device_channels: 4}
ledger: {checkpoint_s: 2}
"""
ACKNOWLEDGED = "SELECT id, start_utc, score FROM detections ORDER BY id"
LEDGER = "SELECT cause, start_utc, end_utc FROM ledger WHERE start_utc IS NOT NULL ORDER BY start_utc"
SHORTEST_S, LONGEST_S = 3.0, 13.0  # of listening before a cut


def main(cuts: int, seed: int = 1) -> int:
    """Print a line for each cut and a sum; the exit code is 1 where an acknowledged detection was lost."""
    subprocess.run([HERE / "build.sh", CACHE, sys.executable], check=True)
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        machine = Machine(Path(folder))
        try:
            set_up(machine)
            lost = sum([cut(machine, moments, number) for number in range(cuts)])
            print(f"{cuts} cuts, {lost} with a loss; {len(machine.rows(ACKNOWLEDGED))} detections; {seams(machine)}")
        finally:
            machine.close()
    return int(lost > 0)


def set_up(machine: Machine) -> None:
    """The service on a sea that is heard again and again."""
    machine.boot()
    machine.run("pip install --quiet --no-index --no-deps --find-links /wheel orcawatch")
    machine.run(
        "orcawatch deploy install --no-start; orcawatch simulate /srv/scene.flac --seconds 90 --seed 3 --calls 20"
    )
    machine.put(HERE / "test.conf", "/etc/systemd/system/orcawatch.service.d/test.conf")
    for name in ("sea.service", "waves.service"):
        machine.put(HERE / name, f"/etc/systemd/system/{name}")
    machine.run(f"cat > /etc/orcawatch/config.yaml <<'END'\n{SETTINGS}\nEND")
    machine.run("systemctl daemon-reload; systemctl enable sea waves; sync; systemctl start sea waves orcawatch")


def cut(machine: Machine, moments: random.Random, number: int) -> bool:
    """Cut the power once; whether a detection that had its row was lost or changed."""
    time.sleep(moments.uniform(SHORTEST_S, LONGEST_S))
    before = machine.rows(ACKNOWLEDGED)
    machine.cut_power()
    machine.boot()
    machine.wait_for("the service", lambda: machine.property("ActiveState") == "active")
    lost = machine.rows(ACKNOWLEDGED)[: len(before)] != before
    (found,) = machine.rows("PRAGMA integrity_check")
    print(f"cut {number + 1}: {len(before)} detections, {'LOST' if lost else 'kept'}, database {found[0]}", flush=True)
    return lost


def seams(machine: Machine) -> str:
    """How well the ledger's rows join, and how many say that nothing ran."""
    rows: list[list[Any]] = machine.rows(LEDGER)
    spans = [(datetime.fromisoformat(row[1]), datetime.fromisoformat(row[2])) for row in rows]
    worst_s = max(abs((later[0] - earlier[1]).total_seconds()) for earlier, later in zip(spans, spans[1:]))
    stops = sum(row[0] == "not running" for row in rows)
    return f"ledger: {stops} times not running, rows join to {worst_s:.6f} s"


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in sys.argv[1:])))
