"""Pictures of `orcawatch listen` in a terminal of 120 x 40, and what the view costs.

    python benchmarks/listen.py docs/listen.png

Plays a simulated scene to the real command in a pseudo-terminal (pyte draws it, headless chromium makes the picture)
and prints the processor time of the view beside that of `--plain`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "edge"))
from emulator import Console, console

from orcawatch.simulate import SQUARE_M, SceneSettings, simulate_scene, write_scene

SIZE = (120, 40)
LOOK_AT = "heard 0:00:22"
COMMAND = (sys.executable, "-m", "orcawatch.cli", "listen")


SCENE = Path("haro_20260701T120000Z.flac")
CONFIG = Path("orcawatch.yaml")


def configuration() -> str:
    """An array of calibrated hydrophones, at the places of the simulated ones."""
    known = "sensitivity_db: -169.5, gain_db: 20"
    places = [f"  - {{serial: H-{101 + k}, {known}, position_m: {list(place)}}}" for k, place in enumerate(SQUARE_M)]
    return "\n".join(["station: Haro Strait 1", "adc_peak_v: 4.9", "hydrophones:", *places, ""])


def picture(shown: Console, file: Path) -> None:
    """Write the screen as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "screen.html"
        page.write_text(shown.page())
        command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,738"]
        subprocess.run([*command, f"--screenshot={file}", page.as_uri()], check=True, capture_output=True)


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listened(folder: Path, target: Path, *options: str) -> tuple[Console, float]:
    """Play a scene for 12 s of its 40; the console, and processor time a second meanwhile."""
    arguments = ["--config", str(CONFIG), "--input", str(SCENE), "--output", str(folder), *options]
    with console(*COMMAND, *arguments, size=SIZE) as shown:
        plain = "--plain" in options
        shown.wait_for("12:00:10Z  level" if plain else "heard 0:00:10")
        before = cpu_s(shown.process.pid)
        shown.wait_for("12:00:22Z  level" if plain else LOOK_AT)
        spent = (cpu_s(shown.process.pid) - before) / 12
        if options and not plain:
            picture(shown, target)
        shown.press("q" if not plain else "\x03")
        shown.end()
    return shown, spent


def main() -> None:
    """Make the picture, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(sys.argv[1]).resolve()
        os.chdir(folder)
        settings = SceneSettings(duration_s=40, rate_hz=44100, seed=7, calls_per_minute=20, snr_low_db=9)
        CONFIG.write_text(configuration())
        write_scene(simulate_scene(settings), SCENE)
        _, plain = listened(Path("plain"), target, "--plain", "--every", "2")
        shown, view = listened(Path("view"), target, "--verbose")
        print(f"detection alone: {100 * plain:.1f} % of a core; with the view: {100 * view:.1f} %")
        print(f"written to the terminal: {len(shown.raw) / 24 / 1000:.0f} kB/s")


if __name__ == "__main__":
    main()
