"""Mono from several channels, without losing what is in opposite phase in them.

The mean of a microphone and its inverse is silence. Where channels cancel each other, one of them is inverted.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from numpy.typing import NDArray

_BLOCK = 8000
"""Samples that are judged at a time: 0.5 s at 16 kHz."""
_RAMP = 160
"""Samples over which a channel is inverted, 10 ms at 16 kHz: a sudden change would be heard as a click."""
_CANCELLED = 0.25
"""Energy of a sum of channels, as a fraction of the sum of their energies, below which they cancel each other.
Unrelated channels have 1, equal ones 2, a correlation of -0.75 gives 0.25."""
_QUIET = 1e-4
"""Energy, as a fraction of the loudest block so far, below which nothing is changed: 40 dB."""


class Mixdown:
    """Repairs FFmpeg's mono mix of one stretch of sound, block by block; without cancellation it stays as it is."""

    def __init__(self, layout: str, rate: int) -> None:
        """Start with no channel inverted.

        Args:
            layout: of the channels, as FFmpeg names it.
            rate: of mix and channels, Hz.
        """
        self._weights = mix_weights(layout, rate)
        self._signs = np.ones(len(self._weights), np.float32)
        self._loudest = 0.0
        self._mono = np.zeros(0, np.float32)
        self._channels = np.zeros((len(self._weights), 0), np.float32)
        self.n_repaired = 0
        """Number of samples in which a channel was inverted."""

    def add(self, mono: NDArray[np.float32], channels: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Append some of the mix (N,) and of its C channels (M C,), interleaved; yields what is repaired.

        N and M may differ from call to call, but not in sum.
        """
        self._mono = np.concatenate([self._mono, mono])
        self._channels = np.concatenate([self._channels, channels.reshape(-1, len(self._weights)).T], axis=1)
        while min(len(self._mono), self._channels.shape[1]) >= _BLOCK:
            yield self._take(_BLOCK)

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """What is left."""
        if len(self._mono):
            self._channels = self._channels[:, : len(self._mono)]
            yield self._take(len(self._mono))

    def _take(self, n_samples: int) -> NDArray[np.float32]:
        mono, self._mono = self._mono[:n_samples], self._mono[n_samples:]
        channels, self._channels = self._channels[:, :n_samples], self._channels[:, n_samples:]
        weighted = channels * self._weights[:, None]
        before, self._signs = self._signs, self._judge(weighted)
        if np.all(before == 1) and np.all(self._signs == 1):
            return mono
        self.n_repaired += n_samples
        ramp = np.minimum(np.arange(weighted.shape[1], dtype=np.float32) / _RAMP, 1)
        gains = before[:, None] + (self._signs - before)[:, None] * ramp
        repaired = mono.copy()
        repaired[: weighted.shape[1]] += np.sum((gains - 1) * weighted, axis=0)
        return repaired

    def _judge(self, weighted: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sign (C,) with which each channel of a block is added to those before it."""
        signs = self._signs.copy()
        mix = np.zeros(weighted.shape[1])
        for number, channel in enumerate(weighted.astype(np.float64)):
            apart = np.sum(mix**2) + np.sum(channel**2)
            self._loudest = max(self._loudest, apart)
            together = np.sum((mix + channel) ** 2)
            if apart > _QUIET * self._loudest:
                # What is inverted stays so until the channels agree: changes to and fro would be heard.
                limit = _CANCELLED if self._signs[number] > 0 else 1.0
                signs[number] = -1 if together < limit * apart else 1
            mix += signs[number] * channel
        return signs


def mix_weights(layout: str, rate: int) -> NDArray[np.float32]:
    """Weight (C,) of each channel in FFmpeg's mono mix that cannot clip, measured."""
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
