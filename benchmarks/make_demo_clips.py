"""Make the clips and labels that ``make demo`` learns from.

usage: python benchmarks/make_demo_clips.py [--out benchmarks/demo]

A public-domain portrait is warped over time and a synthetic voice speaks. Valence and arousal are drawn first, as
independent smooth curves; the clip then shows them:

    face    mouth corners and inner brows follow valence; eyes, mouth opening and head motion follow arousal
    voice   pitch, rate and loudness follow arousal
    words   follow valence

In some segments the face is behind a panel, in others nobody speaks, so that no modality is enough by itself. The
labels are synthetic: the clip was made from them, nobody rated it.

A tool for maintainers: it needs espeak-ng (``apt-get install espeak-ng``) and scikit-image (the ``dev`` extra).
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

FRAME_RATE = 25
SAMPLE_RATE = 16000
WIDTH, HEIGHT = 320, 240
SPLITS = {"Train_Set": 10, "Validation_Set": 3, "Test_Set": 3}

LEFT, TOP = 64, 0
"""Corner of the part of the portrait (512x512) that is shown."""
PIVOT = (224.0, 150.0)
"""Centre of the head's rotation, x and y in the portrait."""

SENTENCES = {
    "positive": (
        "I am so happy today.",
        "What a wonderful day.",
        "I love this so much.",
        "This is great news.",
        "We are proud and glad.",
        "It is a beautiful morning.",
        "That was a lovely party.",
        "Thank you, my good friend.",
    ),
    "neutral": (
        "The box is on the table.",
        "We take the bus at nine.",
        "The door is made of wood.",
        "There are two books here.",
        "The street is over there.",
        "It is a quarter past ten.",
        "He put the paper in the box.",
        "The train goes to the city.",
    ),
    "negative": (
        "I am so sad today.",
        "What a terrible day.",
        "I hate this so much.",
        "This is awful news.",
        "We are lost and afraid.",
        "It is a horrible mess.",
        "That was a painful defeat.",
        "My poor friend is dead.",
    ),
}


@dataclass(frozen=True)
class Segment:
    """A part of a clip in which the labels stay near one level."""

    start_s: float
    end_s: float
    valence: float
    arousal: float
    hidden: bool
    """The face is behind the panel."""
    silent: bool
    """Nobody speaks."""


@dataclass(frozen=True)
class Script:
    """Everything a clip is made from."""

    segments: tuple[Segment, ...]
    valence: NDArray[np.float64]
    """(T,) in [-1,1]."""
    arousal: NDArray[np.float64]
    """(T,) in [-1,1]."""

    @property
    def n_frames(self) -> int:
        """T."""
        return len(self.valence)


def write_script(rng: np.random.Generator, *, hidden: bool, silent: bool) -> Script:
    """Draw the labels and events of one clip."""
    levels = np.array([-0.9, -0.45, 0.45, 0.9])
    valence_levels, arousal_levels = rng.permutation(levels), rng.permutation(levels)
    durations = rng.uniform(1.8, 2.3, size=len(levels))
    ends = np.round(np.cumsum(durations) * FRAME_RATE) / FRAME_RATE
    events = rng.permutation(len(levels))
    segments = tuple(
        Segment(
            start_s=0.0 if k == 0 else float(ends[k - 1]),
            end_s=float(ends[k]),
            valence=float(np.clip(valence_levels[k] + rng.normal(0, 0.08), -1, 1)),
            arousal=float(np.clip(arousal_levels[k] + rng.normal(0, 0.08), -1, 1)),
            hidden=hidden and k == events[0],
            silent=silent and k == events[1],
        )
        for k in range(len(levels))
    )
    times = np.arange(round(ends[-1] * FRAME_RATE)) / FRAME_RATE
    return Script(
        segments,
        valence=_ease(times, [(s.start_s, s.end_s, s.valence) for s in segments]),
        arousal=_ease(times, [(s.start_s, s.end_s, s.arousal) for s in segments]),
    )


def _ease(times: NDArray[np.float64], levels: Sequence[tuple[float, float, float]]) -> NDArray[np.float64]:
    """Move from level to level within 0.6 s around each border, along half a cosine; (T,)."""
    curve = np.full(len(times), levels[0][2])
    for start_s, _, level in levels[1:]:
        progress = np.clip((times - start_s) / 0.6 + 0.5, 0.0, 1.0)
        curve += (level - curve) * (0.5 - 0.5 * np.cos(np.pi * progress))
    return curve


class Portrait:
    """A portrait whose face shows valence and arousal."""

    def __init__(self) -> None:
        """Load the portrait of Eileen Collins (NASA, public domain)."""
        from skimage import data

        self._image = data.astronaut().astype(np.float64)  # (512,512,3)
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
        self._x, self._y = x + LEFT, y + TOP

    def show(self, *, valence: float, arousal: float, opening: float, phase: float) -> NDArray[np.uint8]:
        """One picture (240,320,3) RGB.

        Args:
            valence: in [-1,1].
            arousal: in [-1,1].
            opening: of the mouth for speech, 0 to 1.
            phase: of the head's motion, radians.
        """
        x, y = self._head_pose(arousal, phase)
        dx, dy = np.zeros_like(x), np.zeros_like(y)
        sad = (1.0 - valence) / 2  # 0 to 1; the portrait itself smiles
        alert = (1.0 + arousal) / 2
        # Mouth corners: down and inwards when sad.
        for corner, inwards in ((203.0, 1.0), (247.0, -1.0)):
            weight = _bump(x, y, (corner, 140.0), 9.0)
            dy += weight * (14.0 * sad - 3.0)
            dx += weight * 5.0 * sad * inwards
        # Inner brows: down and together when sad; all of the brows up when alert.
        for inner, inwards in ((211.0, 1.0), (238.0, -1.0)):
            weight = _bump(x, y, (inner, 92.0), 7.0)
            dy += weight * 6.0 * sad
            dx += weight * 3.0 * sad * inwards
        for brow in (200.0, 249.0):
            dy -= _bump(x, y, (brow, 91.0), 9.0) * 5.0 * alert
        # Eyes: half closed to wide open.
        for eye in ((203.0, 101.0), (247.0, 103.0)):
            dy += _bump(x, y, eye, 8.0) * (y - eye[1]) * (0.9 * alert - 0.6)
        # Mouth: opened by arousal and by speech.
        dy += _bump(x, y, (225.0, 153.0), 10.0) * 9.0 * (0.6 * alert + 0.4 * opening)
        dy += _bump(x, y, (225.0, 168.0), 14.0) * 5.0 * (0.6 * alert + 0.4 * opening)
        source = np.stack([y - dy, x - dx])
        channels = [map_coordinates(self._image[..., c], source, order=1, mode="nearest") for c in range(3)]
        return np.clip(np.stack(channels, axis=-1) + 0.5, 0, 255).astype(np.uint8)

    def _head_pose(self, arousal: float, phase: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coordinates in the portrait of each pixel shown; the head sways more with more arousal."""
        swing = 0.15 + 0.85 * (1.0 + arousal) / 2
        angle = np.deg2rad(5.0) * swing * np.sin(phase)
        x = self._x - PIVOT[0] - 7.0 * swing * np.sin(0.7 * phase)
        y = self._y - PIVOT[1] - 4.0 * swing * np.cos(1.3 * phase)
        return (
            np.cos(angle) * x + np.sin(angle) * y + PIVOT[0],
            -np.sin(angle) * x + np.cos(angle) * y + PIVOT[1],
        )


def _bump(
    x: NDArray[np.float64], y: NDArray[np.float64], centre: tuple[float, float], radius: float
) -> NDArray[np.float64]:
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2.0 * radius**2))


def render(script: Script, samples: NDArray[np.float64], portrait: Portrait) -> Iterator[NDArray[np.uint8]]:
    """All pictures of a clip, (240,320,3) RGB each."""
    per_frame = SAMPLE_RATE // FRAME_RATE
    loudness = np.sqrt(np.mean(samples.reshape(-1, per_frame) ** 2, axis=1))
    opening = np.convolve(np.minimum(loudness / 0.1, 1.0), np.ones(3) / 3, mode="same")
    phase = np.cumsum(0.12 + 0.2 * (1.0 + script.arousal) / 2)
    hidden = [(segment.start_s, segment.end_s) for segment in script.segments if segment.hidden]
    for k in range(script.n_frames):
        image = portrait.show(valence=script.valence[k], arousal=script.arousal[k], opening=opening[k], phase=phase[k])
        for start_s, end_s in hidden:
            _draw_panel(image, k / FRAME_RATE, start_s, end_s)
        yield image


def _draw_panel(image: NDArray[np.uint8], time_s: float, start_s: float, end_s: float) -> None:
    """Slide a striped panel over the whole picture within 0.2 s, and away again."""
    share = np.clip(min((time_s - start_s) / 0.2, (end_s - time_s) / 0.2), 0.0, 1.0)
    rows = round(float(share) * HEIGHT)
    image[:rows] = (70, 90, 110)
    image[:rows, ::40] = (90, 110, 130)


def speak(script: Script, rng: np.random.Generator) -> NDArray[np.float64]:
    """The sound of a clip, (T * 640,) in [-1,1] at 16 kHz."""
    samples = rng.normal(0.0, 3e-4, script.n_frames * SAMPLE_RATE // FRAME_RATE)
    for segment in script.segments:
        if segment.silent:
            continue
        mood = "positive" if segment.valence > 0.2 else "negative" if segment.valence < -0.2 else "neutral"
        room_s = segment.end_s - segment.start_s - 0.15
        for sentence in rng.permutation(SENTENCES[mood]):
            voice = synthesise(str(sentence), segment.arousal)
            if len(voice) <= room_s * SAMPLE_RATE:
                break
        voice = voice[: int(room_s * SAMPLE_RATE)]
        first = round((segment.start_s + 0.1) * SAMPLE_RATE)
        samples[first : first + len(voice)] += voice
    return np.clip(samples, -1.0, 1.0)


def synthesise(text: str, arousal: float) -> NDArray[np.float64]:
    """One sentence by espeak-ng, (N,) in [-1,1] at 16 kHz, without silence around it."""
    alert = (1.0 + arousal) / 2
    voice_options = ["-v", "en-us", "-p", f"{25 + 60 * alert:.0f}", "-s", f"{150 + 60 * alert:.0f}"]
    result = subprocess.run(["espeak-ng", *voice_options, "--stdout", text], capture_output=True, check=True)
    # Read by hand: the header of a streamed WAV does not know its length.
    with wave.open(io.BytesIO(result.stdout)) as file:
        rate = file.getframerate()
        voice = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16) / 32768.0
    positions = np.arange(int(len(voice) * SAMPLE_RATE / rate)) * rate / SAMPLE_RATE
    voice = np.interp(positions, np.arange(len(voice)), voice)
    loud = np.flatnonzero(np.abs(voice) > 0.01)
    voice = voice[loud[0] : loud[-1] + 1]
    return voice / np.abs(voice).max() * 0.12 * 6.0**alert


def encode(path: Path, images: Iterator[NDArray[np.uint8]], samples: NDArray[np.float64]) -> None:
    """Write a clip as H.264 and AAC."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "29", "preset": "veryslow"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 32000
        for k, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def write_labels(path: Path, script: Script, *, unrated: tuple[int, int] | None) -> None:
    """Write an ABAW annotation; frames of ``unrated`` (first, stop) are -5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{v:.3f},{a:.3f}" for v, a in zip(script.valence, script.arousal, strict=True)]
    if unrated is not None:
        rows[slice(*unrated)] = ["-5,-5"] * (unrated[1] - unrated[0])
    path.write_text("\n".join(["valence,arousal", *rows]) + "\n", encoding="utf-8")


def main() -> None:
    """Make all clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/demo"), help="folder that receives clips/ and annotations/"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    portrait = Portrait()
    (args.out / "clips").mkdir(parents=True, exist_ok=True)
    splits = [split for split, n_clips in SPLITS.items() for _ in range(n_clips)]
    for number, split in enumerate(splits, start=1):
        rng = np.random.default_rng((args.seed, number))
        # Half of the clips hide the face for a while, half have a silence, in all four combinations.
        script = write_script(rng, hidden=number % 2 == 0, silent=number % 4 in (1, 2))
        samples = speak(script, rng)
        clip = args.out / "clips" / f"demo_{number:02d}.mp4"
        encode(clip, render(script, samples, portrait), samples)
        # Real annotations have gaps; two training clips have one, too.
        unrated = (20, 40) if number in (3, 7) else None
        write_labels(args.out / "annotations" / split / f"{clip.stem}.txt", script, unrated=unrated)
        print(f"{clip}: {script.n_frames} frames, {clip.stat().st_size // 1000} kB, {split}")


if __name__ == "__main__":
    main()
