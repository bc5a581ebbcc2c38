"""Networks that turn one frame of a modality into an embedding: one face crop, or one log-mel patch.

``IR50`` and ``VGGish`` have the layers and the parameter names of the published networks, so that their authors'
weights load; ``SmallFaceNet`` and ``SmallAudioNet`` are made to be trained from random values on a CPU.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from preprocessing.errors import InputError
from preprocessing.features import PATCH_ROWS
from preprocessing.media import HOP_LENGTH, SAMPLE_RATE

_USUAL_IMAGE_SIZE = 224
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of encoders that do not say what their pictures should be like."""
_LEAST_VARIANCE = 1e-7
"""Added to the variance of a stretch of sound, as in transformers' feature extractor: silence stays zero."""
_NOTHING_LEFT_OUT = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
"""Speech encoders hide parts of the sound and skip layers in training, drawn from random numbers that no seed here
reaches; what is hidden here is a matter of masks."""


class IRUnit(nn.Module):
    """Residual unit of ArcFace's networks (arXiv 1801.07698); only the second convolution and the shortcut stride."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut_layer: nn.Module = nn.MaxPool2d(kernel_size=1, stride=stride)
        if in_channels != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,S,S) -> (N,channels,S/stride,S/stride)."""
        return torch.as_tensor(self.res_layer(x) + self.shortcut_layer(x))


class IR50(nn.Module):
    """ArcFace's ResNet-50 for 40x40 crops, as used by sucv/ABAW3 and praveena2j/RJCMA (res50_ir_0.887.pth)."""

    width = 512
    """Length of the embedding."""
    side = 40
    """Side of the crop in pixels."""

    STAGES = ((64, 3, 1), (128, 4, 2), (256, 14, 2), (512, 3, 2))
    """Channels, units, and stride of the first unit of each stage: 40 -> 40 -> 20 -> 10 -> 5."""

    def __init__(self) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        units: list[nn.Module] = []
        in_channels = 64
        for channels, n_units, stride in self.STAGES:
            for unit in range(n_units):
                units.append(IRUnit(in_channels, channels, stride=stride if unit == 0 else 1))
                in_channels = channels
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 5 * 5, self.width), nn.BatchNorm1d(512)
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Crops (N,3,40,40) RGB in [-1,1] -> embeddings (N,512) of length 1.

        Raises:
            ValueError: the crops have another shape.
        """
        _check_shape(faces, "face crops", (3, self.side, self.side))
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)

    def release_groups(self) -> list[list[nn.Module]]:
        """What training releases one after the other (published): the output layer, the last stage of the body, and the
        last three units of the third stage, 3.54 million parameters.
        """
        units, n_last = list(self.body), self.STAGES[3][1]
        return [[self.output_layer], units[-n_last:], units[-n_last - 3 : -n_last]]


class VGGish(nn.Module):
    """VGGish (AudioSet; Hershey et al., arXiv 1609.09430) without PCA or quantisation; vggish-10086976.pth loads."""

    width = 128
    """Length of the embedding."""

    def __init__(self) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 1
        for stage in ((64,), (128,), (256, 256), (512, 512)):
            for channels in stage:
                layers += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(kernel_size=2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, self.width)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N,96,64) -> embeddings (N,128).

        Raises:
            ValueError: the patches have another shape.
        """
        _check_shape(patches, "log-mel patches", (96, 64))
        maps = self.features(patches[:, None])  # (N,512,6,4)
        flat = maps.permute(0, 2, 3, 1).flatten(start_dim=1)  # (N,6*4*512), channels last as in TensorFlow
        return torch.as_tensor(self.embeddings(flat))

    def release_groups(self) -> list[list[nn.Module]]:
        """What training releases one after the other (published): the third fully connected layer, the second, the
        first.
        """
        return [[self.embeddings[4]], [self.embeddings[2]], [self.embeddings[0]]]


class SmallFaceNet(nn.Module):
    """About 3 million multiplications a face; no global pooling, so that mouth corners and eyes keep their places."""

    width = 64
    """Length of the embedding."""

    def __init__(self) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, channels, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
            layers += [
                nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False),
                # Over each face alone: the faces of a window are too alike for BatchNorm's statistics to last.
                nn.GroupNorm(num_groups=8, num_channels=channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(5)  # changes nothing for a side of 40
        self.embedding = nn.Linear(64 * 5 * 5, self.width)

    def forward(self, faces: Tensor) -> Tensor:
        """Square crops (N,3,S,S) RGB in [-1,1], S divisible by 8 -> embeddings (N,64).

        Raises:
            ValueError: the crops have another shape.
        """
        side = faces.shape[-1]
        _check_shape(faces, "face crops", (3, side, side))
        if side == 0 or side % 8:
            raise ValueError(f"face crops: the side must be divisible by 8, given: {side}")
        maps = self.pool(self.features(faces))  # (N,64,5,5)
        return torch.as_tensor(self.embedding(maps.flatten(start_dim=1)))


class HFVision(nn.Module):
    """A vision encoder of Hugging Face's transformers; weights are random until :meth:`load_pretrained`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Build the network of a configuration, see :func:`vision_config`."""
        from transformers import AutoConfig, AutoModel

        super().__init__()
        settings = AutoConfig.for_model(**_without_code(config))
        self.model = AutoModel.from_config(settings, trust_remote_code=False)
        self.width = int(getattr(settings, "hidden_size", None) or settings.hidden_sizes[-1])
        size = getattr(settings, "image_size", None) or _USUAL_IMAGE_SIZE
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        for name, usual in (("image_mean", _IMAGENET_MEAN), ("image_std", _IMAGENET_STD)):
            values = torch.tensor(config.get(name) or usual).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    image_mean: Tensor
    image_std: Tensor

    def load_pretrained(self, name: str) -> None:
        """Read the encoder's weights.

        Raises:
            InputError: (naming ``model.face.hf``) they are not available.
        """
        _load_pretrained(self.model, name, key="model.face.hf")

    def forward(self, faces: Tensor) -> Tensor:
        """Square crops (N,3,S,S) RGB in [-1,1] -> embeddings (N,width): the pooled output, or the mean over places."""
        side = faces.shape[-1]
        _check_shape(faces, "face crops", (3, side, side))
        enlarged = F.interpolate((faces + 1) / 2, self._size, mode="bilinear", antialias=True)
        output = self.model(pixel_values=(enlarged - self.image_mean) / self.image_std)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state
            pooled = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return torch.as_tensor(pooled.flatten(start_dim=1))


def vision_config(name: str) -> dict[str, Any]:
    """Configuration of a vision encoder, with the mean and deviation of its pictures.

    Args:
        name: a folder, or a name on the Hugging Face hub.

    Raises:
        InputError: (naming ``model.face.hf``) there is none, or it is no vision encoder.
    """
    from transformers import AutoConfig, AutoImageProcessor

    with _hub_errors("model.face.hf", name):
        config: dict[str, Any] = AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
        if not any(key in config for key in ("image_size", "num_channels", "hidden_sizes")):
            raise ValueError("it is no vision encoder")
        with suppress(OSError):  # an encoder without a description of its pictures gets the usual ones
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            config |= {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    return _writable(config)


class HFSpeech(nn.Module):
    """A speech encoder of Hugging Face's transformers that takes samples: wav2vec2, HuBERT, WavLM and their relatives.

    Weights are random until :meth:`load_pretrained`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Build the network of a configuration, see :func:`speech_config`."""
        from transformers import AutoConfig, AutoModel

        super().__init__()
        settings = AutoConfig.for_model(**{**_without_code(config), **_NOTHING_LEFT_OUT})
        self.model = AutoModel.from_config(settings, trust_remote_code=False)
        has_adapter = getattr(settings, "add_adapter", False)
        self.width = int(settings.output_hidden_size if has_adapter else settings.hidden_size)
        self._normalises = bool(config.get("do_normalize", True))

    def load_pretrained(self, name: str) -> None:
        """Read the encoder's weights.

        Raises:
            InputError: (naming ``model.audio.hf``) they are not available.
        """
        _load_pretrained(self.model, name, key="model.audio.hf")

    def forward(self, stretches: Tensor) -> Tensor:
        """Sound of 0.96 s in [-1,1] at 16 kHz, (N,96,160) -> embeddings (N,width): the mean of the last hidden states.

        Each stretch is encoded separately, standardised if the encoder's feature extractor does so (``do_normalize``).

        Raises:
            ValueError: the sound has another shape.
        """
        _check_shape(stretches, "sound", (PATCH_ROWS, HOP_LENGTH))
        samples = stretches.flatten(start_dim=1)  # (N,15360)
        if self._normalises:
            variance, mean = torch.var_mean(samples, dim=1, correction=0, keepdim=True)
            samples = (samples - mean) / (variance + _LEAST_VARIANCE).sqrt()
        return torch.as_tensor(self.model(input_values=samples).last_hidden_state.mean(dim=1))  # of (N,47,width)


def speech_config(name: str) -> dict[str, Any]:
    """Configuration of a speech encoder, with whether its feature extractor standardises what is heard.

    Args:
        name: a folder, or a name on the Hugging Face hub.

    Raises:
        InputError: (naming ``model.audio.hf``) there is none, or it is no encoder of 16 kHz samples.
    """
    from transformers import AutoConfig, AutoFeatureExtractor

    with _hub_errors("model.audio.hf", name):
        config: dict[str, Any] = AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
        if not config.get("conv_stride") or config.get("is_encoder_decoder"):
            raise ValueError("it is no encoder of sound samples such as wav2vec2, HuBERT or WavLM")
        with suppress(OSError):  # an encoder without a description of its sound gets the usual one
            extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
            if extractor.sampling_rate != SAMPLE_RATE:
                raise ValueError(f"it takes {extractor.sampling_rate} Hz, not {SAMPLE_RATE} Hz")
            config["do_normalize"] = bool(extractor.do_normalize)
    return _writable(config)


def _without_code(config: dict[str, Any]) -> dict[str, Any]:
    """An encoder's configuration without the keys that name code on a hub; it may come with somebody else's model."""
    return {key: value for key, value in config.items() if key not in ("auto_map", "attn_implementation")}


def _writable(config: dict[str, Any]) -> dict[str, Any]:
    """What of an encoder's configuration can be written as YAML; the rest, and the dtype, say how it was saved."""
    writable = bool | int | float | str | list | dict
    return {key: value for key, value in config.items() if isinstance(value, writable) and key != "dtype"}


def _load_pretrained(model: nn.Module, name: str, *, key: str) -> None:
    """Read the weights of a transformers model into it; what is frozen of it stays so."""
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # Heads that are not needed are left out; the table of what they are only confuses.
    logging.set_verbosity_error()
    try:
        with _hub_errors(key, name):
            pretrained, report = AutoModel.from_pretrained(
                name, config=model.config, output_loading_info=True, trust_remote_code=False
            )
            # Left alone, they would be random.
            if report["missing_keys"]:
                raise ValueError(f"it holds no weights for {min(report['missing_keys'])}")
            model.load_state_dict(pretrained.state_dict())
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _hub_errors(key: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # The hub's client raises errors of three libraries; all mean the same here.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{key}: {name!r} cannot be used ({reason}); give a folder or a hub name") from None


class SmallAudioNet(nn.Module):
    """Convolutions over time with the bands as channels, for how the sound moves; beside them each band's mean, for how
    loud and how high it is. About 2 million multiplications a patch.
    """

    width = 64
    """Length of the embedding."""

    def __init__(self) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, channels, kernel_size in ((64, 64, 5), (64, 64, 5), (64, 96, 3)):
            layers += [
                nn.Conv1d(in_channels, channels, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
                nn.GroupNorm(num_groups=8, num_channels=channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Linear(2 * 96 + 64, self.width)

    def forward(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N,96,64), best with mean 0 and deviation 1 in each band -> embeddings (N,64).

        Raises:
            ValueError: the patches have another shape.
        """
        _check_shape(patches, "log-mel patches", (96, 64))
        maps = self.features(patches.transpose(1, 2))  # (N,96,12): channel, time
        # GroupNorm takes the level out of the maps, so the level goes past them.
        summary = torch.cat([maps.mean(dim=2), maps.amax(dim=2), patches.mean(dim=1)], dim=1)  # (N,96+96+64)
        return torch.as_tensor(self.embedding(summary))


def _check_shape(x: Tensor, what: str, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        wanted = ",".join(str(size) for size in shape)
        raise ValueError(f"{what}: the shape must be (N,{wanted}), given: {tuple(x.shape)}")


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Load a weight file of a backbone's authors.

    Names may carry the prefix ``backbone.``; a classifier beside the backbone (``logits.``) is left out.

    Raises:
        InputError: the file cannot be read as a plain dictionary of tensors, or an entry is missing, surplus or has the
            wrong shape.
    """
    given = read_state_dict(path)
    if any(name.startswith("backbone.") for name in given):
        given = {name.removeprefix("backbone."): value for name, value in given.items()}
    given = {name: value for name, value in given.items() if not name.startswith("logits.")}
    wanted = backbone.state_dict()
    for name in wanted:
        # Files older than PyTorch 0.4.1 lack BatchNorm's counters, which nothing here reads.
        if name.endswith(".num_batches_tracked"):
            given.setdefault(name, wanted[name])
    check_entries(given, {name: value.shape for name, value in wanted.items()}, source=str(path))
    backbone.load_state_dict(given)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A file of ``torch.save(module.state_dict(), path)``, on the CPU; nothing but tensors is ever unpickled.

    Raises:
        InputError: no such file, or it holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a weight file written by torch.save is wanted") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a file of weights alone ({reason}); save module.state_dict()") from error
    return named_tensors(content, source=str(path))


def named_tensors(content: object, *, source: str) -> dict[str, Tensor]:
    """``content`` as a dictionary of tensors.

    Raises:
        InputError: it is something else, such as a dictionary with the weights one level down.
    """
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InputError(f"{source}: holds something else than named tensors; module.state_dict() is wanted")
    return dict(content)


def check_entries(given: Mapping[str, Tensor], wanted: Mapping[str, Size], *, source: str) -> None:
    """Compare names and shapes.

    Raises:
        InputError: naming ``source`` and the first entry that is surplus (with the nearest right name), missing, or of
            the wrong shape.
    """
    for name in given:
        if name not in wanted:
            near = difflib.get_close_matches(name, wanted, n=1, cutoff=0.0)[0]
            raise InputError(f"{source}: unknown entry {name!r}; the nearest right name is {near!r}")
    for name, shape in wanted.items():
        if name not in given:
            raise InputError(f"{source}: no entry {name!r}, of shape {tuple(shape)}")
        if given[name].shape != shape:
            raise InputError(f"{source}: {name!r} has shape {tuple(given[name].shape)}; it should be {tuple(shape)}")
