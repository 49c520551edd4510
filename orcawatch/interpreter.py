"""The one module that knows which TFLite interpreter is installed."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, OrcawatchError

Array = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

DESCRIPTORS = Path("/dev/fd")
# TensorFlow's own comes last: it serves the training environment, which has no other.
RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")


def runtime() -> Any:
    """The interpreter's module: ai-edge-litert where it is installed, else tflite-runtime, else TensorFlow's.

    Raises
    ------
    OrcawatchError : neither can be imported; the text says what each import said.
    """
    faults = []
    for name in RUNTIMES:
        try:
            return importlib.import_module(name)
        except ImportError as fault:
            faults.append(f"{name}: {fault}")
    raise OrcawatchError(
        "no TFLite interpreter is installed: `pip install ai-edge-litert` (Python 3.10 and later, 64-bit), "
        f"or `pip install tflite-runtime 'numpy<2'` elsewhere ({'; '.join(faults)})"
    )


def runtime_name() -> str:
    """Name of the package in use, for records and reports."""
    return str(runtime().__name__).split(".")[0].replace("_", "-")


class Model:
    """A TFLite file's signatures as functions from named arrays to named arrays; threads may share it.

    An interpreter does one thing at a time, so a call waits for the one before: for one signature, never for a whole
    explanation.

    Parameters
    ----------
    path : the .tflite file.
    threads : processor threads of the interpreter, at least 1.
    handle : an open descriptor of the file, which is read then even where the file has been removed.
    prepared : whether it is to run; else its signatures can be looked at only, and its weights take no memory.

    Raises
    ------
    BundleError : the file is no TFLite model, lacks an asked signature, or holds float16 weights under several
        signatures where the interpreter is not ai-edge-litert.
    """

    def __init__(self, path: Path, threads: int = 1, handle: int | None = None, prepared: bool = True) -> None:
        self._path = path
        self._lock = Lock()
        place = str(path) if handle is None or not DESCRIPTORS.is_dir() else str(DESCRIPTORS / str(handle))
        try:
            self._interpreter = runtime().Interpreter(model_path=place, num_threads=threads)
            self._refuse_shared_float16()
            if prepared:  # before any signature runner: without it tflite-runtime does not use its fast kernels
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as fault:
            raise BundleError(f"{path} is not a TFLite model that this interpreter can read: {fault}") from fault
        self._runners: dict[str, Any] = {}

    @property
    def signatures(self) -> dict[str, dict[str, list[str]]]:
        """Inputs and outputs of every signature."""
        found: dict[str, dict[str, list[str]]] = self._interpreter.get_signature_list()
        return found

    def call(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one signature on float32 arrays by name; the arrays returned are copies."""
        with self._lock:
            return {name: np.array(result) for name, result in self._runner(signature)(**inputs).items()}

    def close(self) -> None:
        """Let the model go, and give its memory back to the system; it cannot be called any more."""
        with self._lock:
            self._runners.clear()
            del self._interpreter
        with suppress(OSError, TypeError, AttributeError):  # only glibc keeps what was freed
            ctypes.CDLL(None).malloc_trim(0)

    def require(self, signature: str, inputs: Shapes, outputs: Shapes) -> None:
        """Check a signature's shapes, since an interpreter bends the model to whatever input comes.

        Raises
        ------
        BundleError : the model lacks the signature, or takes or gives other arrays.
        """
        try:
            runner = self._runner(signature)
            found = (_shapes(runner.get_input_details()), _shapes(runner.get_output_details()))
        except (ValueError, RuntimeError) as fault:  # names that are no text, tensors that are not there
            raise BundleError(f"{self._path}: {signature} is garbled: {fault}; make the bundle again") from fault
        if found != (inputs, outputs):
            raise BundleError(
                f"{self._path} does not fit its manifest: {signature} must take {inputs} and give {outputs}, "
                f"not {found[0]} and {found[1]}; make the bundle again"
            )

    def _refuse_shared_float16(self) -> None:
        """The older interpreters can end the whole process on such a file, so it does not come that far."""
        if runtime_name() == "ai-edge-litert" or len(self.signatures) < 2:
            return
        if any(np.dtype(tensor["dtype"]) == np.float16 for tensor in self._interpreter.get_tensor_details()):
            raise BundleError(
                f"{self._path} holds float16 weights under the signatures {sorted(self.signatures)}, which "
                f"{runtime_name()} cannot run: one signature a file, or ai-edge-litert"
            )

    def _runner(self, signature: str) -> Any:
        if signature not in self._runners:
            if signature not in self.signatures:
                raise BundleError(f"{self._path} has no signature {signature!r}, only {sorted(self.signatures)}")
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return self._runners[signature]


def _shapes(details: Mapping[str, Any]) -> Shapes:
    return {name: tuple(int(size) for size in detail["shape"]) for name, detail in details.items()}
