"""openai-whisper and faster-whisper behind one interface, and when not to believe them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
"""How much higher the mean log probability of the second decoding must be to take its words: silence changes others,
too, and not for the better. Measured: .07 and .3 higher where it finds what was missed, else within .03."""

_MAX_COMPRESSION = 2.4
"""Whisper's own limit for length of text / length of compressed text, above which it is a repetition loop. Measured on
half a minute of text in five scripts, see :func:`_compression`: speech up to 1.7, loops from 3.2."""
_MIN_LOG_PROBABILITY = -1.0
"""Whisper's own limit for the mean log probability of tokens, below which decoding has failed. Measured: speech from
-0.69 (a mumbled 1.2 s) upwards, with noise 3 dB below it from -0.98; silence, noise and music mostly below -1.2, but
some music up to -0.6: by itself this limit does not catch music."""


@dataclass(frozen=True)
class Decoding:
    """What Whisper makes of one chunk."""

    words: tuple[Word, ...]
    """Times from the first sample that was given; texts with the leading space that marks the begin of a word."""
    mean_log_probability: float
    """Of the tokens."""


class Whisper(Protocol):
    """What the two libraries are used for."""

    languages: Sequence[str]
    """Codes that the model knows; ``en`` alone for a model of English only."""

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        """Most probable language of up to 30 s of speech, and its probability."""

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> Decoding:
        """Words in up to 30 s of speech."""


def load_whisper(settings: SpeechSettings, *, device: str) -> Whisper:
    """Whisper in the library that is requested.

    Raises:
        InputError: a model is not available, see :mod:`preprocessing.speech.models`, or it does not know the language.
    """
    library = _OpenAIWhisper if settings.backend == "openai-whisper" else _FasterWhisper
    with threads_kept():
        whisper: Whisper = library(settings.model, device=device)
    _check_language(settings.language, whisper.languages)
    return whisper


class _OpenAIWhisper:
    """openai-whisper, with the beam of 5 of its command line: greedy decoding is faster, but drops words."""

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

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> Decoding:
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
        return Decoding(words, result.avg_logprob)

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

        # The only entry of the library that decodes a given stretch in exactly one pass, see OpenAIWhisper.
        self._pipeline = BatchedInferencePipeline(self._model)
        known = self._model.hf_tokenizer
        supported = self._model.supported_languages
        self.languages: Sequence[str] = [code for code in supported if known.token_to_id(f"<|{code}|>")]

    def detect_language(self, samples: npt.NDArray[np.float32]) -> tuple[str, float]:
        if not self._model.model.is_multilingual:
            return "en", 1.0
        language, probability, _ = self._model.detect_language(samples)
        return language, probability

    def recognise(self, samples: npt.NDArray[np.float32], language: str) -> Decoding:
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
        return Decoding(words, min((segment.avg_logprob for segment in heard), default=0.0))


def _check_language(language: str | None, known: Sequence[str]) -> None:
    if language is None or language in known:
        return
    from whisper.tokenizer import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(language.lower())
    right = f"write {code}" if code in known else f"give one of {', '.join(sorted(known))}"
    raise InputError(f"speech.language: the model knows no language {language!r}; {right}")


def why_not_words(heard: Decoding) -> str | None:
    """Reason to disbelieve what Whisper heard in a chunk; None when there is none."""
    if _compression("".join(word.text for word in heard.words)) > _MAX_COMPRESSION:
        return "Whisper fell into a repetition loop"
    if heard.mean_log_probability < _MIN_LOG_PROBABILITY:
        return f"Whisper recognises nothing (mean log probability {heard.mean_log_probability:.2f})"
    return None


def is_better(later: Decoding, heard: Decoding) -> bool:
    """Whether to take what Whisper heard when the sound had silence before it."""
    if not later.words or why_not_words(later) is not None:
        return False
    gain = later.mean_log_probability - heard.mean_log_probability
    return not heard.words or why_not_words(heard) is not None or gain > _CLEARLY_BETTER


def _compression(text: str) -> float:
    """How many times shorter zlib makes a text, whatever its script.

    Whisper's own ratio counts UTF-8, in which plain Hindi or Thai reaches 2.6, only because each letter takes three
    bytes of which two hardly change. Here each character is one byte, the number of its first appearance.
    """
    number = {character: index % 256 for index, character in enumerate(dict.fromkeys(text))}
    plain = bytes(number[character] for character in text)
    return len(plain) / len(zlib.compress(plain))
