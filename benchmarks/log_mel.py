"""The front end against librosa: the same log-mel of the same audio, timed in one process.

    python benchmarks/log_mel.py [--seconds 60] [--rounds 5] [--json FILE]

Needs librosa (`deploy/environment.sh bench bench` makes an environment with it). Both compute the magnitude spectra of
Hann windows of 25 ms every 10 ms at 16 kHz, 64 mel bands from 125 to 7500 Hz and the logarithm, on one thread, of four
channels of noise. librosa's mel triangles are linear in Hz and ours in mel, so that results differ a little; with our
triangles they agree, which is checked first. Rounds take turns, and a ratio is that of the median processor times.

whole        the audio at 16 kHz as one array
windows      the audio at 16 kHz as it comes: windows of 0.96 s every 0.48 s. We compute each frame once, and librosa,
             as in detectors that are built on it, is called for each window
resampled    the audio at 48 kHz as one array, resampled to 16 kHz by soxr in both (librosa's default, `soxr_hq`)

What limits us is told at the end: the time of NumPy's Fourier transforms alone, without windows, magnitudes and bands,
in single precision as we call them, and in double precision, which is what librosa gets.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is loaded
os.environ["OMP_NUM_THREADS"] = "1"

import click
import librosa
import numpy as np
from figures import Figure, finish
from numpy.typing import NDArray

from orcawatch.spectrogram import LogMel, RowStream, rows_of
from orcawatch.windows import WindowStream

Array = NDArray[np.float32]

END = LogMel()
CHANNELS = 4
HOP_FRAMES = 48
LEAST = 5.0
AGREES = 1e-3  # of the logarithm


def theirs(samples: Array) -> Array:
    """librosa's log-mel, shape (channels, bands, frames), of samples (samples, channels) at 16 kHz."""
    mel = librosa.feature.melspectrogram(
        y=samples.T, sr=END.rate_hz, n_fft=END.fft_size, win_length=END.frame_samples, hop_length=END.hop_samples,
        center=False, power=1.0, n_mels=END.bands, fmin=END.low_hz, fmax=END.high_hz, htk=True, norm=None,
    )  # fmt: skip
    return np.asarray(np.log(mel + END.offset))


def ours(samples: Array, rate_hz: int = END.rate_hz) -> Array:
    """Ours, shape (channels, frames, bands)."""
    return END.finish(rows_of(END, samples, rate_hz).transpose(1, 0, 2))


def their_windows(samples: Array) -> None:
    """librosa's, of each window."""
    length = END.frame_samples + (END.frames - 1) * END.hop_samples
    for first in range(0, len(samples) - length + 1, HOP_FRAMES * END.hop_samples):
        theirs(samples[first : first + length])


def our_windows(samples: Array) -> None:
    """Ours, of each window, from blocks of a tenth of a second."""
    stream, cutter = RowStream(END, END.rate_hz, CHANNELS, HOP_FRAMES), WindowStream(END.frames, HOP_FRAMES)
    for first in range(0, len(samples), END.rate_hz // 10):
        for _, rows in cutter.push(stream.push(samples[first : first + END.rate_hz // 10])):
            END.finish(rows.transpose(1, 0, 2))


def check(samples: Array) -> None:
    """Both must be the same but for the triangles: librosa's spectrum with ours gives our log-mel."""
    padded = np.pad(samples, ((0, END.fft_size - END.frame_samples), (0, 0)))  # librosa's windows lie in the middle
    shift = (END.fft_size - END.frame_samples) // 2
    spectrum = np.abs(
        librosa.stft(
            np.roll(padded, shift, axis=0).T,
            n_fft=END.fft_size,
            win_length=END.frame_samples,
            hop_length=END.hop_samples,
            center=False,
        )
    )
    mine = ours(samples)
    other = np.log(np.einsum("cft,fb->ctb", spectrum, END._matrix) + END.offset)[:, : mine.shape[1]]
    if (apart := float(np.abs(other - mine[:, : other.shape[1]]).max())) > AGREES:
        raise click.ClickException(f"librosa's log-mel with our triangles is {apart:g} apart from ours")


def transforms(samples: Array, norm: str) -> None:
    """The Fourier transforms of every frame and nothing else, on blocks that stay in the cache."""
    block = np.zeros((128, END.fft_size), np.float32)
    for _ in range(samples.shape[1] * (len(samples) // END.hop_samples) // len(block)):
        np.fft.rfft(block, norm=norm)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of some work."""
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def compared(mine: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median processor times of both, which take turns, after one round that does not count."""
    pairs = [(seconds(mine), seconds(other)) for _ in range(rounds + 1)][1:]
    return statistics.median(one for one, _ in pairs), statistics.median(two for _, two in pairs)


@click.command()
@click.option("--seconds", "length", type=click.IntRange(2, 600), default=60, show_default=True, help="Of audio.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Times each takes its turn.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(length: int, rounds: int, file: Path | None) -> None:
    """Print the ratios."""
    noise = np.random.default_rng(0).normal(0, 0.1, (length * 48000, CHANNELS)).astype(np.float32)
    slow = np.ascontiguousarray(noise[: length * END.rate_hz])
    check(slow[: 2 * END.rate_hz])
    ways = {
        "whole": (lambda: ours(slow), lambda: theirs(slow), LEAST),
        "windows": (lambda: our_windows(slow), lambda: their_windows(slow), LEAST),
        "resampled": (
            lambda: ours(noise, 48000),
            lambda: theirs(librosa.resample(noise.T, orig_sr=48000, target_sr=END.rate_hz).T),
            None,
        ),
    }
    found = []
    alone = compared(lambda: transforms(slow, "forward"), lambda: transforms(slow, "backward"), rounds)
    alone_ms, double_ms = (1000 * one / length for one in alone)
    for name, (mine, other, least) in ways.items():
        own_s, their_s = compared(mine, other, rounds)
        told = f"{1000 * own_s / length:.2f} and {1000 * their_s / length:.2f} ms a second of {CHANNELS} channels"
        if least is not None:
            most = 1000 * their_s / length / alone_ms
            told += f"; NumPy's transforms alone take {alone_ms:.2f}: {most:.1f} x is the limit"
        found.append(
            Figure(f"front end, {name}: librosa's time over ours", their_s / own_s, "x", least=least, note=told)
        )
    for precision, taken_ms in (("single", alone_ms), ("double", double_ms)):
        name = f"front end: the Fourier transforms alone, {precision} precision"
        found.append(Figure(name, taken_ms, "ms", note="a second of all channels"))
    finish(found, file)


if __name__ == "__main__":
    main()
