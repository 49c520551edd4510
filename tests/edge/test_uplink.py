"""A watch that sends nothing, and a process that sends what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, Callable
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile

from orcawatch import uplink
from orcawatch.clock import Clocks
from orcawatch.config import load_settings
from orcawatch.outbox import open_outbox
from orcawatch.prometheus import Metrics
from orcawatch.service import serve
from orcawatch.store import Store
from orcawatch.turn import take_turn
from orcawatch.uplink import only_sender, send

ORCAWATCH = [sys.executable, "-m", "orcawatch.cli"]
SETTINGS = "output: out\nuplink: {uplink}\nheartbeat_s: 5\nsinks: [{{kind: jsonl, min_free_mb: 1}}]\n"
WAITING = "SELECT count(*) FROM outbox WHERE sent_utc IS NULL"


def run(*words: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, *ORCAWATCH, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def settings_file(folder: Path, uplink: str, sinks: str | None = None) -> Path:
    path = folder / f"{uplink}.yaml"
    path.write_text(SETTINGS.format(uplink=uplink) if sinks is None else f"output: out\nuplink: {uplink}\n{sinks}")
    return path


def fill(config: Path, count: int) -> None:
    """Messages as a watch leaves them."""
    settings = load_settings(config)
    settings.output.mkdir(exist_ok=True)
    with Store(settings.output / "detections.sqlite") as store:
        box = open_outbox(store, settings, Clocks(), 1)
        for number in range(count):
            with store.transaction() as connection:
                box.post(connection, "detection", {"detection": number})


def waiting(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "out/detections.sqlite")) as connection:
        return int(connection.execute(WAITING).fetchone()[0])


def arrived(folder: Path) -> list[int]:
    lines = [line for file in sorted((folder / "out/messages").glob("*")) for line in file.read_text().splitlines()]
    return [json.loads(line)["body"]["detection"] for line in lines if json.loads(line)["kind"] == "detection"]


def wait_for(done: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def in_no_network() -> tuple[str, ...]:
    """What begins a command in a network namespace of its own; nothing where that may not be had."""
    alone = ("unshare", "--net")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        return ()
    return alone


def read(port: int) -> tuple[int, str]:
    """Status and text of the figures."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as fault:
        return fault.code, fault.read().decode()
    except URLError:
        return 0, ""


@pytest.mark.parts
def test_figures_leave_a_watch_in_no_network_through_the_uplink(tmp_path: Path) -> None:
    """And again after it was killed, over the socket that it has left; without a watch the answer is 503."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    config = settings_file(tmp_path, "apart", f"station: north\nmetrics: {{port: {port}}}\n")
    soundfile.write(tmp_path / "sea.wav", np.random.default_rng(0).normal(0, 0.01, (600 * 16000, 1)), 16000)
    watch = [*in_no_network(), *ORCAWATCH, "run", "--realtime", "--input", "sea.wav", "--config", str(config)]
    with (tmp_path / "log").open("w") as log:
        both = {"cwd": tmp_path, "stdout": log, "stderr": log}
        uplink = subprocess.Popen([*ORCAWATCH, "uplink", "--config", str(config)], **both)  # type: ignore[call-overload]
        processes = [uplink]
        try:
            wait_for(lambda: read(port)[0] == 503)
            for _ in range(2):
                processes.append(subprocess.Popen(watch, **both))  # type: ignore[call-overload]
                wait_for(lambda: "# TYPE orcawatch_windows_total counter" in read(port)[1])
                assert 'station="north"' in read(port)[1]
                processes[-1].kill()
                processes[-1].wait()
                assert (tmp_path / "out/metrics-socket").is_socket()
                status, text = read(port)
                assert status == 503 and "no watch can be asked" in text
            uplink.send_signal(signal.SIGTERM)
            assert uplink.wait(30) == 0
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_a_watch_lets_go_of_its_socket_before_another_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could remove that of the other."""
    config, held, close = settings_file(tmp_path, "apart", "metrics: {port: 9100}\n"), list[bool](), Metrics.close
    soundfile.write(tmp_path / "sea.wav", np.random.default_rng(0).normal(0, 0.01, (3 * 16000, 1)), 16000)

    def looking(metrics: Metrics) -> None:
        held.append((tmp_path / "out/metrics-socket").is_socket() and take_turn(tmp_path / "out", "lock") is None)
        close(metrics)

    monkeypatch.setattr(Metrics, "close", looking)
    serve(lambda: load_settings(config), tmp_path / "sea.wav", False, lambda detection: None, Flag())
    assert held == [True] and not (tmp_path / "out/metrics-socket").exists()


@pytest.mark.parts
def test_a_watch_in_no_network_leaves_its_messages_to_the_uplink(tmp_path: Path) -> None:
    """In a network namespace of its own, as `PrivateNetwork=yes` makes it, where this may be had."""
    config = settings_file(tmp_path, "apart")
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "sea.wav", rng.normal(0, 0.01, (5 * 16000, 1)), 16000)
    done = run("run", "--config", config, "--input", tmp_path / "sea.wav", before=in_no_network())
    assert done.returncode == 0, done.stderr
    left = waiting(tmp_path)
    assert left >= 2 and not (tmp_path / "out/messages").exists()  # at least a heartbeat and the effort
    done = run("uplink", "--once", "--config", config)
    assert (done.returncode, done.stdout) == (0, "jsonl: 0 wait (0 bytes)\n"), done.stderr
    assert waiting(tmp_path) == 0 and len(list((tmp_path / "out/messages").iterdir())) == 1


def test_it_sends_for_ever_over_kills_and_alone(tmp_path: Path) -> None:
    config = settings_file(tmp_path, "apart")
    command = [*ORCAWATCH, "uplink", "--config", str(config)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # before there is anything
    try:
        wait_for((tmp_path / "out/uplink-lock").exists)
        second = run("uplink", "--config", config)
        assert second.returncode == 2 and "another `orcawatch uplink` sends" in second.stderr
        fill(config, 40)
        wait_for(lambda: len(arrived(tmp_path)) > 3 if (tmp_path / "out/messages").exists() else False)
    finally:
        first.kill()
        first.communicate()
    fill(config, 20)
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: waiting(tmp_path) == 0)
    again.send_signal(signal.SIGTERM)
    assert again.wait(30) == 0
    again.communicate()
    assert arrived(tmp_path) == [*range(40), *range(20)]


def test_a_damaged_database_does_not_end_it_and_with_it_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It complains once, and sends as soon as there is a whole one."""
    monkeypatch.setattr(uplink, "RETRY_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    config = settings_file(tmp_path, "apart", f"metrics: {{port: {port}}}\nsinks: [{{kind: jsonl, min_free_mb: 1}}]\n")
    fill(config, 3)
    database, stop, ended = tmp_path / "out/detections.sqlite", Flag(), list[int]()
    whole = database.read_bytes()
    database.write_bytes(b"x" * len(whole))
    settings = load_settings(config)
    thread = Thread(target=lambda: ended.append(send(database, settings, stop)), daemon=True)
    thread.start()
    try:
        wait_for(lambda: read(port)[0] == 503 and "nothing is sent" in caplog.text)
        time.sleep(1)
        assert thread.is_alive() and read(port)[0] == 503
        complaints = [text for text in caplog.messages if text.startswith("nothing is sent")]
        assert len(complaints) == 1 and "systemctl restart orcawatch" in complaints[0]
        other = tmp_path / "rescued"
        other.write_bytes(whole)
        other.replace(database)
        wait_for(lambda: waiting(tmp_path) == 0)
        assert arrived(tmp_path) == [0, 1, 2]
    finally:
        stop.set()
        thread.join(30)
    assert ended == [0] and "what waits is sent again" in caplog.text


def test_it_says_what_it_cannot_do(tmp_path: Path) -> None:
    inside = settings_file(tmp_path, "inside")
    assert "say `uplink: apart`" in run("uplink", "--config", inside).stderr
    missing = run("uplink", "--once", "--config", inside)
    assert missing.returncode == 2 and "detections.sqlite is not there" in missing.stderr
    assert not (tmp_path / "out").exists()
    none = settings_file(tmp_path, "apart", "")
    assert run("uplink", "--config", none).returncode == 2


def test_what_an_ended_watch_has_left_is_sent_once_and_never_beside_a_running_one(tmp_path: Path) -> None:
    import fcntl

    inside = settings_file(tmp_path, "inside")
    fill(inside, 5)
    with (tmp_path / "out/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("uplink", "--once", "--config", inside)
        assert done.returncode == 2 and "another orcawatch already writes" in done.stderr and waiting(tmp_path) == 5
    with (tmp_path / "out/uplink-lock").open("a") as lock:  # an `orcawatch uplink` that is still there
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("uplink", "--once", "--config", inside)
        assert done.returncode == 2 and "or a watch does" in done.stderr and waiting(tmp_path) == 5
    assert run("uplink", "--once", "--config", inside).returncode == 0 and arrived(tmp_path) == [0, 1, 2, 3, 4]


def test_a_lock_that_cannot_be_opened_is_told_with_the_cure(tmp_path: Path) -> None:
    config = settings_file(tmp_path, "apart")
    fill(config, 1)
    (tmp_path / "out/uplink-lock").mkdir()
    done = run("uplink", "--once", "--config", config)
    assert done.returncode == 1 and "run this as the folder's owner" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_uplink_makes_the_output_folder_and_nothing_of_the_watch_in_it(tmp_path: Path) -> None:
    with only_sender(load_settings(settings_file(tmp_path, "apart"))):
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["uplink-lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_roots_lock_is_given_to_the_owner_of_the_folder_and_nothing_else_is(tmp_path: Path) -> None:
    config = settings_file(tmp_path, "apart")
    fill(config, 1)
    out, other = tmp_path / "out", tmp_path / "roots"
    os.chown(out, 12345, 12345)
    assert run("uplink", "--once", "--config", config).returncode == 0
    assert (out / "uplink-lock").stat().st_uid == 12345
    (out / "uplink-lock").unlink()
    other.touch()
    os.link(other, out / "uplink-lock")
    run("uplink", "--once", "--config", config)
    assert other.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_sends_for_a_service_leaves_nothing_that_the_service_cannot_open(tmp_path: Path) -> None:
    """Inside mode: the watch's lock and folders are made, too; and a link in the service's folder is not followed."""
    config = settings_file(tmp_path, "inside")
    fill(config, 2)
    out = tmp_path / "out"
    for path in (out, *out.iterdir()):
        os.chown(path, 12345, 12346)
    assert run("uplink", "--once", "--config", config).returncode == 0 and arrived(tmp_path) == [0, 1]
    made = {str(path.relative_to(out)): path.stat() for path in out.rglob("*")}
    assert {"lock", "uplink-lock", "clips", "messages"} <= set(made) and any("messages/" in name for name in made)
    assert {(found.st_uid, found.st_gid) for found in made.values()} == {(12345, 12346)}, made
    roots = tmp_path / "roots"
    roots.write_text("x\n")
    (out / "lock").unlink()
    (out / "lock").symlink_to(roots)
    done = run("uplink", "--once", "--config", config)
    assert done.returncode == 1 and roots.stat().st_uid == 0, done.stderr


def test_a_far_side_that_is_away_or_lies_ends_it_with_1(tmp_path: Path) -> None:
    """Nobody; a redirect to elsewhere; an endless answer; an answer that is no HTTP: nothing counts as sent."""
    answers = iter(
        [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n" + b"x" * 10**6]
    )
    reached: list[str] = []

    class Far(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reached.append(self.path)
            self.wfile.write(next(answers, b"\x00\xff\r\n\r\n"))
            self.close_connection = True

        def log_message(self, *about: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Far) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        config = settings_file(
            tmp_path, "apart", f"sinks: [{{kind: webhook, url: 'http://127.0.0.1:{server.server_port}/in'}}]\n"
        )
        fill(config, 3)
        for _ in range(3):
            done = run("uplink", "--once", "--config", config)
            assert done.returncode == 1 and "webhook: 3 wait" in done.stdout, done.stderr
        server.shutdown()
    assert reached == ["/in"] * 3
    done = run("uplink", "--once", "--config", config)
    assert done.returncode == 1 and waiting(tmp_path) == 3
