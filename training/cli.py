"""`orcawatch train`: run a recipe, see how it stands, compare the relevance rules with iNNvestigate."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import click

from ..cli import logged
from ..errors import OrcawatchError
from . import distribute

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="Folder of the recordings; goes before the recipe's. Several times: all of them are one data set.",
)


@click.group()
def train() -> None:
    """Train an ensemble from labelled recordings (needs the extra `train`)."""


def require_training() -> None:
    """Raise where the packages of the extra `train` are missing, before anything is computed; quieten TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    missing = [
        name for name in ("tensorflow", "innvestigate", "tqdm", "jinja2") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise OrcawatchError(
            f"training needs {', '.join(missing)}, not installed here: pip install 'orcawatch[train]' "
            "(Python 3.9 to 3.11, in an environment of its own)"
        )


@train.command()
@logged
@click.argument("recipe", type=click.Path(path_type=Path))
@DATA
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of the run; default runs/NAME.")
@click.option("--weights", multiple=True, metavar="BACKBONE=FILE", help="Weights of a backbone: a file, or a name.")
@click.option("--from-scratch", multiple=True, metavar="BACKBONE", help="Start a backbone from random weights.")
def run(
    recipe: Path, data: tuple[Path, ...], folder: Path | None, weights: tuple[str, ...], from_scratch: tuple[str, ...]
) -> None:
    """Run RECIPE; stages whose settings, inputs and code are unchanged are not run again.

    With TF_CONFIG set, as tf.distribute wants it, this process is one of several workers that share the run's folder:
    the first does everything, the others fine-tune with it.
    """
    from . import pipeline, results

    require_training()
    settings, runner = pipeline.prepare(recipe, first(data), folder, _named(weights), from_scratch, data[1:])
    ran = pipeline.run(settings, runner)
    click.echo(f"stages run: {', '.join(ran) or 'none, everything is up to date'}", err=True)
    if distribute.is_chief():
        click.echo(results.summary(runner.folder / pipeline.RESULT))
        click.echo(f"report: {runner.folder / pipeline.REPORT / 'report.html'}", err=True)


def first(folders: tuple[Path, ...]) -> Path | None:
    """The folder that was named first."""
    return folders[0] if folders else None


def _named(given: tuple[str, ...]) -> dict[str, str]:
    for text in given:
        if not all(text.partition("=")):
            raise click.BadParameter(f"must be BACKBONE=FILE, not {text!r}", param_hint="--weights")
    return dict(text.split("=", 1) for text in given)


@train.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report; default RUN/deploy/report.")
def report(folder: Path, out: Path | None) -> None:
    """Write the report of the finished RUN anew, with what `orcawatch deploy` measured since."""
    from . import report as writer

    require_training()
    target = out or folder / "deploy" / "report"
    writer.render(folder, target)
    click.echo(target / "report.html")


@train.command()
@click.argument("target", type=click.Path(path_type=Path))
@DATA
def status(target: Path, data: tuple[Path, ...]) -> None:
    """Show the stages of TARGET, a recipe or the folder of a run: done or missing, with time and memory."""
    from . import pipeline

    require_training()
    _, runner = pipeline.prepare(target, first(data), further=data[1:])
    for state in runner.status():
        cost = f"{state.wall_s:9.1f} s {state.peak_mb:7.0f} MB" if state.done else ""
        click.echo(f"{state.name:24} {'done' if state.done else 'missing':8} {cost}".rstrip())


@train.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--windows", default=16, show_default=True, help="Devel windows that go through the whole network.")
def parity(folder: Path, windows: int) -> None:
    """Compare this project's deep Taylor rules with iNNvestigate's on the weights of the run in FOLDER."""
    from . import parity as comparison

    require_training()
    click.echo(comparison.report(folder, windows))
