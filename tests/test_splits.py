"""Folds as the authors have them, subject-disjoint folds, and splits of labels of one's own."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from made_features import data_settings, make_data

from preprocessing.errors import InputError
from rcma.data.splits import divide
from rcma.data.training_data import open_training_data


def affwild2_names(n_pairs: int, n_videos: int = 356) -> list[str]:
    """Names like those of Aff-Wild2, some of them pairs, in sorted order."""
    random = np.random.default_rng(n_pairs)
    raw = [f"{n}-{random.integers(24, 61)}-1280x720" for n in range(1, n_videos - n_pairs + 1)]
    pairs = set(random.permutation(len(raw))[:n_pairs].tolist())
    names = [name for k, name in enumerate(raw) if k not in pairs]
    return sorted(names + [f"{raw[k]}_{side}" for k in pairs for side in ("left", "right")])


def divide_published(names: list[str], fold: int) -> tuple[list[str], list[str], list[str]]:
    official = [f"validation{n}" for n in range(76)]
    training, held_out, warnings = divide(names, official, fold=fold)
    assert sorted(training + held_out) == sorted(official + names)
    if fold:
        assert set(official) <= set(training)
    return training, held_out, warnings


def test_published_folds_are_the_authors_blocks() -> None:
    names = affwild2_names(29)
    edges = [0, 71, 142, 213, 284, 356]
    assert not any(names[edge].endswith("_right") for edge in edges[:-1]), "a pair lies across an edge: other names"
    blocks = [names[start:end] for start, end in itertools.pairwise(edges)]
    for fold in range(1, 6):
        training, held_out, warnings = divide_published(names, fold)
        assert held_out == blocks[5 - fold]
        assert warnings == []
        people = {name.rpartition("_")[0] for name in held_out if "_" in name}
        assert not people & {name.rpartition("_")[0] for name in training if "_" in name}
    assert len(divide_published(names, 1)[1]) == 72
    assert divide_published(names, 0)[1] == [f"validation{n}" for n in range(76)]


def test_no_pair_is_ever_divided() -> None:
    """A boundary between the two moves before both, and that is said."""
    for n_pairs, n_videos in itertools.product((0, 3, 29, 100), (10, 57, 356, 357)):
        if 2 * n_pairs > n_videos:
            continue
        names = affwild2_names(n_pairs, n_videos)
        seen, moved = [], False
        for fold in range(5, 0, -1):
            training, held_out, warnings = divide_published(names, fold)
            seen += held_out
            assert abs(len(held_out) - n_videos / 5) < 2
            moved |= bool(warnings)
            people = {name.rpartition("_")[0] for name in held_out if "_" in name}
            assert not people & {name.rpartition("_")[0] for name in training if "_" in name}
        assert seen == names
        edges = [number * n_videos // 5 for number in range(1, 5)]
        assert moved == any(names[edge].endswith("_right") for edge in edges)


def test_fewer_videos_than_folds_are_refused(tmp_path: Path) -> None:
    make_data(tmp_path, n_frames=20)
    with pytest.raises(InputError, match="3 videos of Train_Set cannot be divided into 5 parts"):
        open_training_data(data_settings(tmp_path, fold=1))


def test_a_fold_opens_its_videos(tmp_path: Path) -> None:
    make_data(tmp_path, n_train=6, n_validation=1, n_frames=20)
    data = open_training_data(data_settings(tmp_path, fold=1))
    assert [video.video_id for video in data.validation] == ["video4", "video5"]
    assert [video.video_id for video in data.train] == ["video0", "video1", "video2", "video3", "video6"]


def test_no_subject_is_on_both_sides(tmp_path: Path) -> None:
    train, validation = [f"v{n}{side}" for n in range(8) for side in ("_left", "_right")], [f"w{n}" for n in range(4)]
    seen: list[str] = []
    for fold in range(1, 6):
        training, held_out, _ = divide(train, validation, fold=fold, folds="subject-disjoint")
        assert not {name.split("_")[0] for name in training} & {name.split("_")[0] for name in held_out}
        assert sorted(training + held_out) == sorted(train + validation)
        seen += held_out
    assert sorted(seen) == sorted(train + validation)
    table = tmp_path / "subjects.csv"
    names = sorted(train + validation)
    table.write_text("video,subject\n" + "".join(f"{name},s{k % 6}\n" for k, name in enumerate(names)))
    subject = dict(zip(names, (f"s{k % 6}" for k in range(len(names))), strict=True))
    training, held_out, _ = divide(train, validation, fold=2, folds="subject-disjoint", subjects=table)
    assert not {subject[name] for name in training} & {subject[name] for name in held_out}
    table.write_text("video,subject\nv0_left,a\n")
    with pytest.raises(InputError, match="names no subject for"):
        divide(train, validation, fold=1, folds="subject-disjoint", subjects=table)
