"""The vote: from windows to orca confidences per member, channel and array, and the relevance behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .backbone import EdgeBackbone
from .bundle import Bundle
from .interpreter import Model, Shapes
from .records import Window, WindowScore
from .spectrogram import FrontEnd, prominence

Array = NDArray[np.float32]


def fuse_channels(channel_scores: Array, how: str) -> float:
    """One score of the array from the scores of those channels that have one: the highest (`max`) or the average."""
    return float(np.nanmax(channel_scores) if how == "max" else np.nanmean(channel_scores))


class Heard:
    """What the backbones hear on one channel of one window: each is run when it is first asked for, and once.

    Parameters
    ----------
    backbones : by name.
    rows : the channel's rows by backbone, shape (frames, bands).
    """

    def __init__(self, backbones: Mapping[str, EdgeBackbone], rows: Mapping[str, Array]) -> None:
        self._backbones = backbones
        self._rows = rows
        self._finished: dict[FrontEnd, Array] = {}
        self._features: dict[str, Array] = {}

    def features(self, names: Sequence[str]) -> dict[str, Array]:
        """Features by backbone, each float32 (1, feature_size)."""
        for name in names:
            if name not in self._features:
                self._features[name] = self._backbones[name].features(self.spectrogram(name))[None]
        return {name: self._features[name] for name in names}

    def spectrogram(self, name: str) -> Array:
        """A backbone's finished spectrogram; backbones with the same front end share it."""
        front_end = self._backbones[name].front_end
        if front_end not in self._finished:
            self._finished[front_end] = front_end.finish(self._rows[name])
        return self._finished[front_end]


class Finished(Heard):
    """The same from spectrograms that are finished already, by backbone."""

    def spectrogram(self, name: str) -> Array:
        """A backbone's spectrogram as it was given."""
        return self._rows[name]


class Ensemble:
    """A bundle's members, ready to score: one backbone pass per channel serves every head.

    Parameters
    ----------
    bundle : a verified bundle.
    threads : processor threads of the interpreter.

    Attributes
    ----------
    cascade : which backbones are heard when; the bundle's, until another is set.

    Raises
    ------
    BundleError : a model does not fit what the manifest says of it.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self.cascade = bundle.cascade
        self._backbones = {
            name: EdgeBackbone(
                bundle.folder / entry.file,
                bundle.folder / entry.explain_file,
                entry.front_end,
                entry.feature_size,
                threads,
            )
            for name, entry in bundle.backbones.items()
        }
        self._heads = Model(bundle.folder / bundle.manifest["heads"]["file"], threads)
        sizes: Shapes = {name: (1, entry.feature_size) for name, entry in bundle.backbones.items()}
        self._heads.require("score", sizes, {"scores": (1, len(bundle.members))})
        self._heads.require("explain", sizes, sizes)
        for gate in (one for one in bundle.cascade.gates if one.members):
            heard = {name: sizes[name] for name in gate.backbones}
            self._heads.require(gate.signature, heard, {"scores": (1, len(gate.members))})

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
        members = np.full((len(next(iter(window.rows.values()))), len(self.bundle.members)), np.nan, np.float32)
        channels = np.full(len(members), np.nan, np.float32)
        for column in range(len(members)) if columns is None else columns:
            rows = {name: found[column] for name, found in window.rows.items()}
            members[column], channels[column] = self.channel(Heard(self._backbones, rows), vote)
        return WindowScore(
            window.start_sample,
            window.end_sample,
            members,
            channels,
            fuse_channels(channels, self.bundle.channel_fusion),
        )

    def hear(self, spectrograms: Mapping[str, Array]) -> Heard:
        """One channel's finished spectrograms, (frames, bands) by backbone, for `all_members` and `channel`."""
        return Finished(self._backbones, spectrograms)

    def all_members(self, heard: Heard) -> Array:
        """Every member's confidence, whatever the cascade says: shape (members,)."""
        return np.asarray(self._heads.call("score", self._all(heard))["scores"][0])

    def channel(self, heard: Heard, vote: Sequence[str] | None = None) -> tuple[Array, float]:
        """Members' confidences on one channel, NaN where they were not needed, and their vote, or a gate's score."""
        vote = tuple(self.bundle.vote if vote is None else vote)
        members = np.full(len(self.bundle.members), np.nan, np.float32)
        needed = self._needed(vote)
        for gate in self.cascade.gates:
            if set(needed) <= set(gate.backbones):
                break
            if gate.members:
                scores = self._heads.call(gate.signature, heard.features(gate.backbones))["scores"][0]
                members[self._columns(gate.members)] = scores
                sign = float(scores.mean())
            else:
                sign = prominence(heard.spectrogram(gate.prominence_of))
            if sign < gate.threshold:
                return members, gate.score(sign, self.cascade.holds_from)
        taken = self._taken(heard, needed)
        members = np.where(np.isnan(taken), members, taken)
        return members, float(members[self._columns(vote)].mean())

    def _needed(self, vote: tuple[str, ...]) -> tuple[str, ...]:
        return self.bundle.backbones_of(self.bundle.members if set(vote) == set(self.bundle.vote) else vote)

    def _columns(self, members: Sequence[str]) -> list[int]:
        return [self.bundle.members.index(name) for name in members]

    def _taken(self, heard: Heard, needed: Sequence[str]) -> Array:
        """All members' confidences; NaN for those that listen to a backbone not among `needed`."""
        sizes = {name: entry.feature_size for name, entry in self.bundle.backbones.items() if name not in needed}
        unheard = {name: np.zeros((1, size), np.float32) for name, size in sizes.items()}
        scores = np.array(self._heads.call("score", {**heard.features(needed), **unheard})["scores"][0])
        scores[[not set(self.bundle.backbones_of([name])) <= set(needed) for name in self.bundle.members]] = np.nan
        return scores

    def explain(self, windows: Sequence[Window], channel: int) -> list[dict[str, tuple[Array, Array]]]:
        """What each backbone heard of windows on one channel, and what of it speaks for the vote's `orca` confidence.

        Deep Taylor through the whole networks (paper section 2.3): one pass gives the heads' relevance of every
        feature, averaged over the vote's members; one pass for each backbone that has some spreads it. One backbone
        after the other is prepared for that, since that takes memory.

        Returns
        -------
        For each window, by backbone, in the bundle's order: the window's rows and their relevance, both float32
        (frames, bands). The relevance of all backbones together adds up to the channel's score; a backbone that nothing
        of the vote listens to, or where nothing speaks for orca, has zeros.
        """
        rows = [{name: found[channel] for name, found in window.rows.items()} for window in windows]
        heard = [Heard(self._backbones, one) for one in rows]
        relevance = [self._heads.call("explain", self._all(one)) for one in heard]
        maps = {
            name: backbone.explain([one.spectrogram(name) for one in heard], [one[name][0] for one in relevance])
            for name, backbone in self._backbones.items()
        }
        return [{name: (one[name], maps[name][k]) for name in self._backbones} for k, one in enumerate(rows)]

    def _all(self, heard: Heard) -> dict[str, Array]:
        return heard.features(tuple(self._backbones))
