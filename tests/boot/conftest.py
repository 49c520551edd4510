"""A small Debian that is booted under systemd-nspawn, whose power can be cut."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "boot"
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "mkfs.ext4": "e2fsprogs"}
SUITE_PYTHON = (3, 11)  # Debian's python3 in the root that build.sh makes
DISK_MB = 2048
BOOT_S = 60.0
JOURNAL = "journalctl --boot --unit orcawatch --no-pager --output short-iso-precise"
SKIPPED = ("/usr/lib/python3", "/click/", "/bin/orcawatch", "Extension modules")  # of a traceback, in the evidence
evidence: list[tuple[str, str]] = []


class Machine:
    """A machine whose disk is an image: it can be booted, given commands, switched off, and cut off from power.

    Parameters
    ----------
    folder : of its disk image.

    Attributes
    ----------
    failed : name of the step after which nothing can go on; empty so far.
    """

    def __init__(self, folder: Path) -> None:
        self.failed = ""
        self.disk = folder / "disk.img"
        self._console = folder / "console.log"
        self._boot: subprocess.Popen[bytes] | None = None
        self._leader = 0
        with self.disk.open("wb") as image:
            image.truncate(DISK_MB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", self.disk], check=True)

    def boot(self) -> None:
        """Boot, and wait until every unit has been started."""
        with self._console.open("ab") as console:
            self._boot = subprocess.Popen(
                [HERE / "boot.sh", CACHE, self.disk],
                stdin=subprocess.PIPE, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        wait_for("the machine's first process", lambda: self._find_leader() > 0, BOOT_S)
        wait_for(
            "the system's bus", lambda: self.run("test -S /run/dbus/system_bus_socket", check=False).returncode == 0
        )
        self.run("systemctl is-system-running --wait", check=False)

    def run(self, script: str, check: bool = True, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a shell script as root in the machine."""
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
             "env", "-i", "PATH=/opt/orcawatch/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root",
             "/bin/sh", "-ec", script],
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(
                f"`{script}` ended with {done.returncode}:\n{done.stdout}{done.stderr}\n{self.journal()}"
            )
        return done

    def says(self, script: str) -> str:
        """What a script prints, without the line's end."""
        return self.run(script).stdout.strip()

    def put(self, file: Path, place: str) -> None:
        """Copy a file into the machine."""
        self.run(f"mkdir -p {Path(place).parent}; cat > {place} <<'END'\n{file.read_text()}\nEND")

    def wait_for(self, what: str, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        """As the function; the journal stands in the error."""
        try:
            wait_for(what, condition, timeout_s)
        except AssertionError as fault:
            raise AssertionError(f"{fault}\n{self.journal()}") from fault

    def property(self, name: str) -> str:
        """A property of the service."""
        return self.says(f"systemctl show orcawatch --property={name} --value")

    def rows(self, query: str) -> list[list[Any]]:
        """Rows of the service's database; none while there is no such table."""
        program = (
            "import json, sqlite3, sys\n"
            "with sqlite3.connect('file:/var/lib/orcawatch/detections.sqlite?mode=ro', uri=True) as found:\n"
            "    print(json.dumps(found.execute(sys.argv[1]).fetchall()))"
        )
        done = self.run(f"python3 -c {shlex.quote(program)} {shlex.quote(query)}", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else []  # type: ignore[no-any-return]

    def journal(self) -> str:
        """The service's journal since the last boot."""
        done = self.run(JOURNAL, check=False)
        return done.stdout or done.stderr

    def show(self, script: str) -> None:
        """Keep what a script prints for the end of the report, whatever its exit code."""
        done = self.run(script, check=False)
        evidence.append((script, done.stdout + done.stderr))

    def power_off(self) -> None:
        """Switch off in an orderly way."""
        self.show(JOURNAL)
        self.run("systemctl poweroff", check=False)
        self._ended(90.0)

    def cut_power(self) -> None:
        """Kill every process at once; what no process had written through to the disk is lost."""
        self.show(JOURNAL)
        os.kill(self._leader, signal.SIGKILL)
        self._ended(60.0)
        self.disk.with_suffix(".img.cut").replace(self.disk)

    def close(self) -> None:
        """End whatever still runs."""
        if self._boot is not None and self._boot.poll() is None:
            if self._leader:
                os.kill(self._leader, signal.SIGKILL)
            self._ended(60.0)

    def _ended(self, timeout_s: float) -> None:
        assert self._boot is not None
        self._boot.wait(timeout_s)
        if self._boot.stdin is not None:
            self._boot.stdin.close()
        self._boot, self._leader = None, 0

    def _find_leader(self) -> int:
        """Number of the machine's first process: the child of nspawn, which is boot.sh's."""
        assert self._boot is not None
        if self._boot.poll() is not None:
            raise AssertionError(f"the machine did not boot:\n{self._console.read_text()}")
        inner = [grandchild for child in children(self._boot.pid) for grandchild in children(child)]
        self._leader = next((process for process in inner if name_of(process) == "systemd"), 0)
        return self._leader


def children(process: int) -> list[int]:
    """Numbers of a process's children."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def name_of(process: int) -> str:
    """Name of a process's program; empty where it has ended."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Ask four times a second until the condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.25)


def missing() -> str:
    """Why nothing can be booted here; empty where it can."""
    lacking = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "only root can boot a machine"
    if lacking:
        return f"missing: {' '.join(lacking)} (apt-get install, or `make boot`)"
    if not Path("/dev/loop-control").exists():
        return "no disk image can be mounted here (/dev/loop-control is missing)"
    if sys.version_info[:2] != SUITE_PYTHON:
        return f"needs Python {SUITE_PYTHON[0]}.{SUITE_PYTHON[1]}, as in the machine"
    return ""


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with its wheel in /wheel and nothing installed, booted."""
    if reason := missing():
        pytest.skip(reason)
    subprocess.run([HERE / "build.sh", CACHE, sys.executable], check=True)
    found = Machine(tmp_path_factory.mktemp("machine"))
    try:
        found.boot()
        yield found
    finally:
        if found._leader:
            found.show(JOURNAL)
        found.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the journal: what the service itself said."""
    for command, text in evidence:
        terminalreporter.section(command)
        for line in text.splitlines():
            if not any(part in line for part in SKIPPED):
                terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Remember the first step that failed."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and machine is not None and not machine.failed:
        machine.failed = item.name
    return report
