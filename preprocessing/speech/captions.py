"""Reads subtitles (.srt, .vtt) as timed words.

Why not a library: pysubs2 reads the notes and identifiers of WebVTT as text, takes a line with two inline times for the
times of a new cue, and loses signs and hours above 99; FFmpeg loses signs and refuses files that players accept.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from preprocessing.features import Word
from preprocessing.speech.spoken import find_speakers, remove_markup, remove_unspoken, split_words
from preprocessing.speech.word_times import overlap

_TIME = r"-?(?:\d+:)?\d{1,2}:\d{1,2}(?:[.,]\d+)?"
_TIMES = re.compile(rf"\s*({_TIME})\s*-{{1,2}}>\s*({_TIME})(?:\s.*)?")
_INLINE_TIME = re.compile(r"<((?:\d+:)?\d{1,2}:\d{1,2}[.,]\d+)>")
_LANGUAGE = re.compile(r"Language:\s*([\w-]+)\s*")
"""Line that YouTube writes into the header of a WebVTT file."""
_FIRST_MARK, _LAST_MARK = 0xE000, 0xF8FF
"""Private-use characters that stand for inline times while text is cleaned. Those in the file are removed."""
_PRIVATE = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_LONGEST_SEAM_S = 0.1
"""Longest pause between two cues of rolling captions."""


@dataclass(frozen=True)
class Segment:
    """A subtitle, or a segment of speech recognition."""

    start_s: float
    """Seconds in the file; NaN if unknown, as ``end_s``."""
    end_s: float
    words: tuple[Word, ...]
    """In order, with NaN for unknown times."""

    @property
    def texts(self) -> list[str]:
        """Text of each word."""
        return [word.text for word in self.words]


def read_captions(text: str, repairs: Counter[str]) -> tuple[list[Segment], str | None]:
    """Read the subtitles of a file.

    Rolling captions, which show each line two or three times, give each word once. Of overlapping cues, the first ends
    where the next starts; cues that start together (two speakers) become one.

    Args:
        text: content of the file, .srt or .vtt.
        repairs: counts what is repaired or left out.

    Returns:
        Subtitles in order of time, without overlap, and the language that the file names, if any.

    Raises:
        ValueError: there are no subtitles.
    """
    lines = re.split(r"\r\n|\r|\n", _PRIVATE.sub("", text))
    is_web = lines[0].startswith("WEBVTT")
    language = next((match[1] for line in lines[:5] if is_web and (match := _LANGUAGE.fullmatch(line))), None)
    cues = [(*repair_times(start_s, end_s, repairs), shown) for start_s, end_s, shown in _parse(lines, is_web=is_web)]
    if not cues:
        raise ValueError("there is no subtitle with a time in it; is it a .srt or .vtt file?")
    cues.sort(key=lambda cue: cue[0])
    speakers = find_speakers(remove_markup(_INLINE_TIME.sub("", shown)) for _, _, shown in cues)
    segments: list[Segment] = []
    shown_until: dict[tuple[str, ...], float] = {}
    for start_s, end_s, shown in cues:
        # The end of a cue that lasts no time is unknown.
        end_s = end_s if end_s > start_s else math.nan
        segment = Segment(start_s, end_s, _timed_words(shown, start_s, end_s, speakers, repairs))
        texts = tuple(segment.texts)
        if start_s < shown_until.get(texts, -math.inf):
            repairs["duplicate subtitles left out"] += 1
        elif texts:
            segments.append(segment)
            shown_until[texts] = end_s
    return _without_overlap(_without_repeats(segments, repairs)), language


def _parse(lines: Sequence[str], *, is_web: bool) -> list[tuple[float, float, str]]:
    """Start, end and text with markup of each cue. A cue starts with a line of two times, below its index or name."""
    cues: list[tuple[float, float, list[str]]] = []
    in_text, is_indexed = False, False
    for line, above, two_above in zip(lines, ["", *lines], ["", "", *lines], strict=False):
        if times := _TIMES.fullmatch(line):
            if not cues:
                is_indexed = above.strip().isdigit()
            elif in_text and cues[-1][2] and _is_title(above, two_above, is_web=is_web, is_indexed=is_indexed):
                cues[-1][2].pop()
            cues.append((parse_time(times[1]), parse_time(times[2]), []))
            in_text = True
        elif is_web and not line:
            # An empty line ends a cue of WebVTT, but some tools write one above the text.
            in_text = in_text and not any(map(str.strip, cues[-1][2]))
        elif is_web and not above and line.startswith(("NOTE", "STYLE", "REGION")):
            in_text = False
        elif in_text:
            cues[-1][2].append(line)
    return [(start_s, end_s, "\n".join(text)) for start_s, end_s, text in cues]


def _is_title(line: str, above: str, *, is_web: bool, is_indexed: bool) -> bool:
    """Whether the line above a cue's times is its index or its WebVTT name, and not text of the previous cue.

    In a file with indices, a number is an index even without an empty line above it.
    """
    is_number, is_apart = line.strip().isdigit(), not above.strip()
    return (is_number and (is_apart or is_indexed)) or (is_web and is_apart and bool(line.strip()))


def parse_time(time: str) -> float:
    """Seconds of ``[-][hours:]minutes:seconds[,fraction]``."""
    parts = [float(part) for part in time.lstrip("-").replace(",", ".").split(":")]
    seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return -seconds if time.startswith("-") else seconds


def repair_times(start_s: float, end_s: float, repairs: Counter[str]) -> tuple[float, float]:
    """Exchange the times of an entry that ends before it starts, and cut one that starts below zero and ends above."""
    if end_s < start_s:
        repairs["entries that end before they start, times exchanged"] += 1
        start_s, end_s = end_s, start_s
    if start_s < 0.0 < end_s:
        repairs["entries that start below zero, cut there"] += 1
        start_s = 0.0
    return start_s, end_s


def _timed_words(
    text: str, start_s: float, end_s: float, speakers: frozenset[str], repairs: Counter[str]
) -> tuple[Word, ...]:
    """Words of a cue; a word after an inline time starts there, and the word before it ends there."""
    times: list[float] = []

    def mark(match: re.Match[str]) -> str:
        times.append(parse_time(match[1]))
        return chr(_FIRST_MARK + len(times) - 1) if _FIRST_MARK + len(times) <= _LAST_MARK else ""

    text = remove_unspoken(remove_markup(_INLINE_TIME.sub(mark, text)), speakers, repairs)
    latest, next_start = start_s, math.nan
    found: list[Word] = []
    for piece in re.split(f"({_PRIVATE.pattern})", text):
        if _PRIVATE.fullmatch(piece):
            time = times[ord(piece) - _FIRST_MARK]
            if latest <= time and not time > end_s:
                latest = next_start = time
                found[-1:] = [replace(word, end_s=time) for word in found[-1:]]
            continue
        for word in split_words(piece):
            found.append(Word(word, next_start, math.nan, math.nan))
            next_start = math.nan
    return tuple(found)


def _without_repeats(cues: Sequence[Segment], repairs: Counter[str]) -> list[Segment]:
    """Remove from each rolling caption the words that the cue before shows.

    Captions roll where at least half of the cues start with the words that end the cue before. Elsewhere, people do say
    things twice.
    """
    repeated = [0]
    seams = 0
    for before, cue in pairwise(cues):
        follows = not cue.start_s > before.end_s + _LONGEST_SEAM_S
        seams += follows
        repeated.append(overlap(before.texts, cue.texts) if follows else 0)
    n_repeats = sum(map(bool, repeated))
    grows = any(0 < n < len(cue.words) for n, cue in zip(repeated, cues, strict=False))
    if not grows or 2 * n_repeats < seams:
        return list(cues)
    repairs["repeats of rolling captions left out"] += n_repeats
    rolled = [replace(cue, words=cue.words[n:]) for n, cue in zip(repeated, cues, strict=True)]
    return [cue for cue in rolled if cue.words]


def _without_overlap(cues: Sequence[Segment]) -> list[Segment]:
    """Merge cues that start together, and end each cue where the next starts, at the latest."""
    merged: list[Segment] = []
    for start_s, group in groupby(cues, key=lambda cue: cue.start_s):
        together = list(group)
        ends = [cue.end_s for cue in together if not math.isnan(cue.end_s)]
        words = tuple(word for cue in together for word in cue.words)
        merged.append(Segment(start_s, max(ends, default=math.nan), words))
    return [_cut(cue, later.start_s) for cue, later in pairwise(merged)] + merged[-1:]


def _cut(cue: Segment, at_s: float) -> Segment:
    if not cue.end_s > at_s:
        return cue
    # NaN stays NaN because it comes first.
    words = [replace(word, start_s=min(word.start_s, at_s), end_s=min(word.end_s, at_s)) for word in cue.words]
    return replace(cue, end_s=at_s, words=tuple(words))
