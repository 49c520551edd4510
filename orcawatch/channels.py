"""Select the array's channels from what a source yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import AudioError, InputError
from .records import AudioBlock

if TYPE_CHECKING:
    from .config import Settings


def chosen_channels(channels: Sequence[int] | None, available: int) -> tuple[int, ...]:
    """The channels to use, 0-based: all where None is given.

    Raises
    ------
    InputError : a list that is wrong in itself: a negative number, a channel named twice, or none.
    AudioError : a channel that the source does not have.
    """
    chosen = tuple(range(available)) if channels is None else tuple(channels)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise InputError(f"channels must name each channel once, from 0, and at least one, not {list(chosen)}")
    if missing := [channel for channel in chosen if channel >= available]:
        raise AudioError(
            f"channels must be 0 to {available - 1} (the source has {available}), not {missing}: change `channels`"
        )
    return chosen


def check_hydrophones(settings: Settings, available: int) -> None:
    """Raise AudioError where the source has too few channels, or another number than there are hydrophones."""
    used = chosen_channels(settings.channels, available)
    if settings.hydrophones and len(settings.hydrophones) != len(used):
        raise AudioError(
            f"hydrophones must be as many as the used channels ({len(used)}), not {len(settings.hydrophones)}: one "
            "group of keys for each, or name the used ones in `channels`"
        )


def select(block: AudioBlock, channels: Sequence[int]) -> AudioBlock:
    """The block with these columns only, in this order."""
    if list(channels) == list(range(block.samples.shape[1])):
        return block
    return AudioBlock(np.ascontiguousarray(block.samples[:, list(channels)]), block.start_sample)
