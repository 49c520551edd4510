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

from orcawatch.simulate import SceneSettings, simulate_scene, write_scene

SIZE = (120, 40)
LOOK_AT = "heard 0:00:22"
COMMAND = (sys.executable, "-m", "orcawatch.cli", "listen")


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


def listened(scene: Path, folder: Path, target: Path, *options: str) -> tuple[Console, float]:
    """Play a scene for 12 s of its 40; the console, and processor time a second meanwhile."""
    arguments = ["--input", str(scene), "--output", str(folder), *options]
    with console(*COMMAND, *arguments, size=SIZE) as shown:
        plain = "--plain" in options
        shown.wait_for("0:00:10  level" if plain else "heard 0:00:10")
        before = cpu_s(shown.process.pid)
        shown.wait_for("0:00:22  level" if plain else LOOK_AT)
        spent = (cpu_s(shown.process.pid) - before) / 12
        if options and not plain:
            picture(shown, target)
        shown.press("q" if not plain else "\x03")
        shown.end()
    return shown, spent


def main() -> None:
    """Make the picture, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        target, scene = Path(sys.argv[1]).resolve(), Path("sea.flac")
        os.chdir(folder)
        settings = SceneSettings(duration_s=40, rate_hz=44100, seed=7, calls_per_minute=20, snr_low_db=9)
        write_scene(simulate_scene(settings), scene)
        _, plain = listened(scene, Path("plain"), target, "--plain", "--every", "2")
        shown, view = listened(scene, Path("view"), target, "--verbose")
        print(f"detection alone: {100 * plain:.1f} % of a core; with the view: {100 * view:.1f} %")
        print(f"written to the terminal: {len(shown.raw) / 24 / 1000:.0f} kB/s")


if __name__ == "__main__":
    main()
