"""Live capture in a process of its own: PortAudio's samples to standard output, and nothing else.

`python -m orcawatch.soundcard --list` prints the devices as JSON; `python -m orcawatch.soundcard OPTIONS`, a JSON
object with the fields of `Wanted`, captures until its standard input is closed. Nothing that holds the daemon
(inference, a disk, a lock of the interpreter) can hold capture, and where a sound system hangs or crashes only this
process ends. The only file that imports sounddevice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Callable, NamedTuple

HEADER = struct.Struct("<4sBB2xIIIQQQ")
MAGIC = b"OWSC"
OPENED, AUDIO, FAULT = 1, 2, 3
OVERFLOW = 1  # flag of a frame of audio
SAMPLE_BYTES = {"int16": 2, "int24": 3, "int32": 4, "float32": 4}
RATES_HZ = (8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
PIPE_BYTES = 1 << 20
SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ, which Python has from 3.10 on
NO_LIBRARY = "the library PortAudio is missing: apt install libportaudio2 ({})"
DENIED = "; {} may not be opened by this user: add it to the group audio (usermod -aG audio {})"
TWINS = (
    "device {!r} stands for {} devices: {}; give more of the name or source.hostapi, and where the names are equal an "
    "own name to each in /etc/asound.conf (pcm.NAME {{ type hw card ID }}, with the ID from /proc/asound/cards)"
)

NO_CALLBACK = "the callback cannot be made: leave MemoryDenyWriteExecute out of the service's unit ({})"
LOOK = "look at `arecord -l`"
BAD_RATE = -9997  # PortAudio's numbers of errors
CURES = {
    -9985: "another program has it: end that, or share the card through a `dsnoop` device",
    -9998: "many cards give all of their channels or none: see source.device_channels",
    -9994: "see source.sample_format; int16 and int32 are what most cards have",
}


class Header(NamedTuple):
    """What stands before the bytes of each frame on the pipe.

    Attributes
    ----------
    magic : `MAGIC`.
    kind : `OPENED` and `FAULT` carry JSON, `AUDIO` interleaved samples.
    flags : `OVERFLOW` where the callback was told so, for this block or any that were dropped before it.
    sequence : counts the frames from 0.
    size : bytes that follow.
    rows : samples of each channel that follow.
    first : position of the first row since the stream was opened. It counts what was dropped for want of room, so that
        a jump past the end of the frame before is exactly what is missing.
    steady_ns, awake_ns : CLOCK_BOOTTIME and CLOCK_MONOTONIC when the block came.
    """

    magic: bytes
    kind: int
    flags: int
    sequence: int
    size: int
    rows: int
    first: int
    steady_ns: int
    awake_ns: int


class CaptureError(Exception):
    """Capture cannot begin or go on; the text says why, what there is and the cure."""


@dataclass(frozen=True)
class Device:
    """An input of a sound system.

    Attributes
    ----------
    index : PortAudio's number, which changes when devices come and go.
    name, hostapi : its stable identity; the name may hold a card's number, which is none.
    channels : how many it has.
    rate_hz : its default.
    """

    index: int
    name: str
    hostapi: str
    channels: int
    rate_hz: int

    def __str__(self) -> str:
        return f"{self.name!r} ({self.hostapi}, {self.channels} channels)"


@dataclass(frozen=True)
class Wanted:
    """What to open; None takes what the device offers.

    Attributes
    ----------
    device, hostapi : names, see `chosen`.
    channels : how many; None for all, at most `most_channels`.
    rate_hz : samples per second of each channel.
    sample_format : one of `SAMPLE_BYTES`.
    block_s : length of the blocks.
    latency_s : what the driver is asked to buffer.
    room_s : audio that may wait here while nobody reads the pipe.
    """

    device: str | None = None
    hostapi: str | None = None
    channels: int | None = None
    most_channels: int = 8
    rate_hz: int | None = None
    sample_format: str = "float32"
    block_s: float = 0.1
    latency_s: float = 0.5
    room_s: float = 10.0


@dataclass(frozen=True)
class Opened:
    """What was opened: the payload of the frame `OPENED`."""

    name: str
    hostapi: str
    rate_hz: int
    channels: int
    sample_format: str
    latency_s: float


def device_of(index: int, found: Mapping[str, Any], hostapis: Sequence[str]) -> Device:
    """A device from what sounddevice says of it."""
    rate_hz = round(found["default_samplerate"])
    return Device(index, found["name"], hostapis[found["hostapi"]], found["max_input_channels"], rate_hz)


def plain(name: str) -> str:
    """A device's name without the numbers of card and device, which change when cards come and go."""
    return re.sub(r"\s*\((plug)?hw:[^)]*\)", "", name).rstrip(" :-")


def chosen(devices: Sequence[Device], default: int, name: str | None, hostapi: str | None) -> Device:
    """The device of a name: the same name, the same but for case, or the only one that holds it as a part.

    Parameters
    ----------
    devices : those with inputs.
    default : index of the system's default input.
    name : without regard to what `plain` strips; None for the default.
    hostapi : the sound system, without regard to case; None for any.

    Raises
    ------
    CaptureError : there is none, or more than one.
    """
    offered = [device for device in devices if hostapi is None or device.hostapi.casefold() == hostapi.casefold()]
    if not offered:
        raise CaptureError(nothing_text(devices, hostapi))
    if name is None:
        return next((device for device in offered if device.index == default), offered[0])
    for fits in (same, same_but_for_case, holds):
        found = [device for device in offered if fits(plain(device.name), plain(name))]
        if len(found) > 1:
            raise CaptureError(TWINS.format(name, len(found), ", ".join(map(str, found))))
        if found:
            return found[0]
    raise CaptureError(unknown_text(offered, name))


def same(name: str, wanted: str) -> bool:
    """Whether names are equal."""
    return name == wanted


def same_but_for_case(name: str, wanted: str) -> bool:
    """Whether names are equal but for case."""
    return name.casefold() == wanted.casefold()


def holds(name: str, wanted: str) -> bool:
    """Whether a name holds what is wanted, but for case."""
    return wanted.casefold() in name.casefold()


def nothing_text(devices: Sequence[Device], hostapi: str | None) -> str:
    """Why there is nothing to choose from."""
    if not devices:
        return "no sound card with an input is there: plug it in, and look at `arecord -l`" + denied_text(
            Path("/dev/snd")
        )
    names = sorted({device.hostapi for device in devices})
    return f"no input is offered by hostapi {hostapi!r}; there is {', '.join(names)}"


def unknown_text(devices: Sequence[Device], name: str) -> str:
    """That no device has a name, and the nearest, going by whole names or as many of their first words."""
    wanted = plain(name).casefold()
    count = len(wanted.split())
    names: dict[str, str] = {}
    for device in devices:
        whole = plain(device.name).casefold()
        names.update({" ".join(whole.split()[:count]): device.name, whole: device.name})
    close = get_close_matches(wanted, names, n=1, cutoff=0.6)
    hint = f"did you mean {names[close[0]]!r}?" if close else f"there is {', '.join(map(str, devices))}"
    return f"no device is called {name!r}; {hint}" + denied_text(Path("/dev/snd"))


def denied_text(folder: Path) -> str:
    """The cure where sound devices are there that this user may not open; empty where there are none."""
    nodes = sorted(folder.glob("pcm*c")) if folder.is_dir() else []
    locked = next((node for node in nodes if not os.access(node, os.R_OK | os.W_OK)), None)
    return "" if locked is None else DENIED.format(locked, os.environ.get("USER", "USER"))


class Buffer:
    """Between the callback, which must never wait, and the pipe, which may: what does not fit is dropped and counted.

    Parameters
    ----------
    room : rows that may wait.
    clock_ns : time by the name of a clock.
    """

    def __init__(self, room: int, clock_ns: Callable[[int], int] = time.clock_gettime_ns) -> None:
        self.queue: SimpleQueue[tuple[Header, bytes] | None] = SimpleQueue()
        self._room = room
        self._clock_ns = clock_ns
        self._position = self._put = self._taken = self._flags = 0

    def callback(self, data: Any, rows: int, times: Any, status: Any) -> None:
        """Copy, count, return: called by PortAudio's own thread."""
        first, self._position = self._position, self._position + rows
        self._flags |= OVERFLOW * bool(status.input_overflow)
        if self._put - self._taken + rows > self._room:
            return
        steady_ns, awake_ns = (self._clock_ns(clock) for clock in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC))
        samples = bytes(data)
        header = Header(MAGIC, AUDIO, self._flags, 0, len(samples), rows, first, steady_ns, awake_ns)
        self.queue.put((header, samples))
        self._put += rows
        self._flags = 0

    def taken(self, rows: int) -> None:
        """Rows were written: called by the one thread that writes."""
        self._taken += rows

    def end(self) -> None:
        """No more comes: called by PortAudio where the stream ended by itself."""
        self.queue.put(None)


@dataclass
class Pipe:
    """The one writer of frames.

    Attributes
    ----------
    handle : of the pipe.
    sequence : frames so far.
    """

    handle: int
    sequence: int = 0

    def write(self, header: Header, content: bytes) -> None:
        """Write a frame whole; waits while the pipe is full."""
        left = memoryview(HEADER.pack(*header._replace(sequence=self.sequence)) + content)
        self.sequence += 1
        while left:
            left = left[os.write(self.handle, left) :]

    def tell(self, kind: int, about: Mapping[str, Any]) -> None:
        """Write a frame that holds JSON."""
        content = json.dumps(about).encode()
        now = (time.clock_gettime_ns(clock) for clock in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC))
        self.write(Header(MAGIC, kind, 0, 0, len(content), 0, 0, *now), content)


@dataclass
class Sound:
    """PortAudio through sounddevice, with its errors as `CaptureError`.

    Attributes
    ----------
    library : the module.
    devices : those with inputs, as of now: PortAudio looks for devices once in a process.
    default : index of the default input; -1 where there is none.
    """

    library: Any
    devices: list[Device] = field(init=False)
    default: int = field(init=False)

    def __post_init__(self) -> None:
        names = [found["name"] for found in self.library.query_hostapis()]
        self.devices = [
            device_of(index, found, names)
            for index, found in enumerate(self.library.query_devices())
            if found["max_input_channels"] > 0
        ]
        self.default = self.library.default.device[0]

    def open(self, wanted: Wanted, buffer_of: Callable[[int], Buffer]) -> tuple[Opened, Buffer, Any]:
        """What was opened, the buffer that its audio comes to, and the stream, which has not begun.

        Raises
        ------
        CaptureError : the device is not there, or not to be had like this.
        """
        device = chosen(self.devices, self.default, wanted.device, wanted.hostapi)
        channels = wanted.channels or min(device.channels, wanted.most_channels)
        if channels > device.channels:
            raise CaptureError(
                f"{device} has {device.channels} input channels, not {channels}: see source.device_channels"
            )
        rate_hz = wanted.rate_hz or device.rate_hz
        buffer = buffer_of(rate_hz)
        try:
            stream = self.library.RawInputStream(
                device=device.index, channels=channels, samplerate=rate_hz, dtype=wanted.sample_format,
                blocksize=max(1, round(wanted.block_s * rate_hz)), latency=wanted.latency_s,
                callback=buffer.callback, finished_callback=buffer.end,
            )  # fmt: skip
        except self.library.PortAudioError as fault:
            raise CaptureError(self.refusal(fault, device, channels, rate_hz, wanted.sample_format)) from fault
        opened = Opened(device.name, device.hostapi, rate_hz, channels, wanted.sample_format, float(stream.latency))
        return opened, buffer, stream

    def refusal(self, fault: Any, device: Device, channels: int, rate_hz: int, sample_format: str) -> str:
        """Why a device could not be opened, and the cure."""
        text, code, host = [*fault.args, None, None, None][:3]
        reason = f"{text} ({host[2]})" if host else str(text)
        cure = f"it takes {self.rates_text(device)}: see source.rate_hz" if code == BAD_RATE else CURES.get(code, LOOK)
        asked = f"{channels} channels of {sample_format} at {rate_hz} Hz"
        return f"{device} refuses {asked}: {reason}; {cure}" + denied_text(Path("/dev/snd"))

    def rates_text(self, device: Device) -> str:
        """The usual rates that a device takes, in words."""
        return ", ".join(f"{rate_hz}" for rate_hz in self.rates_hz(device) or [device.rate_hz]) + " Hz"

    def rates_hz(self, device: Device) -> list[int]:
        """The usual rates that a device takes; none where another program has it."""
        return [rate_hz for rate_hz in RATES_HZ if self._takes(device, rate_hz)]

    def _takes(self, device: Device, rate_hz: int) -> bool:
        try:
            self.library.check_input_settings(device.index, device.channels, "int16", samplerate=rate_hz)
        except self.library.PortAudioError:
            return False
        return True


def load_sound() -> Sound:
    """PortAudio with its devices of this moment.

    Raises
    ------
    CaptureError : the library is missing, or does not start.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as fault:
        raise CaptureError(NO_LIBRARY.format(fault)) from fault
    except Exception as fault:  # PortAudio's own error, whose class lies in the module that did not load
        raise CaptureError(f"PortAudio does not start: {fault}; look at `arecord -l`") from fault
    return Sound(sounddevice)


def listing(sound: Sound) -> dict[str, Any]:
    """What `--list` prints; raises CaptureError where there is nothing to list."""
    if not sound.devices:
        raise CaptureError(nothing_text([], None))
    devices = [{**asdict(device), "rates_hz": sound.rates_hz(device)} for device in sound.devices]
    return {"devices": devices, "default": sound.default}


def capture(wanted: Wanted, pipe: Pipe) -> int:
    """Copy audio to the pipe until the stream ends; the exit code."""
    try:
        opened, buffer, stream = load_sound().open(wanted, lambda rate_hz: Buffer(round(wanted.room_s * rate_hz)))
        stream.start()
    except CaptureError as fault:
        pipe.tell(FAULT, {"text": str(fault)})
        return 1
    except MemoryError as fault:
        pipe.tell(FAULT, {"text": NO_CALLBACK.format(fault)})
        return 1
    except Exception as fault:  # PortAudio's own error, as above
        pipe.tell(FAULT, {"text": f"the device does not start: {fault}"})
        return 1
    pipe.tell(OPENED, asdict(opened))
    while (frame := buffer.queue.get()) is not None:
        buffer.taken(frame[0].rows)
        pipe.write(*frame)
    pipe.tell(FAULT, {"text": f"{opened.name!r} ended its stream: was it pulled out?"})
    return 1


def end_with_parent() -> None:
    """Wait until the parent closes our standard input, which its death does too, and end at once.

    Nothing is closed in order: a sound system that hangs would keep us, and the kernel closes everything.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


def own_pipe() -> Pipe:
    """Standard output, widened, and kept to ourselves: what a library prints goes to standard error."""
    handle = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # no pipe, or beyond what an unprivileged user may have: it works, but narrower
        fcntl.fcntl(handle, SET_PIPE_SIZE, PIPE_BYTES)
    return Pipe(handle)


def main(argument: str) -> int:
    """The program; returns its exit code."""
    pipe = own_pipe()
    if argument == "--list":
        try:
            answer, code = listing(load_sound()), 0
        except CaptureError as fault:
            answer, code = {"error": str(fault)}, 1
        os.write(pipe.handle, json.dumps(answer).encode() + b"\n")
        return code
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    return capture(Wanted(**json.loads(argument)), pipe)


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))  # without the library's own tidying up, which may hang
