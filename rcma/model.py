"""The whole network: backbones, temporal convolutions, recursive cross-modal attention, one value per frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcma.backbones import IR50, SmallAudioNet, SmallFaceNet, VGGish, load_backbone_weights
from rcma.config import MODALITIES, Modality, ModelSettings
from rcma.fusion import RCMAFusion
from rcma.tcn import TemporalConvNet

CHUNK = 128
"""Frames that go through a backbone at once when no gradient is needed; bounds the memory of long windows."""


class RCMA(nn.Module):
    """Recursive cross-modal attention over face, audio and text (arXiv 2403.13659).

    The weights are random: :meth:`load_backbones` reads the files that the settings name, and
    :func:`rcma.checkpoint.load_model` a trained model, which holds its backbones.

    Args:
        settings: sizes and kinds; ``text_width`` must be set.

    Raises:
        ValueError: ``text_width`` is not set.
    """

    audio_mean: Tensor
    audio_std: Tensor
    text_mean: Tensor
    text_std: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        if settings.text_width is None:
            raise ValueError("model.text_width is not set; it must be the width of the word vectors")
        self.settings = settings
        face = IR50() if settings.face.kind == "ir50" else SmallFaceNet()
        audio = VGGish() if settings.audio.kind == "vggish" else SmallAudioNet()
        self.backbone = nn.ModuleDict({"face": face, "audio": audio})
        self.embedding_widths: dict[Modality, int] = {
            "face": face.width,
            "audio": audio.width,
            "text": settings.text_width,
        }
        channels: dict[Modality, tuple[int, ...]] = {m: getattr(settings.tcn, m) for m in MODALITIES}
        widths = {m: channels[m][-1] for m in MODALITIES}
        self.tcn = nn.ModuleDict(
            {
                m: TemporalConvNet(
                    self.embedding_widths[m],
                    channels[m],
                    kernel_size=settings.tcn.kernel_size,
                    dropout=settings.tcn.dropout,
                )
                for m in MODALITIES
            }
        )
        self.norm = nn.ModuleDict({m: nn.BatchNorm1d(widths[m]) for m in MODALITIES})
        self.fusion = RCMAFusion(
            widths,
            length=settings.length,
            steps=settings.fusion.steps,
            shared=settings.fusion.shared,
            dropout=settings.fusion.dropout,
        )
        self.head = nn.Linear(sum(widths.values()), len(settings.targets))

        self.register_buffer("audio_mean", torch.zeros(64))
        self.register_buffer("audio_std", torch.ones(64))
        self.register_buffer("text_mean", torch.zeros(settings.text_width))
        self.register_buffer("text_std", torch.ones(settings.text_width))
        for m in ("face", "audio"):
            self.backbone[m].requires_grad_(not self._frozen(m))
        self.train()  # PyTorch's default, but with frozen backbones in evaluation mode

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Valence and arousal of every frame of a batch of windows.

        Args:
            batch: left as it is; keys other than these are ignored. L is ``settings.length``.

                - ``face``: (B,L,3,S,S) RGB crops in [-1,1], S = 40 for IR-50; or embeddings (B,L,d)
                - ``audio``: (B,L,96,64) log-mel patches; or embeddings (B,L,d)
                - ``text``: (B,L,text_width) vector of the word spoken at each frame
                - ``face_mask``, ``audio_mask``, ``text_mask``: optional, (B,L) bool, True where the modality is there.
                  Elsewhere its content is never read. A frame where all three are False is padding: it takes part in
                  no statistic and no sum over time.

        Returns:
            (B,L,n_targets) in [-1,1]; column k is ``settings.targets[k]``.

        Raises:
            ValueError: an entry is missing or has the wrong shape or type.
        """
        masks = self._check(batch)
        valid = masks["face"] | masks["audio"] | masks["text"]  # (B,L)

        embeddings: dict[Modality, Tensor] = {
            "face": self._embed_face(batch["face"], masks["face"]),  # (B,L,512)
            "audio": self._embed_audio(batch["audio"], masks["audio"]),  # (B,L,128)
            "text": _standardise(batch["text"], self.text_mean, self.text_std),  # (B,L,text_width)
        }
        features: dict[Modality, Tensor] = {}
        for m in MODALITIES:
            present = embeddings[m].masked_fill(~masks[m][..., None], 0.0)
            features[m] = self._normalise(m, self.tcn[m](present), valid)  # X_m (B,L,d_m)
        features = self.fusion(features, valid)
        joined = torch.cat([features[m] for m in MODALITIES], dim=-1)  # (B,L,sum of d_m)
        return torch.tanh(self.head(joined))  # (B,L,n_targets)

    def train(self, mode: bool = True) -> RCMA:
        """As in PyTorch, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        for m in ("face", "audio"):
            if self._frozen(m):
                self.backbone[m].eval()
        return self

    def load_backbones(self) -> None:
        """Read the weight files that the settings name, if any.

        Raises:
            InputError: a file cannot be read or does not fit; see :func:`rcma.backbones.load_backbone_weights`.
        """
        for m, chosen in (("face", self.settings.face), ("audio", self.settings.audio)):
            if chosen.weights is not None:
                load_backbone_weights(self.backbone[m], chosen.weights)

    def set_normalisation(self, audio_mean: Tensor, audio_std: Tensor, text_mean: Tensor, text_std: Tensor) -> None:
        """Set what raw log-mel patches and word vectors are standardised with; saved with the weights.

        Args:
            audio_mean, audio_std: (64,), one value for each mel band.
            text_mean, text_std: (text_width,).

        Raises:
            ValueError: a shape is wrong, a value is not finite, or a deviation is not positive.
        """
        given = {"audio_mean": audio_mean, "audio_std": audio_std, "text_mean": text_mean, "text_std": text_std}
        for name, value in given.items():
            buffer = self.get_buffer(name)
            if value.shape != buffer.shape:
                raise ValueError(f"{name}: the shape must be {tuple(buffer.shape)}, given: {tuple(value.shape)}")
            if not torch.isfinite(value).all() or (name.endswith("_std") and not (value > 0).all()):
                raise ValueError(f"{name}: values must be finite" + (" and > 0" if name.endswith("_std") else ""))
        for name, value in given.items():
            self.get_buffer(name).copy_(value)

    def _frozen(self, m: str) -> bool:
        return (self.settings.face if m == "face" else self.settings.audio).frozen

    def _check(self, batch: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
        """The masks (B,L), all True where none is given; raises ValueError for a batch that does not fit."""
        for m in MODALITIES:
            if m not in batch:
                raise ValueError(f"batch: no entry {m!r}; there must be face, audio and text")
        masks: dict[Modality, Tensor] = {}
        for m in MODALITIES:
            x, width = batch[m], self.embedding_widths[m]
            raw = {"face": "(B,L,3,S,S) or ", "audio": "(B,L,96,64) or ", "text": ""}[m]
            is_raw = (m == "face" and x.ndim == 5) or (m == "audio" and x.shape[2:] == (96, 64))
            if not is_raw and (x.ndim != 3 or x.shape[2] != width):
                raise ValueError(f"{m}: the shape must be {raw}(B,L,{width}), given: {tuple(x.shape)}")
            if x.shape[1] != self.settings.length:
                raise ValueError(
                    f"{m}: this model takes windows of {self.settings.length} frames and no other length, "
                    f"given: {x.shape[1]}"
                )
            if len(x) != len(batch["face"]):
                raise ValueError(f"{m}: {len(x)} windows, but face has {len(batch['face'])}")
            mask = batch.get(f"{m}_mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
            if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
                raise ValueError(
                    f"{m}_mask: must be torch.bool {tuple(x.shape[:2])}, given: {mask.dtype} {tuple(mask.shape)}"
                )
            masks[m] = mask
        return masks

    def _embed_face(self, face: Tensor, mask: Tensor) -> Tensor:
        return face if face.ndim == 3 else self._run_backbone("face", face, mask)

    def _embed_audio(self, audio: Tensor, mask: Tensor) -> Tensor:
        if audio.ndim == 3:
            return audio
        return self._run_backbone("audio", _standardise(audio, self.audio_mean, self.audio_std), mask)

    def _run_backbone(self, m: Modality, frames: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (B,L,d) of frames (B,L,...); only those under the mask are computed, the others are zero."""
        present = frames[mask]  # (n,...)
        n = len(present)
        if n < 2:
            # BatchNorm cannot train on fewer than two, and without any the parameters would drop out of the graph.
            present = torch.cat([present, present.new_zeros((2 - n, *frames.shape[2:]))])
        if torch.is_grad_enabled() and not self._frozen(m):
            embedded = self.backbone[m](present)[:n]
        else:
            with torch.no_grad():
                embedded = torch.cat([self.backbone[m](chunk) for chunk in present.split(CHUNK)])[:n]
        return _scatter(embedded, mask)

    def _normalise(self, m: Modality, x: Tensor, valid: Tensor) -> Tensor:
        """BatchNorm of x (B,L,d) over its valid frames; zeros elsewhere."""
        frames = x[valid]  # (n,d)
        norm = cast("nn.BatchNorm1d", self.norm[m])
        if norm.training and len(frames) < 2:
            # One frame has no variance: the running statistics stand in.
            frames = F.batch_norm(frames, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            frames = norm(frames)
        return _scatter(frames, valid)


def _standardise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean) / std


def _scatter(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows (n,d) to where mask (B,L) is True, in order; (B,L,d), zeros elsewhere."""
    return rows.new_zeros((*mask.shape, rows.shape[-1])).index_put((mask,), rows)
