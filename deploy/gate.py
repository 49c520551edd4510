"""A gate for a bundle that is there already: where nothing stands out of the background, no backbone is heard.

The gates that listen to cheap members need signatures of their own in the heads' file, which the training run makes
(`orcawatch deploy bundle`). This one needs labelled clips alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import CARD, Bundle, load_bundle, sha256, write_bundle
from ..cascade import Cascade
from ..compare import Clip, window_scores
from ..ensemble import Ensemble, fuse_channels
from ..errors import BundleError
from ..metrics import DRAWS
from ..records import Window, WindowScore
from ..spectrogram import has_prominence, prominence
from . import cascade as cascades
from .build import seconds_of
from .card import cascade_section

Progress = Callable[[Any], Any]


class Noted:
    """A scorer that notes what it finds of each window of a channel.

    Parameters
    ----------
    bundle : its vote is taken on every window.

    Attributes
    ----------
    members : confidences of each window, shape (members,).
    still : the backbones whose spectrograms have a prominence.
    prominences : of each window's spectrograms, in their order.
    seconds : processor time that each backbone took for it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.cascade = Cascade()
        self._ensemble = Ensemble(bundle)
        self.still = [name for name, one in bundle.backbones.items() if has_prominence(one.front_end)]
        self.members: list[NDArray[np.float32]] = []
        self.prominences: list[list[float]] = []
        self.seconds: list[list[float]] = []

    def score(
        self, window: Window, columns: Sequence[int] | None = None, vote: Sequence[str] | None = None
    ) -> WindowScore:
        """The full vote on the first channel."""
        backbones = self.bundle.backbones
        finished = {name: backbones[name].front_end.finish(rows[0]) for name, rows in window.rows.items()}
        heard = self._ensemble.hear(finished)
        self.seconds.append([seconds_of(lambda name=name: heard.features([name])) for name in backbones])  # type: ignore[misc]
        self.prominences.append([prominence(finished[name]) for name in self.still])
        self.members.append(self._ensemble.all_members(heard))
        voting = [self.bundle.members.index(name) for name in self.bundle.vote]
        channels = self.members[-1][None, voting].mean(axis=1)
        fused = fuse_channels(channels, self.bundle.channel_fusion)
        return WindowScore(window.start_sample, window.end_sample, self.members[-1][None], channels, fused)

    def explain(
        self, windows: Sequence[Window], channel: int
    ) -> list[dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        """As the ensemble's."""
        return self._ensemble.explain(windows, channel)


def add_gate(
    folder: Path, new: Path, clips: Sequence[Clip], most_lost: float, progress: Progress = iter, seed: int = 0
) -> Cascade:
    """Write a copy of a bundle with the gate, chosen and measured on these clips; its thresholds stay.

    Parameters
    ----------
    folder : the bundle.
    new : folder of the copy, which must not exist.
    clips : labelled, from recordings that the bundle was not trained on; the first channel is heard.
    most_lost : as `cascade.choose`.
    progress : wraps the iteration over the clips, for a progress bar.
    seed : of the intervals.

    Returns
    -------
    The cascade of the copy.

    Raises
    ------
    BundleError : the bundle has a cascade already, the copy's folder exists, or no gate keeps the bound.
    AudioError : a clip cannot be read.
    """
    bundle = load_bundle(folder)
    if bundle.cascade.gates:
        raise BundleError(f"{folder} has a cascade already: name the bundle without it")
    if bundle.channel_fusion != "max":
        raise BundleError(f"{folder} averages its channels: a gate holds for each channel, not for their mean")
    noted, counts = Noted(bundle), []
    for clip in progress(clips):
        counts.append(len(window_scores(clip, noted)))
    found = cascades.Clips(
        np.repeat(np.arange(len(clips)), counts),
        np.array([clip.label == "orca" for clip in clips]),
        [clip.group for clip in clips],
    )
    scored = _scored(bundle, noted, found)
    cascade = cascades.choose(scored, most_lost, members=False)
    if not cascade.gates:
        raise BundleError(
            f"no gate of {folder} keeps the bound on these clips: allow more than {most_lost:g} to be lost"
        )
    cascaded = cascades.channel_scores(scored, cascade)
    shown = cascades.evidence(scored, cascade, cascaded, found, bundle.start_threshold, most_lost, DRAWS, seed)
    shown |= {"data": data_of(clips)}
    _write(bundle, new, {**bundle.manifest, "cascade": {**asdict(cascade), "evidence": shown}})
    return cascade


def data_of(clips: Sequence[Clip]) -> dict[str, Any]:
    """What names the clips that a gate was chosen on: `clips`, by label and source, and `fingerprint`.

    The fingerprint is the SHA-256 over names, labels, recordings and contents, in whatever order and folder they are.
    """
    kinds: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        kinds.setdefault((clip.label, "" if clip.site == clip.group else clip.site), []).append(clip)
    lines = sorted(json.dumps([clip.path.name, clip.label, clip.group, sha256(clip.path)]) for clip in clips)
    return {
        "clips": [
            {
                "label": label,
                "source": source,  # empty where the labels name none
                "clips": len(found),
                "recordings": len({clip.group for clip in found}),
                "seconds": round(sum(clip.seconds for clip in found), 1),
            }
            for (label, source), found in sorted(kinds.items())
        ],
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def _scored(bundle: Bundle, noted: Noted, clips: cascades.Clips) -> cascades.Scored:
    scores = np.stack(noted.members)
    prominences, medians = np.transpose(noted.prominences), np.median(noted.seconds, axis=0) * 1e3
    return cascades.Scored(
        bundle.members,
        scores,
        scores[:, [bundle.members.index(name) for name in bundle.vote]].mean(axis=1),
        {name: bundle.backbones_of([name]) for name in bundle.members},
        bundle.backbones_of(bundle.vote),
        dict(zip(noted.still, prominences)),
        dict(zip(bundle.backbones, medians.tolist())),
        clips.orca[clips.of_window],
        np.array(clips.recordings)[clips.of_window],
        bundle.stop_threshold,
    )


def _write(bundle: Bundle, new: Path, manifest: dict[str, Any]) -> None:
    files = {name: (bundle.folder / name).read_bytes() for name in bundle.manifest["files"]}
    card = files[CARD].decode().rstrip() + "\n\n" + cascade_section(manifest) + "\n"
    kept = {key: value for key, value in manifest.items() if key not in ("schema", "files", "digest")}
    write_bundle(new, kept, {**files, CARD: card.encode()})
