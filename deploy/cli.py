"""`orcawatch deploy`: from a training run to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

RUN = click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))


@click.group()
def deploy() -> None:
    """Make bundles out of training runs and verify them (needs the extra `train`)."""


@deploy.command()
@RUN
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--quantization", type=click.Choice(["float32", "dynamic"]), default="dynamic", show_default=True)
def bundle(run: Path, bundle: Path, quantization: str) -> None:
    """Export the vote of the finished RUN as the new folder BUNDLE, with the export's own figures."""
    from .build import build_bundle, read_run

    build_bundle(read_run(run), bundle, quantization, _progress)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    click.echo(f"{bundle}: {size / 1e6:.1f} MB, backbones {quantization}")


@deploy.command()
@RUN
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
def verify(run: Path, bundle: Path) -> None:
    """Score RUN's devel windows with BUNDLE through the edge's code and compare with the training side."""
    from .build import read_run, verify_bundle

    found = verify_bundle(read_run(run), bundle, _progress)
    click.echo(f"{found.windows} windows, interpreter {found.runtime}\n")
    click.echo(
        "| member | ROC AUC trained | exported (95 % interval by recording) | largest difference |\n|---|---|---|---|"
    )
    for name, exported in found.auc.items():
        interval = f"{exported.value:.4f} ({exported.low:.3f} to {exported.high:.3f})"
        difference = f"{found.largest_difference[name]:.2g}"
        click.echo(f"| {name} | {found.trained_auc[name].value:.4f} | {interval} | {difference} |")


def _progress(items: Any) -> Any:
    """A progress bar on a terminal's stderr."""
    from tqdm import tqdm

    return tqdm(items, desc="windows", disable=None)
