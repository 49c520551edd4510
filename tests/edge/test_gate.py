"""A gate for a bundle that is there already, chosen on simulated calls and sea."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from orcawatch.bundle import CARD, MANIFEST, SHIPPED, load_bundle, write_bundle
from orcawatch.cli import main
from orcawatch.compare import clips_of, score_clips
from orcawatch.deploy.faint import SNRS_DB
from orcawatch.deploy.gate import data_of
from orcawatch.ensemble import Ensemble
from orcawatch.simulate import SceneSettings, simulate_scene

RATE_HZ, SECONDS, RECORDINGS = 24000, 5, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of calls and of sea alone, a minute of each, by recording."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "wav").mkdir()
    rows = []
    for label, calls in (("orca", 20.0), ("noise", 0.0)):
        for recording in range(RECORDINGS):
            settings = SceneSettings(
                duration_s=15, rate_hz=RATE_HZ, seed=recording, hydrophones_m=((0, 0, 0),), whistle_share=0,
                calls_per_minute=calls, click_trains_per_minute=0, snr_low_db=12, snr_high_db=20,
            )  # fmt: skip
            samples = simulate_scene(settings).samples
            for part in range(3):
                name = f"{label}{recording}-{part}.wav"
                soundfile.write(
                    folder / "wav" / name, samples[part * SECONDS * RATE_HZ : (part + 1) * SECONDS * RATE_HZ], RATE_HZ
                )
                rows.append({"file_name": name, "label": label, "split": "devel", "group": f"{label}{recording}"})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle without a cascade."""
    bundle, folder = load_bundle(SHIPPED), tmp_path_factory.mktemp("bundle") / "ungated"
    files = {name: (bundle.folder / name).read_bytes() for name in bundle.manifest["files"]}
    away = ("schema", "files", "digest", "cascade")
    write_bundle(folder, {key: value for key, value in bundle.manifest.items() if key not in away}, files)
    return folder


def gate(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["deploy", "gate", *map(str, arguments)])
    return done.exit_code, done.output


def test_a_gate_spares_the_backbone_on_a_quiet_sea(data: Path, ungated: Path, tmp_path: Path) -> None:
    code, text = gate(ungated, tmp_path / "gated", "--data", data, "--most-lost", "0.05")
    assert code == 0 and "nothing but the spectrogram of vggish first" in text
    before, after = load_bundle(ungated), load_bundle(tmp_path / "gated")
    (found,) = after.cascade.gates
    assert (found.backbones, found.prominence_of, after.cascade.holds_from) == ((), "vggish", before.stop_threshold)
    assert after.manifest["thresholds"] == before.manifest["thresholds"]
    for name in set(before.manifest["files"]) - {CARD}:
        assert (after.folder / name).read_bytes() == (before.folder / name).read_bytes()
    assert "## Cascade" in (after.folder / CARD).read_text()
    clips = clips_of([data], "devel")
    full, gated = (score_clips(clips, Ensemble(bundle)) for bundle in (before, after))
    called = full.highest >= before.start_threshold
    np.testing.assert_allclose(gated.highest[called], full.highest[called])  # whatever starts an event is as it was
    assert (gated.highest[~called] < before.start_threshold).all()
    shown = after.manifest["cascade"]["evidence"]
    assert shown["lost_upper"] <= shown["most_lost"] == 0.05
    assert shown["data"]["clips"] == [
        {"label": label, "source": "", "clips": 3 * RECORDINGS, "recordings": RECORDINGS, "seconds": 15.0 * RECORDINGS}
        for label in ("noise", "orca")
    ]
    faint = shown["faint"]
    assert faint["lost_upper"] <= 0.05 and 0 < faint["called"] == faint["called_orca"]
    assert [one["snr_db"] for one in faint["by_snr"]] == list(SNRS_DB)
    inspected = CliRunner().invoke(main, ["bundle", "inspect", str(tmp_path / "gated")]).output
    assert f"12 clips noise (4 recordings), 12 clips orca (4 recordings); SHA-256 {shown['data']['fingerprint']}" in (
        " ".join(inspected.split())
    )
    assert shown["passed"]["noise"][0] < 0.5 < shown["passed"]["orca"][0]
    assert shown["milliseconds"]["cascade"] < 0.5 * shown["milliseconds"]["full"]


def test_the_fingerprint_names_the_clips_and_neither_their_order_nor_their_folder(data: Path, tmp_path: Path) -> None:
    clips = clips_of([data], "devel")
    named = data_of(clips)["fingerprint"]
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    assert data_of(clips_of([moved], "devel")[::-1])["fingerprint"] == named
    first = clips[0]
    for other in (replace(first, label="noise"), replace(first, group="x"), replace(first, path=clips[1].path)):
        assert data_of([other, *clips[1:]])["fingerprint"] != named
    with (moved / "wav" / first.path.name).open("ab") as file:
        file.write(b"x")
    assert data_of([replace(first, path=moved / "wav" / first.path.name), *clips[1:]])["fingerprint"] != named
    kinds = data_of([replace(clip, site="bay") for clip in clips[:2]] + clips[2:])["clips"]
    assert [(one["label"], one["source"], one["clips"]) for one in kinds] == [
        ("noise", "", 12),
        ("orca", "", 10),
        ("orca", "bay", 2),
    ]


def test_what_cannot_be_gated_is_refused(data: Path, ungated: Path, tmp_path: Path) -> None:
    code, text = gate(ungated, ungated, "--data", data, "--most-lost", "0.05")
    assert code == 2 and "exists already" in text
    assert gate(ungated, tmp_path / "g", "--data", data, "--most-lost", "0.05")[0] == 0
    code, text = gate(tmp_path / "g", tmp_path / "h", "--data", data)
    assert code == 2 and "has a cascade already" in text
    code, text = gate(tmp_path / "g", tmp_path / "h", "--data", tmp_path)
    assert code == 2 and "labels.csv" in text
    assert not (tmp_path / "h" / MANIFEST).exists()
