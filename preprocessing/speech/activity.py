"""Where somebody speaks, by silero-vad."""

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
"""Samples that silero-vad judges at a time: 32 ms."""
_VAD_BLOCK = 2000 * VAD_SAMPLES
"""Samples read at a time: about a minute."""


class SpeechDetector:
    """silero-vad, on the CPU; loaded once for any number of recordings."""

    def __init__(self) -> None:
        """Load the model, which its package contains."""
        with threads_kept(), warnings.catch_warnings():
            import silero_vad

            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch.jit.load is deprecated; the wheel has no other format.
            self._model: torch.jit.ScriptModule = silero_vad.load_silero_vad()

    def probabilities(self, samples: Samples) -> npt.NDArray[np.float64]:
        """Probability of speech for each 512 samples (N,) of mono sound at 16 kHz: (ceil(N / 512),)."""
        import torch

        self._model.reset_states()
        found: list[float] = []
        # One thread: handing silero-vad's tiny layers to several costs far more than it saves.
        with torch.no_grad(), threads_kept(inside=1):
            for first in range(0, len(samples), _VAD_BLOCK):
                block = samples[first : first + _VAD_BLOCK]
                signal = torch.from_numpy(np.pad(block, (0, -len(block) % VAD_SAMPLES)))
                found += [self._model(part, SAMPLE_RATE).item() for part in torch.split(signal, VAD_SAMPLES)]
        return np.array(found)


def speech_spans(
    probabilities: npt.NDArray[np.float64], n_samples: int, *, threshold: float, longest_s: float = math.inf
) -> list[tuple[float, float]]:
    """Stretches of speech.

    Args:
        probabilities: see :meth:`SpeechDetector.probabilities`.
        n_samples: length of the sound.
        threshold: least probability at which speech begins, in (0,1).
        longest_s: a longer stretch is cut, at a pause if it has one, seconds.

    Returns:
        (start, end) of each in seconds from the first sample, in order.
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
    """Find where somebody speaks.

    Args:
        samples: (N,) float32 mono sound at 16 kHz; faint sound is levelled first.
        threshold: least probability of speech, in (0,1).

    Returns:
        (start, end) of each stretch of speech in seconds from the first sample, in order.
    """
    probabilities = SpeechDetector().probabilities(level_for_speech(samples))
    return speech_spans(probabilities, len(samples), threshold=threshold)


@contextmanager
def threads_kept(*, inside: int | None = None) -> Iterator[None]:
    """Leave PyTorch's number of threads as it was; the libraries used here change it for the whole process.

    Importing silero_vad sets it to 1. What Numba compiles for openai-whisper sets it to the number of cores, through
    the OpenMP library that it shares with PyTorch: several workers on a machine would then slow each other down.

    Args:
        inside: number of threads meanwhile; None changes nothing.
    """
    import torch

    before = torch.get_num_threads()
    if inside is not None:
        torch.set_num_threads(inside)
    try:
        yield
    finally:
        torch.set_num_threads(before)
