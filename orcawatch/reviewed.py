"""Training data from verdicts: clips, `labels.csv` as `orcawatch train` reads it, and where each clip came from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from .durable import make_folder, write_bytes
from .effort import database
from .errors import AudioError, InputError, OrcawatchError
from .files import reason
from .formats import quoted_line
from .recorder import file_name
from .selection import Row, Wanted, read_rows, read_runs
from .store import Detection, Store

log = logging.getLogger(__name__)

LABELS_FILE, MANIFEST, WAV = "labels.csv", "manifest.json", "wav"
LABELS = {"orca": "orca", "not_orca": "noise"}  # by verdict; what is unsure teaches nothing
COLUMNS = (
    "file_name", "label", "split", "group", "kind", "source", "seconds", "native_rate", "repository", "licence",
    "note", "site",
)  # fmt: skip
SCHEMA = 1
MARGIN_S = 0.25  # of sound before and after an event that is kept with it

Array = NDArray[np.float32]
Clip = dict[str, Any]  # a clip of the manifest: `labels`, its row, and where it came from


@dataclass(frozen=True)
class Choices:
    """How a data set is made.

    Attributes
    ----------
    devel_share : share of the recordings that go to the devel split, 0 to 1.
    margin_s : of sound kept before and after an event that is an orca's.
    licence : of the recordings, for the model card; may be empty.
    """

    devel_share: float = 0.2
    margin_s: float = MARGIN_S
    licence: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no data set."""
        if not 0 <= self.devel_share <= 1:
            raise InputError(f"the devel share must be 0 to 1, not {self.devel_share}")
        if self.margin_s < 0:
            raise InputError(f"the margin must be 0 s or more, not {self.margin_s}")


@dataclass
class Outcome:
    """What became of an export.

    Attributes
    ----------
    added, changed, kept, dropped : clips that are new, that stand under another label or split than before, that were
        there already, and that were taken out because their verdict was taken back or is unsure now.
    unsure : detections left out because nobody is sure.
    lost : detections whose clip is gone, and why.
    """

    added: int = 0
    changed: int = 0
    kept: int = 0
    dropped: int = 0
    unsure: int = 0
    lost: list[str] = field(default_factory=list)


def recording_of(row: Row) -> str:
    """The recording that a detection belongs to, which is never on two sides of a split.

    A file is a recording, by its name, wherever it lies: the same file found by two scans is one. What was heard live
    is one recording a day (UTC) and station, however often the program was started: the same animals, ships and
    squeaks are heard all day.
    """
    found = row.detection
    if not row.live:
        return PurePosixPath(found.source).name
    day = f"session {found.session}" if row.start_utc is None else f"{row.start_utc:%Y-%m-%d}"
    return f"{found.station or found.source} {day}"


def split_of(recording: str, devel_share: float) -> str:
    """`train` or `devel`, by the recording's name alone: a later export finds the same."""
    number = int.from_bytes(hashlib.sha256(f"split {recording}".encode()).digest()[:8], "big")
    return "devel" if number < devel_share * 2**64 else "train"


def key_of(found: Detection) -> str:
    """What tells a detection from all others, also where its output folder was copied or moved."""
    parts = [found.id, found.source, found.station, found.session, found.start_s, found.end_s, found.bundle_digest]
    text = json.dumps([*parts, str(found.start_utc)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- the data set on the disk -----------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Clip]:
    """Clips by key of a data set that was exported before; empty for a folder that is not there, or empty.

    Raises
    ------
    InputError : the folder holds something else.
    """
    path = folder / MANIFEST
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} holds something else than exported verdicts: name a new folder")
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        clips: dict[str, Clip] = manifest["clips"] if manifest["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{path} cannot be read ({fault}): name a new folder") from fault
    if manifest["schema"] != SCHEMA:
        raise InputError(f"{path} has schema {manifest['schema']}, this version writes {SCHEMA}: name a new folder")
    return clips


def write_data(folder: Path, clips: Mapping[str, Clip]) -> None:
    """Write labels and manifest, and delete clips that are no longer named, in this order."""
    ordered = sorted(clips.values(), key=lambda clip: str(clip["labels"]["file_name"]))
    manifest = {"schema": SCHEMA, "clips": {key: clips[key] for key in sorted(clips)}}
    write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    write_bytes(folder / LABELS_FILE, labels_text([clip["labels"] for clip in ordered]).encode())
    named = {clip["labels"]["file_name"] for clip in ordered}
    for path in (folder / WAV).iterdir():
        if path.name not in named:
            path.unlink()


def labels_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """`labels.csv`."""
    return quoted_line(COLUMNS) + "".join(quoted_line(row.get(name, "") for name in COLUMNS) for row in rows)


# --- the export -------------------------------------------------------------------------------------------------------


def export(outputs: Sequence[Path], folder: Path, choices: Choices) -> Outcome:
    """Bring a data set up to date with the verdicts in some output folders.

    Every clip is whole or absent, and labels and manifest are replaced in one step each. What came from output folders
    that are not named stays as it is; so does a clip whose sound has been deleted since, as long as its verdict does.
    A recording that is in the data set stays on its side, whatever `devel_share` says now.

    Raises
    ------
    InputError : no database, or a folder that holds something else.
    OrcawatchError : the disk refuses.
    """
    before = read_manifest(folder)
    sides = {clip["labels"]["group"]: clip["labels"]["split"] for clip in before.values()}
    clips, outcome = dict(before), Outcome()
    found = [(output, row) for output in outputs for row in reviewed_rows(output)]
    try:
        make_folder(folder / WAV)
        write_data(folder, before)
        for output, row in found:
            _take(output, row, folder, choices, sides, clips, outcome)
        write_data(folder, clips)
    except OSError as fault:
        raise OrcawatchError(f"{folder} cannot be written: {fault.strerror or fault}; check the disk") from fault
    return outcome


def reviewed_rows(output: Path) -> list[Row]:
    """Every detection of an output folder, reviewed or not: a verdict may have been taken back."""
    with Store.reader(database(output)) as reader, reader.transaction() as connection:
        return list(read_rows(connection, read_runs(connection), Wanted()))


def _take(
    output: Path,
    row: Row,
    folder: Path,
    choices: Choices,
    sides: dict[str, str],
    clips: dict[str, Clip],
    outcome: Outcome,
) -> None:
    """Enter, change, keep or take out the clip of one detection."""
    found, key = row.detection, key_of(row.detection)
    was = clips.pop(key, None)
    if found.verdict not in LABELS:
        outcome.unsure += found.verdict is not None
        outcome.dropped += was is not None
        return
    clip = describe(output, row, key, sides.get(recording_of(row)), choices)
    labels = clip["labels"]
    try:
        labels.update(_sound(output, found, folder / WAV / labels["file_name"], labels["split"], choices))
    except AudioError as fault:
        outcome.dropped += was is not None
        outcome.lost.append(f"detection {found.id} of {output}: {fault}")
        return
    clips[key] = clip
    sides[labels["group"]] = labels["split"]
    outcome.added += was is None
    outcome.kept += was is not None and was["labels"]["file_name"] == labels["file_name"]
    outcome.changed += was is not None and was["labels"]["file_name"] != labels["file_name"]


def describe(output: Path, row: Row, key: str, side: str | None, choices: Choices) -> Clip:
    """A clip of the manifest, without its length and rate.

    The name of its file holds the verdict, the split and the margin: a file is never written over with other sound.
    """
    found, recording = row.detection, recording_of(row)
    site = found.station or output.resolve().name
    split = side or split_of(recording, choices.devel_share)
    margin = f"{choices.margin_s:g}" if found.verdict == "orca" else ""
    suffix = PurePosixPath(found.clip or ".flac").suffix
    labels = {
        "file_name": f"{file_name(found)}_{key[:8]}_{found.verdict}{margin}_{split}{suffix}",
        "label": LABELS[str(found.verdict)],
        "split": split,
        "group": recording,
        "kind": "orca" if found.verdict == "orca" else "reviewed",
        "source": f"reviewed: {site}",
        "repository": f"own recordings, {site}",
        "licence": choices.licence,
        "note": " ".join(found.verdict_note.split()),
        "site": site,
    }
    return {"labels": labels, **origin(output, found)}


def origin(output: Path, found: Detection) -> dict[str, Any]:
    """Where a clip came from, and who said what it is."""
    names = ("id", "source", "session", "start_s", "end_s", "channels", "score", "bundle", "bundle_digest", "verdict")
    told = {name: value for name, value in asdict(found).items() if name in (*names, "reviewer")}
    utc = {name: None if at is None else at.astimezone(timezone.utc).isoformat() for name, at in _times(found).items()}
    return {"output": str(output.resolve()), **told, **utc}


def _times(found: Detection) -> dict[str, datetime | None]:
    return {"start_utc": found.start_utc, "verdict_utc": found.verdict_utc}


def _sound(output: Path, found: Detection, path: Path, split: str, choices: Choices) -> dict[str, Any]:
    """Write a clip where it is not there yet; its length and rate."""
    if not path.exists():
        samples, rate_hz, subtype = _decoded(output, found)
        if found.verdict == "orca":
            samples = cut(samples, rate_hz, found, choices.margin_s)
        encoded = io.BytesIO()
        chosen = samples[:, _channels(samples, found, split)]
        kind = "FLAC" if path.suffix == ".flac" else "WAV"
        soundfile.write(encoded, chosen, rate_hz, format=kind, subtype=subtype)
        write_bytes(path, encoded.getvalue())
    header = soundfile.info(str(path))
    return {"seconds": round(header.duration, 3), "native_rate": header.samplerate}


def _decoded(output: Path, found: Detection) -> tuple[Array, int, str]:
    """Samples (samples, channels) of a detection's clip, rate and kind of sample; AudioError where it is gone."""
    if found.clip is None:
        raise AudioError("it has no clip")
    if found.removed is not None:
        raise AudioError(f"its clip was deleted: {found.removed}")
    folder = database(output).parent.resolve()
    place = (folder / found.clip).resolve()
    if folder not in place.parents:  # a database may come from anybody
        raise AudioError(f"{found.clip} leads out of {folder}")
    try:
        with soundfile.SoundFile(str(place)) as file:
            return file.read(dtype="float32", always_2d=True), int(file.samplerate), str(file.subtype)
    except (soundfile.SoundFileError, OSError) as fault:
        raise AudioError(f"{place} cannot be read: {reason(fault)}") from fault


def cut(samples: Array, rate_hz: int, found: Detection, margin_s: float) -> Array:
    """The event with its margin; all of the clip where it is not known where in it the event is."""
    if found.clip_start_s is None:
        log.warning("detection %s: its clip is from before their starts were kept, and is taken whole", found.id)
        return samples
    first = max(0, round((found.start_s - margin_s - found.clip_start_s) * rate_hz))
    last = round((found.end_s + margin_s - found.clip_start_s) * rate_hz)
    if last <= first or first >= len(samples):
        raise AudioError(f"its clip of {len(samples) / rate_hz:.2f} s does not hold its event")
    return samples[first:last]


def _channels(samples: Array, found: Detection, split: str) -> list[int]:
    """All channels that hold sound, to train on; the best one alone, to judge by."""
    best = found.channels.index(found.best_channel) if found.best_channel in found.channels else 0
    best = min(best, samples.shape[1] - 1)
    heard = np.flatnonzero(np.abs(samples).max(axis=0) > 0).tolist()
    return [best] if split != "train" or not heard else heard
