"""Test-set predictions: the threshold, the checks, and the two forms."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import arff

from orcawatch.errors import TrainingError
from orcawatch.training import predictions
from orcawatch.training.predictions import Prediction, equal_error_threshold, predict, to_arff, to_csv

ROWS = [Prediction("test_1.wav", True, 0.75), Prediction("it's, \u9be8\\.wav", False, 0.125)]


def plain_equal_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Smallest difference of the two error rates over all thresholds, as loops."""
    rates = []
    for threshold in scores:
        missed = np.mean([score < threshold for score in scores[labels]])
        false = np.mean([score >= threshold for score in scores[~labels]])
        rates.append(abs(missed - false))
    return float(min(rates))


@pytest.mark.parametrize("seed", range(5))
def test_threshold_makes_errors_equally_frequent(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.arange(60) % 3 == 0
    scores = np.round(generator.normal(labels * 1.0, 1.0), 1)
    threshold = equal_error_threshold(scores, labels)
    missed, false = np.mean(scores[labels] < threshold), np.mean(scores[~labels] >= threshold)
    assert abs(missed - false) == pytest.approx(plain_equal_error(scores, labels))
    assert threshold not in scores or threshold == scores.min()


def test_threshold_lies_between_classes_that_are_apart() -> None:
    assert equal_error_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1], bool)) == pytest.approx(0.5)


def test_threshold_of_equal_scores_is_that_score() -> None:
    assert equal_error_threshold(np.full(4, 0.3), np.array([0, 1, 0, 1], bool)) == pytest.approx(0.3)


def test_threshold_needs_both_classes() -> None:
    with pytest.raises(TrainingError, match="orca and noise"):
        equal_error_threshold(np.array([0.1, 0.2]), np.array([True, True]))


def test_predictions_come_in_the_order_of_the_labels() -> None:
    found = predict(["b", "c", "a"], [0.2, 0.5, 0.9], ["a", "b", "c"], 0.5)
    assert found == [Prediction("a", True, 0.9), Prediction("b", False, 0.2), Prediction("c", True, 0.5)]


@pytest.mark.parametrize(
    ("names", "scores", "expected", "told"),
    [
        (["a"], [0.1], ["a", "b"], "1 have no score: b"),
        (["a", "a", "b"], [0.1, 0.2, 0.3], ["a", "b"], "1 were scored twice: a"),
        (["a", "b"], [0.1, 0.2], ["a", "b", "a"], "1 stand in the labels twice: a"),
        (["a", "z"], [0.1, 0.2], ["a"], "1 are not in the labels: z"),
        (["a", "b"], [0.1, np.nan], ["a", "b"], "1 have a score that is no number: b"),
        ([], [], list("abcdefg"), "7 have no score: a, b, c, d, e and 2 more"),
    ],
)
def test_faults_are_named(names: list[str], scores: list[float], expected: list[str], told: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(told)):
        predict(names, scores, expected, 0.5)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(TrainingError, match="no score: b; 1 are not in the labels: z"):
        predict(["a", "z"], [0.1, 0.2], ["a", "b"], 0.5)


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert rows == [
        {"file_name": "test_1.wav", "prediction": "orca", "score": "0.750000"},
        {"file_name": ROWS[1].file_name, "prediction": "noise", "score": "0.125000"},
    ]


def test_arff_has_the_form_of_the_challenge() -> None:
    lines = to_arff(ROWS, "my run \u00e9").split("\n")
    assert lines == [
        "@relation ComParE2019_OrcaActivity_Predictions_my_run_",
        "@attribute instance_name string",
        "@attribute prediction { noise, orca }",
        "@attribute score_noise numeric",
        "@attribute score_orca numeric",
        "@data",
        "'test_1.wav',orca,0.250000,0.750000",
        "'it\\'s, \u9be8\\\\.wav',noise,0.875000,0.125000",
        "",
    ]


def test_arff_can_be_read_by_others() -> None:
    text = to_arff([ROWS[0]], "run").replace("instance_name string", "instance_name {'test_1.wav'}")
    data, meta = arff.loadarff(io.StringIO(text))
    assert meta.names() == ["instance_name", "prediction", "score_noise", "score_orca"]
    assert [data[0][k] for k in range(4)] == [b"test_1.wav", b"orca", 0.25, 0.75]


def test_a_name_stays_on_its_line() -> None:
    assert len(to_arff([Prediction("a\nb\r.wav", True, 0.5)], "run").splitlines()) == 7


def write_result(folder: Path) -> None:
    """Scores of devel and test."""
    labels = np.array(["noise", "noise", "orca", "orca"])
    np.savez(folder / "devel_scores.npz", vote_clip_scores=np.array([0.1, 0.3, 0.5, 0.9]), label=labels)
    np.savez(
        folder / "test_scores.npz", vote_clip_scores=np.array([0.2, 0.6, 0.41]), file_name=np.array(["c", "a", "b"])
    )


def test_files_are_written(tmp_path: Path) -> None:
    write_result(tmp_path)
    found = predictions.write_predictions(tmp_path, ["a", "b", "c"], "run", tmp_path)
    assert found == predictions.Written(files=3, orca=2, threshold=pytest.approx(0.4))
    assert (tmp_path / "test_predictions.csv").read_text().split("\n")[1:4] == [
        "a,orca,0.600000",
        "b,orca,0.410000",
        "c,noise,0.200000",
    ]
    assert (tmp_path / "test_predictions.arff").read_text().endswith("'c',noise,0.800000,0.200000\n")


def test_nothing_is_written_where_a_file_is_missing(tmp_path: Path) -> None:
    write_result(tmp_path)
    with pytest.raises(TrainingError, match=r"each of the 4 files of the labels, but 1 have no score: d\. Correct"):
        predictions.write_predictions(tmp_path, ["a", "b", "c", "d"], "run", tmp_path)
    assert not list(tmp_path.glob("test_predictions.*"))
