from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from handmade import FILES, manifest

from orcawatch.bundle import SHIPPED, load_bundle, manifest_digest, write_bundle
from orcawatch.errors import BundleError, OrcawatchError
from orcawatch.spectrogram import LogMel


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**content, "digest": manifest_digest(content)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", manifest(), FILES)
    return tmp_path / "bundle"


def test_what_is_written_is_read(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert (bundle.name, bundle.vote, bundle.hop_s) == ("small", ("vggish_neg",), 0.48)
    assert bundle.backbones["vggish"].front_end == LogMel()
    assert not list(folder.parent.glob("*.partial"))


@pytest.mark.parametrize("name", list(FILES))
def test_one_flipped_byte_is_refused(folder: Path, name: str) -> None:
    content = bytearray(FILES[name])
    content[3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        load_bundle(folder)


def test_flipped_byte_in_the_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"start": 0.7', '"start": 0.6'))
    with pytest.raises(BundleError, match="damaged or was edited"):
        load_bundle(folder)
    path.write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 99}, "schema 99"),
        ({"vote": ["other"]}, "vote must name members"),
        ({"vote": []}, "vote must name members"),
        ({"channel_fusion": "median"}, "max or mean, not 'median'"),
        ({"thresholds": {"start": 0.2, "stop": 0.5}}, "stop <= start"),
        ({"thresholds": {"start": 0.2}}, "lacks or garbles 'stop'"),
        ({"hop_s": "soon"}, "lacks or garbles"),
        ({"hop_s": 5.0}, r"at most 0.96 s \(one window\), not 5"),
        ({"heads": {"file": "elsewhere.tflite"}}, "hash is not listed"),
        ({"files": {}}, "names no files"),
        (
            {"files": {"../outside": "0", **dict.fromkeys(FILES, "0")}},
            "lacks ../outside",
        ),
        ({"backbones": [{**manifest()["backbones"][0], "front_end": {"kind": "x"}}]}, "'x'"),
    ],
)
def test_unfit_manifest_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(BundleError, match=words):
        load_bundle(folder)


def test_missing_parts_are_named(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle: it has no manifest.json"):
        load_bundle(folder.parent)
    (folder / "heads.tflite").unlink()
    with pytest.raises(BundleError, match=r"lacks heads.tflite"):
        load_bundle(folder)


def test_surplus_file_is_refused(folder: Path) -> None:
    (folder / "extra.tflite").write_bytes(b"")
    with pytest.raises(BundleError, match=r"holds \['extra.tflite'\], which its manifest does not name"):
        load_bundle(folder)


def test_existing_folder_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(folder, manifest(), FILES)


def test_full_disk_leaves_nothing_under_the_bundles_name(tmp_path: Path, no_room: Any) -> None:
    large = {**FILES, "vggish.tflite": bytes(100_000)}
    with no_room(), pytest.raises(OrcawatchError, match=r"bundle \(0.1 MB\) could not be written: .*make room"):
        write_bundle(tmp_path / "bundle", manifest(), large)
    assert not list(tmp_path.iterdir())
    write_bundle(tmp_path / "bundle", manifest(), large)
    assert load_bundle(tmp_path / "bundle").name == "small"


WITHOUT = {name: content for name, content in FILES.items() if name != "vggish-explain.tflite"}


def test_an_explain_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", manifest(), WITHOUT)
    with pytest.raises(BundleError, match=r"vggish-explain\.tflite is used but its hash is not listed"):
        load_bundle(tmp_path / "bundle")


def test_bundles_of_earlier_versions_hold_both_signatures_in_one_file(tmp_path: Path) -> None:
    entry = {key: value for key, value in manifest()["backbones"][0].items() if key != "explain_file"}
    write_bundle(tmp_path / "older", manifest(backbones=[entry]), WITHOUT)
    found = load_bundle(tmp_path / "older").backbones["vggish"]
    assert (found.explain_file, found.files) == ("vggish.tflite", ["vggish.tflite"])


def test_shipped_bundle_is_whole_and_small() -> None:
    bundle = load_bundle(SHIPPED)
    assert any(name.endswith("_neg") for name in bundle.vote)
    assert (SHIPPED / "model-card.md").is_file()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 25_000_000


ENTRY = manifest()["backbones"][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"backbones": ["vggish"]},
        {"backbones": [{**ENTRY, "front_end": "log_mel"}]},
        {"backbones": [{**ENTRY, "feature_size": float("inf")}]},
        *({"backbones": [{**ENTRY, "front_end": {**ENTRY["front_end"], **one}}]} for one in (
            {"rate_hz": 0}, {"rate_hz": "16000"}, {"frames": 10**9}, {"frames": 0}, {"bands": -1}, {"hop_s": 1e-9},
            {"frame_s": 1.0}, {"fft_size": 2**40}, {"low_hz": 9000.0}, {"high_hz": float("nan")}, {"offset": None},
        )),
        {"fusion": ["vggish"]},
        {"fusion": {"vggish": ["another"], "vggish_neg": []}},
        {"thresholds": []},
        {"hop_s": {}},
    ],
)  # fmt: skip
def test_garbled_manifest_with_a_right_digest_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    """Found by fuzzing: other errors came out, or windows that fill the memory."""
    rewrite(folder, **changes)
    with pytest.raises(BundleError):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["a" * 300, "../bundle/heads.tflite", "..", "", "\0"])
def test_manifest_that_names_what_no_file_is_called_is_refused(folder: Path, name: str) -> None:
    """Found by fuzzing: a name too long for the file system raised OSError."""
    rewrite(folder, files={**json.loads((folder / "manifest.json").read_text())["files"], name: "0" * 64})
    with pytest.raises(BundleError, match="which its manifest names"):
        load_bundle(folder)


def test_deeply_nested_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(folder)
