"""What people are told of a feature folder, in lines and in a picture."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.features.contact_sheet import draw_contact_sheet
from preprocessing.features.facts import describe
from preprocessing.features.folder import Features, Word
from preprocessing.files import WRITTEN

RATE = 25


def make(n_frames: int = 100, *, faces: bool = True, sound: bool = True, words: tuple[Word, ...] = ()) -> Features:
    """Four seconds; nobody is seen from frame 40 to 59."""
    crops = np.full((n_frames, 48, 48, 3), (200, 120, 40), np.uint8)
    box = np.tile(np.float32([10, 10, 90, 110]), (n_frames, 1))
    score = np.full(n_frames, 0.98, np.float32)
    missing = slice(40, 60) if faces else slice(None)
    crops[missing], box[missing], score[missing] = 0, np.nan, np.nan
    n_rows = n_frames * 4 + 98 if sound else 0
    meta = {
        "source": {"path": "somewhere/v.mp4", "sha256": "a" * 64},
        "n_frames": n_frames,
        "frame_rate": float(RATE),
        "width": 640,
        "height": 480,
        "audio": {
            "present": sound,
            "start_s": 0.0 if sound else None,
            "duration_s": n_frames / RATE if sound else None,
        },
        "language": "en" if words else None,
        "settings": {"words": {"model": "packaged"}, "speech": {"backend": "openai-whisper", "model": "base"}},
        "warnings": {"faces": [], "speech": ["something was odd"]},
        "seconds": {"faces": 1.0},
    }
    return Features(
        video_id="it's a+b & c? $x_1$",
        meta=meta,
        time_s=np.arange(n_frames) / RATE,
        faces=crops,
        face_box=box,
        face_score=score,
        log_mel=np.full((n_rows, 64), -1.0, np.float16),
        words=words,
        word_vectors=np.zeros((len(words), 8 if words else 0), np.float16),
        frame_word=np.full(n_frames, -1, np.int32),
    )


WORDS = (Word("$one_", 1.0, 1.5, 0.9), Word("二つ", 1.5, 2.0, 0.3), Word("three.", 3.0, 3.4, math.nan))


def test_lines_say_what_is_there() -> None:
    lines = describe(make(words=WORDS))
    told = dict(lines)
    assert told["faces"] == "80.0 % of frames"
    assert told["longest without face"] == "1.60 to 2.40 s"
    assert told["face side"] == "90 pixels (median)"
    assert told["duration"] == "4.00 s"
    assert told["frame times"] == "regular, 40.0 ms apart"
    assert told["sound"] == "0.00 to 4.00 s (4.00 s)"
    assert told["words"] == "3"
    assert told["word probability"] == "0.60 mean, 1 of 3 below 0.5"
    assert told["first words"] == "$one_ 二つ three."
    assert ("warning", "speech: something was odd") in lines


def test_irregular_times_are_told() -> None:
    features = make()
    times = features.time_s.copy()
    times[50:] += 0.5
    told = dict(describe(replace(features, time_s=times)))
    assert told["frame times"] == "irregular, 40.0 / 40.0 / 540.0 ms apart (least / median / most)"


def test_what_is_missing_is_told() -> None:
    told = dict(describe(make(faces=False, sound=False)))
    assert told["faces"] == "0.0 % of frames"
    assert told["longest without face"] == "0.00 to 4.00 s, the whole video"
    assert (told["sound"], told["log-mel"], told["words"]) == ("none", "0 rows", "0")
    provided = make()
    told = dict(describe(replace(provided, face_box=np.full_like(provided.face_box, np.nan))))
    assert told["face side"] == "not known"


def pixels(features: Features, path: Path) -> np.ndarray:
    draw_contact_sheet(features, path)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_waveform_is_told_where_it_is_stored() -> None:
    features = make()
    assert "waveform" not in dict(describe(features))
    waveform = np.zeros(160 * len(features.log_mel), np.float16)
    waveform[: len(waveform) // 4] = np.nan
    told = dict(describe(replace(features, waveform=waveform)))
    assert told["waveform"] == f"{len(waveform)} samples at 16000 Hz, 25.0 % NaN"


def columns_of(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Columns in which a good part of the pixels has a colour."""
    return np.flatnonzero(np.all(np.abs(picture - colour) <= 2, axis=2).mean(axis=0) > 0.1)


def test_sheet_shows_faces_where_they_are(tmp_path: Path) -> None:
    with_faces, without = (pixels(make(faces=there), tmp_path / "sheet.png") for there in (True, False))
    assert with_faces.shape == without.shape
    shown = columns_of(with_faces, (200, 120, 40))
    place = (shown - shown.min()) / np.ptp(shown)
    assert len(shown) > 0.7 * np.ptp(shown)
    assert not ((place > 0.42) & (place < 0.58)).any()
    assert not len(columns_of(without, (200, 120, 40)))


def test_word_is_drawn_at_its_time(tmp_path: Path) -> None:
    word, whole = Word("hello", 1.0, 2.0, 0.9), Word("hello", 0.0, 4.0, 0.9)
    changed = {}
    for given in (word, whole):
        pictures = [
            pixels(make(words=(replace(given, probability=probability),)), tmp_path / "sheet.png")
            for probability in (0.9, 0.1)
        ]
        changed[given] = np.flatnonzero((pictures[0] != pictures[1]).any(axis=(0, 2)))
    first, width = changed[whole].min(), np.ptp(changed[whole])
    assert changed[word].min() - first == pytest.approx(0.25 * width, abs=3)
    assert changed[word].max() - first == pytest.approx(0.5 * width, abs=3)


@pytest.mark.parametrize(
    "features",
    [make(1), make(2), make(faces=False, sound=False), make(words=WORDS), make(3000)],
    ids=["one frame", "two frames", "nothing", "odd words", "two minutes"],
)
def test_any_features_can_be_drawn(
    features: Features, tmp_path: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pixels(features, tmp_path / "sheet.png").shape[1] == 1600
    assert dict(describe(features))["frames"] == str(features.n_frames)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [WRITTEN, "sheet.png"]


def test_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    draw_contact_sheet(make(), path)
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        draw_contact_sheet(make(faces=False), path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [WRITTEN, "sheet.png"]
