"""GUANO metadata of a clip: where, when and by what it was recorded, readable by programs of bioacoustics.

The text is that of GUANO 1.0 (https://guano-md.org): `Key: value` lines in UTF-8, our own keys behind `orcawatch|`. A
WAV file holds it in a `guan` chunk, as the specification has it; a FLAC file in its Vorbis comment `COMMENT`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .store import Detection

VERSION = "1.0"
SPECIES = "Orcinus orca"
CHUNK = struct.Struct("<4sI")  # name and size of a chunk of a RIFF file


def clip_metadata(detection: Detection, first_sample: int, samples: int, rate_hz: int) -> dict[str, str]:
    """The GUANO fields of a detection's clip, in order; what is not known is left out.

    Parameters
    ----------
    detection : what the clip was cut for.
    first_sample : position of the clip's first sample in the stream.
    samples : length of the clip.
    rate_hz : samples per second.
    """
    event_s = [f"{(sample - first_sample) / rate_hz:.3f}" for sample in event_samples(detection, rate_hz)]
    fields = {
        "Timestamp": timestamp(clip_start(detection, first_sample, rate_hz)),
        "Samplerate": str(rate_hz),
        "Length": f"{samples / rate_hz:.3f}",
        "Make": "orcawatch",
        "Model": "orcawatch",
        "Firmware Version": __version__,
        "Serial": listed(detection.hydrophones),
        "Species Auto ID": SPECIES,
        "Note": f"score {detection.score:.3f}; the event lies {event_s[0]} to {event_s[1]} s into this file",
        **{f"orcawatch|{name}": value for name, value in _own(detection, first_sample, event_s).items()},
    }
    return {name: value for name, value in fields.items() if value}


def _own(detection: Detection, first_sample: int, event_s: Sequence[str]) -> dict[str, str]:
    known = detection.synchronised is not None
    return {
        "Station": detection.station,
        "Source": detection.source,
        "Session": str(detection.session or ""),
        "Detection": str(detection.id or ""),
        "Score": f"{detection.score:.6f}",
        "Event Start": event_s[0],
        "Event End": event_s[1],
        "Start Sample": str(first_sample),
        "Channels": listed(detection.channels),
        "Channel Scores": figures(detection.channel_scores, 6),
        "Best Channel": str(detection.best_channel),
        "Hydrophones": listed(detection.hydrophones),
        "Levels": figures(detection.levels_db, 1),
        "Level Unit": detection.level_unit if detection.levels_db else "",
        "Bearing": figures(known_ones(detection.bearing_deg), 2),
        "Bearing Error": figures(known_ones(detection.bearing_error_deg), 2),
        "Bearing Note": detection.bearing_note,
        "Bundle": detection.bundle,
        "Bundle Digest": detection.bundle_digest,
        "Clock Synchronised": ("yes" if detection.synchronised else "no") if known else "",
    }


def event_samples(detection: Detection, rate_hz: int) -> tuple[int, int]:
    """The event's span in the stream's samples."""
    start, end = detection.start_sample, detection.end_sample
    return (
        round(detection.start_s * rate_hz) if start is None else start,
        round(detection.end_s * rate_hz) if end is None else end,
    )


def clip_start(detection: Detection, first_sample: int, rate_hz: int) -> datetime | None:
    """Time of the clip's first sample, where it is known."""
    if detection.start_utc is None:
        return None
    before = event_samples(detection, rate_hz)[0] - first_sample
    return detection.start_utc - timedelta(seconds=before / rate_hz)


def timestamp(moment: datetime | None) -> str:
    """A time as GUANO writes it, in UTC; empty where it is not known."""
    if moment is None:
        return ""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def listed(values: Iterable[object]) -> str:
    """Values with commas between them."""
    return ", ".join(str(value) for value in values)


def figures(values: Iterable[float], digits: int) -> str:
    """Numbers with commas between them; `-` for what was not measured."""
    return listed("-" if math.isnan(value) else f"{value:.{digits}f}" for value in values)


def known_ones(*values: float | None) -> list[float]:
    """The values that are known."""
    return [value for value in values if value is not None]


def guano_text(fields: Mapping[str, str]) -> str:
    """The text of GUANO metadata; line breaks inside values are written as `\\n`.

    Raises
    ------
    ValueError : a key holds a colon or a line break, which the format cannot hold.
    """
    for key in fields:
        if ":" in key or "\n" in key or not key.strip():
            raise ValueError(f"a GUANO key must be text without colon and line break, not {key!r}")
    lines = [f"{key}: {escaped(value)}" for key, value in {"GUANO|Version": VERSION, **fields}.items()]
    return "\n".join(lines) + "\n"


def escaped(value: str) -> str:
    """A value on one line."""
    return value.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\\n")


def with_guano_chunk(wav: bytes, text: str) -> bytes:
    """A RIFF WAV file with the text in a `guan` chunk at its end; the audio is not touched.

    Raises
    ------
    ValueError : the bytes are no RIFF file, or of odd length: chunks begin at even positions.
    """
    if wav[:4] != b"RIFF" or wav[8:12] != b"WAVE" or len(wav) % 2:
        raise ValueError(
            f"metadata needs a RIFF WAVE file of even length, not {len(wav)} bytes that begin with {wav[:12]!r}"
        )
    content = text.encode()
    body = wav[8:] + CHUNK.pack(b"guan", len(content)) + content + b"\0" * (len(content) % 2)
    return CHUNK.pack(b"RIFF", len(body)) + body
