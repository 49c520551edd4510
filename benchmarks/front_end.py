"""Stream against file: how far a front end's spectrograms lie apart over block sizes and rates, and their speed.

python benchmarks/front_end.py
"""

from __future__ import annotations

import time

import numpy as np

from orcawatch.spectrogram import FrontEnd, LinearPower, LogMel, RowStream, rows_of
from orcawatch.windows import windows_of

RATES_HZ = (8000, 16000, 22050, 32000, 44100, 48000, 96000, 192000)
BLOCKS = (1, 160, 441, 4096, 100000)
SECONDS = 5.0
CHANNELS = 4
FRONT_ENDS: dict[str, FrontEnd] = {
    "VGGish's log-mel": LogMel(),
    "linear power, 139": LinearPower(size=139),
    "linear power, 299": LinearPower(size=299),
    "linear power, 299, band floor": LinearPower(size=299, normalise="band_floor"),
}


def streamed(front_end: FrontEnd, audio: np.ndarray, rate_hz: int, block: int) -> np.ndarray:
    """Rows of the audio handed over block by block; blocks of one sample for the first tenth of a second only."""
    stream = RowStream(front_end, rate_hz, CHANNELS)
    borders = range(1, rate_hz // 10) if block == 1 else range(block, len(audio), block)
    return np.concatenate([*(stream.push(part) for part in np.split(audio, list(borders))), stream.finish()])


def spectrograms(front_end: FrontEnd, rows: np.ndarray) -> np.ndarray:
    """Finished spectrograms of windows side by side, shape (windows, channels, height, width)."""
    windows = windows_of(rows, front_end.frames, front_end.frames)[1]
    return front_end.finish(windows.transpose(0, 2, 1, 3))


def row(front_end: FrontEnd, rate_hz: int) -> str:
    """The table's row of one rate."""
    audio = np.random.default_rng(0).normal(0, 0.1, (int(SECONDS * rate_hz), CHANNELS)).astype(np.float32)
    start = time.perf_counter()
    whole = spectrograms(front_end, rows_of(front_end, audio, rate_hz))
    took_ms = (time.perf_counter() - start) / SECONDS * 1000
    parts = [spectrograms(front_end, streamed(front_end, audio, rate_hz, block)) for block in BLOCKS]
    worst = max(float(np.abs(part - whole).max()) if part.shape == whole.shape else np.inf for part in parts)
    return f"| {rate_hz} | {len(whole)} | {worst:.2g} | {took_ms:.1f} |"


def main() -> None:
    """Print a table per front end, one row per rate that it takes."""
    for name, front_end in FRONT_ENDS.items():
        print(f"\n{name}, {CHANNELS} channels\n")
        print(f"| rate, Hz | windows | largest difference over blocks of {BLOCKS} samples | ms per second |")
        print("|---|---|---|---|")
        for rate_hz in RATES_HZ:
            if rate_hz >= front_end.lowest_rate_hz:
                print(row(front_end, rate_hz))


if __name__ == "__main__":
    main()
