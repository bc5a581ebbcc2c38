"""In: a media file.
Out: upright frames and 16 kHz sound, both on one clock; log-mel of the sound.
"""

from preprocessing.media.audio import (
    HOP_LENGTH,
    MEL_RATE,
    N_MELS,
    band_centres_hz,
    level_for_speech,
    log_mel_blocks,
    n_log_mel_rows,
    waveform_blocks,
)
from preprocessing.media.clock import RecordingClock
from preprocessing.media.container import (
    audio_stream,
    decode_stream,
    open_recording,
    read_packets,
    reason_of,
)
from preprocessing.media.mixdown import SAMPLE_RATE
from preprocessing.media.sound import Audio, Samples, decode_first_sound, read_audio
from preprocessing.media.video import Frame, Video, picture_size

__all__ = [
    "HOP_LENGTH",
    "MEL_RATE",
    "N_MELS",
    "SAMPLE_RATE",
    "Audio",
    "Frame",
    "RecordingClock",
    "Samples",
    "Video",
    "audio_stream",
    "band_centres_hz",
    "decode_first_sound",
    "decode_stream",
    "level_for_speech",
    "log_mel_blocks",
    "n_log_mel_rows",
    "open_recording",
    "picture_size",
    "read_audio",
    "read_packets",
    "reason_of",
    "waveform_blocks",
]
