"""Vision and speech encoders of Hugging Face transformers. Code that comes with an encoder is never run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preprocessing.errors import InputError
from preprocessing.media import SAMPLE_RATE
from rcma.model.weight_files import first_line

_DEFAULT_IMAGE_SIZE = 224
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Defaults for encoders without an image processor."""
_MIN_VARIANCE = 1e-7
"""Added to the variance of sound, as in transformers' feature extractor: silence stays zero."""
_NO_SPEC_AUGMENT = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
"""Speech encoders in training hide sound and skip layers by random numbers that our seeds do not reach."""


class HFEncoder(nn.Module):
    """An encoder of transformers, with random weights until :meth:`load_pretrained`.

    Args:
        config: see :func:`vision_config` and :func:`speech_config`.
        changes: replaces values of the configuration.
    """

    key: str
    """The setting that names the encoder, for errors."""

    def __init__(self, config: dict[str, Any], **changes: Any) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        # Without the keys that name code on a hub: the configuration may come with somebody else's model.
        safe = {key: value for key, value in config.items() if key not in ("auto_map", "attn_implementation")}
        self.settings: Any = AutoConfig.for_model(**{**safe, **changes})
        self.model: nn.Module = AutoModel.from_config(self.settings, trust_remote_code=False)

    def load_pretrained(self, name: str) -> None:
        """Read the encoder's weights from a folder or the Hub.

        Raises:
            InputError: they are not available, or incomplete.
        """
        from transformers import AutoModel
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        # Do not list the weights of heads, which are not needed.
        logging.set_verbosity_error()
        try:
            with _hub_errors(self.key, name):
                pretrained, report = AutoModel.from_pretrained(
                    name, config=self.settings, output_loading_info=True, trust_remote_code=False
                )
                # Otherwise they would stay random.
                if report["missing_keys"]:
                    raise ValueError(f"it holds no weights for {min(report['missing_keys'])}")
                self.model.load_state_dict(pretrained.state_dict())
        finally:
            logging.set_verbosity(verbosity)


class HFVision(HFEncoder):
    """A vision encoder, such as DINOv2."""

    key = "model.face.hf"
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.width = int(getattr(self.settings, "hidden_size", None) or self.settings.hidden_sizes[-1])
        size = getattr(self.settings, "image_size", None) or _DEFAULT_IMAGE_SIZE
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        for name, default in (("image_mean", _IMAGENET_MEAN), ("image_std", _IMAGENET_STD)):
            values = torch.tensor(config.get(name) or default).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        """Crops (N,3,S,S) RGB in [-1,1] -> embeddings (N,width): the pooled output, or the mean over positions."""
        resized = F.interpolate((faces + 1) / 2, self._size, mode="bilinear", antialias=True)
        output = self.model(pixel_values=(resized - self.image_mean) / self.image_std)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state
            pooled = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return torch.as_tensor(pooled.flatten(start_dim=1))


class HFSpeech(HFEncoder):
    """A speech encoder that takes samples: wav2vec2, HuBERT, WavLM and their relatives."""

    key = "model.audio.hf"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config, **_NO_SPEC_AUGMENT)
        has_adapter = getattr(self.settings, "add_adapter", False)
        self.width = int(self.settings.output_hidden_size if has_adapter else self.settings.hidden_size)
        self._standardises = bool(config.get("do_normalize", True))

    def forward(self, patches: Tensor) -> Tensor:
        """0.96 s of sound in [-1,1] at 16 kHz (N,96,160) -> embeddings (N,width): the mean of the last hidden states.

        Each patch is standardised separately if the encoder's feature extractor does so (``do_normalize``).
        """
        samples = patches.flatten(start_dim=1)  # (N,15360)
        if self._standardises:
            variance, mean = torch.var_mean(samples, dim=1, correction=0, keepdim=True)
            samples = (samples - mean) / (variance + _MIN_VARIANCE).sqrt()
        return torch.as_tensor(self.model(input_values=samples).last_hidden_state.mean(dim=1))  # of (N,47,width)


def vision_config(name: str) -> dict[str, Any]:
    """Read the configuration of a vision encoder, with the mean and standard deviation of its images.

    Args:
        name: a folder, or a name on the Hugging Face Hub.

    Raises:
        InputError: (naming ``model.face.hf``) not available, or not a vision encoder.
    """
    from transformers import AutoConfig, AutoImageProcessor

    with _hub_errors(HFVision.key, name):
        config: dict[str, Any] = AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
        if not any(key in config for key in ("image_size", "num_channels", "hidden_sizes")):
            raise ValueError("it is no vision encoder")
        with suppress(OSError):  # it has no image processor
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            config |= {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    return _plain_values(config)


def speech_config(name: str) -> dict[str, Any]:
    """Read the configuration of a speech encoder, and whether its feature extractor standardises the samples.

    Args:
        name: a folder, or a name on the Hugging Face Hub.

    Raises:
        InputError: (naming ``model.audio.hf``) not available, or not an encoder of 16 kHz samples.
    """
    from transformers import AutoConfig, AutoFeatureExtractor

    with _hub_errors(HFSpeech.key, name):
        config: dict[str, Any] = AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
        if not config.get("conv_stride") or config.get("is_encoder_decoder"):
            raise ValueError("it is no encoder of sound samples such as wav2vec2, HuBERT or WavLM")
        with suppress(OSError):  # it has no feature extractor
            extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
            if extractor.sampling_rate != SAMPLE_RATE:
                raise ValueError(f"it takes {extractor.sampling_rate} Hz, not {SAMPLE_RATE} Hz")
            config["do_normalize"] = bool(extractor.do_normalize)
    return _plain_values(config)


def _plain_values(config: dict[str, Any]) -> dict[str, Any]:
    """The values that YAML can hold; the dtype only tells how the file was saved."""
    plain = bool | int | float | str | list | dict
    return {key: value for key, value in config.items() if isinstance(value, plain) and key != "dtype"}


@contextmanager
def _hub_errors(key: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the Hub's client raises errors of three libraries
        reason = first_line(error)[:200]
        raise InputError(f"{key}: {name!r} cannot be used ({reason}); give a folder or a hub name") from None
