"""The relevance snapshot of an event: what the network heard, and what made it say `orca`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from numpy.typing import NDArray

from .durable import write_bytes
from .errors import AudioError
from .records import Event, Window, WindowScore
from .spectrogram import FrontEnd, hertz_to_mel, rows_of
from .windows import windows_of

if TYPE_CHECKING:
    from .bundle import Bundle
    from .detector import Scorer

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

METHOD = "deep Taylor of the orca neuron from its confidence; conserving rules (pools, additions)"
LINEAR_POWER = "linear_power"  # the front end whose rows are powers, of bands even in Hz
LONGEST_S = 12.0  # of a picture
LOWEST_DB = -120.0  # levels below are shown as this
CALL_DB = 6.0  # a cell this far above its band's background belongs to the call
CALL_SHARE = (0.05, 0.95)  # of the call's energy, the borders of its band


@dataclass(frozen=True)
class Map:
    """What one backbone heard, and what of it made the vote say `orca`.

    Attributes
    ----------
    backbone : its name.
    level_db : float32, shape (frames, bands), dB re a sine of full scale at the band's centre.
    relevance : float32, shape (frames, bands), not negative.
    times_s : middle of each frame, seconds from the first sample, shape (frames,).
    frequencies_hz : middle of each band, shape (bands,).
    scale : `mel` or `linear`, what the bands are even in.
    """

    backbone: str
    level_db: Array
    relevance: Array
    times_s: Floats
    frequencies_hz: Floats
    scale: str = "mel"


@dataclass(frozen=True)
class Explanation:
    """What one channel sounded like, and what made the vote say `orca`.

    Attributes
    ----------
    maps : one per backbone, in the bundle's order; a window's relevance in all of them adds up to its score.
    method : how the relevance was computed.
    windows : windows that were explained.
    silent_windows : those of them whose relevance is all zero: nothing speaks for orca there.
    """

    maps: tuple[Map, ...]
    method: str
    windows: int
    silent_windows: int


def explain_audio(ensemble: Scorer, samples_mono: Array, rate_hz: int) -> Explanation:
    """Spectrograms and relevance of a stretch of audio without holes.

    The audio is cut into the ensemble's windows; where windows overlap, their relevance is averaged frame by frame.
    Audio shorter than a window is repeated to fill one, as for scoring, and only the frames before the repetition
    are returned.

    Parameters
    ----------
    ensemble : explains single windows.
    samples_mono : float32, shape (samples,).
    rate_hz : samples per second.

    Raises
    ------
    AudioError : not one frame fits into the audio, or the rate is too low for the front end.
    """
    rows = _rows_by_backbone(ensemble.bundle, samples_mono, rate_hz)
    starts, windows = zip(*_windows(ensemble.bundle, rows))
    explained = list(zip(starts, ensemble.explain(windows, 0)))
    return Explanation(
        maps=tuple(
            _map(name, ensemble.bundle.backbones[name].front_end, found[:, 0], explained)
            for name, found in rows.items()
        ),
        method=METHOD,
        windows=len(explained),
        silent_windows=sum(not any(part.any() for _, part in found.values()) for _, found in explained),
    )


def _map(
    name: str, front_end: FrontEnd, rows: Array, explained: Sequence[tuple[int, Mapping[str, tuple[Array, Array]]]]
) -> Map:
    """One backbone's part of the explained windows, (first frame, what `Scorer.explain` gave)."""
    middle_s = front_end.frame_samples / 2 / front_end.rate_hz
    return Map(
        backbone=name,
        level_db=level_db(front_end, rows),
        relevance=average_overlapping([(start, found[name][1]) for start, found in explained], len(rows)),
        times_s=np.arange(len(rows)) * front_end.hop_samples / front_end.rate_hz + middle_s,
        frequencies_hz=front_end.frequencies_hz,
        scale="linear" if front_end.kind == LINEAR_POWER else "mel",
    )


def level_db(front_end: FrontEnd, rows: Array) -> Array:
    """Rows (frames, bands) of a front end as levels, dB re a sine of full scale at the band's centre."""
    decibels = 10 if front_end.kind == LINEAR_POWER else 20  # a tenfold power, or a tenfold magnitude
    time_s = np.arange(front_end.frame_samples) / front_end.rate_hz
    sines = np.sin(2 * np.pi * time_s[:, None] * front_end.frequencies_hz).astype(np.float32)
    full_scale = np.diagonal(front_end.rows(sines)[0])
    lowest = full_scale * 10 ** (LOWEST_DB / decibels)
    return np.asarray(decibels * np.log10(np.maximum(rows, lowest) / full_scale), np.float32)


def average_overlapping(pairs: Sequence[tuple[int, Array]], frames: int) -> Array:
    """Mean over the windows that cover a frame.

    Parameters
    ----------
    pairs : (first frame, values of shape (window frames, bands)) of each window.
    frames : length of the result; what a window holds past it is left out.

    Returns
    -------
    float32, shape (frames, bands); 0 where no window lies.
    """
    total = np.zeros((frames, pairs[0][1].shape[1]))
    count = np.zeros((frames, 1))
    for start, values in pairs:
        real = values[: frames - start]
        total[start : start + len(real)] += real
        count[start : start + len(real)] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


def call_band(power_db: Array, event_frames: Flags, frequencies_hz: Floats, scale: str = "mel") -> tuple[float, float]:
    """Frequency band of the call, from the spectrogram alone.

    Each band's background is its median over the frames outside the event, or over all frames where fewer than a
    tenth lie outside. A cell of the event belongs to the call where it stands at least 6 dB above that; its energy is
    what it has above the background, in multiples of the background, so that a loud but steady hum counts for nothing.
    The call's band holds the middle 90 % of that energy (5 % to 95 %, from the outer edge of one band to that of
    another). Where no cell stands out, it is all that the front end covers.

    Parameters
    ----------
    power_db : shape (frames, bands).
    event_frames : which frames belong to the event, shape (frames,).
    frequencies_hz : middle of each band, rising, shape (bands,).
    scale : as in `Map`.

    Returns
    -------
    low_hz, high_hz
    """
    edges = band_edges_hz(frequencies_hz, scale)
    outside = ~event_frames if np.mean(~event_frames) >= 0.1 else np.ones_like(event_frames)
    above_db = power_db[event_frames] - np.median(power_db[outside], axis=0)
    excess = np.where(above_db >= CALL_DB, 10 ** (above_db.astype(np.float64) / 10) - 1, 0).sum(axis=0)
    if not excess.any():
        return float(edges[0]), float(edges[-1])
    share = np.cumsum(excess) / excess.sum()
    low, high = np.searchsorted(share, CALL_SHARE)
    return float(edges[low]), float(edges[high + 1])


def band_edges_hz(frequencies_hz: Floats, scale: str = "mel") -> Floats:
    """Borders between bands, shape (bands + 1,): half way between their middles in mel, or in Hz (`linear`)."""
    to_scale, to_hertz = SCALES[scale]
    place = to_scale(frequencies_hz)
    inner = (place[:-1] + place[1:]) / 2
    outer = np.concatenate([[2 * place[0] - inner[0]], inner, [2 * place[-1] - inner[-1]]])
    return np.asarray(np.maximum(to_hertz(outer), 0.0))


def mel_to_hertz(mel: Floats) -> Floats:
    """Inverse of `hertz_to_mel`."""
    return np.asarray(700.0 * np.expm1(np.asarray(mel) / 1127.0))


SCALES: dict[str, tuple[Callable[[Any], Floats], Callable[[Any], Floats]]] = {
    "mel": (hertz_to_mel, mel_to_hertz),
    "linear": (np.asarray, np.asarray),
}


def shares(explanation: Explanation) -> list[float]:
    """Each map's part of all relevance, 0 to 1; nan where there is none."""
    sums = [float(found.relevance.sum(dtype=np.float64)) for found in explanation.maps]
    return [part / sum(sums) if sum(sums) else float("nan") for part in sums]


def relevance_numbers(
    explanation: Explanation, event_s: tuple[float, float], band_hz: tuple[float, float]
) -> dict[str, float]:
    """How well the relevance agrees with the call.

    Parameters
    ----------
    explanation : of one channel.
    event_s : start and end of the event, seconds from the first sample.
    band_hz : the call's band.

    Returns
    -------
    relevance_in_band : share of all relevance that lies in the call's band during the event, 0 to 1; left out where
        every window is silent, because there is nothing to share.
    area_in_band : share of the picture's cells that lie there, which is what relevance at random would reach; of
        several backbones' pictures the mean by their share of the relevance.
    band_low_hz, band_high_hz : the call's band.
    windows, silent_windows : as in `Explanation`.
    share-NAME, relevance_in_band-NAME, area_in_band-NAME : of each backbone NAME where there are several: its part of
        all relevance, and how much of that lies in the band.
    """
    single = {found.backbone: _in_band(found, event_s, band_hz) for found in explanation.maps}
    parts = shares(explanation)
    explained = bool(np.isfinite(parts).all())
    weights = parts if explained else [1 / len(parts)] * len(parts)
    inside = sum(w * relevance for w, (relevance, _) in zip(weights, single.values()) if w)
    return {
        **({"relevance_in_band": inside} if explained else {}),
        "area_in_band": sum(w * area for w, (_, area) in zip(weights, single.values())),
        "band_low_hz": band_hz[0],
        "band_high_hz": band_hz[1],
        "windows": float(explanation.windows),
        "silent_windows": float(explanation.silent_windows),
        **(_by_backbone(single, parts) if len(parts) > 1 and explained else {}),
    }


def _in_band(found: Map, event_s: tuple[float, float], band_hz: tuple[float, float]) -> tuple[float, float]:
    """Share of a map's relevance (nan where it has none) and of its cells in the band during the event."""
    in_band = (found.frequencies_hz > band_hz[0]) & (found.frequencies_hz < band_hz[1])
    inside = np.outer(_between(found.times_s, event_s), in_band)
    total = float(found.relevance.sum(dtype=np.float64))
    part = float(found.relevance[inside].sum(dtype=np.float64))
    return part / total if total else float("nan"), float(inside.mean())


def _by_backbone(single: Mapping[str, tuple[float, float]], parts: Sequence[float]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for (name, (relevance, area)), part in zip(single.items(), parts):
        numbers |= {f"share-{name}": part, f"area_in_band-{name}": area}
        numbers |= {f"relevance_in_band-{name}": relevance} if part else {}
    return numbers


@dataclass(frozen=True)
class Excerpt:
    """What is shown of an event: its best channel, at most 12 s of it, around the window of the highest score.

    Attributes
    ----------
    samples : float32, shape (samples,), without holes; a copy, so that the clip can be let go.
    rate_hz : samples per second.
    clip_start : position of the clip's first row in the stream.
    start : of the first sample in the clip, rows.
    """

    samples: Array
    rate_hz: int
    clip_start: int
    start: int


def excerpt_of(clip: Array, rate_hz: int, clip_start: int, event: Event) -> Excerpt:
    """The excerpt of an event's clip, shape (samples, channels), that starts at `clip_start` of the stream."""
    start, end = excerpt(len(clip), rate_hz, peak_sample(event) - clip_start)
    return Excerpt(clip[start:end, event.best_channel].copy(), rate_hz, clip_start, start)


def make_snapshot(
    ensemble: Scorer,
    shown: Excerpt,
    event: Event,
    channels: Sequence[int],
    title: str,
    path_without_suffix: Path,
    apart: bool = False,
) -> tuple[Path, dict[str, float]]:
    """Write the picture (PNG) and its arrays (NPZ) of one event, each whole or not at all.

    Parameters
    ----------
    ensemble : explains single windows.
    shown : what of the event's clip.
    event : what was detected, in the stream's positions.
    channels : what the source calls the clip's columns; the picture names them so.
    title : one short line: source and time.
    path_without_suffix : `.png` and `.npz` are added.
    apart : whether the picture is drawn in a process of its own.

    Returns
    -------
    The PNG's path, and the figures of `relevance_numbers`.

    Raises
    ------
    AudioError : as for `explain_audio`.
    OrcawatchError : as for `drawn_apart`.
    """
    rate_hz, start_s = shown.rate_hz, shown.start / shown.rate_hz
    explanation = explain_audio(ensemble, shown.samples, rate_hz)
    arrays = picture_arrays(ensemble.bundle, explanation, start_s)
    arrays |= score_arrays(event.windows, channels, channels[event.best_channel], shown.clip_start, rate_hz)
    event_s = (np.array([event.start_sample, event.end_sample]) - shown.clip_start) / rate_hz
    heard_s = (float(event_s[0]) - start_s, float(event_s[1]) - start_s)
    first = explanation.maps[0]
    band_hz = call_band(first.level_db, _between(first.times_s, heard_s), first.frequencies_hz, first.scale)
    numbers = relevance_numbers(explanation, heard_s, band_hz)
    arrays |= {"event_s": event_s, "band_hz": np.array(band_hz)}
    arrays |= {"title": np.array([title, *_lines(channels, event, numbers)])}
    return write_picture(arrays, path_without_suffix, apart), numbers


def write_picture(arrays: dict[str, Any], path_without_suffix: Path, apart: bool = False) -> Path:
    """Write a picture's arrays (NPZ) and the picture (PNG), each whole or not at all; the PNG's path.

    Raises
    ------
    OSError : the disk refuses.
    OrcawatchError : as for `drawn_apart`.
    """
    from .drawing import drawn, drawn_apart

    png, npz = (path_without_suffix.with_name(path_without_suffix.name + suffix) for suffix in (".png", ".npz"))
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(npz, file.getvalue())
    write_bytes(png, drawn_apart(npz) if apart else drawn(arrays))
    return png


def peak_sample(event: Event) -> int:
    """Middle of the event's window of the highest score, position in the stream."""
    best = max(event.windows, key=lambda window: window.score)
    return (best.start_sample + best.end_sample) // 2


def excerpt(samples: int, rate_hz: int, peak: int) -> tuple[int, int]:
    """First and last (exclusive) sample of at most 12 s around `peak`, moved inside the clip at its ends."""
    length = min(samples, round(LONGEST_S * rate_hz))
    start = min(max(peak - length // 2, 0), samples - length)
    return start, start + length


def _first_front_end(bundle: Bundle) -> FrontEnd:
    """The front end that counts frames: the grid of all is one, their frames may have different lengths."""
    return next(iter(bundle.backbones.values())).front_end


def _rows_by_backbone(bundle: Bundle, samples_mono: Array, rate_hz: int) -> dict[str, Array]:
    """Rows of every backbone, shape (frames, 1, bands), as many as all of them have."""
    rows = {
        name: rows_of(backbone.front_end, samples_mono[:, None], rate_hz) for name, backbone in bundle.backbones.items()
    }
    shared = min(map(len, rows.values()))
    if not shared:
        longest = max((b.front_end for b in bundle.backbones.values()), key=lambda end: end.frame_samples / end.rate_hz)
        raise AudioError(
            f"audio must hold at least one frame ({longest.frame_samples} samples at {longest.rate_hz} Hz) to be "
            f"explained, not {len(samples_mono)} samples at {rate_hz} Hz"
        )
    return {name: found[:shared] for name, found in rows.items()}


def _windows(bundle: Bundle, rows: Mapping[str, Array]) -> Iterator[tuple[int, Window]]:
    """(first frame, window) of every window, as the first backbone counts frames."""
    cut = {name: _cut(bundle.backbones[name].front_end, found, bundle.hop_s) for name, found in rows.items()}
    starts = next(iter(cut.values()))[0]
    hop = _first_front_end(bundle).hop_samples
    for index, start in enumerate(starts):
        found = {name: windows[index] for name, (_, windows) in cut.items()}
        end = start + _first_front_end(bundle).frames
        yield int(start), Window(int(start) * hop, int(end) * hop, found)


def _cut(front_end: FrontEnd, rows: Array, hop_s: float) -> tuple[NDArray[np.int64], Array]:
    """Starts and windows, shape (windows, channels, frames, bands)."""
    hop = round(hop_s * front_end.rate_hz / front_end.hop_samples)
    starts, windows = windows_of(rows, front_end.frames, hop)
    return starts, windows.swapaxes(1, 2)


MAP_KEYS = ("spectrogram_db", "relevance", "times_s", "frequencies_hz", "scale")


def picture_arrays(bundle: Bundle, explanation: Explanation, start_s: float) -> dict[str, Any]:
    """What the spectrogram and the relevance are drawn from; times in seconds, the audio's first sample at `start_s`.

    `backbones` names the maps. Those of the first have plain keys (`spectrogram_db`, `relevance`, `times_s`,
    `frequencies_hz`, `scale`), those of another `-NAME` behind.
    """
    arrays: dict[str, Any] = {
        "backbones": np.array([found.backbone for found in explanation.maps]),
        "threshold": np.array(bundle.start_threshold),
        "method": np.array(explanation.method),
    }
    for place, found in enumerate(explanation.maps):
        values = (found.level_db, found.relevance, found.times_s + start_s, found.frequencies_hz, found.scale)
        arrays |= {key + _suffix(place, found.backbone): np.asarray(value) for key, value in zip(MAP_KEYS, values)}
    return arrays


def _suffix(place: int, backbone: str) -> str:
    return f"-{backbone}" if place else ""


def panels_of(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """The maps of `picture_arrays`, each under plain keys, with `backbone`."""
    names = [str(name) for name in arrays["backbones"]]
    return [
        {"backbone": name, **{key: arrays[key + _suffix(place, name)] for key in MAP_KEYS}}
        for place, name in enumerate(names)
    ]


def score_arrays(
    windows: Sequence[WindowScore], channels: Sequence[int], best: int, first_sample: int, rate_hz: int
) -> dict[str, Any]:
    """What the scores are drawn from; `channels` are the numbers of the scores' columns, `best` one of them."""
    middles = [(window.start_sample + window.end_sample) / 2 for window in windows]
    return {
        "score_times_s": (np.array(middles) - first_sample) / rate_hz,
        "channel_scores": np.stack([window.channel_scores for window in windows]),
        "channels": np.array(channels),
        "best_channel": np.array(best),
    }


def _between(times_s: Floats, span_s: Sequence[float]) -> Flags:
    return np.asarray((times_s >= span_s[0]) & (times_s < span_s[1]))


def _lines(channels: Sequence[int], event: Event, numbers: Mapping[str, float]) -> list[str]:
    """What the picture's heading says below the title."""
    who = f"channel {channels[event.best_channel]}, score {event.score:.2f}"
    if "relevance_in_band" not in numbers:
        return [who, "no relevance: nothing in it speaks for orca"]
    share, area = numbers["relevance_in_band"], numbers["area_in_band"]
    return [who, f"{share:.0%} of the relevance in the box ({area:.0%} by chance)"]
