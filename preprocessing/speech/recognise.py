"""Words and their times from sound: voice activity detection, then Whisper on the detected speech.

Whisper invents words where nobody speaks, so it only gets detected speech: silero-vad finds it, neighbouring stretches
are gathered into chunks that fit Whisper's window of 30 s, and each chunk is decoded at temperature 0, so that the same
sound always gives the same words. Whisper also skips speech, or stops before its end: detected speech that no word
covers is decoded again separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from preprocessing.config import SpeechSettings
from preprocessing.features import Word
from preprocessing.media import SAMPLE_RATE, level_for_speech
from preprocessing.speech.activity import SpeechDetector, speech_spans, threads_kept
from preprocessing.speech.chunks import (
    CHUNK_PAD_S,
    CHUNK_S,
    SPEECH_PAD_S,
    Chunk,
    cut,
    first_speech,
    gather,
    mean_probability,
)
from preprocessing.speech.whisper_backends import Decoding, is_better, load_whisper, why_not_words
from preprocessing.speech.word_times import clamp_to_speech, in_order, join_pieces, shift, without_echo

if TYPE_CHECKING:
    from preprocessing.media import Audio, Samples

_CLEARLY_SPEECH = 0.5
"""Where the least mean probability of speech of a chunk lies between ``vad_threshold`` (0) and certainty (1): at 0.75
for the default threshold. Measured: 0.97 and more on clean speech, from 0.88 with music or noise as loud as the speech;
0.63 on music that passes the threshold, 0.62 on a telephone's wind and handling."""
_LEAD_S = 0.55
"""Silence added before speech in a second attempt, because Whisper may skip a word at the very start of its input."""

_LEAST_MISSED_S = 0.6
"""Least speech between two words that is decoded again: shorter stretches are breath and the ends of words."""
_PASSES = 2
"""How often speech without words is decoded again: Whisper may stop early in the second attempt, too."""
_REPORTED_S = 1.0
"""Least speech without words that gives a warning."""
_SURE_OF_LANGUAGE = 0.5
"""Least probability of a detected language that needs no warning. Measured: 0.7 and more on 5 s of speech or more,
0.3 on 1.2 s of it that came out wrong."""


@dataclass(frozen=True)
class Transcript:
    """All words of a video, in order."""

    words: tuple[Word, ...]
    language: str | None
    """ISO 639-1 code, given or detected in speech; None when unknown."""
    warnings: tuple[str, ...] = ()
    """Speech without words, and the reasons."""


class SpeechRecogniser:
    """Recognises the words of any number of videos; models are loaded once."""

    def __init__(self, settings: SpeechSettings, *, device: str) -> None:
        """Load silero-vad (on the CPU) and Whisper.

        Args:
            settings: ``backend`` is one of the two libraries, not ``none``.
            device: ``cpu`` or ``cuda``, for Whisper.

        Raises:
            InputError: a model is not available (:mod:`preprocessing.speech.models`), or does not know the language.
        """
        if settings.backend == "none":
            raise ValueError("speech.backend is none: there is nothing to recognise speech with")
        self._settings = settings
        self._whisper = load_whisper(settings, device=device)
        self._vad = SpeechDetector()

    def transcribe(self, audio: Audio, *, progress: Callable[[float], None] = lambda _: None) -> Transcript:
        """Words on the video's clock, inside the audio, in order, none overlapping the next.

        Args:
            audio: see :func:`preprocessing.media.read_audio`.
            progress: called with the share that is done, 0 to 1.
        """
        audio = replace(audio, samples=level_for_speech(audio.samples))
        probabilities = self._vad.probabilities(audio.samples)
        chunks, notes = [], []
        for chunk in self._find_speech(probabilities, len(audio.samples)):
            if self._is_clear(chunk):
                chunks.append(chunk)
            else:
                doubt = f"it is not clearly speech (mean probability {chunk.probability:.2f})"
                notes.append(_left_out(chunk, audio, doubt))
        if not chunks:
            return Transcript((), self._settings.language, tuple(notes))
        language = self._settings.language
        if language is None:
            language, probability = self._whisper.detect_language(first_speech(audio.samples, chunks))
            if probability < _SURE_OF_LANGUAGE:
                notes.append(f"language {language} is a guess (probability {probability:.2f}); set speech.language")

        words: list[Word] = []
        for number, chunk in enumerate(chunks):
            progress(number / len(chunks))
            retry = self._whisper.drops_first_words and chunk.speech[0][0] < _LEAD_S / 2
            found, reason = self._decode(audio.samples, chunk, language, retry=retry)
            if reason is not None:
                notes.append(_left_out(chunk, audio, reason))
                continue
            found = self._add_missed(found, audio.samples, chunk, language, probabilities)
            for gap in self._gaps(found, chunk, probabilities):
                if gap.speech_s >= _REPORTED_S:
                    start_s, end_s = gap.speech[0][0] + audio.start_s, gap.speech[-1][1] + audio.start_s
                    notes.append(f"speech from {start_s:.1f} to {end_s:.1f} s gave no words")
            words += found
        ordered = in_order(words, end_s=len(audio.samples) / SAMPLE_RATE)
        return Transcript(tuple(shift(ordered, audio.start_s)), language, tuple(notes))

    def _decode(self, samples: Samples, chunk: Chunk, language: str, *, retry: bool) -> tuple[list[Word], str | None]:
        """Return the words of a chunk, inside its speech; or no words, and the reason to reject Whisper's output.

        Args:
            samples: all samples of the video.
            chunk: the part to decode.
            language: of the speech.
            retry: whether to decode the chunk a second time, with silence before it, and take the better result.
        """
        heard = self._recognise(samples, chunk, language)
        if retry:
            later = self._recognise(samples, chunk, language, lead_s=_LEAD_S)
            if is_better(later, heard):
                heard = later
        reason = why_not_words(heard)
        if reason is not None:
            return [], reason
        return clamp_to_speech(join_pieces(heard.words, language), chunk.speech), None

    def _recognise(self, samples: Samples, chunk: Chunk, language: str, *, lead_s: float = 0.0) -> Decoding:
        """Run Whisper on a chunk with ``lead_s`` seconds of silence before it; times from the first sample."""
        sound = np.pad(cut(samples, chunk), (round(lead_s * SAMPLE_RATE), 0))
        with threads_kept():
            heard = self._whisper.recognise(sound, language)
        return replace(heard, words=tuple(shift(heard.words, chunk.start_s - lead_s)))

    def _add_missed(
        self,
        words: list[Word],
        samples: Samples,
        chunk: Chunk,
        language: str,
        probabilities: npt.NDArray[np.float64],
    ) -> list[Word]:
        """Decode speech that no word covers, and return the words of the chunk with those found there."""
        tried = {(chunk.start_s, chunk.end_s)}
        for _ in range(_PASSES):
            for gap in self._gaps(words, chunk, probabilities):
                if (gap.start_s, gap.end_s) in tried or not self._is_clear(gap):
                    continue
                tried.add((gap.start_s, gap.end_s))
                found, _ = self._decode(samples, gap, language, retry=True)
                before = [word for word in words if word.start_s < gap.start_s]
                after = words[len(before) :]
                words = [*before, *without_echo(found, before, after, gap), *after]
        return words

    def _gaps(self, words: Sequence[Word], chunk: Chunk, probabilities: npt.NDArray[np.float64]) -> list[Chunk]:
        """Find the stretches of a chunk whose speech no word covers."""
        gaps = []
        edges = [chunk.start_s, *(edge for word in words for edge in (word.start_s, word.end_s)), chunk.end_s]
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            speech = [
                (max(start, first), min(end, last)) for start, end in chunk.speech if end > first and start < last
            ]
            if sum(end - start for start, end in speech) >= _LEAST_MISSED_S:
                start_s, end_s = max(first, speech[0][0] - CHUNK_PAD_S), min(last, speech[-1][1] + CHUNK_PAD_S)
                probability = mean_probability(probabilities, speech, self._settings.vad_threshold)
                gaps.append(Chunk(start_s, end_s, tuple(speech), probability))
        return gaps

    def _is_clear(self, chunk: Chunk) -> bool:
        threshold = self._settings.vad_threshold
        return chunk.probability >= threshold + _CLEARLY_SPEECH * (1.0 - threshold)

    def _find_speech(self, probabilities: npt.NDArray[np.float64], n_samples: int) -> list[Chunk]:
        """Gather the speech that passes the threshold into chunks."""
        threshold = self._settings.vad_threshold
        longest_s = CHUNK_S - 2 * (SPEECH_PAD_S + CHUNK_PAD_S)
        speech = speech_spans(probabilities, n_samples, threshold=threshold, longest_s=longest_s)
        return gather(speech, probabilities, threshold=threshold, duration_s=n_samples / SAMPLE_RATE)


def _left_out(chunk: Chunk, audio: Audio, reason: str) -> str:
    start_s, end_s = chunk.speech[0][0] + audio.start_s, chunk.speech[-1][1] + audio.start_s
    return f"no words taken from {start_s:.1f} to {end_s:.1f} s: {reason}"
