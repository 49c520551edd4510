"""The service on a machine that is booted for real. The tests are steps of one voyage: each goes on where the last was."""

from __future__ import annotations

import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Machine

HERE = Path(__file__).resolve().parent
SETTINGS = "/etc/orcawatch/config.yaml"
FILE_SETTINGS = """
output: /var/lib/orcawatch
station: the nspawn buoy
source: {file: /srv/scene.flac, realtime: true}
ledger: {checkpoint_s: 2}
"""
LIVE_SETTINGS = """
output: /var/lib/orcawatch
station: the nspawn buoy
source: {device: pulse, rate_hz: 44100, device_channels: 4, stalled_s: 3}
ledger: {checkpoint_s: 2}
"""
DETECTIONS = "SELECT id, start_utc, score, clip, snapshot, session FROM detections ORDER BY id"
LEDGER = "SELECT kind, cause, session, start_utc, end_utc FROM ledger ORDER BY id"


@pytest.fixture(autouse=True)
def go_on(machine: Machine, request: pytest.FixtureRequest) -> None:
    """A step whose predecessor failed is skipped."""
    if machine.failed:
        pytest.skip(f"{machine.failed} failed")


ASK = """
import sys, urllib.error, urllib.parse, urllib.request
path, token, form = sys.argv[1:]
headers = {"Authorization": "Bearer " + token} if token else {}
asked = urllib.request.Request("http://127.0.0.1:8765" + path, form.encode() or None, headers)
try:
    answer = urllib.request.urlopen(asked, timeout=60)
except urllib.error.HTTPError as fault:
    answer = fault
print(answer.status, answer.read().decode("latin-1"))
"""


def asked(machine: Machine, path: str, token: str = "", form: str = "") -> tuple[int, str]:
    """The page's answer to a request from outside of its unit: its code, and its text. 0 while nobody answers."""
    done = machine.run(f"python3 -c {shlex.quote(ASK)} {shlex.join([path, token, form])}", check=False)
    code, _, text = done.stdout.partition(" ")
    return int(code or 0), text


def page_property(machine: Machine, name: str) -> str:
    """A property of the review page's unit."""
    return machine.says(f"systemctl show orcawatch-web --property={name} --value")


def detections(machine: Machine) -> list[list[object]]:
    return machine.rows(DETECTIONS)


def acknowledged(machine: Machine) -> list[list[object]]:
    """What is certain of every detection once it has a row; clip and snapshot follow."""
    return [row[:3] for row in detections(machine)]


def gaps(machine: Machine) -> list[list[object]]:
    """The ledger's gaps, without those in which nothing ran."""
    return [row for row in machine.rows(LEDGER) if row[0] == "gap" and row[1] != "not running"]


def not_running(machine: Machine) -> int:
    """Number of stretches that the ledger calls `not running`."""
    return sum(row[:2] == ["gap", "not running"] for row in machine.rows(LEDGER))


def started(machine: Machine, times: int) -> bool:
    """Whether systemd has restarted the service so often, and it says that it is ready."""
    return int(machine.property("NRestarts")) >= times and machine.property("ActiveState") == "active"


def processes(machine: Machine) -> set[str]:
    """Numbers of the service's processes."""
    found = machine.says("grep --files-with-matches --no-messages orcawatch.service /proc/[0-9]*/cgroup || true")
    return {line.split("/")[2] for line in found.splitlines()}


def change(machine: Machine, settings: str) -> None:
    """Put other settings in the place of the old, with their owner and mode."""
    machine.run(f"cat > {SETTINGS} <<'END'\n{settings}\nEND")


def test_the_package_becomes_a_service(machine: Machine) -> None:
    machine.run("pip install --quiet --no-index --no-deps --find-links /wheel orcawatch")
    assert machine.run("orcawatch deploy status", check=False).returncode == 1
    written = machine.says("orcawatch deploy install --no-start")
    assert "/etc/systemd/system/orcawatch.service" in written and SETTINGS in written
    assert machine.says("orcawatch deploy install --no-start") == "installed, not started"  # nothing written again
    units = " ".join(f"orcawatch{part}.service" for part in ("", "-web", "-uplink"))
    assert machine.says(f"systemd-analyze verify {units} 2>&1") == ""
    assert machine.says("systemctl is-enabled orcawatch") == "enabled"
    assert "orcawatch" in machine.says("getent group audio")
    assert machine.says(f"stat --format '%a %U %G' {SETTINGS}") == "640 root orcawatch"


@pytest.mark.parametrize("unit", ["orcawatch.service", "orcawatch-web.service", "orcawatch-uplink.service"])
def test_the_sandbox_is_tight_enough(machine: Machine, unit: str) -> None:
    told = machine.says(f"systemd-analyze security --no-pager {unit}")
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert exposure is not None and float(exposure[1]) <= 2.0


def test_a_file_in_real_time_is_detected_in(machine: Machine) -> None:
    machine.run("orcawatch simulate /srv/scene.flac --seconds 90 --seed 3 --calls 20; sync")
    machine.put(HERE / "test.conf", "/etc/systemd/system/orcawatch.service.d/test.conf")
    change(machine, FILE_SETTINGS)
    machine.run("systemctl daemon-reload; orcawatch deploy install")  # returns when the service has said READY
    assert machine.property("ActiveState") == "active"
    machine.wait_for("a detection", lambda: detections(machine))


def test_the_daemon_is_confined(machine: Machine) -> None:
    process = machine.property("MainPID")
    told = dict(line.split(":\t") for line in machine.says(f"cat /proc/{process}/status").splitlines())
    assert int(told["CapBnd"], 16) == int(told["CapEff"], 16) == 0
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    within = f"nsenter --target={process} --mount --"
    assert machine.run(f"{within} touch /etc/orcawatch/x /usr/x /opt/orcawatch/x", check=False).returncode != 0
    assert machine.says(f"{within} ls /home /root") == "/home:\n\n/root:"


def test_the_sandbox_lets_the_sound_card_be_opened(machine: Machine) -> None:
    machine.run("mkdir -p /dev/snd; cd /dev/snd; mknod -m 660 pcmC0D0c c 116 24; chgrp audio pcmC0D0c")
    unit = machine.says("cat /etc/systemd/system/orcawatch.service").split("[Service]")[1].split("[Install]")[0]
    kinds = r"User|Group|SupplementaryGroups|(?:Protect|Private|Device|SystemCall|Restrict)\w+"
    kept = re.findall(rf"^(?:{kinds})=.*", unit, re.MULTILINE)
    assert len(kept) > 20
    # There is no card behind the name; whoever may not open it is told another thing.
    assert "No such device" in opening_a_card(machine, kept)
    others = [line for line in kept if "audio" not in line and not line.startswith(("User", "Group"))]
    assert "Permission denied" in opening_a_card(machine, [*others, "User=daemon"])


def opening_a_card(machine: Machine, sandbox: list[str]) -> str:
    """What the shell says when it opens a sound card in a sandbox."""
    return in_sandbox(machine, sandbox, ": </dev/snd/pcmC0D0c")


def test_a_watch_without_a_network_sends_by_the_uplink(machine: Machine) -> None:
    apart = "uplink: apart\nsinks: [{kind: jsonl}]\nheartbeat_s: 5\nmetrics: {port: 9400, address: 0.0.0.0}\n"
    change(machine, FILE_SETTINGS + apart)
    machine.run("orcawatch deploy install")
    networks = [machine.says(f"readlink /proc/{process}/ns/net") for process in (1, machine.property("MainPID"))]
    assert networks[0] != networks[1]
    arrived = "cat /var/lib/orcawatch/messages/* 2>/dev/null | grep -c heartbeat || true"
    machine.wait_for("a heartbeat from the uplink", lambda: int(machine.says(arrived)) > 0)
    uplink = machine.says("systemctl show orcawatch-uplink --property=MainPID --value")
    assert machine.says(f"readlink /proc/{uplink}/ns/net") == networks[0]
    figures = (
        "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:9400/metrics\").read().decode())'"
    )
    machine.wait_for(
        "the metrics", lambda: "orcawatch_channel_windows_total" in machine.run(figures, check=False).stdout
    )
    held = machine.says(f"ls -l /proc/{machine.property('MainPID')}/fd")
    assert "/messages/" not in held  # it is not the watch that writes there
    told = machine.says("systemd-analyze security --no-pager orcawatch.service")
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert exposure is not None and float(exposure[1]) < 1.0
    change(machine, FILE_SETTINGS)
    machine.run("orcawatch deploy install")
    assert machine.says("systemctl is-active orcawatch-uplink || true") == "inactive"
    assert machine.says("systemctl is-enabled orcawatch-uplink || true") == "disabled"


def test_a_reload_takes_what_can_be_taken(machine: Machine) -> None:
    process = machine.property("MainPID")
    change(machine, FILE_SETTINGS + "clips: {pre_roll_s: 1}\nthreads: 2\n")
    machine.run("systemctl reload orcawatch")
    machine.wait_for("the new key", lambda: "clips.pre_roll_s: 2 -> 1" in machine.journal())
    assert "threads: 1 -> 2 waits for a restart" in machine.journal()
    change(machine, "statoin: wrong\n")
    machine.run("systemctl reload orcawatch")
    machine.wait_for("the refusal", lambda: "did you mean station?" in machine.journal())
    machine.wait_for("the end of the reload", lambda: machine.property("ActiveState") == "active")
    assert machine.property("MainPID") == process


def test_a_clean_stop_keeps_all(machine: Machine) -> None:
    machine.run("systemctl stop orcawatch")
    assert (machine.property("Result"), machine.property("ExecMainStatus")) == ("success", "0")
    found = detections(machine)
    assert found and all(clip and snapshot for _, _, _, clip, snapshot, _ in found)
    files = " ".join(f"/var/lib/orcawatch/{name}" for row in found for name in row[3:5])
    assert machine.run(f"test -s /dev/null || ls -s {files}").returncode == 0
    assert machine.says("find /var/lib/orcawatch -name '*.partial' -o -name '*-wal' -size +0") == ""
    assert machine.rows("SELECT DISTINCT kind FROM ledger") == [["recorded"]]  # of each start one row


def test_wrong_settings_are_tried_again_until_they_are_right(machine: Machine) -> None:
    machine.run("systemctl start orcawatch", check=False)  # the settings are still the wrong ones
    machine.wait_for("more restarts than systemd's own limit", lambda: int(machine.property("NRestarts")) > 5)
    assert "status=2/INVALIDARGUMENT" in machine.journal()
    assert machine.run("orcawatch deploy status", check=False).returncode == 1
    change(machine, LIVE_SETTINGS)
    machine.wait_for("a start", lambda: machine.property("ActiveState") == "active")


def test_it_waits_for_a_sound_card_and_detects_in_what_it_hears(machine: Machine) -> None:
    before = len(detections(machine))
    for name in ("sea.service", "waves.service"):
        machine.put(HERE / name, f"/etc/systemd/system/{name}")
    machine.run("systemctl daemon-reload; systemctl enable --now sea waves; sync")
    machine.wait_for("a live detection", lambda: len(detections(machine)) > before, 90)
    assert ["live", 4] in machine.rows("SELECT 'live', json_array_length(channels) FROM sessions WHERE live")
    machine.wait_for("a healthy status", lambda: machine.run("orcawatch deploy status", check=False).returncode == 0)


def test_capture_that_is_killed_comes_back_by_itself(machine: Machine) -> None:
    process, restarts = machine.property("MainPID"), machine.property("NRestarts")
    before = len(gaps(machine))
    (capture,) = processes(machine) - {process}
    machine.run(f"kill -9 {capture}")
    machine.wait_for("the gap", lambda: len(gaps(machine)) > before)
    machine.wait_for("recording", lambda: machine.rows(LEDGER)[-1][0] == "recorded")
    assert (machine.property("MainPID"), machine.property("NRestarts")) == (process, restarts)


def test_the_page_is_served_beside_the_daemon(machine: Machine) -> None:
    assert machine.says("systemctl is-enabled orcawatch-web || true") == "disabled"  # only who wants it has it
    process = machine.property("MainPID")
    machine.run("systemctl enable --now orcawatch-web")
    machine.wait_for("the page", lambda: asked(machine, "/healthz")[0] == 200)
    assert asked(machine, "/")[0] == 401
    token = machine.says("cat /var/lib/orcawatch/web-token")
    assert token not in machine.says("journalctl --no-pager")
    assert machine.says("stat --format '%a %U' /var/lib/orcawatch/web-token") == "600 orcawatch"
    ((id,),) = machine.rows("SELECT min(id) FROM detections WHERE clip IS NOT NULL AND snapshot IS NOT NULL")
    code, text = asked(machine, "/", token)
    assert code == 200 and f"/detection/{id}" in text and "the nspawn buoy" in text
    for path in (f"/detection/{id}", f"/detection/{id}/clip.wav", f"/thumbnail/{id}.jpg", "/effort", "/detections.csv"):
        assert asked(machine, path, token)[0] == 200, path
    assert '"listening"' in asked(machine, "/status.json", token)[1]
    assert asked(machine, f"/detection/{id}/verdict", token, "verdict=orca&note=&reviewer=boot")[0] == 200
    assert machine.rows(f"SELECT verdict, reviewer FROM detections WHERE id = {id}") == [["orca", "boot"]]
    assert machine.property("MainPID") == process


def test_the_page_can_neither_hurt_the_daemon_nor_the_recordings(machine: Machine) -> None:
    within = f"nsenter --target={page_property(machine, 'MainPID')} --mount --"
    for place in ("clips", "snapshots"):
        done = machine.run(f"{within} touch /var/lib/orcawatch/{place}/x", check=False)
        assert done.returncode != 0 and "Read-only file system" in done.stderr
    assert machine.run(f"{within} touch /etc/orcawatch/x /usr/x", check=False).returncode != 0
    unit = machine.says("cat /etc/systemd/system/orcawatch-web.service")
    kept = re.findall(r"^(?:User|SystemCall\w+)=.*", unit, re.MULTILINE)
    signal = f"kill -CONT {machine.property('MainPID')}"
    assert len(kept) == 5 and "not permitted" in in_sandbox(machine, kept, signal)
    assert in_sandbox(machine, ["User=orcawatch"], signal) == ""
    memory_b = int(machine.says("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")) * 1024
    assert int(page_property(machine, "MemoryMax")) < 0.5 * memory_b
    weights = [int(machine.says(f"systemctl show {name} -P CPUWeight")) for name in ("orcawatch-web", "orcawatch")]
    assert weights[0] * 10 <= weights[1]


def in_sandbox(machine: Machine, sandbox: list[str], command: str) -> str:
    """What a shell says that runs a command in a sandbox."""
    properties = " ".join(f"--property={shlex.quote(line)}" for line in sandbox)
    line = shlex.quote(f"exec 2>&1; {command}")
    return machine.run(f"systemd-run --wait --pipe --quiet {properties} /bin/sh -c {line}", check=False).stdout


def test_a_page_that_is_killed_comes_back_and_a_daemon_that_is_stopped_does_not_take_it_along(
    machine: Machine,
) -> None:
    page, daemon = page_property(machine, "MainPID"), machine.property("MainPID")
    machine.run(f"kill -9 {page}")
    machine.wait_for("the page", lambda: asked(machine, "/healthz")[0] == 200)
    assert page_property(machine, "MainPID") not in (page, "0") and machine.property("MainPID") == daemon
    stops = not_running(machine)
    machine.run("systemctl stop orcawatch")
    token = machine.says("cat /var/lib/orcawatch/web-token")
    assert asked(machine, "/", token)[0] == 200 and '"listening"' not in asked(machine, "/status.json", token)[1]
    machine.run("systemctl start orcawatch")
    machine.wait_for("the ledger's gap", lambda: not_running(machine) == stops + 1)


def test_the_watchdog_ends_a_daemon_that_hangs(machine: Machine) -> None:
    process, before = machine.property("MainPID"), acknowledged(machine)
    restarts, stops = int(machine.property("NRestarts")), not_running(machine)
    machine.run(f"kill -STOP {process}")
    machine.wait_for("a restart", lambda: started(machine, restarts + 1), 90)
    assert machine.property("MainPID") != process
    assert "Watchdog timeout" in machine.journal()
    assert acknowledged(machine)[: len(before)] == before
    machine.wait_for("the ledger's gap", lambda: not_running(machine) == stops + 1)
    machine.wait_for("capture", lambda: len(processes(machine)) == 2)
    assert machine.property("MainPID") in processes(machine)  # nothing of the old daemon is left


def test_a_power_cut_costs_no_detection(machine: Machine) -> None:
    count = len(detections(machine))
    machine.wait_for("one more detection", lambda: len(detections(machine)) > count, 90)
    before, stops = acknowledged(machine), not_running(machine)
    machine.run("echo nothing waits for this > /srv/unwritten")
    machine.cut_power()
    machine.boot()
    assert machine.run("test -s /srv/unwritten", check=False).returncode != 0  # the cut was one
    machine.wait_for("the service by itself", lambda: machine.property("ActiveState") == "active")
    machine.wait_for("the page by itself", lambda: asked(machine, "/healthz")[0] == 200)
    assert acknowledged(machine)[: len(before)] == before
    machine.wait_for("the ledger's gap", lambda: not_running(machine) == stops + 1)
    assert machine.rows("PRAGMA integrity_check") == [["ok"]]
    machine.wait_for("the next detection", lambda: len(detections(machine)) > len(before), 90)


def test_an_orderly_shutdown_and_the_next_boot(machine: Machine) -> None:
    session = machine.rows("SELECT max(id) FROM sessions")[0][0]
    machine.power_off()
    machine.boot()
    machine.wait_for("the service by itself", lambda: machine.property("ActiveState") == "active")
    machine.wait_for("a healthy status", lambda: machine.run("orcawatch deploy status", check=False).returncode == 0)
    assert machine.rows(f"SELECT ended_utc IS NOT NULL FROM sessions WHERE id = {session}") == [[1]]
    assert machine.rows("SELECT count(*) FROM recoveries") == [[0]]
    machine.show("orcawatch deploy status")
    machine.show("orcawatch effort --config /etc/orcawatch/config.yaml")


def test_the_ledger_accounts_for_every_second(machine: Machine) -> None:
    rows = machine.rows(f"{LEDGER.split('ORDER')[0]} WHERE start_utc IS NOT NULL ORDER BY start_utc")
    spans = [(datetime.fromisoformat(row[3]), datetime.fromisoformat(row[4])) for row in rows]
    between_s = [(later[0] - earlier[1]).total_seconds() for earlier, later in zip(spans, spans[1:])]
    assert all(abs(seconds) < 0.1 for seconds in between_s), list(zip(rows, between_s))
    whole_s = (spans[-1][1] - spans[0][0]).total_seconds()
    assert sum((end - start).total_seconds() for start, end in spans) == pytest.approx(whole_s, abs=0.5)


def test_uninstalling_keeps_the_data_until_it_is_purged(machine: Machine) -> None:
    machine.run("orcawatch deploy uninstall")
    assert machine.property("LoadState") == "not-found"
    assert page_property(machine, "LoadState") == "not-found" and asked(machine, "/healthz")[0] == 0
    assert processes(machine) == set()
    assert machine.run(f"test -s /var/lib/orcawatch/detections.sqlite -a -s {SETTINGS}").returncode == 0
    machine.run("orcawatch deploy uninstall --purge --yes")
    assert machine.run("test -e /var/lib/orcawatch -o -e /etc/orcawatch || id orcawatch", check=False).returncode != 0
