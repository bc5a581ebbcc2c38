"""Decoding: every frame, upright, at its own time; sound on the same clock."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.errors import InputError
from preprocessing.video import SAMPLE_RATE, Video, read_audio

# Frames that a full decode gives, and width x height of the upright picture with square pixels.
DECODED = {
    "eamm_happy.mp4": (141, 256, 256),
    "eamm_sad.mp4": (110, 256, 256),  # the header says 157
    "grid_bbaf2n.mpg": (75, 360, 288),  # the header says 0
    "liveportrait_d9.mp4": (587, 480, 480),  # stored 512x480, pixels 15:16
    "moviepy_-video-with-dash-.mp4": (5, 1, 1),
    "moviepy_no_duration.webm": (74, 1280, 720),
    "pyfeat_face_noface.mov": (169, 960, 540),
    "pyfeat_no_face.mp4": (95, 960, 540),  # the header says 98
    "streamio_awesome_vfr.mov": (123, 640, 480),
    "streamio_data_streams.mp4": (309, 480, 320),
    "streamio_sideways_movie.mov": (25, 480, 640),  # stored on its side
    "streamio_weird_aspect.small.mpg": (36, 501, 288),  # stored 352x288, pixels 64:45
    "torchcodec_av1.mkv": (125, 640, 360),
    "torchcodec_nasa_13013.mp4": (325, 320, 180),  # the first of two video streams
    "videoretalking_1.mp4": (135, 700, 700),
}


def picture(value: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def write_frames(path: Path, pts: Sequence[int], *, time_base: Fraction, aspect: Fraction | None = None) -> Path:
    """Pictures of rising brightness, each shown at its pts."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = time_base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(10 * number % 250), format="rgb24")
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", DECODED)
def test_real_recordings_give_every_frame_upright(media: Path, name: str) -> None:
    n_frames, width, height = DECODED[name]
    with Video(media / name) as video:
        assert (video.width, video.height) == (width, height)
        frames = [(frame.image.shape, frame.time_s) for frame in video.frames()]
    assert len(frames) == n_frames
    assert {shape for shape, _ in frames} == {(height, width, 3)}
    times = [time_s for _, time_s in frames]
    assert times[0] == 0.0
    assert all(earlier < later for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("name", "start_s", "end_s"),
    [
        ("pyfeat_face_noface.mov", 2.43, 6.396),  # its sound starts late
        ("streamio_awesome_vfr.mov", 0.087, 7.564),
        ("videoretalking_1.mp4", 0.0, 6.074),  # its pictures start 33 ms late: so much of the sound is cut off
        ("sadtalker_WDA_KatieHill.mp4", 0.0, 8.0),
    ],
)
def test_real_sound_starts_and_ends_on_the_video_clock(media: Path, name: str, start_s: float, end_s: float) -> None:
    with Video(media / name) as video:
        audio = read_audio(media / name, origin_s=video.start_s)
    assert audio is not None
    assert audio.start_s == pytest.approx(start_s, abs=0.002)
    assert audio.start_s + len(audio.samples) / SAMPLE_RATE == pytest.approx(end_s, abs=0.03)


@pytest.mark.parametrize("name", ["eamm_happy.mp4", "torchcodec_av1.mkv"])
def test_real_video_without_sound(media: Path, name: str) -> None:
    assert read_audio(media / name, origin_s=0.0) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("streamio_broken.mp4", "cannot be read as a video"),
        ("streamio_empty.flv", "cannot be read as a video"),
        ("torchcodec_nasa_audio_only.mp3", r"no video stream \(only audio\)"),
    ],
)
def test_real_files_without_pictures_are_refused(media: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Video(media / name)


def test_frames_keep_their_own_times(tmp_path: Path) -> None:
    pts = [100, 140, 180, 300, 333, 1000]
    with Video(write_frames(tmp_path / "vfr.mkv", pts, time_base=Fraction(1, 1000))) as video:
        frames = list(video.frames())
        assert video.start_s == pytest.approx(0.1)
    np.testing.assert_allclose([frame.time_s for frame in frames], (np.array(pts) - 100) / 1000, atol=1e-9)
    # ... and each time belongs to its own picture.
    np.testing.assert_allclose([frame.image.mean() for frame in frames], 10.0 * np.arange(6), atol=4)


def test_pixels_become_square(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "wide.mp4", range(3), time_base=Fraction(1, 25), aspect=Fraction(3, 2))
    with Video(path) as video:
        assert (video.width, video.height) == (96, 48)
        assert next(video.frames()).image.shape == (48, 96, 3)


def test_frames_can_be_read_once(tmp_path: Path) -> None:
    with Video(write_frames(tmp_path / "a.mp4", range(3), time_base=Fraction(1, 25))) as video:
        assert len(list(video.frames())) == 3
        with pytest.raises(RuntimeError, match="once"):
            next(video.frames())


@pytest.mark.parametrize("late_s", [0.0, 0.64])
def test_a_click_is_heard_when_it_was_made(tmp_path: Path, make_video: Callable[..., Path], late_s: float) -> None:
    samples = np.zeros(SAMPLE_RATE, np.float32)
    samples[8000:8080] = 0.8  # at 0.5 s
    path = make_video(tmp_path / "click.mkv", [picture(0)] * 50, samples=samples, audio_start_s=late_s)
    audio = read_audio(path, origin_s=0.0)
    assert audio is not None
    heard_s = audio.start_s + np.argmax(np.abs(audio.samples[:])) / SAMPLE_RATE
    assert heard_s == pytest.approx(0.5 + late_s, abs=0.01)


def test_sound_before_the_first_frame_is_cut_off(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    samples = np.zeros(2 * SAMPLE_RATE, np.float32)
    samples[16000:16080] = 0.8  # at 1 s of the sound
    path = make_video(tmp_path / "click.mkv", [picture(0)] * 50, samples=samples)
    audio = read_audio(path, origin_s=0.4)
    assert audio is not None
    assert audio.start_s == 0.0
    assert np.argmax(np.abs(audio.samples[:])) / SAMPLE_RATE == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("name", ["it's a+b & c?.mp4", "-dash.mp4", "два.mp4", "a:b.mp4", "100%d.mp4", "#1 [x].mp4"])
def test_any_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.move(write_frames(tmp_path / "plain.mp4", range(3), time_base=Fraction(1, 25)), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with Video(Path(name)) as video:
        assert len(list(video.frames())) == 3


def test_file_that_breaks_off_gives_what_is_there(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "whole.ts", range(100), time_base=Fraction(1, 25))
    (tmp_path / "half.ts").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Video(path) as whole, Video(tmp_path / "half.ts") as half:
        n_whole, n_half = len(list(whole.frames())), len(list(half.frames()))
    assert n_whole == 100
    assert 20 < n_half < 80


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    for path in (tmp_path / "text.mp4", tmp_path / "gone.mp4", tmp_path):
        with pytest.raises(InputError) as error:
            Video(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def joined(path: Path, folder: Path, n: int = 3) -> Path:
    """A transport stream joined from ``n`` recordings, each with a clock that starts anew and a click of its own."""
    samples = np.zeros(16000, np.float32)
    samples[8000:8040] = 0.8
    piece = folder / "piece.ts"
    with av.open(str(piece), "w") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("mp2", rate=16000, layout="mono")
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(picture(5 * number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    path.write_bytes(piece.read_bytes() * n)
    return path


def test_joined_recordings_go_on_in_time(tmp_path: Path) -> None:
    path = joined(tmp_path / "joined.ts", tmp_path)
    with Video(path) as video:
        times = [frame.time_s for frame in video.frames()]
    np.testing.assert_allclose(times, np.arange(75) / 25, atol=1e-6)
    assert len(video.resets) == 2
    assert any("clock jumps" in warning for warning in video.warnings)
    audio = read_audio(path, origin_s=video.start_s, clock=video.clock)
    assert audio is not None
    sound = np.abs(audio.samples[:])
    clicks = [
        audio.start_s + (first + np.argmax(sound[first : first + 16000])) / SAMPLE_RATE for first in (0, 16000, 32000)
    ]
    # The pictures' clock rules: recordings follow each other every second, whatever the length of their sound.
    np.testing.assert_allclose(np.diff(clicks), 1.0, atol=0.005)


def two_streams(path: Path) -> Path:
    """A dark small picture first and a bright larger one second, no sound."""
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((64, 48), (128, 96)):
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for number in range(3):
            for stream, value in zip(streams, (40, 200), strict=True):
                frame = av.VideoFrame.from_ndarray(picture(value, stream.height, stream.width), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


def test_stream_is_chosen_by_number_and_the_choice_is_told(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "two.mkv")
    for streams, brightness in (((), 40), ((0,), 40), ((1,), 200)):
        with Video(path, streams=streams) as video:
            assert np.mean([frame.image.mean() for frame in video.frames()]) == pytest.approx(brightness, abs=4)
            told = [warning for warning in video.warnings if "--stream chooses" in warning]
            assert bool(told) == (not streams)
    with pytest.raises(InputError, match=r"no video or audio stream 7; it has: video 0 \(64x48\), video 1 \(128x96\)"):
        Video(path, streams=(7,))
    with pytest.raises(InputError, match="all video; choose one"):
        Video(path, streams=(0, 1))
