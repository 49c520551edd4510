"""`orcawatch doctor`: looks at everything that a deployment depends on, and says what is wrong and what helps."""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

import click
import numpy as np
from numpy.typing import NDArray

from . import pages
from .attempt import try_out
from .bundle import Bundle
from .bundles import in_force
from .channels import check_hydrophones, chosen_channels
from .checks import (
    Capture,
    Disk,
    capture_findings,
    clock_findings,
    database_finding,
    disk_findings,
    fitted_rate,
    folder_finding,
    heat_findings,
    hidden_finding,
    memory_finding,
    sink_finding,
    speed_finding,
    unread_finding,
    user_findings,
)
from .cli import FILE, chosen_settings, config_option, logged
from .clock import Clocks, Timekeeper
from .config import Settings, SinkSettings
from .config_command import oddities, standing
from .daemon import DATABASE, open_ensemble
from .detector import Detector, Scorer, every_gate_open, score_silence
from .durable import write_bytes
from .errors import OrcawatchError
from .feed import COMMAND, Chunk, Ended, Feed
from .files import FileSource
from .findings import FAULT, OK, WARNING, Finding, count, exit_code, halves, lines, report
from .harmless import harmless
from .hearing import check_audio
from .live import MOST_CHANNELS, decoded
from .records import AudioBlock
from .recovery import SETTLE_S, write_ahead_of
from .schema import STEPS
from .service import needed_channels
from .shown import every_key
from .sinks import temperatures_c
from .soundcard import Opened, Wanted

Array = NDArray[np.float32]

log = logging.getLogger(__name__)

SERVICE = "orcawatch"  # the unit and its user
HIDDEN = tuple(
    map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp"))
)  # ProtectHome= and PrivateTmp= of the unit
START_S = 15.0  # what a card may take to open, beyond the time to listen
SPEED_S = 3.0
USUAL_RATE_HZ = 48000
ANSWER_S = 5.0
EXIT_CODES = """\b
Exit codes:
  0  nothing is wrong
  4  warnings: it works, but not as it should, or not for long
  5  faults: it will not do what it is for
  1  the doctor itself failed
  2  the settings are wrong (see `orcawatch config check`), or usage
"""


@dataclass(frozen=True)
class Machine:
    """Where the machine tells about itself.

    Attributes
    ----------
    sound : folder of the sound devices.
    rtc : the first clock with a battery.
    thermal : folder of the temperatures.
    throttled : flags of a Raspberry Pi's supply.
    mounts : table of the file systems.
    meminfo : how much memory it has.
    """

    sound: Path = Path("/dev/snd")
    rtc: Path = Path("/sys/class/rtc/rtc0")
    thermal: Path = Path("/sys/class/thermal")
    throttled: Path = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
    mounts: Path = Path("/proc/self/mounts")
    meminfo: Path = Path("/proc/meminfo")


@dataclass(frozen=True)
class Sound:
    """A stretch of audio: the used channels only."""

    samples: Array
    rate_hz: int
    channels: tuple[int, ...]


@click.command(epilog=EXIT_CODES)
@config_option
@click.option("--input", "file", type=FILE, metavar="FILE", help="Look at the sound of a file, not of the sound card.")
@click.option("--seconds", type=click.FloatRange(2, 600), default=10.0, show_default=True, help="How long to listen.")
@click.option(
    "--user", metavar="NAME", help="The user that the daemon runs as. [default: orcawatch, for root; else you]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@logged
@click.pass_context
def command(
    ctx: click.Context, config: Path | None, file: Path | None, seconds: float, user: str | None, as_json: bool
) -> None:
    """Look at device, channels, clock, disk, permissions, bundle, speed and sinks; say what is wrong and what helps.

    Stop the service first: a sound card has room for one. docs/doctor.md shows what is said of which fault.
    """
    settings = chosen_settings(config, None, None)
    findings = examine(settings, seconds, file, user)
    text = json.dumps(report(findings), ensure_ascii=False, indent=1) if as_json else "\n".join(lines(findings))
    click.echo(harmless(text, keep="\n"))
    ctx.exit(exit_code(findings))


def examine(
    settings: Settings,
    seconds: float,
    file: Path | None = None,
    user: str | None = None,
    clocks: Timekeeper | None = None,
    load: Callable[[Settings], Scorer] = open_ensemble,
    machine: Machine = Machine(),
) -> list[Finding]:
    """All findings.

    Parameters
    ----------
    settings : of the deployment.
    seconds : how long to listen.
    file : audio to look at in place of the settings' source.
    user : the daemon's user; None chooses.
    clocks, load, machine : the machine's clocks, how the model is made, and where the machine tells about itself.
    """
    user = user or default_user()
    heard, sound = listen(settings, seconds, file or settings.source.file)
    return [
        *settings_findings(settings),
        *permission_findings(folders_of(settings), user, machine),
        *file_findings(settings, user),
        *disk_findings(read_disk(settings.output, machine), settings.retention),
        read_database_as(user, settings.output / DATABASE),
        *clock_findings(*read_clock(clocks or Clocks()), has_rtc=machine.rtc.exists()),
        *heat_findings(temperatures_c(machine.thermal), read_throttled(machine.throttled)),
        *model_findings(settings, load, *expected_shape(settings, sound), os.cpu_count() or 1, machine=machine),
        *[reach(sink) for sink in settings.sinks],
        *heard,
        *sound_findings(settings, sound),
    ]


def settings_findings(settings: Settings) -> Iterator[Finding]:
    """What the settings hold that is probably not meant."""
    found = [Finding("settings", WARNING, text, "see `orcawatch config show`") for text in oddities(settings)]
    yield from found or [Finding("settings", OK, "nothing odd")]


def sound_findings(settings: Settings, sound: Sound | None) -> Iterator[Finding]:
    """What is wrong with the audio, where there is any."""
    if sound is not None:
        hydrophones = settings.hydrophones if len(settings.hydrophones) == len(sound.channels) else ()
        yield from check_audio(sound.samples, sound.rate_hz, sound.channels, hydrophones, settings.adc_peak_v)


# The audio.


def listen(settings: Settings, seconds: float, file: Path | None) -> tuple[list[Finding], Sound | None]:
    """Some seconds of the source, and what its device or file gave away about itself."""
    try:
        if file is not None:
            return listen_to_file(settings, seconds, file)
        return listen_to_card(settings, seconds)
    except OrcawatchError as fault:
        return [Finding("source", FAULT, *halves(str(fault)))], None


def listen_to_file(settings: Settings, seconds: float, file: Path) -> tuple[list[Finding], Sound]:
    """The first seconds of a file."""
    source = FileSource(file)
    info, blocks, rows = source.info, [], 0
    for block in source.blocks():
        blocks.append(block.samples)
        rows += len(block.samples)
        if rows >= seconds * info.rate_hz:
            break
    sound = chosen(settings, np.concatenate(blocks)[: round(seconds * info.rate_hz)], info.rate_hz)
    about = f"{info.name}: {len(sound.samples) / info.rate_hz:.1f} s of {info.channels} channels at {info.rate_hz} Hz"
    return [Finding("source", OK, about)], sound


def chosen(settings: Settings, samples: Array, rate_hz: int) -> Sound:
    """The used channels; raises InputError where the settings do not fit the source."""
    check_hydrophones(settings, samples.shape[1])
    channels = chosen_channels(settings.channels, samples.shape[1])
    return Sound(np.ascontiguousarray(samples[:, list(channels)]), rate_hz, channels)


def listen_to_card(settings: Settings, seconds: float) -> tuple[list[Finding], Sound | None]:
    """Some seconds of the sound card, through the process that captures for the daemon, too."""
    log.info("listening for %g s", seconds)
    found, samples = capture(settings, seconds)
    findings = list(capture_findings(found, seconds, found.opened is None and service_runs()))
    if found.opened is None or not len(samples):
        return findings, None
    try:
        return findings, chosen(settings, samples, found.opened.rate_hz)
    except OrcawatchError as fault:
        return [*findings, Finding("settings", FAULT, *halves(str(fault)))], None


def capture(settings: Settings, seconds: float, command: Sequence[str] = COMMAND) -> tuple[Capture, Array]:
    """What came of capturing for some seconds, and the audio, shape (samples, channels)."""
    source = settings.source
    wanted = Wanted(
        source.device, source.hostapi, source.device_channels or needed_channels(settings), MOST_CHANNELS,
        source.rate_hz, source.sample_format, source.block_s, source.latency_s,
    )  # fmt: skip
    feed = Feed(command, lambda: asdict(wanted), lambda opened: None, seconds + START_S, source.stalled_s, 1e9, 1e9)
    feed.start()
    try:
        return gathered(feed, seconds)
    finally:
        feed.close()


def gathered(feed: Feed, seconds: float) -> tuple[Capture, Array]:
    """Events of a feed until there is enough audio, or no more comes."""
    opened: Opened | None = None
    chunks: list[Chunk] = []
    ended, until_s = "", time.monotonic() + seconds + START_S
    while not ended and (opened is None or rows_of(chunks) < seconds * opened.rate_hz) and time.monotonic() < until_s:
        event = feed.waiting.get(0.5)
        if isinstance(event, Opened):
            opened = event
        elif isinstance(event, Ended):
            ended = event.text
        elif event is not None:
            chunks.append(event)
    return account(opened, chunks, ended), audio(opened, chunks)


def rows_of(chunks: Sequence[Chunk]) -> int:
    """Samples of each channel."""
    return sum(chunk.rows for chunk in chunks)


def account(opened: Opened | None, chunks: Sequence[Chunk], ended: str) -> Capture:
    """What came, in figures."""
    if opened is None or not chunks:
        return Capture(opened, ended=ended)
    dropped = chunks[-1].end - chunks[0].first - rows_of(chunks)
    settled = [chunk for chunk in chunks if chunk.steady_s - chunks[0].steady_s >= 1]  # drivers begin with a jolt
    rate = fitted_rate([chunk.end for chunk in settled], [chunk.steady_s for chunk in settled])
    return Capture(
        opened,
        rows_of(chunks) / opened.rate_hz,
        sum(chunk.overrun for chunk in chunks),
        dropped / opened.rate_hz,
        ended,
        None if rate is None else rate[0],
        0.0 if rate is None else rate[1],
    )


def audio(opened: Opened | None, chunks: Sequence[Chunk]) -> Array:
    """The chunks' samples."""
    if opened is None or not chunks:
        return np.zeros((0, 1), np.float32)
    return np.concatenate([decoded(chunk.samples, opened.sample_format, chunk.rows) for chunk in chunks])


def service_runs() -> bool:
    """Whether systemd runs the service now."""
    if shutil.which("systemctl") is None:
        return False
    return subprocess.run(["systemctl", "is-active", "--quiet", SERVICE], check=False).returncode == 0


# The model.


def fall_back_findings(settings: Settings) -> Iterator[Finding]:
    """Installed bundles that are passed over for others."""
    with suppress(OrcawatchError):  # where none can be used, the next check says it
        found = in_force(settings)
        for fault in found.faults:
            cure = f"{found} scores in its place; install a whole one: orcawatch bundle install PATH"
            yield Finding("bundle", WARNING, fault, cure)


def model_findings(
    settings: Settings,
    load: Callable[[Settings], Scorer],
    rate_hz: int,
    channels: int,
    cores: int,
    timer: Callable[[], float] = time.perf_counter,
    machine: Machine = Machine(),
) -> Iterator[Finding]:
    """Whether the bundle is whole and computes, in what memory, and how fast it does that for so many channels.

    It is tried in another process first: it could end this one, and explains there, as otherwise only a detection does.
    """
    yield from fall_back_findings(settings)
    try:
        peak = try_out(in_force(settings).bundle.folder)
        ensemble = load(settings)
        silence = score_silence(ensemble)
    except OrcawatchError as fault:
        yield Finding("bundle", FAULT, *halves(str(fault)))
        return
    yield Finding("bundle", OK, f"{about(ensemble.bundle)}; silence scores {silence:.3f}")
    yield memory_finding(peak, read_memory_mb(machine.meminfo), settings.snapshots)
    try:
        share = share_of_real_time(ensemble, rate_hz, channels, timer)
    except OrcawatchError as fault:
        yield Finding("speed", FAULT, *halves(str(fault)))
        return
    yield speed_finding(share, channels, ensemble.bundle.hop_s, settings.threads, cores)


def about(bundle: Bundle) -> str:
    """A bundle in words."""
    return f"{bundle.name} ({bundle.digest[:12]}), {len(bundle.manifest['files'])} files fit their hashes"


def expected_shape(settings: Settings, sound: Sound | None) -> tuple[int, int]:
    """Rate and number of channels that will be scored: as heard, or as far as the settings tell."""
    if sound is not None:
        return sound.rate_hz, len(sound.channels)
    channels = len(settings.channels or settings.hydrophones) or settings.source.device_channels or 1
    return settings.source.rate_hz or USUAL_RATE_HZ, channels


def share_of_real_time(
    ensemble: Scorer, rate_hz: int, channels: int, timer: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that a second of audio costs at most: resampling, front ends, every network, for all channels."""
    detector = Detector(ensemble, rate_hz, channels, ensemble.bundle.hop_s)
    noise = np.random.default_rng(0).normal(0, 0.01, (rate_hz, channels)).astype(np.float32)
    with every_gate_open(ensemble):
        detector.push(AudioBlock(noise, 0))
        began_s, second = timer(), 1
        while second < 2 or timer() - began_s < SPEED_S:
            detector.push(AudioBlock(noise, second * rate_hz))
            second += 1
        return (timer() - began_s) / (second - 1)


# The machine.


def read_clock(clocks: Timekeeper) -> tuple[bool | None, Any]:
    """Whether the clock is synchronised, and what it says."""
    return clocks.synchronised(), clocks.utc()


def read_memory_mb(meminfo: Path) -> float:
    """The machine's memory, in MB of 10**6 bytes."""
    lines = meminfo.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:")) * 1024 / 1e6


def read_throttled(path: Path) -> int | None:
    """The flags of a Raspberry Pi's supply; None on other machines."""
    try:
        return int(path.read_text(), 16)
    except (OSError, ValueError):
        return None


def read_disk(output: Path, machine: Machine) -> Disk:
    """The disk under the output folder; a small file is written there and deleted."""
    place = standing(output)
    usage, room = shutil.disk_usage(place), os.statvfs(place)
    took_s, fault = timed_write(place)
    free = None if room.f_files == 0 else room.f_favail
    return Disk(place, kind_of(place, machine.mounts), usage.total / 1e6, usage.free / 1e6, free, took_s, fault)


def timed_write(folder: Path) -> tuple[float | None, str]:
    """How long a small file takes to reach the disk; None and why where it does not."""
    path, began_s = folder / f".orcawatch-doctor-{os.getpid()}", time.perf_counter()
    try:
        write_bytes(path, b"x" * 65536)
        path.unlink()
    except OSError as fault:
        return None, str(fault.strerror)
    return time.perf_counter() - began_s, ""


def kind_of(place: Path, mounts: Path) -> str:
    """Kind of the file system that a folder lies on."""
    rows = [line.split() for line in mounts.read_text().splitlines()]
    kinds = {Path(where.replace("\\040", " ")): kind for _, where, kind, *_ in rows}
    return next((kinds[folder] for folder in (place.resolve(), *place.resolve().parents) if folder in kinds), "")


def default_user() -> str:
    """The service's user for root where there is one, else the user who asks."""
    users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    if os.geteuid() == 0 and SERVICE in users:
        return SERVICE
    return next((name for name, uid in users.items() if uid == os.geteuid()), str(os.geteuid()))


def folders_of(settings: Settings) -> list[Path]:
    """The folders that the daemon writes to; those that are not there yet are made."""
    named = [getattr(sink, "folder", None) for sink in settings.sinks]
    return [settings.output, *[folder for folder in named if isinstance(folder, Path)]]


def permission_findings(folders: Sequence[Path], user: str, machine: Machine) -> Iterator[Finding]:
    """Whether the daemon's user may open the sound devices and write its folders."""
    person = find_person(user)
    if person is None:
        yield Finding("user", FAULT, f"there is no user {user}", "`orcawatch deploy install` makes the service's")
        return
    with acting_as(person):
        nodes = {str(node): os.access(node, os.R_OK | os.W_OK, effective_ids=True) for node in pcm(machine.sound)}
        faults = [timed_write(standing(folder))[1] for folder in folders]
    yield from user_findings(user, group_names(person.groups), nodes)
    yield from [folder_finding(user, standing(folder), fault) for folder, fault in zip(folders, faults)]


def file_findings(settings: Settings, user: str) -> Iterator[Finding]:
    """Whether the daemon's user may read the files that the settings name: secrets, certificates, the bundle."""
    named = {key: value for key, _, value in every_key(settings) if is_read(key) and isinstance(value, Path)}
    hidden = {key: path for key, path in named.items() if user == SERVICE and is_hidden(path)}
    with acting_as(find_person(user)):
        unread = {key: path for key, path in named.items() if not os.access(path, os.R_OK, effective_ids=True)}
    yield from [hidden_finding(key, path) for key, path in hidden.items()]
    yield from [unread_finding(user, key, path, path.exists()) for key, path in unread.items() if key not in hidden]
    if named and not unread and not hidden:
        yield Finding("files", OK, f"{user} may read {count(len(named), 'file')} that the settings name")


def is_read(key: str) -> bool:
    """Whether the daemon reads what a key names."""
    return key == "bundle" or key.endswith("_file")


def is_hidden(path: Path) -> bool:
    """Whether the service's sandbox hides a place."""
    return any(place in path.absolute().parents for place in HIDDEN)


def pcm(folder: Path) -> list[Path]:
    """The devices that record."""
    return sorted(folder.glob("pcm*c"))


def group_names(groups: Sequence[int]) -> list[str]:
    """Names of groups."""
    import grp

    return [entry.gr_name for entry in grp.getgrall() if entry.gr_gid in groups]


@dataclass(frozen=True)
class Person:
    """A user, by numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def find_person(user: str) -> Person | None:
    """The user of a name; None where there is none."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return Person(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(user, entry.pw_gid)))


@contextmanager
def acting_as(person: Person | None) -> Iterator[None]:
    """Access files as another user does, where root asks; else as oneself."""
    if os.geteuid() != 0 or person is None or person.uid == 0:
        yield
        return
    own, own_groups = os.getegid(), os.getgroups()
    os.setgroups(person.groups)
    os.setegid(person.gid)
    os.seteuid(person.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(own_groups)


def read_database_as(user: str, path: Path) -> Finding:
    """What the daemon's user finds in the database: beside one that is in use, SQLite may make a file of that user."""
    with acting_as(find_person(user)):
        return read_database(path)


def read_database(path: Path) -> Finding:
    """Integrity and schema of the database, which is only read."""
    if not path.exists():
        return database_finding(path, "", None, len(STEPS), 0)
    fault, schema, recovered = "", 0, 0
    try:
        with closing(sqlite3.connect(read_only(path), uri=True, timeout=ANSWER_S)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            fault = "" if found == "ok" else " ".join(str(found).split())
            schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
            recovered = rescues(connection) if schema >= len(STEPS) else 0
    except sqlite3.Error as trouble:
        fault = str(trouble)
    return database_finding(path, fault or torn_log(path), schema, len(STEPS), recovered)


def torn_log(path: Path) -> str:
    """What SQLite passes over in silence: commits behind a damaged page of the write-ahead log; empty for none."""
    for _ in range(2):  # a daemon may be writing
        content = write_ahead_of(path)
        if len(content) <= pages.HEAD_B or not pages.write_ahead(content).broken:
            return ""
        time.sleep(SETTLE_S)
    return "its write-ahead log is damaged"


def read_only(path: Path) -> str:
    """How SQLite is told to change nothing; without a write-ahead log it makes none."""
    how = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    return f"{path.absolute().as_uri()}?{how}"


def rescues(connection: sqlite3.Connection) -> int:
    """How often the database was damaged and rescued."""
    return int(connection.execute("SELECT count(*) FROM recoveries").fetchone()[0])


# The sinks.


def reach(sink: SinkSettings) -> Finding:
    """Whether a sink's far side takes a connection; nothing is sent."""
    place = far_side(sink)
    if place is None:
        return Finding("sink", OK, f"{sink.queue}: kind {sink.kind} needs no network")
    try:
        socket.create_connection(place, ANSWER_S).close()
    except OSError as fault:
        return sink_finding(sink.queue, f"{place[0]}:{place[1]}", fault.strerror or str(fault))
    return sink_finding(sink.queue, f"{place[0]}:{place[1]}", "")


def far_side(sink: Any) -> tuple[str, int] | None:
    """Host and port of a sink that has the keys `host` and `port`, or `url`; None for others."""
    if hasattr(sink, "url"):
        address = urlsplit(sink.url)
        return address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    if hasattr(sink, "host"):
        return sink.host, sink.port or (8883 if getattr(sink, "tls", False) else 1883)
    return None
