"""The pages in a real browser: by keyboard, with sound, on a phone, and with nothing from elsewhere."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.parts

ESCAPE, TAB = "\ue00c", "\ue004"  # as WebDriver writes them
ROOT = Path(__file__).parents[2]
NOTE = """<script>alert('x')</script> "quoted" & <img src=x onerror=alert(1)>"""


def by_path(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # dataclasses look there
    spec.loader.exec_module(found)
    return found


browsing = by_path(Path(__file__).with_name("browser.py"))
Browser, wait_for, TOKEN = browsing.Browser, browsing.wait_for, browsing.TOKEN


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty detections in three days, four of them with clips."""
    output: Path = tmp_path_factory.mktemp("season")
    by_path(ROOT / "benchmarks" / "many.py").fill(output, 40, 3, 4, 600)
    return output


@pytest.fixture
def output(season: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, without any verdict."""
    copy: Path = shutil.copytree(season, tmp_path / "out")
    with sqlite3.connect(copy / "detections.sqlite") as connection:
        connection.execute("DELETE FROM verdicts")
        connection.execute("UPDATE detections SET verdict = NULL, verdict_note = '', verdict_utc = NULL, reviewer = ''")
    connection.close()
    return copy


@pytest.fixture(scope="module")
def driver() -> Iterator[object]:
    found = browsing.open_browser()
    yield found
    found.quit()


@pytest.fixture
def browser(driver: object, output: Path) -> Iterator[object]:
    """A browser that has entered with the token."""
    with browsing.served(output) as base:
        found = Browser(driver, base)
        found.size(1280, 900)
        found.go(f"/?token={TOKEN}")
        found.complaints()
        yield found
        found.driver.delete_all_cookies()


def verdicts_in(output: Path) -> list[tuple[int, str, str, str]]:
    with sqlite3.connect(output / "detections.sqlite") as connection:
        found = connection.execute("SELECT detection, verdict, note, reviewer FROM verdicts ORDER BY id").fetchall()
    connection.close()
    return found


def shown(browser: object) -> int:
    return int(wait_for(lambda: browser.js("document.getElementById('detection')?.dataset.id")))  # type: ignore[attr-defined]


def test_a_day_is_reviewed_by_keyboard_alone(browser: Browser, output: Path) -> None:
    browser.go("/detection/40?verdict=none")
    browser.find("#reviewer").send_keys("Ada")
    browser.key(ESCAPE)
    browser.find("#note").send_keys(NOTE)
    browser.key(ESCAPE)
    ids = []
    for key in ("o", "n", "u"):
        ids.append(shown(browser))
        browser.key(key)
        wait_for(lambda: shown(browser) != ids[-1])
    assert [(id, said) for id, said, _, _ in verdicts_in(output)] == list(zip(ids, ("orca", "not_orca", "unsure")))
    assert verdicts_in(output)[0][2:] == (NOTE, "Ada") and verdicts_in(output)[2][3] == "Ada"
    browser.key("z")
    wait_for(lambda: shown(browser) == ids[2])
    assert verdicts_in(output)[-1][:2] == (ids[2], None)
    browser.go(f"/detection/{ids[0]}")
    assert NOTE in browser.find(".history").text
    browser.go("/")
    assert NOTE in browser.find(".note").text
    assert browser.complaints() == [] and browser.strangers() == []


def test_the_filtered_list_is_downloaded(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.go("/?score=0.5&sort=score")
    count = int(browser.find("h1").text.split()[0])
    browser.find("a[download]").click()
    (file,) = wait_for(lambda: list(folder.glob("*.csv")))
    assert re.fullmatch(r"orcawatch_2026-\d\d-\d\d_2026-\d\d-\d\d_detections\.csv", file.name)
    with file.open(encoding="utf-8-sig", newline="") as text:
        scores = [float(row["score"]) for row in csv.DictReader(text)]
    assert 0 < len(scores) == count < 40 and scores == sorted(scores, reverse=True) and scores[-1] >= 0.5
    assert browser.complaints() == []


def test_sound_plays_and_the_playhead_keeps_step(browser: Browser) -> None:
    browser.go("/detection/40")
    assert wait_for(lambda: browser.js("audio.readyState >= 2"))
    browser.key(" ")
    wait_for(lambda: browser.js("audio.currentTime > 0.3"))
    browser.key(" ")
    wait_for(lambda: browser.js("audio.paused"))
    for selector in (".plot[data-kind=spectrogram]", ".plot[data-kind=relevance]", ".curve"):
        off_px = browser.js(
            "(() => { const plot = document.querySelector(arguments[0]).getBoundingClientRect();"
            "const line = document.querySelector(arguments[0]).querySelector('.playhead').getBoundingClientRect();"
            "return line.left + line.width / 2 - plot.left - plot.width * audio.currentTime / audio.duration; })"
            ".apply(null, arguments)".replace("arguments[0]", f"'{selector}'"),
        )
        assert abs(off_px) < 3
    assert abs(browser.js("audio.duration - Number(document.getElementById('detection').dataset.length)")) < 0.01


def test_a_click_on_a_picture_goes_there(browser: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.go("/detection/40")
    wait_for(lambda: browser.js("audio.readyState >= 2"))
    plot = browser.find(".plot[data-kind=relevance]")
    ActionChains(browser.driver).move_to_element_with_offset(plot, plot.size["width"] // 4, 0).click().perform()
    wait_for(lambda: abs(browser.js("audio.currentTime / audio.duration") - 0.75) < 0.02)
    browser.key("0")
    wait_for(lambda: browser.js("audio.src.endsWith('channel=0') && audio.readyState >= 2"))
    assert abs(browser.js("audio.currentTime / audio.duration") - 0.75) < 0.02


def test_what_the_network_looked_at_is_made_for_every_channel(browser: Browser) -> None:
    browser.go("/detection/40")
    wait_for(lambda: browser.js("document.getElementById('detection').dataset.looked"), 40)
    pictures = "[...document.querySelectorAll('.veil')].filter((one) => one.getAttribute('href')).length"
    lines = "[...document.querySelectorAll('.score-line')].filter((one) => one.points.numberOfItems > 3).length"
    assert browser.js(pictures) == browser.js(lines) == 4
    assert browser.complaints() == []


def test_every_page_fits_a_phone_and_asks_nobody_else(browser: Browser) -> None:
    for width in (360, 1280):
        browser.size(width, 800)
        for path in ("/", "/?sort=score", "/detection/40", "/detection/3", "/effort", "/status", "/?note=nothing"):
            browser.go(path)
            assert browser.overflow() <= 0, (path, width)
            assert browser.strangers() == [], path
            assert browser.complaints() == [], path


def test_every_control_has_a_name(browser: Browser) -> None:
    nameless = (
        "[...document.querySelectorAll('a, button, input:not([type=hidden]), select, textarea, [role=img]')]"
        ".filter((one) => one.checkVisibility() && !(one.textContent.trim() || one.ariaLabel || one.title"
        " || one.labels?.[0]?.textContent.trim() || one.querySelector('img[alt]:not([alt=\"\"])')))"
        ".map((one) => one.outerHTML.slice(0, 120))"
    )
    for path in ("/", "/detection/40", "/effort", "/status"):
        browser.go(path)
        assert browser.js(nameless) == [], path


def test_who_tabs_sees_where_they_are(browser: Browser) -> None:
    browser.go("/detection/40")
    for _ in range(12):
        browser.key(TAB)
        outline = browser.js("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", browser.js("document.activeElement.outerHTML.slice(0, 200)")


def test_without_the_token_one_may_only_look(browser: Browser, output: Path) -> None:
    browser.driver.delete_all_cookies()
    browser.go("/detection/40")
    assert not browser.find(".choices button").is_enabled()
    browser.key("o")
    assert "token" in wait_for(lambda: browser.find("#toast").text)
    refused = browser.driver.execute_async_script(
        "const done = arguments[0]; const body = new FormData(); body.set('verdict', 'orca');"
        "fetch('/detection/40/verdict', {method: 'POST', body, headers: {Accept: 'application/json'}})"
        ".then(async (answer) => done([answer.status, (await answer.json()).error]));"
    )
    assert refused[0] == 401 and "token" in refused[1] and verdicts_in(output) == []


def test_what_somebody_else_said_meanwhile_is_told(browser: Browser, output: Path) -> None:
    from datetime import datetime, timezone

    from orcawatch import verdicts

    browser.go("/detection/40")
    with verdicts.Writer(output / "detections.sqlite") as writer:
        verdicts.give(writer, 40, "not_orca", "a door", "Bea", datetime.now(timezone.utc))
    browser.find("#note").send_keys("mine")
    browser.find(".choices .orca").click()
    assert "Bea" in wait_for(lambda: browser.find("#fault").text)
    assert browser.find("#note").get_attribute("value") == "mine" and len(verdicts_in(output)) == 1
    browser.find(".choices .orca").click()
    wait_for(lambda: len(verdicts_in(output)) == 2)


def test_the_status_follows_a_daemon_that_listens(driver: object, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (300 * 16000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "sea.wav", noise, 16000)
    (tmp_path / "c.yaml").write_text("output: out\nledger: {checkpoint_s: 1}\nlevels: {every_s: 1}\n")
    command = [sys.executable, "-m", "orcawatch.cli", "run", "--config", "c.yaml", "--input", "sea.wav", "--realtime"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_for((tmp_path / "out" / "detections.sqlite").exists)
            with browsing.served(tmp_path / "out") as base:
                browser = Browser(driver, base)
                browser.complaints()
                browser.go(f"/?token={TOKEN}")
                assert "No detections yet" in browser.find(".empty").text
                browser.go("/status")
                first = wait_for(lambda: browser.js("document.getElementById('live')?.textContent"))
                wait_for(lambda: browser.js("document.getElementById('live').textContent") != first)
                assert "Not running" not in browser.find("#live").text
                assert browser.complaints() == [] and browser.strangers() == []
        finally:
            daemon.send_signal(signal.SIGINT)
