"""Processes and their memory, for the benchmarks: not one itself."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LOOK_S = 0.05
FORKED = 0x40  # the kernel's flag of a process that runs no program of its own yet, and still has its parent's memory


def memory_mb(process: int | str) -> dict[str, float]:
    """Rss, Pss, Anonymous and the like of a process, MB, from the kernel's roll-up of its mappings."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(size.split()[0]) / 1024 for name, size in (line.split(":") for line in lines)}


def children(process: int) -> list[int]:
    """Numbers of a process's children."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sorted({int(child) for task in tasks for child in (task / "children").read_text().split()})


def watched(process: subprocess.Popen[bytes]) -> tuple[int, float, float]:
    """Exit code, processor time (s) and highest memory (MB) of a process with all below it, once it has ended."""
    peak_mb = 0.0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime, peak_mb
        peak_mb = max(peak_mb, together_mb(process.pid))
        time.sleep(LOOK_S)


def together_mb(process: int) -> float:
    """Memory of a process with all below it, MB; what they share counts once."""
    return sum(pss_mb(one) for one in family(process))


def family(process: int) -> Iterator[int]:
    """A process and all below it."""
    yield process
    for folder in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in folder.read_text().split():
                yield from family(int(child))


def pss_mb(process: int) -> float:
    """Memory of a process, MB, its share of what it has in common with others; 0 of one that begins or has ended."""
    try:
        flags = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[6])
        return 0.0 if flags & FORKED else memory_mb(process)["Pss"]
    except (OSError, KeyError):
        return 0.0
