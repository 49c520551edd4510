"""Shared by the edge tests: an ensemble that scores by band energy, and audio with known calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from orcawatch.bundle import BackboneFile, Bundle
from orcawatch.ensemble import fuse_channels
from orcawatch.records import Item, StreamInfo, Window, WindowScore
from orcawatch.spectrogram import FrontEnd, LogMel

Array = NDArray[np.float32]

CALL_HZ = 2000.0


class FakeEnsemble:
    """Scores a channel by the energy of its rows from 1 to 4 kHz: near 0 for noise, near 1 for `calls_in_noise`."""

    def __init__(self, front_ends: Sequence[FrontEnd] = (LogMel(),), **changes: object) -> None:
        backbones = {
            f"fake{index}": BackboneFile(f"fake{index}", "fake.tflite", "fake-explain.tflite", 4, end)
            for index, end in enumerate(front_ends)
        }
        settings: dict[str, object] = {
            "name": "fake",
            "folder": Path("fake"),
            "backbones": backbones,
            "members": tuple(backbones),
            "vote": tuple(backbones),
            "hop_s": 0.48,
            "channel_fusion": "max",
            "start_threshold": 0.5,
            "stop_threshold": 0.3,
            "manifest": {"name": "fake", "digest": "0" * 64, "files": {}},
        }
        self.bundle = Bundle(**{**settings, **changes})  # type: ignore[arg-type]
        self.cascade = self.bundle.cascade

    def score(
        self, window: Window, columns: Sequence[int] | None = None, vote: Sequence[str] | None = None
    ) -> WindowScore:
        members = np.stack([self._confidence(name, rows) for name, rows in window.rows.items()], axis=1)
        members[[column for column in range(len(members)) if columns is not None and column not in columns]] = np.nan
        voting = [self.bundle.members.index(name) for name in vote or self.bundle.vote]
        channels = members[:, voting].mean(axis=1)
        score = fuse_channels(channels, self.bundle.channel_fusion)
        return WindowScore(window.start_sample, window.end_sample, members, channels, score)

    def explain(self, windows: Sequence[Window], channel: int) -> list[dict[str, tuple[Array, Array]]]:
        rows = [{name: found[channel] for name, found in window.rows.items()} for window in windows]
        return [
            {name: (found, np.asarray(found * self._band(name), np.float32)) for name, found in one.items()}
            for one in rows
        ]

    def _band(self, name: str) -> Array:
        frequencies_hz = self.bundle.backbones[name].front_end.frequencies_hz
        return np.asarray((frequencies_hz > 1000) & (frequencies_hz < 4000), np.float32)

    def _confidence(self, name: str, rows: Array) -> Array:
        level = (rows * self._band(name)).mean(axis=(1, 2))
        return np.asarray(level / (level + 0.5), np.float32)


class ScriptedSource:
    """A live source that yields given items; `behind` tells, item by item, how much audio waits."""

    waits = False
    clock = None

    def __init__(
        self,
        items: Sequence[Item],
        channels: int = 2,
        rate_hz: int = 16000,
        behind: Callable[[int], float] = lambda index: 0.0,
        start_utc: datetime | None = None,
    ) -> None:
        self.info = StreamInfo("buoy", rate_hz, channels, start_utc, live=True)
        self._items = items
        self._behind = behind
        self._index = 0

    @property
    def behind_s(self) -> float:
        return self._behind(self._index)

    def utc_at(self, sample: int) -> datetime | None:
        return self.info.utc_at(sample)

    def blocks(self) -> Iterator[Item]:
        for self._index, item in enumerate(self._items):  # noqa: B020
            yield item


def calls_in_noise(
    rate_hz: int, seconds: float, channels: int, calls: Sequence[tuple[float, float]], seed: int = 0
) -> Array:
    """Faint noise with a loud tone during each call; the last channel is the loudest."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    during = np.any([(time_s >= start) & (time_s < end) for start, end in calls] or [time_s < 0], axis=0)
    tone = 0.5 * during * np.sin(2 * np.pi * CALL_HZ * time_s)
    noise = np.random.default_rng(seed).normal(0, 1e-3, (len(time_s), channels))
    return np.asarray(noise + tone[:, None] * np.linspace(0.6, 1.0, channels), np.float32)


def write_audio(path: Path, samples: Array, rate_hz: int, subtype: str = "PCM_16") -> Path:
    """Write a file of the format that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


@pytest.fixture(scope="session")
def make_ensemble() -> type[FakeEnsemble]:
    """The fake ensemble's class: make_ensemble(front_ends, **changes to the bundle)."""
    return FakeEnsemble


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedSource]:
    """The class of a live source that yields given items."""
    return ScriptedSource


@pytest.fixture(scope="session")
def make_audio() -> Callable[..., Array]:
    """The function `calls_in_noise(rate_hz, seconds, channels, calls)`."""
    return calls_in_noise


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """The function `write_audio(path, samples, rate_hz, subtype)`."""
    return write_audio


@pytest.fixture
def ensemble() -> FakeEnsemble:
    """A fake ensemble with one VGGish front end."""
    return FakeEnsemble()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Ten seconds of two channels at 32 kHz with calls at 2 to 3.5 s and 6 to 7 s."""
    return write_audio(tmp_path / "in" / "calls.flac", calls_in_noise(32000, 10.0, 2, [(2.0, 3.5), (6.0, 7.0)]), 32000)


@pytest.fixture
def served(app: Any) -> Iterator[int]:
    """The application behind the real server, impatient: the port. The module that asks has `app`."""
    from threading import Thread

    from orcawatch.web import server

    with server.listening("127.0.0.1", 0) as place:
        serving = server.server(app, place, idle_s=2)
        worker = Thread(target=serving.run, daemon=True)
        worker.start()
        yield place.getsockname()[1]
        serving.trigger.pull_trigger(lambda: [part.close() for part in list(serving._map.values())])
        worker.join(20)
        serving.task_dispatcher.shutdown()
        assert not worker.is_alive()
