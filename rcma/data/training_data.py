"""From a folder of feature folders and a source of labels to the videos of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.config import PreprocessConfig, build_config
from preprocessing.errors import InputError
from preprocessing.names import as_video_id, by_video_id
from rcma.config import MODALITIES, TARGETS, FaceSource, LabelSettings, Modality, Target
from rcma.data.compatibility import check_alike, some
from rcma.data.labels import Labels, open_labels
from rcma.data.splits import Folds, split_videos
from rcma.data.windows import FeatureReader, Video


@dataclass(frozen=True)
class TrainingData:
    """Videos that have both features and annotations."""

    train: tuple[Video, ...]
    validation: tuple[Video, ...]
    preprocessing: PreprocessConfig
    """What the features were made with."""
    face_source: FaceSource
    """Whether their faces were detected or provided."""
    text_width: int | None
    """D, width of a word vector; None when no video has a word."""
    vector_widths: Mapping[Modality, int]
    """Columns of the features made elsewhere, of each modality that all videos have some of."""
    warnings: tuple[str, ...]


def open_training_data(
    features: Path,
    annotations: Path,
    *,
    targets: Sequence[Target] = TARGETS,
    labels: LabelSettings | None = None,
    fold: int = 0,
    folds: Folds = "published",
    subjects: Path | None = None,
    split: Path | None = None,
    label_delay_s: float = 0.0,
) -> TrainingData:
    """Match feature folders with the labels of the training and validation videos.

    Args:
        features: folder of feature folders.
        annotations: ABAW files, or tables, see :mod:`rcma.data.labels`.
        targets: which of the labels are wanted, in this order.
        labels: how tables are read.
        fold: 0 to 5; see :func:`rcma.data.splits.divide`.
        folds: how folds 1 to 5 are made.
        subjects: CSV file with columns ``video`` and ``subject``; None: people in one raw video are one subject.
        split: CSV file with columns ``video`` and ``split``; None: folders Train_Set and Validation_Set.
        label_delay_s: labels of the training videos are taken from that much later.

    Raises:
        InputError: a split has no video with both, a video is in both splits, labels are damaged or lack a target, or
            the training videos were made with different settings. Damaged features are named in the warnings and left
            out.
    """
    folders = _feature_folders(features)
    source = open_labels(annotations, labels, video_ids=folders.keys())
    if not folders.keys() & set(source.videos):
        raise InputError(
            f"{features} and {annotations} have no video in common; a feature folder is named like its labels"
        )
    train, validation, warnings = split_videos(
        source, annotations, fold=fold, folds=folds, subjects=subjects, split=split
    )
    unused = sorted(folders.keys() - {*train, *validation})
    if unused:
        warnings.append(f"{features}: no annotation for {some(unused)}: not used")
    opened = {}
    for name, videos, delay_s in (("training", train, label_delay_s), ("validation", validation, 0.0)):
        without = sorted(set(videos) - folders.keys())
        if without:
            warnings.append(f"{annotations}: no features for {some(without)} of the {name} split: not used")
        there = [folders[video] for video in sorted(set(videos) & folders.keys())]
        opened[name] = list(_open_videos(there, source, targets, delay_s=delay_s, warnings=warnings))
        for k, target in enumerate(targets):
            if not any(np.isfinite(video.labels[:, k]).any() for video in opened[name]):
                raise InputError(
                    f"model.targets: {target}: {annotations} has no label of it in any frame of the {name} split that "
                    f"has features in {features}"
                )
    described = [(video.folder, video.features().meta) for videos in opened.values() for video in videos]
    faces = check_alike(described)
    any_folder, meta = described[0]
    return TrainingData(
        train=tuple(opened["training"]),
        validation=tuple(opened["validation"]),
        preprocessing=build_config(PreprocessConfig, meta["settings"], source=f"{any_folder}/meta.json"),
        face_source=faces,
        text_width=_width_of_words([*opened["training"], *opened["validation"]]),
        vector_widths=_common_widths([*opened["training"], *opened["validation"]]),
        warnings=tuple(warnings),
    )


def _open_videos(
    folders: Sequence[Path], source: Labels, targets: Sequence[Target], *, delay_s: float, warnings: list[str]
) -> Iterator[Video]:
    for folder in folders:
        reader = FeatureReader(folder)
        try:
            features = reader.features()
        except InputError as error:
            warnings.append(f"{error}: not used")
            continue
        # Not the id of the features: the folder may be a link to one of another name.
        video_id = as_video_id(folder.name)
        labels = source.at(video_id, features.time_s, targets, delay_s=delay_s, on_warning=warnings.append)
        yield Video(folder, labels, reader)


def _width_of_words(videos: Sequence[Video]) -> int | None:
    """Width of the word vectors; None where no video has a word."""
    widths: dict[int, Path] = {}
    for video in videos:
        features = video.features()
        if len(features.words):
            widths.setdefault(features.word_vectors.shape[1], video.folder)
    if len(widths) > 1:
        (one, first), (other, second) = list(widths.items())[:2]
        raise InputError(f"{first} has word vectors of width {one}, {second} of width {other}; preprocess them alike")
    return next(iter(widths), None)


def _common_widths(videos: Sequence[Video]) -> dict[Modality, int]:
    """Columns of features made elsewhere, of each modality that all videos have; InputError where they differ."""
    of_videos = {video.folder: {m: rows.shape[1] for m, rows in video.features().vectors.items()} for video in videos}
    (first, known), *others = of_videos.items()
    common: dict[Modality, int] = {m: known[m] for m in MODALITIES if m in known}
    for folder, given in others:
        for m in list(common):
            if m not in given:
                del common[m]
            elif given[m] != common[m]:
                raise InputError(
                    f"{first}/{m}_vectors.npy has {common[m]} columns, {folder}/{m}_vectors.npy has {given[m]}; "
                    "import them alike"
                )
    return common


def _feature_folders(features: Path) -> dict[str, Path]:
    if not features.is_dir():
        raise InputError(f"data.features: {features}: no such folder; rcma-preprocess --out makes it")
    folders = (path for path in sorted(features.iterdir()) if path.is_dir() and not path.name.startswith("."))
    found = by_video_id((as_video_id(path.name), path) for path in folders)
    if not found:
        raise InputError(f"data.features: {features}: no feature folders in it; rcma-preprocess --out makes them")
    return found
