"""The files of a run that a report is made from."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import metrics
from ..bundle import sha256
from ..errors import TrainingError
from ..ranking import Row
from . import predictions, tables
from .stages import DIGITS, RECORD, Inputs
from .storage import load_json, load_npz

Arrays = Mapping[str, NDArray[Any]]

BASELINE, SELECTION = "baseline-", "selection.json"
QUANTIZATION, BUDGET = "quantization.json", "budget.json"


@dataclass(frozen=True)
class Run:
    """What a report is made from.

    Attributes
    ----------
    result : folder of the stage `result`.
    selection : its `selection.json`.
    devel, curves : its `devel_scores.npz` and `curves.npz`.
    ranking : every vote, the highest AUC first.
    analysis : its `analysis.json`.
    baselines : `report.json` of every baseline.
    costs : seconds and memory by stage, in the order in which they ran.
    test : its `test_scores.npz`, empty where the test split was not predicted.
    test_files : the files of the test split in the order of the labels.
    quantization, budget : what the export measured (`RUN/deploy/*.json`); empty where nothing was exported.
    outdated : names of those files that were made for another result, and are left out.
    baseline_scores : `scores.npz` of every baseline, by its name.
    """

    result: Path
    selection: Mapping[str, Any]
    devel: Arrays
    curves: Arrays
    ranking: tuple[Row, ...]
    analysis: Mapping[str, Any]
    baselines: tuple[Mapping[str, Any], ...] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    test: Arrays = field(default_factory=dict)
    test_files: tuple[str, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    outdated: tuple[str, ...] = ()
    baseline_scores: Mapping[str, Arrays] = field(default_factory=dict)

    @cached_property
    def tables(self) -> dict[str, tables.Table]:
        """The tables of the paper, see `tables`."""
        return tables.tables(self.selection, self.ranking, self.baselines, self.test_aucs)

    @cached_property
    def test_auc(self) -> Mapping[str, Any]:
        """AUC of the vote on the test split with its interval; empty where that has no labels, or one class only."""
        return self._test_auc(self.test, "vote_clip_scores")

    @cached_property
    def test_aucs(self) -> dict[str, Mapping[str, Any]]:
        """The same of `vote` and of every baseline by its name, without those that have none."""
        baselines = {name: self._test_auc(_of_test(one), "score") for name, one in self.baseline_scores.items()}
        return {name: found for name, found in {"vote": self.test_auc, **baselines}.items() if found}

    def _test_auc(self, table: Arrays, scores: str) -> Mapping[str, Any]:
        if not table or set(table["label"].tolist()) != {"orca", "noise"}:
            return {}
        orca, draws = table["label"] == "orca", self.selection["recipe"]["vote"]["draws"]
        found = metrics.auc_interval(table[scores], orca, table["group"].tolist(), draws, self.selection["seed"])
        return vars(found)

    @property
    def backbones(self) -> list[str]:
        """Names of the backbones, in the recipe's order."""
        return [one["name"] for one in self.selection["backbones"]]


def inputs_of(run: Path) -> dict[str, Path]:
    """Folders of the stages that the newest result of a run was made from, as `make_report` takes them.

    A baseline counts where it was made from the same data; of several the newest.

    Raises
    ------
    TrainingError : the run has no result yet.
    """
    result = (run / "result").resolve()
    if not (result / RECORD).is_file():
        raise TrainingError(f"{run} has no result to report: run `orcawatch train run {run}` first")
    digests = load_json(result / RECORD)["inputs"]
    data = run / "artifacts" / f"data-{digests['data'][:DIGITS]}"
    return {"result": result, "data": data, **_baselines(run / "artifacts", digests["data"])}


def _baselines(artifacts: Path, data_digest: str) -> dict[str, Path]:
    folders = sorted(artifacts.glob(f"{BASELINE}*-*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    records = ((load_json(path), path.parent) for path in folders)
    return {record["name"]: folder for record, folder in records if record["inputs"].get("data") == data_digest}


def read_run(inputs: Inputs, deploy: Path | None = None) -> Run:
    """Read what a report is made from; `inputs` as for `make_report`."""
    result = inputs["result"]
    selection = load_json(result / SELECTION)
    exports, outdated = _exports(deploy, sha256(result / SELECTION)) if deploy else ({}, ())
    names = sorted(name for name in inputs if name.startswith(BASELINE))
    test, baselines = result / predictions.SCORES, [load_json(inputs[name] / "report.json") for name in names]
    return Run(
        result=result,
        selection=selection,
        devel=load_npz(result / predictions.DEVEL_SCORES),
        curves=load_npz(result / "curves.npz"),
        ranking=tuple(_read_ranking(result / "ranking.csv")),
        analysis=load_json(result / "analysis.json"),
        baselines=tuple(baselines),
        costs={**selection["costs"], **_costs(inputs)},
        test=load_npz(test) if test.is_file() else {},
        test_files=tuple(_test_files(inputs["data"])),
        quantization=exports.get(QUANTIZATION, {}),
        budget=exports.get(BUDGET, {}),
        outdated=outdated,
        baseline_scores={one["name"]: load_npz(inputs[name] / "scores.npz") for one, name in zip(baselines, names)},
    )


def _exports(deploy: Path, selection_digest: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What was measured for this selection, by file name, and the names of the files that were made for another."""
    there = {name: load_json(deploy / name) for name in (QUANTIZATION, BUDGET) if (deploy / name).is_file()}
    fitting = {name: found for name, found in there.items() if found.get("selection") == selection_digest}
    return fitting, tuple(name for name in there if name not in fitting)


def _of_test(table: Arrays) -> Arrays:
    """A baseline's rows of the test split; empty where it has none."""
    rows = table["split"] == "test"
    return {name: column[rows] for name, column in table.items()} if rows.any() else {}


def _read_ranking(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            taken = {name: value for name, value in row.items() if name not in ("rank", "auc")}
            yield Row(tuple(name for name, value in taken.items() if value == "1"), float(row["auc"]))


def _costs(inputs: Inputs) -> dict[str, dict[str, float]]:
    """Time and memory of the result and the baselines, which the result does not know."""
    later = {name: folder for name, folder in inputs.items() if name != "data" and (folder / RECORD).is_file()}
    records = {name: load_json(folder / RECORD) for name, folder in later.items()}
    return {name: {"wall_s": record["wall_s"], "peak_mb": record["peak_mb"]} for name, record in records.items()}


def _test_files(data: Path) -> list[str]:
    clips = load_json(data / "clips.json")["clips"]
    return list(dict.fromkeys(clip["file_name"] for clip in clips if clip["split"] == "test"))
