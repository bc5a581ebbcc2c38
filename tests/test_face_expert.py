"""The face expert: preprocessing against a transcription, boxes of a recording, values between looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_features import make_meta
from made_onnx import write_face_model
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.media import Video
from rcma.experts.face import FaceExpert, cut_box, frames_to_look_at, prepare
from rcma.experts.registry import FaceEntry, entries

RATE = 25
FACE_MODELS = [entry for entry in entries().values() if isinstance(entry, FaceEntry)]


def transcription(face: NDArray[np.uint8], entry: FaceEntry) -> NDArray[np.float64]:
    """Preprocessing of EmotiEffLib: bilinear to a square, without smoothing; [0,1]; mean and deviation; channels first.

    The centres of the outer pixels are half a pixel inside the edges; outside them, the outer pixel is repeated.
    """
    height, width = face.shape[:2]
    picture = face / 255.0
    square = np.empty((3, entry.side, entry.side))
    for row in range(entry.side):
        y = min(max((row + 0.5) * height / entry.side - 0.5, 0.0), height - 1.0)
        top, bottom = int(y), min(int(y) + 1, height - 1)
        line = (1 - (y - top)) * picture[top] + (y - top) * picture[bottom]
        x = (np.arange(entry.side) + 0.5) * width / entry.side - 0.5
        square[:, row] = [np.interp(x, np.arange(width), line[:, c]) for c in range(3)]
    return (square - np.reshape(entry.mean, (3, 1, 1))) / np.reshape(entry.std, (3, 1, 1))


@pytest.mark.parametrize("entry", FACE_MODELS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("shape", [(301, 257), (40, 33), (224, 112), (1, 1), (2, 700)])
def test_preprocessing_equals_its_transcription(entry: FaceEntry, shape: tuple[int, int]) -> None:
    face = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = prepare(face, entry)
    assert found.dtype == np.float32 and found.shape == (3, entry.side, entry.side)
    np.testing.assert_allclose(found, transcription(face, entry), rtol=0, atol=1e-5)


def test_a_box_is_cut_in_whole_pixels_inside_the_picture() -> None:
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    np.testing.assert_array_equal(cut_box(image, np.float32([3.7, 2.2, 9.9, 8.1])), image[2:8, 3:9])
    np.testing.assert_array_equal(cut_box(image, np.float32([-5, -5, 4, 4])), image[:4, :4])
    np.testing.assert_array_equal(cut_box(image, np.float32([15, 6, 50, 50])), image[6:, 15:])
    assert cut_box(image, np.float32([30, 0, 40, 5])).size == 0


@pytest.mark.parametrize("rate", [10.0, 24.0, 25.0, 29.97, 60.0])
def test_looks_five_times_a_second_and_at_the_last_frame_before_a_gap(rate: float) -> None:
    time_s = np.arange(round(20 * rate)) / rate
    face = (time_s < 5) | ((time_s > 7) & (time_s < 12)) | (time_s > 12.3)
    looked = frames_to_look_at(time_s, face)
    assert face[looked].all() and looked == sorted(set(looked))
    assert len(looked) <= 5 * face.sum() / rate + 4
    # Every frame with a face lies between two that are looked at, or is one.
    for frame in np.flatnonzero(face):
        before, after = max(k for k in looked if k <= frame), min(k for k in looked if k >= frame)
        assert time_s[after] - time_s[before] < 0.5 + 0.2


def test_nothing_to_look_at_without_a_face() -> None:
    assert frames_to_look_at(np.arange(9.0), np.zeros(9, bool)) == []


@pytest.fixture(scope="module")
def entry() -> FaceEntry:
    return FACE_MODELS[0].model_copy(update={"side": 16})


@pytest.fixture(scope="module")
def model() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias whose valence leaves [-1,1] for bright faces."""
    random = np.random.default_rng(2)
    return random.normal(size=(3, 10)).astype(np.float32), random.normal(size=10).astype(np.float32)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Four seconds of flat colours that change slowly, another one in each half of the picture."""
    images = []
    for k in range(4 * RATE):
        image = np.zeros((64, 96, 3), np.uint8)
        image[:, :48] = 40 + 2 * k, 200 - k, 30
        image[:, 48:] = 10, 2 * k, 230 - 2 * k
        images.append(image)
    return make_video(tmp_path_factory.mktemp("face") / "talk.mp4", images, rate=RATE)


@pytest.fixture
def features() -> Features:
    """A face that moves right; none for 3 frames, and for more than a second; outside of the picture at 0.8 s."""
    n = 4 * RATE
    left = np.linspace(2, 58, n)
    box = np.stack([left, np.full(n, 8.4), left + 36, np.full(n, 55.7)], axis=1).astype(np.float32)
    box[30:33] = np.nan
    box[50:80] = np.nan
    box[20] = 200, 200, 230, 230
    return Features(
        video_id="talk",
        meta=make_meta(n),
        time_s=np.arange(n) / RATE,
        faces=np.zeros((n, 48, 48, 3), np.uint8),
        face_box=box,
        face_score=np.where(np.isnan(box[:, 0]), np.nan, 1).astype(np.float32),
        log_mel=np.zeros((0, 64), np.float16),
        words=(),
        word_vectors=np.zeros((0, 4), np.float16),
        frame_word=np.full(n, -1, np.int32),
    )


def expected_values(recording: Path, features: Features, entry: FaceEntry, model) -> NDArray[np.float64]:
    """The same, slowly: every frame with a face is looked at with the transcription; those between are interpolated."""
    weight, bias = model
    looked, outputs = [], []
    wanted = frames_to_look_at(features.time_s, np.isfinite(features.face_box[:, 0]))
    with Video(recording) as video:
        for index, frame in enumerate(video.frames()):
            if index in wanted and index != 20:
                x1, y1, x2, y2 = features.face_box[index].astype(int)
                square = transcription(frame.image[max(y1, 0) : y2, max(x1, 0) : x2], entry)
                looked.append(index)
                outputs.append(square.mean(axis=(1, 2)) @ weight + bias)
    values = np.full((features.n_frames, 10), np.nan)
    for index, time_s in enumerate(features.time_s):
        if np.isnan(features.face_box[index, 0]):
            continue
        before = [k for k in range(len(looked)) if features.time_s[looked[k]] <= time_s]
        after = [k for k in range(len(looked)) if features.time_s[looked[k]] >= time_s]
        if not before or not after:
            continue
        a, b = before[-1], after[0]
        start_s, end_s = features.time_s[looked[a]], features.time_s[looked[b]]
        if time_s - start_s > 0.5 or end_s - time_s > 0.5:
            continue
        share = 0.0 if a == b else (time_s - start_s) / (end_s - start_s)
        values[index] = (1 - share) * outputs[a] + share * outputs[b]
    return values


def test_values_of_a_recording(tmp_path: Path, recording: Path, features: Features, entry: FaceEntry, model) -> None:
    expert = FaceExpert(write_face_model(tmp_path / "model.onnx", entry.side, *model), entry)
    found = expert(recording, features)
    assert found.dtype == np.float32 and found.shape == (100, 10)
    values, logits = found[:, :2], found[:, 2:]
    expected = expected_values(recording, features, entry, model)
    np.testing.assert_allclose(logits, expected[:, :8], atol=1e-4)
    np.testing.assert_allclose(values, np.clip(expected[:, 8:], -1, 1), atol=1e-4)
    assert np.abs(expected[:, 8:][np.isfinite(expected[:, 8:])]).max() > 1  # something was there to clip
    has_face = np.isfinite(features.face_box[:, 0])
    assert np.isnan(values[~has_face]).all() and np.isfinite(values[has_face]).all()


def test_no_face_needs_no_recording(tmp_path: Path, features: Features, entry: FaceEntry, model) -> None:
    features.face_box[:] = np.nan
    expert = FaceExpert(write_face_model(tmp_path / "model.onnx", entry.side, *model), entry)
    values = expert(tmp_path / "gone.mp4", features)
    assert values.shape == (100, 10) and np.isnan(values).all()


def test_a_recording_with_fewer_frames_is_refused(
    tmp_path: Path, features: Features, entry: FaceEntry, model, make_video: Callable[..., Path]
) -> None:
    short = make_video(tmp_path / "short.mp4", [np.full((64, 96, 3), 90, np.uint8)] * 30, rate=RATE)
    expert = FaceExpert(write_face_model(tmp_path / "model.onnx", entry.side, *model), entry)
    with pytest.raises(InputError, match=r"short\.mp4"):
        expert(short, features)


def test_another_model_is_refused(tmp_path: Path, entry: FaceEntry, model) -> None:
    weight, bias = model
    with pytest.raises(InputError, match=r"wide\.onnx.*\(1, 10\)"):
        FaceExpert(write_face_model(tmp_path / "wide.onnx", entry.side, weight[:, :8], bias[:8]), entry)
    with pytest.raises(InputError, match=r"small\.onnx"):
        FaceExpert(write_face_model(tmp_path / "small.onnx", entry.side + 1, weight, bias), entry)
    (tmp_path / "page.onnx").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"page\.onnx") as error:
        FaceExpert(tmp_path / "page.onnx", entry)
    assert "\n" not in str(error.value)


def test_some_images_are_those_of_all_frames(recording: Path) -> None:
    with Video(recording) as video:
        frames = [frame.image for frame in video.frames()]
    with Video(recording) as video:
        found = list(video.images([0, 7, 99, 500]))
    assert [index for index, _ in found] == [0, 7, 99]
    for index, image in found:
        np.testing.assert_array_equal(image, frames[index])
