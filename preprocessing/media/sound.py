"""Sound of a recording: 16 kHz mono on the video's clock."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from preprocessing.media.clock import (
    RecordingClock,
    StreamClock,
    describe_resets,
)
from preprocessing.media.container import audio_stream, container_time_s, decode_stream, open_recording, read_clock
from preprocessing.media.mixdown import Mixdown

SAMPLE_RATE = 16000
"""Hz, of all sound that leaves this module."""

_AUDIO_TOLERANCE_S = 0.04
"""Times of audio packets are trusted over the count of samples when they differ by more; below it is rounding."""
_FIRST_AUDIO_FRAMES = 10
"""Of packets of 10 to 100 ms: enough for a decoder and a resampler to be set up and used."""
_TIME_ROUNDING_S = 1e-4
"""Times differ by up to this much when they have been rounded to a container's ticks."""


class Samples(Protocol):
    """A signal that is read in parts: a NumPy array, or a file of which only what is requested enters memory."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]:
        """Some of the samples."""


@dataclass(frozen=True)
class Audio:
    """Sound on the video's clock."""

    samples: Samples
    """(N,) float32 mono in [-1, 1] at 16 kHz; zeros where the stream has gaps."""
    start_s: float
    """Time of the first sample in seconds on the video's clock, at least 0."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the stream and what was done about it."""


class _SampleFile:
    """Samples in a file without a name, which goes with the process; what was not written is zero."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the samples)
        self._first, self._stop = 0, 0

    def write(self, first: int, samples: NDArray[np.float32]) -> None:
        """Put samples in place, over those that are there."""
        data = samples.astype(np.float32, copy=False).tobytes()
        while data:
            written = os.pwrite(self._file.fileno(), data, first * 4)
            data, first = data[written:], first + written // 4
            self._stop = max(self._stop, first)

    def start_at(self, first: int) -> None:
        """Leave out what lies before."""
        self._first = first

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        first, stop, step = part.indices(len(self))
        samples = np.empty(max(0, stop - first), dtype=np.float32)
        if len(samples):
            os.preadv(self._file.fileno(), [samples.data.cast("B")], (self._first + first) * 4)
        return samples[::step]


def read_audio(
    path: Path,
    *,
    origin_s: float,
    streams: Sequence[int] = (),
    clock: RecordingClock | None = None,
    scratch: Path | None = None,
) -> Audio | None:
    """Sound of one audio stream, chosen like the video stream, on the video's clock.

    What lies before the clock's zero is cut off. Gaps in the stream's times are filled with zeros, so that later
    samples stay in time. Channels are mixed down with weights that cannot clip; where they would cancel each other, see
    :class:`preprocessing.media.mixdown.Mixdown`.

    Args:
        path: the file that :class:`Video` was opened with.
        origin_s: :attr:`Video.start_s`, the clock's zero on the container's own clock, seconds.
        streams: see :class:`Video`.
        clock: :attr:`Video.clock`; None to read it from the file.
        scratch: folder for the file, without a name, that holds the samples; None for the system's.

    Returns:
        The sound; None when there is no audio stream or nothing of it can be decoded at or after the clock's zero.

    Raises:
        InputError: there is no such file, or it is no recording.
    """
    warnings: list[str] = []
    samples = _SampleFile(scratch)
    earliest = None
    with open_recording(path) as container:
        stream = audio_stream(container, streams, warnings)
        if stream is None:
            return None
        settled = (clock or read_clock(path, streams=streams)).sound
        frames = decode_stream(container, stream, warnings, clock=settled)
        for start, piece in _audio_pieces(frames, origin_s, settled, warnings):
            audible = piece[max(0, -start) :]
            if len(audible):
                first = max(0, start)
                earliest = first if earliest is None else min(earliest, first)
                samples.write(first, audible)
    if earliest is None:
        return None
    samples.start_at(earliest)
    if settled is not None:
        warnings += describe_resets("audio", settled)
        if settled.n_wild:
            warnings.append(
                f"audio: packets whose time was far off the rest, placed after the one before: {settled.n_wild}"
            )
    return Audio(samples=samples, start_s=earliest / SAMPLE_RATE, warnings=tuple(warnings))


def decode_first_sound(path: Path, *, streams: Sequence[int] = ()) -> None:
    """Decode the beginning of the sound as :func:`read_audio` does, for what may go wrong with it.

    Raises:
        InputError: there is no such file, or it is no recording.
    """
    with open_recording(path) as container:
        stream = audio_stream(container, streams, [])
        if stream is not None:
            frames = islice(decode_stream(container, stream, [], clock=None), _FIRST_AUDIO_FRAMES)
            for _ in _audio_pieces(frames, 0.0, None, []):
                pass


class _AudioRun:
    """A stretch of sound without a gap, resampled as it comes."""

    def __init__(self, first: AudioFrame, start_s: float) -> None:
        self.end_s = start_s
        self._position = round(start_s * SAMPLE_RATE)
        self._format = _audio_format(first)
        # Integer output makes FFmpeg normalise the mix-down of channels, so that it cannot clip.
        self._mono = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
        self._channels: av.AudioResampler | None = None
        self._mixdown: Mixdown | None = None
        if first.layout.nb_channels > 1:
            self._channels = av.AudioResampler(format="flt", layout=first.layout.name, rate=SAMPLE_RATE)
            self._mixdown = Mixdown(first.layout.name, SAMPLE_RATE)

    @property
    def n_repaired(self) -> int:
        """Samples in which channels would have cancelled each other."""
        return self._mixdown.n_repaired if self._mixdown is not None else 0

    def goes_on_with(self, frame: AudioFrame, time_s: float) -> bool:
        """Whether a frame at this time follows without a gap, an overlap or a change of format."""
        return abs(time_s - self.end_s) <= _AUDIO_TOLERANCE_S and _audio_format(frame) == self._format

    def add(self, frame: AudioFrame) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Append a frame at the end, whatever time it carries; pieces as in :func:`_audio_pieces`."""
        self.end_s += frame.samples / frame.sample_rate
        frame.pts = None
        return self._pieces(self._resampled(frame))

    def finish(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What the resamplers still hold."""
        return self._pieces(chain(self._resampled(None), self._mixdown.finish() if self._mixdown is not None else ()))

    def _resampled(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        mono = [(part.to_ndarray()[0] / 2.0**31).astype(np.float32) for part in self._mono.resample(frame)]
        if self._mixdown is None or self._channels is None:
            yield from mono
            return
        interleaved = [part.to_ndarray()[0] for part in self._channels.resample(frame)]
        nothing = np.zeros(0, np.float32)
        yield from self._mixdown.add(np.concatenate([nothing, *mono]), np.concatenate([nothing, *interleaved]))

    def _pieces(self, parts: Iterable[NDArray[np.float32]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for samples in parts:
            yield self._position, samples
            self._position += len(samples)


def _audio_format(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _audio_pieces(
    frames: Iterator[AudioFrame], origin_s: float, clock: StreamClock | None, warnings: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sound in pieces, each with the index of its first sample on the video's clock at 16 kHz.

    A run of samples ends where the packets' times and the count of samples have drifted apart, so that later samples
    stay in time, where the container's clock restarts, or where the stream changes its format.
    """
    run: _AudioRun | None = None
    n_repaired = 0
    resets = deque(reset.time_s for reset in clock.resets) if clock is not None else deque()
    for frame in frames:
        container_s = container_time_s(frame)
        expected_s = 0.0 if run is None else run.end_s
        time_s = expected_s if container_s is None else container_s - origin_s
        anew = container_s is not None and bool(resets) and container_s >= resets[0] - _TIME_ROUNDING_S
        if anew:
            resets.popleft()
        if run is None or anew or not run.goes_on_with(frame, time_s):
            if run is not None:
                yield from run.finish()
                n_repaired += run.n_repaired
            run = _AudioRun(frame, time_s)
        yield from run.add(frame)
    if run is not None:
        yield from run.finish()
        n_repaired += run.n_repaired
    if n_repaired:
        warnings.append(
            f"audio: its channels cancel each other in the mix, as in opposite phase; one was inverted for "
            f"{n_repaired / SAMPLE_RATE:.1f} s"
        )
