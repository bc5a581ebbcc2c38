"""Words from transcripts that exist already: subtitles (.srt, .vtt) and the JSON of speech recognition."""

from __future__ import annotations

import codecs
import json
import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from preprocessing.errors import InputError
from preprocessing.features import Word
from preprocessing.speech.captions import Segment, parse_time, read_captions, repair_times
from preprocessing.speech.recognise import Transcript
from preprocessing.speech.spoken import (
    find_speakers,
    is_spoken,
    remove_markup,
    remove_unspoken,
    sounds_among,
    split_words,
)
from preprocessing.speech.word_times import WRITTEN_WITHOUT_SPACES, in_order, join_pieces

SUFFIXES = (".srt", ".vtt", ".json")
"""What a transcript may be, in small letters or capitals; before it, its name is the video_id, or that and a language
code: ``talk.srt``, ``talk.en.vtt``."""

_SECONDS_PER_CHARACTER = 0.07
"""Of speech, where a transcript does not say when it ends: about 170 English words a minute."""
_TAG = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]+)*")
"""A language code in a file's name, such as ``en`` or ``pt-BR``."""
_SPECIAL = re.compile(r"\[_[^\]]*\]|<\|[^|]*\|>")
"""Tokens that are no text: ``[_BEG_]`` of whisper.cpp, ``<|0.00|>``."""
_BARE = re.compile(r"[.,;:!?…。，、；：？！]$")
"""Punctuation at the end of a word."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def find_transcript(folder: Path, video_id: str, *, language: str | None = None) -> Path | None:
    """The transcript of a video; None where there is none.

    Names are compared as people see them: composed and decomposed letters are the same. A file that is named after the
    video alone comes before those with a language code.

    Args:
        folder: where transcripts lie, see :data:`SUFFIXES`.
        video_id: of the video.
        language: code of the language wanted, for a video that has transcripts in several.

    Raises:
        InputError: more than one file could be meant, or none is in that language.
    """
    plain, tagged = [], []
    wanted = unicodedata.normalize("NFC", video_id)
    for path in sorted(folder.iterdir()):
        stem, suffix = unicodedata.normalize("NFC", path.stem), path.suffix.lower()
        if suffix not in SUFFIXES or not stem.startswith(wanted) or not path.is_file():
            continue
        if stem == wanted:
            plain.append(path)
        elif stem[: stem.rfind(".")] == wanted and _tag(path) is not None:
            tagged.append(path)
    spoken = [path for path in tagged if language in (None, _tag(path))]
    if tagged and not spoken and not plain:
        names = " and ".join(path.name for path in tagged)
        raise InputError(f"{folder}: {names}: not in {language}, which speech.language asks for")
    found = plain or spoken
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        choice = "keep one" if found is plain else "keep one, or set speech.language"
        raise InputError(f"{folder}: {names} are transcripts of the same video; {choice}")
    return found[0] if found else None


def read_transcript(path: Path, *, offset_s: float) -> Transcript:
    """Read the words of a transcript.

    Words without times of their own share the time between those that have, in proportion to their length in
    characters. Names of speakers and descriptions of sounds are no words. Languages written without spaces are cut into
    characters, as Whisper cuts them.

    Args:
        path: ``.srt``, ``.vtt`` or ``.json``; UTF-8, or UTF-16 with its byte order mark. JSON may be what
            openai-whisper, faster-whisper, WhisperX, whisper.cpp or OpenAI's interface (``verbose_json``) write.
        offset_s: added to every time. Words that then end at or before 0 are dropped; one that lasts over 0 starts
            there.

    Returns:
        Words in order of time, none overlapping the next: where the file says otherwise, times are cut short. Their
        probability is NaN where the file has none. What was repaired or left out is counted in a warning.

    Raises:
        InputError: the file cannot be read, or is not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: a transcript is one of {', '.join(SUFFIXES)}")
    repairs: Counter[str] = Counter()
    if suffix == ".json":
        segments, language = _read_json(path, repairs)
    else:
        try:
            segments, language = read_captions(_read_text(path), repairs)
        except ValueError as error:
            raise InputError(f"{path}: {error}; is it a {suffix} file?") from None
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
    language = _language_code(language or _tag(path), repairs)
    remarks = "; ".join(f"{what}: {n}" for what, n in repairs.items() if n)
    return Transcript(tuple(ordered), language, (f"{path.name}: {remarks}",) if remarks else ())


def _tag(path: Path) -> str | None:
    """Language code in the name of a file, without its region; None where there is none."""
    tag = path.stem.rpartition(".")[2].lower() if "." in path.stem else ""
    code = re.split("[-_]", tag)[0]
    return code if _TAG.fullmatch(tag) and code in _languages() else None


def _languages() -> Mapping[str, str]:
    """Code of each language that Whisper knows, by its names and by the code itself."""
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    return {**TO_LANGUAGE_CODE, **{code: code for code in LANGUAGES}}


def _language_code(name: str | None, repairs: Counter[str]) -> str | None:
    """ISO 639-1 code of ``English``, ``en`` or ``en-GB``."""
    if not name:
        return None
    known = _languages()
    code = known.get(name.lower()) or known.get(re.split("[-_]", name.lower())[0])
    if code is None:
        repairs[f"unknown language {name!r}"] += 1
    return code


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"{path}: the text is not UTF-8; save it as UTF-8") from None


# ---- times


def _with_edges(segments: Sequence[Segment], repairs: Counter[str]) -> Iterator[Segment]:
    """Segments with a start, where it can be known, and with an end where the next segment or the words tell it."""
    earliest = math.nan
    for number, segment in enumerate(segments):
        start, end = repair_times(segment.start_s, segment.end_s, repairs)
        if math.isnan(start) and not math.isnan(earliest):
            start = earliest if math.isnan(end) else min(earliest, end)
        if math.isnan(end):
            following = (
                segments[later].start_s for later in range(number + 1, len(segments)) if segments[later].start_s > start
            )
            repairs["segments without an end, taken from the length of the text"] += not _has_last_end(segment)
            end = min(start + _SECONDS_PER_CHARACTER * _length(segment.words), next(following, math.inf))
        earliest = end
        yield replace(segment, start_s=start, end_s=end)


def _has_last_end(segment: Segment) -> bool:
    return bool(segment.words) and not math.isnan(segment.words[-1].end_s)


def _length(words: Sequence[Word]) -> int:
    return sum(len(word.text) for word in words)


def _timed(segment: Segment, path: Path, repairs: Counter[str]) -> Iterator[Word]:
    """Words of a segment, each after the one before."""
    words = list(segment.words)
    for index, word in enumerate(words):
        if word.end_s < word.start_s:
            repairs["words that end before they start, end unknown"] += 1
            words[index] = replace(word, end_s=math.nan)
    earliest = -math.inf
    for word in _between_neighbours(words, segment.start_s, segment.end_s):
        if math.isnan(word.start_s):
            raise InputError(f"{path}: {word.text!r} has no time, and nothing around it has one")
        start = max(word.start_s, earliest)
        yield Word(word.text, start, max(word.end_s, start), word.probability)
        earliest = start


def _between_neighbours(words: Sequence[Word], start_s: float, end_s: float) -> Iterator[Word]:
    """Give unknown times (NaN) their place between the nearest known ones, in proportion to characters.

    Args:
        words: of one segment, in order.
        start_s: of the segment, seconds; NaN when unknown, as ``end_s``.
    """
    stops = [0, *accumulate(len(word.text) for word in words)]
    # Edges of the segment and its words in order, each with the number of characters before it.
    places = [0, *(stop for pair in pairwise(stops) for stop in pair), stops[-1]]
    times = [start_s, *(time for word in words for time in (word.start_s, word.end_s)), end_s]
    known = [index for index, time in enumerate(times) if not math.isnan(time)]

    def place(index: int) -> float:
        if not known:
            return math.nan
        rank = bisect_left(known, index)
        if rank == len(known):
            return times[known[-1]] + _SECONDS_PER_CHARACTER * (places[index] - places[known[-1]])
        after = known[rank]
        if after == index or rank == 0:
            return times[after] - _SECONDS_PER_CHARACTER * (places[after] - places[index])
        before = known[rank - 1]
        share = (places[index] - places[before]) / max(1, places[after] - places[before])
        return times[before] + share * (times[after] - times[before])

    for index, word in enumerate(words):
        yield replace(word, start_s=place(2 * index + 1), end_s=place(2 * index + 2))


# ---- JSON


def _read_json(path: Path, repairs: Counter[str]) -> tuple[list[Segment], str | None]:
    """Segments of what a library for speech recognition wrote, and the language as it names it."""
    try:
        document = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if isinstance(document, list):
        document = {"segments": document}
    entries = _entries(document) if isinstance(document, dict) else None
    if entries is None:
        raise InputError(f"{path}: not a transcript as Whisper writes it: an object with a list 'segments' is right")
    result = document.get("result")  # whisper.cpp
    language = document.get("language") or (result.get("language") if isinstance(result, dict) else None)
    if language is not None and not isinstance(language, str):
        raise InputError(f"{path}: language is {language!r}; a code such as en would be right")
    spoken_in = _languages().get(language.lower()) if language else None
    segments: list[Segment] = []
    try:
        speakers = find_speakers(remove_markup(str(entry.get("text", ""))) for entry in entries)
        for entry in entries:
            words = _words_with_times(entry, spoken_in, repairs) or [
                Word(word, math.nan, math.nan, math.nan)
                for word in split_words(remove_unspoken(remove_markup(str(entry.get("text", ""))), speakers, repairs))
            ]
            segments.append(Segment(_time(entry, "start"), _time(entry, "end"), tuple(words)))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        wrong = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise InputError(
            f"{path}: segment {len(segments)} {wrong}; Whisper writes start, end, text and words with word, start, end"
        ) from None
    return [segment for segment in segments if segment.words], language


def _entries(document: Mapping[str, Any]) -> list[Any] | None:
    """The segments of a document; None where it has none."""
    segments: list[Any] = next(
        (document[key] for key in ("segments", "transcription") if isinstance(document.get(key), list)), []
    )
    words = document.get("words")
    if isinstance(words, list) and words and not any(isinstance(s, dict) and s.get("words") for s in segments):
        # OpenAI's verbose_json has them beside its segments, all in one list and without punctuation.
        return [{"words": words, "text": document.get("text")}]
    return segments if segments or "segments" in document or "transcription" in document else None


def _time(entry: Mapping[str, Any], edge: str) -> float:
    """Seconds at which something starts or ends; NaN where that is not said, or no finite number."""
    value = entry.get(edge)
    if value is None:  # whisper.cpp, which has milliseconds, hours:minutes:seconds, or both
        edge = {"start": "from", "end": "to"}[edge]
        offsets, stamps = entry.get("offsets"), entry.get("timestamps")
        if isinstance(offsets, dict) and edge in offsets:
            value = offsets[edge] / 1000.0
        elif isinstance(stamps, dict) and edge in stamps:
            value = parse_time(stamps[edge])
    time = math.nan if value is None else float(value)
    return time if math.isfinite(time) else math.nan


def _words_with_times(entry: Mapping[str, Any], language: str | None, repairs: Counter[str]) -> list[Word]:
    """The words of a segment that has them one by one; none where it has not."""
    tokens = [token for token in entry.get("tokens") or () if isinstance(token, dict)]  # whisper.cpp
    given = [_word(word) for word in entry.get("words") or tokens]
    if any(word.text.startswith(" ") for word in given) or language in WRITTEN_WITHOUT_SPACES:
        given = join_pieces([word for word in given if word.text], language)
    words = [replace(word, text=word.text.strip()) for word in given]
    if words and not tokens and entry.get("text") and not any(_BARE.search(word.text) for word in words):
        words = _punctuated(words, str(entry["text"]))
    sounds = sounds_among([word.text for word in words])
    repairs["words that describe sounds left out"] += sum(is_spoken(words[index].text) for index in sounds)
    words = [word for index, word in enumerate(words) if index not in sounds and is_spoken(word.text)]
    repairs["words without times, placed between their neighbours"] += sum(
        math.isnan(word.start_s) or math.isnan(word.end_s) for word in words
    )
    return words


def _word(entry: Mapping[str, Any]) -> Word:
    """One word, by the names that openai-whisper, WhisperX, whisper-timestamped and whisper.cpp give to its values."""
    text = str(entry["word"] if "word" in entry else entry["text"])
    probability = next((entry[key] for key in ("probability", "score", "confidence", "p") if key in entry), None)
    return Word(
        "" if _SPECIAL.fullmatch(text) else text,
        _time(entry, "start"),
        _time(entry, "end"),
        math.nan if probability is None else float(probability),
    )


def _punctuated(words: Sequence[Word], text: str) -> list[Word]:
    """Words as they are written in the text, with punctuation, where the text has the same ones."""

    def bare(word: str) -> str:
        return re.sub(r"\W", "", word).casefold()

    written = split_words(text)
    matcher = SequenceMatcher(None, [bare(word.text) for word in words], list(map(bare, written)), autojunk=False)
    found = list(words)
    for block in matcher.get_matching_blocks():
        for index in range(block.size):
            found[block.a + index] = replace(words[block.a + index], text=written[block.b + index])
    return found
