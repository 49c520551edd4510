"""Figures over HTTP: at an address, or at a socket in the output folder, from which `orcawatch uplink` hands them on.

So a watch whose service has no network (`uplink: apart`) can still be asked by Prometheus: a socket with a name in the
file system leads out of a network namespace, an address does not.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import BoundedSemaphore, Thread
from typing import TYPE_CHECKING, Any, Union

from .durable import Complaint

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

SOCKET = "metrics-socket"  # in the output folder
RETRY_S = 60.0  # between two tries to serve: a name instead of an address may take seconds to look up
JOIN_S = 5.0
VISITORS = 4  # at once; who comes while there are so many is turned away
SILENT_S = 5.0  # a visitor that says nothing for so long is turned away, too
MOST_B = 2**20  # of figures that are handed on
NO_ADDRESS = "choose another `metrics.port` or `metrics.address`"
NO_SOCKET = (
    "move away what lies there, name an `output` on a file system with sockets (vfat and exFAT have none), or say "
    "`uplink: inside`"
)

Place = Union[tuple[str, int], Path]  # an address and a port, or a socket's path


class Serving:
    """Serves an application, or tries to again and again: an address may come with its network.

    Parameters
    ----------
    place : where; a socket that an earlier process has left there is replaced.
    app : what answers.
    """

    def __init__(self, place: Place, app: WSGIApplication) -> None:
        self._place = place
        self._app = app
        self._name = str(place) if isinstance(place, Path) else f"{place[0]} port {place[1]}"
        self._retry_at_s = 0.0
        self._complaint = Complaint(log)
        self._running: tuple[WSGIServer, Thread] | None = None
        self.look()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def look(self) -> None:
        """Begin where that did not go so far, and it is time to try again."""
        if self._running is not None or time.monotonic() < self._retry_at_s:
            return
        try:
            self._running = begun(self._place, self._app)
        except OSError as fault:
            self._retry_at_s = time.monotonic() + RETRY_S
            cure = NO_SOCKET if isinstance(self._place, Path) else NO_ADDRESS
            self._complaint.say(f"metrics cannot be served at {self._name}: {fault}; where that stays, {cure}")
        else:
            self._complaint.end(f"metrics are served at {self._name}")

    def close(self) -> None:
        """End the server; closing twice is allowed."""
        if self._running is None:
            return
        (server, thread), self._running, self._retry_at_s = self._running, None, float("inf")
        server.shutdown()
        server.server_close()
        thread.join(JOIN_S)
        if isinstance(self._place, Path):
            with suppress(OSError):
                self._place.unlink()


def relayed(output: Path) -> WSGIApplication:
    """Answers with what the watch that writes into this folder says of itself; with 503 where none can be asked."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            status, (kind, body) = "200 OK", asked(output / SOCKET)
        except (OSError, HTTPException) as fault:
            status, kind, body = "503 Service Unavailable", "text/plain", f"no watch can be asked: {fault}\n".encode()
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    return app


def asked(path: Path) -> tuple[str, bytes]:
    """The type and the text of the figures that are served at a socket; raises OSError or HTTPException."""
    with socket.socket(socket.AF_UNIX) as line, reached(path) as name:
        line.settimeout(SILENT_S)
        line.connect(name)
        line.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with HTTPResponse(line) as answer:
            answer.begin()
            body = answer.read(MOST_B)
            if answer.status != 200 or len(body) == MOST_B:
                raise OSError(f"it answers {answer.status} with {len(body)} bytes")
            return answer.getheader("Content-Type", "text/plain"), body


@contextmanager
def reached(path: Path) -> Iterator[str]:
    """A short way to a path, for a socket's name may have 107 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def family(place: Place) -> int:
    """The kind of socket for a place; raises OSError where its address is none."""
    if isinstance(place, Path):
        return socket.AF_UNIX
    return socket.getaddrinfo(*place, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]


def begun(place: Place, app: WSGIApplication) -> tuple[WSGIServer, Thread]:
    """A server of an application, in a thread of its own; raises OSError where the place cannot be had.

    prometheus_client's own makes a thread for everybody who connects, however many, and waits for ever for what they
    say: strangers could take the threads that the watch needs.
    """
    from socketserver import TCPServer, ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    places = BoundedSemaphore(VISITORS)

    class Handler(WSGIRequestHandler):
        timeout = SILENT_S

        def log_message(self, format: str, *about: object) -> None:
            pass

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = family(place)

        def server_bind(self) -> None:
            if isinstance(place, Path):
                if place.is_socket():
                    place.unlink()
                with reached(place) as name:
                    self.socket.bind(name)
                self.server_name, self.server_port = "", 0
            else:
                TCPServer.server_bind(self)  # HTTPServer's would ask the network for this machine's name, and wait
                self.server_name, self.server_port = place[0], self.server_address[1]
            self.setup_environ()

        def get_request(self) -> tuple[Any, Any]:
            request, visitor = super().get_request()
            return request, visitor or ("", 0)  # who comes by a path has no address

        def process_request(self, request: Any, client_address: Any) -> None:
            if not places.acquire(blocking=False):
                self.shutdown_request(request)
                return
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread can be started
                places.release()
                raise

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                places.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.debug("%s was not told the figures", client_address, exc_info=True)

    server = Server(("", 0) if isinstance(place, Path) else place, Handler)
    server.set_app(app)
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread
