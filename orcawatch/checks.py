"""What is wrong with the machine around the array: findings from values that somebody else has read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from .attempt import Peak
from .config import RetentionSettings
from .findings import FAULT, OK, SKIPPED, WARNING, Finding, count, halves
from .soundcard import Opened, plain

RATE_FAULT_PPM = 1000.0  # no crystal is off so far: another rate, or samples are lost
RATE_WARNING_PPM = 200.0
EARLIEST_YEAR = 2024  # a clock before this was never set
SLOW_WRITE_S = 1.0
CLIPS_MB = 100.0  # room for clips below which a disk is nearly full
FEW_INODES = 1000
UNIT_SHARE = 0.75  # of the machine's memory, `MemoryMax=` of the service's unit
BUSY_SHARE = 0.6  # of real time, beyond which a warm day or a burst of calls makes the ladder step in
HOT_C = 75.0  # a Raspberry Pi slows down at 80
MEMORY_DISKS = ("tmpfs", "ramfs")
THROTTLED = {
    0: "the supply voltage is too low",
    1: "the clock is capped",
    2: "it is slowed down",
    3: "it is near its limit",
}
WAS = 16  # the same bits, since the machine started


@dataclass(frozen=True)
class Capture:
    """What came of listening to the sound card for a while.

    Attributes
    ----------
    opened : what was opened; None where nothing was.
    seconds : audio that came.
    overruns : how often the card said that it lost audio.
    dropped_s : audio that the capture process had no room for.
    ended : why it ended or could not begin; empty where it did neither.
    measured_hz, error_ppm : the rate by the steady clock, and how far that may be off; None where too little came.
    """

    opened: Opened | None
    seconds: float = 0.0
    overruns: int = 0
    dropped_s: float = 0.0
    ended: str = ""
    measured_hz: float | None = None
    error_ppm: float = 0.0


def capture_findings(found: Capture, asked_s: float, service_runs: bool) -> Iterator[Finding]:
    """The device, and whether its audio comes without holes."""
    if found.opened is None:
        text, cure = halves(found.ended or f"nothing came in {asked_s:g} s; look at `orcawatch devices`")
        stop = "the service may hold it: systemctl stop orcawatch; " if service_runs else ""
        yield Finding("device", FAULT, text, stop + cure)
        return
    card = found.opened
    shape = f"{card.channels} channels of {card.sample_format} at {card.rate_hz} Hz"
    yield Finding("device", OK, f"{plain(card.name)!r} ({card.hostapi}) opens: {shape}, latency {card.latency_s:.2f} s")
    yield from stream_findings(found, asked_s)
    if found.measured_hz is not None:
        yield rate_finding(card.rate_hz, found.measured_hz, found.error_ppm)


def stream_findings(found: Capture, asked_s: float) -> Iterator[Finding]:
    """Whether the capture process delivers."""
    if found.ended:
        yield Finding("capture", FAULT, f"broke off after {found.seconds:.1f} s: {found.ended}",
                      "look at plug, cable and supply of the card, and at `dmesg`")  # fmt: skip
    elif found.overruns or found.dropped_s:
        yield Finding("capture", WARNING, f"{count(found.overruns, 'overrun')}, {found.dropped_s:.2f} s dropped in "
                      f"{found.seconds:.1f} s", "raise source.latency_s, and see what else runs (`top`)")  # fmt: skip
    elif found.seconds < 0.5 * asked_s:
        yield Finding("capture", FAULT, f"{found.seconds:.1f} s of audio came in {asked_s:g} s",
                      "the card stalls: plug it in directly, without a hub")  # fmt: skip
    else:
        yield Finding("capture", OK, f"{found.seconds:.1f} s came without a hole")


def rate_finding(nominal_hz: int, measured_hz: float, error_ppm: float) -> Finding:
    """The card's rate by the machine's steady clock."""
    off_ppm = 1e6 * (measured_hz / nominal_hz - 1)
    found = f"{measured_hz:.1f} Hz by the steady clock, nominal {nominal_hz} Hz: {off_ppm:+.0f} ppm (+-{error_ppm:.0f})"
    beyond_ppm = abs(off_ppm) - error_ppm
    if beyond_ppm > RATE_FAULT_PPM:
        return Finding("rate", FAULT, found, "the card runs at another rate, or loses samples: see source.rate_hz")
    if beyond_ppm > RATE_WARNING_PPM:
        return Finding(
            "rate",
            WARNING,
            found,
            "the ledger corrects times for it; arrays on two clocks cannot be compared to the millisecond",
        )
    return Finding("rate", OK, found)


def fitted_rate(ends: Sequence[int], arrivals_s: Sequence[float]) -> tuple[float, float] | None:
    """Samples per second from the positions and steady times of arriving blocks, and its standard error in ppm.

    Blocks may come late, never early: the line lies through the earliest of each eighth of the time. None for less
    than two seconds.
    """
    if len(ends) < 16 or arrivals_s[-1] - arrivals_s[0] < 2:
        return None
    end, arrival_s = np.array(ends, np.float64), np.array(arrivals_s) - arrivals_s[0]
    slope, _ = np.polyfit(end, arrival_s, 1)
    late_s = arrival_s - slope * end
    kept = np.array([part[np.argmin(late_s[part])] for part in np.array_split(np.arange(len(end)), 8)])
    (slope, offset), spread = np.polyfit(end[kept], arrival_s[kept], 1), end[kept].std()
    left_s = arrival_s[kept] - (slope * end[kept] + offset)
    error = float(left_s.std() / (spread * slope) / np.sqrt(len(kept)))
    return float(1 / slope), 1e6 * 2 * error


def clock_findings(synchronised: bool | None, utc: datetime, has_rtc: bool) -> Iterator[Finding]:
    """The system clock."""
    now = f"{utc:%Y-%m-%d %H:%M:%S} UTC"
    cure = "set up chrony with GPS or a network (docs/deployment.md); until then times are corrected afterwards"
    if utc.year < EARLIEST_YEAR:
        yield Finding("clock", FAULT, f"it says {now}: it was never set", cure)
    elif synchronised is None:
        yield Finding("clock", WARNING, f"{now}; the system does not tell whether it is synchronised", cure)
    elif not synchronised:
        yield Finding("clock", WARNING, f"{now}, not synchronised", cure)
    else:
        yield Finding("clock", OK, f"{now}, synchronised")
    if not has_rtc:
        yield Finding("rtc", WARNING, "no clock with a battery: after a power cut the time is wrong at first",
                      "fit an RTC (dtoverlay=i2c-rtc,ds3231 on a Raspberry Pi)")  # fmt: skip
    else:
        yield Finding("rtc", OK, "a clock with a battery is there")


@dataclass(frozen=True)
class Disk:
    """The disk under the output folder.

    Attributes
    ----------
    kind : of its file system; empty where unknown.
    total_mb, free_mb : its size, and what is free for this user.
    free_inodes : how many more files it takes; None where it has no such limit.
    write_s : how long it took to write and sync a small file; None where that failed.
    fault : why it failed.
    """

    place: Path
    kind: str
    total_mb: float
    free_mb: float
    free_inodes: int | None
    write_s: float | None
    fault: str = ""


def disk_findings(disk: Disk, retention: RetentionSettings) -> Iterator[Finding]:
    """Room on the disk and whether it takes what is written."""
    if disk.write_s is None:
        yield Finding("disk", FAULT, f"{disk.place} cannot be written: {disk.fault}", write_cure(disk.fault))
    elif disk.write_s > SLOW_WRITE_S:
        yield Finding("disk", WARNING, f"{disk.place}: a small file took {disk.write_s:.1f} s to reach the disk",
                      "a card that is wearing out, or busy: look at `dmesg` and `iostat -x 1`")  # fmt: skip
    else:
        yield Finding("disk", OK, f"{disk.place} takes files ({disk.kind or 'unknown file system'})")
    yield room_finding(disk, retention)
    if disk.kind in MEMORY_DISKS:
        yield Finding("disk", WARNING, f"{disk.place} is in memory ({disk.kind}): a power cut empties it",
                      "mount a disk there, or change `output`")  # fmt: skip


def write_cure(fault: str) -> str:
    """What helps where a file cannot be written."""
    cures = {
        "Read-only": "disks turn so when they fail: look at `dmesg`, then fsck; where it is meant: mount -o remount,rw",
        "No space": "delete what is not orcawatch's; clips go by themselves where `retention` is set",
        "Permission": "give the folder to the service: chown orcawatch: FOLDER, or `orcawatch deploy install` again",
    }
    return next((cure for part, cure in cures.items() if part in fault), "look at `dmesg` and `mount`")


def room_finding(disk: Disk, retention: RetentionSettings) -> Finding:
    """Whether the retention has room to work with."""
    kept_mb = retention.min_free_mb + retention.reserve_mb
    left_mb = disk.free_mb - kept_mb
    found = f"{disk.free_mb:.0f} MB of {disk.total_mb:.0f} MB are free, {kept_mb:.0f} MB of them stay so"
    cure = "delete what is not orcawatch's, take a larger disk, or lower retention.min_free_mb"
    if disk.free_inodes is not None and disk.free_inodes < FEW_INODES:
        return Finding("room", FAULT, f"only {disk.free_inodes} more files can be made", "delete files, or format anew")
    if disk.total_mb < kept_mb + CLIPS_MB:
        return Finding("room", FAULT, found + ": clips will never fit", cure)
    if left_mb < CLIPS_MB:
        return Finding("room", WARNING, found + ": old clips go for new ones from the start", cure)
    return Finding("room", OK, found)


def user_findings(user: str, groups: Collection[str], nodes: Mapping[str, bool]) -> Iterator[Finding]:
    """Whether a user may open the sound devices; `nodes` says of each whether that user may."""
    denied = [node for node, may in nodes.items() if not may]
    if denied:
        cure = f"usermod -aG audio {user}" if "audio" not in groups else "look at the udev rules of the card"
        yield Finding("user", FAULT, f"{user} may not open {denied[0]}", cure)
    elif nodes:
        yield Finding("user", OK, f"{user} may open the sound devices ({len(nodes)})")
    else:
        yield Finding("user", SKIPPED, "there are no sound devices under /dev/snd")


def folder_finding(user: str, folder: Path, fault: str) -> Finding:
    """Whether a user may write the output folder."""
    if fault:
        return Finding("folder", FAULT, f"{user} cannot write {folder}: {fault}", write_cure(fault))
    return Finding("folder", OK, f"{user} may write {folder}")


def unread_finding(user: str, key: str, path: Path, is_there: bool) -> Finding:
    """That a user may not read a file that the settings name."""
    if not is_there:
        return Finding("files", FAULT, f"{path} is not there ({key})", "put it there, or correct the path")
    cure = f"chown {user} {path.name}; chmod 400 {path.name}"
    return Finding("files", FAULT, f"{user} cannot read {path} ({key})", cure)


def hidden_finding(key: str, path: Path) -> Finding:
    """That the service's sandbox hides a file."""
    found = f"the service sees nothing of {path} ({key}): it sees no /home, /root and /tmp"
    return Finding("files", FAULT, found, "move it, for instance to /opt or /etc/orcawatch, and correct the path")


def speed_finding(share: float, channels: int, hop_s: float, threads: int, cores: int) -> Finding:
    """What the model needs of real time."""
    found = (
        f"{share:.0%} of real time for {count(channels, 'channel')} every {hop_s:g} s with {threads} of {cores} cores"
    )
    spare = f"raise `threads` to {cores}, " if threads < cores else ""
    cure = f"{spare}raise `hop_s`, use fewer `channels`, or a smaller bundle (orcawatch deploy budget)"
    if share >= 1:
        return Finding("speed", FAULT, f"{found}: most audio would be shed", cure)
    if share > BUSY_SHARE:
        return Finding("speed", WARNING, f"{found}: no room for snapshots and warm days", cure)
    return Finding("speed", OK, found)


def memory_finding(peak: Peak, machine_mb: float, snapshots: bool) -> Finding:
    """Whether the service may have the memory that a bundle took in a process of its own."""
    need_mb = peak.explain_mb if snapshots else peak.score_mb
    what = "scoring and explaining a window" if snapshots else "scoring a window (`snapshots: false`)"
    found = (
        f"{what} took up to {need_mb:.0f} MB; the service may have {UNIT_SHARE:.0%} of {machine_mb:.0f} MB, which is "
        f"{UNIT_SHARE * machine_mb:.0f} MB"
    )
    if need_mb <= UNIT_SHARE * machine_mb:
        return Finding("memory", OK, found)
    ending = "it would be ended at the first detection" if need_mb > peak.score_mb else "it would be ended"
    spare = "say `snapshots: false`, or " if snapshots and peak.score_mb <= UNIT_SHARE * machine_mb else ""
    return Finding("memory", FAULT, f"{found}: {ending}", f"{spare}use a smaller bundle (orcawatch deploy budget)")


def heat_findings(temperatures_c: Mapping[str, float], throttled: int | None) -> Iterator[Finding]:
    """Temperature, and what a Raspberry Pi says of its supply; `throttled` is its word of flags."""
    hot = {name: value for name, value in temperatures_c.items() if value >= HOT_C}
    for name, value in hot.items():
        yield Finding("heat", WARNING, f"{name} is at {value:.0f} C", "let the heat out: the case's wall, not its air")
    if not temperatures_c:
        yield Finding("heat", SKIPPED, "this machine tells no temperature")
    elif not hot:
        yield Finding("heat", OK, ", ".join(f"{name} {value:.0f} C" for name, value in temperatures_c.items()))
    if throttled is not None:
        yield power_finding(throttled)


def power_finding(throttled: int) -> Finding:
    """What the flags say."""
    cure = "use a stronger supply and a shorter cable; check the battery under load"
    now = [text for bit, text in THROTTLED.items() if throttled >> bit & 1]
    before = [text for bit, text in THROTTLED.items() if throttled >> bit + WAS & 1]
    if now:
        return Finding("power", FAULT, f"now: {', '.join(now)}", cure)
    if before:
        return Finding("power", WARNING, f"since the machine started: {', '.join(before)}", cure)
    return Finding("power", OK, "the supply held since the machine started")


def database_finding(path: Path, fault: str, schema: int | None, newest: int, recovered: int) -> Finding:
    """The log of detections; `schema` is None where there is none yet."""
    if fault:
        return Finding("database", FAULT, f"{path} is damaged: {fault}",
                       "start the service: it moves the file aside and rescues its rows")  # fmt: skip
    if schema is None:
        return Finding("database", OK, f"{path} is made at the first start")
    if schema > newest:
        return Finding("database", FAULT, f"{path} has schema {schema}, this version knows {newest}",
                       "upgrade orcawatch, or name another `output`")  # fmt: skip
    if recovered:
        return Finding("database", WARNING, f"{path} is whole, but was damaged and rescued {count(recovered, 'time')}",
                       "the disk is failing: look at `dmesg`, and at the files NAME.damaged-* beside it")  # fmt: skip
    return Finding(
        "database", OK, f"{path} is whole" + (f"; schema {schema} becomes {newest}" if schema < newest else "")
    )


def sink_finding(name: str, place: str, fault: str) -> Finding:
    """Whether a sink's far side answers."""
    if fault:
        return Finding("sink", WARNING, f"{name}: {place} does not answer: {fault}",
                       "messages wait in the database until it does; check address, network and firewall")  # fmt: skip
    return Finding("sink", OK, f"{name}: {place} answers")
