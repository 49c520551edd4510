"""The quantization variants of a backbone."""

from __future__ import annotations

from ..errors import InputError

# int16x8 is left out: it has no fast kernels.
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")
# In which variant a backbone's relevance is passed: in 8-bit arithmetic it is too coarse, and float16 weights make the
# file twice as large as the dynamic-range ones, for nothing.
EXPLAINED_BY = {"float32": "float32", "float16": "dynamic", "dynamic": "dynamic", "int8": "dynamic"}


def check_quantization(name: str) -> str:
    """The name itself; raises InputError where it is no variant."""
    if name not in QUANTIZATIONS:
        raise InputError(f"quantization must be one of {QUANTIZATIONS}, not {name!r}")
    return name
