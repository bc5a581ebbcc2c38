"""The feature folder: round trip, whole or not at all, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_features import make_meta

from preprocessing.errors import InputError
from preprocessing.features.folder import Features, Word, load_features, own_source, save_features
from preprocessing.files import whole_or_nothing


def make_features(n_frames: int = 7, n_words: int = 2, width: int = 4) -> Features:
    rng = np.random.default_rng(0)
    return Features(
        video_id="a b",
        meta=make_meta(n_frames),
        time_s=np.arange(n_frames) / 25.0,
        faces=rng.integers(0, 256, (n_frames, 16, 16, 3), dtype=np.uint8),
        face_box=rng.random((n_frames, 4), dtype=np.float32),
        face_score=np.full(n_frames, np.nan, dtype=np.float32),
        log_mel=rng.random((30, 64)).astype(np.float16),
        words=tuple(
            Word(text=f"w{i}.", start_s=0.1 * i, end_s=0.1 * i + 0.05, probability=math.nan) for i in range(n_words)
        ),
        word_vectors=rng.random((n_words, width)).astype(np.float16),
        frame_word=np.full(n_frames, -1, dtype=np.int32),
    )


@pytest.mark.parametrize(("n_words", "width", "n_mel"), [(2, 4, 30), (0, 4, 30), (0, 0, 0)])
def test_what_is_saved_comes_back(tmp_path: Path, n_words: int, width: int, n_mel: int) -> None:
    features = replace(make_features(n_words=n_words, width=width), log_mel=np.zeros((n_mel, 64), dtype=np.float16))
    save_features(tmp_path / "a b", features)
    loaded = load_features(tmp_path / "a b")
    assert loaded.video_id == "a b"
    for name in ("time_s", "faces", "face_box", "face_score", "log_mel", "word_vectors", "frame_word"):
        before, after = getattr(features, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert [(w.text, w.start_s, w.end_s) for w in loaded.words] == [
        (w.text, w.start_s, w.end_s) for w in features.words
    ]
    assert all(math.isnan(word.probability) for word in loaded.words)
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]


@pytest.mark.parametrize("n_mel", [30, 0])
def test_a_waveform_comes_back_where_there_is_one(tmp_path: Path, n_mel: int) -> None:
    waveform = np.linspace(-1, 1, 160 * n_mel).astype(np.float16)
    features = replace(make_features(), log_mel=np.zeros((n_mel, 64), np.float16), waveform=waveform)
    save_features(tmp_path / "v", features)
    loaded = load_features(tmp_path / "v")
    assert loaded.waveform is not None
    assert loaded.waveform.dtype == np.float16
    np.testing.assert_array_equal(loaded.waveform, waveform)
    save_features(tmp_path / "v", replace(features, waveform=None))
    assert load_features(tmp_path / "v").waveform is None
    assert not (tmp_path / "v" / "waveform.npy").exists()


def test_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    save_features(tmp_path / "v", make_features())
    with pytest.raises(RuntimeError, match="disk"), whole_or_nothing(tmp_path / "v", check=own_source) as partial:
        (partial / "meta.json").write_text("{}")
        raise RuntimeError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    assert load_features(tmp_path / "v").n_frames == 7


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("faces", np.zeros((6, 16, 16, 3), np.uint8)),
        ("face_box", np.zeros((7, 4), np.float64)),
        ("frame_word", np.zeros((7, 1), np.int32)),
        ("word_vectors", np.zeros((3, 4), np.float16)),
        ("waveform", np.zeros(160 * 29, np.float16)),
        ("waveform", np.zeros(160 * 30, np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_on_both_sides(tmp_path: Path, name: str, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=name):
        save_features(tmp_path / "v", replace(make_features(), **{name: array}))
    assert not any(tmp_path.iterdir())
    save_features(tmp_path / "v", make_features())
    np.save(tmp_path / "v" / f"{name}.npy", array)
    with pytest.raises(InputError, match=rf"{name}\.npy"):
        load_features(tmp_path / "v")


def test_other_format_version_is_refused(tmp_path: Path) -> None:
    save_features(tmp_path / "v", make_features())
    meta = json.loads((tmp_path / "v" / "meta.json").read_text())
    (tmp_path / "v" / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(InputError, match=r"feature format 99, but this version reads format 2"):
        load_features(tmp_path / "v")


def test_missing_files_are_listed(tmp_path: Path) -> None:
    save_features(tmp_path / "v", make_features())
    (tmp_path / "v" / "faces.npy").unlink()
    (tmp_path / "v" / "words.json").unlink()
    with pytest.raises(InputError, match=r"words\.json, faces\.npy missing"):
        load_features(tmp_path / "v")
    with pytest.raises(InputError, match="no such feature folder"):
        load_features(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_damaged_array_is_one_line(tmp_path: Path, content: bytes) -> None:
    save_features(tmp_path / "v", make_features())
    (tmp_path / "v" / "faces.npy").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_features(tmp_path / "v")
