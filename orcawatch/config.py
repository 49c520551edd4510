"""Settings: one YAML file, checked whole, into frozen dataclasses.

Each key is defined once, as a field below (see `keys`). The checks and `docs/configuration.md`
(`orcawatch config show --reference > docs/configuration.md`) come from these definitions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .keys import (
    build,
    channel_list,
    choice,
    joined,
    number,
    path,
    paths,
    plugins,
    position,
    reference,
    section,
    sections,
    several,
    switch,
    text,
    whole,
)

if TYPE_CHECKING:
    from .bundle import Bundle

log = logging.getLogger(__name__)

OUTPUT = Path("orcawatch-out")
SINKS = "orcawatch.sinks"  # entry-point group; each entry is a class with a `Settings` dataclass
MESSAGES = ("detection", "thumbnail", "effort", "heartbeat", "clock")

# ruff: noqa: RUF009


@dataclass(frozen=True)
class SourceSettings:
    """Where the audio comes from: a file, or a sound card."""

    file: Path | None = path(None, "The audio file to listen to.", "none; `--input` gives it")
    realtime: bool = switch(False, "Play the file at its own speed, as a live stream, instead of as fast as possible.")
    device: str | None = text(
        None, "Name of the sound card, or a part of it that no other has (`orcawatch devices`).", "the system's default"
    )
    hostapi: str | None = text(None, "Name of the sound system that offers the device.", "any")
    device_channels: int | None = whole(
        None, 1, 256, "Channels to open.", "as many as `hydrophones` or `channels` need, else all, at most 8"
    )
    rate_hz: int | None = whole(
        None, 1000, 1000000, "Samples per second of each channel.", "the device's default", unit="Hz"
    )
    sample_format: str = choice(
        "float32", ("int16", "int24", "int32", "float32"), "What the card is asked for; less is less to carry."
    )
    block_s: float = number(0.1, 0.005, 2, "s", "Length of the blocks in which audio comes.")
    latency_s: float = number(0.5, 0.01, 10, "s", "Audio that the card's driver is asked to buffer.")
    stalled_s: float = number(5, 1, 30, "s", "A card that gives nothing for so long is closed and opened again.")
    retry_least_s: float = number(1, 0.1, 60, "s", "First wait before a card that is absent is tried again.")
    retry_most_s: float = number(60, 1, 3600, "s", "The wait doubles up to this.")

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        yield from ordered(self, where, "retry_least_s", "retry_most_s")
        if self.file is not None and self.device is not None:
            yield f"{joined(where, 'file')} and {joined(where, 'device')} are both given; keep one"


@dataclass(frozen=True)
class HydrophoneSettings:
    """One hydrophone, in the order of `channels`."""

    serial: str = text("", "Serial number; it stands in every record.")
    sensitivity_db: float | None = number(None, -260, -60, "dB re 1 V/uPa", "Receiving sensitivity.", "unknown")
    gain_db: float = number(0.0, -100, 200, "dB", "Gain of the amplifiers between hydrophone and converter.")
    position_m: tuple[float, float, float] | None = position(
        "Place: metres east, north and up from any common point; bearings come of them.", "unknown"
    )


@dataclass(frozen=True)
class FileSettings:
    """Times of recordings, from their GUANO metadata or their names."""

    timezone: str | None = text(
        None, "Zone of time stamps that do not name one, as `UTC`, `Europe/Oslo` or `-08:00`.",
        "unknown: such stamps give no time",
    )  # fmt: skip
    time_format: str | None = text(
        None, "Where the stamp stands in a file's name, as `SITE_%y%m%d-%H%M%S`.", "the usual ones are tried"
    )

    def crossed(self, where: str) -> Iterator[str]:
        """Faults of the values."""
        from .times import faults

        yield from (f"{joined(where, key)} {fault}" for key, fault in faults(self.timezone, self.time_format))


@dataclass(frozen=True)
class WebSettings:
    """The review page, `orcawatch serve`."""

    address: str = text("127.0.0.1", "Address to serve it on; any but this machine's own needs a token.")
    port: int = whole(8765, 1, 65535, "TCP port.")
    token_file: Path | None = path(
        None, "File with the token that verdicts, and other addresses, need.", "made in the output folder"
    )


@dataclass(frozen=True)
class LevelSettings:
    """Sound levels of each hydrophone, logged all the time."""

    every_s: float = number(60, 1, 3600, "s", "Length of the stretches over which a level is taken.")


@dataclass(frozen=True)
class EventSettings:
    """How scored windows become detections."""

    merge_gap_s: float = number(1.0, 0, 60, "s", "Events no further apart than this become one.", reload=True)
    min_duration_s: float = number(0.0, 0, 60, "s", "Shorter events are dropped.", reload=True)
    max_duration_s: float = number(30.0, 1, 300, "s", "An event that has grown to this length is closed.", reload=True)

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        yield from ordered(self, where, "min_duration_s", "max_duration_s")


@dataclass(frozen=True)
class ClipSettings:
    """The audio clip of each detection: the chosen channels at their own rate."""

    pre_roll_s: float = number(2.0, 0, 60, "s", "Audio kept before the event.", reload=True)
    post_roll_s: float = number(2.0, 0, 60, "s", "Audio kept after the event.", reload=True)
    format: str = choice("flac", ("flac", "wav"), "Kind of file, both of 24 bits with GUANO metadata.", reload=True)


@dataclass(frozen=True)
class DutySettings:
    """When to listen. Without these keys: always."""

    on_s: float | None = number(None, 1, 86400, "s", "Listen for so long,", "always on", reload=True)
    every_s: float | None = number(
        None, 1, 86400, "s", "out of each so long, counted from 00:00 UTC.", "always on", reload=True
    )

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        yield from ordered(self, where, "on_s", "every_s")
        if (self.on_s is None) != (self.every_s is None):
            yield f"{joined(where, 'on_s')} and {joined(where, 'every_s')} go together; give both or none"


@dataclass(frozen=True)
class OverloadSettings:
    """What a live stream does when scoring falls behind: see docs/overload.md."""

    queue_s: float = number(30, 2, 600, "s", "Audio that may wait to be scored; what does not fit is shed.")
    step_up_s: float = number(5, 0.5, 300, "s", "Backlog at which the next step of the ladder is taken.", reload=True)
    recover_s: float = number(60, 1, 3600, "s", "Time without backlog after which a step is undone.", reload=True)
    steps: tuple[str, ...] = several(
        ("hop", "channels", "members"),
        ("hop", "channels", "members"),
        "Steps that are allowed: a longer hop, fewer channels, cheaper members.",
    )

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        yield from ordered(self, where, "step_up_s", "queue_s")


@dataclass(frozen=True)
class LedgerSettings:
    """The account of every second."""

    checkpoint_s: float = number(30, 1, 3600, "s", "How often it is written; a power cut loses no more of it.")


@dataclass(frozen=True)
class RetentionSettings:
    """When clips and snapshots are deleted to make room. Detections and the ledger never are."""

    max_age_days: float | None = number(None, 0.01, 36500, "days", "Older ones go.", "no limit", reload=True)
    max_clips_mb: float | None = number(None, 1, 1e9, "MB", "Together no more than this.", "no limit", reload=True)
    min_free_mb: float = number(500, 0, 1e9, "MB", "So much of the disk stays free.", reload=True)
    reserve_mb: float = number(16, 0, 10000, "MB", "Room on the disk that only the log may use when it is full.")
    sweep_s: float = number(600, 1, 86400, "s", "How often this is looked after.", reload=True)


@dataclass(frozen=True)
class BundleSettings:
    """Whose bundles may score, beside the one that comes with orcawatch: see docs/bundles.md."""

    trusted_keys: tuple[Path, ...] = paths(
        "Public keys (`orcawatch bundle keygen`); a bundle must be signed with one of them.", reload=True
    )
    require_signature: bool | None = switch(
        None, "Refuse others; `false` only logs them, until all are signed.", "true where `trusted_keys` are given",
        reload=True,
    )  # fmt: skip

    @property
    def required(self) -> bool:
        """Whether a bundle that no trusted key has signed is refused."""
        return bool(self.trusted_keys) and self.require_signature is not False

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        if self.require_signature and not self.trusted_keys:
            keys = joined(where, "trusted_keys")
            yield f"{joined(where, 'require_signature')} needs {keys}: name the public file of at least one key"


@dataclass(frozen=True)
class ClockSettings:
    """The system clock."""

    jump_s: float = number(0.5, 0.05, 60, "s", "A step of the clock beyond this is entered in the ledger as a jump.")


@dataclass(frozen=True)
class MetricsSettings:
    """Figures for Prometheus."""

    port: int | None = whole(None, 1, 65535, "TCP port to serve them on.", "not served")
    address: str = text("127.0.0.1", "Address to serve them on; 0.0.0.0 for all.")


@dataclass(frozen=True)
class SinkSettings:
    """Keys of every sink."""

    kind: str = text("", "Which kind of sink.")
    name: str = text("", "Name of its queue; the kind where it is empty. Two sinks of one kind need names.")
    send: tuple[str, ...] = several(MESSAGES, MESSAGES, "Which messages to send.")
    bytes_per_hour: int | None = whole(None, 100, 10**12, "Most that is sent in an hour.", "no limit", unit="bytes")
    max_mb: float = number(
        64, 1, 100000, "MB", "Messages that may wait; beyond it the oldest thumbnails go, then heartbeats, then effort."
    )

    @property
    def queue(self) -> str:
        """Name of the queue."""
        return self.name or self.kind


def sink_kinds() -> Mapping[str, type[Any]]:
    """Settings classes of the installed sinks, by kind."""
    from .plugin import entry_points

    return {name: entry.load().Settings for name, entry in sorted(entry_points(SINKS).items())}


@dataclass(frozen=True)
class Settings:
    """Everything that an operator can choose. What is left out keeps its default."""

    station: str = text("", "Name of the station, written with every detection.")
    source: SourceSettings = section(SourceSettings)
    bundle: Path | None = path(
        None, "The folder of the bundle: the trained detector.", "the installed one, else the shipped one"
    )
    bundles: BundleSettings = section(BundleSettings)
    output: Path = path(OUTPUT, "The folder for the database, clips and snapshots; it is made where it is missing.")
    channels: tuple[int, ...] | None = channel_list(
        "The source's channels to use, from 0, in this order. Others are not heard.", "all"
    )
    hydrophones: tuple[HydrophoneSettings, ...] = sections(
        HydrophoneSettings, "The hydrophones behind the used channels, in the order of `channels`; none means unknown."
    )
    latitude_deg: float | None = number(None, -90, 90, "degrees north", "Where the station is (WGS 84).", "unknown")
    longitude_deg: float | None = number(None, -180, 180, "degrees east", "Where the station is (WGS 84).", "unknown")
    sound_speed_m_s: float = number(1480, 1300, 1700, "m/s", "Speed of sound in the water; bearings depend on it.")
    heading_deg: float = number(
        0, -360, 360, "degrees", "Heading of the array's y axis, clockwise from true north; added to bearings."
    )
    adc_peak_v: float | None = number(
        None, 1e-6, 1000, "V", "Voltage at the converter that gives full scale; levels are calibrated with it.",
        "unknown",
    )  # fmt: skip
    channel_fusion: str | None = choice(
        None, ("max", "mean"), "How the channels' scores become one: the highest, or the average.", "the bundle's"
    )
    hop_s: float | None = number(
        None, 0.01, 0.96, "s", "Distance between windows, in steps of the front end's (0.01 s).", "the bundle's"
    )
    start_threshold: float | None = number(
        None, 0, 1, "", "Fused score at which an event opens.", "the bundle's", reload=True
    )
    stop_threshold: float | None = number(
        None, 0, 1, "", "Fused score below which an event closes; at most `start_threshold`.", "the bundle's",
        reload=True,
    )  # fmt: skip
    cascade: bool = switch(
        True, "Hear the bundle's heavy backbones only where its cheap ones find something; off: all on every window.",
        reload=True,
    )  # fmt: skip
    events: EventSettings = section(EventSettings)
    clips: ClipSettings = section(ClipSettings)
    snapshots: bool = switch(True, "Make a relevance snapshot (PNG and NPZ) of each detection.", reload=True)
    levels: LevelSettings = section(LevelSettings)
    files: FileSettings = section(FileSettings)
    web: WebSettings = section(WebSettings)
    duty: DutySettings = section(DutySettings)
    overload: OverloadSettings = section(OverloadSettings)
    ledger: LedgerSettings = section(LedgerSettings)
    retention: RetentionSettings = section(RetentionSettings)
    clock: ClockSettings = section(ClockSettings)
    metrics: MetricsSettings = section(MetricsSettings)
    heartbeat_s: float = number(
        600, 5, 86400, "s", "How often sinks are sent a sign of life and the effort.", reload=True
    )
    sinks: tuple[SinkSettings, ...] = plugins(
        sink_kinds, "Where messages go beside the database: see docs/sinks.md. `orcawatch.sinks` is the entry point."
    )
    uplink: str = choice(
        "inside", ("inside", "apart"),
        "Who sends to the sinks and serves `metrics`: the watch, or `orcawatch uplink`, so that the watch needs no "
        "network: docs/sinks.md.",
    )  # fmt: skip
    threads: int = whole(1, 1, 64, "Processor threads for scoring; more than the machine's cores are of no use.")

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        yield from ordered(self, where, "stop_threshold", "start_threshold")
        if self.channels and self.hydrophones and len(self.channels) != len(self.hydrophones):
            yield (
                f"hydrophones must be as many as channels ({len(self.channels)}), not {len(self.hydrophones)}: "
                "one group of keys for each used channel"
            )
        if (self.latitude_deg is None) != (self.longitude_deg is None):
            yield "latitude_deg and longitude_deg go together; give both or none"
        names = [sink.queue for sink in self.sinks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"sinks: {name} is the name of several; give each a `name` of its own"


def ordered(settings: Any, where: str, low: str, high: str) -> Iterator[str]:
    """The fault where one key is more than the other."""
    least, most = getattr(settings, low), getattr(settings, high)
    if least is not None and most is not None and least > most:
        yield f"{joined(where, low)} must be at most {joined(where, high)} ({most:g}), not {least:g}"


def load_settings(file: Path) -> Settings:
    """Read a YAML file; relative paths in it are relative to its folder.

    Raises
    ------
    ConfigError : the file cannot be read, or is wrong; the text lists every fault.
    """
    settings, _, faults = read_settings(file)
    refuse(file, faults)
    warn_of_threads(settings.threads)
    return settings


def read_settings(file: Path) -> tuple[Settings, Any, list[str]]:
    """The settings of a YAML file (what is wrong in it has its default), its content, and its faults.

    Raises
    ------
    ConfigError : the file cannot be read.
    """
    import yaml

    faults: list[str] = []
    try:
        content = file.read_text(encoding="utf-8")
        raw = {} if (found := yaml.safe_load(content)) is None else found
        nodes = yaml.compose(content, yaml.SafeLoader)
        faults += [f"{name} is given twice; keep one" for name in repeated(nodes, "", set())]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as fault:  # a 30th of February is a ValueError
        raise ConfigError(f"{file} cannot be read as YAML: {fault}") from fault
    settings: Settings = build(Settings, raw, "", faults)
    return relative_to(settings, raw, file.parent), raw, faults


def refuse(file: Path, faults: Sequence[str]) -> None:
    """Raise ConfigError with every fault of a file, where there are any."""
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{file} has {count}:\n" + "\n".join(f"  {fault}" for fault in faults))


def warn_of_threads(threads: int) -> None:
    """Log where there are more threads than cores."""
    if threads > (cores := os.cpu_count() or threads):
        log.warning("threads is %d, but this machine has %d cores: more make scoring no faster", threads, cores)


def repeated(node: Any, where: str, visited: set[int]) -> Iterator[str]:
    """Paths of keys that a YAML mapping holds more than once; the parser would silently take the last.

    What an alias names again, possibly inside itself, is looked at once: `visited` holds the nodes seen so far.
    """
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    if node.id == "sequence":
        for index, value in enumerate(node.value):
            yield from repeated(value, f"{where}[{index}]", visited)
    if node.id != "mapping":
        return
    names = [joined(where, str(name.value)) for name, _ in node.value]
    yield from sorted({name for name in names if names.count(name) > 1})
    for name, (_, value) in zip(names, node.value):
        yield from repeated(value, name, visited)


def relative_to(settings: Any, raw: Any, folder: Path) -> Any:
    """The settings with the paths that the file gives relative to its folder; a default stays as it is."""
    if isinstance(settings, tuple) and isinstance(raw, list):
        return tuple(relative_to(value, given, folder) for value, given in zip(settings, raw))
    if isinstance(settings, Path):
        return folder / settings
    if not is_dataclass(settings) or not isinstance(raw, Mapping):
        return settings
    names = [item.name for item in fields(settings) if raw.get(item.name) is not None]
    moved = {name: relative_to(getattr(settings, name), raw[name], folder) for name in names}
    return replace(settings, **moved)  # type: ignore[type-var]


def overridden(bundle: Bundle, settings: Settings) -> Bundle:
    """The bundle with the operator's hop, fusion and thresholds in place of its own.

    The cascade is taken away where the settings say so, where events stop at a lower score than it was chosen for, and
    where the channels are averaged: what it promises holds for each channel.

    Raises
    ------
    ConfigError : one threshold is given, and does not fit the bundle's other one.
    """
    names = ("hop_s", "channel_fusion", "start_threshold", "stop_threshold")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    result = replace(bundle, **given)
    if result.stop_threshold > result.start_threshold:
        raise ConfigError(
            f"stop_threshold must be at most start_threshold, not {result.stop_threshold:g} over "
            f"{result.start_threshold:g} (the bundle's own: {bundle.stop_threshold:g} and {bundle.start_threshold:g}); "
            "give both"
        )
    fits = result.stop_threshold >= bundle.cascade.holds_from and result.channel_fusion == "max"
    if not settings.cascade or not fits:
        return replace(result, cascade=replace(bundle.cascade, gates=()))
    return result


HEAD = """# Configuration

`orcawatch run --config FILE` reads one YAML file. Every key has a default; an unknown key, a wrong type or a value out
of range is refused, and all faults of a file are reported at once (`orcawatch config check FILE`). Relative paths in
the file are relative to the file's folder. `orcawatch config show FILE` prints what is in force. A running daemon takes
the keys marked *reload* on SIGHUP (`systemctl reload orcawatch`); the others when it is started again. This page is
made from the definitions in `orcawatch/config.py`: `orcawatch config show --reference > docs/configuration.md`.
"""


def reference_page() -> str:
    """The text of `docs/configuration.md`."""
    return "\n".join([HEAD, *reference(Settings), ""])
