"""The model card that travels with a bundle: what it was trained on, how good it is, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown text from the manifest alone (see `orcawatch.bundle`); no figure is written by hand."""
    sections = [
        _heading(manifest),
        _use(manifest),
        _members(manifest),
        _data(manifest["data"]),
        _thresholds(manifest["thresholds"]),
        _training(manifest),
        LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


LIMITS = """## Limits

- Judged on short clips from other recordings than those it learned from, not on a season at sea: expect other figures
  at a new site, and review detections there before trusting a rate.
- Dolphins and pilot whales make sounds like orcas'; they cause most false alarms on the devel split.
- Calls that last less than a window share it with noise; echolocation clicks alone are not what it looks for.
- Thresholds were chosen on the devel split, so their stated cost is optimistic. So is a vote chosen as the best of
  several; the nested figure measures the choice on recordings that it was not made on.
- It says orca or noise: no ecotype, no pod, no number of animals."""


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _heading(manifest: Mapping[str, Any]) -> str:
    start = (
        "trained from published weights" if _pretrained(manifest) else "trained from scratch, without published weights"
    )
    return (
        f"# Model card: {manifest['name']}\n\nDetects the calls of orcas (*Orcinus orca*) in hydrophone audio; {start}."
    )


def _pretrained(manifest: Mapping[str, Any]) -> bool:
    return any(entry.get("weights") for entry in manifest["training"]["recipe"].get("backbones", {}).values())


def _use(manifest: Mapping[str, Any]) -> str:
    backbones = ", ".join(f"{b['name']} ({b['quantization']})" for b in manifest["backbones"])
    return (
        "## What it is\n\n"
        f"- Backbone: {backbones}; heads and masks in float32.\n"
        f"- Vote: {', '.join(manifest['vote'])}.\n"
        f"- A window of 0.96 s every {manifest['hop_s']:g} s. A channel's score is the mean confidence of the vote's\n"
        f"  members, the array's score the {manifest['channel_fusion']} over channels.\n"
        "- Snapshots show deep Taylor relevance of the `orca` neuron; masks use the neuron of highest activation."
    )


def _members(manifest: Mapping[str, Any]) -> str:
    metrics = manifest["metrics"]
    rows = [[name, _interval(metrics["members"][name])] for name in manifest["members"]]
    rows.append([f"vote: {' + '.join(manifest['vote'])}", _interval(metrics["vote"])])
    if "nested" in metrics:
        rows.append(["vote chosen without the judged recordings (nested)", _interval(metrics["nested"])])
    return "## ROC AUC on the devel split\n\nWith 95 % intervals, recordings resampled.\n\n" + _table(
        ["member", "ROC AUC"], rows
    )


def _interval(found: Mapping[str, Any]) -> str:
    if "low" not in found:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _data(data: Mapping[str, Any]) -> str:
    splits = [
        [part["split"], part["label"], part["clips"], f"{part['seconds']:.0f}", part["groups"]] for part in data["splits"]
    ]
    licences = [[part["licence"], part["split"], part["clips"]] for part in data["licences"]]
    return (
        "## Data\n\nNo recording stands in two splits. The recordings are not part of this bundle.\n\n"
        + _table(["split", "label", "clips", "seconds", "recordings"], splits)
        + "\n\nSources and licences as their repositories state them:\n\n"
        + _table(["licence", "split", "clips"], licences)
        + f"\n\nFingerprint of the data: `{data['fingerprint']}`."
    )


def _thresholds(thresholds: Mapping[str, Any]) -> str:
    return (
        "## Thresholds\n\n"
        f"An event starts at {thresholds['start']:.3f} and ends below {thresholds['stop']:.3f}. On the devel split\n"
        f"the start threshold finds {thresholds['recall']:.0%} of the orca clips, with {thresholds['precision']:.0%}\n"
        f"precision and {thresholds['false_alarms']} false alarms ({thresholds['false_alarms_per_hour']:.0f} per hour\n"
        "of noise clips, most of which were chosen to be hard)."
    )


def _training(manifest: Mapping[str, Any]) -> str:
    training = manifest["training"]
    versions = ", ".join(f"{name} {value}" for name, value in training["versions"].items())
    dropped = [f"- Left out: {entry['name']}: {entry['reason']}." for entry in training["dropped"]]
    silent = [
        f"- Windows whose relevance is all zero (the negative mask removes nothing): {name} {split}, "
        f"{counts['all_zero']} of {counts['rows']}."
        for name, splits in manifest["all_zero"].items()
        for split, counts in splits.items()
    ]
    lines = [f"- Seed {training['seed']}; made {manifest['created_utc']} with {versions}.", *dropped, *silent]
    return "## Training\n\n" + "\n".join(lines)
