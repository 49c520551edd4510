"""openSMILE's ComParE 2016 set: functionals of whole clips and the low-level descriptors that they summarise.

Source: Schuller et al. 2016 (the set) and 2019 (the challenge that this project's paper compares with); computed by the
package `opensmile`, which is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError

Array = NDArray[np.float32]

FUNCTIONALS = "Functionals"  # 6373, one row a clip
DESCRIPTORS = "LowLevelDescriptors"  # 65, a row every 10 ms
DELTAS = "LowLevelDescriptors_Deltas"  # 65, a row every 10 ms
SHORTEST_S = 0.1  # its longest frame is 60 ms; below this a clip is repeated
AT_ONCE = 8  # clips handed to a process at a time


@cache
def extractor(level: str) -> Any:
    """OpenSMILE for one level of the set, one per process.

    Raises
    ------
    TrainingError : the package is missing, or one that it needs does not fit.
    """
    try:
        import opensmile
    except ImportError as fault:
        raise TrainingError(
            f"this baseline needs opensmile, which cannot be imported ({fault}): pip install 'orcawatch[baselines]', "
            "or leave the baseline out of the recipe"
        ) from fault
    return opensmile.Smile(opensmile.FeatureSet.ComParE_2016, getattr(opensmile.FeatureLevel, level))


def is_short(samples: int, rate_hz: int) -> bool:
    """Whether a clip is too short for a frame of its own and is repeated."""
    return samples < SHORTEST_S * rate_hz


def long_enough(waveform: Array, rate_hz: int) -> Array:
    """The clip (samples,), end to end with itself until it lasts `SHORTEST_S`; no samples count as silence."""
    needed = int(np.ceil(SHORTEST_S * rate_hz))
    if not len(waveform):
        return np.zeros(needed, np.float32)
    return np.ascontiguousarray(np.tile(waveform, -(-needed // len(waveform))) if len(waveform) < needed else waveform)


def describe(levels: Sequence[str], rate_hz: int, waveform: Array) -> list[Array]:
    """Rows of each level for one clip (samples,): float32, shapes (rows, columns)."""
    samples = long_enough(np.asarray(waveform, np.float32), rate_hz)
    return [np.ascontiguousarray(extractor(level)(samples, rate_hz)[0].T) for level in levels]


def describe_all(
    levels: Sequence[str], rate_hz: int, waveforms: Sequence[Array], workers: int
) -> Iterator[list[Array]]:
    """Yield `describe` of every clip in order, computed by `workers` processes (1: by this one).

    The processes are started afresh, not forked: a fork of a process that runs TensorFlow may hang.
    """
    work = partial(describe, tuple(levels), rate_hz)
    if workers == 1:
        yield from map(work, waveforms)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, [np.asarray(w) for w in waveforms], chunksize=AT_ONCE)
