"""Speech gathered into chunks that fit Whisper's window of 30 s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from preprocessing.media import SAMPLE_RATE
from preprocessing.speech.activity import VAD_SAMPLES

if TYPE_CHECKING:
    from preprocessing.media import Samples

SPEECH_PAD_S = 0.1
"""Added to both ends of detected speech: silero-vad cuts soft consonants off."""
CHUNK_S = 28.0
"""Longest chunk handed to Whisper, whose window is 30 s."""
CHUNK_PAD_S = 0.5
"""Additional sound around the speech of a chunk: Whisper misses words at the edges of its input. Measured on six GRID
clips: 12 of 36 words wrong with 0.2 s, 8 with 0.3 s and more."""
_LONGEST_PAUSE_S = 2.0
"""A longer pause ends a chunk: Whisper fills it with words and stretches the times of the words around it."""


@dataclass(frozen=True)
class Chunk:
    """A stretch of sound that fits Whisper's window; times in seconds from the first sample."""

    start_s: float
    end_s: float
    speech: tuple[tuple[float, float], ...]
    """(start, end) of each stretch of speech inside."""
    probability: float
    """Mean probability of speech where it passes the threshold."""

    @property
    def speech_s(self) -> float:
        """Seconds of speech."""
        return sum(end - start for start, end in self.speech)


def gather(
    speech: Sequence[tuple[float, float]],
    probabilities: npt.NDArray[np.float64],
    *,
    threshold: float,
    duration_s: float,
) -> list[Chunk]:
    """Gather neighbouring stretches of speech into chunks, and add some sound around each.

    Args:
        speech: (start, end) in seconds, in order.
        probabilities: of speech, one per 512 samples.
        threshold: least probability that counts in the mean of a chunk.
        duration_s: duration of the sound.
    """
    padded = _pad(speech, SPEECH_PAD_S, duration_s=duration_s)
    groups: list[list[int]] = []
    for index, (start, end) in enumerate(padded):
        if (
            groups
            and start - padded[groups[-1][-1]][1] <= _LONGEST_PAUSE_S
            and end - padded[groups[-1][0]][0] + 2 * CHUNK_PAD_S <= CHUNK_S
        ):
            groups[-1].append(index)
        else:
            groups.append([index])
    bounds = _pad([(padded[group[0]][0], padded[group[-1]][1]) for group in groups], CHUNK_PAD_S, duration_s=duration_s)
    chunks = []
    for group, (start, end) in zip(groups, bounds, strict=True):
        mean = mean_probability(probabilities, [speech[index] for index in group], threshold)
        chunks.append(Chunk(start, end, tuple(padded[index] for index in group), mean))
    return chunks


def mean_probability(
    probabilities: npt.NDArray[np.float64], spans: Sequence[tuple[float, float]], threshold: float
) -> float:
    """Mean, over the given seconds, of the probabilities that pass the threshold; 0 if none does.

    The others are ignored because the fading of a short cry would weigh as much as the cry.
    """
    rate = SAMPLE_RATE / VAD_SAMPLES
    judged = np.concatenate([probabilities[round(start * rate) : math.ceil(end * rate)] for start, end in spans])
    passing = judged[judged >= threshold]
    return float(passing.mean()) if len(passing) else 0.0


def _pad(spans: Sequence[tuple[float, float]], by_s: float, *, duration_s: float) -> list[tuple[float, float]]:
    """Lengthen each span at both ends, up to the ends of the sound and the middle of the gaps between spans."""
    middles = [(before[1] + after[0]) / 2 for before, after in pairwise(spans)]
    return [
        (max(start - by_s, earliest), min(end + by_s, latest))
        for (start, end), earliest, latest in zip(spans, [0.0, *middles], [*middles, duration_s], strict=False)
    ]


def first_speech(samples: Samples, chunks: Sequence[Chunk]) -> npt.NDArray[np.float32]:
    """The first 30 s of speech, pauses left out."""
    parts: list[npt.NDArray[np.float32]] = []
    missing = 30 * SAMPLE_RATE
    for chunk in chunks:
        parts.append(cut(samples, chunk)[:missing])
        missing -= len(parts[-1])
        if not missing:
            break
    return np.concatenate(parts)


def cut(samples: Samples, chunk: Chunk) -> npt.NDArray[np.float32]:
    """The sound of a chunk."""
    return samples[round(chunk.start_s * SAMPLE_RATE) : round(chunk.end_s * SAMPLE_RATE)]
