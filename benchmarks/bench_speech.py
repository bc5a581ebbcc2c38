"""How correct the recognised words and their times are, beside plain Whisper in the same run.

usage: python benchmarks/bench_speech.py [--media FOLDER]

Systems: our recogniser with both of its libraries, and openai-whisper's own transcribe with its defaults and word
times as the baseline, all with Whisper base.

    errors    words wrong in the 36 of six GRID clips, with the language given and detected
    invented  words heard in recordings and synthetic signals in which nobody speaks
    times     starts of the words of a synthetic voice that reports when each word begins (espeak-ng), with digital
              silence between the sentences and with white noise 20 dB below the speech

Words are compared in lower case without punctuation, each digit as a word. Errors of times are of the words that
Levenshtein's alignment (jiwer) finds right. Whatever needs espeak-ng (Debian: libespeak-ng1) or the recordings
(RCMA_TEST_MEDIA) is skipped with a message where they are missing. Writes benchmarks/results/; the last line printed is
the result, as JSON.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jiwer
import numpy as np
import torch
from espeak import Espeak
from measuring import BACKENDS, OPENAI_WHISPER, Measurement, argument_parser, settings, show, write_result
from numpy.typing import NDArray

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
"""The words of each clip, which the corpus prescribes."""

SPEECHLESS = (
    "liveportrait_d9.mp4",
    "liveportrait_d12.mp4",
    "streamio_awesome_vfr.mov",
    "pyfeat_WolfgangLanger.mp4",
    "facenetpt_video.mp4",
    "pyfeat_no_face.mp4",
)
SIGNAL_S = 30

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
PAUSE_S = (0.5, 15.0)
"""Shortest and longest pause between the sentences."""
NOISE_DB = -20.0
"""Relative to the speech."""
GOOD_START_S = 0.2

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Listener = Callable[[Audio, str | None], Sequence[Word]]
"""Words of a sound in a language; None has it detected."""
Token = tuple[str, float]
"""A normalised word and its start in seconds, NaN if unknown."""


def normalise(words: Sequence[Token]) -> list[Token]:
    """Split words into lower-case runs of letters and single digits; only the first piece of each has a known start."""
    return [
        (DIGITS[int(piece)] if piece.isdigit() else piece, start_s if index == 0 else np.nan)
        for text, start_s in words
        for index, piece in enumerate(re.findall(r"[^\W\d_]+|\d", re.sub(r"['’]", "", text.lower())))
    ]


def plain(text: str) -> str:
    """Normalise a text."""
    return " ".join(word for word, _ in normalise([(text, np.nan)]))


def our_listener(backend: str) -> Listener:
    """Our recogniser; its models are loaded once per language."""
    loaded: dict[str | None, SpeechRecogniser] = {}

    def listen(audio: Audio, language: str | None) -> Sequence[Word]:
        if language not in loaded:
            speech = settings(backend).speech.model_copy(update={"language": language})
            loaded[language] = SpeechRecogniser(speech, device="cpu")
        return loaded[language].transcribe(audio).words

    return listen


def baseline_listener() -> Listener:
    """openai-whisper by itself."""
    whisper = load_openai_whisper(OPENAI_WHISPER, device="cpu")

    def listen(audio: Audio, language: str | None) -> Sequence[Word]:
        torch.manual_seed(0)  # if its first result is unlikely, Whisper samples others
        samples = np.asarray(audio.samples[:])
        result = whisper.transcribe(samples, word_timestamps=True, fp16=False, language=language)
        return [
            Word(word["word"].strip(), audio.start_s + word["start"], audio.start_s + word["end"], word["probability"])
            for segment in result["segments"]
            for word in segment["words"]
        ]

    return listen


def read_sound(path: Path) -> Audio:
    """Read the sound of a recording.

    Raises:
        InputError: there is no such file, or it has no sound.
    """
    with Video(path) as video:
        audio = read_audio(path, origin_s=video.start_s)
    if audio is None:
        raise InputError(f"{path}: has no sound; give the folder with the recordings this benchmark names")
    return audio


def sound_of(samples: NDArray[np.float64]) -> Audio:
    """Make a sound of samples."""
    return Audio(samples=samples.astype(np.float32), start_s=0.0)


def speechless_signals() -> dict[str, Audio]:
    """Make sounds without any speech."""
    n_samples = SIGNAL_S * SAMPLE_RATE
    phase = 2.0 * np.pi * 440.0 * np.arange(n_samples) / SAMPLE_RATE
    return {
        "digital silence": sound_of(np.zeros(n_samples)),
        "white noise": sound_of(0.1 * np.random.default_rng(0).standard_normal(n_samples)),
        "tone of 440 Hz": sound_of(0.3 * np.sin(phase)),
    }


def synthetic_speech(espeak: Espeak) -> tuple[dict[str, Audio], list[Token]]:
    """Speak the sentences with pauses around them, without and with noise; and their words with true starts."""
    rng = np.random.default_rng(0)

    def pause() -> NDArray[np.float64]:
        return np.zeros(round(rng.uniform(*PAUSE_S) * SAMPLE_RATE))

    pieces: list[NDArray[np.float64]] = []
    truth: list[Token] = []
    for sentence in SENTENCES:
        pieces.append(pause())
        voice, words = espeak.say(sentence)
        begin_s = sum(map(len, pieces)) / SAMPLE_RATE
        truth += normalise([(text, begin_s + start_s) for text, start_s in words])
        pieces.append(voice)
    clean = np.concatenate([*pieces, pause()])
    loudness = np.sqrt(np.mean(np.concatenate(pieces[1::2]) ** 2))
    noise = loudness * 10.0 ** (NOISE_DB / 20.0) * rng.standard_normal(len(clean))
    return {"digital silence": sound_of(clean), f"noise at {NOISE_DB:.0f} dB": sound_of(clean + noise)}, truth


def measure_errors(listen: Listener, clips: Mapping[str, Audio], language: str | None) -> Measurement:
    """Count the wrong words in GRID clips."""
    heard = {clip: plain(" ".join(word.text for word in listen(audio, language))) for clip, audio in clips.items()}
    found = jiwer.process_words([plain(GRID[clip]) for clip in heard], list(heard.values()))
    return {
        "measures": "errors",
        "language": language or "detected",
        "words_wrong": found.substitutions + found.deletions + found.insertions,
        "words": found.hits + found.substitutions + found.deletions,
        "word_error_rate": round(found.wer, 3),
        "heard": heard,
    }


def measure_invented(listen: Listener, sounds: Mapping[str, Audio]) -> Measurement:
    """Count the words where nobody speaks."""
    numbers = {name: len(listen(audio, None)) for name, audio in sounds.items()}
    return {"measures": "invented", "words": sum(numbers.values()), "words_by_sound": numbers}


def measure_times(listen: Listener, audio: Audio, truth: Sequence[Token]) -> Measurement:
    """Errors of the starts of words, seconds; positive means late."""
    heard = normalise([(word.text, word.start_s) for word in listen(audio, None)])
    reference, hypothesis = (" ".join(text for text, _ in words) for words in (truth, heard))
    right = [part for part in jiwer.process_words(reference, hypothesis).alignments[0] if part.type == "equal"]
    late = np.array(
        [
            heard[part.hyp_start_idx + k][1] - truth[part.ref_start_idx + k][1]
            for part in right
            for k in range(part.ref_end_idx - part.ref_start_idx)
        ]
    )
    n_right = len(late)
    late = late[~np.isnan(late)]
    return {
        "measures": "times",
        "recording_s": round(len(audio.samples) / SAMPLE_RATE, 1),
        "words": len(truth),
        "words_heard": len(heard),
        "words_right": n_right,
        "starts_compared": len(late),
        "median_absolute_error_s": round(float(np.median(np.abs(late))), 3),
        "90th_percentile_s": round(float(np.percentile(np.abs(late), 90)), 3),
        f"share_within_{GOOD_START_S}_s": round(float(np.mean(np.abs(late) <= GOOD_START_S)), 3),
        "median_error_s": round(float(np.median(late)), 3),
    }


def measure_all(media: Path | None) -> Iterator[Measurement]:
    """Measure everything that can be measured here, for every system."""
    clips: dict[str, Audio] = {}
    speechless = speechless_signals()
    if media is not None and media.is_dir():
        clips = {clip: read_sound(media / f"{clip}.mpg") for clip in GRID}
        speechless |= {name: read_sound(media / name) for name in SPEECHLESS}
    else:
        print(f"skipped: errors, invented in recordings (no folder {media}); set RCMA_TEST_MEDIA or give --media")
    synthetic: dict[str, Audio] = {}
    truth: list[Token] = []
    try:
        synthetic, truth = synthetic_speech(Espeak())
    except OSError as error:
        print(f"skipped: times ({error}); install espeak-ng, on Debian: apt-get install libespeak-ng1")
    for system in (*BACKENDS, "baseline"):
        listen = baseline_listener() if system == "baseline" else our_listener(system)
        if clips:
            yield {"system": system, **measure_errors(listen, clips, "en")}
            yield {"system": system, **measure_errors(listen, clips, None)}
        yield {"system": system, **measure_invented(listen, speechless)}
        for between, audio in synthetic.items():
            yield {"system": system, "between_sentences": between, **measure_times(listen, audio, truth)}


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__)
    media = os.environ.get("RCMA_TEST_MEDIA")
    parser.add_argument(
        "--media",
        type=Path,
        default=Path(media) if media else None,
        metavar="FOLDER",
        help="folder of recordings, default $RCMA_TEST_MEDIA",
    )
    args = parser.parse_args()
    try:
        write_result("speech", [show(row) for row in measure_all(args.media)])
    except InputError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
