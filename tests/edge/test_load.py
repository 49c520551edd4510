from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.load import Ladder, Step, steps
from orcawatch.spectrogram import LogMel

DOCUMENT = Path(__file__).parents[2] / "docs" / "overload.md"
BLOCK_S = 0.1
QUEUE_S = 30.0
STEP_UP_S = 5.0
RECOVER_S = 60.0
HOUR_S = 3600.0


# --- the steps --------------------------------------------------------------------------------------------------------


def test_shipped_bundle_on_four_channels() -> None:
    bundle = load_bundle(SHIPPED)
    vote = ("vggish_min", "vggish_neg")
    assert steps(bundle, 4) == (
        Step("full", 0.48, (0, 1, 2, 3), vote),
        Step("hop 0.96 s", 0.96, (0, 1, 2, 3), vote),
        Step("hop 0.96 s, 2 of 4 channels", 0.96, (0, 2), vote),
        Step("hop 0.96 s, 1 of 4 channels", 0.96, (0,), vote),
    )


def test_only_what_is_wanted_in_the_order_given(make_ensemble: Any) -> None:
    bundle = make_ensemble().bundle
    assert [step.name for step in steps(bundle, 2, ["channels", "hop"])] == [
        "full",
        "1 of 2 channels",
        "1 of 2 channels, hop 0.96 s",
    ]
    assert [step.name for step in steps(bundle, 4, [])] == ["full"]
    assert [step.name for step in steps(bundle, 1)] == ["full", "hop 0.96 s"]


@pytest.mark.parametrize(("hop_s", "hops_s"), [(0.1, [0.1, 0.2, 0.4, 0.8, 0.96]), (0.5, [0.5, 0.96]), (0.96, [0.96])])
def test_hops_double_up_to_one_window(make_ensemble: Any, hop_s: float, hops_s: list[float]) -> None:
    found = steps(make_ensemble(hop_s=hop_s).bundle, 1, ["hop"])
    assert [step.hop_s for step in found] == hops_s
    assert all(step.columns == (0,) for step in found)


def test_channels_are_chosen_evenly_and_the_first_stays_last(make_ensemble: Any) -> None:
    found = steps(make_ensemble().bundle, 7, ["channels"])
    assert [step.columns for step in found] == [(0, 1, 2, 3, 4, 5, 6), (0, 1, 3, 5), (0, 3), (0,)]


def several(make_ensemble: Any, folder: Path, vote: Sequence[str]) -> Any:
    """A bundle of two backbones, `fake0` with the larger file; `fusion` takes both."""
    for name, size in (("large.tflite", 100), ("small.tflite", 10)):
        (folder / name).write_bytes(bytes(size))
    bundle = make_ensemble((LogMel(), LogMel())).bundle
    files = ("large.tflite", "small.tflite")
    named = {
        name: type(one)(name, file, file, 4, one.front_end)
        for (name, one), file in zip(bundle.backbones.items(), files)
    }
    fusion = {"fake0": ["fake0"], "fake0_min": ["fake0"], "fake1": ["fake1"], "fusion": ["fake0", "fake1"]}
    changes = {"backbones": named, "members": tuple(fusion), "vote": tuple(vote), "folder": folder}
    return make_ensemble(manifest={"digest": "0", "fusion": fusion}, **changes).bundle


@pytest.mark.parametrize(
    ("vote", "cheap", "name"),
    [
        (("fake0", "fake1", "fusion"), ("fake1",), "fake1 alone"),
        (("fake0", "fake0_min", "fusion"), ("fake0", "fake0_min"), "fake0 alone"),
        (("fake0", "fake0_min"), None, ""),
        (("fusion",), None, ""),
    ],
)
def test_cheaper_members(make_ensemble: Any, tmp_path: Path, vote: tuple[str, ...], cheap: Any, name: str) -> None:
    """The fusion needs both backbones; where one backbone serves the whole vote, or none serves alone, nothing is saved."""
    found = steps(several(make_ensemble, tmp_path, vote), 2, ["channels", "members"])
    assert [step.vote for step in found] == [vote, vote] + ([] if cheap is None else [cheap])
    assert found[-1].name == "1 of 2 channels" + (f", {name}" if name else "")


@pytest.mark.parametrize(("channels", "wanted"), [(0, ["hop"]), (2, ["hops"]), (2, ["hop", "hop"])])
def test_steps_that_cannot_be(make_ensemble: Any, channels: int, wanted: list[str]) -> None:
    with pytest.raises(ValueError, match=r"different kinds from \['hop', 'channels', 'members'\]"):
        steps(make_ensemble().bundle, channels, wanted)


# --- the ladder, step by step -----------------------------------------------------------------------------------------


def ladder(count: int = 4) -> Ladder:
    return Ladder([Step(f"step {k}", 0.48, (0,), ()) for k in range(count)], STEP_UP_S, RECOVER_S)


def test_one_stall_costs_one_step() -> None:
    """The disk held everything for 8 s; the backlog then shrinks."""
    found = ladder()
    numbers = []
    for now in range(120):
        found.update(max(0.0, 8.0 - 0.5 * now), float(now))
        numbers.append(found.number)
    assert numbers[0] == 1 and max(numbers) == 1 and numbers.index(0) == 14 + RECOVER_S


def test_next_step_only_where_the_backlog_does_not_shrink() -> None:
    found = ladder()
    assert found.update(4.9, 0.0) is None
    assert found.update(5.0, 1.0) == found.steps[1]
    assert found.update(9.0, 5.9) is None
    assert found.update(4.9, 6.0) is None
    assert found.update(4.8, 11.0) is None
    assert found.update(5.2, 16.0) == found.steps[2]
    assert found.update(99.0, 22.0) == found.steps[3] == found.step
    assert found.update(999.0, 60.0) is None and found.number == 3


def test_new_times_count_at_once() -> None:
    found = ladder()
    found.step_up_s, found.recover_s = 10.0, 30.0
    assert found.update(9.9, 0.0) is None
    assert found.update(10.0, 1.0) == found.steps[1]
    assert found.update(0.0, 10.0) is None and found.update(2.0, 39.0) is None
    assert found.update(1.0, 40.0) == found.steps[0]


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0.01, 100)), max_size=200), st.integers(1, 6))
def test_one_step_at_a_time_and_the_same_again(events: list[tuple[float, float]], count: int) -> None:
    one, other, now = ladder(count), ladder(count), 0.0
    for behind, passed in events:
        now += passed
        before = one.number
        changed = one.update(behind, now)
        assert changed == other.update(behind, now)
        assert abs(one.number - before) == (changed is not None) and 0 <= one.number < count
        assert changed in (None, one.step)


# --- a simulated daemon -----------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What became of the audio of a simulated run; `at` counts scored blocks by step, `log` holds (time, step) of changes."""

    heard_s: float = 0.0
    shed_s: float = 0.0
    most_s: float = 0.0
    at: Counter[int] = field(default_factory=Counter)
    log: list[tuple[float, int]] = field(default_factory=list)

    def shed(self) -> float:
        return self.shed_s / self.heard_s

    def share(self, number: int) -> float:
        return self.at[number] / sum(self.at.values())


def work_s(step: Step, full: Step) -> float:
    """What a second of audio takes at this step, as a share of what it takes at step 0."""
    return full.hop_s / step.hop_s * len(step.columns) / len(full.columns)


def listened(found: Sequence[Step], factor: Callable[[float], float], seconds: float) -> Account:
    """A daemon that reads blocks from a bounded queue: what does not fit is shed, windows take their time.

    `factor` is how many seconds a second of audio takes at step 0, at a time.
    """
    control, account, waiting = Ladder(found, STEP_UP_S, RECOVER_S), Account(), deque[int]()
    clock_s, come, rows = 0.0, 0, 0.0
    while clock_s < seconds:
        while (come + 1) * BLOCK_S <= clock_s:
            come += 1
            fits = len(waiting) * BLOCK_S < QUEUE_S
            account.shed_s += 0 if fits else BLOCK_S
            waiting.extend([come] if fits else [])
        account.most_s = max(account.most_s, len(waiting) * BLOCK_S)
        if control.update(len(waiting) * BLOCK_S, clock_s) is not None:
            account.log.append((clock_s, control.number))
            rows = 0.0
        if not waiting:
            clock_s = max(clock_s, (come + 1) * BLOCK_S)
            continue
        waiting.popleft()
        account.at[control.number] += 1
        rows += BLOCK_S
        while rows >= control.step.hop_s:
            rows -= control.step.hop_s
            clock_s += factor(clock_s) * work_s(control.step, found[0]) * control.step.hop_s
    account.heard_s = come * BLOCK_S
    return account


FACTORS = (1.2, 2.0, 5.0, 20.0)
HOURS = 6


@pytest.fixture(scope="module")
def shipped() -> tuple[Step, ...]:
    return steps(load_bundle(SHIPPED), 4)


def row(found: Sequence[Step], factor: float) -> str:
    """A line of the table in docs/overload.md."""
    seconds = HOURS * HOUR_S
    without, having = (listened(one, lambda now: factor, seconds) for one in (found[:1], found))
    cells = [f"{factor:g}", f"{without.most_s:.1f}", f"{without.shed():.1%}"]
    cells += [f"{having.most_s:.1f}", f"{having.shed():.1%}"]
    cells += [f"{having.share(number):.1%}" for number in range(len(found))]
    changes = [sum(first <= now < first + HOUR_S for now, _ in having.log) for first in (0, seconds - HOUR_S)]
    return f"| {' | '.join(cells + [str(count) for count in changes])} |"


def test_table_of_the_document_is_what_the_simulation_gives(shipped: tuple[Step, ...]) -> None:
    rows = [row(shipped, factor) for factor in FACTORS]
    print("\n".join(rows))
    found = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| [0-9.]+ \|", line)]
    assert found == rows


@pytest.mark.parametrize("factor", [1.01, 1.05, 1.2, 1.9, 2.1, 3.9, 4.1, 7.9])
def test_steady_overload_that_the_ladder_can_carry(shipped: tuple[Step, ...], factor: float) -> None:
    """Nothing is shed, the backlog stays bounded, and no more than a step and back every ten minutes."""
    account = listened(shipped, lambda now: factor, 3 * HOUR_S)
    assert account.shed_s == 0
    assert account.most_s < 20
    downs = [now for (now, number), (_, before) in zip(account.log, [(0.0, 0), *account.log]) if number > before]
    late = [now for now in downs if now >= HOUR_S]
    assert len(late) <= 2 * 6


def test_beyond_the_ladder_the_queue_bounds_the_backlog(shipped: tuple[Step, ...]) -> None:
    """Eight times less is scored on the last step; of 20 times too much, 60 % has to be shed, and no more is."""
    account = listened(shipped, lambda now: 20.0, HOUR_S)
    assert account.most_s <= QUEUE_S + BLOCK_S
    assert account.shed() == pytest.approx(1 - 8 / 20, abs=0.01)


@pytest.mark.parametrize("factor", [2.0, 5.0, 20.0])
@pytest.mark.parametrize("burst_s", [10.0, 50.0])
def test_full_again_after_a_burst(shipped: tuple[Step, ...], factor: float, burst_s: float) -> None:
    """Ordinary load is 0.5; the way back takes a wait a step, and the time to work off the backlog."""
    account = listened(shipped, lambda now: factor if 100 <= now < 100 + burst_s else 0.5, 1200)
    last_s, last = account.log[-1]
    deepest = max(number for _, number in account.log)
    assert last == 0
    assert last_s - (100 + burst_s) < deepest * RECOVER_S + QUEUE_S + 20
    numbers = [number for _, number in account.log]
    assert numbers == [*range(1, deepest + 1), *reversed(range(deepest))]


def test_full_again_after_a_long_burst(shipped: tuple[Step, ...]) -> None:
    """Ways back that were tried too early during an hour of it have made the last waits longer, by no more than double."""
    account = listened(shipped, lambda now: 5.0 if now < HOUR_S else 0.5, 3 * HOUR_S)
    last_s, last = account.log[-1]
    assert last == 0 and last_s < 2.1 * HOUR_S


def test_waits_double_up_to_an_hour_and_a_step_that_holds_starts_anew(shipped: tuple[Step, ...]) -> None:
    """Overload of 1.5 for ten hours, then none; a burst three hours later is followed by the first wait."""
    account = listened(
        shipped, lambda now: 1.5 if now < 10 * HOUR_S or 14 * HOUR_S <= now < 14 * HOUR_S + 60 else 0.5, 15 * HOUR_S
    )
    backs = [now for now, number in account.log if number == 0]
    waits = [later - now for now, later in zip(backs, backs[1:])]
    for wait_s, expected_s in zip(waits, [120, 240, 480, 960, 1920, 3600, 3600, 3600]):
        assert wait_s == pytest.approx(expected_s, abs=40)
    assert max(now for now in backs if now < 14 * HOUR_S) < 11.1 * HOUR_S
    assert backs[-1] - (14 * HOUR_S + 60) < 60 + RECOVER_S
