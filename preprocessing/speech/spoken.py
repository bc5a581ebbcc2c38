"""Turns written text into spoken words: removes what nobody says and splits the rest (pure functions)."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
"""Markup of SubRip and WebVTT (``<i>``, ``<v Name>``) and commands of SubStation Alpha (``{\\an8}``)."""
_LINE_BREAK = re.compile(r"\\[Nnh]|<br ?/?>", re.IGNORECASE)
"""Line breaks and spaces of SubStation Alpha and HTML."""
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
"""Marks of direction and width. The joiners U+200C and U+200D belong to words."""
_SOUND = re.compile(
    # In brackets, also over several lines.
    r"\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|〔[^〔〕]*〕"
    # A song, up to its closing mark or else the end of the line.
    r"|[♩-♬]+[^♩-♬]*[♩-♬]+|[♩-♬]+[^\n]*"
    r"|(?<!\S)\*[^*\n]+\*(?!\w)|(?<!\S)#[^#\n]+#(?!\w)"
)
"""Descriptions of sounds, and songs: ``(laughs)``, ``[MUSIC]``, ``*sighs*``, ``♪ la la ♪``, ``#music#``."""
_COLON = r"\s?(?::(?=\s|$|[^\W\d])|：)"
_BRACKETED_NAME = re.compile(rf"^([\s>‐-―-]*)(?:\[[^\[\]\n]+\]|\([^()\n]+\)){_COLON}", re.MULTILINE)
"""A speaker's name in brackets before a colon, at the start of a line."""
_NAME = re.compile(rf"^([\s>‐-―-]*)([^\W\d_][^:：\n]{{0,39}}?){_COLON}", re.MULTILINE)
"""Text before a colon that may be a speaker's name."""
_MOST_WORDS_OF_A_NAME = 3
_NUMBERED = re.compile(r"speaker[\s_]?(?:\d+|[A-Z])", re.IGNORECASE)
"""Names given by speaker diarisation."""
_TURN = re.compile(r"^[\s>]*(?:[‐-―-]+(?!\d))?[\s>]*", re.MULTILINE)
"""Marks of a new speaker: ``>>``, ``-``."""
_CHEVRONS = re.compile(">{2,}")

_NO_SPACES = (
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
    "\u0e81-\u0ecf"  # Lao
    "\u1000-\u103f\u104c-\u108f\u109a-\u109f"  # Burmese
    "\u1780-\u17d3\u17d7\u17dc\u17dd"  # Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"  # Japanese, Chinese
)
"""Scripts without spaces between words."""
_PIECE = re.compile(rf"(?<=[{_NO_SPACES}])[^\w\s{_NO_SPACES}]+|[{_NO_SPACES}]|[^{_NO_SPACES}]+")
_LEADING_VOWELS = "เแโใไເແໂໃໄ"
"""Vowels written before their consonant."""
_TRAILING_SIGNS = "ะาำๅๆะາຳໆーｰﾞﾟ"
"""Unicode letters that belong to the letter before them: Thai and Lao vowels, marks of repetition, and Japanese marks
of length and voice."""
_STACKING = "\u1039\u17d2"
"""Marks that put the next consonant below this one, in Burmese and Khmer."""
_BELONGS_BEFORE = re.compile(r"[.,;:!?…。，、；：？！»”’)）」』】》〉]+")
"""Punctuation that belongs to the word before, even after a space, as in French."""
_SPOKEN_SYMBOLS = "&%@+="


def remove_markup(text: str) -> str:
    """Return text as a player shows it: without tags and invisible characters, with entities such as ``&amp;``
    resolved."""
    shown = html.unescape(_TAG.sub("", _LINE_BREAK.sub("\n", text)))
    return _INVISIBLE.sub("", shown)


def find_speakers(texts: Iterable[str]) -> frozenset[str]:
    """Find the names of speakers in the texts of a transcript, without markup.

    Up to three words before a colon at the start of a line are a name if they are in capitals (and not everything is),
    if they start two lines or more and each of them is capitalised, or if they are like "Speaker 1".
    """
    found: Counter[str] = Counter()
    has_lower_case = False
    for text in texts:
        has_lower_case = has_lower_case or any(map(str.islower, text))
        found.update(match[2].strip() for match in _NAME.finditer(_SOUND.sub("", text)))
    return frozenset(
        name
        for name, times in found.items()
        if len(name.split()) <= _MOST_WORDS_OF_A_NAME
        and (
            (has_lower_case and name.isupper())
            or (times > 1 and not any(word[0].islower() for word in name.split()))
            or _NUMBERED.fullmatch(name)
        )
    )


def remove_unspoken(text: str, speakers: frozenset[str], repairs: Counter[str]) -> str:
    """Remove the names of speakers, descriptions of sounds, and songs.

    Args:
        text: without markup.
        speakers: see :func:`find_speakers`. A name in brackets before a colon is always removed.
        repairs: counts what is removed.
    """

    def remove_name(match: re.Match[str]) -> str:
        if match.re is _NAME and match[2].strip() not in speakers:
            return match[0]
        repairs["speaker names left out"] += 1
        return match[1]

    def remove_sound(match: re.Match[str]) -> str:
        repairs["descriptions of sounds left out"] += any(map(str.isalnum, match[0]))
        return " "

    text = _SOUND.sub(remove_sound, _BRACKETED_NAME.sub(remove_name, text))
    return _CHEVRONS.sub(" ", _TURN.sub("", _NAME.sub(remove_name, text)))


def find_sounds(words: Sequence[str]) -> set[int]:
    """Return the indices of words that describe a sound, such as "[upbeat" and "music]"."""
    stops = list(accumulate((len(word) + 1 for word in words), initial=0))
    spans = [match.span() for match in _SOUND.finditer("\n".join(words))]
    return {
        index
        for index in range(len(words))
        if any(start <= stops[index] and stops[index + 1] - 1 <= stop for start, stop in spans)
    }


def split_words(text: str) -> list[str]:
    """Split text at its spaces, and scripts without spaces into characters, as Whisper does.

    A character is what a reader takes for one: a Thai consonant with its vowel signs and tone mark. Punctuation stays
    with its word; punctuation and pictures alone are no word.
    """
    words: list[str] = []
    for token in text.split():
        begun = False
        for piece in _PIECE.findall(token):
            if not is_spoken(piece):
                if words and _BELONGS_BEFORE.fullmatch(piece):
                    words[-1] += piece
            elif begun and continues_character(words[-1], piece):
                words[-1] += piece
            else:
                words.append(piece)
                begun = True
    return words


def is_spoken(text: str) -> bool:
    """Whether a text is more than punctuation and pictures."""
    return any(
        unicodedata.category(c)[0] in "LNM" or unicodedata.category(c) == "Sc" or c in _SPOKEN_SYMBOLS for c in text
    )


def continues_character(before: str, after: str) -> bool:
    """Whether two neighbouring pieces of a script without spaces are parts of one character to a reader."""
    return (
        unicodedata.category(after[0]).startswith("M")
        or after[0] in _TRAILING_SIGNS
        or before[-1] in _LEADING_VOWELS
        or before[-1] in _STACKING
    )
