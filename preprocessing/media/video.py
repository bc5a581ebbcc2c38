"""Upright frames of a recording with their times; zero is the time of the first decoded frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.media.clock import FrameClock, RecordingClock
from preprocessing.media.container import decode_stream, open_recording, read_clock, video_stream

_PLAUSIBLE_ASPECT = (Fraction(1, 4), Fraction(4))
"""Range of pixel aspect ratios (width / height) that are believed."""


@dataclass(frozen=True)
class Frame:
    """One picture as a viewer would see it."""

    image: NDArray[np.uint8]
    """(H,W,3) RGB, upright, square pixels; H and W can change in the middle of a stream."""
    time_s: float
    """Presentation time in seconds on the video's clock; strictly increasing over the frames."""


class Video(AbstractContextManager["Video"]):
    """One video stream of a file, decoded in one pass; a context manager.

    The stream is the requested one, else the one that the file marks as default, else the first.
    """

    width: int
    """Width in pixels of the first frame, upright with square pixels; later frames can have another size."""
    height: int
    start_s: float
    """Time of the first decoded frame on the container's clock, seconds; the zero of the video's clock."""
    clock: RecordingClock
    """Packet times, for :func:`read_audio`."""
    warnings: list[str]
    """Problems of the stream and how they were handled; complete when :meth:`frames` has ended."""
    resets: list[float]
    """Shift of the container's times, seconds, after each restart of its clock."""

    def __init__(self, path: Path, *, streams: Sequence[int] = ()) -> None:
        """Open a file and decode its first frame.

        Args:
            path: any file that FFmpeg reads.
            streams: indices of the streams to use, at most one of video and one of audio.

        Raises:
            InputError: the file does not exist or is not a recording, it has no video stream or not the requested one,
                or no frame can be decoded.
        """
        self.warnings = []
        self._container = open_recording(path)
        self._n_decoded = 0
        # One for all frames: creating one takes longer than using it.
        self._reformatter = VideoReformatter()
        try:
            stream = video_stream(self._container, path, streams, self.warnings)
            self.clock = read_clock(path, streams=streams)
            self._geometry = _Geometry(stream, self.warnings)
            self._decoded = self._decode(stream)
            first = next(self._decoded, None)
            if first is None:
                raise _no_frames(path)
        except BaseException:
            self._container.close()
            raise
        self._first: tuple[VideoFrame, _Shape] | None = first
        self.start_s = first[0].time or 0.0
        self.resets = [reset.shift_s - self.start_s for reset in self.clock.video.resets]
        self.width, self.height = first[1].upright

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._container.close()

    def frames(self) -> Iterator[Frame]:
        """Yield all frames in display order; memory does not grow with the video.

        Raises:
            RuntimeError: called a second time; open the video again for another pass.
        """
        clock = FrameClock(self.clock.video)
        decoded: Iterator[Any] = chain(self._all_decoded(), [None])
        # One frame is held back: the next one shows whether its time is right.
        for (frame, shape), following in pairwise(decoded):
            time_s = clock.time_s(frame.time, None if following is None else following[0].time)
            yield Frame(image=self._upright(frame, shape), time_s=time_s)
        self.warnings += [*clock.warnings(), *self._geometry.warn_of_sizes()]

    def images(self, indices: Iterable[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield some frames as (index, image) in display order; all are decoded, only these converted to RGB.

        Args:
            indices: of the frames in :meth:`frames`; those beyond the last frame are ignored.

        Raises:
            RuntimeError: see :meth:`frames`.
        """
        wanted = set(indices)
        for index, (frame, shape) in enumerate(self._all_decoded()):
            if index in wanted:
                yield index, self._upright(frame, shape)

    @property
    def share_read(self) -> float:
        """Share of the packets that have been decoded, 0 to 1."""
        return min(1.0, self._n_decoded / max(1, len(self.clock.video.time_s)))

    def _all_decoded(self) -> Iterator[tuple[VideoFrame, _Shape]]:
        if self._first is None:
            raise RuntimeError("the frames of a video can be read once; open it again for another pass")
        first, self._first = self._first, None
        return chain([first], self._decoded)

    def _decode(self, stream: VideoStream) -> Iterator[tuple[VideoFrame, _Shape]]:
        for frame in decode_stream(self._container, stream, self.warnings, clock=self.clock.video):
            self._n_decoded += 1
            # At once: the decoder knows the pixel aspect ratio only of the last frame.
            yield frame, self._geometry.shape_of(frame)

    def _upright(self, frame: VideoFrame, shape: _Shape) -> NDArray[np.uint8]:
        image = self._reformatter.reformat(frame, shape.width, shape.height, "rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, shape.quarter_turns))


@dataclass(frozen=True)
class _Shape:
    """How to display a frame."""

    width: int
    """Of the frame before it is turned, with square pixels."""
    height: int
    quarter_turns: int
    """Counterclockwise."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return (self.height, self.width) if self.quarter_turns % 2 else (self.width, self.height)


class _Geometry:
    """Size, pixel aspect ratio and rotation of a stream's frames, which can change in the middle."""

    def __init__(self, stream: VideoStream, warnings: list[str]) -> None:
        self._stream, self._warnings = stream, warnings
        self._first_aspect: Fraction | None = None
        self._quarter_turns: int | None = None
        self._sizes: dict[tuple[int, int], None] = {}

    def shape_of(self, frame: VideoFrame) -> _Shape:
        """Return the shape of the last decoded frame."""
        # Some streams store their rotation with key frames only: it holds until the next one.
        if frame.key_frame or self._quarter_turns is None:
            self._quarter_turns = round(frame.rotation / 90) % 4
        shape = _Shape(max(1, round(frame.width * self._pixel_aspect())), frame.height, self._quarter_turns)
        self._sizes[shape.upright] = None
        return shape

    def _pixel_aspect(self) -> Fraction:
        coded = self._stream.codec_context.sample_aspect_ratio or Fraction(1)
        if self._first_aspect is None:
            self._first_aspect = coded
        # The container's value counts until the stream itself changes.
        aspect = (self._stream.sample_aspect_ratio or Fraction(1)) if coded == self._first_aspect else coded
        if _PLAUSIBLE_ASPECT[0] <= aspect <= _PLAUSIBLE_ASPECT[1]:
            return aspect
        warning = f"video: a pixel shape of {aspect} is not credible; taken as square"
        if warning not in self._warnings:
            self._warnings.append(warning)
        return Fraction(1)

    def warn_of_sizes(self) -> list[str]:
        """Return a warning if frames had several sizes."""
        if len(self._sizes) < 2:
            return []
        sizes = ", ".join(f"{width}x{height}" for width, height in self._sizes)
        return [
            f"video: the size of its pictures changes ({sizes}); each frame keeps its own, with boxes in its pixels"
        ]


def picture_size(path: Path, *, streams: Sequence[int] = ()) -> tuple[int, int]:
    """Return width and height as of :class:`Video`, reading only the start of the file; raises the same errors."""
    with open_recording(path) as container:
        stream = video_stream(container, path, streams, [])
        geometry = _Geometry(stream, [])
        for frame in decode_stream(container, stream, [], clock=None):
            return geometry.shape_of(frame).upright
    raise _no_frames(path)


def _no_frames(path: Path) -> InputError:
    return InputError(f"{path}: no video frame can be decoded; give a file that plays in a video player")
