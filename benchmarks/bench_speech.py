"""How right the recognised words and their times are, beside plain Whisper in the same run.

usage: python benchmarks/bench_speech.py [--media FOLDER]

Systems: our recogniser with both of its libraries, and openai-whisper's own transcribe with its defaults and word
times as the baseline, all of them with Whisper base (for openai-whisper, the
checkpoint in $RCMA_TEST_WHISPER, else the one it downloads). The language is detected where nothing else is said.

    errors    words wrong in the 36 of six GRID clips, with the language given and detected
    invented  words heard in recordings and made signals in which nobody speaks
    times     starts of words of a voice made by espeak-ng, which tells when each word begins, with digital silence
              between the sentences and with white noise 20 dB below the speech; also how many words last longer than
              the next one's start
    captions  starts of the words that open the human captions of a real recording

Words are compared in lower case without punctuation, each digit as a word, letters beside a digit apart from it: "X4."
is "x four". Errors of times are of the words that Levenshtein's alignment (jiwer) finds right. What needs espeak-ng
(Debian: libespeak-ng1) or the recordings (RCMA_TEST_MEDIA) is skipped, and says so, where they are not there. Writes
benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import jiwer
import numpy as np
import torch
import torchaudio.functional
from measuring import OPENAI_WHISPER, whisper_base
from numpy.typing import NDArray
from results import write_result

from preprocessing.config import SpeechSettings
from preprocessing.errors import InputError
from preprocessing.features import Word
from preprocessing.media import SAMPLE_RATE, Audio, Video, read_audio
from preprocessing.speech import SpeechRecogniser, load_openai_whisper

GRID = {
    "grid_bbaf2n": "bin blue at F two now",
    "grid_brbk7n": "bin red by K seven now",
    "grid_lbax4n": "lay blue at X four now",
    "grid_lrwp9a": "lay red with P nine again",
    "grid_sbwe5n": "set blue with E five now",
    "grid_swwp2s": "set white with P two soon",
}
"""What is said in each clip: the corpus prescribes it."""

SPEECHLESS = (
    "liveportrait_d9.mp4",
    "liveportrait_d12.mp4",
    "streamio_awesome_vfr.mov",
    "pyfeat_WolfgangLanger.mp4",
    "facenetpt_video.mp4",
    "pyfeat_no_face.mp4",
)
SIGNAL_S = 30

CAPTIONED = "torchcodec_nasa_13013.mp4"
CAPTIONS = (
    (0.21, "This is the optical and science segment of the Webb"),
    (4.26, "space telescope in one of the largest cleanrooms in the world"),
    (8.35, "at NASA's Goddard Space Flight Center in Greenbelt, Maryland"),
)
"""When each caption is shown, seconds, and its words."""

SENTENCES = (
    "The small dog is sleeping in the corner of the old kitchen.",
    "My brother bought a new bicycle last summer.",
    "Please close the window before you leave the house.",
    "We walked along the river until the sun went down.",
    "Nobody knows why the train was late again.",
    "She keeps her letters in a wooden box under the bed.",
    "After dinner, the children played a game in the garden.",
    "The doctor told him to drink more water every day.",
    "Fresh bread and butter make a good breakfast.",
    "Our teacher speaks slowly, so everybody understands the lesson.",
)
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
NOISE_DB = -20.0
"""Of the noise, relative to the speech."""
GOOD_START_S = 0.2

DIGITS = {
    "0": "zero",
    "1": "one",
    "2": "two",
    "3": "three",
    "4": "four",
    "5": "five",
    "6": "six",
    "7": "seven",
    "8": "eight",
    "9": "nine",
}

Listener = Callable[[Audio, str | None], Sequence[Word]]
"""Words of a sound in a language; None has it detected."""
Measurement = dict[str, Any]


@dataclass(frozen=True)
class Token:
    """A normalised word."""

    text: str
    start_s: float
    """NaN when unknown."""


def normalise(text: str) -> list[str]:
    """Words in lower case without punctuation; each digit is a word, and what stands beside it another."""
    pieces = re.findall(r"[^\W\d_]+|\d", re.sub(r"['’]", "", text.lower()))
    return [DIGITS.get(piece, piece) for piece in pieces]


def tokens(words: Sequence[Word]) -> list[Token]:
    """Normalised words; of those that were written as one, only the first has a known start."""
    return [
        Token(text, word.start_s if index == 0 else np.nan)
        for word in words
        for index, text in enumerate(normalise(word.text))
    ]


def matches(truth: Sequence[Token], heard: Sequence[Token]) -> list[tuple[int, int]]:
    """Indices of the words that are the same in the best alignment."""
    aligned = jiwer.process_words(_joined(truth), _joined(heard)).alignments[0]
    return [
        pair
        for part in aligned
        if part.type == "equal"
        for pair in zip(
            range(part.ref_start_idx, part.ref_end_idx), range(part.hyp_start_idx, part.hyp_end_idx), strict=True
        )
    ]


def _joined(words: Sequence[Token]) -> str:
    return " ".join(word.text for word in words)


# ---- systems


def our_listener(backend: str) -> Listener:
    """Our recogniser; its models are loaded once per language."""
    loaded: dict[str | None, SpeechRecogniser] = {}

    def listen(audio: Audio, language: str | None) -> Sequence[Word]:
        if language not in loaded:
            settings = SpeechSettings.model_validate(
                {"backend": backend, "model": whisper_base(backend), "language": language}
            )
            loaded[language] = SpeechRecogniser(settings, device="cpu")
        return loaded[language].transcribe(audio).words

    return listen


def baseline_listener() -> Listener:
    """openai-whisper by itself."""
    whisper = load_openai_whisper(OPENAI_WHISPER, device="cpu")

    def listen(audio: Audio, language: str | None) -> Sequence[Word]:
        torch.manual_seed(0)  # Where it is not content with its words, Whisper draws others at random.
        samples = np.asarray(audio.samples[:])
        result = whisper.transcribe(samples, word_timestamps=True, fp16=False, language=language)
        return [
            Word(word["word"].strip(), audio.start_s + word["start"], audio.start_s + word["end"], word["probability"])
            for segment in result["segments"]
            for word in segment["words"]
        ]

    return listen


# ---- sounds


def sound_of(path: Path) -> Audio:
    """Sound of a recording.

    Raises:
        InputError: there is no such file, or it has no sound.
    """
    with Video(path) as video:
        audio = read_audio(path, origin_s=video.start_s)
    if audio is None:
        raise InputError(f"{path}: has no sound; give the folder with the recordings this benchmark names")
    return audio


def made_signals() -> dict[str, Audio]:
    """Sounds without any speech."""
    n_samples = SIGNAL_S * SAMPLE_RATE
    phase = 2.0 * np.pi * 440.0 * np.arange(n_samples) / SAMPLE_RATE
    return {
        "digital silence": _audio(np.zeros(n_samples)),
        "white noise": _audio(0.1 * np.random.default_rng(0).standard_normal(n_samples)),
        "tone of 440 Hz": _audio(0.3 * np.sin(phase)),
    }


def _audio(samples: NDArray[np.float64]) -> Audio:
    return Audio(samples=samples.astype(np.float32), start_s=0.0)


class Espeak:
    """A synthetic voice that tells when each word begins: the part of espeak-ng's speak_lib.h that this takes."""

    class _Event(ctypes.Structure):
        _fields_: ClassVar = [
            ("type", ctypes.c_int),
            ("unique_identifier", ctypes.c_uint),
            ("text_position", ctypes.c_int),
            ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", ctypes.c_char * 8),
        ]

    _RETRIEVAL, _DONT_EXIT, _UTF8, _BY_CHARACTER = 1, 0x8000, 1, 1
    _END_OF_EVENTS, _WORD = 0, 1

    def __init__(self) -> None:
        """Load the library and its English voice; once in a process, a second time it hangs.

        Raises:
            OSError: it is not installed, or its data is not.
        """
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(self._RETRIEVAL, 0, None, self._DONT_EXIT)
        if self._rate <= 0 or self._library.espeak_SetVoiceByName(b"en-us") != 0:
            raise OSError("libespeak-ng cannot load its voice en-us")
        self._pieces: list[NDArray[np.int16]] = []
        self._starts_s: dict[int, float] = {}
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(self._Event))
        self._callback = kind(self._take)  # Kept, because the library only has its address.
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, sentence: str) -> tuple[NDArray[np.float64], list[Token]]:
        """Speak a sentence in ASCII.

        Returns:
            Samples (N,) in [-1, 1] at 16 kHz, and the words with their starts in them; a word that espeak-ng runs
            together with the one before, such as in "of the", has no start of its own.
        """
        self._pieces.clear()
        self._starts_s.clear()
        text = sentence.encode("ascii") + b"\0"
        size = ctypes.c_size_t(len(text))
        self._library.espeak_Synth(text, size, 0, self._BY_CHARACTER, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        wave = torch.from_numpy(np.concatenate(self._pieces) / 32768.0)
        samples: NDArray[np.float64] = torchaudio.functional.resample(wave, self._rate, SAMPLE_RATE).numpy()
        words = [
            Token(text, self._starts_s.get(written.start(), np.nan))
            for written in re.finditer(r"\S+", sentence)
            for text in normalise(written.group())
        ]
        return samples, words

    def _take(self, wave: Any, n_samples: int, events: Any) -> int:
        if wave and n_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(wave, (n_samples,)).copy())
        index = 0
        while events[index].type != self._END_OF_EVENTS:
            if events[index].type == self._WORD:
                self._starts_s[events[index].text_position - 1] = events[index].audio_position / 1000.0
            index += 1
        return 0  # Go on.


def synthetic_recordings(espeak: Espeak) -> tuple[dict[str, Audio], list[Token]]:
    """The sentences with pauses around them, as they are and with noise; and their words with true starts."""
    rng = np.random.default_rng(0)
    pieces, truth, voices = [], [], []
    n_samples = 0
    for sentence in SENTENCES:
        pieces.append(_pause(rng))
        n_samples += len(pieces[-1])
        voice, words = espeak.say(sentence)
        truth += [Token(word.text, n_samples / SAMPLE_RATE + word.start_s) for word in words]
        pieces.append(voice)
        voices.append(voice)
        n_samples += len(voice)
    clean = np.concatenate([*pieces, _pause(rng)])
    loudness = np.sqrt(np.mean(np.concatenate(voices) ** 2))
    noise = loudness * 10.0 ** (NOISE_DB / 20.0) * rng.standard_normal(len(clean))
    return {"digital silence": _audio(clean), f"noise at {NOISE_DB:.0f} dB": _audio(clean + noise)}, truth


def _pause(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.zeros(round(rng.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S) * SAMPLE_RATE))


# ---- measurements


def errors(listen: Listener, clips: Mapping[str, Audio], language: str | None) -> Measurement:
    """Words wrong in GRID clips."""
    truth = [normalise(GRID[clip]) for clip in clips]
    heard = [normalise(" ".join(word.text for word in listen(audio, language))) for audio in clips.values()]
    found = jiwer.process_words([" ".join(words) for words in truth], [" ".join(words) for words in heard])
    return {
        "measures": "errors",
        "language": language or "detected",
        "words_wrong": found.substitutions + found.deletions + found.insertions,
        "words": sum(map(len, truth)),
        "word_error_rate": round(found.wer, 3),
        "heard": {clip: " ".join(words) for clip, words in zip(clips, heard, strict=True)},
    }


def invented(listen: Listener, sounds: Mapping[str, Audio]) -> Measurement:
    """Number of words where nobody speaks."""
    numbers = {name: len(listen(audio, None)) for name, audio in sounds.items()}
    return {"measures": "invented", "words": sum(numbers.values()), "words_by_sound": numbers}


def times(listen: Listener, audio: Audio, truth: Sequence[Token]) -> Measurement:
    """Errors of starts of words, seconds; positive means late."""
    words = listen(audio, None)
    heard = tokens(words)
    pairs = matches(truth, heard)
    late = np.array([heard[theirs].start_s - truth[true].start_s for true, theirs in pairs])
    late = late[~np.isnan(late)]
    return {
        "measures": "times",
        "recording_s": round(len(audio.samples) / SAMPLE_RATE, 1),
        "words": len(truth),
        "words_heard": len(heard),
        "words_right": len(pairs),
        "starts_compared": len(late),
        "median_absolute_error_s": round(float(np.median(np.abs(late))), 3),
        "90th_percentile_s": round(float(np.percentile(np.abs(late), 90)), 3),
        f"share_within_{GOOD_START_S}_s": round(float(np.mean(np.abs(late) <= GOOD_START_S)), 3),
        "median_error_s": round(float(np.median(late)), 3),
        "words_that_overlap_the_next": sum(bool(word.end_s > after.start_s) for word, after in pairwise(words)),
    }


def captions(listen: Listener, audio: Audio) -> Measurement:
    """Error of the start of each caption's first word, seconds; positive means late, None means not heard."""
    truth: list[Token] = []
    firsts: list[int] = []
    for shown_s, text in CAPTIONS:
        firsts.append(len(truth))
        truth += [Token(word, shown_s if index == 0 else np.nan) for index, word in enumerate(normalise(text))]
    heard = tokens(listen(audio, None))
    starts = {true: heard[theirs].start_s for true, theirs in matches(truth, heard)}
    return {
        "measures": "captions",
        "words": len(truth),
        "words_right": len(starts),
        "errors_s": {
            truth[first].text: round(float(starts[first] - truth[first].start_s), 2) if first in starts else None
            for first in firsts
        },
    }


def measure_all(systems: Mapping[str, Callable[[], Listener]], media: Path | None) -> Iterator[Measurement]:
    """Every measurement that can be made here, of every system."""
    clips: dict[str, Audio] = {}
    speechless = made_signals()
    captioned = None
    if media is not None and media.is_dir():
        clips = {clip: sound_of(media / f"{clip}.mpg") for clip in GRID}
        speechless |= {name: sound_of(media / name) for name in SPEECHLESS}
        captioned = sound_of(media / CAPTIONED)
    else:
        missing = "no folder of recordings is given" if media is None else f"{media} is no folder"
        print(f"skipped: errors, captions, invented in recordings ({missing}); set RCMA_TEST_MEDIA or give --media")
    synthetic: dict[str, Audio] = {}
    truth: list[Token] = []
    try:
        synthetic, truth = synthetic_recordings(Espeak())
    except OSError as error:
        print(f"skipped: times ({error}); install espeak-ng, on Debian: apt-get install libespeak-ng1")

    for name, load in systems.items():
        listen = load()
        if clips:
            yield {"system": name, **errors(listen, clips, "en")}
            yield {"system": name, **errors(listen, clips, None)}
        yield {"system": name, **invented(listen, speechless)}
        for between, audio in synthetic.items():
            yield {"system": name, "between_sentences": between, **times(listen, audio, truth)}
        if captioned is not None:
            yield {"system": name, **captions(listen, captioned)}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    media = os.environ.get("RCMA_TEST_MEDIA")
    parser.add_argument(
        "--media",
        type=Path,
        default=Path(media) if media else None,
        metavar="FOLDER",
        help="folder of recordings, default $RCMA_TEST_MEDIA",
    )
    args = parser.parse_args()
    systems = {
        "openai-whisper": lambda: our_listener("openai-whisper"),
        "faster-whisper": lambda: our_listener("faster-whisper"),
        "baseline": baseline_listener,
    }
    measurements = []
    try:
        for measurement in measure_all(systems, args.media):
            print(measurement, flush=True)
            measurements.append(measurement)
    except InputError as error:
        raise SystemExit(str(error)) from None
    write_result("speech", measurements)


if __name__ == "__main__":
    main()
