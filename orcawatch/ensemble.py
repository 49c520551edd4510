"""The vote: from windows to orca confidences per member, channel and array, and the relevance behind them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .backbone import EdgeBackbone
from .bundle import Bundle
from .interpreter import Model, Shapes
from .records import Window, WindowScore

Array = NDArray[np.float32]


def fuse_channels(channel_scores: Array, how: str) -> float:
    """One score of the array from its channels' scores: the highest (`max`) or the average (`mean`)."""
    return float(channel_scores.max() if how == "max" else channel_scores.mean())


class Ensemble:
    """A bundle's members, ready to score: one backbone pass per channel serves every head.

    Parameters
    ----------
    bundle : a verified bundle.
    threads : processor threads of the interpreter.

    Raises
    ------
    BundleError : a model does not fit what the manifest says of it.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self._backbones = {
            name: EdgeBackbone(
                bundle.folder / entry.file,
                entry.front_end,
                entry.feature_size,
                threads,
                None if entry.explain_file is None else bundle.folder / entry.explain_file,
            )
            for name, entry in bundle.backbones.items()
        }
        self._heads = Model(bundle.folder / bundle.manifest["heads"]["file"], threads)
        sizes: Shapes = {name: (1, entry.feature_size) for name, entry in bundle.backbones.items()}
        self._heads.require("score", sizes, {"scores": (1, len(bundle.members))})
        self._heads.require("explain", sizes, sizes)
        self._vote = [bundle.members.index(name) for name in bundle.vote]

    def score(self, window: Window) -> WindowScore:
        """Confidences of every member on every channel of one window."""
        members = np.stack([self.score_spectrograms(spectrograms) for spectrograms in self._finish(window)])
        channels = members[:, self._vote].mean(axis=1)
        return WindowScore(
            window.start_sample,
            window.end_sample,
            members,
            channels,
            fuse_channels(channels, self.bundle.channel_fusion),
        )

    def score_spectrograms(self, spectrograms: Mapping[str, Array]) -> Array:
        """Members' confidences from one channel's finished spectrograms, (frames, bands) by backbone."""
        return np.asarray(self._heads.call("score", self._features(spectrograms))["scores"][0])

    def explain(self, window: Window, channel: int) -> dict[str, tuple[Array, Array]]:
        """What each backbone heard on one channel, and what of it speaks for the vote's `orca` confidence.

        Deep Taylor through the whole networks (paper section 2.3): one pass gives the heads' relevance of every
        feature, averaged over the vote's members; one pass for each backbone that has some spreads it.

        Returns
        -------
        By backbone, in the bundle's order: the window's rows and their relevance, both float32 (frames, bands). The
        relevance of all backbones together adds up to the channel's score; a backbone that nothing of the vote listens
        to, or where nothing speaks for orca, has zeros.
        """
        rows = {name: found[channel] for name, found in window.rows.items()}
        spectrograms = {name: self._backbones[name].front_end.finish(found) for name, found in rows.items()}
        relevance = self._heads.call("explain", self._features(spectrograms))
        return {
            name: (rows[name], self._spread(name, spectrogram, relevance[name][0]))
            for name, spectrogram in spectrograms.items()
        }

    def _spread(self, name: str, spectrogram: Array, relevance: Array) -> Array:
        """Relevance of a backbone's features on its window's rows."""
        if not relevance.any():
            front_end = self.bundle.backbones[name].front_end
            return np.zeros((front_end.frames, front_end.shape[1]), np.float32)
        return self._backbones[name].explain(spectrogram, relevance)

    def _finish(self, window: Window) -> list[dict[str, Array]]:
        """Spectrograms (frames, bands) by backbone, one dict per channel."""
        finished = {name: self._backbones[name].front_end.finish(rows) for name, rows in window.rows.items()}
        channels = len(next(iter(finished.values())))
        return [{name: spectrograms[c] for name, spectrograms in finished.items()} for c in range(channels)]

    def _features(self, spectrograms: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._backbones[name].features(patch)[None] for name, patch in spectrograms.items()}
