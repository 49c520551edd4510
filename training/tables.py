"""Tables 1 to 3 of the paper, of a run, beside the paper's own figures where the data is the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ranking import Row

Intervals = Mapping[str, Mapping[str, Any]]
Members = Sequence[Mapping[str, Any]]

SOURCE = (
    "Schiller et al.: Relevance-based Feature Masking: Improving Neural Network based Whale Classification through "
    "Explainable Artificial Intelligence. Interspeech 2019"
)
PAPER_LAYOUT = "compare2019"
OTHER_DATA = "The paper's figures are of the ComParE 2019 data and are left out: this run is of other data."
PAPER_DATA = f"The paper's figures: {SOURCE}, Table {{number}}, development set."

FUSION, MINIMAL = "FF", "_min"
BACKBONES = {"vggish": "Vgg", "inception_v3": "Inc", "inception_resnet_v2": "Res", "fusion": FUSION}
TITLES = {"Vgg": "VGGish", "Inc": "Inception V3", "Res": "Inception-ResNet V2", FUSION: "Feature fusion"}
SUFFIXES = {"none": "", "negative": "_neg", "minimal": MINIMAL}  # in the order of the paper's Table 1
MASKS = ("none", "minimal", "negative")  # in the order of the paper's Table 2
ANY_MEMBER = "any"
RULES = {"negative": "a negative member", "minimal": "a minimal member", "none": "a member without a mask"}
BEST_VOTE, NESTED = "best vote", "a vote so chosen, on other recordings"
TICK, NONE, UNKNOWN = "x", "", "\u2013"

# Table 1: number, members, AUC. The paper prints these rows of 2047.
PAPER_RANKING = (
    (1, ("Vgg", "Vgg_neg", "Inc_neg", "Res", "FF_min"), 0.9194),
    (2, ("Vgg", "Vgg_neg", "Inc_neg", "Res_neg", "FF_min"), 0.9193),
    (3, ("Vgg", "Vgg_neg", "Inc", "Res", "FF_min"), 0.9193),
    (4, ("Vgg", "Vgg_neg", "Inc", "Inc_neg", "Res", "FF_min"), 0.9192),
    (5, ("Vgg", "Vgg_neg", "Inc", "Res_neg", "FF_min"), 0.9191),
    (1504, ("Vgg",), 0.9077),
    (2036, ("Res",), 0.8852),
    (2039, ("Inc",), 0.8844),
    (2043, ("Res", "Res_neg"), 0.8832),
    (2044, ("Inc_min",), 0.8829),
    (2045, ("Vgg_neg",), 0.8798),
    (2046, ("Inc_neg",), 0.8736),
    (2047, ("Res_neg",), 0.8717),
)
# Table 2: AUC by mask none, minimal, negative.
PAPER_MASKS = {
    "Vgg": (0.9077, 0.9077, 0.8798),
    "Inc": (0.8844, 0.8829, 0.8736),
    "Res": (0.8852, 0.8871, 0.8717),
    FUSION: (0.9000, 0.9007, 0.8880),
}
# Table 3: AUC on development and test set, as text since the paper prints three digits.
PAPER_VOTE = ("0.919", "0.916")
PAPER_BASELINES = {
    "opensmile": ("0.810", "0.866"),
    "audio_words": ("0.771", "0.836"),
    "autoencoder": ("0.740", "0.798"),
    "fusion": (UNKNOWN, "0.866"),
}
BASELINES = {
    "opensmile": "openSMILE functionals, linear SVM",
    "audio_words": "bag of audio words (openXBOW)",
    "autoencoder": "recurrent autoencoder (auDeep)",
    "fusion": "fusion of the baselines",
}


@dataclass(frozen=True)
class Table:
    """A table in neutral form.

    Attributes
    ----------
    title : what it shows.
    header : of every column.
    rows : cells as text.
    notes : sentences below it.
    marked : indices of rows that stand out: the vote.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    marked: tuple[int, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown, its title above and its notes below; marked rows are bold."""
        lines = [_line(self.header), "|---" * len(self.header) + "|"]
        lines += [_line(_bold(row) if k in self.marked else row) for k, row in enumerate(self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", "\n\n".join(self.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bold(cells: Sequence[str]) -> list[str]:
    return [f"**{cell}**" if cell else cell for cell in cells]


def paper_name(member: Mapping[str, Any]) -> str:
    """The paper's name of a member, such as `Vgg_neg` or `FF_min`; a backbone that the paper lacks keeps its own."""
    family = FUSION if len(member["backbones"]) > 1 else _family(member["backbones"][0])
    return family + SUFFIXES[member["mask"]]


def _family(name: str) -> str:
    return BACKBONES.get(name, name)


def _names(members: Members) -> dict[str, str]:
    return {member["name"]: paper_name(member) for member in members}


def _left_out(dropped: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The paper's name of each member left out, and why; only a minimal mask can be the identity."""
    return {_family(one["name"][: -len(MINIMAL)]) + MINIMAL: one["reason"] for one in dropped}


def _families(members: Members) -> list[str]:
    """Those of the members in the paper's order; backbones that the paper lacks come before the fusion."""
    found = dict.fromkeys(_family(name) for member in members for name in member["backbones"])
    fused = [FUSION] if any(len(member["backbones"]) > 1 for member in members) else []
    known = [name for name in BACKBONES.values() if name in found]
    return [*known, *(name for name in found if name not in known), *fused]


def tables(
    selection: Mapping[str, Any],
    rows: Sequence[Row],
    baselines: Sequence[Mapping[str, Any]] = (),
    tests: Intervals | None = None,
) -> dict[str, Table]:
    """All tables of a run.

    Parameters
    ----------
    selection : content of the result's `selection.json`.
    rows : the ranking, the highest AUC first.
    baselines : content of the baselines' `report.json`.
    tests : as `baseline_table`.

    Returns
    -------
    `ranking` (Table 1), `single` (ranks of the members alone), `masks` (Table 2), `baselines` (Table 3); and where the
    data is the paper's `paper_ranking` (the paper's rows with this run's figures).
    """
    members, dropped, measured = selection["members"], selection["dropped"], selection["metrics"]
    layout, rule = selection["data"]["layout"], selection["recipe"]["vote"]["must_contain"]
    found = {
        "ranking": ranking_table(rows, members, dropped, layout, selection["vote"]),
        "single": single_table(rows, members, layout),
        "masks": mask_table(members, measured["members"], dropped, layout),
        "baselines": baseline_table(baselines, measured["vote"], measured["nested"], layout, rule, tests),
    }
    return {**found, "paper_ranking": paper_table(rows, members)} if layout == PAPER_LAYOUT else found


def ranking_table(
    rows: Sequence[Row],
    members: Members,
    dropped: Sequence[Mapping[str, str]],
    layout: str,
    vote: Sequence[str],
    best: int = 20,
) -> Table:
    """Table 1: the best combinations, with a tick per member in the paper's order.

    Parameters
    ----------
    rows : the ranking, the highest AUC first.
    members : descriptions with `name`, `backbones`, `mask`.
    dropped : members left out as equal to another, with `name` and `reason`.
    layout : of the data; `compare2019` sets the paper's figures of the same combinations beside.
    vote : names of the members of the vote chosen, marked where it is among the best.
    best : rows shown.
    """
    names, left = _names(members), _left_out(dropped)
    there = {*names.values(), *left}
    columns = [family + suffix for family in _families(members) for suffix in SUFFIXES.values()]
    columns = [name for name in columns if name in there]
    body = [
        (f"{k}", *_ticks(row, names, left, columns), f"{row.auc:.4f}", *_beside(layout, _printed_row(row, names)))
        for k, row in enumerate(rows[:best], 1)
    ]
    return Table(
        f"Table 1: the best {len(body)} of {len(rows)} average votes, by ROC AUC on devel",
        ("No.", *columns, "AUC", *_beside(layout, ("paper No.", "paper AUC"))),
        tuple(body),
        (_distinct(len(names), len(rows), left), _paper_note(layout, 1)),
        tuple(k for k, row in enumerate(rows[:best]) if set(row.members) == set(vote)),
    )


def _ticks(row: Row, names: Mapping[str, str], left: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    there = {names[name] for name in row.members}
    return [UNKNOWN if name in left else TICK if name in there else NONE for name in columns]


def _printed_row(row: Row, names: Mapping[str, str]) -> tuple[str, str]:
    """The paper's number and AUC of a combination."""
    there = {names[name] for name in row.members}
    return next(((f"{k}", f"{auc:.4f}") for k, of, auc in PAPER_RANKING if set(of) == there), (UNKNOWN, UNKNOWN))


def _beside(layout: str, cells: tuple[str, ...]) -> tuple[str, ...]:
    """The paper's cells where the data is the paper's."""
    return cells if layout == PAPER_LAYOUT else ()


def _distinct(members: int, rows: int, left: Mapping[str, str]) -> str:
    why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
    text = f"{members} distinct members give {rows} combinations."
    return f"{text} Left out ({UNKNOWN}): {why}." if why else text


def _paper_note(layout: str, number: int) -> str:
    return PAPER_DATA.format(number=number) if layout == PAPER_LAYOUT else OTHER_DATA


def single_table(rows: Sequence[Row], members: Members, layout: str) -> Table:
    """Where each member alone stands in the ranking, the best first; parameters as `ranking_table`."""
    names = _names(members)
    alone = [(number, names[row.members[0]], row.auc) for number, row in enumerate(rows, 1) if len(row.members) == 1]
    return Table(
        f"Members alone, among {len(rows)} votes",
        ("member", "No.", "AUC", *_beside(layout, ("paper No.", "paper AUC"))),
        tuple((name, f"{number}", f"{auc:.4f}", *_beside(layout, _alone(name))) for number, name, auc in alone),
        (_paper_note(layout, 1),),
    )


def _alone(name: str) -> tuple[str, str]:
    """The paper's number and AUC of a member alone; of some it prints the AUC only."""
    number = next((f"{number}" for number, of, _ in PAPER_RANKING if of == (name,)), UNKNOWN)
    found = {family + SUFFIXES[m]: auc for family, aucs in PAPER_MASKS.items() for m, auc in zip(MASKS, aucs)}
    return number, f"{found[name]:.4f}" if name in found else UNKNOWN


def paper_table(rows: Sequence[Row], members: Members) -> Table:
    """The rows that the paper prints of its Table 1, with this run's number and AUC of the same combinations."""
    names = _names(members)
    ours = {frozenset(names[m] for m in row.members): (f"{k}", f"{row.auc:.4f}") for k, row in enumerate(rows, 1)}
    body = tuple(
        (f"{number}", " + ".join(of), f"{auc:.4f}", *ours.get(frozenset(of), (UNKNOWN, UNKNOWN)))
        for number, of, auc in PAPER_RANKING
    )
    header = ("paper No.", "vote", "paper AUC", "No.", "AUC")
    return Table("The rows of the paper's Table 1 in this run", header, body, (_paper_note(PAPER_LAYOUT, 1),))


def mask_table(members: Members, aucs: Intervals, dropped: Sequence[Mapping[str, str]], layout: str) -> Table:
    """Table 2: masks by models, ROC AUC on devel with intervals.

    Parameters
    ----------
    members, dropped, layout : as `ranking_table`.
    aucs : `value`, `low` and `high` of each member.
    """
    cells, left = {name: interval(aucs[own]) for own, name in _names(members).items()}, _left_out(dropped)
    cells.update({name: f"= {cells[name[: -len(MINIMAL)]]}" for name in left})
    body = [
        (
            TITLES.get(family, family),
            *(cells.get(family + SUFFIXES[mask], UNKNOWN) for mask in MASKS),
            *_beside(layout, _printed(family)),
        )
        for family in _families(members)
    ]
    return Table(
        "Table 2: masks and models, ROC AUC on devel (95 % interval by recording)",
        ("model", *MASKS, *_beside(layout, tuple(f"paper, {mask}" for mask in MASKS))),
        tuple(body),
        (*(f"{name}: {reason}." for name, reason in left.items()), *_fusion_note(members), _paper_note(layout, 2)),
    )


def _fusion_note(members: Members) -> list[str]:
    """What is fused, where it is not the paper's three backbones."""
    fused: list[str] = next((member["backbones"] for member in members if len(member["backbones"]) > 1), [])
    paper = [name for name in BACKBONES if name != "fusion"]
    return [f"{FUSION} here is of {', '.join(fused)}."] if fused and set(fused) != set(paper) else []


def _printed(family: str) -> tuple[str, ...]:
    return tuple(f"{auc:.4f}" for auc in PAPER_MASKS[family]) if family in PAPER_MASKS else (UNKNOWN,) * len(MASKS)


def interval(found: Mapping[str, Any]) -> str:
    """`0.9194 (0.9051 to 0.9310)`."""
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


def baseline_table(
    baselines: Sequence[Mapping[str, Any]],
    vote: Mapping[str, Any],
    nested: Mapping[str, Any],
    layout: str,
    rule: str = ANY_MEMBER,
    tests: Intervals | None = None,
) -> Table:
    """Table 3: the vote against the baselines of ComParE 2019, ROC AUC with intervals on devel, and test where known.

    Parameters
    ----------
    baselines : `name` and `auc` (an interval) of each, in any order; those of other names come last.
    vote, nested : intervals of the vote chosen, and of the choice on recordings it was not made on.
    layout : as `ranking_table`.
    rule : mask of which the vote must contain a member, or `any`.
    tests : intervals on the test split, by name of the baseline and `vote`; without them there is no such column.
    """
    found, known = {one["name"]: interval(one["auc"]) for one in baselines}, tests or {}
    body = [
        (vote_name(rule), interval(vote), *_tested(known, "vote"), *_beside(layout, PAPER_VOTE)),
        (NESTED, interval(nested), *_tested(known, "nested"), *_beside(layout, (UNKNOWN, UNKNOWN))),
        *(
            (
                BASELINES.get(name, name),
                found.get(name, UNKNOWN),
                *_tested(known, name),
                *_beside(layout, PAPER_BASELINES.get(name, (UNKNOWN, UNKNOWN))),
            )
            for name in _baselines_shown(found, layout)
        ),
    ]
    own, splits = (("AUC, devel", "AUC, test"), "devel and test") if known else (("AUC",), "devel")
    return Table(
        f"Table 3: the vote and the baselines, ROC AUC on {splits} (95 % interval by recording)",
        ("model", *own, *_beside(layout, ("paper, devel", "paper, test"))),
        tuple(body),
        (_paper_note(layout, 3).replace("development set", "development and test set"),),
        (0,),
    )


def vote_name(rule: str) -> str:
    """What the vote is called that was chosen by a rule: a mask of which it must contain a member, or `any`."""
    return BEST_VOTE if rule == ANY_MEMBER else f"chosen vote (must contain {RULES[rule]})"


def _tested(tests: Intervals, name: str) -> tuple[str, ...]:
    """The cell of the column of the test split, where there is one."""
    return (interval(tests[name]) if name in tests else UNKNOWN,) if tests else ()


def _baselines_shown(found: Mapping[str, str], layout: str) -> list[str]:
    """Baselines in the paper's order; all of its own where the data is the paper's."""
    shown = [name for name in BASELINES if name in found or layout == PAPER_LAYOUT]
    return [*shown, *(name for name in found if name not in BASELINES)]
