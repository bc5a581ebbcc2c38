"""In: sound, or a transcript file.
Out: words with times, and a vector for each word.
"""

from preprocessing.speech.activity import detect_speech
from preprocessing.speech.models import (
    has_packaged_whisper,
    load_openai_whisper,
    load_text_encoder,
    quiet_transformers,
    socket_timeout,
)
from preprocessing.speech.recognise import SpeechRecogniser, Transcript
from preprocessing.speech.transcripts import find_transcript, read_transcript
from preprocessing.speech.words import WordEncoder, sentences

__all__ = [
    "SpeechRecogniser",
    "Transcript",
    "WordEncoder",
    "detect_speech",
    "find_transcript",
    "has_packaged_whisper",
    "load_openai_whisper",
    "load_text_encoder",
    "quiet_transformers",
    "read_transcript",
    "sentences",
    "socket_timeout",
]
