"""The relevance snapshot of an event: what the network heard, and what made it say `orca`."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable

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


def make_snapshot(
    ensemble: Scorer,
    samples: Array,
    rate_hz: int,
    first_sample: int,
    event: Event,
    channels: Sequence[int],
    title: str,
    path_without_suffix: Path,
) -> tuple[Path, dict[str, float]]:
    """Write the picture (PNG) and its arrays (NPZ) of one event, each whole or not at all.

    The best channel is shown, at most 12 s of it, around the window of the highest score.

    Parameters
    ----------
    ensemble : explains single windows.
    samples : the event's clip, float32, shape (samples, channels), without holes.
    rate_hz : samples per second.
    first_sample : position of the clip's first row in the stream.
    event : what was detected, in the stream's positions.
    channels : what the source calls the samples' columns; the picture names them so.
    title : one short line: source and time.
    path_without_suffix : `.png` and `.npz` are added.

    Returns
    -------
    The PNG's path, and the figures of `relevance_numbers`.

    Raises
    ------
    AudioError : as for `explain_audio`.
    """
    start, end = excerpt(len(samples), rate_hz, peak_sample(event) - first_sample)
    explanation = explain_audio(ensemble, samples[start:end, event.best_channel], rate_hz)
    arrays = picture_arrays(ensemble.bundle, explanation, start / rate_hz)
    arrays |= score_arrays(event.windows, channels, channels[event.best_channel], first_sample, rate_hz)
    event_s = (np.array([event.start_sample, event.end_sample]) - first_sample) / rate_hz
    heard_s = (float(event_s[0]) - start / rate_hz, float(event_s[1]) - start / rate_hz)
    first = explanation.maps[0]
    band_hz = call_band(first.level_db, _between(first.times_s, heard_s), first.frequencies_hz, first.scale)
    numbers = relevance_numbers(explanation, heard_s, band_hz)
    arrays |= {"event_s": event_s, "band_hz": np.array(band_hz)}
    arrays |= {"title": np.array([title, *_lines(channels, event, numbers)])}
    return write_picture(arrays, path_without_suffix), numbers


def write_picture(arrays: dict[str, Any], path_without_suffix: Path) -> Path:
    """Write a picture's arrays (NPZ) and the picture (PNG), each whole or not at all; the PNG's path."""
    png, npz = (path_without_suffix.with_name(path_without_suffix.name + suffix) for suffix in (".png", ".npz"))
    write_bytes(npz, _written(lambda file: np.savez_compressed(file, **arrays)))
    write_bytes(png, _written(lambda file: draw(arrays, file)))
    gc.collect()  # a figure is full of cycles: left alone, a dozen of them double the process's memory
    return png


def _written(write: Callable[[BinaryIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def peak_sample(event: Event) -> int:
    """Middle of the event's window of the highest score, position in the stream."""
    best = max(event.windows, key=lambda window: window.score)
    return (best.start_sample + best.end_sample) // 2


def excerpt(samples: int, rate_hz: int, peak: int) -> tuple[int, int]:
    """First and last (exclusive) sample of at most 12 s around `peak`, moved inside the clip at its ends."""
    length = min(samples, round(LONGEST_S * rate_hz))
    start = min(max(peak - length // 2, 0), samples - length)
    return start, start + length


def draw(arrays: Mapping[str, NDArray[Any]], file: BinaryIO) -> None:
    """Draw the picture as PNG, 1080 x 1200 pixels: readable on a phone held upright.

    From top to bottom, on one time axis: the first backbone's spectrogram, the relevance over a faint spectrogram, one
    panel for each backbone on its own frequency axis (each but the first adds 404 pixels), and the scores of all
    channels. The event lies between the dotted lines, the call's band is boxed.

    Parameters
    ----------
    arrays : those of the NPZ file beside the picture; without `event_s` and `band_hz` nothing is marked.
    file : open for writing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(arrays)
    height = HEIGHT + (len(panels) - 1) * STEP
    tall = (height + 1e-6) / 100  # a hair more, since Matplotlib up to 3.10 rounds pixels down
    figure = Figure(figsize=(WIDE / 100, tall), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    _write_heading(figure, arrays, height)
    _draw_spectrogram(figure, arrays, panels[0], (SPECTROGRAM + height - HEIGHT, PANEL))
    for place, panel in enumerate(panels):
        bottom = RELEVANCE + (len(panels) - 1 - place) * STEP
        _draw_relevance(figure, arrays, panel, (bottom, PANEL), _relevance_title(panels, place))
    _draw_scores(figure, arrays)
    figure.savefig(file, format="png")


# Places in the picture, pixels from its lower edge; those across as shares of its width.
WIDE, HEIGHT, STEP = 1080, 1200, 404
SPECTROGRAM, RELEVANCE, PANEL = 708, 303.6, 342
SCORES = (111.6, 132)
LEFT, WIDTH, BAR_LEFT, BAR_WIDTH = 0.112, 0.725, 0.855, 0.022
TICKS_HZ = {"mel": (250.0, 500.0, 1000.0, 2000.0, 4000.0, 7000.0), "linear": (500.0, 2000.0, 4000.0, 6000.0, 8000.0)}
LARGE, MEDIUM, SMALL = 22, 18, 15  # points; 18 points are 9 pixels high where the picture is shown 400 pixels wide
# Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")


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


def _panels(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
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


def _relevance_title(panels: Sequence[Mapping[str, Any]], place: int) -> str:
    if len(panels) == 1:
        return "Relevance · what made it say orca"
    sums = [float(panel["relevance"].sum(dtype=np.float64)) for panel in panels]
    share = f"{sums[place] / sum(sums):.0%} of the score" if sum(sums) else "no relevance"
    return f"Relevance in {panels[place]['backbone']} · {share}"


def _write_heading(figure: Any, arrays: Mapping[str, NDArray[Any]], height: float) -> None:
    title, *lines = (str(line) for line in arrays["title"])
    short = title if len(title) <= 62 else f"{title[:30]} … {title[-29:]}"
    size = LARGE if len(short) < 50 else MEDIUM
    figure.text(0.02, 1 - 18 / height, short, fontsize=size, fontweight="bold", va="top")
    figure.text(0.02, 1 - 62.4 / height, " · ".join(lines), fontsize=MEDIUM, va="top")
    figure.text(0.02, 7.2 / height, str(arrays["method"]), fontsize=SMALL, color="0.35", va="bottom")


def _place(figure: Any, left: float, width: float, place: tuple[float, float]) -> Any:
    """Axes from `place`, pixels from the figure's lower edge and height."""
    height = figure.get_figheight() * figure.dpi
    return figure.add_axes((left, place[0] / height, width, place[1] / height))


def _axes(figure: Any, place: tuple[float, float], title: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    axes = _place(figure, LEFT, WIDTH, place)
    axes.set_title(title, fontsize=MEDIUM, loc="left", pad=6)
    axes.tick_params(labelsize=MEDIUM, length=6)
    edges_s = _edges_s(arrays["times_s"])
    axes.set_xlim(edges_s[0], edges_s[-1])
    return axes


def _edges_s(times_s: Floats) -> Floats:
    step = times_s[1] - times_s[0] if len(times_s) > 1 else 0.01
    return np.asarray(np.append(times_s, times_s[-1] + step) - step / 2)


def _show(axes: Any, panel: Mapping[str, Any], values: NDArray[np.floating[Any]], **style: Any) -> Any:
    """Draw cells (frames, bands) at their true frequencies on an axis that is even in the bands' scale."""
    scale = str(panel["scale"])
    edges_hz = band_edges_hz(panel["frequencies_hz"], scale)
    shown = axes.pcolormesh(_edges_s(panel["times_s"]), edges_hz, values.T, **style)
    axes.set_yscale("function", functions=SCALES[scale])
    axes.set_ylim(edges_hz[0], edges_hz[-1])
    ticks_hz = [hertz for hertz in TICKS_HZ[scale] if edges_hz[0] <= hertz <= edges_hz[-1]]
    axes.set_yticks(ticks_hz, [f"{hertz / 1000:g}" for hertz in ticks_hz])
    axes.set_yticks([], minor=True)
    axes.set_ylabel("kHz", fontsize=MEDIUM, labelpad=2)
    return shown


def _mark(axes: Any, arrays: Mapping[str, NDArray[Any]], colour: str) -> None:
    """Dotted lines around the event, a box around the call's band."""
    if "event_s" not in arrays:
        return
    (start_s, end_s), (low_hz, high_hz) = arrays["event_s"], arrays["band_hz"]
    for time_s in (start_s, end_s):
        axes.axvline(time_s, color=colour, linewidth=2, linestyle=":")
    axes.plot(
        [start_s, end_s, end_s, start_s, start_s],
        [low_hz, low_hz, high_hz, high_hz, low_hz],
        color=colour,
        linewidth=2.5,
    )


def _bar(figure: Any, shown: Any, place: tuple[float, float], label: str) -> Any:
    bar = figure.colorbar(shown, cax=_place(figure, BAR_LEFT, BAR_WIDTH, place))
    bar.set_label(label, fontsize=MEDIUM)
    bar.ax.tick_params(labelsize=MEDIUM)
    return bar


def _draw_spectrogram(
    figure: Any, arrays: Mapping[str, NDArray[Any]], panel: Mapping[str, Any], place: tuple[float, float]
) -> None:
    axes = _axes(figure, place, f"Spectrogram{_band_text(arrays)}", arrays)
    level_db = panel["spectrogram_db"]
    low_db, high_db = np.percentile(level_db, [10, 99.8])
    shown = _show(axes, panel, level_db, cmap="magma", vmin=low_db, vmax=max(high_db, low_db + 20))
    axes.tick_params(labelbottom=False)
    _mark(axes, arrays, "white")
    _bar(figure, shown, place, "dB re full scale")


def _band_text(arrays: Mapping[str, NDArray[Any]]) -> str:
    if "band_hz" not in arrays:
        return ""
    low_khz, high_khz = arrays["band_hz"] / 1000
    return f" · box: the call, {low_khz:.1f} to {high_khz:.1f} kHz"


def _draw_relevance(
    figure: Any,
    arrays: Mapping[str, NDArray[Any]],
    panel: Mapping[str, Any],
    place: tuple[float, float],
    title: str,
) -> None:
    """Relevance above the picture's average, as multiples of it, over a faint spectrogram."""
    from matplotlib.colors import PowerNorm

    axes = _axes(figure, place, title, arrays)
    low_db, high_db = np.percentile(panel["spectrogram_db"], [10, 99.8])
    _show(axes, panel, panel["spectrogram_db"], cmap="Greys", vmin=low_db, vmax=high_db + 2 * (high_db - low_db))
    relevance = panel["relevance"] / (panel["relevance"].mean() or 1)
    norm = PowerNorm(0.5, 1, max(float(np.percentile(relevance, 99.8)), 3))
    shown = _show(axes, panel, relevance, cmap=_veil(), norm=norm)
    axes.tick_params(labelbottom=False)
    _mark(axes, arrays, "black")
    bar = _bar(figure, shown, place, "times the average")
    bar.set_ticks([1, *(tick for tick in bar.get_ticks() if 1 < tick <= norm.vmax)])


def _veil() -> Any:
    """Colours from clear to opaque, so that only relevance covers the spectrogram beneath."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colours = colormaps["viridis_r"](np.linspace(0, 1, 256))
    colours[:, 3] = np.minimum(1, np.linspace(0, 3, 256))
    colours[0, 3] = 0
    return ListedColormap(colours)


def _draw_scores(figure: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    axes = _axes(figure, SCORES, "Orca score of each channel · dashed: threshold", arrays)
    numbers, scores = arrays["channels"].tolist(), arrays["channel_scores"]
    best = numbers.index(int(arrays["best_channel"]))
    for column in sorted(range(len(numbers)), key=lambda column: column == best):
        style = _line(column, column == best, numbers)
        axes.plot(arrays["score_times_s"], scores[:, column], marker="o", markersize=1.8 * style["linewidth"], **style)
    axes.axhline(float(arrays["threshold"]), color="0.3", linewidth=2, linestyle="--", zorder=1)
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xlabel("seconds of the clip" if "event_s" in arrays else "seconds of the file", fontsize=MEDIUM)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: int(labels[index].split()[-1]))
    axes.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        fontsize=SMALL,
        frameon=False,
        handlelength=1,
        labelspacing=0.25,
    )


def _line(column: int, is_best: bool, numbers: Sequence[int]) -> dict[str, Any]:
    """Style of a channel's line: a colour each; with more channels than colours, the best stands out of the rest."""
    if len(numbers) > len(COLOURS) and not is_best:
        return {"color": "0.6", "linewidth": 2}
    colour = COLOURS[column % len(COLOURS)]
    return {"color": colour, "linewidth": 5 if is_best else 2.5, "label": f"ch {numbers[column]}"}
