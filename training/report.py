"""The report of a run: what was trained, how good it is and how that was measured, one HTML page and Markdown.

What it says is in `sections`, what the page looks like in `document` and its templates, the drawings are in `pictures`,
the examples' relevance in `examples`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..ranking import Row
from . import predictions
from .document import write
from .sections import Run, contents
from .stages import DIGITS, RECORD, Inputs
from .storage import load_json, load_npz

BASELINE = "baseline-"
QUANTIZATION, BUDGET = "quantization.json", "budget.json"


# --- making it --------------------------------------------------------------------------------------------------------


def make_report(settings: Any, inputs: Inputs, folder: Path) -> None:
    """The stage `report`: `report.html`, and `report.md` with `pictures/`; test predictions where there are any.

    Parameters
    ----------
    settings : none are used.
    inputs : folders of the stages `result` and `data`, and of the baselines (`baseline-...`) where there are any.
    folder : what is filled.
    """
    _fill(read_run(inputs), folder)


def render(run: Path, out: Path) -> None:
    """The report of a run's folder as it stands, with what `RUN/deploy` says of its export.

    Parameters
    ----------
    run : folder of a run that has a result.
    out : folder that is filled; made where it is missing.

    Raises
    ------
    TrainingError : the run has no result yet.
    """
    found = read_run(inputs_of(run), run / "deploy")
    out.mkdir(parents=True, exist_ok=True)
    _fill(found, out)


def _fill(run: Run, folder: Path) -> None:
    predicted = None
    if run.test:
        predicted = predictions.write_predictions(run.result, run.test_files, run.selection["name"], folder)
    write(contents(run, predicted), folder)


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
    selection = load_json(result / "selection.json")
    names = sorted(name for name in inputs if name.startswith(BASELINE))
    test = result / predictions.SCORES
    return Run(
        result=result,
        selection=selection,
        devel=load_npz(result / predictions.DEVEL_SCORES),
        curves=load_npz(result / "curves.npz"),
        ranking=tuple(_read_ranking(result / "ranking.csv")),
        analysis=load_json(result / "analysis.json"),
        baselines=tuple(load_json(inputs[name] / "report.json") for name in names),
        costs={**selection["costs"], **_costs(inputs)},
        test=load_npz(test) if test.is_file() else {},
        test_files=tuple(_test_files(inputs["data"])),
        quantization=_read_if_there(deploy / QUANTIZATION) if deploy else {},
        budget=_read_if_there(deploy / BUDGET) if deploy else {},
    )


def _read_if_there(path: Path) -> Any:
    return load_json(path) if path.is_file() else {}


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
