"""Sound of a recording: 16 kHz mono on the video's clock."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from preprocessing.media.clock import RecordingClock, StreamClock, describe_resets
from preprocessing.media.container import audio_stream, decode_stream, open_recording, read_clock
from preprocessing.media.mixdown import SAMPLE_RATE, MonoStretch

_FIRST_AUDIO_FRAMES = 10
"""Frames of 10 to 100 ms: enough for a decoder and a resampler to be set up and used."""
_TIME_ROUNDING_S = 1e-4
"""Times differ by up to this much after rounding to a container's ticks."""


class Samples(Protocol):
    """A signal that is read in parts: a NumPy array, or a file of which only the requested part enters memory."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]:
        """Read some of the samples."""


@dataclass(frozen=True)
class Audio:
    """Sound on the video's clock."""

    samples: Samples
    """(N,) float32 mono in [-1, 1] at 16 kHz; zeros in gaps of the stream."""
    start_s: float
    """Time of the first sample in seconds on the video's clock, at least 0."""
    warnings: tuple[str, ...] = ()
    """Problems of the stream and how they were handled."""


class _SampleFile:
    """Samples in an anonymous temporary file; zeros where nothing was written."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the samples)
        self._stop = 0
        self.first: int | None = None
        """Index of the earliest sample."""

    def write(self, first: int, samples: NDArray[np.float32]) -> None:
        """Write samples from an index on, over earlier ones."""
        self._file.seek(first * 4)
        self._file.write(samples.data)
        self.first = first if self.first is None else min(self.first, first)
        self._stop = max(self._stop, first + len(samples))

    def __len__(self) -> int:
        return self._stop - (self.first or 0)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        first, stop, step = part.indices(len(self))
        samples = np.empty(max(0, stop - first), np.float32)
        self._file.flush()
        os.preadv(self._file.fileno(), [samples.data], ((self.first or 0) + first) * 4)
        return samples[::step]


def read_audio(
    path: Path,
    *,
    origin_s: float,
    streams: Sequence[int] = (),
    clock: RecordingClock | None = None,
    scratch: Path | None = None,
) -> Audio | None:
    """Read the sound of one audio stream, chosen like the video stream, on the video's clock.

    Sound before the clock's zero is cut off. Gaps in the stream's times are filled with zeros, so that later samples
    stay in time. Channels are mixed with weights that cannot clip; see :mod:`preprocessing.media.mixdown`.

    Args:
        path: the file that :class:`Video` was opened with.
        origin_s: :attr:`Video.start_s`, the clock's zero on the container's clock, seconds.
        streams: see :class:`Video`.
        clock: :attr:`Video.clock`; None to read it from the file.
        scratch: folder for the anonymous file that holds the samples; None for the system's.

    Returns:
        The sound; None if there is no audio stream or nothing of it can be decoded at or after the clock's zero.

    Raises:
        InputError: the file does not exist, or is not a recording.
    """
    warnings: list[str] = []
    samples = _SampleFile(scratch)
    with open_recording(path) as container:
        stream = audio_stream(container, streams, warnings)
        if stream is None:
            return None
        stream_clock = (clock or read_clock(path, streams=streams)).audio
        frames = decode_stream(container, stream, warnings, clock=stream_clock)
        for first, piece in _place_samples(frames, origin_s, stream_clock, warnings):
            audible = piece[max(0, -first) :]
            if len(audible):
                samples.write(max(0, first), audible)
    if samples.first is None:
        return None
    if stream_clock is not None:
        warnings += describe_resets("audio", stream_clock)
        if stream_clock.n_outliers:
            warnings.append(
                "audio: packets whose time was far off the rest, placed after the one before: "
                f"{stream_clock.n_outliers}"
            )
    return Audio(samples=samples, start_s=samples.first / SAMPLE_RATE, warnings=tuple(warnings))


def decode_first_sound(path: Path, *, streams: Sequence[int] = ()) -> None:
    """Decode the beginning of the sound as :func:`read_audio` does, to detect files that it cannot read.

    Raises:
        InputError: see :func:`read_audio`.
    """
    with open_recording(path) as container:
        stream = audio_stream(container, streams, [])
        if stream is not None:
            frames = islice(decode_stream(container, stream, [], clock=None), _FIRST_AUDIO_FRAMES)
            for _ in _place_samples(frames, 0.0, None, []):
                pass


def _place_samples(
    frames: Iterable[AudioFrame], origin_s: float, clock: StreamClock | None, warnings: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Mixed samples in pieces, each with the index of its first sample on the video's clock.

    A gapless stretch ends where packet times and the count of samples have drifted apart, where the container's clock
    restarts, or where the stream changes its format.
    """
    stretch: MonoStretch | None = None
    n_repaired = 0
    resets = deque(reset.time_s for reset in clock.resets) if clock is not None else deque()
    for frame in frames:
        container_s = frame.time
        expected_s = 0.0 if stretch is None else stretch.end_s
        time_s = expected_s if container_s is None else container_s - origin_s
        restarts = container_s is not None and bool(resets) and container_s >= resets[0] - _TIME_ROUNDING_S
        if restarts:
            resets.popleft()
        if stretch is not None and (restarts or not stretch.is_continued_by(frame, time_s)):
            yield from stretch.add(None)
            n_repaired += stretch.n_repaired
            stretch = None
        if stretch is None:
            stretch = MonoStretch(frame, time_s)
        yield from stretch.add(frame)
    if stretch is not None:
        yield from stretch.add(None)
        n_repaired += stretch.n_repaired
    if n_repaired:
        warnings.append(
            f"audio: its channels cancel each other in the mix, as in opposite phase; one was inverted for "
            f"{n_repaired / SAMPLE_RATE:.1f} s"
        )
