"""Calibration of public models to labels, against sets where the right answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_features import make_features, make_labels
from made_onnx import write_face_model
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.files import sha256
from rcma import cli
from rcma.abaw import write_per_video
from rcma.config import TARGETS
from rcma.experts import (
    Calibration,
    LabelledVideo,
    PublicModels,
    entries,
    fit_calibration,
    load_calibration,
    save_calibration,
)
from rcma.experts.face import EMOTIONS
from rcma.experts.registry import FaceEntry
from rcma.output.table import open_table, read_experts
from rcma.prediction import Prediction

COLUMNS = ("good_valence", "good_arousal", "noise_valence")
RATE = 25


def smooth_curve(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    """In [-0.9, 0.9], another mean and range in each video."""
    knots = random.uniform(-0.9, 0.9, 6)
    return np.interp(np.arange(n), np.linspace(0, n - 1, 6), knots)


def made_videos(n_videos: int = 5, n_frames: int = 200, *, noise: float = 0.0, seed: int = 0) -> list[LabelledVideo]:
    """Labels that the column good_* holds as 0.3 x - 0.2 (valence) and -0.5 x + 0.1 (arousal), beside pure noise."""
    random = np.random.default_rng(seed)
    videos = []
    for number in range(n_videos):
        labels = np.stack([smooth_curve(random, n_frames), smooth_curve(random, n_frames)], axis=1)
        heard = labels + noise * random.normal(size=labels.shape)
        good = np.stack([0.3 * heard[:, 0] - 0.2, -0.5 * heard[:, 1] + 0.1], axis=1)
        values = np.concatenate([good, random.normal(size=(n_frames, 1))], axis=1).astype(np.float32)
        videos.append(LabelledVideo(f"v{number}", values, good.astype(np.float32), labels.astype(np.float32)))
    return videos


# What is fitted.


def test_scale_and_offset_are_undone_and_noise_has_no_weight() -> None:
    videos = made_videos()
    calibration = fit_calibration(videos, COLUMNS)
    for target, score in calibration.description.scores.items():
        assert score.n_videos == score.n_folds == 5 and score.n_frames == 5 * 200
        assert score.ccc_before is not None and score.ccc_before < 0.6
        assert score.ccc_after is not None and score.ccc_after > 0.999, target
    np.testing.assert_allclose(calibration.weights, [[1 / 0.3, 0, 0], [0, -2, 0]], atol=0.01)
    predicted = calibration(videos[0].values)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, videos[0].labels, atol=0.01)


def test_columns_of_noise_alone_give_nothing_on_held_out_videos() -> None:
    noise = [replace(video, values=video.values[:, 2:]) for video in made_videos()]
    calibration = fit_calibration(noise, COLUMNS[2:])
    assert np.abs(calibration.weights).max() < 0.02
    for score in calibration.description.scores.values():
        assert score.ccc_after is None or score.ccc_after < 0.1


def test_the_score_after_is_that_of_predictions_without_the_video() -> None:
    """Labels that follow a column within each video, but with another sign in each: nothing is to be had of it."""
    videos = []
    for number, video in enumerate(made_videos(n_videos=8)):
        sign = 1 if number % 2 else -1
        videos.append(replace(video, labels=(sign * video.labels).astype(np.float32)))
    scores = fit_calibration(videos, COLUMNS).description.scores
    assert all(score.ccc_after is None or score.ccc_after < 0.2 for score in scores.values())


def test_missing_values_have_a_weight_of_their_own() -> None:
    """Valence is 0.6 where the noise model speaks, whatever it says, and 0 elsewhere."""
    videos = []
    for video in made_videos():
        speaks = np.arange(200) % 3 == 0
        values, labels = video.values.copy(), video.labels.copy()
        values[~speaks, 2] = np.nan
        labels[:, 0] = np.where(speaks, 0.6, 0.0)
        videos.append(replace(video, values=values, labels=labels))
    calibration = fit_calibration(videos, COLUMNS)
    assert (calibration.description.scores["valence"].ccc_after or 0) > 0.99
    np.testing.assert_allclose(calibration(videos[0].values)[:, 0], videos[0].labels[:, 0], atol=0.02)
    # Never a value of which nothing is known.
    assert np.isnan(calibration(np.full((4, 3), np.nan, np.float32))).all()


def test_columns_that_no_labelled_frame_has_are_left_out() -> None:
    videos = [
        replace(video, values=np.concatenate([video.values, np.full((200, 1), np.nan, np.float32)], axis=1))
        for video in made_videos()
    ]
    calibration = fit_calibration(videos, (*COLUMNS, "silent_arousal"))
    assert calibration.description.columns == COLUMNS and calibration.models == ["good", "noise"]


@pytest.mark.parametrize("why", ["two videos", "no labels in the third", "nothing said in the third"])
def test_fewer_than_three_videos_are_refused(why: str) -> None:
    first, second, third = made_videos(3)
    if why == "no labels in the third":
        third = replace(third, labels=np.full_like(third.labels, np.nan))
    elif why == "nothing said in the third":
        third = replace(third, values=np.full_like(third.values, np.nan))
    videos = [first, second] if why == "two videos" else [first, second, third]
    with pytest.raises(InputError, match="2 videos") as error:
        fit_calibration(videos, COLUMNS)
    assert "\n" not in str(error.value)


def test_a_video_without_labels_changes_nothing() -> None:
    videos = made_videos(noise=0.3)
    more = made_videos(1, seed=7)[0]
    unlabelled = replace(more, labels=np.full_like(more.labels, np.nan))
    one, other = fit_calibration(videos, COLUMNS), fit_calibration([*videos, unlabelled], COLUMNS)
    assert one.description == other.description
    np.testing.assert_array_equal(one.weights, other.weights)


# The file.


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit_calibration(made_videos(noise=0.4), COLUMNS)


def test_a_file_gives_the_same_predictions_bit_for_bit(tmp_path: Path, calibration: Calibration) -> None:
    save_calibration(calibration, tmp_path / "c.safetensors")
    read = load_calibration(tmp_path / "c.safetensors")
    assert read.description == calibration.description
    values = made_videos(1, seed=3)[0].values
    values[::3, 1:] = np.nan
    np.testing.assert_array_equal(read(values), calibration(values))
    again = tmp_path / "again.safetensors"
    save_calibration(read, again)
    assert again.read_bytes() == (tmp_path / "c.safetensors").read_bytes()


def test_other_files_are_refused_and_kept(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="rcma-calibrate"):
        load_calibration(path)
    path.write_bytes(b"my own data")
    for work in (lambda: load_calibration(path), lambda: save_calibration(calibration, path)):
        with pytest.raises(InputError, match=r"c\.safetensors"):
            work()
    assert path.read_bytes() == b"my own data"
    short = replace(calibration, weights=calibration.weights[:, 1:])
    save_calibration(short, tmp_path / "short.safetensors")
    with pytest.raises(InputError, match="do not fit"):
        load_calibration(tmp_path / "short.safetensors")


# The commands.


def write_predictions(folder: Path, videos: list[LabelledVideo], kind: str = "csv") -> None:
    """As rcma-predict writes them of two public models."""
    experts = {"good": TARGETS, "noise": ("valence",)}
    with open_table(folder / f"frames.{kind}", kind) as append:
        for video in videos:
            n = len(video.values)
            nothing = np.full((n, 1), np.nan, np.float32)
            said = {"good": video.values[:, :2], "noise": np.concatenate([video.values[:, 2:], nothing], axis=1)}
            spread = np.zeros((n, 2), np.float32)
            time_s = np.arange(n) / RATE
            append(Prediction(video.video_id, time_s, video.fused, {}, spread=spread, experts=said, outputs=experts))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_table_is_read_as_it_was_written(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    videos = made_videos(2)
    videos[0].values[10:20, 2] = np.nan
    write_predictions(tmp_path, videos, kind)
    for path in (tmp_path, tmp_path / f"frames.{kind}"):
        columns, read = read_experts(path)
        assert columns == COLUMNS and read.keys() == {"v0", "v1"}
        for video in videos:
            time_s, values, fused = read[video.video_id]
            np.testing.assert_allclose(time_s, np.arange(len(values)) / RATE, atol=1e-6)
            np.testing.assert_allclose(values, video.values, atol=1e-6)
            np.testing.assert_allclose(fused, video.fused, atol=1e-6)


def test_the_command_prints_scores_and_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = made_videos(5)
    write_predictions(tmp_path, videos)
    labels = tmp_path / "labels"
    for video in videos[:4]:
        # A label more than there are frames, and a video without a prediction.
        write_per_video(labels, video.video_id, np.concatenate([video.labels, video.labels[-1:]]))
    write_per_video(labels, "elsewhere", videos[0].labels)
    out = tmp_path / "calibration.safetensors"
    command = ["--predictions", str(tmp_path), "--annotations", str(labels), "--out", str(out)]
    assert cli.calibrate.main(command) == 0
    said, told = capsys.readouterr()
    assert "1.000" in said and "800" in said and str(out) in said
    assert "elsewhere" in told and "201 rows" in told
    expected = fit_calibration(videos[:4], COLUMNS)
    found = load_calibration(out)
    assert found.description.scores["arousal"].n_videos == 4
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-3)
    assert cli.calibrate.main(command) == 0
    # Labels with times of their own give the same: those of the frames, in another unit and on another scale.
    for video in videos[:4]:
        rows = [f"{1000 * k / RATE},{5 + 4 * v},{5 + 4 * a}\n" for k, (v, a) in enumerate(video.labels.tolist())]
        own = tmp_path / "own" / f"{video.video_id}.csv"
        own.parent.mkdir(exist_ok=True)
        own.write_text("ms,valence,arousal\n" + "".join(rows).replace("nan", ""))
    own_labels = ["--annotations", str(tmp_path / "own"), "--scale", "1", "9"]
    assert cli.calibrate.main([*command[:2], *own_labels, "--out", str(tmp_path / "own.safetensors")]) == 0
    np.testing.assert_allclose(load_calibration(tmp_path / "own.safetensors").weights, found.weights, atol=1e-3)
    for name in ("v0", "v1"):
        (labels / f"{name}.txt").unlink()
    before = out.read_bytes()
    assert cli.calibrate.main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "at least 3" in line]
    assert "2 videos" in line and out.read_bytes() == before


def test_tables_of_other_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = made_videos(1)[0]
    write_per_video(tmp_path / "labels", "v0", video.labels)
    command = ["--predictions", str(tmp_path), "--annotations", str(tmp_path / "labels"), "--out", str(tmp_path / "c")]
    assert cli.calibrate.main(command) == 2 and "frames.csv" in capsys.readouterr().err
    with open_table(tmp_path / "frames.csv", "csv") as append:
        append(Prediction("v0", np.arange(200) / RATE, video.fused, {}))
    assert cli.calibrate.main(command) == 2
    assert "without --checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.fixture
def face_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceEntry:
    """A face model of the registry, put there by hand: logits and values from the colours of a face."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("RCMA_MODELS", str(folder))
    given = next(entry for entry in entries().values() if isinstance(entry, FaceEntry))
    random = np.random.default_rng(4)
    weight, bias = random.normal(size=(3, 10)).astype(np.float32), random.normal(size=10).astype(np.float32)
    (file,) = given.files
    path = write_face_model(folder / file, given.side, 0.2 * weight, 0.1 * bias)
    entry = given.model_copy(update={"files": {file: sha256(path)}})
    monkeypatch.setitem(entries(), entry.name, entry)
    return entry


def coloured(tmp_path: Path, make_video: Callable[..., Path], number: int, n: int = 30) -> tuple[Features, Path]:
    """A recording whose face has a colour of its own that changes, and its features."""
    name = f"face{number}"
    random = np.random.default_rng(number)
    first, last = random.integers(0, 256, (2, 3))
    images = [np.broadcast_to(first + (last - first) * k // n, (64, 64, 3)).astype(np.uint8) for k in range(n)]
    video = make_video(tmp_path / f"{name}.mp4", images, rate=RATE)
    features = make_features(tmp_path / name, make_labels(n, number), seed=number, audio=False, words=False)
    box = np.tile(np.array([8, 8, 56, 56], np.float32), (n, 1))
    return replace(features, face_box=box, face_score=np.ones(n, np.float32)), video


def test_predictions_of_a_face_model_are_calibrated_on_its_logits(
    tmp_path: Path, face_model: FaceEntry, make_video: Callable[..., Path]
) -> None:
    """Labels are two of the logits: only a calibration that sees them can find that."""
    models = PublicModels()
    assert models.columns[face_model.name] == (*TARGETS, *(f"logit_{emotion}" for emotion in EMOTIONS))
    recordings = [coloured(tmp_path, make_video, number) for number in range(6)]
    predictions = [models.predict(features, lambda video=video: video) for features, video in recordings]
    with open_table(tmp_path / "frames.csv", "csv") as append:
        for prediction in predictions:
            append(prediction)
    for prediction in predictions[:5]:
        logits = prediction.experts[face_model.name][:, 2:4].clip(-1, 1)
        write_per_video(tmp_path / "labels", prediction.video_id, logits)
    out = tmp_path / "calibration.safetensors"
    command = ["--predictions", str(tmp_path), "--annotations", str(tmp_path / "labels"), "--out", str(out)]
    assert cli.calibrate.main(command) == 0
    calibration = load_calibration(out)
    assert calibration.models == [face_model.name]
    assert all((score.ccc_after or 0) > 0.9 for score in calibration.description.scores.values())
    calibrated = PublicModels(calibration=out)
    features, video = recordings[5]
    found = calibrated.predict(features, lambda: video)
    np.testing.assert_allclose(found.values, predictions[5].experts[face_model.name][:, 2:4].clip(-1, 1), atol=0.1)
    np.testing.assert_array_equal(found.experts[face_model.name], predictions[5].experts[face_model.name])
    np.testing.assert_array_equal(found.values, calibration(found.experts[face_model.name]))
    assert any("held-out" in line for line in calibrated.describe())


def test_a_calibration_that_needs_an_absent_model_is_refused_by_name(
    tmp_path: Path, calibration: Calibration, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCMA_MODELS", str(tmp_path))
    path = tmp_path / "c.safetensors"
    save_calibration(calibration, path)
    make_features(tmp_path / "talk", make_labels(20, 0), seed=0)
    command = [str(tmp_path / "talk"), "--out", str(tmp_path / "out"), "--calibration", str(path)]
    assert cli.predict.main(command) == 2
    said = capsys.readouterr().err
    assert "good, noise" in said and "rcma-models list" in said
    assert cli.predict.main([*command, "--checkpoint", str(tmp_path)]) == 2
    assert "--calibration" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
