"""A synthetic voice that reports when each word begins: the part of espeak-ng's speak_lib.h that this needs."""

from __future__ import annotations

import ctypes
import re
from typing import Any, ClassVar

import numpy as np
import torch
import torchaudio.functional
from numpy.typing import NDArray

from preprocessing.media import SAMPLE_RATE

_RETRIEVAL, _DONT_EXIT, _UTF8, _BY_CHARACTER = 1, 0x8000, 1, 1
_END_OF_EVENTS, _WORD = 0, 1


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


class Espeak:
    """The English voice of espeak-ng."""

    def __init__(self) -> None:
        """Load the library; once in a process, a second time it hangs.

        Raises:
            OSError: it is not installed, or its data is not.
        """
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(_RETRIEVAL, 0, None, _DONT_EXIT)
        if self._rate <= 0 or self._library.espeak_SetVoiceByName(b"en-us") != 0:
            raise OSError("libespeak-ng cannot load its voice en-us")
        self._pieces: list[NDArray[np.int16]] = []
        self._starts_s: dict[int, float] = {}
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._take)  # the library has only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, sentence: str) -> tuple[NDArray[np.float64], list[tuple[str, float]]]:
        """Speak a sentence in ASCII.

        Returns:
            Samples (N,) in [-1, 1] at 16 kHz, and the words with their starts in seconds; NaN for a word that
            espeak-ng joins to the one before, as in "of the".
        """
        self._pieces.clear()
        self._starts_s.clear()
        text = sentence.encode("ascii") + b"\0"
        size = ctypes.c_size_t(len(text))
        self._library.espeak_Synth(text, size, 0, _BY_CHARACTER, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        wave = torch.from_numpy(np.concatenate(self._pieces) / 32768.0)
        samples: NDArray[np.float64] = torchaudio.functional.resample(wave, self._rate, SAMPLE_RATE).numpy()
        written = re.finditer(r"\S+", sentence)
        return samples, [(word.group(), self._starts_s.get(word.start(), np.nan)) for word in written]

    def _take(self, wave: Any, n_samples: int, events: Any) -> int:
        if wave and n_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(wave, (n_samples,)).copy())
        index = 0
        while events[index].type != _END_OF_EVENTS:
            if events[index].type == _WORD:
                self._starts_s[events[index].text_position - 1] = events[index].audio_position / 1000.0
            index += 1
        return 0  # continue
