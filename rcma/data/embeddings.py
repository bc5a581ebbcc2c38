"""Outputs of frozen backbones, computed once for a few views of each video and then read from disk.

A view is a crop and a flip of the faces, the same for all frames. View 0 is the one used in prediction: the centre, not
flipped. The others are the same in all trainings, whatever their seed; sound has one view.

The place of an array follows from everything it was computed from, so trainings with other seeds, folds or targets
share arrays, and trainings with other backbones never do::

    EMBEDDINGS/
      face-3f2a.../            one backbone: its weights, settings and the statistics that standardise its input
        made_from.json         the same in words; the folder's name is its hash
        video1/
          9c41....npy          float16 (T,d), NaN where the modality is missing
          9c41....json         hashes of the features and the view, which give 9c41..., and the hash of the array
      audio-77b0.../
      .feature_hashes.json     hashes of feature files, so that they are not computed in each run

An array that does not match its description is computed again. Runs that need the same array at the same time compute
it once. Nothing is ever deleted; a backbone's folder has the date of the last run that used it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
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
from rcma.data.videos import Video
from rcma.data.windows import cut_window, face_side
from rcma.fast_cpu import Embed, optimised_backbones
from rcma.model import RCMA

_METHOD = 1
"""Increase when the same backbone, features and view give other embeddings than before."""
_VIEW_SEED = 0
_FRAMES_AT_ONCE = 256
_LOCK = ".lock"
_BACKBONES: tuple[Modality, ...] = ("face", "audio")


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of each video on disk."""

    n_views: int
    paths: Mapping[str, Mapping[Modality, tuple[Path, ...]]]
    """For each video_id and modality with a backbone: a file for each view; for sound, one for all views."""

    def read(self, video_id: str, view: int) -> dict[Modality, NDArray[np.float16]]:
        """Embeddings (T,d) of each modality with a backbone, memory-mapped; NaN where the modality is missing.

        Raises:
            InputError: a file is gone or damaged since it was computed.
        """
        found = {}
        for m, of_views in self.paths[video_id].items():
            path = of_views[view % len(of_views)]
            try:
                found[m] = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{path}: cannot be read any more: {reason}; --resume computes it again") from None
        return found


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
    """Compute the embeddings that ``folder`` does not hold yet, or that are damaged.

    Args:
        folder: where they are kept; several processes may use it at the same time.
        model: its backbones are used, in evaluation mode; its mode is restored.
        videos: feature folders.
        n_views: view 0 and ``n_views - 1`` random ones.
        audio_alignment: see :func:`preprocessing.features.patch_start`.
        first: index of the video to start with; processes that start at different ones share the work.
        on_video: called with the number of videos that are done, and of all.

    Raises:
        InputError: the folder cannot be written, or features cannot be read.
    """
    optimised = cache(lambda: optimised_backbones(model))  # takes a second: not if nothing is left to compute
    was_training = model.training
    model.eval()
    paths: dict[str, dict[Modality, tuple[Path, ...]]] = {}
    try:
        folders = {m: _open_backbone_folder(folder, model, m) for m in _BACKBONES if m in model.backbone}
        with _feature_hashes(folder) as hash_of:
            for done, video in enumerate([*videos[first:], *videos[:first]]):
                on_video(done, len(videos))
                features = video.features()
                paths[video.video_id] = {}
                for m, of_backbone in folders.items():
                    views: list[dict[str, Any]] = [{"audio_alignment": audio_alignment}]
                    if m == "face":
                        views = _face_views(n_views, features.faces.shape[1])
                    hashes = {name: hash_of(video.folder / f"{name}.npy") for name in _arrays_of(model, m)}
                    made_from = {"n_frames": features.n_frames, "features": hashes}
                    paths[video.video_id][m] = tuple(
                        _embed_view(of_backbone, model, features, m, {**made_from, "view": view}, optimised)
                        for view in views
                    )
    except OSError as error:
        raise InputError(f"data.embeddings: {error.filename or folder}: {error.strerror or error}") from None
    finally:
        model.train(was_training)
    return Embeddings(n_views, paths)


def _arrays_of(model: RCMA, m: Modality) -> tuple[str, str]:
    """Arrays of the features from which the input of a backbone is made."""
    if m == "face":
        return "faces", "face_score"
    return "waveform" if model.settings.audio_input == "waveform" else "log_mel", "time_s"


def _embed_view(
    folder: Path,
    model: RCMA,
    features: Features,
    m: Modality,
    made_from: Mapping[str, Any],
    optimised: Callable[[], Mapping[str, Embed]],
) -> Path:
    """File with the embeddings of one view, which are computed unless it is whole."""
    path = folder / features.video_id / f"{_hash(made_from)}.npy"
    shape = (features.n_frames, model.embedding_widths[m])
    if _is_whole(path, made_from, shape):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / _LOCK):
        # Another process may have computed it while this one waited.
        if not _is_whole(path, made_from, shape):
            with replace_when_whole(path) as partial, partial.open("wb") as file:
                # Not a memory map: on a full disk, that kills the process without a message.
                np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
                for values in _embed(model, features, m, made_from["view"], optimised().get(m)):
                    file.write(values.tobytes())
            # If the process is killed here, the array does not match its description and is computed again.
            _write_json(path.with_suffix(".json"), {**made_from, "sha256": sha256(path)})
    return path


def _embed(
    model: RCMA, features: Features, m: Modality, view: Mapping[str, Any], optimised: Embed | None
) -> Iterator[NDArray[np.float16]]:
    """Embeddings (n,d) of consecutive frames."""
    device = next(model.parameters()).device
    for first in range(0, features.n_frames, _FRAMES_AT_ONCE):
        window = cut_window(
            features,
            first,
            model=model.settings.model_copy(update={"modalities": (m,)}),
            length=min(_FRAMES_AT_ONCE, features.n_frames - first),
            audio_alignment=view.get("audio_alignment", "start"),
            crop=(view["top"], view["left"]) if m == "face" else None,
            flip=view.get("flipped", False),
        )
        mask = window[f"{m}_mask"]
        with torch.inference_mode():
            frames, present = window[m][None].to(device), mask[None].to(device)
            embedded = model.embed(m, frames, present, backbone=optimised)[0]
        yield embedded.float().cpu().masked_fill(~mask[:, None], torch.nan).numpy().astype(np.float16)


def _face_views(n_views: int, size: int) -> list[dict[str, Any]]:
    """Crops and flips of a stored face of ``size`` pixels; all differ as long as there are enough."""
    side = face_side(size)
    corners = range(size - side + 1)
    centre = {"top": (size - side) // 2, "left": (size - side) // 2, "side": side, "flipped": False}
    others = [
        {"top": top, "left": left, "side": side, "flipped": flipped}
        for top, left, flipped in itertools.product(corners, corners, (False, True))
    ]
    others.remove(centre)
    order = np.random.default_rng(_VIEW_SEED).permutation(len(others))
    return [centre, *(others[order[k % len(others)]] for k in range(n_views - 1))]


def _open_backbone_folder(folder: Path, model: RCMA, m: Modality) -> Path:
    """Make the folder of a backbone with its description, and set its date to today."""
    settings = getattr(model.settings, m)
    made_from: dict[str, Any] = {"method": _METHOD, "kind": settings.kind, "precision": settings.precision}
    if settings.hf_config is not None:
        made_from["hf_config"] = {key: value for key, value in settings.hf_config.items() if key != "_name_or_path"}
    if settings.kind == "onnx":
        made_from["onnx"] = settings.onnx.model_dump(mode="json")
    if m == "audio" and model.settings.audio_input == "log_mel":
        made_from["standardised_with_sha256"] = _hash_tensors({"mean": model.audio_mean, "std": model.audio_std})
    made_from["weights_sha256"] = _hash_tensors(model.backbone[m].state_dict())
    own = folder / f"{m}-{_hash(made_from)}"
    own.mkdir(parents=True, exist_ok=True)
    if not (own / "made_from.json").exists():
        # Names of files are for people: they do not decide what the backbone computes.
        first_used_with = {"weights": str(settings.pretrained or settings.hf or "random")}
        with FileLock(own / _LOCK):
            _write_json(own / "made_from.json", {**made_from, "first_used_with": first_used_with})
    with suppress(OSError):  # a shared folder may be read-only
        os.utime(own)
    return own


@contextmanager
def _feature_hashes(folder: Path) -> Iterator[Callable[[Path], str]]:
    """Yield a function that gives the SHA-256 of a file; it is computed again only if size or times have changed."""
    path = folder / ".feature_hashes.json"

    def read() -> dict[str, list[Any]]:
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            # Damaged in any other way, it is written anew.
            if isinstance(content, dict) and all(isinstance(entry, list) and entry for entry in content.values()):
                return content
        return {}

    known, new = read(), {}

    def hash_of(file: Path) -> str:
        name, status = str(file.resolve()), file.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if name not in known or known[name][:-1] != state:
            known[name] = new[name] = [*state, sha256(file)]
        return str(known[name][-1])

    try:
        yield hash_of
    finally:
        if new:
            with FileLock(folder / _LOCK):
                _write_json(path, read() | new)  # keeps what other runs have added meanwhile


def _is_whole(path: Path, made_from: Mapping[str, Any], shape: tuple[int, int]) -> bool:
    """Whether an array exists and matches its description."""
    try:
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        array = np.load(path, mmap_mode="r")
        is_array = array.shape == shape and array.dtype == np.float16
        return is_array and bool(described == {**made_from, "sha256": sha256(path)})
    except (OSError, ValueError, EOFError):
        return False


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replace_when_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
