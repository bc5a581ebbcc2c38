"""Words from transcripts that exist already: subtitles (.srt, .vtt) and Whisper's JSON."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av

from preprocessing.errors import InputError
from preprocessing.speech import Transcript, Word, in_order

SUFFIXES = (".srt", ".vtt", ".json")
"""What a transcript may be; its name without them is the video_id."""

_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
"""Markup of SubRip and WebVTT (``<i>``, ``<v Name>``) and the positions that subtitle editors write (``{\\an8}``)."""
_NOT_SPOKEN = re.compile(r"\[[^\[\]]*\]|[♪♫]")
"""Sounds described in brackets, and marks of music."""
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPH}][^\s\w]*|[^\s{_IDEOGRAPH}]+")
"""Scripts that put no spaces between words are cut into characters, as Whisper cuts them; else at spaces."""
_BELONGS_BEFORE = re.compile(r"[.,;:!?…。，、；：？！»”)]+")
"""Punctuation that stands alone after a space, as French writes it, is part of the word before."""
_MARK = re.compile(r"[-‐-―~*_\"'“„«(/|]+")
"""Dashes at a change of speaker and the like are no words."""


def find_transcript(folder: Path, video_id: str) -> Path | None:
    """The transcript of a video: ``<video_id>.srt``, ``.vtt`` or ``.json`` in the folder; None where there is none.

    Raises:
        InputError: there is more than one.
    """
    found = [path for path in (folder / f"{video_id}{suffix}" for suffix in SUFFIXES) if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise InputError(f"{folder}: {names} are transcripts of the same video; keep one")
    return found[0] if found else None


def read_transcript(path: Path, *, offset_s: float) -> Transcript:
    """Read the words of a transcript.

    The words of a subtitle share its time in proportion to their length in characters, and their probability is NaN.

    Args:
        path: ``.srt``, ``.vtt`` (UTF-8), or the ``.json`` that Whisper writes, with or without times of words.
        offset_s: added to every time. Words that then end at or before 0 are dropped; one that lasts over 0 starts
            there.

    Returns:
        Words in order of time, none overlapping the next: where the file says otherwise, times are cut short.

    Raises:
        InputError: the file cannot be read, or is not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: a transcript is one of {', '.join(SUFFIXES)}")
    language = None
    if suffix == ".json":
        document = _load_json(path)
        words = list(_json_words(document, path))
        language = document.get("language")
        if language is not None and not isinstance(language, str):
            raise InputError(f"{path}: language is {language!r}; a code such as en would be right")
    else:
        words = [word for start, end, text in _without_overlap(_cues(path)) for word in _share_out(text, start, end)]
    shifted = [
        replace(word, start_s=max(0.0, word.start_s + offset_s), end_s=word.end_s + offset_s)
        for word in words
        if word.text and word.end_s + offset_s > 0.0
    ]
    shifted.sort(key=lambda word: word.start_s)
    return Transcript(tuple(in_order(shifted, end_s=math.inf)), language)


def _cues(path: Path) -> list[tuple[float, float, str]]:
    """(start, end, text with markup) of each subtitle, seconds."""
    demuxer = {".srt": "srt", ".vtt": "webvtt"}[path.suffix.lower()]
    try:
        # "file:" keeps FFmpeg from reading a protocol into a name such as "a:b.srt".
        with av.open(f"file:{path.absolute()}", format=demuxer) as container:
            cues = [
                (float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base), bytes(p).decode("utf-8"))
                for p in container.demux()
                if p.pts is not None and p.duration and p.time_base is not None
            ]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: the text is not UTF-8; save it as UTF-8") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read as {path.suffix} subtitles ({reason})") from None
    if not cues:
        raise InputError(f"{path}: no subtitle with a time in it; is it a {path.suffix} file?")
    return cues


def _without_overlap(cues: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Cut cues where the next begins; those that begin together (two speakers) become one, read one after the other."""
    separate: list[tuple[float, float, str]] = []
    for start, end, text in sorted(cues, key=lambda cue: cue[0]):
        if separate and separate[-1][0] == start:
            _, other_end, other_text = separate.pop()
            separate.append((start, max(end, other_end), f"{other_text}\n{text}"))
            continue
        if separate:
            before_start, before_end, before_text = separate.pop()
            separate.append((before_start, min(before_end, start), before_text))
        separate.append((start, end, text))
    return separate


def _share_out(text: str, start_s: float, end_s: float) -> Iterator[Word]:
    """Words of one subtitle, each with its part of the time."""
    plain = _NOT_SPOKEN.sub(" ", html.unescape(_TAG.sub("", text)))
    words: list[str] = []
    for word in _WORD.findall(plain):
        if _BELONGS_BEFORE.fullmatch(word):
            words[-1:] = [before + word for before in words[-1:]]
        elif not _MARK.fullmatch(word):
            words.append(word)
    per_character_s = (end_s - start_s) / max(1, sum(map(len, words)))
    for word in words:
        next_s = start_s + per_character_s * len(word)
        yield Word(word, start_s, next_s, math.nan)
        start_s = next_s


def _load_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("segments"), list):
        raise InputError(f"{path}: not a transcript as Whisper writes it: an object with a list 'segments' is right")
    return document


def _json_words(document: dict[str, Any], path: Path) -> Iterator[Word]:
    for number, segment in enumerate(document["segments"]):
        try:
            if segment.get("words") is None:
                yield from _share_out(str(segment["text"]), float(segment["start"]), float(segment["end"]))
                continue
            for word in segment["words"]:
                probability = float(word.get("probability", math.nan))
                yield Word(str(word["word"]).strip(), float(word["start"]), float(word["end"]), probability)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            wrong = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            raise InputError(
                f"{path}: segment {number} {wrong}; Whisper writes start, end, text and words with word, start, end"
            ) from None
