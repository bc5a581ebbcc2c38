"""The settings of a model and of its training; what they mean is said once, here and in configs/rcma.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from preprocessing.config import PreprocessConfig, Settings

Modality = Literal["face", "audio", "text"]
Target = Literal["valence", "arousal"]

MODALITIES: tuple[Modality, ...] = ("face", "audio", "text")
TARGETS: tuple[Target, ...] = ("valence", "arousal")

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class BackboneSettings(Settings):
    """The network that turns one frame of a modality into an embedding."""

    kind: str
    weights: Path | None = None
    """A local weight file of the backbone's authors; None starts from random values."""
    frozen: bool = False
    """Keep the backbone as it is, in evaluation mode, while the rest is trained."""


class FaceBackbone(BackboneSettings):
    """``ir50``: 512 values; ``small``: 64 values, trains from scratch on a CPU."""

    kind: Literal["ir50", "small"] = "ir50"


class AudioBackbone(BackboneSettings):
    """``vggish``: 128 values; ``small``: 64 values, trains from scratch on a CPU."""

    kind: Literal["vggish", "small"] = "vggish"


class TCNSettings(Settings):
    """Temporal convolutional network of each modality (published: four levels with dilations 1, 2, 4, 8)."""

    face: Annotated[tuple[int, ...], Field(min_length=1)] = (512, 512, 512, 512)
    """Channels of each level; the last is the modality's width d_m."""
    audio: Annotated[tuple[int, ...], Field(min_length=1)] = (128, 128, 128, 128)
    text: Annotated[tuple[int, ...], Field(min_length=1)] = (512, 512, 512, 512)
    kernel_size: Annotated[int, Field(ge=2)] = 5
    dropout: Probability = 0.1


class FusionSettings(Settings):
    """Recursive cross-modal attention."""

    kind: Literal["rcma"] = "rcma"
    steps: Annotated[int, Field(ge=1)] = 2
    """Number of refinements (recursion depth)."""
    shared: bool = False
    """True: one set of weights for all steps, a recursion in the strict sense; False: as in the published code."""
    dropout: Probability = 0.6


class ModelSettings(Settings):
    """Layers and sizes of the network; defaults are the published ones."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("valence", "arousal")
    length: Annotated[int, Field(ge=2)] = 300
    """Window length L in video frames; the fusion's time projection is tied to it."""
    text_width: Annotated[int, Field(ge=1)] | None = None
    """Width of a word vector; taken from the features when not given."""
    face: FaceBackbone = FaceBackbone()
    audio: AudioBackbone = AudioBackbone()
    tcn: TCNSettings = TCNSettings()
    fusion: FusionSettings = FusionSettings()

    @model_validator(mode="after")
    def _targets_differ(self) -> ModelSettings:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets are named twice: {', '.join(self.targets)}")
        return self


class DataSettings(Settings):
    """Where features and labels are, and how they are cut."""

    features: Path
    """Folder of feature folders, as rcma-preprocess writes them."""
    annotations: Path
    """ABAW annotation folder: it, or its subfolder VA_Estimation_Challenge, holds Train_Set and Validation_Set."""
    hop: Annotated[int, Field(ge=1)] = 200
    """Distance between the starts of two windows, in video frames."""
    audio_alignment: Literal["start", "centre", "end"] = "start"
    """Which part of the 0.96 s audio patch lies at the frame's time; ``start`` (published) looks 0.96 s ahead."""


class TrainSettings(Settings):
    """The recipe; defaults are the published ones."""

    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 12
    """Windows in a batch."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs over which the rate rises linearly to learning_rate."""
    plateau_patience: Annotated[int, Field(ge=0)] = 5
    """Epochs without a better validation score before the rate is multiplied by plateau_factor."""
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    early_stopping: Annotated[int, Field(ge=1)] = 50
    """Epochs without a better validation score after which training ends."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest norm of the gradient; None does not clip."""
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read windows; 0 reads in the training process."""


class TrainConfig(Settings):
    """Everything that ``rcma-train`` needs; the resolved form lies beside the weights."""

    data: DataSettings
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    preprocessing: PreprocessConfig | None = None
    """Settings the training features were made with; filled in by rcma-train, used on raw videos by rcma-predict."""

    @model_validator(mode="after")
    def _hop_covers(self) -> TrainConfig:
        if self.data.hop > self.model.length:
            raise ValueError(
                f"data.hop ({self.data.hop}) is larger than model.length ({self.model.length}): "
                "frames would be left out"
            )
        return self
