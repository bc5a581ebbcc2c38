"""One clock for a recording: which of its packets' times to trust, and what to add to them.

A container's times can be wrong in two ways. A few packets can carry times far off the rest; or all times jump, because
recordings were joined. :func:`settle_clock` tells them apart by one rule for pictures and sound: a jump starts a new
clock only if at least a second of packets confirms it. Shorter runs lose their times and are placed by what surrounds
them.

The rule is an optimisation over runs of packets whose times follow each other. Dropping a run costs its duration, or
more than it can save if that is a second; a new clock costs one second; going forward costs nothing, so that pauses and
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
"""A jump is a new clock only if this much of what follows agrees with it."""
LONGEST_PAUSE_S = 3600.0
"""A longer jump forwards is a new clock, not a pause."""
_STEP_S = 0.25
"""Steps of time up to this length, forwards and backwards, are no jumps."""
_STEPS = 8
"""Steps of up to this many usual spacings are no jumps either: frames are stored up to that much out of order."""
_NEW_CLOCK_S = CONFIRMED_S - 0.02
"""Cost of a new clock. It lies below a second by half a frame, so that 25 frames of 0.04 s confirm one."""
_NUDGE_S = 1e-4
"""A frame whose time does not increase is placed this long after the one before."""


@dataclass(frozen=True)
class PacketTimes:
    """The N packets of one stream, in the order of the file."""

    time_s: NDArray[np.float64]
    """(N,) presentation time on the container's clock, seconds; NaN where a packet has none."""
    position: NDArray[np.int64]
    """(N,) rank of each packet among the packets of all streams."""
    spacing_s: float
    """Usual time from one packet to the next, seconds; above 0."""
    reordered: bool = False
    """Whether packets are stored in another order than they are shown."""


@dataclass(frozen=True)
class ClockReset:
    """A new start of a container's clock."""

    time_s: float
    """Time of the first packet after it on the recording's clock, seconds."""
    shift_s: float
    """What is added to the container's times from there on, seconds."""


@dataclass(frozen=True)
class StreamClock:
    """Times of the N packets of one stream on the recording's clock: the container's, from its first stretch on."""

    time_s: NDArray[np.float64]
    """(N,) seconds; NaN where a packet has no time of its own and is placed by what surrounds it."""
    spacing_s: float
    """Usual time from one packet to the next, seconds."""
    resets: tuple[ClockReset, ...] = ()
    """Where the container's clock restarts, in order of time."""
    n_wild: int = 0
    """Number of packets whose times were far off the rest."""
    rising: bool = False
    """Whether no packet is earlier than the one before it in the file."""


@dataclass(frozen=True)
class RecordingClock:
    """Times of the packets of the stream of pictures, and of the stream of sound where there is one."""

    pictures: StreamClock
    sound: StreamClock | None = None


@dataclass(frozen=True)
class _Run:
    """Packets whose times follow each other without a jump."""

    packets: NDArray[np.intp]
    first_s: float
    last_s: float


_Stretch = list[_Run]
"""Runs on one clock, in order."""


def settle_clock(pictures: PacketTimes, sound: PacketTimes | None = None) -> RecordingClock:
    """Decide which times to trust, and put pictures and sound on one clock.

    Where the clocks of both start anew, the sound is shifted like the pictures that lie beside it in the file.
    """
    heard = [] if sound is None else _trusted(sound, beside=[])
    seen = _trusted(pictures, beside=heard)
    shifts = _picture_shifts(seen, pictures)
    clock = _placed(pictures, seen, shifts)
    if sound is None:
        return RecordingClock(clock)
    heard = _trusted(sound, beside=seen)
    return RecordingClock(clock, _placed(sound, heard, _sound_shifts(heard, sound, seen, shifts, pictures)))


class FrameClock:
    """Strictly increasing times of decoded frames, in the order in which they are shown."""

    def __init__(self, clock: StreamClock) -> None:
        """Start before the first frame."""
        self._clock = clock
        self._known_s = np.sort(clock.time_s[np.isfinite(clock.time_s)])
        self._origin_s: float | None = None
        self._last_s: float | None = None
        self._n_without = 0
        self._n_moved = 0

    def time_s(self, own_s: float | None, following_s: float | None) -> float:
        """Time of the next frame in seconds; 0 for the first.

        Args:
            own_s: its time on the recording's clock; None where it has none.
            following_s: the same of the frame after it.
        """
        if self._origin_s is None:
            self._origin_s = own_s or 0.0
        if own_s is None:
            self._n_without += 1
            time_s = self._next_place()
        else:
            time_s = self._between_neighbours(own_s - self._origin_s, following_s)
        if self._last_s is not None and time_s <= self._last_s:
            self._n_moved += 1
            time_s = self._last_s + _NUDGE_S
        self._last_s = time_s
        return time_s

    def _next_place(self) -> float:
        """One spacing after the frame before, but before the next time that is known."""
        if self._last_s is None or self._origin_s is None:
            return 0.0
        place_s = self._last_s + self._clock.spacing_s
        later = bisect_right(self._known_s, self._last_s + self._origin_s + _NUDGE_S)
        if later == len(self._known_s):
            return place_s
        return min(place_s, (self._last_s + float(self._known_s[later]) - self._origin_s) / 2)

    def _between_neighbours(self, time_s: float, following_s: float | None) -> float:
        """Half way between the frames before and after, where this one alone is later than the one after it."""
        if following_s is None or self._last_s is None or self._origin_s is None:
            return time_s
        next_s = following_s - self._origin_s
        if not self._last_s < next_s < time_s:
            return time_s
        self._n_moved += 1
        return (self._last_s + next_s) / 2

    def warnings(self) -> list[str]:
        """What had to be estimated."""
        found = []
        n_wild = self._clock.n_wild
        if self._n_without > n_wild:
            found.append(f"video: frames without a time, placed at the usual spacing: {self._n_without - n_wild}")
        if self._n_moved + n_wild:
            n_moved = self._n_moved + n_wild
            found.append(f"video: frames whose time was out of order, placed between their neighbours: {n_moved}")
        return found + describe_resets("video", self._clock)


def describe_resets(kind: str, clock: StreamClock) -> list[str]:
    """A remark on the new starts of a stream's clock, if there are any."""
    if not clock.resets:
        return []
    return [f"{kind}: its clock jumps, as in joined recordings, and goes on from there: {len(clock.resets)}"]


def _trusted(stream: PacketTimes, *, beside: list[_Stretch]) -> list[_Stretch]:
    """The runs to trust, a list for each clock; ``beside`` are those of the other stream."""
    while True:
        stretches = _stretches(stream)
        ends = [_credible_part(stretch, stream.spacing_s, beside) for stretch in stretches]
        strays = [
            run
            for stretch, (first, stop) in zip(stretches, ends, strict=True)
            for run in stretch[:first] + stretch[stop:]
        ]
        if not strays:
            return stretches
        # Without them, the runs around them may have a cheaper explanation.
        time_s = stream.time_s.copy()
        time_s[np.concatenate([run.packets for run in strays])] = np.nan
        stream = replace(stream, time_s=time_s)


def _stretches(stream: PacketTimes) -> list[_Stretch]:
    """The runs to trust, in the cheapest explanation of all times; a list for each clock."""
    runs = _runs(stream)
    if not runs:
        return []
    back_s = _longest_step_back(stream)
    gain: list[float] = []
    before: list[tuple[int | None, bool]] = []
    """Of each run: the one before it in the best explanation that ends with it, and whether the clock restarts."""
    ends: list[float] = []
    best_at: list[int] = []
    """Runs that no earlier end beats: of these, both ``last_s`` (in ``ends``) and ``gain`` increase."""
    best: int | None = None
    for number, run in enumerate(runs):
        value: float = 0.0
        link: tuple[int | None, bool] = (None, False)
        if best is not None and gain[best] - _NEW_CLOCK_S > value:
            value, link = gain[best] - _NEW_CLOCK_S, (best, True)
        place = bisect_right(ends, run.first_s + back_s) - 1
        if place >= 0 and run.first_s - ends[place] <= LONGEST_PAUSE_S and gain[best_at[place]] >= value:
            value, link = gain[best_at[place]], (best_at[place], False)
        gain.append(value + _worth_s(run, stream.spacing_s))
        before.append(link)
        if best is None or gain[number] >= gain[best]:
            best = number
        _keep_if_best(ends, best_at, gain, number, run.last_s)
    return _chain(runs, before, best)


def _worth_s(run: _Run, spacing_s: float) -> float:
    """What it costs to drop a run: its duration, and for one that confirms a clock more than two new clocks cost."""
    duration_s = run.last_s - run.first_s + spacing_s
    return duration_s + (CONFIRMED_S if duration_s >= _NEW_CLOCK_S else 0.0)


def _keep_if_best(ends: list[float], best_at: list[int], gain: list[float], number: int, last_s: float) -> None:
    place = bisect_right(ends, last_s)
    if place and gain[best_at[place - 1]] >= gain[number]:
        return
    stop = place
    while stop < len(ends) and gain[best_at[stop]] <= gain[number]:
        stop += 1
    ends[place:stop], best_at[place:stop] = [last_s], [number]


def _chain(runs: Sequence[_Run], before: Sequence[tuple[int | None, bool]], last: int | None) -> list[_Stretch]:
    stretches: list[_Stretch] = [[]]
    while last is not None:
        stretches[-1].append(runs[last])
        last, anew = before[last]
        if anew:
            stretches.append([])
    return [stretch[::-1] for stretch in stretches[::-1]]


def _runs(stream: PacketTimes) -> list[_Run]:
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


def _longest_step(spacing_s: float) -> float:
    return max(_STEP_S, _STEPS * spacing_s)


def _longest_step_back(stream: PacketTimes) -> float:
    return _longest_step(stream.spacing_s) if stream.reordered else _STEP_S


def _credible_part(stretch: _Stretch, spacing_s: float, beside: list[_Stretch]) -> tuple[int, int]:
    """First and last run (excluded) that do not lie far off at an end, unconfirmed by a second of their own.

    In the middle, a jump forwards that is followed by later times is a pause. At the ends nothing follows: there the
    other stream may have something at that time, or the stream may have such pauses elsewhere.
    """
    spans = [(other[0].first_s - CONFIRMED_S, other[-1].last_s + CONFIRMED_S) for other in beside]

    def stray(part: _Stretch, gap_s: float, other_gaps: Sequence[float]) -> bool:
        return (
            part[-1].last_s - part[0].first_s + spacing_s < _NEW_CLOCK_S
            and gap_s > 2 * max(other_gaps, default=0.0)
            and not any(first_s <= part[0].first_s and part[-1].last_s <= last_s for first_s, last_s in spans)
        )

    parts = _split_at_pauses(stretch, spacing_s)
    gaps = [after[0].first_s - before[-1].last_s for before, after in pairwise(parts)]
    longest = max(range(len(parts)), key=lambda k: parts[k][-1].last_s - parts[k][0].first_s)
    first, stop = 0, len(parts)
    while first < longest and stray(parts[first], gaps[first], gaps[first + 1 : stop - 1]):
        first += 1
    while stop - 1 > longest and stray(parts[stop - 1], gaps[stop - 2], gaps[first : stop - 2]):
        stop -= 1
    n_before, n_kept = (sum(map(len, some)) for some in (parts[:first], parts[first:stop]))
    return n_before, n_before + n_kept


def _split_at_pauses(stretch: _Stretch, spacing_s: float) -> list[_Stretch]:
    parts: list[_Stretch] = [[stretch[0]]]
    for run in stretch[1:]:
        if run.first_s - parts[-1][-1].last_s > max(CONFIRMED_S, _longest_step(spacing_s)):
            parts.append([])
        parts[-1].append(run)
    return parts


def _picture_shifts(stretches: list[_Stretch], stream: PacketTimes) -> list[float]:
    """What is added to the times of each stretch: each follows the one before it at the usual spacing."""
    shifts = [0.0] if stretches else []
    for before, after in pairwise(stretches):
        shifts.append(_follow_on(before, shifts[-1], after, stream.spacing_s))
    return shifts


def _follow_on(before: _Stretch, shift_s: float, after: _Stretch, spacing_s: float) -> float:
    """Shift with which a stretch follows another, with room for the packets in between that have no time."""
    n_between = int(after[0].packets[0] - before[-1].packets[-1]) - 1
    return before[-1].last_s + shift_s + (1 + n_between) * spacing_s - after[0].first_s


def _sound_shifts(
    heard: list[_Stretch], sound: PacketTimes, seen: list[_Stretch], shifts: list[float], pictures: PacketTimes
) -> list[float]:
    """What is added to the times of each stretch of sound: as to the pictures beside it, if sound then continues."""
    starts = [int(pictures.position[stretch[0].packets[0]]) for stretch in seen]
    found: list[float] = []
    for number, stretch in enumerate(heard):
        packets = np.concatenate([run.packets for run in stretch])
        beside = max(0, bisect_right(starts, int(sound.position[packets[len(packets) // 2]])) - 1)
        near = [k for k in (beside, beside - 1, beside + 1) if 0 <= k < len(shifts)]
        if number:
            own = _follow_on(heard[number - 1], found[-1], stretch, sound.spacing_s)
            earliest, latest = -CONFIRMED_S, LONGEST_PAUSE_S
        else:
            own = seen[0][0].first_s - stretch[0].first_s if seen else 0.0
            earliest, latest = -LONGEST_PAUSE_S, LONGEST_PAUSE_S
        fitting = [shifts[k] for k in near if earliest <= shifts[k] - own <= latest]
        found.append(fitting[0] if fitting else own)
    return found


def _placed(stream: PacketTimes, stretches: list[_Stretch], shifts: list[float]) -> StreamClock:
    time_s = np.full(len(stream.time_s), np.nan)
    for stretch, shift_s in zip(stretches, shifts, strict=True):
        for run in stretch:
            time_s[run.packets] = stream.time_s[run.packets] + shift_s
    n_wild = int(np.isfinite(stream.time_s).sum() - np.isfinite(time_s).sum())
    if stretches:
        # What comes before the first time that is known is counted back from there.
        n_before = int(np.argmax(np.isfinite(time_s)))
        if n_before:
            time_s[0] = stretches[0][0].first_s + shifts[0] - n_before * stream.spacing_s
    rising = bool(np.all(np.diff(time_s[np.isfinite(time_s)]) >= 0))
    resets = [
        ClockReset(stretch[0].first_s + shift_s, shift_s)
        for stretch, shift_s in zip(stretches[1:], shifts[1:], strict=True)
    ]
    return StreamClock(time_s, stream.spacing_s, tuple(resets), n_wild, rising)
