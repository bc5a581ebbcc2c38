"""Crops of faces: cut out of a frame, and read back from the file that holds those of a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TEMPLATE = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) / 112
)
"""Landmarks of an aligned face, as fractions of the crop's side. Source: ArcFace (arXiv 1801.07698)."""


@dataclass(frozen=True)
class Faces:
    """One person's face in each of T frames."""

    boxes: NDArray[np.float32]
    """(T,4) x1 y1 x2 y2 in pixels of the upright frame; NaN without a face, or if its place is not known."""
    scores: NDArray[np.float32]
    """(T,) the detector's score in [0, 1], interpolated where the box is; NaN without a face."""
    read_crops: Callable[[int, int], NDArray[np.uint8]]
    """Frames first to stop (excluded) -> (stop-first,S,S,3) RGB; zeros without a face."""


def read_crops(store: IO[bytes], numbers: NDArray[np.intp], size: int, first: int, stop: int) -> NDArray[np.uint8]:
    """Read crops of side ``size`` as :attr:`Faces.read_crops` does, from a file of consecutive crops.

    ``numbers`` (T,) has the index of each frame's crop in the file, -1 for zeros.
    """
    crops = np.zeros((stop - first, size, size, 3), dtype=np.uint8)
    for crop, number in zip(crops, numbers[first:stop], strict=True):
        if number >= 0:
            store.seek(int(number) * crop.nbytes)
            crop[...] = np.frombuffer(store.read(crop.nbytes), dtype=np.uint8).reshape(crop.shape)
    return crops


def cut_face(image: NDArray[np.uint8], box: NDArray[np.float64], *, size: int, margin: float) -> NDArray[np.uint8]:
    """Cut the square around a box out of a picture (H,W,3), with a margin on each side as a fraction of its side.

    Returns uint8 (size,size,3), black outside the picture.
    """
    centre = (box[:2] + box[2:]) / 2
    half = max(box[2] - box[0], box[3] - box[1], 1.0) * (0.5 + margin)
    return resize_region(image, np.concatenate([centre - half, centre + half]), size, Image.Resampling.BILINEAR)


def align_face(
    image: NDArray[np.uint8], landmarks: NDArray[np.float64], *, size: int, margin: float
) -> NDArray[np.uint8]:
    """Turn, scale and shift a face so that its landmarks (5,2) match ArcFace's; otherwise as :func:`cut_face`."""
    # A similarity of the plane is z -> a z + b with complex a and b; least squares from places in the crop to places
    # in the picture.
    target = ((_TEMPLATE - 0.5) / (1 + 2 * margin) + 0.5) * size
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (target, landmarks))
    z_mean, w_mean = z.mean(), w.mean()
    a = np.vdot(z - z_mean, w - w_mean) / np.vdot(z - z_mean, z - z_mean)
    b = w_mean - a * z_mean
    # Drawn at about the picture's own scale, then reduced: sampling at distances above a pixel would alias.
    finer = max(1, round(abs(a)))
    corners = np.array([a * (x + 1j * y) * size + b for x in (0, 1) for y in (0, 1)])
    corner = np.floor([corners.real.min(), corners.imag.min()]).astype(int) - 1
    end = np.ceil([corners.real.max(), corners.imag.max()]).astype(int) + 1
    a, b = a / finer, b - complex(*corner)
    drawn = Image.fromarray(_cut(image, corner, end)).transform(
        (size * finer, size * finer),
        Image.Transform.AFFINE,
        (a.real, -a.imag, b.real, a.imag, a.real, b.imag),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(drawn.reduce(finer) if finer > 1 else drawn)


def resize_region(
    image: NDArray[np.uint8], region: NDArray[np.float64], size: int, method: Image.Resampling
) -> NDArray[np.uint8]:
    """Resize a rectangle x1 y1 x2 y2 of a picture to (size,size,3); black outside the picture."""
    corner, end = np.floor(region[:2]).astype(int), np.ceil(region[2:]).astype(int)
    part = tuple((region - np.tile(corner, 2)).tolist())
    # Pillow widens the filter when it reduces a picture, so that nothing is aliased.
    return np.asarray(Image.fromarray(_cut(image, corner, end)).resize((size, size), method, box=part))


def _cut(image: NDArray[np.uint8], corner: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Rectangle from x, y (included) to x, y (excluded); black outside the picture."""
    bounds = np.array([image.shape[1], image.shape[0]])
    low, high = np.clip(corner, 0, bounds), np.clip(end, 0, bounds)
    inside = image[low[1] : high[1], low[0] : high[0]]
    if np.array_equal(low, corner) and np.array_equal(high, end):
        return np.ascontiguousarray(inside)
    cut = np.zeros((end[1] - corner[1], end[0] - corner[0], 3), dtype=np.uint8)
    to, until = low - corner, high - corner
    cut[to[1] : until[1], to[0] : until[0]] = inside
    return cut
