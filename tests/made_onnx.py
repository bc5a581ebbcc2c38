"""A small ONNX file with the input and output of the public face models, written without the package ``onnx``.

Only what is needed of protobuf's wire format: https://protobuf.dev/programming-guides/encoding, with the numbers of the
fields from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FLOAT = 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return _field(1, b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind))


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    dims = b"".join(_field(1, n) for n in values.shape)
    return _field(5, dims + _field(2, _FLOAT) + _field(8, name) + _field(9, values.astype("<f4").tobytes()))


def _value(field: int, name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(n, int) else 2, n)) for n in shape)
    return _field(field, _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, dims))))


def write_face_model(
    path: Path, side: int | str, weight: NDArray[np.float32], bias: NDArray[np.float32], *, n: int | str = "N"
) -> Path:
    """A network that maps (n,3,side,side) to the means of the three channels (n,3) @ weight (3,D) + bias (D,).

    Its second output, ``means``, is (n,3); its third, ``pooled``, (n,3,1,1); its fourth, ``map``, as its input. With a
    text for ``side`` or ``n`` the graph leaves the size open.
    """
    graph = (
        _node("GlobalAveragePool", ["input"], "pooled")
        + _node("Flatten", ["pooled"], "means")
        + _node("Relu", ["input"], "map")
        + _node("MatMul", ["means", "weight"], "product")
        + _node("Add", ["product", "bias"], "output")
        + _field(2, "face")
        + _tensor("weight", weight)
        + _tensor("bias", bias)
        + _value(11, "input", (n, 3, side, side))
        + _value(12, "output", (n, len(bias)))
        + _value(12, "means", (n, 3))
        + _value(12, "pooled", (n, 3, 1, 1))
        + _value(12, "map", (n, 3, side, side))
    )
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path
