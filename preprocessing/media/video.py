"""Pictures of a recording, upright, with their times; the clock's zero is the time of the first decoded frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.media.clock import (
    FrameClock,
    RecordingClock,
)
from preprocessing.media.container import container_time_s, decode_stream, open_recording, read_clock, video_stream

_SANE_ASPECT = (Fraction(1, 4), Fraction(4))
"""Range of pixel shapes (width / height) that are taken for real."""


@dataclass(frozen=True)
class Frame:
    """One picture as a viewer would see it."""

    image: NDArray[np.uint8]
    """(H,W,3) RGB, upright, square pixels; a stream can change its size in the middle."""
    time_s: float
    """Presentation time in seconds on the video's clock; strictly increasing over the frames."""


class Video:
    """One video stream of a file, decoded in one pass; a context manager.

    Of several, it is the one that is requested, else the first that the file marks as default, else the first; cover
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
    """Where the container's clock restarts: what is added to its times from then on, seconds, one for each time."""

    def __init__(self, path: Path, *, streams: Sequence[int] = ()) -> None:
        """Open a file and decode its first frame.

        Args:
            path: any file that FFmpeg reads.
            streams: numbers, in the file, of the streams to use, at most one of video and one of audio.

        Raises:
            InputError: there is no such file, it is no recording, it has no video stream or not the requested one, or
                no frame can be decoded.
        """
        self.warnings = []
        self._container = open_recording(path)
        self._n_read = 0
        # One for all frames: creating one takes longer than using it.
        self._reformatter = VideoReformatter()
        try:
            self._stream = video_stream(self._container, path, streams, self.warnings)
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
        stream = video_stream(container, path, streams, [])
        shapes = _Shapes(stream, [])
        for frame in decode_stream(container, stream, [], clock=None):
            return shapes.shape_of(frame).upright
    raise _no_frames(path)


def _no_frames(path: Path) -> InputError:
    return InputError(f"{path}: no video frame can be decoded; give a file that plays in a video player")


def _quarter_turn(frame: VideoFrame) -> int:
    """Counterclockwise turn in degrees that makes the frame upright, rounded to 0, 90, 180 or -90."""
    quarters = round(frame.rotation / 90) % 4
    return -90 if quarters == 3 else 90 * quarters
