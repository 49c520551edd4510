"""What a training report says of what was done: result in short, training, data, test split, cost on the edge, origin.

Everything comes from the files of the run; no figure is written by hand. Where a figure was chosen on the clips that it
is measured on, the text beside it says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from . import pictures, tables
from .dataset import SPLITS
from .document import (
    Block,
    Code,
    Headline,
    Listing,
    Paragraph,
    Picture,
    Row,
    Table,
    cells,
)
from .predictions import ARFF, CSV, Written
from .run_files import BUDGET, QUANTIZATION, Run
from .words import counted, duration, figure, interval, listed, number, signed, slug


def subtitle(run: Run) -> str:
    """Version, seed and data."""
    versions, seed = run.selection["versions"], run.selection["seed"]
    return (
        f"orcawatch {versions['orcawatch']} \u00b7 seed {seed} \u00b7 data {run.selection['data']['fingerprint'][:16]}"
    )


def abstract(run: Run) -> str:
    """What was trained and how good it is, in two sentences."""
    selection, metric = run.selection, run.selection["metrics"]
    backbones, members = run.backbones, selection["members"]
    return (
        f"{counted(len(members), 'classifier')} on the features of {listed(backbones)}, trained by relevance-based "
        f"feature masking. The vote, chosen among {number(len(run.ranking))} combinations on the devel split, reaches "
        f"a ROC AUC of {interval(metric['vote'])} there; votes chosen in the same way and measured on other "
        f"recordings reach {interval(metric['nested'])}."
    )


# --- result -----------------------------------------------------------------------------------------------------------


def result(run: Run) -> Iterable[Block]:
    """The figures to remember, and what to know about them."""
    metric, vote = run.selection["metrics"], run.selection["vote"]
    yield Headline(tuple(_headline(run)))
    yield Paragraph(
        f"The vote is the mean confidence of {listed(vote)}. All figures are areas under the ROC curve (AUC) of the "
        f"clips of the devel split unless another split is named; the score of a clip is the {metric['score']}. "
        f"Intervals: {metric['interval']}."
    )
    if compared := _compared(metric):
        yield Listing(compared)
    yield Paragraph(metric["note"], caution=True)
    yield Paragraph(
        "The nested figure covers the choice of the vote only. Whatever else was tried on the devel split (recipe, "
        "front end, calibration, thresholds) makes every figure of that split optimistic.",
        caution=True,
    )


def _compared(metric: Mapping[str, Any]) -> tuple[str, ...]:
    """Figures beside which the vote's are to be seen, where the run has them."""
    told = {
        "teacher": "The teacher alone, the linear classifier whose answers the networks learned from, reaches {}.",
        "uncalibrated_vote": "With the recipe's slope and shift taken out of the same heads' confidences again, the "
        "same vote reaches {}. That is no training without them: masks and the choice of the vote are those made with "
        "them.",
    }
    return tuple(text.format(interval(metric[name])) for name, text in told.items() if name in metric)


def _headline(run: Run) -> Iterable[tuple[str, str, str]]:
    metric = run.selection["metrics"]
    yield _tile("Vote, chosen on devel", metric["vote"], "optimistic: chosen and measured on the same clips")
    yield _tile("Vote, nested", metric["nested"], "chosen on resampled recordings, measured on those left out")
    best = max(metric["members"], key=lambda name: float(metric["members"][name]["value"]))
    yield _tile("Best single member", metric["members"][best], f"{best}, the best of {len(metric['members'])} on devel")
    if run.baselines:
        leading = max(run.baselines, key=lambda one: float(one["auc"]["value"]))
        yield _tile("Best baseline", leading["auc"], f"{leading['name']}, the best of {len(run.baselines)} on devel")
    if run.test_auc:
        yield _tile("Vote, test split", run.test_auc, "recordings on which nothing was chosen")


def _tile(name: str, found: Mapping[str, Any], about: str) -> tuple[str, str, str]:
    return name, figure(found["value"]), f"95 % interval {figure(found['low'])} to {figure(found['high'])}; {about}"


# --- training ---------------------------------------------------------------------------------------------------------


def training(run: Run) -> Iterable[Block]:
    """Backbones, members, and the losses of fine-tuning."""
    yield Paragraph(f"Method: {tables.SOURCE}.")
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


def data(run: Run) -> Iterable[Block]:
    """Fingerprint, splits, sources, and what was set aside."""
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


# --- edge -------------------------------------------------------------------------------------------------------------


def edge(run: Run) -> Iterable[Block]:
    """What quantization costs and saves, and the vote chosen for a budget; empty where nothing was exported."""
    if run.quantization:
        yield from _quantization(run.quantization)
    elif QUANTIZATION in run.outdated:
        yield _outdated(QUANTIZATION, "orcawatch deploy quantize")
    if run.budget:
        yield from _budget(run.budget)
    elif BUDGET in run.outdated:
        yield _outdated(BUDGET, "orcawatch deploy budget")


def _outdated(name: str, command: str) -> Paragraph:
    text = f"{name} is left out: it was made for another result than this one. {command} makes it anew."
    return Paragraph(text, caution=True)


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


def test(run: Run, predicted: Written | None) -> Iterable[Block]:
    """What was predicted for the test split; empty where it was not."""
    if predicted is None:
        return
    if run.test_auc:
        yield Paragraph(f"ROC AUC of the vote on the test split: {interval(run.test_auc)}. Nothing was chosen on it.")
    else:
        yield Paragraph("The test split has no labels here, so no figure can be given for it.")
    yield Paragraph(
        f"{counted(predicted.files, 'file')} predicted, {number(predicted.orca)} of them orca at a threshold of "
        f"{figure(predicted.threshold)}, the one of equal errors on devel. {CSV} holds file, class and score, {ARFF} "
        "the same in the form of the ComParE challenge, in the order of the labels."
    )


# --- provenance -------------------------------------------------------------------------------------------------------


def provenance(run: Run) -> Iterable[Block]:
    """Time and memory, versions, seed and recipe."""
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
