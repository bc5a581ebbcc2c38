"""Draws into a frame: the face box, the words, valence and arousal, and which modalities the frame has."""

from __future__ import annotations

import logging
import math
import unicodedata
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from preprocessing.features import Features
from preprocessing.fonts import Fonts
from rcma.config import MODALITIES, TARGETS
from rcma.prediction import Prediction

_LEAST_SIDE = 240
"""Pixels; smaller pictures are enlarged by a whole factor, so that the text can be read."""
_TRAIL_S = 2.0
_PAUSE_S, _LINGER_S = 1.0, 0.7
"""Seconds: a pause that ends a line of words, and how long a line stays after its last word."""
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "؟", "।")
_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages written without spaces between the pieces that Whisper calls words, as its tokenizer lists them."""
_MODALITY_NAMES = {"face": "face", "audio": "sound", "text": "words"}

_PANEL, _LINES, _TRAIL = (14, 16, 22, 165), (255, 255, 255, 105), (255, 205, 74, 130)
_WHITE, _GREY, _ACCENT, _DARK, _FACE = (255, 255, 255), (170, 174, 182), (255, 205, 74), (14, 16, 22), (92, 222, 168)

log = logging.getLogger("rcma")


class Drawing:
    """Draws over the frames of one video."""

    width: int
    """Of the pictures that it returns, pixels: those of the video, enlarged if they are small."""
    height: int

    def __init__(
        self, width: int, height: int, features: Features, prediction: Prediction, *, predicted_by: str = ""
    ) -> None:
        """Prepare what all frames share.

        Args:
            width: of the video, pixels.
            height: of the video, pixels.
            features: of its T frames.
            prediction: of the same frames.
            predicted_by: shown below the modalities; for models other than RCMA.
        """
        self._factor = math.ceil(_LEAST_SIDE / min(width, height))
        self.width, self.height = width * self._factor, height * self._factor
        self._size = size = max(10, round(0.028 * min(self.width, self.height)))
        """Height of the small font, pixels; all lengths are proportional to it."""
        self._pad, self._row, self._plane = round(0.4 * size), round(1.35 * size), round(8.5 * size)
        self._box = np.asarray(features.face_box, np.float64)
        self._times = np.asarray(features.time_s, np.float64)
        self._values = np.clip(np.asarray(prediction.values, np.float64), -1, 1)
        self._present = {_MODALITY_NAMES[m]: prediction.present[m] for m in MODALITIES if m in prediction.present}
        self._predicted_by = predicted_by
        self._fonts = Fonts([predicted_by, *(word.text for word in features.words)])
        if self._fonts.missing:
            log.warning(
                f"{features.video_id}: no installed font has {len(self._fonts.missing)} of the characters of its "
                "words, boxes stand for them; install a font of that script, for example one of Noto"
            )
        self._captions = _Captions(self._fonts, features, size=round(1.7 * size), room=self.width - 3 * size)
        self._margin = round(0.7 * size)
        lamps = [self._predicted_by, *(f"● no {name}" for name in self._present)]
        self._lamps_width = math.ceil(max(self._fonts.width(text, size) for text in lamps)) + 2 * self._pad
        self._lamps_left = self._margin
        self._plane_left = self.width - self._margin - self._plane - 2 * self._pad
        mirrored = self.width - self._margin - self._lamps_width, self._margin
        if self._hidden(*mirrored) < self._hidden(self._lamps_left, self._plane_left):
            self._lamps_left, self._plane_left = mirrored

    def draw(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Return a picture (H,W,3) RGB with everything drawn over frame ``index``.

        A picture of another size than the video's is shown whole, with black bars.
        """
        height, width = image.shape[:2]
        scale = min(self.width / width, self.height / height)
        corner = (self.width - scale * width) / 2, (self.height - scale * height) / 2
        picture = fit(image, self.width, self.height)
        draw = ImageDraw.Draw(picture, "RGBA")
        self._draw_face(draw, self._box[index] * scale + np.tile(corner, 2))
        self._draw_lamps(draw, index, self._lamps_left, self._margin)
        self._draw_plane(draw, index, self._plane_left, self._margin)
        bottom = self.height - self._margin
        self._captions.draw(draw, index, self._times[index], middle=self.width / 2, bottom=bottom)
        return np.asarray(picture)

    def _hidden(self, lamps_left: int, plane_left: int) -> float:
        """How much of the faces' width the panels would cover, summed over the frames."""
        x1, _, x2, _ = self._box.T * self._factor
        panels = ((lamps_left, self._lamps_width), (plane_left, self._plane + 2 * self._pad))
        covered = [np.minimum(x2, left + width) - np.maximum(x1, left) for left, width in panels]
        return float(np.nansum(np.maximum(covered, 0)))

    def _draw_face(self, draw: ImageDraw.ImageDraw, box: NDArray[np.float64]) -> None:
        if np.isfinite(box).all():
            x1, y1, x2, y2 = np.round(box).astype(int).tolist()
            line, edge = max(1, self._size // 7), max(1, self._size // 14)
            # A dark edge around it: visible on any ground.
            draw.rectangle((x1 - edge, y1 - edge, x2 - 1 + edge, y2 - 1 + edge), outline=_DARK, width=line + 2 * edge)
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=_FACE, width=line)

    def _draw_lamps(self, draw: ImageDraw.ImageDraw, index: int, left: int, top: int) -> None:
        """Which modalities the frame has, and the name of the models."""
        rows = [
            (f"● {name}", _FACE) if present[index] else (f"○ no {name}", _GREY)
            for name, present in self._present.items()
        ]
        if self._predicted_by:
            rows.append((self._predicted_by, _ACCENT))
        if rows:
            _draw_panel(draw, left, top, self._lamps_width, len(rows) * self._row + self._pad, self._pad)
        for number, (text, colour) in enumerate(rows):
            middle = top + self._pad / 2 + (number + 0.5) * self._row
            self._fonts.write(draw, (left + self._pad, middle), text, self._size, colour)

    def _draw_plane(self, draw: ImageDraw.ImageDraw, index: int, left: int, top: int) -> None:
        """The valence-arousal plane with the last seconds, and the two numbers below it."""
        pad, side, row = self._pad, self._plane, self._row
        _draw_panel(draw, left, top, side + 2 * pad, side + len(TARGETS) * row + 2 * pad, pad)
        x, y, half = left + pad, top + pad, side / 2
        draw.rectangle((x, y, x + side, y + side), outline=_LINES)
        draw.line((x, y + half, x + side, y + half), fill=_LINES)
        draw.line((x + half, y, x + half, y + side), fill=_LINES)
        tiny = round(0.8 * self._size)
        self._fonts.write(draw, (x + side - 3, y + half + 2), "valence", tiny, _GREY, anchor="rt")
        self._fonts.write(draw, (x + half + 4, y + 2), "arousal", tiny, _GREY, anchor="lt")
        first = int(np.searchsorted(self._times, self._times[index] - _TRAIL_S))
        points = self._values[first : index + 1] * (half, -half) + (x + half, y + half)
        trail = [tuple(point) for point in points[np.isfinite(points).all(axis=1)].tolist()]
        draw.line(trail, fill=_TRAIL, width=max(1, self._size // 7), joint="curve")
        if np.isfinite(points[-1]).all():
            self._fonts.write(draw, trail[-1], "●", round(1.2 * self._size), _DARK, anchor="mm")
            self._fonts.write(draw, trail[-1], "●", round(0.9 * self._size), _ACCENT, anchor="mm")
        for number, (name, value) in enumerate(zip(TARGETS, self._values[index].tolist(), strict=True)):
            middle = y + side + pad / 2 + (number + 0.5) * row
            # Plus zero: no "-0.00". A minus sign is as wide as a plus.
            text = "–" if math.isnan(value) else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
            self._fonts.write(draw, (x, middle), name, self._size, _GREY)
            self._fonts.write(draw, (x + side, middle), text, self._size, _WHITE, anchor="rm")


class _Captions:
    """Words in lines; a line is shown while it is spoken, and the word being spoken is highlighted."""

    def __init__(self, fonts: Fonts, features: Features, *, size: int, room: float) -> None:
        self._fonts, self._size = fonts, size
        self._words, self._frame_word = features.words, np.asarray(features.frame_word)
        self._texts = [fonts.shorten(word.text, size, room) for word in self._words]
        self._widths = [fonts.width(text, size) for text in self._texts]
        self._space = 0.0 if features.meta.get("language") in _UNSPACED else fonts.width(" ", size)
        self._starts_s = [word.start_s for word in self._words]
        self._firsts: list[int] = []
        """The first word of each line: after a sentence or a pause, and where there is no more room."""
        width = 0.0
        for number, word in enumerate(self._words):
            before = self._words[number - 1] if number else None
            width += self._space + self._widths[number]
            if (
                before is None
                or width > room
                or word.start_s - before.end_s > _PAUSE_S
                or before.text.endswith(_SENTENCE_ENDS)
            ):
                self._firsts.append(number)
                width = self._widths[number]

    def draw(self, draw: ImageDraw.ImageDraw, index: int, time_s: float, *, middle: float, bottom: float) -> None:
        """Draw the line of frame ``index``, if there is one."""
        spoken = int(self._frame_word[index])
        # A word begins after its time.
        word = spoken if spoken >= 0 else bisect_left(self._starts_s, time_s) - 1
        if word < 0:
            return
        number = bisect_right(self._firsts, word)
        line = range(self._firsts[number - 1], [*self._firsts, len(self._words)][number])
        if spoken < 0 and time_s > self._words[line[-1]].end_s + _LINGER_S:
            return
        pad, size = round(0.25 * self._size), self._size
        width = sum(self._widths[word] for word in line) + self._space * (len(line) - 1)
        x, top = middle - width / 2, bottom - 1.75 * size
        _draw_panel(draw, x - pad, top, width + 2 * pad, 1.75 * size, pad)
        right_to_left = _is_right_to_left("".join(self._texts[word] for word in line))
        for word in reversed(line) if right_to_left else line:
            colour = _WHITE
            if word == spoken:
                colour, edge = _DARK, min(pad, self._space / 2)
                box = (x - edge, top + 0.22 * size, x + self._widths[word] + edge, top + 1.58 * size)
                draw.rounded_rectangle(box, 0.2 * size, fill=_ACCENT)
            self._fonts.write(draw, (x, top + 1.25 * size), self._texts[word], size, colour, anchor="ls")
            x += self._widths[word] + self._space


def fit(image: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """Fit a picture (H,W,3) into a size, in its own shape, with black bars at its sides."""
    picture = Image.fromarray(image)
    return picture if picture.size == (width, height) else ImageOps.pad(picture, (width, height))


def _draw_panel(draw: ImageDraw.ImageDraw, left: float, top: float, width: float, height: float, radius: int) -> None:
    draw.rounded_rectangle((left, top, left + width, top + height), radius, fill=_PANEL)


def _is_right_to_left(text: str) -> bool:
    """By the first letter that has a direction, as the Unicode Bidirectional Algorithm decides it (rules P2 and P3)."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction != "L" for direction in directions if direction in ("L", "R", "AL")), False)
