"""The command `orcawatch devices`: the sound cards that could be listened to."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click

from .cli import EXIT_CODES, logged
from .errors import OrcawatchError
from .feed import COMMAND
from .harmless import harmless
from .soundcard import Device, plain

LIST_S = 60.0  # each rate of each card is tried


@dataclass(frozen=True)
class Found:
    """A sound card with an input.

    Attributes
    ----------
    device : its identity.
    rates_hz : the usual rates that it takes; empty where another program has it.
    default : whether it is the system's default.
    """

    device: Device
    rates_hz: tuple[int, ...]
    default: bool

    def __str__(self) -> str:
        rates = ", ".join(map(str, self.rates_hz)) or "in use by another program"
        device = self.device
        default = "; the default" if self.default else ""
        return f"{plain(device.name)}  [{device.hostapi}]  {device.channels} channels at {rates} Hz{default}"


def find_devices(command: Sequence[str] = COMMAND) -> list[Found]:
    """The inputs that PortAudio sees now, looked for by a process of its own.

    Raises
    ------
    OrcawatchError : the library is missing, there is none, or none that this user may open; with the cure.
    """
    try:
        done = subprocess.run([*command, "--list"], cwd="/", capture_output=True, timeout=LIST_S, check=False)
    except subprocess.TimeoutExpired as fault:
        raise OrcawatchError(f"the sound system does not answer within {LIST_S:g} s; look at `arecord -l`") from fault
    try:
        answer = json.loads(done.stdout)
    except ValueError as fault:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise OrcawatchError(f"the sound system broke (exit code {done.returncode}): {''.join(said)}") from fault
    if "error" in answer:
        raise OrcawatchError(answer["error"])
    return [found_of(entry, answer["default"]) for entry in answer["devices"]]


def found_of(entry: dict[str, object], default: int) -> Found:
    """An entry of the list."""
    rates_hz: Sequence[int] = entry.pop("rates_hz")  # type: ignore[assignment]
    return Found(Device(**entry), tuple(rates_hz), entry["index"] == default)  # type: ignore[arg-type]


@click.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per device.")
@logged
def command(as_json: bool) -> None:
    """List the sound cards that can be listened to, by the names that source.device takes."""
    for found in find_devices():
        click.echo(json.dumps(record(found), ensure_ascii=False) if as_json else harmless(str(found)))


def record(found: Found) -> dict[str, object]:
    """What --json prints of a device; its index is left out, because it changes."""
    about = {name: value for name, value in asdict(found.device).items() if name != "index"}
    return {**about, "rates_hz": list(found.rates_hz), "default": found.default}
