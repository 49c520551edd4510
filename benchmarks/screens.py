"""Pictures of every page and state, wide and on a phone, light and dark: screens.py FOLDER [NAME ...]."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "edge")]

import many  # noqa: E402
from browser import TOKEN, Browser, open_browser, served, wait_for  # noqa: E402

from orcawatch.clips import write_clip  # noqa: E402
from orcawatch.daemon import open_store  # noqa: E402
from orcawatch.store import Detection  # noqa: E402

SIZES = ((1280, 900), (390, 844))
CLIP_S, RATE_HZ = 34.0, 48000
SEEN = "(one) => one.complete || one.getBoundingClientRect().top > innerHeight"


def main(folder: Path, names: list[str]) -> None:
    """Make the output folders, and the pictures."""
    with TemporaryDirectory() as work:
        full, empty = Path(work) / "full", Path(work) / "empty"
        many.fill(full, 300, 12, 6, 600)
        ids = add_states(full)
        open_store(empty).close()
        driver = open_browser()
        try:
            with served(full, station="Haro Strait north") as base:
                shoot(Browser(driver, base), folder, chosen(pages(ids), names))
            with served(empty) as base:
                shoot(
                    Browser(driver, base),
                    folder,
                    chosen({"list-empty": "/", "effort-empty": "/effort", "status-empty": "/status"}, names),
                )
            with served(Path(work) / "nothing") as base:
                shoot(Browser(driver, base), folder, chosen({"no-log": "/"}, names))
        finally:
            driver.quit()


def pages(ids: dict[str, int]) -> dict[str, str]:
    """Addresses by name of the picture."""
    return {
        "list": "/", "list-score": "/?sort=score", "list-filtered": "/?score=0.5&verdict=none",
        "list-nothing": "/?note=nothing", "effort": "/effort", "status": "/status", "missing": "/detection/99999",
        "wrong": "/?score=high", "token": "/?token=wrong",
        **{f"detection-{name}": f"/detection/{id}" for name, id in ids.items()},
    }  # fmt: skip


def chosen(found: dict[str, str], names: list[str]) -> dict[str, str]:
    """Those that were asked for."""
    return {name: path for name, path in found.items() if not names or name in names}


def shoot(browser: Browser, folder: Path, found: dict[str, str]) -> None:
    """Every page in both sizes and both colours; what is wrong with one is told."""
    browser.go(f"/healthz?token={TOKEN}")
    for name, path in found.items():
        for width, height in SIZES:
            for dark in (False, True):
                browser.size(width, height, dark)
                browser.go(path)
                if name.startswith("detection"):
                    wait_for(lambda: ready(browser), 300)
                wait_for(lambda: browser.js(f"[...document.images].every({SEEN})"))
                browser.shoot(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")
                if browser.overflow() > 0 or browser.strangers():
                    print(name, width, browser.overflow(), browser.strangers())
        print(name, path, flush=True)


def ready(browser: Browser) -> bool:
    """Whether nothing is being made any more."""
    return bool(
        browser.js(
            "(() => { const page = document.getElementById('detection');"
            "return page.dataset.looked || page.dataset.bundle === '0' || !document.getElementById('audio'); })()"
        )
    )


def add_states(output: Path) -> dict[str, int]:
    """Detections of all kinds beside those of the season: their numbers by name."""
    with changed(output) as connection:
        newest = [row[0] for row in connection.execute("SELECT id FROM detections ORDER BY id DESC LIMIT 6")]
        connection.execute("UPDATE detections SET verdict = NULL, verdict_note = '' WHERE id IN (?, ?)", newest[:2])
        connection.execute("UPDATE detections SET bundle_digest = 'abcdef0123456789' WHERE id = ?", newest[2:3])
        connection.execute(
            "UPDATE detections SET synchronised = 0, channel_scores = '[0.31, null, 0.87, 0.4]', bearing_deg = NULL, "
            "bearing_error_deg = NULL, bearing_note = 'channel 1 is dead' WHERE id = ?",
            newest[3:4],
        )
        removed = connection.execute("SELECT max(id) FROM detections WHERE removed IS NOT NULL").fetchone()[0]
        digest = connection.execute("SELECT bundle_digest FROM detections WHERE id = ?", newest[:1]).fetchone()[0]
    return {
        "full": newest[0], "no-bundle": newest[2], "doubtful": newest[3], "removed": removed,
        "mono": long_one(output, 1, 5.0, digest), "eight": long_one(output, 8, CLIP_S, digest),
        "no-clip": with_clip(output, None, 4, 2.0, digest),
    }  # fmt: skip


@contextmanager
def changed(output: Path) -> Iterator[sqlite3.Connection]:
    """The database, to change its rows."""
    connection = sqlite3.connect(output / "detections.sqlite")
    with connection:
        yield connection
    connection.close()


def long_one(output: Path, channels: int, length_s: float, digest: str) -> int:
    """A detection with a clip of a tone that wanders, in noise."""
    time_s = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
    tone = np.sin(2 * np.pi * np.cumsum(1800 + 900 * np.sin(2 * np.pi * 0.7 * time_s)) / RATE_HZ)
    during = (time_s >= 2) & (time_s < length_s - 2)
    noise = np.random.default_rng(1).normal(0, 0.003, (len(time_s), channels))
    samples = (noise + 0.05 * (tone * during)[:, None] * np.linspace(0.2, 1, channels)).astype(np.float32)
    path = write_clip(output / "clips" / f"state-{channels}.flac", samples, RATE_HZ)
    return with_clip(output, f"clips/{path.name}", channels, length_s - 4, digest)


def with_clip(output: Path, clip: str | None, channels: int, length_s: float, digest: str) -> int:
    """A detection of so many channels."""
    with open_store(output) as store:
        return store.add(
            Detection(
                id=None, source="/archive/" + "a long name of a recording " * 3 + ".wav", start_s=100.0,
                end_s=100.0 + length_s, start_utc=datetime(2026, 5, 14, 4, 5, 6, tzinfo=timezone.utc), score=0.64,
                channels=tuple(range(channels)), channel_scores=tuple(np.linspace(0.1, 0.64, channels).tolist()),
                best_channel=channels - 1, bundle="first-light", bundle_digest=digest, clip=clip,
                clip_start_s=None if clip is None else 98.0,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
