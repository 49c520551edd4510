"""What benchmarks/fuzz.py feeds with malformed input, and what must come of it: not a benchmark itself."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import struct
import tarfile
import threading
import traceback
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mutations import edited

HANG_S = 60

Run = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """What is tried.

    Attributes
    ----------
    seeds : inputs to begin with.
    run : takes an input, returns in a word what became of it; raises OrcawatchError to refuse it.
    close : ends what the target has started.
    """

    seeds: Sequence[bytes]
    run: Run
    close: Callable[[], object] = lambda: None


class Wrong(AssertionError):  # noqa: N818
    """An answer that is not right."""


def place_of(fault: BaseException) -> str:
    """An exception, and the last place in orcawatch that it came through."""
    frames = traceback.extract_tb(fault.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}orcawatch{os.sep}" in frame.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    text = str(fault)[:80] if isinstance(fault, Wrong) else ""
    return f"{type(fault).__name__} {where} {text}".strip()


def expect(right: bool, text: str) -> None:
    """Raise `Wrong` where it is not so."""
    if not right:
        raise Wrong(text)


def audio(folder: Path) -> Target:
    """Sound files of each kind, through reader, screen, front end and windows."""
    import numpy as np
    import soundfile
    from kills_watch import Ensemble

    from orcawatch.files import FileSource
    from orcawatch.guano import guano_text, with_guano_chunk
    from orcawatch.listener import Listener
    from orcawatch.times import Times

    ensemble = Ensemble()
    kinds = {
        "WAV": ("PCM_16", "PCM_24", "FLOAT", "IMA_ADPCM"), "FLAC": ("PCM_16",), "OGG": ("VORBIS",), "AIFF": ("PCM_16",),
        "AU": ("PCM_16",), "CAF": ("PCM_16",), "W64": ("PCM_16",), "RF64": ("PCM_16",), "WAVEX": ("PCM_16",),
        "MP3": ("MPEG_LAYER_III",), "NIST": ("PCM_16",), "VOC": ("PCM_16",), "PAF": ("PCM_16",), "SVX": ("PCM_16",),
    }  # fmt: skip
    sound = np.random.default_rng(0).normal(0, 0.1, (800, 1)).astype(np.float32)
    seeds = []
    for kind, subtypes in kinds.items():
        for subtype in subtypes:
            file = io.BytesIO()
            soundfile.write(file, sound, 16000, format=kind, subtype=subtype)
            seeds.append(file.getvalue())
    seeds.append(with_guano_chunk(seeds[0], guano_text({"Timestamp": "2026-01-01T00:00:00Z"})))
    path = folder / "sound"

    def run(content: bytes) -> str:
        path.write_bytes(content)
        source = FileSource(path, times=Times.of("UTC", None))
        listener, stop = Listener(source, ensemble, None), threading.Event()
        end = blocks = 0
        for item, windows in listener.listen(stop):
            expect(all(0 <= window.score <= 1 for window in windows), "a score is none")
            if item is not None:
                expect(item.start_sample == end, "audio is not in order")
                end, blocks = item.end_sample, blocks + 1
            if blocks > 20:
                stop.set()
        totals = listener.totals()
        expect(abs(totals.scored_s + totals.refused_s - totals.read_s) < 1e-6, "the account does not add up")
        return "read" if totals.fault is None else "read in part"

    return Target(seeds, run)


def stamps(folder: Path) -> Target:
    """Names, comments and metadata chunks that tell a file's time."""
    from orcawatch.times import Times

    seeds = [
        b"20190920_163858.wav\nGUANO|Version: 1.0\nTimestamp: 2026-01-01T00:00:00.5Z\n",
        b"AMAR173_20190920T163858.250Z\nRecorded at 12:00:00 01/02/2026 (UTC-3:30) by AudioMoth",
        b"a\n" + b" " * 320 + b"2026-01-0100:00:00", b"x\nGUANO|Version: 1.0\nTimestamp: 0001-01-01T00:00:00+15:00\n",
    ]  # fmt: skip
    path = folder / "stamp.wav"

    def run(content: bytes) -> str:
        name, _, text = content.partition(b"\n")
        chunk = struct.pack("<4sI", b"bext" if content[:1] == b"a" else b"guan", len(text)) + text
        path.write_bytes(b"RIFF\0\0\0\0WAVE" + (text[5:] if content[:1] == b"x" else chunk))
        shown = Path(os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"")) or "x")
        told = [Times.of(zone, None).start_utc(path, text.decode("utf-8", "replace")) for zone in (None, "UTC")]
        from orcawatch.times import utc_in_name

        told.append(utc_in_name(shown.name))
        expect(all(one is None or one.utcoffset() is not None for one in told), "a time without a zone")
        return "told" if any(told) else "none"

    return Target(seeds, run)


CONFIGURATION = {
    "station": "S", "latitude_deg": 48.5, "longitude_deg": -123.0, "output": "out", "channels": [0, 1],
    "source": {"device": "x", "rate_hz": 48000, "sample_format": "int24", "block_s": 0.1, "file": None},
    "hydrophones": [{"serial": "H", "position_m": [0, 0, 0], "sensitivity_db": -170}, {"serial": "J", "gain_db": 20}],
    "files": {"timezone": "Europe/Oslo", "time_format": "%Y%m%d_%H%M%S"}, "web": {"address": "::1", "port": 80},
    "events": {"merge_gap_s": 1, "min_duration_s": 0.5}, "clips": {"format": "wav"},
    "duty": {"on_s": 60, "every_s": 600},
    "overload": {"steps": ["hop"], "queue_s": 30}, "retention": {"max_age_days": 3}, "start_threshold": 0.5,
    "sinks": [{"kind": "mqtt", "host": "h", "bytes_per_hour": 1000, "send": ["effort"]},
              {"kind": "jsonl", "folder": "m"},
              {"kind": "webhook", "url": "https://example.org/x", "name": "w"}],
    "adc_peak_v": 1.0, "cascade": True, "threads": 1, "hop_s": 0.48, "snapshots": False,
}  # fmt: skip


def yaml_text(folder: Path) -> Target:
    """The configuration file, byte by byte."""
    import yaml

    from orcawatch.config import load_settings

    path = folder / "config.yaml"

    def run(content: bytes) -> str:
        path.write_bytes(content)
        load_settings(path)
        return "taken"

    seeds = [
        yaml.safe_dump(CONFIGURATION).encode(), b"station: &a [x]\nsinks: *a\n", b"a: !!binary aGVsbG8=\n? [b]\n: 1\n",
        b"<<: {station: x}\nstation: 2026-01-01\n", b"{[]: 1}", b"%YAML 1.1\n---\nthreads: 0b11\n...\n",
        b"'\\u0000': 1",
    ]  # fmt: skip
    return Target(seeds, run)


def settings_tree(folder: Path) -> Target:
    """The configuration's keys with values that they should not have."""
    from orcawatch import plugin
    from orcawatch.config import Settings, load_settings, refuse, relative_to
    from orcawatch.config_command import lines
    from orcawatch.keys import build

    path = folder / "tree.yaml"
    plugin.entry_points = functools.lru_cache(plugin.entry_points)  # which packages are installed does not change

    def run(content: bytes) -> str:
        raw, faults = edited(CONFIGURATION, content), list[str]()
        settings = relative_to(build(Settings, raw, "", faults), raw, folder)
        refuse(path, faults)
        path.write_text("\n".join(lines(settings, raw)), encoding="utf-8")
        shown = replace(settings, output=settings.output.absolute())  # the default one is where the command is given
        expect(load_settings(path) == shown, "what is shown is not what was read")
        return "taken"

    return Target([bytes(range(24)), bytes(3)], run)


def manifest_tree(folder: Path) -> Target:
    """A manifest whose digest and hashes are right, with values that it should not have, up to the first window."""
    import numpy as np

    from orcawatch.bundle import MANIFEST, SHIPPED, load_bundle, manifest_digest
    from orcawatch.bundle_command import described
    from orcawatch.config import Settings, overridden
    from orcawatch.detector import Grid

    place = folder / "bundle"
    place.mkdir()
    template = json.loads((SHIPPED / MANIFEST).read_text())
    template["backbones"].append({**template["backbones"][0], "name": "other"})
    template["fusion"] = {member: ["vggish"] for member in template["members"]}
    line = {"threshold": 0.1, "intercept": 0, "slope": 1}
    quiet = {"backbones": [], "members": [], "signature": "", "prominence_of": "vggish", **line}
    cheap = {"backbones": ["vggish"], "members": template["members"][:1], "signature": "s", "prominence_of": "", **line}
    template["cascade"] = {"holds_from": 0.2, "gates": [quiet, cheap]}
    names = list(template["files"])
    for name in names:
        (place / name).write_bytes(b"")
    template["files"] = dict.fromkeys(names, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

    def run(content: bytes) -> str:
        text = json.dumps(edited(template, content[1:])) if content[:1] > b"\x20" else content[1:].decode("latin-1")
        with contextlib.suppress(ValueError, RecursionError):
            tree = json.loads(text)
            text = json.dumps({**tree, "digest": manifest_digest(tree)}) if isinstance(tree, dict) else text
        (place / MANIFEST).write_text(text, encoding="utf-8")
        bundle = overridden(load_bundle(place), Settings())
        list(described(bundle))
        Grid({name: entry.front_end for name, entry in bundle.backbones.items()}, bundle.hop_s)
        for entry in bundle.backbones.values():
            end = entry.front_end
            rows = end.rows(np.zeros((end.frame_samples + (end.frames - 1) * end.hop_samples, 1), np.float32))
            expect(end.finish(rows[:, 0]).shape == end.shape[:2], "a spectrogram of another shape")
        return "taken"

    seeds = [b"\xff" + bytes(range(24)), b"\xff", b"\0" + json.dumps(template).encode(), b"\0[" * 9]
    return Target(seeds, run)


def archive(folder: Path) -> Target:
    """Archives of bundles."""
    from orcawatch.unpacking import unpack

    files = {"b/manifest.json": b"{}", "b/heads.tflite": b"h" * 700, "b/card.md": b""}
    seeds = []
    for mode in ("w", "w:gz"):
        tape = io.BytesIO()
        with tarfile.open(fileobj=tape, mode=mode, format=tarfile.PAX_FORMAT) as opened:  # type: ignore[call-overload]
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.pax_headers = {"comment": "x"}
                opened.addfile(info, io.BytesIO(content))
        seeds.append(tape.getvalue())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        seeds.append(packed.getvalue())
    place = folder / "unpacked"

    def run(content: bytes) -> str:
        suffix = "zip" if content[:2] == b"PK" else "tar.gz" if content[:2] == b"\x1f\x8b" else "tar"
        path = folder / f"archive.{suffix}"
        path.write_bytes(content)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        unpack(path, place)
        expect(all(not one.is_symlink() and one.is_file() for one in place.iterdir()), "not only files")
        return "unpacked"

    return Target(seeds, run)


def shelf_notes(folder: Path) -> Target:
    """The notes beside installed bundles."""
    from orcawatch.bundle_command import shelf_lines
    from orcawatch.shelf import HISTORY, SHADOW, TRIAL, Shelf

    place = folder / "out" / "bundles"
    (place / "a-0").mkdir(parents=True)
    (place / SHADOW).symlink_to("a-0")
    entry = {"utc": "2026-01-01T00:00:00+00:00", "who": "x", "action": "install", "bundle": "a-0", "shadow": "a-0"}
    trial = {"folder": "a-0", "since_utc": entry["utc"], "until_utc": None, "starts": 0, "fault": ""}

    def run(content: bytes) -> str:
        if content[:1] > b"\x20":
            both = edited([entry, trial], content[1:])
            notes = json.dumps(both[0] if both else 0), json.dumps(both[-1] if both else 0)
            (place / HISTORY).write_text(notes[0] + "\n")
            (place / TRIAL).write_text(notes[1])
        else:
            (place / HISTORY).write_bytes(content[1:])
            (place / TRIAL).write_bytes(content[1:])
        return f"{len(list(shelf_lines(Shelf(folder / 'out'))))} lines"

    seeds = [b"\xff" + bytes(range(24)), b"\0" + json.dumps(entry).encode(), b"\0" + json.dumps(trial).encode()]
    return Target(seeds, run)


def season(output: Path) -> None:
    """A small database with a row of everything, in small pages."""
    from many import fill

    from orcawatch.daemon import DATABASE

    fill(output, 12, 3, 0, 20000)
    with contextlib.closing(sqlite3.connect(output / DATABASE)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")


def database(folder: Path) -> Target:
    """The database's file."""
    output = folder / "out"
    season(output)
    seed = (output / "detections.sqlite").read_bytes()
    client = page_of(output)
    return Target([seed], lambda content: opened(output, client, content, b""))


def write_ahead(folder: Path) -> Target:
    """The database's write-ahead log."""
    from orcawatch.daemon import DATABASE
    from orcawatch.store import connected

    output = folder / "out"
    season(output)
    whole = (output / DATABASE).read_bytes()
    with contextlib.closing(connected(output / DATABASE, "mode=rw")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        before = (output / DATABASE).read_bytes()
        connection.execute("BEGIN")
        connection.execute("UPDATE detections SET verdict = 'orca', verdict_note = 'x'")
        connection.execute("COMMIT")
        seed = Path(f"{output / DATABASE}-wal").read_bytes()
    expect(len(whole) == len(before) and len(seed) > 1000, "no log to try with")
    client = page_of(output)
    return Target([seed], lambda content: opened(output, client, before, content))


PAGES = ("/", "/status.json", "/effort", "/detections.csv", "/detection/3")


def look_at(client: Any, address: str) -> None:
    """Ask for a page."""
    answer = client.get(address)
    expect(answer.status_code != 500 and bool(answer.data), f"{address} ends in 500: {LAST.text()}")


def page_of(output: Path) -> Any:
    """A client of the review page."""
    from orcawatch.config import Settings
    from orcawatch.web.app import create_app

    return create_app(Settings(output=output), "a-token-of-some-length").test_client()


def opened(output: Path, client: Any, content: bytes, log: bytes) -> str:
    """Look at a database as the page does, before or after opening it as the daemon and as its next start do."""
    from orcawatch import recovery
    from orcawatch.daemon import DATABASE
    from orcawatch.effort import read_entries

    recovery.SETTLE_S = 0
    path = output / DATABASE
    for old in output.glob(f"{DATABASE}*"):
        old.unlink()
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(log)
    page, after = divmod(zlib.crc32(content + log) % (2 * len(PAGES)), 2)
    if not after:
        look_at(client, PAGES[page])
    with recovery.open_store(path) as store:
        found = store.detections()
        with store.transaction() as connection:
            read_entries(connection)
    before = len(list(output.glob(f"{DATABASE}.damaged-*Z")))
    if after:
        look_at(client, PAGES[page])
    with recovery.open_store(path) as store:
        expect(len(store.detections()) == len(found), "another number of rows at the next start")
    expect(len(list(output.glob(f"{DATABASE}.damaged-*Z"))) == before, "a rescued database is rescued again")
    return "rescued" if before else "opened"


class Last(logging.Handler):
    """Keeps where the page's last fault came from."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._fault: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.exc_info and isinstance(record.exc_info, tuple):
            self._fault = record.exc_info[1]

    def text(self) -> str:
        """The last one in a line."""
        return "" if self._fault is None else place_of(self._fault)


LAST = Last()


def http(folder: Path) -> Target:
    """Requests to the review page, through its server."""
    import numpy as np
    import soundfile
    from many import fill

    from orcawatch.config import Settings
    from orcawatch.daemon import DATABASE
    from orcawatch.web import server
    from orcawatch.web.access import Access
    from orcawatch.web.app import create_app
    from orcawatch.web.site import site

    output = folder / "out"
    fill(output, 12, 3, 0, 20000)
    soundfile.write(output / "clips" / "12.flac", np.zeros((48000, 4)), 48000)
    with contextlib.closing(sqlite3.connect(output / DATABASE)) as connection, connection:
        connection.execute("UPDATE detections SET clip = 'clips/12.flac', removed = NULL WHERE id = 12")
    app = create_app(Settings(output=output), "a-token-of-some-length")
    with app.app_context():
        rules: Access = site().access
    place = server.listening("127.0.0.1", 0)
    port = place.getsockname()[1]
    served = server.server(app, place)
    threading.Thread(target=served.run, daemon=True).start()
    head = f"Host: localhost:{port}\r\nCookie: orcawatch={rules.cookie}\r\n"
    body = f"verdict=orca&note=x&seen=&csrf={rules.csrf}"
    gets = (
        "/", "/?verdict=orca&since=2026-05-01&until=2026-06-01&score=0.5", "/?after=n.2026-05-01T00:00:00+00:00.3",
        "/detection/12?sort=score", "/detection/12/clip.wav?channel=1&low=100&high=2000", "/detection/11/look/1.json",
        "/detection/11/picture/1.png?backbone=vggish", "/detection/12/file/clip", "/thumbnail/12.jpg", "/effort?days=3",
        "/effort?since=2026-05-01&until=2026-05-03", "/detections.csv?verdict=none", "/status.json",
        "/static/style.css",
        "/healthz", "/?token=a-token-of-some-length", "/?page=..%2f..%2fetc%2fpasswd&day=2026-05-02&q=%00",
    )  # fmt: skip
    seeds = [f"GET {address} HTTP/1.1\r\n{head}\r\n".encode() for address in gets]
    form = "Content-Type: application/x-www-form-urlencoded\r\n"
    part = f'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n{rules.csrf[:8]}\r\n--x--'
    parts = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(part)}\r\n"
    asked = "Range: bytes=0-\r\nExpect: 100-continue\r\nAccept: application/json\r\n"
    seeds += [
        f"POST /detection/12/verdict HTTP/1.1\r\n{head}{form}Content-Length: {len(body)}\r\n\r\n{body}".encode(),
        f"POST /token HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n5\r\ntoken\r\n0\r\n\r\n".encode(),
        f"POST /detection/3/verdict HTTP/1.1\r\n{head}{parts}\r\n{part}".encode(),
        f"GET /status HTTP/1.1\r\n{head}{asked}\r\n".encode(),
    ]

    def run(content: bytes) -> str:
        rules._failures._found.clear()
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S / 2) as asked:
            with contextlib.suppress(OSError):  # it may be closed before all is said
                asked.sendall(content)
                asked.shutdown(socket.SHUT_WR)
            answer = received(asked)
        if not answer:
            return "closed"
        status = answer.split(b" ", 2)[1]
        if status.startswith(b"5") and status != b"501":
            raise Wrong(f"{status.decode()}: {LAST.text()}")
        return status.decode("latin-1")

    return Target(seeds, run, served.close)


def received(asked: socket.socket) -> bytes:
    """The first bytes of an answer; the rest is read and dropped."""
    first = b""
    with contextlib.suppress(ConnectionError):
        while block := asked.recv(65536):
            first = first or block
    return first


def model(folder: Path) -> Target:
    """TFLite files, read and run in a process each, as `orcawatch.attempt` does before a bundle is installed.

    That process may end by a signal; what it may not is to raise anything but an OrcawatchError. `small.tflite` has a
    convolution, a pooling and a product in one signature, a softmax in another.
    """
    import numpy as np

    from orcawatch.interpreter import Model

    path = folder / "model.tflite"
    inputs = {"features": {"spectrogram": (1, 8, 8, 1)}, "score": {"features": (1, 4)}}
    outputs = {"features": {"features": (1, 4)}, "score": {"scores": (1, 8)}}

    def attempt() -> str:
        found = Model(path)
        for name, taken in inputs.items():
            found.require(name, taken, outputs[name])
        with contextlib.suppress(RuntimeError, ValueError):  # of the interpreter; the caller tells it
            for name, taken in inputs.items():
                found.call(name, {key: np.ones(shape, np.float32) for key, shape in taken.items()})
        return "taken"

    child = Child(attempt)

    def run(content: bytes) -> str:
        path.write_bytes(content)
        outcome = child.ask()
        expect(not outcome.startswith("!"), outcome)
        return outcome

    return Target([Path(__file__).with_name("small.tflite").read_bytes()], run, child.close)


class Child:
    """Another process that makes attempts; where one ends it, the next has a new one.

    Parameters
    ----------
    attempt : returns what became of it, or raises OrcawatchError.
    """

    def __init__(self, attempt: Callable[[], str]) -> None:
        self._attempt = attempt
        self._process = 0

    def ask(self) -> str:
        """What became of an attempt: a word, `!` and an exception, or the signal that ended the process."""
        if not self._process:
            self._start()
        os.write(self._asks, b"?")
        if answer := os.read(self._hears, 4096):
            return answer.decode()
        _, status = os.waitpid(self._process, 0)
        self._end()
        return f"signal {os.WTERMSIG(status)}"

    def close(self) -> None:
        """End the process."""
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            self._end()

    def _start(self) -> None:
        asked, self._asks = os.pipe()
        self._hears, told = os.pipe()
        self._process = os.fork()
        if not self._process:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            while os.read(asked, 1):
                os.write(told, self._answer())
            os._exit(0)
        os.close(asked)
        os.close(told)

    def _answer(self) -> bytes:
        from orcawatch.errors import OrcawatchError

        try:
            return self._attempt().encode()
        except OrcawatchError:
            return b"refused"
        except Exception as fault:
            return f"!{place_of(fault)}".encode()

    def _end(self) -> None:
        os.close(self._asks)
        os.close(self._hears)
        self._process = 0


TARGETS: dict[str, Callable[[Path], Target]] = {
    "audio": audio,
    "stamps": stamps,
    "yaml": yaml_text,
    "settings": settings_tree,
    "manifest": manifest_tree,
    "archive": archive,
    "shelf": shelf_notes,
    "database": database,
    "write-ahead": write_ahead,
    "http": http,
    "model": model,
}
NEVER_GUIDED = ("model",)  # what is covered in another process is not seen
