"""Two bundles on the same clips: what changed, with intervals by recording, and whether that can be told at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .detector import Scorer
from .durable import write_bytes
from .errors import InputError
from .files import FileSource
from .listener import Listener
from .metrics import DRAWS, Interval, Resamples, percentile_interval, resample, resampled_aucs, roc_auc_rows

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

COLUMNS = ("file_name", "label", "split", "group")
LEAST_RECORDINGS = 5  # with fewer, resampled recordings say nothing
ALL = "all"
SMALL = {"auc": 0.02, "recall": 0.05, "false_alarms_per_hour": 0.1}  # differences that nobody would act on; the last
NAMES = {"auc": "ROC AUC", "recall": "recall", "false_alarms_per_hour": "false alarms an hour"}  # is a share of the old
BETTER = {"auc": 1, "recall": 1, "false_alarms_per_hour": -1}


@dataclass(frozen=True)
class Scores:
    """What one bundle says of the clips.

    Attributes
    ----------
    mean, highest : over the windows of each clip, shape (clips,); the first is what the AUC takes, the second what
        starts an event.
    start : the bundle's start threshold.
    """

    mean: Floats
    highest: Floats
    start: float


@dataclass(frozen=True)
class Figure:
    """One figure of both bundles.

    Attributes
    ----------
    name : a key of `NAMES`.
    old, new, difference : with 95 % intervals; None where there is nothing to count, `low` and `high` not a number
        where there are too few recordings for an interval. The difference is new less old, on the same resamples.
    verdict : in words.
    """

    name: str
    old: Interval | None
    new: Interval | None
    difference: Interval | None
    verdict: str


@dataclass(frozen=True)
class Part:
    """The figures of all clips, or of one site.

    Attributes
    ----------
    name : `all`, or the site.
    orca, noise : clips of each.
    recordings : of each, orca and noise.
    noise_hours : length of the noise.
    figures : ROC AUC, recall and false alarms.
    """

    name: str
    orca: int
    noise: int
    recordings: tuple[int, int]
    noise_hours: float
    figures: tuple[Figure, ...]

    @property
    def is_small(self) -> bool:
        """Whether no figure has an interval."""
        return all(one.difference is None or not one.difference.draws for one in self.figures)


# --- scores -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """One labelled file.

    Attributes
    ----------
    path : the file, of which the first channel is scored.
    label : `orca` or `noise`.
    group : the recording.
    site : where it was recorded: the column `site`, else `source`, else the recording.
    seconds : its length.
    """

    path: Path
    label: str
    group: str
    site: str
    seconds: float


def clips_of(folders: Sequence[Path], split: str) -> list[Clip]:
    """Clips of one split of data sets in the labels.csv layout; those whose label is not known are left out.

    Raises
    ------
    InputError : there are no labels, or no labelled clip in the split, a file is named twice, or a recording is in the
        train split, too.
    AudioError : a file cannot be read.
    """
    rows = [(folder, row) for folder in folders for row in read_labels(folder / "labels.csv")]
    inside = {row["group"] for _, row in rows if row["split"] == split}
    if both := sorted(inside & {row["group"] for _, row in rows if row["split"] == "train" != split}):
        raise InputError(f"recording {both[0]} stands in {split} and in train: move all its clips to one side")
    names = [row["file_name"] for _, row in rows if row["split"] == split]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{twice[0]} is named twice in the split {split}: give one of the two files another name")
    wanted = [(folder, row) for folder, row in rows if row["split"] == split and row["label"] in ("orca", "noise")]
    clips = [clip_of(folder / "wav" / row["file_name"], row) for folder, row in wanted]
    if not clips:
        raise InputError(f"{' and '.join(map(str, folders))} holds no labelled clip of the split {split}")
    return clips


def clip_of(path: Path, row: Mapping[str, str]) -> Clip:
    """The clip of a row."""
    site = row.get("site") or row.get("source") or row["group"]
    return Clip(path, row["label"], row["group"], site, FileSource(path).duration_s)


def read_labels(path: Path) -> list[dict[str, str]]:
    """Rows of a labels.csv.

    Raises
    ------
    InputError : it is not there, is no text, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}: name the folder that holds the labels (--data FOLDER)")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
                raise InputError(f"{path} lacks the columns {missing}; it needs {list(COLUMNS)}")
            return [{name: value or "" for name, value in row.items() if name} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise InputError(f"{path} cannot be read: {fault}; save it as CSV in UTF-8") from fault


def score_clips(clips: Sequence[Clip], ensemble: Scorer) -> Scores:
    """Scores of clips as `orcawatch scan` computes them.

    Raises
    ------
    AudioError : a clip cannot be read or scored.
    """
    windows = [window_scores(clip, ensemble) for clip in clips]
    mean, highest = (np.array([of(scores) for scores in windows], np.float64) for of in (np.mean, np.max))
    return Scores(mean, highest, ensemble.bundle.start_threshold)


def window_scores(clip: Clip, ensemble: Scorer) -> list[float]:
    """Score of every window of a clip."""
    listener = Listener(FileSource(clip.path), ensemble, (0,))
    scores = [window.score for _, windows in listener.listen(Flag()) for window in windows]
    totals = listener.totals()
    if totals.fault is not None:
        raise totals.fault
    return scores


# --- figures ----------------------------------------------------------------------------------------------------------


def compare(clips: Sequence[Clip], old: Scores, new: Scores, draws: int = DRAWS, seed: int = 0) -> list[Part]:
    """Figures of all clips, then site by site (the column `site`, else the source) where there are several.

    Parameters
    ----------
    clips : those that were scored.
    old, new : their scores by each bundle.
    draws, seed : number of resamples of whole recordings, and their seed.
    """
    sites = np.array([clip.site for clip in clips])
    names = sorted(set(sites.tolist()))
    chosen = [(ALL, np.ones(len(clips), bool))] + [(name, sites == name) for name in names if len(names) > 1]
    return [part_of(name, clips, old, new, there, draws, seed) for name, there in chosen]


def part_of(name: str, clips: Sequence[Clip], old: Scores, new: Scores, there: Flags, draws: int, seed: int) -> Part:
    """Figures of the clips that are `there`."""
    some = [clip for clip, chosen in zip(clips, there) if chosen]
    orca = np.array([clip.label == "orca" for clip in some])
    hours = np.where(orca, 0.0, [clip.seconds / 3600 for clip in some])
    drawn = resample([clip.group for clip in some], draws, seed)
    both = [Scores(one.mean[there], one.highest[there], one.start) for one in (old, new)]
    called = [one.highest >= one.start for one in both]
    with_orca, with_noise = (len({c.group for c in some if c.label == label}) for label in ("orca", "noise"))
    figures = (
        auc_figure(both, orca, drawn, min(with_orca, with_noise)),
        share_figure("recall", called, orca, orca.astype(float), drawn, with_orca),
        share_figure("false_alarms_per_hour", called, ~orca, hours, drawn, with_noise),
    )
    clips_of_each = int(orca.sum()), int((~orca).sum())
    return Part(name, *clips_of_each, (with_orca, with_noise), float(hours.sum()), figures)


def auc_figure(both: Sequence[Scores], orca: Flags, drawn: Resamples, recordings: int) -> Figure:
    """ROC AUC of the clips' mean scores."""
    if orca.all() or not orca.any():
        return Figure("auc", None, None, None, "needs orca and noise")
    rows = np.stack([one.mean for one in both])
    return figure("auc", roc_auc_rows(rows, orca), resampled_aucs(rows, orca, drawn), recordings)


def share_figure(
    name: str, called: Sequence[Flags], counted: Flags, per: Floats, drawn: Resamples, recordings: int
) -> Figure:
    """Clips that are called and count, per clip or hour."""
    if not per.sum():
        return Figure(name, None, None, None, "no clip of this kind")
    times = drawn.clips(np.ones(len(counted), bool))
    below = per @ times
    hits = np.stack([(one & counted).astype(float) for one in called])
    shares = np.divide(hits @ times, below, out=np.full((2, len(below)), np.nan), where=below > 0)
    return figure(name, hits.sum(axis=1) / per.sum(), shares, recordings)


def figure(name: str, values: Floats, drawn: Floats, recordings: int) -> Figure:
    """A figure of both bundles, its difference and what can be said of that."""
    enough = recordings >= LEAST_RECORDINGS
    old, new, difference = (
        interval(value, resampled, enough)
        for value, resampled in zip((*values, values[1] - values[0]), (*drawn, drawn[1] - drawn[0]))
    )
    if not enough:
        return Figure(name, old, new, difference, f"too few recordings to tell: {recordings}")
    return Figure(name, old, new, difference, told(name, old, difference))


def interval(value: float, drawn: Floats, enough: bool) -> Interval:
    """With its 95 % interval, or none."""
    return percentile_interval(float(value), drawn) if enough else Interval(float(value), np.nan, np.nan, 0)


def told(name: str, old: Interval, difference: Interval) -> str:
    """What a difference means: better, worse, alike, or that its interval is too wide to tell."""
    signed = difference if BETTER[name] > 0 else Interval(0, -difference.high, -difference.low, 0)
    if signed.low > 0 or signed.high < 0:
        return "better" if signed.low > 0 else "worse"
    if difference.low == difference.high == 0:
        return "alike"
    small = SMALL[name] * (old.value if name == "false_alarms_per_hour" else 1)
    if -small <= signed.low and signed.high <= small:
        return f"alike (within {small:.2g})"
    return "too wide to tell"


# --- words ------------------------------------------------------------------------------------------------------------


def table(parts: Sequence[Part]) -> str:
    """The figures as text."""
    shown = [part for part in parts if part.name == ALL or not part.is_small]
    small = [part.name for part in parts if part not in shown]
    told_small = [f"too few recordings to tell (fewer than {LEAST_RECORDINGS}): {', '.join(small)}"] if small else []
    return "\n".join([*(line for part in shown for line in lines(part)), *told_small])


def lines(part: Part) -> list[str]:
    """A heading, and a line for each figure."""
    head = (
        f"{part.name}: {part.orca} orca clips of {part.recordings[0]} recordings, {part.noise} noise clips of "
        f"{part.recordings[1]} ({part.noise_hours:.2f} h)"
    )
    known = [one for one in part.figures if one.old is not None]
    columns = f"  {'':20} {'old':>23} {'new':>23} {'new - old':>24}  can it be told?"
    return [head, *([columns] if known else []), *(row(one) for one in known)]


def row(one: Figure) -> str:
    """A line of the table."""
    decimals = 1 if one.name == "false_alarms_per_hour" else 3
    cells = [cell(found, decimals) for found in (one.old, one.new)]
    change = cell(one.difference, decimals, "+")
    return f"  {NAMES[one.name]:20} {cells[0]:>23} {cells[1]:>23} {change:>24}  {one.verdict}"


def cell(found: Interval | None, decimals: int, sign: str = "") -> str:
    """A figure with its interval."""
    if found is None:
        return "-"
    value, low, high = (f"{number:{sign}.{decimals}f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})" if found.draws else value


def write_json(path: Path, parts: Sequence[Part], bundles: Sequence[Bundle]) -> None:
    """Write the figures and which bundles they are of; what is not a number becomes null.

    Raises
    ------
    InputError : the file cannot be written.
    """
    names = [{"name": one.name, "digest": one.digest, "start_threshold": one.start_threshold} for one in bundles]
    found = {"old": names[0], "new": names[1], "parts": [_plain(asdict(part)) for part in parts]}
    try:
        write_bytes(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    except OSError as fault:
        raise InputError(f"{path} cannot be written: {fault.strerror}; name another file") from fault


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
