"""What the Inceptions' input size costs and gives: `python benchmarks/input_size.py DATA [options]`.

Trains Inception V3 and Inception-ResNet V2 at 139 and at 299 by one recipe, short enough for a processor, and
prints for both sizes the devel ROC AUC of every member with its interval by recording, and what the stages took. The
difference of the two sizes at equal training is what the table is for, not the figures themselves.

    --weights BACKBONE=FILE   as for `orcawatch train run`; a backbone without starts from random weights
    --backbone NAME           one of them only
    --steps N                 fine-tuning steps of 32 windows (60)
    --run FOLDER              of the runs, one a size (runs/input_size); a second call computes nothing
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import yaml

from orcawatch.training import pipeline

SIZES = (139, 299)
BACKBONES = ("inception_v3", "inception_resnet_v2")
COMMON: dict[str, Any] = {
    "windows": {"hop_s": 0.96},
    "augmentation": {"gain_db": 0},
    "head": {"epochs": 30, "teacher_share": 0.75, "slope": 2.0, "shift": 4.0},
    "vote": {"must_contain": "any", "draws": 1000},
}
LOADED = {"learning_rate": 2e-4, "head_steps": 40, "batch_norm": "frozen"}
SCRATCH = {"learning_rate": 7e-4, "batch_norm": "trained"}


def recipe(size: int, names: tuple[str, ...], weights: dict[str, str], steps: int) -> dict[str, Any]:
    """The recipe of one size."""

    def backbone(name: str) -> dict[str, Any]:
        tuned = {**(LOADED if name in weights else SCRATCH), "steps": steps, "precision": "mixed_bfloat16"}
        source = {"weights": weights[name]} if name in weights else {"from_scratch": True}
        return {"front_end": {"size": size, "normalise": "band_floor"}, "fine_tune": tuned, **source}

    return {"name": f"size-{size}", "backbones": {name: backbone(name) for name in names}, **COMMON}


def print_rows(size: int, result: Path) -> None:
    """One row a member."""
    found = json.loads((result / "selection.json").read_text())
    for name, auc in found["metrics"]["members"].items():
        print(f"| {size} | {name} | {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}) |")
    for stage, cost in found["costs"].items():
        if stage.startswith(("backbone-", "features-")):
            print(f"| {size} | stage {stage} | {cost['wall_s']:.0f} s, {cost['peak_mb']:.0f} MB |")


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--weights", multiple=True, metavar="BACKBONE=FILE")
@click.option("--backbone", "names", multiple=True, type=click.Choice(BACKBONES), default=BACKBONES)
@click.option("--steps", default=60, show_default=True)
@click.option("--run", "folder", default=Path("runs/input_size"), type=click.Path(path_type=Path))
def main(data: Path, weights: tuple[str, ...], names: tuple[str, ...], steps: int, folder: Path) -> None:
    """Train at both sizes and print the table."""
    given = dict(text.split("=", 1) for text in weights)
    print("| size | member or stage | devel ROC AUC, or cost |\n|---|---|---|", flush=True)
    for size in SIZES:
        path = folder / f"{size}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(recipe(size, names, given, steps), sort_keys=False))
        settings, runner = pipeline.prepare(path, data, folder / str(size))
        pipeline.run(settings, runner)
        print_rows(size, runner.folder / pipeline.RESULT)


if __name__ == "__main__":
    main()
