"""What is drawn into a frame: box of the face, words, a gauge of valence and arousal, which modalities are there."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from preprocessing.features import Features, Word
from preprocessing.fonts import Fonts
from rcma.config import MODALITIES, TARGETS
from rcma.prediction import Prediction

_LEAST_SIDE = 120
"""Pixels; a picture with a smaller side is enlarged by a whole factor, or nothing could be read in it."""
_TRAIL_S = 2.0
_MOST_DOTS = 30
_PAUSE_S, _LINGER_S = 1.0, 0.7
"""Seconds: a pause that ends a line of words, and how long a line stays after its last word."""
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "؟", "।")
_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages written without spaces between the pieces that Whisper calls words, as its tokenizer lists them."""
_MODALITY_NAMES = {"face": ("face", "no face"), "audio": ("sound", "no sound"), "text": ("words", "no words")}

Colour = tuple[int, ...]
"""Red, green, blue, 0 to 255, and opacity if it is not full."""
_PANEL: Colour = (14, 16, 22, 165)
_LINES: Colour = (255, 255, 255, 105)
_WHITE, _GREY, _ACCENT, _DARK, _FACE = (255, 255, 255), (170, 174, 182), (255, 205, 74), (14, 16, 22), (92, 222, 168)
_FINER = 4
"""Discs are drawn this many times larger, then reduced: smooth edges."""

log = logging.getLogger("rcma")


@dataclass(frozen=True)
class _Sizes:
    """Pixels, in proportion to the picture, but never too small to be read."""

    text: int
    """Height of the words' font."""
    small: int
    """Height of the font of everything else."""
    row: int
    """Height of a line in the small font."""
    plane: int
    """Side of the valence-arousal plane."""
    margin: int
    pad: int
    line: int
    """Thickness."""

    @classmethod
    def for_picture(cls, width: int, height: int) -> _Sizes:
        side = min(width, height)
        small = max(9, round(0.03 * side))
        return cls(
            text=max(11, round(0.048 * side)),
            small=small,
            row=round(1.35 * small),
            plane=max(46, round(0.22 * side)),
            margin=max(3, round(0.02 * side)),
            pad=max(3, round(0.4 * small)),
            line=max(1, round(side / 270)),
        )


class Drawing:
    """Everything that is drawn over the frames of one video."""

    width: int
    """Of what is drawn, pixels: even, and small pictures are enlarged."""
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
            predicted_by: shown below the modalities, if it was not RCMA that predicted.
        """
        self._size = width, height
        self._factor = math.ceil(_LEAST_SIDE / min(width, height))
        shown = width * self._factor, height * self._factor
        # H.264 with shared colours wants even sides.
        self.width, self.height = shown[0] + shown[0] % 2, shown[1] + shown[1] % 2
        self._sizes = sizes = _Sizes.for_picture(*shown)
        self._box = np.asarray(features.face_box, np.float64)
        fonts = Fonts([predicted_by, *(word.text for word in features.words)])
        if fonts.missing:
            log.warning(
                "%s: no installed font has %d of the %d characters of its words, boxes stand for them; "
                "install a font of that script, for example one of Noto",
                features.video_id,
                len(fonts.missing),
                fonts.n_needed,
            )
        self._gauge = _Gauge(fonts, sizes, prediction)
        self._modalities = _Modalities(fonts, sizes, prediction, predicted_by, room=shown[0] - 2 * sizes.margin)
        self._words = _Words(fonts, sizes, features, room=shown[0] - 2 * sizes.margin)
        self._words_at = shown[0] // 2, shown[1] - sizes.margin
        left, right = sizes.margin, shown[0] - sizes.margin
        self._gauge_left, self._modalities_left = right - self._gauge.width, left
        if self._covered(right - self._gauge.width) > self._covered(left):
            self._gauge_left, self._modalities_left = left, right - self._modalities.width

    def draw(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """A picture (H,W,3) RGB with what is known of frame ``index``; even sides.

        A picture of another size than the video's is shown whole, with black bars.
        """
        image, scale, corner = letterbox(image, *self._size)
        if self._factor > 1:
            image = image.repeat(self._factor, axis=0).repeat(self._factor, axis=1)
        missing = self.height - image.shape[0], self.width - image.shape[1]
        if any(missing):
            image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture, "RGBA")
        box = (self._box[index] * scale + np.tile(corner, 2)) * self._factor
        if np.isfinite(box).all():
            # A dark edge outside, so that it shows on any ground.
            x1, y1, x2, y2 = np.round(box).astype(int).tolist()
            edge, thick = max(1, self._sizes.line // 2), self._sizes.line
            draw.rectangle((x1 - edge, y1 - edge, x2 - 1 + edge, y2 - 1 + edge), outline=_DARK, width=thick + 2 * edge)
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=_FACE, width=thick)
        self._gauge.draw(picture, draw, index, left=self._gauge_left, top=self._sizes.margin)
        self._modalities.draw(picture, draw, index, left=self._modalities_left, top=self._sizes.margin)
        self._words.draw(draw, index, middle=self._words_at[0], bottom=self._words_at[1])
        return np.asarray(picture)

    def _covered(self, left: int) -> float:
        """How much of faces the gauge would hide there, in pixels summed over the frames."""
        x1, y1, x2, y2 = self._box.T * self._factor
        width = np.minimum(x2, left + self._gauge.width) - np.maximum(x1, left)
        height = np.minimum(y2, self._sizes.margin + self._gauge.height) - np.maximum(y1, self._sizes.margin)
        return float(np.nansum(np.maximum(width, 0) * np.maximum(height, 0)))


def letterbox(image: NDArray[np.uint8], width: int, height: int) -> tuple[NDArray[np.uint8], float, tuple[int, int]]:
    """Fit a picture (H,W,3) into (height,width,3), in its own shape, with black bars at its sides.

    Returns:
        The result; by how much the picture was scaled; column and row of its upper left corner there.
    """
    own_height, own_width = image.shape[:2]
    if (own_width, own_height) == (width, height):
        return image, 1.0, (0, 0)
    scale = min(width / own_width, height / own_height)
    size = max(1, round(own_width * scale)), max(1, round(own_height * scale))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    fitted = Image.new("RGB", (width, height))
    fitted.paste(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(fitted), scale, (left, top)


class _Gauge:
    """The plane of valence and arousal with the last seconds, and the two numbers below."""

    def __init__(self, fonts: Fonts, sizes: _Sizes, prediction: Prediction) -> None:
        self._fonts, self._sizes = fonts, sizes
        self._times = np.asarray(prediction.time_s, np.float64)
        self._values = np.clip(np.asarray(prediction.values, np.float64), -1, 1)
        self.width = sizes.plane + 2 * sizes.pad
        self.height = sizes.plane + len(TARGETS) * sizes.row + 2 * sizes.pad
        radius = max(2.5, 0.032 * sizes.plane)
        self._edge, self._dot = _disc(radius + 1), _disc(radius)
        self._trail = [_disc(0.5 * radius, opacity=round(opacity)) for opacity in np.linspace(20, 170, 8)]
        spacing_s = float(np.median(np.diff(self._times))) if len(self._times) > 1 else _TRAIL_S
        self._every = max(1, math.ceil(_TRAIL_S / max(spacing_s, 1e-6) / _MOST_DOTS))

    def draw(self, picture: Image.Image, draw: ImageDraw.ImageDraw, index: int, *, left: int, top: int) -> None:
        """Draw the state at frame ``index``."""
        self._draw_panel(draw, left, top)
        x, y = left + self._sizes.pad, top + self._sizes.pad
        now_s = self._times[index]
        first = int(np.searchsorted(self._times, now_s - _TRAIL_S))
        # The same frames as long as they are shown, whatever the frame now is: the trail must not flicker.
        for before in range(first + -first % self._every, index, self._every):
            age = (now_s - self._times[before]) / _TRAIL_S
            self._paste(picture, self._trail[int((1 - age) * (len(self._trail) - 1))], _ACCENT, before, x, y)
        self._paste(picture, self._edge, _DARK, index, x, y)
        self._paste(picture, self._dot, _ACCENT, index, x, y)
        for number, value in enumerate(self._values[index].tolist()):
            # Plus zero: no "-0.00". A minus sign is as wide as a plus.
            text = "–" if math.isnan(value) else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
            place = x + self._sizes.plane, self._row_middle(top, number)
            self._fonts.write(draw, place, text, self._sizes.small, _WHITE, anchor="rm")

    def _paste(self, picture: Image.Image, disc: Image.Image, colour: Colour, index: int, left: int, top: int) -> None:
        valence, arousal = self._values[index]
        if not math.isnan(valence + arousal):
            half = (self._sizes.plane - 1) / 2
            x, y = left + half * (1 + valence), top + half * (1 - arousal)
            picture.paste(colour, (round(x - (disc.width - 1) / 2), round(y - (disc.height - 1) / 2)), disc)

    def _row_middle(self, top: int, number: int) -> float:
        return top + 1.5 * self._sizes.pad + self._sizes.plane + (number + 0.5) * self._sizes.row

    def _draw_panel(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        sizes, side = self._sizes, self._sizes.plane
        draw.rounded_rectangle((left, top, left + self.width - 1, top + self.height - 1), sizes.pad, fill=_PANEL)
        x, y = left + sizes.pad, top + sizes.pad
        middle, last, thin = (side - 1) // 2, side - 1, max(1, round(side / 160))
        draw.rectangle((x, y, x + last, y + last), outline=_LINES, width=thin)
        draw.line((x, y + middle, x + last, y + middle), fill=_LINES, width=thin)
        draw.line((x + middle, y, x + middle, y + last), fill=_LINES, width=thin)
        tiny, gap = round(0.8 * sizes.small), 2 * thin
        if self._fonts.width("arousal", tiny) + 3 * gap < side / 2:
            self._fonts.write(draw, (x + last - gap, y + middle + gap), "valence", tiny, _GREY, anchor="rt")
            self._fonts.write(draw, (x + middle + 2 * gap, y + gap), "arousal", tiny, _GREY, anchor="lt")
        room = side - self._fonts.width("+0.00", sizes.small) - sizes.pad
        for number, name in enumerate(TARGETS):
            text = name if self._fonts.width(name, sizes.small) <= room else name[0].upper()
            self._fonts.write(draw, (x, self._row_middle(top, number)), text, sizes.small, _GREY)


class _Modalities:
    """Which modalities a frame had, a lamp each, on or off; below, what predicted."""

    def __init__(self, fonts: Fonts, sizes: _Sizes, prediction: Prediction, predicted_by: str, *, room: int) -> None:
        self._fonts, self._sizes = fonts, sizes
        self._present = {m: np.asarray(prediction.present[m], np.bool_) for m in MODALITIES if m in prediction.present}
        self._lamp = round(0.8 * sizes.small)
        self._predicted_by = fonts.shorten(predicted_by, sizes.small, room - 2 * sizes.pad)
        names = [fonts.width(text, sizes.small) for name in self._present for text in _MODALITY_NAMES[name]]
        rows = [self._lamp + sizes.pad + width for width in names] + [fonts.width(self._predicted_by, sizes.small)]
        self.width = 2 * sizes.pad + math.ceil(max(rows))
        self._disc, self._hole = _disc(self._lamp / 2), _disc(self._lamp / 2 - max(1.0, self._lamp / 8))

    def draw(self, picture: Image.Image, draw: ImageDraw.ImageDraw, index: int, *, left: int, top: int) -> None:
        """Draw the lamps of frame ``index``."""
        sizes = self._sizes
        n_rows = len(self._present) + bool(self._predicted_by)
        if n_rows == 0:
            return
        height = n_rows * sizes.row + sizes.pad
        draw.rounded_rectangle((left, top, left + self.width - 1, top + height - 1), sizes.pad, fill=_PANEL)
        x, middle = left + sizes.pad, top + sizes.pad / 2 + sizes.row / 2
        for name, present in self._present.items():
            on = bool(present[index])
            corner = x - 1, round(middle - self._disc.height / 2)
            picture.paste(_FACE if on else _GREY, corner, self._disc)
            if not on:
                inset = (self._disc.width - self._hole.width) // 2
                picture.paste(_DARK, (corner[0] + inset, corner[1] + inset), self._hole)
            text = _MODALITY_NAMES[name][0 if on else 1]
            place = x + self._lamp + sizes.pad, middle
            self._fonts.write(draw, place, text, sizes.small, _WHITE if on else _GREY)
            middle += sizes.row
        self._fonts.write(draw, (x, middle), self._predicted_by, sizes.small, _ACCENT)


@dataclass(frozen=True)
class _Line:
    """Words that are shown together: ``first`` to ``stop - 1``."""

    first: int
    stop: int
    start_s: float
    end_s: float


class _Words:
    """The line of words around the one being spoken, which is highlighted."""

    def __init__(self, fonts: Fonts, sizes: _Sizes, features: Features, *, room: int) -> None:
        self._fonts, self._sizes = fonts, sizes
        self._room = room - 2 * sizes.pad
        self._texts = [fonts.shorten(word.text, sizes.text, self._room) for word in features.words]
        self._space = 0.0 if features.meta.get("language") in _UNSPACED else fonts.width(" ", sizes.text)
        self._lines = self._group(features.words)
        self._frame_word = np.asarray(features.frame_word)
        self._frame_line = self._lines_at(np.asarray(features.time_s, np.float64))

    def _group(self, words: Sequence[Word]) -> list[_Line]:
        """Lines end with a sentence, at a pause, and where there is no more room."""
        lines: list[_Line] = []
        width = 0.0
        for number, word in enumerate(words):
            own = self._fonts.width(self._texts[number], self._sizes.text)
            width += self._space + own
            last = lines[-1] if lines else None
            if (
                last is not None
                and width <= self._room
                and word.start_s - last.end_s <= _PAUSE_S
                and not words[number - 1].text.endswith(_SENTENCE_ENDS)
            ):
                lines[-1] = _Line(last.first, number + 1, last.start_s, word.end_s)
            else:
                lines.append(_Line(number, number + 1, word.start_s, word.end_s))
                width = own
        return lines

    def _lines_at(self, time_s: NDArray[np.float64]) -> NDArray[np.intp]:
        """(T,) which line is shown at each frame, -1 where none."""
        if not self._lines:
            return np.full(len(time_s), -1)
        # As frames are given to words: a line starts after its time.
        line = np.searchsorted([line.start_s for line in self._lines], time_s, side="left") - 1
        ends = np.array([line.end_s for line in self._lines])
        line[time_s > ends[line] + _LINGER_S] = -1
        line_of_word = np.repeat(np.arange(len(self._lines)), [line.stop - line.first for line in self._lines])
        spoken = self._frame_word >= 0
        line[spoken] = line_of_word[self._frame_word[spoken]]
        return line

    def draw(self, draw: ImageDraw.ImageDraw, index: int, *, middle: int, bottom: int) -> None:
        """Draw the line of frame ``index``, if there is one."""
        if self._frame_line[index] < 0:
            return
        line, pad, size = self._lines[self._frame_line[index]], self._sizes.pad, self._sizes.text
        order: Sequence[int] = range(line.first, line.stop)
        widths = {word: self._fonts.width(self._texts[word], size) for word in order}
        total = math.ceil(sum(widths.values()) + self._space * (len(widths) - 1)) + 2 * pad
        left, top = middle - total // 2, bottom - round(1.75 * size)
        draw.rounded_rectangle((left, top, left + total - 1, bottom - 1), pad, fill=_PANEL)
        x, baseline = float(left + pad), top + round(1.25 * size)
        for word in reversed(order) if _is_right_to_left("".join(self._texts[word] for word in order)) else order:
            spoken = word == self._frame_word[index]
            if spoken:
                around = min(pad, max(2.0, self._space / 2))
                highlight = (x - around, top + 0.22 * size, x + widths[word] + around, top + 1.58 * size)
                draw.rounded_rectangle(highlight, 0.2 * size, fill=_ACCENT)
            fill = _DARK if spoken else _WHITE
            self._fonts.write(draw, (x, baseline), self._texts[word], size, fill, anchor="ls")
            x += widths[word] + self._space


def _is_right_to_left(text: str) -> bool:
    """By the first letter that has a direction, as the Unicode Bidirectional Algorithm decides it (rules P2 and P3)."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction != "L" for direction in directions if direction in ("L", "R", "AL")), False)


def _disc(radius: float, *, opacity: int = 255) -> Image.Image:
    """A mask with odd sides: opacity of a disc with a smooth edge."""
    side = 2 * math.ceil(radius) + 1
    picture = Image.new("L", (side * _FINER, side * _FINER))
    middle, reach = side * _FINER / 2, radius * _FINER
    ImageDraw.Draw(picture).ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=opacity)
    return picture.resize((side, side), Image.Resampling.BOX)
