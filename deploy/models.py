"""A run's exported backbones, kept in `RUN/deploy/models`: converted once, whole or absent.

A file is named by backbone, signature, variant and the digest of all that decides its content: the trained weights, the
front end, the representative spectrograms where the variant looks at them, this project's code of it, and TensorFlow's
version. A file whose name fits is taken as it is.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..backbone import EdgeBackbone, load_backbone
from ..durable import write_bytes
from ..errors import OrcawatchError
from .run import Array, Run, network
from .variants import EXPLAINED_BY, check_quantization

CODE = ("orcawatch.relevance", "orcawatch.folding", "orcawatch.deploy.export")


@dataclass(frozen=True)
class Exported:
    """The files of one backbone in one variant.

    Attributes
    ----------
    features : with the signature `features`.
    explain : with the signature `explain`; its variant is `explained_by`.
    quantization : of the features.
    explained_by : variant of the relevance pass.
    """

    features: Path
    explain: Path
    quantization: str
    explained_by: str

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [self.features, self.explain]

    @property
    def bytes(self) -> int:
        """Size of all of them."""
        return sum(path.stat().st_size for path in self.files)

    def open(self, run: Run, backbone: str, threads: int = 1) -> EdgeBackbone:
        """The backbone as the edge runs it."""
        size = int(run.backbones[backbone]["feature_size"])
        return EdgeBackbone(self.features, self.explain, run.front_end(backbone), size, threads)


def exported(run: Run, backbone: str, quantization: str) -> Exported:
    """A backbone's files in one variant; what is missing is converted first (Inceptions take minutes and gigabytes).

    Raises
    ------
    InputError : unknown variant; `int8` where the run has no representative spectrograms.
    OrcawatchError : the disk refuses.
    """
    explained_by = EXPLAINED_BY[check_quantization(quantization)]
    features = _file(run, backbone, "features", quantization)
    explain = _file(run, backbone, "explain", explained_by)
    return Exported(features, explain, quantization, explained_by)


def _file(run: Run, backbone: str, signature: str, quantization: str) -> Path:
    digest = export_digest(run, backbone, quantization)
    path = models_folder(run) / f"{backbone}-{signature}-{quantization}-{digest}.tflite"
    if not path.is_file():
        store(path, _convert(run, backbone, signature, quantization))
    return path


def models_folder(run: Run) -> Path:
    """Where they are kept."""
    return run.root / "deploy" / "models"


def store(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises OrcawatchError, with the size that is needed, where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as fault:
        needed = f"{len(content) / 1e6:.1f} MB"
        raise OrcawatchError(f"{path} ({needed}) could not be written: {fault}; make room and run again") from fault


def _convert(run: Run, backbone: str, signature: str, quantization: str) -> bytes:
    from tensorflow.keras import backend

    from .export import export_features, export_relevance

    try:
        if signature == "explain":
            return export_relevance(network(run, backbone), quantization)
        return export_features(network(run, backbone), quantization, representative(run, backbone))
    finally:
        backend.clear_session()
        gc.collect()


def representative(run: Run, backbone: str) -> Array | None:
    """Finished training spectrograms drawn by recording, shape (n, height, width); None where the run left none."""
    path = run.folder / f"representative-{backbone}.npy"
    return np.load(path) if path.is_file() else None


def export_digest(run: Run, backbone: str, quantization: str) -> str:
    """Twelve hexadecimal digits that name what decides an export's content."""
    entry = run.backbones[backbone]
    causes = [(run.folder / entry["weights"]).read_bytes(), json.dumps(entry["front_end"], sort_keys=True).encode()]
    plugin = type(load_backbone(backbone, run.front_end(backbone))).__module__
    causes += [_source(name) for name in (*CODE, plugin)]
    if quantization == "int8" and (examples := representative(run, backbone)) is not None:
        causes.append(examples.tobytes())
    parts = [hashlib.sha256(cause).hexdigest() for cause in causes]
    return hashlib.sha256(json.dumps([*parts, quantization, version("tensorflow")]).encode()).hexdigest()[:12]


def _source(module: str) -> bytes:
    return Path(str(importlib.import_module(module).__file__)).read_bytes()
