"""Clips that a person saves by hand: the last seconds of all channels, whatever was detected in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ._version import __version__
from .clips import write_clip
from .config import Settings
from .durable import make_folder
from .guano import listed, timestamp
from .records import AudioBlock, StreamInfo

FOLDER = "clips-by-hand"
KEPT_S = 30.0
LEAST_S = 0.05  # shorter stretches between two holes are left out


def newest(blocks: Sequence[AudioBlock], rows: int) -> list[AudioBlock]:
    """The last `rows` samples of stretches in order; what is missing between them counts."""
    if not blocks:
        return []
    first = blocks[-1].end_sample - rows
    cut = [
        AudioBlock(block.samples[max(0, first - block.start_sample) :], max(first, block.start_sample))
        for block in blocks
    ]
    return [block for block in cut if len(block.samples)]


def save(
    block: AudioBlock, info: StreamInfo, start_utc: datetime | None, channels: Sequence[int], settings: Settings
) -> Path:
    """Write a stretch of audio into the output folder, with what is known of it as GUANO metadata.

    Parameters
    ----------
    block : the audio.
    info : of its source.
    start_utc : time of its first sample, where it is known.
    channels : what the source calls its columns.
    settings : output folder, station, hydrophones.

    Raises
    ------
    OSError : the disk refuses.
    """
    folder = settings.output / FOLDER
    make_folder(folder)
    path = free(folder, f"{moment(block, info, start_utc)}.{settings.clips.format}")
    about = metadata(block, info, start_utc, channels, settings)
    return write_clip(path, block.samples, info.rate_hz, about, settings.clips.format)


def moment(block: AudioBlock, info: StreamInfo, start_utc: datetime | None) -> str:
    """When a clip begins, as its file is called: UTC, else seconds of the stream."""
    if start_utc is None:
        return f"{block.start_sample / info.rate_hz:.2f}s"
    return start_utc.strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z"


def free(folder: Path, name: str) -> Path:
    """A path of this name, or with a number behind it, that does not exist."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return path


def metadata(
    block: AudioBlock, info: StreamInfo, start_utc: datetime | None, channels: Sequence[int], settings: Settings
) -> dict[str, str]:
    """The GUANO fields; what is not known is left out."""
    known = settings.latitude_deg is not None
    fields = {
        "Timestamp": timestamp(start_utc),
        "Samplerate": str(info.rate_hz),
        "Length": f"{len(block.samples) / info.rate_hz:.3f}",
        "Make": "orcawatch",
        "Model": "orcawatch",
        "Firmware Version": __version__,
        "Loc Position": f"{settings.latitude_deg} {settings.longitude_deg}" if known else "",
        "Serial": listed(hydrophone.serial for hydrophone in settings.hydrophones),
        "Note": "saved by hand in orcawatch listen",
        "orcawatch|Station": settings.station,
        "orcawatch|Source": info.name,
        "orcawatch|Start Sample": str(block.start_sample),
        "orcawatch|Channels": listed(channels),
    }
    return {name: value for name, value in fields.items() if value}
