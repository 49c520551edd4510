"""Who may read and write the review page: the token, addresses, other sites, and bounds of the real server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner
from flask import Flask
from werkzeug.test import TestResponse

from orcawatch import daemon
from orcawatch.cli import main
from orcawatch.config import Settings
from orcawatch.errors import InputError
from orcawatch.store import Detection
from orcawatch.web import access, server
from orcawatch.web.access import COOKIE, derived, is_loopback, names_loopback, read_token
from orcawatch.web.app import create_app
from orcawatch.web.site import MOST_DOWNLOADS

TOKEN = "a-token-of-some-length"
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
ELSEWHERE = {"REMOTE_ADDR": "192.168.4.20"}
FORM = {"verdict": "orca", "note": "", "reviewer": "me", "csrf": derived(TOKEN, "csrf")}
COOKIES = {"Cookie": f"{COOKIE}={derived(TOKEN, 'cookie')}"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
WRITE = "/detection/1/verdict"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of one detection, to be copied."""
    folder = tmp_path_factory.mktemp("log")
    with daemon.open_store(folder) as store:
        store.add(Detection(None, "sea", 0.0, 2.0, NOON, 0.8, (0,), (0.8,), 0, "first-light", "0" * 64))
    return folder / daemon.DATABASE


@pytest.fixture
def output(log: Path, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    shutil.copy(log, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def app(output: Path) -> Flask:
    return create_app(replace(Settings(), output=output), TOKEN)


def verdict(output: Path) -> str | None:
    with daemon.Store.reader(output / daemon.DATABASE) as reader:
        return reader.detections()[0].verdict


def asked(app: Flask, address: str = "/", host: str = "localhost:8765", **options: Any) -> TestResponse:
    """The answer to one request of a client without memory."""
    return app.test_client(use_cookies=False).open(address, base_url=f"http://{host}", **options)


@pytest.mark.parametrize(
    ("host", "where", "headers", "code"),
    [
        ("localhost:8765", {}, {}, 200),
        ("127.0.0.1:9000", {}, {}, 200),
        ("[::1]:8765", {}, {}, 200),
        ("127.0.0.1", {"REMOTE_ADDR": "::ffff:127.0.0.1"}, {}, 200),
        ("evil.example", {}, {}, 401),
        ("localhost.evil.example", {}, {}, 401),
        ("127.0.0.1.evil.example:8765", {}, {}, 401),
        ("localhost", ELSEWHERE, {}, 401),
        ("buoy.local", ELSEWHERE, COOKIES, 200),
        ("buoy.local", ELSEWHERE, BEARER, 200),
        ("buoy.local", ELSEWHERE, {"Authorization": "Bearer wrong"}, 401),
        ("buoy.local", ELSEWHERE, {"Authorization": f"Basic {TOKEN}"}, 401),
        ("buoy.local", ELSEWHERE, {"Cookie": f"{COOKIE}={TOKEN}"}, 401),
        ("buoy.local", ELSEWHERE, {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}, 401),
        ("localhost", {}, {"X-Forwarded-For": "127.0.0.1"}, 401),
        ("localhost", {}, {"Forwarded": "for=127.0.0.1"}, 401),
        ("localhost", {}, {"Via": "1.1 proxy"}, 401),
        ("localhost", {}, {"X-Forwarded-Proto": "https"}, 401),
        ("localhost", {}, {"x-forwarded-anything": ""}, 401),
        ("localhost", {"SERVER_PROTOCOL": "HTTP/1.0"}, {}, 401),
        ("localhost", {"SERVER_PROTOCOL": "HTTP/1.0"}, BEARER, 200),
    ],
)
@pytest.mark.parametrize("address", ["/", "/detections.csv", "/status.json", "/detection/1", "/nowhere"])
def test_who_may_read(
    app: Flask, address: str, host: str, where: dict[str, str], headers: dict[str, str], code: int
) -> None:
    answer = asked(app, address, host, environ_overrides=where, headers=headers)
    present = {"/nowhere": 404}.get(address, 200)
    assert answer.status_code == (present if code == 200 else code)


def test_reading_here_can_need_the_token_too(output: Path) -> None:
    app = create_app(replace(Settings(), output=output), TOKEN, always=True)
    assert asked(app).status_code == 401
    assert asked(app, headers=BEARER).status_code == 200
    assert asked(app, "/healthz").status_code == 200


@pytest.mark.parametrize(
    ("headers", "changes", "code"),
    [
        (COOKIES, {}, 303),
        ({**COOKIES, "Origin": "http://localhost:8765", "Sec-Fetch-Site": "same-origin"}, {}, 303),
        (BEARER, {"csrf": ""}, 303),
        ({}, {}, 401),
        ({"Cookie": f"{COOKIE}=wrong"}, {}, 401),
        (COOKIES, {"csrf": ""}, 403),
        (COOKIES, {"csrf": TOKEN}, 403),
        (COOKIES, {"csrf": "é"}, 403),
        ({**COOKIES, "Origin": "http://evil.example"}, {}, 403),
        ({**COOKIES, "Origin": "null"}, {}, 403),
        ({**COOKIES, "Origin": "http://localhost:8766"}, {}, 403),
        ({**COOKIES, "Sec-Fetch-Site": "cross-site"}, {}, 403),
        ({**COOKIES, "Sec-Fetch-Site": "same-site"}, {}, 403),
        ({**BEARER, "Origin": "http://evil.example"}, {}, 403),
    ],
)
def test_who_may_write(app: Flask, output: Path, headers: dict[str, str], changes: dict[str, str], code: int) -> None:
    answer = asked(app, WRITE, method="POST", headers=headers, data={**FORM, **changes})
    assert answer.status_code == code, answer.text
    assert verdict(output) == ("orca" if code == 303 else None)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_ways_to_write_are_refused(app: Flask, method: str) -> None:
    assert asked(app, WRITE, method=method).status_code == 401
    assert asked(app, WRITE, method=method, headers=BEARER).status_code == 405


def test_a_host_that_is_none_is_refused_and_no_fault_of_the_page(app: Flask) -> None:
    """Found by fuzzing: the page of the error could not name its own files, and ended in 500."""
    answer = app.test_client().get("/", headers={"Host": "a" * 70})
    assert answer.status_code == 401 and answer.text.startswith("The token is needed")


def test_an_old_cookie_locks_nobody_out(app: Flask) -> None:
    """As of another server on this machine: cookies know no ports."""
    old = {"Cookie": f"{COOKIE}=old"}
    client = app.test_client(use_cookies=False)
    found = [client.get("/", base_url="http://127.0.0.1:8765", headers=old).status_code for _ in range(15)]
    assert found == [200] * 15
    assert client.get(f"/?token={TOKEN}", base_url="http://127.0.0.1:8765", headers=old).status_code == 303


def test_the_printed_address_becomes_a_cookie_and_a_clean_address(app: Flask) -> None:
    client = app.test_client()
    options = {"base_url": "http://buoy.local:8765", "environ_overrides": ELSEWHERE}
    answer = client.get(f"/status?token={TOKEN}&x=1", **options)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/status?x=1")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    page = client.get("/status", **options)
    assert page.status_code == 200
    assert derived(TOKEN, "csrf") in page.text and TOKEN not in page.text
    assert derived(TOKEN, "csrf") not in asked(app).text


@pytest.mark.parametrize("path", ["//evil.example/", "/%5Cevil.example", "/\\evil.example"])
def test_the_clean_address_is_always_here(app: Flask, path: str) -> None:
    answer = asked(app, f"{path}?token={TOKEN}", environ_overrides={"PATH_INFO": path.split("?")[0]})
    assert answer.status_code == 303
    assert re.match(r"/(?![/\\])", answer.headers["Location"])


def test_a_token_can_be_typed(app: Flask) -> None:
    options: dict[str, Any] = {"method": "POST", "environ_overrides": ELSEWHERE, "host": "buoy.local"}
    assert asked(app, "/token", data={"token": f" {TOKEN} "}, **options).status_code == 303
    assert asked(app, "/token", data={"token": "wrong"}, **options).status_code == 401
    assert (
        asked(app, "/token", data={"token": TOKEN}, headers={"Origin": "http://evil.example"}, **options).status_code
        == 403
    )
    assert '<form method="post" action="/token"' in asked(app, host="buoy.local", environ_overrides=ELSEWHERE).text


def test_wrong_tokens_are_soon_not_looked_at_any_more(output: Path) -> None:
    now_s = [0.0]
    rules = access.Access(TOKEN, steady_s=lambda: now_s[0])
    app = create_app(replace(Settings(), output=output), TOKEN)
    app.extensions["orcawatch"] = replace(app.extensions["orcawatch"], access=rules)
    wrong = {"Authorization": "Bearer guess"}
    codes = [asked(app, environ_overrides=ELSEWHERE, headers=wrong).status_code for _ in range(12)]
    assert codes == [401] * access.MOST_FAILURES + [429] * 2
    assert asked(app, environ_overrides=ELSEWHERE, headers=BEARER).status_code == 429
    assert asked(app, headers=BEARER).status_code == 200
    now_s[0] = access.FORGET_S + 1
    assert asked(app, environ_overrides=ELSEWHERE, headers=BEARER).status_code == 200


def test_what_is_remembered_of_failures_is_bounded() -> None:
    failures = access.Failures(lambda: 0.0)
    for number in range(3 * access.MOST_ADDRESSES):
        failures.add(str(number))
    assert len(failures._found) == access.MOST_ADDRESSES


@pytest.mark.parametrize("address", ["/", "/nowhere", "/static/style.css", "/status.json", "/healthz"])
def test_every_answer_keeps_other_sites_out(app: Flask, address: str) -> None:
    headers = asked(app, address).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert ("max-age" in headers["Cache-Control"]) == address.startswith("/static")


def test_pages_hold_no_script_or_style_of_their_own(app: Flask) -> None:
    for address in ("/", "/effort", "/status", "/detection/1", "/nowhere"):
        text = asked(app, address, headers=COOKIES).text
        assert not re.search(r"<script(?![^>]*src=\"/static/)|\sstyle=|<style", text)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/../web-token",
        "/web-token",
    ],
)
def test_no_path_leads_out(app: Flask, output: Path, path: str) -> None:
    read_token(output, None)
    assert asked(app, path, follow_redirects=True).status_code == 404


def test_a_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    token = read_token(tmp_path / "new", None)
    assert len(token) >= 32
    assert read_token(tmp_path / "new", None) == token
    assert stat.S_IMODE((tmp_path / "new" / "web-token").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"two words of a token\n", b"\xff\xfe" * 20, b"x" * 600])
def test_a_poor_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InputError, match="token"):
        read_token(tmp_path, tmp_path / "token")


def test_loopback_is_told_by_number_and_name() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "", "localhost", "fe80::1%eth0", None)))
    assert not any(map(names_loopback, ("", "[", "127.0.0.1@evil.example:80x", "evil@", "0.0.0.0")))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["gone"], "is not there"), ([".", "--address", "192.0.2.1"], "cannot be had"), ([".", "--port", "99999"], "65535"),
     ([".", "--address", "no such name"], "no address of this machine")],
)  # fmt: skip
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert text in result.output


@pytest.fixture
def process(output: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """`orcawatch serve` on a free port: the process, the port and the token."""
    command = [sys.executable, "-m", "orcawatch.cli", "serve", str(output), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            found = re.match(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)\n", running.stdout.readline())
            assert found is not None
            yield running, int(found.group(1)), found.group(2)
        finally:
            running.kill()


def test_the_command_serves_until_it_is_told_to_stop(process: tuple[subprocess.Popen[str], int, str]) -> None:
    running, port, token = process
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Server")) == (200, None)
        assert b"1 detection" in answer.read()
        connection.request(
            "POST",
            WRITE,
            "verdict=unsure&note=&reviewer=",
            {"Authorization": f"Bearer {token}", "Content-Type": "application/x-www-form-urlencoded"},
        )
        assert connection.getresponse().status == 303
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/", headers={"X-Forwarded-For": "127.0.0.1"})
        assert connection.getresponse().status == 401
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0


def test_a_large_body_and_large_headers_are_refused(served: int) -> None:
    for headers, body, code in (({}, b"x" * (1 << 20), 413), ({"X-Long": "x" * (64 << 10)}, b"", 431)):
        with closing(HTTPConnection("127.0.0.1", served, timeout=20)) as connection:
            try:
                connection.request("POST", WRITE, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                continue
            assert connection.getresponse().status == code


def test_who_takes_nothing_of_a_long_list_is_cut_off(served: int, output: Path) -> None:
    with daemon.open_store(output) as store, store.transaction() as connection:
        names = [
            row[1] for row in connection.execute("PRAGMA table_info(detections)") if row[1] not in ("id", "source")
        ]
        many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
        connection.execute(
            f"INSERT INTO detections (source, {', '.join(names)}) {many} SELECT ?, {', '.join(names)} FROM detections, n",
            ("x" * 8000,),
        )
    ask = b"GET /detections.csv HTTP/1.1\r\nHost: localhost\r\n\r\n"
    idle = [socket.create_connection(("127.0.0.1", served), timeout=20) for _ in range(MOST_DOWNLOADS)]
    for connection in idle:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sendall(ask)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    assert status(served, "/detections.csv") == 503 and status(served, "/") == 200
    began_s = time.monotonic()
    while status(served, "/detections.csv") == 503:
        assert time.monotonic() - began_s < 20
        time.sleep(0.2)
    for connection in idle:
        with closing(connection):
            assert len(received(connection)) < 16_000_000  # the list is not whole


def status(port: int, path: str) -> int:
    """The code of an answer, which is read to its end."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def received(connection: socket.socket) -> bytes:
    """What still comes until the other side ends it."""
    found = bytearray()
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            found += part
    return bytes(found)


def test_a_request_that_dribbles_in_is_ended(served: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", served), timeout=20)) as connection:
        began_s = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\n")
        connection.settimeout(0.3)
        ended = False
        while not ended and time.monotonic() - began_s < 15:
            try:
                connection.sendall(b"X: y\r\n")
                ended = connection.recv(100) == b""
            except (socket.timeout, TimeoutError):
                continue
            except OSError:
                ended = True
        assert ended


NGINX = """
user root;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {site}
}}
"""


@contextmanager
def nginx(folder: Path, site: str, port: int) -> Iterator[None]:
    """A real nginx with one site; skips the test where there is none."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, site=site))
    errors = folder / "error.log"
    with subprocess.Popen([program, "-c", folder / "nginx.conf", "-e", errors], stderr=subprocess.PIPE) as running:
        try:
            until_s = time.monotonic() + 20
            while not answers(port):
                assert running.poll() is None and time.monotonic() < until_s, errors.read_text()
                time.sleep(0.05)
            yield
        finally:
            running.terminate()


def answers(port: int) -> bool:
    """Whether anything listens there."""
    with closing(socket.socket()) as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A TCP port that nobody has."""
    with server.listening("127.0.0.1", 0) as place:
        return int(place.getsockname()[1])


@pytest.mark.parts
def test_behind_an_nginx_that_says_nothing_nobody_is_this_machine(served: int, tmp_path: Path) -> None:
    port = free_port()
    site = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{served}; }} }}"
    with nginx(tmp_path, site, port):
        assert (status(served, "/"), status(port, "/"), status(port, "/healthz")) == (200, 401, 200)


@pytest.mark.parts
def test_the_nginx_of_the_documentation_encrypts_and_lets_verdicts_through(
    served: int, output: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "review.md").read_text(encoding="utf-8")
    (site,) = re.findall(r"^```nginx\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    port, name = free_port(), "buoy.example.org"
    certificate, key = tmp_path / "buoy.crt", tmp_path / "buoy.key"
    made = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN={name} -addext subjectAltName=DNS:{name}"
    subprocess.run([*made.split(), "-out", certificate, "-keyout", key], check=True, capture_output=True)
    places = {"/etc/nginx/": f"{tmp_path}/", "443": f"127.0.0.1:{port}", "127.0.0.1:8765": f"127.0.0.1:{served}"}
    for old, new in places.items():
        assert old in site
        site = site.replace(old, new)
    here = f"https://{name}:{port}"
    with nginx(tmp_path, site, port):

        def ask(path: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str, str]:
            """Code, cookie and text of an answer through the proxy."""
            with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as plain:
                trust = ssl.create_default_context(cafile=str(certificate))
                connection = HTTPConnection(name, port)
                connection.sock = trust.wrap_socket(plain, server_hostname=name)
                kind = {"Content-Type": "application/x-www-form-urlencoded", "Origin": here} if form else {}
                connection.request("POST" if form else "GET", path, form and urlencode(form), {**kind, **headers})
                answer = connection.getresponse()
                return answer.status, answer.getheader("Set-Cookie", ""), answer.read().decode("utf-8-sig")

        assert ask("/")[0] == ask("/detections.csv")[0] == 401
        assert ask("/token", {"token": "wrong-token-of-some-length"})[0] == 401
        code, cookie, _ = ask("/token", {"token": TOKEN})
        assert code == 303 and {"Secure", "HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        kept = cookie.split(";")[0]
        assert "1 detection" in ask("/", Cookie=kept)[2] and ask("/detections.csv", Cookie=kept)[2].startswith("file,")
        assert ask(WRITE, FORM, Cookie=kept, Origin="https://evil.example")[0] == 403 and verdict(output) is None
        assert ask(WRITE, FORM, Cookie=kept)[0] == 303 and verdict(output) == "orca"
