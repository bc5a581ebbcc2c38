"""``rcma-predict --overlay``: times and sound of the clip are kept, and what is known is drawn in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_features import make_features, make_labels

from preprocessing.errors import InputError
from preprocessing.features.folder import Features
from preprocessing.media import Video, read_audio
from rcma.output.drawing import Drawing, fit
from rcma.output.overlay import write_overlay
from rcma.prediction.postprocess import Prediction, present_modalities

N_FRAMES = 50


def ignore(done: int, total: int) -> None:
    pass


def predicted(features: Features) -> Prediction:
    values = make_labels(features.n_frames, seed=2)
    present = present_modalities(features, audio_alignment="start")
    return Prediction(features.video_id, features.time_s, values, present)


def of_recording(folder: Path, recording: Path) -> Features:
    """Made features with the recording's own times and size."""
    with Video(recording) as video:
        time_s = np.array([frame.time_s for frame in video.frames()])
        size = {"width": video.width, "height": video.height}
    made = make_features(folder, make_labels(len(time_s), seed=2), seed=2)
    return dataclasses.replace(made, time_s=time_s, meta={**made.meta, **size})


def times_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.array([float(frame.pts * frame.time_base) for frame in frames])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    images = [np.full((240, 320, 3), 60 + 2 * k, np.uint8) for k in range(N_FRAMES)]
    noise = np.random.default_rng(0).normal(0, 0.2, 32000).astype(np.float32)
    return make_video(tmp_path_factory.mktemp("recording") / "clip.mp4", images, samples=noise)


def test_frames_keep_their_times_and_sound_its_place(recording: Path, tmp_path: Path) -> None:
    features = of_recording(tmp_path / "clip", recording)
    done: list[tuple[int, int]] = []
    out = tmp_path / "new" / "out.mp4"
    write_overlay(out, recording, features, predicted(features), on_frame=lambda *counts: done.append(counts))
    assert done == [(k + 1, N_FRAMES) for k in range(N_FRAMES)]
    np.testing.assert_allclose(times_of(out), features.time_s, atol=1 / 120_000)
    assert lag_s(recording, out) == pytest.approx(0, abs=0.005)
    with av.open(str(recording)) as before, av.open(str(out)) as after:
        # AAC is copied, not encoded again.
        packets = [[bytes(p) for p in container.demux(audio=0) if p.size] for container in (before, after)]
    assert packets[0] == packets[1]


def lag_s(recording: Path, out: Path) -> float:
    """By how much the sound comes later than it should."""
    sounds = []
    for path in (recording, out):
        with Video(path) as video:
            next(iter(video.frames()))
            audio = read_audio(path, origin_s=video.start_s)
        assert audio is not None
        sound = np.zeros(16000 * 8)
        first = round(audio.start_s * 16000)
        samples = audio.samples[: len(sound) - first]
        sound[max(0, first) : first + len(samples)] = samples[max(0, -first) :]
        sounds.append(np.fft.rfft(sound))
    correlation = np.fft.irfft(sounds[1] * np.conj(sounds[0]))
    peak = int(correlation.argmax())
    return (peak if peak < len(correlation) / 2 else peak - len(correlation)) / 16000


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["streamio_awesome_vfr.mov", "streamio_sideways_movie.mov", "pyfeat_face_noface.mov", "grid_bbaf2n.mpg"]
)
def test_real_clips_keep_times_and_sound(media: Path, tmp_path: Path, name: str) -> None:
    features = of_recording(tmp_path / "clip", media / name)
    out = tmp_path / "out.mp4"
    write_overlay(out, media / name, features, predicted(features), on_frame=ignore)
    np.testing.assert_allclose(times_of(out), features.time_s - features.time_s[0], atol=2 / 120_000)
    with Video(out) as video:
        assert (video.width, video.height) == (features.meta["width"], features.meta["height"])
    if read_audio(media / name, origin_s=0.0) is not None:
        # What is encoded again is right to a fraction of a frame of sound.
        assert lag_s(media / name, out) == pytest.approx(0, abs=0.005)


def test_silent_clip_has_no_sound(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    silent = make_video(tmp_path / "silent.mp4", [np.zeros((90, 122, 3), np.uint8)] * 6)
    features = of_recording(tmp_path / "clip", silent)
    write_overlay(tmp_path / "out.mp4", silent, features, predicted(features), on_frame=ignore)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio
    np.testing.assert_allclose(times_of(tmp_path / "out.mp4"), features.time_s, atol=1 / 120_000)


def test_odd_sides_become_even(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    odd = make_video(tmp_path / "odd.mp4", [np.zeros((271, 243, 3), np.uint8)] * 3)
    features = of_recording(tmp_path / "clip", odd)
    assert (features.meta["width"], features.meta["height"]) == (243, 271)
    write_overlay(tmp_path / "out.mp4", odd, features, predicted(features), on_frame=ignore)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.width % 2 == stream.height % 2 == 0
        assert abs(stream.width - 243) <= 1 and abs(stream.height - 271) <= 1


def drawn(features: Features, prediction: Prediction, index: int) -> np.ndarray:
    grey = np.full((480, 640, 3), 90, np.uint8)
    return Drawing(640, 480, features, prediction).draw(grey.copy(), index).astype(int) - 90


def test_box_is_drawn_where_the_face_is_and_nowhere_else(tmp_path: Path) -> None:
    features = make_features(tmp_path / "clip", make_labels(N_FRAMES, seed=2), seed=2)
    box = np.array(features.face_box)
    box[:] = [200, 150, 300, 280]
    box[5:8] = np.nan
    features = dataclasses.replace(features, face_box=box)
    with_face, without = (np.abs(drawn(features, predicted(features), index)).max(axis=2) for index in (20, 6))
    inside = (slice(170, 260), slice(220, 280))
    assert not with_face[inside].any()
    for edge in ((slice(145, 156), 250), (slice(275, 286), 250), (200, slice(195, 206)), (200, slice(295, 306))):
        assert with_face[edge].any() and not without[edge].any()


def test_gauge_follows_the_values(tmp_path: Path) -> None:
    features = make_features(tmp_path / "clip", make_labels(N_FRAMES, seed=2), seed=2, words=False)
    corners = {}
    for valence, arousal in ((-0.9, -0.9), (0.9, 0.9)):
        prediction = predicted(features)
        values = np.tile(np.float32([valence, arousal]), (N_FRAMES, 1))
        corners[valence] = drawn(features, dataclasses.replace(prediction, values=values), 20)
    nothing = dataclasses.replace(predicted(features), values=np.full((N_FRAMES, 2), np.nan, np.float32))
    empty = drawn(features, nothing, 20)
    low, high = (
        np.array(np.nonzero((corners[v] - empty)[..., 0] - (corners[v] - empty)[..., 2] > 60)) for v in (-0.9, 0.9)
    )
    # Rows grow downwards: the high point is above and to the right of the low one.
    assert low.size and high.size
    assert np.median(high[0]) < np.median(low[0]) and np.median(high[1]) > np.median(low[1])


def test_word_being_spoken_is_lit(tmp_path: Path) -> None:
    features = make_features(tmp_path / "clip", make_labels(N_FRAMES, seed=2), seed=2)
    spoken, silent = 10, int(np.flatnonzero(features.frame_word == -1)[0])
    bottom = slice(380, 480)
    yellow = [
        (picture[bottom, ..., 0] - picture[bottom, ..., 2] > 100).sum()
        for picture in (drawn(features, predicted(features), index) for index in (spoken, silent))
    ]
    assert features.frame_word[spoken] == 0
    assert yellow[0] > 50 and yellow[1] == 0


def test_what_predicted_is_named_where_it_was_not_rcma(tmp_path: Path) -> None:
    features = make_features(tmp_path / "clip", make_labels(N_FRAMES, seed=2), seed=2, words=False)
    grey = np.full((480, 640, 3), 90, np.uint8)
    named, unnamed = (
        Drawing(640, 480, features, predicted(features), predicted_by=name).draw(grey, 20).astype(int)
        for name in ("public models, not RCMA", "")
    )
    yellow = [(picture[..., 0] - picture[..., 2] > 100).sum() for picture in (named, unnamed)]
    assert yellow[0] > yellow[1] + 100
    assert (grey == 90).all()


@pytest.mark.parametrize("size", [(64, 48), (121, 91), (1920, 1080)])
def test_any_size_is_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    features = make_features(tmp_path / "clip", make_labels(N_FRAMES, seed=2), seed=2)
    drawing = Drawing(*size, features, predicted(features))
    picture = drawing.draw(np.zeros((size[1], size[0], 3), np.uint8), 3)
    assert picture.shape == (drawing.height, drawing.width, 3)
    assert drawing.width % size[0] == drawing.height % size[1] == 0 and min(picture.shape[:2]) >= 240


def test_features_of_another_recording_are_refused(recording: Path, tmp_path: Path) -> None:
    features = of_recording(tmp_path / "clip", recording)
    out = tmp_path / "out.mp4"
    fewer = make_features(tmp_path / "fewer", make_labels(N_FRAMES - 1, seed=2), seed=2)
    late = dataclasses.replace(features, time_s=features.time_s + np.linspace(0, 1, N_FRAMES))
    larger = dataclasses.replace(features, meta={**features.meta, "width": 640})
    for wrong, says in (
        (fewer, "50 frames, but the features of fewer say 49"),
        (late, "frame 1 at 0.040 s, but the features of clip say 0.060 s"),
        (larger, "320 x 240 pixels, but the features of clip say 640 x 240"),
    ):
        with pytest.raises(InputError, match=says):
            write_overlay(out, recording, wrong, predicted(wrong), on_frame=ignore)
        assert not list(tmp_path.glob("*.mp4"))


def test_unusable_places_are_refused(recording: Path, tmp_path: Path) -> None:
    features = of_recording(tmp_path / "clip", recording)
    before = recording.read_bytes()
    (tmp_path / "file").touch()
    for out, says in (
        (tmp_path / "out.avi", "give a name that ends in .mp4"),
        (recording, "is the recording itself"),
        (tmp_path / "file" / "out.mp4", "cannot be written"),
    ):
        with pytest.raises(InputError, match=says):
            write_overlay(out, recording, features, predicted(features), on_frame=ignore)
    assert recording.read_bytes() == before
    overlay = tmp_path / "overlay.mp4"
    write_overlay(overlay, recording, features, predicted(features), on_frame=ignore)
    with pytest.raises(InputError, match="is the recording itself"):
        write_overlay(overlay, overlay, features, predicted(features), on_frame=ignore)


def test_pictures_that_change_their_size_are_shown_whole(tmp_path: Path) -> None:
    """Landscape becomes portrait: black bars, nothing squeezed, and the box stays around the face."""
    parts = []
    for width, height in ((320, 240), (240, 320)):
        part = tmp_path / f"{width}.ts"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number in range(30):
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 120, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append(part.read_bytes())
    recording = tmp_path / "changes.ts"
    recording.write_bytes(b"".join(parts))
    features = of_recording(tmp_path / "features", recording)
    box = np.array(features.face_box)
    box[:] = [80, 60, 160, 180]
    features = dataclasses.replace(features, face_box=box)
    out = tmp_path / "out.mp4"
    write_overlay(out, recording, features, predicted(features), on_frame=ignore)
    with Video(out) as video:
        pictures = [frame.image.astype(int) for frame in video.frames()]
    assert {picture.shape for picture in pictures} == {(240, 320, 3)}
    last = pictures[-1]
    # 240x320 becomes 180x240, from column 70 on.
    assert last[160, :60].max() < 30 and last[160, 260:].max() < 30
    assert abs(last[100, 150].mean() - 120) < 12
    green = last[..., 1] - last[..., 0]
    assert green[60:120, 70 + 60 - 4 : 70 + 60 + 4].max() > 60  # the box's left edge, 80 * 0.75
    assert green[60:120, 70 + 120 - 4 : 70 + 120 + 4].max() > 60  # and its right one


def test_pictures_of_another_size_keep_their_shape() -> None:
    picture = np.full((100, 50, 3), 200, np.uint8)
    fitted = np.asarray(fit(picture, 80, 60))
    assert fitted.shape == (60, 80, 3)
    assert (fitted[:, 25:55] == 200).all() and not fitted[:, :25].any() and not fitted[:, 55:].any()
    np.testing.assert_array_equal(np.asarray(fit(picture, 50, 100)), picture)
