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
from preprocessing.features.align import Alignment
from preprocessing.features.folder import Features, load_features
from rcma.config import FusionSettings, ModelSettings
from rcma.data.windows import cut_window, windows
from rcma.model.checkpoint import TrainedRCMA
from rcma.model.network import RCMA
from rcma.prediction import Checkpoints, predict_video
from rcma.prediction.postprocess import present_modalities

LENGTH = 32


def make_model(
    tmp_path: Path, *, preprocessing: PreprocessConfig | None = None, seed: int = 0, **settings: object
) -> TrainedRCMA:
    config = small_config(tmp_path)
    model = config.model.model_copy(update={"text_width": WIDTH, **settings})
    torch.manual_seed(seed)
    return TrainedRCMA(config.model_copy(update={"model": model, "preprocessing": preprocessing})).eval()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return make_features(tmp_path_factory.mktemp("features") / "video", make_labels(70, 0), seed=0)


class Echo(RCMA):
    """Gives back the first two entries of the word vectors: what goes in at a frame comes out at that frame."""

    def __init__(self) -> None:
        super().__init__(ModelSettings(length=LENGTH, text_width=WIDTH, modalities=("text",)))

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
def test_overlap_average_undoes_windowing(monkeypatch: pytest.MonkeyPatch, n_frames: int, hop: int):
    monkeypatch.setattr("rcma.prediction.sliding_window._FRAMES_AT_ONCE", 50)
    video, signal = with_signal(n_frames)
    predicted = predict_video(Echo(), video, hop=hop, audio_alignment="start", batch_size=3)
    assert predicted.dtype == np.float32 and predicted.shape == (n_frames, 2)
    np.testing.assert_allclose(predicted, signal, atol=1e-6)


def by_plain_windows(model: RCMA, features: Features, *, hop: int, alignment: Alignment) -> np.ndarray:
    """The model on windows of raw crops and patches, one at a time."""
    total, count = np.zeros((features.n_frames, 2)), np.zeros((features.n_frames, 1))
    for start in windows(features.n_frames, LENGTH, hop):
        window = cut_window(
            features, start, model=ModelSettings(text_width=WIDTH), length=LENGTH, audio_alignment=alignment
        )
        with torch.no_grad():
            output = model({name: value[None] for name, value in window.items()})[0].numpy()
        n = min(LENGTH, features.n_frames - start)
        total[start : start + n] += output[:n]
        count[start : start + n] += 1
    assert len(windows(features.n_frames, LENGTH, hop)) == 1 or count.max() > 1
    return total / count


@pytest.mark.parametrize(("n_frames", "hop"), [(70, 20), (70, 7), (32, 20), (9, 20)])
@pytest.mark.parametrize("at_once", [10, 45, 256])
def test_a_frame_gets_the_mean_of_its_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_frames: int, hop: int, at_once: int
):
    monkeypatch.setattr("rcma.prediction.sliding_window._FRAMES_AT_ONCE", at_once)
    model = make_model(tmp_path)
    video = make_features(tmp_path / "video", make_labels(n_frames, 0), seed=0)
    predicted = predict_video(model, video, hop=hop, audio_alignment="end", batch_size=2)
    np.testing.assert_allclose(predicted, by_plain_windows(model, video, hop=hop, alignment="end"), atol=1e-5)
    assert np.ptp(predicted, axis=0).min() > 0 and np.abs(predicted).max() <= 1


@pytest.mark.parametrize("hop", [3, 20])
def test_each_frame_goes_through_a_backbone_once(tmp_path: Path, features: Features, hop: int):
    model = make_model(tmp_path)
    seen = {"face": 0, "audio": 0}
    for m, backbone in model.backbone.items():
        backbone.register_forward_hook(lambda _module, given, _output, m=m: seen.update({m: seen[m] + len(given[0])}))
    predict_video(model, features, hop=hop, audio_alignment="start")
    present = present_modalities(features, audio_alignment="start")
    assert seen == {m: present[m].sum() for m in seen}


def test_mode_of_the_model_is_given_back_and_does_not_matter(tmp_path: Path, features: Features):
    model = make_model(tmp_path)
    calm = predict_video(model, features, hop=20, audio_alignment="start")
    model.train()
    np.testing.assert_array_equal(predict_video(model, features, hop=20, audio_alignment="start"), calm)
    assert model.training


def test_memory_does_not_grow_with_the_video():
    echo = Echo()

    def peak(n_frames: int) -> int:
        video, _ = with_signal(n_frames)
        tracemalloc.start()
        predict_video(echo, video, hop=20, audio_alignment="start", batch_size=2)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(100)
    # A few numbers of the result; the words alone have 64 bytes a frame as they are given to the model.
    assert (peak(6000) - peak(600)) / 5400 < 60


def test_public_predict_takes_features_and_folders(tmp_path: Path, features: Features):
    model = make_model(tmp_path)
    make_features(tmp_path / "video", make_labels(70, 0), seed=0)
    expected = predict_video(model, features, hop=model.config.data.hop, audio_alignment="start")
    for given in (features, tmp_path / "video", str(tmp_path / "video"), load_features(tmp_path / "video")):
        np.testing.assert_array_equal(rcma.Predictor(model)(given).values, expected)
    plain = RCMA(model.settings)
    plain.load_state_dict(model.state_dict())
    # A model without a run, as published ones are: windows overlap by a third.
    expected = predict_video(model, features, hop=21, audio_alignment="start")
    np.testing.assert_array_equal(rcma.Predictor(plain)(features).values, expected)
    with pytest.raises(InputError, match="no such video or feature folder"):
        rcma.Predictor(model)(tmp_path / "none.mp4")


def test_public_predict_takes_a_raw_video(tmp_path: Path, make_video):
    settings = PreprocessConfig(speech=SpeechSettings(backend="none"))
    images = [np.full((96, 96, 3), 10 + k, np.uint8) for k in range(40)]
    samples = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    video = make_video(tmp_path / "it's a+b.mp4", images, samples=samples)
    model = make_model(tmp_path, preprocessing=settings)
    predicted = rcma.Predictor(model)(video).values
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
        rcma.Predictor(make_model(tmp_path, preprocessing=trained_on))(features)


def test_word_vectors_of_another_width_are_refused_unless_there_are_none(tmp_path: Path, features: Features):
    model = make_model(tmp_path, preprocessing=PreprocessConfig())
    other = dataclasses.replace(features, word_vectors=np.zeros((len(features.words), 9), np.float16))
    with pytest.raises(InputError, match=r"width 9, but the model takes 16"):
        rcma.Predictor(model)(other)
    wordless = dataclasses.replace(
        features, words=(), word_vectors=np.zeros((0, 0), np.float16), frame_word=np.full(70, -1, np.int32)
    )
    assert np.isfinite(rcma.Predictor(model)(wordless).values).all()


def changes_of_a_window(model: RCMA, window: dict[str, torch.Tensor]) -> np.ndarray:
    """|X_m after - X_m before| / |X_m before| from the features that the fusion is given, (M,S,L)."""
    steps = []
    with torch.no_grad():
        handle = model.fusion.register_forward_pre_hook(lambda _module, given: steps.append(given))
        model({name: value[None] for name, value in window.items()})
        handle.remove()
        ((x, valid),) = steps
        rows = []
        for number in range(model.fusion.depth):
            refined = model.fusion.steps[number % len(model.fusion.steps)](x, valid)
            before, after = ({m: value[0].double().numpy() for m, value in y.items()} for y in (x, refined))
            rows.append(
                [
                    [
                        np.sqrt(((after[m][t] - before[m][t]) ** 2).sum() / (before[m][t] ** 2).sum())
                        for t in range(LENGTH)
                    ]
                    for m in model.modalities
                ]
            )
            x = refined
    return np.array(rows).transpose(1, 0, 2)


@pytest.mark.parametrize(
    "fusion",
    [
        FusionSettings(steps=3),
        FusionSettings(kind="jca", steps=2),
        FusionSettings(steps=2, time="relative"),
    ],
)
def test_how_far_each_step_moves_the_features(tmp_path: Path, features: Features, fusion: FusionSettings):
    model = make_model(tmp_path, fusion=fusion)
    total, count = np.zeros((70, 3, fusion.steps)), np.zeros((70, 1, 1))
    for start in windows(70, LENGTH, 20):
        window = cut_window(
            features, start, model=ModelSettings(text_width=WIDTH), length=LENGTH, audio_alignment="start"
        )
        total[start : start + LENGTH] += changes_of_a_window(model, window).transpose(2, 0, 1)
        count[start : start + LENGTH] += 1
    changes = Checkpoints([model], changes=True).predict(features).changes
    assert list(changes) == ["face", "audio", "text"]
    for number, moved in enumerate(changes.values()):
        assert moved.shape == (70, fusion.steps) and moved.dtype == np.float32 and moved.max() > 0.01
        np.testing.assert_allclose(moved, (total / count)[:, number], rtol=1e-4, atol=1e-6)
    # Watching leaves nothing behind.
    assert not any(step._forward_hooks for step in model.fusion.steps)


def test_changes_are_given_later_like_the_predictions(tmp_path: Path, features: Features):
    model = make_model(tmp_path)
    calm = Checkpoints([model], changes=True).predict(features)
    assert calm.changes
    data = model.config.data.model_copy(update={"label_delay_s": 0.2})  # five frames
    model.config = model.config.model_copy(update={"data": data})
    late = Checkpoints([model], changes=True).predict(features)
    np.testing.assert_array_equal(late.values[5:], calm.values[:-5])
    for m, moved in late.changes.items():
        np.testing.assert_array_equal(moved[5:], calm.changes[m][:-5])
        np.testing.assert_array_equal(moved[:5], np.broadcast_to(calm.changes[m][0], (5, 1)))


def test_several_models_make_one_prediction(tmp_path: Path, features: Features):
    one = make_model(tmp_path, modalities=("face", "audio"))
    alike = make_model(tmp_path, modalities=("face", "audio"), seed=1)
    deeper = make_model(tmp_path, modalities=("audio", "text"), targets=("arousal",), seed=2)
    single = [Checkpoints([model], changes=True).predict(features) for model in (one, alike, deeper)]
    together = Checkpoints([one, alike, deeper], changes=True).predict(features)
    assert together.video_id == "video"
    np.testing.assert_array_equal(together.time_s, features.time_s)
    valence = np.stack([prediction.valence for prediction in single[:2]])
    arousal = np.stack([prediction.arousal for prediction in single])
    np.testing.assert_allclose(together.valence, valence.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(together.arousal, arousal.mean(axis=0), atol=1e-6)
    assert set(single[0].present) == {"face", "audio"} and set(single[2].present) == {"audio", "text"}
    expected = present_modalities(features, audio_alignment="start")
    assert set(together.present) == set(expected)
    for m, there in together.present.items():
        np.testing.assert_array_equal(there, expected[m])
    # The third refines other modalities.
    assert set(together.changes) == {"face", "audio"}
    for m, moved in together.changes.items():
        np.testing.assert_allclose(moved, (single[0].changes[m] + single[1].changes[m]) / 2, rtol=1e-6)


def test_spread_is_over_the_models_that_predict_a_target(tmp_path: Path, features: Features):
    both = [make_model(tmp_path, seed=seed) for seed in range(3)]
    valence, arousal = (make_model(tmp_path, targets=(target,), seed=5) for target in ("valence", "arousal"))
    columns = np.stack([Checkpoints([model]).predict(features).values for model in both])
    spread = Checkpoints(both).predict(features).spread
    assert spread is not None and spread.dtype == np.float32
    np.testing.assert_allclose(spread, columns.std(axis=0, ddof=1), atol=1e-6)
    mixed = Checkpoints([both[0], valence]).predict(features).spread
    assert mixed is not None
    pair = np.stack([columns[0, :, 0], Checkpoints([valence]).predict(features).values[:, 0]])
    np.testing.assert_allclose(mixed[:, 0], pair.std(axis=0, ddof=1), atol=1e-6)
    assert np.isnan(mixed[:, 1]).all()
    for alone in ([both[0]], [valence, arousal]):
        assert Checkpoints(alone).predict(features).spread is None
    same = Checkpoints([both[0], both[0]]).predict(features).spread
    np.testing.assert_array_equal(same, np.zeros((70, 2), np.float32))


def test_a_fusion_without_steps_changes_nothing(tmp_path: Path, features: Features):
    model = make_model(tmp_path, fusion=FusionSettings(kind="concat"))
    prediction = Checkpoints([model], changes=True).predict(features)
    assert np.isfinite(prediction.values).all()
    assert prediction.changes == {}


def test_predictions_that_are_no_numbers_are_refused(tmp_path: Path, features: Features):
    spoilt = dataclasses.replace(features, word_vectors=np.full_like(features.word_vectors, np.nan))
    with pytest.raises(InputError, match="video: the model gives no numbers"):
        rcma.Predictor(make_model(tmp_path))(spoilt)


def test_valence_and_arousal_come_first_whatever_the_order_of_training(tmp_path: Path, features: Features):
    alone = Checkpoints([make_model(tmp_path, targets=("arousal",))]).predict(features)
    assert alone.targets == ("arousal",) and alone.values.shape == (70, 1)
    np.testing.assert_array_equal(alone.arousal, alone.values[:, 0])
    with pytest.raises(InputError, match="video: valence is not predicted, only arousal"):
        alone.valence  # noqa: B018
    model = make_model(tmp_path, targets=("arousal", "valence"))
    both = Checkpoints([model]).predict(features)
    assert both.targets == ("valence", "arousal")
    plain = predict_video(model, features, hop=model.config.data.hop, audio_alignment="start")
    np.testing.assert_array_equal(both.values, plain[:, ::-1])
