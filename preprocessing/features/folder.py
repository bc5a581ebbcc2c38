"""The feature folder: one per video, whole or not there at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import refuse_foreign_folder, whole_or_nothing
from preprocessing.media import HOP_LENGTH, N_MELS
from preprocessing.names import as_video_id

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
    "face_vectors": ("float32", 2),
    "audio_vectors": ("float32", 2),
    "text_vectors": ("float32", 2),
}
"""Name, dtype and number of dimensions of each array file."""
_VECTORS = {"face": "face_vectors", "audio": "audio_vectors", "text": "text_vectors"}
"""Arrays of features made elsewhere, by modality."""
_OVER_FRAMES = ("time_s", "faces", "face_box", "face_score", "frame_word", *_VECTORS.values())
_OPTIONAL = ("waveform", *_VECTORS.values())
"""Arrays that every folder may do without."""
_REQUIRED = tuple(name for name in _ARRAYS if name not in _OPTIONAL)
"""Arrays of a folder whose ``meta.json`` does not list its ``arrays``."""
_KNOWN = {"meta.json", "words.json", *(f"{name}.npy" for name in _ARRAYS)}
_META: dict[str, type] = {
    "n_frames": int,
    "source": dict,
    "subjects": list,
    "settings": dict,
    "audio": dict,
    "warnings": dict,
}
"""Entries of ``meta.json`` that every reader may count on."""
_SOURCE = ("path", "size", "modified_ns", "sha256")
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
    """Recogniser's confidence in [0, 1]; NaN when unknown."""


@dataclass(frozen=True)
class Features:
    """Everything known of one video; T decoded frames, M mel frames, W words of width D.

    All times are on the video's clock, whose zero is the presentation time of the first decoded frame. A folder of
    features made elsewhere may lack arrays: its faces have S = 0, M and W are 0, and no frame has a face or a word.
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
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(T,d) features made elsewhere, of each modality (face, audio, text) that has some; d is any width. A row is NaN
    as a whole where the modality is not there."""

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
    """Features made elsewhere, without faces, sound or words.

    Args:
        video_id: name of the feature folder.
        meta: as of :class:`Features`; ``arrays``, the list of arrays that the folder holds, is added.
        time_s: (T,) times of the rows, seconds, rising.
        vectors: as of :class:`Features`.
    """
    arrays = ["time_s", *(_VECTORS[m] for m in vectors)]
    return Features(
        video_id=video_id,
        meta={**meta, "arrays": arrays},
        words=(),
        time_s=time_s,
        vectors=dict(vectors),
        **_absent_arrays(len(time_s)),
    )


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
    """Write a feature folder, whole or not at all; a feature folder that is already there is replaced.

    Raises:
        ValueError: an array has another dtype, number of dimensions or number of frames than it should, values that it
            cannot have, or an entry of ``meta`` is missing.
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
    """Tell which file the feature folder at a path was made from, whatever its format version and even if damaged.

    Returns:
        ``source`` of its ``meta.json``: at least ``path`` and ``sha256``; None if nothing is at ``folder``.

    Raises:
        InputError: something else is there, which must not be replaced: a file, a link, a folder that this program did
            not write, or one that also holds other files.
    """
    if not os.path.lexists(folder):
        return None
    refuse_foreign_folder(folder, marker="meta.json", is_known=_KNOWN.__contains__, kind="feature folder")
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
    """Read ``meta.json`` of a feature folder and check its format version and that nothing is missing.

    Raises:
        InputError: there is no such folder, it is not a feature folder, its format version is another one, or an entry
            is missing.
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
            f"{folder}/meta.json: not a feature folder's description; preprocess the video again"
        ) from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder}: feature format {version}, but this version reads format {FORMAT_VERSION}; "
            "preprocess the video again with --overwrite"
        )
    _refuse_missing(folder, ["words.json", *(f"{name}.npy" for name in names)])
    for problem in _meta_problems(meta):
        raise InputError(f"{folder}/meta.json: damaged: {problem}; preprocess the video again with --overwrite")
    return dict(meta)


def _refuse_missing(folder: Path, files: Sequence[str]) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: not a feature folder: {', '.join(missing)} missing; rcma-preprocess makes them")


def load_features(folder: Path) -> Features:
    """Open a feature folder and check every value; the large arrays are memory-mapped, read-only.

    Raises:
        InputError: files are missing, of another format version, do not fit together, or hold values that they cannot
            have, such as the index of a word that does not exist.
    """
    meta = load_meta(folder)
    try:
        names = [name for name in _ARRAYS if (folder / f"{name}.npy").exists()]
        arrays = {name: _load_array(folder / f"{name}.npy") for name in names}
        words = tuple(_word_from_json(word) for word in json.loads((folder / "words.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{folder}: damaged: {error}; preprocess the video again with --overwrite") from None
    for name, problem in _array_problems(arrays, n_frames=meta["n_frames"], n_words=len(words)):
        raise InputError(f"{folder}/{name}.npy: damaged: {problem}; preprocess the video again with --overwrite")
    vectors = {m: arrays.pop(name) for m, name in _VECTORS.items() if name in arrays}
    arrays = _absent_arrays(meta["n_frames"]) | arrays
    return Features(video_id=as_video_id(folder.resolve().name), meta=meta, words=words, vectors=vectors, **arrays)


def _absent_arrays(n_frames: int) -> dict[str, NDArray[Any]]:
    """What stands for arrays that a folder of T frames does not hold."""
    return {
        "faces": np.zeros((n_frames, 0, 0, 3), np.uint8),
        "face_box": np.full((n_frames, 4), np.nan, np.float32),
        "face_score": np.full(n_frames, np.nan, np.float32),
        "log_mel": np.zeros((0, N_MELS), np.float16),
        "word_vectors": np.zeros((0, 0), np.float16),
        "frame_word": np.full(n_frames, -1, np.int32),
    }


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


def _meta_problems(meta: dict[str, Any]) -> Iterator[str]:
    for key, kind in _META.items():
        if key not in meta:
            yield f"{key} is missing"
        elif not isinstance(meta[key], kind):
            yield f"{key} is {meta[key]!r}"
    source = meta.get("source")
    missing = [key for key in _SOURCE if isinstance(source, dict) and key not in source]
    if missing:
        yield f"source.{missing[0]} is missing"


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
        else:
            yield from ((name, problem) for problem in _value_problems(name, array, n_words=n_words))


def _value_problems(name: str, array: NDArray[Any], *, n_words: int) -> Iterator[str]:
    if name == "time_s":
        if not len(array):
            yield "no frames"
        elif not (np.isfinite(array).all() and (np.diff(array) > 0).all()):
            yield "times that are not finite and strictly increasing"
    elif name == "frame_word":
        if len(array) and not -1 <= array.min() <= array.max() < n_words:
            yield f"words from {array.min()} to {array.max()}, but -1 to {n_words - 1} are right"
    elif name == "word_vectors":
        if not np.isfinite(array).all():
            yield "values that are not finite"
    elif name in _VECTORS.values():
        if not array.shape[1]:
            yield "no columns"
            return
        n_rows = max(1, _VALUES_AT_ONCE // array.shape[1])
        blocks = (array[start : start + n_rows] for start in range(0, len(array), n_rows))
        if not all((np.isfinite(rows).all(axis=1) | np.isnan(rows).all(axis=1)).all() for rows in blocks):
            yield "rows that are neither finite nor NaN as a whole"
    elif array.dtype != np.uint8:
        values = array.reshape(-1)
        starts = range(0, len(values), _VALUES_AT_ONCE)
        if any(_has_infinity(values[start : start + _VALUES_AT_ONCE]) for start in starts):
            yield "infinite values"


def _has_infinity(values: NDArray[np.floating]) -> bool:
    if values.dtype == np.float16:
        # By its bits: numpy.isinf takes six times as long, and an hour has 80 million of them.
        return bool(((values.view(np.uint16) & 0x7FFF) == 0x7C00).any())
    return bool(np.isinf(values).any())


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
    word = Word(
        text=str(entry["text"]),
        start_s=float(entry["start_s"]),
        end_s=float(entry["end_s"]),
        probability=math.nan if probability is None else float(probability),
    )
    if not (math.isfinite(word.start_s) and math.isfinite(word.end_s)):
        raise ValueError(f"words.json: {word.text!r} from {word.start_s} to {word.end_s} s")
    return word


def _write_json(path: Path, content: object) -> None:
    # Bytes of a file name that are not UTF-8 become \udc80 to \udcff, which is JSON for what Python makes of them.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
