"""rcma.Predictor against the command, from several threads, and for targets of any name."""

from __future__ import annotations

import csv
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import WIDTH, make_features, make_labels, small_config

import rcma
from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features import load_features
from rcma import cli
from rcma.config import AudioBackbone, FaceBackbone, ModelSettings, TCNSettings
from rcma.data import change_raw_video_settings, fixed_settings
from rcma.model import RCMA, TrainedRCMA, save_config, save_weights
from rcma.prediction import Prediction

SILENT = PreprocessConfig.model_validate({"speech": {"backend": "none"}})


def make_run(run: Path, *, seed: int = 0, targets: tuple[str, ...] = ("valence", "arousal")) -> Path:
    """A run folder of a model with random weights."""
    run.mkdir()
    config = small_config(run)
    settings = config.model.model_copy(update={"text_width": WIDTH, "targets": targets})
    torch.manual_seed(seed)
    known = {"model": settings, "preprocessing": SILENT, "face_source": "detected"}
    model = TrainedRCMA(config.model_copy(update=known))
    save_config(run, model.config)
    save_weights(run, model.state_dict())
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / name, seed=seed) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two feature folders; three frames of the second have neither face nor sound nor word."""
    root = tmp_path_factory.mktemp("features")
    for seed, (name, whole) in enumerate((("one", True), ("two", False))):
        make_features(root / name, make_labels(60, seed), seed=seed, config=SILENT, audio=whole, words=whole)
    return [root / "one", root / "two"]


# The command and Python.


def cells(prediction: Prediction) -> list[dict[str, str]]:
    """Rows as a CSV file has them, from the columns of a prediction."""

    def cell(value: object) -> str:
        if value is None or (isinstance(value, np.floating) and np.isnan(value)):
            return ""
        if isinstance(value, np.bool_):
            return "1" if value else "0"
        return f"{value:.6f}" if isinstance(value, np.floating) else str(value)

    table = prediction.to_table()
    rows = zip(*table.values(), strict=True)
    return [dict(zip(table, map(cell, row), strict=True)) for row in rows]


def check_command(
    arguments: list[str], predictor: rcma.Predictor, given: list[Path], out: Path, *, abaw: bool = True
) -> None:
    """The command's files hold what the predictor gives, the table to the last bit."""
    pq = pytest.importorskip("pyarrow.parquet")
    more = [*map(str, given), *arguments, "--device", "cpu"]
    assert cli.predict.main([*more, "--out", str(out)]) == 0
    assert cli.predict.main([*more, "--out", str(out / "parquet"), "--table", "parquet", "--format", "none"]) == 0
    predictions = [predictor(path) for path in given]
    with (out / "frames.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [row for prediction in predictions for row in cells(prediction)]
    table = pq.read_table(out / "parquet" / "frames.parquet")
    assert table.column_names == list(predictions[0].to_table())
    for name in table.column_names:
        expected = np.concatenate([prediction.to_table()[name] for prediction in predictions])
        read = table[name].to_numpy(zero_copy_only=False)
        if expected.dtype.kind == "f":
            np.testing.assert_array_equal(read.astype(expected.dtype), expected)
        else:
            assert read.tolist() == expected.tolist()
    for prediction in predictions if abaw else ():
        own = out / "own" / f"{prediction.video_id}.txt"
        prediction.save_abaw(own)
        assert own.read_bytes() == (out / f"{prediction.video_id}.txt").read_bytes()


def test_one_checkpoint(runs: list[Path], folders: list[Path], tmp_path: Path) -> None:
    check_command(["--checkpoint", str(runs[0])], rcma.Predictor(runs[0], device="cpu"), folders, tmp_path)


def test_several_checkpoints_smoothed_and_filled(runs: list[Path], folders: list[Path], tmp_path: Path) -> None:
    predictor = rcma.Predictor(runs, device="cpu", fill="neutral", smooth=("gaussian", 0.2))
    options = ["--checkpoint", *map(str, runs), "--smooth", "gaussian:0.2", "--fill", "neutral"]
    check_command(options, predictor, folders, tmp_path)
    assert (predictor(folders[1]).values[5:8] == 0).all()


def test_gaps_that_are_left(runs: list[Path], folders: list[Path], tmp_path: Path) -> None:
    predictor = rcma.Predictor(str(runs[0]), device="cpu", fill="nan", smooth=("median", 0.3))
    options = ["--checkpoint", str(runs[0]), "--smooth", "median:0.3", "--fill", "nan", "--format", "none"]
    check_command(options, predictor, folders, tmp_path, abaw=False)
    given = predictor(folders[1])
    assert np.isnan(given.values[5:8]).all() and np.isfinite(given.values[8:]).all()
    with pytest.raises(InputError, match="a number for each frame"):
        given.save_abaw(tmp_path / "two.txt")


def test_public_models(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCMA_MODELS", str(tmp_path / "no models"))
    check_command([], rcma.Predictor(), folders, tmp_path / "out")


@pytest.mark.slow
def test_a_raw_video(runs: list[Path], short_clip: Path, tmp_path: Path) -> None:
    predictor = rcma.Predictor(runs[0], device="cpu")
    check_command(["--checkpoint", str(runs[0])], predictor, [short_clip], tmp_path)
    features = load_features(tmp_path / "features" / "short")
    for given in (features, tmp_path / "features" / "short"):
        np.testing.assert_array_equal(predictor(given).values, predictor(short_clip).values)


@pytest.mark.slow
def test_many_videos_and_one_that_fails(
    runs: list[Path], folders: list[Path], short_clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copytree(folders[0], tmp_path / "damaged")
    (tmp_path / "damaged" / "words.json").unlink()
    predictor, told = rcma.Predictor(runs[0], device="cpu"), []
    inputs = [tmp_path / "broken.mp4", tmp_path / "damaged", folders[1], short_clip]
    videos = predictor.prepare(inputs, features=tmp_path / "features", workers=1, on_failure=told.append)
    assert [video.video_id for video in videos] == ["two", "short"]
    assert ["broken.mp4" in str(told[0]), "words.json" in str(told[1]), len(told)] == [True, True, 2]
    assert videos[1].find_recording() == short_clip
    shutil.rmtree(tmp_path / "features" / "short")
    done = list(predictor.predict_many(videos, on_failure=told.append))
    assert len(told) == 3 and "short" in str(told[2])
    ((video, prediction),) = done
    assert video.n_frames == len(prediction.time_s) == 60
    np.testing.assert_array_equal(prediction.values, predictor(folders[1]).values)


def test_changes_of_the_fusion_are_measured_only_when_asked_for(runs: list[Path], folders: list[Path]) -> None:
    plain, watched = (rcma.Predictor(runs[0], device="cpu", changes=changes)(folders[0]) for changes in (False, True))
    assert not plain.changes and set(watched.changes) == {"face", "audio", "text"}
    np.testing.assert_array_equal(plain.values, watched.values)


@pytest.mark.parametrize("options", [{"fill": "zero"}, {"smooth": ("mean", 1.0)}, {"smooth": ("median", 0.0)}])
def test_unknown_options_are_refused(runs: list[Path], options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        rcma.Predictor(runs[0], **options)


# Several threads.


@pytest.mark.slow
def test_threads_that_share_a_predictor_get_what_one_gets(tmp_path: Path) -> None:
    """With the fast IR-50 and VGGish, each on two cores; a thread that starts meanwhile has two cores as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        settings = ModelSettings(
            length=32,
            text_width=WIDTH,
            face=FaceBackbone(),
            audio=AudioBackbone(),
            tcn=TCNSettings(face=(8,), audio=(8,), text=(8,), kernel_size=3),
        )
        predictor = rcma.Predictor(RCMA(settings), changes=True)
        videos = [make_features(tmp_path / str(n), make_labels(9 + n, n), seed=n) for n in range(2)]
        expected = [predictor(features) for features in videos]
        with ThreadPoolExecutor(4) as threads:
            counts = [threads.submit(torch.get_num_threads) for _ in range(4)]
            given = list(threads.map(predictor, videos * 3))
            assert {count.result() for count in counts} == {2}
        for prediction, alone in zip(given, expected * 3, strict=True):
            np.testing.assert_array_equal(prediction.values, alone.values)
            for m, changes in alone.changes.items():
                np.testing.assert_array_equal(prediction.changes[m], changes)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Targets of any name.


def test_other_targets_have_columns_and_no_files_of_the_challenge(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", targets=("arousal", "liking"))
    prediction = rcma.Predictor(run, device="cpu")(folders[0])
    assert prediction.targets == ("arousal", "liking")
    np.testing.assert_array_equal(prediction.arousal, prediction.values[:, 0])
    with pytest.raises(InputError, match="valence is not predicted"):
        prediction.save_abaw(tmp_path / "one.txt")
    arguments = [str(folders[0]), "--checkpoint", str(run), "--device", "cpu", "--out", str(tmp_path / "out")]
    for options, named in (([], "--format none"), (["--format", "none", "--report"], "--report")):
        assert cli.predict.main([*arguments, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "not valence" in line and named in line
        assert not (tmp_path / "out").exists()
    assert cli.predict.main([*arguments, "--format", "none"]) == 0
    with (tmp_path / "out" / "frames.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video", "frame", "time_s", "arousal", "liking", "face", "audio", "text"]
    assert rows == cells(prediction)


def test_targets_of_several_models_come_together(folders: list[Path], tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", targets=("liking", "valence")),
        make_run(tmp_path / "b", targets=("arousal", "liking"), seed=1),
    ]
    first, second = (rcma.Predictor(run, device="cpu")(folders[0]) for run in runs)
    both = rcma.Predictor(runs, device="cpu")(folders[0])
    assert both.targets == ("valence", "arousal", "liking")
    np.testing.assert_allclose(both.valence, first.valence, atol=1e-7)
    np.testing.assert_allclose(both.arousal, second.arousal, atol=1e-7)
    liking = [prediction.select(("liking",)).values[:, 0] for prediction in (first, second)]
    np.testing.assert_allclose(both.values[:, 2], np.mean(liking, axis=0), atol=1e-6)
    assert list(both.to_table())[-3:] == ["valence_sd", "arousal_sd", "liking_sd"]
    assert np.isnan(both.spread[:, :2]).all()
    np.testing.assert_allclose(both.spread[:, 2], np.std(liking, axis=0, ddof=1), atol=1e-6)


@pytest.mark.parametrize("name", ["one.csv", "one"])
def test_a_file_of_the_challenge_ends_in_txt(tmp_path: Path, name: str) -> None:
    prediction = Prediction("one", np.arange(3) / 25, np.zeros((3, 2), np.float32), {})
    with pytest.raises(InputError, match=r"\.txt"):
        prediction.save_abaw(tmp_path / name)
    (tmp_path / "mine.txt").write_text("notes")
    with pytest.raises(InputError, match=r"mine\.txt"):
        prediction.save_abaw(tmp_path / "mine.txt")
    prediction.save_abaw(str(tmp_path / "one.txt"))
    replace(prediction, values=prediction.values + 1).save_abaw(tmp_path / "one.txt")
    assert (tmp_path / "one.txt").read_text().splitlines() == ["valence,arousal", *["1.000000,1.000000"] * 3]


# Settings for raw videos.


@pytest.mark.parametrize(
    "setting", ["faces.size=64", "faces.margin=0.3", "faces.alignment=similarity", "words.model=packaged"]
)
def test_settings_that_change_what_the_model_sees_are_refused(
    runs: list[Path], short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    out = tmp_path / "out"
    arguments = [str(short_clip), "--checkpoint", str(runs[0]), "--device", "cpu", "--out", str(out)]
    assert cli.predict.main([*arguments, "--set", setting]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    section, key = setting.partition("=")[0].split(".")
    assert setting in line and f"{section}.{key}={getattr(getattr(SILENT, section), key)}" in line
    assert not out.exists()


def test_other_settings_reach_the_features(
    runs: list[Path], short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(short_clip), "--checkpoint", str(runs[0]), "--device", "cpu", "--out", str(tmp_path)]
    more = ["--set", "faces.detection_side=320", "--set", "faces.size=48", "--language", "de", "--workers", "1"]
    assert cli.predict.main([*arguments, *more]) == 0
    settings = load_features(tmp_path / "features" / "short").meta["settings"]
    assert settings["faces"]["detection_side"] == 320 and settings["speech"]["language"] == "de"
    assert settings["speech"]["backend"] == "none"  # as in the training
    capsys.readouterr()
    for wrong, named in (
        (["--set", "speech.modell=tiny"], "speech.model"),
        (["--set", "faces"], "key=value"),
        (["--workers", "0"], "--workers 0"),
    ):
        assert cli.predict.main([*arguments, *wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line


def test_only_what_a_model_uses_is_fixed() -> None:
    assert fixed_settings(ModelSettings(modalities=("audio",))) == []
    hears = ModelSettings(modalities=("audio", "text"), audio=AudioBackbone(kind="hf", hf="folder"))
    training = PreprocessConfig.model_validate({"audio": {"waveform": True}})
    with pytest.raises(InputError, match=r"audio\.waveform=False.*audio\.waveform=True"):
        change_raw_video_settings(training, {"audio.waveform": False}, fixed=fixed_settings(hears))
    changed = change_raw_video_settings(training, {"faces.size": 64}, fixed=fixed_settings(hears))
    assert changed.faces.size == 64 and changed.audio.waveform


def test_the_packaged_recogniser_brings_its_backend() -> None:
    training = PreprocessConfig.model_validate({"speech": {"backend": "openai-whisper", "model": "base"}})
    assert change_raw_video_settings(training, {"speech.model": "packaged"}, fixed=()).speech.backend == (
        "faster-whisper"
    )
    assert change_raw_video_settings(training, {"speech.model": "small"}, fixed=()).speech.backend == "openai-whisper"
