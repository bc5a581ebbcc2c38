"""Outputs of frozen backbones, computed once for a few views of each video and read from disk ever after.

A view is a crop and a flip of the faces, the same for all frames. View 0 is the one that prediction uses: the centre,
not flipped. The others are the same in all trainings, whatever their seed; sound has one view.

Where an array lies follows from what it was made from, so trainings with other seeds, folds or targets share what they
have in common, and others never meet::

    EMBEDDINGS/
      face-3f2a.../            one backbone: its weights, settings and what it standardises its input with
        made_from.json         all of that in words; the folder's name is its hash
        video1/
          9c41....npy          float16 (T,d), NaN where the modality is missing
          9c41....json         the features' hashes and the view, of which 9c41... is the hash, and the array's own
      audio-77b0.../
      .feature_hashes.json     hashes of feature files, so that they are not computed in each run

An array that is not what its description says is computed again. Runs that need the same array at the same time compute
it once. Nothing is ever deleted: a backbone's folder has the date of the last run that used it (``ls -lt EMBEDDINGS``),
and any of them can be removed while no training uses it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import Alignment, Features
from preprocessing.files import replace_when_whole, sha256
from rcma.config import Modality
from rcma.data.windows import Video, cut_window, face_side
from rcma.fast_cpu import Embed, optimised_backbones
from rcma.model import RCMA

_METHOD = 1
"""Counted up when the same backbone, features and view give other embeddings than before."""
_SEED_OF_VIEWS = 0
_FRAMES_AT_ONCE = 256
_LOCK = ".lock"


@dataclass(frozen=True)
class Embeddings:
    """Where the embeddings of each video are."""

    n_views: int
    paths: Mapping[str, Mapping[Modality, tuple[Path, ...]]]
    """Of each video_id and modality with a backbone: a file for each view; for sound, one for all."""

    def read(self, video_id: str, view: int) -> dict[Modality, NDArray[np.float16]]:
        """Embeddings (T,d) of each modality with a backbone, memory-mapped; NaN where the modality is missing.

        Raises:
            InputError: a file has gone, or was damaged, since they were computed.
        """
        files = {m: of_views[view % len(of_views)] for m, of_views in self.paths[video_id].items()}
        return {m: _map(path) for m, path in files.items()}


def embed_videos(
    folder: Path,
    model: RCMA,
    videos: Sequence[Video],
    *,
    n_views: int,
    audio_alignment: Alignment,
    first: int = 0,
    on_video: Callable[[int, int], None],
) -> Embeddings:
    """Compute the embeddings that ``folder`` does not hold yet, or no longer whole.

    Args:
        folder: where they are kept; several processes may use it at the same time.
        model: its backbones are used, in evaluation mode; its mode is restored.
        videos: feature folders.
        n_views: view 0 and ``n_views - 1`` random ones.
        audio_alignment: see :func:`preprocessing.features.patch_start`.
        first: which of the videos to start with; processes that start at different ones share the work.
        on_video: called with the number of videos that are done, and of all.

    Raises:
        InputError: the folder cannot be written, or features cannot be read.
    """
    was_training = model.training
    model.eval()
    try:
        with _FeatureHashes(folder / ".feature_hashes.json") as hashes:
            maker = _Maker(folder, model, hashes, n_views=n_views, audio_alignment=audio_alignment)
            paths = {}
            for done, video in enumerate([*videos[first:], *videos[:first]]):
                on_video(done, len(videos))
                paths[video.video_id] = maker.files_of(video)
    except OSError as error:
        raise InputError(f"data.embeddings: {error.filename or folder}: {error.strerror or error}") from None
    finally:
        model.train(was_training)
    return Embeddings(n_views, paths)


class _Maker:
    """Finds the embeddings of a video, or makes them."""

    def __init__(
        self, folder: Path, model: RCMA, hashes: _FeatureHashes, *, n_views: int, audio_alignment: Alignment
    ) -> None:
        self._model, self._hashes, self._n_views, self._audio_alignment = model, hashes, n_views, audio_alignment
        self._optimised: Mapping[str, Embed] | None = None
        self._folders: dict[Modality, Path] = {}
        for name in model.backbone:
            m: Modality = "face" if name == "face" else "audio"
            made_from = _describe_backbone(model, m)
            self._folders[m] = folder / f"{m}-{_hash_of(made_from)}"
            self._folders[m].mkdir(parents=True, exist_ok=True)
            described = self._folders[m] / "made_from.json"
            if not described.exists():
                settings = getattr(model.settings, m)
                named = {"weights": str(settings.pretrained or settings.hf or "random")}
                with FileLock(self._folders[m] / _LOCK):
                    _write_json(described, {**made_from, "first_used_with": named})
            with suppress(OSError):  # of a folder that is shared, perhaps for reading only
                os.utime(self._folders[m])

    def files_of(self, video: Video) -> dict[Modality, tuple[Path, ...]]:
        features = video.features()
        return {m: self._files_of(video, features, m) for m in self._folders}

    def _files_of(self, video: Video, features: Features, m: Modality) -> tuple[Path, ...]:
        made_from: dict[str, Any] = {"n_frames": features.n_frames}
        if m == "face":
            sources = ["faces", "face_score"]
            views: list[dict[str, Any]] = [_view(k, features.faces.shape[1]) for k in range(self._n_views)]
        else:
            sources = ["waveform" if self._model.settings.audio_input == "waveform" else "log_mel", "time_s"]
            views = [{"audio_alignment": self._audio_alignment}]
        made_from["features"] = {name: self._hashes.of(video.folder / f"{name}.npy") for name in sources}
        return tuple(self._file_of(features, m, {**made_from, "view": view}) for view in views)

    def _file_of(self, features: Features, m: Modality, made_from: dict[str, Any]) -> Path:
        """The file of one view, which is there and whole when this returns."""
        path = self._folders[m] / features.video_id / f"{_hash_of(made_from)}.npy"
        shape = (features.n_frames, self._model.embedding_widths[m])
        if not _is_whole(path, made_from, shape):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / _LOCK):
                # Another process may have made it while this one waited.
                if not _is_whole(path, made_from, shape):
                    self._make(path, features, m, made_from, shape)
        return path

    def _make(
        self, path: Path, features: Features, m: Modality, made_from: dict[str, Any], shape: tuple[int, int]
    ) -> None:
        if self._optimised is None:
            self._optimised = optimised_backbones(self._model)
        with replace_when_whole(path) as partial, partial.open("wb") as file:
            # Not a memory map: where it meets a full disk, the process is killed without a word.
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for first in range(0, features.n_frames, _FRAMES_AT_ONCE):
                n = min(_FRAMES_AT_ONCE, features.n_frames - first)
                file.write(self._embed(features, m, made_from["view"], first, n).tobytes())
        # Killed before this, the array does not match its description, if it has one, and is made again.
        _write_json(path.with_suffix(".json"), {**made_from, "sha256": sha256(path)})

    def _embed(
        self, features: Features, m: Modality, view: Mapping[str, Any], first: int, n: int
    ) -> NDArray[np.float16]:
        window = cut_window(
            features,
            first,
            model=self._model.settings.model_copy(update={"modalities": (m,)}),
            length=n,
            audio_alignment=self._audio_alignment,
            crop=(view["top"], view["left"]) if m == "face" else None,
            flip=m == "face" and view["flipped"],
        )
        device = next(self._model.parameters()).device
        mask = window[f"{m}_mask"]
        with torch.inference_mode():
            frames, there = window[m][None].to(device), mask[None].to(device)
            embedded = self._model.embed(m, frames, there, backbone=(self._optimised or {}).get(m))[0]
        return embedded.float().cpu().masked_fill(~mask[:, None], torch.nan).numpy().astype(np.float16)


class _FeatureHashes:
    """SHA-256 of feature files; those whose size and times have not changed since are known from earlier runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}

    def __enter__(self) -> _FeatureHashes:
        self._known = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._new:
            return
        with FileLock(self._path.parent / _LOCK):
            _write_json(self._path, self._read() | self._new)  # with what other runs have added meanwhile

    def of(self, path: Path) -> str:
        path = path.resolve()
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self._known.get(str(path))
        if known is None or known[:-1] != state:
            known = [*state, sha256(path)]
            self._known[str(path)] = self._new[str(path)] = known
        return str(known[-1])

    def _read(self) -> dict[str, list[Any]]:
        with suppress(OSError, ValueError):
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and all(isinstance(entry, list) and entry for entry in content.values()):
                return content
        return {}


def _describe_backbone(model: RCMA, m: Modality) -> dict[str, Any]:
    """All of a model that decides what its backbone makes of given frames; not what its files are called."""
    settings = getattr(model.settings, m)
    network = model.backbone[m]
    described: dict[str, Any] = {"method": _METHOD, "kind": settings.kind, "precision": settings.precision}
    if settings.hf_config is not None:
        described["hf_config"] = {key: value for key, value in settings.hf_config.items() if key != "_name_or_path"}
    if settings.kind == "onnx":
        described["onnx"] = settings.onnx.model_dump(mode="json")
    if m == "audio" and model.settings.audio_input == "log_mel":
        described["standardised_with_sha256"] = _sha256_of_tensors({"mean": model.audio_mean, "std": model.audio_std})
    described["weights_sha256"] = _sha256_of_tensors(network.state_dict())
    return described


def _view(number: int, size: int) -> dict[str, Any]:
    """What is cut out of a stored face of ``size`` pixels; no two views are the same as long as there are others."""
    side = face_side(size)
    corners = range(size - side + 1)
    centre = {"top": (size - side) // 2, "left": (size - side) // 2, "side": side, "flipped": False}
    views = [
        {"top": top, "left": left, "side": side, "flipped": flipped}
        for top, left, flipped in itertools.product(corners, corners, (False, True))
    ]
    views.remove(centre)
    order = np.random.default_rng(_SEED_OF_VIEWS).permutation(len(views))
    return centre if number == 0 else views[order[(number - 1) % len(views)]]


def _map(path: Path) -> NDArray[np.float16]:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read any more: {reason}; --resume computes it again") from None


def _is_whole(path: Path, made_from: Mapping[str, Any], shape: tuple[int, int]) -> bool:
    """Whether there is an array, and the very one that its description was written for."""
    try:
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        array = np.load(path, mmap_mode="r")
        return bool(
            array.shape == shape and array.dtype == np.float16 and described == {**made_from, "sha256": sha256(path)}
        )
    except (OSError, ValueError, EOFError):
        return False


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replace_when_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _hash_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _sha256_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # As bytes: NumPy knows no bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
