"""The model card that travels with a bundle: what it was trained on, how good it is, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Manifest = Mapping[str, Any]


def model_card(manifest: Manifest) -> str:
    """Markdown text from the manifest alone (see `orcawatch.bundle`); no figure is written by hand."""
    sections = (_heading, _use, _figures, _thresholds, _data, _training, _limits)
    return "\n\n".join(section(manifest) for section in sections) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _heading(manifest: Manifest) -> str:
    weights = any(entry.get("weights") for entry in manifest["training"]["recipe"]["backbones"].values())
    start = "from published weights" if weights else "from scratch, without published weights"
    return (
        f"# Model card: {manifest['name']}\n\n"
        f"Detects the calls of orcas (*Orcinus orca*) in hydrophone audio. Trained {start}."
    )


def _use(manifest: Manifest) -> str:
    backbones = ", ".join(f"{one['name']} ({one['quantization']})" for one in manifest["backbones"])
    lines = [
        f"- Backbone: {backbones}; heads and masks in float32.",
        f"- Vote: the mean confidence of {', '.join(manifest['vote'])}, one window every {manifest['hop_s']:g} s.",
        f"- Array: the {manifest['channel_fusion']} of the channels' scores.",
        "- Masks come from the relevance of the base-model's own prediction; snapshots explain the `orca` neuron.",
    ]
    return "## What it is\n\n" + "\n".join(lines)


def _figures(manifest: Manifest) -> str:
    metrics, exported = manifest["metrics"], manifest["exported"]
    rows = [
        [name, _interval(exported["trained_auc"][name]), _interval(exported["auc"][name])] for name in exported["auc"]
    ]
    orca = next(p for p in manifest["data"]["splits"] if (p["split"], p["label"]) == ("devel", "orca"))
    lines = [
        f"- In brackets 95 % intervals, recordings resampled; the devel split has {orca['groups']} recordings with orcas.",
        f"- Vote chosen and judged on different recordings (nested): {metrics['nested']['value']:.3f}, over draws "
        f"{metrics['nested']['low']:.3f} to {metrics['nested']['high']:.3f}. That covers the choice of the vote only; the "
        "recipe itself (front end, augmentation, calibration) was chosen on devel too, so all figures here are optimistic.",
        *_calibration(manifest),
        *_teacher(metrics),
    ]
    header = ["score of a clip", "float, training side", "this bundle"]
    return "## ROC AUC on the devel split\n\n" + _table(header, rows) + "\n\n" + "\n".join(lines)


def _calibration(manifest: Manifest) -> list[str]:
    head = manifest["training"]["recipe"]["head"]
    if "uncalibrated_vote" not in manifest["metrics"]:
        return []
    raw = manifest["metrics"]["uncalibrated_vote"]
    return [
        f"- Confidences are calibrated to sigmoid({head['slope']:g} d - {head['shift']:g}), d the difference of the logits, "
        f"also chosen on devel; without that the vote reaches {_interval(raw)}."
    ]


def _teacher(metrics: Mapping[str, Any]) -> list[str]:
    if "teacher" not in metrics:
        return []
    return [
        "- It learned from the labels and from the answers of a linear classifier on statistics of the spectrogram; that "
        f"teacher alone reaches {_interval(metrics['teacher'])}."
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
        + _table(["kind of noise", "clips called orca", "clips"], rows)
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
        + _table(["split", "label", "clips", "seconds", "recordings"], splits)
        + "\n\nSources, with the licence as each states it:\n\n"
        + _table(["source", "licence", "split", "clips"], sources)
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
