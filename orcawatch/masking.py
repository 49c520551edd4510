"""Relevance-based feature masks (paper section 2.4), one definition for training and for what is exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


def minimal_mask(relevance: NDArray[np.floating[Any]], keep: int = 512) -> NDArray[np.float32]:
    """Mask that keeps the features of the highest average relevance and zeroes the rest.

    Parameters
    ----------
    relevance : of the training set, shape (samples, features).
    keep : how many features stay. The paper's 512 is all of VGGish's, whose minimal mask therefore changes nothing.

    Returns
    -------
    0 or 1 per feature, shape (features,). Of equally relevant features the earlier stays.
    """
    size = relevance.shape[1]
    if not 1 <= keep <= size:
        raise ValueError(f"keep must be 1 to {size} (the backbone's features), not {keep}")
    order = np.argsort(-relevance.mean(axis=0, dtype=np.float64), kind="stable")
    mask = np.zeros(size, np.float32)
    mask[order[:keep]] = 1.0
    return mask


def negative_mask(relevance: Any) -> Any:
    """Mask per sample that zeroes every feature whose relevance is above that sample's average.

    Parameters
    ----------
    relevance : of the base-model's features for its own prediction, shape (batch, features).

    Returns
    -------
    Tensor of 0 or 1, shape (batch, features). Where all relevance is zero nothing is removed.
    """
    average = tf.reduce_mean(relevance, axis=-1, keepdims=True)
    return tf.cast(relevance <= average, tf.float32)
