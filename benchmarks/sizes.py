"""TFLite files of the Inceptions at several input sizes, for benchmarks/networks.py: `python benchmarks/sizes.py
FOLDER`.

In the training environment. Weights are random: time does not depend on them. Quantization is that of the shipped
bundle, dynamic range. Files that are there are not made again.

    --size N          139 and 299, the paper's, where it is left out
    --backbone NAME   Inception V3 where it is left out
"""

from __future__ import annotations

from pathlib import Path

import click

from orcawatch.backbone import load_backbone
from orcawatch.deploy.export import export_features
from orcawatch.folding import fold
from orcawatch.spectrogram import LinearPower

QUANTIZATION = "dynamic"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", "sizes", type=click.IntRange(75), multiple=True, default=(139, 299))
@click.option("--backbone", "names", multiple=True, default=("inception_v3",), show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here: there are none.")
def main(folder: Path, sizes: tuple[int, ...], names: tuple[str, ...], file: Path | None) -> None:
    """Write NAME at SIZE-features-dynamic.tflite for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for size in sizes:
            path = folder / f"{name} at {size}-features-{QUANTIZATION}.tflite"
            if not path.exists():
                model = fold(load_backbone(name, LinearPower(size=size)).build_keras())
                path.write_bytes(export_features(model, QUANTIZATION))
                print(path, flush=True)
    if file is not None:
        file.write_text("[]\n")


if __name__ == "__main__":
    main()
