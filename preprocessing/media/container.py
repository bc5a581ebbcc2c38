"""Media files, their streams, and the packets and frames of a stream.

Frame counts and durations in headers are often wrong: nothing here relies on them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from preprocessing.errors import InputError
from preprocessing.media.clock import PacketTimes, RecordingClock, StreamClock, settle_clock

S = TypeVar("S", VideoStream, AudioStream)


def open_recording(path: Path) -> InputContainer:
    """Open a media file of any name; never a URL.

    Raises:
        InputError: it does not exist, or is not a media file.
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
    """Return the message of FFmpeg or the operating system, without error numbers and file names."""
    return str(getattr(error, "strerror", None) or error)


def video_stream(container: InputContainer, path: Path, wanted: Sequence[int], warnings: list[str]) -> VideoStream:
    """Return the requested video stream, else the default one, else the first; cover art does not count.

    Raises:
        InputError: there is none, or a stream in ``wanted`` does not exist.
    """
    candidates = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    _check_wanted(path, wanted, [*candidates, *container.streams.audio])
    if not candidates:
        kinds = sorted({stream.type for stream in container.streams})
        holds = f"only {' and '.join(kinds)}" if kinds else "no streams at all"
        raise InputError(f"{path}: no video stream ({holds}); give a file with pictures")
    stream = _choose(candidates, wanted, warnings)
    if stream.codec_context is None:
        raise InputError(f"{path}: its video codec is not supported; convert it, for example to H.264")
    stream.thread_type = "AUTO"
    return stream


def audio_stream(container: InputContainer, wanted: Sequence[int], warnings: list[str]) -> AudioStream | None:
    """Return the requested audio stream, else the default one, else the first; None if none can be decoded."""
    candidates = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if not candidates:
        return None
    stream = _choose(candidates, wanted, warnings)
    _replace_unnamed_layout(stream, warnings)
    return stream


def _check_wanted(path: Path, wanted: Sequence[int], streams: Sequence[VideoStream | AudioStream]) -> None:
    types = {stream.index: stream.type for stream in streams}
    for number in wanted:
        if number not in types:
            known = ", ".join(f"{stream.type} {_describe(stream)}" for stream in streams) or "none"
            raise InputError(f"{path}: no video or audio stream {number}; it has: {known}")
    for kind in ("video", "audio"):
        several = [number for number in wanted if types[number] == kind]
        if len(several) > 1:
            raise InputError(f"{path}: streams {several} are all {kind}; choose one")


def _choose(streams: Sequence[S], wanted: Sequence[int], warnings: list[str]) -> S:
    for stream in streams:
        if stream.index in wanted:
            return stream
    chosen = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    others = [_describe(stream) for stream in streams if stream is not chosen]
    if others:
        warnings.append(f"{chosen.type}: stream {_describe(chosen)} is used, not {', '.join(others)}; --stream chooses")
    return chosen


def _describe(stream: VideoStream | AudioStream) -> str:
    if isinstance(stream, VideoStream):
        return f"{stream.index} ({stream.width}x{stream.height})"
    language = stream.metadata.get("language")
    return f"{stream.index} ({stream.rate} Hz{f', {language}' if language else ''})"


def _replace_unnamed_layout(stream: AudioStream, warnings: list[str]) -> None:
    """Keep PyAV from crashing on channels in an order that FFmpeg has no name for, as in .mov files with 7.1.

    The list of such channels lies on the heap, and each of PyAV's layouts (18.1) frees it though it does not own it:
    with each decoded frame it is freed twice. So the layout is read only once, here, and replaced by a named one before
    anything is decoded.
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


def read_clock(path: Path, *, streams: Sequence[int] = ()) -> RecordingClock:
    """Read the packet times of the streams that :class:`Video` and :func:`read_audio` use; nothing is decoded.

    Raises:
        InputError: see :func:`open_recording` and :func:`video_stream`.
    """
    with open_recording(path) as container:
        video, audio = video_stream(container, path, streams, []), audio_stream(container, streams, [])
        wanted = [stream for stream in (video, audio) if stream is not None]
        packets: dict[int, list[tuple[int | None, int | None, int]]] = {stream.index: [] for stream in wanted}
        with suppress(av.FFmpegError):  # Reported when the stream is decoded.
            for position, packet in enumerate(container.demux(wanted)):
                if packet.size:
                    packets[packet.stream_index].append((packet.pts, packet.dts, position))
        video_times, *audio_times = [_packet_times(stream, packets[stream.index]) for stream in wanted]
        return settle_clock(video_times, *audio_times)


def _packet_times(
    stream: VideoStream | AudioStream, packets: Sequence[tuple[int | None, int | None, int]]
) -> PacketTimes:
    """Presentation times from (pts, dts, position) of each packet."""
    # float64 turns None into NaN.
    pts, dts, position = np.array(packets, np.float64).reshape(-1, 3).T
    tick_s = float(stream.time_base or 1)
    presented_s, decoded_s = pts * tick_s, dts * tick_s
    has_pts, has_dts = np.isfinite(presented_s).any(), np.isfinite(decoded_s).any()
    reordered = bool(np.any(np.diff(presented_s[np.isfinite(presented_s)]) < 0))
    timed = decoded_s if has_dts else presented_s
    steps = np.diff(timed[np.isfinite(timed)])
    rate = stream.average_rate if isinstance(stream, VideoStream) else None
    # AVI stores no presentation times: FFmpeg guesses them for some codecs, and gives a rising count for others.
    is_counted = stream.container.format.name == "avi" and not np.any(np.diff(presented_s) < 0)
    return PacketTimes(
        time_s=presented_s if has_pts and not is_counted else decoded_s,
        position=position.astype(np.int64),
        spacing_s=float(np.median(steps[steps > 0])) if np.any(steps > 0) else float(1 / (rate or Fraction(25))),
        reordered=reordered,
    )


def read_packets(
    container: InputContainer, stream: VideoStream | AudioStream, warnings: list[str], *, clock: StreamClock | None
) -> Iterator[Packet | None]:
    """Yield the packets of one stream; None, at the end of a truncated file, flushes the decoder.

    With a clock, presentation times are on the recording's clock, or None if a packet has no reliable time.
    """
    tick_s = float(stream.time_base or 1)
    n_packets = 0
    try:
        for packet in container.demux(stream):
            if clock is not None and packet.size:
                time_s = clock.time_s[n_packets] if n_packets < len(clock.time_s) else math.nan
                packet.pts = None if math.isnan(time_s) else round(time_s / tick_s)
                n_packets += 1
            yield packet
    except av.FFmpegError as error:
        warnings.append(f"{stream.type}: the file breaks off ({reason_of(error)}); what comes before is used")
        yield None


def decode_stream(
    container: InputContainer, stream: VideoStream | AudioStream, warnings: list[str], *, clock: StreamClock | None
) -> Iterator[Any]:
    """Yield the VideoFrames or AudioFrames of one stream; damaged packets are skipped and counted in ``warnings``.

    Without a clock, frames keep the container's times. Nothing may have been read from the container yet.
    """
    n_damaged = 0
    order = None
    if isinstance(stream, VideoStream) and clock is not None and clock.increasing:
        order = _DisplayOrder(stream.codec_context)
    for packet in read_packets(container, stream, warnings, clock=clock):
        if order is not None:
            order.add(packet)
        try:
            frames: Sequence[Any] = stream.decode(packet)
        except av.FFmpegError:
            n_damaged += 1
            if order is not None:
                order.drop(packet)
            continue
        for frame in frames:
            if order is not None:
                order.place(frame)
            yield frame
    if n_damaged:
        warnings.append(f"{stream.type}: damaged packets were skipped: {n_damaged}")


class _DisplayOrder:
    """Assigns packet times in increasing order to decoded frames, which arrive in display order.

    For containers that only store decoding times, such as AVI: their times increase even if frames are reordered.
    """

    def __init__(self, decoder: VideoCodecContext) -> None:
        self._decoder = decoder
        self._ticks: deque[int] = deque()
        """Times of packets that no frame has been given yet, increasing."""

    def add(self, packet: Packet | None) -> None:
        """Note a packet before it is decoded."""
        if packet is not None and packet.pts is not None and packet.size:
            self._ticks.append(packet.pts)

    def drop(self, packet: Packet | None) -> None:
        """Forget a packet that yields no frame."""
        if packet is not None and packet.pts is not None:
            with suppress(ValueError):
                self._ticks.remove(packet.pts)

    def place(self, frame: VideoFrame) -> None:
        """Set the frame's time."""
        own, reordered = frame.pts, self._decoder.has_b_frames
        if own is None:
            return
        # Every packet before a key frame is shown before it, and without B-frames before any frame: those still left
        # gave no picture.
        if frame.key_frame or not reordered:
            while self._ticks and self._ticks[0] < own:
                self._ticks.popleft()
        if self._ticks and (reordered or self._ticks[0] == own):
            frame.pts = self._ticks.popleft()
