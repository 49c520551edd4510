"""What a training report says of what was found: ranking, masks, baselines, curves, and examples with their relevance.

As in `sections`, everything comes from the files of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from . import pictures, tables
from .document import (
    Block,
    Card,
    Gallery,
    Paragraph,
    Picture,
    Row,
    Table,
    cells,
)
from .examples import METHOD, Chosen, Heard, choose, explain, row_s
from .run_files import Run
from .words import counted, duration, figure, interval, listed, number, percent, signed, slug

EXAMPLES = 4  # of an outcome
DOT = "\u25cf"
SHOWN = 10  # votes that were chosen most often


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranking(run: Run) -> Iterable[Block]:
    """Table 1, and where single members stand."""
    yield Paragraph(run.selection["metrics"]["note"], caution=True)
    yield paper_table(run, "ranking")
    chosen = next(place for place, row in enumerate(run.ranking, 1) if set(row.members) == set(run.selection["vote"]))
    yield Paragraph(f"The vote chosen, {' + '.join(run.selection['vote'])}, has number {chosen}.{_rule(run)}")
    yield paper_table(run, "single")
    if "paper_ranking" in run.tables:
        yield paper_table(run, "paper_ranking", left=(1,))
    yield _ranks(run, chosen)


def paper_table(run: Run, name: str, left: tuple[int, ...] = (0,)) -> Table:
    """One of the paper's tables, as `tables` makes it, with dots for ticks."""
    found = run.tables[name]
    rows = tuple(tuple(DOT if cell == tables.TICK else cell for cell in row) for row in found.rows)
    return Table(found.title, found.header, rows, left, found.marked, found.notes)


def _rule(run: Run) -> str:
    rule = run.selection["recipe"]["vote"]["must_contain"]
    return "" if rule == "any" else f" By the recipe a vote must hold a member whose mask is {rule}."


def _ranks(run: Run, chosen: int) -> Picture:
    aucs = np.array([row.auc for row in run.ranking])
    ranks = {row.members[0]: place for place, row in enumerate(run.ranking, 1) if len(row.members) == 1}
    told = "; ".join(f"{name} {rank}" for name, rank in ranks.items())
    return Picture(
        "ranking",
        pictures.ranking(aucs, ranks, _lines(run), chosen),
        f"ROC AUC of all {len(aucs)} votes by rank, falling from {aucs[0]:.3f} to {aucs[-1]:.3f}. Numbers of single "
        f"members: {told}. The chosen vote has number {chosen}.",
        "All votes by rank. Circles: members without mask; squares: minimal mask; triangles: negative mask.",
    )


def _lines(run: Run) -> list[pictures.Line]:
    return pictures.lines_of(run.selection["members"], run.backbones)


# --- choice -----------------------------------------------------------------------------------------------------------


def choice(run: Run) -> Iterable[Block]:
    """How stable the choice of the vote is, and what voting gains."""
    found, rule = run.analysis["nested"], _rule(run)
    yield Paragraph(
        f"In each of {number(found['auc']['draws'])} resamples of the devel recordings a vote was chosen on the "
        f"recordings drawn and measured on those left out.{rule} {counted(found['distinct'], 'different vote')} were "
        f"chosen; their mean AUC on the recordings left out is {interval(found['auc'])}."
    )
    names, values = zip(*sorted(found["members"].items(), key=lambda one: -one[1]))
    told = "; ".join(f"{name} {percent(value)}" for name, value in zip(names, values))
    yield Picture(
        "stability",
        pictures.shares(names, np.array(values), _lines(run), "share of the resamples whose choice held the member"),
        f"Share of the resamples whose choice held each member: {told}.",
        "Stability of the choice: how often a vote chosen on resampled recordings held each member.",
    )
    yield Table(
        "The votes chosen most often",
        ("vote", "share of the resamples"),
        cells((" + ".join(one["members"]), f"{100 * one['share']:.1f} %") for one in found["combinations"][:SHOWN]),
    )
    yield _against(run)


def _against(run: Run) -> Table:
    optimistic, honest = run.analysis["differences"], run.analysis["nested"]["against"]
    return Table(
        "What voting gains over single members without a mask, differences of AUC",
        ("single member", "this vote, where it was chosen", "votes chosen and measured on different recordings"),
        cells((name, signed(one), signed(honest[name])) for name, one in optimistic.items()),
        notes=("Paired by resample of recordings, 95 % intervals. The first column is optimistic, the second is not.",),
    )


# --- masks ------------------------------------------------------------------------------------------------------------


def masks(run: Run) -> Iterable[Block]:
    """Table 2, and what the masks keep and remove."""
    yield Paragraph(
        "A minimal mask keeps the features of the highest average relevance on the training split, one mask per "
        "backbone. A negative mask zeroes, in each window, the features whose relevance is above the window's "
        "average. Relevance is that of the base-model's own prediction, the neuron of its highest logit; where that "
        "logit is not positive there is no relevance, and the negative mask removes nothing."
    )
    yield paper_table(run, "masks")
    found = run.selection["masks"]
    rows = (
        (name, number(one["features"]), number(one["minimal_keep"]), f"{one['negative_removed_on_average']:.1f}")
        for name, one in found.items()
    )
    yield Table(
        "Features kept and removed",
        ("backbone", "features", "kept by the minimal mask", "removed by the negative mask, mean of devel windows"),
        cells(rows),
        notes=tuple(
            f"The minimal mask of {name} keeps every feature: it is {name} itself."
            for name, one in found.items()
            if one["minimal_is_identity"]
        ),
    )
    yield Table(
        "Which neuron explained the windows",
        ("backbone", "split", "windows", "orca neuron", "noise neuron", "no relevance at all"),
        cells(_neurons(run.selection["all_zero"])),
        left=(0, 1),
    )


def _neurons(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterable[tuple[str, ...]]:
    for name, splits in found.items():
        for split, one in splits.items():
            noise = one["rows"] - one["orca"] - one["all_zero"]
            counts = (one["rows"], one["orca"], noise, one["all_zero"])
            yield name, split, *(number(count) for count in counts)


# --- baselines --------------------------------------------------------------------------------------------------------


def baselines(run: Run) -> Iterable[Block]:
    """Table 3, and what the baselines chose; empty where there are none."""
    if not run.baselines:
        return
    yield Paragraph(
        "Trained and measured on the same splits; what each chose on devel makes its figure optimistic too."
    )
    yield paper_table(run, "baselines")
    yield Table(
        "What the baselines chose on devel",
        ("baseline", "chosen"),
        cells((one["name"], _said(one["chosen"])) for one in run.baselines),
        left=(0, 1),
        notes=tuple(f"{one['name']}: {one['note']}" for one in run.baselines if one.get("note")),
    )


def _said(chosen: Any) -> str:
    if isinstance(chosen, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items())
    return str(chosen or "")


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(run: Run) -> Iterable[Block]:
    """ROC, precision and recall, calibration, false alarms and thresholds."""
    labels, lines = run.devel["label"] == "orca", [*_lines(run), pictures.VOTE]
    found = {**run.selection["metrics"]["members"], "vote": run.selection["metrics"]["vote"]}
    told = "; ".join(f"{name} {figure(one['value'])}" for name, one in found.items())
    same = "Colour: backbone; dashes: minimal mask; dots: negative mask; thick: the vote."
    yield Row(
        (
            Picture(
                "roc",
                pictures.roc(run.curves, lines),
                f"ROC curves on devel. Areas under them: {told}.",
                f"Receiver operating characteristic of the devel clips. {same} The vote was chosen on these clips.",
            ),
            Picture(
                "precision-recall",
                pictures.precision_recall(run.curves, lines, float(labels.mean())),
                f"Precision against recall on devel; {percent(labels.mean())} of the clips are orca.",
                f"Precision and recall of the devel clips, lines as in the ROC curves. Dashed: every clip called orca "
                f"({percent(labels.mean())} are).",
            ),
        )
    )
    yield _figures(run)
    calibration = run.analysis["calibration"]
    if "left_out" in calibration:
        yield Paragraph(f"Calibration was not measured: {calibration['left_out']}.")
        yield _false_alarms(run)
    else:
        yield Row((_calibration(calibration), _false_alarms(run)))
    yield _points(run.analysis["false_alarms"])
    yield from _thresholds(run)


def _figures(run: Run) -> Table:
    aucs, precision = run.analysis["auc"], run.analysis["average_precision"]
    rows = [(name, interval(one), interval(precision["members"][name])) for name, one in aucs["members"].items()]
    return Table(
        "Areas under the curves on devel",
        ("member", "ROC AUC", "average precision"),
        cells([*rows, ("vote", interval(aucs["vote"]), interval(precision["vote"]))]),
        marked=(len(rows),),
        notes=(
            f"In brackets: {run.analysis['interval']}. Average precision of calling every clip orca: "
            f"{figure(precision['chance'])}. The vote was chosen on these clips.",
        ),
    )


def _calibration(found: Mapping[str, Any]) -> Picture:
    before, after = found["before"], found["after"]
    errors = ", ".join(
        f"{name} calibration {figure(one['ece'])} (Brier score {figure(one['brier'])})"
        for name, one in (("without", before), ("with", after))
    )
    return Picture(
        "reliability",
        pictures.reliability(before["reliability"], after["reliability"]),
        f"Reliability diagram of the vote on devel: share of orca clips against confidence. Expected calibration error "
        f"{errors}.",
        "Reliability of the vote's confidence on the devel clips, in bins of about equal numbers of clips, with "
        f"Wilson's 95 % intervals. Expected calibration error {errors}. Calibrated: sigmoid({found['slope']:.2f} "
        f"logit + {found['shift']:.2f}), each clip by a fit to the other of {found['folds']} folds of recordings. The "
        "order of clips, and so the AUC, stays as it is.",
    )


def _false_alarms(run: Run) -> Picture:
    points, labels = run.analysis["false_alarms"], run.devel["label"] == "orca"
    highest = metrics.clip_highest(_vote_windows(run), run.devel["window_clip"], len(labels))
    found, hours = metrics.curves(highest, labels), run.analysis["clips"]["noise_hours"]
    per_hour = found["false_positive_rate"] * np.sum(~labels) / hours
    told = "; ".join(f"{percent(one['recall'])} {one['false_alarms_per_hour']['value']:.0f}" for one in points)
    return Picture(
        "false-alarms",
        pictures.false_alarms(found["recall"], per_hour, points),
        f"False alarms per hour of noise against recall on devel: {told}.",
        "False alarms per hour of noise against recall, by the highest window of each clip; at most one a clip. "
        f"Points: chosen recalls with 95 % intervals, thresholds chosen anew on each resample. Noise lasts "
        f"{duration(3600 * hours)} in all.",
    )


def _points(points: Sequence[Mapping[str, Any]]) -> Table:
    rows = (
        (
            percent(one["wanted"]),
            percent(one["recall"]),
            figure(one["threshold"]),
            interval(one["precision"]),
            number(one["false_alarms"]),
            interval(one["false_alarms_per_hour"], 0),
        )
        for one in points
    )
    return Table(
        "Thresholds by recall on devel",
        ("recall wanted", "reached", "threshold", "precision", "noise clips called", "false alarms per hour of noise"),
        cells(rows),
        left=(),
        notes=("Thresholds were chosen on the clips that they are measured on; the intervals hold that uncertainty.",),
    )


def _thresholds(run: Run) -> Iterable[Block]:
    found = run.selection["thresholds"]
    yield Paragraph(
        f"An event starts at {figure(found['start'])} and ends below {figure(found['stop'])}. Chosen on devel, where "
        f"a clip counts as called when its highest window reaches the start, that finds {percent(found['recall'])} of "
        f"the orca clips with a precision of {percent(found['precision'])} and calls "
        f"{counted(found['false_alarms'], 'noise clip')} orca, {found['false_alarms_per_hour']:.0f} per hour of "
        "noise. Noise here is a collection of hard sounds, not a season at sea: rates at a site will differ.",
        caution=True,
    )
    kinds = sorted(found["false_alarms_by_kind"].items(), key=lambda one: (-one[1][0], one[0]))
    rows = ((kind, number(alarms), number(clips), f"{percent(alarms / clips)}") for kind, (alarms, clips) in kinds)
    yield Table(
        "False alarms on devel by kind of sound",
        ("kind of noise", "clips called orca", "clips", "share"),
        cells(rows),
    )


# --- examples ---------------------------------------------------------------------------------------------------------


def examples(run: Run) -> Iterable[Block]:
    """Clips of devel of every outcome, with what in them made the vote say so."""
    labels, groups = run.devel["label"] == "orca", run.devel["group"].tolist()
    scores, threshold = _vote_windows(run), run.selection["thresholds"]["start"]
    chosen = choose(scores, run.devel["window_clip"], labels, groups, threshold, EXAMPLES)
    heard = explain(run.result, run.selection, [one.window for some in chosen.values() for one in some])
    first, second = (
        "Clips of devel, one per recording. A clip counts as called when its highest window reaches the start "
        f"threshold of {figure(threshold)}, which was chosen on these clips.",
        "Shown is the highest window of each clip. Left the spectrogram as the backbone gets it, dark is loud; right "
        "its relevance, from clear through green to violet, each picture scaled to its own highest. Rule: "
        f"{METHOD}.",
    )
    yield Paragraph(first)
    yield Paragraph(second)
    place = 0
    for outcome, some in chosen.items():
        cards = [_card(run, one, heard, place + k, f"{slug(outcome)}-{k + 1}") for k, one in enumerate(some)]
        place += len(some)
        yield Gallery(outcome.capitalize(), ABOUT[outcome] if some else NONE[outcome], tuple(cards))


ABOUT = {
    "hits": "Orca clips that were called, the highest scores first.",
    "misses": "Orca clips that were not called, the lowest scores first.",
    "false alarms": "Noise clips that were called orca, the highest scores first.",
    "correct rejections": "Noise clips that were not called, the lowest scores first.",
}
NONE = {
    "hits": "No orca clip of devel was called.",
    "misses": "Every orca clip of devel was called.",
    "false alarms": "No noise clip of devel was called orca.",
    "correct rejections": "Every noise clip of devel was called orca.",
}


def _vote_windows(run: Run) -> NDArray[np.float64]:
    members = run.devel["members"].tolist()
    columns = [members.index(name) for name in run.selection["vote"]]
    return np.asarray(run.devel["window_scores"][:, columns].mean(axis=1), np.float64)


def _card(run: Run, one: Chosen, heard: Mapping[str, Heard], place: int, name: str) -> Card:
    clip = {key: str(run.devel[key][one.clip]) for key in ("file_name", "group", "kind", "label")}
    panels = _panels(heard, place)
    spread = listed(f"{panel.name} {percent(panel.share)}" for panel in panels)
    return Card(
        clip["file_name"],
        (
            ("label", clip["label"]),
            ("kind", clip["kind"] or "not stated"),
            ("recording", clip["group"]),
            (
                "score",
                f"{figure(one.score)} highest window, {figure(run.devel['vote_clip_scores'][one.clip])} clip's mean",
            ),
        ),
        Picture(
            name,
            pictures.explanation(panels, name),
            f"Spectrogram and relevance of a window of {clip['file_name']} ({clip['label']}, score "
            f"{figure(one.score)}).",
            f"Relevance by backbone: {spread}. Window at {_start_s(run, one):.2f} s.",
        ),
    )


def _panels(heard: Mapping[str, Heard], place: int) -> list[pictures.Panel]:
    totals = {name: float(one.maps[place].sum(dtype=np.float64)) for name, one in heard.items()}
    whole = sum(totals.values()) or 1.0
    return [
        pictures.Panel(
            name, one.spectrograms[place], one.maps[place], one.seconds, one.frequencies_hz, totals[name] / whole
        )
        for name, one in heard.items()
    ]


def _start_s(run: Run, one: Chosen) -> float:
    return float(run.devel["window_start"][one.window]) * row_s(run.selection)
