"""A real browser, Debian's Chromium without a screen, for tests and pictures of the pages."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcawatch.config import Settings

TOKEN = "sea-of-tokens-for-tests"
PATIENCE_S = 15.0
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--lang=en",
    "--autoplay-policy=no-user-gesture-required", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--mute-audio",
)  # fmt: skip


def open_browser() -> Any:
    """Chromium, driven; skips the test where it is not there."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in OPTIONS:
        options.add_argument(option)
    return selenium.Chrome(options=options, service=selenium.ChromeService(driver))


def wait_for(what: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """What a call returns as soon as it is true; fails the test after a while."""
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"it did not come true in {patience_s:g} s")


class Browser:
    """What tests do with the driver.

    Parameters
    ----------
    driver : of selenium.
    base : address of the site.
    """

    def __init__(self, driver: Any, base: str) -> None:
        self.driver = driver
        self.base = base

    def go(self, path: str) -> None:
        """Load a page."""
        self.driver.get(self.base + path)

    def js(self, script: str, *arguments: Any) -> Any:
        """Value of an expression."""
        return self.driver.execute_script(f"return ({script});", *arguments)

    def key(self, *keys: str) -> None:
        """Press keys on the page."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def find(self, selector: str) -> Any:
        """The first element."""
        return self.driver.find_element("css selector", selector)

    def size(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """The window, and the colours that the reader likes."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def complaints(self) -> list[str]:
        """What the browser has written into its console since the last call: errors, and what the policy refused."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def strangers(self) -> list[str]:
        """Addresses that the page has asked for elsewhere."""
        asked = self.js("JSON.stringify(performance.getEntriesByType('resource').map((entry) => entry.name))")
        return [name for name in json.loads(asked) if not name.startswith((self.base, "data:", "blob:"))]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.js("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"))

    def shoot(self, path: Path, whole: bool = True) -> Path:
        """A picture of the page, of all its height where `whole`."""
        import base64

        path.parent.mkdir(parents=True, exist_ok=True)
        found = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole, "format": "png"})
        path.write_bytes(base64.b64decode(found["data"]))
        return path


@contextmanager
def served(output: Path, token: str = TOKEN, **changes: Any) -> Iterator[str]:
    """The address of the site of an output folder, served by the same server as `orcawatch serve`."""
    from waitress.server import create_server

    from orcawatch.web.app import create_app

    app = create_app(replace(Settings(), output=output, **changes), token)
    server = create_server(app, host="127.0.0.1", port=0, threads=6)
    threading.Thread(target=server.run, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.close()
        server.task_dispatcher.shutdown()  # connections that a browser keeps open do not hold the tests
