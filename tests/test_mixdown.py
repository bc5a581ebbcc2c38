"""Channels in opposite phase: what is said in them is still there in mono, and other sound stays to the last bit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.media import SAMPLE_RATE, Audio, read_audio
from preprocessing.media.mixdown import mix_weights

RATE = 48000


def speech_like(n_seconds: float, *, seed: int = 0) -> np.ndarray:
    """Low noise in bursts of 0.2 s with pauses, (N,) at 48 kHz."""
    random = np.random.default_rng(seed)
    noise = np.convolve(random.standard_normal(round(n_seconds * RATE)), np.hanning(60) / 8, mode="same")
    return 0.2 * noise * (np.arange(len(noise)) / RATE % 0.3 < 0.2)


def read(folder: Path, channels: list[np.ndarray], layout: str = "stereo") -> Audio:
    """Write channels as 24-bit PCM beside one picture, and read them as the pipeline does."""
    path = folder / "channels.mkv"
    samples = np.round(np.clip(channels, -1, 1) * (2**31 - 256)).astype(np.int32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s24le", rate=RATE, layout=layout)
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(video.encode(frame))
        container.mux(video.encode())
        for first in range(0, samples.shape[1], 4800):
            piece = np.ascontiguousarray(samples[:, first : first + 4800].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="s32", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    audio = read_audio(path, origin_s=0.0)
    assert audio is not None
    return audio


def at_16_khz(signal: np.ndarray) -> np.ndarray:
    """Every third sample of what FFmpeg's resampler would give: the signal has nothing above 8 kHz."""
    spectrum = np.fft.rfft(signal)
    return np.fft.irfft(spectrum[: len(signal) // 6 + 1], len(signal) // 3) / 3


def likeness(heard: np.ndarray, said: np.ndarray) -> float:
    """Absolute correlation."""
    n = min(len(heard), len(said))
    return float(abs(np.corrcoef(heard[:n], said[:n])[0, 1]))


def energy(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize(("factor", "delay"), [(-1.0, 0), (-0.9, 0), (-0.6, 0), (-1.0, 3), (-1.0, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_opposite_phase_is_heard(tmp_path: Path, factor: float, delay: int, scale: float) -> None:
    left = scale * speech_like(4)
    audio = read(tmp_path, [left, factor * np.roll(left, delay)])
    samples, said = audio.samples[:], at_16_khz(left)
    assert energy(samples) > 0.4 * energy(said)
    assert likeness(samples, said) > 0.95
    assert any("opposite phase" in warning for warning in audio.warnings)


def test_opposite_phase_in_a_part_only(tmp_path: Path) -> None:
    left = speech_like(9)
    right = left.copy()
    right[3 * RATE : 6 * RATE] *= -1
    samples = read(tmp_path, [left, right]).samples[:]
    for first in (0.5, 3.6, 6.6):
        part = slice(round(first * SAMPLE_RATE), round((first + 2) * SAMPLE_RATE))
        assert energy(samples[part]) > 0.4 * energy(at_16_khz(left)[part])


def test_no_click_where_a_channel_is_inverted(tmp_path: Path) -> None:
    time_s = np.arange(6 * RATE) / RATE
    left = 0.3 * np.sin(2 * np.pi * 200 * time_s)
    right = np.where(time_s < 3, left, -left)
    samples = read(tmp_path, [left, right]).samples[:]
    steepest = 0.3 * 2 * np.pi * 200 / SAMPLE_RATE
    # Around the change of the recording itself, which is sudden at a zero of the wave.
    assert np.abs(np.diff(samples)).max() < 1.6 * steepest


@pytest.mark.parametrize("kind", ["equal", "panned", "unrelated", "one dead", "delayed", "half inverted"])
def test_other_stereo_stays_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    left, other = speech_like(3), speech_like(3, seed=1)
    right = {
        "equal": left,
        "panned": 0.2 * left,
        "unrelated": other,
        "one dead": np.zeros_like(left),
        "delayed": np.roll(left, 30),
        "half inverted": -0.3 * left,
    }[kind]
    audio = read(tmp_path, [left, right])
    assert audio.warnings == ()
    resampler = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(tmp_path / "channels.mkv")) as container:
        frames = [*container.decode(audio=0), None]
        mixed = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    reference = (np.concatenate(mixed) / 2.0**31).astype(np.float32)
    assert np.array_equal(audio.samples[:], reference)


def test_speech_in_the_centre_of_six_channels(tmp_path: Path) -> None:
    speech, music = speech_like(3), 0.3 * speech_like(3, seed=1)
    silence = np.zeros_like(speech)
    audio = read(tmp_path, [music, -music, speech, silence, silence, silence], layout="5.1")
    assert likeness(audio.samples[:], at_16_khz(speech)) > 0.8


def test_weights_cannot_clip() -> None:
    np.testing.assert_allclose(mix_weights("stereo"), [0.5, 0.5], atol=1e-6)
    weights = mix_weights("5.1")
    assert weights.sum() <= 1 + 1e-6
    assert weights[2] == weights.max()  # the centre
