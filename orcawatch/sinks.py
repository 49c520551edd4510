"""Sinks: where messages go beside the database; and the messages.

A sink is a class behind the entry point `orcawatch.sinks`: `Class(settings, site)`, with its keys in the dataclass
`Class.Settings` (a subclass of `orcawatch.config.SinkSettings`). Our own come through the same door as anyone's.
A sink runs in a thread of its own (see `outbox`): it may be slow, or hang, and holds up nothing but its own queue.
"""

from __future__ import annotations

import base64
import json
import math
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ._version import __version__
from .config import SINKS, SinkSettings
from .errors import ConfigError, OrcawatchError
from .keys import unknown_name
from .plugin import entry_points

if TYPE_CHECKING:
    from .outbox import Depth
    from .records import ClockChange
    from .store import Detection

SCHEMA = 1  # of the messages; a change that a receiver must know of raises it
# Who goes first. Detections and what their times mean, then effort, then signs of life, then pictures.
PRIORITIES: Mapping[str, int] = {"detection": 40, "clock": 40, "effort": 30, "heartbeat": 20, "thumbnail": 10}
KEPT = ("detection", "clock")  # never dropped from a full outbox
RECORDED = "recorded"
KINDS = (RECORDED, "gap", "off_duty", "shed")
THERMAL = Path("/sys/class/thermal")


class SinkError(OrcawatchError):
    """A message was sent, or part of it, and the far side did not say that it has it; it is sent again later.

    Parameters
    ----------
    text : what happened, and the cure.
    after_s : how long the far side asked to be left alone; None where it did not say.
    """

    def __init__(self, text: str, after_s: float | None = None) -> None:
        super().__init__(text)
        self.after_s = after_s


class UnreachableError(SinkError):
    """Nothing was sent: there is no way to the far side now."""


class RefusedError(OrcawatchError):
    """The far side will never take this message; it is parked, and the next one is sent."""


@dataclass(frozen=True)
class Site:
    """What a sink may want to know about where it runs.

    Attributes
    ----------
    station : name of the station; may be empty.
    output : the output folder.
    """

    station: str
    output: Path

    @property
    def label(self) -> str:
        """The station's name, or the machine's, as a word without spaces and without what MQTT topics reserve."""
        return re.sub(r"[\s/+#\0$]+", "_", self.station or socket.gethostname())


@dataclass(frozen=True)
class Message:
    """What waits in the outbox.

    Attributes
    ----------
    row : its row in the outbox.
    kind : detection, thumbnail, effort, heartbeat or clock.
    payload : a JSON object in UTF-8 on one line (see docs/sinks.md).
    tries : how often it was tried before.
    """

    row: int
    kind: str
    payload: bytes
    tries: int = 0

    @property
    def id(self) -> str:
        """What a receiver tells doubles by."""
        return str(json.loads(self.payload)["id"])


class Sink(Protocol):
    """Brings messages to a far side, one after the other; all methods are called from one thread.

    Attributes
    ----------
    Settings : the class of its keys.
    overhead_bytes : what its protocol adds to each message, roughly; counted against the budget.
    """

    Settings: ClassVar[type[SinkSettings]]
    overhead_bytes: int

    def open(self) -> None:
        """Be ready to send; called before each message and now and then while there is none.

        Raises
        ------
        UnreachableError : there is no way to the far side.
        """
        ...

    def send(self, message: Message) -> None:
        """Return when the far side has acknowledged that it has the message.

        Raises
        ------
        SinkError : it may have it or not, and will be sent it again. An OSError means the same.
        RefusedError : it will never take it.
        """
        ...

    def close(self) -> None:
        """Let go of everything; called after every failure, and at the end. Closing twice is allowed."""
        ...


def sink_class(kind: str) -> Any:
    """The class of a kind of sink.

    Raises
    ------
    ConfigError : no such sink is installed.
    """
    found = entry_points(SINKS)
    if kind not in found:
        raise ConfigError(unknown_name("kind of a sink", kind, found))
    return found[kind].load()


def make_sink(settings: SinkSettings, site: Site) -> Sink:
    """The sink that its settings describe.

    Raises
    ------
    ConfigError : no such sink is installed, or its settings do not fit.
    """
    sink: Sink = sink_class(settings.kind)(settings, site)
    return sink


@dataclass(frozen=True)
class Origin:
    """Who speaks: part of every message.

    Attributes
    ----------
    station : name of the station.
    boot : the machine's boot, which `steady_s` counts from.
    session : the run of the daemon.
    """

    station: str
    boot: str
    session: int | None


def message(origin: Origin, kind: str, body: Mapping[str, Any], created_utc: datetime, steady_s: float) -> bytes:
    """A message with an id of its own, as one line of JSON. What is not a number becomes null."""
    content = {
        "id": uuid.uuid4().hex,
        "kind": kind,
        "schema": SCHEMA,
        "station": origin.station,
        "boot": origin.boot,
        "session": origin.session,
        "created_utc": created_utc.isoformat(timespec="milliseconds"),
        "steady_s": round(steady_s, 3),
        "version": __version__,
        "body": body,
    }
    return json.dumps(plain(content), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def plain(value: Any) -> Any:
    """A value as JSON can hold it: null for what is no finite number, text for times, rounded to six digits."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (str, bool, Integral)) or value is None:
        return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def detection_body(detection: Detection) -> dict[str, Any]:
    """A detection as it stands in its row; clip, snapshot and its numbers are made later and not part of it."""
    names = (
        "source", "start_utc", "synchronised", "start_s", "end_s", "start_sample", "end_sample", "score", "channels",
        "channel_scores", "best_channel", "hydrophones", "levels_db", "level_unit", "bundle", "bundle_digest",
        "bearing_deg", "bearing_error_deg", "bearing_note",
    )  # fmt: skip
    return {"detection": detection.id, **{name: getattr(detection, name) for name in names}}


def thumbnail_body(detection: Detection, picture: bytes) -> dict[str, Any]:
    """A small JPEG of a detection's snapshot, with what is known once clip and snapshot are made."""
    return {
        "detection": detection.id,
        "start_utc": detection.start_utc,
        "numbers": detection.numbers,
        "clip": detection.clip,
        "snapshot": detection.snapshot,
        "format": "jpeg",
        "image": base64.b64encode(picture).decode(),
    }


def effort_body(
    start_utc: datetime,
    end_utc: datetime,
    before: Mapping[tuple[str, str], float],
    after: Mapping[tuple[str, str], float],
) -> dict[str, Any]:
    """What became of a span of time.

    Parameters
    ----------
    start_utc, end_utc : the span.
    before, after : the account (`Facts.account`) at its start and its end.
    """
    spent = {entry: seconds - before.get(entry, 0.0) for entry, seconds in after.items()}
    seconds = {kind: sum(spent[entry] for entry in spent if entry[0] == kind) for kind in KINDS}
    causes = [
        {"kind": kind, "cause": cause, "seconds": lost}
        for (kind, cause), lost in sorted(spent.items())
        if kind != RECORDED and lost > 0
    ]
    return {"start_utc": start_utc, "end_utc": end_utc, "seconds": seconds, "causes": causes}


def clock_body(change: ClockChange, drift_ppm: float | None = None) -> dict[str, Any]:
    """A step of the system clock, or of its synchronisation."""
    return {
        "sample": change.sample,
        "utc": change.utc,
        "jump_s": change.jump_s,
        "was_synchronised": change.was_synchronised,
        "synchronised": change.synchronised,
        "drift_ppm": drift_ppm,
    }


@dataclass(frozen=True)
class Facts:
    """How the daemon is.

    Attributes
    ----------
    uptime_s : since the daemon started.
    disk_free_mb : on the output folder's disk.
    behind_s : audio that waits to be scored.
    step, step_name : of the overload ladder.
    synchronised, drift_ppm : of the clock; None where it is not known.
    temperatures_c : of the machine, by sensor.
    levels_db, level_unit : the last levels of the hydrophones; not a number where not measured.
    hydrophones : their serial numbers, in the same order.
    counters : since the daemon started, by name.
    stopped : windows of single channels that each gate of the cascade stopped, by its name.
    account : seconds since the session's start by (kind, cause): recorded, gap, off_duty, shed; the cause of recorded
        is empty.
    """

    uptime_s: float = 0.0
    disk_free_mb: float = math.nan
    behind_s: float = 0.0
    step: int = 0
    step_name: str = ""
    synchronised: bool | None = None
    drift_ppm: float | None = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    levels_db: Sequence[float] = ()
    level_unit: str = ""
    hydrophones: Sequence[str] = ()
    counters: Mapping[str, float] = field(default_factory=dict)
    stopped: Mapping[str, int] = field(default_factory=dict)
    account: Mapping[tuple[str, str], float] = field(default_factory=dict)


def heartbeat_body(facts: Facts, depths: Mapping[str, Depth]) -> dict[str, Any]:
    """A sign of life: how the daemon is, and what waits in each queue (`Outbox.depths`)."""
    return {
        "uptime_s": round(facts.uptime_s, 1),
        "disk_free_mb": round(facts.disk_free_mb, 1),
        "behind_s": round(facts.behind_s, 2),
        "step": facts.step,
        "step_name": facts.step_name,
        "synchronised": facts.synchronised,
        "drift_ppm": facts.drift_ppm,
        "temperatures_c": facts.temperatures_c,
        "levels_db": [round(float(level), 1) for level in facts.levels_db],
        "level_unit": facts.level_unit,
        "hydrophones": list(facts.hydrophones),
        "counters": facts.counters,
        "stopped": facts.stopped,
        "outbox": {name: asdict(waiting) for name, waiting in depths.items()},
    }


def temperatures_c(folder: Path = THERMAL) -> dict[str, float]:
    """The machine's temperatures as Linux tells them, by sensor; those that cannot be read are left out."""
    found: dict[str, float] = {}
    for zone in sorted(folder.glob("thermal_zone*")):
        try:
            kind, millidegrees = (zone / "type").read_text().strip(), int((zone / "temp").read_text())
        except (OSError, ValueError):
            continue  # a sensor that is off answers with an error
        found[kind if kind not in found else f"{kind} {zone.name[len('thermal_zone') :]}"] = millidegrees / 1000
    return found
