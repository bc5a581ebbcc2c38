from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from preprocessing.errors import InputError
from preprocessing.files import WRITTEN
from rcma.abaw import (
    Location,
    find_annotations,
    find_split,
    read_annotation,
    read_predictions,
    read_template,
    reconcile,
    require_writable_ids,
    write_per_video,
    write_single_file,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def predictions(*lengths: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"video{k}": random.uniform(-1, 1, (n, 2)).astype(np.float32) for k, n in enumerate(lengths)}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n\n", ""])
def test_annotation_rows_stay_at_their_frames(tmp_path: Path, end: str):
    newline = "\r\n" if end == "\r\n" else "\n"
    text = newline.join(["valence,arousal", "0.5,-1", "-5,-5", "-5,0.2", "1, -0.25"]) + end
    read = read_annotation(write(tmp_path / "a.txt", text))
    nan = np.nan
    np.testing.assert_array_equal(read, np.float32([[0.5, -1], [nan, nan], [nan, nan], [1, -0.25]]))
    assert read.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("0.1,0.2\n", "line 1"),
        ("valence,arousal\n0.1,0.2\n0.3\n", "line 3"),
        ("valence,arousal\n0.1,0.2,0.3\n", "line 2"),
        ("valence,arousal\n0.1,0.2\n\n0.1,0.2\n", "line 3"),
        ("valence,arousal\n0.1,zero\n", "line 2"),
        ("valence,arousal\n0.1,nan\n", "line 2"),
        ("valence,arousal\n0.1,1.01\n", "line 2"),
        ("valence,arousal\n-4.9,0\n", "line 2"),
        ("valence,arousal\n", "no rows"),
        ("", "empty file"),
        ("\xff\xfe", "line 1"),
    ],
)
def test_wrong_annotation_is_refused_with_file_and_line(tmp_path: Path, text: str, where: str):
    path = write(tmp_path / "video.txt", text)
    with pytest.raises(InputError) as error:
        read_annotation(path)
    assert str(path) in str(error.value) and where in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_annotation_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.txt"):
        read_annotation(tmp_path / "none.txt")


@pytest.mark.parametrize("above", ["", "VA_Estimation_Challenge/"])
def test_splits_are_found_at_both_places(tmp_path: Path, above: str):
    for path in ("Train_Set/b.txt", "Train_Set/a.b.txt", "Train_Set/._b.txt", "Validation_Set/c.txt"):
        write(tmp_path / above / path, "valence,arousal\n0,0\n")
    assert list(find_split(tmp_path, "train")) == ["a.b", "b"]
    assert list(find_split(tmp_path, "validation")) == ["c"]
    with pytest.raises(InputError, match="Test_Set"):
        find_split(tmp_path, "test")


def test_split_of_a_folder_that_is_not_there_says_what_is_expected(tmp_path: Path):
    with pytest.raises(InputError, match=r"no such folder.*VA_Estimation_Challenge/Train_Set/"):
        find_split(tmp_path / "none", "train")
    (tmp_path / "Train_Set").mkdir()
    with pytest.raises(InputError, match="no annotations"):
        find_split(tmp_path, "train")


def test_per_video_file_is_one_line_per_frame(tmp_path: Path):
    write_per_video(tmp_path / "new", "it's a+b", np.float32([[0.5, -0.25], [1, -1], [0, 1e-9]]))
    text = (tmp_path / "new" / "it's a+b.txt").read_bytes()
    assert text == b"valence,arousal\n0.500000,-0.250000\n1.000000,-1.000000\n0.000000,0.000000\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [WRITTEN, "it's a+b.txt"]


@pytest.mark.parametrize("values", [[[0.0, np.nan]], [[0.0, 1.5]], [[0.0]], [0.0, 0.0]])
def test_predictions_outside_the_range_are_refused(tmp_path: Path, values: list):
    with pytest.raises(ValueError, match="video"):
        write_per_video(tmp_path, "video", np.array(values))
    assert not list(tmp_path.iterdir())


def test_per_video_files_read_back(tmp_path: Path):
    made = predictions(3, 250)
    for video_id, values in made.items():
        write_per_video(tmp_path, video_id, values)
    (tmp_path / "scores.json").write_text("{}")
    read = read_predictions(tmp_path)
    assert read.keys() == made.keys()
    for video_id, values in made.items():
        np.testing.assert_allclose(read[video_id], values, atol=5e-7)


@pytest.mark.parametrize("as_folder", [False, True])
def test_single_file_reads_back(tmp_path: Path, as_folder: bool):
    made = predictions(3, 250)
    write_single_file(tmp_path / "predictions.txt", made)
    lines = (tmp_path / "predictions.txt").read_text().splitlines()
    assert lines[0] == "image_location,valence,arousal"
    assert [line.split(",")[0] for line in (lines[1], lines[3], lines[4], lines[-1])] == [
        "video0/00001.jpg", "video0/00003.jpg", "video1/00001.jpg", "video1/00250.jpg",
    ]  # fmt: skip
    read = read_predictions(tmp_path if as_folder else tmp_path / "predictions.txt")
    for video_id, values in made.items():
        np.testing.assert_allclose(read[video_id], values, atol=5e-7)


def test_frames_that_a_single_file_leaves_out_are_nan(tmp_path: Path):
    path = write(tmp_path / "p.txt", "image_location,valence,arousal\nv/00004.jpg,0.4,0\nv/00002.jpg,0.2,0\n")
    read = read_predictions(path)["v"]
    np.testing.assert_array_equal(read[:, 0], np.float32([np.nan, 0.2, np.nan, 0.4]))


@pytest.mark.parametrize(
    "row",
    ["v/00001.jpg,0.4", "v/0000x.jpg,0,0", "v/00000.jpg,0,0", "00001.jpg,0,0", "v/00001.jpg,0,-5", "v/00002.jpg,0,0"],
)
def test_wrong_single_file_is_refused_with_its_line(tmp_path: Path, row: str):
    path = write(tmp_path / "p.txt", f"image_location,valence,arousal\nv/00002.jpg,0.2,0\n{row}\n")
    with pytest.raises(InputError, match=r"p\.txt, line 3"):
        read_predictions(path)


def test_missing_or_mixed_predictions_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such predictions"):
        read_predictions(tmp_path / "none")
    write_single_file(tmp_path / "all.txt", predictions(2))
    write_per_video(tmp_path, "video0", predictions(2)["video0"])
    with pytest.raises(InputError, match=r"all\.txt"):
        read_predictions(tmp_path)
    with pytest.raises(InputError, match="line 2: value of -5"):
        read_predictions(write(tmp_path / "v.txt", "valence,arousal\n-5,-5\n"))


@pytest.mark.parametrize("columns", ["", ",0,0", ",,"])
@pytest.mark.parametrize("header", ["", "image_location,valence,arousal\n", "image_location\n"])
def test_template_is_filled_row_by_row_in_its_order(tmp_path: Path, header: str, columns: str):
    wanted = ["video1/00002.jpg", "video1/00001.jpg", "video0/00003.jpg"]
    sample = write(tmp_path / "sample.txt", header + "".join(f"{row}{columns}\n" for row in wanted))
    made = predictions(3, 9)
    write_single_file(tmp_path / "out.txt", made, template=read_template(sample))
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[0] == "image_location,valence,arousal"
    assert [line.split(",")[0] for line in lines[1:]] == wanted
    values = [[float(cell) for cell in line.split(",")[1:]] for line in lines[1:]]
    np.testing.assert_allclose(values, [made["video1"][1], made["video1"][0], made["video0"][2]], atol=5e-7)


def test_template_that_is_not_covered_names_every_video(tmp_path: Path):
    rows = "video0/00003.jpg\nvideo0/00004.jpg\nvideo1/00001.jpg\nother_left/00001.jpg\nthird/00001.jpg\n"
    template = read_template(write(tmp_path / "sample.txt", rows))
    with pytest.raises(InputError) as error:
        write_single_file(tmp_path / "out.txt", predictions(3, 9), template=template)
    for part in ("video0: 3 frames predicted, 4 needed", "other_left: no", "third: no"):
        assert part in str(error.value)
    assert "video1" not in str(error.value)
    reconcile(template[2:3], {"video1": 1})
    with pytest.raises(InputError, match="video1: 0 frames predicted, 1 needed"):
        reconcile(template[2:3], {"video1": 0})
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    "rows", ["v/00001.jpg\nv/00002.jpg\nv/00001.jpg\n", "v\n", "", "image_location,valence,arousal\n"]
)
def test_wrong_template_is_refused(tmp_path: Path, rows: str):
    with pytest.raises(InputError, match=r"sample\.txt"):
        read_template(write(tmp_path / "sample.txt", rows))


def sample(tmp_path: Path, video_id: str, n_rows: int) -> list[Location]:
    rows = "".join(f"{video_id}/{frame:05d}.jpg,,\n" for frame in range(1, n_rows + 1))
    return read_template(write(tmp_path / "sample.txt", f"image_location,valence,arousal\n{rows}"))


def test_differences_of_length_are_spelled_out(tmp_path: Path):
    template = sample(tmp_path, "a", 300)
    assert reconcile(template, {"a": 300}) == []
    assert reconcile(template, {"a": 302, "b": 5}) == [
        "a: 302 frames, the sample asks for 300 of them: 2 left out",
        "b: not in the sample: left out",
    ]
    assert reconcile(template, {"a": 297}) == [
        "a: 297 frames, the sample asks for 300: the last prediction is repeated"
    ]
    with pytest.raises(InputError, match="a: 296 frames predicted, 300 needed"):
        reconcile(template, {"a": 296})


def test_a_row_or_two_beyond_the_last_frame_repeat_it(tmp_path: Path):
    values = np.linspace(-1, 1, 198 * 2, dtype=np.float32).reshape(198, 2)
    write_single_file(tmp_path / "out.txt", {"a": values}, template=sample(tmp_path, "a", 200))
    read = read_predictions(tmp_path / "out.txt")["a"]
    np.testing.assert_array_equal(read[197:], [read[197]] * 3)
    np.testing.assert_allclose(read[:198], values, atol=5e-7)


@pytest.mark.parametrize(
    "header", ["Image_location,Valence,Arousal", "Image_Location, valence, arousal", "image location"]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_header_may_be_spelt_in_other_letters(tmp_path: Path, header: str, mark: str):
    rows = "v/00001.jpg,0.5,0\nv/00002.jpg,0.25,0\n"
    path = write(tmp_path / "p.txt", f"{mark}{header}\n{rows}")
    assert [location.text for location in read_template(path)] == ["v/00001.jpg", "v/00002.jpg"]
    if "," in header:
        np.testing.assert_array_equal(read_predictions(path)["v"][:, 0], np.float32([0.5, 0.25]))
        np.testing.assert_array_equal(read_predictions(tmp_path)["v"][:, 0], np.float32([0.5, 0.25]))
    labels = write(tmp_path / "a.TXT", f"{mark}Valence, Arousal\n0.5,0\n")
    np.testing.assert_array_equal(read_annotation(labels), np.float32([[0.5, 0]]))


def test_annotations_are_found_whatever_the_case_of_their_ending(tmp_path: Path):
    for name in ("a.txt", "B.TXT", "notes.md"):
        write(tmp_path / name, "valence,arousal\n0,0\n")
    assert list(find_annotations(tmp_path)) == ["B", "a"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str):
    path = tmp_path / "sample.txt"
    path.write_bytes("image_location,valence,arousal\nétude/00001.jpg,0,0\n".encode(encoding))
    for reader in (read_template, read_predictions, read_annotation):
        with pytest.raises(InputError, match=r"sample\.txt.*UTF-8"):
            reader(path)


READABLE = ["a b", "it's", "a;b", 'say "x"', "два", "-dash", "#1", "a\\b", "a:b", "100%"]
UNREADABLE = ["a,b", ",", '"quoted" name', " space first", "two\nlines", "two\rlines", "line\u2028separator"]


@pytest.mark.parametrize("name", READABLE)
def test_rows_of_a_single_file_read_the_same_for_all(tmp_path: Path, name: str):
    made = {name: predictions(3)["video0"]}
    write_single_file(tmp_path / "p.txt", made)
    text = (tmp_path / "p.txt").read_text(encoding="utf-8")
    for rows in (list(csv.reader(io.StringIO(text))), [line.split(",") for line in text.split("\n")[:-1]]):
        assert rows[0] == ["image_location", "valence", "arousal"]
        assert [row[0] for row in rows[1:]] == [f"{name}/{frame:05d}.jpg" for frame in (1, 2, 3)]
    np.testing.assert_allclose(read_predictions(tmp_path / "p.txt")[name], made[name], atol=5e-7)


def test_names_that_would_break_the_rows_of_a_single_file_are_refused(tmp_path: Path):
    values = predictions(3)["video0"]
    with pytest.raises(InputError) as error:
        write_single_file(tmp_path / "p.txt", dict.fromkeys((*READABLE, *UNREADABLE), values))
    assert all(repr(name) in str(error.value) for name in UNREADABLE)
    assert not any(repr(name) in str(error.value) for name in READABLE)
    assert not list(tmp_path.iterdir())
    require_writable_ids(["a,b"], "per-video")
    require_writable_ids(["a,b"], None)
    # The rows of a sample name its videos; others are left out of the file.
    write_single_file(tmp_path / "p.txt", {"a,b": values, "v": values}, template=sample(tmp_path, "v", 3))


def test_names_that_leave_no_room_for_an_ending_are_refused():
    require_writable_ids(["x" * 251, "é" * 125], "per-video")
    with pytest.raises(InputError, match="too long"):
        require_writable_ids(["short", "x" * 252], "per-video")
