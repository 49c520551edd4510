"""`orcawatch serve`: the review page."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from ..cli import EXIT_CODES, FILE, chosen_settings, config_option, logged, output_option
from ..errors import InputError
from .access import is_loopback, read_token

if TYPE_CHECKING:
    from ..config import Settings

log = logging.getLogger(__name__)


@click.command(epilog=EXIT_CODES)
@click.argument("folder", required=False, type=FILE, metavar="[OUTPUT]")
@config_option
@output_option
@click.option("--address", metavar="ADDRESS", help="Where to listen; 0.0.0.0 for all. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port; 0 for a free one. [default: 8765]")
@click.option(
    "--token-file", type=FILE, metavar="FILE", help="The token. [default: OUTPUT/web-token, made when missing]"
)
@click.option("--private", is_flag=True, help="Reading from this machine needs the token, too: behind a proxy.")
@logged
def command(
    folder: Path | None,
    config: Path | None,
    output: Path | None,
    address: str | None,
    port: int | None,
    token_file: Path | None,
    private: bool,
) -> None:
    """Review detections in the browser, beside a daemon or without one.

    Prints an address with a token: whoever opens it may give verdicts. Without the token, only this machine may read.
    """
    from .app import create_app
    from .server import listening, server

    settings = wanted(config, output or folder, address, port)
    token = read_token(settings.output, token_file or settings.web.token_file)
    place = listening(settings.web.address, settings.web.port)
    shown = place.getsockname()
    with place:
        serving = server(create_app(settings, token, private), place)
        click.echo(opening(shown[0], shown[1], token))
        if not is_loopback(shown[0]):
            log.warning("other machines can reach this page; what they send and see, the token too, is not encrypted")
        until_told(serving)


def wanted(config: Path | None, output: Path | None, address: str | None, port: int | None) -> Settings:
    """The settings with the command line's own on top.

    Raises
    ------
    InputError : the output folder is not there.
    """
    settings = chosen_settings(config, None, output)
    if not settings.output.is_dir():
        raise InputError(f"output folder {settings.output} is not there: name that of a run or a scan, or use --output")
    web = settings.web
    return replace(settings, web=replace(web, address=address or web.address, port=web.port if port is None else port))


def opening(address: str, port: int, token: str) -> str:
    """The address to open, with the token."""
    name = f"[{address}]" if ":" in address else address
    name = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)
    return f"http://{name}:{port}/?token={quote(token, safe='')}"


def until_told(serving: object) -> None:
    """Serve until SIGTERM or SIGINT."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        serving.run()  # type: ignore[attr-defined]
    finally:
        serving.close()  # type: ignore[attr-defined]
