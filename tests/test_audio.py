"""Log-mel against a slow transcription of VGGish's definition, and its place on the video's clock."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from preprocessing.features.align import cut_patches, patch_start
from preprocessing.media import Audio, Video, read_audio
from preprocessing.media import audio as audio_module
from preprocessing.media.audio import (
    HOP_LENGTH,
    MEL_RATE,
    N_MELS,
    SAMPLE_RATE,
    level_for_speech,
    log_mel,
    log_mel_blocks,
    waveform_blocks,
)


def joined(blocks, audio):
    empty = np.zeros((0, N_MELS) if blocks is log_mel_blocks else 0, np.float16)
    return np.concatenate([empty, *blocks(audio)])


def slow_log_mel(samples, row):
    """One row, from the definition: plain sums in double precision, nothing from the module under test."""
    frame = [float(value) for value in samples[160 * row : 160 * row + 400]]
    windowed = [value * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n, value in enumerate(frame)]
    magnitude = []
    for k in range(257):
        real = sum(value * math.cos(2 * math.pi * k * n / 512) for n, value in enumerate(windowed))
        imaginary = sum(value * math.sin(2 * math.pi * k * n / 512) for n, value in enumerate(windowed))
        magnitude.append(math.hypot(real, imaginary))

    def mel(hz):
        return 1127.0 * math.log(1.0 + hz / 700.0)

    step = (mel(7500.0) - mel(125.0)) / 65
    bands = []
    for band in range(64):
        lower = mel(125.0) + band * step
        energy = 0.0
        for k in range(1, 257):  # the DC bin is left out
            position = (mel(k * 16000 / 512) - lower) / step  # 0 at the lower edge, 1 at the peak, 2 at the upper edge
            energy += magnitude[k] * max(0.0, min(position, 2.0 - position))
        bands.append(math.log(energy + 0.01))
    return bands


def test_log_mel_equals_the_slow_transcription():
    rng = np.random.default_rng(0)
    time_s = np.arange(4000) / SAMPLE_RATE
    # A full-scale tone beside near silence in the other bands is the hard case for rounding.
    samples = np.sin(2 * np.pi * 1000 * time_s) * (time_s < 0.15) + 1e-4 * rng.standard_normal(4000)
    rows = log_mel(samples.astype(np.float32))
    assert rows.dtype == np.float32
    assert rows.shape == (1 + (4000 - 400) // 160, N_MELS)
    for row in (0, 7, 14, 22):
        expected = slow_log_mel(samples.astype(np.float32), row)
        assert np.abs(rows[row] - expected).max() < 1e-5


def test_number_of_rows():
    for n_samples, n_rows in [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)]:
        assert log_mel(np.zeros(n_samples, np.float32)).shape == (n_rows, N_MELS)
    assert np.allclose(log_mel(np.zeros(400)), math.log(0.01))


@pytest.mark.parametrize("start_s", [0.0, 2.43, 0.5003, 1 / 3])
def test_rows_stay_on_the_clock_whenever_the_audio_starts(start_s):
    """The same sound, cut to start later, gives the same rows from there on."""
    rng = np.random.default_rng(2)
    world = rng.uniform(-0.5, 0.5, 5 * SAMPLE_RATE).astype(np.float32)  # sample i is at i / 16000 s
    first_sample = round(start_s * SAMPLE_RATE)
    start_s = first_sample / SAMPLE_RATE
    rows = joined(log_mel_blocks, Audio(samples=world[first_sample:], start_s=start_s))
    assert rows.dtype == np.float16
    first_row = math.ceil(first_sample / 160)
    assert np.isnan(rows[:first_row].astype(np.float32)).all()
    reference = joined(log_mel_blocks, Audio(samples=world, start_s=0.0))
    assert rows.shape == reference.shape
    assert np.array_equal(rows[first_row:], reference[first_row:])


def test_a_click_is_in_the_rows_around_its_time():
    samples = np.zeros(3 * SAMPLE_RATE, np.float32)
    samples[round(1.7 * SAMPLE_RATE)] = 1.0
    rows = joined(log_mel_blocks, Audio(samples=samples, start_s=0.6)).astype(np.float32)
    heard = np.flatnonzero(rows.max(axis=1) > math.log(0.02))
    # The click is at 2.3 s; a row at t hears from t to t + 25 ms.
    assert heard.min() >= round(2.3 * MEL_RATE) - 2
    assert heard.max() <= round(2.3 * MEL_RATE)


@pytest.mark.parametrize("n_samples", [1, 100, 16000, 23456])
def test_a_patch_can_start_at_any_time_inside_the_audio(n_samples):
    audio = Audio(samples=np.full(n_samples, 0.1, np.float32), start_s=0.0)
    times = np.arange(0, n_samples, 37) / SAMPLE_RATE
    _, present = cut_patches(joined(log_mel_blocks, audio), patch_start(times, "start"))
    assert present.all()


def test_audio_that_ends_before_its_first_row_has_none():
    assert joined(log_mel_blocks, Audio(samples=np.ones(3, np.float32), start_s=0.002)).shape == (0, N_MELS)


@pytest.mark.parametrize(("start_s", "n_samples"), [(0.0, 23456), (2.43, 400), (1 / 3, 16000), (0.002, 3), (0.5, 1)])
def test_the_waveform_lies_under_the_rows_of_log_mel(start_s, n_samples):
    rng = np.random.default_rng(3)
    first_sample = round(start_s * SAMPLE_RATE)
    samples = rng.uniform(-1, 1, n_samples).astype(np.float32)
    audio = Audio(samples=samples, start_s=first_sample / SAMPLE_RATE)
    waveform, rows = joined(waveform_blocks, audio), joined(log_mel_blocks, audio)
    assert waveform.dtype == np.float16
    assert waveform.shape == (HOP_LENGTH * len(rows),)
    missing = np.isnan(waveform)
    np.testing.assert_array_equal(missing, np.repeat(np.isnan(rows[:, 0]), HOP_LENGTH))
    # Sample k of the stream is at its own place on the clock; the last one goes on to the end.
    places = np.arange(len(waveform)) - first_sample
    expected = samples[np.clip(places, 0, n_samples - 1)].astype(np.float16)
    np.testing.assert_array_equal(waveform[~missing], expected[~missing])
    assert missing.sum() == min(math.ceil(first_sample / HOP_LENGTH) * HOP_LENGTH, len(waveform))


def test_faint_and_loud_sound_keep_their_shape():
    rng = np.random.default_rng(4)
    for level in (1.0, 1e-2, 2e-4):
        samples = (level * rng.uniform(-1, 1, SAMPLE_RATE)).astype(np.float32)
        noise = joined(waveform_blocks, Audio(samples=samples, start_s=0.0))[:SAMPLE_RATE] - samples
        assert np.square(noise).mean() < 1e-7 * np.square(samples).mean()


def test_blocks_join_without_a_seam_and_memory_stays_small(monkeypatch):
    rng = np.random.default_rng(1)
    audio = Audio(samples=rng.uniform(-1, 1, 30 * SAMPLE_RATE).astype(np.float32), start_s=3.3)
    whole = {blocks: joined(blocks, audio) for blocks in (log_mel_blocks, waveform_blocks)}
    monkeypatch.setattr(audio_module, "_ROWS_AT_ONCE", 70)
    for blocks, rows in whole.items():
        assert np.array_equal(joined(blocks, audio), rows, equal_nan=True)
        assert max(map(len, blocks(audio))) <= 70 * HOP_LENGTH
    tracemalloc.start()
    for _ in waveform_blocks(audio):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A block has 11 200 samples of 4 bytes; all of them, of 2 bytes, would be 1.1 MB.
    assert peak < 3e5


def test_real_audio_that_starts_late(media):
    path = media / "pyfeat_face_noface.mov"  # its audio starts at 2.43 s and lasts 3.97 s
    with Video(path) as video:
        audio = read_audio(path, origin_s=video.start_s)
    rows = joined(log_mel_blocks, audio).astype(np.float32)
    there = ~np.isnan(rows).any(axis=1)
    assert abs(np.argmax(there) / MEL_RATE - 2.43) < 0.011
    assert there[np.argmax(there) :].all()
    waveform = joined(waveform_blocks, audio)
    there_too = ~np.isnan(waveform)
    assert np.argmax(there_too) == round(2.43 * SAMPLE_RATE)
    assert there_too[np.argmax(there_too) :].all()
    again = log_mel(waveform[there_too].astype(np.float32))
    # Rounding shows where a loud band stands beside an empty one, near the logarithm's offset.
    np.testing.assert_allclose(again, rows[there][: len(again)], atol=0.15)
    assert np.abs(again - rows[there][: len(again)]).mean() < 2e-3
    # 3.97 s and the second of padding, less what the last window needs.
    assert abs(len(rows) / MEL_RATE - (2.43 + 3.97 + 1.0 - 0.02)) < 0.03


def syllables(n_seconds, level_db, seed=5):
    """Noise in bursts of 0.2 s with pauses, at a level in dB of full scale while it lasts."""
    random = np.random.default_rng(seed)
    time_s = np.arange(n_seconds * SAMPLE_RATE) / SAMPLE_RATE
    return (random.standard_normal(len(time_s)) * 10 ** (level_db / 20) * (time_s % 0.3 < 0.2)).astype(np.float32)


def loudness_db(samples):
    return 10 * math.log10(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize("level_db", [-50.0, -60.0, -80.0, -90.0])
def test_faint_sound_is_levelled(level_db):
    faint = syllables(8, level_db)
    levelled = level_for_speech(faint)[:]
    assert loudness_db(levelled) == pytest.approx(-32, abs=3)
    # It is the same sound: one factor for speech and pauses.
    factor = np.median(levelled[faint != 0] / faint[faint != 0])
    np.testing.assert_allclose(levelled, faint * factor, atol=0.02 * np.abs(levelled).max())


@pytest.mark.parametrize("samples", [syllables(8, -20.0), syllables(8, -40.0), np.zeros(16000, np.float32)])
def test_sound_of_a_usual_level_and_silence_stay_as_they_are(samples):
    assert level_for_speech(samples) is samples


def test_only_the_faint_part_of_a_recording_is_levelled():
    loud, faint = syllables(30, -20.0), syllables(40, -65.0)
    levelled = level_for_speech(np.concatenate([loud, faint]))
    assert np.array_equal(levelled[: len(loud)], loud)
    assert loudness_db(levelled[-16000 * 20 :]) == pytest.approx(-32, abs=3)


def test_a_click_does_not_keep_speech_faint():
    faint = syllables(10, -65.0)
    faint[80000:80080] = 0.9
    levelled = level_for_speech(faint)[:]
    assert np.abs(levelled).max() <= 1.0
    assert loudness_db(levelled[:64000]) == pytest.approx(-32, abs=3)


def test_levelled_sound_is_read_in_parts():
    levelled = level_for_speech(syllables(10, -65.0))
    parts = [levelled[first : first + 1234] for first in range(0, len(levelled), 1234)]
    assert np.array_equal(np.concatenate(parts), levelled[:])
    assert levelled[:].dtype == np.float32
    assert np.array_equal(levelled[100:9000:7], levelled[:][100:9000:7])


@pytest.mark.parametrize("n_samples", [0, 1, 800, 1600, 24001])
def test_short_sound_can_be_levelled(n_samples):
    samples = np.full(n_samples, 1e-3, np.float32)
    assert len(level_for_speech(samples)[:]) == n_samples
