"""Outputs of frozen backbones, computed once for a few views of each video and read from disk ever after.

A view is a crop and a flip of the faces, the same for all frames. View 0 is the one that prediction uses: the centre,
not flipped. ``<folder>/<video_id>/<modality>_<view>.npy`` holds float16 (T,d), NaN where the modality is missing;
``made_from.json`` tells what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from preprocessing.align import Alignment
from preprocessing.files import refuse_foreign_folder, whole_or_nothing
from preprocessing.store import Features
from rcma.config import Modality
from rcma.data import Video, cut_window, face_side
from rcma.model import RCMA
from rcma.quicker_backbones import Embed, quicker_forms

_FRAMES_AT_ONCE = 256
_MADE_FROM = "made_from.json"
_OWN_FILE = re.compile(rf"{re.escape(_MADE_FROM)}|(face|audio)_\d+\.npy")


class EmbeddingStore:
    """Embeddings of many videos for a number of views."""

    def __init__(self, folder: Path, *, n_views: int, seed: int, audio_alignment: Alignment) -> None:
        """Nothing is computed yet.

        Args:
            folder: where they are kept.
            n_views: view 0 and ``n_views - 1`` random ones.
            seed: of the random views.
            audio_alignment: see :func:`preprocessing.align.patch_start`.
        """
        self.n_views = n_views
        self._folder, self._seed, self._audio_alignment = folder, seed, audio_alignment

    def fill(self, model: RCMA, videos: Sequence[Video], on_video: Callable[[int, int], None]) -> None:
        """Compute what is missing, or was made with other backbones, views or features.

        Args:
            model: its backbones are used, in evaluation mode.
            videos: feature folders.
            on_video: is told how many of how many videos are done.
        """
        backbones = _fingerprint(model)
        was_training = model.training
        model.eval()
        quicker = quicker_forms(model)
        try:
            for done, video in enumerate(videos):
                on_video(done, len(videos))
                features = video.features()
                made_from = {
                    "backbones": backbones,
                    "views": [self.n_views, self._seed],
                    "audio_alignment": self._audio_alignment,
                    "source": features.meta.get("source"),
                    "settings": features.meta.get("settings"),
                    "n_frames": features.n_frames,
                }
                if self._made_from(video.video_id) != made_from:
                    self._compute(model, quicker, features, made_from)
        finally:
            model.train(was_training)

    def read(self, video_id: str, view: int) -> dict[Modality, NDArray[np.float16]]:
        """Embeddings (T,d) of each modality with a backbone, memory-mapped."""
        folder = self._folder / video_id
        modalities: tuple[Modality, ...] = ("face", "audio")
        # Sound is the same in all views.
        names = {"face": f"face_{view}", "audio": "audio_0"}
        paths = {m: folder / f"{names[m]}.npy" for m in modalities}
        return {m: np.load(path, mmap_mode="r") for m, path in paths.items() if path.exists()}

    def _made_from(self, video_id: str) -> Any:
        try:
            return json.loads((self._folder / video_id / _MADE_FROM).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _compute(
        self, model: RCMA, quicker: Mapping[str, Embed], features: Features, made_from: dict[str, Any]
    ) -> None:
        with whole_or_nothing(self._folder / features.video_id, check=_refuse_foreign) as partial:
            for view in range(self.n_views):
                crop, flip = self._view(view, features.faces.shape[1])
                for m in model.backbone:
                    if m == "audio" and view > 0:
                        continue
                    path = partial / f"{m}_{view}.npy"
                    shape = (features.n_frames, model.embedding_widths[m])  # type: ignore[index]
                    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
                    for first in range(0, features.n_frames, _FRAMES_AT_ONCE):
                        n = min(_FRAMES_AT_ONCE, features.n_frames - first)
                        stored[first : first + n] = self._embed(
                            model, m, features, first, n, crop, flip, backbone=quicker.get(m)
                        )
                    stored.flush()
            (partial / _MADE_FROM).write_text(json.dumps(made_from), encoding="utf-8")

    def _embed(
        self,
        model: RCMA,
        m: str,
        features: Features,
        first: int,
        n: int,
        crop: tuple[int, int] | None,
        flip: bool,
        *,
        backbone: Embed | None,
    ) -> NDArray[np.float16]:
        window = cut_window(
            features,
            first,
            length=n,
            text_width=features.word_vectors.shape[1],
            audio_alignment=self._audio_alignment,
            audio=model.settings.audio_input,
            crop=crop,
            flip=flip,
        )
        device = next(model.parameters()).device
        mask = window[f"{m}_mask"]
        with torch.inference_mode():
            frames, there = window[m][None].to(device), mask[None].to(device)
            embedded = model.embed(m, frames, there, backbone=backbone)[0]  # type: ignore[arg-type]
        return embedded.float().cpu().masked_fill(~mask[:, None], torch.nan).numpy().astype(np.float16)

    def _view(self, view: int, size: int) -> tuple[tuple[int, int] | None, bool]:
        """Upper left corner of the crop (None: the centre), and whether the faces are flipped."""
        if view == 0:
            return None, False
        random = np.random.default_rng((self._seed, view))
        top, left = random.integers(0, size - face_side(size) + 1, size=2)
        return (int(top), int(left)), bool(random.random() < 0.5)


def _refuse_foreign(folder: Path) -> None:
    """Raise InputError if what is at ``folder`` is not embeddings alone: with them, features would be replaced."""
    refuse_foreign_folder(folder, marker=_MADE_FROM, is_known=_OWN_FILE.fullmatch, kind="folder of embeddings")


def _fingerprint(model: RCMA) -> str:
    """Changes with every weight of the backbones, with what sound is standardised with, and with what an encoder's
    configuration says.
    """
    digest = hashlib.sha256()
    for m in model.backbone:
        config = getattr(model.settings, m).hf_config
        if config is not None:
            digest.update(json.dumps(config, sort_keys=True).encode())
    for name, value in model.state_dict().items():
        if name.startswith(("backbone.", "audio_")):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
