"""Runs the fetched models on made-up input, and the face models on a picture that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import FaceSettings
from preprocessing.errors import InputError
from preprocessing.faces import FaceDetector
from preprocessing.media import SAMPLE_RATE, Video
from rcma.experts.audeering import AudeeringExpert
from rcma.experts.face import EMOTIONS, FaceExpert
from rcma.experts.registry import FaceEntry, VoiceEntry, locate

_VOICE_S = 4


@dataclass(frozen=True)
class Finding:
    """What one model gave for one input."""

    model: str
    given: str
    valence: float
    arousal: float
    verdict: str
    passed: bool
    """False if a value is not finite, or has the wrong sign."""


def check_model(entry: FaceEntry | VoiceEntry, smile: tuple[NDArray[np.uint8], NDArray] | None) -> list[Finding]:
    """Load a model that is here, checksum included, and run it.

    Args:
        entry: of the model.
        smile: a picture of a smiling face and its box, as :func:`find_face` gives them.

    Raises:
        InputError: the model is not here, its checksum is wrong, or it cannot be run.
    """
    path = locate(entry)
    if path is None:
        raise InputError(f"{entry.name}: not here")
    if isinstance(entry, VoiceEntry):
        return _check_voice(entry.name, AudeeringExpert(path))
    expert = FaceExpert(path, entry)
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2 * entry.side, 2 * entry.side, 3), dtype=np.uint8)
    findings = [_judge(entry.name, "noise as a picture", *_look(expert, noise, np.array([0, 0, *noise.shape[1::-1]])))]
    if smile is not None:
        findings.append(_judge(entry.name, "the given smile", *_look(expert, *smile), pleasant=True))
    return findings


def find_face(path: Path) -> tuple[NDArray[np.uint8], NDArray]:
    """The largest face of the first frame of a picture or video: (H,W,3) RGB and its box.

    Raises:
        InputError: it cannot be read, or no face is found.
    """
    with Video(path) as video:
        image = next(video.frames()).image
    found = FaceDetector(FaceSettings(), device="cpu").detect(image)
    if not len(found.boxes):
        raise InputError(f"{path}: no face is found in its first frame; give a picture of a smiling face")
    return image, found.boxes[0]


def _look(expert: FaceExpert, image: NDArray[np.uint8], box: NDArray) -> tuple[float, float]:
    output = expert.look(image, box)
    if output is None:
        raise InputError("the face lies outside of the picture")
    valence, arousal = np.clip(output[len(EMOTIONS) :], -1.0, 1.0)
    return float(valence), float(arousal)


def _check_voice(name: str, expert: AudeeringExpert) -> list[Finding]:
    calm, excited = (expert.listen(synthetic_voice(*voice)) for voice in ((110.0, 2.0), (260.0, 0.8)))
    findings = [
        _judge(name, "a low, dull synthetic voice", float(calm[0]), float(calm[1])),
        _judge(name, "a high, bright synthetic voice", float(excited[0]), float(excited[1])),
    ]
    return findings


def synthetic_voice(pitch_hz: float, tilt: float) -> NDArray[np.float32]:
    """Four seconds of harmonics k of a slowly varying pitch, of strength k ** -tilt, in syllables; 16 kHz."""
    t = np.arange(_VOICE_S * SAMPLE_RATE) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))) / SAMPLE_RATE
    harmonics = np.arange(1, int(0.4 * SAMPLE_RATE / pitch_hz))
    signal = sum(np.sin(k * phase) * k**-tilt for k in harmonics) * np.clip(np.sin(2 * np.pi * 2 * t), 0, None)
    return np.asarray(0.3 * signal / np.abs(signal).max(), np.float32)


def _judge(model: str, given: str, valence: float, arousal: float, *, pleasant: bool = False) -> Finding:
    passed = bool(np.isfinite([valence, arousal]).all())
    verdict = "finite" if passed else "not finite"
    if passed and pleasant:
        passed = valence > 0
        verdict = "pleasant, as a smile should be" if passed else "unpleasant, which a smile should not be"
    return Finding(model, given, valence, arousal, verdict, passed)
