from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import WIDTH, make_features, make_labels, small_config

import rcma
from preprocessing.config import FaceSettings, PreprocessConfig, SpeechSettings, WordSettings
from preprocessing.errors import InputError
from preprocessing.store import Features, load_features
from rcma.checkpoint import TrainedRCMA
from rcma.data import cut_window, windows
from rcma.inference import predict_video, require_both_targets, to_abaw_columns
from rcma.model import RCMA

LENGTH = 32


def make_model(
    tmp_path: Path, *, preprocessing: PreprocessConfig | None = None, targets=("valence", "arousal")
) -> TrainedRCMA:
    config = small_config(tmp_path)
    model = config.model.model_copy(update={"text_width": WIDTH, "targets": targets})
    torch.manual_seed(0)
    return TrainedRCMA(config.model_copy(update={"model": model, "preprocessing": preprocessing})).eval()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return make_features(tmp_path_factory.mktemp("features") / "video", make_labels(70, 0), seed=0)


class Echo(RCMA):
    """Gives back the first two entries of the word vectors: what goes in at a frame comes out at that frame."""

    def forward(self, batch):
        return batch["text"][..., :2]


def with_signal(n_frames: int) -> tuple[Features, np.ndarray]:
    signal = np.random.default_rng(n_frames).uniform(-1, 1, (n_frames, 2)).astype(np.float16)
    nothing = np.full(n_frames, np.nan, np.float32)
    return Features(
        video_id="signal",
        meta={},
        time_s=np.arange(n_frames) / 25,
        faces=np.broadcast_to(np.uint8(0), (n_frames, 48, 48, 3)),
        face_box=np.broadcast_to(nothing[:, None], (n_frames, 4)),
        face_score=nothing,
        log_mel=np.zeros((0, 64), np.float16),
        words=(),
        word_vectors=np.pad(signal, ((0, 0), (0, WIDTH - 2))),
        frame_word=np.arange(n_frames, dtype=np.int32),
    ), signal


@pytest.mark.parametrize("n_frames", [1, 5, 31, 32, 33, 70, 129])
@pytest.mark.parametrize("hop", [1, 20, 32])
def test_overlap_average_undoes_windowing(tmp_path: Path, n_frames: int, hop: int):
    video, signal = with_signal(n_frames)
    echo = Echo(make_model(tmp_path).settings)
    predicted = predict_video(echo, video, hop=hop, audio_alignment="start", batch_size=3)
    assert predicted.dtype == np.float32 and predicted.shape == (n_frames, 2)
    np.testing.assert_allclose(predicted, signal, atol=1e-6)


def test_a_frame_gets_the_mean_of_its_windows(tmp_path: Path, features: Features):
    model = make_model(tmp_path)
    total, count = np.zeros((70, 2)), np.zeros((70, 1))
    for start in windows(70, LENGTH, 20):
        window = cut_window(features, start, length=LENGTH, text_width=WIDTH, audio_alignment="end")
        with torch.no_grad():
            output = model({name: value[None] for name, value in window.items()})[0].numpy()
        total[start : start + LENGTH] += output
        count[start : start + LENGTH] += 1
    predicted = predict_video(model, features, hop=20, audio_alignment="end", batch_size=2)
    assert set(count.ravel()) == {1, 2}
    np.testing.assert_allclose(predicted, total / count, atol=1e-5)
    assert np.ptp(predicted, axis=0).min() > 0 and np.abs(predicted).max() <= 1


def test_mode_of_the_model_is_given_back_and_does_not_matter(tmp_path: Path, features: Features):
    model = make_model(tmp_path)
    calm = predict_video(model, features, hop=20, audio_alignment="start")
    model.train()
    np.testing.assert_array_equal(predict_video(model, features, hop=20, audio_alignment="start"), calm)
    assert model.training


def test_memory_does_not_grow_with_the_video(tmp_path: Path):
    echo = Echo(make_model(tmp_path).settings)

    def peak(n_frames: int) -> int:
        video, _ = with_signal(n_frames)
        tracemalloc.start()
        predict_video(echo, video, hop=20, audio_alignment="start", batch_size=2)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(100)
    assert peak(3000) < 1.2 * peak(100)


def test_public_predict_takes_features_and_folders(tmp_path: Path, features: Features):
    model = make_model(tmp_path)
    make_features(tmp_path / "video", make_labels(70, 0), seed=0)
    expected = predict_video(model, features, hop=model.config.data.hop, audio_alignment="start")
    for given in (features, tmp_path / "video", str(tmp_path / "video"), load_features(tmp_path / "video")):
        np.testing.assert_array_equal(rcma.predict(model, given), expected)
    plain = RCMA(model.settings)
    plain.load_state_dict(model.state_dict())
    # A model without a run, as published ones are: windows overlap by a third.
    expected = predict_video(model, features, hop=21, audio_alignment="start")
    np.testing.assert_array_equal(rcma.predict(plain, features), expected)
    with pytest.raises(InputError, match="no such video or feature folder"):
        rcma.predict(model, tmp_path / "none.mp4")


def test_public_predict_takes_a_raw_video(tmp_path: Path, make_video):
    settings = PreprocessConfig(speech=SpeechSettings(backend="none"))
    images = [np.full((96, 96, 3), 10 + k, np.uint8) for k in range(40)]
    samples = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    video = make_video(tmp_path / "it's a+b.mp4", images, samples=samples)
    model = make_model(tmp_path, preprocessing=settings)
    predicted = rcma.predict(model, video)
    assert predicted.shape == (40, 2) and np.isfinite(predicted).all()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("trained_on", "message"),
    [
        (PreprocessConfig(faces=FaceSettings(size=96)), r"video: .*faces.size 48, .*96; .*--set faces.size=96"),
        (PreprocessConfig(words=WordSettings(model="packaged")), r"words.model 'bert-base-uncased', .*'packaged'"),
    ],
)
def test_features_unlike_those_of_the_training_are_refused(
    tmp_path: Path, features: Features, trained_on: PreprocessConfig, message: str
):
    with pytest.raises(InputError, match=message):
        rcma.predict(make_model(tmp_path, preprocessing=trained_on), features)


def test_word_vectors_of_another_width_are_refused_unless_there_are_none(tmp_path: Path, features: Features):
    model = make_model(tmp_path, preprocessing=PreprocessConfig())
    other = dataclasses.replace(features, word_vectors=np.zeros((len(features.words), 9), np.float16))
    with pytest.raises(InputError, match=r"width 9, but the model takes 16"):
        rcma.predict(model, other)
    wordless = dataclasses.replace(
        features, words=(), word_vectors=np.zeros((0, 0), np.float16), frame_word=np.full(70, -1, np.int32)
    )
    assert np.isfinite(rcma.predict(model, wordless)).all()


def test_predictions_that_are_no_numbers_are_refused(tmp_path: Path, features: Features):
    spoilt = dataclasses.replace(features, word_vectors=np.full_like(features.word_vectors, np.nan))
    with pytest.raises(InputError, match="video: the model gives no numbers"):
        rcma.predict(make_model(tmp_path), spoilt)


def test_a_model_of_one_target_fills_its_column_only(tmp_path: Path, features: Features):
    model = make_model(tmp_path, targets=("arousal",))
    predicted = rcma.predict(model, features)
    columns = to_abaw_columns(model, predicted)
    assert predicted.shape == (70, 1) and np.isnan(columns[:, 0]).all()
    np.testing.assert_array_equal(columns[:, 1], predicted[:, 0])
    with pytest.raises(InputError, match="no model given predicts valence"):
        require_both_targets([model])
    both = make_model(tmp_path, targets=("arousal", "valence"))
    require_both_targets([both])
    predicted = rcma.predict(both, features)
    np.testing.assert_array_equal(to_abaw_columns(both, predicted), predicted[:, ::-1])
