"""Valence and arousal of a voice by audEERING's wav2vec2 model (Wagner et al., IEEE TPAMI 2023).

https://huggingface.co/audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim; CC BY-NC-SA 4.0, not for commercial use.
For an utterance x at 16 kHz, standardised to mean 0 and variance 1:

    h = mean over time of wav2vec2(x)
    arousal, dominance, valence = 2 (W2 tanh(W1 h + b1) + b2) - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.media import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

WINDOW_S = 4.0
"""Length of a window, seconds; those at the ends of the recording are cut there."""
HOP_S = 1.0
"""From the centre of one window to the next, seconds."""
LEAST_SPEECH_S = 0.5
"""A window with less speech has no value."""
_AROUSAL, _VALENCE = 0, 2
"""Places in the output; 1 is dominance."""
_HEAD = ("classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias")
_UNUSED = {"masked_spec_embed"}
"""Weights that only training needs."""
_VARIANCE_FLOOR = 1e-7


class AudeeringExpert:
    """The voice model, loaded once; runs on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load the network.

        Args:
            folder: with ``config.json`` and ``model.safetensors``.

        Raises:
            InputError: they cannot be read, or weights are missing or of another shape.
        """
        from safetensors import safe_open

        try:
            network, loaded = _load_wav2vec2(folder)
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                missing = sorted({*_HEAD} - {*file.keys()} | {*loaded["missing_keys"]} - _UNUSED)
                head = [] if missing else [file.get_tensor(name).float() for name in _HEAD]
        except Exception as error:  # transformers and safetensors raise many classes; all mean the same here.
            lines = str(error).strip().splitlines()
            raise InputError(f"{folder}: not a usable wav2vec2 model ({lines[0] if lines else error!r})") from error
        if missing:
            raise InputError(f"{folder}: model.safetensors lacks {', '.join(missing[:3])}, so it is another model")
        self._dense, self._output = (head[0], head[1]), (head[2], head[3])
        width = network.config.hidden_size
        if self._dense[0].shape != (width, width) or self._output[0].shape != (3, width):
            raise InputError(f"{folder}: the layers on top of wav2vec2 have other shapes, so it is another model")
        self._network = network.eval()

    def __call__(
        self,
        samples: Samples,
        start_s: float,
        speech: Sequence[tuple[float, float]],
        time_s: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Listen to windows of 4 s around every second.

        Args:
            samples: (N,) mono in [-1,1] at 16 kHz.
            start_s: time of the first sample on the video's clock, seconds.
            speech: start and end of each stretch of speech on the same clock, seconds.
            time_s: (T,) times of the frames.

        Returns:
            (T,2) valence and arousal in [-1,1]: linear between the centres of neighbouring windows that both hold at
            least half a second of speech; NaN elsewhere.
        """
        end_s = start_s + len(samples) / SAMPLE_RATE
        centres_s = start_s + HOP_S * np.arange(np.floor((end_s - start_s) / HOP_S) + 1)
        if end_s - centres_s[-1] > 1e-6:
            centres_s = np.append(centres_s, end_s)
        values = np.full((len(centres_s), 2), np.nan, np.float32)
        for index, centre_s in enumerate(centres_s):
            window = max(start_s, centre_s - WINDOW_S / 2), min(end_s, centre_s + WINDOW_S / 2)
            if _overlap(window, speech) >= LEAST_SPEECH_S:
                first, stop = (round((time - start_s) * SAMPLE_RATE) for time in window)
                values[index] = self.listen(np.asarray(samples[first:stop], np.float32))
        # NaN at either neighbour makes everything between them NaN, and so it does outside of the recording.
        return np.stack(
            [np.interp(time_s, centres_s, values[:, k], left=np.nan, right=np.nan) for k in range(2)], axis=1
        ).astype(np.float32)

    def listen(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Valence and arousal (2,) in [-1,1] of one utterance (N,) at 16 kHz, N at least 400."""
        import torch
        from torch.nn.functional import linear

        standard = (samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR)
        with torch.inference_mode():
            hidden = self._network(torch.from_numpy(standard.astype(np.float32))[None]).last_hidden_state.mean(dim=1)
            output = linear(torch.tanh(linear(hidden, *self._dense)), *self._output)[0].numpy()
        return np.clip(2 * output[[_VALENCE, _AROUSAL]] - 1, -1.0, 1.0)


def _load_wav2vec2(folder: Path) -> tuple[Wav2Vec2Model, dict[str, Any]]:
    """The encoder, in float32, and what transformers says of the names in the file."""
    import torch
    from transformers import Wav2Vec2Model
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The two layers on top are read apart; the table of what was left out only confuses.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: Any = Wav2Vec2Model.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    return loaded


def _overlap(window: tuple[float, float], speech: Sequence[tuple[float, float]]) -> float:
    """Seconds of speech in a window."""
    return sum(max(0.0, min(window[1], end) - max(window[0], start)) for start, end in speech)
