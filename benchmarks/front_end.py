"""Stream against file: the largest difference of VGGish's log-mel over block sizes and sample rates, and its speed.

python benchmarks/front_end.py
"""

from __future__ import annotations

import time

import numpy as np

from orcawatch.spectrogram import LogMel, RowStream, rows_of

RATES_HZ = (8000, 16000, 22050, 32000, 44100, 48000, 96000, 192000)
BLOCKS = (1, 160, 441, 4096, 100000)
SECONDS = 5.0
CHANNELS = 4


def streamed(front_end: LogMel, audio: np.ndarray, rate_hz: int, block: int) -> np.ndarray:
    """Rows of the audio handed over block by block; blocks of one sample for the first tenth of a second only."""
    stream = RowStream(front_end, rate_hz, CHANNELS)
    borders = range(1, rate_hz // 10) if block == 1 else range(block, len(audio), block)
    return np.concatenate([*(stream.push(part) for part in np.split(audio, list(borders))), stream.finish()])


def main() -> None:
    """Print one row per rate."""
    front_end, rng = LogMel(), np.random.default_rng(0)
    print("| rate, Hz | frames | largest difference over blocks of 1, 160, 441, 4096, 100000 samples | ms per second |")
    print("|---|---|---|---|")
    for rate_hz in RATES_HZ:
        audio = rng.normal(0, 0.1, (int(SECONDS * rate_hz), CHANNELS)).astype(np.float32)
        start = time.perf_counter()
        whole = front_end.finish(rows_of(front_end, audio, rate_hz))
        took_ms = (time.perf_counter() - start) / SECONDS * 1000
        parts = [front_end.finish(streamed(front_end, audio, rate_hz, block)) for block in BLOCKS]
        worst = max(float(np.abs(part - whole).max()) if part.shape == whole.shape else np.inf for part in parts)
        print(f"| {rate_hz} | {len(whole)} | {worst:.2g} | {took_ms:.1f} |")


if __name__ == "__main__":
    main()
