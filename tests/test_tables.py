from __future__ import annotations

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest

from preprocessing.errors import InputError
from rcma.output.table import open_table, read_frames
from rcma.prediction.postprocess import Prediction


def make(video_id: str, n_frames: int) -> Prediction:
    random = np.random.default_rng(n_frames)
    values = random.uniform(-1, 1, (n_frames, 2)).astype(np.float32)
    values[0] = np.nan
    present = {m: random.random(n_frames) < 0.5 for m in ("face", "text")}
    return Prediction(video_id, np.cumsum(random.random(n_frames)), values, present)


VIDEOS = [make('a, "b"\nc', 7), make("日本語", 5)]


def with_spread(video: Prediction) -> Prediction:
    spread = np.random.default_rng(1).random((len(video.time_s), 2)).astype(np.float32)
    spread[1, 0], spread[:, 1] = np.nan, np.nan
    return replace(video, spread=spread)


def expected_rows() -> list[dict]:
    return [
        {
            "video": video.video_id,
            "frame": frame + 1,
            "time_s": video.time_s[frame],
            "valence": None if frame == 0 else video.values[frame, 0],
            "arousal": None if frame == 0 else video.values[frame, 1],
            "face": video.present["face"][frame],
            "audio": None,
            "text": video.present["text"][frame],
        }
        for video in VIDEOS
        for frame in range(len(video.time_s))
    ]


def write(path, kind):
    with open_table(path, kind) as append:
        for video in VIDEOS:
            append(video)


def test_csv_reads_back_as_it_was(tmp_path):
    write(tmp_path / "new" / "frames.csv", "csv")
    with (tmp_path / "new" / "frames.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row, expected in zip(rows, expected_rows(), strict=True):
        assert list(row) == list(expected)
        for name, value in expected.items():
            if value is None:
                assert row[name] == ""
            elif name == "video":
                assert row[name] == value
            else:
                assert float(row[name]) == pytest.approx(float(value), abs=1e-6)


def test_parquet_reads_back_as_it_was(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "frames.parquet", "parquet")
    assert pq.read_table(tmp_path / "frames.parquet").to_pylist() == expected_rows()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_disagreement_of_several_models_has_columns_of_its_own(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    videos = [with_spread(video) for video in VIDEOS]
    with open_table(tmp_path / f"frames.{kind}", kind) as append:
        for video in videos:
            append(video)
    read = read_frames(tmp_path)
    assert read.targets == ("valence", "arousal")
    assert read.values.keys() == read.spreads.keys() == {video.video_id for video in videos}
    for video in videos:
        np.testing.assert_allclose(read.time_s[video.video_id], video.time_s, atol=1e-6)
        np.testing.assert_allclose(read.values[video.video_id], video.values, atol=1e-6)
        np.testing.assert_allclose(read.spreads[video.video_id], video.spread, atol=1e-6)
    if kind == "csv":
        header = (tmp_path / "frames.csv").read_text(encoding="utf-8").splitlines()[0]
        assert header == "video,frame,time_s,valence,arousal,face,audio,text,valence_sd,arousal_sd"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_model_has_no_disagreement(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    assert read_frames(tmp_path) is None
    write(tmp_path / f"frames.{kind}", kind)
    assert read_frames(tmp_path).spreads == {}
    with open_table(tmp_path / f"frames.{kind}", kind):
        pass  # no videos at all
    assert (tmp_path / f"frames.{kind}").stat().st_size > 0
    assert read_frames(tmp_path).values == {}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", b"video,frame,time_s,valence,face,audio,text\na,1,0.0,x,1,1,1\n"),
        ("csv", b"video,frame,time_s,valence,face,audio,text\na,1\n"),
        ("csv", b"\xff\xfe\n"),
        ("parquet", b"no parquet"),
    ],
)
def test_damaged_table_is_one_line(tmp_path, kind, content):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / f"frames.{kind}").write_bytes(content)
    with pytest.raises(InputError, match=rf"frames\.{kind}: "):
        read_frames(tmp_path)


def test_a_table_of_another_program_is_none(tmp_path):
    (tmp_path / "frames.csv").write_text("video,valence\na,1\n")
    assert read_frames(tmp_path) is None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_breaks_off_leaves_nothing(tmp_path, kind):
    with pytest.raises(KeyboardInterrupt), open_table(tmp_path / "frames", kind) as append:
        append(VIDEOS[0])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_parquet_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'^--table parquet: .* pip install "rcma\[parquet\]"$'):
        write(tmp_path / "frames.parquet", "parquet")
    assert not list(tmp_path.iterdir())
