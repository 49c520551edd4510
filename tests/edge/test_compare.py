"""Two bundles on the same clips: figures against truth by hand, and what may be said of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from orcawatch import compare
from orcawatch.bundle import SHIPPED
from orcawatch.cli import main
from orcawatch.compare import Clip, Scores, told
from orcawatch.errors import InputError
from orcawatch.metrics import Interval, auc_interval, paired_differences
from orcawatch.simulate import SceneSettings, simulate_scene, write_scene

CLIPS = 60


def clip(number: int, site: str = "", seconds: float = 36.0) -> Clip:
    """Every third is an orca's; a recording has two of each."""
    label = "orca" if number % 3 == 0 else "noise"
    return Clip(
        Path(f"{number}.flac"), label, f"{label}{number // 6}", site or "net", seconds
    )  # fmt: skip


def scores(seed: int, start: float = 0.5, better: float = 0.0) -> Scores:
    generator = np.random.default_rng(seed)
    orca = np.arange(CLIPS) % 3 == 0
    mean = generator.normal(0.4, 0.2, CLIPS) + orca * (0.1 + better)
    return Scores(mean, mean + 0.1, start)


def test_figures_are_those_of_the_metrics() -> None:
    clips, old, new = [clip(number) for number in range(CLIPS)], scores(1), scores(2)
    (part,) = compare.compare(clips, old, new, draws=300)
    auc, recall, alarms = part.figures
    orca, groups = np.array([one.label == "orca" for one in clips]), [one.group for one in clips]
    assert auc.old == auc_interval(old.mean, orca, groups, 300)
    assert auc.difference == paired_differences(new.mean, old.mean[None], orca, groups, 300)[0]
    assert recall.new is not None
    assert recall.new.value == pytest.approx(np.mean(new.highest[orca] >= new.start))
    assert alarms.old is not None
    assert alarms.old.value == pytest.approx(np.sum(old.highest[~orca] >= old.start) / 0.4)
    assert (part.orca, part.noise, part.recordings, part.noise_hours) == (20, 40, (10, 10), pytest.approx(0.4))


def test_the_difference_is_paired() -> None:
    clips, one = [clip(number) for number in range(CLIPS)], scores(1)
    (part,) = compare.compare(clips, one, one, draws=200)
    for figure in part.figures:
        assert figure.old == figure.new
        assert figure.difference is not None
        assert (figure.difference.low, figure.difference.high) == (0, 0)
        assert figure.verdict == "alike"


def test_each_bundle_has_its_own_threshold() -> None:
    clips, one = [clip(number) for number in range(CLIPS)], scores(1)
    (part,) = compare.compare(clips, one, Scores(one.mean, one.highest, 2.0), draws=200)
    recall, alarms = part.figures[1:]
    assert recall.new is not None
    assert alarms.new is not None
    assert (recall.new.value, alarms.new.value) == (0, 0)
    assert (recall.verdict, alarms.verdict) == ("worse", "better")


def test_sites_stand_for_themselves_and_few_recordings_say_nothing() -> None:
    clips = [clip(number, "far" if number < 6 else "near") for number in range(CLIPS)]
    everything, far, near = compare.compare(clips, scores(1), scores(2), draws=200)
    assert [part.name for part in (everything, far, near)] == ["all", "far", "near"]
    assert far.orca + near.orca == everything.orca
    assert far.figures[0].verdict == "too few recordings to tell: 1"
    assert far.figures[0].old is not None
    assert np.isnan(far.figures[0].old.low)
    text = compare.table([everything, far, near])
    assert "too few recordings to tell (fewer than 5): far" in text
    assert "far: " not in text
    assert "near: " in text


def test_a_site_without_orcas_still_has_false_alarms() -> None:
    clips = [clip(number) for number in range(CLIPS) if number % 3]
    there = np.arange(CLIPS) % 3 > 0
    parts = [Scores(one.mean[there], one.highest[there], one.start) for one in (scores(1), scores(2))]
    (part,) = compare.compare(clips, *parts, draws=200)
    assert part.figures[0].old is None
    assert part.figures[1].old is None
    assert part.figures[2].difference is not None
    assert "ROC AUC" not in compare.table([part])
    assert "false alarms an hour" in compare.table([part])


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("auc", 0.01, 0.05, "better"),
        ("auc", -0.05, -0.01, "worse"),
        ("auc", -0.01, 0.02, "alike (within 0.02)"),
        ("auc", -0.01, 0.03, "too wide to tell"),
        ("false_alarms_per_hour", -9.0, -1.0, "better"),
        ("false_alarms_per_hour", 1.0, 9.0, "worse"),
        ("false_alarms_per_hour", -9.0, 9.0, "alike (within 10)"),
        ("false_alarms_per_hour", -11.0, 9.0, "too wide to tell"),
        ("recall", 0.0, 0.2, "too wide to tell"),
    ],
)
def test_an_interval_says_what_can_be_told(name: str, low: float, high: float, verdict: str) -> None:
    assert told(name, Interval(100.0 if "alarms" in name else 0.9, 0, 0, 9), Interval(0, low, high, 9)) == verdict


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clips of noise and two of simulated calls, in the devel split."""
    folder, rows = tmp_path / "data", []
    for number in range(4):
        name = f"{number}.flac"
        calls = 20.0 if number % 2 else 0.0
        settings = SceneSettings(
            duration_s=6, rate_hz=22050, seed=number, hydrophones_m=((0, 0, 0),), calls_per_minute=calls,
            click_trains_per_minute=0, snr_low_db=15,
        )  # fmt: skip
        write_scene(simulate_scene(settings), folder / "wav" / name)
        rows.append((name, "orca" if calls else "noise", "devel", f"r{number}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", "split", "group"), *rows])
    return folder


def test_bundles_are_compared_from_the_command_line(data: Path, tmp_path: Path) -> None:
    arguments = [
        "bundle",
        "compare",
        str(SHIPPED),
        str(SHIPPED),
        "--data",
        str(data),
        "--json",
        str(tmp_path / "x.json"),
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "all: 2 orca clips of 2 recordings, 2 noise clips of 2" in done.output
    assert "too few recordings to tell: 2" in done.output
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["old"] == found["new"]
    auc = found["parts"][0]["figures"][0]
    assert (auc["name"], auc["old"]["value"], auc["old"]["low"]) == ("auc", 1.0, None)


def test_what_cannot_be_compared_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled clip of the split train"):
        compare.clips_of([data], "train")
    with pytest.raises(InputError, match=r"there is no .*labels\.csv"):
        compare.clips_of([tmp_path / "nowhere"], "devel")
    with pytest.raises(InputError, match="is named twice"):
        compare.clips_of([data, data], "devel")
    for content in ("file_name,label,split,group\ncaf\u00e9.wav,orca,devel,r\n".encode("latin-1"), b"\xff\xfe\0"):
        (data / "labels.csv").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read: .*save it as CSV in UTF-8"):
            compare.clips_of([data], "devel")
