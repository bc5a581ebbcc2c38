from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import make_data, make_features, make_labels, small_config, write_annotation
from safetensors.torch import load_file

import rcma
from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features
from rcma.abaw import read_annotation
from rcma.config import TrainConfig
from rcma.metrics import ccc
from rcma.model.checkpoint import load_run_config
from rcma.training import TrainingResult, train
from rcma.training.run_folder import load_state

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Path, TrainingResult]:
    """A run of three epochs that nothing interrupts."""
    return root / "whole", train(small_config(root), root / "whole", device="cpu")


def read_log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def changed_model(config: TrainConfig, **changes: object) -> TrainConfig:
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def assert_same_run(run: Path, other: Path):
    logs = [[{**row, "seconds": ""} for row in read_log(one)] for one in (run, other)]
    assert logs[0] == logs[1]
    assert (run / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    assert (run / "scores.json").read_text() == (other / "scores.json").read_text()
    one, two = load_state(run), load_state(other)
    assert one and two and one.model.keys() == two.model.keys()
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
    for parameter, state in one.optimizer["state"].items():
        assert all(torch.equal(value, two.optimizer["state"][parameter][key]) for key, value in state.items())


def test_run_folder_holds_what_it_should(root: Path, whole: tuple[Path, TrainingResult]):
    run, result = whole
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
    assert names == {"config.yaml", "best.safetensors", "last", "log.csv", "scores.json", "README.md"}
    config = load_run_config(run)
    assert config.model.text_width == 16 and config.preprocessing == PreprocessConfig()
    assert config.train == small_config(root).train

    rows = read_log(run)
    assert list(rows[0]) == [
        "epoch", "unfrozen_groups", "learning_rate", "train_loss", "valence_ccc", "arousal_ccc", "mean_ccc", "seconds",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    means = [float(row["mean_ccc"]) for row in rows]
    assert result.best.epoch == 1 + int(np.argmax(means)) and result.best.mean_ccc == max(means)
    scores = json.loads((run / "scores.json").read_text())
    assert (scores["best_epoch"], scores["mean_ccc"]) == (result.best.epoch, max(means))
    assert (scores["n_videos"], scores["n_frames"], scores["epochs"]) == (2, 120, 3)


def test_logged_score_is_that_of_the_best_weights_on_all_frames(root: Path, whole: tuple[Path, TrainingResult]):
    run, result = whole
    model = rcma.load_model(run)
    videos = ("video3", "video4")
    predicted = np.concatenate([rcma.Predictor(model)(root / "features" / video).values for video in videos])
    labels = np.concatenate([read_annotation(root / "annotations" / "Validation_Set" / f"{v}.txt") for v in videos])
    assert ccc(predicted[:, 0], labels[:, 0]) == pytest.approx(result.best.ccc["valence"], abs=1e-9)
    assert ccc(predicted[:, 1], labels[:, 1]) == pytest.approx(result.best.ccc["arousal"], abs=1e-9)
    assert result.best.mean_ccc == pytest.approx((result.best.ccc["valence"] + result.best.ccc["arousal"]) / 2)


def test_interrupted_and_resumed_is_uninterrupted(root: Path, whole: tuple[Path, TrainingResult], tmp_path: Path):
    def interrupt(status: str) -> None:
        if status == "epoch 2, batch 2 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_config(root), tmp_path / "run", device="cpu", on_status=interrupt)
    assert len(read_log(tmp_path / "run")) == 1 and not (tmp_path / "run" / "scores.json").exists()
    rows = []
    train(small_config(root), tmp_path / "run", device="cpu", resume=True, on_epoch=rows.append)
    assert [row.epoch for row in rows] == [2, 3]
    assert_same_run(tmp_path / "run", whole[0])


def test_more_epochs_later_are_the_same_as_at_once(root: Path, whole: tuple[Path, TrainingResult], tmp_path: Path):
    run = tmp_path / "run"
    for epochs in (1, 2, 3):
        train(small_config(root, epochs=epochs), run, device="cpu", resume=True)
        assert load_run_config(run).train.epochs == epochs
    assert_same_run(run, whole[0])
    before = (run / "last" / "state.pt").read_bytes()
    assert train(small_config(root), run, device="cpu", resume=True).best == dataclasses.replace(
        whole[1].best, seconds=float(read_log(run)[whole[1].best.epoch - 1]["seconds"])
    )
    assert (run / "last" / "state.pt").read_bytes() == before


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(root: Path, whole: tuple[Path, TrainingResult], tmp_path: Path):
    program = f"""
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from made_features import small_config
from rcma.training.loop import train

def die(status):
    if status.startswith("epoch 3, batch 1 of"):
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
train(small_config(Path({str(root)!r})), Path({str(tmp_path / "run")!r}), device="cpu", on_status=die)
"""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "PYTHONPATH": paths})
    assert ended.returncode == -signal.SIGKILL
    assert [row["epoch"] for row in read_log(tmp_path / "run")] == ["1", "2"]
    # What a kill in the middle of writing leaves is no obstacle.
    left = tmp_path / "run" / "last" / ".rcma-unfinished-abcdefgh"
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    (left / "new" / "state.pt").write_bytes(b"half")
    train(small_config(root, workers=1), tmp_path / "run", device="cpu", resume=True)
    assert not left.exists()
    assert_same_run(tmp_path / "run", whole[0])


def test_run_in_use_and_changed_settings_are_refused(root: Path, whole: tuple[Path, TrainingResult]):
    run, _ = whole
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds a run already; add --resume"):
        train(small_config(root), run, device="cpu")
    with pytest.raises(InputError, match=r"train.batch_size: .* began with 4, now it is 5"):
        train(small_config(root, batch_size=5), run, device="cpu", resume=True)
    with pytest.raises(InputError, match="a file; give a folder"):
        train(small_config(root), run / "log.csv", device="cpu")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_validation_does_not_enter_the_normalisation(root: Path, whole: tuple[Path, TrainingResult], tmp_path: Path):
    make_data(tmp_path, n_frames=60)
    for video in ("video3", "video4"):
        folder = tmp_path / "features" / video
        features = load_features(folder)
        np.save(folder / "log_mel.npy", np.array(features.log_mel) * 3 + 1)
        np.save(folder / "word_vectors.npy", np.array(features.word_vectors) * 5 - 2)
    train(small_config(tmp_path, epochs=1), tmp_path / "run", device="cpu")
    changed, original = (load_file(run / "best.safetensors") for run in (tmp_path / "run", whole[0]))
    for name in ("audio_mean", "audio_std", "text_mean", "text_std"):
        assert torch.equal(changed[name], original[name])
    assert original["audio_mean"].mean() == pytest.approx(-3, abs=1)
    assert original["text_std"].shape == () and original["text_std"] != 1.0


@pytest.mark.slow
def test_what_the_signals_show_is_learnt(tmp_path: Path):
    make_data(tmp_path, n_train=4, n_frames=80)
    result = train(small_config(tmp_path, epochs=10, learning_rate=5e-3), tmp_path / "run", device="cpu")
    assert result.best.ccc["valence"] > 0.5 and result.best.ccc["arousal"] > 0.5


def test_loss_that_is_no_longer_finite_names_the_window_and_keeps_what_was_there(root: Path, tmp_path: Path):
    make_data(tmp_path, n_frames=60)
    damaged = tmp_path / "features" / "video1" / "word_vectors.npy"
    vectors = np.load(damaged)
    config, run = small_config(tmp_path, batch_size=1), tmp_path / "run"

    with pytest.raises(InputError, match="the loss is nan in a batch of video1 from"):
        train(config, run, device="cpu", on_epoch=lambda row: np.save(damaged, np.full_like(vectors, np.nan)))
    assert len(read_log(run)) == 1
    assert all(torch.isfinite(value).all() for value in load_file(run / "best.safetensors").values())
    np.save(damaged, vectors)
    assert train(config, run, device="cpu", resume=True).epochs == 3


def test_first_epoch_is_saved_even_without_a_score(tmp_path: Path):
    make_data(tmp_path, n_frames=60)
    for video in ("video3", "video4"):
        constant = np.full((60, 2), 0.25, np.float32)
        write_annotation(tmp_path / "annotations" / "Validation_Set" / f"{video}.txt", constant)
    result = train(small_config(tmp_path, epochs=5, early_stopping=2), tmp_path / "run", device="cpu")
    assert math.isnan(result.best.mean_ccc) and result.best.epoch == 1
    assert (result.epochs, result.ending) == (3, "early stopping")
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["mean_ccc"] is None
    assert rcma.load_model(tmp_path / "run")


def test_one_target_and_clipping_and_lengths_that_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_data(tmp_path, n_frames=60)
    write_annotation(tmp_path / "annotations" / "Train_Set" / "video0.txt", make_labels(58, 0))
    make_features(tmp_path / "features" / "video1", make_labels(20, 1), seed=1, audio=False, words=False, width=0)
    config = changed_model(small_config(tmp_path, epochs=1, clip_norm=1.0), targets=("arousal",))
    result = train(config, tmp_path / "run", device="cpu")
    assert result.best.ccc == {"arousal": result.best.mean_ccc}
    assert len(caplog.messages) == 2
    assert rcma.Predictor(rcma.load_model(tmp_path / "run"))(tmp_path / "features" / "video3").values.shape == (60, 1)


def test_requests_that_cannot_be_met_are_refused_before_anything_is_written(root: Path, tmp_path: Path):
    config = small_config(root)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda"):
            train(config, tmp_path / "run", device="cuda")
    wide = changed_model(config, text_width=9)
    with pytest.raises(InputError, match=r"model.text_width is 9, .* 16"):
        train(wide, tmp_path / "run", device="cpu")
    gone = config.model.face.model_copy(update={"pretrained": tmp_path / "none.pth"})
    with pytest.raises(InputError, match=r"none.pth"):
        train(changed_model(config, face=gone), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_vectors_that_are_not_finite_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_data(tmp_path, n_frames=60)
    vectors = np.load(tmp_path / "features" / "video1" / "word_vectors.npy")
    vectors[0, 0] = np.inf
    np.save(tmp_path / "features" / "video1" / "word_vectors.npy", vectors)
    train(small_config(tmp_path, epochs=1), tmp_path / "run", device="cpu")
    assert any(re.search(r"video1.word_vectors\.npy: .*not finite.*: not used", text) for text in caplog.messages)


def test_weights_of_the_best_epoch_are_there_after_a_kill_before_they_were_written(
    root: Path, whole: tuple[Path, TrainingResult], tmp_path: Path
):
    """The state of an epoch is saved first; the weights that go with it follow when the run is resumed."""
    config = small_config(root, epochs=1)
    train(config, tmp_path / "run", device="cpu")
    written = (tmp_path / "run" / "best.safetensors").read_bytes()
    (tmp_path / "run" / "best.safetensors").unlink()
    train(config, tmp_path / "run", device="cpu", resume=True)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == written
