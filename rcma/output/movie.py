"""An MP4 file of pictures made from the frames of a recording, with the recording's sound and times.

pictures ──▶ libx264 ────────────────────────┐
                                             ├──▶ .mp4, in order of time
packets of the sound ──▶ as they are, or AAC ┘
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.container.output import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from preprocessing.media import Video, audio_stream, decode_stream, open_recording, read_packets

_TICKS_PER_S = 120_000
"""Clock of the file: frames of 24, 25, 30, 50 and 60 Hz, of 1/1.001 of these, and milliseconds are whole ticks."""
_COPIED_CODECS = ("aac", "mp3", "opus", "flac")
"""Codecs of sound that browsers play from an .mp4."""
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_RATE = 48000
_WARM_UP_S = 0.1
"""Packets copied from before the first frame: decoders need some to be right from the first frame on."""
_GAP_S = 0.04
"""A longer gap of encoded sound is filled with silence; below it is rounding."""


@dataclass(frozen=True)
class MovieQuality:
    """How pictures and sound are encoded."""

    video_options: Mapping[str, str]
    """Of libx264."""
    audio_bits_per_s: int
    audio_rate: int | None = None
    """Sample rate of the encoded sound, Hz. None: that of the recording, whose sound is copied if browsers play it."""


def write_movie(
    path: Path,
    pictures: Iterable[tuple[NDArray[np.uint8], float]],
    size: tuple[int, int],
    video: Video,
    recording: Path,
    *,
    streams: Sequence[int],
    quality: MovieQuality,
    most_bytes: int = sys.maxsize,
) -> bool:
    """Write an .mp4 of pictures and the recording's sound; memory does not grow with the recording.

    Args:
        path: the file to write.
        pictures: (H,W,3) RGB, each with its time on the video's clock, seconds, which it keeps to 1/120000 s.
        size: width and height, pixels; odd ones are changed by one.
        video: the recording, open.
        recording: its file.
        streams: see :class:`preprocessing.media.Video`.
        quality: of pictures and sound.
        most_bytes: where to stop.

    Returns:
        False if it stopped there.
    """
    # The movie's clock places the first sound; its default, milliseconds, would move it.
    options = {"movflags": "+faststart", "movie_timescale": str(_TICKS_PER_S)}
    with (
        open_recording(recording) as source,
        av.open(f"file:{path.absolute()}", "w", format="mp4", options=options) as output,
    ):
        encoder = _add_video(output, size, video, quality)
        packets = [_encode(encoder, _video_frames(pictures, encoder)), _sound(source, output, video, streams, quality)]
        n_bytes = 0
        # By time, so that neither waits for the other in memory.
        for _, packet in heapq.merge(*packets, key=lambda timed: timed[0]):
            n_bytes += packet.size
            if n_bytes > most_bytes:
                return False
            output.mux(packet)
    return True


def _add_video(output: OutputContainer, size: tuple[int, int], video: Video, quality: MovieQuality) -> VideoStream:
    # For the encoder's decisions only: the times of the frames are on the clock below.
    rate = Fraction(1 / video.clock.video.spacing_s).limit_denominator(1001)
    stream = output.add_stream(
        "libx264", min(max(rate, Fraction(1)), Fraction(240)), options=dict(quality.video_options)
    )
    # Colour has half the resolution: sides are even.
    stream.width, stream.height = (max(2, 2 * round(side / 2)) for side in size)
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = Fraction(1, _TICKS_PER_S)
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, ITU-T H.273
    context.color_range = 1  # limited
    return stream


def _video_frames(pictures: Iterable[tuple[NDArray[np.uint8], float]], stream: VideoStream) -> Iterator[VideoFrame]:
    reformatter = VideoReformatter()
    last = -_TICKS_PER_S // 25
    for image, time_s in pictures:
        frame = reformatter.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            stream.width,
            stream.height,
            stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            dst_color_trc=1,
            dst_color_primaries=1,
        )
        tick = max(round(time_s * _TICKS_PER_S), last + 1)
        # The last frame is shown as long as the one before it.
        frame.pts, frame.duration, frame.time_base = tick, tick - last, Fraction(1, _TICKS_PER_S)
        last = tick
        yield frame


def _encode(stream: VideoStream | AudioStream, frames: Iterable[Any]) -> Iterator[tuple[float, Packet]]:
    """Packets of the frames, each with its decoding time in seconds."""
    for frame in chain(frames, [None]):
        for packet in stream.encode(frame):
            assert packet.dts is not None
            yield float(packet.dts * packet.time_base), packet


def _sound(
    source: InputContainer, output: OutputContainer, video: Video, streams: Sequence[int], quality: MovieQuality
) -> Iterator[tuple[float, Packet]]:
    """Packets of the sound that was listened to, each with its time; none where there is no sound."""
    # Problems of the stream were reported when the features were computed.
    stream, clock = audio_stream(source, streams, []), video.clock.audio
    if stream is None:
        return iter(())
    if quality.audio_rate is None and stream.codec_context.codec.canonical_name in _COPIED_CODECS:
        packets = (packet for packet in read_packets(source, stream, [], clock=clock) if packet and packet.size)
        timed = _timed(packets, video.start_s, lambda packet: (packet.duration or 0) * float(packet.time_base))
        return _copy(timed, output.add_stream_from_template(stream))
    rate = quality.audio_rate or (stream.rate if stream.rate in _AAC_RATES else _AAC_RATE)
    layout = "mono" if stream.codec_context.channels == 1 else "stereo"
    encoder = output.add_stream("aac", rate=rate, layout=layout, options={"b": str(quality.audio_bits_per_s)})
    frames = decode_stream(source, stream, [], clock=clock)
    timed = _timed(frames, video.start_s, lambda frame: frame.samples / frame.sample_rate)
    return _encode(encoder, _resample(timed, rate=rate, layout=layout))


def _timed(pieces: Iterable[Any], start_s: float, duration_s: Callable[[Any], float]) -> Iterator[tuple[float, Any]]:
    """Packets or frames of sound with their times on the video's clock; one without follows the one before."""
    end_s = 0.0
    for piece in pieces:
        time_s = end_s if piece.pts is None else float(piece.pts * piece.time_base) - start_s
        end_s = time_s + duration_s(piece)
        yield time_s, piece


def _copy(packets: Iterable[tuple[float, Packet]], target: AudioStream) -> Iterator[tuple[float, Packet]]:
    last = None
    for time_s, packet in packets:
        start = round(time_s / packet.time_base)
        # Where joined recordings overlap, the container takes no packet from before the last one.
        if time_s >= -_WARM_UP_S and (last is None or start > last):
            packet.pts = packet.dts = last = start
            packet.stream = target
            yield time_s, packet


def _resample(frames: Iterable[tuple[float, AudioFrame]], *, rate: int, layout: str) -> Iterator[AudioFrame]:
    """Sound from time zero on, without gaps: silence stands before it and where the stream has none."""
    n_samples = 0
    for form, same in groupby(frames, lambda timed: (timed[1].format.name, timed[1].layout.name, timed[1].sample_rate)):
        sample_format, own_layout, own_rate = form
        tick = Fraction(1, own_rate)
        graph = Graph()
        graph.link_nodes(
            graph.add_abuffer(sample_rate=own_rate, format=sample_format, layout=own_layout, time_base=tick),
            # FFmpeg's resampler fills gaps and cuts overlaps.
            graph.add("aresample", f"{rate}:async=1:min_hard_comp={_GAP_S}:first_pts={n_samples}"),
            graph.add("aformat", f"sample_fmts=fltp:sample_rates={rate}:channel_layouts={layout}"),
            graph.add("abuffersink"),
        ).configure()
        for time_s, frame in chain(same, [(0.0, None)]):
            if frame is not None:
                frame.pts, frame.time_base = round(time_s * own_rate), tick
            graph.push(frame)
            with suppress(BlockingIOError, EOFError):
                while True:
                    piece = graph.pull()
                    assert isinstance(piece, AudioFrame)
                    n_samples += piece.samples
                    yield piece
