"""MTCNN, which searches a picture for faces, or looks again at known ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.config import FaceSettings
from preprocessing.faces.crop import resize_region
from preprocessing.faces.track import SAME_FACE_IOU, Detections, no_faces, overlaps, sides

_MIN_FACE = 24
"""Smallest side of a face that is searched for, in pixels of the reduced picture."""
_THRESHOLDS = [0.7, 0.8, 0.7]
"""Minimum scores of the three networks. With the defaults of the first two, 0.6 and 0.7, a search takes half as long
again and finds the same faces in all test clips."""
_MOST_FACES = 8
"""Only the largest faces of a picture are followed."""
_ONET_SIDE = 48
"""Input of MTCNN's last network, pixels."""
_SETTLED_IOU = 0.8
"""The last network corrects the given box; if it moves a box by more, it looks again from there."""


class FaceDetector:
    """MTCNN, loaded once; the weights come with facenet-pytorch."""

    def __init__(self, settings: FaceSettings, *, device: str) -> None:
        """Load the three networks.

        Args:
            settings: ``detection_side`` and ``min_score`` are used.
            device: of the networks, as PyTorch names it.
        """
        # Imported here: planning, --dry-run and the process that waits for the workers do without PyTorch.
        import torch
        from facenet_pytorch import MTCNN

        self._side = settings.detection_side
        self._min_score = settings.min_score
        self._device = torch.device(device)
        self._mtcnn = MTCNN(min_face_size=_MIN_FACE, thresholds=_THRESHOLDS, keep_all=True, device=self._device)

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Search a picture (H,W,3) RGB, reduced; faces largest first, in pixels of the picture as given."""
        height, width = image.shape[:2]
        scale = min(1.0, self._side / max(height, width))
        size = (round(width * scale), round(height * scale))
        if min(size) < _MIN_FACE:
            return no_faces()
        # In two steps, the first of them a plain average of whole pixels: as good, and faster for large pictures.
        reduced = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        boxes, scores, landmarks = self._mtcnn.detect(reduced, landmarks=True)
        if boxes is None:
            return no_faces()
        good = np.flatnonzero(scores.astype(np.float64) >= self._min_score)[:_MOST_FACES]
        stretch = np.array([width / size[0], height / size[1]])
        return Detections(
            boxes=boxes[good].astype(np.float64) * np.tile(stretch, 2),
            scores=scores[good].astype(np.float64),
            landmarks=landmarks[good].astype(np.float64) * stretch,
        )

    def follow(self, image: NDArray[np.uint8], known: Detections) -> tuple[Detections, NDArray[np.bool_]]:
        """Look at a picture (H,W,3) RGB only where n faces were a moment before, or will be a moment later.

        Returns:
            The faces that are there, and (n,) which of the known ones they are.
        """
        import torch
        from torchvision.ops import nms

        found, there = self._refine(image, known.boxes)
        settled = overlaps(found.boxes, known.boxes[there]).diagonal() >= _SETTLED_IOU
        if not settled.all():
            found, visible = self._refine(image, found.boxes)
            there[there] = visible
        # The same face twice would be followed twice from here on.
        distinct = nms(torch.from_numpy(found.boxes), torch.from_numpy(found.scores), SAME_FACE_IOU)
        sure = np.isin(np.arange(len(found)), distinct) & (found.scores >= self._min_score)
        there[there] = sure
        return found.take(sure), there

    def _refine(self, image: NDArray[np.uint8], boxes: NDArray[np.float64]) -> tuple[Detections, NDArray[np.bool_]]:
        """MTCNN's last network on the squares around n boxes, and (n,) which of them lie in the picture at all."""
        height, width = image.shape[:2]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        side = sides(boxes)[:, None]
        squares = np.concatenate([centres - side / 2, centres + side / 2], axis=1)
        # As MTCNN does it, a square that reaches over the edge is cut there and stretched.
        inside = np.clip(squares, 0, [width, height, width, height])
        visible = np.all(inside[:, 2:] - inside[:, :2] >= 1, axis=1)
        squares, side = squares[visible], side[visible]
        if not visible.any():
            return no_faces(), visible
        patches = np.stack([resize_region(image, part, _ONET_SIDE, Image.Resampling.BOX) for part in inside[visible]])
        import torch

        pixels = torch.from_numpy(patches).permute(0, 3, 1, 2).to(self._device, torch.float32)
        with torch.inference_mode():
            outputs = self._mtcnn.onet((pixels - 127.5) / 128)
        shifts, points, scores = (output.cpu().numpy().astype(np.float64) for output in outputs)
        # Five x, then five y, as fractions of the square's side, like the shifts of the corners.
        landmarks = squares[:, None, :2] + side[:, None] * points.reshape(-1, 2, 5).transpose(0, 2, 1)
        return Detections(squares + side * shifts, scores[:, 1], landmarks), visible
