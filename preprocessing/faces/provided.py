"""Faces as Aff-Wild2 delivers them: one folder of images for each annotated person, instead of face detection.

``cropped_aligned/<video_id>[_left|_right]/00001.jpg``: numbers count frames from 1, and a frame in which no face was
found has no file. Images that other programs number from 0 are recognised by an image 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from preprocessing.errors import InputError
from preprocessing.faces.detect import Faces, crop_reader

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_NUMBER = re.compile(r"[0-9]+")


def describe_provided(folder: Path, *, first_image: int = 1) -> dict[str, Any]:
    """Path, number, size and numbering of the images of one person, to tell later whether they are still the same."""
    images = [path for paths in _images(folder).values() for path in paths]
    size = sum(path.stat().st_size for path in images)
    return {"path": str(folder), "n_images": len(images), "size": size, "first_image": first_image}


def read_provided(
    folder: Path, *, n_frames: int, size: int, store: IO[bytes], first_image: int = 1
) -> tuple[Faces, list[str]]:
    """Read the faces of one person.

    Args:
        folder: with images named by frame.
        n_frames: T, frames decoded from the raw video.
        size: side in pixels to which the images are resized.
        store: file that receives the crops, after what is there already.
        first_image: number of the image of the first frame, 0 or 1; an image 0 in the folder shows that it is 0.

    Returns:
        Faces (boxes are not known: NaN; a score is 1), and what is not as it should be.

    Raises:
        InputError: not one image has the number of a frame, two have the same, or they cannot be counted from 0.
    """
    images = _images(folder)
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
    warnings += [
        *_remark("images that cannot be read, taken as missing", unreadable),
        *_remark("images that are not square, squeezed into a square", not_square),
        *_remark("images that are black all over", black),
        *_remark("images that are not named by frame, left out", _not_numbered(folder)),
    ]
    boxes = np.full((n_frames, 4), np.nan, dtype=np.float32)
    return Faces(boxes, scores, crop_reader(store, numbers, size=size)), warnings


def _first_image(
    folder: Path, images: Mapping[int, Sequence[Path]], first_image: int, *, n_frames: int
) -> tuple[int, list[str]]:
    """Number of the first frame's image, and a remark about it."""
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
    """An image as RGB, upright, 8 bits a channel."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            # Grey in 16 bits: converting to RGB would cut it off at 255.
            upright = Image.fromarray(_to_8_bits(np.asarray(upright)))
        elif upright.mode == "F":
            raise InputError(f"{path}: floating point pixels, whose range is not known")
        return upright.convert("RGB")


def _to_8_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return (np.clip(pixels, 0, 2**16 - 1) // 2**8).astype(np.uint8)


def _remark(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"faces: {what}: {len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})"]


def _images(folder: Path) -> dict[int, list[Path]]:
    """Image files by their numbers; more than one where 1.jpg and 00001.jpg are both there."""
    images: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _IMAGE_SUFFIXES and _NUMBER.fullmatch(path.stem):
            images[int(path.stem)].append(path)
    return images


def _not_numbered(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in _IMAGE_SUFFIXES and not _NUMBER.fullmatch(path.stem) and not path.name.startswith(".")
    )
