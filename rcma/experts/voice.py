"""Vocal activation relative to the recording: how activated a voice is, without a trained model.

Pitch, brightness and level rise with activation (after Bone, Lee and Narayanan, "Robust unsupervised arousal rating",
IEEE Transactions on Affective Computing, 2014). Each is taken relative to its median over the recording, on a fixed
scale, so that a calm recording stays near 0. A recording that is angry throughout is near 0 too. Valence is not
predicted.

For x one of pitch P (semitones), brightness H (dB) and level L (dB), each the median over the voiced frames of a window
of 3 s:

    z_x = tanh((x - median of the recording) / 6)
    w   = clip(Spearman(z_L, (z_P + z_H) / 2), 0, 1)      over the windows of the recording
    A   = (z_P + z_H + w z_L) / (2 + w)                   level counts as far as it agrees with the others
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.media import HOP_LENGTH, MEL_RATE, SAMPLE_RATE, Samples, band_centres_hz

WINDOW_S = 3.0
"""Length of a window, seconds."""
HOP_S = 0.5
"""From the centre of one window to the next, seconds."""
_LEAST_VOICED_S = 0.3
"""A window with less voiced sound has no value."""
_SCALE = 6.0
"""Semitones, or dB, from the median of the recording to tanh(1)."""
_FRAME = SAMPLE_RATE * 40 // 1000
_N_FFT = 1024
_LOWEST_HZ, _HIGHEST_HZ = 65.0, 600.0
_OCTAVE_COST = 0.02
"""Subtracted from a peak of the autocorrelation for each octave of its lag above the shortest lag."""
_LEAST_CORRELATION = 0.5
_DYNAMIC_RANGE_DB = 45.0
"""Frames this far below the 95th percentile of the level are not voiced."""
_BRIGHT_HZ = 1000.0
_REFERENCE_HZ = 55.0
_LOG_OFFSET = 0.01
_LEAST_MAGNITUDE = 1e-4
_ROWS_AT_ONCE = 60 * MEL_RATE


@dataclass(frozen=True)
class VoiceFrames:
    """Measurements every 10 ms; M rows, row m at m/100 s on the video's clock."""

    pitch: NDArray[np.float64]
    """(M,) semitones above 55 Hz; NaN where no pitch is found."""
    correlation: NDArray[np.float64]
    """(M,) of the signal with itself one period later, at most about 1."""
    brightness_db: NDArray[np.float64]
    """(M,) energy at 1 kHz and above over the energy below."""
    level_db: NDArray[np.float64]
    """(M,) energy of all bands."""


def measure_voice(samples: Samples, start_s: float, log_mel: NDArray[np.float16]) -> VoiceFrames:
    """Measure pitch, brightness and level.

    Args:
        samples: (N,) mono sound at 16 kHz.
        start_s: time of the first sample on the video's clock, seconds.
        log_mel: (M,64) of the same sound, row m at m/100 s; NaN before it starts.
    """
    n_rows = len(log_mel)
    pitch, correlation = np.full(n_rows, np.nan), np.zeros(n_rows)
    brightness_db, level_db = np.full(n_rows, np.nan), np.full(n_rows, -np.inf)
    bright = band_centres_hz() >= _BRIGHT_HZ
    for first in range(0, n_rows, _ROWS_AT_ONCE):
        rows = slice(first, min(first + _ROWS_AT_ONCE, n_rows))
        block = np.asarray(log_mel[rows], np.float64)
        energy = np.maximum(np.exp(block) - _LOG_OFFSET, _LEAST_MAGNITUDE) ** 2  # (m,64)
        there = np.isfinite(block).all(axis=1)
        total, high = energy.sum(axis=1), energy[:, bright].sum(axis=1)
        level_db[rows] = np.where(there, 10 * np.log10(total), -np.inf)
        brightness_db[rows] = np.where(there, 10 * np.log10(high / (total - high)), np.nan)
        pitch[rows], correlation[rows] = _pitch(_frames(samples, start_s, rows))
    return VoiceFrames(pitch, correlation, brightness_db, level_db)


def vocal_activation(
    frames: VoiceFrames, speech: Sequence[tuple[float, float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the activation of the voice in windows of 3 s, relative to the recording.

    Args:
        frames: see :func:`measure_voice`.
        speech: (start, end) of detected speech, seconds on the video's clock. Music would pass as voiced.

    Returns:
        Centres of the windows (K,), seconds, and activation (K,) in [-1,1]; NaN in windows with less than 0.3 s voiced.
    """
    centres_s = np.arange(WINDOW_S / 2, max(len(frames.pitch) / MEL_RATE - WINDOW_S / 2, WINDOW_S / 2) + 1e-9, HOP_S)
    measured = np.stack([frames.pitch, frames.brightness_db, frames.level_db], axis=1)  # (M,3)
    voiced = _is_voiced(frames, speech)
    activation = np.full(len(centres_s), np.nan)
    if not voiced.any():
        return centres_s, activation
    middle = np.median(measured[voiced], axis=0)
    z = np.full((len(centres_s), 3), np.nan)
    for k, centre_s in enumerate(centres_s):
        rows = slice(round((centre_s - WINDOW_S / 2) * MEL_RATE), round((centre_s + WINDOW_S / 2) * MEL_RATE))
        inside = measured[rows][voiced[rows]]
        if len(inside) >= _LEAST_VOICED_S * MEL_RATE:
            z[k] = np.tanh((np.median(inside, axis=0) - middle) / _SCALE)
    valid = np.isfinite(z).all(axis=1)
    z_pitch, z_brightness, z_level = z[valid].T
    weight = np.clip(_spearman(z_level, (z_pitch + z_brightness) / 2), 0.0, 1.0)
    activation[valid] = (z_pitch + z_brightness + weight * z_level) / (2 + weight)
    return centres_s, activation


def at_frames(
    centres_s: NDArray[np.float64], values: NDArray[np.float64], time_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate values (K,) of windows with rising centres (K,) to frames (T,), all times in seconds.

    The result is NaN outside the nearest window, and where that has no value (NaN).
    """
    valid = np.isfinite(values)
    if not valid.any():
        return np.full(len(time_s), np.nan)
    nearest = np.searchsorted((centres_s[1:] + centres_s[:-1]) / 2, time_s)
    reached = valid[nearest] & (np.abs(time_s - centres_s[nearest]) <= WINDOW_S / 2)
    return np.where(reached, np.interp(time_s, centres_s[valid], values[valid]), np.nan)


def _is_voiced(frames: VoiceFrames, speech: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    spoken = np.zeros(len(frames.pitch), np.bool_)
    for start_s, end_s in speech:
        spoken[max(0, round(start_s * MEL_RATE)) : max(0, round(end_s * MEL_RATE))] = True
    finite = frames.level_db[np.isfinite(frames.level_db)]
    loud_db = np.percentile(finite, 95) if len(finite) else np.inf
    return (
        spoken
        & np.isfinite(frames.pitch)
        & (frames.correlation > _LEAST_CORRELATION)
        & (frames.level_db > loud_db - _DYNAMIC_RANGE_DB)
    )


def _frames(samples: Samples, start_s: float, rows: slice) -> NDArray[np.float64]:
    """(m,640) samples around the middle of each row's 25 ms; zeros outside the sound."""
    # Row m covers the samples [160 m, 160 m + 400): both frames have the same middle.
    begin = rows.start * HOP_LENGTH + (400 - _FRAME) // 2 - round(start_s * SAMPLE_RATE)
    n = (rows.stop - rows.start - 1) * HOP_LENGTH + _FRAME
    signal = np.zeros(n)
    first, stop = max(0, begin), min(len(samples), begin + n)
    if first < stop:
        signal[first - begin : stop - begin] = samples[first:stop]
    return np.lib.stride_tricks.sliding_window_view(signal, _FRAME)[::HOP_LENGTH]


def _pitch(frames: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Semitones above 55 Hz (NaN without a peak), and the correlation at the period, both (m,)."""
    window = np.hanning(_FRAME + 2)[1:-1]
    of_window = _autocorrelation(window[None])[0]
    correlation = _autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = correlation / correlation[:, :1] * (of_window[0] / of_window)  # (m,lags)
    shortest, longest = int(np.ceil(SAMPLE_RATE / _HIGHEST_HZ)), int(SAMPLE_RATE // _LOWEST_HZ)
    lags = np.arange(shortest, longest + 1)
    here, before, after = (np.nan_to_num(correlation[:, lags + shift]) for shift in (0, -1, 1))
    is_peak = (here > before) & (here >= after)
    score = np.where(is_peak, here - _OCTAVE_COST * np.log2(lags / shortest), -np.inf)
    best = score.argmax(axis=1)
    row = np.arange(len(frames))
    left, peak, right = before[row, best], here[row, best], after[row, best]
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.nan_to_num(0.5 * (left - right) / (left - 2 * peak + right))
    found = is_peak.any(axis=1)
    frequency_hz = SAMPLE_RATE / (lags[best] + np.where(found, shift, 0.0))
    return np.where(found, 12 * np.log2(frequency_hz / _REFERENCE_HZ), np.nan), np.where(found, peak, 0.0)


def _autocorrelation(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,n) -> (m,513), lags 0 to 512; the lags that are used have no wrap-around."""
    return np.fft.irfft(np.abs(np.fft.rfft(frames, _N_FFT)) ** 2, _N_FFT)[:, : _N_FFT // 2 + 1]


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Rank correlation; 0 where it is undefined."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    from scipy.stats import spearmanr  # takes a while to import

    return float(spearmanr(x, y).statistic)
