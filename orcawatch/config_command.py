"""`orcawatch config`: check a configuration file, and show what is in force."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Callable, TypeVar

import click

from .attempt import try_named
from .bundle import Bundle
from .bundles import in_force
from .channels import check_hydrophones
from .cli import EXIT_CODES, FILE, logged
from .config import Settings, overridden, read_settings, reference_page, refuse
from .detector import Grid
from .errors import InputError, OrcawatchError
from .files import FileSource, printable
from .keys import default_text
from .levels import calibration
from .shown import every_key, shown
from .spectrogram import RowStream

log = logging.getLogger(__name__)

T = TypeVar("T")

SET = "# set"
COMMENT_COLUMN = 36


@click.group()
def command() -> None:
    """Check a configuration file, or show what is in force."""


@command.command(epilog=EXIT_CODES)
@click.argument("file", type=FILE)
@logged
@click.pass_context
def check(ctx: click.Context, file: Path) -> None:
    """Check FILE whole, also against this machine: every fault is told, with its path and what is allowed.

    A bundle that FILE names is tried in another process. The sound card is not opened and nothing is written: that is
    for `orcawatch doctor`.
    """
    settings, raw, faults = read_settings(file)
    refuse(file, [*faults, *misfits(settings)])
    for oddity in oddities(settings):
        log.warning("%s", oddity)
    click.echo(f"{printable(file)} is right: {summary(settings, raw)}")


@command.command(epilog=EXIT_CODES)
@click.argument("file", type=FILE, required=False)
@click.option(
    "--reference", is_flag=True, help="Print the page docs/configuration.md: every key, what it takes, its default."
)
@logged
def show(file: Path | None, reference: bool) -> None:
    """Print the settings in force with FILE (without one: the defaults), as YAML with every key; secrets are masked.

    Behind each value stands whether the file sets it. The output is a configuration file itself.
    """
    if reference and file is not None:
        raise InputError("--reference is about every key and needs no FILE: give one of the two")
    if reference:
        click.echo(reference_page(), nl=False)
        return
    settings, raw = (Settings(), {}) if file is None else read(file)
    click.echo("\n".join([heading(file), *lines(settings, raw)]))


def read(file: Path) -> tuple[Settings, Any]:
    """Settings and content of a file; raises ConfigError where it has faults."""
    settings, raw, faults = read_settings(file)
    refuse(file, faults)
    return settings, raw


def summary(settings: Settings, raw: Mapping[str, Any]) -> str:
    """What was checked, in a line."""
    found = in_force(settings)
    for fault in found.faults:
        log.warning("%s", fault)
    keys = [key for key, _, _ in every_key(settings)]
    tried = "" if settings.bundle is None else ", and was tried"
    return f"{count_set(raw)} of {len(keys)} keys are set, bundle {found} is whole{tried}"


def count_set(raw: Any) -> int:
    """How many values stand in the file."""
    if isinstance(raw, Mapping):
        return sum(map(count_set, raw.values()))
    if isinstance(raw, list) and any(isinstance(item, Mapping) for item in raw):
        return sum(map(count_set, raw))
    return 1


def heading(file: Path | None) -> str:
    """The first line of `show`."""
    if file is None:
        return "# orcawatch: the defaults"
    return f"# orcawatch: in force with {printable(file)}; `{SET}` stands where it sets the value"


def lines(settings: Any, raw: Any, indent: str = "") -> Iterator[str]:
    """YAML of every key of a group."""
    given = raw if isinstance(raw, Mapping) else {}
    for item in fields(settings):
        value, stands = getattr(settings, item.name), given.get(item.name)
        if "section" in item.metadata:
            yield f"{indent}{item.name}:"
            yield from lines(value, stands, indent + "  ")
        elif "sections" in item.metadata:
            yield from list_lines(item, value, stands, indent)
        else:
            yield line(item, value, item.name in given, indent)


def list_lines(item: Field[Any], groups: tuple[Any, ...], raw: Any, indent: str) -> Iterator[str]:
    """YAML of a list of groups."""
    if not groups:
        yield commented(f"{indent}{item.name}: []", SET if raw is not None else "# default")
        return
    yield f"{indent}{item.name}:"
    for group, stands in zip(groups, raw):
        first, *rest = lines(group, stands, indent + "    ")
        yield from [f"{indent}  - {first.lstrip()}", *rest]


def line(item: Field[Any], value: Any, is_set: bool, indent: str) -> str:
    """One key."""
    told = shown(item, value.absolute() if isinstance(value, Path) else value)
    default = f"# default: {default_text(item)}" if value is None else "# default"
    return commented(f"{indent}{item.name}: {told}", SET if is_set else default)


def commented(text: str, comment: str) -> str:
    """A line with its comment in a column of its own."""
    return f"{text:<{COMMENT_COLUMN}}  {comment}"


def misfits(settings: Settings) -> list[str]:
    """Faults that show only beside the bundle, the audio file and the disk, and between keys far apart."""
    faults: list[str] = []
    found = attempt(faults, "bundle", in_force, settings, lambda bundle: try_named(bundle, settings))
    bundle = None if found is None else found.bundle
    if bundle is not None:
        attempt(faults, "", check_overrides, bundle, settings)
    rate_hz, channels = settings.source.rate_hz, settings.source.device_channels
    if settings.source.file is not None:
        source = attempt(faults, "source.file", FileSource, settings.source.file)
        rate_hz, channels = (None, None) if source is None else (source.info.rate_hz, source.info.channels)
    if bundle is not None and rate_hz is not None:
        attempt(faults, "source", check_rate, bundle, rate_hz)
    if channels is not None:
        attempt(faults, "", check_hydrophones, settings, channels)
    attempt(faults, "", check_output, settings.output)
    return faults


def attempt(faults: list[str], key: str, make: Callable[..., T], *given: Any) -> T | None:
    """What a function returns; an error that it raises on purpose is added to `faults` under `key`, and gives None."""
    try:
        return make(*given)
    except OrcawatchError as fault:
        faults.append(f"{key}: {fault}" if key else str(fault))
        return None


def check_overrides(bundle: Bundle, settings: Settings) -> None:
    """Raise InputError where hop or thresholds do not fit the bundle."""
    changed = overridden(bundle, settings)
    Grid({name: entry.front_end for name, entry in bundle.backbones.items()}, changed.hop_s)


def check_rate(bundle: Bundle, rate_hz: int) -> None:
    """Raise AudioError where a front end cannot use audio of this rate."""
    for entry in bundle.backbones.values():
        RowStream(entry.front_end, rate_hz, 1)


def check_output(output: Path) -> None:
    """Raise InputError where the folder for detections is none, or cannot be made or written."""
    place = standing(output)
    if not place.is_dir():
        raise InputError(f"output {printable(output)} cannot be a folder: {printable(place)} is a file; name another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"output {printable(output)} cannot be written: {printable(place)} does not let this user")


def oddities(settings: Settings) -> Iterator[str]:
    """What is allowed but probably not meant."""
    if settings.threads > (cores := os.cpu_count() or settings.threads):
        yield f"threads is {settings.threads}, but this machine has {cores} cores: more make scoring no faster"
    lacking = calibration(settings.hydrophones, settings.adc_peak_v, 1).unknown
    if lacking is not None and is_calibrated_in_part(settings):
        yield lacking
    serials = [hydrophone.serial for hydrophone in settings.hydrophones if hydrophone.serial]
    for serial in sorted({serial for serial in serials if serials.count(serial) > 1}):
        yield f"hydrophones: {serial} is the serial number of several"
    yield from disk_oddities(settings)


def is_calibrated_in_part(settings: Settings) -> bool:
    """Whether somebody began to state the chain from pressure to samples."""
    known = [hydrophone.sensitivity_db is not None for hydrophone in settings.hydrophones]
    return any(known) or settings.adc_peak_v is not None


def disk_oddities(settings: Settings) -> Iterator[str]:
    """Where the retention does not go with the disk that is there."""
    place = standing(settings.output)
    size_mb = shutil.disk_usage(place).total / 1e6
    retention = settings.retention
    spare_mb = retention.min_free_mb + retention.reserve_mb
    if spare_mb > size_mb / 2:
        yield f"retention keeps {spare_mb:.0f} MB free of the disk under {place}, which has {size_mb:.0f} MB in all"
    if retention.max_clips_mb is not None and retention.max_clips_mb + spare_mb > size_mb:
        yield f"retention.max_clips_mb is {retention.max_clips_mb:.0f}, which the disk under {place} cannot hold"


def standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
