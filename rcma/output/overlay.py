"""A clip with its prediction drawn in: face box, words, a gauge of valence and arousal; sound and times as they were.

Video.frames ──▶ Drawing.draw ───▶ libx264 ──┐
                                             ├──▶ .mp4, in order of time
packets of the sound ──▶ as they are, or AAC ┘
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
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

from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.files import replace_own
from preprocessing.media import (
    Video,
    audio_stream,
    decode_stream,
    open_recording,
    read_packets,
    reason_of,
)
from rcma.config import TARGETS
from rcma.output.drawing import Drawing
from rcma.prediction import Prediction

_TICKS_PER_S = 120_000
"""Clock of the result: frames of 24, 25, 30, 50 and 60 Hz, of 1/1.001 of these, and milliseconds are whole ticks."""
_SAME_TIME_S = 1e-3
"""Frames further from the features' times are frames of another recording."""

_PLAYED_FROM_MP4 = ("aac", "mp3", "opus", "flac")
"""Codecs of sound that browsers play from an .mp4; the container could hold others, which few players then play."""
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_RATE = 48000
_AAC_BITS_PER_S = 160_000
_WARM_UP_S = 0.1
"""Packets this long before the first frame are kept, unheard: decoders need some to be right from the first on."""
_GAP_S = 0.04
"""A longer gap of encoded sound is filled with silence; below it is rounding."""


def write_overlay(
    path: Path,
    video: Path,
    features: Features,
    prediction: Prediction,
    *,
    predicted_by: str = "",
    on_frame: Callable[[int, int], None],
) -> None:
    """Write the clip again, with its prediction drawn into the pictures; whole or not at all.

    Drawn are the box of the face, the words around the one being spoken, a plane of valence and arousal with the last
    two seconds, and which modalities a frame had. Pictures are upright with square pixels, H.264. Each frame keeps its
    time, to 1/120000 s; zero is the first frame. Sound that browsers play from an .mp4 is copied, other sound encoded
    as AAC. Memory does not grow with the video.

    Args:
        path: the .mp4 to write; missing folders above it are made.
        video: the recording of which the features were made.
        features: of its T frames.
        prediction: of the same frames.
        predicted_by: shown in each picture, if it was not RCMA that predicted.
        on_frame: called after each frame with the number of frames that are done, and T.

    Raises:
        InputError: ``path`` is no .mp4, cannot be written, or is there already and this program did not write it; the
            recording cannot be read, or its frames are not those of the features.
        ValueError: the prediction is not of T frames.
    """
    if prediction.values.shape != (features.n_frames, len(TARGETS)):
        raise ValueError(f"{features.video_id}: prediction {prediction.values.shape} of {features.n_frames} frames")
    _check_path(path, video)
    settings = features.meta.get("settings") or {}
    streams = settings.get("streams") or ()
    with Video(video, streams=streams) as recording:
        _check_size(video, recording, features)
        drawing = Drawing(recording.width, recording.height, features, prediction, predicted_by=predicted_by)
        try:
            with replace_own(path) as new, open_recording(video) as source, _open_output(new) as output:
                encoder = _video_encoder(output, drawing, features.time_s)
                packets = [_encode(encoder, _drawn_frames(video, recording, features, drawing, on_frame))]
                sound = _sound_packets(source, output, _SoundClock(recording), streams)
                if sound is not None:
                    packets.append(sound)
                # By time, so that neither waits for the other in memory.
                for _, packet in heapq.merge(*packets, key=lambda timed: timed[0]):
                    output.mux(packet)
        except (OSError, av.FFmpegError) as error:
            reason = f"cannot be written ({reason_of(error)})"
            raise InputError(f"{path}: {reason}; give a place where a file can be written") from None


def _open_output(path: Path) -> OutputContainer:
    # The movie's clock places the first sound; its default, milliseconds, would move it.
    options = {"movflags": "+faststart", "movie_timescale": str(_TICKS_PER_S)}
    return av.open(f"file:{path.absolute()}", "w", format="mp4", options=options)


def _check_path(path: Path, video: Path) -> None:
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: an overlay is an .mp4 file; give a name that ends in .mp4")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of an .mp4 file to write")
    if path.exists() and video.exists() and path.samefile(video):
        raise InputError(f"{path}: is the recording itself; give another name for the overlay")


def _check_size(video: Path, recording: Video, features: Features) -> None:
    known = features.meta.get("width"), features.meta.get("height")
    if None not in known and known != (recording.width, recording.height):
        raise InputError(
            f"{video}: pictures of {recording.width} x {recording.height} pixels, but the features of "
            f"{features.video_id} are of {known[0]} x {known[1]}; give the recording they were made of"
        )


# Pictures, encoded.


def _video_encoder(output: OutputContainer, drawing: Drawing, time_s: NDArray[np.float64]) -> VideoStream:
    span_s = float(time_s[-1] - time_s[0])
    rate = Fraction((len(time_s) - 1) / span_s if span_s > 0 else 25.0).limit_denominator(1001)
    stream = output.add_stream("libx264", rate=min(max(rate, Fraction(1)), Fraction(240)))
    stream.width, stream.height, stream.pix_fmt = drawing.width, drawing.height, "yuv420p"
    stream.options = {"crf": "20", "preset": "fast"}
    context = stream.codec_context
    # The rate above is for the encoder's decisions only; times are on this clock.
    context.time_base = Fraction(1, _TICKS_PER_S)
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, ITU-T H.273
    context.color_range = 1  # limited
    return stream


def _drawn_frames(
    video: Path,
    recording: Video,
    features: Features,
    drawing: Drawing,
    on_frame: Callable[[int, int], None],
) -> Iterator[VideoFrame]:
    """Frames of the recording with everything drawn in, each with its time and duration."""
    n_frames = features.n_frames
    ticks = _ticks(features.time_s)
    durations = np.diff(ticks, append=ticks[-1] + _usual_spacing(ticks))
    reformatter = VideoReformatter()
    n_decoded = 0
    for frame in recording.frames():
        n_decoded += 1
        if n_decoded > n_frames:
            continue
        index = n_decoded - 1
        if abs(frame.time_s - features.time_s[index]) > _SAME_TIME_S:
            raise InputError(
                f"{video}: frame {index} is at {frame.time_s:.3f} s, but at {features.time_s[index]:.3f} s in the "
                f"features of {features.video_id}; give the recording they were made of"
            )
        drawn = av.VideoFrame.from_ndarray(drawing.draw(frame.image, index), format="rgb24")
        drawn = reformatter.reformat(
            drawn,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            dst_color_trc=1,
            dst_color_primaries=1,
        )
        drawn.pts, drawn.duration, drawn.time_base = int(ticks[index]), int(durations[index]), Fraction(1, _TICKS_PER_S)
        yield drawn
        on_frame(n_decoded, n_frames)
    if n_decoded != n_frames:
        raise InputError(
            f"{video}: {n_decoded} frames can be decoded, but the features of {features.video_id} are of {n_frames}; "
            "give the recording they were made of"
        )


def _ticks(time_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """(T,) times of frames on the result's clock, from 0 on; always increasing."""
    times = np.asarray(time_s, np.float64)
    nearest = np.round((times - times[0]) * _TICKS_PER_S).astype(np.int64)
    order = np.arange(len(nearest))
    return np.maximum.accumulate(nearest - order) + order


def _usual_spacing(ticks: NDArray[np.int64]) -> int:
    return int(np.median(np.diff(ticks))) if len(ticks) > 1 else _TICKS_PER_S // 25


def _encode(stream: VideoStream | AudioStream, frames: Iterator[Any]) -> Iterator[tuple[float, Packet]]:
    """Packets of the frames, each with its decoding time in seconds."""
    for frame in itertools.chain(frames, [None]):
        for packet in stream.encode(frame):
            assert packet.dts is not None
            yield float(packet.dts * packet.time_base), packet


# Sound, copied or encoded.


class _SoundClock:
    """From the times of a recording's sound to those of the video."""

    def __init__(self, recording: Video) -> None:
        self.packets = recording.clock.audio
        self._origin_s = recording.start_s
        self._end_s = 0.0

    def time_s(self, own_s: float | None, duration_s: float) -> float:
        """Time of the next piece of sound in seconds; where it has none of its own, it follows the one before."""
        time_s = self._end_s if own_s is None else own_s - self._origin_s
        self._end_s = time_s + duration_s
        return time_s


def _sound_packets(
    source: InputContainer, output: OutputContainer, clock: _SoundClock, streams: Sequence[int]
) -> Iterator[tuple[float, Packet]] | None:
    """Packets of the sound that was listened to, with their times; None where there is none."""
    # Problems of the stream were reported when the features were computed.
    stream = audio_stream(source, streams, [])
    if stream is None:
        return None
    if stream.codec_context.codec.canonical_name in _PLAYED_FROM_MP4:
        return _copied_sound(source, stream, output.add_stream_from_template(stream), clock)
    rate = stream.rate if stream.rate in _AAC_RATES else _AAC_RATE
    layout = "mono" if stream.codec_context.channels == 1 else "stereo"
    encoder = output.add_stream("aac", rate=rate, layout=layout)
    encoder.bit_rate = _AAC_BITS_PER_S
    frames = _continuous(decode_stream(source, stream, [], clock=clock.packets), clock, rate=rate, layout=layout)
    return _encode(encoder, frames)


def _copied_sound(
    source: InputContainer, stream: AudioStream, target: AudioStream, clock: _SoundClock
) -> Iterator[tuple[float, Packet]]:
    last = None
    for packet in read_packets(source, stream, [], clock=clock.packets):
        if packet is None or packet.size == 0:
            continue
        tick_s = float(packet.time_base)
        container_s = None if packet.pts is None else packet.pts * tick_s
        time_s = clock.time_s(container_s, (packet.duration or 0) * tick_s)
        start = round(time_s / tick_s)
        # Where joined recordings overlap, the container takes no packet from before the last one.
        if time_s < -_WARM_UP_S or (last is not None and start <= last):
            continue
        packet.pts = packet.dts = last = start
        packet.stream = target
        yield time_s, packet


def _continuous(frames: Iterator[AudioFrame], clock: _SoundClock, *, rate: int, layout: str) -> Iterator[AudioFrame]:
    """Sound from time zero on, without gaps: silence stands before it and where the stream has none."""
    graph: Graph | None = None
    source: tuple[str, str, int] | None = None
    n_samples = 0
    for frame in itertools.chain(frames, [None]):
        own = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        if graph is not None and own != source:
            for piece in _pulled(graph, None):
                n_samples += piece.samples
                yield piece
        if frame is None or own is None:
            return
        if graph is None or own != source:
            graph, source = _sound_graph(*own, rate=rate, layout=layout, first=n_samples), own
        time_s = clock.time_s(frame.time, frame.samples / frame.sample_rate)
        frame.pts, frame.time_base = round(time_s * frame.sample_rate), Fraction(1, frame.sample_rate)
        for piece in _pulled(graph, frame):
            n_samples += piece.samples
            yield piece


def _sound_graph(
    sample_format: str, source_layout: str, sample_rate: int, *, rate: int, layout: str, first: int
) -> Graph:
    """FFmpeg's resampler, which fills gaps and cuts overlaps; its output starts at sample ``first``."""
    graph = Graph()
    graph.link_nodes(
        graph.add_abuffer(
            sample_rate=sample_rate, format=sample_format, layout=source_layout, time_base=Fraction(1, sample_rate)
        ),
        graph.add("aresample", f"{rate}:async=1:min_hard_comp={_GAP_S}:first_pts={first}"),
        graph.add("aformat", f"sample_fmts=fltp:sample_rates={rate}:channel_layouts={layout}"),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _pulled(graph: Graph, frame: AudioFrame | None) -> Iterator[AudioFrame]:
    graph.push(frame)
    while True:
        try:
            piece = graph.pull()
        except (BlockingIOError, EOFError):
            return
        assert isinstance(piece, AudioFrame)
        yield piece
