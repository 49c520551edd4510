"""A gate for a bundle that is there already: where nothing stands out of the background, no backbone is heard.

The gates that listen to cheap members need signatures of their own in the heads' file, which the training run makes
(`orcawatch deploy bundle`). This one needs labelled clips alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ..bundle import CARD, Bundle, load_bundle, sha256, write_bundle
from ..cascade import Cascade
from ..compare import Clip, window_scores
from ..ensemble import Ensemble, fuse_channels
from ..errors import BundleError
from ..files import FileSource
from ..metrics import DRAWS
from ..records import Window, WindowScore
from ..spectrogram import has_prominence, prominence
from . import cascade as cascades
from .build import seconds_of
from .card import cascade_section
from .faint import Mixture, draw, gain, mix

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
    clips : labelled, from recordings that the bundle was not trained on; the first channel is heard, and its calls
        once more, fainter, in other noise of these clips (`faint`).
    most_lost : as `cascade.choose`.
    progress : wraps the iteration over the clips, for a progress bar.
    seed : of the intervals and of the mixtures.

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
    noted = Noted(bundle)
    votes = [window_scores(clip, noted) for clip in progress(clips)]
    orca, recordings = np.array([clip.label == "orca" for clip in clips]), [clip.group for clip in clips]
    called = np.array([max(one) for one in votes]) >= bundle.stop_threshold
    mixtures = draw(orca, called, recordings, seed)
    votes += [_mixed(clips, one, noted) for one in progress(mixtures)]
    of_window = np.repeat(np.arange(len(votes)), [len(one) for one in votes])
    found = cascades.with_mixtures(orca, recordings, mixtures, of_window)
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


def _mixed(clips: Sequence[Clip], mixture: Mixture, noted: Noted) -> list[float]:
    """Score of every window of a mixture, which is a file for that long."""
    call, rate_hz = _audio(clips[mixture.call])
    noise, from_hz = _audio(clips[mixture.noise])
    noise = np.asarray(soxr.resample(noise, from_hz, rate_hz), np.float32)
    mixed = mix(call, noise, mixture, gain(call, noise, rate_hz, mixture))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mixture.wav"
        soundfile.write(path, mixed, rate_hz, subtype="FLOAT")
        return window_scores(replace(clips[mixture.call], path=path), noted)


def _audio(clip: Clip) -> tuple[NDArray[np.float32], int]:
    """First channel of a clip, shape (samples,), and its rate."""
    source = FileSource(clip.path)
    return np.concatenate([block.samples[:, 0] for block in source.blocks()]), source.info.rate_hz


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
        clips.snr_db[clips.of_window],
        bundle.stop_threshold,
    )


def _write(bundle: Bundle, new: Path, manifest: dict[str, Any]) -> None:
    files = {name: (bundle.folder / name).read_bytes() for name in bundle.manifest["files"]}
    card = files[CARD].decode().rstrip() + "\n\n" + cascade_section(manifest) + "\n"
    kept = {key: value for key, value in manifest.items() if key not in ("schema", "files", "digest")}
    write_bundle(new, kept, {**files, CARD: card.encode()})
