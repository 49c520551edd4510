"""Who may read and who may write: a token, the caller's address, and where a request came from."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Callable
from urllib.parse import urlsplit

from flask import Request, abort, g, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import NotFound

from ..durable import make_folder
from ..errors import InputError

log = logging.getLogger(__name__)

TOKEN_FILE = "web-token"
TOKEN_BYTES = 24
SHORTEST = 16  # characters of a token that somebody chose
LONGEST = 512
COOKIE = "orcawatch"
COOKIE_S = 90 * 86400
READING = ("GET", "HEAD", "OPTIONS")
MOST_FAILURES = 10  # of one address in `FORGET_S`; what it sends then is not looked at
FORGET_S = 60.0
MOST_ADDRESSES = 1000  # that are remembered
FORWARDED = ("Forwarded", "Via", "X-Real-IP", "X-Client-IP", "True-Client-IP")  # and all that begin with X-Forwarded-

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: browsers would then send `Origin: null` with forms, and it could not be compared.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Access:
    """The rules.

    A request is trusted with reading where it carries the token, or where it comes from this machine and was meant
    for it: a page of another site whose name was made to point here (DNS rebinding) gives itself away by `Host`, and
    a proxy by its headers or by speaking HTTP/1.0. Writing needs the token, from this very site.

    Parameters
    ----------
    token : the secret.
    always : whether reading from this machine needs it, too.
    steady_s : now, by a clock that is never set.
    """

    def __init__(self, token: str, always: bool = False, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._always = always
        self.cookie = derived(token, "cookie")
        self.csrf = derived(token, "csrf")
        self._failures = Failures(steady_s)

    def check(self) -> None:
        """Let the present request pass, or end it with 401, 403 or 429; sets `g.may_write`."""
        g.may_write = self.knows(request)
        if request.endpoint in ("static", "health", "login"):
            return
        if not (g.may_write or self.is_local(request)):
            abort(401)
        if request.method not in READING:
            self._check_write()

    def _check_write(self) -> None:
        check_origin(request)
        if not g.may_write:
            abort(401, "Verdicts need the token.")
        if bearer(request) is None and not same(
            request.form.get("csrf") or request.headers.get("X-CSRF-Token"), self.csrf
        ):
            abort(403, "The form was too old, or from another site: load the page again.")

    def knows(self, asked: Request) -> bool:
        """Whether a request carries the token, as a cookie or as `Authorization: Bearer`."""
        given = bearer(asked)
        if given is not None:
            return self.accepts(given, asked)
        cookie = asked.cookies.get(COOKIE)
        return cookie is not None and same(cookie, self.cookie)  # too long to be guessed, and old ones are no attack

    def accepts(self, token: str, asked: Request) -> bool:
        """Whether this is the token."""
        return self._compare(token, self._token, asked)

    def is_local(self, asked: Request) -> bool:
        """Whether a request without a token may read."""
        if self._always or was_forwarded(asked):
            return False
        return is_loopback(asked.remote_addr) and names_loopback(asked.host)

    def _compare(self, given: str, right: str, asked: Request) -> bool:
        address = visitor(asked.remote_addr or "")
        if self._failures.too_many(address):
            abort(429, "Too many wrong tokens came from this address.")
        if not same(given, right):
            self._failures.add(address)
            return False
        return True


class Failures:
    """Wrong tokens of late, by address, for a bounded number of addresses.

    Parameters
    ----------
    steady_s : now.
    """

    def __init__(self, steady_s: Callable[[], float]) -> None:
        self._steady_s = steady_s
        self._lock = Lock()
        self._found: OrderedDict[str, list[float]] = OrderedDict()

    def too_many(self, address: str) -> bool:
        """Whether an address is to wait."""
        with self._lock:
            return len(self._recent(address)) >= MOST_FAILURES

    def add(self, address: str) -> None:
        """One more."""
        with self._lock:
            self._found[address] = [*self._recent(address), self._steady_s()]
            self._found.move_to_end(address)
            while len(self._found) > MOST_ADDRESSES:
                self._found.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since_s = self._steady_s() - FORGET_S
        return [moment_s for moment_s in self._found.get(address, []) if moment_s > since_s]


def derived(token: str, purpose: str) -> str:
    """A secret for one purpose that does not give the token away."""
    return hmac.new(token.encode(), f"orcawatch {purpose}".encode(), hashlib.sha256).hexdigest()


def same(given: str | None, right: str) -> bool:
    """Whether two secrets are the same, in a time that tells nothing."""
    return hmac.compare_digest((given or "").encode("utf-8", "surrogatepass"), right.encode())


def bearer(asked: Request) -> str | None:
    """The token in `Authorization: Bearer`; None where there is no such header."""
    kind, _, token = asked.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def is_loopback(address: str | None) -> bool:
    """Whether an address is this machine's own."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def visitor(address: str) -> str:
    """Whose address it is, as failures are counted: with IPv6 everybody has 2^64 of them, so the network counts."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(getattr(found, "ipv4_mapped", None) or found)


def names_loopback(host: str) -> bool:
    """Whether a `Host` header names this machine as `localhost` or by its loopback address, whatever the port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or is_loopback(name)


def was_forwarded(asked: Request) -> bool:
    """Whether a proxy may have sent this, so that the caller's address says nothing.

    A proxy that adds no header is still told by HTTP/1.0, which no browser speaks, and nginx speaks where nothing else
    is set. Newer ones (from 1.29.7) speak HTTP/1.1: they cannot be told from a browser, hence `--private`.
    """
    named = any(name in asked.headers for name in FORWARDED)
    titled = any(name.lower().startswith("x-forwarded-") for name, _ in asked.headers)
    return named or titled or asked.environ.get("SERVER_PROTOCOL") == "HTTP/1.0"


def is_encrypted(asked: Request) -> bool:
    """Whether the browser speaks HTTPS, to us or to a proxy.

    The proxy is believed: who lies only keeps their own cookie from being sent without encryption.
    """
    return asked.is_secure or asked.headers.get("X-Forwarded-Proto", "").lower() == "https"


def check_origin(asked: Request) -> None:
    """Refuse (403) what another site made a browser send."""
    site, origin = asked.headers.get("Sec-Fetch-Site"), asked.headers.get("Origin")
    if site not in (None, "same-origin", "none"):
        abort(403, "The request came from another site.")
    if origin is not None and origin not in (f"http://{asked.host}", f"https://{asked.host}"):
        abort(403, "The request came from another site.")


def secured(headers: Headers, given: dict[str, str]) -> dict[str, str]:
    """The headers that a response still lacks."""
    return {name: value for name, value in {**HEADERS, **given}.items() if name not in headers}


def inside(folder: Path, name: str | None) -> Path:
    """A file below a folder; 404 where it is none, or where it leads out of the folder, also by a link."""
    root = folder.resolve()
    with suppress(OSError, ValueError, RuntimeError):  # a loop of links, a name with a zero
        path = (root / (name or "")).resolve()
        if name and root in path.parents and path.is_file():
            return path
    raise NotFound("The file is not there.")


def read_token(output: Path, file: Path | None) -> str:
    """The token of a file; without one, that in the output folder, which is made where it is missing.

    Raises
    ------
    InputError : the file cannot be read or made, or what is in it is too short.
    """
    path = file or output / TOKEN_FILE
    try:
        if file is None and not path.exists():
            make_token(path)
        token = path.read_text(encoding="utf-8").strip()
        if path.stat().st_mode & 0o007:
            log.warning("everybody on this machine can read the token in %s: chmod o= %s", path, path)
    except (OSError, UnicodeError) as fault:
        raise InputError(
            f"the token in {path} cannot be read: {fault}; name another file (web.token_file or --token-file)"
        ) from fault
    if not SHORTEST <= len(token) <= LONGEST or not token.isprintable() or " " in token:
        raise InputError(
            f"the token in {path} must be one word of {SHORTEST} to {LONGEST} characters: delete the file, and "
            "a new one is made in the output folder"
        )
    return token


def make_token(path: Path) -> None:
    """Write a new token that only the owner may read; raises OSError where the disk refuses."""
    make_folder(path.parent)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"{secrets.token_urlsafe(TOKEN_BYTES)}\n")
        file.flush()
        os.fsync(file.fileno())
