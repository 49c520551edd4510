"""Predictions for files without labels, in the form that ComParE asks of its participants.

ComParE 2019 ranks by the score alone (ROC AUC), but its form also holds a predicted class. A file is called orca where
its score reaches the equal-error threshold of the devel clips: where the share of orca clips missed and the share of
noise clips called orca are nearest to each other. That threshold is chosen on devel; the score does not depend on it.

The ARFF is what the challenge's own baseline script (`format_pred.pl`) writes: instance name, predicted class, and one
score per class, one row per file.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..metrics import curves
from .dataset import LABELS
from .storage import load_npz

Floats = NDArray[np.floating[Any]]
COLUMNS = ("file_name", "prediction", "score")
RELATION = "ComParE2019_OrcaActivity_Predictions"
SCORES = "test_scores.npz"
DEVEL_SCORES = "devel_scores.npz"
CSV, ARFF = "test_predictions.csv", "test_predictions.arff"
SHOWN = 5


@dataclass(frozen=True)
class Prediction:
    """One file's row.

    Attributes
    ----------
    file_name : as the labels name it.
    orca : whether the score reaches the threshold.
    score : confidence of orca, 0 to 1.
    """

    file_name: str
    orca: bool
    score: float

    @property
    def label(self) -> str:
        """`orca` or `noise`."""
        return LABELS[self.orca]


def equal_error_threshold(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Threshold at which misses and false alarms are equally frequent, or as near to it as the clips allow.

    Parameters
    ----------
    scores : of the devel clips, shape (clips,).
    labels : True where orca, shape (clips,).

    Returns
    -------
    A score that clips at or above it are called by: half way between the lowest clip that is called and the highest
    that is not, so that it does not sit on a clip. Of equally good ones the highest.

    Raises
    ------
    TrainingError : one class only.
    """
    points = curves(scores, labels)
    best = int(np.argmin(np.abs(1 - points["recall"] - points["false_positive_rate"])))
    at = points["threshold"][best : best + 2]
    return float(at.mean())


def predict(
    file_names: Sequence[str], scores: Sequence[float], expected: Sequence[str], threshold: float
) -> list[Prediction]:
    """One prediction per expected file, in the expected order.

    Parameters
    ----------
    file_names, scores : what was computed.
    expected : the files of the split in the order of the labels.
    threshold : a file is called orca at this score or above.

    Raises
    ------
    TrainingError : a file is missing, came twice, was not asked for, or has a score that is no number; the text names
        them.
    """
    _check(file_names, scores, expected)
    by_name = dict(zip(file_names, scores))
    return [Prediction(name, bool(by_name[name] >= threshold), float(by_name[name])) for name in expected]


def _check(file_names: Sequence[str], scores: Sequence[float], expected: Sequence[str]) -> None:
    asked, scored = set(expected), set(file_names)
    faults = {
        "have no score": [name for name in expected if name not in scored],
        "were scored twice": _repeated(file_names),
        "stand in the labels twice": _repeated(expected),
        "are not in the labels": [name for name in file_names if name not in asked],
        "have a score that is no number": [name for name, score in zip(file_names, scores) if not np.isfinite(score)],
    }
    told = [f"{len(names)} {what}: {_some(names)}" for what, names in faults.items() if names]
    if told:
        raise TrainingError(
            f"predictions need one score for each of the {len(expected)} files of the labels, but "
            f"{'; '.join(told)}. Correct the labels, or run the stages again on the data as it is now"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, number in Counter(names).items() if number > 1]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def to_csv(predictions: Sequence[Prediction]) -> str:
    """Rows `file_name,prediction,score`, below a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([one.file_name, one.label, f"{one.score:.6f}"] for one in predictions)
    return text.getvalue()


def to_arff(predictions: Sequence[Prediction], name: str) -> str:
    """ARFF of the challenge's form.

    Parameters
    ----------
    predictions : one per file.
    name : of who predicts, part of the relation's name; what is no letter, digit, hyphen or dot becomes `_`.
    """
    relation = f"{RELATION}_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}"
    lines = [
        f"@relation {relation}",
        "@attribute instance_name string",
        f"@attribute prediction {{ {', '.join(LABELS)} }}",
        *(f"@attribute score_{label} numeric" for label in LABELS),
        "@data",
        *(f"{_quoted(one.file_name)},{one.label},{1 - one.score:.6f},{one.score:.6f}" for one in predictions),
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Text in single quotes on one line, as ARFF readers take it."""
    for character, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escaped)
    return f"'{text}'"


@dataclass(frozen=True)
class Written:
    """What `write_predictions` wrote, for the report.

    Attributes
    ----------
    files : number of rows.
    orca : how many of them are called orca.
    threshold : equal-error threshold of devel.
    """

    files: int
    orca: int
    threshold: float


def write_predictions(result: Path, expected: Sequence[str], name: str, folder: Path) -> Written:
    """Write `test_predictions.csv` and `test_predictions.arff` from a result folder's `test_scores.npz`.

    Parameters
    ----------
    result : folder of the stage `result`, with `test_scores.npz` and `devel_scores.npz`.
    expected : the test files in the order of the labels.
    name : of the run.
    folder : where to write.

    Raises
    ------
    TrainingError : as `predict`.
    """
    devel, test = load_npz(result / DEVEL_SCORES), load_npz(result / SCORES)
    threshold = equal_error_threshold(devel["vote_clip_scores"], devel["label"] == "orca")
    rows = predict(test["file_name"].tolist(), _scores(test), expected, threshold)
    (folder / CSV).write_text(to_csv(rows), encoding="utf-8")
    (folder / ARFF).write_text(to_arff(rows, name), encoding="utf-8")
    return Written(len(rows), sum(one.orca for one in rows), threshold)


def _scores(stored: Mapping[str, NDArray[Any]]) -> list[float]:
    return [float(score) for score in stored["vote_clip_scores"]]
