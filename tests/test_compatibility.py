"""Features that do not belong together, or not to a model, are told apart before anything is computed of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_features import SETTINGS, WIDTH, data_settings, make_data, make_features, make_labels, small_config
from PIL import Image

import rcma
from preprocessing import cli as preprocessing_cli
from preprocessing.config import FaceSettings, PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.faces.crop import align_face
from preprocessing.faces.detect import FaceDetector
from preprocessing.features.folder import load_features
from preprocessing.media import Video
from rcma import cli
from rcma.config import FaceSource
from rcma.data.training_data import open_training_data
from rcma.model.checkpoint import TrainedRCMA, load_model, save_config, save_weights
from rcma.prediction import Checkpoints
from rcma.training.loop import train

ALIGNED = PreprocessConfig(faces=FaceSettings(alignment="similarity", margin=0.0))
PROVIDED = {"path": "cropped_aligned/video", "n_images": 70, "size": 1}


def provide_faces(folder: Path) -> None:
    """Let a feature folder say that its faces were provided."""
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "provided_faces": PROVIDED}))


def make_model(root: Path, *, source: FaceSource | None, config: PreprocessConfig = SETTINGS) -> TrainedRCMA:
    torch.manual_seed(0)
    settings = small_config(root)
    model = settings.model.model_copy(update={"text_width": WIDTH})
    known = {"model": model, "preprocessing": config, "face_source": source}
    return TrainedRCMA(settings.model_copy(update=known)).eval()


# Training.


def test_training_on_provided_and_detected_faces_is_refused(tmp_path: Path):
    config = make_data(tmp_path)
    for name in ("video1", "video3"):
        provide_faces(tmp_path / "features" / name)
    with pytest.raises(InputError, match="--cropped-aligned") as error:
        train(config, tmp_path / "run", device="cpu")
    provided, detected = str(error.value).split("; detected: ")
    assert "video1, video3" in provided
    assert detected == "video0, video2, video4"
    assert not (tmp_path / "run").exists()


def test_geometry_of_provided_faces_is_not_that_of_the_settings(tmp_path: Path):
    """Margin and alignment say how detected faces are cut: they may differ where nothing was detected."""
    make_data(tmp_path)
    for number in range(5):
        config = PreprocessConfig(faces=FaceSettings(margin=number / 10))
        labels = make_labels(70, seed=number)
        make_features(tmp_path / "features" / f"video{number}", labels, seed=number, config=config)
    settings = data_settings(tmp_path)
    with pytest.raises(InputError, match=r"faces\.margin"):
        open_training_data(settings)
    for number in range(5):
        provide_faces(tmp_path / "features" / f"video{number}")
    assert open_training_data(settings).face_source == "provided"


@pytest.mark.parametrize("source", ["detected", "provided"])
def test_a_run_knows_how_the_faces_of_its_training_were_made(tmp_path: Path, source: str):
    config = make_data(tmp_path)
    if source == "provided":
        for folder in (tmp_path / "features").iterdir():
            provide_faces(folder)
    recipe = config.train.model_copy(update={"epochs": 1})
    train(config.model_copy(update={"train": recipe}), tmp_path / "run", device="cpu")
    model = load_model(tmp_path / "run")
    assert model.config.face_source == source
    assert load_model(tmp_path / "run" / "best.safetensors").config.face_source == source
    faces = Checkpoints([model]).preprocessing().faces
    expected = ("similarity", 0.0) if source == "provided" else ("box", FaceSettings().margin)
    assert (faces.alignment, faces.margin) == expected


# Prediction.


@pytest.mark.parametrize(
    ("trained_on", "settings", "given", "given_settings", "says"),
    [
        ("provided", PreprocessConfig(), "provided", PreprocessConfig(), None),
        ("provided", PreprocessConfig(), "provided", ALIGNED, None),
        ("provided", PreprocessConfig(), "detected", ALIGNED, None),
        ("provided", PreprocessConfig(), "detected", PreprocessConfig(), "trained on provided faces"),
        ("detected", PreprocessConfig(), "provided", PreprocessConfig(), "without --cropped-aligned"),
        ("detected", ALIGNED, "provided", PreprocessConfig(), None),
        ("detected", PreprocessConfig(), "detected", ALIGNED, r"--set faces\.margin=0\.1"),
        # Runs of earlier versions do not say how their faces were made.
        (None, PreprocessConfig(), "provided", PreprocessConfig(), None),
        (None, PreprocessConfig(), "detected", PreprocessConfig(), None),
    ],
)
def test_features_are_predicted_only_where_their_crops_are_those_of_the_training(
    tmp_path: Path,
    trained_on: FaceSource | None,
    settings: PreprocessConfig,
    given: str,
    given_settings: PreprocessConfig,
    says: str | None,
):
    make_features(tmp_path / "video", make_labels(70, 0), seed=0, config=given_settings)
    if given == "provided":
        provide_faces(tmp_path / "video")
    model = make_model(tmp_path, source=trained_on, config=settings)
    if says is None:
        assert np.isfinite(rcma.Predictor(model)(tmp_path / "video").values).all()
    else:
        with pytest.raises(InputError, match=says) as error:
            rcma.Predictor(model)(tmp_path / "video")
        assert str(error.value).startswith("video: ")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of a model that was trained on provided faces, without training."""
    config = PreprocessConfig.model_validate({"speech": {"backend": "none"}})
    model = make_model(tmp_path, source="provided", config=config)
    (tmp_path / "run").mkdir()
    save_config(tmp_path / "run", model.config)
    save_weights(tmp_path / "run", model.state_dict())
    return tmp_path / "run"


@pytest.mark.slow
def test_a_raw_video_gets_crops_in_the_geometry_of_the_provided_ones(
    run: Path, short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As the README has it: provided faces in training, then somebody's video."""
    aligned = tmp_path / "cropped_aligned" / "short"
    aligned.mkdir(parents=True)
    detector = FaceDetector(FaceSettings(), device="cpu")
    with Video(short_clip) as video:
        for number, frame in enumerate(video.frames(), start=1):
            faces = detector.detect(frame.image)
            crop = align_face(frame.image, faces.landmarks[0], size=112, margin=0.0)
            Image.fromarray(crop).save(aligned / f"{number:05d}.png")
    arguments: list[Any] = [short_clip, "--out", tmp_path / "features", "--set", "speech.backend=none"]
    arguments += ["--cropped-aligned", tmp_path / "cropped_aligned", "--device", "cpu"]
    assert preprocessing_cli.main([*map(str, arguments)]) == 0
    capsys.readouterr()

    predict = [str(short_clip), "--checkpoint", str(run), "--device", "cpu"]
    assert cli.predict.main([*predict, "--out", str(tmp_path / "raw")]) == 0
    assert "short: the model was trained on provided faces" in capsys.readouterr().err
    raw = load_features(tmp_path / "raw" / "features" / "short").faces.astype(float)
    provided = load_features(tmp_path / "features" / "short").faces.astype(float)
    arguments = [short_clip, "--out", tmp_path / "box", "--set", "speech.backend=none", "--device", "cpu"]
    assert preprocessing_cli.main([*map(str, arguments)]) == 0
    detected = load_features(tmp_path / "box" / "short").faces.astype(float)
    # Faces are followed, not searched in each frame: landmarks differ by some pixels of the recording.
    assert np.abs(raw - provided).mean() < 0.3 * np.abs(detected - provided).mean()

    # Provided faces are predicted without a word.
    given = [str(tmp_path / "features" / "short"), *predict[1:], "--out", str(tmp_path / "given")]
    assert cli.predict.main(given) == 0
    assert "provided" not in capsys.readouterr().err
