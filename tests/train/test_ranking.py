"""Every combination of members, ranked; the choice among them."""

from __future__ import annotations

import csv
import io
from itertools import combinations

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.metrics import roc_auc
from orcawatch.training import ranking

MEMBERS = ("a", "a_min", "a_neg")


@pytest.fixture()
def scored() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores of three members on 40 clips of 10 recordings."""
    generator = np.random.default_rng(6)
    labels = np.repeat(np.arange(10) % 2 == 0, 4)
    scores = generator.random((40, 3)) + labels[:, None] * np.array([0.6, 0.4, 0.1])
    return scores, labels, [f"g{k // 4}" for k in range(40)]


def test_ranking_equals_the_plain_loop(scored: tuple[np.ndarray, np.ndarray, list[str]]) -> None:
    scores, labels, _ = scored
    rows = ranking.rank(MEMBERS, scores, labels)
    expected = {}
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            expected[tuple(MEMBERS[k] for k in chosen)] = roc_auc(scores[:, list(chosen)].mean(axis=1), labels)
    assert {row.members: pytest.approx(row.auc) for row in rows} == expected
    assert [row.auc for row in rows] == sorted((row.auc for row in rows), reverse=True)


def test_eleven_members_make_2047_rows() -> None:
    chosen = ranking.combinations(11)
    assert len(np.unique(chosen, axis=0)) == len(chosen) == 2047
    assert chosen.any(axis=1).all()


def test_equal_auc_goes_to_the_smaller_combination() -> None:
    labels = np.array([True, False])
    rows = ranking.rank(("x", "y"), np.array([[0.9, 0.8], [0.1, 0.2]]), labels)
    assert [row.members for row in rows] == [("x",), ("y",), ("x", "y")]


def test_the_vote_contains_what_it_must(scored: tuple[np.ndarray, np.ndarray, list[str]]) -> None:
    scores, labels, _ = scored
    rows = ranking.rank(MEMBERS, scores, labels)
    chosen = ranking.select(rows, ["a_neg"])
    assert "a_neg" in chosen.members
    assert chosen.auc == max(row.auc for row in rows if "a_neg" in row.members)
    assert ranking.select(rows, None) == rows[0]
    with pytest.raises(TrainingError, match=r"no combination contains one of \['b_neg'\]"):
        ranking.select(rows, ["b_neg"])
    with pytest.raises(TrainingError, match="no combination contains"):
        ranking.select(rows, [])


def test_nested_selection_equals_the_plain_loop(scored: tuple[np.ndarray, np.ndarray, list[str]]) -> None:
    scores, labels, groups = scored
    found = ranking.nested_selection(MEMBERS, scores, labels, groups, ["a_neg"], draws=60, seed=3)
    names, measured = sorted(set(groups)), []
    votes = [scores[:, list(k)].mean(axis=1) for n in (1, 2, 3) for k in combinations(range(3), n) if 2 in k]
    for times in np.random.default_rng(3).integers(0, 10, (60, 10)):
        inside = np.concatenate([[k for k in range(40) if groups[k] == names[g]] for g in times]).astype(int)
        outside = np.array([k for k in range(40) if names.index(groups[k]) not in times])
        if labels[inside].all() or not labels[inside].any() or labels[outside].all() or not labels[outside].any():
            continue
        best = max(votes, key=lambda vote: roc_auc(vote[inside], labels[inside]))
        measured.append(roc_auc(best[outside], labels[outside]))
    assert found.draws == len(measured)
    assert found.value == pytest.approx(np.mean(measured), abs=0.01)  # ties between votes may fall otherwise


def test_choosing_among_noise_is_found_out() -> None:
    generator = np.random.default_rng(9)
    labels, groups = np.arange(60) % 2 == 0, [f"g{k // 4}" for k in range(60)]
    scores, members = generator.random((60, 6)), [f"m{k}" for k in range(6)]
    best = ranking.rank(members, scores, labels)[0].auc
    nested = ranking.nested_selection(members, scores, labels, groups, None, draws=200, seed=1)
    assert best > 0.58
    assert nested.value < best - 0.05


def test_tables_hold_every_row(scored: tuple[np.ndarray, np.ndarray, list[str]]) -> None:
    rows = ranking.rank(MEMBERS, scored[0], scored[1])
    table = list(csv.DictReader(io.StringIO(ranking.to_csv(MEMBERS, rows))))
    assert [tuple(m for m in MEMBERS if row[m] == "1") for row in table] == [row.members for row in rows]
    text = ranking.to_markdown(MEMBERS, rows, ["a note"])
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 9
    assert "a note" in text
