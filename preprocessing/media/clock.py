"""One clock for a recording: which packet times to trust, and how to correct them.

A container's times can be wrong in two ways: a few packets can have times far off the others, or all times jump because
recordings were joined. :func:`settle_clock` distinguishes them by one rule for video and audio: a jump starts a new
clock only if at least a second of packets confirms it. The times of shorter runs are discarded, and their packets are
placed relative to their neighbours.

The rule is an optimisation over runs of packets without a jump. Dropping a run costs its duration, and more than it can
save if it lasts a second or longer; a new clock costs one second; a step forwards costs nothing, so that pauses and
sparse frames keep their times. The cheapest explanation wins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

CONFIRMED_S = 1.0
"""A jump is a new clock only if this many seconds of packets confirm it."""
LONGEST_PAUSE_S = 3600.0
"""A longer jump forwards is a new clock, not a pause."""
_STEP_S = 0.25
"""Steps up to this length, forwards or backwards, are not jumps."""
_STEPS = 8
"""Neither are steps of up to this many spacings: frames are stored up to that much out of order."""
_NEW_CLOCK_S = CONFIRMED_S - 0.02
"""Cost of a new clock: half a frame below a second, so that 25 frames of 0.04 s confirm one."""
_NUDGE_S = 1e-4
"""A frame whose time does not increase is placed this long after the previous one."""


@dataclass(frozen=True)
class PacketTimes:
    """The N packets of one stream, in file order."""

    time_s: NDArray[np.float64]
    """(N,) presentation time on the container's clock, seconds; NaN where a packet has none."""
    position: NDArray[np.int64]
    """(N,) rank of each packet among the packets of all streams."""
    spacing_s: float
    """Usual time between consecutive packets, seconds; above 0."""
    reordered: bool = False
    """Whether packets are stored in a different order than they are shown."""


@dataclass(frozen=True)
class ClockReset:
    """A restart of a container's clock."""

    time_s: float
    """Time of the first packet after it on the recording's clock, seconds."""
    shift_s: float
    """Added to the container's times from there on, seconds."""


@dataclass(frozen=True)
class StreamClock:
    """Times of the N packets of one stream on the recording's clock, which is the container's up to its first reset."""

    time_s: NDArray[np.float64]
    """(N,) seconds; NaN where a packet has no reliable time and is placed relative to its neighbours."""
    spacing_s: float
    """Usual time between consecutive packets, seconds."""
    resets: tuple[ClockReset, ...] = ()
    """Restarts of the container's clock, in order of time."""
    n_outliers: int = 0
    """Number of packets whose times were far off the others."""
    increasing: bool = False
    """Whether no packet is earlier than its predecessor in the file."""


@dataclass(frozen=True)
class RecordingClock:
    """Packet times of the video stream, and of the audio stream if there is one."""

    video: StreamClock
    audio: StreamClock | None = None


@dataclass(frozen=True)
class _Run:
    """Packets on one clock."""

    packets: NDArray[np.intp]
    first_s: float
    last_s: float


def settle_clock(video: PacketTimes, audio: PacketTimes | None = None) -> RecordingClock:
    """Decide which times to trust, and put video and audio on one clock.

    Where the clocks of both restart, audio is shifted like the video packets next to it in the file.
    """
    audio_segments = [] if audio is None else _trusted_segments(audio, other=[])
    video_segments = _trusted_segments(video, other=audio_segments)
    shifts = [0.0] if video_segments else []
    for before, after in pairwise(video_segments):
        shifts.append(_continuing_shift(before, shifts[-1], after, video.spacing_s))
    video_clock = _stream_clock(video, video_segments, shifts)
    if audio is None:
        return RecordingClock(video_clock)
    audio_segments = _trusted_segments(audio, other=video_segments)
    audio_shifts = _audio_shifts(audio_segments, audio, video_segments, shifts, video)
    return RecordingClock(video_clock, _stream_clock(audio, audio_segments, audio_shifts))


class FrameClock:
    """Assigns strictly increasing times to decoded frames in display order."""

    def __init__(self, clock: StreamClock) -> None:
        """Start before the first frame."""
        self._clock = clock
        self._known_s = np.sort(clock.time_s[np.isfinite(clock.time_s)])
        self._origin_s = 0.0
        self._last_s: float | None = None
        self._n_without = 0
        self._n_moved = 0

    def time_s(self, own_s: float | None, following_s: float | None) -> float:
        """Return the time of the next frame in seconds, 0 for the first.

        ``own_s`` is its time on the recording's clock, ``following_s`` that of the frame after it; None if unknown.
        """
        last_s = self._last_s
        if own_s is None:
            self._n_without += 1
        if last_s is None:
            self._origin_s = own_s or 0.0
            time_s = 0.0
        elif own_s is None:
            time_s = self._estimate(last_s)
        else:
            time_s = own_s - self._origin_s
            if following_s is not None and last_s < following_s - self._origin_s < time_s:
                # Only this frame is out of order.
                time_s = (last_s + (following_s - self._origin_s)) / 2
                self._n_moved += 1
        if last_s is not None and time_s <= last_s:
            time_s = last_s + _NUDGE_S
            self._n_moved += 1
        self._last_s = time_s
        return time_s

    def _estimate(self, last_s: float) -> float:
        """One spacing after the previous frame, but before the next known time."""
        time_s = last_s + self._clock.spacing_s
        later = bisect_right(self._known_s, last_s + self._origin_s + _NUDGE_S)
        if later == len(self._known_s):
            return time_s
        return min(time_s, (last_s + float(self._known_s[later]) - self._origin_s) / 2)

    def warnings(self) -> list[str]:
        """Describe which times had to be estimated."""
        n_outliers = self._clock.n_outliers
        counts = {
            "frames without a time, placed at the usual spacing": self._n_without - n_outliers,
            "frames whose time was out of order, placed between their neighbours": self._n_moved + n_outliers,
        }
        found = [f"video: {problem}: {n_frames}" for problem, n_frames in counts.items() if n_frames > 0]
        return found + describe_resets("video", self._clock)


def describe_resets(kind: str, clock: StreamClock) -> list[str]:
    """Return a warning about the restarts of a stream's clock, if there are any."""
    if not clock.resets:
        return []
    return [f"{kind}: its clock jumps, as in joined recordings, and continues from there: {len(clock.resets)}"]


def _trusted_segments(stream: PacketTimes, *, other: list[_Run]) -> list[_Run]:
    """Packets whose times are trusted, one run for each clock; ``other`` has those of the other stream."""
    while True:
        segments = _cheapest_explanation(stream)
        strays = [stray for segment in segments for stray in _strays(segment, stream.spacing_s, other)]
        if not strays:
            return [_joined(segment) for segment in segments]
        # Without them, the remaining runs may have a cheaper explanation.
        time_s = stream.time_s.copy()
        time_s[_joined(strays).packets] = np.nan
        stream = replace(stream, time_s=time_s)


def _cheapest_explanation(stream: PacketTimes) -> list[list[_Run]]:
    """Runs to trust, a list for each clock."""
    runs = _runs(stream)
    if not runs:
        return []
    first_s = np.array([run.first_s for run in runs])
    last_s = np.array([run.last_s for run in runs])
    duration_s = last_s - first_s + stream.spacing_s
    # Of the best explanation that ends with each run. One that confirms a clock is worth more than two new clocks cost.
    gain_s = duration_s + np.where(duration_s >= _NEW_CLOCK_S, CONFIRMED_S, 0.0)
    back_s = _longest_step_back(stream)
    previous = np.full(len(runs), -1)
    restarts = np.zeros(len(runs), np.bool_)
    for k in range(1, len(runs)):
        continues = (last_s[:k] <= first_s[k] + back_s) & (first_s[k] - last_s[:k] <= LONGEST_PAUSE_S)
        saved_s = gain_s[:k] - np.where(continues, 0.0, _NEW_CLOCK_S)
        best = int(np.argmax(saved_s))
        if saved_s[best] > 0:
            gain_s[k] += saved_s[best]
            previous[k], restarts[k] = best, not continues[best]
    segments: list[list[_Run]] = [[]]
    k = int(np.argmax(gain_s))
    while k >= 0:
        segments[-1].append(runs[k])
        if restarts[k]:
            segments.append([])
        k = previous[k]
    return [segment[::-1] for segment in segments[::-1]]


def _runs(stream: PacketTimes) -> list[_Run]:
    """Packets in file order, split at each jump."""
    timed = np.flatnonzero(np.isfinite(stream.time_s))
    if not len(timed):
        return []
    steps = np.diff(stream.time_s[timed])
    jumps = (steps < -_longest_step_back(stream)) | (steps > _longest_step(stream.spacing_s))
    runs = []
    for packets in np.split(timed, np.flatnonzero(jumps) + 1):
        times = stream.time_s[packets]
        runs.append(_Run(packets, float(times.min()), float(times.max())))
    return runs


def _joined(runs: Sequence[_Run]) -> _Run:
    return _Run(np.concatenate([run.packets for run in runs]), runs[0].first_s, runs[-1].last_s)


def _longest_step(spacing_s: float) -> float:
    return max(_STEP_S, _STEPS * spacing_s)


def _longest_step_back(stream: PacketTimes) -> float:
    return _longest_step(stream.spacing_s) if stream.reordered else _STEP_S


def _strays(segment: list[_Run], spacing_s: float, other: list[_Run]) -> list[_Run]:
    """Runs far off at either end of a segment, not confirmed by a second of packets.

    In the middle, a jump forwards that is followed by later times is a pause. At the ends nothing follows: there, the
    jump is a pause only if the other stream has something at that time, or this stream has such pauses elsewhere.
    """
    between_pauses = [[segment[0]]]
    for before, run in pairwise(segment):
        if run.first_s - before.last_s > max(CONFIRMED_S, _longest_step(spacing_s)):
            between_pauses.append([])
        between_pauses[-1].append(run)
    parts = [_joined(runs) for runs in between_pauses]
    gaps_s = [after.first_s - before.last_s for before, after in pairwise(parts)]
    longest = max(parts, key=lambda part: part.last_s - part.first_s)
    strays = []
    for end, others in ((0, slice(1, None)), (-1, slice(None, -1))):
        while (
            parts[end] is not longest
            and parts[end].last_s - parts[end].first_s + spacing_s < _NEW_CLOCK_S
            and gaps_s[end] > 2 * max(gaps_s[others], default=0.0)
            and not any(
                confirming.first_s - CONFIRMED_S <= parts[end].first_s
                and parts[end].last_s <= confirming.last_s + CONFIRMED_S
                for confirming in other
            )
        ):
            strays.append(parts.pop(end))
            gaps_s.pop(end)
    return strays


def _continuing_shift(before: _Run, shift_s: float, after: _Run, spacing_s: float) -> float:
    """Shift with which one segment continues another, leaving room for the packets in between that have no time."""
    n_between = int(after.packets[0] - before.packets[-1]) - 1
    return before.last_s + shift_s + (1 + n_between) * spacing_s - after.first_s


def _audio_shifts(
    audio_segments: list[_Run], audio: PacketTimes, video_segments: list[_Run], shifts: list[float], video: PacketTimes
) -> list[float]:
    """Shift of each audio segment: that of the video segment next to it in the file, if audio then continues."""
    starts = [int(video.position[segment.packets[0]]) for segment in video_segments]
    found: list[float] = []
    for number, segment in enumerate(audio_segments):
        middle = int(audio.position[segment.packets[len(segment.packets) // 2]])
        beside = max(0, bisect_right(starts, middle) - 1)
        near = [k for k in (beside, beside - 1, beside + 1) if 0 <= k < len(shifts)]
        if number:
            own = _continuing_shift(audio_segments[number - 1], found[-1], segment, audio.spacing_s)
            earliest, latest = -CONFIRMED_S, LONGEST_PAUSE_S
        else:
            own = video_segments[0].first_s - segment.first_s if video_segments else 0.0
            earliest, latest = -LONGEST_PAUSE_S, LONGEST_PAUSE_S
        fitting = [shifts[k] for k in near if earliest <= shifts[k] - own <= latest]
        found.append(fitting[0] if fitting else own)
    return found


def _stream_clock(stream: PacketTimes, segments: list[_Run], shifts: list[float]) -> StreamClock:
    time_s = np.full(len(stream.time_s), np.nan)
    for segment, shift_s in zip(segments, shifts, strict=True):
        time_s[segment.packets] = stream.time_s[segment.packets] + shift_s
    n_outliers = int(np.isfinite(stream.time_s).sum() - np.isfinite(time_s).sum())
    if segments:
        # Packets before the first known time are counted back from it.
        n_before = int(np.argmax(np.isfinite(time_s)))
        if n_before:
            time_s[0] = segments[0].first_s + shifts[0] - n_before * stream.spacing_s
    increasing = bool(np.all(np.diff(time_s[np.isfinite(time_s)]) >= 0))
    resets = [
        ClockReset(segment.first_s + shift_s, shift_s)
        for segment, shift_s in zip(segments[1:], shifts[1:], strict=True)
    ]
    return StreamClock(time_s, stream.spacing_s, tuple(resets), n_outliers, increasing)
