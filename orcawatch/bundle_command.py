"""`orcawatch bundle`: look into bundles and check them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli import EXIT_CODES, FILE

if TYPE_CHECKING:
    from .bundle import Bundle


@click.group("bundle")
def command() -> None:
    """Look into a bundle, or check it."""


@command.command(epilog=EXIT_CODES)
@click.argument("path", type=FILE)
def inspect(path: Path) -> None:
    """Print what a bundle holds."""
    from .bundle import load_bundle

    click.echo("\n".join(described(load_bundle(path))))


@command.command(epilog=EXIT_CODES)
@click.argument("path", type=FILE)
def verify(path: Path) -> None:
    """Check every file of a bundle against its hash, and score a window of silence."""
    from .bundle import load_bundle
    from .detector import score_silence
    from .ensemble import Ensemble

    found = load_bundle(path)
    score = score_silence(Ensemble(found))
    files = len(found.manifest["files"])
    click.echo(f"{path} is whole: {files} files, manifest {found.digest}; silence scores {score:.3f}")


SHOWN = (
    "backbones", "channel_fusion", "digest", "files", "heads", "hop_s", "members", "name", "schema", "thresholds",
    "vote",
)  # fmt: skip


def described(found: Bundle) -> Iterator[str]:
    """Lines about a bundle."""
    yield f"name        {found.name}"
    yield f"digest      {found.digest}"
    yield f"members     {', '.join(found.members)}"
    yield f"vote        {', '.join(found.vote)}"
    yield f"windows     every {found.hop_s:g} s"
    yield f"channels    {found.channel_fusion}"
    yield f"thresholds  start {found.start_threshold:g}, stop {found.stop_threshold:g}"
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
    scores = [comparison.score_clips(clips, Ensemble(bundle)) for bundle in bundles]
    parts = comparison.compare(clips, *scores)
    for name, bundle in zip(("old", "new"), bundles):
        click.echo(f"{name}: {bundle.name} {bundle.digest[:12]}, start threshold {bundle.start_threshold:.3f}")
    click.echo(comparison.table(parts))
    if json_file is not None:
        comparison.write_json(json_file, parts, bundles)
