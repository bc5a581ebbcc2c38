"""The settings of a model and of its training; what they mean is said once, here and in configs/rcma.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from preprocessing.config import PreprocessConfig, Settings

Modality = Literal["face", "audio", "text"]
Target = str
"""Name of what is predicted: a lower-case identifier of the user's own, such as ``liking``."""
FusionKind = Literal["rcma", "rjcma", "jca", "cross-attention", "concat"]
HeadKind = Literal["linear", "rjcma"]
AudioInput = Literal["log_mel", "waveform"]
FaceSource = Literal["detected", "provided"]

MODALITIES: tuple[Modality, ...] = ("face", "audio", "text")
TARGETS: tuple[Target, ...] = ("valence", "arousal")
"""The targets of ABAW files, and the default."""
_RESERVED = {*MODALITIES, "mean", "video", "frame", "time_s"}
"""Names that columns of tables and logs have already."""

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


def _check_target(name: str) -> str:
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise ValueError(f"{name!r} is not a name for a target: use a-z, 0-9 and _, starting with a letter")
    if name in _RESERVED or name.endswith("_sd"):
        raise ValueError(f"{name!r} is already the name of another column; give the target another name")
    return name


class BackboneSettings(Settings):
    """The network that turns one frame of a modality into an embedding."""

    kind: str
    weights: Path | None = None
    """A local weight file of the backbone's authors; None starts from random values."""
    frozen: bool = False
    """Keep the backbone as it is, in evaluation mode, while the rest is trained."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone's arithmetic where no gradient is needed: when it is frozen, and in prediction. bfloat16 is
    faster only on hardware that has it; on a CPU without, it is many times slower."""
    hf: str | None = None
    """With kind ``hf``, an encoder of Hugging Face's transformers: a folder, or a name on the hub."""
    hf_config: dict[str, Any] | None = None
    """Its configuration; filled in by rcma-train, so that a run can be used without the encoder's own files."""
    width: Annotated[int, Field(ge=1)] | None = None
    """With kind ``features``, the number of columns; filled in by rcma-train."""

    @model_validator(mode="after")
    def _named(self) -> BackboneSettings:
        if (self.kind == "hf") != (self.hf is not None):
            raise ValueError("kind hf and the name of the encoder, hf, go together")
        if self.hf is not None and self.weights is not None:
            raise ValueError("the weights of an encoder of Hugging Face come with it: leave weights out")
        if self.kind == "features" and self.weights is not None:
            raise ValueError("kind features has no network: leave weights out")
        if self.kind != "features" and self.width is not None:
            raise ValueError(f"width goes with kind features; that of {self.kind} is fixed")
        return self


class OnnxSettings(Settings):
    """What a face encoder that comes as an ONNX graph takes and gives; its file is ``weights``."""

    size: Annotated[int, Field(ge=1)] | None = None
    """Side of its square input, pixels; None: as the graph says."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from the channels in [0,1], in the graph's order; default: ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """What the differences are divided by."""
    channels: Literal["rgb", "bgr"] = "rgb"
    output: str | int = 0
    """Name, or place, of the output that is the embedding: one vector a picture."""
    width: int | None = None
    """Length of that vector; this and what follows is filled in by rcma-train."""
    n_bytes: int | None = None
    sha256: str | None = None
    """Of the file."""


class FaceBackbone(BackboneSettings):
    """``ir50``: 512 values; ``small``: 64, trains from scratch on a CPU; ``hf``: a vision encoder, such as DINOv2;
    ``onnx``: any network of crops to vectors, frozen, whose graph the checkpoint holds; ``features``: no network, the
    rows of ``face_vectors.npy`` are the embeddings.
    """

    kind: Literal["ir50", "small", "hf", "onnx", "features"] = "ir50"
    onnx: OnnxSettings | None = None
    """With kind ``onnx``; None: all its defaults."""

    @model_validator(mode="after")
    def _onnx_is_frozen(self) -> FaceBackbone:
        if self.kind != "onnx":
            if self.onnx is not None:
                raise ValueError(f"onnx goes with kind onnx, not {self.kind}")
            return self
        if self.weights is None:
            raise ValueError("kind onnx needs model.face.weights, the .onnx file")
        if not self.frozen:
            raise ValueError("an ONNX graph cannot be trained: set model.face.frozen=true")
        if self.precision != "float32":
            raise ValueError("an ONNX graph runs in its own precision: leave model.face.precision at float32")
        return self


class AudioBackbone(BackboneSettings):
    """``vggish``: 128 values; ``small``: 64, trains from scratch on a CPU; ``hf``: a speech encoder, such as wav2vec2,
    HuBERT or WavLM, for which the features must hold the waveform (``audio.waveform`` of preprocessing);
    ``features``: no network, the rows of ``audio_vectors.npy`` are the embeddings.
    """

    kind: Literal["vggish", "small", "hf", "features"] = "vggish"


class TextInput(Settings):
    """``words``: the vector of the word spoken at each frame; ``features``: the rows of ``text_vectors.npy``."""

    kind: Literal["words", "features"] = "words"


class TCNSettings(Settings):
    """Temporal convolutional network of each modality (published: four levels with dilations 1, 2, 4, 8)."""

    face: Annotated[tuple[int, ...], Field(min_length=1)] = (512, 512, 512, 512)
    """Channels of each level; the last is the modality's width d_m."""
    audio: Annotated[tuple[int, ...], Field(min_length=1)] = (128, 128, 128, 128)
    text: Annotated[tuple[int, ...], Field(min_length=1)] = (512, 512, 512, 512)
    kernel_size: Annotated[int, Field(ge=2)] = 5
    dropout: Probability = 0.1


class FusionSettings(Settings):
    """How modalities are refined against each other; see :mod:`rcma.model.fusion` for the equations."""

    kind: FusionKind = "rcma"
    """``rcma``: each against the joint of the other two; ``rjcma``: against the joint of all; ``jca``: likewise, with
    the equations of that paper; ``cross-attention``: against each of the others by itself; ``concat``: not at all."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of refinements (recursion depth), each with weights of its own; None: as published for the kind."""
    dropout: Probability = 0.6
    joint_layer: bool = True
    """rjcma: the linear layer on the joint representation; the published code computes it and does not use it."""
    time: Literal["absolute", "any-length"] = "absolute"
    """Time projection: ``absolute`` (published) is tied to one window length; ``any-length`` knows distances alone."""


class ModelSettings(Settings):
    """Layers and sizes of the network; defaults are the published ones, except that both targets are predicted."""

    targets: Annotated[tuple[Annotated[Target, AfterValidator(_check_target)], ...], Field(min_length=1)] = TARGETS
    """Names of the columns that are predicted. An ABAW annotation holds valence and arousal only."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = MODALITIES
    """Which of face, audio and text are used."""
    length: Annotated[int, Field(ge=2)] = 300
    """Window length L in video frames; the fusion's time projection is tied to it."""
    text_width: Annotated[int, Field(ge=1)] | None = None
    """Width of a word vector, or of a row of ``text_vectors.npy``; taken from the features when not given."""
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
        """Modalities in use whose embeddings are features made elsewhere, in the order of :data:`MODALITIES`."""
        return tuple(m for m in MODALITIES if self.uses(m, kind="features"))

    def width_of_input(self, modality: Modality) -> int | None:
        """Columns of a word vector or of features made elsewhere; None when not known yet, or there is a backbone."""
        return self.text_width if modality == "text" else getattr(self, modality).width

    def with_widths(self, widths: Mapping[Modality, int]) -> ModelSettings:
        """A copy that takes words, or features made elsewhere, of these widths."""
        changes: dict[str, Any] = {}
        for m, width in widths.items():
            if m == "text":
                changes["text_width"] = width
            else:
                changes[m] = getattr(self, m).model_copy(update={"width": width})
        return self.model_copy(update=changes)

    @property
    def audio_input(self) -> AudioInput:
        """What the audio backbone takes."""
        return "waveform" if self.uses("audio", kind="hf") else "log_mel"

    @property
    def standardises_log_mel(self) -> bool:
        """Whether training fits mean and deviation of each mel band; VGGish's own weights were trained on log-mel as it
        is (published), while a network that starts from random values learns better from standardised input.
        """
        is_pretrained = self.audio.kind == "vggish" and self.audio.weights is not None
        return self.uses("audio") and self.audio.kind in ("vggish", "small") and not is_pretrained

    @model_validator(mode="after")
    def _named_once(self) -> ModelSettings:
        for what in ("targets", "modalities"):
            names = getattr(self, what)
            if len(set(names)) != len(names):
                raise ValueError(f"{what} are named twice: {', '.join(names)}")
        return self


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    if not -math.inf < scale[0] < scale[1] < math.inf:
        raise ValueError(f"{scale[0]:g} {scale[1]:g} is no scale: give its lowest and its highest label")
    return scale


class LabelSettings(Settings):
    """How tables of labels are read; ABAW files need none of this. See docs/own-labels.md."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Columns by what they hold: ``time``, ``start``, ``end``, ``video``, ``rater`` or a target. ``*`` in a target's
    name stands for any text: one column for each rater. What is not here is found by its usual names."""
    scale: Annotated[tuple[float, float], AfterValidator(_check_scale)] = (-1.0, 1.0)
    """Lowest and highest label that raters could give; mapped to -1 and 1."""
    unit: Literal["auto", "s", "ms"] = "auto"
    """Of times. ``auto``: what the column's name says (``time_ms``); else ms if all times are whole and the usual
    step is 10 or more."""
    raters: Literal["mean", "ewe"] = "mean"
    """How raters are combined: their mean, or the evaluator-weighted estimator; see :mod:`rcma.data.labels`."""


class DataSettings(Settings):
    """Where features and labels are, and how they are cut."""

    features: Path
    """Folder of feature folders, as rcma-preprocess writes them."""
    annotations: Path
    """ABAW annotation folder: it, or its subfolder VA_Estimation_Challenge, holds Train_Set and Validation_Set. Or
    tables of labels with times of their own, see :mod:`rcma.data.labels`."""
    labels: LabelSettings = LabelSettings()
    embeddings: Path | None = None
    """Folder for the outputs of frozen backbones, computed once; runs may share it, see :mod:`rcma.data`. None:
    they are computed in every step."""
    views: Annotated[int, Field(ge=1)] = 4
    """Random crops and flips of each video for which they are computed; the first is the plain centre."""
    hop: Annotated[int, Field(ge=1)] = 200
    """Distance between the starts of two windows, in video frames."""
    audio_alignment: Literal["start", "centre", "end"] = "start"
    """Which part of the 0.96 s audio patch lies at the frame's time; ``start`` (published) looks 0.96 s ahead."""
    label_delay_s: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """How long after what they see raters move their hand: labels are taken from that much later, and predictions are
    given that much later."""
    folds: Literal["published", "subject-disjoint"] = "published"
    """How ``fold`` divides the annotated videos: five blocks of the sorted training videos, as in the authors' code, or
    five parts of all videos; see :func:`rcma.data.splits.divide`."""
    fold: Annotated[int, Field(ge=0, le=5)] = 0
    """0: the official split, or that of ``split``."""
    split: Path | None = None
    """CSV file with columns ``video`` and ``split`` (train or validation); None: the folders Train_Set and
    Validation_Set."""
    subjects: Path | None = None
    """CSV file with columns ``video`` and ``subject`` for subject-disjoint folds; None: each raw video is a subject."""


class TrainSettings(Settings):
    """The recipe; defaults are the published ones."""

    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 12
    """Windows in a batch."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 1e-8
    """plateau: when the rate falls below, the next group of backbone layers is released, and training ends after the
    last; cosine: the rate at the end. See :mod:`rcma.training.schedule`."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """After the warm-up: lower the rate when validation does not improve, or along half a cosine to the last epoch."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs over which the rate rises linearly to learning_rate, at the start and after each release."""
    plateau_patience: Annotated[int, Field(ge=0)] = 5
    """More than this many epochs without a better validation score multiply the rate by plateau_factor."""
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    release: bool = True
    """Backbones that start from weights are trained from the top down, in three groups: the first from the first epoch,
    each other one when the rate is spent (published); the rest stays frozen. False: all of them from the first epoch.
    """
    early_stopping: Annotated[int, Field(ge=1)] = 50
    """Epochs without a better validation score after which training ends; those of a warm-up do not count."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest norm of the gradient; None does not clip."""
    loss: Literal["window", "batch"] = "window"
    """1 - CCC over each window (published), or over all frames of the batch."""
    mse_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the mean squared error in the loss."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of what is trained: ``bfloat16`` is PyTorch's automatic mixed precision, faster only on hardware that has it.
    Weights, loss and validation stay in float32, and frozen backbones follow their own ``precision``."""
    modality_dropout: Probability = 0.0
    """Probability that a modality is taken away from a window, never all of them: what is missing then costs less."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay, per step, of a moving average of the weights, which is what is validated and saved; None: none."""
    save_every: Annotated[int, Field(ge=1)] = 500
    """Batches between two saves of the state inside an epoch; it is saved at the end of each epoch as well."""
    seed: Annotated[int, Field(ge=0)] = 3407
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read windows; 0 reads in the training process."""


class TrainConfig(Settings):
    """Everything that ``rcma-train`` needs; the resolved form lies beside the weights."""

    data: DataSettings
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    preprocessing: PreprocessConfig | None = None
    """Settings the training features were made with; filled in by rcma-train, used on raw videos by rcma-predict."""
    face_source: FaceSource | None = None
    """Whether the faces of the training features were detected, or provided (--cropped-aligned); filled in by
    rcma-train. None: not recorded."""

    @model_validator(mode="after")
    def _embeddings_stay(self) -> TrainConfig:
        if self.data.embeddings is None:
            return self
        given = {"text", *self.model.vector_modalities}
        frozen = {m: getattr(self.model, m).frozen for m in self.model.modalities if m not in given}
        if not frozen:
            raise ValueError("data.embeddings keeps outputs of backbones, but this model has none: leave it out")
        for m, is_frozen in frozen.items():
            if not is_frozen:
                raise ValueError(f"data.embeddings needs frozen backbones: set model.{m}.frozen=true")
        return self

    @model_validator(mode="after")
    def _hop_covers(self) -> TrainConfig:
        if self.data.hop > self.model.length:
            raise ValueError(
                f"data.hop ({self.data.hop}) is larger than model.length ({self.model.length}): "
                "frames would be left out"
            )
        return self
