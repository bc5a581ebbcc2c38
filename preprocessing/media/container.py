"""Containers, opened, and the packets and frames of their streams, with times that can be trusted.

Nothing here relies on headers for counts or durations: those are often wrong, and only decoding tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import TypeVar, overload

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from preprocessing.errors import InputError
from preprocessing.media.clock import (
    PacketTimes,
    RecordingClock,
    StreamClock,
    settle_clock,
)

S = TypeVar("S", VideoStream, AudioStream)


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


def video_stream(container: InputContainer, path: Path, wanted: Sequence[int], warnings: list[str]) -> VideoStream:
    """The video stream that is requested, else the one to choose; raises InputError if there is none."""
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
    order still have rising times.
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


def read_clock(path: Path, *, streams: Sequence[int] = ()) -> RecordingClock:
    """Times of the packets that :class:`Video` and :func:`read_audio` use; see :mod:`preprocessing.media.clock`.

    The file is read once; nothing is decoded.

    Raises:
        InputError: there is no such file, it is no recording, or it has no video stream or not the requested one.
    """
    with open_recording(path) as container:
        pictures, sound = video_stream(container, path, streams, []), audio_stream(container, streams, [])
        logs = {stream.index: _PacketLog() for stream in (pictures, sound) if stream is not None}
        wanted = [container.streams[index] for index in logs]
        try:
            for position, packet in enumerate(container.demux(wanted)):
                if packet.size:
                    logs[packet.stream_index].add(packet, position)
        except av.FFmpegError:
            pass  # Reported when the stream is decoded.
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
