"""`orcawatch bundle`: look into bundles and check them, install them, and let one score beside another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import click

from .cli import EXIT_CODES, FILE, chosen_settings, config_option, logged, output_option
from .errors import InputError
from .harmless import harmless

if TYPE_CHECKING:
    from .bundle import Bundle
    from .config import Settings
    from .shelf import Listed, Shelf


@click.group("bundle")
def command() -> None:
    """Look into bundles, check and compare them, install them, roll back."""


@command.command(epilog=EXIT_CODES)
@click.argument("path", type=FILE)
def inspect(path: Path) -> None:
    """Print what a bundle holds."""
    from .bundle import load_bundle

    click.echo(harmless("\n".join(described(load_bundle(path))), keep="\n"))


@command.command(epilog=EXIT_CODES)
@click.argument("path", type=FILE)
@click.option("--key", "keys", type=FILE, multiple=True, metavar="FILE", help="A public key that must have signed it.")
@config_option
def verify(path: Path, keys: tuple[Path, ...], config: Path | None) -> None:
    """Check a bundle: every file against its hash, its signature, and the score of a window of silence.

    With --key one of these keys must have signed it; with --config it is refused where a station with these settings
    would refuse it.
    """
    from . import signing
    from .bundle import load_bundle
    from .detector import score_silence
    from .ensemble import Ensemble

    found = load_bundle(path)
    signing.check_signature(found, chosen_settings(config, None, None).bundles)
    signer = signing.signer(found, [signing.public_key(file) for file in keys]) if keys else None
    score = score_silence(Ensemble(found))
    files = len(found.manifest["files"])
    click.echo(f"{path} is whole: {files} files, manifest {found.digest}; silence scores {score:.3f}")
    click.echo(f"signed with the trusted key {signer.id} ({signer.file})" if signer else signed_line(found.folder))


def signed_line(folder: Path) -> str:
    """By which keys a bundle says that it is signed."""
    from .signing import signatures

    named = ", ".join(signatures(folder))
    return f"signed with key {named}, which nobody has checked: name it with --key" if named else "not signed"


@command.command(epilog=EXIT_CODES)
@click.argument("file", type=FILE)
@click.option("--passphrase", is_flag=True, help="Encrypt the private key; a passphrase is asked for.")
def keygen(file: Path, passphrase: bool) -> None:
    """Make a pair of keys: FILE, with which bundles are signed, and FILE.pub, by which stations know them.

    Keep FILE on the machine where bundles are made, and nowhere else. FILE.pub goes to each station and into its
    settings: bundles.trusted_keys.
    """
    from .signing import make_keys

    secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else ""
    public, name = make_keys(file, secret.encode())
    click.echo(f"key {name}: private {file} (keep it, and keep it secret), public {public}")


@command.command(epilog=EXIT_CODES)
@click.argument("path", type=FILE, metavar="BUNDLE")
@click.option("--key", "file", type=FILE, required=True, metavar="FILE", help="The private key.")
def sign(path: Path, file: Path) -> None:
    """Sign a bundle's folder, beside the signatures of other keys that it may have."""
    from . import signing

    try:
        name = signing.sign(path, file)
    except signing.PassphraseError:
        name = signing.sign(path, file, click.prompt("Passphrase", hide_input=True).encode())
    click.echo(f"{path} is signed with key {name}")


@command.command(epilog=EXIT_CODES)
@click.argument("path", type=FILE)
@config_option
@output_option
@click.option("--shadow", "as_shadow", is_flag=True, help="Let it score beside the current one, which stays.")
@click.option("--days", type=click.FloatRange(0, 3660, min_open=True), help="End of the shadow. [default: none]")
@logged
def install(path: Path, config: Path | None, output: Path | None, as_shadow: bool, days: float | None) -> None:
    """Install PATH, a bundle's folder or a .tar, .tar.gz or .zip of one, in the output folder.

    It is checked first: hashes, signature, front end, a window of silence, and whether it goes with the settings. Then
    one rename makes it the current one; the one before is kept (`orcawatch bundle rollback`).
    """
    if days is not None and not as_shadow:
        raise InputError("--days is about a shadow: give --shadow, too, or leave it out")
    settings = chosen_settings(config, None, output)
    shelf = shelf_of(settings)
    if as_shadow:
        trial = shelf.install_shadow(path, days, fits(settings))
        until = "until it is stopped" if trial.until_utc is None else f"until {trial.until_utc:%Y-%m-%d %H:%M} UTC"
        click.echo(f"{trial.folder} scores beside the current bundle {until}; a running watch begins within seconds")
        return
    changed(shelf.install(path, fits(settings)), settings)


@command.command(epilog=EXIT_CODES)
@config_option
@output_option
@logged
def rollback(config: Path | None, output: Path | None) -> None:
    """Go back to the previous bundle, or without one to the bundle that comes with orcawatch.

    The one that was current is then the previous one: a second rollback undoes the first.
    """
    settings = chosen_settings(config, None, output)
    changed(shelf_of(settings).rollback(fits(settings)), settings)


@command.command("list", epilog=EXIT_CODES)
@config_option
@output_option
@logged
def list_bundles(config: Path | None, output: Path | None) -> None:
    """List the installed bundles, which of them is in force, and what was changed."""
    from .bundles import in_force

    settings = chosen_settings(config, None, output)
    shelf = shelf_of(settings)
    found = in_force(settings)
    for fault in found.faults:
        click.echo(harmless(f"fault      {fault}"))
    click.echo(harmless(f"in force   {found}"))
    for line in shelf_lines(shelf):
        click.echo(harmless(line))


@command.group()
def shadow() -> None:
    """A bundle that scores beside the current one: report, promote, stop; `install --shadow` begins."""


@shadow.command(epilog=EXIT_CODES)
@config_option
@output_option
@click.option("--digest", help="How the shadow's digest begins. [default: the one that scored last]")
@click.option("--csv", "table", type=FILE, metavar="FILE", help="Write every detection of either bundle there.")
@logged
def report(config: Path | None, output: Path | None, digest: str | None, table: Path | None) -> None:
    """Tell what the shadow found, beside the current bundle, in the time that both scored."""
    from .daemon import DATABASE
    from .durable import write_bytes
    from .shadow import csv_text, lines, summary
    from .store import Store

    path = chosen_settings(config, None, output).output / DATABASE
    with Store.reader(path) as reader, reader.transaction() as connection:
        found = summary(connection, digest)
    if found is None:
        raise InputError(f"{path} holds no such shadow: begin one with `orcawatch bundle install PATH --shadow`")
    if table is not None:
        try:
            write_bytes(table, csv_text(found.pairs).encode())
        except OSError as fault:
            raise InputError(f"{table} cannot be written: {fault.strerror}; name another file") from fault
    click.echo(harmless("\n".join(lines(found)), keep="\n"))


@shadow.command(epilog=EXIT_CODES)
@config_option
@output_option
@logged
def promote(config: Path | None, output: Path | None) -> None:
    """Make the shadow the current bundle."""
    settings = chosen_settings(config, None, output)
    changed(shelf_of(settings).promote(fits(settings)), settings)


@shadow.command(epilog=EXIT_CODES)
@config_option
@output_option
@logged
def stop(config: Path | None, output: Path | None) -> None:
    """End the shadow; what it detected stays in the database."""
    name = shelf_of(chosen_settings(config, None, output)).stop_shadow()
    click.echo(f"{name} scores no longer beside the current bundle; a running watch lets go of it within seconds")


def shelf_of(settings: Settings) -> Shelf:
    """The installed bundles of the settings' output folder."""
    from .shelf import Shelf

    return Shelf(settings.output)


def fits(settings: Settings) -> Callable[[Bundle], object]:
    """Raises OrcawatchError for a bundle that is not trusted, does not fit the settings, or cannot score silence."""
    from .attempt import try_out
    from .config import overridden
    from .detector import Detector, score_silence
    from .ensemble import Ensemble
    from .signing import check_signature

    def check(found: Bundle) -> None:
        check_signature(found, settings.bundles)
        try_out(found.folder)
        chosen = Ensemble(overridden(found, settings))
        rates = [entry.front_end.rate_hz for entry in found.backbones.values()]
        Detector(chosen, settings.source.rate_hz or max(rates), 1, chosen.bundle.hop_s)
        score_silence(chosen)

    return check


def changed(found: Bundle, settings: Settings) -> None:
    """Tell which bundle is current, and what makes a running watch take it."""
    from .bundle import SHIPPED

    whose = ", the bundle that comes with orcawatch" if found.folder == SHIPPED else ""
    click.echo(harmless(f"current: {found.name} {found.digest[:12]}{whose}"))
    if settings.bundle is not None:
        click.echo(f"but the settings name another, {settings.bundle}: take `bundle:` out to use the installed one")
        return
    click.echo("a running watch takes it on `systemctl reload orcawatch` (SIGHUP), with a gap of a second or two")


def shelf_lines(shelf: Shelf) -> Iterator[str]:
    """Lines about the installed bundles and the changes, newest last."""
    trial = shelf.trial()
    for item in shelf.listed():
        yield listed_line(item)
    if trial is not None:
        until = "without end" if trial.until_utc is None else f"until {trial.until_utc:%Y-%m-%d %H:%M} UTC"
        state = f", switched off: {trial.fault}" if trial.fault else ""
        yield f"shadow     since {trial.since_utc:%Y-%m-%d %H:%M} UTC, {until}{state}"
    for entry in shelf.history()[-20:]:
        yield f"{entry['utc'][:19]}Z  {entry['who']}: {entry['action']} {entry['bundle']}"


def listed_line(item: Listed) -> str:
    """One installed bundle."""
    roles = ", ".join(item.roles) or "not used"
    when = "" if item.installed_utc is None else f", installed {item.installed_utc:%Y-%m-%d %H:%M} UTC"
    state = f", DAMAGED: {item.fault}" if item.fault else ""
    return f"{roles:<10} {item.folder}, {item.size_b / 1e6:.1f} MB{when}{state}"


SHOWN = (
    "backbones", "cascade", "channel_fusion", "digest", "files", "heads", "hop_s", "members", "name", "schema",
    "thresholds", "vote",
)  # fmt: skip


def described(found: Bundle) -> Iterator[str]:
    """Lines about a bundle."""
    from .cascade import cascade_lines

    yield f"name        {found.name}"
    yield f"digest      {found.digest}"
    yield f"members     {', '.join(found.members)}"
    yield f"vote        {', '.join(found.vote)}"
    yield f"windows     every {found.hop_s:g} s"
    yield f"channels    {found.channel_fusion}"
    yield f"thresholds  start {found.start_threshold:g}, stop {found.stop_threshold:g}"
    for line in cascade_lines(found.manifest.get("cascade")):
        yield f"cascade     {line}"
    for name, entry in found.backbones.items():
        constants = ", ".join(f"{key} {value}" for key, value in entry.front_end.to_dict().items())
        yield f"backbone    {name}: {entry.feature_size} features; {constants}"
    for name in found.manifest["files"]:
        yield f"file        {name}, {(found.folder / name).stat().st_size} bytes"
    for name in sorted(set(found.manifest) - set(SHOWN)):
        yield f"{name:<11} {found.manifest[name]}"


@command.command(epilog=EXIT_CODES)
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option(
    "--data", "folders", type=FILE, multiple=True, required=True, metavar="FOLDER",
    help="Labelled clips (labels.csv and wav/); several times for several sets.",
)  # fmt: skip
@click.option(
    "--split", type=click.Choice(["devel", "test", "train"]), default="devel", show_default=True,
    help="Which clips; those of train were trained on.",
)  # fmt: skip
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the figures as JSON, too.")
def compare(old: Path, new: Path, folders: tuple[Path, ...], split: str, json_file: Path | None) -> None:
    """Score the same clips with two bundles: ROC AUC, recall and false alarms, with 95 % intervals by recording.

    Recall and false alarms count clips whose highest window reaches the bundle's own start threshold. Site by site, too
    (the column site of labels.csv, else source).
    """
    from . import compare as comparison
    from .bundle import load_bundle
    from .ensemble import Ensemble

    clips = comparison.clips_of(folders, split)
    bundles = [load_bundle(path) for path in (old, new)]
    before, after = (comparison.score_clips(clips, Ensemble(bundle)) for bundle in bundles)
    parts = comparison.compare(clips, before, after)
    for name, bundle in zip(("old", "new"), bundles):
        click.echo(f"{name}: {bundle.name} {bundle.digest[:12]}, start threshold {bundle.start_threshold:.3f}")
    click.echo(comparison.table(parts))
    if json_file is not None:
        comparison.write_json(json_file, parts, bundles)
