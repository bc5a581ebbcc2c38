"""Reading a recording once: upright pictures with their times, and its sound on the same clock.

The clock's zero is the presentation time of the first decoded video frame. Nothing here relies on the container's
headers for counts or durations: those are often wrong, and only decoding tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import overload

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from preprocessing.errors import InputError

SAMPLE_RATE = 16000
"""Hz, of all sound that leaves this module."""

_AUDIO_TOLERANCE_S = 0.04
"""Times of audio packets are trusted over the count of samples when they differ by more; below it is rounding."""
_LONGEST_GAP_S = 3600.0
"""A larger jump in the audio's times is a broken clock, not a silence to fill."""
_NUDGE_S = 1e-4
"""A frame whose time does not increase is placed this long after the one before."""
_SANE_ASPECT = (Fraction(1, 4), Fraction(4))
"""Range of pixel shapes (width / height) that are taken for real."""


@dataclass(frozen=True)
class Frame:
    """One picture as a viewer would see it."""

    image: NDArray[np.uint8]
    """(H,W,3) RGB, upright, square pixels."""
    time_s: float
    """Presentation time in seconds on the video's clock; strictly increasing over the frames."""


@dataclass(frozen=True)
class Audio:
    """Sound on the video's clock."""

    samples: NDArray[np.float32]
    """(N,) mono in [-1, 1] at 16 kHz; zeros where the stream has gaps."""
    start_s: float
    """Time of the first sample in seconds on the video's clock, at least 0."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the stream and what was done about it."""


class Video:
    """The first video stream of a file that is not cover art, decoded in one pass; a context manager."""

    width: int
    """Pixels of the upright frame with square pixels."""
    height: int
    rotation: int
    """Degrees counterclockwise by which stored frames were turned to stand upright: 0, 90, 180 or -90."""
    start_s: float
    """Time of the first decoded frame on the container's own clock, seconds; the zero of the video's clock."""
    warnings: list[str]
    """What was wrong with the stream and what was done about it; complete when :meth:`frames` has ended."""

    def __init__(self, path: Path) -> None:
        """Open a file and decode its first frame.

        Args:
            path: any file that FFmpeg reads.

        Raises:
            InputError: there is no such file, it is no recording, it has no video stream, or no frame can be decoded.
        """
        self.warnings = []
        self._container = _open(path)
        try:
            self._stream = _video_stream(self._container, path)
            self._decoded = _decode(self._container, self._stream, self.warnings)
            first = next(self._decoded, None)
            if first is None:
                raise InputError(f"{path}: no video frame can be decoded; give a file that plays in a video player")
        except BaseException:
            self._container.close()
            raise
        self._first: VideoFrame | None = first
        self.start_s = _container_time_s(first) or 0.0
        self.rotation = _quarter_turn(first)
        self._stored_width = _square_pixel_width(first, self._stream, self.warnings)
        self._stored_height = first.height
        self.width, self.height = self._stored_width, self._stored_height
        if self.rotation % 180:
            self.width, self.height = self.height, self.width

    def __enter__(self) -> Video:
        """Nothing to do: the file is open since construction."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._container.close()

    def frames(self) -> Iterator[Frame]:
        """All frames in order of presentation, one at a time: memory does not grow with the video.

        Raises:
            RuntimeError: called a second time; open the video again for another pass.
        """
        if self._first is None:
            raise RuntimeError("the frames of a video can be read once; open it again for another pass")
        first, self._first = self._first, None
        clock = _Clock(self._stream)
        for decoded in chain([first], self._decoded):
            yield Frame(image=self._upright(decoded), time_s=clock.time_s(decoded))
        self.warnings += clock.warnings()

    def _upright(self, frame: VideoFrame) -> NDArray[np.uint8]:
        # One size for all frames, though a stream may change its own in the middle.
        image = frame.to_ndarray(format="rgb24", width=self._stored_width, height=self._stored_height)
        return np.ascontiguousarray(np.rot90(image, self.rotation // 90))


def read_audio(path: Path, *, origin_s: float) -> Audio | None:
    """Sound of the first audio stream, on the video's clock.

    What lies before the clock's zero is cut off. Gaps in the stream's times are filled with zeros, so that later
    samples stay in time. Channels are mixed down with weights that cannot clip.

    Args:
        path: the file that :class:`Video` was opened with.
        origin_s: :attr:`Video.start_s`, the clock's zero on the container's own clock, seconds.

    Returns:
        The sound; None when there is no audio stream or nothing of it can be decoded at or after the clock's zero.

    Raises:
        InputError: there is no such file, or it is no recording.
    """
    warnings: list[str] = []
    with _open(path) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        runs = list(_audio_runs(_decode(container, stream, warnings), origin_s, warnings))
    end = max((start + len(samples) for start, samples in runs), default=0)
    if end <= 0:
        return None
    first = max(0, min(start for start, _ in runs))
    mixed = np.zeros(end - first, dtype=np.float32)
    for start, samples in runs:
        kept = samples[max(0, first - start) :]
        begin = max(0, start - first)
        mixed[begin : begin + len(kept)] = kept
    return Audio(samples=mixed, start_s=first / SAMPLE_RATE, warnings=tuple(warnings))


def _open(path: Path) -> InputContainer:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a video file")
    try:
        # "file:" keeps FFmpeg from reading a protocol or an option into names such as "a:b.mp4" or "-a.mp4"; the
        # whitelist keeps a playlist from reaching out to the network.
        return av.open(f"file:{path.absolute()}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a video ({_reason(error)}); give a complete video file") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise InputError(f"{path}: its video codec is not supported; convert it, for example to H.264")
            stream.thread_type = "AUTO"
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    holds = f"only {' and '.join(kinds)}" if kinds else "no streams at all"
    raise InputError(f"{path}: no video stream ({holds}); give a file with pictures")


@overload
def _decode(container: InputContainer, stream: VideoStream, warnings: list[str]) -> Iterator[VideoFrame]: ...


@overload
def _decode(container: InputContainer, stream: AudioStream, warnings: list[str]) -> Iterator[AudioFrame]: ...


def _decode(
    container: InputContainer, stream: VideoStream | AudioStream, warnings: list[str]
) -> Iterator[VideoFrame | AudioFrame]:
    """Frames of one stream; damaged packets are skipped and counted."""
    n_damaged = 0
    for packet in _packets(container, stream, warnings):
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            n_damaged += 1
        else:
            yield from frames
    if n_damaged:
        warnings.append(f"{stream.type}: damaged packets were skipped: {n_damaged}")


def _packets(
    container: InputContainer, stream: VideoStream | AudioStream, warnings: list[str]
) -> Iterator[Packet | None]:
    """Packets of one stream; a file that breaks off ends where it breaks. None asks the decoder for what it holds."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        warnings.append(f"{stream.type}: the file breaks off ({_reason(error)}); what comes before is used")
        yield None


def _container_time_s(frame: VideoFrame | AudioFrame) -> float | None:
    """Presentation time on the container's own clock."""
    if frame.pts is None or frame.time_base is None:
        return None
    return float(frame.pts * frame.time_base)


class _Clock:
    """Strictly increasing times of decoded frames, from the container where it has them."""

    def __init__(self, stream: VideoStream) -> None:
        self._spacing_s = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
        self._zero_s: float | None = None
        self._last_s: float | None = None
        self._n_missing = 0
        self._n_nudged = 0

    def time_s(self, frame: VideoFrame) -> float:
        """Time of the next frame in order, seconds; 0 for the first."""
        container_s = _container_time_s(frame)
        expected_s = 0.0 if self._last_s is None else self._last_s + self._spacing_s
        if container_s is None:
            self._n_missing += 1
            time_s = expected_s
        else:
            if self._zero_s is None:
                self._zero_s = container_s - expected_s
            time_s = container_s - self._zero_s
        if self._last_s is not None and time_s <= self._last_s:
            self._n_nudged += 1
            time_s = self._last_s + _NUDGE_S
        self._last_s = time_s
        return time_s

    def warnings(self) -> list[str]:
        """What had to be made up."""
        found = []
        if self._n_missing:
            found.append(f"video: frames without a time, placed at the mean spacing: {self._n_missing}")
        if self._n_nudged:
            found.append(f"video: frames whose time did not increase, placed just after the last: {self._n_nudged}")
        return found


def _quarter_turn(frame: VideoFrame) -> int:
    """Counterclockwise turn in degrees that makes the frame upright, rounded to 0, 90, 180 or -90."""
    quarters = round(frame.rotation / 90) % 4
    return -90 if quarters == 3 else 90 * quarters


def _square_pixel_width(frame: VideoFrame, stream: VideoStream, warnings: list[str]) -> int:
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not _SANE_ASPECT[0] <= aspect <= _SANE_ASPECT[1]:
        warnings.append(f"video: a pixel shape of {aspect} is not credible; taken as square")
        aspect = Fraction(1)
    return max(1, round(frame.width * aspect))


class _AudioRun:
    """A stretch of sound without a gap, resampled as it comes."""

    def __init__(self, first: AudioFrame, start_s: float) -> None:
        self.start_s = start_s
        self.end_s = start_s
        self._form = _audio_form(first)
        # Integer output makes FFmpeg normalise the mix-down of channels, so that it cannot clip.
        self._resampler = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
        self._pieces: list[NDArray[np.float32]] = []

    def goes_on_with(self, frame: AudioFrame, time_s: float) -> bool:
        """Whether a frame at this time follows without a gap, an overlap or a change of form."""
        return abs(time_s - self.end_s) <= _AUDIO_TOLERANCE_S and _audio_form(frame) == self._form

    def add(self, frame: AudioFrame) -> None:
        """Append a frame at the end, whatever time it carries."""
        self.end_s += frame.samples / frame.sample_rate
        frame.pts = None
        self._keep(self._resampler.resample(frame))

    def finish(self) -> tuple[int, NDArray[np.float32]]:
        """Index of the first sample on the video's clock at 16 kHz, and the samples (n,)."""
        self._keep(self._resampler.resample(None))
        samples = np.concatenate(self._pieces) if self._pieces else np.zeros(0, dtype=np.float32)
        return round(self.start_s * SAMPLE_RATE), samples

    def _keep(self, frames: list[AudioFrame]) -> None:
        self._pieces += [(frame.to_ndarray()[0] / 2.0**31).astype(np.float32) for frame in frames]


def _audio_form(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _audio_runs(
    frames: Iterator[AudioFrame], origin_s: float, warnings: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Stretches of sound, each with the index of its first sample on the video's clock at 16 kHz.

    A stretch ends where the packets' times and the count of samples have drifted apart, so that later samples stay in
    time, or where the stream changes its form.
    """
    run: _AudioRun | None = None
    n_jumps = 0
    for frame in frames:
        expected_s = 0.0 if run is None else run.end_s
        container_s = _container_time_s(frame)
        time_s = expected_s if container_s is None else container_s - origin_s
        if abs(time_s - expected_s) > _LONGEST_GAP_S:
            n_jumps += 1
            time_s = expected_s
        if run is None or not run.goes_on_with(frame, time_s):
            if run is not None:
                yield run.finish()
            run = _AudioRun(frame, time_s)
        run.add(frame)
    if run is not None:
        yield run.finish()
    if n_jumps:
        warnings.append(f"audio: packets whose time is not credible, placed one after the other: {n_jumps}")
