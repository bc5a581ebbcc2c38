"""The feature folder of a video, written as a whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import refuse_foreign_folder, whole_or_nothing
from preprocessing.media import HOP_LENGTH, N_MELS
from preprocessing.names import as_video_id

FORMAT_VERSION = 2

_ARRAYS: dict[str, tuple[type[np.generic], int]] = {
    "time_s": (np.float64, 1),
    "faces": (np.uint8, 4),
    "face_box": (np.float32, 2),
    "face_score": (np.float32, 1),
    "log_mel": (np.float16, 2),
    "waveform": (np.float16, 1),
    "word_vectors": (np.float16, 2),
    "frame_word": (np.int32, 1),
    "face_vectors": (np.float32, 2),
    "audio_vectors": (np.float32, 2),
    "text_vectors": (np.float32, 2),
}
"""Name, dtype and number of dimensions of each array file."""
_VECTORS = {"face": "face_vectors", "audio": "audio_vectors", "text": "text_vectors"}
"""Arrays of imported features, by modality."""
_OVER_FRAMES = ("time_s", "faces", "face_box", "face_score", "frame_word", *_VECTORS.values())
_REQUIRED = tuple(name for name in _ARRAYS if name not in ("waveform", *_VECTORS.values()))
"""Arrays of a folder whose ``meta.json`` does not list its ``arrays``."""
_KNOWN_FILES = {"meta.json", "words.json", *(f"{name}.npy" for name in _ARRAYS)}
_META: dict[str, type] = {
    "n_frames": int,
    "source": dict,
    "subjects": list,
    "settings": dict,
    "audio": dict,
    "warnings": dict,
}
"""Entries of ``meta.json`` that every reader relies on."""
_SOURCE = ("path", "size", "modified_ns", "sha256")
_AGAIN = "preprocess the video again with --overwrite"
_VALUES_AT_ONCE = 1 << 20
"""Values checked at a time, so that memory does not grow with the video."""


@dataclass(frozen=True)
class Word:
    """One spoken word."""

    text: str
    """As written, with its punctuation, without spaces around it."""
    start_s: float
    """Seconds on the video's clock; less than ``end_s``."""
    end_s: float
    """At most the start of the next word."""
    probability: float
    """Recogniser's confidence in [0, 1]; NaN if unknown."""


@dataclass(frozen=True)
class Features:
    """Everything known of one video; T decoded frames, M mel frames, W words of width D.

    All times are on the video's clock, whose zero is the presentation time of the first decoded frame. Imported
    features may lack arrays: then S, M and W are 0, and no frame has a face or a word.
    """

    video_id: str
    meta: dict[str, Any]
    """format_version, source, frame_rate (Hz), n_frames, width and height (of the first frame), audio, settings, ..."""
    time_s: NDArray[np.float64]
    """(T,) presentation time of each frame, seconds."""
    faces: NDArray[np.uint8]
    """(T,S,S,3) RGB crop of the main subject; zeros without a face."""
    face_box: NDArray[np.float32]
    """(T,4) x1 y1 x2 y2 in pixels of the upright frame; NaN without a face."""
    face_score: NDArray[np.float32]
    """(T,) detector's score in [0,1]; NaN without a face."""
    log_mel: NDArray[np.float16]
    """(M,64) at 100 Hz, row m at m/100 s; NaN before the audio starts; M = 0 without audio."""
    words: tuple[Word, ...]
    """W words in the order they are spoken."""
    word_vectors: NDArray[np.float16]
    """(W,D) one vector per word."""
    frame_word: NDArray[np.int32]
    """(T,) index of the word spoken at that frame, -1 where none."""
    waveform: NDArray[np.float16] | None = None
    """(160 M,) mono sound in [-1,1] at 16 kHz, sample k at k/16000 s; NaN where log_mel is. None if not stored."""
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(T,d) imported features of each modality (face, audio, text) that has some; d is any width. A row is NaN as a
    whole if the modality is missing at that frame."""

    @property
    def n_frames(self) -> int:
        """Number of decoded frames T."""
        return len(self.time_s)


def features_from_vectors(
    video_id: str,
    meta: dict[str, Any],
    time_s: NDArray[np.float64],
    vectors: Mapping[str, NDArray[np.float32]],
) -> Features:
    """Make features of imported vectors alone, without faces, sound or words; arguments as of :class:`Features`."""
    meta = {**meta, "arrays": ["time_s", *(_VECTORS[m] for m in vectors)]}
    arrays = _absent_arrays(len(time_s))
    return Features(video_id, meta, time_s, words=(), vectors=dict(vectors), **arrays)


class FeatureWriter:
    """Writes the files of a feature folder, large arrays block by block."""

    def __init__(self, folder: Path) -> None:
        """Write into ``folder``, which exists."""
        self._folder = folder

    def write_array(self, name: str, array: NDArray[Any]) -> None:
        """Write one array; see :meth:`write_rows` for errors."""
        self.write_rows(name, array.shape, [array])

    def write_rows(self, name: str, shape: Sequence[int], blocks: Iterable[NDArray[Any]]) -> None:
        """Write one array from consecutive blocks of its rows.

        Raises:
            ValueError: a block has another dtype or other dimensions than the file, or the blocks do not make up the
                shape.
        """
        dtype, dimensions = _ARRAYS[name]
        n_rows = 0
        with (self._folder / f"{name}.npy").open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": tuple(shape)})
            for block in blocks:
                if block.dtype != dtype or block.ndim != dimensions or block.shape[1:] != tuple(shape[1:]):
                    raise ValueError(
                        f"{name}: {block.dtype} {block.shape}, not {dtype.__name__} (n, {tuple(shape)[1:]})"
                    )
                file.write(np.ascontiguousarray(block).data)
                n_rows += len(block)
        if n_rows != shape[0]:
            raise ValueError(f"{name}: {n_rows} rows, not {shape[0]}")

    def write_words(self, words: Iterable[Word]) -> None:
        """Write ``words.json``."""
        entries = []
        for word in words:
            probability = None if math.isnan(word.probability) else round(word.probability, 4)
            entries.append({**asdict(word), "probability": probability})
        self._write_json("words.json", entries)

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Write ``meta.json``, with the format version."""
        self._write_json("meta.json", {"format_version": FORMAT_VERSION, **meta})

    def _write_json(self, name: str, content: object) -> None:
        # Bytes of a file name that are not UTF-8 become \udc80 to \udcff, which JSON can store.
        with (self._folder / name).open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


def save_features(folder: Path, features: Features) -> None:
    """Write a feature folder as a whole or not at all; an existing feature folder is replaced.

    Raises:
        ValueError: an array has a wrong dtype, shape or value, or an entry of ``meta`` is missing.
        InputError: something else is at ``folder``; see :func:`own_source`.
    """
    given = {name: getattr(features, name) for name in _ARRAYS if name not in _VECTORS.values()}
    given |= {_VECTORS[m]: vectors for m, vectors in features.vectors.items()}
    kept = features.meta.get("arrays", given)
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None and name in kept}
    for problem in _meta_problems(features.meta):
        raise ValueError(f"{features.video_id}: meta: {problem}")
    for name, problem in _array_problems(arrays, n_frames=features.n_frames, n_words=len(features.words)):
        raise ValueError(f"{features.video_id}: {name}: {problem}")
    with whole_or_nothing(folder, check=own_source) as partial:
        writer = FeatureWriter(partial)
        for name, array in arrays.items():
            writer.write_array(name, array)
        writer.write_words(features.words)
        writer.write_meta(features.meta)


def own_source(folder: Path) -> dict[str, Any] | None:
    """Return the source of the feature folder at a path, whatever its format version and even if it is damaged.

    Returns:
        ``source`` of its ``meta.json``: at least ``path`` and ``sha256``; None if nothing is at ``folder``.

    Raises:
        InputError: something else is there, which must not be replaced: a file, a link, a folder that this program did
            not write, or one that also holds other files.
    """
    if not os.path.lexists(folder):
        return None
    refuse_foreign_folder(folder, marker="meta.json", is_known=_KNOWN_FILES.__contains__, kind="feature folder")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        version, source = meta["format_version"], meta["source"]
        if isinstance(version, int) and isinstance(source["path"], str) and isinstance(source["sha256"], str):
            return dict(source)
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"{folder}/meta.json is not of this program, and the folder is not replaced; move it, or give another place"
    )


def load_meta(folder: Path) -> dict[str, Any]:
    """Read ``meta.json`` of a feature folder, and check its format version and that no file is missing.

    Raises:
        InputError: the folder does not exist, is not a feature folder, has another format version, or lacks a file or
            an entry of ``meta.json``.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such feature folder; rcma-preprocess makes them")
    _refuse_missing(folder, ["meta.json"])
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        version = meta["format_version"]
        names = dict.fromkeys(["time_s", *map(str, meta.get("arrays", _REQUIRED))])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{folder}/meta.json: does not describe a feature folder; preprocess the video again"
        ) from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder}: feature format {version}, but this version reads format {FORMAT_VERSION}; {_AGAIN}"
        )
    _refuse_missing(folder, ["words.json", *(f"{name}.npy" for name in names)])
    for problem in _meta_problems(meta):
        raise InputError(f"{folder}/meta.json: damaged: {problem}; {_AGAIN}")
    return dict(meta)


def _refuse_missing(folder: Path, files: Sequence[str]) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: not a feature folder: {', '.join(missing)} missing; rcma-preprocess makes them")


def load_features(folder: Path) -> Features:
    """Open a feature folder and check every value; arrays are memory-mapped, read-only.

    Raises:
        InputError: files are missing, have another format version, do not fit together, or hold invalid values, such as
            the index of a word that does not exist.
    """
    meta = load_meta(folder)
    try:
        files = {name: folder / f"{name}.npy" for name in _ARRAYS}
        arrays = {name: np.load(path, mmap_mode="r") for name, path in files.items() if path.exists()}
        words = tuple(_word_from_json(entry) for entry in json.loads((folder / "words.json").read_text("utf-8")))
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise InputError(f"{folder}: damaged: {error}; {_AGAIN}") from None
    for name, problem in _array_problems(arrays, n_frames=meta["n_frames"], n_words=len(words)):
        raise InputError(f"{folder}/{name}.npy: damaged: {problem}; {_AGAIN}")
    vectors = {m: arrays.pop(name) for m, name in _VECTORS.items() if name in arrays}
    arrays = _absent_arrays(meta["n_frames"]) | arrays
    return Features(video_id=as_video_id(folder.resolve().name), meta=meta, words=words, vectors=vectors, **arrays)


def _word_from_json(entry: dict[str, Any]) -> Word:
    probability = math.nan if entry["probability"] is None else float(entry["probability"])
    word = Word(str(entry["text"]), float(entry["start_s"]), float(entry["end_s"]), probability)
    if not (math.isfinite(word.start_s) and math.isfinite(word.end_s)):
        raise ValueError(f"words.json: {word.text!r} from {word.start_s} to {word.end_s} s")
    return word


def _absent_arrays(n_frames: int) -> dict[str, NDArray[Any]]:
    """Placeholders for arrays that a folder of T frames does not hold."""
    return {
        "faces": np.zeros((n_frames, 0, 0, 3), np.uint8),
        "face_box": np.full((n_frames, 4), np.nan, np.float32),
        "face_score": np.full(n_frames, np.nan, np.float32),
        "log_mel": np.zeros((0, N_MELS), np.float16),
        "word_vectors": np.zeros((0, 0), np.float16),
        "frame_word": np.full(n_frames, -1, np.int32),
    }


def _meta_problems(meta: dict[str, Any]) -> Iterator[str]:
    for key, kind in _META.items():
        if key not in meta:
            yield f"{key} is missing"
        elif not isinstance(meta[key], kind):
            yield f"{key} is {meta[key]!r}"
    yield from (f"source.{key} is missing" for key in _SOURCE if key not in meta["source"])


def _array_problems(arrays: dict[str, NDArray[Any]], *, n_frames: int, n_words: int) -> Iterator[tuple[str, str]]:
    """Name of each array that is wrong, and what is wrong with it."""
    for name, array in arrays.items():
        dtype, dimensions = _ARRAYS[name]
        if array.dtype != dtype or array.ndim != dimensions:
            yield name, f"{array.dtype} with {array.ndim} dimensions, not {dtype.__name__} with {dimensions}"
        elif name in _OVER_FRAMES and len(array) != n_frames:
            yield name, f"{len(array)} rows for {n_frames} frames"
        elif name == "word_vectors" and len(array) != n_words:
            yield name, f"{len(array)} rows for {n_words} words"
        elif name == "waveform" and len(array) != HOP_LENGTH * len(arrays["log_mel"]):
            yield name, f"{len(array)} samples for {len(arrays['log_mel'])} rows of log-mel, {HOP_LENGTH} each"
        elif problem := _value_problem(name, array, n_words=n_words):
            yield name, problem


def _value_problem(name: str, array: NDArray[Any], *, n_words: int) -> str | None:
    if name == "time_s":
        if not len(array):
            return "no frames"
        if not (np.isfinite(array).all() and (np.diff(array) > 0).all()):
            return "times that are not finite and strictly increasing"
    elif name == "frame_word":
        if len(array) and not -1 <= array.min() <= array.max() < n_words:
            return f"words from {array.min()} to {array.max()}, not -1 to {n_words - 1}"
    elif name == "word_vectors":
        if not np.isfinite(array).all():
            return "values that are not finite"
    elif name in _VECTORS.values():
        if not array.shape[1]:
            return "no columns"
        if not all((np.isfinite(rows).all(axis=1) | np.isnan(rows).all(axis=1)).all() for rows in _blocks(array)):
            return "rows that are neither finite nor NaN as a whole"
    elif array.dtype != np.uint8 and any(_has_infinity(rows) for rows in _blocks(array)):
        return "infinite values"
    return None


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    n_rows = max(1, _VALUES_AT_ONCE // max(1, math.prod(array.shape[1:])))
    return (array[start : start + n_rows] for start in range(0, len(array), n_rows))


def _has_infinity(values: NDArray[np.floating]) -> bool:
    if values.dtype == np.float16:
        # By its bits: numpy.isinf takes longer, and an hour has 80 million values.
        return bool(((values.view(np.uint16) & 0x7FFF) == 0x7C00).any())
    return bool(np.isinf(values).any())
