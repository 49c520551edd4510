"""The scenario `power` of benchmarks/kills.py: the same watch on a disk of which only what was written is left."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from pathlib import Path

from kills_watch import FULL_EVERY, Ensemble, Sea, Watched, check_all, compare, looked_into, one_life, watch

from orcawatch.daemon import DATABASE

DISK_MB = 48


def power_rounds(rounds: int, seed: int, longest_s: float, folder: Path) -> Watched:
    """The same on a disk of which only what was written is left."""
    rng, account = random.Random(seed), Watched(power=True)
    sea, ensemble = Sea(), Ensemble()
    disk, place = folder / "disk.img", folder / "place"
    place.mkdir(parents=True)
    disk.touch()
    os.truncate(disk, DISK_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    for index in range(rounds):
        loop = mounted(disk, place)
        (place / "out").mkdir(exist_ok=True)
        process = one_life(watch(place / "out", sea, ensemble), rng, longest_s)
        process.kill()
        cut_power(disk, loop)
        ended = process.end()
        account.take(ended.told, ended.killed)
        subprocess.run(["umount", str(place)], check=True)
        (folder / "after.img").replace(disk)
        check_disk(account, disk, place, index % FULL_EVERY == FULL_EVERY - 1 or index == rounds - 1)
        account.tell(rounds)
    return account


def mounted(disk: Path, place: Path) -> Path:
    """Mount; the folder in which the kernel counts what is written."""
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    device = subprocess.run(["findmnt", "-no", "SOURCE", str(place)], check=True, capture_output=True, text=True)
    return Path("/sys/block") / Path(device.stdout.strip()).name


def cut_power(disk: Path, loop: Path) -> None:
    """Copy the disk in a moment in which nothing is being written to it."""
    while True:
        before = written(loop)
        shutil.copyfile(disk, disk.with_name("after.img"))
        if before is not None and written(loop) == before:
            return


def written(loop: Path) -> int | None:
    """Writes to a device so far; None while some are under way."""
    numbers = (loop / "stat").read_text().split()
    return None if int(numbers[8]) else int(numbers[4])


def check_disk(account: Watched, disk: Path, place: Path, whole: bool) -> None:
    """Look at a copy, so that the next round finds the disk as the power cut left it."""
    copy = disk.with_name("looked-at.img")
    shutil.copyfile(disk, copy)
    subprocess.run(["mount", "-o", "loop", str(copy), str(place)], check=True)
    try:
        output = place / "out"
        account.expect(not list(output.glob("*damaged*")), "a database was taken for damaged")
        if (output / DATABASE).exists():
            check_database(account, output, whole)
        else:
            account.expect(not account.told, "the database is gone")
    except sqlite3.Error as fault:
        account.expect(False, f"the database cannot be read: {fault}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def check_database(account: Watched, output: Path, whole: bool) -> None:
    """What was told is there, and the pages are in order; now and then everything."""
    with looked_into(output / DATABASE) as connection:
        intact = connection.execute("PRAGMA integrity_check").fetchone()[0]
        account.expect(intact == "ok", f"the database is damaged: {intact}")
        if account.told:
            compare(account, connection, 0)
    if whole:
        check_all(account, output)
