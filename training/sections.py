"""What a training report says, section by section: a run's files in, blocks of a document out.

Everything comes from the files of the run; no figure is written by hand. Where a figure was chosen on the clips that it
is measured on, the text beside it says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .. import metrics
from ..ranking import Row as Vote
from . import examples, pictures, tables
from .dataset import SPLITS
from .document import (
    Block,
    Card,
    Code,
    Document,
    Gallery,
    Headline,
    Listing,
    Paragraph,
    Picture,
    Row,
    Section,
    Table,
    cells,
)
from .predictions import ARFF, CSV, Written
from .words import counted, duration, figure, interval, listed, number, percent, signed, slug

Arrays = Mapping[str, NDArray[Any]]

EXAMPLES = 4  # of an outcome
DOT = "\u25cf"
SHOWN = 10  # votes that were chosen most often


@dataclass(frozen=True)
class Run:
    """What a report is made from.

    Attributes
    ----------
    result : folder of the stage `result`.
    selection : its `selection.json`.
    devel, curves : its `devel_scores.npz` and `curves.npz`.
    ranking : every vote, the highest AUC first.
    analysis : its `analysis.json`.
    baselines : `report.json` of every baseline.
    costs : seconds and memory by stage, in the order in which they ran.
    test : its `test_scores.npz`, empty where the test split was not predicted.
    test_files : the files of the test split in the order of the labels.
    quantization, budget : what the export measured (`RUN/deploy/*.json`); empty where nothing was exported.
    """

    result: Path
    selection: Mapping[str, Any]
    devel: Arrays
    curves: Arrays
    ranking: tuple[Vote, ...]
    analysis: Mapping[str, Any]
    baselines: tuple[Mapping[str, Any], ...] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    test: Arrays = field(default_factory=dict)
    test_files: tuple[str, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def tables(self) -> dict[str, tables.Table]:
        """The tables of the paper, see `tables`."""
        return tables.tables(self.selection, self.ranking, self.baselines)


def contents(run: Run, predicted: Written | None = None) -> Document:
    """All that the report says.

    Parameters
    ----------
    run : see `report.read_run`.
    predicted : what was predicted for the test split, where it was.
    """
    made = (
        Section("result", "Result", tuple(_result(run))),
        Section("training", "What was trained", tuple(_training(run))),
        Section("data", "Data", tuple(_data(run))),
        Section("ranking", "Ranking of votes", tuple(_ranking(run))),
        Section("choice", "How sure the choice is", tuple(_choice(run))),
        Section("masks", "Masks", tuple(_masks(run))),
        Section("baselines", "Baselines", tuple(_baselines(run))),
        Section("curves", "Curves and thresholds", tuple(_curves(run))),
        Section("edge", "Cost on the edge", tuple(_edge(run))),
        Section("test", "Test split", tuple(_test(run, predicted))),
        Section("examples", "Examples", tuple(_examples(run))),
        Section("provenance", "Provenance", tuple(_provenance(run))),
    )
    return Document(
        title=f"Training report: {run.selection['name']}",
        subtitle=_subtitle(run),
        abstract=_abstract(run),
        sections=tuple(section for section in made if section.blocks),
    )


def names_of(run: Run) -> list[str]:
    """The backbones, in the recipe's order."""
    return [one["name"] for one in run.selection["backbones"]]


def _subtitle(run: Run) -> str:
    versions, seed = run.selection["versions"], run.selection["seed"]
    return (
        f"orcawatch {versions['orcawatch']} \u00b7 seed {seed} \u00b7 data {run.selection['data']['fingerprint'][:16]}"
    )


def _abstract(run: Run) -> str:
    selection, metric = run.selection, run.selection["metrics"]
    backbones, members = names_of(run), selection["members"]
    return (
        f"{counted(len(members), 'classifier')} on the features of {listed(backbones)}, trained by relevance-based "
        f"feature masking. The vote, chosen among {number(len(run.ranking))} combinations on the devel split, reaches "
        f"a ROC AUC of {interval(metric['vote'])} there; votes chosen in the same way and measured on other "
        f"recordings reach {interval(metric['nested'])}."
    )


# --- result -----------------------------------------------------------------------------------------------------------


def _result(run: Run) -> Iterable[Block]:
    metric, vote = run.selection["metrics"], run.selection["vote"]
    yield Headline(tuple(_headline(run)))
    yield Paragraph(
        f"The vote is the mean confidence of {listed(vote)}. All figures are areas under the ROC curve (AUC) of the "
        f"clips of the devel split unless another split is named; the score of a clip is the {metric['score']}. "
        f"Intervals: {metric['interval']}."
    )
    yield Paragraph(metric["note"], caution=True)
    yield Paragraph(
        "The nested figure covers the choice of the vote only. Whatever else was tried on the devel split (recipe, "
        "front end, calibration, thresholds) makes every figure of that split optimistic.",
        caution=True,
    )


def _headline(run: Run) -> Iterable[tuple[str, str, str]]:
    metric = run.selection["metrics"]
    yield _tile("Vote, chosen on devel", metric["vote"], "optimistic: chosen and measured on the same clips")
    yield _tile("Vote, nested", metric["nested"], "chosen on resampled recordings, measured on those left out")
    best = max(metric["members"], key=lambda name: float(metric["members"][name]["value"]))
    yield _tile("Best single member", metric["members"][best], f"{best}, the best of {len(metric['members'])} on devel")
    if run.baselines:
        leading = max(run.baselines, key=lambda one: float(one["auc"]["value"]))
        yield _tile("Best baseline", leading["auc"], f"{leading['name']}, the best of {len(run.baselines)} on devel")
    tested = test_auc(run)
    if tested:
        yield _tile("Vote, test split", tested, "recordings on which nothing was chosen")


def _tile(name: str, found: Mapping[str, Any], about: str) -> tuple[str, str, str]:
    return name, figure(found["value"]), f"95 % interval {figure(found['low'])} to {figure(found['high'])}; {about}"


def test_auc(run: Run) -> Mapping[str, Any]:
    """AUC of the vote on the test split with its interval; empty where that has no labels, or one class only."""
    labels = set(run.test["label"].tolist()) if run.test else set()
    if labels != {"orca", "noise"}:
        return {}
    orca, groups = run.test["label"] == "orca", run.test["group"].tolist()
    draws = run.selection["metrics"]["vote"]["draws"]
    return vars(metrics.auc_interval(run.test["vote_clip_scores"], orca, groups, draws, run.selection["seed"]))


# --- training ---------------------------------------------------------------------------------------------------------


def _training(run: Run) -> Iterable[Block]:
    recipe = run.selection["recipe"]
    yield Paragraph(
        f"Each backbone was brought to the task, its last convolutional layer averaged to a feature vector, and a "
        f"classifier of one hidden layer trained on these features: without a mask, under a minimal mask, and under a "
        f"negative mask. Windows of a clip are {recipe['windows']['hop_s']:g} s apart."
    )
    yield Table(
        "Backbones",
        ("backbone", "input", "spectrogram", "features", "weights from", "fine-tuning"),
        cells(_backbone(one, recipe["backbones"][one["name"]]) for one in run.selection["backbones"]),
        left=(0, 2, 4, 5),
        notes=_scratch(run),
    )
    yield Table(
        "Members",
        ("member", "in the paper's tables", "features of", "mask", "negative mask from the relevance of"),
        cells(_member(one) for one in run.selection["members"]),
        left=(0, 1, 2, 3, 4),
    )
    if run.selection["dropped"]:
        yield Listing(tuple(f"Left out: {one['name']}: {one['reason']}." for one in run.selection["dropped"]))
    drawn = [picture for one in run.selection["backbones"] for picture in _losses(one)]
    if drawn:
        yield Row(tuple(drawn))


def _backbone(one: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    size = " \u00d7 ".join(str(side) for side in one["input_shape"])
    tuning = settings["fine_tune"]
    return (
        one["name"],
        size,
        spectrogram(one["front_end"]),
        number(one["feature_size"]),
        one["weights_source"],
        (tuned(tuning) if tuning else "none"),
    )


def _member(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["name"],
        tables.paper_name(one),
        " + ".join(one["backbones"]),
        one["mask"],
        " + ".join(one["relevance_of"] or ()),
    )


def spectrogram(front_end: Mapping[str, Any]) -> str:
    """A front end in a few words."""
    kind = str(front_end["kind"]).replace("_", " ")
    band = [front_end[key] / 1000 for key in ("low_hz", "high_hz") if key in front_end]
    span = f", {band[0]:g} to {band[1]:g} kHz" if len(band) == 2 else ""
    return f"{kind}{span}, from {front_end['rate_hz'] / 1000:g} kHz"


def tuned(settings: Mapping[str, Any]) -> str:
    """Fine-tuning in a few words."""
    steps = {name: value for name, value in settings.items() if name.endswith("steps") and value}
    told = [f"{number(value)} {name.replace('_', ' ')}" for name, value in steps.items()]
    return ", ".join([*told, f"batches of {settings['batch_size']}", str(settings["precision"])])


def _scratch(run: Run) -> tuple[str, ...]:
    scratch = [one["name"] for one in run.selection["backbones"] if one["weights_source"] == "from scratch"]
    if not scratch:
        return ()
    return (f"From scratch, without published weights: {listed(scratch)}. Expect less than with pretrained weights.",)


def _losses(one: Mapping[str, Any]) -> list[Picture]:
    parts = pictures.loss_parts(one["history"])
    if not parts:
        return []
    last = "; ".join(f"{name.replace('_', ' ')} {values[0]:.3g} to {values[-1]:.3g}" for name, values in parts.items())
    return [
        Picture(
            f"losses-{slug(one['name'])}",
            pictures.losses(one["history"]),
            f"Training losses of {one['name']} by step, first to last: {last}.",
            f"Fine-tuning of {one['name']}: losses on training windows.",
        )
    ]


# --- data -------------------------------------------------------------------------------------------------------------


def _data(run: Run) -> Iterable[Block]:
    found = run.selection["data"]
    yield Paragraph(f"Fingerprint (SHA-256 over names, labels, recordings and contents): {found['fingerprint']}.")
    yield Paragraph(
        "No recording stands in two splits."
        if found["recordings"] == "given"
        else "The data does not say which clips share a recording: each file counts as one, so clips of one recording "
        "may stand in two splits, which would flatter every figure, and the intervals are too narrow.",
        caution=found["recordings"] != "given",
    )
    simulated = run.selection["recipe"]["data"].get("simulated_clips", 0)
    if simulated:
        yield Paragraph(
            f"To the training split were added {counted(simulated, 'simulated call')} and as many clips of simulated "
            "sea without calls; they are counted in the table and not in the fingerprint."
        )
    yield Table(
        "Clips by split and label",
        ("split", "label", "clips", "duration", "recordings"),
        cells(_part(one) for one in found["splits"]),
        left=(0, 1),
    )
    yield Table(
        "Sources and their licences, as each source states it",
        ("source", "licence", *_splits(found["sources"])),
        cells(_sources(found["sources"])),
        left=(0, 1),
    )
    yield from _set_aside(found["set_aside"])


def _splits(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["split"] for one in sorted(sources, key=lambda one: SPLITS.index(one["split"]))))


def _sources(sources: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    """Clips by source and licence, a column per split."""
    splits = _splits(sources)
    for key in dict.fromkeys((one["repository"], one["licence"]) for one in sources):
        clips = {one["split"]: one["clips"] for one in sources if (one["repository"], one["licence"]) == key}
        yield *key, *(number(clips.get(split, 0)) for split in splits)


def _part(one: Mapping[str, Any]) -> tuple[str, ...]:
    return one["split"], one["label"], number(one["clips"]), duration(one["seconds"]), number(one["groups"])


def _set_aside(faults: Sequence[Mapping[str, str]]) -> Iterable[Block]:
    if not faults:
        yield Paragraph("No file was set aside.")
        return
    rows = cells((fault["file_name"], fault["reason"]) for fault in faults)
    yield Table(f"{counted(len(faults), 'file')} set aside", ("file", "reason"), rows, left=(0, 1))


# --- ranking ----------------------------------------------------------------------------------------------------------


def _ranking(run: Run) -> Iterable[Block]:
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
    return pictures.lines_of(run.selection["members"], names_of(run))


# --- choice -----------------------------------------------------------------------------------------------------------


def _choice(run: Run) -> Iterable[Block]:
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


def _masks(run: Run) -> Iterable[Block]:
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


def _baselines(run: Run) -> Iterable[Block]:
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


def _curves(run: Run) -> Iterable[Block]:
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
        f"Points: chosen recalls with 95 % intervals, thresholds chosen anew on each resample. {number(60 * hours)} "
        "minutes of noise.",
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


# --- edge -------------------------------------------------------------------------------------------------------------


def _edge(run: Run) -> Iterable[Block]:
    if run.quantization:
        yield from _quantization(run.quantization)
    if run.budget:
        yield from _budget(run.budget)


def _quantization(found: Mapping[str, Any]) -> Iterable[Block]:
    yield Paragraph(
        f"Measured through the code that the edge runs ({found['runtime']}, one thread of {found['machine']}): "
        f"{counted(found['clips'], 'devel clip')} in {counted(found['windows'], 'window')}; times are medians of "
        f"{counted(found['timed_windows'], 'window')}."
    )
    yield Table(
        "Quantized backbones",
        (
            *("backbone", "variant", "size (MB)", "features (ms per window)", "relevance (ms per window)"),
            *("features' SNR (dB)", "bits of the negative mask flipped"),
        ),
        cells(
            (name, variant, *_variant(one))
            for name, entry in found["backbones"].items()
            for variant, one in entry["variants"].items()
        ),
        left=(0, 1),
        notes=("SNR: signal-to-quantization-noise ratio over all devel windows, against the float32 file.",),
    )
    vote = found["vote"]
    yield Table(
        f"The vote ({' + '.join(vote['members'])}), quantized",
        ("variant", "size (MB)", "time (ms per window)", "AUC on devel", "AUC lost", "largest difference of a window"),
        cells(_quantized(variant, one) for variant, one in vote["variants"].items()),
        notes=(f"The training side's AUC is {interval(vote['trained'])}; lost: that minus this, paired by resample.",),
    )
    yield Table(
        "AUC lost by quantization, member by member",
        ("member", "trained", *vote["variants"]),
        cells(
            (name, figure(one["trained"]["value"], 4), *(signed(v["loss"], 4) for v in one["variants"].values()))
            for name, one in found["members"].items()
        ),
    )


def _variant(one: Mapping[str, Any]) -> tuple[str, ...]:
    noise, flipped = one["snr_db"], one["mask_bits_flipped"]
    return (
        f"{one['bytes'] / 1e6:.1f}",
        f"{one['features_ms']:.1f}",
        f"{one['explain_ms']:.0f}",
        "" if noise is None else f"{noise:.1f}",
        "" if flipped is None else f"{100 * flipped:.2f} %",
    )


def _quantized(variant: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        variant,
        f"{one['bytes'] / 1e6:.1f}",
        f"{one['features_ms']:.1f}",
        interval(one["auc"]),
        signed(one["loss"], 4),
        f"{one['largest_difference']:.2g}",
    )


def _budget(found: Mapping[str, Any]) -> Iterable[Block]:
    limits = [f"{found[key]:g} {unit}" for key, unit in (("most_ms", "ms per window"), ("most_mb", "MB")) if found[key]]
    within = f"within {listed(limits)}" if limits else "without a limit"
    chosen = found["chosen"]
    yield Paragraph(
        f"For the buoy the best vote {within} is {' + '.join(chosen['members'])}: AUC {figure(chosen['auc'])} on "
        f"devel at {chosen['ms']:.0f} ms per window and {chosen['mb']:.1f} MB. Chosen on devel, so optimistic.",
        caution=True,
    )
    yield Row(tuple(_front(found, by, label) for by, label in COSTS.items()))
    yield Table(
        "The Pareto front of AUC against time",
        ("vote", "backbones", "ms per window", "MB", "AUC on devel"),
        cells(
            (
                " + ".join(one["members"]),
                " + ".join(one["backbones"]),
                f"{one['ms']:.1f}",
                f"{one['mb']:.1f}",
                *_auc(one),
            )
            for one in found["front"]["ms"]
        ),
        left=(0, 1),
    )


COSTS = {"ms": "time per window (ms, one thread)", "mb": "size of the backbones (MB)"}


def _auc(one: Mapping[str, Any]) -> tuple[str]:
    return (figure(one["auc"], 4),)


def _front(found: Mapping[str, Any], by: str, label: str) -> Picture:
    points = {name: (found[name][by], found[name]["auc"]) for name in ("trained", "chosen")}
    front = [(one[by], one["auc"]) for one in found["front"][by]]
    told = "; ".join(f"{cost:.3g}: {auc:.3f}" for cost, auc in front)
    return Picture(
        f"front-{by}",
        pictures.front(front, points["trained"], points["chosen"], label),
        f"Pareto front of ROC AUC against {label}: {told}.",
        f"Best ROC AUC on devel that can be had for the {label}.",
    )


# --- test -------------------------------------------------------------------------------------------------------------


def _test(run: Run, predicted: Written | None) -> Iterable[Block]:
    if predicted is None:
        return
    tested = test_auc(run)
    if tested:
        yield Paragraph(f"ROC AUC of the vote on the test split: {interval(tested)}. Nothing was chosen on it.")
    else:
        yield Paragraph("The test split has no labels here, so no figure can be given for it.")
    yield Paragraph(
        f"{counted(predicted.files, 'file')} predicted, {number(predicted.orca)} of them orca at a threshold of "
        f"{figure(predicted.threshold)}, the one of equal errors on devel. {CSV} holds file, class and score, {ARFF} "
        "the same in the form of the ComParE challenge, in the order of the labels."
    )


# --- examples ---------------------------------------------------------------------------------------------------------


def _examples(run: Run) -> Iterable[Block]:
    labels, groups = run.devel["label"] == "orca", run.devel["group"].tolist()
    scores, threshold = _vote_windows(run), run.selection["thresholds"]["start"]
    chosen = examples.choose(scores, run.devel["window_clip"], labels, groups, threshold, EXAMPLES)
    heard = examples.explain(run.result, run.selection, [one.window for some in chosen.values() for one in some])
    first, second = (
        "Clips of devel, one per recording. A clip counts as called when its highest window reaches the start "
        f"threshold of {figure(threshold)}, which was chosen on these clips.",
        "Shown is the highest window of each clip. Left the spectrogram as the backbone gets it, dark is loud; right "
        "its relevance, from clear through green to violet, each picture scaled to its own highest. Rule: "
        f"{examples.METHOD}.",
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


def _card(run: Run, one: examples.Chosen, heard: Mapping[str, examples.Heard], place: int, name: str) -> Card:
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
                f"{figure(one.score)}; mean of the clip {figure(float(run.devel['vote_clip_scores'][one.clip]))}",
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


def _panels(heard: Mapping[str, examples.Heard], place: int) -> list[pictures.Panel]:
    totals = {name: float(one.maps[place].sum(dtype=np.float64)) for name, one in heard.items()}
    whole = sum(totals.values()) or 1.0
    return [
        pictures.Panel(
            name, one.spectrograms[place], one.maps[place], one.seconds, one.frequencies_hz, totals[name] / whole
        )
        for name, one in heard.items()
    ]


def _start_s(run: Run, one: examples.Chosen) -> float:
    return float(run.devel["window_start"][one.window]) * examples.row_s(run.selection)


# --- provenance -------------------------------------------------------------------------------------------------------


def _provenance(run: Run) -> Iterable[Block]:
    rows = [(name, duration(cost["wall_s"]), number(cost["peak_mb"])) for name, cost in run.costs.items()]
    total = duration(sum(cost["wall_s"] for cost in run.costs.values()))
    if rows:
        yield Table(
            "Time and peak memory by stage",
            ("stage", "time", "peak memory (MB)"),
            cells([*rows, ("all stages", total, number(max(cost["peak_mb"] for cost in run.costs.values())))]),
            marked=(len(rows),),
        )
    versions = run.selection["versions"]
    yield Table("Versions", ("software", "version"), cells(versions.items()), left=(0, 1))
    yield Paragraph(f"Seed {run.selection['seed']}: equal seeds on the same machine give equal tables.")
    recipe = yaml.safe_dump(run.selection["recipe"], sort_keys=False, allow_unicode=True)
    yield Code("The recipe as it was run", recipe.rstrip(), "yaml")
