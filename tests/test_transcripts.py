"""Subtitles and Whisper's JSON as words on the video's clock."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from preprocessing.errors import InputError
from preprocessing.transcripts import find_transcript, read_transcript

SRT = """1
00:00:01,000 --> 00:00:03,000
<i>Hello</i> {\\an8}big
world!

2
01:00:00,500 --> 01:00:01,500
[door slams] - Tom &amp; café ?
"""
VTT = """WEBVTT

NOTE a comment

intro
00:01.000 --> 00:03.000 align:start position:0%
<v Bob>Hello <b>big</b> <00:02.000>world!</v>

01:00:00.500 --> 01:00:01.500
- Tom &amp; café ?
"""


def texts(transcript):
    return [word.text for word in transcript.words]


def times(transcript):
    return [(round(word.start_s, 4), round(word.end_s, 4)) for word in transcript.words]


@pytest.mark.parametrize(("name", "content"), [("a.srt", SRT), ("a.vtt", VTT)])
def test_a_cue_is_shared_by_its_words_in_proportion_to_their_length(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    transcript = read_transcript(path, offset_s=0.0)
    assert texts(transcript) == ["Hello", "big", "world!", "Tom", "&", "café?"]
    # 2 s over 5 + 3 + 6 characters, then 1 s over 3 + 1 + 5.
    edges = [1.0, 1 + 10 / 14, 1 + 16 / 14, 3.0]
    late = [3600.5, 3600.5 + 3 / 9, 3600.5 + 4 / 9, 3601.5]
    expected = [*pairwise(edges), *pairwise(late)]
    for word, (start, end) in zip(transcript.words, expected, strict=True):
        assert word.start_s == pytest.approx(start)
        assert word.end_s == pytest.approx(end)
        assert math.isnan(word.probability)
    assert transcript.language is None


def test_times_are_shifted_and_what_ends_before_zero_is_dropped(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text(SRT, encoding="utf-8")
    transcript = read_transcript(path, offset_s=-2.0)
    # "Hello" ends at 1.714, "big" lasts to 2.143.
    assert texts(transcript)[:2] == ["big", "world!"]
    assert times(transcript)[:2] == [(0.0, 0.1429), (0.1429, 1.0)]
    assert read_transcript(path, offset_s=0.25).words[0].start_s == pytest.approx(1.25)


def test_names_that_ffmpeg_could_mistake_are_read(tmp_path):
    path = tmp_path / "it's a+b: & c%20d?.srt"
    path.write_text(SRT, encoding="utf-8")
    assert len(read_transcript(path, offset_s=0.0).words) == 6


def test_text_without_spaces_is_cut_into_characters(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:05,000\n我叫做。OK カ\n", encoding="utf-8-sig")
    assert texts(read_transcript(path, offset_s=0.0)) == ["我", "叫", "做。", "OK", "カ"]


def test_overlapping_and_simultaneous_cues_keep_all_words_in_order(tmp_path):
    path = tmp_path / "a.srt"
    cue = "{}\n00:00:0{},000 --> 00:00:0{},000\n{}\n\n"
    cues = [cue.format(1, 4, 6, "late one"), cue.format(2, 1, 5, "first"), cue.format(3, 4, 6, "other two")]
    path.write_text("".join(cues), encoding="utf-8")
    transcript = read_transcript(path, offset_s=0.0)
    assert texts(transcript) == ["first", "late", "one", "other", "two"]
    assert times(transcript)[0] == (1.0, 4.0)
    assert transcript.words[-1].end_s == pytest.approx(6.0)
    assert all(a.start_s < a.end_s <= b.start_s for a, b in pairwise(transcript.words))


def test_whispers_json(tmp_path):
    path = tmp_path / "a.json"
    words = [
        {"word": " Hello,", "start": 0.5, "end": 0.9, "probability": 0.75},
        {"word": " you", "start": 0.9, "end": 0.9, "probability": 0.5},
        {"word": " there.", "start": 0.9, "end": 1.4, "probability": 1},
    ]
    segments = [
        {"start": 0.5, "end": 1.4, "text": " Hello, you there.", "words": words},
        {"start": 2.0, "end": 4.0, "text": " No words"},
    ]
    path.write_text(json.dumps({"text": "...", "segments": segments, "language": "en"}), encoding="utf-8")
    transcript = read_transcript(path, offset_s=1.0)
    assert transcript.language == "en"
    assert texts(transcript) == ["Hello,", "you", "there.", "No", "words"]
    assert [word.probability for word in transcript.words[:3]] == [0.75, 0.5, 1.0]
    assert math.isnan(transcript.words[3].probability)
    assert times(transcript)[0] == (1.5, 1.9)
    assert times(transcript)[3] == (3.0, round(3 + 4 / 7, 4))
    # A word that lasts no time is kept, for the shortest time, at the cost of the next.
    assert times(transcript)[1:3] == [(1.9, 1.92), (1.92, 2.4)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.srt", b""),
        ("a.srt", b"no subtitle at all\n"),
        ("a.srt", "1\n00:00:01,000 --> 00:00:03,000\ncafé\n".encode("latin-1")),
        ("a.vtt", b""),
        ("a.vtt", b"1\n00:00:01,000 --> 00:00:03,000\n"),
        ("a.json", b""),
        ("a.json", b"[1, 2]"),
        ("a.json", b'{"segments": [{"start": 1.0, "text": "a"}]}'),
        ("a.json", b'{"segments": [{"words": [{"word": "a", "start": "x", "end": 2}]}]}'),
        ("a.json", b'{"segments": [7]}'),
        ("a.json", b'{"segments": [], "language": 3}'),
        ("a.txt", b"hello"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_transcript(path, offset_s=0.0)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".json"])
def test_a_missing_file_is_named(tmp_path, suffix):
    path = tmp_path / f"none{suffix}"
    with pytest.raises(InputError, match="no such file"):
        read_transcript(path, offset_s=0.0)


def test_the_transcript_of_a_video_is_found_by_its_name(tmp_path):
    for name in ("a.srt", "a.b.vtt", "c.json", "d.txt"):
        (tmp_path / name).touch()
    assert find_transcript(tmp_path, "a") == tmp_path / "a.srt"
    assert find_transcript(tmp_path, "a.b") == tmp_path / "a.b.vtt"
    assert find_transcript(tmp_path, "c") == tmp_path / "c.json"
    assert find_transcript(tmp_path, "d") is None
    (tmp_path / "a.json").touch()
    with pytest.raises(InputError, match=r"a\.srt and a\.json"):
        find_transcript(tmp_path, "a")
