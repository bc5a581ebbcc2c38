"""Faces as Aff-Wild2 delivers them: one folder of images for each annotated person, instead of face detection.

``cropped_aligned/<video_id>[_left|_right]/00001.jpg``: numbers count frames from 1, and a frame in which no face was
found has no file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from preprocessing.errors import InputError
from preprocessing.faces import Faces, crop_reader

_IMAGE = re.compile(r"(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)


def describe_provided(folder: Path) -> dict[str, Any]:
    """Path, number and size of the images of one person, to tell later whether they are still the same."""
    images = _images(folder)
    return {"path": str(folder), "n_images": len(images), "size": sum(path.stat().st_size for path in images.values())}


def read_provided(folder: Path, *, n_frames: int, size: int, store: IO[bytes]) -> tuple[Faces, list[str]]:
    """Read the faces of one person.

    Args:
        folder: with images named by frame, from 1.
        n_frames: T, frames decoded from the raw video.
        size: side that the images, square, are brought to.
        store: file that receives the crops, after what is there already.

    Returns:
        Faces (boxes are not known: NaN; a score is 1), and what is not as it should be.

    Raises:
        InputError: not one image has the number of a frame.
    """
    images = _images(folder)
    scores = np.full(n_frames, np.nan, dtype=np.float32)
    numbers = np.full(n_frames, -1, dtype=np.intp)
    next_number = store.seek(0, 2) // (size * size * 3)
    unreadable = []
    for number, path in sorted(images.items()):
        if not 1 <= number <= n_frames:
            continue
        try:
            with Image.open(path) as image:
                crop = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        except OSError:
            unreadable.append(path.name)
            continue
        store.write(np.asarray(crop).tobytes())
        scores[number - 1], numbers[number - 1] = 1.0, next_number
        next_number += 1
    if not np.isfinite(scores).any():
        raise InputError(f"{folder}: no image of a frame in it; they are named 00001.jpg, 00002.jpg, ... by frame")
    warnings = []
    surplus = sum(number > n_frames for number in images)
    if surplus:
        last = max(images)
        warnings.append(f"faces: images up to {last}, but {n_frames} frames decoded; surplus ones left out: {surplus}")
    if unreadable:
        warnings.append(
            f"faces: images that cannot be read, taken as missing: {len(unreadable)} ({unreadable[0]}, ...)"
        )
    boxes = np.full((n_frames, 4), np.nan, dtype=np.float32)
    return Faces(boxes, scores, crop_reader(store, numbers, size=size)), warnings


def _images(folder: Path) -> dict[int, Path]:
    found = ((_IMAGE.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}
