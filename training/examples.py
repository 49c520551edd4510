"""Examples from the devel split: which clips are shown, and what in them made the vote say what it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heads import Head

Floats = NDArray[np.floating[Any]]
Array = NDArray[np.float32]
Flags = NDArray[np.bool_]

OUTCOMES = ("hits", "misses", "false alarms", "correct rejections")
HIGHEST_FIRST = ("hits", "false alarms")
BATCH = 4  # windows that go through a network at a time: a map of Inception-ResNet V2 at 299 takes some 500 MB
METHOD = (
    "deep Taylor decomposition of the vote from its confidence of orca: z+ in every layer with a kernel, conserving "
    "rules for average pooling and for sums, through each backbone with batch norm folded in"
)


@dataclass(frozen=True)
class Chosen:
    """A clip that is shown.

    Attributes
    ----------
    clip : its index among the devel clips.
    window : index of its highest-scoring window among the devel windows.
    score : the vote's score of that window.
    """

    clip: int
    window: int
    score: float


def choose(
    window_scores: Floats,
    window_clip: NDArray[np.int64],
    labels: Flags,
    groups: Sequence[str],
    threshold: float,
    number: int,
) -> dict[str, list[Chosen]]:
    """Clips of every outcome, one per recording: the surest hits and false alarms, the lowest misses and rejections.

    A clip counts as called when its highest window reaches the threshold, as events do.

    Parameters
    ----------
    window_scores, window_clip : the vote's score and the clip of each window, shape (windows,).
    labels, groups : True where orca, and the recording, by clip.
    threshold : at which an event starts.
    number : at most so many clips of an outcome.

    Returns
    -------
    By outcome, in the order of `OUTCOMES`; a list is empty where there is none.
    """
    highest = [_highest(window_scores, window_clip, clip) for clip in range(len(labels))]
    return {outcome: _some(outcome, highest, labels, groups, threshold, number) for outcome in OUTCOMES}


def _highest(window_scores: Floats, window_clip: NDArray[np.int64], clip: int) -> Chosen:
    windows = np.flatnonzero(window_clip == clip)
    best = int(windows[np.argmax(window_scores[windows])])
    return Chosen(clip, best, float(window_scores[best]))


def _some(
    outcome: str, highest: Sequence[Chosen], labels: Flags, groups: Sequence[str], threshold: float, number: int
) -> list[Chosen]:
    is_orca, is_called = outcome in ("hits", "misses"), outcome in HIGHEST_FIRST
    fitting = [one for one in highest if labels[one.clip] == is_orca and (one.score >= threshold) == is_called]
    ordered = sorted(fitting, key=lambda one: (-one.score if is_called else one.score, one.clip))
    first = {groups[one.clip]: one for one in reversed(ordered)}
    return [one for one in ordered if first[groups[one.clip]] is one][:number]


# --- relevance --------------------------------------------------------------------------------------------------------


def feature_relevance(
    features: Mapping[str, Array],
    members: Sequence[Mapping[str, Any]],
    vote: Sequence[str],
    heads: Mapping[str, Head],
    minimal: Mapping[str, Array],
) -> dict[str, Array]:
    """Relevance of every backbone's features for the vote's confidence of orca (paper section 2.3).

    Each member's relevance starts with its own confidence on the orca neuron and is averaged over the vote, so that it
    adds up to the vote's score where the z+ rule finds a positive contribution in every layer.

    Parameters
    ----------
    features : by backbone, shape (windows, features).
    members : name, backbones, mask and relevance_of of each, as `selection.json` has them.
    vote : names of the members that vote.
    heads : weights by member; those of base-models are needed for negative masks.
    minimal : minimal mask by backbone.

    Returns
    -------
    Relevance by backbone, shaped like its features.
    """
    from ..relevance import head_relevance

    total = {name: np.zeros_like(values) for name, values in features.items()}
    for member in (one for one in members if one["name"] in vote):
        relevance = np.asarray(head_relevance(masked(features, member, heads, minimal), heads[member["name"]], START))
        ends = np.cumsum([features[name].shape[1] for name in member["backbones"]])[:-1]
        for name, part in zip(member["backbones"], np.split(relevance, ends, axis=1)):
            total[name] += part / len(vote)
    return total


START, OWN = "confidence", "highest"  # neurons of `relevance.output`


def masked(
    features: Mapping[str, Array], member: Mapping[str, Any], heads: Mapping[str, Head], minimal: Mapping[str, Array]
) -> Array:
    """A member's input: its backbones' features side by side under its mask (paper section 2.4)."""
    parts = [features[name] for name in member["backbones"]]
    if member["mask"] == "minimal":
        parts = [part * minimal[name] for name, part in zip(member["backbones"], parts)]
    if member["mask"] == "negative":
        parts = [part * _negative(part, heads[base]) for part, base in zip(parts, member["relevance_of"])]
    return np.concatenate(parts, axis=1)


def _negative(features: Array, base: Head) -> Array:
    from ..masking import negative_mask
    from ..relevance import head_relevance

    return np.asarray(negative_mask(head_relevance(features, base, OWN)))


def features_of(model: Any, spectrograms: Array) -> Array:
    """Pooled features of spectrograms (windows, height, width, planes): shape (windows, features)."""
    return np.concatenate([np.asarray(model(part, training=False)) for part in _batches(spectrograms)])


def maps_of(model: Any, spectrograms: Array, relevance: Array) -> Array:
    """The features' relevance spread over the spectrograms: shape (windows, height, width).

    Parameters
    ----------
    model : folded backbone.
    spectrograms : shape (windows, height, width, planes).
    relevance : of the features, shape (windows, features).
    """
    import tensorflow as tf

    from ..relevance import backbone_relevance

    def spread_batch(x: Any, r: Any) -> Any:
        return backbone_relevance(model, x, r, "conserve")

    spread = tf.function(spread_batch, autograph=False, reduce_retracing=True)
    pairs = zip(_batches(spectrograms), _batches(relevance))
    return np.concatenate([np.asarray(spread(tf.constant(x), tf.constant(r))).sum(axis=-1) for x, r in pairs])


def _batches(values: Array) -> list[Array]:
    return [np.asarray(values[i : i + BATCH], np.float32) for i in range(0, len(values), BATCH)]


# --- from a result folder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """Windows as one backbone gets them, and what in them speaks for orca.

    Attributes
    ----------
    spectrograms, maps : shape (windows, height, width); a map adds up to that backbone's part of the vote's score.
    seconds : length of a window.
    frequencies_hz : middle of each band, shape (width,).
    """

    spectrograms: Array
    maps: Array
    seconds: float
    frequencies_hz: NDArray[np.float64]


def explain(result: Path, selection: Mapping[str, Any], windows: Sequence[int]) -> dict[str, Heard]:
    """Spectrograms and relevance of devel windows, by the backbones that the vote uses.

    Parameters
    ----------
    result : folder of the stage `result`.
    selection : its `selection.json`.
    windows : indices of devel windows.
    """
    from .heads import load_heads
    from .storage import load_npz

    used = voting_backbones(selection)
    entries = [one for one in selection["backbones"] if one["name"] in used]
    networks = {one["name"]: _network(result, one) for one in entries}
    shown = {one["name"]: _spectrograms(result, one, windows) for one in entries}
    features = {
        name: features_of(model, shown[name].reshape(-1, *front_end.shape))
        for name, (model, front_end) in networks.items()
    }
    minimal = {key.split("/")[0]: mask for key, mask in load_npz(result / "masks.npz").items()}
    heads = load_heads(result / "heads.npz")
    relevance = feature_relevance(features, selection["members"], selection["vote"], heads, minimal)
    return {
        name: _heard(model, front_end, shown[name], relevance[name]) for name, (model, front_end) in networks.items()
    }


def voting_backbones(selection: Mapping[str, Any]) -> list[str]:
    """Names of the backbones whose features the vote's members take, in the recipe's order."""
    used = {name for one in selection["members"] if one["name"] in selection["vote"] for name in one["backbones"]}
    return [one["name"] for one in selection["backbones"] if one["name"] in used]


def _network(result: Path, entry: Mapping[str, Any]) -> tuple[Any, Any]:
    """The folded backbone with its weights, and its front end."""
    from ..backbone import load_backbone
    from ..spectrogram import front_end_from_dict
    from .backbones import load_model

    plugin = load_backbone(entry["name"], front_end_from_dict(entry["front_end"]))
    return load_model(plugin, result / entry["weights"]), plugin.front_end


def _spectrograms(result: Path, entry: Mapping[str, Any], windows: Sequence[int]) -> Array:
    stored = np.load(result / entry["spectrograms"], mmap_mode="r")
    return np.asarray(stored[list(windows)], np.float32)


def _heard(model: Any, front_end: Any, spectrograms: Array, relevance: Array) -> Heard:
    maps = maps_of(model, spectrograms.reshape(-1, *front_end.shape), relevance)
    seconds = front_end.frames * front_end.hop_samples / front_end.rate_hz
    return Heard(spectrograms, maps, seconds, front_end.frequencies_hz)


def row_s(selection: Mapping[str, Any]) -> float:
    """Seconds from one row of a window to the next: windows start at whole rows."""
    from ..spectrogram import front_end_from_dict

    front_end = front_end_from_dict(selection["backbones"][0]["front_end"])
    return front_end.hop_samples / front_end.rate_hz
