"""The cascade's frame on the edge; what it computes is tested in tests/train/deploy, where bundles with one are made."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.cascade import Cascade, Gate, cascade_from, cascade_lines, check_cascade
from orcawatch.config import Settings, overridden
from orcawatch.daemon import Shared, warn_of_cascade
from orcawatch.ensemble import Ensemble
from orcawatch.records import Window

GATE = Gate(("cheap",), ("cheap_neg",), "gate_1", "", 0.02, -0.01, 2.0)
STILL = Gate((), (), "", "cheap", 1.2, 0.0, 0.01)
CASCADE = Cascade((GATE,), 0.3)
NEEDS = {"cheap_neg": ("cheap",), "cheap": ("cheap",), "fusion": ("cheap", "heavy")}
EVIDENCE = {
    "most_lost": 0.01, "called": 263, "lost": 2, "lost_upper": 0.0091, "called_orca": 150, "lost_orca": 1, "recordings": 23, "passed": {"noise": [0.2], "orca": [0.61]},
    "recall": {"full": 45, "cascade": 44}, "auc": 0.9466, "auc_full": 0.9463,
    "auc_loss": {"value": -0.0003, "low": -0.001, "high": 0.0012},
    "left_out": {"lost": 5, "lost_upper": 0.046, "lost_orca": 2, "auc_loss": {"value": 0.0004, "low": -0.0011, "high": 0.0023}},
    "milliseconds": {"full": 25.7, "cascade": 6.49},
}  # fmt: skip


FAINT = {
    "called": 640, "called_orca": 640, "recordings": 10, "lost": 3, "lost_upper": 0.0098, "lost_orca": 3,
    "recall": {"full": 240, "cascade": 239}, "left_out": {"lost": 9, "lost_upper": 0.031, "lost_orca": 9},
    "by_snr": [{"snr_db": -3.0, "called": 240, "lost": 2}, {"snr_db": 3.0, "called": 400, "lost": 1}],
}  # fmt: skip


def backbones_of(members: Any) -> tuple[str, ...]:
    return tuple({name: None for member in members for name in NEEDS[member]})


@pytest.mark.parametrize(
    ("average", "score"), [(0.001, 0.0), (0.02, 0.03), (0.1, 0.19), (0.9, 0.3), (float("inf"), 0.3)]
)
def test_a_stopped_channel_scores_on_the_line_below_the_stop_threshold(average: float, score: float) -> None:
    found = GATE.score(average, 0.3)
    assert found == pytest.approx(score, abs=1e-6) and 0 <= found < 0.3


def test_a_manifest_without_a_cascade_has_none() -> None:
    assert cascade_from(None) == Cascade() and list(cascade_lines(None)) == [
        "none: every backbone is heard on every window"
    ]
    described = {"gates": [vars(GATE)], "holds_from": 0.3}
    assert cascade_from(described) == CASCADE
    assert list(cascade_lines(described)) == ["cheap first: on from 0.0200 of cheap_neg"]
    still = {"gates": [vars(STILL)], "holds_from": 0.3}
    assert cascade_from(still).gates == (STILL,)
    assert list(cascade_lines(still)) == ["nothing but the spectrogram of cheap first: on from a prominence of 1.20"]


def test_the_evidence_is_told() -> None:
    told = list(cascade_lines({"gates": [vars(GATE)], "evidence": {**EVIDENCE, "faint": FAINT}}))
    assert told[5:7] == [
        "the same calls fainter, in other noise, on which it was chosen, too: 3 (at most 1.0%, 95 % by recording) of 640 "
        "called windows in 10 recordings lost (2 of 240 at -3 dB, 1 of 400 at 3 dB); found 239 of 240",
        "the same calls fainter, chosen without the recording: 9 (at most 3.1%, 95 % by recording) called windows lost",
    ]
    assert list(cascade_lines({"gates": [vars(GATE)], "evidence": EVIDENCE})) == [
        *told[:5],
        "chosen on clips as recorded alone: what it loses of fainter calls is not known",
        told[7],
    ]
    few = {**EVIDENCE, "faint": {**FAINT, "left_out": None}}
    assert list(cascade_lines({"gates": [vars(GATE)], "evidence": few})) == [*told[:6], told[7]]
    assert [*told[:5], told[7]] == [
        "cheap first: on from 0.0200 of cheap_neg",
        "devel: 20.0% of the windows of noise go on, 61.0% of those of orca clips",
        "devel, on which it was chosen: 2 (at most 0.9%, 95 % by recording) of 263 called windows in 23 recordings lost; "
        "of 150 of orca clips 1; clips found 44 of 45",
        "devel: ROC AUC 0.9466, of the full vote 0.9463; loss -0.0003 (-0.0010 to +0.0012)",
        "devel, chosen without the recording: 5 (at most 4.6%, 95 % by recording) called windows lost, 2 of orca clips; "
        "ROC AUC loss +0.0004 (-0.0011 to +0.0023)",
        "backbones take 6.49 ms a window of noise, without the cascade 25.70 ms",
    ]


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        ([GATE, GATE], "more of"),
        ([GATE, STILL], "more of"),
        ([STILL, STILL], "more of"),
        ([replace(STILL, prominence_of="other")], "more of"),
        ([replace(STILL, threshold=float("inf"))], "finite"),
        ([replace(GATE, prominence_of="cheap")], "must name members"),
        ([replace(GATE, backbones=("cheap", "heavy"))], "not all of them"),
        ([replace(GATE, members=("other",))], "must name members"),
        ([replace(GATE, members=("fusion",))], "need other backbones"),
        ([replace(GATE, threshold=float("nan"))], "finite"),
        ([replace(GATE, slope=-1)], "at least 0"),
    ],
)
def test_gates_that_do_not_fit_are_refused(gates: list[Gate], told: str) -> None:
    check_cascade(CASCADE, tuple(NEEDS), ("cheap", "heavy"), backbones_of)
    check_cascade(Cascade((STILL, GATE), 0.3), tuple(NEEDS), ("cheap", "heavy"), backbones_of)
    check_cascade(Cascade((STILL,), 0.3), ("cheap",), ("cheap",), backbones_of)
    with pytest.raises(ValueError, match=told):
        check_cascade(Cascade(tuple(gates), 0.3), tuple(NEEDS), ("cheap", "heavy"), backbones_of)


@pytest.mark.parametrize(
    ("settings", "gates", "warned"),
    [
        (Settings(), 1, False),
        (Settings(start_threshold=0.9, stop_threshold=0.3), 1, False),
        (Settings(stop_threshold=0.29), 0, True),
        (Settings(cascade=False), 0, False),
        (Settings(channel_fusion="mean"), 0, True),
        (Settings(cascade=False, stop_threshold=0.1), 0, False),
    ],
)
def test_a_lower_stop_threshold_takes_it_away_and_that_is_told(
    make_ensemble: Any, settings: Settings, gates: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = {"name": "fake", "digest": "0", "files": {}, "cascade": {"gates": []}}
    bundle = make_ensemble(cascade=CASCADE, manifest=manifest).bundle
    changed = overridden(bundle, settings)
    warn_of_cascade(changed, settings)
    assert len(changed.cascade.gates) == gates
    assert ("heard on every window" in caplog.text) == warned
    assert overridden(changed, Settings()).cascade.holds_from == 0.3


def test_opened_gates_let_everything_pass_and_a_threshold_of_nothing_is_refused() -> None:
    assert [gate.threshold for gate in CASCADE.opened.gates] == [-float("inf")] and CASCADE.opened.holds_from == 0.3
    for holds_from in (float("nan"), -0.1, 1.1):
        with pytest.raises(ValueError, match="holds_from must be 0 to 1"):
            check_cascade(replace(CASCADE, holds_from=holds_from), tuple(NEEDS), ("cheap", "heavy"), backbones_of)


def test_a_running_ensemble_takes_another(make_ensemble: Any) -> None:
    ensemble = make_ensemble(cascade=CASCADE)
    shared = Shared(ensemble)
    assert shared.cascade == CASCADE
    shared.cascade = Cascade((), 0.3)
    assert ensemble.cascade.gates == ()


def test_sessions_that_have_ended_are_let_go(make_ensemble: Any) -> None:
    """Many of them score with one ensemble, one after the other."""
    ensemble = make_ensemble(cascade=CASCADE)
    sessions = [weakref.ref(Shared(ensemble)) for _ in range(5)]
    gc.collect()
    assert sum(session() is not None for session in sessions) == 1


def test_windows_that_a_gate_stops_are_counted_by_channel() -> None:
    ensemble = Ensemble(load_bundle(SHIPPED))
    front_end, cascade = ensemble.bundle.backbones["vggish"].front_end, ensemble.cascade
    silence = Window(0, 0, {"vggish": np.zeros((3, front_end.frames, front_end.shape[1]), np.float32)})
    Shared(ensemble).score(silence)
    shared = Shared(ensemble)  # a second session with the same ensemble counts anew
    assert (shared.scored, shared.stopped) == (0, {"prominence": 0})
    shared.score(silence)
    shared.score(silence, columns=[1])
    assert (shared.scored, shared.stopped) == (4, {"prominence": 4})
    shared.cascade = cascade.opened
    shared.score(silence)
    assert (shared.scored, shared.stopped) == (7, {"prominence": 4})
    shared.cascade = cascade
    shared.score(silence)
    assert (shared.scored, shared.stopped) == (10, {"prominence": 7})
    assert Cascade((GATE, replace(GATE, backbones=("cheap", "heavy")))).gates[1].name == "cheap + heavy"
