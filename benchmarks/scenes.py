"""Truth against detections on scenes: calls found by signal-to-noise ratio, false alarms per minute.

    python benchmarks/scenes.py SCENES [--bundle BUNDLE] [--full-vote]

SCENES is a folder of NAME.flac with NAME.json, from `orcawatch simulate` or any mixer that writes the same truth
(events with start_s, end_s, snr_db). Each scene goes through `orcawatch scan --format jsonl`, as a user would run it.
A call is found when a detection overlaps it; a detection that overlaps no call is a false alarm. Click trains are
neither: finding them counts for nothing. With --full-vote the bundle's cascade is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLASSES = ((-99.0, 0.0), (0.0, 6.0), (6.0, 12.0), (12.0, 99.0))


def detections(scene: Path, bundle: str | None, full_vote: bool) -> list[dict[str, Any]]:
    """Detections of one scene by the installed command."""
    command = [str(Path(sys.executable).with_name("orcawatch")), "scan", str(scene), "--format", "jsonl"]
    with tempfile.TemporaryDirectory() as output:
        (Path(output) / "config.yaml").write_text(f"snapshots: false\ncascade: {str(not full_vote).lower()}\n")
        command += ["--config", str(Path(output) / "config.yaml")]
        command += ["--output", output, *(["--bundle", bundle] if bundle else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def overlaps(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two spans share time."""
    return bool(one["start_s"] < other["end_s"] and other["start_s"] < one["end_s"])


def score(scene: Path, bundle: str | None, full_vote: bool = False) -> dict[str, Any]:
    """Found and missed calls and false alarms of one scene."""
    truth = json.loads(scene.with_suffix(".json").read_text())
    calls = [event for event in truth["events"] if event.get("kind") != "clicks"]
    found = detections(scene, bundle, full_vote)
    return {
        "minutes": _minutes(scene),
        "calls": [(event["snr_db"], any(overlaps(event, one) for one in found)) for event in calls],
        "detections": len(found),
        "false_alarms": sum(not any(overlaps(one, event) for event in truth["events"]) for one in found),
    }


def _minutes(scene: Path) -> float:
    import soundfile

    return float(soundfile.info(scene).duration) / 60


def row(name: str, scored: list[dict[str, Any]]) -> str:
    """One line of the table."""
    cells = [name]
    for low, high in CLASSES:
        hits = [hit for scene in scored for snr_db, hit in scene["calls"] if low <= snr_db < high]
        cells.append(f"{sum(hits)}/{len(hits)}")
    hits = [hit for scene in scored for _, hit in scene["calls"]]
    minutes = sum(scene["minutes"] for scene in scored)
    alarms = sum(scene["false_alarms"] for scene in scored)
    cells += [f"{sum(hits)}/{len(hits)}", str(sum(scene["detections"] for scene in scored)), f"{alarms / minutes:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--bundle")
    parser.add_argument("--full-vote", action="store_true")
    given = parser.parse_args()
    scored = {path.stem: score(path, given.bundle, given.full_vote) for path in sorted(given.scenes.glob("*.flac"))}
    print("| scene | < 0 dB | 0 to 6 dB | 6 to 12 dB | >= 12 dB | calls found | detections | false alarms per minute |")
    print("|---|---|---|---|---|---|---|---|")
    for name, one in scored.items():
        print(row(name, [one]))
    print(row("all", list(scored.values())))


if __name__ == "__main__":
    main()
