"""Reading a recording once: upright pictures with their times, and its sound on the same clock.

The clock's zero is the presentation time of the first decoded video frame. Nothing here relies on the container's
headers for counts or durations: those are often wrong, and only decoding tells.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar, overload

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from preprocessing.errors import InputError

S = TypeVar("S", VideoStream, AudioStream)

SAMPLE_RATE = 16000
"""Hz, of all sound that leaves this module."""

_AUDIO_TOLERANCE_S = 0.04
"""Times of audio packets are trusted over the count of samples when they differ by more; below it is rounding."""
_FIRST_AUDIO_FRAMES = 10
"""Of packets of 10 to 100 ms: enough for a decoder and a resampler to be set up and used."""
_LONGEST_GAP_S = 3600.0
"""A larger jump of a clock is no gap either: it goes on from there."""
_NUDGE_S = 1e-4
"""A frame whose time does not increase is placed this long after the one before."""
_RESET_S = 0.25
"""A clock that goes back by more than this has started anew, as where recordings were joined: it goes on from there."""
_SANE_ASPECT = (Fraction(1, 4), Fraction(4))
"""Range of pixel shapes (width / height) that are taken for real."""


@dataclass(frozen=True)
class Frame:
    """One picture as a viewer would see it."""

    image: NDArray[np.uint8]
    """(H,W,3) RGB, upright, square pixels."""
    time_s: float
    """Presentation time in seconds on the video's clock; strictly increasing over the frames."""


class Samples(Protocol):
    """A signal that is read in parts: a NumPy array, or a file of which only what is asked for enters memory."""

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


class Video:
    """One video stream of a file, decoded in one pass; a context manager.

    Of several, it is the one that is asked for, else the first that the file marks as default, else the first; cover
    art is none.
    """

    width: int
    """Pixels of the upright frame with square pixels."""
    height: int
    rotation: int
    """Degrees counterclockwise by which stored frames were turned to stand upright: 0, 90, 180 or -90."""
    start_s: float
    """Time of the first decoded frame on the container's own clock, seconds; the zero of the video's clock."""
    warnings: list[str]
    """What was wrong with the stream and what was done about it; complete when :meth:`frames` has ended."""
    resets: list[float]
    """Where the stream's clock starts anew: what is added to container times from then on, seconds, one for each time;
    complete when :meth:`frames` has ended."""

    def __init__(self, path: Path, *, streams: Sequence[int] = ()) -> None:
        """Open a file and decode its first frame.

        Args:
            path: any file that FFmpeg reads.
            streams: numbers, in the file, of the streams to use, at most one of video and one of audio.

        Raises:
            InputError: there is no such file, it is no recording, it has no video stream or not the one asked for, or
                no frame can be decoded.
        """
        self.warnings, self.resets = [], []
        self._container = open_recording(path)
        self._n_read = 0
        # One for all frames: a frame's own would be made anew each time, which takes longer than its work.
        self._reformatter = VideoReformatter()
        try:
            self._stream = _video_stream(self._container, path, streams, self.warnings)
            self._decoded = decode_stream(self._container, self._stream, self.warnings, self._note_position)
            first = next(self._decoded, None)
            if first is None:
                raise InputError(f"{path}: no video frame can be decoded; give a file that plays in a video player")
        except BaseException:
            self._container.close()
            raise
        self._first: VideoFrame | None = first
        self.start_s = container_time_s(first) or 0.0
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
        clock = _Clock(self._stream, self.resets)
        held: VideoFrame | None = None
        # One frame is held back: whether its time is right shows in the next one's.
        for decoded in chain([first], self._decoded):
            if held is not None:
                yield Frame(image=self._upright(held), time_s=clock.time_s(held, decoded))
            held = decoded
        assert held is not None
        yield Frame(image=self._upright(held), time_s=clock.time_s(held, None))
        self.warnings += clock.warnings()

    @property
    def share_read(self) -> float:
        """How much of the file has been read, 0 to 1; 0 where that is not known."""
        size = self._container.size
        return min(1.0, self._n_read / size) if size > 0 else 0.0

    def _note_position(self, packet: Packet) -> None:
        self._n_read = max(self._n_read, packet.pos or 0)

    def _upright(self, frame: VideoFrame) -> NDArray[np.uint8]:
        # One size for all frames, though a stream may change its own in the middle.
        image = self._reformatter.reformat(frame, self._stored_width, self._stored_height, "rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, self.rotation // 90))


def read_audio(
    path: Path,
    *,
    origin_s: float,
    streams: Sequence[int] = (),
    resets: Sequence[float] = (),
    scratch: Path | None = None,
) -> Audio | None:
    """Sound of one audio stream, chosen like the video stream, on the video's clock.

    What lies before the clock's zero is cut off. Gaps in the stream's times are filled with zeros, so that later
    samples stay in time. Channels are mixed down with weights that cannot clip.

    Args:
        path: the file that :class:`Video` was opened with.
        origin_s: :attr:`Video.start_s`, the clock's zero on the container's own clock, seconds.
        streams: see :class:`Video`.
        resets: :attr:`Video.resets`; without them, sound goes on without a gap where its clock starts anew.
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
        for start, piece in _audio_pieces(decode_stream(container, stream, warnings), origin_s, resets, warnings):
            audible = piece[max(0, -start) :]
            if len(audible):
                first = max(0, start)
                earliest = first if earliest is None else min(earliest, first)
                samples.write(first, audible)
    if earliest is None:
        return None
    samples.start_at(earliest)
    return Audio(samples=samples, start_s=earliest / SAMPLE_RATE, warnings=tuple(warnings))


def decode_first_sound(path: Path, *, streams: Sequence[int] = ()) -> None:
    """Decode the beginning of the sound as :func:`read_audio` does, for what may go wrong with it.

    Raises:
        InputError: there is no such file, or it is no recording.
    """
    with open_recording(path) as container:
        stream = audio_stream(container, streams, [])
        if stream is not None:
            frames = islice(decode_stream(container, stream, []), _FIRST_AUDIO_FRAMES)
            for _ in _audio_pieces(frames, 0.0, (), []):
                pass


def open_recording(path: Path) -> InputContainer:
    """Open a media file, whatever its name, and nothing but a file.

    Raises:
        InputError: it is not there, or not a media file.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a video file")
    try:
        # "file:" keeps FFmpeg from reading a protocol or an option into names such as "a:b.mp4" or "-a.mp4"; the
        # whitelist keeps a playlist from reaching out to the network.
        return av.open(f"file:{path.absolute()}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a video ({reason_of(error)}); give a complete video file"
        ) from None


def reason_of(error: Exception) -> str:
    """What FFmpeg or the operating system says, without numbers and file names."""
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: InputContainer, path: Path, wanted: Sequence[int], warnings: list[str]) -> VideoStream:
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    _check_wanted(container, path, wanted, pictures)
    if not pictures:
        kinds = sorted({stream.type for stream in container.streams})
        holds = f"only {' and '.join(kinds)}" if kinds else "no streams at all"
        raise InputError(f"{path}: no video stream ({holds}); give a file with pictures")
    stream = _choose(pictures, wanted, warnings)
    if stream.codec_context is None:
        raise InputError(f"{path}: its video codec is not supported; convert it, for example to H.264")
    stream.thread_type = "AUTO"
    return stream


def audio_stream(container: InputContainer, wanted: Sequence[int], warnings: list[str]) -> AudioStream | None:
    """The stream of sound to listen to: a wanted one, the default one, or the first; None where there is none."""
    # One without a codec that FFmpeg knows has no sound for us.
    sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
    return _choose(sounds, wanted, warnings) if sounds else None


def _choose(streams: Sequence[S], wanted: Sequence[int], warnings: list[str]) -> S:
    for stream in streams:
        if stream.index in wanted:
            return stream
    default = [stream for stream in streams if stream.disposition & Disposition.default]
    chosen = (default or streams)[0]
    others = [_describe(stream) for stream in streams if stream is not chosen]
    if others:
        warnings.append(f"{chosen.type}: stream {_describe(chosen)} is used, not {', '.join(others)}; --stream chooses")
    return chosen


def _describe(stream: VideoStream | AudioStream) -> str:
    if isinstance(stream, VideoStream):
        return f"{stream.index} ({stream.width}x{stream.height})"
    language = stream.metadata.get("language")
    return f"{stream.index} ({stream.rate} Hz{f', {language}' if language else ''})"


def _check_wanted(
    container: InputContainer, path: Path, wanted: Sequence[int], pictures: Sequence[VideoStream]
) -> None:
    usable: dict[int, VideoStream | AudioStream] = {s.index: s for s in pictures}
    usable.update({s.index: s for s in container.streams.audio})
    for number in wanted:
        if number not in usable:
            known = ", ".join(f"{stream.type} {_describe(stream)}" for stream in usable.values()) or "none"
            raise InputError(f"{path}: no video or audio stream {number}; it has: {known}")
    for kind in ("video", "audio"):
        several = [number for number in wanted if usable[number].type == kind]
        if len(several) > 1:
            raise InputError(f"{path}: streams {several} are all {kind}; choose one")


@overload
def decode_stream(
    container: InputContainer, stream: VideoStream, warnings: list[str], note: Callable[[Packet], None] = ...
) -> Iterator[VideoFrame]: ...


@overload
def decode_stream(container: InputContainer, stream: AudioStream, warnings: list[str]) -> Iterator[AudioFrame]: ...


def decode_stream(
    container: InputContainer,
    stream: VideoStream | AudioStream,
    warnings: list[str],
    note: Callable[[Packet], None] = lambda _: None,
) -> Iterator[VideoFrame | AudioFrame]:
    """Frames of one stream; damaged packets are skipped and counted, each is shown to ``note`` first."""
    n_damaged = 0
    for packet in read_packets(container, stream, warnings):
        if packet is not None:
            note(packet)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            n_damaged += 1
        else:
            yield from frames
    if n_damaged:
        warnings.append(f"{stream.type}: damaged packets were skipped: {n_damaged}")


def read_packets(
    container: InputContainer, stream: VideoStream | AudioStream, warnings: list[str]
) -> Iterator[Packet | None]:
    """Packets of one stream; a file that breaks off ends where it breaks. None asks the decoder for what it holds."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        warnings.append(f"{stream.type}: the file breaks off ({reason_of(error)}); what comes before is used")
        yield None


def container_time_s(frame: VideoFrame | AudioFrame) -> float | None:
    """Presentation time on the container's own clock."""
    if frame.pts is None or frame.time_base is None:
        return None
    return float(frame.pts * frame.time_base)


class _Clock:
    """Strictly increasing times of decoded frames, from the container where it has them."""

    def __init__(self, stream: VideoStream, resets: list[float]) -> None:
        self._spacing_s = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
        self._shift_s: float | None = None
        """What is added to the container's times."""
        self._last_s: float | None = None
        self._resets = resets
        self._n_missing = 0
        self._n_moved = 0

    def time_s(self, frame: VideoFrame, following: VideoFrame | None) -> float:
        """Time of the next frame in order, seconds; 0 for the first. ``following`` is the frame after it."""
        expected_s = 0.0 if self._last_s is None else self._last_s + self._spacing_s
        container_s = container_time_s(frame)
        if container_s is None:
            self._n_missing += 1
            time_s = expected_s
        else:
            if self._shift_s is None:
                self._shift_s = expected_s - container_s
            elif not -_RESET_S <= container_s + self._shift_s - (self._last_s or 0.0) <= _LONGEST_GAP_S:
                self._shift_s = expected_s - container_s
                self._resets.append(self._shift_s)
            time_s = self._between_neighbours(container_s + self._shift_s, following)
        if self._last_s is not None and time_s <= self._last_s:
            self._n_moved += 1
            time_s = self._last_s + _NUDGE_S
        self._last_s = time_s
        return time_s

    def _between_neighbours(self, time_s: float, following: VideoFrame | None) -> float:
        """Half way between the frames before and after, where this one alone is later than the one after it."""
        next_s = None if following is None else container_time_s(following)
        if next_s is None or self._last_s is None or self._shift_s is None:
            return time_s
        next_s += self._shift_s
        if not self._last_s < next_s < time_s:
            return time_s
        self._n_moved += 1
        return (self._last_s + next_s) / 2

    def warnings(self) -> list[str]:
        """What had to be made up."""
        found = []
        if self._n_missing:
            found.append(f"video: frames without a time, placed at the mean spacing: {self._n_missing}")
        if self._n_moved:
            found.append(f"video: frames whose time was out of order, placed between their neighbours: {self._n_moved}")
        if self._resets:
            found.append(
                f"video: its clock jumps, as in joined recordings, and goes on from there: {len(self._resets)}"
            )
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
        self.end_s = start_s
        self._position = round(start_s * SAMPLE_RATE)
        self._form = _audio_form(first)
        # Integer output makes FFmpeg normalise the mix-down of channels, so that it cannot clip.
        self._resampler = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)

    def goes_on_with(self, frame: AudioFrame, time_s: float) -> bool:
        """Whether a frame at this time follows without a gap, an overlap or a change of form."""
        return abs(time_s - self.end_s) <= _AUDIO_TOLERANCE_S and _audio_form(frame) == self._form

    def add(self, frame: AudioFrame) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Append a frame at the end, whatever time it carries; pieces as in :func:`_audio_pieces`."""
        self.end_s += frame.samples / frame.sample_rate
        frame.pts = None
        return self._pieces(self._resampler.resample(frame))

    def finish(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What the resampler still holds."""
        return self._pieces(self._resampler.resample(None))

    def _pieces(self, frames: list[AudioFrame]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for frame in frames:
            samples = (frame.to_ndarray()[0] / 2.0**31).astype(np.float32)
            yield self._position, samples
            self._position += len(samples)


def _audio_form(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _audio_pieces(
    frames: Iterator[AudioFrame], origin_s: float, resets: Sequence[float], warnings: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sound in pieces, each with the index of its first sample on the video's clock at 16 kHz.

    A run of samples ends where the packets' times and the count of samples have drifted apart, so that later samples
    stay in time, or where the stream changes its form.
    """
    run: _AudioRun | None = None
    shift_s = -origin_s
    n_resets = 0
    for frame in frames:
        container_s = container_time_s(frame)
        expected_s = 0.0 if run is None else run.end_s
        time_s = expected_s if container_s is None else container_s + shift_s
        jump_s = time_s - expected_s
        if container_s is not None and (abs(jump_s) > _LONGEST_GAP_S or (run is not None and jump_s < -_RESET_S)):
            shift_s = resets[n_resets] if n_resets < len(resets) else expected_s - container_s
            time_s = container_s + shift_s
            n_resets += 1
            if run is not None:
                yield from run.finish()
            run = None
        if run is None or not run.goes_on_with(frame, time_s):
            if run is not None:
                yield from run.finish()
            run = _AudioRun(frame, time_s)
        yield from run.add(frame)
    if run is not None:
        yield from run.finish()
    if n_resets:
        warnings.append(f"audio: its clock jumps, as in joined recordings, and goes on from there: {n_resets}")
