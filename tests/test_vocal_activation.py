"""Vocal activation relative to the recording: pitch against known tones, and how it reacts to what it should ignore."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from preprocessing.media.audio import SAMPLE_RATE, log_mel
from rcma.experts.voice import measure_voice, vocal_activation

ALL = [(0.0, 1e9)]


def voice(
    pitch_hz: NDArray[np.float64], tilt: NDArray[np.float64], level: NDArray[np.float64] | float = 0.1
) -> NDArray[np.float32]:
    """Harmonics of a rising and falling pitch; ``tilt`` is the exponent by which they fade: less is brighter."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
    signal = np.zeros(len(pitch_hz))
    for k in range(1, 40):
        inside = k * pitch_hz < 7000
        signal += np.where(inside, np.sin(k * phase) * k**-tilt, 0.0)
    return np.asarray(level * signal / np.abs(signal).max(), np.float32)


def activation(samples: NDArray[np.float32], speech=ALL):
    mel = log_mel(samples).astype(np.float16)
    return vocal_activation(measure_voice(samples, 0.0, mel), speech)


def rising(seconds: float = 24.0, gain: float = 1.0) -> NDArray[np.float32]:
    """Pitch, brightness and level that rise together."""
    t = np.linspace(0.0, 1.0, round(seconds * SAMPLE_RATE))
    return gain * voice(120 * 2 ** (0.8 * t), 2.0 - 0.8 * t, 0.05 * 10 ** (0.4 * t))


@pytest.mark.parametrize("frequency_hz", [70.0, 110.0, 220.0, 440.0, 550.0])
def test_pitch_of_a_tone_with_harmonics(frequency_hz: float) -> None:
    samples = voice(np.full(SAMPLE_RATE, frequency_hz), np.full(SAMPLE_RATE, 1.0))
    frames = measure_voice(samples, 0.0, log_mel(samples).astype(np.float16))
    inside = frames.pitch[5:-5]
    np.testing.assert_allclose(inside, 12 * np.log2(frequency_hz / 55), atol=0.1)
    assert (frames.correlation[5:-5] > 0.8).all()


def test_rises_with_pitch_brightness_and_level() -> None:
    centres_s, values = activation(rising())
    assert np.isfinite(values).all()
    assert np.corrcoef(centres_s, values)[0, 1] > 0.95
    assert values[0] < -0.3 and values[-1] > 0.3


@pytest.mark.parametrize("gain", [0.25, 4.0])
def test_a_gain_of_12_db_changes_little(gain: float) -> None:
    _, plain = activation(rising())
    _, louder = activation(rising(gain=gain))
    np.testing.assert_allclose(louder, plain, atol=0.02)


def test_level_counts_only_as_far_as_it_agrees() -> None:
    t = np.linspace(0.0, 1.0, 24 * SAMPLE_RATE)
    pitch, tilt = 120 * 2 ** (0.8 * t), 2.0 - 0.8 * t
    _, falling = activation(voice(pitch, tilt, 0.3 * 10 ** (-0.4 * t)))
    _, falling_twice_as_fast = activation(voice(pitch, tilt, 0.3 * 10 ** (-0.8 * t)))
    np.testing.assert_allclose(falling_twice_as_fast, falling, atol=0.02)
    _, rising_level = activation(voice(pitch, tilt, 0.05 * 10 ** (0.8 * t)))
    assert rising_level[-1] > falling[-1] + 0.05


def test_stays_in_range_and_near_zero_for_a_steady_voice() -> None:
    n = 20 * SAMPLE_RATE
    _, values = activation(voice(np.full(n, 130.0), np.full(n, 1.5)))
    assert np.abs(values).max() < 0.05
    assert (np.abs(activation(rising())[1]) <= 1.0).all()


@pytest.mark.parametrize("kind", ["silence", "noise", "chord outside speech"])
def test_says_nothing_where_nobody_speaks(kind: str) -> None:
    n = 10 * SAMPLE_RATE
    if kind == "silence":
        samples, speech = np.zeros(n, np.float32), ALL
    elif kind == "noise":
        samples, speech = np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32), ALL
    else:
        t = np.arange(n) / SAMPLE_RATE
        samples = sum(0.1 * np.sin(2 * np.pi * f * t) for f in (220.0, 277.2, 329.6)).astype(np.float32)
        speech = []
    assert np.isnan(activation(samples, speech)[1]).all()


def test_a_window_with_little_voice_has_no_value() -> None:
    samples = rising(24.0)
    samples[8 * SAMPLE_RATE : 14 * SAMPLE_RATE] = 0.0
    centres_s, values = activation(samples)
    inside = (centres_s > 9.8) & (centres_s < 12.2)
    assert np.isnan(values[inside]).all() and np.isfinite(values[~inside]).any()


def test_a_recording_shorter_than_a_window() -> None:
    centres_s, values = activation(rising(1.0))
    assert len(centres_s) == len(values) == 1 and np.isfinite(values).all()
    assert len(activation(np.zeros(0, np.float32))[0]) == 1


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_synthetic_voice_that_becomes_higher_and_louder(tmp_path: Path) -> None:
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    parts = []
    for pitch, amplitude in ((20, 60), (40, 90), (60, 130), (90, 180)):
        path = tmp_path / f"{pitch}.wav"
        text = "The train to the coast leaves every morning from the old station behind the market."
        subprocess.run(["espeak-ng", "-v", "en", "-p", str(pitch), "-a", str(amplitude), "-w", path, text], check=True)
        rate, signal = wavfile.read(path)
        parts.append(resample_poly(signal / 32768, SAMPLE_RATE, rate).astype(np.float32))
    centres_s, values = activation(np.concatenate(parts))
    ends_s = np.cumsum([len(part) / SAMPLE_RATE for part in parts])
    means = [np.nanmean(v) for v in np.split(values, np.searchsorted(centres_s, ends_s[:-1]))]
    assert means == sorted(means) and means[-1] - means[0] > 0.3
