"""A bundle is tried in a process of its own before it is installed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orcawatch.attempt import try_out
from orcawatch.bundle import SHIPPED, manifest_digest, sha256
from orcawatch.errors import BundleError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_whole_bundle_passes() -> None:
    try_out(SHIPPED)


@pytest.fixture
def with_heads(tmp_path: Path) -> Callable[[bytes], Path]:
    """The shipped bundle with another file of heads, and hashes that fit."""

    def make(content: bytes) -> Path:
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
        replace_heads(folder, content)
        return folder

    return make


def replace_heads(folder: Path, content: bytes) -> None:
    heads = folder / "heads.tflite"
    heads.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["heads.tflite"] = sha256(heads)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": manifest_digest(manifest)}))


def test_model_that_fits_the_hash_and_is_none_is_refused(with_heads: Callable[[bytes], Path]) -> None:
    # tflite-runtime does not see that the end is missing, and crashes.
    with pytest.raises(BundleError, match=r"heads.tflite is not a TFLite model|ends the process that runs it \(signal"):
        try_out(with_heads((SHIPPED / "heads.tflite").read_bytes()[:-1000]))


def test_one_byte_that_crashes_the_interpreter_harms_no_other_process(with_heads: Callable[[bytes], Path]) -> None:
    """Found by fuzzing: where the byte leads out of the file, ai-edge-litert 2 ends the process by signal 11."""
    content = bytearray((BENCHMARKS / "small.tflite").read_bytes())
    content[87] = 8
    with pytest.raises(BundleError):
        try_out(with_heads(bytes(content)))


@pytest.mark.parametrize(
    ("what", "words"),
    [("kill -SEGV $$", r"ends the process that runs it \(signal 11\)"), ("exec sleep 60", "in 0.5 s")],
)
def test_model_that_crashes_or_hangs_harms_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{what}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BundleError, match=words):
        try_out(SHIPPED, 0.5 if "sleep" in what else 60)
