"""Decoding: every frame, upright, at its own time; sound on the same clock."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.errors import InputError
from preprocessing.media import SAMPLE_RATE, Video, picture_size, read_audio

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
        assert (video.width, video.height) == (width, height) == picture_size(media / name)
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


@pytest.mark.parametrize(
    "name", ["it's a+b & c?.mp4", "-dash.mp4", os.fsdecode("два.mp4".encode()), "a:b.mp4", "100%d.mp4", "#1 [x].mp4"]
)
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
        with pytest.raises(InputError):
            picture_size(path)
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


def write_case(path: Path, pts: Sequence[int], *, sound_pts: Sequence[int] = range(150)) -> Path:
    """Six seconds that flash and beep at 2 s and 4 s, each frame and each 640 samples of sound at a given time."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        packets = []
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(250 if number in (50, 100) else 20), format="rgb24")
            frame.pts, frame.time_base = 40 * number, Fraction(1, 1000)
            packets += [(number, packet, at) for packet in video.encode(frame)]
        for number, at in enumerate(sound_pts):
            samples = np.zeros((1, 640), np.int16)
            if number in (50, 100):
                samples[0, :320:2], samples[0, 1:320:2] = 20000, -20000
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 640 * number, Fraction(1, 16000)
            packets += [(number + 0.5, packet, at) for packet in sound.encode(frame)]
        for order, packet, at in sorted(packets, key=lambda entry: entry[0]):
            packet.time_base = Fraction(1, 1000)
            # Matroska stores the first only; the muxer wants the second to rise and to be the lower one.
            packet.pts, packet.dts = 40 * at, 40 * round(order - 0.25) - 10**6
            container.mux(packet)
    return path


def flash_and_beep_s(path: Path) -> tuple[list[float], list[float], list[str]]:
    """Times at which the pictures flash and the sound beeps, and all remarks."""
    with Video(path) as video:
        frames = [(frame.time_s, frame.image.mean()) for frame in video.frames()]
    audio = read_audio(path, origin_s=video.start_s, clock=video.clock)
    assert audio is not None
    loud = np.flatnonzero(np.abs(audio.samples[:]) > 0.2)
    onsets = loud[np.diff(loud, prepend=-SAMPLE_RATE) > SAMPLE_RATE // 2]
    np.testing.assert_allclose(np.diff([time_s for time_s, _ in frames]), 0.04, atol=0.002)
    beeps = (audio.start_s + onsets / SAMPLE_RATE).tolist()
    return [time_s for time_s, level in frames if level > 150], beeps, [*video.warnings, *audio.warnings]


@pytest.mark.parametrize("by", [8000, -8000])
@pytest.mark.parametrize("where", [[0], [0, 1, 2], [70], [70, 71], [49, 50, 51], range(60, 84), [149]], ids=str)
@pytest.mark.parametrize("kind", ["pictures", "sound"])
def test_wild_times_move_neither_pictures_nor_sound(tmp_path: Path, where: list[int], by: int, kind: str) -> None:
    wild = [number + by * (number in where) for number in range(150)]
    pts = {"pts": wild} if kind == "pictures" else {"pts": range(150), "sound_pts": wild}
    flashes, beeps, remarks = flash_and_beep_s(write_case(tmp_path / "wild.mkv", **pts))
    np.testing.assert_allclose(flashes, [2, 4], atol=0.002)
    np.testing.assert_allclose(beeps, [2, 4], atol=0.01)
    said = "out of order" if kind == "pictures" else "far off the rest"
    assert any(said in remark and remark.endswith(f": {len(where)}") for remark in remarks)


def test_flash_and_beep_over_a_jump_of_both_clocks(tmp_path: Path) -> None:
    jump = [number - 70 if number >= 70 else number + 500 for number in range(150)]
    late = [number - 70 if number >= 75 else number + 500 for number in range(150)]
    flashes, beeps, _ = flash_and_beep_s(write_case(tmp_path / "jump.mkv", jump, sound_pts=jump))
    np.testing.assert_allclose(flashes, [2, 4], atol=0.002)
    np.testing.assert_allclose(beeps, [2, 4], atol=0.01)
    flashes, beeps, _ = flash_and_beep_s(write_case(tmp_path / "late.mkv", jump, sound_pts=late))
    np.testing.assert_allclose(flashes, [2, 4], atol=0.002)
    np.testing.assert_allclose(beeps, [2, 4], atol=0.01)


def test_a_pause_of_half_an_hour_is_kept(tmp_path: Path) -> None:
    pts = [number + 45_000 * (number >= 75) for number in range(150)]
    path = write_case(tmp_path / "pause.mkv", pts, sound_pts=pts)
    with Video(path) as video:
        times = [frame.time_s for frame in video.frames()]
    np.testing.assert_allclose(times, np.array(pts) * 0.04, atol=0.002)
    assert not video.warnings


def write_with_b_frames(path: Path, codec: str, n_frames: int = 60, **options: str) -> Path:
    """Pictures of rising brightness, 25 a second; only the times of decoding are stored."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(picture(2 * number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode()
        assert any(packet.pts > packet.dts for packet in packets)
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, 25)
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.avi", "libx264", {"bf": "2"}),
        ("pyramid.avi", "libx264", {"bf": "7", "b-pyramid": "normal", "b_strategy": "0"}),
        ("mpeg4.avi", "mpeg4", {"bf": "2"}),
        ("raw.h264", "libx264", {"bf": "3"}),
    ],
)
def test_frames_without_times_of_their_own_are_even(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    with Video(write_with_b_frames(tmp_path / name, codec, **options)) as video:
        frames = list(video.frames())
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(60) / 25, atol=1e-6)
    # ... and each time belongs to its own picture.
    np.testing.assert_allclose([frame.image.mean() for frame in frames], 2.0 * np.arange(60), atol=8)


def test_damaged_packets_shift_no_later_frame_without_a_time_of_its_own(tmp_path: Path) -> None:
    path = write_with_b_frames(tmp_path / "b.avi", "libx264", n_frames=100, bf="2", g="20", sc_threshold="0")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    position, size = packets[45]
    content[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(content)
    with Video(path) as video:
        frames = list(video.frames())
    brightness = {round(frame.time_s * 25): frame.image.mean() for frame in frames}
    for number in (10, 30, 70, 95):
        assert brightness[number] == pytest.approx(2 * number, abs=6)


def pieces(path: Path, made: Sequence[Path]) -> Path:
    path.write_bytes(b"".join(piece.read_bytes() for piece in made))
    return path


def piece(path: Path, width: int, height: int, *, aspect: Fraction = Fraction(1), turn: int | None = None) -> Path:
    """H.264 in a transport stream: a picture whose upper left quarter is bright."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[: height // 2, : width // 2] = 220
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        packets = []
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode()
        if turn is not None:
            turned = av.BitStreamFilterContext(f"h264_metadata=display_orientation=insert:rotate={turn}", stream)
            packets = [out for packet in packets for out in turned.filter(packet)]
        for packet in packets:
            container.mux(packet)
    return path


def test_each_frame_keeps_its_own_shape(tmp_path: Path) -> None:
    made = [
        piece(tmp_path / "1.ts", 64, 48),
        piece(tmp_path / "2.ts", 48, 64),
        piece(tmp_path / "3.ts", 64, 48, aspect=Fraction(3, 2)),
    ]
    with Video(pieces(tmp_path / "all.ts", made)) as video:
        assert (video.width, video.height) == (64, 48)
        frames = list(video.frames())
    assert len(frames) == 90
    shapes = [shape for shape, _ in itertools.groupby(frame.image.shape for frame in frames)]
    assert shapes == [(48, 64, 3), (64, 48, 3), (48, 96, 3)]
    for frame in frames[::10]:
        height, width = frame.image.shape[:2]
        assert frame.image[: height // 2 - 4, : width // 2 - 4].mean() > 190
        assert frame.image[height // 2 + 4 :].mean() < 60
    assert any("64x48, 48x64, 96x48" in warning for warning in video.warnings)


def test_each_frame_is_turned_upright_by_itself(tmp_path: Path) -> None:
    made = [piece(tmp_path / "1.ts", 64, 48), piece(tmp_path / "2.ts", 64, 48, turn=90)]
    with Video(pieces(tmp_path / "all.ts", made)) as video:
        frames = list(video.frames())
    assert {frame.image.shape for frame in frames[:30]} == {(48, 64, 3)}
    assert {frame.image.shape for frame in frames[30:]} == {(64, 48, 3)}
    # The bright quarter has been turned along: it is above or to the left still, but in the other corner.
    last = frames[-1].image
    corners = [last[:20, :20], last[:20, -20:], last[-20:, :20], last[-20:, -20:]]
    assert [corner.mean() > 150 for corner in corners].count(True) == 1
    assert corners[0].mean() < 100


def test_eight_channels_in_mov_are_read(tmp_path: Path) -> None:
    """Their order makes PyAV end the process, so another one tries."""
    path = tmp_path / "eight.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16000, layout="7.1")
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(picture(100), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        tone = (8000 * np.sin(np.arange(16000) / 5)).astype(np.int16).repeat(8)[None]
        for first in range(0, 16000, 1000):
            frame = av.AudioFrame.from_ndarray(tone[:, 8 * first : 8 * first + 8000], format="s16", layout="7.1")
            frame.sample_rate, frame.pts, frame.time_base = 16000, first, Fraction(1, 16000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    code = (
        "import sys; from pathlib import Path; from preprocessing.media import read_audio\n"
        "audio = read_audio(Path(sys.argv[1]), origin_s=0.0)\n"
        "print(len(audio.samples), abs(audio.samples[:]).max())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    n_samples, loudest = done.stdout.split()
    assert int(n_samples) == 16000
    assert float(loudest) == pytest.approx(8000 / 32768, rel=0.02)
