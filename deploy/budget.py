"""The vote for a buoy of limited power and memory: every combination's ROC AUC against what it costs.

`budget.json`:

- `selection`: SHA-256 of the `result/selection.json` that it was made for.
- `quantization`: by backbone; `runtime`; `most_ms`, `most_mb`: the budget, null where there is no limit;
  `must_contain`: members of which the vote holds one by the recipe, or null.
- `costs`: by backbone `ms` (features of a window, median processor time, one thread) and `mb` (all its files).
- `front`: by `ms` and by `mb`, the combinations that are better than all that cost no more, the cheapest first, each
  `members`, `auc`, `backbones`, `ms`, `mb`. AUC of devel clips by the quantized scores.
- `trained`: the run's own vote, priced alike; `chosen`: the best within the budget.

Choosing on devel is optimistic, as the ranking is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..interpreter import runtime_name
from ..metrics import clip_means
from ..ranking import Priced, pareto, price, rank, within_budget
from .quantize import TIMED_WINDOWS, Measured, Progress, measure, window_scores
from .run import Run


def budget(
    run: Run,
    quantization: Mapping[str, str],
    most_ms: float | None = None,
    most_mb: float | None = None,
    timed_windows: int = TIMED_WINDOWS,
    progress: Progress = iter,
) -> dict[str, Any]:
    """The fronts and the vote chosen: the content of `budget.json` (see the module).

    Parameters
    ----------
    run : from `read_run`.
    quantization : variant of every backbone; what was not measured yet is measured.
    most_ms, most_mb : time per window and size of the backbones' files; None where there is no limit.
    timed_windows, progress : as `quantize.measure`.

    Raises
    ------
    TrainingError : nothing fits the budget; the text names the cheapest.
    """
    measured = {name: measure(run, name, quantization[name], timed_windows, progress) for name in run.backbones}
    costs = {name: (one.features_ms, one.exported.bytes / 1e6) for name, one in measured.items()}
    priced, must = _priced(run, measured, costs), run.must_contain()
    return {
        "selection": run.selection_digest,
        "quantization": {name: quantization[name] for name in run.backbones},
        "runtime": runtime_name(),
        "most_ms": most_ms,
        "most_mb": most_mb,
        "must_contain": must,
        "costs": {name: {"ms": ms, "mb": mb} for name, (ms, mb) in costs.items()},
        "front": {by: [asdict(one) for one in pareto(priced, by)] for by in ("ms", "mb")},
        "trained": asdict(next(one for one in priced if set(one.members) == set(run.selection["vote"]))),
        "chosen": asdict(within_budget(priced, most_ms, most_mb, must)),
    }


def _priced(run: Run, measured: Mapping[str, Measured], costs: Mapping[str, tuple[float, float]]) -> list[Priced]:
    """All combinations by falling AUC."""
    devel, names = run.arrays("devel_scores.npz"), [entry["name"] for entry in run.members]
    scores = window_scores(run, {name: one.features for name, one in measured.items()}, names)
    clips = clip_means(scores, devel["window_clip"], len(devel["label"]))
    return price(rank(names, clips, devel["label"] == "orca"), run.members, costs)
