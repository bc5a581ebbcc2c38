"""Times of words: pieces joined, words cut to the speech and put in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from preprocessing.features import Word
from preprocessing.speech.chunks import Chunk
from preprocessing.speech.spoken import continues_character

_SEAM_S = 0.3
"""A word within this distance of a gap's edge may be the same as the word on the other side of that edge."""
_TIME_STEP_S = 0.02
"""Whisper's resolution of word times, and the shortest word kept."""
WRITTEN_WITHOUT_SPACES = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages whose words Whisper does not mark with a leading space (openai-whisper, tokenizer.py)."""


def join_pieces(words: Sequence[Word], language: str | None) -> list[Word]:
    """Join what Whisper's tokeniser cuts: " D" and ".C." are one word, and so is a Thai consonant with its vowel signs.

    In languages with spaces, each word from Whisper starts with one.
    """
    joined: list[Word] = []
    for word in words:
        if joined and _is_continued(joined[-1].text, word.text, language):
            before = joined[-1]
            joined[-1] = replace(
                before,
                text=before.text + word.text,
                end_s=word.end_s,
                probability=min(before.probability, word.probability),
            )
        else:
            joined.append(word)
    return joined


def _is_continued(before: str, after: str, language: str | None) -> bool:
    if language in WRITTEN_WITHOUT_SPACES:
        return continues_character(before, after)
    return not after.startswith(" ")


def shift(words: Sequence[Word], by_s: float) -> list[Word]:
    """Move words later by a number of seconds."""
    return [replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s) for word in words]


def clamp_to_speech(words: Sequence[Word], speech: Sequence[tuple[float, float]]) -> list[Word]:
    """Cut each word's time to one stretch of speech; drop words outside speech.

    Whisper's ends are good, but a word after a pause starts at the end of the word before. A word that touches two
    stretches therefore belongs to the later one.
    """
    clamped = []
    for word in words:
        cut = [(max(word.start_s, start), min(word.end_s, end)) for start, end in speech]
        touching = [(start, end) for start, end in cut if end - start >= 0.0]
        # A touch of at most two time steps may be rounding, so the later stretch must win by more.
        firm = [(start, end) for start, end in touching if end - start > 2 * _TIME_STEP_S]
        for start, end in (firm or touching)[-1:]:
            clamped.append(replace(word, text=word.text.strip(), start_s=start, end_s=end))
    return [word for word in clamped if word.text]


def overlap(before: Sequence[str], after: Sequence[str]) -> int:
    """Largest number of words that end one text and start the other."""
    return next((n for n in range(min(len(before), len(after)), 0, -1) if before[-n:] == after[:n]), 0)


def without_echo(found: list[Word], before: Sequence[Word], after: Sequence[Word], gap: Chunk) -> list[Word]:
    """Drop words found at the edges of a gap that repeat the words before or after it."""

    def plain(words: Sequence[Word]) -> list[str]:
        return [re.sub(r"\W", "", word.text).casefold() for word in words]

    if found and found[0].start_s < gap.speech[0][0] + _SEAM_S:
        found = found[overlap(plain(before), plain(found)) :]
    if found and found[-1].end_s > gap.speech[-1][1] - _SEAM_S:
        found = found[: len(found) - overlap(plain(found), plain(after))]
    return found


def in_order(words: Sequence[Word], *, end_s: float) -> list[Word]:
    """Make every word last at least 0.02 s and end before the next starts, the last by ``end_s``.

    Times that fit are kept; words are dropped only where there is no time for them.
    """
    # Forwards, each word starts after the one before; backwards, each ends before the one after, or at the end.
    starts, ends = [], []
    earliest = 0.0
    for word in words:
        starts.append(max(word.start_s, earliest))
        ends.append(max(word.end_s, starts[-1] + _TIME_STEP_S))
        earliest = ends[-1]
    latest = end_s
    for index in reversed(range(len(words))):
        ends[index] = min(ends[index], latest)
        starts[index] = min(starts[index], ends[index] - _TIME_STEP_S)
        latest = starts[index]
    return [
        replace(word, start_s=start, end_s=end)
        for word, start, end in zip(words, starts, ends, strict=True)
        if start >= 0.0
    ]
