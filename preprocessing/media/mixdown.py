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

_TOLERANCE_S = 0.04
"""Packet times are trusted over the count of samples if they differ by more; smaller differences are rounding."""
_BLOCK = SAMPLE_RATE // 2
"""Samples that are judged at a time: 0.5 s."""
_RAMP = SAMPLE_RATE // 100
"""Samples over which a channel is inverted, 10 ms: a sudden change would be heard as a click."""
_CANCELLED = 0.25
"""Channels cancel each other if the energy of their sum is below this fraction of the sum of their energies.
Unrelated channels have 1, equal ones 2, a correlation of -0.75 gives 0.25."""
_QUIET = 1e-4
"""Energy, as a fraction of the loudest block so far, below which nothing is changed: 40 dB."""


class MonoStretch:
    """A gapless stretch of audio, mixed to mono; without cancellation, the result is FFmpeg's own mix."""

    def __init__(self, first: AudioFrame, start_s: float) -> None:
        """Start an empty stretch at a time, seconds, for frames in the format of ``first``."""
        self.end_s = start_s
        self.n_repaired = 0
        """Number of samples in which a channel was inverted."""
        self._index = round(start_s * SAMPLE_RATE)
        self._format = _format_of(first)
        # Integer output makes FFmpeg normalise the mix of channels, so that it cannot clip.
        self._to_mono = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
        self._to_channels = av.AudioResampler(format="flt", layout=first.layout.name, rate=SAMPLE_RATE)
        self._weights = mix_weights(first.layout.name)
        self._signs = np.ones(len(self._weights), np.float32)
        self._loudest = 0.0
        self._mono = np.zeros(0, np.float32)
        self._channels = np.zeros((len(self._weights), 0), np.float32)

    def is_continued_by(self, frame: AudioFrame, time_s: float) -> bool:
        """Whether a frame at this time follows without a gap, an overlap or a change of format."""
        return abs(time_s - self.end_s) <= _TOLERANCE_S and _format_of(frame) == self._format

    def add(self, frame: AudioFrame | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Append a frame, whatever its time, or None to flush the end.

        Yields:
            Index of the first sample at 16 kHz, and (N,) float32 in [-1, 1].
        """
        if frame is not None:
            self.end_s += frame.samples / frame.sample_rate
            frame.pts = None
        for samples in self._mix(frame):
            yield self._index, samples
            self._index += len(samples)

    def _mix(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        mono = [(part.to_ndarray()[0] / 2.0**31).astype(np.float32) for part in self._to_mono.resample(frame)]
        if len(self._weights) == 1:
            yield from mono
            return
        self._mono = np.concatenate([self._mono, *mono])
        parts = self._to_channels.resample(frame)
        channels = [part.to_ndarray().reshape(-1, len(self._weights)).T for part in parts]
        self._channels = np.concatenate([self._channels, *channels], axis=1)
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


def mix_weights(layout: str) -> NDArray[np.float32]:
    """Measure the weight (C,) of each channel in FFmpeg's normalised mono mix of a layout, such as ``5.1``."""
    n_channels = av.AudioLayout(layout).nb_channels
    # Sample k has channel k alone.
    signal = 0.5 * np.eye(n_channels, dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(signal.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate = SAMPLE_RATE
    (mixed,) = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE).resample(frame)
    return (mixed.to_ndarray()[0] / 2.0**30).astype(np.float32)


def _format_of(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate
