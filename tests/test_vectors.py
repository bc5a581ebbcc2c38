"""Features made elsewhere, and targets of the user's own: from the feature folder to the prediction."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from made_features import make_data, make_features, make_labels, make_meta, small_config

import rcma
from preprocessing.errors import InputError
from preprocessing.features import Features, features_from_vectors, load_features, save_features
from rcma.config import ModelSettings, TrainConfig
from rcma.data import Video, cut_window, fit_normalisation, overlap_average, windows
from rcma.model import export_model, load_model
from rcma.training import train

N = 70
WIDTHS = {"face": 3, "audio": 5, "text": 2}
MODEL = ModelSettings.model_validate(
    {"length": 32, "text_width": 2, "text": {"kind": "features"}, "face": {"kind": "features", "width": 3}}
    | {"audio": {"kind": "features", "width": 5}}
)


def make_vectors(folder: Path, labels: np.ndarray, *, seed: int, modalities=("face", "audio", "text")) -> Features:
    """A folder that holds vectors alone: mixtures of the labels, in units of their own; some frames have no face."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0)
    vectors = {}
    for m in ("face", "audio", "text"):
        mixed = labels @ mixing.normal(size=(labels.shape[1], WIDTHS[m]))
        mixed += random.normal(0, 0.1, mixed.shape)
        vectors[m] = (mixed * 10.0 ** np.arange(WIDTHS[m]) + 5).astype(np.float32)
    vectors["face"][5:8] = np.nan
    meta = {**make_meta(len(labels)), "settings": {}}
    kept = {m: vectors[m] for m in modalities}
    features = features_from_vectors(folder.name, meta, np.arange(len(labels)) / 25, kept)
    save_features(folder, features)
    return features


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vectors")
    make_data(root)
    for folder in (root / "features").iterdir():
        labels = make_labels(N, int(folder.name.removeprefix("video")))
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        make_vectors(folder, labels, seed=int(folder.name.removeprefix("video")), modalities=("face", "audio"))
    return root


def vector_config(root: Path, **model: object) -> TrainConfig:
    tree = small_config(root).model_dump(mode="json")
    tree["model"] |= {"modalities": ["face", "audio"], "face": {"kind": "features"}, "audio": {"kind": "features"}}
    tree["model"] |= model
    return TrainConfig.model_validate(tree)


def test_a_folder_of_vectors_comes_back(tmp_path: Path) -> None:
    saved = make_vectors(tmp_path / "v", make_labels(N, 0), seed=0, modalities=("audio", "text"))
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "audio_vectors.npy",
        "meta.json",
        "text_vectors.npy",
        "time_s.npy",
        "words.json",
    ]
    loaded = load_features(tmp_path / "v")
    assert sorted(loaded.vectors) == ["audio", "text"] and loaded.n_frames == N
    for m, vectors in loaded.vectors.items():
        np.testing.assert_array_equal(vectors, saved.vectors[m])
    assert not np.isfinite(loaded.face_score).any() and not len(loaded.log_mel) and (loaded.frame_word == -1).all()


def test_a_preprocessed_folder_may_hold_vectors_too(tmp_path: Path) -> None:
    make_features(tmp_path / "v", make_labels(N, 0), seed=0)
    np.save(tmp_path / "v" / "face_vectors.npy", np.ones((N, 4), np.float32))
    loaded = load_features(tmp_path / "v")
    assert loaded.vectors["face"].shape == (N, 4) and loaded.faces.shape[1] == 48


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((N - 1, 3), np.float32), "69 rows for 70 frames"),
        (np.zeros((N, 3)), "float64"),
        (np.zeros((N, 0), np.float32), "no columns"),
        (np.full((N, 2), [0, np.nan], np.float32), "NaN as a whole"),
        (np.full((N, 2), np.inf, np.float32), "NaN as a whole"),
    ],
)
def test_damaged_vectors_are_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    make_vectors(tmp_path / "v", make_labels(N, 0), seed=0)
    np.save(tmp_path / "v" / "audio_vectors.npy", array)
    with pytest.raises(InputError, match=rf"audio_vectors\.npy.*{message}"):
        load_features(tmp_path / "v")


def test_an_array_that_a_folder_should_hold_is_missed(tmp_path: Path) -> None:
    make_vectors(tmp_path / "v", make_labels(N, 0), seed=0)
    (tmp_path / "v" / "audio_vectors.npy").unlink()
    with pytest.raises(InputError, match=r"audio_vectors\.npy missing"):
        load_features(tmp_path / "v")


def test_windows_hold_the_vectors_of_their_frames(tmp_path: Path) -> None:
    made = make_vectors(tmp_path / "v", make_labels(N, 0), seed=0)
    video = Video(tmp_path / "v", make_labels(N, 0))
    for features in (video.features(), video.features(), pickle.loads(pickle.dumps(video)).features()):
        for start in (0, 50):
            window = cut_window(features, start, model=MODEL, length=32, audio_alignment="start")
            n = min(32, N - start)
            for m in WIDTHS:
                given = made.vectors[m][start : start + n]
                there = np.isfinite(given[:, 0])
                np.testing.assert_array_equal(window[f"{m}_mask"], [*there, *[False] * (32 - n)])
                np.testing.assert_array_equal(window[m][:n][there], given[there])
                assert not window[m][n:].any()
    alone = MODEL.model_copy(update={"modalities": ("audio",)})
    assert set(cut_window(made, 0, model=alone, length=32, audio_alignment="start")) == {
        "audio",
        "audio_mask",
        "frame_mask",
    }


def test_each_column_is_standardised_by_itself(tmp_path: Path) -> None:
    made = [make_vectors(tmp_path / f"v{k}", make_labels(N, k), seed=k) for k in range(2)]
    videos = [Video(tmp_path / f"v{k}", make_labels(N, k)) for k in range(2)]
    statistics = fit_normalisation(videos, MODEL).vectors
    for m in ("face", "audio", "text"):
        rows = np.concatenate([features.vectors[m] for features in made]).astype(np.float64)
        rows = rows[np.isfinite(rows[:, 0])]
        np.testing.assert_allclose(statistics[m][0], rows.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(statistics[m][1], rows.std(axis=0), rtol=1e-5)


def test_training_prediction_and_sharing(root: Path, tmp_path: Path) -> None:
    result = train(vector_config(root), tmp_path / "run", device="cpu")
    model = load_model(tmp_path / "run")
    assert (model.settings.face.width, model.settings.audio.width, model.settings.text_width) == (3, 5, None)
    assert not model.backbone and np.isfinite(result.best.mean_ccc)
    assert model.config.preprocessing is None, "nothing of it was preprocessed"
    export_model(model, tmp_path / "shared")
    folder = root / "features" / "video3"
    values = rcma.Predictor(model)(folder).values
    assert values.shape == (N, 2) and np.isfinite(values).all()
    np.testing.assert_array_equal(rcma.Predictor(tmp_path / "shared")(folder).values, values)
    again = train(vector_config(root), tmp_path / "again", device="cpu")
    assert again.best.ccc == result.best.ccc


def test_vectors_that_do_not_fit_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.text\.kind is features"):
        train(vector_config(root, modalities=["text"], text={"kind": "features"}), tmp_path / "a", device="cpu")
    wide = vector_config(root, face={"kind": "features", "width": 4})
    with pytest.raises(InputError, match=r"model\.face\.width is 4, .* 3 columns"):
        train(wide, tmp_path / "b", device="cpu")
    train(vector_config(root), tmp_path / "run", device="cpu")
    model = load_model(tmp_path / "run")
    with pytest.raises(InputError, match=r"hold no audio_vectors\.npy"):
        rcma.Predictor(model)(make_vectors(tmp_path / "v", make_labels(N, 0), seed=0, modalities=("face",)))
    other = make_vectors(tmp_path / "w", make_labels(N, 0), seed=0)
    narrow = features_from_vectors("w", other.meta, other.time_s, {**other.vectors, "face": other.vectors["audio"]})
    with pytest.raises(InputError, match="5 columns, but the model takes 3"):
        rcma.Predictor(model)(narrow)
    # Embeddings are outputs of backbones, and here is none.
    with pytest.raises(ValueError, match=r"data\.embeddings"):
        tree = vector_config(root).model_dump(mode="json")
        TrainConfig.model_validate({**tree, "data": {**tree["data"], "embeddings": str(tmp_path / "e")}})


def test_a_backbone_beside_vectors_and_kept_embeddings(tmp_path: Path) -> None:
    make_data(tmp_path)
    for number in range(5):
        vectors = np.random.default_rng(number).normal(size=(N, 4)).astype(np.float32)
        np.save(tmp_path / "features" / f"video{number}" / "audio_vectors.npy", vectors)
    tree = vector_config(tmp_path, face={"kind": "small", "frozen": True}).model_dump(mode="json")
    plain = train(TrainConfig.model_validate(tree), tmp_path / "plain", device="cpu")
    tree["data"] |= {"embeddings": str(tmp_path / "embeddings"), "augmentations": 1}
    kept = train(TrainConfig.model_validate(tree), tmp_path / "kept", device="cpu")
    assert np.isfinite([plain.best.mean_ccc, kept.best.mean_ccc]).all()
    assert [path.name.split("-")[0] for path in (tmp_path / "embeddings").iterdir() if path.is_dir()] == ["face"]


# Targets.


@pytest.mark.parametrize("name", ["Valence", "2nd", "my target", "", "mean", "face", "valence_sd", "größe"])
def test_names_that_are_no_targets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="target"):
        ModelSettings(targets=(name,))


def test_targets_have_columns_of_their_own(root: Path, tmp_path: Path) -> None:
    assert ModelSettings(targets=("liking", "dominance_2")).targets == ("liking", "dominance_2")
    with pytest.raises(InputError, match=r"model\.targets: liking"):
        train(vector_config(root, targets=["valence", "liking"]), tmp_path / "no", device="cpu")
    assert not (tmp_path / "no").exists()
    result = train(vector_config(root, targets=["arousal"]), tmp_path / "one", device="cpu")
    with (tmp_path / "one" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.endswith("_ccc")] == ["arousal_ccc", "mean_ccc"]
    scores = json.loads((tmp_path / "one" / "scores.json").read_text())
    assert scores["arousal_ccc"] == result.best.ccc["arousal"] == scores["mean_ccc"]
    assert load_model(tmp_path / "one").scores.ccc == {"arousal": scores["arousal_ccc"], "mean": scores["mean_ccc"]}


# Windows.


def test_overlap_average_undoes_windowing() -> None:
    signal = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    starts = windows(N, 32, 20)
    cut = np.stack([signal[start : start + 32] for start in starts])
    np.testing.assert_allclose(overlap_average(starts, cut, N), signal, rtol=1e-6)
    np.testing.assert_allclose(overlap_average([0], [np.ones((32, 1))], 20), np.ones((20, 1)))
    np.testing.assert_allclose(overlap_average([0, 1], np.array([[[1.0], [2]], [[4], [6]]]), 3), [[1], [3], [6]])
    assert np.isnan(overlap_average([1], np.ones((1, 1, 1)), 2)[0])
    with pytest.raises(ValueError, match="window"):
        overlap_average([], [], 3)
