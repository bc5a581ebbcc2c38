from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import N_FRAMES, WIDTH, data_settings, make_data, make_features, make_labels, write_annotation
from torch.utils.data import DataLoader

from preprocessing.config import AudioSettings, FaceSettings, PreprocessConfig, WordSettings
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features
from rcma.config import ModelSettings
from rcma.data import (
    SharedBatches,
    Video,
    WindowDataset,
    check_features,
    cut_window,
    fit_normalisation,
    open_training_data,
    windows,
)

LENGTH, HOP = 32, 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def open_data(root: Path):
    return open_training_data(data_settings(root))


def make_dataset(videos, *, seed: int = 3) -> WindowDataset:
    model = ModelSettings(length=LENGTH, text_width=WIDTH)
    return WindowDataset(videos, model=model, hop=HOP, audio_alignment="start", seed=seed)


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(torch.nan_to_num(one[key], nan=9.0), torch.nan_to_num(other[key], nan=9.0)) for key in one)


def test_windows_cover_every_frame_and_never_leave_a_long_video():
    for n_frames, length, hop in itertools.product([1, 2, 7, 31, 32, 33, 64, 65, 300, 301], [1, 2, 32], [1, 3, 20, 32]):
        if hop > length:
            continue
        starts = windows(n_frames, length, hop)
        covered = np.zeros(max(n_frames, length), int)
        for start in starts:
            covered[start : start + length] += 1
        assert (covered[:n_frames] > 0).all()
        assert starts[0] == 0 and starts == sorted(set(starts))
        assert len(covered) == n_frames or starts == [0]
        assert max(np.diff(starts), default=0) <= hop
        assert n_frames < length or starts[-1] + length == n_frames


@pytest.mark.parametrize(("n_frames", "length", "hop"), [(0, 4, 2), (9, 4, 5), (9, 4, 0)])
def test_windows_that_cannot_cover_are_refused(n_frames: int, length: int, hop: int):
    with pytest.raises(ValueError, match=f"{n_frames} frames"):
        windows(n_frames, length, hop)


@pytest.mark.parametrize("start", [0, 17, 55])
def test_window_holds_what_belongs_to_each_frame(root: Path, start: int):
    features = load_features(root / "features" / "video1")
    window = cut_window(features, start, model=ModelSettings(text_width=WIDTH), length=LENGTH, audio_alignment="start")
    seen = {"face": 0, "audio": 0, "text": 0}
    for position in range(LENGTH):
        frame = start + position
        face, patch, vector = window["face"][position], window["audio"][position], window["text"][position]
        inside = frame < N_FRAMES
        has_face = inside and not 5 <= frame < 8
        expected = np.zeros((3, 40, 40))
        if has_face:
            expected = (features.faces[frame][4:44, 4:44].astype(float).transpose(2, 0, 1) - 127.5) / 127.5
        np.testing.assert_allclose(face, expected, atol=1e-6)

        row = round(frame * 4)  # 100 Hz and 25 frames a second
        has_audio = inside and row + 96 <= len(features.log_mel)
        np.testing.assert_array_equal(patch, features.log_mel[row : row + 96] if has_audio else np.zeros((96, 64)))

        spoken = [k for k, word in enumerate(features.words) if inside and word.start_s < frame / 25 <= word.end_s]
        np.testing.assert_array_equal(vector, features.word_vectors[spoken[0]] if spoken else np.zeros(WIDTH))

        present = {"face": has_face, "audio": has_audio, "text": bool(spoken)}
        for name, there in present.items():
            assert bool(window[f"{name}_mask"][position]) == there
            seen[name] += there
    assert all(seen.values())
    assert {window[name].dtype for name in seen} == {torch.float32}


def test_video_without_sound_and_words_is_all_masked(tmp_path: Path):
    features = make_features(tmp_path / "v", make_labels(40, 0), seed=0, audio=False, words=False, width=0)
    window = cut_window(features, 0, model=ModelSettings(text_width=WIDTH), length=LENGTH, audio_alignment="centre")
    assert window["text"].shape == (LENGTH, WIDTH) and not window["text"].any() and not window["audio"].any()
    assert not window["text_mask"].any() and not window["audio_mask"].any() and window["face_mask"].any()


def test_same_seed_gives_the_same_batches_however_they_are_read(root: Path):
    videos = open_data(root).train

    def batches(workers: int, epoch: int, seed: int = 3) -> list[dict]:
        dataset = make_dataset(videos, seed=seed)
        dataset.start_epoch(epoch)
        torch.manual_seed(workers)  # the state of PyTorch's own random numbers must not matter
        return list(DataLoader(dataset, batch_sampler=SharedBatches(dataset, 4), num_workers=workers))

    first = batches(0, 1)
    assert sorted(torch.cat([batch["window"] for batch in first]).tolist()) == list(range(len(videos) * 3))
    assert all(same(one, other) for one, other in zip(first, batches(2, 1), strict=True))
    for changed in (batches(0, 2), batches(0, 1, seed=4)):
        assert [batch["window"].tolist() for batch in changed] != [batch["window"].tolist() for batch in first]

    dataset, later = make_dataset(videos), make_dataset(videos)
    later.start_epoch(1)
    assert same(dataset[2], dataset[2])
    assert any(not torch.equal(dataset[k]["face"], later[k]["face"]) for k in range(3))


def test_all_faces_of_a_training_window_have_the_same_crop_and_flip(root: Path):
    videos = open_data(root).train
    dataset = make_dataset(videos)
    features = videos[0].features()
    found = set()
    for epoch in range(12):
        dataset.start_epoch(epoch)
        faces = ((dataset[0]["face"].numpy() + 1) / 2 * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        faces = np.delete(faces, slice(5, 8), axis=0)
        stored = np.delete(features.faces[:LENGTH], slice(5, 8), axis=0)
        matches = [
            (top, left, flip)
            for top, left, flip in itertools.product(range(9), range(9), (1, -1))
            if np.array_equal(faces, stored[:, top : top + 40, left : left + 40][:, :, ::flip])
        ]
        assert len(matches) == 1
        found.add(matches[0])
    tops, lefts, flips = zip(*found, strict=True)
    assert len(set(tops)) > 3 and len(set(lefts)) > 3 and set(flips) == {1, -1}


def test_labels_stay_at_their_frames(root: Path):
    video = open_data(root).train[0]
    labels = video.labels.copy()
    labels[[3, 25]] = np.nan
    dataset = make_dataset([dataclasses.replace(video, labels=labels)])
    for index, start in enumerate([0, 20, 38]):
        np.testing.assert_array_equal(dataset[index]["labels"], labels[start : start + LENGTH])
    of_arousal = make_dataset([dataclasses.replace(video, labels=video.labels[:, 1:])])
    np.testing.assert_array_equal(of_arousal[1]["labels"], video.labels[20 : 20 + LENGTH, 1:])
    assert dataset.name(1) == "video0 from frame 20"


def test_padding_has_no_label_and_no_modality(tmp_path: Path):
    labels = make_labels(10, 0)
    make_features(tmp_path / "short", labels, seed=0)
    item = make_dataset([Video(tmp_path / "short", labels)])[0]
    assert torch.isnan(item["labels"][10:]).all() and not torch.isnan(item["labels"][:10]).any()
    assert not any(item[f"{name}_mask"][10:].any() for name in ("face", "audio", "text"))


def test_windows_without_two_labels_are_left_out(root: Path):
    video = open_data(root).train[0]
    labels = np.full_like(video.labels, np.nan)
    labels[[2, 50, 51], 0] = 0.5
    dataset = make_dataset([dataclasses.replace(video, labels=labels)])
    assert [dataset.name(k) for k in range(len(dataset))] == ["video0 from frame 20", "video0 from frame 38"]
    assert len(make_dataset([dataclasses.replace(video, labels=labels[:, 1:])])) == 0


def test_normalisation_is_that_of_all_rows_together(root: Path, tmp_path: Path):
    videos = list(open_data(root).train)
    labels = make_labels(200, 9)
    loud = make_features(tmp_path / "loud", labels, seed=9)
    log_mel = loud.log_mel.copy() + np.float16(4)
    log_mel[:30] = np.nan  # the sound starts late
    np.save(tmp_path / "loud" / "log_mel.npy", log_mel)
    videos.append(Video(tmp_path / "loud", labels))
    make_features(tmp_path / "silent", labels, seed=9, audio=False, words=False, width=0)
    videos.append(Video(tmp_path / "silent", labels))

    statistics = fit_normalisation(videos, ModelSettings(text_width=WIDTH))
    rows = np.concatenate([video.features().log_mel for video in videos]).astype(np.float64)
    rows = rows[~np.isnan(rows).any(axis=1)]
    np.testing.assert_allclose(statistics.audio_mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.audio_std, rows.std(axis=0), rtol=1e-5)
    # Frame by frame as the authors' preprocessing stores them, zeros where nobody speaks.
    text = []
    for video in videos:
        features = video.features()
        of_video = np.zeros((features.n_frames, WIDTH))
        for frame, word in enumerate(features.frame_word):
            if word >= 0:
                of_video[frame] = features.word_vectors[word]
        text.append(of_video)
    assert statistics.text_mean.shape == statistics.text_std.shape == ()
    np.testing.assert_allclose(statistics.text_mean, np.concatenate(text).mean(), rtol=1e-5)
    np.testing.assert_allclose(statistics.text_std, np.concatenate(text).std(), rtol=1e-5)
    raw = fit_normalisation(
        videos, ModelSettings.model_validate({"text_width": WIDTH, "audio": {"pretrained": "vggish.pth"}})
    )
    assert torch.equal(raw.audio_mean, torch.zeros(64)) and torch.equal(raw.audio_std, torch.ones(64))
    assert torch.equal(raw.text_mean, statistics.text_mean)


def test_normalisation_of_what_does_not_vary_divides_by_one(tmp_path: Path):
    labels = make_labels(40, 0)
    made = make_features(tmp_path / "v", labels, seed=0, words=False)
    np.save(tmp_path / "v" / "log_mel.npy", np.full_like(made.log_mel, -4.6))
    statistics = fit_normalisation([Video(tmp_path / "v", labels)], ModelSettings())
    assert statistics.audio_mean[0] == pytest.approx(-4.6, abs=1e-2)
    assert torch.equal(statistics.audio_std, torch.ones(64))
    assert (statistics.text_mean, statistics.text_std) == (0.0, 1.0)


def test_videos_are_matched_and_the_others_reported(tmp_path: Path):
    make_data(tmp_path)
    make_features(tmp_path / "features" / "spare", make_labels(9, 0), seed=0)
    (tmp_path / "features" / ".rcma-unfinished-x").mkdir()
    write_annotation(tmp_path / "annotations" / "Train_Set" / "nowhere_left.txt", make_labels(9, 0))
    write_annotation(tmp_path / "annotations" / "Train_Set" / "video0.txt", make_labels(N_FRAMES + 2, 0))
    write_annotation(tmp_path / "annotations" / "Validation_Set" / "video3.txt", make_labels(N_FRAMES - 3, 3))
    data = open_data(tmp_path)
    assert [video.video_id for video in data.train] == ["video0", "video1", "video2"]
    assert [video.video_id for video in data.validation] == ["video3", "video4"]
    assert data.text_width == WIDTH and data.preprocessing == PreprocessConfig()
    reported = "\n".join(data.warnings)
    assert len(data.warnings) == 4 and "spare" in reported and "nowhere_left" in reported
    assert "video0.txt: 72 rows for 70 decoded frames" in reported
    assert "video3.txt: 67 rows for 70 decoded frames" in reported
    assert [len(video.labels) for video in (*data.train, *data.validation)] == [N_FRAMES] * 5
    np.testing.assert_allclose(data.train[0].labels, make_labels(N_FRAMES, 0), atol=1e-4)
    assert np.isnan(data.validation[0].labels[-3:]).all() and np.isfinite(data.validation[0].labels[:-3]).all()


def test_a_video_of_both_splits_is_refused(tmp_path: Path):
    make_data(tmp_path)
    write_annotation(tmp_path / "annotations" / "Validation_Set" / "video0.txt", make_labels(N_FRAMES, 0))
    with pytest.raises(InputError, match="video0 in Train_Set and in Validation_Set"):
        open_data(tmp_path)


def test_nothing_in_common_names_both_folders(tmp_path: Path):
    make_data(tmp_path)
    make_features(tmp_path / "others" / "x", make_labels(9, 0), seed=0)
    with pytest.raises(InputError, match=r"others and .*annotations have no video in common"):
        open_training_data(data_settings(tmp_path, features=tmp_path / "others"))
    with pytest.raises(InputError, match="no such folder"):
        open_training_data(data_settings(tmp_path, features=tmp_path / "none"))


def test_a_split_without_a_label_is_refused(tmp_path: Path):
    make_data(tmp_path, n_validation=1)
    write_annotation(tmp_path / "annotations" / "Validation_Set" / "video3.txt", make_labels(N_FRAMES, 0) * np.nan)
    with pytest.raises(InputError, match=r"valence: .* has no label of it in any frame of the validation split"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (PreprocessConfig(faces=FaceSettings(size=96)), "faces.size 48, .*video1 with 96"),
        (PreprocessConfig(words=WordSettings(model="packaged")), "words.model 'bert-base-uncased', .*'packaged'"),
    ],
)
def test_mixed_features_name_folders_and_key(tmp_path: Path, config: PreprocessConfig, key: str):
    make_data(tmp_path)
    make_features(tmp_path / "features" / "video1", make_labels(N_FRAMES, 1), seed=1, config=config)
    with pytest.raises(InputError, match=rf"video0 was made with {key}"):
        open_data(tmp_path)


def test_word_vectors_of_two_widths_are_refused(tmp_path: Path):
    make_data(tmp_path)
    make_features(tmp_path / "features" / "video2", make_labels(N_FRAMES, 1), seed=1, width=9)
    with pytest.raises(InputError, match=r"word_vectors\.npy has 16 columns, .*video2/word_vectors\.npy has 9"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("kind", "size", "fits"), [("ir50", 48, True), ("ir50", 96, False), ("small", 96, True), ("small", 50, False)]
)
def test_face_size_must_suit_the_backbone(tmp_path: Path, kind: str, size: int, fits: bool):
    settings = ModelSettings.model_validate({"face": {"kind": kind}, "modalities": ["face"]})
    config = PreprocessConfig(faces=FaceSettings(size=size))
    features = make_features(tmp_path / "v", make_labels(9, 0), seed=0, config=config)
    if fits:
        check_features(settings, features)
    else:
        with pytest.raises(InputError, match=rf"faces.size: {size}"):
            check_features(settings, features)


def forget_json(root: Path) -> None:
    """Whoever opens the folders from now on, fails."""
    for path in root.rglob("words.json"):
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["here", "fork", "spawn"])
def test_a_folder_is_opened_once_for_all_windows_and_epochs(tmp_path: Path, how: str):
    make_data(tmp_path)
    expected = [item for epoch in (1, 2) for item in epoch_of(make_dataset(open_data(tmp_path).train), epoch, "here")]
    dataset = make_dataset(open_data(tmp_path).train)
    forget_json(tmp_path)
    read = [item for epoch in (1, 2) for item in epoch_of(dataset, epoch, how)]
    assert len(read) == len(expected) > 0
    assert all(same(one, other) for one, other in zip(read, expected, strict=True))


def epoch_of(dataset: WindowDataset, epoch: int, how: str) -> list[dict]:
    dataset.start_epoch(epoch)
    several = {} if how == "here" else {"num_workers": 2, "multiprocessing_context": how}
    return list(DataLoader(dataset, batch_sampler=SharedBatches(dataset, 4), **several))


def test_features_read_again_are_those_of_the_folder(tmp_path: Path):
    for audio in (True, False):
        folder = tmp_path / f"{audio}"
        config = PreprocessConfig().model_copy(update={"audio": AudioSettings(waveform=True)})
        make_features(folder, make_labels(N_FRAMES, 0), seed=0, audio=audio, words=audio, config=config)
        video, expected = Video(folder, make_labels(N_FRAMES, 0)), load_features(folder)
        for features in (video.features(), video.features(), pickle.loads(pickle.dumps(video)).features()):
            for field in dataclasses.fields(features):
                one, other = getattr(features, field.name), getattr(expected, field.name)
                if isinstance(other, np.ndarray):
                    assert one.dtype == other.dtype
                    np.testing.assert_array_equal(one, other)
                else:
                    assert str(one) == str(other)  # a word's probability may be NaN


def test_hundreds_of_videos_need_few_open_files(tmp_path: Path):
    resource = pytest.importorskip("resource")
    make_data(tmp_path)
    folder = tmp_path / "features" / "video1"
    videos = [Video(folder, make_labels(N_FRAMES, 0)) for _ in range(200)]
    dataset = make_dataset(videos)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        kept = [dataset[index]["labels"] for index in range(len(dataset))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(kept) >= 200


@pytest.mark.parametrize("change", ["longer", "gone"])
def test_features_that_change_while_they_are_in_use_are_named(tmp_path: Path, change: str):
    make_data(tmp_path)
    dataset = make_dataset(open_data(tmp_path).train)
    faces = tmp_path / "features" / "video0" / "faces.npy"
    if change == "longer":
        np.save(faces, np.zeros((N_FRAMES + 5, 48, 48, 3), np.uint8))
    else:
        faces.unlink()
    with pytest.raises(InputError, match=rf"^{faces}: "):
        dataset[0]
