"""Training batches: which clips are drawn, what is done to them, and the `tf.data` pipeline that makes them ahead.

A batch is a pure function of the seed and its step (`np.random.default_rng([seed, step])`), so equal seeds give equal
batches whatever the number of threads, and workers that each make a share of it see exactly the batch of one worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..spectrogram import FrontEnd
from .augment import Augmentation, Plan, draw_plan, hide, spectrograms, waveforms, window_samples
from .teacher import Teacher

if TYPE_CHECKING:
    from .dataset import LoadedClip
    from .finetune import FineTuneSettings

Array = NDArray[np.float32]
Clips = Sequence["LoadedClip"]
Batch = dict[str, NDArray[Any]]

AHEAD = 4  # batches that wait for each replica


def is_orca(clips: Clips) -> NDArray[np.bool_]:
    """True where a clip is labelled orca, shape (clips,)."""
    return np.array([clip.label == "orca" for clip in clips], bool)


def drawing_chances(clips: Clips, settings: FineTuneSettings) -> NDArray[np.float64]:
    """Chance of each clip to be drawn for a batch, shape (clips,), sum 1: see `FineTuneSettings`.

    Raises
    ------
    TrainingError : one class only.
    """
    orca = is_orca(clips)
    if orca.all() or not orca.any():
        raise TrainingError(f"training needs orca and noise, but all {len(clips)} clips are of one class")
    groups = Counter((clip.label, clip.group) for clip in clips)
    sources = Counter((clip.kind, clip.source) for clip in clips)
    chances = np.array(
        [
            groups[clip.label, clip.group] ** -settings.group_balance
            * sources[clip.kind, clip.source] ** -settings.source_balance
            for clip in clips
        ],
        np.float64,
    )
    for chosen, share in ((orca, settings.orca_share), (~orca, 1 - settings.orca_share)):
        chances[chosen] *= share / chances[chosen].sum()
    return np.asarray(chances / chances.sum())


def class_weights(orca: NDArray[np.bool_], orca_share: float) -> Array:
    """Weight of each window in the loss, inverse to its class's share, so that both classes count one half."""
    return np.where(orca, 0.5 / orca_share, 0.5 / (1 - orca_share)).astype(np.float32)


@dataclass(frozen=True)
class BatchMaker:
    """Makes any batch of a training, or any share of one.

    Attributes
    ----------
    clips : at the front end's rate; only the windows that are drawn are read.
    teacher : answers the spectrograms before they are masked; or None.
    settings, augmentation, front_end : what is drawn, and what is done to it.
    seed : equal seeds give equal batches.
    """

    clips: Clips
    teacher: Teacher | None
    settings: FineTuneSettings
    augmentation: Augmentation
    front_end: FrontEnd
    seed: int

    @cached_property
    def _orca(self) -> NDArray[np.bool_]:
        return is_orca(self.clips)

    @cached_property
    def _noise(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self._orca)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([len(clip.waveform) for clip in self.clips], np.int64)

    @cached_property
    def _limits(self) -> NDArray[np.float64]:
        return np.cumsum(drawing_chances(self.clips, self.settings))

    def plan(self, step: int) -> Plan:
        """What happens to every window of a step's batch."""
        generator = np.random.default_rng([self.seed, step])
        drawn = np.searchsorted(self._limits, generator.random(self.settings.batch_size) * self._limits[-1], "right")
        return draw_plan(drawn, self._lengths, self._noise, self.augmentation, self.front_end, generator)

    def part(self, step: int, number: int = 0, parts: int = 1) -> Batch:
        """One of the equal shares of a step's batch.

        Parameters
        ----------
        step : 0 or more.
        number : which share, 0 to parts - 1.
        parts : number of shares.

        Returns
        -------
        `position` (windows,): place in the whole batch; `weights` and `labels` 0 or 1, both (windows,); `taught`
        (windows,), the teacher's confidence, where there is one. With `spectrograms: cpu` also `input`, masked
        spectrograms (windows, *front_end.shape); with `device` their `waveforms` (windows, samples) and the masks,
        `frame_masks` and `band_masks` (windows, masks, 2), for `graph_front_end`.
        """
        size = self.settings.batch_size // parts
        rows = slice(number * size, (number + 1) * size)
        plan = self.plan(step).part(rows)
        labels = self._orca[plan.clip]
        heard = waveforms(plan, self.clips, window_samples(self.front_end))
        described: Batch = {
            "position": np.arange(rows.start, rows.stop, dtype=np.int32),
            "weights": class_weights(labels, self.settings.orca_share),
            "labels": labels.astype(np.float32),
        }
        if self.settings.spectrograms == "device":
            masks = {name: getattr(plan, name).astype(np.int32) for name in ("frame_masks", "band_masks")}
            return {**described, "waveforms": heard, **masks}
        return {**described, **self._seen(heard, plan)}

    def _seen(self, heard: Array, plan: Plan) -> Batch:
        whole = spectrograms(heard, self.front_end)
        taught = {"taught": self.teacher.confidence(whole)} if self.teacher else {}
        masked = hide(hide(whole, 1, plan.frame_masks), 2, plan.band_masks)
        return {**taught, "input": masked.reshape(-1, *self.front_end.shape)}


def dataset(maker: BatchMaker, steps: int, first: int, local: int, parts: int, threads: int | None = None) -> Any:
    """A `tf.data.Dataset` of one worker's shares, in order: step by step, and for each step replica by replica.

    The NumPy function is declared stateless, which it is. TensorFlow calls a stateful one serially once op determinism
    is switched on; this one runs in parallel either way.

    Parameters
    ----------
    maker : of the batches.
    steps : number of batches.
    first : share of the worker's first replica.
    local : number of its replicas.
    parts : number of all replicas.
    threads : batches made at a time; None leaves that to TensorFlow.
    """
    import tensorflow as tf

    example = maker.part(0, first, parts)
    names = list(example)

    def made(number: Any) -> list[NDArray[Any]]:
        step, replica = divmod(int(number), local)
        batch = maker.part(step, first + replica, parts)
        return [batch[name] for name in names]

    def described(number: Any) -> dict[str, Any]:
        types = [example[name].dtype for name in names]
        tensors = dict(zip(names, tf.numpy_function(made, [number], types, stateful=False)))
        for name, tensor in tensors.items():
            tensor.set_shape(example[name].shape)
        return tensors

    calls = threads or tf.data.AUTOTUNE
    numbers = tf.data.Dataset.range(steps * local)
    return numbers.map(described, num_parallel_calls=calls, deterministic=True).prefetch(AHEAD * local)
