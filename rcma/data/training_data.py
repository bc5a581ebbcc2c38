"""The videos of a training, from a folder of feature folders and a source of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.config import PreprocessConfig, build_config
from preprocessing.errors import InputError
from preprocessing.names import as_video_id, by_video_id
from rcma.config import MODALITIES, TARGETS, DataSettings, FaceSource, Modality, Target
from rcma.data.compatibility import check_alike
from rcma.data.labels import Labels, open_labels
from rcma.data.splits import split_videos
from rcma.data.tables import some
from rcma.data.videos import Video


@dataclass(frozen=True)
class TrainingData:
    """Videos that have both features and annotations."""

    train: tuple[Video, ...]
    validation: tuple[Video, ...]
    preprocessing: PreprocessConfig
    """Settings that the features were made with."""
    face_source: FaceSource
    """Whether their faces were detected or provided."""
    text_width: int | None
    """D, width of a word vector; None when no video has a word."""
    vector_widths: Mapping[Modality, int]
    """Columns of the features from other tools, of each modality for which all videos have them."""
    warnings: tuple[str, ...]


def open_training_data(settings: DataSettings, targets: Sequence[Target] = TARGETS) -> TrainingData:
    """Match feature folders with the labels of the targets, for the training and validation videos.

    Raises:
        InputError: a split has no video with both, a video is in both splits, labels are damaged or lack a target, or
            the features were made with different settings. Damaged features are left out, with a warning.
    """
    features, annotations = settings.features, settings.annotations
    folders = _feature_folders(features)
    labels = open_labels(annotations, settings.labels, video_ids=folders.keys())
    if not folders.keys() & set(labels.videos):
        raise InputError(
            f"{features} and {annotations} have no video in common; a feature folder is named like its labels"
        )
    train, validation, warnings = split_videos(labels, settings)
    unused = sorted(folders.keys() - {*train, *validation})
    if unused:
        warnings.append(f"{features}: no annotation for {some(unused)}: not used")
    opened: dict[str, list[Video]] = {}
    for name, video_ids, delay_s in (("training", train, settings.label_delay_s), ("validation", validation, 0.0)):
        without = sorted(set(video_ids) - folders.keys())
        if without:
            warnings.append(f"{annotations}: no features for {some(without)} of the {name} split: not used")
        own = [folders[video_id] for video_id in sorted(set(video_ids) & folders.keys())]
        opened[name] = list(_open_videos(own, labels, targets, delay_s=delay_s, warnings=warnings))
        for k, target in enumerate(targets):
            if not any(np.isfinite(video.labels[:, k]).any() for video in opened[name]):
                raise InputError(
                    f"model.targets: {target}: {annotations} has no label of it in any frame of the {name} split that "
                    f"has features in {features}"
                )
    videos = [*opened["training"], *opened["validation"]]
    first = videos[0]
    # First: different settings are the cause of different widths.
    face_source = check_alike([(video.folder, video.features().meta) for video in videos])
    text_width, vector_widths = _common_widths(videos)
    return TrainingData(
        train=tuple(opened["training"]),
        validation=tuple(opened["validation"]),
        face_source=face_source,
        preprocessing=build_config(
            PreprocessConfig, first.features().meta["settings"], source=f"{first.folder}/meta.json"
        ),
        text_width=text_width,
        vector_widths=vector_widths,
        warnings=tuple(warnings),
    )


def _open_videos(
    folders: Sequence[Path], labels: Labels, targets: Sequence[Target], *, delay_s: float, warnings: list[str]
) -> Iterator[Video]:
    for folder in folders:
        video = Video(folder, labels=np.empty((0, len(targets)), np.float32))
        try:
            time_s = video.features().time_s
        except InputError as error:
            warnings.append(f"{error}: not used")
            continue
        # Not the video_id of the features: the folder may be a link to one of another name.
        video.labels = labels.at(video.video_id, time_s, targets, delay_s=delay_s, on_warning=warnings.append)
        yield video


def _common_widths(videos: Sequence[Video]) -> tuple[int | None, dict[Modality, int]]:
    """Width of the word vectors, and of the features from other tools that all videos have."""
    found: dict[str, tuple[int, Path]] = {}
    n_videos: Counter[str] = Counter()
    for video in videos:
        features = video.features()
        widths = {f"{m}_vectors": rows.shape[1] for m, rows in features.vectors.items()}
        if len(features.words):
            widths["word_vectors"] = features.word_vectors.shape[1]
        for name, width in widths.items():
            n_videos[name] += 1
            known, first = found.setdefault(name, (width, video.folder))
            if width != known:
                raise InputError(
                    f"{first}/{name}.npy has {known} columns, {video.folder}/{name}.npy has {width}; make them alike"
                )
    text_width = found["word_vectors"][0] if "word_vectors" in found else None
    in_all = (m for m in MODALITIES if n_videos[f"{m}_vectors"] == len(videos))
    return text_width, {m: found[f"{m}_vectors"][0] for m in in_all}


def _feature_folders(features: Path) -> dict[str, Path]:
    if not features.is_dir():
        raise InputError(f"data.features: {features}: no such folder; rcma-preprocess --out makes it")
    folders = (path for path in sorted(features.iterdir()) if path.is_dir() and not path.name.startswith("."))
    found = by_video_id((as_video_id(path.name), path) for path in folders)
    if not found:
        raise InputError(f"data.features: {features}: no feature folders in it; rcma-preprocess --out makes them")
    return found
