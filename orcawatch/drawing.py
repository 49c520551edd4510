"""The picture of a snapshot, drawn from its arrays: here, or in a process of its own that ends with it.

Matplotlib takes 60 MB and does not give them back, so that a watch lets it be loaded elsewhere (`drawn_apart`).
"""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import OrcawatchError
from .snapshot import SCALES, Floats, band_edges_hz, panels_of

DRAWN_S = 30.0  # at most, on a busy computer
YIELDING = 500  # of the system's score of what is ended first where memory is short
NICENESS = 10
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def drawn(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The picture as PNG, drawn in this process, which keeps Matplotlib's memory."""
    file = io.BytesIO()
    draw(arrays, file)
    gc.collect()  # a figure is full of cycles: left alone, a dozen of them double the process's memory
    return file.getvalue()


def drawn_apart(npz: Path) -> bytes:
    """The picture as PNG, drawn from its arrays' file in a process of its own that ends with it.

    Raises
    ------
    OrcawatchError : that process could not begin, failed, took too long, or gave no picture; the text has what it said.
    """
    command = [sys.executable, "-m", "orcawatch.drawing", str(npz.resolve())]
    try:
        # a session of its own: what ends the watch in a terminal lets it draw to the end
        done = subprocess.run(command, capture_output=True, timeout=DRAWN_S, cwd="/", start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise OrcawatchError(f"{npz.name} could not be drawn in a process of its own: {fault}") from fault
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        said = done.stderr.decode(errors="replace").strip().splitlines()
        told = [line for line in said if line.startswith("Fatal")][:1] or said[-1:]
        raise OrcawatchError(": ".join([f"the process that drew {npz.name} ended with {how}", *told]))
    if not (done.stdout.startswith(PNG_START) and done.stdout.endswith(PNG_END)):
        raise OrcawatchError(
            f"the process that drew {npz.name} gave no picture but {done.stdout[:40]!r}: look for what prints when "
            "Python starts (sitecustomize, .pth files)"
        )
    return done.stdout


def main(npz: str) -> None:
    """Draw the arrays of a file to standard output, behind whatever listens to the sea."""
    with os.fdopen(os.dup(1), "wb") as picture:
        os.dup2(2, 1)  # what libraries print is no part of the picture
        signal.alarm(round(2 * DRAWN_S))  # where nobody is left who would end it
        yield_to_others()
        with np.load(npz) as file:
            arrays = dict(file)
        draw(arrays, picture)


def yield_to_others() -> None:
    """Let others have the processor, and the memory where it is short, first; a sandbox may forbid some of it."""
    with suppress(OSError):
        os.nice(NICENESS)
    with suppress(OSError):  # where sessions get equal shares, niceness alone is nothing
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    with suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(YIELDING, int(score.read_text()))))


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

    panels = panels_of(arrays)
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


if __name__ == "__main__":
    main(sys.argv[1])
