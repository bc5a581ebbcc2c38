"""Faces as Aff-Wild2 delivers them: one folder of images for each annotated person, instead of face detection.

``cropped_aligned/<video_id>[_left|_right]/00001.jpg``: numbers count frames from 1, and a frame without a face has no
file. Images that other programs number from 0 are recognised by an image 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from preprocessing.errors import InputError
from preprocessing.faces.crop import Faces, read_crops

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def describe_provided(folder: Path, *, first_image: int = 1) -> dict[str, Any]:
    """Return path, number, size and numbering of a person's images, to tell later whether they are still the same."""
    images = [path for paths in _list_images(folder)[0].values() for path in paths]
    size = sum(path.stat().st_size for path in images)
    return {"path": str(folder), "n_images": len(images), "size": size, "first_image": first_image}


def read_provided(
    folder: Path, *, n_frames: int, size: int, store: IO[bytes], first_image: int = 1
) -> tuple[Faces, list[str]]:
    """Read the faces of one person.

    Args:
        folder: of images named by frame.
        n_frames: T, frames decoded from the raw video.
        size: side in pixels to which the images are resized.
        store: file to which the crops are appended.
        first_image: number of the image of the first frame, 0 or 1; an image 0 in the folder shows that it is 0.

    Returns:
        Faces (boxes are not known: NaN; a score is 1), and warnings.

    Raises:
        InputError: no image has the number of a frame, two have the same, or they cannot be counted from 0.
    """
    images, unnumbered = _list_images(folder)
    first_image, warnings = _first_image(folder, images, first_image, n_frames=n_frames)
    last_image = n_frames - 1 + first_image
    scores = np.full(n_frames, np.nan, dtype=np.float32)
    numbers = np.full(n_frames, -1, dtype=np.intp)
    next_number = store.seek(0, 2) // (size * size * 3)
    unreadable, black, not_square = [], [], []
    for number, (path, *others) in sorted(images.items()):
        if others:
            raise InputError(f"{folder}: {path.name} and {others[0].name} are both image {number}; keep one")
        if number > last_image:
            continue
        try:
            image = _read_image(path)
        except Exception:  # Pillow raises many kinds, whatever the bytes are
            unreadable.append(path.name)
            continue
        if image.width != image.height:
            not_square.append(path.name)
        crop = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        if not crop.any():
            black.append(path.name)
        store.write(crop.tobytes())
        scores[number - first_image], numbers[number - first_image] = 1.0, next_number
        next_number += 1
    if not np.isfinite(scores).any():
        raise InputError(f"{folder}: no image of a frame in it; they are named 00001.jpg, 00002.jpg, ... by frame")
    surplus = sum(number > last_image for number in images)
    if surplus:
        last = max(images)
        warnings.append(f"faces: images up to {last}, but {n_frames} frames decoded; surplus ones left out: {surplus}")
    for problem, names in (
        ("images that cannot be read, taken as missing", unreadable),
        ("images that are not square, squeezed into a square", not_square),
        ("images that are black all over", black),
        ("images that are not named by frame, left out", unnumbered),
    ):
        if names:
            warnings.append(f"faces: {problem}: {len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})")
    boxes = np.full((n_frames, 4), np.nan, dtype=np.float32)
    return Faces(boxes, scores, partial(read_crops, store, numbers, size)), warnings


def _first_image(
    folder: Path, images: Mapping[int, Sequence[Path]], first_image: int, *, n_frames: int
) -> tuple[int, list[str]]:
    """Number of the first frame's image, and a warning about it."""
    if 0 in images:
        return 0, [f"faces: images are numbered from 0: {images[0][0].name} belongs to the first frame"]
    if first_image == 1 or not images:
        return 1, []
    # Beside folders that count from 0, one without image 0 may do so too, if its first frame has no face.
    if max(images) >= n_frames:
        raise InputError(
            f"{folder}: other folders have an image 0, this one has none but image {max(images)} for {n_frames} "
            "frames, so it seems to count from 1; rename the images so that all folders count from 1"
        )
    return 0, ["faces: images are taken as numbered from 0, because other folders beside it have an image 0"]


def _read_image(path: Path) -> Image.Image:
    """An image as RGB, upright, 8 bits per channel."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            # Grey in 16 bits: converting to RGB would clip it at 255.
            pixels: NDArray[Any] = np.asarray(upright)
            upright = Image.fromarray((np.clip(pixels, 0, 2**16 - 1) // 2**8).astype(np.uint8))
        elif upright.mode == "F":
            raise ValueError("floating point pixels, whose range is not known")
        return upright.convert("RGB")


def _list_images(folder: Path) -> tuple[dict[int, list[Path]], list[str]]:
    """Image files by number (several if 1.jpg and 00001.jpg both exist), and names of images without a number."""
    images: dict[int, list[Path]] = defaultdict(list)
    unnumbered = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _IMAGE_SUFFIXES:
            continue
        if path.stem.isascii() and path.stem.isdigit():
            images[int(path.stem)].append(path)
        elif not path.name.startswith("."):
            unnumbered.append(path.name)
    return images, unnumbered
