"""`orcawatch uplink`: all that leaves the station, in a process of its own, so that the watch needs no network.

It sends what waits for the sinks, and hands the watch's figures on to Prometheus.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Callable

import click

from .cli import EXIT_CODES, FAILED, chosen_settings, config_option, logged, output_option
from .durable import Complaint
from .errors import InputError, OrcawatchError
from .serving import RETRY_S, Serving, relayed
from .turn import take_turn

if TYPE_CHECKING:
    from .config import Settings
    from .outbox import Outbox

log = logging.getLogger(__name__)

WAIT_S = 1.0  # between two looks whether there is a database


@click.command(epilog=EXIT_CODES)
@config_option
@output_option
@click.option(
    "--once", is_flag=True, help="Send what can be sent now, and end: 0 where nothing waits any more, else 1."
)
@logged
@click.pass_context
def command(ctx: click.Context, config: Path | None, output: Path | None, once: bool) -> None:
    """Send to the sinks what waits for them, and hand on the figures of `metrics`, until SIGTERM or SIGINT.

    For settings with `uplink: apart`, beside `orcawatch run`, which then only writes into the output folder. Otherwise
    the watch sends by itself, and this sends, with --once, what a watch that has ended has left.
    """
    from .daemon import DATABASE, stop_signals

    settings = chosen_settings(config, None, output)
    if not settings.sinks and (once or settings.uplink != "apart" or settings.metrics.port is None):
        raise InputError("the settings name no sinks: see `sinks` in docs/configuration.md, and --config")
    if settings.uplink != "apart" and not once:
        raise InputError(
            "the watch sends by itself: say `uplink: apart` in the settings and start it again, or use --once"
        )
    path = settings.output / DATABASE
    if once and not path.exists():
        raise InputError(f"{path} is not there: name the settings, or the output folder, of a watch")
    with stop_signals() as stop, only_sender(settings):
        ctx.exit(send_once(path, settings, stop) if once else send(path, settings, stop))


@contextmanager
def only_sender(settings: Settings) -> Iterator[None]:
    """While no other program sends what waits in this output folder.

    Raises
    ------
    InputError : another one does.
    OrcawatchError : the folder cannot be written to.
    """
    from .daemon import only_writer

    output = settings.output
    with ExitStack() as stack:
        if settings.uplink != "apart":
            stack.enter_context(only_writer(output))  # the watch would send, too
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock = take_turn(output)
        except OSError as fault:
            raise OrcawatchError(
                f"{output} cannot be written to: {fault.strerror}; check the disk, and run this as the folder's owner "
                "(`sudo -u orcawatch`)"
            ) from fault
        if lock is None:
            raise InputError(
                f"another `orcawatch uplink` sends what waits in {output}, or a watch does: "
                "`systemctl stop orcawatch-uplink`, or wait for it"
            )
        stack.enter_context(lock)
        yield


def send(path: Path, settings: Settings, stop: Flag) -> int:
    """Send and hand on until told to stop; the database is waited for where there is none yet, or a damaged one."""
    from .clock import Clocks
    from .outbox import sending

    with ExitStack() as opened:
        serving = handing_on(settings, opened)
        if not path.exists():
            log.info("%s is not there yet: waiting for the watch to make it", path)
        while not path.exists():
            if stop.wait(WAIT_S):
                return 0
            serving()
        if settings.sinks:
            outbox, complaint = opened.enter_context(closing(sending(path, settings, Clocks()))), Complaint(log)
            while not begun(outbox, complaint):
                if stop.wait(RETRY_S):
                    return 0
                serving()
            log.info("sending to %s", ", ".join(sink.queue for sink in settings.sinks))
        while not stop.wait(RETRY_S):
            serving()
    return 0


def begun(outbox: Outbox, complaint: Complaint) -> bool:
    """Start sending, where the database can be read; else complain."""
    try:
        outbox.start()
    except OrcawatchError as fault:
        complaint.say(
            f"nothing is sent, and it is tried again: {fault}; where the database is damaged, the watch rescues it "
            "when it starts (`systemctl restart orcawatch`)"
        )
        return False
    complaint.end("what waits is sent again")
    return True


def handing_on(settings: Settings, opened: ExitStack) -> Callable[[], object]:
    """Hand on the watch's figures until `opened` ends, where the settings say so; to be called now and then."""
    port, address = settings.metrics.port, settings.metrics.address
    if port is None:
        return lambda: None
    return opened.enter_context(Serving((address, port), relayed(settings.output))).look


def send_once(path: Path, settings: Settings, stop: Flag) -> int:
    """Send, sink by sink, until nothing waits or it does not go now; print what waits. The exit code."""
    from .clock import Clocks
    from .outbox import sending

    outbox = sending(path, settings, Clocks())
    outbox.send_once(stop)
    depths = outbox.depths()
    for name, depth in depths.items():
        refused = f", {depth.parked} were refused for good" if depth.parked else ""
        click.echo(f"{name}: {depth.messages} wait ({depth.bytes} bytes){refused}")
    return FAILED if any(depth.messages for depth in depths.values()) else 0
