"""Frozen encoders of faces that come as an ONNX graph, run with ONNX Runtime on the CPU."""

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

_KEY = "model.face.weights"


class OnnxVision(nn.Module):
    """An ONNX network that turns pictures (N,3,size,size) into vectors (N,width); it is never trained.

    The graph itself is part of the state, as bytes: a checkpoint holds it, and can be used where the file is not.
    """

    def __init__(self, settings: OnnxSettings) -> None:
        """Prepare for a graph, see :func:`describe_onnx`; :meth:`load_graph` or ``load_state_dict`` brings it.

        Raises:
            ValueError: the settings do not describe the graph.
        """
        super().__init__()
        if settings.size is None or settings.width is None or settings.n_bytes is None:
            raise ValueError("model.face.onnx does not describe the graph; rcma.model.describe_onnx does")
        self.width, self._size = settings.width, settings.size
        self._output, self._is_bgr = settings.output, settings.channels == "bgr"
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        # Not a buffer: those are averaged with the weights, and sent from one process to another.
        self._graph = torch.zeros(settings.n_bytes, dtype=torch.uint8)
        self._session: OnnxSession | None = None

    mean: Tensor
    std: Tensor

    def load_graph(self, path: Path) -> None:
        """Read the graph.

        Raises:
            InputError: the file cannot be read, or it has another size than when it was described.
        """
        graph = torch.frombuffer(bytearray(_read(path)), dtype=torch.uint8)
        if len(graph) != len(self._graph):
            raise InputError(f"{_KEY}: {path} has changed: {len(graph)} bytes, not {len(self._graph)}")
        self.set_extra_state(graph)

    def get_extra_state(self) -> Tensor:
        """The graph, uint8 (n_bytes,)."""
        return self._graph

    def set_extra_state(self, state: Any) -> None:
        """Take a graph, uint8 (n_bytes,)."""
        self._graph, self._session = state.cpu(), None

    def __getstate__(self) -> dict[str, Any]:
        """All but the session, which cannot be copied."""
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
            pictures = ((scaled - self.mean) / self.std).cpu().contiguous().numpy()
        return torch.from_numpy(self._session(pictures)).to(faces.device)


class OnnxSession:
    """An ONNX graph with one input, pictures (N,3,size,size), of which one output (N,width) is read."""

    def __init__(self, graph: bytes, *, source: str, output: str | int = 0, n_threads: int | None = None) -> None:
        """Open the graph.

        Args:
            graph: content of the file.
            source: names it in messages.
            output: name or place of the output.
            n_threads: None: as many as PyTorch has now.

        Raises:
            InputError: it is no usable graph, has several inputs, or no such output.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._source = source
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen classes of errors; all mean the same here.
            raise InputError(f"{source}: not a usable ONNX model ({str(error).splitlines()[0]})") from error
        inputs, outputs = self._session.get_inputs(), [output.name for output in self._session.get_outputs()]
        if len(inputs) != 1:
            raise InputError(f"{source}: the model has {len(inputs)} inputs, but one is right: pictures of faces")
        if (output not in outputs) if isinstance(output, str) else not 0 <= output < len(outputs):
            raise InputError(f"{source}: the model has no output {output!r}; it has {', '.join(outputs)}")
        self._input = inputs[0].name
        self._output = output if isinstance(output, str) else outputs[output]
        n, _, *size = inputs[0].shape if len(inputs[0].shape) == 4 else (None, None)
        self.size: int | None = size[0] if size and isinstance(size[0], int) else None
        """Side of the pictures that the graph takes; None where it leaves that open."""
        self._one_at_a_time = n == 1

    def __call__(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N,3,size,size) to (N,width).

        Raises:
            InputError: the graph refuses them, or its output is none of vectors.
        """
        batches = np.split(pictures, len(pictures)) if self._one_at_a_time else [pictures]
        try:
            outputs = [self._session.run([self._output], {self._input: batch})[0] for batch in batches]
        except Exception as error:
            raise InputError(f"{self._source}: the model refuses its input ({str(error).splitlines()[0]})") from error
        vectors = np.asarray(np.concatenate(outputs), np.float32)
        n, *shape = vectors.shape
        if n != len(pictures) or not shape or any(side != 1 for side in shape[1:]):
            raise InputError(
                f"{self._source}: its output {self._output} has shape {vectors.shape} for {len(pictures)} pictures; "
                "one vector a picture is right"
            )
        return vectors.reshape(n, shape[0])


def describe_onnx(settings: OnnxSettings, path: Path) -> OnnxSettings:
    """Fill in what the graph decides, by a run on one grey picture.

    Raises:
        InputError: (naming ``model.face.weights``) the graph cannot be read or run, or takes pictures of another size;
            (naming ``model.face.onnx.size``) the graph does not say which size it takes.
    """
    graph = _read(path)
    session = OnnxSession(graph, output=settings.output, source=f"{_KEY}: {path}")
    size = settings.size or session.size
    if size is None:
        raise InputError(f"model.face.onnx.size: {path} takes pictures of any size; give the one it was trained on")
    if session.size not in (None, size):
        raise InputError(f"model.face.onnx.size: {path} takes pictures of {session.size} pixels, not {size}")
    width = session(np.zeros((1, 3, size, size), np.float32)).shape[1]
    found = {"size": size, "width": width, "n_bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}
    return settings.model_copy(update=found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{_KEY}: {path}: {error.strerror}; give an ONNX file with its weights inside") from None
