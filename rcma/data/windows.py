"""From feature folders and annotations to windows of tensors; labels stay at their frames, NaN where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from preprocessing.errors import InputError
from preprocessing.features import PATCH_ROWS, Alignment, Features, cut_patches, load_features, patch_start
from preprocessing.media import HOP_LENGTH, N_MELS
from preprocessing.names import as_video_id
from rcma.config import AudioInput, Modality, ModelSettings
from rcma.model import IR50

CROP_OF_FACE = (5, 6)
"""The network sees this fraction of the stored face's side: 40 of 48 pixels, as published."""
EMPTY_WINDOW = -1
"""Index of a window without content."""
_ROWS_AT_ONCE = 1 << 16
_LEAST_STD = 1e-3
"""Of log-mel and words: dividing by less would blow up the first sound that differs from a silent training set."""


class _MappedArray(NamedTuple):
    """Where an array lies in a file, to map it again without reading the file's header."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    n_bytes: int
    """Size of the file."""

    @classmethod
    def of(cls, array: np.memmap[Any, Any]) -> _MappedArray:
        path = Path(str(array.filename))
        return cls(path, array.dtype, array.offset, array.shape, n_bytes=path.stat().st_size)

    def open(self) -> NDArray[Any]:
        try:
            if self.path.stat().st_size == self.n_bytes:
                return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more: {error.strerror}") from None
        raise InputError(f"{self.path}: another size than when it was opened; start again with the new features")


class FeatureReader:
    """Gives the features of a folder again and again, and parses its JSON files only the first time.

    Between two calls no file stays open: hundreds of videos, seven memory-mapped files each, would exceed the number of
    open files that a process may have. Arrays of a few bytes a frame stay in memory, 16 bytes a frame in all. A reader
    can be sent to other processes, with what it knows already.
    """

    _IN_MEMORY = ("time_s", "face_score", "frame_word")
    _MAPPED = ("faces", "face_box", "log_mel", "waveform", "word_vectors")
    """And each of ``vectors``."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self._folder = folder
        self._features: Features | None = None
        self._mapped: dict[str, _MappedArray] = {}
        self._mapped_vectors: dict[str, _MappedArray] = {}

    def features(self) -> Features:
        """Features whose large arrays are memory-mapped.

        Raises:
            InputError: see :func:`preprocessing.features.load_features`; or a file has gone or changed its size since.
        """
        if self._features is None:
            self._features = self._read()
        mapped: dict[str, Any] = {name: array.open() for name, array in self._mapped.items()}
        vectors = {m: array.open() for m, array in self._mapped_vectors.items()}
        return replace(self._features, **mapped, vectors={**self._features.vectors, **vectors})

    def _read(self) -> Features:
        features = load_features(self._folder)
        kept: dict[str, Any] = {name: np.array(getattr(features, name)) for name in self._IN_MEMORY}
        for name in self._MAPPED:
            array = getattr(features, name)
            if isinstance(array, np.memmap):
                self._mapped[name] = _MappedArray.of(array)
                kept[name] = np.empty((0, *array.shape[1:]), array.dtype)
        vectors = dict(features.vectors)
        for m, array in vectors.items():
            if isinstance(array, np.memmap):
                self._mapped_vectors[m] = _MappedArray.of(array)
                vectors[m] = np.empty((0, *array.shape[1:]), array.dtype)
        return replace(features, **kept, vectors=vectors)


@dataclass(frozen=True)
class Video:
    """A feature folder and the labels of its T decoded frames."""

    folder: Path
    labels: NDArray[np.float32]
    """(T,n_targets) in [-1,1], NaN where there is none."""
    reader: FeatureReader = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    """Of the folder; made where none is given."""

    def __post_init__(self) -> None:
        """Make the reader, if none is given."""
        if self.reader is None:
            object.__setattr__(self, "reader", FeatureReader(self.folder))

    @property
    def video_id(self) -> str:
        """Name of the feature folder."""
        return as_video_id(self.folder.name)

    def features(self) -> Features:
        """Features of the video; see :meth:`FeatureReader.features`."""
        return self.reader.features()


@dataclass(frozen=True)
class Normalisation:
    """Statistics of the training videos, float32; a deviation is 1 where nothing varies or nothing is known."""

    audio_mean: Tensor
    """(64,) of each mel band; zeros for a backbone that takes log-mel as it is."""
    audio_std: Tensor
    """(64,); ones for a backbone that takes log-mel as it is."""
    text_mean: Tensor
    """() over all frames and all dimensions of their word vectors, with zeros where no word is spoken (published)."""
    text_std: Tensor
    """()"""
    vectors: Mapping[Modality, tuple[Tensor, Tensor]]
    """Mean and deviation (width,) of each column of features made elsewhere, for modalities of kind ``features``."""


def windows(n_frames: int, length: int, hop: int) -> list[int]:
    """First frames of the windows that cover a video.

    Args:
        n_frames: T, at least 1.
        length: L, frames in a window.
        hop: frames between two starts, from 1 to ``length``.

    Returns:
        Rising starts; the last window ends with the video. One window at 0, longer than the video, when T < L.

    Raises:
        ValueError: a number outside its range.
    """
    if n_frames < 1 or not 1 <= hop <= length:
        raise ValueError(f"{n_frames} frames, windows of {length}, hop {hop}: 1 <= hop <= length is right")
    if n_frames <= length:
        return [0]
    last = n_frames - length
    return [*range(0, last, hop), last]


def overlap_average(
    starts: Sequence[int], predictions: Iterable[NDArray[np.floating]], n_frames: int
) -> NDArray[np.float32]:
    """Average the predictions of overlapping windows frame by frame.

    Args:
        starts: first frame of each window, as :func:`windows` gives them.
        predictions: (L,K) of each window, one by one; rows beyond the end of the video are padding.
        n_frames: T.

    Returns:
        float32 (T,K); NaN at a frame that no window covers.

    Raises:
        ValueError: there is no window, or not one prediction for each.
    """
    total: NDArray[np.float64] | None = None
    count = np.zeros((n_frames, 1))
    for start, values in zip(starts, predictions, strict=True):
        if total is None:
            total = np.zeros((n_frames, values.shape[1]))
        frames = slice(start, min(start + len(values), n_frames))
        total[frames] += values[: frames.stop - start]
        count[frames] += 1
    if total is None:
        raise ValueError("no windows: there is nothing to average")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).astype(np.float32)


def check_face_size(settings: ModelSettings, size: int) -> None:
    """Refuse stored faces that the face backbone cannot take.

    Raises:
        InputError: naming ``faces.size`` and what fits.
    """
    side, kind = face_side(size), settings.face.kind
    if kind in ("hf", "onnx", "features") or not settings.uses("face"):
        return  # encoders enlarge their pictures themselves
    if (side != IR50.side) if kind == "ir50" else (side % 8 != 0):
        wanted = str(IR50.side) if kind == "ir50" else "multiples of 8"
        raise InputError(
            f"faces.size: {size} gives crops of {side} pixels, but model.face.kind {kind} takes {wanted}; use 48"
        )


def check_sound(settings: ModelSettings, features: Features) -> None:
    """Refuse features that lack what the audio backbone takes.

    Raises:
        InputError: naming the video.
    """
    if settings.audio_input == "waveform":
        _waveform_rows(features)


def face_side(size: int) -> int:
    """Side of the crop that the network sees, for a stored face of ``size`` pixels."""
    shown, of = CROP_OF_FACE
    return size * shown // of


def check_vectors(settings: ModelSettings, features: Features) -> None:
    """Refuse features that lack what a model of kind ``features`` takes, or have another width.

    Raises:
        InputError: naming the video.
    """
    for m in settings.vector_modalities:
        if m not in features.vectors:
            raise InputError(
                f"{features.video_id}: its features hold no {m}_vectors.npy, which model.{m}.kind features takes"
            )
        given, wanted = features.vectors[m].shape[1], settings.width_of_input(m)
        if given != wanted:
            raise InputError(f"{features.video_id}: {m}_vectors.npy has {given} columns, but the model takes {wanted}")


def cut_window(
    features: Features,
    start: int,
    *,
    model: ModelSettings,
    length: int,
    audio_alignment: Alignment,
    crop: tuple[int, int] | None = None,
    flip: bool = False,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None = None,
) -> dict[str, Tensor]:
    """Cut one window of L frames out of a video of T frames; what lies beyond its end is padding.

    Args:
        features: the video.
        start: first frame, below T.
        model: says which modalities are cut, and what of them; a video without words may have vectors of any width.
        length: L, whatever that of the model.
        audio_alignment: see :func:`preprocessing.features.patch_start`.
        crop: upper and left edge, in pixels, of the part of the stored face to take; None for the centre.
        flip: mirror the faces.
        embeddings: (T,d) of face and audio, to be cut instead of crops and log-mel; NaN where there is none.

    Returns:
        For the modalities of the model: ``face`` (L,3,s,s) in [-1,1], s = 40 for stored faces of 48; ``audio``
        (L,96,64) log-mel, or the (L,96,160) samples of the same rows; ``text`` (L,D); features made elsewhere
        (L,width); all float32, zeros where there is nothing. ``face_mask``, ``audio_mask``, ``text_mask`` bool (L,),
        True where the modality is there; ``frame_mask`` bool (L,), False in padding.

    Raises:
        InputError: the waveform, or features made elsewhere, are wanted and were not stored.
    """
    frames = slice(start, min(start + length, features.n_frames))
    arrays: dict[str, NDArray[Any]] = {"frame_mask": np.arange(length) < frames.stop - frames.start}
    check_vectors(model, features)
    for m in model.modalities:
        if m in model.vector_modalities:
            arrays[m], mask = _cut_rows(features.vectors[m], frames, length=length)
        elif m == "text":
            arrays[m], mask = _cut_words(features, frames, length=length, text_width=model.text_width or 1)
        elif embeddings is not None:
            arrays[m], mask = _cut_rows(embeddings[m], frames, length=length)
        elif m == "face":
            arrays[m], mask = _cut_faces(features, frames, length=length, crop=crop, flip=flip)
        else:
            arrays[m], mask = _cut_sound(
                features, frames, length=length, alignment=audio_alignment, audio=model.audio_input
            )
        arrays[f"{m}_mask"] = mask
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _cut_faces(
    features: Features, frames: slice, *, length: int, crop: tuple[int, int] | None, flip: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    n, size = frames.stop - frames.start, features.faces.shape[1]
    side = face_side(size)
    top, left = crop if crop is not None else ((size - side) // 2, (size - side) // 2)

    face = np.zeros((length, 3, side, side), np.float32)
    face_mask = np.zeros(length, np.bool_)
    # Not the box: that of a provided face is not known.
    face_mask[:n] = np.isfinite(features.face_score[frames])
    pixels = features.faces[frames, top : top + side, left : left + side]  # (n,s,s,3)
    if flip:
        pixels = pixels[:, :, ::-1]
    face[:n] = (pixels.transpose(0, 3, 1, 2) / np.float32(255.0) - 0.5) / 0.5
    face[~face_mask] = 0.0
    return face, face_mask


def _cut_sound(
    features: Features, frames: slice, *, length: int, alignment: Alignment, audio: AudioInput
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    n = frames.stop - frames.start
    rows = features.log_mel if audio == "log_mel" else _waveform_rows(features)
    patches = np.zeros((length, PATCH_ROWS, rows.shape[1]), np.float32)
    audio_mask = np.zeros(length, np.bool_)
    patches[:n], audio_mask[:n] = cut_patches(rows, patch_start(features.time_s[frames], alignment))
    return patches, audio_mask


def _waveform_rows(features: Features) -> NDArray[np.float16]:
    """(M,160): the samples under each row of log-mel."""
    if features.waveform is None:
        raise InputError(
            f"{features.video_id}: its features hold no waveform; preprocess it with --set audio.waveform=true"
        )
    return features.waveform.reshape(-1, HOP_LENGTH)


def _cut_words(
    features: Features, frames: slice, *, length: int, text_width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    text = np.zeros((length, text_width), np.float32)
    mask = np.zeros(length, np.bool_)
    word = np.asarray(features.frame_word[frames])
    mask[: len(word)] = word >= 0
    if mask.any():
        text[mask] = features.word_vectors[word[word >= 0]]
    return text, mask


def _cut_rows(
    values: NDArray[np.floating], frames: slice, *, length: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of embeddings, or of features made elsewhere, and which of them are there: rows are NaN whole."""
    cut = np.full((length, values.shape[1]), np.nan, np.float32)
    cut[: frames.stop - frames.start] = values[frames]
    return np.nan_to_num(cut), ~np.isnan(cut[:, 0])


def drop_modalities(masks: Mapping[str, Tensor], probability: float, random: np.random.Generator) -> dict[str, Tensor]:
    """Take whole modalities away from a window, each with the given probability, never all of them.

    Args:
        masks: (L,) bool of each modality.
        probability: for each modality.
        random: two numbers are drawn for each window, whatever the probability.

    Returns:
        The masks, all False for a modality that is dropped.
    """
    dropped = random.random(len(masks)) < probability
    spared = random.integers(len(masks))
    if dropped.all():
        dropped[spared] = False
    return {name: mask & (not gone) for (name, mask), gone in zip(masks.items(), dropped, strict=True)}


class EmbeddingReader(Protocol):
    """What :class:`rcma.data.embeddings.Embeddings` is used for here."""

    @property
    def n_views(self) -> int:
        """Views of each video."""

    def read(self, video_id: str, view: int) -> dict[Modality, NDArray[np.float16]]:
        """Embeddings (T,d) of each modality with a backbone."""


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Training windows with random crop and flip, the same for all frames of a window.

    What item i looks like depends on (seed, epoch, i) alone: not on the order of reading, not on the number of workers.
    Windows in which no target has two labels teach nothing and are left out.

    Each item is what :func:`cut_window` gives, with ``labels`` float32 (L,n_targets), NaN where there is none, and
    ``window`` int64 (), the item's index.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        model: ModelSettings,
        hop: int,
        audio_alignment: Alignment,
        seed: int,
        modality_dropout: float = 0.0,
        embeddings: EmbeddingReader | None = None,
    ) -> None:
        """Lay windows of the model's length over videos with labels of its targets; nothing is read yet."""
        self._model, self._audio_alignment = model, audio_alignment
        self._modality_dropout, self._embeddings = modality_dropout, embeddings
        self.seed, self.epoch = seed, 0
        self._videos = tuple(videos)
        length = model.length
        self._places = [
            (number, start)
            for number, video in enumerate(self._videos)
            for start in windows(len(video.labels), length, hop)
            if (np.isfinite(video.labels[start : start + length]).sum(axis=0) >= 2).any()
        ]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one window; :data:`EMPTY_WINDOW` is nothing but padding, without labels."""
        if index == EMPTY_WINDOW:
            padding = {name: torch.zeros_like(value) for name, value in self[0].items()}
            return padding | {"labels": torch.full_like(padding["labels"], torch.nan), "window": torch.tensor(index)}
        number, start = self._places[index]
        video = self._videos[number]
        features = video.features()
        random = np.random.default_rng((self.seed, self.epoch, index))
        size = features.faces.shape[1]
        top, left = random.integers(0, size - face_side(size) + 1, size=2)
        flip = bool(random.random() < 0.5)
        embedded = None
        if self._embeddings is not None:
            embedded = self._embeddings.read(video.video_id, int(random.integers(self._embeddings.n_views)))
        item = cut_window(
            features,
            start,
            model=self._model,
            length=self._model.length,
            audio_alignment=self._audio_alignment,
            crop=(int(top), int(left)),
            flip=flip,
            embeddings=embedded,
        )
        if self._modality_dropout:
            masks = {f"{m}_mask": item[f"{m}_mask"] for m in self._model.modalities}
            item |= drop_modalities(masks, self._modality_dropout, random)
        labels = np.full((self._model.length, video.labels.shape[1]), np.nan, np.float32)
        known = video.labels[start : start + self._model.length]
        labels[: len(known)] = known
        return {**item, "labels": torch.from_numpy(labels), "window": torch.tensor(index)}

    # Not named set_epoch: Accelerate calls a method of that name with its own count, which starts again on resuming.
    def start_epoch(self, epoch: int) -> None:
        """Draw other crops, flips and another order from now on."""
        self.epoch = epoch

    def name(self, index: int) -> str:
        """Video and frames of a window, for messages."""
        if index == EMPTY_WINDOW:
            return "nothing"
        number, start = self._places[index]
        return f"{self._videos[number].video_id} from frame {start}"


class SharedBatches(Sampler[list[int]]):
    """All windows of a dataset in batches that several processes share; their order depends on (seed, epoch) alone.

    However many processes there are, together they see the same batches. Where the last batch has fewer windows than
    there are processes, the rest of them get :data:`EMPTY_WINDOW`.
    """

    def __init__(self, dataset: WindowDataset, batch_size: int, *, process: int = 0, n_processes: int = 1) -> None:
        """Shuffle ``dataset``, each epoch in another way.

        Args:
            dataset: windows.
            batch_size: windows in a batch of all processes together.
            process: which of the processes this is, from 0.
            n_processes: how many share a batch.
        """
        self._dataset, self._batch_size = dataset, batch_size
        self._process, self._n_processes = process, n_processes
        self.n_done = 0
        """Batches at the start of the epoch that are left out, because they are done."""

    def __len__(self) -> int:
        """Number of batches, those that are done included."""
        return math.ceil(len(self._dataset) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the windows of this process in each batch."""
        random = np.random.default_rng((self._dataset.seed, self._dataset.epoch))
        order = random.permutation(len(self._dataset)).tolist()
        for first in range(self.n_done * self._batch_size, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            yield batch[self._process :: self._n_processes] or [EMPTY_WINDOW]


def fit_normalisation(videos: Sequence[Video], model: ModelSettings) -> Normalisation:
    """Mean and standard deviation over the training videos, read piece by piece; never give it validation videos.

    Args:
        videos: the training videos.
        model: says which inputs are standardised; the others keep mean 0 and deviation 1.
    """
    audio = _Moments(N_MELS)
    for video in videos if model.standardises_log_mel else ():
        rows_of_video = video.features().log_mel
        for start in range(0, len(rows_of_video), _ROWS_AT_ONCE):
            rows = rows_of_video[start : start + _ROWS_AT_ONCE].astype(np.float64)
            audio.add(rows[np.isfinite(rows).all(axis=1)])
    has_words = model.uses("text", kind="words")
    text = _text_mean_and_std(videos) if has_words else (torch.zeros(()), torch.ones(()))
    vectors = {m: _vectors_mean_and_std(videos, m) for m in model.vector_modalities}
    return Normalisation(*audio.mean_and_std(least=_LEAST_STD), *text, vectors)


def _vectors_mean_and_std(videos: Sequence[Video], m: Modality) -> tuple[Tensor, Tensor]:
    """Per column, unlike word vectors: columns of features made elsewhere have units of their own, such as a pitch in
    Hz beside a probability, and one deviation for all would leave nothing but the largest.
    """
    arrays = [video.features().vectors[m] for video in videos]
    moments = _Moments(arrays[0].shape[1])
    for array in arrays:
        for start in range(0, len(array), _ROWS_AT_ONCE):
            rows = array[start : start + _ROWS_AT_ONCE].astype(np.float64)
            moments.add(rows[np.isfinite(rows).all(axis=1)])
    return moments.mean_and_std()


def _text_mean_and_std(videos: Sequence[Video]) -> tuple[Tensor, Tensor]:
    """Scalars over the values (T,D) of all frames of all videos; a frame without a word has D zeros."""
    n_frames_of_all, width, total, squares = 0, 1, 0.0, 0.0
    for video in videos:
        features = video.features()
        n_frames_of_all += features.n_frames
        if not len(features.words):
            continue
        width = features.word_vectors.shape[1]
        vectors = features.word_vectors.astype(np.float64)  # (W,D)
        word = np.asarray(features.frame_word)
        n_frames = np.bincount(word[word >= 0], minlength=len(vectors))  # (W,) frames of each word
        total += float(n_frames @ vectors.sum(axis=1))
        squares += float(n_frames @ np.square(vectors).sum(axis=1))
    n_values = n_frames_of_all * width
    mean = total / n_values
    std = math.sqrt(max(squares / n_values - mean**2, 0.0))
    return torch.tensor(mean), torch.tensor(std if std >= _LEAST_STD else 1.0)


class _Moments:
    """Mean and variance of rows that come in pieces, in float64 (Chan, Golub and LeVeque, 1983)."""

    def __init__(self, width: int) -> None:
        self._n = 0
        self._mean = np.zeros(width)
        self._squares = np.zeros(width)

    def add(self, rows: NDArray[np.float64]) -> None:
        if not len(rows):
            return
        n = self._n + len(rows)
        mean = rows.mean(axis=0)
        shift = mean - self._mean
        self._squares += np.square(rows - mean).sum(axis=0) + np.square(shift) * self._n * len(rows) / n
        self._mean += shift * len(rows) / n
        self._n = n

    def mean_and_std(self, *, least: float = 0.0) -> tuple[Tensor, Tensor]:
        """float32; a deviation of at most ``least``, or of rounding errors, becomes 1."""
        std = np.sqrt(self._squares / max(self._n, 1))
        std[std <= np.maximum(least, 1e-9 * np.abs(self._mean))] = 1.0
        return torch.tensor(self._mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
