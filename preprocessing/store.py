"""The feature folder: one per video, whole or not there at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.audio import HOP_LENGTH
from preprocessing.errors import InputError
from preprocessing.speech import Word

FORMAT_VERSION = 2

_ARRAYS: dict[str, tuple[str, int]] = {
    "time_s": ("float64", 1),
    "faces": ("uint8", 4),
    "face_box": ("float32", 2),
    "face_score": ("float32", 1),
    "log_mel": ("float16", 2),
    "waveform": ("float16", 1),
    "word_vectors": ("float16", 2),
    "frame_word": ("int32", 1),
}
"""Name, dtype and number of dimensions of each array file."""
_OVER_FRAMES = ("time_s", "faces", "face_box", "face_score", "frame_word")
_OPTIONAL = ("waveform",)
"""Arrays that a folder may do without."""
_FILES = ("meta.json", "words.json", *(f"{name}.npy" for name in _ARRAYS if name not in _OPTIONAL))


@dataclass(frozen=True)
class Features:
    """Everything known of one video; T decoded frames, M mel frames, W words of width D.

    All times are on the video's clock, whose zero is the presentation time of the first decoded frame.
    """

    video_id: str
    meta: dict[str, Any]
    """format_version, source, frame_rate (Hz), n_frames, width and height (of the first frame), audio, settings, ..."""
    time_s: NDArray[np.float64]
    """(T,) presentation time of each frame, seconds."""
    faces: NDArray[np.uint8]
    """(T,S,S,3) RGB crop of the main subject; zeros where there is none."""
    face_box: NDArray[np.float32]
    """(T,4) x1 y1 x2 y2 in pixels of the upright frame; NaN where there is none."""
    face_score: NDArray[np.float32]
    """(T,) detector's score in [0,1]; NaN where there is no face."""
    log_mel: NDArray[np.float16]
    """(M,64) at 100 Hz, row m at m/100 s; NaN before the audio starts; M = 0 without audio."""
    words: tuple[Word, ...]
    """W words in the order they are spoken."""
    word_vectors: NDArray[np.float16]
    """(W,D) one vector a word."""
    frame_word: NDArray[np.int32]
    """(T,) index of the word spoken at that frame, -1 where none."""
    waveform: NDArray[np.float16] | None = None
    """(160 M,) mono sound in [-1,1] at 16 kHz, sample k at k/16000 s; NaN where log_mel is. None where not stored."""

    @property
    def n_frames(self) -> int:
        """Number of decoded frames T."""
        return len(self.time_s)


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``folder`` to write into; it takes the folder's place only if nothing went wrong.

    Siblings left behind by a process that was killed are cleared first.
    """
    partial, replaced = (folder.with_name(f".{state}-{folder.name}") for state in ("partial", "replaced"))
    for left_behind in (partial, replaced):
        shutil.rmtree(left_behind, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced)
        else:
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class FeatureWriter:
    """Writes the files of a feature folder, large ones piece by piece."""

    def __init__(self, folder: Path) -> None:
        """Write into ``folder``, which exists."""
        self._folder = folder

    def write_array(self, name: str, array: NDArray[Any]) -> None:
        """Write one array.

        Raises:
            ValueError: its dtype or number of dimensions is not that of the file.
        """
        self.write_rows(name, array.shape, [array])

    def write_rows(self, name: str, shape: Sequence[int], blocks: Iterable[NDArray[Any]]) -> None:
        """Write one array from consecutive blocks of its rows.

        Raises:
            ValueError: see :meth:`write_array`, or the blocks do not make up the shape.
        """
        dtype, dimensions = _ARRAYS[name]
        n_rows = 0
        with (self._folder / f"{name}.npy").open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": tuple(shape)})
            for block in blocks:
                if block.dtype != np.dtype(dtype) or block.ndim != dimensions or block.shape[1:] != tuple(shape[1:]):
                    raise ValueError(
                        f"{name}: {block.dtype} {block.shape}, but {dtype} (n, {tuple(shape)[1:]}) is right"
                    )
                file.write(np.ascontiguousarray(block).data)
                n_rows += len(block)
        if n_rows != shape[0]:
            raise ValueError(f"{name}: {n_rows} rows, but {shape[0]} are right")

    def write_words(self, words: Iterable[Word]) -> None:
        """Write ``words.json``."""
        _write_json(self._folder / "words.json", [_word_to_json(word) for word in words])

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Write ``meta.json``, with the format version."""
        _write_json(self._folder / "meta.json", {"format_version": FORMAT_VERSION, **meta})


def save_features(folder: Path, features: Features) -> None:
    """Write a feature folder, whole or not at all; one that is already there is replaced.

    Raises:
        ValueError: an array has another dtype, number of dimensions or number of frames than it should.
    """
    given = {name: getattr(features, name) for name in _ARRAYS}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    for name, problem in _array_problems(arrays, n_frames=features.n_frames, n_words=len(features.words)):
        raise ValueError(f"{features.video_id}: {name}: {problem}")
    with whole_or_nothing(folder) as partial:
        writer = FeatureWriter(partial)
        for name, array in arrays.items():
            writer.write_array(name, array)
        writer.write_words(features.words)
        writer.write_meta(features.meta)


def load_meta(folder: Path) -> dict[str, Any]:
    """Read ``meta.json`` of a feature folder and check its format version.

    Raises:
        InputError: there is no such folder, it is not a feature folder, or its format version is another one.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such feature folder; rcma-preprocess makes them")
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: not a feature folder: {', '.join(missing)} missing; rcma-preprocess makes them")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}/meta.json: not a feature folder's description; preprocess the video again"
        ) from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder}: feature format {version}, but this version reads format {FORMAT_VERSION}; "
            "preprocess the video again with --overwrite"
        )
    return dict(meta)


def load_features(folder: Path) -> Features:
    """Open a feature folder; the large arrays are memory-mapped, read-only.

    Raises:
        InputError: files are missing, of another format version, or do not fit together.
    """
    meta = load_meta(folder)
    try:
        names = [name for name in _ARRAYS if name not in _OPTIONAL or (folder / f"{name}.npy").exists()]
        arrays = {name: _load_array(folder / f"{name}.npy") for name in names}
        words = tuple(_word_from_json(word) for word in json.loads((folder / "words.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{folder}: damaged: {error}; preprocess the video again with --overwrite") from None
    for name, problem in _array_problems(arrays, n_frames=meta.get("n_frames", -1), n_words=len(words)):
        raise InputError(f"{folder}/{name}.npy: {problem}; preprocess the video again with --overwrite")
    return Features(video_id=folder.resolve().name, meta=meta, words=words, **arrays)


def _load_array(path: Path) -> NDArray[Any]:
    array = np.load(path, mmap_mode=None, allow_pickle=False) if _is_empty(path) else np.load(path, mmap_mode="r")
    return np.asarray(array) if not isinstance(array, np.memmap) else array


def _is_empty(path: Path) -> bool:
    # An array without elements cannot be memory-mapped; all that its file holds is the header.
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(file)
    return math.prod(shape) == 0


def _array_problems(arrays: dict[str, NDArray[Any]], *, n_frames: int, n_words: int) -> Iterator[tuple[str, str]]:
    for name, array in arrays.items():
        dtype, dimensions = _ARRAYS[name]
        if array.dtype != np.dtype(dtype) or array.ndim != dimensions:
            yield name, f"{array.dtype} with {array.ndim} dimensions, but {dtype} with {dimensions} is right"
        elif name in _OVER_FRAMES and len(array) != n_frames:
            yield name, f"{len(array)} rows for {n_frames} frames"
        elif name == "word_vectors" and len(array) != n_words:
            yield name, f"{len(array)} rows for {n_words} words"
        elif name == "waveform" and len(array) != HOP_LENGTH * len(arrays["log_mel"]):
            yield name, f"{len(array)} samples for {len(arrays['log_mel'])} rows of log-mel, {HOP_LENGTH} each"


def _word_to_json(word: Word) -> dict[str, Any]:
    probability = None if math.isnan(word.probability) else round(word.probability, 4)
    return {
        "text": word.text,
        "start_s": word.start_s,
        "end_s": word.end_s,
        "probability": probability,
    }


def _word_from_json(entry: dict[str, Any]) -> Word:
    probability = entry["probability"]
    return Word(
        text=str(entry["text"]),
        start_s=float(entry["start_s"]),
        end_s=float(entry["end_s"]),
        probability=math.nan if probability is None else float(probability),
    )


def _write_json(path: Path, content: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
