"""16 kHz mono from any number of channels, without losing what is in opposite phase in them.

The mean of a signal and its inverse is silence. Where channels cancel each other, one of them is inverted.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

SAMPLE_RATE = 16000
"""Hz, of all sound after decoding."""

_BLOCK = SAMPLE_RATE // 2
"""Samples that are judged at a time: 0.5 s."""
_RAMP = SAMPLE_RATE // 100
"""Samples over which a channel is inverted, 10 ms: a sudden change would be heard as a click."""
_CANCELLED = 0.25
"""Channels cancel each other if the energy of their sum is below this fraction of the sum of their energies.
Unrelated channels have 1, equal ones 2, a correlation of -0.75 gives 0.25."""
_QUIET = 1e-4
"""Energy, as a fraction of the loudest block so far, below which nothing is changed: 40 dB."""


class Mixdown:
    """Mixes one gapless stretch of audio; without cancellation, the result is FFmpeg's own mono mix."""

    def __init__(self, layout: av.AudioLayout) -> None:
        """Start with no channel inverted; ``layout`` is that of the frames."""
        n_channels = layout.nb_channels
        # Integer output makes FFmpeg normalise the mix of channels, so that it cannot clip.
        self._to_mono = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
        self._to_channels = av.AudioResampler(format="flt", layout=layout.name, rate=SAMPLE_RATE)
        self._weights = mix_weights(layout.name, SAMPLE_RATE) if n_channels > 1 else np.ones(1, np.float32)
        self._signs = np.ones(n_channels, np.float32)
        self._loudest = 0.0
        self._mono = np.zeros(0, np.float32)
        self._channels = np.zeros((n_channels, 0), np.float32)
        self.n_repaired = 0
        """Number of samples in which a channel was inverted."""

    def add(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        """Mix a frame, or None to flush the end; yields (N,) float32 in [-1, 1]."""
        mono = [(part.to_ndarray()[0] / 2.0**31).astype(np.float32) for part in self._to_mono.resample(frame)]
        if len(self._weights) == 1:
            yield from mono
            return
        self._mono = np.concatenate([self._mono, *mono])
        interleaved = [
            part.to_ndarray().reshape(-1, len(self._weights)).T for part in self._to_channels.resample(frame)
        ]
        self._channels = np.concatenate([self._channels, *interleaved], axis=1)
        while min(len(self._mono), self._channels.shape[1]) >= _BLOCK:
            yield self._take(_BLOCK)
        if frame is None and len(self._mono):
            yield self._take(len(self._mono))

    def _take(self, n_samples: int) -> NDArray[np.float32]:
        """Remove samples from the start of the buffers and repair them."""
        mono, self._mono = self._mono[:n_samples], self._mono[n_samples:]
        channels, self._channels = self._channels[:, :n_samples], self._channels[:, n_samples:]
        weighted = channels * self._weights[:, None]
        before, self._signs = self._signs, self._choose_signs(weighted)
        if np.all(before == 1) and np.all(self._signs == 1):
            return mono
        self.n_repaired += n_samples
        ramp = np.minimum(np.arange(weighted.shape[1], dtype=np.float32) / _RAMP, 1)
        gains = before[:, None] + (self._signs - before)[:, None] * ramp
        repaired = mono.copy()
        repaired[: weighted.shape[1]] += np.sum((gains - 1) * weighted, axis=0)
        return repaired

    def _choose_signs(self, weighted: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C,) sign with which each channel of a block is added to those before it."""
        signs = self._signs.copy()
        mix = np.zeros(weighted.shape[1])
        for number, channel in enumerate(weighted.astype(np.float64)):
            apart = np.sum(mix**2) + np.sum(channel**2)
            self._loudest = max(self._loudest, apart)
            together = np.sum((mix + channel) ** 2)
            if apart > _QUIET * self._loudest:
                # An inverted channel stays so until the channels agree: frequent changes would be heard.
                limit = _CANCELLED if self._signs[number] > 0 else 1.0
                signs[number] = -1 if together < limit * apart else 1
            mix += signs[number] * channel
        return signs


def mix_weights(layout: str, rate: int) -> NDArray[np.float32]:
    """Measure the weight (C,) of each channel in FFmpeg's normalised mono mix.

    Args:
        layout: of the channels, as FFmpeg names it.
        rate: sample rate of mix and channels, Hz.
    """
    n_channels = av.AudioLayout(layout).nb_channels
    weights = np.zeros(n_channels, np.float32)
    for number in range(n_channels):
        signal = np.zeros((1024, n_channels), np.float32)
        signal[:, number] = 0.5
        frame = av.AudioFrame.from_ndarray(signal.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        (mixed,) = av.AudioResampler(format="s32", layout="mono", rate=rate).resample(frame)
        weights[number] = mixed.to_ndarray()[0, 512] / 2.0**30
    return weights
