"""Settings of models and training.

configs/rcma.yaml lists every setting with a comment; the docstrings here add what a comment has no room for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from preprocessing.config import PreprocessConfig, Settings

Modality = Literal["face", "audio", "text"]
Target = str
"""Name of a predicted value: a lower-case identifier, such as ``liking``."""
FusionKind = Literal["rcma", "rjcma", "jca", "cross-attention", "concat"]
HeadKind = Literal["linear", "rjcma"]
AudioInput = Literal["log_mel", "waveform"]
FaceSource = Literal["detected", "provided"]
Precision = Literal["float32", "bfloat16"]

MODALITIES: tuple[Modality, ...] = ("face", "audio", "text")
TARGETS: tuple[Target, ...] = ("valence", "arousal")
"""The targets of ABAW files, and the default."""
_RESERVED = {*MODALITIES, "mean", "video", "frame", "time_s"}
"""Names of other columns in tables and logs."""
_FORMER_NAMES = {"weights": "pretrained", "views": "augmentations", "release": "gradual_unfreezing"}

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Channels = Annotated[tuple[int, ...], Field(min_length=1)]


def _check_target(name: str) -> str:
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise ValueError(f"{name!r} is not a name for a target: use a-z, 0-9 and _, starting with a letter")
    if name in _RESERVED or name.endswith("_sd"):
        raise ValueError(f"{name!r} is already the name of another column; give the target another name")
    return name


class SettingsWithFormerNames(Settings):
    """Settings that answer a key of an earlier version with its present name."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_former_names(cls, tree: Any) -> Any:
        for old, new in _FORMER_NAMES.items():
            if new in cls.model_fields and isinstance(tree, dict) and old in tree:
                raise ValueError(f"unknown key {old!r}; its present name is {new!r}")
        return tree


class BackboneSettings(SettingsWithFormerNames):
    """The network that turns one frame of a modality into an embedding."""

    kind: str
    pretrained: Path | None = None
    """Weight file of the backbone's authors, or the ONNX graph; None: random initial weights."""
    frozen: bool = False
    precision: Precision = "float32"
    """Precision of inference: of a frozen backbone, and in prediction. bfloat16 is many times slower on a CPU without
    hardware support."""
    hf: str | None = None
    hf_config: dict[str, Any] | None = None
    """The encoder's configuration; filled in by rcma-train, so that a run can be loaded without the encoder's files."""
    width: PositiveInt | None = None
    """Kind ``features``: the number of columns; filled in by rcma-train."""

    @model_validator(mode="after")
    def _check_kind(self) -> BackboneSettings:
        if (self.kind == "hf") != (self.hf is not None):
            raise ValueError("kind hf and the name of the encoder, hf, go together")
        if self.kind in ("hf", "features") and self.pretrained is not None:
            raise ValueError(f"kind {self.kind} takes no weight file: leave pretrained out")
        if self.kind != "features" and self.width is not None:
            raise ValueError(f"width needs kind features; kind {self.kind} has a fixed width")
        return self


class OnnxSettings(Settings):
    """Input and output of a face encoder in ONNX format; ``pretrained`` names its file."""

    size: PositiveInt | None = None
    """Side of the square input, pixels; None: read from the graph."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from the channels in [0,1], in the graph's channel order; default: ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Divides the differences."""
    channels: Literal["rgb", "bgr"] = "rgb"
    output: str | int = 0
    """Name or index of the output that is the embedding: one vector for each image."""
    width: int | None = None
    """Length of that vector. This and the following settings are filled in by rcma-train."""
    n_bytes: int | None = None
    sha256: str | None = None


class FaceBackbone(BackboneSettings):
    """``ir50``: 512 values; ``small``: 64, trains from random weights on a CPU; ``hf``: a vision encoder, such as
    DINOv2; ``onnx``: any frozen network from crops to vectors, stored in the checkpoint; ``features``: no network, the
    embeddings are the rows of ``face_vectors.npy``.
    """

    kind: Literal["ir50", "small", "hf", "onnx", "features"] = "ir50"
    onnx: OnnxSettings | None = None

    @model_validator(mode="after")
    def _check_onnx(self) -> FaceBackbone:
        if self.kind != "onnx":
            if self.onnx is not None:
                raise ValueError(f"onnx needs kind onnx, not {self.kind}")
            return self
        if self.pretrained is None:
            raise ValueError("kind onnx needs model.face.pretrained, the .onnx file")
        if not self.frozen:
            raise ValueError("an ONNX graph cannot be trained: set model.face.frozen=true")
        if self.precision != "float32":
            raise ValueError("an ONNX graph runs in its own precision: leave model.face.precision at float32")
        return self


class AudioBackbone(BackboneSettings):
    """``vggish``: 128 values; ``small``: 64, trains from random weights on a CPU; ``hf``: a speech encoder, such as
    wav2vec2, HuBERT or WavLM, for features with a waveform (``audio.waveform`` of preprocessing); ``features``: no
    network, the embeddings are the rows of ``audio_vectors.npy``.
    """

    kind: Literal["vggish", "small", "hf", "features"] = "vggish"


class TextInput(Settings):
    """``words``: the vector of the word spoken at each frame; ``features``: the rows of ``text_vectors.npy``."""

    kind: Literal["words", "features"] = "words"


class TCNSettings(Settings):
    """Temporal convolutional network of each modality (published: four levels with dilations 1, 2, 4, 8)."""

    face: Channels = (512, 512, 512, 512)
    """Channels of each level; the last is the modality's width d_m."""
    audio: Channels = (128, 128, 128, 128)
    text: Channels = (512, 512, 512, 512)
    kernel_size: Annotated[int, Field(ge=2)] = 5
    dropout: Probability = 0.1


class FusionSettings(Settings):
    """How modalities are refined against each other; see :mod:`rcma.model.fusion` for the equations."""

    kind: FusionKind = "rcma"
    """``rcma``: each against the joint representation of the other two; ``rjcma``: of all three; ``jca``: of all, with
    that paper's equations; ``cross-attention``: against each of the others separately; ``concat``: no refinement."""
    steps: PositiveInt | None = None
    """Number of refinements (recursion depth), each with its own weights; None: as published for the kind."""
    dropout: Probability = 0.6
    joint_layer: bool = True
    time: Literal["absolute", "relative"] = "absolute"
    """Time projection: ``absolute`` (published) fixes the window length; ``relative`` depends on distances only."""


class ModelSettings(Settings):
    """Layers and sizes of the network; defaults are the published ones, except that both targets are predicted."""

    targets: Annotated[tuple[Annotated[Target, AfterValidator(_check_target)], ...], Field(min_length=1)] = TARGETS
    """Names of the predicted columns. ABAW annotations have valence and arousal only."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = MODALITIES
    length: Annotated[int, Field(ge=2)] = 300
    text_width: PositiveInt | None = None
    """Width of a word vector, or of a row of ``text_vectors.npy``; None: read from the features."""
    face: FaceBackbone = FaceBackbone()
    audio: AudioBackbone = AudioBackbone()
    text: TextInput = TextInput()
    tcn: TCNSettings = TCNSettings()
    fusion: FusionSettings = FusionSettings()
    head: HeadKind | None = None
    """From fused features to targets; None: as published for the kind of fusion (``linear`` for rcma)."""

    def uses(self, modality: Modality, *, kind: str | None = None) -> bool:
        """Whether the model has this modality (of this kind)."""
        return modality in self.modalities and kind in (None, getattr(self, modality).kind)

    @property
    def vector_modalities(self) -> tuple[Modality, ...]:
        """Modalities of kind ``features``, in the order of :data:`MODALITIES`."""
        return tuple(m for m in MODALITIES if self.uses(m, kind="features"))

    def width_of_input(self, modality: Modality) -> int | None:
        """Columns of word vectors or imported features; None if unknown, or if the modality has a backbone."""
        return self.text_width if modality == "text" else getattr(self, modality).width

    def with_backbone(self, modality: Modality, **changes: Any) -> ModelSettings:
        """A copy with other settings of a backbone."""
        return self.model_copy(update={modality: getattr(self, modality).model_copy(update=changes)})

    def with_widths(self, widths: Mapping[Modality, int]) -> ModelSettings:
        """A copy for word vectors or imported features of these widths."""
        model = self
        for m, width in widths.items():
            is_text = m == "text"
            model = model.model_copy(update={"text_width": width}) if is_text else model.with_backbone(m, width=width)
        return model

    @property
    def audio_input(self) -> AudioInput:
        """The signal that the audio backbone takes."""
        return "waveform" if self.uses("audio", kind="hf") else "log_mel"

    @property
    def standardises_log_mel(self) -> bool:
        """Whether each mel band is standardised. Pretrained VGGish takes raw log-mel (published); a network with random
        initial weights learns better from standardised input.
        """
        is_pretrained = self.audio.kind == "vggish" and self.audio.pretrained is not None
        return self.uses("audio") and self.audio.kind in ("vggish", "small") and not is_pretrained

    @model_validator(mode="after")
    def _refuse_duplicates(self) -> ModelSettings:
        for field in ("targets", "modalities"):
            names = getattr(self, field)
            if len(set(names)) != len(names):
                raise ValueError(f"{field}: a name is given twice: {', '.join(names)}")
        return self


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    if not -math.inf < scale[0] < scale[1] < math.inf:
        raise ValueError(f"{scale[0]:g} {scale[1]:g} is not a scale: give its lowest and its highest label")
    return scale


class LabelSettings(Settings):
    """How tables of labels are read; ABAW files need none of this. See docs/own-labels.md."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Columns of ``time``, ``start``, ``end``, ``video``, ``rater`` or a target, if they have unusual names. ``*`` in a
    target's column matches any text: one column for each rater."""
    scale: Annotated[tuple[float, float], AfterValidator(_check_scale)] = (-1.0, 1.0)
    unit: Literal["auto", "s", "ms"] = "auto"
    """Unit of times. ``auto``: from the column's name (``time_ms``); else ms if all times are whole numbers and the
    usual step is 10 or more."""
    raters: Literal["mean", "ewe"] = "mean"


class DataSettings(SettingsWithFormerNames):
    """Features, labels, and how they are divided into windows and splits."""

    features: Path
    annotations: Path
    """ABAW annotation folder: it, or its subfolder VA_Estimation_Challenge, holds Train_Set and Validation_Set. Or
    tables of labels with their own times, see :mod:`rcma.data.labels`."""
    labels: LabelSettings = LabelSettings()
    embeddings: Path | None = None
    """Folder in which outputs of frozen backbones are stored; runs may share it, see :mod:`rcma.data`. None: backbones
    run in every step."""
    augmentations: PositiveInt = 4
    """Versions of each video in ``embeddings``, with different crops and flips; the first is the centre crop."""
    hop: PositiveInt = 200
    audio_alignment: Literal["start", "centre", "end"] = "start"
    """The part of the 0.96 s audio patch that lies at the frame's time; ``start`` (published) looks 0.96 s ahead."""
    label_delay_s: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Reaction time of raters: labels are read, and predictions given, that much later."""
    folds: Literal["published", "subject-disjoint"] = "published"
    """``published``: five blocks of the sorted training videos; ``subject-disjoint``: five parts of all videos; see
    :func:`rcma.data.splits.divide`."""
    fold: Annotated[int, Field(ge=0, le=5)] = 0
    split: Path | None = None
    subjects: Path | None = None
    """CSV file with columns ``video`` and ``subject`` for subject-disjoint folds; None: each raw video is a subject."""


class TrainSettings(SettingsWithFormerNames):
    """The recipe; defaults are the published ones. See :mod:`rcma.training.schedule` for the learning rate."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 12
    learning_rate: PositiveFloat = 1e-5
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 1e-8
    schedule: Literal["plateau", "cosine"] = "plateau"
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    warmup_epochs: NonNegativeInt = 5
    plateau_patience: NonNegativeInt = 5
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    gradual_unfreezing: bool = True
    """Train pretrained backbones from the top down, in three groups of layers: the first from the first epoch, each
    other one when the rate is spent (published). False: train all layers from the first epoch."""
    early_stopping: PositiveInt = 50
    clip_norm: PositiveFloat | None = None
    loss: Literal["window", "batch"] = "window"
    """1 - CCC over each window (published), or over all frames of the batch."""
    mse_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    precision: Precision = "float32"
    """Frozen backbones have their own ``precision``."""
    modality_dropout: Probability = 0.0
    """Never hides all modalities of a window."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay per step of a moving average of the weights; the average is validated and saved."""
    save_every: PositiveInt = 500
    """The state is also saved after each epoch."""
    seed: NonNegativeInt = 3407
    workers: NonNegativeInt = 0


class TrainConfig(Settings):
    """All settings of ``rcma-train``; stored beside the weights."""

    data: DataSettings
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    preprocessing: PreprocessConfig | None = None
    """How the training features were made; filled in by rcma-train, and used by rcma-predict for raw videos."""
    face_source: FaceSource | None = None
    """Whether the training faces were detected or provided (--cropped-aligned); filled in by rcma-train."""

    @model_validator(mode="after")
    def _check_embeddings(self) -> TrainConfig:
        if self.data.embeddings is None:
            return self
        backbones = [m for m in self.model.modalities if m != "text" and m not in self.model.vector_modalities]
        if not backbones:
            raise ValueError("data.embeddings stores outputs of backbones, but this model has none: leave it out")
        for m in backbones:
            if not getattr(self.model, m).frozen:
                raise ValueError(f"data.embeddings needs frozen backbones: set model.{m}.frozen=true")
        return self

    @model_validator(mode="after")
    def _check_hop(self) -> TrainConfig:
        if self.data.hop > self.model.length:
            raise ValueError(
                f"data.hop ({self.data.hop}) is larger than model.length ({self.model.length}): "
                "frames would be left out"
            )
        return self
