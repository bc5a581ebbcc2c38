"""Words and their times from sound: voice activity first, then Whisper on what is speech.

Whisper invents words where nobody speaks, so it never hears those parts: silero-vad finds the speech, its segments are
gathered into chunks that fit Whisper's window of 30 s, and each chunk is decoded at temperature 0, so that the same
sound always gives the same words. Whisper also passes over speech, or stops before its end: where silero-vad hears
speech that no word covers, that stretch is decoded by itself.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from preprocessing.config import SpeechSettings
from preprocessing.errors import InputError
from preprocessing.features import Word
from preprocessing.media import SAMPLE_RATE, level_for_speech
from preprocessing.speech.activity import VAD_SAMPLES, SpeechDetector, speech_spans, threads_kept
from preprocessing.speech.models import load_faster_whisper, load_openai_whisper
from preprocessing.speech.spoken import continues_character

if TYPE_CHECKING:
    import torch

    from preprocessing.media import Audio, Samples

_CLEARLY_SPEECH = 0.5
"""How far the mean probability of speech of a chunk must lie above ``vad_threshold``, as a part of what lies above it:
half way to certainty, 0.75 for the default threshold. Measured: 0.97 and more on clean speech, from 0.88 with music or
noise as loud as the speech; 0.63 on music that passes the threshold, 0.62 on a telephone's wind and handling."""
_SPEECH_PAD_S = 0.1
"""Added to both ends of what silero-vad calls speech: it cuts soft consonants off."""
_CHUNK_S = 28.0
"""Longest chunk handed to Whisper, whose window is 30 s."""
_CHUNK_PAD_S = 0.5
"""More sound around the speech of a chunk: Whisper misses words at its edges. Measured on six GRID clips: 12 of 36
words wrong with 0.2 s, 8 with 0.3 and more."""
_LEAD_S = 0.55
"""Silence before speech: Whisper misses a word that begins with its sound. Where the sound of the video begins with
speech, and where Whisper passed over a stretch in the middle of it, that is decoded without silence and with it."""
_CLEARLY_BETTER = 0.05
"""How much higher the mean log probability of the second decoding must be to take its words: silence changes others,
too, and not for the better. Measured: .07 and .3 higher where it finds what was missed, else within .03."""
_LONGEST_PAUSE_S = 2.0
"""Longer pauses end a chunk: Whisper fills them with words and stretches the times of the words around them."""

_LEAST_MISSED_S = 0.6
"""Speech between two words that is decoded by itself: shorter stretches are breath and the end of words."""
_PASSES = 2
"""How often what is still missing is decoded by itself: Whisper may stop early there, too."""
_SEAM_S = 0.3
"""How far from such a stretch's edges a word that stands on the other side of them is taken for the same one."""
_TOLD_S = 1.0
"""Speech without words that is worth a warning."""

_MAX_COMPRESSION = 2.4
"""Whisper's own limit for length of text / length of compressed text, above which it is a repetition loop. Measured on
half a minute of text in five scripts, see :func:`_compression`: speech up to 1.7, loops from 3.2."""
_MIN_LOG_PROBABILITY = -1.0
"""Whisper's own limit for the mean log probability of tokens, below which decoding has failed. Measured: speech from
-0.69 (a mumbled 1.2 s) upwards, with noise 3 dB below it from -0.98; silence, noise and music mostly below -1.2, but
some music up to -0.6: by itself this limit does not catch music."""
_SURE_OF_LANGUAGE = 0.5
"""Least probability of a detected language that needs no warning. Measured: 0.7 and more on 5 s of speech or more,
0.3 on 1.2 s of it that came out wrong."""

_TIME_STEP_S = 0.02
"""Whisper's resolution of word times, and the shortest word kept."""
WRITTEN_WITHOUT_SPACES = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages whose words Whisper does not mark by a leading space (openai-whisper, tokenizer.py)."""


@dataclass(frozen=True)
class Transcript:
    """All words of a video, in order."""

    words: tuple[Word, ...]
    language: str | None
    """ISO 639-1 code, given or detected in speech; None when unknown."""
    warnings: tuple[str, ...] = ()
    """What was left out and why."""


@dataclass(frozen=True)
class _Chunk:
    """A stretch of sound that fits Whisper's window; all in seconds from the first sample."""

    start_s: float
    end_s: float
    speech: tuple[tuple[float, float], ...]
    """(start, end) of each stretch of speech inside."""
    probability: float
    """Mean of silero-vad's probability of speech where it passes the threshold."""

    @property
    def speech_s(self) -> float:
        """Seconds of speech."""
        return sum(end - start for start, end in self.speech)


@dataclass(frozen=True)
class _Heard:
    """What Whisper makes of one chunk."""

    words: tuple[Word, ...]
    """Times from the first sample that was given; texts with the leading space that marks the begin of a word."""
    mean_log_probability: float
    """Of the tokens."""


class _Whisper(Protocol):
    """What the two libraries are used for."""

    languages: Sequence[str]
    """Codes that the model knows; ``en`` alone for a model of English only."""

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        """Most probable language of up to 30 s of speech, and its probability."""

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> _Heard:
        """Words in up to 30 s of speech."""


class SpeechRecogniser:
    """Recognises the words of any number of videos; models are loaded once."""

    def __init__(self, settings: SpeechSettings, *, device: str) -> None:
        """Load silero-vad (on the CPU) and Whisper.

        Args:
            settings: ``backend`` is one of the two libraries, not ``none``.
            device: ``cpu`` or ``cuda``, for Whisper.

        Raises:
            InputError: a model cannot be had, see :mod:`preprocessing.speech.models`, or it does not know the language.
        """
        if settings.backend == "none":
            raise ValueError("speech.backend is none: there is nothing to recognise speech with")
        self._settings = settings
        with threads_kept():
            self._whisper: _Whisper = (
                _OpenAIWhisper(settings.model, device=device)
                if settings.backend == "openai-whisper"
                else _FasterWhisper(settings.model, device=device)
            )
        _check_language(settings.language, self._whisper.languages)
        self._vad = SpeechDetector()

    def transcribe(self, audio: Audio, *, progress: Callable[[float], None] = lambda _: None) -> Transcript:
        """Words on the video's clock, inside the audio, in order, none overlapping the next.

        Args:
            audio: see :func:`preprocessing.media.video.read_audio`.
            progress: is told the share that is done, 0 to 1.
        """
        audio = replace(audio, samples=level_for_speech(audio.samples))
        probabilities = self._vad.probabilities(audio.samples)
        chunks, notes = [], []
        for chunk in self._find_speech(probabilities, len(audio.samples)):
            if self._is_clear(chunk):
                chunks.append(chunk)
            else:
                doubt = f"it resembles speech too little (mean probability {chunk.probability:.2f})"
                notes.append(_left_out(chunk, audio, doubt))
        if not chunks:
            return Transcript((), self._settings.language, tuple(notes))
        language = self._settings.language
        if language is None:
            language, probability = self._whisper.detect_language(_first_speech(audio.samples, chunks))
            if probability < _SURE_OF_LANGUAGE:
                notes.append(f"language {language} is a guess (probability {probability:.2f}); set speech.language")

        words: list[Word] = []
        for number, chunk in enumerate(chunks):
            progress(number / len(chunks))
            at_once = chunk.speech[0][0] < _LEAD_S / 2
            found, reason = self._decode(audio.samples, chunk, language, at_once=at_once)
            if reason is not None:
                notes.append(_left_out(chunk, audio, reason))
                continue
            found = self._add_missed(found, audio.samples, chunk, language, probabilities)
            for gap in self._gaps(found, chunk, probabilities):
                if gap.speech_s >= _TOLD_S:
                    start_s, end_s = gap.speech[0][0] + audio.start_s, gap.speech[-1][1] + audio.start_s
                    notes.append(f"speech from {start_s:.1f} to {end_s:.1f} s gave no words")
            words += found
        ordered = in_order(words, end_s=len(audio.samples) / SAMPLE_RATE)
        return Transcript(tuple(_shift(ordered, audio.start_s)), language, tuple(notes))

    def _decode(
        self, samples: Samples, chunk: _Chunk, language: str, *, at_once: bool
    ) -> tuple[list[Word], str | None]:
        """Words of a chunk, inside its speech; or none, and the reason to disbelieve what Whisper heard.

        Args:
            samples: of the video.
            chunk: of them.
            language: of the speech.
            at_once: whether the sound begins with speech; then it is decoded with silence before it as well.
        """
        heard = self._recognise(samples, chunk, language)
        if at_once:
            later = self._recognise(samples, chunk, language, lead_s=_LEAD_S)
            if _is_better(later, heard):
                heard = later
        reason = _why_not_words(heard)
        if reason is not None:
            return [], reason
        return _clamp_to_speech(join_pieces(heard.words, language), chunk.speech), None

    def _recognise(self, samples: Samples, chunk: _Chunk, language: str, *, lead_s: float = 0.0) -> _Heard:
        """What Whisper makes of a chunk with so many seconds of silence before it; times from the first sample."""
        sound = np.pad(_cut(samples, chunk), (round(lead_s * SAMPLE_RATE), 0))
        with threads_kept():
            heard = self._whisper.recognise(sound, language)
        return replace(heard, words=tuple(_shift(heard.words, chunk.start_s - lead_s)))

    def _add_missed(
        self,
        words: list[Word],
        samples: Samples,
        chunk: _Chunk,
        language: str,
        probabilities: npt.NDArray[np.float64],
    ) -> list[Word]:
        """Words of a chunk, with those that are heard where Whisper passed over speech."""
        tried = {(chunk.start_s, chunk.end_s)}
        for _ in range(_PASSES):
            for gap in self._gaps(words, chunk, probabilities):
                if (gap.start_s, gap.end_s) in tried or not self._is_clear(gap):
                    continue
                tried.add((gap.start_s, gap.end_s))
                found, _ = self._decode(samples, gap, language, at_once=True)
                before = [word for word in words if word.start_s < gap.start_s]
                after = words[len(before) :]
                words = [*before, *_without_echo(found, before, after, gap), *after]
        return words

    def _gaps(self, words: Sequence[Word], chunk: _Chunk, probabilities: npt.NDArray[np.float64]) -> list[_Chunk]:
        """Stretches between the words of a chunk with speech that no word covers."""
        gaps = []
        edges = [chunk.start_s, *(edge for word in words for edge in (word.start_s, word.end_s)), chunk.end_s]
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            speech = [
                (max(start, first), min(end, last)) for start, end in chunk.speech if end > first and start < last
            ]
            if sum(end - start for start, end in speech) >= _LEAST_MISSED_S:
                start_s, end_s = max(first, speech[0][0] - _CHUNK_PAD_S), min(last, speech[-1][1] + _CHUNK_PAD_S)
                probability = _mean_probability(probabilities, speech, self._settings.vad_threshold)
                gaps.append(_Chunk(start_s, end_s, tuple(speech), probability))
        return gaps

    def _is_clear(self, chunk: _Chunk) -> bool:
        threshold = self._settings.vad_threshold
        return chunk.probability >= threshold + _CLEARLY_SPEECH * (1.0 - threshold)

    def _find_speech(self, probabilities: npt.NDArray[np.float64], n_samples: int) -> list[_Chunk]:
        """Chunks of what passes the threshold."""
        threshold = self._settings.vad_threshold
        longest_s = _CHUNK_S - 2 * (_SPEECH_PAD_S + _CHUNK_PAD_S)
        speech = speech_spans(probabilities, n_samples, threshold=threshold, longest_s=longest_s)
        return _chunks(speech, probabilities, threshold=threshold, duration_s=n_samples / SAMPLE_RATE)


class _OpenAIWhisper:
    """openai-whisper, with the beam of 5 of its command line: greedy decoding is quicker, but drops words."""

    def __init__(self, name: str, *, device: str) -> None:
        from whisper.tokenizer import LANGUAGES

        self._model = load_openai_whisper(name, device=device)
        self._half = self._model.device.type == "cuda"
        # Later models add languages at the end of the list.
        known = list(LANGUAGES)[: self._model.num_languages] if self._model.is_multilingual else ["en"]
        self.languages: Sequence[str] = known

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        if not self._model.is_multilingual:
            return "en", 1.0
        _, probabilities = self._model.detect_language(self._log_mel(samples))
        language = max(probabilities, key=lambda code: probabilities[code])
        return language, probabilities[language]

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> _Heard:
        from whisper import DecodingOptions
        from whisper.timing import add_word_timestamps
        from whisper.tokenizer import get_tokenizer

        mel = self._log_mel(samples)
        # One pass without timestamp tokens, because a chunk fits the window: whisper.transcribe would decode what
        # follows the last timestamp a second time, out of its context. The default limit of half the text context
        # cuts off 28 s of fast Chinese; some room is left for the tokens that come before the text.
        options = DecodingOptions(
            language=language,
            temperature=0.0,
            beam_size=5,
            without_timestamps=True,
            sample_len=self._model.dims.n_text_ctx - 8,
            fp16=self._half,
        )
        result = self._model.decode(mel, options)
        duration_s = len(samples) / SAMPLE_RATE
        segment = {"seek": 0, "start": 0.0, "end": duration_s, "tokens": result.tokens, "words": []}
        tokenizer = get_tokenizer(
            self._model.is_multilingual, num_languages=self._model.num_languages, language=language, task="transcribe"
        )
        add_word_timestamps(
            segments=[segment],
            model=self._model,
            tokenizer=tokenizer,
            mel=mel,
            num_frames=math.ceil(duration_s * 100),  # Whisper's own log-mel has 100 rows a second.
            last_speech_timestamp=0.0,
        )
        words = tuple(Word(w["word"], w["start"], w["end"], float(w["probability"])) for w in segment["words"])
        return _Heard(words, result.avg_logprob)

    def _log_mel(self, samples: npt.NDArray[np.float32]) -> torch.Tensor:
        import whisper

        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples), self._model.dims.n_mels)
        placed: torch.Tensor = mel.to(self._model.device)
        return placed.half() if self._half else placed


class _FasterWhisper:
    """faster-whisper, with its default beam of 5."""

    def __init__(self, name: str, *, device: str) -> None:
        self._model = load_faster_whisper(name, device=device)
        from faster_whisper import BatchedInferencePipeline

        # The only entry of the library that decodes a given stretch in exactly one pass, see _OpenAIWhisper.
        self._pipeline = BatchedInferencePipeline(self._model)
        known = self._model.hf_tokenizer
        supported = self._model.supported_languages
        self.languages: Sequence[str] = [code for code in supported if known.token_to_id(f"<|{code}|>")]

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        if not self._model.model.is_multilingual:
            return "en", 1.0
        language, probability, _ = self._model.detect_language(samples)
        return language, probability

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> _Heard:
        segments, _ = self._pipeline.transcribe(
            samples,
            language=language,
            temperature=0.0,
            without_timestamps=True,
            word_timestamps=True,
            vad_filter=False,
            clip_timestamps=[{"start": 0.0, "end": len(samples) / SAMPLE_RATE}],
        )
        # One clip gives one segment, or none where nothing is said.
        heard = list(segments)
        words = tuple(Word(w.word, w.start, w.end, w.probability) for segment in heard for w in segment.words or ())
        return _Heard(words, min((segment.avg_logprob for segment in heard), default=0.0))


def _check_language(language: str | None, known: Sequence[str]) -> None:
    if language is None or language in known:
        return
    from whisper.tokenizer import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(language.lower())
    right = f"write {code}" if code in known else f"give one of {', '.join(sorted(known))}"
    raise InputError(f"speech.language: the model knows no language {language!r}; {right}")


def _chunks(
    speech: Sequence[tuple[float, float]],
    probabilities: npt.NDArray[np.float64],
    *,
    threshold: float,
    duration_s: float,
) -> list[_Chunk]:
    """Gather neighbouring stretches of speech and add what surrounds them.

    Args:
        speech: (start, end) in seconds, in order.
        probabilities: of speech, one per 512 samples.
        threshold: what a probability must reach to count in a chunk's mean.
        duration_s: of all the sound.
    """
    padded = _pad(speech, _SPEECH_PAD_S, duration_s=duration_s)
    groups: list[list[int]] = []
    for index, (start, end) in enumerate(padded):
        if (
            groups
            and start - padded[groups[-1][-1]][1] <= _LONGEST_PAUSE_S
            and end - padded[groups[-1][0]][0] + 2 * _CHUNK_PAD_S <= _CHUNK_S
        ):
            groups[-1].append(index)
        else:
            groups.append([index])
    bounds = _pad(
        [(padded[group[0]][0], padded[group[-1]][1]) for group in groups], _CHUNK_PAD_S, duration_s=duration_s
    )
    chunks = []
    for group, (start, end) in zip(groups, bounds, strict=True):
        mean = _mean_probability(probabilities, [speech[index] for index in group], threshold)
        chunks.append(_Chunk(start, end, tuple(padded[index] for index in group), mean))
    return chunks


def _mean_probability(
    probabilities: npt.NDArray[np.float64], spans: Sequence[tuple[float, float]], threshold: float
) -> float:
    """Mean over the given seconds of what passes the threshold, 0 where nothing does.

    Only of that: the fading of a short cry would weigh as much as the cry.
    """
    rate = SAMPLE_RATE / VAD_SAMPLES
    judged = np.concatenate([probabilities[round(start * rate) : math.ceil(end * rate)] for start, end in spans])
    passing = judged[judged >= threshold]
    return float(passing.mean()) if len(passing) else 0.0


def _pad(spans: Sequence[tuple[float, float]], by_s: float, *, duration_s: float) -> list[tuple[float, float]]:
    """Lengthen each span at both ends, but not beyond the sound or the middle of the gap to its neighbour."""
    middles = [(before[1] + after[0]) / 2 for before, after in pairwise(spans)]
    return [
        (max(start - by_s, earliest), min(end + by_s, latest))
        for (start, end), earliest, latest in zip(spans, [0.0, *middles], [*middles, duration_s], strict=False)
    ]


def _first_speech(samples: Samples, chunks: Sequence[_Chunk]) -> npt.NDArray[np.float32]:
    """The first 30 s of speech, pauses left out."""
    parts: list[npt.NDArray[np.float32]] = []
    missing = 30 * SAMPLE_RATE
    for chunk in chunks:
        parts.append(_cut(samples, chunk)[:missing])
        missing -= len(parts[-1])
        if not missing:
            break
    return np.concatenate(parts)


def _cut(samples: Samples, chunk: _Chunk) -> npt.NDArray[np.float32]:
    return samples[round(chunk.start_s * SAMPLE_RATE) : round(chunk.end_s * SAMPLE_RATE)]


def _left_out(chunk: _Chunk, audio: Audio, reason: str) -> str:
    start_s, end_s = chunk.speech[0][0] + audio.start_s, chunk.speech[-1][1] + audio.start_s
    return f"no words taken from {start_s:.1f} to {end_s:.1f} s: {reason}"


def _why_not_words(heard: _Heard) -> str | None:
    """Reason to disbelieve what Whisper heard in a chunk; None when there is none."""
    if _compression("".join(word.text for word in heard.words)) > _MAX_COMPRESSION:
        return "Whisper fell into a repetition loop"
    if heard.mean_log_probability < _MIN_LOG_PROBABILITY:
        return f"Whisper recognises nothing (mean log probability {heard.mean_log_probability:.2f})"
    return None


def _is_better(later: _Heard, heard: _Heard) -> bool:
    """Whether to take what Whisper heard when the sound had silence before it."""
    if not later.words or _why_not_words(later) is not None:
        return False
    gain = later.mean_log_probability - heard.mean_log_probability
    return not heard.words or _why_not_words(heard) is not None or gain > _CLEARLY_BETTER


def _compression(text: str) -> float:
    """How many times shorter zlib makes a text, whatever its script.

    Whisper's own ratio counts UTF-8, in which plain Hindi or Thai reaches 2.6, only because each letter takes three
    bytes of which two hardly change. Here each character is one byte, the number of its first appearance.
    """
    number = {character: index % 256 for index, character in enumerate(dict.fromkeys(text))}
    plain = bytes(number[character] for character in text)
    return len(plain) / len(zlib.compress(plain))


def join_pieces(words: Sequence[Word], language: str | None) -> list[Word]:
    """Put words back together that Whisper's tokeniser cuts: " D" and ".C." are one word, and so is a Thai consonant
    with its vowel signs.

    Args:
        words: as Whisper gives them: a word begins with a space, where the language has any.
        language: ISO 639-1 code.
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


def _shift(words: Sequence[Word], by_s: float) -> list[Word]:
    return [replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s) for word in words]


def _clamp_to_speech(words: Sequence[Word], speech: Sequence[tuple[float, float]]) -> list[Word]:
    """Cut each word's time to one stretch of speech; drop the words that touch none.

    Whisper's ends are good, but a word after a pause starts at the end of the word before: of two stretches that a
    word touches, it belongs to the later one.
    """
    clamped = []
    for word in words:
        cut = [(max(word.start_s, start), min(word.end_s, end)) for start, end in speech]
        touching = [(start, end) for start, end in cut if end - start >= 0.0]
        # A touch of no more than two time steps may be rounding: the later stretch must win by more.
        firm = [(start, end) for start, end in touching if end - start > 2 * _TIME_STEP_S]
        for start, end in (firm or touching)[-1:]:
            clamped.append(replace(word, text=word.text.strip(), start_s=start, end_s=end))
    return [word for word in clamped if word.text]


def _without_echo(found: list[Word], before: Sequence[Word], after: Sequence[Word], gap: _Chunk) -> list[Word]:
    """Words found in a gap, without those at its edges that stand on the other side already."""

    def plain(words: Sequence[Word]) -> list[str]:
        return [re.sub(r"\W", "", word.text).casefold() for word in words]

    for n in range(min(len(found), len(before)), 0, -1):
        if plain(found[:n]) == plain(before[-n:]) and found[0].start_s < gap.speech[0][0] + _SEAM_S:
            found = found[n:]
            break
    for n in range(min(len(found), len(after)), 0, -1):
        if plain(found[-n:]) == plain(after[:n]) and found[-1].end_s > gap.speech[-1][1] - _SEAM_S:
            found = found[:-n]
            break
    return found


def in_order(words: Sequence[Word], *, end_s: float) -> list[Word]:
    """Make every word last at least 0.02 s and end before the next begins, the last at ``end_s`` at the latest.

    Times that are right already stay as they are; words for which there is no time at all are left out.
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
