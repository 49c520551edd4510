"""The vote: from windows to orca confidences per member, channel and array, and the relevance behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .backbone import EdgeBackbone
from .bundle import Bundle
from .interpreter import Model, Shapes
from .records import Window, WindowScore

Array = NDArray[np.float32]


def fuse_channels(channel_scores: Array, how: str) -> float:
    """One score of the array from the scores of those channels that have one: the highest (`max`) or the average."""
    return float(np.nanmax(channel_scores) if how == "max" else np.nanmean(channel_scores))


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

    def score(
        self, window: Window, columns: Sequence[int] | None = None, vote: Sequence[str] | None = None
    ) -> WindowScore:
        """Confidences of every member on every channel of one window.

        Parameters
        ----------
        window : all of the array's channels.
        columns : the channels to score; the others' scores are NaN. None for all.
        vote : the members to average; backbones that none of them listens to are not run, and the scores of members
            that would need one are NaN. None for the bundle's.
        """
        voting = self._vote if vote is None else [self.bundle.members.index(name) for name in vote]
        needed = self._needed(self.bundle.vote if vote is None else vote)
        members = np.full((len(next(iter(window.rows.values()))), len(self.bundle.members)), np.nan, np.float32)
        for column in range(len(members)) if columns is None else columns:
            rows = {name: found[column] for name, found in window.rows.items()}
            members[column] = self._score_rows(rows, needed)
        channels = members[:, voting].mean(axis=1)
        return WindowScore(
            window.start_sample,
            window.end_sample,
            members,
            channels,
            fuse_channels(channels, self.bundle.channel_fusion),
        )

    def _needed(self, vote: Sequence[str]) -> tuple[str, ...]:
        return self.bundle.backbones_of(self.bundle.members if set(vote) == set(self.bundle.vote) else vote)

    def _score_rows(self, rows: Mapping[str, Array], needed: Sequence[str]) -> Array:
        """Members' confidences from one channel's rows; NaN for those that listen to a backbone not among `needed`."""
        features = self._features({name: self._backbones[name].front_end.finish(rows[name]) for name in needed})
        for name in set(self.bundle.backbones) - set(needed):
            features[name] = np.zeros((1, self.bundle.backbones[name].feature_size), np.float32)
        scores = np.array(self._heads.call("score", features)["scores"][0])
        unheard = [not set(self.bundle.backbones_of([name])) <= set(needed) for name in self.bundle.members]
        scores[unheard] = np.nan
        return scores

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

    def _features(self, spectrograms: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._backbones[name].features(patch)[None] for name, patch in spectrograms.items()}
