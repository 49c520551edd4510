from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orcawatch.events import EventBuilder, EventRules
from orcawatch.records import Event, WindowScore

RATE_HZ = 100
HOP = 48
SIZE = 96
RULES = EventRules(0.6, 0.4, merge_gap_s=0.0, min_duration_s=0.0, max_duration_s=1e6)


def windows_of(scores: list[float], first: int = 0) -> list[WindowScore]:
    """Windows of two channels, the second one at half the score."""
    return [
        WindowScore(
            first + index * HOP,
            first + index * HOP + SIZE,
            np.zeros((2, 1), np.float32),
            np.array([score, score / 2], np.float32),
            score,
        )
        for index, score in enumerate(scores)
    ]


def built(windows: list[WindowScore], rules: EventRules = RULES) -> list[Event]:
    builder = EventBuilder(rules, RATE_HZ)
    return [event for window in windows for event in builder.push(window)] + builder.finish()


def spans(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.start_sample, event.end_sample) for event in events]


def cells(stretch: list[WindowScore]) -> list[tuple[int, int]]:
    """Plainly: borders half-way between centres, and the stretch's own at its ends."""
    centres = [(window.start_sample + window.end_sample) // 2 for window in stretch]
    inner = [(a + b) // 2 for a, b in zip(centres, centres[1:])]
    borders = [stretch[0].start_sample, *inner, stretch[-1].end_sample]
    return list(zip(borders, borders[1:]))


def plain(stretch: list[WindowScore], rules: EventRules) -> list[tuple[int, int]]:
    """Hysteresis, then merging, over a whole stretch (without a longest duration)."""
    found: list[list[int]] = []
    inside = False
    for window, (start, end) in zip(stretch, cells(stretch)):
        opens = not inside and window.score >= rules.start_threshold
        inside = opens or (inside and window.score >= rules.stop_threshold)
        if opens:
            found.append([start, end])
        elif inside:
            found[-1][1] = end
    merged: list[list[int]] = []
    for start, end in found:
        if merged and start - merged[-1][1] <= rules.merge_gap_s * RATE_HZ:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return [(start, end) for start, end in merged if end - start >= rules.min_duration_s * RATE_HZ]


def test_hysteresis_and_tight_borders() -> None:
    (event,) = built(windows_of([0.1, 0.5, 0.7, 0.5, 0.9, 0.3, 0.5, 0.1]))
    # Windows 2 to 4, each worth the 48 samples around its centre.
    assert spans([event]) == [(2 * HOP + 24, 4 * HOP + 72)]
    assert event.score == 0.9 and event.best_channel == 0 and len(event.windows) == 3
    np.testing.assert_allclose(event.channel_scores, [0.9, 0.45], rtol=1e-6)


def test_event_to_the_ends_of_a_stretch() -> None:
    assert spans(built(windows_of([0.9, 0.9]))) == [(0, HOP + SIZE)]
    assert spans(built(windows_of([0.9], first=7))) == [(7, 7 + SIZE)]


def test_merged_events_keep_the_windows_between() -> None:
    scores = [0.9, 0.1, 0.1, 0.9, 0.1]
    assert len(built(windows_of(scores), replace(RULES, merge_gap_s=0.95))) == 2
    (event,) = built(windows_of(scores), replace(RULES, merge_gap_s=0.96))
    assert len(event.windows) == 4


def test_an_event_is_returned_as_soon_as_it_cannot_change() -> None:
    builder = EventBuilder(replace(RULES, merge_gap_s=1.0), RATE_HZ)
    emitted = [len(builder.push(window)) for window in windows_of([0.9, 0.1, 0.1, 0.1, 0.1, 0.1])]
    # It ends at 72; the window with its centre at 192 is the first after which none can begin by 172.
    assert emitted == [0, 0, 0, 1, 0, 0]


def test_events_do_not_span_a_gap() -> None:
    windows = windows_of([0.9, 0.9]) + windows_of([0.9], first=HOP + SIZE + 1)
    assert spans(built(windows, replace(RULES, merge_gap_s=10))) == [(0, 144), (145, 241)]


def test_long_event_is_closed_and_what_follows_opens_another() -> None:
    events = built(windows_of([0.9] * 10 + [0.5] * 10), replace(RULES, max_duration_s=2.4, merge_gap_s=10))
    assert [event.end_sample - event.start_sample for event in events] == [264, 240]
    assert all(event.score >= RULES.start_threshold for event in events)


SCORES = st.lists(st.sampled_from([0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]), min_size=1, max_size=40)


@given(
    stretches=st.lists(SCORES, min_size=1, max_size=3),
    gap=st.integers(1, 500),
    merge_gap_s=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    min_duration_s=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_events_equal_a_plain_version(
    stretches: list[list[float]], gap: int, merge_gap_s: float, min_duration_s: float
) -> None:
    rules = replace(RULES, merge_gap_s=merge_gap_s, min_duration_s=min_duration_s)
    windows: list[WindowScore] = []
    expected = []
    for scores in stretches:
        stretch = windows_of(scores, windows[-1].end_sample + gap if windows else 0)
        windows += stretch
        expected += plain(stretch, rules)
    assert spans(built(windows, rules)) == expected


@given(scores=SCORES, merge_gap_s=st.sampled_from([0.0, 0.5, 2.0]), max_duration_s=st.sampled_from([1.0, 2.0, 5.0]))
def test_laws_of_events(scores: list[float], merge_gap_s: float, max_duration_s: float) -> None:
    rules = replace(RULES, merge_gap_s=merge_gap_s, max_duration_s=max_duration_s)
    windows = windows_of(scores)
    events = built(windows, rules)
    for event, following in zip(events, events[1:]):
        assert event.end_sample <= following.start_sample
    for window, (start, end) in zip(windows, cells(windows)):
        if window.score >= rules.start_threshold:
            assert any(event.start_sample <= start and end <= event.end_sample for event in events)
    for event in events:
        assert event.score >= rules.start_threshold and event.score == max(w.score for w in event.windows)
        assert 0 < event.end_sample - event.start_sample < max_duration_s * RATE_HZ + SIZE
        assert all(a.start_sample < b.start_sample for a, b in zip(event.windows, event.windows[1:]))
