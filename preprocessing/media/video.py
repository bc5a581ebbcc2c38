"""Reading a recording once: upright pictures with their times, and its sound on the same clock.

The clock's zero is the presentation time of the first decoded video frame. Nothing here relies on the container's
headers for counts or durations: those are often wrong, and only decoding tells. Which of the container's times to trust
is decided in :mod:`preprocessing.media.clock`, from a first pass over the packets without decoding.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heapify, heappop, heappush
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
from preprocessing.media.clock import (
    FrameClock,
    PacketTimes,
    RecordingClock,
    StreamClock,
    describe_resets,
    settle_clock,
)
from preprocessing.media.mixdown import Mixdown

S = TypeVar("S", VideoStream, AudioStream)

SAMPLE_RATE = 16000
"""Hz, of all sound that leaves this module."""

_AUDIO_TOLERANCE_S = 0.04
"""Times of audio packets are trusted over the count of samples when they differ by more; below it is rounding."""
_FIRST_AUDIO_FRAMES = 10
"""Of packets of 10 to 100 ms: enough for a decoder and a resampler to be set up and used."""
_TIME_ROUNDING_S = 1e-4
"""Times differ by up to this much when they have been rounded to a container's ticks."""
_SANE_ASPECT = (Fraction(1, 4), Fraction(4))
"""Range of pixel shapes (width / height) that are taken for real."""


@dataclass(frozen=True)
class Frame:
    """One picture as a viewer would see it."""

    image: NDArray[np.uint8]
    """(H,W,3) RGB, upright, square pixels; a stream can change its size in the middle."""
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
    """Pixels of the first frame, upright with square pixels; later frames can have another size."""
    height: int
    rotation: int
    """Degrees counterclockwise by which the first frame was turned to stand upright: 0, 90, 180 or -90."""
    start_s: float
    """Time of the first decoded frame on the container's own clock, seconds; the zero of the video's clock."""
    clock: RecordingClock
    """Times of the packets, for :func:`read_audio`."""
    warnings: list[str]
    """What was wrong with the stream and what was done about it; complete when :meth:`frames` has ended."""
    resets: list[float]
    """Where the container's clock starts anew: what is added to its times from then on, seconds, one for each time."""

    def __init__(self, path: Path, *, streams: Sequence[int] = ()) -> None:
        """Open a file and decode its first frame.

        Args:
            path: any file that FFmpeg reads.
            streams: numbers, in the file, of the streams to use, at most one of video and one of audio.

        Raises:
            InputError: there is no such file, it is no recording, it has no video stream or not the one asked for, or
                no frame can be decoded.
        """
        self.warnings = []
        self._container = open_recording(path)
        self._n_read = 0
        # One for all frames: a frame's own would be made anew each time, which takes longer than its work.
        self._reformatter = VideoReformatter()
        try:
            self._stream = _video_stream(self._container, path, streams, self.warnings)
            self.clock = read_clock(path, streams=streams)
            self._shapes = _Shapes(self._stream, self.warnings)
            self._decoded = self._shaped_frames()
            first = next(self._decoded, None)
            if first is None:
                raise _no_frames(path)
        except BaseException:
            self._container.close()
            raise
        self._first: tuple[VideoFrame, _Shape] | None = first
        self.start_s = container_time_s(first[0]) or 0.0
        self.resets = [reset.shift_s - self.start_s for reset in self.clock.pictures.resets]
        self.rotation = first[1].rotation
        self.width, self.height = first[1].upright

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
        held, self._first = self._first, None
        clock = FrameClock(self.clock.pictures)
        # One frame is held back: whether its time is right shows in the next one's.
        for following in self._decoded:
            time_s = clock.time_s(container_time_s(held[0]), container_time_s(following[0]))
            yield Frame(image=self._upright(*held), time_s=time_s)
            held = following
        yield Frame(image=self._upright(*held), time_s=clock.time_s(container_time_s(held[0]), None))
        self.warnings += [*clock.warnings(), *self._shapes.changes()]

    def images(self, indices: Iterable[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Some frames as (index, image) in order of presentation; all are decoded, only these are converted to RGB.

        Args:
            indices: of the frames in :meth:`frames`; those beyond the last frame are not given.

        Raises:
            RuntimeError: see :meth:`frames`.
        """
        if self._first is None:
            raise RuntimeError("the frames of a video can be read once; open it again for another pass")
        held, self._first = self._first, None
        wanted = set(indices)
        for index, frame in enumerate(chain([held], self._decoded)):
            if index in wanted:
                yield index, self._upright(*frame)

    @property
    def share_read(self) -> float:
        """How much of the file has been read, 0 to 1; 0 where that is not known."""
        size = self._container.size
        return min(1.0, self._n_read / size) if size > 0 else 0.0

    def _note_position(self, packet: Packet) -> None:
        self._n_read = max(self._n_read, packet.pos or 0)

    def _shaped_frames(self) -> Iterator[tuple[VideoFrame, _Shape]]:
        frames = decode_stream(
            self._container, self._stream, self.warnings, clock=self.clock.pictures, note=self._note_position
        )
        for frame in frames:
            # Asked for at once: the decoder knows the shape of pixels only of the frame that it gave last.
            yield frame, self._shapes.shape_of(frame)

    def _upright(self, frame: VideoFrame, shape: _Shape) -> NDArray[np.uint8]:
        image = self._reformatter.reformat(frame, shape.width, shape.height, "rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, shape.rotation // 90))


@dataclass(frozen=True)
class _Shape:
    """How a stored frame is to be shown."""

    width: int
    """Of the frame as it is stored, but with square pixels."""
    height: int
    rotation: int
    """Degrees counterclockwise: 0, 90, 180 or -90."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as shown."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)


class _Shapes:
    """The shapes of a stream's frames, each told by the frame, its decoder and its container."""

    def __init__(self, stream: VideoStream, warnings: list[str]) -> None:
        self._stream, self._warnings = stream, warnings
        self._coded: Fraction | None = None
        """Shape of pixels of the first frame, as the decoder has it."""
        self._rotation: int | None = None
        self._seen: dict[tuple[int, int], None] = {}
        self._incredible: set[Fraction] = set()

    def shape_of(self, frame: VideoFrame) -> _Shape:
        """The shape of the frame that was decoded last."""
        # A stream may tell its rotation with key frames only: it holds until the next one.
        if frame.key_frame or self._rotation is None:
            self._rotation = _quarter_turn(frame)
        shape = _Shape(max(1, round(frame.width * self._pixel_aspect())), frame.height, self._rotation)
        self._seen[shape.upright] = None
        return shape

    def _pixel_aspect(self) -> Fraction:
        coded = self._stream.codec_context.sample_aspect_ratio or Fraction(1)
        if self._coded is None:
            self._coded = coded
        # The container's word counts until the stream itself changes.
        aspect = (self._stream.sample_aspect_ratio or Fraction(1)) if coded == self._coded else coded
        if _SANE_ASPECT[0] <= aspect <= _SANE_ASPECT[1]:
            return aspect
        if aspect not in self._incredible:
            self._incredible.add(aspect)
            self._warnings.append(f"video: a pixel shape of {aspect} is not credible; taken as square")
        return Fraction(1)

    def changes(self) -> list[str]:
        """A remark on frames of several sizes, if there are any."""
        if len(self._seen) < 2:
            return []
        sizes = ", ".join(f"{width}x{height}" for width, height in self._seen)
        return [
            f"video: the size of its pictures changes ({sizes}); each frame keeps its own, with boxes in its pixels"
        ]


def picture_size(path: Path, *, streams: Sequence[int] = ()) -> tuple[int, int]:
    """Width and height of :class:`Video`, from the start of the file alone; raises the same errors."""
    with open_recording(path) as container:
        stream = _video_stream(container, path, streams, [])
        shapes = _Shapes(stream, [])
        for frame in decode_stream(container, stream, [], clock=None):
            return shapes.shape_of(frame).upright
    raise _no_frames(path)


def _no_frames(path: Path) -> InputError:
    return InputError(f"{path}: no video frame can be decoded; give a file that plays in a video player")


def read_clock(path: Path, *, streams: Sequence[int] = ()) -> RecordingClock:
    """Times of the packets that :class:`Video` and :func:`read_audio` use; see :mod:`preprocessing.media.clock`.

    The file is read once; nothing is decoded.

    Raises:
        InputError: there is no such file, it is no recording, or it has no video stream or not the one asked for.
    """
    with open_recording(path) as container:
        pictures, sound = _video_stream(container, path, streams, []), audio_stream(container, streams, [])
        logs = {stream.index: _PacketLog() for stream in (pictures, sound) if stream is not None}
        wanted = [container.streams[index] for index in logs]
        try:
            for position, packet in enumerate(container.demux(wanted)):
                if packet.size:
                    logs[packet.stream_index].add(packet, position)
        except av.FFmpegError:
            pass  # Told when the stream is decoded.
        heard = None if sound is None else logs[sound.index].times(sound)
        return settle_clock(logs[pictures.index].times(pictures), heard)


class _PacketLog:
    """Times of one stream's packets, in ticks."""

    def __init__(self) -> None:
        self._shown: list[int | None] = []
        self._decoded: list[int | None] = []
        self._positions: list[int] = []

    def add(self, packet: Packet, position: int) -> None:
        self._shown.append(packet.pts)
        self._decoded.append(packet.dts)
        self._positions.append(position)

    def times(self, stream: VideoStream | AudioStream) -> PacketTimes:
        tick_s = float(stream.time_base or 1)
        shown, decoded = (
            np.array([math.nan if tick is None else tick for tick in ticks]) * tick_s
            for ticks in (self._shown, self._decoded)
        )
        # AVI stores no times of presentation: FFmpeg guesses them for some codecs, and gives a rising count for others.
        in_avi = stream.container.format.name == "avi"
        unshown = not np.isfinite(shown).any() or (in_avi and not np.any(np.diff(shown) < 0))
        timed = decoded if np.isfinite(decoded).any() else shown
        steps = np.diff(timed[np.isfinite(timed)])
        rate = stream.average_rate if isinstance(stream, VideoStream) else None
        spacing_s = float(np.median(steps[steps > 0])) if np.any(steps > 0) else float(1 / (rate or Fraction(25)))
        return PacketTimes(
            time_s=decoded if unshown else shown,
            position=np.array(self._positions, np.int64),
            spacing_s=spacing_s,
            reordered=bool(np.any(np.diff(shown[np.isfinite(shown)]) < 0)),
        )


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
    if not sounds:
        return None
    chosen = _choose(sounds, wanted, warnings)
    _replace_unnamed_layout(chosen, warnings)
    return chosen


def _replace_unnamed_layout(stream: AudioStream, warnings: list[str]) -> None:
    """Keep PyAV from crashing on channels in an order that FFmpeg has no name for, as in .mov files with 7.1.

    The list of such channels lies on the heap, and each of PyAV's layouts (18.1) frees it though it does not own it:
    with each decoded frame it is freed twice. So this is the only look at it, and a named layout takes its place
    before anything is decoded.
    """
    layout = stream.codec_context.layout
    if " channels (" not in layout.name:
        return
    try:
        name = av.AudioLayout(f"{layout.nb_channels}c").name
    except ValueError:
        name = f"{layout.nb_channels} channels"
    stream.codec_context.layout = name
    warnings.append(f"audio: the order of its channels has no name ({layout.name}); taken as {name}")


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
    container: InputContainer,
    stream: VideoStream,
    warnings: list[str],
    *,
    clock: StreamClock | None,
    note: Callable[[Packet], None] = ...,
) -> Iterator[VideoFrame]: ...


@overload
def decode_stream(
    container: InputContainer, stream: AudioStream, warnings: list[str], *, clock: StreamClock | None
) -> Iterator[AudioFrame]: ...


def decode_stream(
    container: InputContainer,
    stream: VideoStream | AudioStream,
    warnings: list[str],
    *,
    clock: StreamClock | None,
    note: Callable[[Packet], None] = lambda _: None,
) -> Iterator[VideoFrame | AudioFrame]:
    """Frames of one stream; damaged packets are skipped and counted, each is shown to ``note`` first.

    Args:
        container: from :func:`open_recording`, nothing of it read yet.
        stream: of the container.
        warnings: receives what is wrong with the stream.
        clock: of the stream; None leaves the container's times.
        note: is shown each packet.
    """
    n_damaged = 0
    rising = clock is not None and clock.rising
    order = _DisplayOrder(stream) if rising and isinstance(stream, VideoStream) else None
    for packet in read_packets(container, stream, warnings, clock=clock):
        if packet is not None:
            note(packet)
            if order is not None:
                order.add(packet)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            n_damaged += 1
            if order is not None and packet is not None:
                order.drop(packet)
        else:
            for frame in frames:
                if order is not None and isinstance(frame, VideoFrame):
                    order.place(frame)
                yield frame
    if n_damaged:
        warnings.append(f"{stream.type}: damaged packets were skipped: {n_damaged}")


class _DisplayOrder:
    """Gives frames, which come in the order of display, the times of their packets in rising order.

    For containers that only know when a packet is to be decoded, such as AVI: there, packets that are stored out of
    order have rising times all the same.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._ticks: list[int] = []
        """A heap: times of packets that no frame has been given yet."""

    def add(self, packet: Packet) -> None:
        """Take note of a packet before it is decoded."""
        if packet.pts is not None and packet.size:
            heappush(self._ticks, packet.pts)

    def drop(self, packet: Packet) -> None:
        """Forget a packet that gives no frame."""
        if packet.pts in self._ticks:
            self._ticks.remove(packet.pts)
            heapify(self._ticks)

    def place(self, frame: VideoFrame) -> None:
        """Give a frame its time."""
        own, reordered = frame.pts, self._stream.codec_context.has_b_frames
        if own is None:
            return
        # Every packet before a key frame is shown before it, and without B-frames before any frame: what is left of
        # them gave no picture.
        if frame.key_frame or not reordered:
            while self._ticks and self._ticks[0] < own:
                heappop(self._ticks)
        if self._ticks and (reordered or self._ticks[0] == own):
            frame.pts = heappop(self._ticks)


def read_packets(
    container: InputContainer, stream: VideoStream | AudioStream, warnings: list[str], *, clock: StreamClock | None
) -> Iterator[Packet | None]:
    """Packets of one stream; a file that breaks off ends where it breaks. None asks the decoder for what it holds.

    With a clock, their presentation times are those on the recording's clock; None where they have none of their own.
    """
    try:
        if clock is None:
            yield from container.demux(stream)
            return
        tick_s = float(stream.time_base or 1)
        n_packets = 0
        for packet in container.demux(stream):
            if packet.size:
                time_s = clock.time_s[n_packets] if n_packets < len(clock.time_s) else math.nan
                packet.pts = None if math.isnan(time_s) else round(time_s / tick_s)
                n_packets += 1
            yield packet
    except av.FFmpegError as error:
        warnings.append(f"{stream.type}: the file breaks off ({reason_of(error)}); what comes before is used")
        yield None


def container_time_s(frame: VideoFrame | AudioFrame) -> float | None:
    """Presentation time on the container's own clock."""
    if frame.pts is None or frame.time_base is None:
        return None
    return float(frame.pts * frame.time_base)


def _quarter_turn(frame: VideoFrame) -> int:
    """Counterclockwise turn in degrees that makes the frame upright, rounded to 0, 90, 180 or -90."""
    quarters = round(frame.rotation / 90) % 4
    return -90 if quarters == 3 else 90 * quarters


class _AudioRun:
    """A stretch of sound without a gap, resampled as it comes."""

    def __init__(self, first: AudioFrame, start_s: float) -> None:
        self.end_s = start_s
        self._position = round(start_s * SAMPLE_RATE)
        self._form = _audio_form(first)
        # Integer output makes FFmpeg normalise the mix-down of channels, so that it cannot clip.
        self._mono = av.AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
        self._channels: av.AudioResampler | None = None
        self._mixdown: Mixdown | None = None
        if first.layout.nb_channels > 1:
            self._channels = av.AudioResampler(format="flt", layout=first.layout.name, rate=SAMPLE_RATE)
            self._mixdown = Mixdown(first.layout.name, SAMPLE_RATE)

    @property
    def n_mended(self) -> int:
        """Samples in which channels would have cancelled each other."""
        return self._mixdown.n_mended if self._mixdown is not None else 0

    def goes_on_with(self, frame: AudioFrame, time_s: float) -> bool:
        """Whether a frame at this time follows without a gap, an overlap or a change of form."""
        return abs(time_s - self.end_s) <= _AUDIO_TOLERANCE_S and _audio_form(frame) == self._form

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


def _audio_form(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _audio_pieces(
    frames: Iterator[AudioFrame], origin_s: float, clock: StreamClock | None, warnings: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sound in pieces, each with the index of its first sample on the video's clock at 16 kHz.

    A run of samples ends where the packets' times and the count of samples have drifted apart, so that later samples
    stay in time, where the container's clock starts anew, or where the stream changes its form.
    """
    run: _AudioRun | None = None
    n_mended = 0
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
                n_mended += run.n_mended
            run = _AudioRun(frame, time_s)
        yield from run.add(frame)
    if run is not None:
        yield from run.finish()
        n_mended += run.n_mended
    if n_mended:
        warnings.append(
            f"audio: its channels cancel each other in the mix, as in opposite phase; one was inverted for "
            f"{n_mended / SAMPLE_RATE:.1f} s"
        )
