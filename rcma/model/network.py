"""The whole network: backbones, temporal convolutions, fusion, one value per frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from preprocessing.features import PATCH_ROWS
from preprocessing.media import HOP_LENGTH, N_MELS
from rcma.config import MODALITIES, Modality, ModelSettings, OnnxSettings
from rcma.model.backbones import IR50, SmallAudioNet, SmallFaceNet, VGGish
from rcma.model.fusion import Fusion
from rcma.model.hf_encoders import HFEncoder, HFSpeech, HFVision
from rcma.model.onnx_encoder import OnnxVision
from rcma.model.tcn import TemporalConvNet
from rcma.model.weight_files import load_backbone_weights

Backbone = IR50 | VGGish | SmallFaceNet | SmallAudioNet | HFVision | HFSpeech | OnnxVision

BACKBONES: dict[str, dict[str, type[IR50 | VGGish | SmallFaceNet | SmallAudioNet]]] = {
    "face": {"ir50": IR50, "small": SmallFaceNet},
    "audio": {"vggish": VGGish, "small": SmallAudioNet},
}
CHUNK = 128
"""Frames that go through a backbone at once in inference; bounds the memory of long windows."""
SPEECH_CHUNK = 8
"""The same for a speech encoder, whose first layer needs 6 MB for each frame."""


class RCMA(nn.Module):
    """Recursive cross-modal attention over face, audio and text (arXiv 2403.13659), and its relatives.

    Initial weights are random: :meth:`load_backbones` reads pretrained backbones, and
    :func:`rcma.model.checkpoint.load_model` a trained model with its backbones.

    Args:
        settings: sizes and kinds; the widths of words and of imported features must be set where they are used.

    Raises:
        ValueError: a width is not set.
    """

    audio_mean: Tensor
    audio_std: Tensor
    text_mean: Tensor
    text_std: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        # In the order of MODALITIES, as in every concatenation.
        self.modalities = tuple(m for m in MODALITIES if m in settings.modalities)
        self.backbone = nn.ModuleDict()
        self.embedding_widths: dict[Modality, int] = {}
        for m in self.modalities:
            if m == "text" or m in settings.vector_modalities:
                width = settings.width_of_input(m)
                if width is None:
                    key = "text_width" if m == "text" else f"{m}.width"
                    raise ValueError(f"model.{key} is not set; it must be the number of columns of the vectors")
                self.embedding_widths[m] = width
            else:
                network = _new_backbone(m, settings)
                self.backbone[m] = network
                self.embedding_widths[m] = network.width
        self.tcn = nn.ModuleDict(
            {
                m: TemporalConvNet(
                    self.embedding_widths[m],
                    getattr(settings.tcn, m),
                    kernel_size=settings.tcn.kernel_size,
                    dropout=settings.tcn.dropout,
                )
                for m in self.modalities
            }
        )
        widths: dict[str, int] = {m: getattr(settings.tcn, m)[-1] for m in self.modalities}  # d_m
        self.norm = nn.ModuleDict({m: nn.BatchNorm1d(width) for m, width in widths.items()})
        self.fusion = Fusion(widths, length=settings.length, settings=settings.fusion)
        self.head = _new_head(head_kind(settings), sum(widths.values()), len(settings.targets))

        self.register_buffer("audio_mean", torch.zeros(N_MELS))
        self.register_buffer("audio_std", torch.ones(N_MELS))
        self.register_buffer("text_mean", torch.zeros(()))
        self.register_buffer("text_std", torch.ones(()))
        for m in settings.vector_modalities:
            self.register_buffer(f"{m}_vectors_mean", torch.zeros(self.embedding_widths[m]))
            self.register_buffer(f"{m}_vectors_std", torch.ones(self.embedding_widths[m]))
        self._unfrozen: dict[str, list[nn.Module]] = {}
        """Trained layers of gradually unfrozen backbones."""
        for name, backbone in self.backbone.items():
            backbone.requires_grad_(not getattr(settings, name).frozen)
        self.train()  # PyTorch's default, but with frozen backbones in evaluation mode

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Predict the targets of every frame in a batch of windows.

        Args:
            batch: not modified; other keys, and modalities that the model does not use, are ignored. L is
                ``settings.length``; any L with the fusion's ``relative`` time, and without fusion.

                - ``face``: (B,L,3,S,S) RGB crops in [-1,1], S = 40 for IR-50; or embeddings (B,L,d)
                - ``audio``: (B,L,96,64) log-mel patches, or (B,L,96,160) samples in [-1,1] for a speech encoder; or
                  embeddings (B,L,d)
                - ``text``: (B,L,text_width) vector of the word spoken at each frame
                - any of them with kind ``features``: (B,L,width) imported features, as stored
                - ``face_mask``, ``audio_mask``, ``text_mask``: optional, (B,L) bool, True where the modality is
                  present. Elsewhere its content is ignored and the embedding is zero; a word vector is set to zero
                  before it is standardised (published)
                - ``frame_mask``: optional, (B,L) bool, False for padding, which takes part in no statistic and no sum
                  over time. Default: a frame without any modality is padding

        Returns:
            (B,L,n_targets) in [-1,1]; column k is ``settings.targets[k]``.

        Raises:
            ValueError: an entry is missing or has the wrong shape or type.
        """
        masks = self._check(batch)
        valid = batch.get("frame_mask", torch.stack(list(masks.values())).any(dim=0))  # (B,L)
        if valid.dtype != torch.bool or valid.shape != masks[self.modalities[0]].shape:
            raise ValueError(f"frame_mask: must be torch.bool (B,L), given: {valid.dtype} {tuple(valid.shape)}")

        features: dict[str, Tensor] = {}
        for m in self.modalities:
            embedded = self.embed(m, batch[m], masks[m])  # (B,L,512), (B,L,128), (B,L,text_width)
            features[m] = masked_batch_norm(self.norm[m], self.tcn[m](embedded), valid)  # X_m (B,L,d_m)
        features = self.fusion(features, valid)
        joined = torch.cat([features[m] for m in self.modalities], dim=-1)  # (B,L,sum of d_m)
        output = self.head(joined, valid) if isinstance(self.head, RJCMAHead) else self.head(joined)
        return torch.tanh(output)  # (B,L,n_targets)

    def train(self, mode: bool = True) -> RCMA:
        """Like :meth:`torch.nn.Module.train`, but frozen layers of a backbone stay in evaluation mode."""
        super().train(mode)
        for m, backbone in self.backbone.items():
            if getattr(self.settings, m).frozen or m in self._unfrozen:
                backbone.eval()
            for module in self._unfrozen.get(m, []):
                module.train(mode)
        return self

    def _unfreezable(self) -> dict[str, IR50 | VGGish]:
        """Pretrained backbones that are trained."""
        return {
            m: backbone
            for m, backbone in self.backbone.items()
            if isinstance(backbone, IR50 | VGGish)
            and getattr(self.settings, m).pretrained is not None
            and not getattr(self.settings, m).frozen
        }

    @property
    def n_unfreezing_groups(self) -> int:
        """Number of groups of layers for :meth:`unfreeze`; 0 without a pretrained backbone to train."""
        return max((len(backbone.unfreezing_groups()) for backbone in self._unfreezable().values()), default=0)

    def unfreeze(self, n_groups: int) -> None:
        """Train only the top layers of pretrained backbones; frozen backbones and random ones are not affected.

        Args:
            n_groups: number of groups to train, 0 to :attr:`n_unfreezing_groups`; see ``unfreezing_groups`` of the
                backbones.
        """
        for m, backbone in self._unfreezable().items():
            backbone.requires_grad_(False)
            self._unfrozen[m] = [module for group in backbone.unfreezing_groups()[:n_groups] for module in group]
            for module in self._unfrozen[m]:
                module.requires_grad_(True)
        self.train(self.training)

    def load_backbones(self) -> None:
        """Read the pretrained weights that the settings name.

        Raises:
            InputError: they are not available, cannot be read or do not fit.
        """
        for m, backbone in self.backbone.items():
            settings = getattr(self.settings, m)
            if isinstance(backbone, HFEncoder):
                backbone.load_pretrained(settings.hf)
            elif isinstance(backbone, OnnxVision):
                backbone.load_graph(settings.pretrained)
            elif settings.pretrained is not None:
                load_backbone_weights(backbone, settings.pretrained)

    def set_normalisation(
        self,
        audio_mean: Tensor,
        audio_std: Tensor,
        text_mean: Tensor,
        text_std: Tensor,
        vectors: Mapping[Modality, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Set mean and standard deviation of the inputs; they are saved with the weights.

        Args:
            audio_mean, audio_std: (64,), of each mel band.
            text_mean, text_std: (), over all dimensions of word vectors.
            vectors: mean and standard deviation (width,) of each column, for modalities of kind ``features``.

        Raises:
            ValueError: a shape is wrong, a value is not finite, or a standard deviation is not positive.
        """
        given = {"audio_mean": audio_mean, "audio_std": audio_std, "text_mean": text_mean, "text_std": text_std}
        for m, (mean, std) in (vectors or {}).items():
            given |= {f"{m}_vectors_mean": mean, f"{m}_vectors_std": std}
        for name, value in given.items():
            shape = self.get_buffer(name).shape
            if value.shape != shape:
                raise ValueError(f"{name}: the shape must be {tuple(shape)}, given: {tuple(value.shape)}")
            if not torch.isfinite(value).all() or (name.endswith("_std") and not (value > 0).all()):
                raise ValueError(f"{name}: values must be finite" + (" and > 0" if name.endswith("_std") else ""))
        for name, value in given.items():
            self.get_buffer(name).copy_(value)

    def _check(self, batch: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
        """The masks (B,L), all True by default; raises ValueError for a batch that does not fit."""
        first = self.modalities[0]
        patch = (PATCH_ROWS, HOP_LENGTH if self.settings.audio_input == "waveform" else N_MELS)
        raw_shapes = {"face": "(B,L,3,S,S) or ", "audio": f"(B,L,{patch[0]},{patch[1]}) or "}
        masks: dict[Modality, Tensor] = {}
        for m in self.modalities:
            if m not in batch:
                raise ValueError(f"batch: no entry {m!r}; there must be {', '.join(self.modalities)}")
            x, width = batch[m], self.embedding_widths[m]
            is_raw = m in self.backbone and (x.ndim == 5 if m == "face" else x.shape[2:] == patch)
            if not is_raw and (x.ndim != 3 or x.shape[2] != width):
                raw = raw_shapes[m] if m in self.backbone else ""
                raise ValueError(f"{m}: the shape must be {raw}(B,L,{width}), given: {tuple(x.shape)}")
            if self.fusion.is_tied_to_length and x.shape[1] != self.settings.length:
                raise ValueError(
                    f"{m}: this model takes windows of {self.settings.length} frames and no other length, "
                    f"given: {x.shape[1]}"
                )
            if x.shape[:2] != batch[first].shape[:2]:
                given, wanted = (" x ".join(map(str, tensor.shape[:2])) for tensor in (x, batch[first]))
                raise ValueError(f"{m}: {given} windows x frames, but {first} has {wanted}")
            mask = batch.get(f"{m}_mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
            if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
                raise ValueError(
                    f"{m}_mask: must be torch.bool {tuple(x.shape[:2])}, given: {mask.dtype} {tuple(mask.shape)}"
                )
            masks[m] = mask
        return masks

    def embed(
        self, m: Modality, x: Tensor, mask: Tensor, *, backbone: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Standardise one modality, and run its backbone unless ``x`` holds embeddings.

        Args:
            m: the modality.
            x: as in :meth:`forward`.
            mask: (B,L) bool, True where the modality is present.
            backbone: used instead of the model's own, without gradient.

        Returns:
            (B,L,d) float embeddings; where the modality is absent zeros, or standardised zeros for words.
        """
        if x.ndim == 3:
            if m in self.settings.vector_modalities:
                mean, std = self.get_buffer(f"{m}_vectors_mean"), self.get_buffer(f"{m}_vectors_std")
                return ((x - mean) / std).masked_fill(~mask[..., None], 0.0)
            present = x.masked_fill(~mask[..., None], 0.0)
            return (present - self.text_mean) / self.text_std if m == "text" else present
        if m == "audio" and self.settings.audio_input == "log_mel":
            x = (x - self.audio_mean) / self.audio_std
        return self._run_backbone(m, x, mask, backbone)

    def _run_backbone(
        self, m: Modality, frames: Tensor, mask: Tensor, backbone: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Embeddings (B,L,d) of frames (B,L,...); only those under the mask are computed, the others are zero."""
        own = self.backbone[m]
        present = frames[mask]  # (n,...)
        n = len(present)
        if n < 2:
            # BatchNorm cannot train on fewer than two, and without any the parameters would get no gradient.
            present = torch.cat([present, present.new_zeros((2 - n, *frames.shape[2:]))])
        if backbone is None and torch.is_grad_enabled() and any(p.requires_grad for p in own.parameters()):
            embedded = own(present)[:n]
        else:
            run = own if backbone is None else backbone
            chunks = present.split(SPEECH_CHUNK if isinstance(own, HFSpeech) else CHUNK)
            half = getattr(self.settings, m).precision == "bfloat16"
            with torch.no_grad(), torch.autocast(present.device.type, dtype=torch.bfloat16, enabled=half):
                embedded = torch.cat([run(_channels_last(chunk)) for chunk in chunks])[:n]
        return _scatter(embedded.float(), mask)


class RJCMAHead(nn.Module):
    """The published head of RJCMA: a hidden layer of 256 with BatchNorm and LeakyReLU."""

    def __init__(self, width: int, n_targets: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 256)
        self.norm = nn.BatchNorm1d(256)
        self.output = nn.Linear(256, n_targets)

    def forward(self, joined: Tensor, valid: Tensor) -> Tensor:
        """(B,L,d), (B,L) bool -> (B,L,n_targets)."""
        normalised = masked_batch_norm(self.norm, self.hidden(joined), valid)
        return torch.as_tensor(self.output(F.leaky_relu(normalised)))


def head_kind(settings: ModelSettings) -> str:
    """The kind of head: ``linear``, ``rjcma`` or ``jca``; by default the published one of the fusion."""
    published = settings.fusion.kind if settings.fusion.kind in ("rjcma", "jca") else "linear"
    return settings.head or published


def _new_head(kind: str, width: int, n_targets: int) -> nn.Module:
    if kind == "rjcma":
        return RJCMAHead(width, n_targets)
    if kind == "jca":  # as published, except that a tanh follows
        return nn.Sequential(nn.Linear(width, 128), nn.Dropout(0.6), nn.Linear(128, n_targets))
    return nn.Linear(width, n_targets)  # RCMA's


def masked_batch_norm(norm: nn.Module, x: Tensor, valid: Tensor) -> Tensor:
    """BatchNorm1d of x (B,L,d) over its valid frames (B,L); zeros elsewhere."""
    assert isinstance(norm, nn.BatchNorm1d)
    frames = x[valid]  # (n,d)
    if norm.training and dist.is_initialized() and dist.get_world_size() > 1:
        frames = _synchronised_batch_norm(norm, frames)
    elif norm.training and len(frames) < 2:
        # A single frame has no variance: use the running statistics.
        frames = F.batch_norm(frames, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    else:
        frames = norm(frames)
    return _scatter(frames, valid)


def _synchronised_batch_norm(norm: nn.BatchNorm1d, frames: Tensor) -> Tensor:
    """BatchNorm in training of frames (n,d), with mean and variance over all processes.

    PyTorch's SyncBatchNorm works on GPUs only.
    """
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    n = all_reduce(frames.new_tensor(float(len(frames)))).clamp(min=1)
    mean = all_reduce(frames.sum(dim=0)) / n  # (d,)
    variance = all_reduce((frames - mean).square().sum(dim=0)) / n
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * n / (n - 1).clamp(min=1), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
    return (frames - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def _new_backbone(m: Modality, settings: ModelSettings) -> Backbone:
    if m == "face" and settings.face.kind == "onnx":
        return OnnxVision(settings.face.onnx or OnnxSettings())
    backbone = settings.face if m == "face" else settings.audio
    if backbone.kind != "hf":
        return BACKBONES[m][backbone.kind]()
    if backbone.hf_config is None:
        raise ValueError(f"model.{m}.hf_config is not set; see rcma.model.vision_config and speech_config")
    return HFVision(backbone.hf_config) if m == "face" else HFSpeech(backbone.hf_config)


def _channels_last(x: Tensor) -> Tensor:
    """Images in the memory format that makes convolutions fastest in inference."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _scatter(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows (n,d) to where mask (B,L) is True, in order; (B,L,d), zeros elsewhere."""
    return rows.new_zeros((*mask.shape, rows.shape[-1])).index_put((mask,), rows)
