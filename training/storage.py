"""Files of the stages: JSON, npz, and arrays that are longer than memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray


def progress(items: Any, what: str, unit: str = "clip") -> Any:
    """A progress bar over items, on a terminal's stderr only."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, disable=None)


def set_seed(seed: int) -> None:
    """Make what TensorFlow does next depend on the seed alone."""
    import tensorflow as tf

    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def save_json(path: Path, content: Any) -> None:
    """Write JSON, keys in their order."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


class ArrayWriter:
    """An npy file that grows along its first axis, written part by part; `np.load(path, mmap_mode="r")` reads it.

    The header is written again when the file is closed: NumPy leaves room in it for a first axis of any length.

    Parameters
    ----------
    path : of the file.
    dtype : of its values.
    """

    def __init__(self, path: Path, dtype: DTypeLike = np.float32) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()
        self._rows = 0

    def __enter__(self) -> ArrayWriter:
        self._file = self._path.open("wb")
        return self

    def append(self, part: NDArray[Any]) -> None:
        """Add rows, shape (n, ...); the first part fixes the shape of a row.

        Raises
        ------
        ValueError : rows of another shape.
        """
        if not self._rows and not self._shape:
            self._shape = part.shape[1:]
            self._write_header()
        if part.shape[1:] != self._shape:
            raise ValueError(f"rows of {self._path.name} must have shape {self._shape}, not {part.shape[1:]}")
        self._open_file().write(np.ascontiguousarray(part, self._dtype).tobytes())
        self._rows += len(part)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        file = self._open_file()
        if kind is None:
            file.seek(0)
            self._write_header()
        file.close()

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ValueError(f"{self._path.name} is written within `with` only")
        return self._file

    def _write_header(self) -> None:
        described = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._open_file(), described)
