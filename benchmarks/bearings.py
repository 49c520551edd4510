"""Bearings of detections against truth on scenes: error and coverage of the intervals by signal-to-noise ratio.

    python benchmarks/bearings.py SCENES... [--swap 0 1] [--kill 2] [--truth-spans]

Each of SCENES is a folder of NAME.flac with NAME.json, from `orcawatch simulate` or any mixer that writes the same
truth (hydrophones_m, sound_speed_m_s, events with start_s, end_s, bearing_deg, snr_db). Each scene goes through
`orcawatch scan --config`, as a user would run it, with the places of its own truth; a call belongs to the detection
that overlaps it longest. `--swap` exchanges the sound of two channels and `--kill` silences one, to show the notices.
`--truth-spans` takes every call at its true span, widened at random by 0.2 to 1 s at either side, found or not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from orcawatch.bearing import Compass

CLASSES = ((-99.0, 0.0), (0.0, 6.0), (6.0, 12.0), (12.0, 99.0))


def damaged(scene: Path, folder: Path, swap: list[int] | None, kill: int | None) -> Path:
    """The scene itself, or a copy with channels exchanged or silent."""
    if swap is None and kill is None:
        return scene
    samples, rate_hz = soundfile.read(scene, dtype="int16", always_2d=True)
    if swap is not None:
        samples[:, swap] = samples[:, swap[::-1]]
    if kill is not None:
        samples[:, kill] = 0
    soundfile.write(folder / scene.name, samples, rate_hz, subtype="PCM_16")
    return folder / scene.name


def detections(scene: Path, truth: dict[str, Any], swap: list[int] | None, kill: int | None) -> list[dict[str, Any]]:
    """Detections of one scene by the installed command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = {
            "hydrophones": [{"position_m": place} for place in truth["hydrophones_m"]],
            "sound_speed_m_s": truth["sound_speed_m_s"],
            "snapshots": False,
        }
        (folder / "array.yaml").write_text(yaml.safe_dump(content))
        command = [str(Path(sys.executable).with_name("orcawatch")), "scan", str(damaged(scene, folder, swap, kill))]
        command += ["--config", str(folder / "array.yaml"), "--output", str(folder / "out"), "--format", "jsonl"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def from_detections(scene: Path, given: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each call that was found, with its detection."""
    truth = json.loads(scene.with_suffix(".json").read_text())
    found = detections(scene, truth, given.swap, given.kill)
    for event in truth["events"]:
        shared = [min(one["end_s"], event["end_s"]) - max(one["start_s"], event["start_s"]) for one in found]
        if shared and max(shared) > 0:
            yield event, found[int(np.argmax(shared))]


def from_truth(scene: Path, dice: np.random.Generator) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every call, with the bearing of its widened true span."""
    truth = json.loads(scene.with_suffix(".json").read_text())
    samples, rate_hz = soundfile.read(scene, dtype="float32", always_2d=True)
    compass = Compass(truth["hydrophones_m"], truth["sound_speed_m_s"])
    for event in truth["events"]:
        before, after = dice.uniform(0.2, 1.0, 2)
        start, end = ((event["start_s"] - before) * rate_hz, (event["end_s"] + after) * rate_hz)
        found = compass.bearing(samples[max(0, int(start)) : int(end)], rate_hz)
        note = {"bearing_deg": found.bearing_deg, "bearing_error_deg": found.error_deg, "bearing_note": found.note}
        yield event, note


def row(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """One line of the table."""
    known = [(event, one) for event, one in pairs if one["bearing_deg"] is not None]
    if not known:
        return f"| {name} | {len(pairs)} | 0 | | | | |"
    errors = np.array([abs((one["bearing_deg"] - event["bearing_deg"] + 180) % 360 - 180) for event, one in known])
    widths = np.array([one["bearing_error_deg"] for _, one in known])
    held = int(np.sum(errors <= widths + 1e-9))
    cells = [name, len(pairs), len(known), f"{np.median(errors):.2f}", f"{np.quantile(errors, 0.9):.2f}"]
    cells += [f"{held}/{len(known)} ({held / len(known):.1%})", f"{np.median(widths):.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table and the notes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--swap", type=int, nargs=2, metavar="CHANNEL")
    parser.add_argument("--kill", type=int, metavar="CHANNEL")
    parser.add_argument("--truth-spans", action="store_true")
    given = parser.parse_args()
    dice = np.random.default_rng(1)
    scenes = sorted(path for folder in given.scenes for path in folder.glob("*.flac"))
    pairs = [
        pair for scene in scenes
        for pair in (from_truth(scene, dice) if given.truth_spans else from_detections(scene, given))
    ]  # fmt: skip
    print("| SNR | calls | with a bearing | median error | 90 % below | in the interval | median half width |")
    print("|---|---|---|---|---|---|---|")
    for low, high in CLASSES:
        name = (
            f"{low:g} to {high:g} dB" if low > -99 and high < 99 else f"< {high:g} dB" if low < 0 else f">= {low:g} dB"
        )
        print(row(name, [pair for pair in pairs if low <= pair[0]["snr_db"] < high]))
    print(row("all", pairs))
    for note, times in Counter(one["bearing_note"] for _, one in pairs if one["bearing_note"]).most_common():
        print(f"\n{times} x {note}")


if __name__ == "__main__":
    main()
