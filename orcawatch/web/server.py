"""The server of the pages: waitress, with bounds that one careless or hostile client cannot use up."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel
from waitress.server import create_server

from ..errors import InputError
from .app import MOST_BODY_B

if TYPE_CHECKING:
    from flask import Flask

THREADS = 4
CONNECTIONS = 60
HEADER_B = 16 << 10
IDLE_S = 20  # until a connection is closed on which no request was completed, or nothing is taken of a long answer
UNSENT_B = 1 << 20  # of an answer that is made while it is sent, waiting for a slow reader


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection on which a request must arrive whole in a given time, not only some byte now and then.

    Who takes nothing of a long answer for as long is cut off: it would hold a thread for ever.
    """

    last_activity: float

    def handle_read(self) -> None:
        """Take what arrived; a request that was begun stays as old as it was."""
        began_s = self.last_activity if self.request is not None else None
        super().handle_read()
        if began_s is not None and self.request is not None:
            self.last_activity = began_s

    def writable(self) -> bool:
        """Whether there is something to send; asked at every turn of the server's loop."""
        waiting = self.requests and self.total_outbufs_len > self.adj.outbuf_high_watermark
        if waiting and time.time() - self.last_activity > self.adj.channel_timeout:
            with suppress(OSError):  # the reader is gone by itself
                self.socket.shutdown(socket.SHUT_RDWR)
        return bool(super().writable())


def listening(address: str, port: int) -> socket.socket:
    """A socket that listens; raises InputError where the address cannot be had."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        found = socket.socket(family, kind)
    except OSError as fault:
        raise InputError(f"{address} is no address of this machine: {fault}; see --address") from fault
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as fault:
        found.close()
        raise InputError(
            f"{address} port {port} cannot be had: {fault.strerror}; choose another --port or --address"
        ) from fault
    return found


def server(app: Flask, place: socket.socket, idle_s: int = IDLE_S) -> Any:
    """The server on a socket: call its `run`, and its `close` to end."""
    made = create_server(
        app,
        sockets=[place],
        threads=THREADS,
        connection_limit=CONNECTIONS,
        max_request_body_size=MOST_BODY_B,
        max_request_header_size=HEADER_B,
        channel_timeout=idle_s,
        cleanup_interval=max(1, idle_s // 4),
        outbuf_high_watermark=UNSENT_B,
        ident=None,
        clear_untrusted_proxy_headers=False,  # a proxy is to be noticed (`access`); its headers are not believed
    )
    made.channel_class = Channel
    return made
