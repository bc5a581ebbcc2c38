"""Written text to spoken words: removes what is not spoken and splits the rest into words (pure functions)."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
"""Markup of SubRip and WebVTT (``<i>``, ``<v Name>``) and the commands of SubStation Alpha (``{\\an8}``)."""
_LINE_BREAK = re.compile(r"\\[Nnh]|<br ?/?>", re.IGNORECASE)
"""Line breaks and spaces of SubStation Alpha, and HTML's."""
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
"""Marks of direction and width. The joiners U+200C and U+200D belong to words."""
_SOUND = re.compile(
    # In brackets, also over several lines.
    r"\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|〔[^〔〕]*〕"
    # A song: to its closing mark, or else to the end of the line.
    r"|[♩-♬]+[^♩-♬]*[♩-♬]+|[♩-♬]+[^\n]*"
    r"|(?<!\S)\*[^*\n]+\*(?!\w)|(?<!\S)#[^#\n]+#(?!\w)"
)
"""Descriptions of sounds, and songs: ``(laughs)``, ``[MUSIC]``, ``*sighs*``, ``♪ la la ♪``, ``#music#``."""
_COLON = r"\s?(?::(?=\s|$|[^\W\d])|：)"
_BRACKETED_NAME = re.compile(rf"^([\s>‐-―-]*)(?:\[[^\[\]\n]+\]|\([^()\n]+\)){_COLON}", re.MULTILINE)
"""A speaker's name at the begin of a line: in brackets, before a colon."""
_NAME = re.compile(rf"^([\s>‐-―-]*)([^\W\d_][^:：\n]{{0,39}}?){_COLON}", re.MULTILINE)
"""What may be a speaker's name."""
_MOST_WORDS_OF_A_NAME = 3
_NUMBERED = re.compile(r"speaker[\s_]?(?:\d+|[A-Z])", re.IGNORECASE)
"""Names that speaker diarisation gives."""
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
"""Scripts that put no spaces between words."""
_PIECE = re.compile(rf"(?<=[{_NO_SPACES}])[^\w\s{_NO_SPACES}]+|[{_NO_SPACES}]|[^{_NO_SPACES}]+")
_LEADING_VOWELS = "เแโใไເແໂໃໄ"
"""Written before the consonant that they belong to."""
_TRAILING_SIGNS = "ะาำๅๆะາຳໆーｰﾞﾟ"
"""Letters of Unicode that nevertheless belong to the letter before them: Thai and Lao vowels, marks of repetition and,
in Japanese, of length and voice."""
_STACKING = "\u1039\u17d2"
"""Marks that put the next consonant below this one, in Burmese and Khmer."""
_BELONGS_BEFORE = re.compile(r"[.,;:!?…。，、；：？！»”’)）」』】》〉]+")
"""Punctuation that stands alone after a space, as French writes it, is part of the word before."""
_SAID_SYMBOLS = "&%@+="


def remove_markup(text: str) -> str:
    """Text as a player shows it: without tags and invisible characters, entities such as ``&amp;`` resolved."""
    shown = html.unescape(_TAG.sub("", _LINE_BREAK.sub("\n", text)))
    return _INVISIBLE.sub("", shown)


def find_speakers(texts: Iterable[str]) -> frozenset[str]:
    """Names of speakers in the lines of a transcript.

    A line that begins with up to three words and a colon begins with a name, if they are in capitals (and not
    everything is), if they begin two lines or more and each of them has a capital, or if they are like "Speaker 1".

    Args:
        texts: without markup.
    """
    found: Counter[str] = Counter()
    has_small_letters = False
    for text in texts:
        has_small_letters = has_small_letters or any(map(str.islower, text))
        found.update(match[2].strip() for match in _NAME.finditer(_SOUND.sub("", text)))
    return frozenset(
        name
        for name, times in found.items()
        if len(name.split()) <= _MOST_WORDS_OF_A_NAME
        and (
            (has_small_letters and name.isupper())
            or (times > 1 and not any(word[0].islower() for word in name.split()))
            or _NUMBERED.fullmatch(name)
        )
    )


def remove_unspoken(text: str, speakers: frozenset[str], removed: Counter[str]) -> str:
    """Take out names of speakers, descriptions of sounds, and songs.

    Args:
        text: without markup.
        speakers: see :func:`find_speakers`; a name in brackets before a colon is always one.
        removed: what was taken out is counted here.
    """

    def without_bracketed_name(match: re.Match[str]) -> str:
        removed["speaker names left out"] += 1
        return match[1]

    def without_sound(match: re.Match[str]) -> str:
        removed["descriptions of sounds left out"] += any(map(str.isalnum, match[0]))
        return " "

    def without_name(match: re.Match[str]) -> str:
        if match[2].strip() not in speakers:
            return match[0]
        removed["speaker names left out"] += 1
        return match[1]

    spoken = _SOUND.sub(without_sound, _BRACKETED_NAME.sub(without_bracketed_name, text))
    return _CHEVRONS.sub(" ", _TURN.sub("", _NAME.sub(without_name, spoken)))


def sounds_among(words: Sequence[str]) -> set[int]:
    """Indices of the words that describe a sound, such as "[upbeat" and "music]"."""
    stops = [0]
    for word in words:
        stops.append(stops[-1] + len(word) + 1)
    spans = [match.span() for match in _SOUND.finditer("\n".join(words))]
    return {
        index
        for index in range(len(words))
        if any(start <= stops[index] and stops[index + 1] - 1 <= stop for start, stop in spans)
    }


def split_words(text: str) -> list[str]:
    """Cut text at its spaces; scripts that put none between words are cut into characters, as Whisper cuts them.

    A character is there what a reader takes for one: a Thai consonant with its vowel signs and tone mark. Punctuation
    stays with its word; what is nothing but punctuation or pictures is no word.
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
        unicodedata.category(c)[0] in "LNM" or unicodedata.category(c) == "Sc" or c in _SAID_SYMBOLS for c in text
    )


def continues_character(before: str, after: str) -> bool:
    """Whether two neighbouring pieces of a script without spaces are parts of what a reader takes for one character."""
    return (
        unicodedata.category(after[0]).startswith("M")
        or after[0] in _TRAILING_SIGNS
        or before[-1] in _LEADING_VOWELS
        or before[-1] in _STACKING
    )
