"""Every combination of members, ranked; the choice among them, by recording and by cost."""

from __future__ import annotations

import csv
import io
from itertools import combinations

import numpy as np
import pytest

from orcawatch import ranking
from orcawatch.errors import TrainingError
from orcawatch.metrics import roc_auc

MEMBERS = ("a", "a_min", "a_neg")
Scored = tuple[np.ndarray, np.ndarray, list[str]]


@pytest.fixture()
def scored() -> Scored:
    """Scores of three members on 40 clips of 10 recordings, in steps of 1/8 so that many votes are equal."""
    generator = np.random.default_rng(6)
    labels = np.repeat(np.arange(10) % 2 == 0, 4)
    scores = generator.random((40, 3)) * 0.6 + labels[:, None] * np.array([0.3, 0.2, 0.1])
    return np.round(scores * 8) / 8, labels, [f"g{k // 4}" for k in range(40)]


def loop_auc(vote: list[float], labels: np.ndarray) -> float:
    """Pairs won, one by one."""
    pairs = [(a, b) for a, x in zip(vote, labels) if x for b, y in zip(vote, labels) if not y]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def all_chosen() -> list[tuple[int, ...]]:
    return [chosen for size in (1, 2, 3) for chosen in combinations(range(3), size)]


def test_ranking_equals_the_plain_loop_with_ties(scored: Scored) -> None:
    scores, labels, _ = scored
    rows = ranking.rank(MEMBERS, scores, labels)
    expected = {}
    for chosen in all_chosen():
        vote = [sum(row[k] for k in chosen) / len(chosen) for row in scores.tolist()]
        assert len(set(vote)) < len(vote)
        expected[tuple(MEMBERS[k] for k in chosen)] = loop_auc(vote, labels)
    assert {row.members: pytest.approx(row.auc, abs=1e-12) for row in rows} == expected
    assert [row.auc for row in rows] == sorted((row.auc for row in rows), reverse=True)


def test_eleven_members_make_2047_rows_over_blocks() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(30) % 3 == 0
    scores = generator.random((30, 11))
    rows = ranking.rank([f"m{k}" for k in range(11)], scores, labels)
    assert len({row.members for row in rows}) == len(rows) == 2047
    for row in rows[:: len(rows) // 7]:
        columns = [int(name[1:]) for name in row.members]
        assert row.auc == pytest.approx(roc_auc(scores[:, columns].mean(axis=1), labels), abs=1e-12)


def test_clips_with_equal_scores_have_equal_votes() -> None:
    scores = np.tile(np.random.default_rng(4).random((1, 11)), (500, 1))
    for vote in ranking.votes(scores, ranking.combinations(11)[::37]):
        assert np.unique(vote).size == 1


def test_equal_auc_goes_to_the_smaller_combination() -> None:
    labels = np.array([True, False])
    rows = ranking.rank(("x", "y", "z"), np.array([[0.9, 0.8, 0.5], [0.1, 0.2, 0.7]]), labels)
    assert [row.members for row in rows][:3] == [("x",), ("y",), ("x", "y")]


def test_a_score_that_is_no_number_is_refused(scored: Scored) -> None:
    scores, labels, _ = scored
    broken = np.where(np.arange(40)[:, None] == 7, np.nan, scores)
    with pytest.raises(TrainingError, match="scores are not finite"):
        ranking.rank(MEMBERS, broken, labels)


def test_the_vote_contains_what_it_must(scored: Scored) -> None:
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


def test_nested_selection_equals_the_plain_loop(scored: Scored) -> None:
    scores, labels, groups = scored
    found = ranking.nested_selection(MEMBERS, scores, labels, groups, ["a_neg"], 60, 3, against=["a"])
    names, measured, differences, picked = sorted(set(groups)), [], [], []
    votes = {k: scores[:, list(k)].mean(axis=1) for k in all_chosen() if 2 in k}
    for times in np.random.default_rng(3).integers(0, 10, (60, 10)):
        inside = np.concatenate([[k for k in range(40) if groups[k] == names[g]] for g in times]).astype(int)
        outside = np.array([k for k in range(40) if names.index(groups[k]) not in times])
        if labels[inside].all() or not labels[inside].any() or labels[outside].all() or not labels[outside].any():
            continue
        best = max(votes, key=lambda k: round(roc_auc(votes[k][inside], labels[inside]), 12))
        measured.append(roc_auc(votes[best][outside], labels[outside]))
        differences.append(measured[-1] - roc_auc(scores[outside, 0], labels[outside]))
        picked.append(best)
    assert found.auc.draws == len(measured)
    assert found.auc.value == pytest.approx(np.mean(measured), abs=1e-12)
    assert [found.auc.low, found.auc.high] == pytest.approx(np.percentile(measured, [2.5, 97.5]), abs=1e-12)
    assert found.against["a"].value == pytest.approx(np.mean(differences), abs=1e-12)
    assert dict(found.combinations) == pytest.approx(
        {tuple(MEMBERS[k] for k in chosen): picked.count(chosen) / len(picked) for chosen in set(picked)}
    )
    assert found.members["a_neg"] == 1
    assert found.members["a"] == pytest.approx(sum(0 in chosen for chosen in picked) / len(picked))


def test_choosing_among_noise_is_found_out() -> None:
    generator = np.random.default_rng(9)
    labels, groups = np.arange(60) % 2 == 0, [f"g{k // 4}" for k in range(60)]
    scores, members = generator.random((60, 6)), [f"m{k}" for k in range(6)]
    best = ranking.rank(members, scores, labels)[0].auc
    nested = ranking.nested_selection(members, scores, labels, groups, None, draws=200, seed=1)
    assert best > 0.58
    assert nested.auc.value < best - 0.05
    assert nested.combinations[0][1] < 0.9
    assert sum(share for _, share in nested.combinations) == pytest.approx(1)


def test_one_recording_of_orca_cannot_be_chosen_on_and_left_out() -> None:
    labels = np.arange(12) < 3
    groups = ["orca"] * 3 + [f"n{k}" for k in range(9)]
    with pytest.raises(TrainingError, match="more recordings of the rarer class"):
        ranking.nested_selection(("x", "y"), np.random.default_rng(0).random((12, 2)), labels, groups, None, 30, 1)


DESCRIBED = [
    {"name": "v", "backbones": ["v"]},
    {"name": "v_neg", "backbones": ["v"]},
    {"name": "i", "backbones": ["i"]},
    {"name": "ff", "backbones": ["v", "i"]},
]
ROWS = [
    ranking.Row(("v_neg", "ff"), 0.95),
    ranking.Row(("i",), 0.93),
    ranking.Row(("v", "v_neg"), 0.92),
    ranking.Row(("v",), 0.90),
]
COSTS = {"v": (20.0, 18.0), "i": (150.0, 22.0)}


def test_a_backbone_is_paid_once_and_fusion_needs_all() -> None:
    priced = ranking.price(ROWS, DESCRIBED, COSTS)
    assert [(one.ms, one.mb, set(one.backbones)) for one in priced] == [
        (170, 40, {"v", "i"}),
        (150, 22, {"i"}),
        (20, 18, {"v"}),
        (20, 18, {"v"}),
    ]
    with pytest.raises(TrainingError, match=r"no cost is known of \['i'\]"):
        ranking.price(ROWS, DESCRIBED, {"v": (20.0, 18.0)})


def test_the_pareto_front_equals_the_loop_over_pairs() -> None:
    generator = np.random.default_rng(5)
    aucs, costs = generator.integers(80, 95, 60) / 100, generator.integers(1, 9, (60, 2)).astype(float)
    priced = [ranking.Priced((f"m{k}",), aucs[k], (), *costs[k]) for k in range(60)]
    for by, column in (("ms", 0), ("mb", 1)):
        front = ranking.pareto(priced, by)
        beaten = [
            any(
                (aucs[j] >= aucs[k] and costs[j, column] <= costs[k, column])
                and (aucs[j] > aucs[k] or costs[j, column] < costs[k, column])
                for j in range(60)
            )
            for k in range(60)
        ]
        best = {(aucs[k], costs[k, column]) for k in range(60) if not beaten[k]}
        assert [(one.auc, getattr(one, by)) for one in front] == sorted(best)


def test_the_vote_for_the_buoy_fits_the_budget() -> None:
    priced = ranking.price(ROWS, DESCRIBED, COSTS)
    assert ranking.within_budget(priced).members == ("v_neg", "ff")
    assert ranking.within_budget(priced, most_ms=160).members == ("i",)
    assert ranking.within_budget(priced, most_ms=160, must_contain=["v_neg"]).members == ("v", "v_neg")
    assert ranking.within_budget(priced, most_ms=20, most_mb=18).members == ("v", "v_neg")
    with pytest.raises(
        TrainingError, match=r"no vote fits 10 ms and 30 MB .* cheapest is v \+ v_neg with 20 ms and 18 MB"
    ):
        ranking.within_budget(priced, most_ms=10, most_mb=30)
    with pytest.raises(TrainingError, match="the cheapest is i with 150 ms"):
        ranking.within_budget(priced, most_ms=10, must_contain=["i"])
    with pytest.raises(TrainingError, match="no combination contains one of"):
        ranking.within_budget(priced, most_ms=500, must_contain=["b"])


def test_tables_hold_every_row_or_the_best(scored: Scored) -> None:
    rows = ranking.rank(MEMBERS, scored[0], scored[1])
    table = list(csv.DictReader(io.StringIO(ranking.to_csv(MEMBERS, rows))))
    assert [tuple(m for m in MEMBERS if row[m] == "1") for row in table] == [row.members for row in rows]
    text = ranking.to_markdown(MEMBERS, rows, ["a note"])
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 9
    assert "a note" in text
    short = ranking.to_markdown(MEMBERS, rows, [], best=2)
    assert len([line for line in short.splitlines() if line.startswith("|")]) == 4
    assert "best 2 of 7 rows" in short
