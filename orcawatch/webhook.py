"""A sink that posts messages to a web server."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ._version import __version__
from .config import SinkSettings
from .errors import ConfigError
from .keys import joined, number, path, text
from .sinks import Message, RefusedError, SinkError, Site, UnreachableError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

# Answers of 400 to 499 that say nothing of the message itself: they are tried again, for a person may mend the cause.
NOT_THE_MESSAGE = (401, 403, 404, 405, 407, 408, 410, 421, 425, 426, 429)
ANSWER_BYTES = 65536
SHOWN = 200  # characters of an answer in the log
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*)")

# ruff: noqa: RUF009


@dataclass(frozen=True)
class WebhookSettings(SinkSettings):
    """A web server that takes each message as the JSON body of a POST; any answer of 200 to 299 acknowledges it."""

    url: str = text("", "Where to post to, http:// or https://. Secrets belong into `headers_file`.")
    headers_file: Path | None = path(None, "A file of headers, `Name: value` on each line.", "none")
    ca_file: Path | None = path(None, "Certificates (PEM) that the server's is checked against.", "the system's")
    timeout_s: float = number(30, 1, 600, "s", "How long the server may take at each step.")

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        if (fault := url_fault(self.url)) is not None:
            yield f"{joined(where, 'url')} {fault}"


class WebhookSink:
    """Posts one message after the other over one connection.

    Parameters
    ----------
    settings, site : as for every sink.

    Raises
    ------
    ConfigError : the URL is none.
    """

    Settings = WebhookSettings
    overhead_bytes = 400

    def __init__(self, settings: WebhookSettings, site: Site) -> None:
        for fault in settings.crossed(""):
            raise ConfigError(fault)
        self._settings = settings
        self._url = urlsplit(settings.url)
        self._name = shown(self._url)
        self._connection: HTTPConnection | None = None

    def open(self) -> None:
        """Nothing is done before there is a message: an idle connection would be closed by the server."""

    def send(self, message: Message) -> None:
        """Post a message.

        Raises
        ------
        SinkError : the server did not answer, or not with 200 to 299.
        RefusedError : it says that the message is wrong.
        """
        status, answer, after_s = self._posted(message)
        if 200 <= status < 300:
            return
        text = f"{self._name} answers {status} {shortened(answer)}".rstrip()
        if 400 <= status < 500 and status not in NOT_THE_MESSAGE:
            raise RefusedError(text)
        raise SinkError(f"{text}{cure(status)}", after_s)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _posted(self, message: Message) -> tuple[int, str, float | None]:
        """Status, body and Retry-After of the answer."""
        from http.client import HTTPException, RemoteDisconnected

        headers = self._headers(message)
        again = self._connection is not None  # the server may have closed a connection that was idle
        try:
            try:
                return self._answer(message, headers)
            except (RemoteDisconnected, ConnectionError):
                if not again:
                    raise
                self.close()
                return self._answer(message, headers)
        except (OSError, HTTPException) as fault:
            self.close()
            raise SinkError(f"{self._name} does not answer: {fault or type(fault).__name__}") from fault

    def _answer(self, message: Message, headers: dict[str, str]) -> tuple[int, str, float | None]:
        connection = self._connected()
        target = urlunsplit(("", "", self._url.path or "/", self._url.query, ""))
        connection.request("POST", target, message.payload, headers)
        response = connection.getresponse()
        answer = response.read(ANSWER_BYTES).decode(errors="replace")
        after_s = retry_after_s(response)
        if response.will_close or not response.isclosed():
            self.close()
        return response.status, answer, after_s

    def _connected(self) -> HTTPConnection:
        if self._connection is None:
            try:
                connection = self._new_connection()
                connection.connect()
            except OSError as fault:
                raise UnreachableError(
                    f"{self._name} cannot be reached: {fault}; check `url`, the network and, for https, `ca_file`"
                ) from fault
            self._connection = connection
        return self._connection

    def _new_connection(self) -> HTTPConnection:
        import ssl
        from http.client import HTTPConnection, HTTPSConnection

        host, settings = str(self._url.hostname), self._settings
        if self._url.scheme == "http":
            return HTTPConnection(host, self._url.port, timeout=settings.timeout_s)
        trust = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
        return HTTPSConnection(host, self._url.port, timeout=settings.timeout_s, context=trust)

    def _headers(self, message: Message) -> dict[str, str]:
        """Headers of a request; the file is read each time, so that a new token is taken at once.

        Raises
        ------
        UnreachableError : the file cannot be read, or is wrong.
        """
        own = {"Content-Type": "application/json", "User-Agent": f"orcawatch/{__version__}"}
        own["Idempotency-Key"] = message.id
        file = self._settings.headers_file
        if file is None:
            return own
        try:
            return {**own, **read_headers(file)}
        except (OSError, UnicodeDecodeError) as fault:
            raise UnreachableError(f"headers_file {file} cannot be read: {fault}; check its name and rights") from fault


def url_fault(url: str) -> str | None:
    """What is wrong with a URL to post to; None where nothing is."""
    try:
        found = urlsplit(url)
        right = found.scheme in ("http", "https") and found.hostname is not None and found.port != 0
    except ValueError:
        right = False
    if not right:
        return f"must begin with http:// or https:// and name a server, not {url!r}"
    if not url.isascii() or not url.isprintable() or " " in url:
        return (
            f"must be written with %.. for spaces and letters beyond ASCII (xn--.. in the server's name), not {url!r}"
        )
    if "@" in found.netloc:
        return "must not hold a user or password; put a header `Authorization: ...` into `headers_file`"
    return None


def read_headers(file: Path) -> dict[str, str]:
    """Headers in a file, `Name: value` on each line; empty lines and lines that begin with # are left out.

    Raises
    ------
    UnreachableError : a line is no header. The text does not hold the line: it may be a secret.
    """
    headers = {}
    for place, line in enumerate(file.read_text(encoding="ascii").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = HEADER.fullmatch(line.strip())
        if found is None:
            raise UnreachableError(f"line {place} of headers_file {file} must be `Name: value`")
        headers[found[1]] = found[2]
    return headers


def retry_after_s(response: HTTPResponse) -> float | None:
    """How long the server asks to be left alone: seconds, or a date; None where it does not say."""
    given = response.getheader("Retry-After", "").strip()
    if given.isdigit():
        return float(given)
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    return None


def cure(status: int) -> str:
    """What to do about an answer that is not the message's fault."""
    if status in (401, 403, 407):
        return "; check the headers in `headers_file`"
    if status < 500 and status not in (408, 425, 429):
        return "; check `url`"
    return ""


def shown(url: SplitResult) -> str:
    """A URL for the log: without its query, which may be secret."""
    return urlunsplit((url.scheme, url.netloc, url.path, "", ""))


def shortened(answer: str) -> str:
    """The beginning of an answer, on one line."""
    return " ".join(answer.split())[:SHOWN]
