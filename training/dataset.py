"""Labelled recordings in: `labels.csv` as in the project's own data, and the ComParE 2019 Orca Activity layout.

Both readers give the same frozen records, refuse what would spoil an evaluation, and list every fault at once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ..errors import AudioError, TrainingError

Array = NDArray[np.float32]
Row = Mapping[str, str]

log = logging.getLogger(__name__)

LABELS = ("noise", "orca")
USED = ("train", "devel")
SPLITS = (*USED, "test")
COLUMNS = ("file_name", "label", "split", "group")
UNLABELLED = "?"
NOT_STATED = "not stated"
COMPARE_FOLDER = "ComParE2019_OrcaActivity"
COMPARE_LABELS = ("labels.csv", "DeepAL_ComParE.csv")
COMPARE_FOUR_CHANNEL = "wav_4channel"
FAULTS_SHOWN = 8


@dataclass(frozen=True)
class Clip:
    """One labelled mono sample: a file, or one channel of a file.

    Attributes
    ----------
    file_name : as the labels name it; channels of one file share it.
    path : where the file is.
    channel : index of the channel taken.
    label : `orca` or `noise`; in the test split `?` where it is not known.
    split : `train`, `devel`, or `test` where that is to be predicted.
    group : the recording; never on two sides of a split.
    kind, source, repository, licence : free text for augmentation and the model card, empty where unknown.
    seconds : length of the file.
    site : where it was recorded, empty where unknown.
    """

    file_name: str
    path: Path
    channel: int
    label: str
    split: str
    group: str
    kind: str
    source: str
    repository: str
    licence: str
    seconds: float
    site: str = ""


@dataclass(frozen=True)
class LoadedClip:
    """A clip with its audio: what fine-tuning and augmentation take.

    Attributes
    ----------
    waveform : float32, shape (samples,), at the rate of the front end that takes it.
    label, group, kind, source : as in `Clip`.
    """

    waveform: Array
    label: str
    group: str
    kind: str
    source: str


@dataclass(frozen=True)
class Fault:
    """A file that cannot be used, and why."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """What a reader found.

    Attributes
    ----------
    clips : the usable clips of train and devel, and of test where asked for, in the order of the labels.
    set_aside : files that cannot be used.
    recordings : `given` where the labels name the recordings, `one per file` where each file counts as one.
    """

    clips: tuple[Clip, ...]
    set_aside: tuple[Fault, ...]
    recordings: str


def read_labels(folder: Path, on_corrupt: str = "refuse", with_test: bool = False) -> Dataset:
    """Read `labels.csv` and the files in `wav/`.

    Columns file_name, label (`orca` or `noise`), split (`train`, `devel` or `test`) and group (the recording) are
    needed; kind, source, repository, licence and site are taken where they are. Training files of several channels
    become one clip per channel; devel and test files must be mono. Test files are not looked at unless asked for:
    only their rows are checked.

    Parameters
    ----------
    folder : holds `labels.csv` and `wav/`.
    on_corrupt : `refuse` or `set_aside` files whose header cannot be read.
    with_test : read the test split too, to predict it.

    Raises
    ------
    TrainingError : no labels, missing files or columns, unknown labels or splits, one class only, a recording on
        both sides of a split, or (with `refuse`) unreadable files; the text names them.
    """
    return _dataset([_labels_table(folder)], on_corrupt, with_test)


def read_all(
    layout: str, folders: Sequence[Path], on_corrupt: str = "refuse", with_test: bool = False, one_class: bool = False
) -> Dataset:
    """Read several folders as one data set: no recording, in whichever folder, is on two sides of a split.

    Parameters
    ----------
    layout : of the first folder, a key of `LAYOUTS`; the others have `labels.csv` and `wav/`.
    folders : at least one. A folder by itself may lack a class or a split.
    on_corrupt, with_test : as for `read_labels`.
    one_class : take data that lacks a class, which can be judged but not trained on.

    Raises
    ------
    TrainingError : as `read_labels`; also where two folders have a file of one name.
    """
    tables = [(LAYOUTS[layout] if number == 0 else _labels_table)(folder) for number, folder in enumerate(folders)]
    return _dataset(tables, on_corrupt, with_test, one_class)


@dataclass(frozen=True)
class Table:
    """The labels of one folder.

    Attributes
    ----------
    path : the file that they stand in.
    rows : one a file.
    path_of : where a row's file is.
    recordings : as in `Dataset`.
    """

    path: Path
    rows: Sequence[Row]
    path_of: Callable[[Row], Path]
    recordings: str = "given"


def _labels_table(folder: Path) -> Table:
    path = folder / "labels.csv"
    return Table(path, _read_csv(path, COLUMNS), partial(_path_of, folder))


def _path_of(folder: Path, row: Row) -> Path:
    return folder / "wav" / row["file_name"]


def read_compare2019(folder: Path, on_corrupt: str = "refuse", with_test: bool = False) -> Dataset:
    """Read the Orca Activity data of ComParE 2019 (paper section 2.5).

    Layout, as the challenge and its later public release (DeepAL_ComParE) pack it::

        FOLDER/ or FOLDER/ComParE2019_OrcaActivity/
            lab/labels.csv or lab/DeepAL_ComParE.csv    columns file_name,label (further columns are allowed)
            wav/train_*.wav  devel_*.wav  test_*.wav    mono
            wav_4channel/train_*.wav                    four-channel originals, optional; put them there under the
                                                        names of their mono versions

    The split is the file name's beginning. A training file is taken from `wav_4channel/` where it is there, else
    from `wav/`; each of its channels becomes one training clip (the paper's splitting). Evaluation takes the mono
    files of `wav/`, and refuses others. Test labels may be `?`.

    The layout names no recordings. A file is its own group, so all channels of a file share one group, but cuts of
    the same tape do not: intervals by recording are then too narrow. Where the recordings are known, add a column
    `group` to the labels; it is used and checked.

    Parameters and errors as `read_labels`.
    """
    return _dataset([_compare_table(folder)], on_corrupt, with_test)


def _compare_table(folder: Path) -> Table:
    root = folder / COMPARE_FOLDER if (folder / COMPARE_FOLDER).is_dir() else folder
    path = _compare_labels(root)
    as_read = _read_csv(path, ("file_name", "label"))
    recordings = "given" if all(row.get("group") for row in as_read) else "one per file"
    return Table(path, [_compare_row(row) for row in as_read], partial(_compare_path, root), recordings)


LAYOUTS: Mapping[str, Callable[[Path], Table]] = {"labels": _labels_table, "compare2019": _compare_table}


def _compare_labels(root: Path) -> Path:
    for name in COMPARE_LABELS:
        if (root / "lab" / name).is_file():
            return root / "lab" / name
    raise TrainingError(f"{root} has no lab/labels.csv: name the folder of the ComParE 2019 Orca Activity data")


def _compare_row(row: Row) -> dict[str, str]:
    stem = Path(row["file_name"]).stem
    named = {"split": stem.split("_")[0], "group": stem, "source": "ComParE 2019 Orca Activity (DeepAL Fieldwork)"}
    return {**named, **{key: value for key, value in row.items() if value}}


def _compare_path(root: Path, row: Row) -> Path:
    original = root / COMPARE_FOUR_CHANNEL / row["file_name"]
    return original if row["split"] == "train" and original.is_file() else root / "wav" / row["file_name"]


def _read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise TrainingError(f"there is no {path}: name the folder that holds the labels (--data FOLDER)")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in needed if name not in (reader.fieldnames or [])]
        if missing:
            raise TrainingError(f"{path} lacks the columns {missing}; it needs {list(needed)}")
        return [{key: value or "" for key, value in row.items() if key} for row in reader]


def _dataset(tables: Sequence[Table], on_corrupt: str, with_test: bool, one_class: bool = False) -> Dataset:
    where = " and ".join(str(table.path) for table in tables)
    used = [(row, table.path_of(row)) for table in tables for row in table.rows if with_test or row["split"] != "test"]
    clashes = [*_shared_recordings(tables), *_shared_names(tables)]
    faults = [fault for table in tables for fault in _row_faults(table.rows)]
    _raise_if(where, [*faults, *clashes, *_missing([path for _, path in used])])
    clips, set_aside = list[Clip](), list[Fault]()
    for row, path in used:
        try:
            clips += _clips_of(row, path)
        except AudioError as fault:
            set_aside.append(Fault(row["file_name"], str(fault)))
        except TrainingError as fault:
            faults.append(str(fault))
    if on_corrupt == "refuse":
        faults += [fault.reason for fault in set_aside]
    _raise_if(where, faults)
    if not one_class:
        check_classes(clips, where)
    given = all(table.recordings == "given" for table in tables)
    return Dataset(tuple(clips), tuple(set_aside), "given" if given else "one per file")


def _raise_if(table: str, faults: Sequence[str]) -> None:
    if faults:
        shown = "\n  ".join(faults[:FAULTS_SHOWN])
        more = f"\n  and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise TrainingError(f"{table} cannot be trained on:\n  {shown}{more}")


def _row_faults(rows: Sequence[Row]) -> list[str]:
    faults = [] if rows else ["it has no rows"]
    counts = Counter(row["file_name"] for row in rows)
    faults += [f"{name} is listed {count} times" for name, count in counts.items() if count > 1]
    for row in rows:
        faults += _label_faults(row)
    return faults


def _label_faults(row: Row) -> list[str]:
    faults = []
    allowed = (*LABELS, UNLABELLED) if row["split"] == "test" else LABELS
    if row["label"] not in allowed:
        faults.append(f"{row['file_name']}: label must be one of {list(allowed)}, not {row['label']!r}")
    if row["split"] not in SPLITS:
        faults.append(f"{row['file_name']}: split must be one of {list(SPLITS)}, not {row['split']!r}")
    if not row["group"]:
        faults.append(f"{row['file_name']}: group is empty; it must name the recording")
    return faults


def _missing(paths: Sequence[Path]) -> list[str]:
    missing = [path for path in paths if not path.is_file()]
    shown = ", ".join(str(path) for path in missing[:FAULTS_SHOWN])
    return [f"{len(missing)} of {len(paths)} files are missing: {shown}"] if missing else []


def _clips_of(row: Row, path: Path) -> list[Clip]:
    """One clip per channel of a training file, the one channel of another; AudioError for an unreadable header."""
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as fault:
        raise AudioError(f"{path} cannot be read: {fault}") from fault
    if row["split"] != "train" and header.channels != 1:
        raise TrainingError(f"{path}: evaluation takes mono files, this one has {header.channels} channels")
    return [_clip(row, path, channel, header.duration) for channel in range(header.channels)]


def _clip(row: Row, path: Path, channel: int, seconds: float) -> Clip:
    known = {name: row[name] for name in ("file_name", "label", "split", "group")}
    free = {name: row.get(name, "") for name in ("kind", "source", "repository", "licence", "site")}
    return Clip(path=path, channel=channel, seconds=float(seconds), **known, **free)


def check_classes(clips: Iterable[Clip], where: str) -> None:
    """Raise TrainingError where train or devel lacks a class."""
    there = {(clip.split, clip.label) for clip in clips}
    faults = [
        f"split {split} has no {label} clip; training and evaluation need both classes"
        for split in USED
        for label in LABELS
        if (split, label) not in there
    ]
    _raise_if(where, faults)


def _shared_recordings(tables: Sequence[Table]) -> list[str]:
    sides: dict[str, dict[str, Path]] = {}
    for table in tables:
        for row in table.rows:
            sides.setdefault(row["group"], {})[row["split"]] = table.path
    return [
        f"recording {group} stands in {_told(splits, len(tables) > 1)}: a recording must be in one split, or the "
        "evaluation measures memory; move all its clips to one side"
        for group, splits in sorted(sides.items())
        if group and len(splits) > 1
    ]


def _told(splits: Mapping[str, Path], with_paths: bool) -> str:
    return " and ".join(f"{split} ({path})" if with_paths else split for split, path in sorted(splits.items()))


def _shared_names(tables: Sequence[Table]) -> list[str]:
    """Files that two folders name alike; that one folder does so is told by `_row_faults`."""
    places: dict[str, list[Path]] = {}
    for table in tables:
        for name in {row["file_name"] for row in table.rows}:
            places.setdefault(name, []).append(table.path)
    return [
        f"{name} is in {' and '.join(map(str, paths))}: give one of the two files another name"
        for name, paths in sorted(places.items())
        if len(paths) > 1
    ]


def load_waveform(clip: Clip, shortest_s: float, lowest_rate_hz: int = 1) -> tuple[Array, int]:
    """Audio of a clip as recorded: float32, shape (samples,), full scale 1.0; and its rate.

    Raises
    ------
    AudioError : the file cannot be decoded, is cut off, holds values that are not finite, is shorter than `shortest_s`
        (a front end's frame), or slower than `lowest_rate_hz` (a front end's bands).
    """
    samples, rate_hz = _decode(clip)
    if not np.isfinite(samples).all():
        raise AudioError(f"{clip.path} holds samples that are not finite: decode it again or leave it out")
    if rate_hz < lowest_rate_hz:
        raise AudioError(
            f"{clip.path} has {rate_hz} samples a second; at least {lowest_rate_hz} are needed: the calls' band is "
            "missing from slower audio"
        )
    if len(samples) < shortest_s * rate_hz:
        raise AudioError(f"{clip.path} lasts {len(samples) / rate_hz:.3f} s; at least {shortest_s:g} s are needed")
    return samples, rate_hz


def _decode(clip: Clip) -> tuple[Array, int]:
    try:
        with soundfile.SoundFile(str(clip.path)) as file:
            expected, rate_hz = len(file), file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as fault:
        raise AudioError(f"{clip.path} cannot be decoded: {fault}") from fault
    if len(samples) < expected:
        raise AudioError(f"{clip.path} is cut off: {len(samples)} of {expected} samples are there")
    return np.ascontiguousarray(samples[:, clip.channel]), int(rate_hz)


def resample(samples: Array, from_hz: int, to_hz: int) -> Array:
    """Samples (samples,) at another rate, by the resampler that the edge streams through."""
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    resampled: Array = stream.resample_chunk(samples[:, None], last=True)[:, 0]
    return np.ascontiguousarray(resampled)


def load_each(
    clips: Sequence[Clip], shortest_s: float, lowest_rate_hz: int, faults: list[Fault], progress: Any
) -> Iterator[tuple[Clip, Array, int]]:
    """Yield each clip that can be decoded with its audio and rate, one at a time; the others are added to `faults`.

    Parameters
    ----------
    clips : from a reader.
    shortest_s, lowest_rate_hz : shorter clips, and slower audio, are faults, as the edge refuses them.
    progress : wraps an iterable, as `tqdm.tqdm` does.
    """
    for clip in progress(clips):
        try:
            samples, rate_hz = load_waveform(clip, shortest_s, lowest_rate_hz)
        except AudioError as fault:
            log.warning("set aside: %s", fault)
            faults.append(Fault(clip.file_name, str(fault)))
        else:
            yield clip, samples, rate_hz


def check_usable(usable: Sequence[Clip], faults: Sequence[Fault], on_corrupt: str) -> None:
    """Raise TrainingError where clips are corrupt and are to be refused, or what remains cannot be trained on."""
    if on_corrupt == "refuse":
        _raise_if("the data", [fault.reason for fault in faults])
    check_classes(usable, "what remains of the data")


def loaded(clips: Sequence[Clip], waveforms: Sequence[Array]) -> list[LoadedClip]:
    """Clips with their audio."""
    return [LoadedClip(w, clip.label, clip.group, clip.kind, clip.source) for clip, w in zip(clips, waveforms)]


def fingerprint(clips: Sequence[Clip]) -> str:
    """SHA-256 over names, channels, labels, splits, groups and the files' content: names exactly this data.

    It does not depend on the order of the labels, nor on where the files are.
    """
    contents = {path: file_digest(path) for path in {clip.path for clip in clips}}
    lines = sorted(json.dumps([c.file_name, c.channel, c.label, c.split, c.group, contents[c.path]]) for c in clips)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def counts(clips: Sequence[Clip]) -> dict[str, Any]:
    """Clips, seconds and recordings by split and label, and clips by where they come from, for the model card."""
    classes = [(split, label) for split in USED for label in LABELS]
    classes += [("test", label) for label in (*LABELS, UNLABELLED) if any(_is(c, "test", label) for c in clips)]
    splits = [
        {"split": split, "label": label, **_amounts([c for c in clips if _is(c, split, label)])}
        for split, label in classes
    ]
    origins = Counter((c.repository or NOT_STATED, c.licence or NOT_STATED, c.split) for c in clips)
    sources = [dict(zip(("repository", "licence", "split"), key), clips=n) for key, n in sorted(origins.items())]
    return {"splits": splits, "sources": sources}


def _is(clip: Clip, split: str, label: str) -> bool:
    return (clip.split, clip.label) == (split, label)


def _amounts(clips: Sequence[Clip]) -> dict[str, Any]:
    groups = len({clip.group for clip in clips})
    return {"clips": len(clips), "seconds": round(sum(clip.seconds for clip in clips), 1), "groups": groups}


def to_json(clip: Clip) -> dict[str, Any]:
    """A clip as JSON takes it."""
    return {**asdict(clip), "path": str(clip.path)}


def from_json(fields: Mapping[str, Any]) -> Clip:
    """The clip that `to_json` wrote."""
    return Clip(**{**fields, "path": Path(fields["path"])})
