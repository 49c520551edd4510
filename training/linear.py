"""Linear support vector machines on the features of whole clips, as the baselines of ComParE 2019 use them.

The challenge scales the features, trains scikit-learn's `LinearSVC` at several complexities and takes the one with the
best AUC on devel. Here the classes are weighted equally, the complexity is by default chosen on the training recordings
alone, and the distance to the plane becomes a confidence by Platt's sigmoid (Platt 1999), fitted to training clips that
the machine did not see.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..metrics import roc_auc_rows

Array = NDArray[np.float32]
Array64 = NDArray[np.float64]

SCALINGS = ("standard", "range")
CHOSEN_ON = ("train", "devel")
STEPS = 2000  # of the solver, at most
NOTHING = 1e-10  # of the greatest power along an axis: below it there is rounding alone
PLATT_SLOPE = 1e-6  # at least: a confidence keeps the order of the distances
PLATT_STRENGTH = 1e-3


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise TrainingError for a value that is not among those allowed."""
    if value not in allowed:
        raise TrainingError(f"{name} must be one of {list(allowed)}, not {value!r}")


@dataclass(frozen=True)
class SvmSettings:
    """How a linear machine is trained.

    Attributes
    ----------
    complexities : tried, ascending; the challenge's were 1e-5 to 1.
    chosen_on : `train`, the best AUC of clips whose recordings were left out in turn, or `devel`, as the challenge and
        the paper do; a choice on devel makes the AUC on devel optimistic.
    scaling : `standard`, mean 0 and spread 1 over the training clips, or `range`, 0 to 1 as in the challenge's script.
    folds : parts of the training recordings that are left out in turn; fewer where there are fewer recordings.
    """

    complexities: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    chosen_on: str = "train"
    scaling: str = "standard"
    folds: int = 5

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        check_choice("chosen_on", self.chosen_on, CHOSEN_ON)
        check_choice("scaling", self.scaling, SCALINGS)
        if not self.complexities or min(self.complexities) <= 0 or sorted(self.complexities) != list(self.complexities):
            raise TrainingError(f"complexities must be above 0 and ascending, not {list(self.complexities)}")
        if self.folds < 2:
            raise TrainingError(f"folds must be 2 or more, not {self.folds}")


@dataclass(frozen=True)
class Scale:
    """What is subtracted from features and what they are then divided by, both of shape (features,)."""

    offset: Array64
    factor: Array64

    def apply(self, features: Array) -> Array64:
        """Scaled features (clips, features); a value that is not finite takes the offset's place, 0."""
        scaled = (np.asarray(features, np.float64) - self.offset) / self.factor
        scaled[~np.isfinite(scaled)] = 0
        return scaled


def fit_scale(features: Array, scaling: str) -> Scale:
    """Scale of training features (clips, features); a feature that never changes is not stretched."""
    values = np.asarray(features, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature that is nowhere finite
        offset, factor = _location(values, scaling)
    constant = ~(factor > 1e-7 * np.abs(np.nan_to_num(offset)))
    return Scale(np.nan_to_num(offset), np.where(constant, 1.0, factor))


def _location(values: Array64, scaling: str) -> tuple[Array64, Array64]:
    if scaling == "standard":
        return np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    lowest = np.nanmin(values, axis=0)
    return lowest, np.nanmax(values, axis=0) - lowest


@dataclass(frozen=True)
class Plane:
    """A linear machine on scaled features: weights (features,), bias, and whether the solver came to an end."""

    weights: Array64
    bias: float
    converged: bool

    def distance(self, scaled: Array64) -> Array64:
        """Signed distance of scaled features (clips, features), orca above 0: shape (clips,)."""
        return np.asarray(scaled @ self.weights + self.bias)


def _packages() -> tuple[Any, Any, Any]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC
    except ImportError as fault:
        raise TrainingError(
            f"the baselines need scikit-learn, which cannot be imported ({fault}): pip install 'orcawatch[baselines]'"
        ) from fault
    return LinearSVC, LogisticRegression, ConvergenceWarning


def narrowed(learned: Array64, asked: Array64) -> tuple[Array64, Array64]:
    """Features of training clips and of others in the space that the training clips span, where that is smaller.

    The weights of a linear machine lie in that space, so its distances are the same, and 1105 clips of 6373 features
    are trained on six times as fast. The axes are those of the training clips' singular value decomposition, taken from
    their products. Shapes (clips, features) in, (clips, at most the number of training clips) out.
    """
    if learned.shape[1] <= learned.shape[0]:
        return learned, asked
    power, axes = np.linalg.eigh(learned @ learned.T)
    kept = power > NOTHING * power[-1]
    lengths = np.sqrt(power[kept])
    return axes[:, kept] * lengths, asked @ (learned.T @ (axes[:, kept] / lengths))


def fit_plane(scaled: Array64, orca: NDArray[np.bool_], complexity: float, seed: int) -> Plane:
    """Train `LinearSVC` (squared hinge, dual), the classes weighted equally.

    Parameters
    ----------
    scaled : features, shape (clips, features).
    orca : shape (clips,).
    complexity : the price of an error against the norm of the weights.
    seed : of the order in which the solver goes through the clips.
    """
    machine_of, _, unfinished = _packages()
    check_both(orca)
    machine = machine_of(C=complexity, class_weight="balanced", max_iter=STEPS, dual=True, random_state=seed)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        machine.fit(scaled, orca)
    converged = not any(issubclass(warning.category, unfinished) for warning in told)
    return Plane(machine.coef_[0], float(machine.intercept_[0]), converged)


def check_both(orca: NDArray[np.bool_]) -> None:
    """Raise TrainingError where the training clips are of one class."""
    if orca.all() or not orca.any():
        only = "orca" if len(orca) and orca.all() else "noise"
        raise TrainingError(f"a baseline needs orca and noise to learn from, but all {len(orca)} clips are {only}")


def folds_of(groups: NDArray[np.str_], orca: NDArray[np.bool_], number: int, seed: int) -> NDArray[np.int64]:
    """Fold of each training clip, shape (clips,): whole recordings, those with orca and those without dealt out evenly.

    Raises
    ------
    TrainingError : one class, or a class that stands in one recording only.
    """
    check_both(orca)
    calling = sorted(set(groups[orca]))
    quiet = sorted(set(groups) - set(calling))
    number = min(number, len(calling), len(set(groups[~orca])))
    if number < 2:
        raise TrainingError(
            "a baseline leaves training recordings out in turn, so orca and noise must each stand in two recordings "
            f"or more; here {len(calling)} hold orca and {len(set(groups[~orca]))} hold noise"
        )
    generator = np.random.default_rng(seed)
    dealt = (
        [*generator.permutation(calling), *generator.permutation(quiet)] if quiet else generator.permutation(calling)
    )
    place = {name: k % number for k, name in enumerate(dealt)}
    return np.array([place[name] for name in groups])


def left_out(
    features: Array, orca: NDArray[np.bool_], fold: NDArray[np.int64], settings: SvmSettings, seed: int
) -> Array64:
    """Distances of training clips to planes that were trained without their fold: shape (complexities, clips)."""
    distances = np.zeros((len(settings.complexities), len(features)))
    for held in np.unique(fold):
        out = fold == held
        scale = fit_scale(features[~out], settings.scaling)
        inside, outside = narrowed(scale.apply(features[~out]), scale.apply(features[out]))
        for k, complexity in enumerate(settings.complexities):
            distances[k, out] = fit_plane(inside, orca[~out], complexity, seed).distance(outside)
    return distances


@dataclass(frozen=True)
class Platt:
    """Platt's sigmoid, confidence = 1 / (1 + exp(-(slope * distance + shift))); its slope is above 0."""

    slope: float
    shift: float

    def confidence(self, distances: Array64) -> Array64:
        """Confidence of orca, 0 to 1: shape as given."""
        return np.asarray(1 / (1 + np.exp(np.clip(-(self.slope * distances + self.shift), -700, 700))))


def fit_platt(distances: Array64, orca: NDArray[np.bool_]) -> Platt:
    """Fit the sigmoid to distances (clips,) of clips that the plane did not see, the classes weighted equally."""
    _, regression_of, _ = _packages()
    spread = float(distances.std()) or 1.0
    fitted = regression_of(C=1 / PLATT_STRENGTH, class_weight="balanced").fit(distances[:, None] / spread, orca)
    slope, shift = float(fitted.coef_[0, 0]) / spread, float(fitted.intercept_[0])
    return Platt(max(slope, PLATT_SLOPE), shift)


@dataclass(frozen=True)
class Trained:
    """A machine with its complexity chosen.

    Attributes
    ----------
    scores : confidence of orca of the clips asked about, shape (clips,).
    complexity : the chosen one.
    candidates : of each complexity its `complexity`, `train_auc` (recordings left out in turn), `devel_auc`,
        `converged`.
    best : the AUC by which it was chosen.
    """

    scores: Array64
    complexity: float
    candidates: list[dict[str, Any]]
    best: float


@dataclass(frozen=True)
class Split:
    """Which clips teach, which may choose, and what they are.

    Attributes
    ----------
    train, devel : shape (clips,), True where a clip is in that split.
    orca : shape (clips,).
    groups : the recording of each clip, shape (clips,).
    """

    train: NDArray[np.bool_]
    devel: NDArray[np.bool_]
    orca: NDArray[np.bool_]
    groups: NDArray[np.str_]


def train(features: Array, split: Split, settings: SvmSettings, seed: int) -> Trained:
    """Choose the complexity, train on all training clips, and score every clip.

    Parameters
    ----------
    features : of all clips, shape (clips, features).
    split : what the clips are.
    settings : the complexities and how to choose.
    seed : of the folds and the solver.

    Raises
    ------
    TrainingError : one class only, or too few recordings to leave some out.
    """
    learned, orca = features[split.train], split.orca[split.train]
    fold = folds_of(split.groups[split.train], orca, settings.folds, seed)
    unseen = left_out(learned, orca, fold, settings, seed)
    scale = fit_scale(learned, settings.scaling)
    inside, asked = narrowed(scale.apply(learned), scale.apply(features))
    planes = [fit_plane(inside, orca, complexity, seed) for complexity in settings.complexities]
    distances = np.stack([plane.distance(asked) for plane in planes])
    train_auc = roc_auc_rows(unseen, orca)
    devel_auc = roc_auc_rows(distances[:, split.devel], split.orca[split.devel])
    decisive = train_auc if settings.chosen_on == "train" else devel_auc
    best = int(np.argmax(decisive))
    scores = fit_platt(unseen[best], orca).confidence(distances[best])
    candidates = [
        {"complexity": c, "train_auc": float(t), "devel_auc": float(d), "converged": p.converged}
        for c, t, d, p in zip(settings.complexities, train_auc, devel_auc, planes)
    ]
    return Trained(scores, settings.complexities[best], candidates, float(decisive[best]))


def fuse(scores: Array64) -> Array64:
    """Mean of the members' confidences (members, clips): shape (clips,).

    The challenge lets the members' classes vote, which gives a class but no ranking and so no AUC; the mean of
    calibrated confidences is the same vote, with each voice as loud as it is sure.
    """
    return np.asarray(scores.mean(axis=0))
