"""The bundle: the only thing that training and the buoy share.

A folder with `manifest.json`, one or two TFLite files per backbone, one for the heads, and `model-card.md`. It is
written whole or not at all, and refused when a hash, the schema or the front end does not fit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cascade import Cascade, cascade_from, check_cascade
from .durable import sync_folder, write_bytes
from .errors import BundleError, OrcawatchError
from .spectrogram import FrontEnd, front_end_from_dict, has_prominence

SCHEMA = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"  # see `signing`; no manifest names it, for it covers the manifest
CARD = "model-card.md"
SHIPPED = Path(__file__).parent / "first_light"
BLOCK_BYTES = 1 << 20
MOST_CONSTANT = 1_000_000  # of a front end
MOST_CELLS = 1 << 24  # of a window's frames, its spectrogram, or its bands' weights


@dataclass(frozen=True)
class BackboneFile:
    """One backbone of a bundle.

    Attributes
    ----------
    name : of the plugin.
    file : with the signature `features`.
    explain_file : with the signature `explain`; the same in bundles from before November 2026.
    feature_size : length of its feature vector.
    front_end : what makes its spectrograms.
    """

    name: str
    file: str
    explain_file: str
    feature_size: int
    front_end: FrontEnd

    @property
    def files(self) -> list[str]:
        """Names of its files."""
        return list(dict.fromkeys((self.file, self.explain_file)))


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes
    ----------
    folder : where it is.
    name : for records.
    backbones : by name, in the order in which the heads take their features.
    members : names of the heads' outputs, in order.
    vote : the members whose confidences are averaged (paper section 2.1).
    hop_s : distance between windows.
    channel_fusion : how the channels' scores become one: `max` or `mean`.
    start_threshold, stop_threshold : fused scores at which an event starts and ends.
    manifest : everything as written.
    cascade : which backbones are heard when.
    """

    folder: Path
    name: str
    backbones: Mapping[str, BackboneFile]
    members: tuple[str, ...]
    vote: tuple[str, ...]
    hop_s: float
    channel_fusion: str
    start_threshold: float
    stop_threshold: float
    manifest: Mapping[str, Any]
    cascade: Cascade = field(default_factory=Cascade)

    @property
    def digest(self) -> str:
        """Hash of the manifest, which holds every file's hash: names exactly this bundle in records."""
        return str(self.manifest["digest"])

    def backbones_of(self, members: Sequence[str]) -> tuple[str, ...]:
        """The backbones whose features these members take, in the bundle's order.

        Where the manifest does not say it (bundles of one backbone), every backbone is named.
        """
        fusion = self.manifest.get("fusion", {})
        needed = {name for member in members for name in fusion.get(member, self.backbones)}
        return tuple(name for name in self.backbones if name in needed)


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; the file is read in blocks, so it may be larger than the memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's content without its own `digest`, whatever its layout in the file."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle.

    Raises
    ------
    BundleError : no such folder, unreadable manifest, unknown schema, a missing, changed or surplus file, or a front
        end that this version does not know.
    """
    manifest = _read_manifest(folder)
    _verify_files(folder, manifest)
    try:
        return _bundle(folder, manifest)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as fault:
        raise BundleError(f"{folder / MANIFEST} lacks or garbles {fault}: make the bundle again") from fault


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; name the folder that holds one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise BundleError(f"{path} cannot be read: {fault}; copy the bundle again") from fault
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise BundleError(f"{path} has schema {schema!r}; this version reads {SCHEMA}: upgrade orcawatch or the bundle")
    if manifest.get("digest") != manifest_digest(manifest):
        raise BundleError(f"{path} is damaged or was edited: its digest does not fit; copy or make the bundle again")
    return dict(manifest)


def _verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    named = manifest.get("files")
    if not isinstance(named, dict) or not named:
        raise BundleError(f"{folder / MANIFEST} names no files: make the bundle again")
    there = {path.name for path in folder.iterdir()}
    if surplus := sorted(there - {MANIFEST, SIGNATURE, *named}):
        raise BundleError(f"{folder} holds {surplus}, which its manifest does not name: remove them")
    for name, expected in named.items():
        path = folder / name
        if name == SIGNATURE:
            raise BundleError(f"{folder / MANIFEST} names its own signature, {name}: make the bundle again")
        if name not in there or not path.is_file():
            raise BundleError(f"{folder} lacks {name}, which its manifest names: copy the bundle again")
        if (found := sha256(path)) != expected:
            raise BundleError(
                f"{path} is damaged: its SHA-256 is {found[:12]}..., the manifest says {str(expected)[:12]}...; "
                "copy the bundle again"
            )


def _bundle(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    backbones = {
        entry["name"]: BackboneFile(
            entry["name"],
            entry["file"],
            entry.get("explain_file", entry["file"]),
            int(entry["feature_size"]),
            _front_end(entry["front_end"]),
        )
        for entry in manifest["backbones"]
    }
    thresholds = manifest["thresholds"]
    bundle = Bundle(
        folder=folder,
        backbones=backbones,
        name=str(manifest["name"]),
        members=tuple(manifest["members"]),
        vote=tuple(manifest["vote"]),
        hop_s=float(manifest["hop_s"]),
        channel_fusion=str(manifest["channel_fusion"]),
        start_threshold=float(thresholds["start"]),
        stop_threshold=float(thresholds["stop"]),
        manifest=manifest,
        cascade=cascade_from(manifest.get("cascade")),
    )
    _check(bundle)
    return bundle


def _front_end(constants: dict[str, Any]) -> FrontEnd:
    """The front end of a manifest; raises ValueError where its constants would take all memory, or make no window."""
    found: Any = front_end_from_dict(constants)
    for name, default in asdict(type(found)()).items():
        value = getattr(found, name)
        if not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
            raise ValueError(f"front_end.{name} (a {type(default).__name__}, not {value!r})")
        if isinstance(value, (int, float)) and not 0 <= value <= MOST_CONSTANT:
            raise ValueError(f"front_end.{name} (0 to {MOST_CONSTANT}, not {value!r})")
    height, width, planes = found.shape
    cells = max(found.frames * found.frame_samples, height * width * planes, found.fft_size * width)
    if min(found.frames, found.hop_samples, height, width) < 1 or cells > MOST_CELLS:
        raise ValueError(f"front_end: no window of at most {MOST_CELLS} numbers comes of {constants}")
    if found.frame_samples > found.fft_size or not 0 <= found.low_hz < found.high_hz <= found.rate_hz / 2:
        raise ValueError(f"front_end: its bands do not lie in the spectrum of a frame: {constants}")
    front_end: FrontEnd = found
    return front_end


def _check(bundle: Bundle) -> None:
    where = bundle.folder / MANIFEST
    if not bundle.backbones_of(bundle.members):
        raise BundleError(f"{where}: fusion must name backbones {list(bundle.backbones)} for each member")
    if not bundle.vote or not set(bundle.vote) <= set(bundle.members):
        raise BundleError(f"{where}: vote must name members {list(bundle.members)}, not {list(bundle.vote)}")
    if bundle.channel_fusion not in ("max", "mean"):
        raise BundleError(f"{where}: channel_fusion must be max or mean, not {bundle.channel_fusion!r}")
    for entry in bundle.backbones.values():
        window_s = entry.front_end.frames * entry.front_end.hop_samples / entry.front_end.rate_hz
        if not 0 < bundle.hop_s <= window_s:
            raise BundleError(f"{where}: hop_s must be at most {window_s:g} s (one window), not {bundle.hop_s:g}")
    if not 0 <= bundle.stop_threshold <= bundle.start_threshold <= 1:
        raise BundleError(f"{where}: thresholds must be 0 <= stop <= start <= 1")
    try:
        check_cascade(bundle.cascade, bundle.members, tuple(bundle.backbones), bundle.backbones_of)
    except ValueError as fault:
        raise BundleError(f"{where}: {fault}: make the bundle again") from fault
    for name in {gate.prominence_of for gate in bundle.cascade.gates if gate.prominence_of}:
        if not has_prominence(bundle.backbones[name].front_end):
            raise BundleError(f"{where}: the spectrogram of {name} has no floor to stand out of: make the bundle again")
    used = [name for entry in bundle.backbones.values() for name in entry.files]
    for name in [*used, bundle.manifest["heads"]["file"]]:
        if name not in bundle.manifest["files"]:
            raise BundleError(f"{where}: {name} is used but its hash is not listed")


def write_bundle(folder: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a bundle whole or not at all; hashes are added to the manifest here.

    Parameters
    ----------
    folder : must not exist yet.
    manifest : everything but `schema` and `files`.
    files : content by name.

    Raises
    ------
    BundleError : the folder exists.
    OrcawatchError : the disk refuses; nothing is left under the folder's name.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists already: name a new folder, or move the old bundle away")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    content = {"schema": SCHEMA, **manifest, "files": hashes}
    text = json.dumps({**content, "digest": manifest_digest(content)}, indent=1, sort_keys=True) + "\n"
    _write_whole(folder, {**files, MANIFEST: text.encode()})


def _write_whole(folder: Path, files: Mapping[str, bytes]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            write_bytes(partial / name, data)
        partial.rename(folder)
    except OSError as fault:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(len(data) for data in files.values()) / 1e6
        raise OrcawatchError(
            f"{folder} ({needed:.1f} MB) could not be written: {fault}; make room, or name another folder"
        ) from fault
    sync_folder(folder.parent)
