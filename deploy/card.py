"""The model card that travels with a bundle: what it was trained on, how good it is, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cascade import cascade_lines
from .tables import interval, table

SCRATCH = "from scratch"
Manifest = Mapping[str, Any]


def model_card(manifest: Manifest) -> str:
    """Markdown text from the manifest alone (see `orcawatch.bundle`); no figure is written by hand."""
    sections = (_heading, _use, _figures, _thresholds, cascade_section, _data, _training, _limits)
    return "\n\n".join(filter(None, (section(manifest) for section in sections))) + "\n"


def _heading(manifest: Manifest) -> str:
    return (
        f"# Model card: {manifest['name']}\n\n"
        f"Detects the calls of orcas (*Orcinus orca*) in hydrophone audio. Trained {_start(manifest)}."
    )


def _start(manifest: Manifest) -> str:
    """Where training began, in words."""
    sources = {one["weights_source"] for one in manifest["backbones"]}
    if sources == {SCRATCH}:
        return "from scratch, without pretrained weights"
    return "partly from scratch" if SCRATCH in sources else "from pretrained weights"


def _use(manifest: Manifest) -> str:
    lines = [
        f"- Vote: the mean confidence of {', '.join(manifest['vote'])}, one window every {manifest['hop_s']:g} s.",
        *_members(manifest),
        f"- Array: the {manifest['channel_fusion']} of the channels' scores.",
        "- Masks come from the relevance of each base-model's own prediction; snapshots explain the `orca` neuron.",
        f"- A window takes {manifest['exported']['window_ms']:.1f} ms per channel of one thread of the machine that made "
        f"the bundle ({manifest['exported']['runtime']}), all backbones and heads; heads and masks are float32.",
    ]
    return "## What it is\n\n" + "\n".join(lines) + "\n\n" + _backbones(manifest)


def _members(manifest: Manifest) -> list[str]:
    """Which members take several backbones, and which are there without a vote."""
    fused = [f"- {name}: on the features of {', '.join(of)}." for name, of in manifest["fusion"].items() if len(of) > 1]
    silent = [name for name in manifest["members"] if name not in manifest["vote"]]
    return [*fused, *([f"- Also in the bundle, without a vote: {', '.join(silent)}."] if silent else [])]


def _backbones(manifest: Manifest) -> str:
    header = ["backbone", "weights before training", "input", "features", "quantization", "relevance pass", "MB"]
    return table(header, [_backbone(one) for one in manifest["backbones"]])


def _backbone(one: Mapping[str, Any]) -> list[object]:
    shape = " x ".join(str(side) for side in one["input_shape"])
    variants = [one["quantization"], one["explained_by"]]
    return [
        one["name"],
        _source(one["weights_source"]),
        shape,
        one["feature_size"],
        *variants,
        f"{one['bytes'] / 1e6:.1f}",
    ]


def _source(source: str) -> str:
    """Where a backbone's weights came from before training, plainly."""
    if source == SCRATCH:
        return "none: from scratch"
    return {"imagenet": "ImageNet, as published", "audioset": "AudioSet, as published"}.get(
        source, f"the file `{source}`"
    )


def _figures(manifest: Manifest) -> str:
    metrics, exported = manifest["metrics"], manifest["exported"]
    rows = [
        [name, interval(exported["trained_auc"][name]), interval(exported["auc"][name])] for name in exported["auc"]
    ]
    orca = next(p for p in manifest["data"]["splits"] if (p["split"], p["label"]) == ("devel", "orca"))
    lines = [
        f"- In brackets 95 % intervals, recordings resampled; the devel split has {orca['groups']} recordings with orcas.",
        _choice(metrics),
        *_calibration(manifest),
        *_teacher(metrics),
    ]
    header = ["score of a clip", "float, training side", "this bundle"]
    return "## ROC AUC on the devel split\n\n" + table(header, rows) + "\n\n" + "\n".join(lines)


def _choice(metrics: Mapping[str, Any]) -> str:
    rest = "recipe itself (front end, augmentation, calibration) was chosen on devel too, so all figures here are optimistic."
    if "nested" not in metrics:
        return f"- The vote was not the training run's own choice but picked by hand or by budget, on devel; the {rest}"
    nested = metrics["nested"]
    return (
        f"- Vote chosen and judged on different recordings (nested): {nested['value']:.3f}, over draws {nested['low']:.3f} to "
        f"{nested['high']:.3f}. That covers the choice of the vote only; the {rest}"
    )


def _calibration(manifest: Manifest) -> list[str]:
    head = manifest["training"]["recipe"]["head"]
    if "uncalibrated_vote" not in manifest["metrics"]:
        return []
    raw = manifest["metrics"]["uncalibrated_vote"]
    return [
        f"- Confidences are calibrated to sigmoid({head['slope']:g} d - {head['shift']:g}), d the difference of the logits, "
        "also chosen on devel. With slope and shift taken out of the same heads' confidences again, the same vote reaches "
        f"{interval(raw)}. That is no training without them: masks and the choice of the vote are those made with them."
    ]


def _teacher(metrics: Mapping[str, Any]) -> list[str]:
    if "teacher" not in metrics:
        return []
    return [
        "- It learned from the labels and from the answers of a linear classifier on statistics of the spectrogram; that "
        f"teacher alone reaches {interval(metrics['teacher'])}."
    ]


def _thresholds(manifest: Manifest) -> str:
    found = manifest["thresholds"]
    kinds = found["false_alarms_by_kind"].items()
    rows = [[kind, alarms, clips] for kind, (alarms, clips) in sorted(kinds, key=lambda item: -item[1][0])]
    return (
        "## Thresholds\n\n"
        f"An event starts at {found['start']:.3f} and ends below {found['stop']:.3f}. On the devel clips, on which the\n"
        f"thresholds were chosen, that finds {found['recall']:.0%} of the orca clips with {found['precision']:.0%} precision\n"
        f"and calls {found['false_alarms']} noise clips orca ({found['false_alarms_per_hour']:.0f} per hour, at most one a\n"
        "clip, on one channel; an array that takes the highest of its channels calls more):\n\n"
        + table(["kind of noise", "clips called orca", "clips"], rows)
    )


def cascade_section(manifest: Manifest) -> str:
    """The cascade and its evidence; empty where there is none."""
    if "cascade" not in manifest:
        return ""
    lines = "\n".join(f"- {line}." for line in cascade_lines(manifest["cascade"]))
    return (
        "## Cascade\n\nThe heavier backbones are heard only where the cheaper ones find something; elsewhere a channel's\n"
        f"score is estimated, below the stop threshold.\n\n{lines}"
    )


def _data(manifest: Manifest) -> str:
    data = manifest["data"]
    splits = [
        [part["split"], part["label"], part["clips"], f"{part['seconds']:.0f}", part["groups"]]
        for part in data["splits"]
    ]
    sources = [
        [one["repository"] or "not stated", one["licence"], one["split"], one["clips"]] for one in data["sources"]
    ]
    apart = (
        "No recording stands in two splits."
        if data["recordings"] == "given"
        else "The data does not say which clips share a recording; each file counts as one."
    )
    return (
        f"## Data\n\n{apart} The recordings are not part of this bundle.\n\n"
        + table(["split", "label", "clips", "seconds", "recordings"], splits)
        + "\n\nSources, with the licence as each states it:\n\n"
        + table(["source", "licence", "split", "clips"], sources)
        + f"\n\nFingerprint of the data: `{data['fingerprint']}`."
    )


def _training(manifest: Manifest) -> str:
    training = manifest["training"]
    versions = ", ".join(f"{name} {value}" for name, value in training["versions"].items())
    dropped = [f"- Left out: {entry['name']}: {entry['reason']}." for entry in training["dropped"]]
    masks = [
        f"- {name}, {split}: of {counts['rows']} windows the base-model's own prediction, whose relevance makes the "
        f"negative mask, is orca for {counts['orca']}; relevance is all zero, and nothing masked, for {counts['all_zero']}."
        for name, splits in manifest["all_zero"].items()
        for split, counts in splits.items()
    ]
    lines = [f"- Seed {training['seed']}; made {manifest['created_utc']} with {versions}.", *dropped, *masks]
    return "## Training\n\n" + "\n".join(lines)


def _limits(manifest: Manifest) -> str:
    kinds = manifest["thresholds"]["false_alarms_by_kind"]
    worst = max(kinds, key=lambda kind: kinds[kind][0]) if kinds else "noise"
    lines = [
        "- Judged on short clips from other recordings than those it learned from, not on a season at sea: expect other "
        "figures at a new site, and review detections there before trusting a rate.",
        f"- Most false alarms on devel are of the kind `{worst}`.",
        "- The score orders windows; it is not the probability of an orca.",
        "- Calls that last less than a window share it with noise; clicks alone are not what it was taught.",
        "- It says orca or noise: no ecotype, no pod, no number of animals.",
    ]
    return "## Limits\n\n" + "\n".join(lines)
