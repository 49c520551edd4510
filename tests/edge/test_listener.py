from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import Any, Callable

import numpy as np
import pytest

from orcawatch.listener import LEFT_OUT, REFUSED, Listener
from orcawatch.load import steps
from orcawatch.records import AudioBlock, ClockChange, Item, Missing

RATE_HZ = 16000


@pytest.fixture
def sea(make_audio: Callable[..., Any]) -> Any:
    return make_audio(RATE_HZ, 10.0, 2, [(2.0, 3.5)])


def heard(listener: Listener) -> list[tuple[Item | None, list[Any]]]:
    return list(listener.listen(threading.Event()))


def spans(items: list[tuple[Item | None, list[Any]]]) -> list[tuple[str, int, int]]:
    """(what, start, end) of the items that take time."""
    return [
        (getattr(item, "cause", "audio"), item.start_sample, item.end_sample)
        for item, _ in items
        if isinstance(item, (AudioBlock, Missing))
    ]


def check_tiling(items: list[tuple[Item | None, list[Any]]]) -> None:
    found = spans(items)
    assert all(one[2] == two[1] for one, two in zip(found, found[1:]))


def test_missing_audio_ends_the_stretch_and_comes_through(sea: Any, ensemble: Any, scripted: Any) -> None:
    """No window spans the hole: the windows are those of two sources by themselves."""
    gap = Missing(80000, 96000, "gap", "overrun")
    together = heard(Listener(scripted([AudioBlock(sea[:80000], 0), gap, AudioBlock(sea, 96000)]), ensemble, None))
    check_tiling(together)
    assert ("overrun", 80000, 96000) in spans(together)
    windows = [window for _, some in together for window in some]
    parts = [heard(Listener(scripted([AudioBlock(samples, 0)]), ensemble, None)) for samples in (sea[:80000], sea)]
    alone = [window.score for part in parts for _, some in part for window in some]
    assert [window.score for window in windows] == alone
    assert not any(window.start_sample < 96000 and window.end_sample > 80000 for window in windows)


def test_each_kind_of_missing_audio_is_counted(sea: Any, ensemble: Any, scripted: Any) -> None:
    items = [
        AudioBlock(sea[:16000], 0),
        Missing(16000, 32000, "gap", "device gone"),
        Missing(32000, 64000, "off_duty", "duty cycle"),
        Missing(64000, 112000, "shed", "inference is behind"),
        AudioBlock(sea[:16000], 112000),
    ]
    listener = Listener(scripted(items), ensemble, None)
    check_tiling(heard(listener))
    totals = listener.totals()
    assert (totals.read_s, totals.gap_s, totals.off_duty_s, totals.shed_s) == (2.0, 1.0, 2.0, 3.0)


def test_holes_before_audio_and_before_missing_audio_are_gaps(sea: Any, ensemble: Any, scripted: Any) -> None:
    items = [AudioBlock(sea[:16000], 0), Missing(20000, 32000, "shed", "late"), AudioBlock(sea[:16000], 48000)]
    listener = Listener(scripted(items), ensemble, None)
    found = heard(listener)
    check_tiling(found)
    assert spans(found)[1:4] == [(LEFT_OUT, 16000, 20000), ("late", 20000, 32000), (LEFT_OUT, 32000, 48000)]
    assert (listener.totals().gap_s, listener.totals().shed_s) == (1.25, 0.75)


def test_refused_audio_is_entered_as_it_comes(sea: Any, ensemble: Any, scripted: Any) -> None:
    """A channel that gives no numbers for long is told each block, not when it is over."""
    bad = sea.copy()
    bad[32000:] = np.nan
    items = [AudioBlock(bad[first : first + 1600], first) for first in range(0, 160000, 1600)]
    found = heard(Listener(scripted(items), ensemble, None))
    check_tiling(found)
    assert spans(found)[-1] == (REFUSED, 158400, 160000) and spans(found)[0][0] == "audio"
    assert sum(end - start for what, start, end in spans(found) if what == REFUSED) == 128000


def test_held_back_audio_before_a_hole_is_heard(sea: Any, ensemble: Any, scripted: Any) -> None:
    bad = sea[:16000].copy()
    bad[4000:8000] = np.inf
    listener = Listener(scripted([AudioBlock(bad, 0), Missing(16000, 20000, "gap", "overrun")]), ensemble, None)
    found = spans(heard(listener))
    assert found == [("audio", 0, 4000), (REFUSED, 4000, 8000), ("audio", 8000, 16000), ("overrun", 16000, 20000)]


def test_changes_of_the_clock_end_nothing(sea: Any, ensemble: Any, scripted: Any) -> None:
    change = ClockChange(80000, datetime(2026, 1, 1, tzinfo=timezone.utc), 3600.0, False, True)
    with_change = [AudioBlock(sea[:80000], 0), change, AudioBlock(sea[80000:], 80000)]
    found = heard(Listener(scripted(with_change), ensemble, None))
    plain = heard(Listener(scripted([AudioBlock(sea, 0)]), ensemble, None))
    assert [item for item, _ in found if isinstance(item, ClockChange)] == [change]
    scores = [[window.score for _, some in run for window in some] for run in (found, plain)]
    assert scores[0] == scores[1]


def test_held_back_audio_comes_before_a_change_of_the_clock(sea: Any, ensemble: Any, scripted: Any) -> None:
    bad = sea[:16000].copy()
    bad[4000:8000] = np.nan
    change = ClockChange(16000, datetime(2026, 1, 1, tzinfo=timezone.utc), 3600.0, True, True)
    found = heard(Listener(scripted([AudioBlock(bad, 0), change, AudioBlock(sea[16000:], 16000)]), ensemble, None))
    check_tiling(found)
    before = found[: [item for item, _ in found].index(change)]
    assert spans(before)[-1] == ("audio", 8000, 16000)


def test_step_of_the_ladder_begins_a_new_stretch(sea: Any, ensemble: Any, scripted: Any) -> None:
    """From the step on the hop is longer and only its channels have scores; no sample is left out."""
    ladder = steps(ensemble.bundle, 2)
    listener = Listener(scripted([AudioBlock(sea[:80000], 0), AudioBlock(sea[80000:], 80000)]), ensemble, None)
    found = []
    for item in listener.listen(threading.Event()):
        found.append(item)
        if len(spans(found)) == 5:
            listener.take(ladder[-1])
    check_tiling(found)
    windows = [window for _, some in found for window in some]
    before = [window for window in windows if window.end_sample <= 80000]
    after = [window for window in windows if window.start_sample >= 80000]
    assert len(before) + len(after) == len(windows)
    assert {before[1].start_sample - before[0].start_sample} == {7680}
    assert after[1].start_sample - after[0].start_sample == round(ladder[-1].hop_s * RATE_HZ) > 7680
    assert all(np.isnan(window.channel_scores).tolist() == [False, True] for window in after)
    assert all(np.isfinite(window.score) for window in after)


def test_live_source_that_gives_nothing_is_no_fault(ensemble: Any, scripted: Any) -> None:
    listener = Listener(scripted([Missing(0, 16000, "gap", "device gone")]), ensemble, None)
    heard(listener)
    assert listener.totals().fault is None and listener.totals().gap_s == 1.0
