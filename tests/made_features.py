"""Small feature folders and annotations, written by the tests themselves."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PreprocessConfig
from preprocessing.features.align import frame_word
from preprocessing.features.folder import Features, Word, save_features
from preprocessing.media.audio import HOP_LENGTH
from rcma.config import DataSettings, TrainConfig

RATE = 25
WIDTH = 16
N_FRAMES = 70
SETTINGS = PreprocessConfig()


def make_labels(n_frames: int, seed: int) -> NDArray[np.float32]:
    """Two slow waves, (T,2) in [-0.8,0.8]."""
    random = np.random.default_rng(seed)
    t = np.arange(n_frames)[:, None]
    period, phase = random.uniform(25, 50, size=2), random.uniform(0, 2 * np.pi, size=2)
    return (0.8 * np.sin(2 * np.pi * t / period + phase)).astype(np.float32)


def make_meta(n_frames: int, config: PreprocessConfig = SETTINGS, *, audio: bool = True) -> dict[str, Any]:
    """``meta`` of features that no video was needed for."""
    return {
        "source": {"path": "nowhere.mp4", "size": 0, "modified_ns": 0, "sha256": ""},
        "subjects": [],
        "n_frames": n_frames,
        "frame_rate": float(RATE),
        "audio": {"present": audio, "start_s": None, "duration_s": None},
        "language": None,
        "settings": config.model_dump(mode="json"),
        "warnings": {},
    }


def make_features(
    folder: Path,
    labels: NDArray[np.float32],
    *,
    seed: int,
    config: PreprocessConfig = SETTINGS,
    width: int = WIDTH,
    audio: bool = True,
    words: bool = True,
) -> Features:
    """Write a feature folder whose signals show the labels: valence as a bright upper part, arousal as loudness.

    Three frames have no face; the sound ends before the video; a word is spoken in every other half second. The
    waveform, where the settings ask for it, is noise of that loudness that starts 0.2 s after the video.
    """
    random = np.random.default_rng(seed)
    n, size = len(labels), config.faces.size
    time_s = np.arange(n) / RATE
    height = np.round((labels[:, 0] + 1) / 2 * size)
    rows = np.arange(size)
    faces = np.where(rows[None, :, None, None] < height[:, None, None, None], 200, 50)
    faces = (faces + random.integers(0, 20, (n, size, size, 3))).astype(np.uint8)
    box = np.tile(np.float32([10, 10, 60, 60]), (n, 1))
    score = np.ones(n, np.float32)
    faces[5:8], box[5:8], score[5:8] = 0, np.nan, np.nan

    n_rows = n * 100 // RATE + 90 if audio else 0
    loudness = np.interp(np.arange(n_rows) / 100, time_s, labels[:, 1])
    log_mel = loudness[:, None] * 2 - 3 + random.normal(0, 0.1, (n_rows, 64))

    waveform = None
    if config.audio.waveform:
        level = np.repeat(10 ** (loudness - 2), HOP_LENGTH)
        waveform = (level * random.normal(size=len(level))).astype(np.float16)
        log_mel[:20], waveform[: 20 * HOP_LENGTH] = np.nan, np.nan

    starts = np.arange(0.1, time_s[-1], 1.0) if words else np.zeros(0)
    spoken = tuple(Word(text=f"word{k}", start_s=s, end_s=s + 0.5, probability=math.nan) for k, s in enumerate(starts))
    features = Features(
        video_id=folder.name,
        meta=make_meta(n, config, audio=audio),
        time_s=time_s,
        faces=faces,
        face_box=box,
        face_score=score,
        log_mel=log_mel.astype(np.float16),
        words=spoken,
        word_vectors=random.normal(size=(len(spoken), width)).astype(np.float16),
        frame_word=frame_word(starts, starts + 0.5, time_s),
        waveform=waveform,
    )
    save_features(folder, features)
    return features


def write_annotation(path: Path, labels: NDArray[np.float32]) -> None:
    """Write an ABAW annotation; NaN becomes -5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join("-5" if math.isnan(value) else f"{value:.4f}" for value in row) for row in labels]
    path.write_text("\n".join(["valence,arousal", *lines]) + "\n", encoding="utf-8")


def data_settings(root: Path, **given: object) -> DataSettings:
    """Settings for the features and annotations below ``root``."""
    return DataSettings.model_validate({"features": root / "features", "annotations": root / "annotations", **given})


def make_data(
    root: Path,
    *,
    n_train: int = 3,
    n_validation: int = 2,
    n_frames: int = N_FRAMES,
    config: PreprocessConfig = SETTINGS,
) -> TrainConfig:
    """Write features and annotations below ``root``; gives a configuration of a small model that trains on them."""
    for number in range(n_train + n_validation):
        split = "Train_Set" if number < n_train else "Validation_Set"
        labels = make_labels(n_frames, seed=number)
        make_features(root / "features" / f"video{number}", labels, seed=number, config=config)
        write_annotation(root / "annotations" / split / f"video{number}.txt", labels)
    return small_config(root)


def small_config(root: Path, **train: object) -> TrainConfig:
    """Windows of 32 frames, widths of 8; ``train`` changes the recipe."""
    recipe = {"epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "warmup_epochs": 1, "seed": 7, **train}
    return TrainConfig.model_validate(
        {
            "data": {"features": str(root / "features"), "annotations": str(root / "annotations"), "hop": 20},
            "model": {
                "length": 32,
                "face": {"kind": "small"},
                "audio": {"kind": "small"},
                "tcn": {"face": [8], "audio": [8], "text": [8], "kernel_size": 3},
                "fusion": {"steps": 1, "dropout": 0.1},
            },
            "train": recipe,
        }
    )


def changed(config: TrainConfig, **sections: dict) -> TrainConfig:
    """A copy of a configuration with other settings: ``changed(config, train={"epochs": 1})``."""
    tree = config.model_dump()
    for section, values in sections.items():
        for key, value in values.items():
            if isinstance(value, dict):
                tree[section][key] = {**tree[section][key], **value}
            else:
                tree[section][key] = value
    return TrainConfig.model_validate(tree)


def read_log(run: Path) -> list[dict[str, str]]:
    """Rows of log.csv, without the seconds."""
    with (run / "log.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def stop_at(epoch: int, done: int) -> Callable[[str], None]:
    """For ``on_status``: interrupts training after a batch."""

    def interrupt(status: str) -> None:
        if status.startswith(f"epoch {epoch}, batch {done} of"):
            raise KeyboardInterrupt

    return interrupt
