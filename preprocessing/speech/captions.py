"""Subtitles (.srt, .vtt) to timed words.

Why not a library: pysubs2 reads the notes and identifiers of WebVTT as text, takes a line with two inline times for the
times of a new cue, and loses signs and hours above 99; FFmpeg loses signs and refuses files that players take.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from preprocessing.features import Word
from preprocessing.speech.spoken import find_speakers, remove_markup, remove_unspoken, split_words

_TIME = r"-?(?:\d+:)?\d{1,2}:\d{1,2}(?:[.,]\d+)?"
_TIMES = re.compile(rf"\s*({_TIME})\s*-{{1,2}}>\s*({_TIME})(?:\s.*)?")
_INLINE_TIME = re.compile(r"<((?:\d+:)?\d{1,2}:\d{1,2}[.,]\d+)>")
_LANGUAGE = re.compile(r"Language:\s*([\w-]+)\s*")
"""What YouTube writes into the head of a WebVTT file."""
_FIRST_MARK, _LAST_MARK = 0xE000, 0xF8FF
"""Private characters that stand for inline times while text is cleaned; a file's own mean nothing and go."""
_PRIVATE = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_LONGEST_SEAM_S = 0.1
"""Between two cues that roll: more is a new beginning."""


@dataclass(frozen=True)
class Segment:
    """What a transcript gives one time: a subtitle, or a segment of speech recognition."""

    start_s: float
    """Seconds in the file; NaN where the file does not say."""
    end_s: float
    words: tuple[Word, ...]
    """In order; their times are NaN where the file has none for them."""


@dataclass(frozen=True)
class _Cue:
    """A subtitle as it stands in the file."""

    start_s: float
    end_s: float
    text: str
    """With markup."""


def read_captions(text: str, repairs: Counter[str]) -> tuple[list[Segment], str | None]:
    """Read the subtitles of a file.

    Captions that roll, each line shown two or three times, give each word once. Of cues that overlap, the first ends
    where the next begins; those that begin together (two speakers) become one, read one after the other.

    Args:
        text: of the file, .srt or .vtt.
        repairs: counts what was repaired or left out.

    Returns:
        Subtitles in order of time, none overlapping the next, and the language that the file says it is in, if it does.

    Raises:
        ValueError: there is none.
    """
    lines = re.split(r"\r\n|\r|\n", _PRIVATE.sub("", text))
    web = lines[0].startswith("WEBVTT")
    language = next((match[1] for line in lines[:5] if web and (match := _LANGUAGE.fullmatch(line))), None)
    cues = _parse(lines, web=web)
    if not cues:
        raise ValueError("there is no subtitle with a time in it")
    raw = sorted((_repaired(cue, repairs) for cue in cues), key=lambda cue: cue.start_s)
    shown = [remove_markup(_INLINE_TIME.sub("", cue.text)) for cue in raw]
    speakers = find_speakers(shown)
    read = [Segment(cue.start_s, cue.end_s, tuple(_timed_words(cue, speakers, repairs))) for cue in raw]
    unique = _without_duplicates([segment for segment in read if segment.words], repairs)
    return list(_without_overlap(_without_repeats(unique, repairs))), language


def _parse(lines: Sequence[str], *, web: bool) -> list[_Cue]:
    """Cues as they stand in the file. One begins with a line of two times, and the index or name above it."""
    cues: list[tuple[float, float, list[str]]] = []
    takes_text, indexed = False, False
    for number, line in enumerate(lines):
        above, before = lines[number - 1] if number else "", lines[number - 2] if number > 1 else ""
        if times := _TIMES.fullmatch(line):
            if not cues:
                indexed = above.strip().isdigit()
            elif takes_text and cues[-1][2] and _is_title(above, before, web=web, indexed=indexed):
                cues[-1][2].pop()
            cues.append((parse_time(times[1]), parse_time(times[2]), []))
            takes_text = True
        elif web and not line:
            # An empty line ends a cue of WebVTT; above its text, some tools leave one.
            takes_text = takes_text and not any(map(str.strip, cues[-1][2]))
        elif web and not above and line.startswith(("NOTE", "STYLE", "REGION")):
            takes_text = False
        elif takes_text:
            cues[-1][2].append(line)
    return [_Cue(start, end, "\n".join(text)) for start, end, text in cues]


def _is_title(line: str, before: str, *, web: bool, indexed: bool) -> bool:
    """Whether the line above a cue's times is its index, or its name in WebVTT; else it is text of the cue before.

    Where indices are usual, a number is one even without the empty line that should stand before it.
    """
    is_number, is_apart = line.strip().isdigit(), not before.strip()
    return (is_number and (is_apart or indexed)) or (web and is_apart and bool(line.strip()))


def parse_time(time: str) -> float:
    """Seconds of ``[-][hours:]minutes:seconds[,fraction]``."""
    parts = [float(part) for part in time.lstrip("-").replace(",", ".").split(":")]
    seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return -seconds if time.startswith("-") else seconds


def _repaired(cue: _Cue, repairs: Counter[str]) -> _Cue:
    """A cue with times that can be; the end of one that lasts no time is not known."""
    start_s, end_s = repair_times(cue.start_s, cue.end_s, repairs)
    return replace(cue, start_s=start_s, end_s=end_s if end_s > start_s else math.nan)


def repair_times(start_s: float, end_s: float, repairs: Counter[str]) -> tuple[float, float]:
    """Times of a part of a transcript, with the start before the end and what can be seen or heard from 0 on."""
    if end_s < start_s:
        repairs["entries that end before they start, times exchanged"] += 1
        start_s, end_s = end_s, start_s
    if start_s < 0.0 < end_s:
        repairs["entries that start below zero, cut there"] += 1
        start_s = 0.0
    return start_s, end_s


def _timed_words(cue: _Cue, speakers: frozenset[str], repairs: Counter[str]) -> Iterator[Word]:
    """Words of a cue; one that follows an inline time starts there, and the word before it ends there."""
    times: list[float] = []

    def mark(match: re.Match[str]) -> str:
        times.append(parse_time(match[1]))
        return chr(_FIRST_MARK + len(times) - 1) if _FIRST_MARK + len(times) <= _LAST_MARK else ""

    text = remove_unspoken(remove_markup(_INLINE_TIME.sub(mark, cue.text)), speakers, repairs)
    latest, start = cue.start_s, math.nan
    found: list[Word] = []
    for piece in re.split(f"({_PRIVATE.pattern})", text):
        if _PRIVATE.fullmatch(piece):
            time = times[ord(piece) - _FIRST_MARK]
            if latest <= time and not time > cue.end_s:
                latest = start = time
                found[-1:] = [replace(word, end_s=time) for word in found[-1:]]
            continue
        for word in split_words(piece):
            found.append(Word(word, start, math.nan, math.nan))
            start = math.nan
    yield from found


def _texts(cue: Segment) -> list[str]:
    return [word.text for word in cue.words]


def _without_duplicates(cues: Sequence[Segment], repairs: Counter[str]) -> list[Segment]:
    """Leave out cues that say what another one says at the same time."""
    kept: list[Segment] = []
    until: dict[tuple[str, ...], float] = {}
    for cue in cues:
        texts = tuple(_texts(cue))
        if cue.start_s < until.get(texts, -math.inf):
            repairs["duplicate subtitles left out"] += 1
            continue
        until[texts] = cue.end_s
        kept.append(cue)
    return kept


def _without_repeats(cues: Sequence[Segment], repairs: Counter[str]) -> list[Segment]:
    """Of captions that roll, leave to each cue the words that the one before did not show.

    They roll where half of the cues or more begin with words that the cue before ends with; where nobody makes captions
    roll, people do say things twice.
    """
    repeated = [0]
    seams = 0
    for before, cue in pairwise(cues):
        follows = not cue.start_s > before.end_s + _LONGEST_SEAM_S
        seams += follows
        repeated.append(_overlap(_texts(before), _texts(cue)) if follows else 0)
    n_repeats = sum(map(bool, repeated))
    grows = any(0 < n < len(cue.words) for n, cue in zip(repeated, cues, strict=False))
    if not grows or 2 * n_repeats < seams:
        return list(cues)
    repairs["repeats of rolling captions left out"] += n_repeats
    rolled = [replace(cue, words=cue.words[n:]) for n, cue in zip(repeated, cues, strict=True)]
    return [cue for cue in rolled if cue.words]


def _overlap(before: Sequence[str], after: Sequence[str]) -> int:
    """How many words at the end of one text are those at the begin of the other."""
    return next((n for n in range(min(len(before), len(after)), 0, -1) if before[-n:] == after[:n]), 0)


def _without_overlap(cues: Sequence[Segment]) -> Iterator[Segment]:
    last: Segment | None = None
    for cue in cues:
        if last is not None and last.start_s == cue.start_s:
            ends = [end for end in (last.end_s, cue.end_s) if not math.isnan(end)]
            cue = replace(cue, end_s=max(ends, default=math.nan), words=last.words + cue.words)
        elif last is not None:
            yield _cut(last, cue.start_s)
        last = cue
    if last is not None:
        yield last


def _cut(cue: Segment, at_s: float) -> Segment:
    """End a cue where the next begins, at the latest."""
    if not cue.end_s > at_s:
        return cue
    words = [
        replace(word, start_s=min(word.start_s, at_s), end_s=min(word.end_s, at_s)) for word in cue.words
    ]  # NaN stays NaN: it comes first.
    return replace(cue, end_s=at_s, words=tuple(words))
