"""The quantization variants of a backbone."""

from __future__ import annotations

from ..errors import InputError

# int16x8 is left out: it has no fast kernels.
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")
# Whose file explains a backbone. float16 with two signatures has crashed tflite-runtime 2.14.0, and relevance in 8-bit
# arithmetic is too coarse, so both take the relevance pass of the dynamic-range file.
EXPLAINED_BY = {"float32": "float32", "float16": "dynamic", "dynamic": "dynamic", "int8": "dynamic"}


def check_quantization(name: str) -> str:
    """The name itself; raises InputError where it is no variant."""
    if name not in QUANTIZATIONS:
        raise InputError(f"quantization must be one of {QUANTIZATIONS}, not {name!r}")
    return name
