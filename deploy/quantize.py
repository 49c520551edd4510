"""What each quantization costs and saves, measured on a run's devel windows through the edge's own code.

`RUN/deploy/quantization.json` (and `quantization.md`, the same as tables):

- `selection`: SHA-256 of the `result/selection.json` that it was made for.
- `runtime`, `machine`, `threads` (1), `windows` and `clips` (of the devel split), `timed_windows`.
- `backbones`: by name `feature_size`, `input_shape`, `variants`: by variant `files` (bytes of `features` and
  `explain`), `bytes` (both), `explained_by` (variant of the relevance pass), `features_ms` and `explain_ms` (median
  processor time per window, so that a busy machine does not count; without the preparation of the file), `snr_db`
  (features' signal-to-quantization-noise ratio over all devel windows, the float32 file's features taken as exact; null
  for float32), `mask_bits_flipped` (share of the bits of the negative mask that differ from float32's; null where the
  backbone has no negative member).
- `members`: by name `backbones`, `trained` (ROC AUC of devel clips by the training side: value, low, high, draws),
  `variants`: by variant, all its backbones in that variant, `auc` (as `trained`), `loss` (trained minus this, with the
  interval of the paired difference, recordings resampled), `largest_difference` (of a window's confidence).
- `vote`: as a member, with `members` and, by variant, `bytes` and `features_ms` of its backbones together.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import sha256
from ..interpreter import Model, runtime_name
from ..metrics import auc_interval, clip_means, paired_differences
from .models import Exported, export_digest, exported, store
from .run import Array, Run, heads, needed_backbones

Progress = Callable[[Any], Any]
BATCH = 1024
REFERENCE = "float32"
TIMED_WINDOWS = 20


@dataclass(frozen=True)
class Measured:
    """One backbone in one variant.

    Attributes
    ----------
    exported : its files.
    features : of all devel windows, shape (windows, feature_size).
    features_ms, explain_ms : median processor time per window, one thread.
    timed_windows : of how many.
    """

    exported: Exported
    features: Array
    features_ms: float
    explain_ms: float
    timed_windows: int


def measure(
    run: Run, backbone: str, quantization: str, timed_windows: int = TIMED_WINDOWS, progress: Progress = iter
) -> Measured:
    """Convert a backbone, pass every devel window through it, and take the time; what was measured before is read.

    A measurement is stored under all that decides it: the export, the devel spectrograms, the interpreter, the number
    of timed windows.

    Parameters
    ----------
    run : from `read_run`.
    backbone, quantization : which.
    timed_windows : over how many windows the median time is taken.
    progress : wraps the iteration over the windows, for a progress bar.
    """
    files = exported(run, backbone, quantization)
    digests = f"{export_digest(run, backbone, quantization)}-{_spectrograms_digest(run, backbone)}"
    name = f"{backbone}-{quantization}-{digests}-{runtime_name()}-{timed_windows}.npz"
    path = files.features.parent.parent / "measured" / name
    if not path.is_file():
        store(path, _packed(_measure(run, backbone, files, timed_windows, progress)))
    with np.load(path) as stored:
        return Measured(exported=files, **{key: _plain(stored[key]) for key in stored.files})


def _spectrograms_digest(run: Run, backbone: str) -> str:
    """Twelve hexadecimal digits that name the devel spectrograms' content."""
    path = run.spectrograms_path(backbone).resolve()
    state = path.stat()
    return _digest_of(path, state.st_ino, state.st_size, state.st_mtime_ns)[:12]


@cache
def _digest_of(path: Path, *state: int) -> str:
    """SHA-256 of a file, taken once as long as its state (inode, size, time of change) stays: they hold gigabytes."""
    return sha256(path)


def _plain(array: NDArray[Any]) -> Any:
    return array if array.ndim else array.item()


def _packed(arrays: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _measure(run: Run, backbone: str, files: Exported, timed_windows: int, progress: Progress) -> dict[str, Any]:
    spectrograms, edge = run.spectrograms(backbone), files.open(run, backbone)
    features = np.stack([edge.features(np.array(one)) for one in progress(spectrograms)])
    chosen = np.linspace(0, len(features) - 1, min(timed_windows, len(features))).astype(int)
    timed = [np.array(spectrograms[k]) for k in chosen]
    features_ms = median_ms([partial(edge.features, spectrogram) for spectrogram in timed])
    explainer, shape = Model(files.explain), (1, *edge.front_end.shape)
    pairs = [{"spectrogram": one.reshape(shape), "relevance": features[k][None]} for k, one in zip(chosen, timed)]
    explain_ms = median_ms([partial(explainer.call, "explain", pair) for pair in pairs])
    return {"features": features, "features_ms": features_ms, "explain_ms": explain_ms, "timed_windows": len(timed)}


def median_ms(calls: Sequence[Callable[[], Any]]) -> float:
    """Median processor time of the calls in milliseconds; the first is made once more beforehand, to warm up.

    On one thread that is the time on an idle machine, and it hardly depends on what else the machine does.
    """
    calls[0]()
    times = []
    for call in calls:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1e3


def snr_db(exact: Array, found: Array) -> float | None:
    """Signal-to-quantization-noise ratio 10 log10(sum x^2 / sum (x - q)^2); None where they are equal."""
    noise = float(np.sum((exact - found) ** 2, dtype=np.float64))
    signal = float(np.sum(exact**2, dtype=np.float64))
    return float(10 * np.log10(signal / noise)) if noise and signal else None


def window_scores(run: Run, features: Mapping[str, Array], members: Sequence[str]) -> Array:
    """Members' confidences from the backbones' features (windows, size): shape (windows, members)."""
    from .export import confidence, masked_inputs

    chosen, windows, blocks = heads(run, members), len(next(iter(features.values()))), []
    for start in range(0, windows, BATCH):
        masked = masked_inputs(chosen, {name: part[start : start + BATCH] for name, part in features.items()})
        blocks.append(np.concatenate([confidence(masked[one["name"]], one["weights"]) for one in chosen], axis=1))
    return np.concatenate(blocks)


def mask_bits_flipped(run: Run, backbone: str, exact: Array, found: Array) -> float | None:
    """Share of the negative mask's bits that differ between two versions of the features; None without such a mask."""
    from ..masking import negative_mask
    from ..relevance import head_relevance

    bases = [
        one["bases"][backbone]
        for one in heads(run, [m["name"] for m in run.members])
        if backbone in one.get("bases", {})
    ]
    if not bases:
        return None
    masks = [np.asarray(negative_mask(head_relevance(features, bases[0], "highest"))) for features in (exact, found)]
    return float(np.mean(masks[0] != masks[1]))


def quantize(
    run: Run, variants: Sequence[str], timed_windows: int = TIMED_WINDOWS, progress: Progress = iter
) -> dict[str, Any]:
    """Every backbone, member and the vote in every variant: the content of `quantization.json` (see the module).

    Parameters
    ----------
    run : from `read_run`.
    variants : of `export.QUANTIZATIONS`; float32 is always among them, since the others are measured against it.
    timed_windows, progress : as `measure`.
    """
    variants = [REFERENCE, *[one for one in variants if one != REFERENCE]]
    found = {
        (name, one): measure(run, name, one, timed_windows, progress) for name in run.backbones for one in variants
    }
    devel, names = run.arrays("devel_scores.npz"), [entry["name"] for entry in run.members]
    scores = {v: window_scores(run, {b: found[b, v].features for b in run.backbones}, names) for v in variants}
    return {
        "selection": run.selection_digest,
        "runtime": runtime_name(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "threads": 1,
        "windows": len(devel["window_clip"]),
        "clips": len(devel["label"]),
        "timed_windows": next(iter(found.values())).timed_windows,
        "backbones": {name: _backbone(run, name, variants, found) for name in run.backbones},
        "members": {entry["name"]: _member(run, entry, devel, scores) for entry in run.members},
        "vote": _vote(run, devel, scores, found),
    }


def _backbone(run: Run, name: str, variants: Sequence[str], found: Mapping[Any, Measured]) -> dict[str, Any]:
    described = {}
    exact = found[name, REFERENCE].features
    for variant in variants:
        one = found[name, variant]
        described[variant] = {
            "files": {kind: path.stat().st_size for kind, path in zip(("features", "explain"), one.exported.files)},
            "bytes": one.exported.bytes,
            "explained_by": one.exported.explained_by,
            "features_ms": one.features_ms,
            "explain_ms": one.explain_ms,
            "snr_db": snr_db(exact, one.features),
            "mask_bits_flipped": mask_bits_flipped(run, name, exact, one.features),
        }
    entry = run.backbones[name]
    shape = list(run.front_end(name).shape)
    return {"feature_size": entry["feature_size"], "input_shape": shape, "variants": described}


def _member(
    run: Run, entry: Mapping[str, Any], devel: Mapping[str, Any], scores: Mapping[str, Array]
) -> dict[str, Any]:
    return {"backbones": entry["backbones"], **_compared(run, [entry["name"]], devel, scores)}


def _vote(
    run: Run, devel: Mapping[str, Any], scores: Mapping[str, Array], found: Mapping[Any, Measured]
) -> dict[str, Any]:
    vote = list(run.selection["vote"])
    described, backbones = _compared(run, vote, devel, scores), needed_backbones(run, vote)
    for variant, figures in described["variants"].items():
        figures["bytes"] = sum(found[name, variant].exported.bytes for name in backbones)
        figures["features_ms"] = sum(found[name, variant].features_ms for name in backbones)
    return {"members": vote, "backbones": backbones, **described}


def _compared(run: Run, vote: Sequence[str], devel: Mapping[str, Any], scores: Mapping[str, Array]) -> dict[str, Any]:
    """ROC AUC of an average vote by the training side and in every variant."""
    orca, groups = devel["label"] == "orca", list(devel["group"])
    columns = [list(devel["members"]).index(name) for name in vote]
    windows = {one: table[:, columns].mean(axis=1) for one, table in scores.items()}
    trained = devel["window_scores"][:, columns].mean(axis=1)
    clips = {one: clip_means(rows, devel["window_clip"], len(orca)) for one, rows in windows.items()}
    exact = clip_means(trained, devel["window_clip"], len(orca))
    losses = paired_differences(exact, np.stack(list(clips.values())), orca, groups, **run.resampling)
    return {
        "trained": asdict(auc_interval(exact, orca, groups, **run.resampling)),
        "variants": {
            one: {
                "auc": asdict(auc_interval(clips[one], orca, groups, **run.resampling)),
                "loss": asdict(loss),
                "largest_difference": float(np.abs(windows[one] - trained).max()),
            }
            for one, loss in zip(clips, losses)
        },
    }
