"""Words from existing transcripts: subtitles (.srt, .vtt) and the JSON of speech recognition."""

from __future__ import annotations

import codecs
import json
import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from preprocessing.errors import InputError
from preprocessing.features import Word
from preprocessing.speech.captions import Segment, parse_time, read_captions, repair_times
from preprocessing.speech.recognise import Transcript
from preprocessing.speech.spoken import (
    find_sounds,
    find_speakers,
    is_spoken,
    remove_markup,
    remove_unspoken,
    split_words,
)
from preprocessing.speech.word_times import WRITTEN_WITHOUT_SPACES, in_order, join_pieces

SUFFIXES = (".srt", ".vtt", ".json")
"""Of transcripts, in lower or upper case. The rest of the name is the video_id, or the video_id and a language code:
``talk.srt``, ``talk.en.vtt``."""

_SECONDS_PER_CHARACTER = 0.07
"""Of speech, where a transcript gives no end: about 170 English words a minute."""
_TAG = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]+)*")
"""A language code in a file's name, such as ``en`` or ``pt-BR``."""
_SPECIAL = re.compile(r"\[_[^\]]*\]|<\|[^|]*\|>")
"""Tokens without text: ``[_BEG_]`` of whisper.cpp, ``<|0.00|>``."""
_EXPECTED_JSON = "Whisper writes segments with start, end, text and words, each with word, start and end"
_FINAL_PUNCTUATION = re.compile(r"[.,;:!?…。，、；：？！]$")


def find_transcript(folder: Path, video_id: str, *, language: str | None = None) -> Path | None:
    """Find the transcript of a video; None if there is none.

    A file named after the video alone takes precedence over those with a language code, of which ``language`` selects
    one. Names in composed and decomposed Unicode are equal. See :data:`SUFFIXES`.

    Raises:
        InputError: several files match, or none is in that language.
    """
    tags: dict[Path, str | None] = {}
    wanted = unicodedata.normalize("NFC", video_id)
    for path in sorted(folder.iterdir()):
        stem = unicodedata.normalize("NFC", path.stem)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if stem == wanted:
                tags[path] = None
            elif stem.rpartition(".")[0] == wanted and (tag := _tag(path)):
                tags[path] = tag
    plain = [path for path, tag in tags.items() if tag is None]
    found = plain or [path for path, tag in tags.items() if language in (None, tag)]
    names = " and ".join(path.name for path in found or tags)
    if tags and not found:
        raise InputError(f"{folder}: {names}: not in {language}, which speech.language asks for")
    if len(found) > 1:
        choice = "keep one" if plain else "keep one, or set speech.language"
        raise InputError(f"{folder}: {names} are transcripts of the same video; {choice}")
    return found[0] if found else None


def read_transcript(path: Path, *, offset_s: float) -> Transcript:
    """Read the words of a transcript.

    Words without times share the time between their neighbours, in proportion to their number of characters. Names of
    speakers and descriptions of sounds are left out. Scripts without spaces are split into characters, as by Whisper.

    Args:
        path: ``.srt``, ``.vtt`` or ``.json``; UTF-8, or UTF-16 with a byte order mark. JSON of openai-whisper,
            faster-whisper, WhisperX, whisper.cpp or OpenAI's API (``verbose_json``).
        offset_s: added to every time, seconds. Words that then end at or before 0 are dropped.

    Returns:
        Words in order of time, without overlap. Their probability is NaN where the file has none. A warning counts what
        was repaired or left out.

    Raises:
        InputError: the file cannot be read, or has another format than its suffix.
    """
    suffix = path.suffix.lower()
    repairs: Counter[str] = Counter()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: a transcript is one of {', '.join(SUFFIXES)}")
    try:
        segments, language = (_read_json if suffix == ".json" else read_captions)(_read_text(path), repairs)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    words = [word for segment in _with_edges(segments, repairs) for word in _timed(segment, path, repairs)]
    words.sort(key=lambda word: word.start_s)
    shifted = [
        replace(word, start_s=max(0.0, word.start_s + offset_s), end_s=word.end_s + offset_s)
        for word in words
        if word.end_s + offset_s > 0.0
    ]
    repairs["words before the first frame left out"] += len(words) - len(shifted)
    ordered = in_order(shifted, end_s=math.inf)
    repairs["words left out for which there is no time"] += len(shifted) - len(ordered)
    code = _language_code(language) if language else _tag(path)
    if language and code is None:
        repairs[f"unknown language {language!r}"] += 1
    remarks = "; ".join(f"{what}: {n}" for what, n in repairs.items() if n)
    return Transcript(tuple(ordered), code, (f"{path.name}: {remarks}",) if remarks else ())


def _tag(path: Path) -> str | None:
    """Code of the language in the name of a file; None if there is none."""
    _, dot, tag = path.stem.rpartition(".")
    return _language_code(tag) if dot and _TAG.fullmatch(tag.lower()) else None


def _language_code(name: str) -> str | None:
    """ISO 639-1 code of ``English``, ``en`` or ``en-GB``; None if Whisper does not know the language."""
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    known = {**TO_LANGUAGE_CODE, **{code: code for code in LANGUAGES}}
    return known.get(name.lower()) or known.get(re.split("[-_]", name.lower())[0])


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: the text is not UTF-8; save it as UTF-8") from None


# ---- times


def _with_edges(segments: Sequence[Segment], repairs: Counter[str]) -> Iterator[Segment]:
    """Add missing starts and ends of segments, where the next segment or the words tell them."""
    earliest = math.nan
    for number, segment in enumerate(segments):
        start, end = repair_times(segment.start_s, segment.end_s, repairs)
        if math.isnan(start) and not math.isnan(earliest):
            start = earliest if math.isnan(end) else min(earliest, end)
        if math.isnan(end):
            repairs["segments without an end, taken from the length of the text"] += math.isnan(segment.words[-1].end_s)
            n_characters = sum(map(len, segment.texts))
            following = (later.start_s for later in segments[number + 1 :] if later.start_s > start)
            end = min(start + _SECONDS_PER_CHARACTER * n_characters, next(following, math.inf))
        earliest = end
        yield replace(segment, start_s=start, end_s=end)


def _timed(segment: Segment, path: Path, repairs: Counter[str]) -> Iterator[Word]:
    """Words of a segment, each after the one before."""
    stops = [0, *accumulate(map(len, segment.texts))]
    # The edges of the segment and of its words, in order, each with the number of characters before it.
    places = [0, *(stop for pair in pairwise(stops) for stop in pair), stops[-1]]
    times = [segment.start_s]
    for word in segment.words:
        goes_back = word.end_s < word.start_s
        repairs["words that end before they start, end unknown"] += goes_back
        times += [word.start_s, math.nan if goes_back else word.end_s]
    times = _fill([*times, segment.end_s], places)
    earliest = -math.inf
    for word, start_s, end_s in zip(segment.words, times[1:-1:2], times[2:-1:2], strict=True):
        if math.isnan(start_s):
            raise InputError(f"{path}: {word.text!r} has no time, and nothing around it has one")
        earliest = max(start_s, earliest)
        yield replace(word, start_s=earliest, end_s=max(end_s, earliest))


def _fill(times: list[float], places: Sequence[int]) -> list[float]:
    """Replace unknown times (NaN) by times between the known ones, in proportion to the characters before each."""
    known = [index for index, time in enumerate(times) if not math.isnan(time)]
    if not known:
        return times
    filled = []
    for index, time in enumerate(times):
        rank = bisect_left(known, index)
        before, after = known[max(rank - 1, 0)], known[min(rank, len(known) - 1)]
        if not math.isnan(time):
            filled.append(time)
        elif before == after:
            filled.append(times[before] + _SECONDS_PER_CHARACTER * (places[index] - places[before]))
        else:
            share = (places[index] - places[before]) / max(1, places[after] - places[before])
            filled.append(times[before] + share * (times[after] - times[before]))
    return filled


# ---- JSON


def _alias(*names: str | AliasPath) -> Any:
    return Field(validation_alias=AliasChoices(*names))


def _parse_number(value: Any) -> Any:
    if isinstance(value, str):
        value = parse_time(value)
    return math.nan if value is None or value in (math.inf, -math.inf) else value


_Number = Annotated[float, BeforeValidator(_parse_number)]
"""A number, or seconds as ``hours:minutes:seconds``; NaN if unknown."""


class _Timed(BaseModel):
    """Start and end of a segment or word, seconds. whisper.cpp has them below ``timestamps``."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    start: Annotated[_Number, _alias("start", AliasPath("timestamps", "from"))] = math.nan
    end: Annotated[_Number, _alias("end", AliasPath("timestamps", "to"))] = math.nan


class _Word(_Timed):
    """A word or token of openai-whisper, WhisperX, whisper-timestamped or whisper.cpp."""

    text: Annotated[str, _alias("word", "text")]
    probability: Annotated[_Number, _alias("probability", "score", "confidence", "p")] = math.nan


class _Entry(_Timed):
    """A segment. Whisper's tokens are numbers; those of whisper.cpp are words or parts of words with times."""

    text: str | None = None
    words: list[_Word] | None = None
    tokens: list[_Word | Any] | None = None


class _Document(BaseModel):
    """A transcript; whisper.cpp calls the segments ``transcription``."""

    segments: Annotated[list[_Entry] | None, _alias("segments", "transcription")] = None
    words: list[_Word] | None = None
    text: str | None = None
    language: Annotated[str | None, _alias("language", AliasPath("result", "language"))] = None


def _read_json(text: str, repairs: Counter[str]) -> tuple[list[Segment], str | None]:
    """Segments of a file of speech recognition, and the language as the file names it."""
    try:
        content = json.loads(text)
        document = _Document.model_validate({"segments": content} if isinstance(content, list) else content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{key}: {problem['msg']}; {_EXPECTED_JSON}") from None
    except RecursionError as error:
        raise ValueError(str(error)) from None
    entries = document.segments
    if document.words and not any(entry.words for entry in entries or ()):
        # The words of OpenAI's verbose_json are in one list beside its segments, and without punctuation.
        entries = [_Entry(words=document.words, text=document.text)]
    if entries is None:
        raise ValueError(f"it has no segments; {_EXPECTED_JSON}")
    code = _language_code(document.language) if document.language else None
    texts = [remove_markup(entry.text or "") for entry in entries]
    speakers = find_speakers(texts)
    segments = []
    for entry, shown in zip(entries, texts, strict=True):
        words = _words_with_times(entry, code, repairs) or [
            Word(word, math.nan, math.nan, math.nan) for word in split_words(remove_unspoken(shown, speakers, repairs))
        ]
        segments.append(Segment(entry.start, entry.end, tuple(words)))
    return [segment for segment in segments if segment.words], document.language


def _words_with_times(entry: _Entry, language: str | None, repairs: Counter[str]) -> list[Word]:
    """Words of a segment that lists them; empty if it has only text."""
    tokens = [token for token in entry.tokens or () if isinstance(token, _Word)]
    given = [
        Word("" if _SPECIAL.fullmatch(word.text) else word.text, word.start, word.end, word.probability)
        for word in entry.words or tokens
    ]
    if any(word.text.startswith(" ") for word in given) or language in WRITTEN_WITHOUT_SPACES:
        given = join_pieces([word for word in given if word.text], language)
    words = [replace(word, text=word.text.strip()) for word in given]
    if words and not tokens and entry.text and not any(_FINAL_PUNCTUATION.search(word.text) for word in words):
        words = _punctuated(words, entry.text)
    sounds = find_sounds([word.text for word in words])
    repairs["words that describe sounds left out"] += sum(is_spoken(words[index].text) for index in sounds)
    words = [word for index, word in enumerate(words) if index not in sounds and is_spoken(word.text)]
    repairs["words without times, placed between their neighbours"] += sum(
        math.isnan(word.start_s) or math.isnan(word.end_s) for word in words
    )
    return words


def _punctuated(words: Sequence[Word], text: str) -> list[Word]:
    """Words as the text writes them, with punctuation, where the text has the same words."""

    def bare(word: str) -> str:
        return re.sub(r"\W", "", word).casefold()

    written = split_words(text)
    matcher = SequenceMatcher(None, [bare(word.text) for word in words], list(map(bare, written)), autojunk=False)
    found = list(words)
    for block in matcher.get_matching_blocks():
        for index in range(block.size):
            found[block.a + index] = replace(words[block.a + index], text=written[block.b + index])
    return found
