"""What the doctor says of which fault: `python benchmarks/doctor.py > docs/doctor.md` (as root).

Seeds every fault, one at a time, in files, folders, file systems, users and clocks, asks the doctor, and prints a
table. Some faults need root: a full disk, one that is read-only, another user's rights.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from orcawatch.attempt import Peak
from orcawatch.bundle import SHIPPED, Bundle, load_bundle
from orcawatch.checks import capture_findings, clock_findings, disk_findings, heat_findings, memory_finding
from orcawatch.config import HydrophoneSettings, RetentionSettings, Settings, SinkSettings
from orcawatch.daemon import DATABASE, open_ensemble
from orcawatch.doctor import (
    Machine,
    account,
    file_findings,
    listen,
    model_findings,
    permission_findings,
    reach,
    read_database,
    read_disk,
    read_throttled,
    settings_findings,
    sound_findings,
)
from orcawatch.feed import Chunk
from orcawatch.findings import Finding
from orcawatch.keys import path
from orcawatch.records import Window, WindowScore
from orcawatch.schema import STEPS
from orcawatch.sinks import temperatures_c
from orcawatch.soundcard import CaptureError, Device, Opened, chosen
from orcawatch.store import Store

Array = NDArray[np.float32]

RATE_HZ = 16000
SECONDS = 6
SQUARE_M = ((0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (2.0, 2.0, 0.0), (0.0, 2.0, 0.0))


def array(scale: float) -> tuple[HydrophoneSettings, ...]:
    """The square's hydrophones, so many times as far apart."""
    return tuple(
        HydrophoneSettings(f"H{index}", position_m=(scale * east, scale * north, scale * up))
        for index, (east, north, up) in enumerate(SQUARE_M)
    )


HYDROPHONES = array(1)
SETTINGS = Settings(hydrophones=HYDROPHONES)
BEARINGS = (20, 75, 130, 200, 250, 290, 330, 350)
NOBODY = "nobody"


@dataclass(frozen=True)
class Seed:
    """A fault that is made on purpose.

    Attributes
    ----------
    fault : what was done.
    check, level : the finding that must come of it.
    ask : makes the fault in a folder and asks the doctor.
    as_root : whether only root can make it, and only where it may mount.
    """

    fault: str
    check: str
    level: str
    ask: Callable[[Path], Sequence[Finding]]
    as_root: bool = False


def sea(seed: int = 0) -> Array:
    """Six seconds of a quiet sea on four hydrophones: noise of their own, and eight clicks as plane waves."""
    draw = np.random.default_rng(seed)
    samples = draw.normal(0, 1e-3, (SECONDS * RATE_HZ, 4))
    click = draw.normal(0, 0.2, 200) * np.hanning(200)
    for number, bearing_deg in enumerate(BEARINGS):
        first = round((0.35 + 0.7 * number) * RATE_HZ)
        for channel, delay in enumerate(plane_wave(bearing_deg)):
            samples[first : first + 1024, channel] += delayed(click, delay)
    return np.asarray(samples, np.float32)


def plane_wave(bearing_deg: float) -> Array:
    """Delays of a wave that comes from a bearing, in samples after the first."""
    towards = -np.array([np.sin(np.radians(bearing_deg)), np.cos(np.radians(bearing_deg)), 0])
    delays = np.array(SQUARE_M) @ towards / 1500 * RATE_HZ
    return np.asarray(delays - delays.min())


def delayed(click: Any, delay: float) -> Any:
    """A click in 1024 samples, so many samples later."""
    spectrum = np.fft.rfft(click, 1024)
    return np.fft.irfft(spectrum * np.exp(-2j * np.pi * np.arange(513) / 1024 * delay), 1024)


def heard(change: Callable[[Array], Array], settings: Settings = SETTINGS, subtype: str = "PCM_24") -> Any:
    """Asks about a file that holds the sea with a change."""

    def ask(folder: Path) -> list[Finding]:
        soundfile.write(folder / "sea.wav", change(sea()), RATE_HZ, subtype)
        return listened(folder / "sea.wav", settings)

    return ask


def listened(file: Path, settings: Settings) -> list[Finding]:
    """What the doctor says of a file's sound: `orcawatch doctor --input FILE`."""
    findings, sound = listen(settings, SECONDS, file)
    return [*findings, *sound_findings(settings, sound)]


def column(channel: int, change: Callable[[Array], Any]) -> Callable[[Array], Array]:
    """A change of one channel."""

    def changed(samples: Array) -> Array:
        samples[:, channel] = change(samples[:, channel])
        return samples

    return changed


def converter_noise(samples: Array) -> Array:
    """What an open 24-bit input gives: its lowest bits."""
    draw = np.random.default_rng(1)
    return np.asarray(draw.integers(-2, 3, len(samples)) / 2**23, np.float32)


def with_hum(samples: Array) -> Array:
    """Mains at 50 Hz with its odd multiples."""
    seconds = np.arange(len(samples)) / RATE_HZ
    hum = sum(np.sin(2 * np.pi * 50 * k * seconds) / k for k in (1, 3, 5))
    return np.asarray(samples + 1e-3 * hum, np.float32)


def overdriven(samples: Array) -> Array:
    """An amplifier that can give a tenth of full scale at most."""
    return np.clip(60 * samples, -0.1, 0.1)


def burst(samples: Array, channel: int) -> Array:
    """Half a second that is not a number."""
    samples[RATE_HZ : RATE_HZ * 3 // 2, channel] = np.nan
    return samples


def one_clip(samples: Array) -> Array:
    """A single click that does not fit."""
    samples[5000:5008, 1] = 2.0
    return samples


def copied(samples: Array) -> Array:
    """Channel 3 is wired to the input of channel 1, with half of its gain."""
    samples[:, 3] = 0.5 * samples[:, 1] + 1e-6 * samples[:, 3]
    return samples


def text_file(folder: Path) -> list[Finding]:
    """A file that is no audio."""
    (folder / "sea.wav").write_text("no audio")
    return listened(folder / "sea.wav", SETTINGS)


CARD = Opened("UMC404HD 192k: USB Audio (hw:1,0)", "ALSA", 48000, 4, "int32", 0.5)
DEVICES = (Device(0, CARD.name, "ALSA", 4, 48000), Device(1, "bcm2835 Headphones: - (hw:0,0)", "ALSA", 2, 44100))
BLOCK = 4800
PULLED_OUT = f"{CARD.name!r} ended its stream: was it pulled out?"


def no_device(name: str, devices: Sequence[Device]) -> Callable[[Path], list[Finding]]:
    """Asks for a device among others."""

    def ask(folder: Path) -> list[Finding]:
        try:
            raise AssertionError(f"{chosen(devices, 0, name, None)} must not be found")
        except CaptureError as fault:
            return list(capture_findings(account(None, [], str(fault)), 10, service_runs=False))

    return ask


def card(chunks: Sequence[Chunk], ended: str = "") -> Callable[[Path], list[Finding]]:
    """Asks about a card that gave these blocks in ten seconds."""
    return lambda folder: list(capture_findings(account(CARD, chunks, ended), 10, service_runs=False))


def blocks(number: int = 100, block_s: float = 0.1) -> list[Chunk]:
    """Blocks as a good card gives them, one each `block_s` by the steady clock, up to 2 ms late."""
    late_s = np.random.default_rng(2).uniform(0, 0.002, number)
    return [
        Chunk(BLOCK * index, BLOCK, False, 100 + block_s * (index + 1) + float(late_s[index]), 0, b"")
        for index in range(number)
    ]


def with_overruns() -> list[Chunk]:
    """Three overruns, and two blocks for which the capture process had no room."""
    chunks = [replace(chunk, overrun=index in (20, 50, 80)) for index, chunk in enumerate(blocks())]
    return [*chunks[:60], *chunks[62:]]


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def disk(options: str, prepare: Callable[[Path], object] = lambda place: None) -> Callable[[Path], list[Finding]]:
    """Asks about a disk."""

    def ask(folder: Path) -> list[Finding]:
        with small_disk(folder, options) as place:
            prepare(place)
            return list(disk_findings(read_disk(place, Machine()), RetentionSettings(min_free_mb=100, reserve_mb=16)))

    return ask


def fill(place: Path) -> None:
    """Fill a disk to its last byte."""
    try:
        with (place / "filler").open("wb") as file:
            while True:
                file.write(b"x" * (1 << 20))
                file.flush()
    except OSError:
        return


def fill_partly(place: Path) -> None:
    """Put 50 MB on a disk."""
    (place / "filler").write_bytes(b"x" * 50_000_000)


def make_read_only(place: Path) -> None:
    """What the kernel does to a disk that fails."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def locked_folder(folder: Path) -> list[Finding]:
    """An output folder of root's."""
    folder.chmod(0o755)
    (folder / "out").mkdir(mode=0o755)
    return list(permission_findings([folder / "out"], NOBODY, Machine(sound=folder / "none")))


def locked_card(folder: Path) -> list[Finding]:
    """A sound device that only the group audio may open."""
    folder.chmod(0o777)
    (folder / "pcmC1D0c").touch()
    shutil.chown(folder / "pcmC1D0c", 0, "audio")
    (folder / "pcmC1D0c").chmod(0o660)
    return list(permission_findings([folder], NOBODY, Machine(sound=folder)))


class Slow:
    """An ensemble whose every window takes its time, by a clock of its own."""

    def __init__(self, bundle: Bundle, window_s: float) -> None:
        self.bundle = bundle
        self.cascade = bundle.cascade
        self.spent_s = 0.0
        self._window_s = window_s

    def score(
        self, window: Window, columns: Sequence[int] | None = None, vote: Sequence[str] | None = None
    ) -> WindowScore:
        """Some score."""
        channels = np.zeros(len(next(iter(window.rows.values()))), np.float32)
        self.spent_s += self._window_s
        return WindowScore(window.start_sample, window.end_sample, channels[:, None], channels, 0.0)

    def explain(self, windows: Sequence[Window], channel: int) -> list[dict[str, tuple[Array, Array]]]:
        """Nothing."""
        return []


def slow(window_s: float) -> Callable[[Path], list[Finding]]:
    """Asks about a model that needs so long for a window of four channels."""

    def ask(folder: Path) -> list[Finding]:
        ensemble = Slow(load_bundle(SHIPPED), window_s)
        found = model_findings(SETTINGS, lambda settings: ensemble, RATE_HZ, 4, 4, lambda: ensemble.spent_s)
        return list(found)

    return ask


def bundle(change: Callable[[Path], object], **changes: Any) -> Callable[[Path], list[Finding]]:
    """Asks about the shipped bundle with a change."""

    def ask(folder: Path) -> list[Finding]:
        shutil.copytree(SHIPPED, folder / "bundle")
        change(folder / "bundle")
        settings = replace(SETTINGS, bundle=folder / "bundle", **changes)
        return list(model_findings(settings, open_ensemble, RATE_HZ, 4, 4))

    return ask


def flip(folder: Path) -> None:
    """Change one byte of a network."""
    content = bytearray(network(folder).read_bytes())
    content[100000] ^= 0xFF
    network(folder).write_bytes(content)


def edit_manifest(folder: Path) -> None:
    """Somebody changes a threshold by hand."""
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"start": 0.', '"start": 0.9'))


def network(folder: Path) -> Path:
    """A file of a bundle."""
    return min(folder.glob("*.tflite"))


class Stopped:
    """Clocks that say what they are told."""

    boot = "seeded"

    def __init__(self, synchronised: bool | None, utc: datetime) -> None:
        self._synchronised, self._utc = synchronised, utc

    def steady_s(self) -> float:
        """Nothing moves."""
        return 0.0

    def suspended_s(self) -> float:
        """Never."""
        return 0.0

    def utc(self) -> datetime:
        """As told."""
        return self._utc

    def synchronised(self) -> bool | None:
        """As told."""
        return self._synchronised


def clock(synchronised: bool | None, year: int = 2027, has_rtc: bool = True) -> Callable[[Path], list[Finding]]:
    """Asks about a clock."""
    clocks = Stopped(synchronised, datetime(year, 5, 1, 12, tzinfo=timezone.utc))
    return lambda folder: list(clock_findings(clocks.synchronised(), clocks.utc(), has_rtc))


def heat(millidegrees: int, throttled: int) -> Callable[[Path], list[Finding]]:
    """Asks about a machine that tells this."""

    def ask(folder: Path) -> list[Finding]:
        zone = folder / "thermal_zone0"
        zone.mkdir()
        (zone / "type").write_text("cpu-thermal\n")
        (zone / "temp").write_text(f"{millidegrees}\n")
        (folder / "get_throttled").write_text(f"{throttled:x}\n")
        return list(heat_findings(temperatures_c(folder), read_throttled(folder / "get_throttled")))

    return ask


def database(change: Callable[[Path], object]) -> Callable[[Path], list[Finding]]:
    """Asks about a database with a change."""

    def ask(folder: Path) -> list[Finding]:
        Store(folder / DATABASE).close()
        change(folder / DATABASE)
        return [read_database(folder / DATABASE)]

    return ask


def overwrite_page(path: Path) -> None:
    """What a failing disk does to the second page."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096)


def execute(path: Path, statement: str) -> None:
    """Run one statement."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


RESCUED = "INSERT INTO recoveries VALUES (1, '2027-05-01T12:00:00+00:00', 'damaged', 'x', '{}', '{}')"


@dataclass(frozen=True)
class Uplink(SinkSettings):
    """A sink on this machine that nobody serves."""

    host: str = "127.0.0.1"
    port: int = 1
    secret_file: Path | None = path(None, "What it reads.", "none")  # noqa: RUF009


def locked_file(folder: Path) -> list[Finding]:
    """A password that only root can read."""
    folder.chmod(0o755)
    (folder / "mqtt-password").touch(mode=0o600)
    return list(file_findings(Settings(sinks=(Uplink(kind="mqtt", secret_file=folder / "mqtt-password"),)), NOBODY))


SILENT = np.zeros((SECONDS * RATE_HZ, 4), np.float32)
SEEDS = (
    Seed("none: a quiet sea on four hydrophones, eight clicks", "order", "ok", heard(lambda x: x)),
    Seed("channel 2 muted", "level", "fault", heard(column(2, lambda x: 0 * x))),
    Seed("nothing plugged in: all channels silent", "level", "fault", heard(lambda x: SILENT)),
    Seed("channel 1: hydrophone torn off, converter noise only", "level", "fault", heard(column(1, converter_noise))),
    Seed("channel 3: 30 dB less, a corroded plug", "level", "warning", heard(column(3, lambda x: 0.03 * x))),
    Seed("gain 60 dB too low for 16 bits", "gain", "warning", heard(lambda x: x * np.float32(1e-3), subtype="PCM_16")),
    Seed("channel 0: gain 40 dB too high", "clipping", "fault", heard(column(0, lambda x: np.clip(1000 * x, -1, 1)))),
    Seed("channel 1: eight samples at full scale", "clipping", "warning", heard(one_clip)),
    Seed("channel 2: amplifier overdriven, below full scale", "clipping", "warning", heard(column(2, overdriven))),
    Seed("channel 0: DC of 5 % of full scale", "offset", "warning", heard(column(0, lambda x: x + 0.05))),
    Seed("channel 2: hum of a charger, 50 Hz", "hum", "warning", heard(column(2, with_hum))),
    Seed("channel 3: half a second not a number", "samples", "fault", heard(lambda x: burst(x, 3), subtype="FLOAT")),
    Seed("channels 0 and 2 on one input", "copies", "fault", heard(lambda x: x[:, [0, 1, 0, 3]])),
    Seed("channel 3 a copy of 1 at half the gain", "copies", "fault", heard(copied)),
    Seed("channels 1 and 2 exchanged", "order", "warning", heard(lambda x: x[:, [0, 2, 1, 3]])),
    Seed("positions ten times too small", "order", "warning", heard(lambda x: x, Settings(hydrophones=array(0.1)))),
    Seed("no positions given", "order", "skipped", heard(lambda x: x, Settings())),
    Seed("`channels: [0, 5]` of four", "source", "fault", heard(lambda x: x, Settings(channels=(0, 5)))),
    Seed("three hydrophones for four channels", "source", "fault", heard(
        lambda x: x, Settings(hydrophones=HYDROPHONES[:3]))),
    Seed("a file of half a second", "sound", "fault", heard(lambda x: x[: RATE_HZ // 2])),
    Seed("a file that is no audio", "source", "fault", text_file),
    Seed("one serial number given twice", "settings", "warning", lambda folder: list(settings_findings(
        Settings(output=folder, hydrophones=(HYDROPHONES[0], HYDROPHONES[0]))))),
    Seed("device misspelt", "device", "fault", no_device("UMC440HD", DEVICES)),
    Seed("no sound card plugged in", "device", "fault", no_device("UMC404HD", ())),
    Seed("two cards of one name", "device", "fault", no_device("UMC404HD", (DEVICES[0], replace(DEVICES[0], index=2)))),
    Seed("none: 10 s of a good card", "capture", "ok", card(blocks())),
    Seed("card pulled out after 3 s", "capture", "fault", card(blocks(30), PULLED_OUT)),
    Seed("three overruns, 0.2 s dropped", "capture", "warning", card(with_overruns())),
    Seed("card stalls: 2.5 s in 10 s", "capture", "fault", card(blocks(25))),
    Seed("none: a crystal 40 ppm fast", "rate", "ok", card(blocks(block_s=0.1 / 1.00004))),
    Seed("a crystal 600 ppm slow", "rate", "warning", card(blocks(block_s=0.1 * 1.0006))),
    Seed("card runs at 44100 Hz and says 48000", "rate", "fault", card(blocks(block_s=4800 / 44100))),
    Seed("clock not synchronised", "clock", "warning", clock(False)),
    Seed("clock of which nothing is known", "clock", "warning", clock(None)),
    Seed("clock never set", "clock", "fault", clock(False, 1970)),
    Seed("no RTC", "rtc", "warning", clock(True, has_rtc=False)),
    Seed("disk full", "disk", "fault", disk("size=200m", fill), as_root=True),
    Seed("disk turned read-only", "disk", "fault", disk("size=400m", make_read_only), as_root=True),
    Seed("disk too small for what `retention` keeps free", "room", "fault", disk("size=128m"), as_root=True),
    Seed("disk nearly full", "room", "warning", disk("size=220m", fill_partly), as_root=True),
    Seed("disk without free inodes", "room", "fault", disk("size=400m,nr_inodes=100"), as_root=True),
    Seed("`output` in memory", "disk", "warning", disk("size=400m"), as_root=True),
    Seed("output folder of root, daemon of another user", "folder", "fault", locked_folder, as_root=True),
    Seed("sound device of group audio, user not in it", "user", "fault", locked_card, as_root=True),
    Seed("password file of a sink is root's", "files", "fault", locked_file, as_root=True),
    Seed("certificate of a sink is not there", "files", "fault", lambda folder: list(file_findings(
        Settings(sinks=(Uplink(kind="mqtt", secret_file=folder / "ca.pem"),)), "root"))),
    Seed("bundle in a home folder, which the service does not see", "files", "fault", lambda folder: list(file_findings(
        Settings(bundle=Path("/home/me/bundle")), "orcawatch"))),
    Seed("no such user", "user", "fault", lambda folder: list(permission_findings([folder], "orcwatch", Machine()))),
    Seed("bundle: one byte of a network changed", "bundle", "fault", bundle(flip)),
    Seed("bundle: manifest edited", "bundle", "fault", bundle(edit_manifest)),
    Seed("bundle: a file missing", "bundle", "fault", bundle(lambda folder: network(folder).unlink())),
    Seed("bundle: no such folder", "bundle", "fault", bundle(shutil.rmtree)),
    Seed("stop_threshold above the bundle's start", "bundle", "fault", bundle(str, stop_threshold=0.99)),
    Seed("model: 0.35 s a window, hop 0.48 s", "speed", "warning", slow(0.35)),
    Seed("model: 1 s a window, hop 0.48 s", "speed", "fault", slow(1.0)),
    Seed("model: 300 MB to score, 1200 MB to explain, a machine of 1000 MB", "memory", "fault",
         lambda folder: [memory_finding(Peak(300, 1200), 1000, snapshots=True)]),
    Seed("processor at 84 C", "heat", "warning", heat(84000, 0)),
    Seed("supply sags now", "power", "fault", heat(50000, 0x50005)),
    Seed("supply sagged before", "power", "warning", heat(50000, 0x50000)),
    Seed("database: a page overwritten", "database", "fault", database(overwrite_page)),
    Seed("database: cut short", "database", "fault", database(lambda file: os.truncate(file, 10000))),
    Seed("database: of a newer version", "database", "fault", database(
        lambda file: execute(file, f"PRAGMA user_version = {len(STEPS) + 1}"))),
    Seed("database: rescued once", "database", "warning", database(lambda file: execute(file, RESCUED))),
    Seed("broker does not listen", "sink", "warning", lambda folder: [reach(Uplink(kind="mqtt"))]),
)  # fmt: skip

HEAD = """# What the doctor says

`orcawatch doctor --config FILE` looks at the settings, the daemon's user and its rights, the disk, the database, the
clock, heat and supply, the bundle, its memory and its speed, the sinks (a connection is opened, nothing is sent), the
sound card, and ten seconds of its sound. `--input FILE` looks at the sound of a file instead, `--seconds` listens
longer, `--user` asks for the rights of another user (root only), `--json` prints for programs. A sound card has room
for one: stop the service first. Time zones do not matter: everything is in UTC.

| exit code | |
|---|---|
| 0 | nothing is wrong |
| 4 | warnings: it works, but not as it should, or not for long |
| 5 | faults: it will not do what it is for |
| 1 | the doctor itself failed |
| 2 | the settings are wrong (`orcawatch config check` says the same), or usage |

`skipped` means that something could not be looked at, and does not count.

**Exchanged channels** are a hint only. The loudest tenths of a second are taken, the delays between all pairs of
channels from the correlation of their whitened signals, and only those with one clear peak. With `position_m` of every
hydrophone these delays must be those of a plane wave: no longer than sound takes between two hydrophones, and, from
four on, consistent. Where they are not but would be with two channels exchanged, these are named; more than one pair
may explain the same delays. Sounds must be sharp (claps, clicks, a ship's knocking) and come from further away than
the array is wide. An exchange that mirrors the array, as that of opposite corners of a square, cannot be told.
Proof is a tap on one hydrophone after the other: `loudest` says when each channel was loudest.

## Seeded faults

Each fault was made, and the doctor asked (`python benchmarks/doctor.py > docs/doctor.md`).

| fault | finding | what was found | cure |
|---|---|---|---|
"""


def row(seed: Seed, folder: Path) -> str:
    """A line of the table; raises AssertionError where the doctor misses the fault."""
    found = [finding for finding in seed.ask(folder) if finding.check == seed.check]
    matching = [finding for finding in found if finding.level == seed.level]
    if not matching:
        raise AssertionError(f"{seed.fault}: no {seed.level} about {seed.check} in {found}")
    texts = [(finding.found.replace(str(folder), "/data"), finding.cure) for finding in matching]
    found_text, cure = "; ".join(found for found, _ in texts), texts[0][1]
    return f"| {seed.fault} | {seed.level}: {seed.check} | {cell(found_text)} | {cell(cure)} |"


def cell(text: str) -> str:
    """Text that stands in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def is_able() -> bool:
    """Whether this process can make every fault: root, outside of a container that may not mount."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if tried.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return tried.returncode == 0


def page(able: bool) -> str:
    """The page; faults that this process cannot make are left out."""
    rows = []
    for seed in SEEDS:
        if able or not seed.as_root:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(row(seed, Path(folder)))
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page(is_able()))
