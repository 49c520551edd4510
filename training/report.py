"""The report of a run: what was trained, how good it is and how that was measured, one HTML page and Markdown.

What it says is in `sections` and `findings`, what the page looks like in `document` and its templates, the drawings are
in `pictures`, the examples' relevance in `examples`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import findings, predictions, sections
from .document import Document, Section, write
from .predictions import Written
from .run_files import Run, inputs_of, read_run
from .stages import Inputs


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


def contents(run: Run, predicted: Written | None = None) -> Document:
    """All that the report says.

    Parameters
    ----------
    run : see `run_files.read_run`.
    predicted : what was predicted for the test split, where it was.
    """
    made = (
        Section("result", "Result", tuple(sections.result(run))),
        Section("training", "What was trained", tuple(sections.training(run))),
        Section("data", "Data", tuple(sections.data(run))),
        Section("ranking", "Ranking of votes", tuple(findings.ranking(run))),
        Section("choice", "How sure the choice is", tuple(findings.choice(run))),
        Section("masks", "Masks", tuple(findings.masks(run))),
        Section("baselines", "Baselines", tuple(findings.baselines(run))),
        Section("curves", "Curves and thresholds", tuple(findings.curves(run))),
        Section("edge", "Cost on the edge", tuple(sections.edge(run))),
        Section("test", "Test split", tuple(sections.test(run, predicted))),
        Section("examples", "Examples", tuple(findings.examples(run))),
        Section("provenance", "Provenance", tuple(sections.provenance(run))),
    )
    return Document(
        title=f"Training report: {run.selection['name']}",
        subtitle=sections.subtitle(run),
        abstract=sections.abstract(run),
        sections=tuple(section for section in made if section.blocks),
    )
