"""Voice activity detection by silero-vad."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from preprocessing.media import SAMPLE_RATE, level_for_speech

if TYPE_CHECKING:
    import torch

    from preprocessing.media import Samples

VAD_SAMPLES = 512
"""Samples of one prediction of silero-vad: 32 ms."""
_VAD_BLOCK = 2000 * VAD_SAMPLES
"""Samples prepared at a time: about a minute."""


class SpeechDetector:
    """silero-vad on the CPU; the model comes with its package."""

    def __init__(self) -> None:
        """Load the model."""
        with threads_kept(), warnings.catch_warnings():
            import silero_vad

            # torch.jit.load is deprecated, but the wheel has no other format.
            warnings.simplefilter("ignore", FutureWarning)
            self._model: torch.jit.ScriptModule = silero_vad.load_silero_vad()

    def probabilities(self, samples: Samples) -> npt.NDArray[np.float64]:
        """Return the probability of speech (ceil(N / 512),) of every 512 samples (N,) of mono sound at 16 kHz."""
        import torch

        self._model.reset_states()
        found: list[float] = []
        # One thread: silero-vad's layers are too small for several.
        with torch.no_grad(), threads_kept(inside=1):
            for first in range(0, len(samples), _VAD_BLOCK):
                block = samples[first : first + _VAD_BLOCK]
                signal = torch.from_numpy(np.pad(block, (0, -len(block) % VAD_SAMPLES)))
                found += [self._model(part, SAMPLE_RATE).item() for part in torch.split(signal, VAD_SAMPLES)]
        return np.array(found)


def speech_spans(
    probabilities: npt.NDArray[np.float64], n_samples: int, *, threshold: float, longest_s: float = math.inf
) -> list[tuple[float, float]]:
    """Return the start and end of each stretch of speech, in order, in seconds from the first sample.

    Args:
        probabilities: see :meth:`SpeechDetector.probabilities`.
        n_samples: length of the sound.
        threshold: lowest probability at which speech starts, in (0,1).
        longest_s: longer stretches are cut, at a pause if possible, seconds.
    """
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    if n_samples == 0:
        return []
    segments = get_speech_timestamps_from_probs(
        probabilities.tolist(),
        threshold=threshold,
        max_speech_duration_s=longest_s,
        speech_pad_ms=0,
        audio_length_samples=n_samples,
    )
    return [(segment["start"] / SAMPLE_RATE, segment["end"] / SAMPLE_RATE) for segment in segments]


def detect_speech(samples: Samples, threshold: float = 0.5) -> list[tuple[float, float]]:
    """Return the start and end of each stretch of speech, in order, in seconds from the first sample.

    Args:
        samples: (N,) float32 mono sound at 16 kHz; faint sound is amplified first.
        threshold: lowest probability of speech, in (0,1).
    """
    probabilities = SpeechDetector().probabilities(level_for_speech(samples))
    return speech_spans(probabilities, len(samples), threshold=threshold)


@contextmanager
def threads_kept(*, inside: int | None = None) -> Iterator[None]:
    """Restore PyTorch's number of threads, which the libraries used here change for the whole process.

    Importing silero_vad sets it to 1. Code that Numba compiles for openai-whisper sets it to the number of cores,
    through the OpenMP library shared with PyTorch: several workers would then slow each other down.

    Args:
        inside: number of threads inside the block; None keeps it.
    """
    import torch

    before = torch.get_num_threads()
    if inside is not None:
        torch.set_num_threads(inside)
    try:
        yield
    finally:
        torch.set_num_threads(before)
