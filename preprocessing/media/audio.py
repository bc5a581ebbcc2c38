"""Log-mel as VGGish defines it and the waveform itself, on the video's clock; faint sound levelled for recognition."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from preprocessing.media.mixdown import SAMPLE_RATE
from preprocessing.media.sound import Audio, Samples

N_MELS = 64

MEL_RATE = 100
"""Rows of log-mel per second (Hz)."""
HOP_LENGTH = SAMPLE_RATE // MEL_RATE
"""Samples between consecutive rows of log-mel: 10 ms."""
_WINDOW_LENGTH = SAMPLE_RATE * 25 // 1000
"""25 ms, in samples."""
_N_FFT = 512
_LOWEST_HZ = 125.0
_HIGHEST_HZ = 7500.0
_LOG_OFFSET = 0.01
_TAIL = SAMPLE_RATE
"""Samples of edge padding at the end, so that a patch of 0.96 s can start at any time inside the audio."""
_ROWS_AT_ONCE = 60 * MEL_RATE
"""A minute: keeps temporary arrays at some 100 MB for audio of any length."""

_LEVEL_BLOCK = SAMPLE_RATE // 10
"""Samples whose level is measured together: 100 ms."""
_BLOCKS_AT_ONCE = 600
"""A minute."""
_SUSTAINED = 7
"""Blocks over which a level must last to count, 0.7 s: a click or a slammed door is not speech."""
_LEVEL_REACH_S = 15
"""The loudest sound up to this long before and after decides: speech and its pauses are amplified alike."""
_FAINT_DB = -45.0
"""Level below which sound is amplified, dB of full scale. Measured on eight clips of speech: silero-vad finds all of it
down to about -55 and none below -75."""
_LEVELLED_DB = -30.0
"""Level to which it is amplified."""
_LOUDEST_DB = -15.0
"""No block is amplified above this level."""
_SILENCE_DB = -120.0
"""Level below which there is nothing to amplify: the rounding of 24 bits is at -149."""


def log_mel(samples: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Compute the log-mel of 16 kHz mono audio: row m covers the samples [160 m, 160 m + 400).

    Periodic Hann window of 400 samples, magnitude of the real FFT of 512 (zeros at the end), 64 triangles between
    125 and 7500 Hz whose sides are linear in mel, natural logarithm of (x + 0.01). No centre padding.

    Args:
        samples: (N,) in [-1, 1].

    Returns:
        float32 (M, 64), M = 1 + (N - 400) // 160, or 0 if N < 400; values from log(0.01) = -4.6 to about 5.

    Source: the features of VGGish (Hershey et al., "CNN architectures for large-scale audio classification", 2017),
    tensorflow/models, research/audioset/vggish.
    """
    # float64, because the logarithm near its offset magnifies rounding beside a loud band a thousandfold.
    signal = np.asarray(samples, np.float64)
    if len(signal) < _WINDOW_LENGTH:
        return np.zeros((0, N_MELS), np.float32)
    periodic_hann = np.hanning(_WINDOW_LENGTH + 1)[:-1]
    windows = sliding_window_view(signal, _WINDOW_LENGTH)[::HOP_LENGTH] * periodic_hann
    bands = np.abs(np.fft.rfft(windows, _N_FFT)) @ _mel_weights()
    return np.log(bands + _LOG_OFFSET).astype(np.float32)


def n_log_mel_rows(audio: Audio) -> int:
    """Return M, the number of rows of :func:`log_mel_blocks`."""
    first_row, skipped = _first_row(audio)
    n_samples = len(audio.samples) - skipped
    return first_row + 1 + (n_samples + _TAIL - _WINDOW_LENGTH) // HOP_LENGTH if n_samples > 0 else 0


def log_mel_blocks(audio: Audio) -> Iterator[npt.NDArray[np.float16]]:
    """Compute the log-mel whose row m is at m / 100 s on the video's clock, whenever the audio starts.

    The signal is edge-padded by 1 s at its end. Memory does not grow with the audio.

    Yields:
        float16 (m, 64), at most a minute at a time; rows before the audio starts are NaN. None at all if the audio ends
        before its first row.
    """
    for _, signal in _signal_blocks(audio):
        yield log_mel(signal).astype(np.float16)


def waveform_blocks(audio: Audio) -> Iterator[npt.NDArray[np.float16]]:
    """Read the samples under each row of :func:`log_mel_blocks`: sample k is at k / 16000 s on the video's clock.

    Yields:
        float16 (160 m,) in [-1, 1], at most a minute at a time, edge-padded and NaN like the rows of log-mel. float16
        keeps the shape of faint sound as well as that of loud sound: 11 significant bits down to -84 dB of full scale.
    """
    for n_rows, signal in _signal_blocks(audio):
        yield signal[: n_rows * HOP_LENGTH].astype(np.float16)


def _signal_blocks(audio: Audio) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Numbers of rows, at most a minute each, with the signal that their windows cover; NaN before the audio."""
    first_row, skipped = _first_row(audio)
    n_rows = n_log_mel_rows(audio)
    starts = [*range(0, min(first_row, n_rows), _ROWS_AT_ONCE), *range(first_row, n_rows, _ROWS_AT_ONCE)]
    for start, stop in pairwise([*starts, n_rows]):
        n_samples = (stop - start - 1) * HOP_LENGTH + _WINDOW_LENGTH
        if start < first_row:
            yield stop - start, np.full(n_samples, np.nan, np.float32)
            continue
        begin = skipped + (start - first_row) * HOP_LENGTH
        signal = audio.samples[begin : begin + n_samples]
        if len(signal) < n_samples:
            last = audio.samples[len(audio.samples) - 1 : len(audio.samples)]
            signal = np.concatenate([signal, np.repeat(last, n_samples - len(signal))])
        yield stop - start, signal


def _first_row(audio: Audio) -> tuple[int, int]:
    """First multiple of 10 ms at which there is audio, and the number of samples before it (< 10 ms), cut off.

    So rows stay on the clock to the sample. The tolerance keeps 2.43 * 100 = 243.00000000000003 at row 243.
    """
    first_row = max(0, int(np.ceil(audio.start_s * MEL_RATE - 1e-6)))
    return first_row, max(0, round((first_row / MEL_RATE - audio.start_s) * SAMPLE_RATE))


def band_centres_hz() -> npt.NDArray[np.float64]:
    """Return the (64,) frequencies at which the bands of log-mel peak, Hz, increasing."""
    return 700.0 * np.expm1(_band_edges_mel()[1:-1] / 1127.0)


def _band_edges_mel() -> npt.NDArray[np.float64]:
    return np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), N_MELS + 2)


def _mel_weights() -> npt.NDArray[np.float64]:
    """(257, 64) weight of each FFT bin in each band."""
    bin_mel = _mel(np.linspace(0.0, SAMPLE_RATE / 2, _N_FFT // 2 + 1))[:, None]
    edge = _band_edges_mel()
    lower, centre, upper = edge[:-2], edge[1:-1], edge[2:]
    rising = (bin_mel - lower) / (centre - lower)
    falling = (upper - bin_mel) / (upper - centre)
    # The DC bin is at 0 Hz, below the lowest band, so that its weights are zero.
    return np.maximum(0.0, np.minimum(rising, falling))


def _mel(frequency_hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(frequency_hz, np.float64) / 700.0)


def level_for_speech(samples: Samples) -> Samples:
    """Amplify faint sound to a level at which voice activity detection and recognition work; other sound is unchanged.

    The gain follows the loudest sustained sound within 15 s, so that a faint part of a loud recording is amplified too.

    Args:
        samples: float32 (N,) in [-1, 1] at 16 kHz.

    Returns:
        As many samples in [-1, 1], computed as they are read; the same object if nothing is faint.
    """
    levels = _block_levels(samples)
    gains = _gains(levels) if len(levels) else np.zeros(0)
    return _Levelled(samples, gains) if np.any(gains > 0) else samples


def _block_levels(samples: Samples) -> npt.NDArray[np.float64]:
    """Root mean square of each 100 ms, dB of full scale."""
    levels = []
    for first in range(0, len(samples), _BLOCKS_AT_ONCE * _LEVEL_BLOCK):
        part = samples[first : first + _BLOCKS_AT_ONCE * _LEVEL_BLOCK].astype(np.float64)
        starts = np.arange(0, len(part), _LEVEL_BLOCK)
        energy = np.add.reduceat(part**2, starts) / np.diff(starts, append=len(part))
        levels.append(10 * np.log10(energy + 1e-30))
    return np.concatenate(levels) if levels else np.zeros(0)


def _gains(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(B,) amplification of each of B blocks, dB."""
    from scipy.ndimage import maximum_filter1d, median_filter

    sustained = median_filter(levels, _SUSTAINED, mode="constant", cval=levels.min())
    a_second = SAMPLE_RATE // _LEVEL_BLOCK
    seconds = np.maximum.reduceat(sustained, np.arange(0, len(levels), a_second))
    around = maximum_filter1d(seconds, 2 * _LEVEL_REACH_S + 1).repeat(a_second)[: len(levels)]
    gains = np.where((around < _FAINT_DB) & (around > _SILENCE_DB), _LEVELLED_DB - around, 0.0)
    return np.minimum(gains, np.maximum(0.0, _LOUDEST_DB - maximum_filter1d(levels, _SUSTAINED)))


class _Levelled:
    """Samples with a gain that changes linearly, in dB, from the middle of one block to that of the next."""

    def __init__(self, samples: Samples, gains: npt.NDArray[np.float64]) -> None:
        self._samples, self._gains = samples, gains
        self._middles = (np.arange(len(gains)) + 0.5) * _LEVEL_BLOCK

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, part: slice, /) -> npt.NDArray[np.float32]:
        first, stop, step = part.indices(len(self))
        gains = np.interp(np.arange(first, stop), self._middles, self._gains)
        amplified = self._samples[first:stop] * 10 ** (gains / 20)
        return np.clip(amplified, -1, 1).astype(np.float32)[::step]
