"""Frozen face encoders in ONNX format, run with ONNX Runtime on the CPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from preprocessing.errors import InputError
from rcma.config import OnnxSettings
from rcma.model.weight_files import first_line

_KEY = "model.face.pretrained"


class OnnxVision(nn.Module):
    """An ONNX network from images (N,3,size,size) to vectors (N,width); it is never trained.

    The graph is part of the state dict, as bytes, so a checkpoint does not need the ONNX file.

    Args:
        settings: see :func:`describe_onnx`. The graph comes with :meth:`load_graph` or ``load_state_dict``.

    Raises:
        ValueError: the settings do not describe the graph.
    """

    def __init__(self, settings: OnnxSettings) -> None:
        super().__init__()
        if settings.size is None or settings.width is None or settings.n_bytes is None:
            raise ValueError("model.face.onnx does not describe the graph; rcma.model.describe_onnx does")
        self.width, self._size = settings.width, settings.size
        self._output, self._is_bgr = settings.output, settings.channels == "bgr"
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        # Not a buffer: buffers are averaged with the weights, and sent between processes.
        self._graph = torch.zeros(settings.n_bytes, dtype=torch.uint8)
        self._session: OnnxSession | None = None

    mean: Tensor
    std: Tensor

    def load_graph(self, path: Path) -> None:
        """Read the graph; raises InputError if the file cannot be read, or has changed since it was described."""
        graph = torch.frombuffer(bytearray(_read(path)), dtype=torch.uint8)
        if len(graph) != len(self._graph):
            raise InputError(f"{_KEY}: {path} has changed: {len(graph)} bytes, not {len(self._graph)}")
        self.set_extra_state(graph)

    def get_extra_state(self) -> Tensor:
        """The graph, uint8 (n_bytes,)."""
        return self._graph

    def set_extra_state(self, state: Any) -> None:
        """Set the graph, uint8 (n_bytes,)."""
        self._graph, self._session = state.cpu(), None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the session, which cannot be copied."""
        return self.__dict__ | {"_session": None}

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        """Square crops (N,3,S,S) RGB in [-1,1] -> embeddings (N,width), float32."""
        if self._session is None:
            self._session = OnnxSession(self._graph.numpy().tobytes(), output=self._output, source="model.face")
        with torch.autocast(faces.device.type, enabled=False):
            scaled = F.interpolate((faces.float() + 1) / 2, (self._size,) * 2, mode="bilinear", antialias=True)
            if self._is_bgr:
                scaled = scaled.flip(1)
            images = ((scaled - self.mean) / self.std).cpu().contiguous().numpy()
        return torch.from_numpy(self._session(images)).to(faces.device)


class OnnxSession:
    """An ONNX graph with one input, images (N,3,size,size); one of its outputs (N,width) is read.

    Args:
        graph: content of the file.
        source: names the file in errors.
        output: name or index of the output.
        n_threads: None: as many as PyTorch has.

    Raises:
        InputError: the graph is not usable, has several inputs, or has no such output.
    """

    def __init__(self, graph: bytes, *, source: str, output: str | int = 0, n_threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._source = source
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen classes of errors; they all mean the same here.
            raise InputError(f"{source}: not a usable ONNX model ({first_line(error)})") from error
        inputs, outputs = self._session.get_inputs(), [output.name for output in self._session.get_outputs()]
        if len(inputs) != 1:
            raise InputError(f"{source}: the model has {len(inputs)} inputs; it should have one: images of faces")
        if (output not in outputs) if isinstance(output, str) else not 0 <= output < len(outputs):
            raise InputError(f"{source}: the model has no output {output!r}; it has {', '.join(outputs)}")
        self._input = inputs[0].name
        self._output = output if isinstance(output, str) else outputs[output]
        n, _, *size = inputs[0].shape if len(inputs[0].shape) == 4 else (None, None)
        self.size: int | None = size[0] if size and isinstance(size[0], int) else None
        """Side of the input images; None if the graph takes any."""
        self._one_at_a_time = n == 1

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N,3,size,size) -> (N,width); raises InputError if the graph refuses them, or does not give vectors."""
        batches = np.split(images, len(images)) if self._one_at_a_time else [images]
        try:
            outputs = [self._session.run([self._output], {self._input: batch})[0] for batch in batches]
        except Exception as error:
            raise InputError(f"{self._source}: the model refuses its input ({first_line(error)})") from error
        vectors = np.asarray(np.concatenate(outputs), np.float32)
        n, *shape = vectors.shape
        if n != len(images) or not shape or any(side != 1 for side in shape[1:]):
            raise InputError(
                f"{self._source}: its output {self._output} has shape {vectors.shape} for {len(images)} images; "
                "it should be one vector for each image"
            )
        return vectors.reshape(n, shape[0])


def describe_onnx(settings: OnnxSettings, path: Path) -> OnnxSettings:
    """Fill in the settings that follow from the graph; runs it on one grey image.

    Raises:
        InputError: the graph cannot be read or run, or its image size is another one or unknown; names the setting.
    """
    graph = _read(path)
    session = OnnxSession(graph, output=settings.output, source=f"{_KEY}: {path}")
    size = settings.size or session.size
    if size is None:
        raise InputError(f"model.face.onnx.size: {path} takes images of any size; give the one it was trained on")
    if session.size not in (None, size):
        raise InputError(f"model.face.onnx.size: {path} takes images of {session.size} pixels, not {size}")
    width = session(np.zeros((1, 3, size, size), np.float32)).shape[1]
    found = {"size": size, "width": width, "n_bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}
    return settings.model_copy(update=found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{_KEY}: {path}: {error.strerror}; give an ONNX file with its weights inside") from None
