"""One video_id for each name, however it is spelt, in every file that names a video."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from made_features import data_settings, make_data, make_features, make_labels, write_annotation

from preprocessing.cli import main
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features
from preprocessing.inputs import collect_sources
from preprocessing.names import as_video_id, by_video_id, video_id_of
from rcma.abaw import find_annotations, read_predictions, read_template, write_per_video, write_single_file
from rcma.data.training_data import open_training_data

NO_SPEECH = ["--set", "speech.backend=none", "--device", "cpu", "--workers", "1"]
NAME = "première_Ängström_한국"
NFC, NFD = unicodedata.normalize("NFC", NAME), unicodedata.normalize("NFD", NAME)


def same_file_system_name(folder: Path) -> bool:
    """Whether this file system takes NFC and NFD for one name."""
    (folder / "probe_é").touch()
    return (folder / unicodedata.normalize("NFD", "probe_é")).exists()


@pytest.mark.parametrize(
    ("name", "video_id"),
    [
        (NFD, NFC),
        (NFC, NFC),
        ("plain-1 (2)", "plain-1 (2)"),
        ("👩‍👧 emoji", "👩‍👧 emoji"),
        ("two\nlines\tand\x1b[31m", "two\\nlines\\tand\\x1b[31m"),
        ("line\u2028separator", "line\\u2028separator"),
    ],
)
def test_video_id_is_one_line_of_composed_text(name: str, video_id: str) -> None:
    assert as_video_id(name) == video_id
    assert as_video_id(video_id) == video_id
    assert video_id_of(Path(f"folder/{name}.mp4")) == video_id


def test_bytes_that_are_no_text_are_spelt_out() -> None:
    if sys.getfilesystemencoding() != "utf-8":
        pytest.skip("names of files are not UTF-8 here")
    video_id = as_video_id(os.fsdecode(b"caf\xe9"))
    assert video_id == "caf\\xe9"


def test_two_spellings_are_refused_as_one_name(tmp_path: Path) -> None:
    named = [(as_video_id(name), Path(f"{name}.mp4")) for name in (NFC, NFD)]
    with pytest.raises(InputError) as error:
        by_video_id(named)
    assert f"{NFC}.mp4" in str(error.value) and f"{NFD}.mp4" in str(error.value)
    if not same_file_system_name(tmp_path):
        for name in (NFC, NFD):
            (tmp_path / f"{name}.mp4").touch()
            (tmp_path / f"{name}.txt").touch()
        with pytest.raises(InputError, match="would both be"):
            collect_sources([tmp_path])
        with pytest.raises(InputError, match="would both be"):
            find_annotations(tmp_path)


def test_decomposed_names_find_their_faces_annotations_subjects_and_rows(tmp_path: Path) -> None:
    faces = tmp_path / "faces" / f"{NFD}_left"
    faces.mkdir(parents=True)
    video = tmp_path / "videos" / f"{NFC}.mp4"
    video.parent.mkdir()
    video.touch()
    (source,) = collect_sources([video], cropped_aligned=tmp_path / "faces")
    assert source.provided_faces is not None
    assert list(source.provided_faces) == [f"{NFC}_left"]
    assert source.provided_faces[f"{NFC}_left"].samefile(faces)

    values = np.float32([[0.5, -0.5], [0.25, 0.125]])
    write_per_video(tmp_path / "per-video", NFD, values)
    write_single_file(tmp_path / "all.txt", {NFD: values})
    assert list(read_predictions(tmp_path / "per-video")) == [NFC]
    assert list(read_predictions(tmp_path / "all.txt")) == [NFC]
    template = read_template(tmp_path / "all.txt")
    assert {location.video_id for location in template} == {NFC}
    write_single_file(tmp_path / "filled.txt", {NFC: values}, template=template)
    assert (tmp_path / "filled.txt").read_bytes() == (tmp_path / "all.txt").read_bytes()


def test_training_matches_features_annotations_and_subjects_in_any_spelling(tmp_path: Path) -> None:
    make_data(tmp_path, n_train=6)
    labels = make_labels(40, seed=9)
    make_features(tmp_path / "features" / NFD, labels, seed=9)
    write_annotation(tmp_path / "annotations" / "Train_Set" / f"{NFC}.txt", labels)
    names = [*(f"video{k}" for k in range(8)), NFD]
    table = tmp_path / "subjects.csv"
    # As a spreadsheet saves it where decimals have a comma.
    rows = "".join(f"{name};s{k}\r\n" for k, name in enumerate(names))
    table.write_text(f"Video;Subject \r\n{rows}", encoding="utf-8-sig", newline="")
    data = open_training_data(data_settings(tmp_path, fold=1, folds="subject-disjoint", subjects=table))
    videos = {video.video_id: video for video in (*data.train, *data.validation)}
    assert set(videos) == {*names[:-1], NFC}
    assert videos[NFC].features().video_id == NFC
    np.testing.assert_allclose(videos[NFC].labels, labels, atol=1e-4)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("video,subject\nvideo0,a\nvideo0,b\n", "video0 has a second subject"),
        ("name,person\nvideo0,a\n", "columns video and subject"),
        ("", "is empty"),
        ("video,subject\nvideo0,a\n", "names no subject for"),
        ("video,subject\nvideo0\n", "line 2"),
        ("video,subject\nvideo0,\n", "names no subject for"),
    ],
)
def test_table_of_subjects_that_is_not_right_is_refused(tmp_path: Path, table: str, says: str) -> None:
    make_data(tmp_path, n_train=6)
    path = tmp_path / "subjects.csv"
    path.write_text(table)
    with pytest.raises(InputError, match=says) as error:
        open_training_data(data_settings(tmp_path, fold=1, folds="subject-disjoint", subjects=path))
    assert str(path) in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [NFD, "two\nlines, a comma", "x" * 251, "é" * 125, os.fsdecode(b"caf\xe9"), "ends in a space "],
    ids=["decomposed", "line break", "251 bytes", "250 bytes", "no UTF-8", "space"],
)
def test_every_name_gets_a_feature_folder(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    video = tmp_path / "videos" / f"{name}.mp4"
    video.parent.mkdir()
    try:
        shutil.copy(short_clip, video)
    except OSError:
        pytest.skip("this file system does not take the name")
    out = tmp_path / "features"
    assert main([str(video.parent), "--out", str(out), *NO_SPEECH]) == 0
    (folder,) = out.iterdir()
    features = load_features(folder)
    assert features.video_id == as_video_id(name) == folder.name
    assert Path(features.meta["source"]["path"]) == video
    assert main([str(video), "--out", str(out), *NO_SPEECH]) == 0
    assert "already done: 1 of 1 videos" in capsys.readouterr().err
