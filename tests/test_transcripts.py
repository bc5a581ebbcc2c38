"""Subtitles and Whisper's JSON as words on the video's clock."""

from __future__ import annotations

import json
import math
import unicodedata
from itertools import pairwise

import pytest

from preprocessing.errors import InputError
from preprocessing.speech.transcripts import find_transcript, read_transcript

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
    # 2 s over 5 + 3 + 6 characters, then 1 s over 3 + 1 + 5. The .vtt itself says when the third word begins.
    edges = [1.0, 1 + 10 / 14, 1 + 16 / 14, 3.0] if name == "a.srt" else [1.0, 1 + 5 / 8, 2.0, 3.0]
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
        ("a.vtt", b"WEBVTT\n\n1\nHello\n"),
        ("a.json", b""),
        ("a.json", b"[1, 2]"),
        ("a.json", b'{"segments": [{"text": "a"}]}'),
        ("a.json", b'{"words": [{"word": "a"}, {"word": "b", "start": NaN}]}'),
        ("a.json", b'{"text": "a"}'),
        ("a.json", b'{"segments": [{"words": [{"start": 1}]}]}'),
        ("a.json", b'{"segments": [{"start": 1' + b"0" * 400 + b', "text": "a"}]}'),
        ("a.json", b"[" * 100_000),
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
    with pytest.raises(InputError, match=f"none\\{suffix}"):
        read_transcript(path, offset_s=0.0)


# --- subtitles as they come


def read(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return read_transcript(path, **{"offset_s": 0.0, **options})


def cue(start, end, text, number=1):
    return f"{number}\n00:00:{start} --> 00:00:{end}\n{text}\n\n"


ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:01.000 --> 00:00:03.000 align:start position:0%
{blank}
rain<00:00:01.500><c> falls</c><00:00:02.100><c.colorE5E5E5> on</c>

00:00:03.000 --> 00:00:03.010 align:start position:0%
rain falls on
{blank}

00:00:03.010 --> 00:00:05.000 align:start position:0%
rain falls on
the<00:00:03.500><c> roof</c>

00:00:05.000 --> 00:00:05.010 align:start position:0%
the roof
{blank}

00:00:05.010 --> 00:00:06.000 align:start position:0%
the roof
again
"""


@pytest.mark.parametrize("blank", [" ", ""])
def test_captions_that_roll_give_each_word_once_at_its_own_time(tmp_path, blank):
    transcript = read(tmp_path / "a.vtt", ROLLING.format(blank=blank))
    assert texts(transcript) == ["rain", "falls", "on", "the", "roof", "again"]
    starts = [word.start_s for word in transcript.words]
    assert starts == pytest.approx([1.0, 1.5, 2.1, 3.01, 3.5, 5.01])
    assert transcript.words[2].end_s == pytest.approx(3.0)
    assert transcript.language == "en"
    assert len(transcript.warnings) == 1


def test_captions_that_grow_give_each_word_once(tmp_path):
    lines = ["so", "so what", "so what happened", "so what happened then"]
    content = "".join(cue(f"0{n},000", f"0{n + 1},000", line) for n, line in enumerate(lines))
    transcript = read(tmp_path / "a.srt", content)
    assert texts(transcript) == ["so", "what", "happened", "then"]
    assert [word.start_s for word in transcript.words] == [0.0, 1.0, 2.0, 3.0]


def test_what_is_said_twice_is_kept_twice(tmp_path):
    said = ["No.", "No.", "You did.", "Did what?", "What?"]
    content = "".join(cue(f"0{n},000", f"0{n + 1},000", line) for n, line in enumerate(said))
    transcript = read(tmp_path / "a.srt", content)
    assert texts(transcript) == " ".join(said).split()
    assert transcript.warnings == ()


def test_a_cue_that_is_there_twice_counts_once(tmp_path):
    once = cue("01,000", "02,000", "Good day.") + cue("02,000", "03,000", "Well?")
    transcript = read(tmp_path / "a.srt", once + once)
    assert texts(transcript) == ["Good", "day.", "Well?"]
    assert "2" in transcript.warnings[0]


def test_times_that_cannot_be_lose_no_word_and_no_order(tmp_path):
    content = (
        "1\n-00:00:05,000 --> -00:00:04,000\nNever seen\n\n2\n-00:00:01,000 --> 00:00:00,400\nEarly words\n\n"
        + cue("02,000", "01,000", "These go back")
        + cue("03,000", "03,000", "No time")
    )
    transcript = read(tmp_path / "a.srt", content)
    assert texts(transcript) == ["Early", "words", "These", "go", "back", "No", "time"]
    assert times(transcript)[:2] == [(0.0, 0.2), (0.2, 0.4)]
    assert (transcript.words[2].start_s, transcript.words[4].end_s) == pytest.approx((1.0, 2.0))
    assert transcript.words[5].start_s == 3.0
    assert 3.1 < transcript.words[6].end_s < 4.0
    (told,) = transcript.warnings
    assert told.startswith("a.srt: ")
    assert told.count(": 1") == 3
    assert told.endswith("words before the first frame left out: 2")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("JOHN: Hello there.\n(laughs) >> Yes, sir. *sighs* #music#", "Hello there. Yes, sir."),
        ("[DR. SMITH]: Sit down.\n(ANNA): Why?", "Sit down. Why?"),
        ('<v Bob>Come in</v>, <font color="#fff">please</font>', "Come in, please"),
        (">>>Breaking news\n>> and -- the weather", "Breaking news and the weather"),
        ("- No.\n-Yes!\n– Perhaps\n-5 degrees", "No. Yes! Perhaps -5 degrees"),
        ("♪ la la la ♪ Stop!\n♫ to the end of the line", "Stop!"),
        ("♪ over\ntwo lines ♪\nHello ♪", "Hello"),
        ("[upbeat\nmusic] One （笑） two【拍手】", "One two"),
        ("{\\an8}{\\i1}up{\\i0}\\Nthere<br>now", "up there now"),
        ("Speaker 1: Hi.\nSPEAKER_02: Hello.\nJOHN (whispers): Yes.", "Hi. Hello. Yes."),
        ("5 &lt; 6 &amp; 7 > 3, f**k you", "5 6 & 7 3, f**k you"),
        ("At 10:30: AT&amp;T is up 5 %", "At 10:30: AT&T is up 5 %"),
        ("Listen: this is no name", "Listen: this is no name"),
        ("“Quoted” « mot » 😂 ?", "“Quoted” mot»?"),
        ("a\u200bb \u202bc\u202c \ufeff d", "ab c d"),
    ],
)
def test_only_what_is_said_becomes_words(tmp_path, text, spoken):
    transcript = read(tmp_path / "a.srt", cue("01,000", "02,000", text))
    assert " ".join(texts(transcript)) == spoken


def test_what_was_left_out_is_counted(tmp_path):
    content = cue("01,000", "02,000", "JOHN: Well (laughs)") + cue("02,000", "03,000", "ANNA: [MUSIC] Well *sighs*")
    transcript = read(tmp_path / "a.srt", content)
    assert texts(transcript) == ["Well", "Well"]
    (told,) = transcript.warnings
    assert "sounds left out: 3" in told
    assert "speaker names left out: 2" in told


def test_names_in_small_letters_are_known_by_coming_again(tmp_path):
    turns = ["Interviewer: How are you?", "Anna Lee: Fine.", "Interviewer: Really?", "Anna Lee: Yes: fine."]
    content = "".join(cue(f"0{n},000", f"0{n + 1},000", line) for n, line in enumerate(turns))
    assert " ".join(texts(read(tmp_path / "a.srt", content))) == "How are you? Fine. Really? Yes: fine."
    shouted = cue("01,000", "02,000", "REMEMBER: THIS IS ALL IN CAPITALS")
    assert len(read(tmp_path / "b.srt", shouted).words) == 6


@pytest.mark.parametrize(
    "text",
    ["สวัสดีครับวันนี้อากาศดีมาก", "ນ້ຳໃຈເປັນສິ່ງທີ່ດີ", "မြန်မာစာ", "ភាសាខ្មែរ", "か\u3099く\u3001スーパー", "我叫做「大的」。"],
    ids=["th", "lo", "my", "km", "ja", "zh"],
)
def test_scripts_without_spaces_are_cut_between_what_readers_take_for_characters(tmp_path, text):
    words = texts(read(tmp_path / "a.srt", cue("01,000", "05,000", text)))
    assert len(words) > 3
    letters = [c for c in text if unicodedata.category(c)[0] in "LM"]
    assert [c for c in "".join(words) if unicodedata.category(c)[0] in "LM"] == letters
    for word in words:
        assert not unicodedata.category(word[0]).startswith("M")
        assert word[0] not in "ะาำ"
        assert word[-1] not in "เแโใไເແໂໃໄ"


def test_a_thai_consonant_keeps_its_signs(tmp_path):
    words = texts(read(tmp_path / "a.srt", cue("01,000", "05,000", "เก่าน้ำ OK ที่")))
    assert words == ["เก่า", "น้ำ", "OK", "ที่"]


@pytest.mark.parametrize(
    "content",
    [
        "1\n00:00:01,000 --> 00:00:02,000\none\n2\n00:00:02,000 --> 00:00:03,000\n300\n3\n"
        "00:00:03,5 --> 00:00:04,0\nend\n",
        "00:01.000 --> 00:02.000\none\n\n00:02.000 -> 00:03.000\n300\n\n\n00:03.500 --> 00:04.000\nend",
        "1\r\n00:00:01.000 --> 00:00:02.000\r\none\r\n\r\n7\r\n0:0:2,000-->0:0:3,000 X1:1\r\n300\r\n\r\n"
        "9\r\n00:00:03,500 --> 00:00:04,000\r\nend\r\n",
        "1\n00:00:01,000 --> 00:00:02,000\n\none\n\n2\n00:00:02,000 --> 00:00:03,000\n300\n\n3\n"
        "00:00:03,000 --> 00:00:03,400\n\n4\n00:00:03,500 --> 00:00:04,000\nend\n",
    ],
    ids=["no blank lines", "no indices", "carriage returns", "empty cue"],
)
def test_loose_ways_of_writing_subtitles_are_read(tmp_path, content):
    transcript = read(tmp_path / "a.srt", content)
    assert texts(transcript) == ["one", "300", "end"]
    assert times(transcript) == [(1.0, 2.0), (2.0, 3.0), (3.5, 4.0)]


def test_notes_styles_and_names_of_webvtt_are_no_text(tmp_path):
    content = """WEBVTT - a title

STYLE
::cue { color: red }

REGION
id:fred

NOTE
one --> two

first
00:00:01.000 --> 00:00:02.000 region:fred
One

NOTE and
another

12
100:00:01.000 --> 100:00:02.000
Late

second name
100:00:03.000 --> 100:00:04.000
End
"""
    transcript = read(tmp_path / "a.vtt", content)
    assert texts(transcript) == ["One", "Late", "End"]
    assert [word.start_s for word in transcript.words] == [1.0, 360001.0, 360003.0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.srt", "a.vtt", "a.json"])
def test_byte_order_marks_are_understood(tmp_path, encoding, name):
    content = {
        "a.srt": cue("01,000", "02,000", "café"),
        "a.vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\ncafé\n",
        "a.json": json.dumps({"segments": [{"start": 1, "end": 2, "text": "café"}]}, ensure_ascii=False),
    }[name]
    mark = "\ufeff" if encoding.endswith("e") else ""
    transcript = read(tmp_path / name, (mark + content).encode(encoding))
    assert texts(transcript) == ["café"]
    assert times(transcript) == [(1.0, 2.0)]


# --- JSON as it comes


def read_json(path, document, **options):
    return read(path, json.dumps(document), **options)


def test_words_without_times_are_placed_between_their_neighbours(tmp_path):
    words = [
        {"word": "About", "start": 0.5, "end": 0.9, "score": 0.9},
        {"word": "300"},
        {"word": "and", "start": None, "end": math.nan},
        {"word": "more", "start": 1.5, "end": 1.9, "score": 0.8},
        {"word": "came", "start": 2.0, "end": math.inf},
    ]
    transcript = read_json(tmp_path / "a.json", {"segments": [{"start": 0.5, "end": 2.4, "text": "", "words": words}]})
    assert texts(transcript) == ["About", "300", "and", "more", "came"]
    assert times(transcript) == [(0.5, 0.9), (0.9, 1.2), (1.2, 1.5), (1.5, 1.9), (2.0, 2.4)]
    assert [word.probability for word in transcript.words[::3]] == [0.9, 0.8]
    assert "without times" in transcript.warnings[0]
    assert transcript.warnings[0].endswith(": 3")


@pytest.mark.parametrize("words", [[], None])
def test_a_segment_with_text_and_no_words_shares_its_time(tmp_path, words):
    segment = {"start": 0.5, "end": 2.5, "text": " Hello you all", "words": words}
    transcript = read_json(tmp_path / "a.json", {"segments": [segment]})
    assert times(transcript) == [
        (0.5, round(0.5 + 10 / 11, 4)),
        (round(0.5 + 10 / 11, 4), round(0.5 + 16 / 11, 4)),
        (round(0.5 + 16 / 11, 4), 2.5),
    ]


@pytest.mark.parametrize("end", [math.inf, math.nan, None])
def test_a_segment_without_an_end_lasts_as_long_as_its_text_takes(tmp_path, end):
    segments = [{"start": 0.5, "end": end, "text": "Hello"}, {"start": 0.7, "end": end, "text": "there you are"}]
    transcript = read_json(tmp_path / "a.json", {"segments": segments})
    assert texts(transcript) == ["Hello", "there", "you", "are"]
    assert times(transcript)[0] == (0.5, 0.7)
    assert 1.0 < transcript.words[-1].end_s < 2.0
    assert transcript.warnings[0].endswith(": 2")


def test_openais_verbose_json(tmp_path):
    words = ["Hello", "there", "It's", "me"]
    document = {
        "task": "transcribe",
        "language": "english",
        "duration": 3.0,
        "text": "Hello, there. It's me!",
        "words": [{"word": word, "start": n / 2, "end": n / 2 + 0.4} for n, word in enumerate(words)],
        "segments": [{"id": 0, "start": 0.0, "end": 2.0, "text": "Hello, there. It's me!"}],
    }
    transcript = read_json(tmp_path / "a.json", document)
    # Sentences are told by punctuation, which only the text has.
    assert texts(transcript) == ["Hello,", "there.", "It's", "me!"]
    assert times(transcript) == [(0.0, 0.4), (0.5, 0.9), (1.0, 1.4), (1.5, 1.9)]
    assert transcript.language == "en"
    del document["segments"], document["text"]
    assert texts(read_json(tmp_path / "a.json", document)) == words
    del document["words"]
    document["segments"] = [{"start": 0.0, "end": 1.0, "text": "Hello there"}]
    assert texts(read_json(tmp_path / "a.json", document)) == ["Hello", "there"]


def test_json_of_whisper_cpp(tmp_path):
    def times_of(start_ms, end_ms):
        stamps = [f"00:00:{ms // 1000:02},{ms % 1000:03}" for ms in (start_ms, end_ms)]
        return {
            "timestamps": dict(zip(("from", "to"), stamps, strict=True)),
            "offsets": {"from": start_ms, "to": end_ms},
        }

    def token(text, start_ms, end_ms, p=0.9):
        return {"text": text, **times_of(start_ms, end_ms), "id": 1, "p": p}

    tokens = [{"text": "[_BEG_]", "id": 50364, "p": 0.8}, token(" Hel", 500, 700, 0.5), token("lo", 700, 900)]
    tokens += [token(",", 900, 950), token(" you", 1000, 1400), token("[_TT_70]", 1400, 1400)]
    segments = [
        {**times_of(0, 1500), "text": " Hello, you", "tokens": tokens},
        {**times_of(2000, 3000), "text": " Bye"},
    ]
    transcript = read_json(tmp_path / "a.json", {"result": {"language": "en"}, "transcription": segments})
    assert texts(transcript) == ["Hello,", "you", "Bye"]
    assert times(transcript) == [(0.5, 0.95), (1.0, 1.4), (2.0, 3.0)]
    assert transcript.words[0].probability == 0.5
    assert transcript.language == "en"


def test_segments_in_a_bare_list(tmp_path):
    words = [{"word": " D", "start": 0.0, "end": 0.5}, {"word": ".C.", "start": 0.5, "end": 1.0}]
    transcript = read_json(tmp_path / "a.json", [{"start": 0.0, "end": 1.0, "text": " D.C.", "words": words}])
    assert texts(transcript) == ["D.C."]
    assert times(transcript) == [(0.0, 1.0)]


def test_sounds_among_words_with_times_are_left_out(tmp_path):
    said = ["Well", "[upbeat", "music]", "(laughs)", "♪", "yes."]
    words = [{"word": word, "start": n, "end": n + 0.5} for n, word in enumerate(said)]
    transcript = read_json(tmp_path / "a.json", {"segments": [{"start": 0, "end": 6, "words": words}]})
    assert texts(transcript) == ["Well", "yes."]
    assert transcript.warnings[0].endswith(": 3")


@pytest.mark.parametrize(
    ("language", "code"),
    [("en", "en"), ("English", "en"), ("en-US", "en"), ("pt_BR", "pt"), ("Castilian", "es"), ("", None), (None, None)],
)
def test_a_language_is_known_by_name_and_code(tmp_path, language, code):
    document = {"segments": [{"start": 0, "end": 1, "text": "a"}], "language": language}
    assert read_json(tmp_path / "a.json", document).language == code


def test_a_language_nobody_knows_is_told(tmp_path):
    document = {"segments": [{"start": 0, "end": 1, "text": "a"}], "language": "klingon"}
    transcript = read_json(tmp_path / "a.json", document)
    assert transcript.language is None
    assert "klingon" in transcript.warnings[0]


def test_two_who_speak_at_once_are_in_order_of_time(tmp_path):
    def segment(start, text):
        words = text.split()
        return {
            "start": start,
            "end": start + len(words),
            "text": text,
            "words": [{"word": word, "start": start + n, "end": start + n + 0.9} for n, word in enumerate(words)],
        }

    document = {"segments": [segment(0.0, "a c e"), segment(0.5, "b d f")]}
    transcript = read_json(tmp_path / "a.json", document)
    assert texts(transcript) == list("abcdef")
    assert all(a.start_s < a.end_s <= b.start_s for a, b in pairwise(transcript.words))


def test_a_long_transcript_takes_no_time(tmp_path):
    words = [{"word": f"w{n}", "start": n / 4, "end": n / 4 + 0.2} for n in range(40_000)]
    for n in range(0, len(words), 3):
        del words[n]["start"]
    transcript = read_json(tmp_path / "a.json", {"words": words})
    assert texts(transcript) == [word["word"] for word in words]


def test_segments_whose_times_cannot_be_lose_no_word(tmp_path):
    segments = [{"start": -1.0, "end": 0.4, "text": "Early words"}, {"start": 2.0, "end": 1.0, "text": "go back"}]
    transcript = read_json(tmp_path / "a.json", {"segments": segments})
    assert texts(transcript) == ["Early", "words", "go", "back"]
    assert (transcript.words[0].start_s, transcript.words[1].end_s) == pytest.approx((0.0, 0.4))
    assert (transcript.words[2].start_s, transcript.words[3].end_s) == pytest.approx((1.0, 2.0))
    assert transcript.warnings[0].count(": 1") == 2


def test_a_file_of_sounds_alone_has_no_words(tmp_path):
    assert read(tmp_path / "a.srt", cue("01,000", "02,000", "[MUSIC]") + cue("02,000", "03,000", "")).words == ()


# --- names


def test_the_transcript_of_a_video_is_found_by_its_name(tmp_path):
    for name in ("a.srt", "a.b.vtt", "c.json", "d.txt", "e.SRT", "ab.srt"):
        (tmp_path / name).touch()
    assert find_transcript(tmp_path, "a") == tmp_path / "a.srt"
    assert find_transcript(tmp_path, "a.b") == tmp_path / "a.b.vtt"
    assert find_transcript(tmp_path, "c") == tmp_path / "c.json"
    assert find_transcript(tmp_path, "d") is None
    assert find_transcript(tmp_path, "e") == tmp_path / "e.SRT"
    (tmp_path / "a.json").touch()
    with pytest.raises(InputError, match=r"a\.json and a\.srt"):
        find_transcript(tmp_path, "a")


def test_a_language_in_the_name_is_understood(tmp_path):
    (tmp_path / "a.en-US.vtt").write_text(VTT)
    assert find_transcript(tmp_path, "a") == tmp_path / "a.en-US.vtt"
    assert find_transcript(tmp_path, "a", language="en") == tmp_path / "a.en-US.vtt"
    assert read_transcript(tmp_path / "a.en-US.vtt", offset_s=0.0).language == "en"
    with pytest.raises(InputError, match="de"):
        find_transcript(tmp_path, "a", language="de")
    (tmp_path / "a.de.srt").touch()
    assert find_transcript(tmp_path, "a", language="de") == tmp_path / "a.de.srt"
    with pytest.raises(InputError) as error:
        find_transcript(tmp_path, "a")
    assert "a.de.srt" in str(error.value)
    assert "a.en-US.vtt" in str(error.value)
    (tmp_path / "a.srt").touch()
    assert find_transcript(tmp_path, "a") == tmp_path / "a.srt"


def test_composed_and_decomposed_names_are_the_same(tmp_path):
    path = tmp_path / unicodedata.normalize("NFD", "café é.srt")
    path.touch()
    assert find_transcript(tmp_path, unicodedata.normalize("NFC", "café é")) == path
    other = tmp_path / unicodedata.normalize("NFC", "naïve.en.vtt")
    other.touch()
    assert find_transcript(tmp_path, unicodedata.normalize("NFD", "naïve")) == other
