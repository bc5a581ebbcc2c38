"""A video in training: its feature folder, opened many times, and the labels of its frames."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import Features, load_features
from preprocessing.names import as_video_id

_IN_MEMORY = ("time_s", "face_score", "frame_word")
"""Arrays that are kept in memory, 16 bytes a frame in all."""
_MAPPED = ("faces", "face_box", "log_mel", "waveform", "word_vectors")
"""Arrays that are memory-mapped anew each time; and those of ``vectors``."""


class _MappedArray(NamedTuple):
    """Where an array lies in its file, to map it again without parsing the file's header."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    n_bytes: int
    """Size of the file."""

    def open(self) -> NDArray[Any]:
        try:
            if self.path.stat().st_size == self.n_bytes:
                return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more: {error.strerror}") from None
        raise InputError(f"{self.path}: its size has changed since it was opened; start again with the new features")


@dataclass(eq=False)
class Video:
    """A feature folder and the labels of its T decoded frames.

    The folder can be opened many times, but its JSON files are parsed and its values checked only once. No file stays
    open in between: hundreds of videos with seven memory-mapped files each would exceed the limit of open files. A
    video can be sent to other processes, with what has been parsed.
    """

    folder: Path
    labels: NDArray[np.float32]
    """(T,n_targets) in [-1,1], NaN where there is none."""
    _parsed: Features | None = field(default=None, init=False, repr=False)
    """Features without their large arrays."""
    _mapped: dict[str, _MappedArray] = field(default_factory=dict, init=False, repr=False)
    """The large arrays, by field of :class:`Features` or modality of ``vectors``."""

    @property
    def video_id(self) -> str:
        """Name of the feature folder."""
        return as_video_id(self.folder.name)

    def features(self) -> Features:
        """Features whose large arrays are memory-mapped.

        Raises:
            InputError: see :func:`preprocessing.features.load_features`; or a file is gone or has changed its size.
        """
        if self._parsed is None:
            self._parsed = self._close(load_features(self.folder))
        arrays: dict[str, Any] = {name: array.open() for name, array in self._mapped.items()}
        vectors = {m: arrays.pop(m) for m in self._parsed.vectors}
        return replace(self._parsed, **arrays, vectors=vectors)

    def _close(self, features: Features) -> Features:
        """Features with small arrays in memory and empty ones in place of large ones, which go to ``_mapped``."""
        arrays: dict[str, Any] = {name: getattr(features, name) for name in _MAPPED} | dict(features.vectors)
        for name, array in arrays.items():
            if isinstance(array, np.memmap):  # not if it has no elements
                path = Path(str(array.filename))
                self._mapped[name] = _MappedArray(path, array.dtype, array.offset, array.shape, path.stat().st_size)
                arrays[name] = np.empty((0, *array.shape[1:]), array.dtype)
        vectors = {m: arrays.pop(m) for m in features.vectors}
        in_memory: dict[str, Any] = {name: np.array(getattr(features, name)) for name in _IN_MEMORY}
        return replace(features, **arrays, **in_memory, vectors=vectors)
