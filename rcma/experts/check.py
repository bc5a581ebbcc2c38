"""Runs downloaded models on noise, and face models on a picture of a smile."""

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
from rcma.experts.face import FaceExpert
from rcma.experts.registry import FaceEntry, VoiceEntry


@dataclass(frozen=True)
class Finding:
    """Output of one model for one input."""

    model: str
    given: str
    valence: float
    arousal: float
    verdict: str
    passed: bool
    """False if a value is not finite or has the wrong sign."""


def check_model(entry: FaceEntry | VoiceEntry, smile: tuple[NDArray[np.uint8], NDArray] | None) -> list[Finding]:
    """Load a downloaded model, check its files and run it, a face model also on a smile from :func:`find_face`.

    Raises:
        InputError: the model is not on this machine, its checksum is wrong, or it cannot be run.
    """
    path = entry.locate()
    random = np.random.default_rng(0)
    if isinstance(entry, VoiceEntry):
        sound = random.normal(0.0, 0.1, 4 * SAMPLE_RATE).astype(np.float32)
        return [_judge(entry.name, "noise as sound", AudeeringExpert(path).listen(sound))]
    face = FaceExpert(path, entry)
    side = 2 * entry.side
    picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    findings = [_judge(entry.name, "noise as a picture", face.look(picture, np.array([0, 0, side, side])))]
    if smile is not None:
        findings.append(_judge(entry.name, "the given smile", face.look(*smile), is_pleasant=True))
    return findings


def find_face(path: Path) -> tuple[NDArray[np.uint8], NDArray]:
    """Find the largest face in the first frame of a picture or video.

    Returns:
        The frame (H,W,3) in RGB, and the box (4,) of the face: x1 y1 x2 y2.

    Raises:
        InputError: the file cannot be read, or no face is found.
    """
    with Video(path) as video:
        image = next(video.frames()).image
    found = FaceDetector(FaceSettings(), device="cpu").detect(image)
    if not len(found.boxes):
        raise InputError(f"{path}: no face is found in its first frame; give a picture of a smiling face")
    return image, found.boxes[0]


def _judge(model: str, given: str, output: NDArray[np.float32] | None, *, is_pleasant: bool = False) -> Finding:
    """Judge the first two values of an output, valence and arousal; None: the face is outside the picture."""
    valence, arousal = (np.nan, np.nan) if output is None else np.clip(output[:2], -1.0, 1.0).tolist()
    passed = bool(np.isfinite([valence, arousal]).all())
    verdict = "finite" if passed else "not finite"
    if passed and is_pleasant:
        passed = valence > 0
        verdict = "pleasant, as a smile should be" if passed else "unpleasant, which a smile should not be"
    return Finding(model, given, valence, arousal, verdict, passed)
