"""Tables 1 to 3: the paper's order and names, its figures beside only where the data is the paper's."""

from __future__ import annotations

from typing import Any

import pytest

from orcawatch.ranking import Row
from orcawatch.training import tables

BACKBONES = ("vggish", "inception_v3", "inception_resnet_v2")
SUFFIXES = {"none": "", "minimal": "_min", "negative": "_neg"}
ROWS = (
    Row(("vggish", "vggish_neg", "inception_v3_neg", "inception_resnet_v2", "fusion_min"), 0.95),
    Row(("fusion", "inception_v3_min"), 0.94),
    Row(("vggish",), 0.93),
    Row(("inception_v3_min",), 0.92),
    Row(("fusion_min",), 0.91),
)
BASELINES = [{"name": "mine", "auc": {"value": 0.7, "low": 0.6, "high": 0.8}}] + [
    {"name": name, "auc": {"value": 0.8 + k / 100, "low": 0.7, "high": 0.9}}
    for k, name in enumerate(("fusion", "autoencoder", "audio_words", "opensmile"))
]
PAPER = "compare2019"


def describe(stem: str, backbones: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"name": stem + end, "backbones": list(backbones), "mask": mask} for mask, end in SUFFIXES.items()]


MEMBERS = [
    one
    for stem, backbones in [*((name, (name,)) for name in BACKBONES), ("fusion", BACKBONES)]
    for one in describe(stem, backbones)
    if one["name"] != "vggish_min"
]
DROPPED = [{"name": "vggish_min", "reason": "the minimal mask keeps all 512 features, so it is vggish itself"}]
AUCS = {one["name"]: {"value": 0.9 + k / 1000, "low": 0.8, "high": 0.99} for k, one in enumerate(MEMBERS)}


def selection(layout: str, rule: str = "any") -> dict[str, Any]:
    return {
        "recipe": {"vote": {"must_contain": rule}},
        "members": MEMBERS,
        "dropped": DROPPED,
        "vote": ["inception_v3_min", "fusion"],
        "metrics": {"members": AUCS, "vote": AUCS["fusion"], "nested": AUCS["vggish"]},
        "data": {"layout": layout},
    }


def column(table: tables.Table, name: str) -> list[str]:
    return [row[table.header.index(name)] for row in table.rows]


def test_the_papers_tables_agree_with_each_other() -> None:
    numbers, _, aucs = zip(*tables.PAPER_RANKING)
    assert list(numbers) == sorted(numbers)
    assert list(aucs) == sorted(aucs, reverse=True)
    assert numbers[-1] == 2**11 - 1
    second = {"Vgg": 0, "Inc": 0, "Res": 0, "Vgg_neg": 2, "Inc_neg": 2, "Res_neg": 2, "Inc_min": 1}
    alone = {of[0]: auc for _, of, auc in tables.PAPER_RANKING if len(of) == 1}
    assert alone == {name: tables.PAPER_MASKS[name[:3]][mask] for name, mask in second.items()}
    assert tables.PAPER_MASKS["Vgg"][0] == tables.PAPER_MASKS["Vgg"][1]
    assert tables.PAPER_VOTE[0] == f"{tables.PAPER_RANKING[0][2]:.3f}"


def test_table_1_has_the_papers_order_and_its_figures_beside() -> None:
    table = tables.tables(selection(PAPER), ROWS)["ranking"]
    families = [family + suffix for family in ("Vgg", "Inc", "Res", "FF") for suffix in ("", "_neg", "_min")]
    assert table.header == ("No.", *families, "AUC", "paper No.", "paper AUC")
    ticked = [name for name in families if column(table, name)[0] == tables.TICK]
    assert ticked == ["Vgg", "Vgg_neg", "Inc_neg", "Res", "FF_min"]
    assert column(table, "Vgg_min") == [tables.UNKNOWN] * 5
    assert column(table, "paper No.") == ["1", tables.UNKNOWN, "1504", "2044", tables.UNKNOWN]
    assert column(table, "paper AUC")[:3] == ["0.9194", tables.UNKNOWN, "0.9077"]
    assert table.marked == (1,)
    assert "11 distinct members give 5 combinations" in table.notes[0]
    assert "Vgg_min: the minimal mask keeps all 512 features" in table.notes[0]
    assert "Interspeech 2019, Table 1" in table.notes[1]


def test_other_data_has_none_of_the_papers_figures() -> None:
    found = tables.tables(selection("labels"), ROWS, BASELINES)
    assert set(found) == {"ranking", "single", "masks", "baselines"}
    for table in found.values():
        assert not [name for name in table.header if "paper" in name]
        assert tables.OTHER_DATA in table.notes
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert "0.9077" not in table.markdown()


def test_only_the_best_rows_are_shown() -> None:
    table = tables.ranking_table(ROWS, MEMBERS, DROPPED, "labels", ["vggish"], best=2)
    assert (len(table.rows), table.marked) == (2, ())
    assert "best 2 of 5" in table.title


def test_members_alone_stand_beside_the_papers() -> None:
    table = tables.tables(selection(PAPER), ROWS)["single"]
    assert table.rows == (
        ("Vgg", "3", "0.9300", "1504", "0.9077"),
        ("Inc_min", "4", "0.9200", "2044", "0.8829"),
        ("FF_min", "5", "0.9100", tables.UNKNOWN, "0.9007"),
    )


def test_the_papers_rows_are_looked_up_in_the_run() -> None:
    table = tables.tables(selection(PAPER), ROWS)["paper_ranking"]
    assert len(table.rows) == 13
    assert table.rows[0] == ("1", "Vgg + Vgg_neg + Inc_neg + Res + FF_min", "0.9194", "1", "0.9500")
    assert table.rows[5] == ("1504", "Vgg", "0.9077", "3", "0.9300")
    assert table.rows[1][3:] == (tables.UNKNOWN, tables.UNKNOWN)


def test_table_2_has_masks_by_models() -> None:
    table = tables.tables(selection(PAPER), ROWS)["masks"]
    assert column(table, "model") == ["VGGish", "Inception V3", "Inception-ResNet V2", "Feature fusion"]
    assert column(table, "none")[0] == "0.9000 (0.8000 to 0.9900)"
    assert column(table, "minimal")[0] == "= 0.9000 (0.8000 to 0.9900)"
    for mask, end in SUFFIXES.items():
        expected = [f"{AUCS[stem + end]['value']:.4f}" for stem in (*BACKBONES[1:], "fusion")]
        assert [cell[:6] for cell in column(table, mask)[1:]] == expected
    assert column(table, "paper, minimal") == ["0.9077", "0.8829", "0.8871", "0.9007"]
    assert column(table, "paper, negative") == ["0.8798", "0.8736", "0.8717", "0.8880"]
    assert table.notes[0].startswith("Vgg_min: the minimal mask keeps all 512")


def test_a_backbone_that_the_paper_lacks_keeps_its_name() -> None:
    members = [*describe("tiny", ("tiny",)), *describe("vggish", ("vggish",)), *describe("fusion", ("tiny", "vggish"))]
    aucs = {one["name"]: {"value": 0.9, "low": 0.8, "high": 1.0} for one in members}
    table = tables.mask_table(members, aucs, [], PAPER)
    assert column(table, "model") == ["VGGish", "tiny", "Feature fusion"]
    assert column(table, "paper, none") == ["0.9077", tables.UNKNOWN, "0.9000"]
    assert "FF here is of tiny, vggish." in table.notes
    header = tables.ranking_table([Row(("tiny_neg",), 0.9)], members, [], "labels", []).header
    assert header[1:-1] == ("Vgg", "Vgg_neg", "Vgg_min", "tiny", "tiny_neg", "tiny_min", "FF", "FF_neg", "FF_min")


def test_table_3_has_the_baselines_in_the_papers_order() -> None:
    table = tables.tables(selection(PAPER), ROWS, BASELINES)["baselines"]
    assert [cell[:6] for cell in column(table, "AUC")[2:]] == ["0.8300", "0.8200", "0.8100", "0.8000", "0.7000"]
    expected = ["0.919", tables.UNKNOWN, "0.810", "0.771", "0.740", tables.UNKNOWN, tables.UNKNOWN]
    assert column(table, "paper, devel") == expected
    expected = ["0.916", tables.UNKNOWN, "0.866", "0.836", "0.798", "0.866", tables.UNKNOWN]
    assert column(table, "paper, test") == expected
    alone = tables.tables(selection("labels"), ROWS)["baselines"]
    assert column(alone, "model") == ["best vote", "a vote so chosen, on other recordings"]


@pytest.mark.parametrize("layout", [PAPER, "labels"])
def test_table_3_has_a_column_of_this_runs_test_split(layout: str) -> None:
    tests = {"vote": AUCS["vggish"], "opensmile": {"value": 0.65, "low": 0.5, "high": 0.75}}
    table = tables.tables(selection(layout), ROWS, BASELINES, tests)["baselines"]
    assert table.header[:3] == ("model", "AUC, devel", "AUC, test")
    tested = dict(zip(column(table, "model"), column(table, "AUC, test")))
    assert tested.pop("best vote") == tables.interval(AUCS["vggish"])
    assert tested.pop(tables.BASELINES["opensmile"]) == "0.6500 (0.5000 to 0.7500)"
    assert set(tested.values()) == {tables.UNKNOWN}
    assert "on devel and test" in table.title
    without = tables.tables(selection(layout), ROWS, BASELINES)["baselines"]
    assert without.header == ("model", "AUC", *table.header[3:])
    assert without.rows == tuple((*row[:2], *row[3:]) for row in table.rows)
    assert "test" not in without.title


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("any", "best vote"),
        ("negative", "chosen vote (must contain a negative member)"),
        ("none", "chosen vote (must contain a member without a mask)"),
    ],
)
def test_table_3_names_the_rule_of_the_vote(rule: str, name: str) -> None:
    table = tables.tables(selection(PAPER, rule), ROWS, BASELINES)["baselines"]
    assert column(table, "model")[0] == name
    assert rule == "any" or "best vote" not in table.markdown()


@pytest.mark.parametrize("layout", [PAPER, "labels"])
def test_markdown_is_a_table(layout: str) -> None:
    for table in tables.tables(selection(layout), ROWS, BASELINES).values():
        lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {line.count("|") for line in lines} == {len(table.header) + 1}
        assert all(note in table.markdown() for note in table.notes)
    assert "**0.9400**" in tables.tables(selection(layout), ROWS)["ranking"].markdown()
