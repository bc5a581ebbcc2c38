"""The clock: true times are made, some are falsified, and the true ones must come out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from preprocessing.media.clock import FrameClock, PacketTimes, RecordingClock, settle_clock

SPACING_S = 0.04
N_FRAMES = 150


def stream(times: np.ndarray, *, spacing_s: float = SPACING_S, offset: int = 0, **more: bool) -> PacketTimes:
    """Packets in the order of the file, in every second place."""
    return PacketTimes(np.asarray(times, float), 2 * np.arange(len(times)) + offset, spacing_s, **more)


def shown(packets: PacketTimes, sound: PacketTimes | None = None) -> np.ndarray:
    """Times of all frames, if packets are stored as they are shown."""
    clock = settle_clock(packets, sound).video
    own = [None if np.isnan(time_s) else float(time_s) for time_s in clock.time_s]
    frames = FrameClock(clock)
    return np.array([frames.time_s(a, b) for a, b in itertools.zip_longest(own, own[1:])])


def heard(sound: PacketTimes, pictures: PacketTimes) -> np.ndarray:
    """Times of all packets of sound; one without a time follows the one before."""
    clock = settle_clock(pictures, sound).audio
    assert clock is not None
    times: list[float] = []
    for time_s in clock.time_s:
        times.append(float(time_s) if np.isfinite(time_s) else times[-1] + sound.spacing_s)
    return np.array(times)


def even(n: int, spacing_s: float = SPACING_S) -> np.ndarray:
    return np.arange(n) * spacing_s


@pytest.mark.parametrize("by_s", [319.0, -319.0, 1e5, -1e5, 3.0, -3.0])
@pytest.mark.parametrize(
    "where",
    [[0], [0, 1], [70], [70, 71], range(60, 84), [149], [148, 149], [0, 40, 41, 90, 149], range(0, 20)],
    ids=str,
)
def test_wild_times_are_placed_between_their_neighbours(where: list[int], by_s: float) -> None:
    true = even(N_FRAMES)
    false = true.copy()
    false[list(where)] += by_s
    times = shown(stream(false))
    np.testing.assert_allclose(times, true, atol=1e-3)
    assert settle_clock(stream(false)).video.n_outliers == len(where)


@pytest.mark.parametrize("by_s", [319.0, -319.0, 5000.0])
@pytest.mark.parametrize("where", [[0], [0, 1, 2], [100], range(100, 110), [299], [298, 299]], ids=str)
def test_wild_packets_of_sound_follow_the_ones_before(where: list[int], by_s: float) -> None:
    true = even(300, 0.02)
    false = true.copy()
    false[list(where)] += by_s
    np.testing.assert_allclose(heard(stream(false, spacing_s=0.02, offset=1), stream(even(N_FRAMES))), true, atol=1e-9)


def test_good_times_stay_to_the_last_bit() -> None:
    random = np.random.default_rng(0)
    for true in (
        np.cumsum(random.uniform(0.001, 0.2, 500)),  # a variable frame rate
        np.concatenate([even(100), 1800 + even(100)]),  # the camera was stopped for half an hour
        np.arange(20) * 10.0,  # one picture every ten seconds
        np.array([0, 0.04, 0.08, 5, 5.04, 12, 30, 31, 33, 60, 60.04]),  # a screen that seldom changes
    ):
        spacing_s = float(np.median(np.diff(true)))
        assert np.array_equal(settle_clock(stream(true, spacing_s=spacing_s)).video.time_s, true)


@pytest.mark.parametrize("at", [20, 40])
def test_a_pause_at_an_end_is_real_if_there_is_sound(at: int) -> None:
    """A screen that stands still, and one last frame: only the sound tells it from a wild time."""
    times = np.append(even(50), at)
    sound = stream(even(round(at / 0.02), 0.02), spacing_s=0.02, offset=1)
    assert shown(stream(times), sound)[-1] == at
    assert shown(stream(times))[-1] == pytest.approx(50 * SPACING_S)


def test_frames_stored_out_of_order_keep_their_times() -> None:
    # I P B B as they are decoded.
    order = np.concatenate([[0], *[[k + 3, k + 1, k + 2] for k in range(0, 147, 3)]])
    true = order * SPACING_S
    assert np.array_equal(settle_clock(stream(true, reordered=True)).video.time_s, true)
    wild = true.copy()
    wild[[70, 71]] += 319.0
    settled = settle_clock(stream(wild, reordered=True)).video.time_s
    assert np.array_equal(np.flatnonzero(np.isnan(settled)), [70, 71])


def test_one_time_out_of_order_moves_one_frame() -> None:
    times = np.array([0, 4, 8, 90, 16, 20, 24, 24, 28]) / 100
    expected = [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.2401, 0.28]
    np.testing.assert_allclose(shown(stream(times)), expected, atol=1e-9)
    times = even(150)
    times[[70, 71]] += 0.82
    np.testing.assert_allclose(shown(stream(times)), even(150), atol=1e-3)


def joined(n: int, starts: list[float], *, spacing_s: float = SPACING_S) -> np.ndarray:
    return np.concatenate([start + even(n, spacing_s) for start in starts])


@pytest.mark.parametrize(
    "starts", [[0, 0, 0], [5, 1, 0], [95443.0, 0, 90000.0], [0, 9000, 100], [100, 99.5, 99.0]], ids=str
)
def test_joined_recordings_go_on(starts: list[float]) -> None:
    packets = stream(joined(50, starts))
    clock = settle_clock(packets).video
    assert len(clock.resets) == 2
    assert clock.n_outliers == 0
    np.testing.assert_allclose(shown(packets), even(150), atol=1e-6)


def test_a_clock_that_goes_back_for_less_than_a_second_is_no_new_clock() -> None:
    times = even(150)
    times[60:80] -= 2.0
    np.testing.assert_allclose(shown(stream(times)), even(150), atol=1e-3)
    times = even(150)
    times[60:100] -= 2.0
    assert settle_clock(stream(times)).video.n_outliers == 0


@pytest.mark.parametrize("where", [[48], [49], [50], [51, 52], [46, 53], [49, 50]], ids=str)
@pytest.mark.parametrize("by_s", [319.0, -319.0])
def test_wild_times_near_a_new_clock(where: list[int], by_s: float) -> None:
    times = joined(50, [10, 4, 0])
    times[where] += by_s
    clock = settle_clock(stream(times)).video
    assert len(clock.resets) == 2
    assert clock.n_outliers == len(where)
    np.testing.assert_allclose(shown(stream(times)), even(150), atol=1e-3)


def both(pictures: np.ndarray, sound: np.ndarray, *, sound_late: int = 0) -> tuple[RecordingClock, float]:
    """Pictures every 0.04 s and sound every 0.02 s beside them, the sound ``sound_late`` packets later in the file."""
    seen = PacketTimes(pictures, 4 * np.arange(len(pictures)), 0.04)
    listened = PacketTimes(sound, 2 * (np.arange(len(sound)) + sound_late) + 1, 0.02)
    clock = settle_clock(seen, listened)
    assert clock.audio is not None
    return clock, float(np.nanmax(np.abs(clock.audio.time_s - np.arange(len(sound)) * 0.02)))


@pytest.mark.parametrize("late", [0, 20, -20])
@pytest.mark.parametrize("starts", [[0, 0, 0], [0, 60, 20], [0, 9000, 10]], ids=str)
def test_sound_follows_the_pictures_over_new_clocks(late: int, starts: list[float]) -> None:
    clock, error_s = both(joined(100, starts), joined(200, starts, spacing_s=0.02), sound_late=late)
    assert clock.audio is not None
    assert not np.isnan(clock.audio.time_s).any()
    if starts[1] == 60:  # a pause of under an hour stays a pause, of both
        assert clock.audio.resets == clock.video.resets
    else:
        assert error_s < 1e-6


def test_sound_of_unequal_length_keeps_its_place_beside_its_pictures() -> None:
    # The second of three recordings has sound in its second half only.
    pictures = joined(100, [0, 0, 0])
    sound = np.concatenate([even(200, 0.02), 2 + even(100, 0.02), even(200, 0.02)])
    seen = PacketTimes(pictures, 4 * np.arange(300), 0.04)
    position = 2 * np.concatenate([np.arange(200), np.arange(300, 400), np.arange(400, 600)]) + 1
    settled = settle_clock(seen, PacketTimes(sound, position, 0.02)).audio
    assert settled is not None
    np.testing.assert_allclose(settled.time_s, (position - 1) / 2 * 0.02, atol=1e-6)


def test_recording_without_sound_in_its_middle() -> None:
    seen = PacketTimes(joined(100, [0, 0, 0]), 4 * np.arange(300), 0.04)
    position = 2 * np.concatenate([np.arange(200), np.arange(400, 600)]) + 1
    settled = settle_clock(seen, PacketTimes(joined(200, [0, 0], spacing_s=0.02), position, 0.02)).audio
    assert settled is not None
    np.testing.assert_allclose(settled.time_s, (position - 1) / 2 * 0.02, atol=1e-6)


def test_clock_of_the_sound_alone_starts_anew() -> None:
    clock, error_s = both(even(250), np.concatenate([even(200, 0.02), even(300, 0.02)]))
    assert clock.video.resets == ()
    assert clock.audio is not None and len(clock.audio.resets) == 1
    assert error_s < 1e-6


def test_gaps_in_sound_stay() -> None:
    sound = np.concatenate([even(100, 0.02), 4 + even(100, 0.02), 8 + even(3, 0.02)])
    clock, _ = both(even(250), sound)
    assert clock.audio is not None
    assert np.array_equal(clock.audio.time_s, sound)


def test_sound_far_from_the_pictures_starts_with_them() -> None:
    clock, error_s = both(even(100), 1e6 + even(200, 0.02))
    assert clock.audio is not None
    assert error_s < 1e-6


def test_packets_without_any_time() -> None:
    np.testing.assert_allclose(shown(stream(np.full(5, np.nan))), even(5))
    assert settle_clock(stream(np.zeros(0)), stream(np.zeros(0))).audio is not None


@pytest.mark.slow
def test_many_packets_are_quick() -> None:
    """Thousands of jumps: with a cost that grows with their square this would take minutes."""
    random = np.random.default_rng(0)
    times = np.concatenate([random.uniform(0, 1e4) + even(30) for _ in range(4000)])
    clock = settle_clock(stream(times), stream(times, offset=1))
    assert clock.video.n_outliers == 0
