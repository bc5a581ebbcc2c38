"""openai-whisper and faster-whisper with one interface, and a check of their output."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from preprocessing.config import SpeechSettings
from preprocessing.errors import InputError
from preprocessing.features import Word
from preprocessing.media import SAMPLE_RATE
from preprocessing.speech.activity import threads_kept
from preprocessing.speech.models import load_faster_whisper, load_openai_whisper

if TYPE_CHECKING:
    import torch


_CLEARLY_BETTER = 0.05
"""Least gain in mean log probability for which the second attempt is taken: the added silence may also make other words
wrong. Measured: .07 and .3 where it finds missed words, otherwise within .03."""

_MAX_COMPRESSION = 2.4
"""Whisper's own limit of the compression of text, above which it is a repetition loop. Measured on half a minute of
text in five scripts, see :func:`_compression`: speech up to 1.7, loops from 3.2."""
_MIN_LOG_PROBABILITY = -1.0
"""Whisper's own limit for the mean log probability of tokens, below which decoding has failed. Measured: speech from
-0.69 (a mumbled 1.2 s) upwards, with noise 3 dB below it from -0.98; silence, noise and music mostly below -1.2, but
some music up to -0.6: by itself this limit does not catch music."""


@dataclass(frozen=True)
class Decoding:
    """Output of Whisper for one chunk."""

    words: tuple[Word, ...]
    """Times from the first sample; texts with the leading space that starts a word."""
    mean_log_probability: float
    """Of the tokens."""


def load_whisper(settings: SpeechSettings, *, device: str) -> OpenAIWhisper | FasterWhisper:
    """Load Whisper in the library of ``settings.backend``.

    Raises:
        InputError: the model is not available, see :mod:`preprocessing.speech.models`, or does not know the language.
    """
    from whisper.tokenizer import TO_LANGUAGE_CODE

    library = OpenAIWhisper if settings.backend == "openai-whisper" else FasterWhisper
    with threads_kept():
        whisper = library(settings.model, device=device)
    language, known = settings.language, whisper.languages
    if language is not None and language not in known:
        code = TO_LANGUAGE_CODE.get(language.lower())
        right = f"write {code}" if code in known else f"give one of {', '.join(sorted(known))}"
        raise InputError(f"speech.language: the model knows no language {language!r}; {right}")
    return whisper


class OpenAIWhisper:
    """openai-whisper, with the beam of 5 of its command line: greedy decoding is faster, but drops words."""

    languages: Sequence[str]
    """Codes of the languages that the model knows; ``en`` alone for a model of English only."""
    drops_first_words = True
    """Whether a second attempt is worth its time where the sound begins with speech. Measured: openai-whisper drops the
    first word of one of three such recordings, and finds it in the second attempt. faster-whisper drops none of them,
    and on 28 pieces of recordings cut at the start of a word, its second attempt changed no result."""

    def __init__(self, name: str, *, device: str) -> None:
        """Load the model, see :func:`load_openai_whisper`."""
        from whisper.tokenizer import LANGUAGES

        self._model = load_openai_whisper(name, device=device)
        self._half = self._model.device.type == "cuda"
        # Later models add languages at the end of the list.
        self.languages = list(LANGUAGES)[: self._model.num_languages] if self._model.is_multilingual else ["en"]

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        """Return the most probable language of up to 30 s of speech, and its probability."""
        if not self._model.is_multilingual:
            return "en", 1.0
        _, probabilities = self._model.detect_language(self._log_mel(samples))
        language = max(probabilities, key=lambda code: probabilities[code])
        return language, probabilities[language]

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> Decoding:
        """Recognise the words in up to 30 s of speech."""
        from whisper import DecodingOptions
        from whisper.timing import add_word_timestamps
        from whisper.tokenizer import get_tokenizer

        mel = self._log_mel(samples)
        # One pass without timestamp tokens, because a chunk fits the window: whisper.transcribe would decode the sound
        # after the last timestamp again, out of its context. The default limit of half the text context cuts off 28 s
        # of fast Chinese; some room is left for the tokens before the text.
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
        return Decoding(words, result.avg_logprob)

    def _log_mel(self, samples: npt.NDArray[np.float32]) -> torch.Tensor:
        import whisper

        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples), self._model.dims.n_mels)
        placed: torch.Tensor = mel.to(self._model.device)
        return placed.half() if self._half else placed


class FasterWhisper:
    """faster-whisper, with its default beam of 5; attributes and methods as those of :class:`OpenAIWhisper`."""

    drops_first_words = False

    def __init__(self, name: str, *, device: str) -> None:
        """Load the model, see :func:`load_faster_whisper`."""
        self._model = load_faster_whisper(name, device=device)
        from faster_whisper import BatchedInferencePipeline

        # The only part of the library that decodes given sound in exactly one pass, see OpenAIWhisper.
        self._pipeline = BatchedInferencePipeline(self._model)
        known = self._model.hf_tokenizer.token_to_id
        self.languages = [code for code in self._model.supported_languages if known(f"<|{code}|>")]

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        """Return the most probable language of up to 30 s of speech, and its probability."""
        if not self._model.model.is_multilingual:
            return "en", 1.0
        language, probability, _ = self._model.detect_language(samples)
        return language, probability

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> Decoding:
        """Recognise the words in up to 30 s of speech."""
        segments, _ = self._pipeline.transcribe(
            samples,
            language=language,
            temperature=0.0,
            without_timestamps=True,
            word_timestamps=True,
            vad_filter=False,
            clip_timestamps=[{"start": 0.0, "end": len(samples) / SAMPLE_RATE}],
        )
        # One clip gives one segment, or none without speech.
        heard = list(segments)
        words = tuple(Word(w.word, w.start, w.end, w.probability) for segment in heard for w in segment.words or ())
        return Decoding(words, min((segment.avg_logprob for segment in heard), default=0.0))


def why_not_words(heard: Decoding) -> str | None:
    """Return the reason to disbelieve the words of a chunk; None if there is none."""
    if _compression("".join(word.text for word in heard.words)) > _MAX_COMPRESSION:
        return "Whisper fell into a repetition loop"
    if heard.mean_log_probability < _MIN_LOG_PROBABILITY:
        return f"Whisper recognises nothing (mean log probability {heard.mean_log_probability:.2f})"
    return None


def is_better(later: Decoding, heard: Decoding) -> bool:
    """Whether to take the words of the second attempt, with silence before the sound."""
    if not later.words or why_not_words(later) is not None:
        return False
    gain = later.mean_log_probability - heard.mean_log_probability
    return not heard.words or why_not_words(heard) is not None or gain > _CLEARLY_BETTER


def _compression(text: str) -> float:
    """Length of a text over its length after compression by zlib, for any script.

    Whisper's own ratio counts UTF-8, in which plain Hindi or Thai reaches 2.6 only because each letter takes three
    bytes, of which two hardly change. Here each character is one byte, the number of its first appearance.
    """
    number = {character: index % 256 for index, character in enumerate(dict.fromkeys(text))}
    plain = bytes(number[character] for character in text)
    return len(plain) / len(zlib.compress(plain))
