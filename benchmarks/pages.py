"""How quick the review page is with many detections: time at the server and in a browser, bytes, and memory.

python benchmarks/many.py FOLDER --detections 100000 --days 180 --clips 12
python benchmarks/pages.py FOLDER [--rounds 20] [--browser]
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import click

PAGES = {
    "list": "/",
    "list, by score": "/?sort=score",
    "list, filtered": "/?verdict=orca&score=0.9",
    "list, a note": "/?note=loud",
    "list, nothing found": "/?note=no+such+words",
    "effort, 30 days": "/effort",
    "effort, a year": "/effort?days=365",
    "status": "/status",
}
DEEP = 20  # pages gone through to find one deep in the list
BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=100")


@click.command()
@click.argument("output", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Times each page is asked for.")
@click.option("--browser", is_flag=True, help="Load them in headless Chromium, too.")
def main(output: Path, rounds: int, browser: bool) -> None:
    """Serve OUTPUT and ask for each page, one after the other."""
    command = [sys.executable, "-m", "orcawatch.cli", "serve", str(output), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(re.findall(r":(\d+)/", str(server.stdout and server.stdout.readline()))[0])
            click.echo(f"memory at the start: {memory_mb(server.pid)}")
            for name, path in {**PAGES, f"list, page {DEEP}": deep(port), "detection": detection(port)}.items():
                click.echo(f"{name:22} {figures(port, path, rounds)}" + (f" {loaded(port, path)}" if browser else ""))
            click.echo(f"memory at the end: {memory_mb(server.pid)}")
        finally:
            server.terminate()


def get(port: int, path: str) -> tuple[float, bytes]:
    """Seconds until the whole answer is there, and its body."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        began_s = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise click.ClickException(f"{path}: {answer.status}")
        return time.perf_counter() - began_s, body


def figures(port: int, path: str, rounds: int) -> str:
    """Median and slowest answer, and its size."""
    found = [get(port, path) for _ in range(rounds)]
    times_ms = sorted(1000 * seconds for seconds, _ in found)
    size_kb = len(found[0][1]) / 1000
    return f"median {statistics.median(times_ms):7.1f} ms  slowest {times_ms[-1]:7.1f} ms  {size_kb:6.1f} kB"


def deep(port: int) -> str:
    """Address of a page far behind."""
    path = "/"
    for _ in range(DEEP - 1):
        found = re.search(rb'rel="next" href="([^"]+)"', get(port, path)[1])
        path = path if found is None else found.group(1).decode().replace("&amp;", "&")
    return path


def detection(port: int) -> str:
    """Address of the newest detection's page."""
    found = re.search(rb'href="(/detection/\d+)', get(port, "/")[1])
    return "/" if found is None else found.group(1).decode()


def loaded(port: int, path: str) -> str:
    """Time until the page is loaded in a browser that is started for it, less that for an empty page."""
    empty_s, page_s = browsed("about:blank"), browsed(f"http://127.0.0.1:{port}{path}")
    return f" browser {1000 * (page_s - empty_s):6.0f} ms"


def browsed(address: str) -> float:
    """Seconds of the quickest of three starts of a browser."""
    times_s: list[float] = []
    for _ in range(3):
        began_s = time.perf_counter()
        subprocess.run([*BROWSER, "--dump-dom", address], check=True, capture_output=True, timeout=120)
        times_s.append(time.perf_counter() - began_s)
    return min(times_s)


def memory_mb(process: int) -> str:
    """Resident memory now and at its highest, from /proc."""
    lines: Sequence[str] = Path(f"/proc/{process}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return f"{found['VmRSS']:.0f} MB, peak {found['VmHWM']:.0f} MB"


if __name__ == "__main__":
    main()
