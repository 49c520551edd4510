"""How many multiply-adds a TFLite file asks for, and how many a core of this machine can do in a second.

    python benchmarks/operations.py FILE.tflite ...

What a network must cost at least: where that, at the core's best rate, is near what it costs, only a smaller network is
faster.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

CONVOLUTION, DEPTHWISE, DENSE, TRANSPOSED = 3, 4, 9, 67  # builtin operators of the TFLite schema
INT8 = 9  # type of a tensor there
# Multiply-adds for each element of the output (of the input, where transposed), from the weights' shape.
SIZES: dict[int, Callable[[tuple[int, ...]], int]] = {
    CONVOLUTION: lambda shape: math.prod(shape[1:]),  # (outputs, height, width, inputs)
    DEPTHWISE: lambda shape: math.prod(shape[1:3]),  # (1, height, width, channels)
    DENSE: lambda shape: shape[-1],  # (outputs, inputs)
    TRANSPOSED: lambda shape: math.prod(shape[:-1]),  # (outputs, height, width, inputs)
}


class Table:
    """A table of a FlatBuffers file: fields by their number in the schema.

    Parameters
    ----------
    data : the file's content.
    place : of the table in it.
    """

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place
        self._fields = place - struct.unpack_from("<i", data, place)[0]

    @staticmethod
    def root(data: bytes) -> Table:
        """The file's outermost table."""
        return Table(data, struct.unpack_from("<I", data)[0])

    def number(self, field: int, form: str = "i") -> int:
        """A number; 0 where it is left out. `form` as in `struct`."""
        place = self._where(field)
        return 0 if place is None else int(struct.unpack_from(f"<{form}", self._data, place)[0])

    def numbers(self, field: int) -> tuple[int, ...]:
        """A vector of int32."""
        place, count = self._vector(field)
        return struct.unpack_from(f"<{count}i", self._data, place)

    def text(self, field: int) -> str:
        """A string."""
        place, count = self._vector(field)
        return self._data[place : place + count].decode()

    def tables(self, field: int) -> list[Table]:
        """A vector of tables."""
        place, count = self._vector(field)
        return [Table(self._data, self._followed(place + 4 * k)) for k in range(count)]

    def _where(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry >= struct.unpack_from("<H", self._data, self._fields)[0]:
            return None
        offset = struct.unpack_from("<H", self._data, self._fields + entry)[0]
        return self._place + offset if offset else None

    def _followed(self, place: int) -> int:
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def _vector(self, field: int) -> tuple[int, int]:
        place = self._where(field)
        if place is None:
            return 0, 0
        start = self._followed(place)
        return start + 4, int(struct.unpack_from("<I", self._data, start)[0])


def multiply_adds(path: Path) -> dict[str, Counter[str]]:
    """Multiply-adds of each signature's convolutions and dense layers, by the kind of weights: int8 or float32."""
    model = Table.root(path.read_bytes())
    codes = [max(code.number(0, "b"), code.number(3)) for code in model.tables(1)]
    graphs = model.tables(2)
    return {one.text(2): of_graph(graphs[one.number(4, "I")], codes) for one in model.tables(7)}


def of_graph(graph: Table, codes: list[int]) -> Counter[str]:
    """Multiply-adds of one subgraph."""
    tensors = graph.tables(0)
    total: Counter[str] = Counter()
    for operator in graph.tables(3):
        code, inputs, outputs = codes[operator.number(0, "I")], operator.numbers(1), operator.numbers(2)
        if code not in SIZES:
            continue
        # The weights come second; a transposed convolution has its input third.
        weights, over = tensors[inputs[1]], tensors[inputs[2] if code == TRANSPOSED else outputs[0]]
        kind = "int8" if weights.number(1, "b") == INT8 else "float32"
        total[kind] += math.prod(over.numbers(0)) * SIZES[code](weights.numbers(0))
    return total


def least_s(asked: Mapping[str, int], rates: Mapping[str, float]) -> float:
    """Time that multiply-adds take at the best rates."""
    return sum(count / rates[kind] for kind, count in asked.items())


@cache
def best_rates() -> Mapping[str, float] | None:
    """Multiply-adds a second of one core, for `int8` and `float32`; None where there is no C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program, source = Path(folder) / "peak", Path(__file__).with_name("peak.c")
        try:
            subprocess.run(
                ["cc", "-O3", "-march=native", "-o", str(program), str(source)], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return dict(json.loads(subprocess.run([program], check=True, capture_output=True).stdout))


if __name__ == "__main__":
    print(f"a core's best, multiply-adds a second: {best_rates() or 'no C compiler (cc) is installed'}")
    for name in sys.argv[1:]:
        for signature, count in multiply_adds(Path(name)).items():
            kinds = ", ".join(f"{number / 1e6:.1f} million in {kind}" for kind, number in count.items())
            print(f"{name}: {signature}: multiply-adds {kinds}")
