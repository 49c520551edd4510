"""The review page under attack, by raw requests to the real server: a stranger on the buoy's wifi, a hostile log."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from flask import Flask

from orcawatch import daemon, verdicts
from orcawatch.config import HydrophoneSettings, Settings
from orcawatch.store import Detection
from orcawatch.web import access, server
from orcawatch.web.access import COOKIE, derived, visitor
from orcawatch.web.app import create_app

TOKEN = "a-token-of-some-length"
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
XSS = "'\"><script>harm()</script><img src=x onerror=harm()>{{7*7}}</textarea></title>javascript:harm()\r\nX-Harm: 1"
PAGES = (
    "/", "/effort", "/status", "/detection/1", "/detections.csv", "/status.json", "/healthz", "/nowhere",
    "/?verdict=x", "/detection/2",
)  # fmt: skip


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """A log whose every text came from somebody hostile."""
    folder = tmp_path / "out"
    folder.mkdir()
    hostile = Detection(
        None, XSS, 0.0, 2.0, NOON, 0.8, (0,), (0.8,), 0, XSS, XSS, clip="../../etc/passwd", snapshot="/etc/passwd",
        level_unit=XSS, hydrophones=(XSS,), station=XSS, bearing_note=XSS,
    )  # fmt: skip
    with daemon.open_store(folder) as store:
        number = store.add(hostile)
        store.add(replace(hostile, clip="clips/\0.flac", snapshot="snapshots/%2e%2e/x.png"))
        verdicts.give(store, number, "orca", XSS, XSS[:100], NOON)
    settings = replace(Settings(), output=folder, station=XSS, hydrophones=(HydrophoneSettings(XSS),))
    return create_app(settings, TOKEN)


@pytest.fixture
def port(served: int) -> int:
    """The real server's, impatient."""
    return served


def sent(port: int, raw: bytes, seconds: float = 20) -> bytes:
    """All that comes for these bytes."""
    found = b""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=seconds)) as caller, suppress(ConnectionError):
        caller.sendall(raw)
        while part := caller.recv(1 << 16):
            found += part
    return found


def request(target: str = "/", *headers: str, host: str = "localhost", method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def code(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize("target", PAGES)
def test_hostile_text_stays_text(port: int, target: str) -> None:
    answer = sent(port, request(target, f"Cookie: {COOKIE}={derived(TOKEN, 'cookie')}"))
    head, _, body = answer.partition(b"\r\n\r\n")
    text = body.decode()
    assert b"\nX-Harm" not in head and code(answer) in (200, 400, 404)
    if b"text/html" in head:
        assert (
            "<script>harm" not in text
            and "<img src=x" not in text
            and "49" not in re.findall(r"\{\{.*?\}\}|>49<", text)
        )
        assert not re.search(r"""(href|src|action)=["']?\s*javascript:""", text)
        assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', text))
    if b"application/json" in head:
        json.loads(text)
    assert b"nosniff" in head and b"frame-ancestors 'none'" in head and b"Referrer-Policy: same-origin" in head


@pytest.mark.parametrize(
    "target",
    ["/detection/1/file/clip", "/detection/1/file/picture", "/detection/1/file/arrays", "/detection/2/file/clip", "/thumbnail/1.jpg",
     "/thumbnail/2.jpg", "/static/%2e%2e%2f%2e%2e%2fapp.py", "/static/..%5c..%5capp.py", "/static/%00", "/..%2f..%2fetc/passwd",
     "//etc/passwd", "/detection/1%00", "/detection/99999999999999999999999", "/detection/-1", "/%ff%fe", "/static/\xe9"],
)  # fmt: skip
def test_no_path_leads_out_of_the_output_folder(port: int, target: str) -> None:
    answer = sent(port, request(target, f"Authorization: Bearer {TOKEN}"))
    assert code(answer) in (400, 404) and b"root:" not in answer and b"import" not in answer


def test_a_query_that_is_no_utf_8_is_refused(port: int) -> None:
    """Found by fuzzing: it ended in 500. The server refuses others by itself."""
    answer = sent(port, request("//?since=\xd0", f"Authorization: Bearer {TOKEN}"))
    assert code(answer) == 400 and b"no UTF-8" in answer


@pytest.mark.parametrize(
    "raw",
    [
        request(host="evil.example"),
        request("http://localhost/", host="evil.example"),
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        request("/", "Host: localhost", host="evil.example"),
        request("/", "Host: evil.example", host="localhost"),
        request(host="localhost@evil.example"),
        request(host="localhost\x00.evil.example"),
        request(host="localhost.evil.example"),
        request(host="2130706433.evil.example"),
        request("/", "X-Forwarded-Host: localhost", host="evil.example"),
        b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n",
    ],
)
def test_a_name_that_was_made_to_point_here_reads_nothing(port: int, raw: bytes) -> None:
    answer = sent(port, raw)
    assert code(answer) in (0, 400, 401) and b"/detection/1" not in answer and b"0.80" not in answer


def test_the_same_request_from_this_machine_reads(port: int) -> None:
    assert b"/detection/1" in sent(port, request()) and b"/detection/1" in sent(port, request(host="[::1]:8765"))


WRITE = "/detection/1/verdict"
FORM = f"verdict=not_orca&note=&reviewer=x&csrf={derived(TOKEN, 'csrf')}".encode()
KNOWN = f"Cookie: {COOKIE}={derived(TOKEN, 'cookie')}"
KIND = "Content-Type: application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (("Origin: http://evil.example",), FORM),
        (("Origin: null",), FORM),
        (("Sec-Fetch-Site: cross-site",), FORM),
        (("Sec-Fetch-Site: same-site",), FORM),
        (("Origin: http://localhost.evil.example",), FORM),
        ((), FORM.replace(derived(TOKEN, "csrf").encode(), b"guess")),
        ((), FORM.partition(b"&csrf")[0]),
    ],
)
def test_other_sites_give_no_verdicts(port: int, app: Flask, headers: tuple[str, ...], body: bytes) -> None:
    answer = sent(port, request(WRITE, KNOWN, KIND, f"Content-Length: {len(body)}", *headers, method="POST", body=body))
    assert code(answer) == 403 and verdict(app) == "orca"


def verdict(app: Flask) -> str | None:
    with closing(sqlite3.connect(app.config["OUTPUT"] / daemon.DATABASE)) as connection:
        found: str | None = connection.execute("SELECT verdict FROM detections WHERE id = 1").fetchone()[0]
        return found


def test_the_same_request_without_the_attack_is_taken(port: int, app: Flask) -> None:
    raw = request(
        WRITE, KNOWN, KIND, f"Content-Length: {len(FORM)}", "Origin: http://localhost", method="POST", body=FORM
    )
    assert code(sent(port, raw)) == 303 and verdict(app) == "not_orca"


CHUNKS = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(40)) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "codes"),
    [
        (request(WRITE, KNOWN, KIND, "Transfer-Encoding: chunked", method="POST", body=CHUNKS), {0, 413}),
        (request(WRITE, KNOWN, KIND, f"Content-Length: {10**12}", method="POST", body=b"x"), {413}),
        (request(WRITE, KNOWN, KIND, "Content-Length: -5", method="POST", body=b"x"), {400}),
        (request(WRITE, KNOWN, KIND, "Content-Length: 4", "Transfer-Encoding: chunked", method="POST", body=b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"), {400, 403}),
        (request(WRITE, KNOWN, KIND, "Content-Length: 4", "Content-Length: 50", method="POST", body=b"x=yy"), {400, 403}),
        (request(WRITE, KNOWN, KIND, "Transfer-Encoding: xchunked", method="POST", body=b"x"), {400, 501}),
        (request(WRITE, KNOWN, "Content-Type: multipart/form-data; boundary=b", "Content-Length: 60000", method="POST", body=(b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n" * 2000)[:60000]), {400, 403, 413}),
        (request("/?" + "a=b&" * 4000), {200, 400, 414, 431}),
        (request("/?" + "a" * 200_000), {0, 400, 414, 431}),
        (request("/", *(f"X-{number}: y" for number in range(5000))), {0, 400, 431}),
        (request("/", "X: a\r\n b"), {200, 400}),
        (request("/", "X\x01: y"), {200, 400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n", {0, 400}),
        (b"GET\r\n\r\n", {0, 400}),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\nConnection: close\r\n\r\n", {0, 200, 400, 401, 505}),
        (request(method="TRACE"), {401, 405}),
        (request("/?token=" + "%0d%0aSet-Cookie:%20harm=1"), {401}),
        (request("/%0d%0aX-Harm:%201?token=" + TOKEN), {303, 404}),
    ],
)  # fmt: skip
def test_odd_requests_are_answered_or_ended_and_the_next_one_is_served(port: int, raw: bytes, codes: set[int]) -> None:
    answer = sent(port, raw)
    head = answer.partition(b"\r\n\r\n")[0]
    assert code(answer) in codes and b"\nX-Harm" not in head and b"\nSet-Cookie: harm" not in head
    assert answer.count(b"HTTP/1.") <= 1 + (b"Content-Length: 4" in raw)
    assert code(sent(port, request())) == 200


def test_bodies_that_dribble_in_and_idle_crowds_keep_others_waiting_for_seconds_only(port: int) -> None:
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3 * server.CONNECTIONS)]
    head = request(WRITE, KNOWN, KIND, "Content-Length: 60000", method="POST")
    for connection in crowd[: server.CONNECTIONS]:
        with suppress(OSError):
            connection.sendall(head)
    began_s, answer = time.monotonic(), b""
    while code(answer) != 200 and time.monotonic() - began_s < 30:
        for connection in crowd[: server.CONNECTIONS]:
            with suppress(OSError):
                connection.sendall(b"x")
        with suppress(OSError):
            answer = sent(port, request(), 3)
    for connection in crowd:
        connection.close()
    assert code(answer) == 200


def test_the_cookie_is_for_this_site_and_no_script(port: int) -> None:
    for headers, secure in (((), False), (("X-Forwarded-Proto: https",), True)):
        head = sent(port, request(f"/?token={TOKEN}", *headers)).partition(b"\r\n\r\n")[0].decode()
        (cookie,) = re.findall(r"Set-Cookie: (.*)", head)
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and ("Secure" in cookie) == secure
        assert TOKEN not in head and derived(TOKEN, "csrf") not in head


def test_guesses_are_counted_by_network_where_everybody_has_many_addresses() -> None:
    assert visitor("2001:db8::1") == visitor("2001:db8::ffff:1%eth0") != visitor("2001:db8:0:1::1")
    assert visitor("::ffff:192.0.2.1") == visitor("192.0.2.1") != visitor("192.0.2.2")
    assert visitor("") == "" and visitor("unix") == "unix"


def test_a_token_that_everybody_can_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    assert access.read_token(tmp_path, tmp_path / "token") == TOKEN and "chmod o=" in caplog.text
    caplog.clear()
    (tmp_path / "token").chmod(0o640)
    access.read_token(tmp_path, tmp_path / "token")
    assert not caplog.text


@pytest.mark.parametrize("key", ["station", "source", "verdict", "since", "until", "score", "sort", "after", "before"])
def test_what_is_asked_for_is_no_sql(port: int, key: str) -> None:
    for value in (
        "%27%20OR%20%271%27=%271",
        "%27;DROP%20TABLE%20detections;--",
        "1)%20UNION%20SELECT%20sql%20FROM%20sqlite_master--",
    ):
        answer = sent(port, request(f"/?{key}={value}"))
        assert code(answer) in (200, 400) and b"CREATE TABLE" not in answer and b"OperationalError" not in answer
    assert b"/detection/1" in sent(port, request())
