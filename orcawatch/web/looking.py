"""What the network looked at, channel by channel: made on demand, one at a time, behind everything else."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, RLock, Thread, get_native_id
from typing import Any, Callable, Union

import numpy as np
from numpy.typing import NDArray

from ..bundle import MANIFEST, SHIPPED, load_bundle, manifest_digest
from ..bundles import FOLDER
from ..config import BundleSettings, Settings
from ..detector import Detector, Scorer
from ..errors import OrcawatchError
from ..records import AudioBlock
from ..signing import check_signature
from ..snapshot import explain_audio
from . import pictures
from .media import Clip, Shelf, one_channel

Array = NDArray[np.float32]

log = logging.getLogger(__name__)

READING = RLock()
NICENESS = 19
WANTED_S = 4.0  # what nobody asks for again in this time is not begun
SCORE_B = 16


@dataclass(frozen=True)
class Panel:
    """What one backbone looked at.

    Attributes
    ----------
    backbone : its name.
    picture : PNG of its relevance.
    start_s, length_s : where on the clip its picture begins, and how long it is.
    """

    backbone: str
    picture: bytes
    start_s: float
    length_s: float


@dataclass(frozen=True)
class Look:
    """What was made of one channel of a clip.

    Attributes
    ----------
    panels : one for each backbone.
    curve : (seconds of the clip, score) of each window, at its middle.
    """

    panels: tuple[Panel, ...]
    curve: tuple[tuple[float, float], ...]

    @property
    def size_b(self) -> int:
        """About how much memory it takes."""
        return sum(len(panel.picture) for panel in self.panels) + SCORE_B * len(self.curve)


@dataclass(frozen=True)
class Failed:
    """Why nothing could be made."""

    text: str


Result = Union[Look, Failed]


def look(ensemble: Scorer, samples_mono: Array, rate_hz: int, score: float) -> Look:
    """Explain and score one channel of a clip.

    Parameters
    ----------
    ensemble : scores and explains.
    samples_mono : float32, shape (samples,).
    rate_hz : samples per second.
    score : the detection's; relevance is shown in multiples of its average (`pictures.times_average`).

    Raises
    ------
    AudioError : the clip is too short, or its rate too low.
    """
    explanation = explain_audio(ensemble, samples_mono, rate_hz)
    panels = []
    for found in explanation.maps:
        front_end = ensemble.bundle.backbones[found.backbone].front_end
        times = pictures.times_average(found.relevance, front_end.frames * found.relevance.shape[1], score)
        panels.append(Panel(found.backbone, pictures.relevance_png(times), *extent(found.times_s)))
    return Look(tuple(panels), curve(ensemble, samples_mono, rate_hz))


def extent(times_s: NDArray[np.float64]) -> tuple[float, float]:
    """Where frames begin, given their middles, and how long they are together, seconds."""
    step_s = float(times_s[1] - times_s[0]) if len(times_s) > 1 else 0.01
    return float(times_s[0]) - step_s / 2, len(times_s) * step_s


def curve(ensemble: Scorer, samples_mono: Array, rate_hz: int) -> tuple[tuple[float, float], ...]:
    """Scores of a clip's windows."""
    detector = Detector(ensemble, rate_hz, 1, ensemble.bundle.hop_s)
    windows = detector.push(AudioBlock(samples_mono[:, None], 0)) + detector.finish()
    return tuple(((w.start_sample + w.end_sample) / 2 / rate_hz, float(w.channel_scores[0])) for w in windows)


@contextmanager
def arrays_of(file: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of an NPZ file, for one thread at a time: Python 3.11 breaks now and then where two parse headers."""
    with READING, np.load(file) as arrays:
        yield arrays


def stored(file: Path, score: float) -> Look:
    """The look that the daemon stored beside a snapshot (NPZ), of the best channel and at most 12 s.

    Relevance there is in multiples of the score's average over the event, as near as the stored figures tell it.

    Raises
    ------
    OSError, ValueError, KeyError : the file cannot be read.
    """
    with arrays_of(file) as arrays:
        names = [str(name) for name in arrays["backbones"]]
        best = arrays["channels"].tolist().index(int(arrays["best_channel"]))
        scores = arrays["channel_scores"][:, best]
        inside = [_inside(arrays[f"times_s{_suffix(names, name)}"], arrays["event_s"]) for name in names]
        maps = [arrays[f"relevance{_suffix(names, name)}"] for name in names]
        average = sum(float(found[frames].mean()) for found, frames in zip(maps, inside)) / float(np.nanmean(scores))
        panels = []
        for name, found in zip(names, maps):
            times = pictures.times_average(found, 1 / average if average else 0.0, score)
            span_s = extent(arrays[f"times_s{_suffix(names, name)}"])
            panels.append(Panel(name, pictures.relevance_png(times), *span_s))
    return Look(tuple(panels), ())


def _suffix(names: list[str], name: str) -> str:
    return "" if name == names[0] else f"-{name}"


def _inside(times_s: NDArray[np.float64], event_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside = (times_s >= event_s[0]) & (times_s < event_s[1])
    return inside if inside.any() else np.ones_like(inside)


def stored_curves(file: Path) -> dict[int, list[tuple[float, float]]]:
    """Scores of every channel over the event, as stored beside a snapshot, by the channel's number.

    Raises
    ------
    OSError, ValueError, KeyError : the file cannot be read.
    """
    with arrays_of(file) as arrays:
        times_s = arrays["score_times_s"].tolist()
        columns = zip(arrays["channels"].tolist(), arrays["channel_scores"].T.tolist())
        return {channel: [pair for pair in zip(times_s, scores) if pair[1] == pair[1]] for channel, scores in columns}


def find_bundle(settings: Settings, digest: str) -> Path | None:
    """The folder of the bundle that scored, by the digest of its manifest; None where it is not here any more."""
    folders = [SHIPPED, *([settings.bundle] if settings.bundle else [])]
    folders += sorted(path for path in (settings.output / FOLDER).glob("*") if path.is_dir())
    return next((folder for folder in folders if digest_of(folder) == digest), None)


def digest_of(folder: Path) -> str | None:
    """The digest of a folder's manifest; None where there is none to read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest_digest(manifest) if isinstance(manifest, dict) else None
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Wish:
    """A look that somebody waits for."""

    clip: Clip
    column: int
    folder: Path
    score: float

    @property
    def key(self) -> Hashable:
        """What it is kept under."""
        return "look", self.clip.path, self.clip.version, self.column, self.folder


class Desk:
    """Makes looks in one thread of the lowest priority; nothing waits for it, and what is made is kept for a while.

    Ask again to learn whether it is made; the first asked for comes first, and one that nobody asks for any more is not
    begun. A daemon on the same machine is not slowed: the thread gets what others leave.

    Parameters
    ----------
    shelf : where looks are kept.
    opened : makes an ensemble of a bundle's folder.
    steady_s : now.
    """

    def __init__(
        self,
        shelf: Shelf,
        opened: Callable[[Path], Scorer],
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf = shelf
        self._opened = opened
        self._steady_s = steady_s
        self._turn = Condition()
        self._wishes: dict[Hashable, tuple[float, Wish]] = {}
        self._present: tuple[Path, Scorer] | None = None
        self._thread: Thread | None = None

    def ask(self, wish: Wish) -> Result | None:
        """The look, or why it cannot be made; None while it is being made."""
        found: Result | None = self._shelf.get(wish.key)
        if found is not None:
            return found
        with self._turn:
            self._wishes[wish.key] = self._steady_s(), wish
            if self._thread is None:
                self._thread = Thread(target=self._work, name="looks", daemon=True)
                self._thread.start()
            self._turn.notify()
        return None

    def _work(self) -> None:
        with suppress(OSError):  # the unit forbids it, and has a low weight itself
            os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)
        while True:
            wish = self._next()
            made = self._made(wish)
            self._shelf.put(wish.key, made, made.size_b if isinstance(made, Look) else len(made.text))

    def _next(self) -> Wish:
        """The oldest wish that is still wanted; waited for where there is none."""
        with self._turn:
            while True:
                now_s = self._steady_s()
                self._wishes = {key: asked for key, asked in self._wishes.items() if now_s - asked[0] <= WANTED_S}
                if self._wishes:
                    return self._wishes.pop(next(iter(self._wishes)))[1]
                self._turn.wait()

    def _made(self, wish: Wish) -> Result:
        if (found := self._shelf.get(wish.key)) is not None:  # asked for again while it was being made
            return found  # type: ignore[no-any-return]
        try:
            samples = one_channel(wish.clip, wish.column)
            return look(self._ensemble(wish.folder), samples, wish.clip.rate_hz, wish.score)
        except (OrcawatchError, OSError) as fault:
            return Failed(str(fault))
        except Exception:
            log.exception("the look at %s failed", wish.clip.path)
            return Failed("it failed; the journal of `orcawatch serve` says more")

    def _ensemble(self, folder: Path) -> Scorer:
        if self._present is None or self._present[0] != folder:
            self._present = folder, self._opened(folder)
        return self._present[1]


def open_quietly(trusted: BundleSettings, folder: Path) -> Scorer:
    """The ensemble of a bundle, on one thread; raises BundleError where it is not trusted."""
    from ..ensemble import Ensemble

    bundle = load_bundle(folder)
    check_signature(bundle, trusted)
    return Ensemble(bundle, 1)
