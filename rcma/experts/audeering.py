"""Valence and arousal of a voice by audEERING's wav2vec2 model (Wagner et al., IEEE TPAMI 2023).

https://huggingface.co/audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim; CC BY-NC-SA 4.0, not for commercial use.
For an utterance x at 16 kHz, standardised to mean 0 and variance 1:

    h = mean over time of wav2vec2(x)
    arousal, dominance, valence = 2 (W2 tanh(W1 h + b1) + b2) - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.media import SAMPLE_RATE, Samples
from preprocessing.speech import quiet_transformers

WINDOW_S = 4.0
"""Length of a window, seconds; windows are cut at the ends of the recording."""
HOP_S = 1.0
"""From the centre of one window to the next, seconds."""
LEAST_SPEECH_S = 0.5
"""A window with less speech has no value."""
_AROUSAL, _VALENCE = 0, 2
"""Indices in the output; 1 is dominance."""
_HEAD = ("classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias")
_UNUSED = {"masked_spec_embed"}
"""Weights for training only."""
_VARIANCE_FLOOR = 1e-7


class AudeeringExpert:
    """The voice model, on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load the network from a folder with ``config.json`` and ``model.safetensors``.

        Raises:
            InputError: they cannot be read, or weights are missing.
        """
        from safetensors import safe_open
        from transformers import Wav2Vec2Model

        safe: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        load: Any = Wav2Vec2Model.from_pretrained  # annotated without output_loading_info
        try:
            with quiet_transformers():
                network, loaded = load(folder, dtype="float32", output_loading_info=True, **safe)
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                missing = sorted({*_HEAD} - {*file.keys()} | {*loaded["missing_keys"]} - _UNUSED)
                head = [] if missing else [file.get_tensor(name).float() for name in _HEAD]
        except Exception as error:  # transformers and safetensors raise many classes.
            lines = str(error).strip().splitlines()
            raise InputError(f"{folder}: not a usable wav2vec2 model ({lines[0] if lines else error!r})") from error
        if missing:
            raise InputError(f"{folder}: model.safetensors lacks {', '.join(missing[:3])}, so it is another model")
        self._network, self._dense, self._output = network.eval(), head[:2], head[2:]

    def __call__(
        self,
        samples: Samples,
        start_s: float,
        speech: Sequence[tuple[float, float]],
        time_s: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Predict windows of 4 s around every second, and interpolate.

        Args:
            samples: (N,) mono in [-1,1] at 16 kHz.
            start_s: time of the first sample on the video's clock, seconds.
            speech: start and end of each stretch of speech on the same clock, seconds.
            time_s: (T,) times of the frames.

        Returns:
            (T,2) valence and arousal in [-1,1]: linear between the centres of neighbouring windows that both contain at
            least half a second of speech; NaN elsewhere.
        """
        end_s = start_s + len(samples) / SAMPLE_RATE
        centres_s = start_s + HOP_S * np.arange(np.floor((end_s - start_s) / HOP_S) + 1)
        if end_s - centres_s[-1] > 1e-6:
            centres_s = np.append(centres_s, end_s)
        values = np.full((len(centres_s), 2), np.nan, np.float32)
        for index, centre_s in enumerate(centres_s):
            first_s, last_s = max(start_s, centre_s - WINDOW_S / 2), min(end_s, centre_s + WINDOW_S / 2)
            if sum(max(0.0, min(last_s, end) - max(first_s, start)) for start, end in speech) >= LEAST_SPEECH_S:
                first, stop = (round((edge_s - start_s) * SAMPLE_RATE) for edge_s in (first_s, last_s))
                values[index] = self.listen(np.asarray(samples[first:stop], np.float32))
        # NaN at one centre makes everything up to its neighbours NaN.
        columns = [np.interp(time_s, centres_s, values[:, k], left=np.nan, right=np.nan) for k in range(2)]
        return np.stack(columns, axis=1).astype(np.float32)

    def listen(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return valence and arousal (2,) in [-1,1] of one utterance (N,) at 16 kHz, N at least 400."""
        import torch
        from torch.nn.functional import linear

        standard = (samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR)
        with torch.inference_mode():
            hidden = self._network(torch.from_numpy(standard.astype(np.float32))[None]).last_hidden_state.mean(dim=1)
            output = linear(torch.tanh(linear(hidden, *self._dense)), *self._output)[0].numpy()
        return np.clip(2 * output[[_VALENCE, _AROUSAL]] - 1, -1.0, 1.0)
