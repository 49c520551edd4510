"""What a training report says, section by section: a run's files in, blocks of a document out.

Everything comes from the files of the run; no figure is written by hand. Where a figure was chosen on the clips that it
is measured on, the text beside it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .. import metrics
from . import examples, pictures
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

Arrays = Mapping[str, NDArray[Any]]

EXAMPLES = 4  # of an outcome
BEST = 20  # rows of the ranking
DOT = "\u25cf"
DRAWS = 2000


@dataclass(frozen=True)
class Run:
    """What a report is made from.

    Attributes
    ----------
    result : folder of the stage `result`.
    selection : its `selection.json`.
    devel, curves : its `devel_scores.npz` and `curves.npz`.
    ranking : rows of its `ranking.csv`: AUC, and the names of the members.
    analysis : its `analysis.json`, empty where there is none.
    baselines : `report.json` of every baseline.
    costs : seconds and memory by stage, in the order in which they ran.
    test : its `test_scores.npz`, empty where the test split was not predicted.
    test_files : the files of the test split in the order of the labels.
    quantization : the exported variants; empty where nothing was exported.
    """

    result: Path
    selection: Mapping[str, Any]
    devel: Arrays
    curves: Arrays
    ranking: tuple[tuple[float, tuple[str, ...]], ...]
    analysis: Mapping[str, Any] = field(default_factory=dict)
    baselines: tuple[Mapping[str, Any], ...] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    test: Arrays = field(default_factory=dict)
    test_files: tuple[str, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)

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


# --- words ------------------------------------------------------------------------------------------------------------


def figure(value: float, digits: int = 3) -> str:
    """A figure of the report, such as `0.921`; a dash where it is no number."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "\u2013"


def interval(found: Mapping[str, Any]) -> str:
    """`0.921 (0.856 to 0.979)`."""
    return f"{figure(found['value'])} ({figure(found['low'])} to {figure(found['high'])})"


def listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def number(count: float) -> str:
    """`12,345`."""
    return f"{count:,.0f}"


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens of a name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def names_of(run: Run) -> list[str]:
    """The backbones, in the recipe's order."""
    return [one["name"] for one in run.selection["backbones"]]


def _subtitle(run: Run) -> str:
    versions, seed = run.selection["versions"], run.selection["seed"]
    return f"orcawatch {versions['orcawatch']} \u00b7 seed {seed} \u00b7 data {run.selection['data']['fingerprint'][:16]}"


def _abstract(run: Run) -> str:
    selection, metric = run.selection, run.selection["metrics"]
    backbones, members = names_of(run), selection["members"]
    return (
        f"{_count(len(members), 'classifier')} on the features of {listed(backbones)}, trained by relevance-based feature "
        f"masking. The best vote, chosen among {number(len(run.ranking))} combinations on the devel split, reaches a ROC "
        f"AUC of {interval(metric['vote'])} there; chosen and measured on different recordings it is "
        f"{interval(metric['nested'])}."
    )


def _count(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


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
        "The nested figure covers the choice of the vote only. Whatever else was tried on the devel split (recipe, front "
        "end, calibration, thresholds) makes every figure of that split optimistic.",
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
    if run.selection["dropped"]:
        yield Listing(tuple(f"Left out: {one['name']}: {one['reason']}." for one in run.selection["dropped"]))
    drawn = [picture for one in run.selection["backbones"] for picture in _losses(one)]
    if drawn:
        yield Row(tuple(drawn))


def _backbone(one: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    size = " \u00d7 ".join(str(side) for side in one["input_shape"])
    tuning = settings["fine_tune"]
    return one["name"], size, spectrogram(one["front_end"]), number(one["feature_size"]), one["weights_source"], (
        tuned(tuning) if tuning else "none"
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
            f"To the training split were added {_count(simulated, 'simulated call')} and as many clips of simulated sea "
            "without calls; they are counted in the table and not in the fingerprint."
        )
    yield Table(
        "Clips by split and label",
        ("split", "label", "clips", "duration", "recordings"),
        cells(_part(one) for one in found["splits"]),
        left=(0, 1),
    )
    yield Table(
        "Sources and their licences, as each source states it",
        ("source", "licence", "split", "clips"),
        cells((one["repository"], one["licence"], one["split"], number(one["clips"])) for one in found["sources"]),
        left=(0, 1, 2),
    )
    yield from _set_aside(found["set_aside"])


def _part(one: Mapping[str, Any]) -> tuple[str, ...]:
    return one["split"], one["label"], number(one["clips"]), duration(one["seconds"]), number(one["groups"])


def _set_aside(faults: Sequence[Mapping[str, str]]) -> Iterable[Block]:
    if not faults:
        yield Paragraph("No file was set aside.")
        return
    rows = cells((fault["file_name"], fault["reason"]) for fault in faults)
    yield Table(f"{_count(len(faults), 'file')} set aside", ("file", "reason"), rows, left=(0, 1))


# --- ranking ----------------------------------------------------------------------------------------------------------


def _ranking(run: Run) -> Iterable[Block]:
    members, vote = [one["name"] for one in run.selection["members"]], set(run.selection["vote"])
    chosen = next(place for place, (_, names) in enumerate(run.ranking) if set(names) == vote)
    yield Paragraph(run.selection["metrics"]["note"], caution=True)
    best = [(f"{place + 1}", *_dots(members, names), figure(auc, 4)) for place, (auc, names) in enumerate(run.ranking)]
    yield Table(
        f"The best {min(BEST, len(best))} of {number(len(best))} votes, by ROC AUC on devel",
        ("rank", *members, "AUC"),
        cells(best[:BEST]),
        left=(),
        marked=(chosen,) if chosen < BEST else (),
        notes=(f"The vote that was chosen has rank {chosen + 1}.{_rule(run)}",),
    )
    yield from _single_members(run, chosen)


def _dots(members: Sequence[str], names: Sequence[str]) -> list[str]:
    return [DOT if name in names else "" for name in members]


def _rule(run: Run) -> str:
    rule = run.selection["recipe"]["vote"]["must_contain"]
    return "" if rule == "any" else f" It must contain a member whose mask is {rule}."


def _single_members(run: Run, chosen: int) -> Iterable[Block]:
    aucs = np.array([auc for auc, _ in run.ranking])
    ranks = {names[0]: place + 1 for place, (_, names) in enumerate(run.ranking) if len(names) == 1}
    found = run.selection["metrics"]["members"]
    yield Table(
        "Single members",
        ("member", "rank among all votes", "AUC on devel (95 % interval)"),
        cells((name, number(rank), interval(found[name])) for name, rank in ranks.items()),
    )
    told = "; ".join(f"{name} {rank}" for name, rank in ranks.items())
    yield Picture(
        "ranking",
        pictures.ranking(aucs, ranks, _lines(run), chosen + 1),
        f"ROC AUC of all {len(aucs)} votes by rank, falling from {aucs[0]:.3f} to {aucs[-1]:.3f}. Ranks of single "
        f"members: {told}. The chosen vote has rank {chosen + 1}.",
        "All votes by rank. Circles: members without mask; squares: minimal mask; triangles: negative mask.",
    )


def _lines(run: Run) -> list[pictures.Line]:
    return pictures.lines_of(run.selection["members"], names_of(run))


# --- masks ------------------------------------------------------------------------------------------------------------


def _masks(run: Run) -> Iterable[Block]:
    yield Paragraph(
        "A minimal mask keeps the features of the highest average relevance on the training split, one mask per backbone. "
        "A negative mask zeroes, in each window, the features whose relevance is above the window's average. Relevance is "
        "that of the base-model's own prediction, the neuron of its highest logit; where that logit is not positive there "
        "is no relevance, and the negative mask removes nothing."
    )
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
    rows = [(one["name"], interval(one["auc"]), _said(one["chosen"])) for one in run.baselines]
    rows.append(("this run's vote", interval(run.selection["metrics"]["vote"]), "+".join(run.selection["vote"])))
    yield Table(
        "Baselines on the same splits, ROC AUC on devel",
        ("method", "AUC (95 % interval)", "chosen on devel"),
        cells(rows),
        left=(0, 2),
        marked=(len(rows) - 1,),
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
                f"Precision against recall on devel; {labels.mean():.0%} of the clips are orca.",
                f"Precision and recall of the devel clips, lines as beside. Dashed: every clip called orca "
                f"({labels.mean():.0%} are).",
            ),
        )
    )
    yield from _thresholds(run)


def _thresholds(run: Run) -> Iterable[Block]:
    found = run.selection["thresholds"]
    yield Paragraph(
        f"An event starts at {figure(found['start'])} and ends below {figure(found['stop'])}. Chosen on devel, where a clip "
        f"counts as called when its highest window reaches the start, that finds {found['recall']:.0%} of the orca clips "
        f"with a precision of {found['precision']:.0%} and calls {_count(found['false_alarms'], 'noise clip')} orca, "
        f"{found['false_alarms_per_hour']:.0f} per hour of noise. Noise here is a collection of hard sounds, not a season "
        "at sea: rates at a site will differ.",
        caution=True,
    )
    kinds = sorted(found["false_alarms_by_kind"].items(), key=lambda one: (-one[1][0], one[0]))
    rows = ((kind, number(alarms), number(clips), f"{alarms / clips:.0%}") for kind, (alarms, clips) in kinds)
    yield Table(
        "False alarms on devel by kind of sound",
        ("kind of noise", "clips called orca", "clips", "share"),
        cells(rows),
    )


# --- edge -------------------------------------------------------------------------------------------------------------


def _edge(run: Run) -> Iterable[Block]:
    return ()


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
        f"{_count(predicted.files, 'file')} predicted, {number(predicted.orca)} of them orca at a threshold of "
        f"{figure(predicted.threshold)}, the one of equal errors on devel. {CSV} holds file, class and score, {ARFF} the "
        "same in the form of the ComParE challenge, in the order of the labels."
    )


# --- examples ---------------------------------------------------------------------------------------------------------


def _examples(run: Run) -> Iterable[Block]:
    labels, groups = run.devel["label"] == "orca", run.devel["group"].tolist()
    scores, threshold = _vote_windows(run), run.selection["thresholds"]["start"]
    chosen = examples.choose(scores, run.devel["window_clip"], labels, groups, threshold, EXAMPLES)
    heard = examples.explain(run.result, run.selection, [one.window for some in chosen.values() for one in some])
    first, second = (
        "Clips of devel, one per recording. A clip counts as called when its highest window reaches the start threshold "
        f"of {figure(threshold)}, which was chosen on these clips.",
        f"Shown is the highest window of each clip. Left the spectrogram as the backbone gets it, dark is loud; right its "
        f"relevance, from clear through green to violet, each picture scaled to its own highest. Rule: {examples.METHOD}.",
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
    spread = listed(f"{panel.name} {panel.share:.0%}" for panel in panels)
    return Card(
        clip["file_name"],
        (
            ("label", clip["label"]),
            ("kind", clip["kind"] or "not stated"),
            ("recording", clip["group"]),
            ("score", f"{figure(one.score)}; mean of the clip {figure(float(run.devel['vote_clip_scores'][one.clip]))}"),
        ),
        Picture(
            name,
            pictures.explanation(panels, name),
            f"Spectrogram and relevance of a window of {clip['file_name']} ({clip['label']}, score {figure(one.score)}).",
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
