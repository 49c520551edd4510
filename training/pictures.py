"""The drawings of a report, each arrays in and SVG text out.

Lines are in Okabe and Ito's colours, told apart by every kind of colour vision, and differ in their strokes as well;
spectrograms are grey, relevance is in viridis. Text stays text, in `document.INK`, so that a page sets its own colour.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .document import INK, PAPER

Floats = NDArray[np.floating[Any]]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY)  # of backbones, in the recipe's order
STROKES = {"none": "-", "minimal": (0, (5, 1.5)), "negative": (0, (1, 1.2))}
LIGHT = 0.18  # opacity of the grid
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.3,
    "image.composite_image": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), PAPER),
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # of a width that labels were laid out for
PALETTE = 128  # colours of an embedded image
LEVELS = (2.0, 99.7)  # percentiles of a spectrogram between which grey runs


@dataclass(frozen=True)
class Line:
    """How a member is drawn: name, colour and stroke; the vote is thick and in ink."""

    name: str
    colour: str
    stroke: Any
    width: float = 1.3


@dataclass(frozen=True)
class Panel:
    """One window as one backbone gets it.

    Attributes
    ----------
    name : of the backbone.
    spectrogram : finished, shape (frames, bands).
    relevance : shape (frames, bands), not negative.
    seconds : length of the window.
    frequencies_hz : middle of each band, rising, shape (bands,).
    share : of the vote's relevance, 0 to 1.
    """

    name: str
    spectrogram: Floats
    relevance: Floats
    seconds: float
    frequencies_hz: Floats
    share: float


def lines_of(members: Sequence[Mapping[str, Any]], backbones: Sequence[str]) -> list[Line]:
    """A line per member: colour by backbone, purple for fusions; stroke by mask."""
    colours = dict(zip(backbones, COLOURS))
    return [
        Line(
            one["name"],
            colours.get(one["backbones"][0], SKY) if len(one["backbones"]) == 1 else PURPLE,
            STROKES[one["mask"]],
        )
        for one in members
    ]


VOTE = Line("vote", INK, "-", 2.2)


# --- curves -----------------------------------------------------------------------------------------------------------


def roc(curves: Mapping[str, Floats], lines: Sequence[Line]) -> str:
    """ROC curves; `curves` as `curves.npz` (`NAME/false_positive_rate`, `NAME/recall`)."""
    with _page(4.6, 4.4) as page:
        axes = page.axes("false positive rate (share of noise clips called orca)", "recall (share of orca clips found)")
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, alpha=0.5, linestyle="--")
        for line in lines:
            found = (np.concatenate([[0.0], curves[f"{line.name}/{key}"], [1.0]]) for key in ROC)
            axes.step(*found, where="post", **_style(line))
        _unit(axes)
        axes.legend(loc="lower right", handlelength=2.6, **_small_if_many(lines))
        return page.svg("roc")


ROC = ("false_positive_rate", "recall")


def precision_recall(curves: Mapping[str, Floats], lines: Sequence[Line], prevalence: float) -> str:
    """Precision against recall; the dashed line is what calling every clip orca reaches."""
    with _page(4.6, 4.4) as page:
        axes = page.axes("recall (share of orca clips found)", "precision (share of called clips that are orca)")
        axes.axhline(prevalence, color=INK, linewidth=0.7, alpha=0.5, linestyle="--")
        for line in lines:
            axes.plot(curves[f"{line.name}/recall"], curves[f"{line.name}/precision"], **_style(line))
        _unit(axes)
        return page.svg("precision-recall")


def reliability(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> str:
    """Share of orca clips against mean confidence, without and with calibration.

    Parameters
    ----------
    before, after : `confidence`, `share`, `low`, `high` of each bin, as `metrics.reliability` gives them.
    """
    with _page(4.6, 4.2) as page:
        axes = page.axes("mean confidence of the clips in a bin", "share of them that are orca")
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, alpha=0.5, linestyle="--")
        for points, label, colour, marker in (
            (before, "as it is", VERMILION, "s"),
            (after, "calibrated on other recordings", BLUE, "o"),
        ):
            share, low, high = (np.asarray(points[key]) for key in ("share", "low", "high"))
            bars = np.maximum([share - low, high - share], 0)
            style = {"color": colour, "marker": marker, "label": label, "markersize": 4.5}
            axes.errorbar(points["confidence"], share, bars, capsize=2, elinewidth=0.8, **style)
        _unit(axes)
        axes.legend(loc="lower right")
        return page.svg("reliability")


def losses(history: Mapping[str, Sequence[float]]) -> str:
    """Losses of one backbone's fine-tuning by step: every list of `history` but `step` whose name tells a loss."""
    with _page(4.6, 2.9) as page:
        axes = page.axes("training step", "loss, mean since the last point")
        for number, (name, values) in enumerate(loss_parts(history).items()):
            stroke = ("-", (0, (5, 1.5)), (0, (1, 1.2)), "-.")[number % 4]
            axes.plot(history["step"], values, color=COLOURS[number % 5], linestyle=stroke, marker="o", markersize=3)
            axes.lines[-1].set_label(name.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.legend()
        return page.svg("losses")


def loss_parts(history: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """The lists of a history that are losses, one value per entry of `step`."""
    steps = len(history.get("step", ()))
    return {name: values for name, values in history.items() if name.endswith("loss") and len(values) == steps}


def false_alarms(recall: Floats, per_hour: Floats, points: Sequence[Mapping[str, Any]]) -> str:
    """False alarms per hour of noise against recall.

    Parameters
    ----------
    recall, per_hour : at every threshold, shape (thresholds,).
    points : `recall` and `false_alarms_per_hour` (value, low, high) at chosen recalls.
    """
    with _page(4.6, 3.6) as page:
        axes = page.axes("recall (share of orca clips found)", "false alarms per hour of noise")
        axes.plot(recall, per_hour, drawstyle="steps-pre", color=BLUE)
        for one in points:
            rate = one["false_alarms_per_hour"]
            bar = [[max(0.0, rate["value"] - rate["low"])], [max(0.0, rate["high"] - rate["value"])]]
            axes.errorbar(one["recall"], rate["value"], bar, marker="o", color=VERMILION, markersize=5, capsize=2)
        axes.set_xlim(-0.02, 1.02)
        axes.set_yscale("symlog", linthresh=10.0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}")
        return page.svg("false-alarms")


def ranking(aucs: Floats, marked: Mapping[str, int], lines: Sequence[Line], chosen: int) -> str:
    """AUC against rank, aucs (combinations,); `marked` holds the rank (from 1) of each single member."""
    styles = {line.name: line for line in lines}
    with _page(4.6, 3.6) as page:
        axes = page.axes("rank of the combination", "ROC AUC on devel")
        axes.plot(np.arange(1, len(aucs) + 1), aucs, color=INK, alpha=0.6, linewidth=1.2)
        for name, rank in marked.items():
            marker = MARKERS[str(styles[name].stroke)]
            axes.plot(rank, aucs[rank - 1], marker, color=styles[name].colour, markersize=6, label=name)
        axes.plot(chosen, aucs[chosen - 1], "*", color=INK, markersize=11, label="chosen vote")
        axes.legend(loc="lower left", handletextpad=0.4, **_small_if_many(lines))
        return page.svg("ranking")


MARKERS = {str(STROKES["none"]): "o", str(STROKES["minimal"]): "s", str(STROKES["negative"]): "v"}


def shares(names: Sequence[str], values: Floats, lines: Sequence[Line], label: str) -> str:
    """Horizontal bars, 0 to 1, one per name."""
    styles = {line.name: line for line in lines}
    with _page(4.6, 0.9 + 0.26 * len(names)) as page:
        axes = page.axes(label, "")
        colours = [styles[name].colour for name in names]
        axes.barh(np.arange(len(names)), values, color=colours, height=0.66)
        for number, value in enumerate(values):
            axes.text(float(value) + 0.015, number, f"{100 * value:.0f} %", va="center", fontsize=8)
        axes.set_yticks(np.arange(len(names)), list(names))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        return page.svg("shares")


def front(
    points: Sequence[tuple[float, float]], trained: tuple[float, float], chosen: tuple[float, float], label: str
) -> str:
    """The Pareto front of AUC against a cost: (cost, AUC) of its points, the run's own vote and the chosen one."""
    with _page(4.6, 3.4) as page:
        axes = page.axes(label, "ROC AUC on devel")
        axes.plot(*zip(*points), color=BLUE, marker="o", markersize=4, drawstyle="steps-post", label="Pareto front")
        axes.plot(*trained, "s", color=PURPLE, markersize=6, linestyle="none", label="vote of the ranking")
        axes.plot(*chosen, "*", color=VERMILION, markersize=11, linestyle="none", label="chosen for the buoy")
        axes.set_xlim(left=0)
        axes.legend(loc="lower right")
        return page.svg("front")


# --- windows and their relevance --------------------------------------------------------------------------------------


def explanation(panels: Sequence[Panel], name: str) -> str:
    """Spectrogram and relevance of one window, a row per backbone, time in seconds and frequency in kHz."""
    with _page(4.6, 0.55 + 1.75 * len(panels)) as page:
        grid = page.figure.subplots(len(panels), 2, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.42})
        for (left, right), panel in zip(grid, panels):
            _image(left, grey(panel.spectrogram), panel)
            _image(right, overlay(panel.spectrogram, panel.relevance), panel)
            left.set_title(panel.name, loc="left", fontsize=8)
            right.set_title(f"relevance, {100 * panel.share:.0f} % of the score", loc="left", fontsize=8)
            left.set_ylabel("frequency (kHz)", fontsize=8)
            right.tick_params(labelleft=False)
        for axes in grid[-1]:
            axes.set_xlabel("time (s)", fontsize=8)
        return page.svg(name)


def _image(axes: Any, colours: NDArray[np.uint8], panel: Panel) -> None:
    bands = len(panel.frequencies_hz)
    extent = (0.0, panel.seconds, -0.5, bands - 0.5)
    axes.imshow(colours.swapaxes(0, 1), origin="lower", aspect="auto", extent=extent, interpolation="none")
    ticks_hz, places = frequency_ticks(panel.frequencies_hz)
    axes.set_yticks(places, [f"{hertz / 1000:g}" for hertz in ticks_hz])
    axes.set_xticks([0, 0.25, 0.5, 0.75], ["0", "0.25", "0.5", "0.75"])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def frequency_ticks(frequencies_hz: Floats) -> tuple[list[float], list[float]]:
    """Round frequencies and where they lie among the bands, far enough apart to be read."""
    kept: list[tuple[float, float]] = []
    for hertz in (hertz for hertz in TICKS_HZ if frequencies_hz[0] <= hertz <= frequencies_hz[-1]):
        place = float(np.interp(hertz, frequencies_hz, np.arange(len(frequencies_hz))))
        if not kept or kept[-1][1] - place >= APART * len(frequencies_hz):
            kept.append((hertz, place))
    return [hertz for hertz, _ in kept], [place for _, place in kept]


APART = 0.09  # of the axis, between ticks
TICKS_HZ = (10000.0, 7000.0, 4000.0, 2000.0, 1000.0, 500.0)


def brightness(spectrogram: Floats) -> Floats:
    """A spectrogram between 0 and 1, from its low to its high percentile (`LEVELS`); 0 where all is the same."""
    low, high = np.percentile(spectrogram, LEVELS)
    return np.asarray(np.clip((spectrogram - low) / (high - low if high > low else 1.0), 0, 1), np.float64)


def grey(spectrogram: Floats) -> NDArray[np.uint8]:
    """Spectrogram (frames, bands) as colours (frames, bands, 3): loud is dark."""
    return np.repeat(_bytes(1 - 0.95 * brightness(spectrogram))[..., None], 3, axis=-1)


def overlay(spectrogram: Floats, relevance: Floats) -> NDArray[np.uint8]:
    """Relevance in viridis over a faint spectrogram, (frames, bands, 3); where there is little it is clear.

    The colour follows the square root of the relevance over its 99.8th percentile.
    """
    from matplotlib import colormaps

    highest = float(np.percentile(relevance, 99.8)) or float(relevance.max()) or 1.0
    strength = np.sqrt(np.clip(relevance / highest, 0, 1))
    colours = colormaps["viridis_r"](strength)[..., :3]
    veil = np.clip((strength - 0.15) * 2.5, 0, 1)[..., None]
    faint = (1 - 0.4 * brightness(spectrogram))[..., None]
    return _bytes(veil * colours + (1 - veil) * faint)


def _bytes(values: Floats) -> NDArray[np.uint8]:
    return np.asarray(np.round(255 * values), np.uint8)


# --- drawing ----------------------------------------------------------------------------------------------------------


class _page:  # noqa: N801 (a context manager)
    """A figure under the report's settings, of so many inches."""

    def __init__(self, width: float, height: float) -> None:
        self._size = width, height

    def __enter__(self) -> _page:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._context = rc_context(SETTINGS)
        self._context.__enter__()
        self.figure: Any = Figure(figsize=self._size)
        FigureCanvasSVG(self.figure)
        return self

    def __exit__(self, *fault: object) -> None:
        self._context.__exit__(None, None, None)

    def axes(self, across: str, up: str) -> Any:
        """The only axes of the figure, with labels and a grid."""
        axes = self.figure.subplots()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _grid(axes)
        return axes

    def svg(self, name: str) -> str:
        """The figure as SVG text, the same for the same content."""
        from matplotlib import rc_context

        file = io.StringIO()
        with rc_context({"svg.hashsalt": name}):
            self.figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
        return tidy(file.getvalue())


def tidy(svg: str) -> str:
    """What matplotlib writes without prologue, metadata and fixed size, its images in a palette."""
    svg = svg[svg.index("<svg ") :]
    svg = svg.replace("'DejaVu Sans'", FONTS)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) ?height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) ?width="[^"]*"', r"\1", svg, count=1)
    return re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", _small, svg)


def _small(found: re.Match[str]) -> str:
    """An embedded PNG with a palette: a third of the size."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
    image.quantize(PALETTE).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _style(line: Line) -> dict[str, Any]:
    return {"color": line.colour, "linestyle": line.stroke, "linewidth": line.width, "label": line.name}


def _grid(axes: Any) -> None:
    axes.grid(visible=True, color=INK, alpha=LIGHT, linewidth=0.5)
    axes.set_axisbelow(True)


def _small_if_many(lines: Sequence[Line]) -> dict[str, Any]:
    """Of a legend: one column whose entries are smaller where there are many."""
    return {"fontsize": 6.8, "labelspacing": 0.25} if len(lines) > 8 else {}


def _unit(axes: Any) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
