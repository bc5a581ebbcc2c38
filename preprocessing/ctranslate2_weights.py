"""Whisper weights in CTranslate2's file format, turned into openai-whisper's model.

The format is that of ``model.bin`` written by CTranslate2 (binary version 6, python/ctranslate2/specs/model_spec.py):
little endian; version uint32, name of the specification, its revision uint32; number of variables uint32, then for
each its name, rank uint8, dimensions uint32, type uint8, size in bytes uint32, data; number of aliases uint32, then
pairs alias, name. A string is a uint16 length, then that many bytes, the last one zero.
"""

from __future__ import annotations

import base64
import gzip
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from whisper.model import Whisper

_BINARY_VERSION = 6
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""In the order of CTranslate2's numbers for them, from 0."""

Variables = Mapping[str, npt.NDArray[np.generic]]


def read_variables(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays in a CTranslate2 ``model.bin``, by name; read-only views of ``data``.

    Raises:
        ValueError: not binary version 6, cut short, or of a type other than float32, float16 and integers.
    """
    reader = _Reader(data)
    version = reader.number("I")
    if version != _BINARY_VERSION:
        raise ValueError(f"CTranslate2 binary version {version}; only {_BINARY_VERSION} can be read")
    reader.string()
    reader.number("I")
    variables: dict[str, npt.NDArray[np.generic]] = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        type_number = reader.number("B")
        if type_number >= len(_DTYPES):
            raise ValueError(f"{name}: CTranslate2 type {type_number} cannot be read")
        block = reader.block(reader.number("I"))
        variables[name] = np.frombuffer(block, _DTYPES[type_number]).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.string()
        variables[alias] = variables[reader.string()]
    return variables


class _Reader:
    """A cursor over the file's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._position = 0

    def block(self, size: int) -> memoryview:
        end = self._position + size
        if end > len(self._data):
            raise ValueError("the file is cut short")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, kind: str) -> int:
        layout = f"<{kind}"
        value: int = struct.unpack(layout, self.block(struct.calcsize(layout)))[0]
        return value

    def string(self) -> str:
        return bytes(self.block(self.number("H"))).rstrip(b"\0").decode()


def whisper_model(variables: Variables, alignment_heads: Sequence[Sequence[int]]) -> Whisper:
    """openai-whisper's model with the weights of a CTranslate2 one, float32 on the CPU, in evaluation mode.

    Args:
        variables: what :func:`read_variables` gives; weights must be floating point (not quantised).
        alignment_heads: pairs (decoder layer, head) whose cross-attention gives the times of words: the key of this
            name in the model's ``config.json``.

    Raises:
        KeyError: a variable of Whisper's is missing.
    """
    import torch
    from whisper.model import ModelDimensions, Whisper

    n_vocab, n_state = variables["decoder/embeddings/weight"].shape
    n_heads = int(variables["decoder/num_heads"])
    dims = ModelDimensions(
        n_mels=variables["encoder/conv1/weight"].shape[1],
        n_audio_ctx=variables["encoder/position_encodings/encodings"].shape[0],
        n_audio_state=variables["encoder/conv1/weight"].shape[0],
        n_audio_head=int(variables["encoder/num_heads"]),
        n_audio_layer=_count_layers(variables, "encoder"),
        n_vocab=n_vocab,
        n_text_ctx=variables["decoder/position_encodings/encodings"].shape[0],
        n_text_state=n_state,
        n_text_head=n_heads,
        n_text_layer=_count_layers(variables, "decoder"),
    )
    model = Whisper(dims)
    model.load_state_dict(_state_dict(variables, dims.n_audio_layer, dims.n_text_layer))
    marked = np.zeros((dims.n_text_layer, n_heads), bool)
    for layer, head in alignment_heads:
        marked[layer, head] = True
    # The form in which openai-whisper ships and takes the heads.
    model.set_alignment_heads(base64.b85encode(gzip.compress(marked.tobytes())))
    model.to(torch.float32)
    model.eval()
    return model


def _count_layers(variables: Variables, stack: str) -> int:
    prefix = f"{stack}/layer_"
    numbers = {name.removeprefix(prefix).split("/")[0] for name in variables if name.startswith(prefix)}
    return sum(number.isdigit() for number in numbers)


def _state_dict(variables: Variables, n_audio_layers: int, n_text_layers: int) -> dict[str, torch.Tensor]:
    """openai-whisper's names and shapes; CTranslate2 fuses the projections that read the same input."""
    import torch

    state: dict[str, torch.Tensor] = {}

    def put(target: str, array: npt.NDArray[np.generic]) -> None:
        state[target] = torch.from_numpy(array.astype(np.float32))

    def put_norm(target: str, source: str) -> None:
        put(f"{target}.weight", variables[f"{source}/gamma"])
        put(f"{target}.bias", variables[f"{source}/beta"])

    def put_linear(targets: Sequence[str], source: str) -> None:
        """Split the rows of one fused layer evenly over ``targets``."""
        weights = np.split(variables[f"{source}/weight"], len(targets))
        biases = np.split(variables[f"{source}/bias"], len(targets))
        for target, weight, bias in zip(targets, weights, biases, strict=True):
            put(f"{target}.weight", weight)
            if not target.endswith(".key"):  # Whisper's keys have no bias; CTranslate2 fills in zeros.
                put(f"{target}.bias", bias)

    def put_block(target: str, source: str) -> None:
        """What the layers of both stacks share: self-attention and the two-layer perceptron, each after its norm."""
        put_norm(f"{target}.attn_ln", f"{source}/self_attention/layer_norm")
        parts = [f"{target}.attn.{part}" for part in ("query", "key", "value")]
        put_linear(parts, f"{source}/self_attention/linear_0")
        put_linear([f"{target}.attn.out"], f"{source}/self_attention/linear_1")
        put_norm(f"{target}.mlp_ln", f"{source}/ffn/layer_norm")
        put_linear([f"{target}.mlp.0"], f"{source}/ffn/linear_0")
        put_linear([f"{target}.mlp.2"], f"{source}/ffn/linear_1")

    put_linear(["encoder.conv1"], "encoder/conv1")
    put_linear(["encoder.conv2"], "encoder/conv2")
    put("encoder.positional_embedding", variables["encoder/position_encodings/encodings"])
    for layer in range(n_audio_layers):
        put_block(f"encoder.blocks.{layer}", f"encoder/layer_{layer}")
    put_norm("encoder.ln_post", "encoder/layer_norm")

    put("decoder.token_embedding.weight", variables["decoder/embeddings/weight"])
    put("decoder.positional_embedding", variables["decoder/position_encodings/encodings"])
    for layer in range(n_text_layers):
        target, source = f"decoder.blocks.{layer}", f"decoder/layer_{layer}"
        put_block(target, source)
        put_norm(f"{target}.cross_attn_ln", f"{source}/attention/layer_norm")
        put_linear([f"{target}.cross_attn.query"], f"{source}/attention/linear_0")
        parts = [f"{target}.cross_attn.{part}" for part in ("key", "value")]
        put_linear(parts, f"{source}/attention/linear_1")
        put_linear([f"{target}.cross_attn.out"], f"{source}/attention/linear_2")
    put_norm("decoder.ln", "decoder/layer_norm")
    return state
