"""A bundle is tried in a process of its own before it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orcawatch import attempt
from orcawatch.attempt import TRIED, main, try_named_once, try_out
from orcawatch.backbone import EdgeBackbone
from orcawatch.bundle import SHIPPED, load_bundle, manifest_digest, sha256
from orcawatch.config import Settings
from orcawatch.errors import BundleError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_whole_bundle_passes_and_its_memory_is_its_own() -> None:
    """Not that of the process that asks, which is larger here; explaining takes more than scoring."""
    held = np.ones(60_000_000, np.float32)
    score_mb, explain_mb = try_out(SHIPPED)
    assert 30 < score_mb < explain_mb - 10 < held.nbytes / 1e6


def test_every_backbone_explains_whatever_the_noise_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no part in the noise's confidence is not prepared for it."""
    asked: dict[Path, list[np.ndarray]] = {}
    explain = EdgeBackbone.explain

    def noted(self: EdgeBackbone, spectrograms: list[np.ndarray], relevance: list[np.ndarray]) -> list[np.ndarray]:
        asked.setdefault(self._explain_path, []).extend(relevance)
        return explain(self, spectrograms, relevance)

    monkeypatch.setattr(EdgeBackbone, "explain", noted)
    assert main(SHIPPED) == 0
    bundle = load_bundle(SHIPPED)
    assert set(asked) == {bundle.folder / entry.explain_file for entry in bundle.backbones.values()}
    assert all(any((part == 1).all() for part in parts) for parts in asked.values())


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
    with pytest.raises(BundleError):
        try_out(with_heads(crashing()))


def crashing() -> bytes:
    content = bytearray((BENCHMARKS / "small.tflite").read_bytes())
    content[87] = 8
    return bytes(content)


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orcawatch.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=cwd)


def test_a_named_bundle_that_crashes_ends_watch_doctor_and_check_with_a_word(
    tmp_path: Path, with_heads: Callable[[bytes], Path], write: Callable[..., Path]
) -> None:
    sea = write(tmp_path / "sea.wav", np.random.default_rng(0).normal(0, 0.01, (48000, 1)), 16000)
    with_heads(crashing())
    (tmp_path / "crash.yaml").write_text("bundle: bundle\noutput: out\n")
    watch = run("run", "--config", "crash.yaml", "--input", sea, cwd=tmp_path)
    assert watch.returncode == 2 and "name another as `bundle`" in watch.stderr, watch.stderr
    assert not (tmp_path / "out" / TRIED).exists()
    doctor = run("doctor", "--config", "crash.yaml", "--input", sea, "--seconds", "2", cwd=tmp_path)
    assert doctor.returncode == 5 and "fault    bundle" in doctor.stdout, doctor.stderr
    check = run("config", "check", "crash.yaml", cwd=tmp_path)
    assert check.returncode == 2 and "bundle: " in check.stderr, check.stderr


def test_a_named_bundle_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew where it, the program or the interpreter is another, or the note cannot be read as one."""
    tried: list[Path] = []
    monkeypatch.setattr(attempt, "try_out", tried.append)
    settings, bundle = Settings(output=tmp_path / "out", bundle=SHIPPED), load_bundle(SHIPPED)
    for _ in range(3):
        try_named_once(bundle, settings)
    assert tried == [SHIPPED]
    note = tmp_path / "out" / TRIED
    was = note.read_bytes()
    note.write_bytes(b"\xff")
    try_named_once(bundle, settings)
    assert len(tried) == 2 and note.read_bytes() == was and bundle.digest.encode() in was
    monkeypatch.setattr(attempt, "__version__", "9")
    try_named_once(bundle, settings)
    assert len(tried) == 3
    note.unlink()
    note.mkdir()  # it cannot be written: tried each time, and the watch goes on
    try_named_once(bundle, settings)
    try_named_once(bundle, settings)
    assert len(tried) == 5
    note.rmdir()
    note.symlink_to("/proc/self/mem")  # to read it fails (EIO)
    try_named_once(bundle, settings)
    assert len(tried) == 6 and note.read_bytes().startswith(bundle.digest.encode())
    tried.pop()
    try_named_once(bundle, Settings(output=tmp_path / "other"))
    assert len(tried) == 5 and not (tmp_path / "other").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_note_belongs_to_the_owner_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "try_out", lambda folder: None)
    os.chown(tmp_path, 12345, 12345)
    try_named_once(load_bundle(SHIPPED), Settings(output=tmp_path, bundle=SHIPPED))
    assert (tmp_path / TRIED).stat().st_uid == 12345


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("kill -SEGV $$", r"ends the process that runs it \(signal 11\)"),
        ("kill -KILL $$", "signal 9, as where the memory is too small: use a smaller bundle"),
        ("exec sleep 60", "in 0.5 s"),
    ],
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
