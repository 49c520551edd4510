from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from orcawatch.config import (
    DutySettings,
    EventSettings,
    HydrophoneSettings,
    OverloadSettings,
    Settings,
    SinkSettings,
    load_settings,
)
from orcawatch.keys import text
from orcawatch.reload import changes, reload, reloaded
from orcawatch.shown import every_key

# A value for every key that is not its default, and fits the others.
OTHER: dict[str, Any] = {
    "start_threshold": 0.8,
    "stop_threshold": 0.6,
    "snapshots": False,
    "cascade": False,
    "heartbeat_s": 60.0,
    "events.merge_gap_s": 2.0,
    "events.min_duration_s": 0.5,
    "events.max_duration_s": 60.0,
    "clips.pre_roll_s": 1.0,
    "clips.post_roll_s": 3.0,
    "clips.format": "wav",
    "duty.on_s": 60.0,
    "duty.every_s": 600.0,
    "overload.step_up_s": 4.0,
    "overload.recover_s": 30.0,
    "bundles.trusted_keys": (Path("k.pub"),),
    "bundles.require_signature": False,
    "retention.max_age_days": 30.0,
    "retention.max_clips_mb": 100.0,
    "retention.min_free_mb": 50.0,
    "retention.sweep_s": 60.0,
}
FIXED: dict[str, Any] = {
    "station": "north",
    "bundle": Path("b"),
    "output": Path("o"),
    "channels": (0, 1),
    "adc_peak_v": 2.5,
    "channel_fusion": "mean",
    "hop_s": 0.24,
    "threads": 2,
    "source.device": "USB",
    "source.rate_hz": 96000,
    "levels.every_s": 10.0,
    "overload.queue_s": 60.0,
    "overload.steps": ("hop",),
    "ledger.checkpoint_s": 5.0,
    "retention.reserve_mb": 8.0,
    "clock.jump_s": 1.0,
    "metrics.port": 9400,
}


@dataclass(frozen=True)
class BellSettings(SinkSettings):
    """A sink with a secret."""

    password: str | None = text(None, "To get in.", "none", secret=True)
    url: str = text("", "Where.")


def changed(settings: Any, values: dict[str, Any]) -> Any:
    for key, value in values.items():
        settings = with_value(settings, key.split("."), value)
    return settings


def with_value(settings: Any, names: list[str], value: Any) -> Any:
    if len(names) == 1:
        return replace(settings, **{names[0]: value})
    return replace(settings, **{names[0]: with_value(getattr(settings, names[0]), names[1:], value)})


def reloadable(kind: type[Any], where: str = "") -> Iterator[str]:
    for item in fields(kind):
        if "section" in item.metadata:
            yield from reloadable(item.metadata["section"], f"{item.name}.")
        elif "key" in item.metadata and item.metadata["key"].reload:
            yield where + item.name


def test_the_table_above_holds_every_reloadable_key() -> None:
    assert set(reloadable(Settings)) == set(OTHER)


def test_reloadable_keys_are_taken_and_others_wait() -> None:
    new = changed(Settings(), {**OTHER, **FIXED})
    settings, taken, waiting = reloaded(Settings(), new)
    assert settings == changed(Settings(), OTHER)
    assert {change.key for change in taken} == set(OTHER)
    assert {change.key for change in waiting} == set(FIXED)


@pytest.mark.parametrize("key", sorted(set(OTHER) - {"duty.on_s", "duty.every_s"}))  # these two go together
def test_each_change_is_told_from_old_to_new(key: str) -> None:
    settings, (change,), waiting = reloaded(Settings(), changed(Settings(), {key: OTHER[key]}))
    assert settings == changed(Settings(), {key: OTHER[key]}) and waiting == []
    assert change.key == key and change.old != change.new


def test_nothing_changed() -> None:
    assert reloaded(Settings(), Settings()) == (Settings(), [], [])


def test_what_the_old_file_set_and_the_new_one_leaves_out_goes_back_to_its_default() -> None:
    settings, taken, _ = reloaded(changed(Settings(), OTHER), Settings())
    assert settings == Settings() and {change.key for change in taken} == set(OTHER)


def test_group_whose_keys_fit_only_together_waits_as_a_whole() -> None:
    """40 s of backlog need a queue of 60 s, and the queue's length is not reloadable."""
    old = Settings()
    new = replace(old, overload=OverloadSettings(queue_s=60, step_up_s=40, recover_s=10), snapshots=False)
    settings, taken, waiting = reloaded(old, new)
    assert settings == replace(old, snapshots=False)
    assert [change.key for change in taken] == ["snapshots"]
    assert [str(change) for change in waiting] == [
        "overload.queue_s: 30 -> 60",
        "overload.step_up_s: 5 -> 40",
        "overload.recover_s: 60 -> 10",
    ]


def test_changes_inside_lists_of_groups_are_told_by_key() -> None:
    first = HydrophoneSettings("H1", -170.0, 20.0)
    old = Settings(hydrophones=(first, HydrophoneSettings("H2")))
    new = Settings(hydrophones=(replace(first, gain_db=26.0),))
    _, taken, waiting = reloaded(old, new)
    assert taken == []
    assert [str(change) for change in waiting] == [
        "hydrophones[0].gain_db: 20 -> 26",
        "hydrophones[1].serial: H2 -> nothing",
        "hydrophones[1].sensitivity_db: null -> nothing",
        "hydrophones[1].gain_db: 0 -> nothing",
        "hydrophones[1].position_m: null -> nothing",
    ]


def test_secrets_are_told_apart_but_not_told() -> None:
    old = Settings(sinks=(BellSettings(kind="bell", password="rose", url="https://me:rose@bells.example/x"),))
    new = Settings(sinks=(BellSettings(kind="bell", password="tulip", url="https://me:tulip@bells.example/x"),))
    told = [str(change) for change in changes(old, new)]
    assert told == [
        "sinks[0].password: '***' -> '***'",
        "sinks[0].url: https://***@bells.example/x -> https://***@bells.example/x",
    ]


def test_every_key_of_every_group_is_visited() -> None:
    settings = Settings(hydrophones=(HydrophoneSettings("H1"),), sinks=(BellSettings(kind="bell"),))
    keys = [key for key, _, _ in every_key(settings)]
    assert len(keys) == len(set(keys)) and {"hydrophones[0].serial", "sinks[0].url", "duty.on_s"} <= set(keys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "orcawatch.yaml").write_text("station: north\nclips: {pre_roll_s: 1}\n")
    return tmp_path / "orcawatch.yaml"


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_changed_file_is_taken_and_every_change_is_logged(
    file: Path, ensemble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old = load_settings(file)
    file.write_text("station: south\nclips: {pre_roll_s: 4}\nduty: {on_s: 60, every_s: 600}\n")
    settings = reload(lambda: load_settings(file), old, ensemble.bundle)
    assert settings == replace(old, clips=replace(old.clips, pre_roll_s=4.0), duty=DutySettings(60.0, 600.0))
    assert lines(caplog, logging.INFO) == [
        "reload: clips.pre_roll_s: 1 -> 4",
        "reload: duty.on_s: null -> 60",
        "reload: duty.every_s: null -> 600",
    ]
    (waiting,) = lines(caplog, logging.WARNING)
    assert waiting.startswith("reload: station: north -> south waits for a restart")


def test_same_file_changes_nothing_and_says_so(file: Path, ensemble: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old = load_settings(file)
    assert reload(lambda: load_settings(file), old, ensemble.bundle) == old
    assert lines(caplog, logging.INFO) == ["reload: nothing has changed"]


def test_wrong_file_changes_nothing_and_all_its_faults_are_logged(
    file: Path, ensemble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = load_settings(file)
    file.write_text("clips: {pre_roll_s: 4, post_rol_s: 4}\nsnapshots: maybe\n")
    assert reload(lambda: load_settings(file), old, ensemble.bundle) == old
    (line,) = lines(caplog, logging.ERROR)
    for part in ("the old settings stay in force", "has 2 faults", "did you mean clips.post_roll_s?", "snapshots must"):
        assert part in line


def test_missing_file_changes_nothing(file: Path, ensemble: Any, caplog: pytest.LogCaptureFixture) -> None:
    old = load_settings(file)
    file.unlink()
    assert reload(lambda: load_settings(file), old, ensemble.bundle) == old
    assert "cannot be read" in lines(caplog, logging.ERROR)[0]


def test_threshold_that_does_not_fit_the_bundle_changes_nothing(
    file: Path, ensemble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The bundle starts events at 0.5."""
    old = load_settings(file)
    file.write_text("stop_threshold: 0.6\nevents: {merge_gap_s: 5}\n")
    assert reload(lambda: load_settings(file), old, ensemble.bundle) == old
    assert "stop_threshold must be at most start_threshold" in lines(caplog, logging.ERROR)[0]


def test_both_ends_of_a_range_move_together() -> None:
    """One after the other they would not fit each other."""
    old = Settings(events=EventSettings(min_duration_s=20, max_duration_s=40))
    new = Settings(events=EventSettings(min_duration_s=1, max_duration_s=10))
    assert reloaded(old, new)[0] == new
