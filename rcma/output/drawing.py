"""What is drawn into a frame: box of the face, words, a gauge of valence and arousal, lamps for the modalities."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from preprocessing.features import Features, Word
from rcma.config import MODALITIES, TARGETS
from rcma.prediction import Prediction

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

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

Colour = tuple[int, int, int, int]
"""Red, green, blue and opacity, each 0 to 255."""
_PANEL: Colour = (14, 16, 22, 165)
_LINES: Colour = (255, 255, 255, 105)
_WHITE: Colour = (255, 255, 255, 255)
_GREY: Colour = (170, 174, 182, 255)
_ACCENT: Colour = (255, 205, 74, 255)
_DARK: Colour = (14, 16, 22, 255)
_FACE: Colour = (92, 222, 168, 255)
_FINER = 4
"""Shapes are drawn this many times larger, then reduced: smooth edges."""

log = logging.getLogger("rcma")


@dataclass(frozen=True)
class _Sprite:
    """A small picture to lay over others."""

    colour: NDArray[np.uint16]
    """(h,w,3) each colour times opacity, 0 to 255 * 255."""
    rest: NDArray[np.uint16]
    """(h,w,1) how much of what is below stays, 0 to 255."""

    @classmethod
    def of(cls, picture: Image.Image) -> _Sprite:
        """From an RGBA picture."""
        pixels = np.asarray(picture).astype(np.uint16)
        opacity = pixels[..., 3:]
        return cls(pixels[..., :3] * opacity, 255 - opacity)

    @property
    def height(self) -> int:
        return len(self.rest)

    @property
    def width(self) -> int:
        return self.rest.shape[1]

    def lay_over(self, image: NDArray[np.uint8], left: int, top: int) -> None:
        """Draw into (H,W,3) RGB; what lies outside of it is left out."""
        rows = slice(max(0, -top), min(self.height, image.shape[0] - top))
        columns = slice(max(0, -left), min(self.width, image.shape[1] - left))
        if rows.start < rows.stop and columns.start < columns.stop:
            below = image[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
            below[:] = (below * self.rest[rows, columns] + self.colour[rows, columns] + 127) // 255


@dataclass(frozen=True)
class _Sizes:
    """Pixels, in proportion to the picture, but never too small to be read."""

    text: int
    """Height of the words' font."""
    small: int
    """Height of the font of everything else."""
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

    def __init__(self, width: int, height: int, features: Features, prediction: Prediction) -> None:
        """Draw what all frames share; ``width`` and ``height`` are those of the video in pixels."""
        self._size = width, height
        self._factor = math.ceil(_LEAST_SIDE / min(width, height))
        self._shown_width, self._shown_height = width * self._factor, height * self._factor
        # H.264 with shared colours wants even sides.
        self.width, self.height = self._shown_width + self._shown_width % 2, self._shown_height + self._shown_height % 2
        sizes = _Sizes.for_picture(self._shown_width, self._shown_height)
        self._box = np.asarray(features.face_box, np.float64)
        self._sizes = sizes
        pen = _Pen.for_words(features)
        self._gauge = _Gauge(pen, sizes, prediction)
        self._lamps = _Lamps(pen, sizes, prediction)
        self._words = _Words(pen, sizes, features, room=self._shown_width - 2 * sizes.margin)
        right = self._shown_width - sizes.margin
        gauge, lamps = right - self._gauge.width, sizes.margin
        if self._covered(gauge) > self._covered(sizes.margin):
            gauge, lamps = sizes.margin, right - self._lamps.width
        self._gauge_left, self._lamps_left = gauge, lamps

    def draw(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """A picture (H,W,3) RGB with what is known of frame ``index``; even sides.

        A picture of another size than the video's is shown whole, with black bars.
        """
        image, scale, corner = letterbox(image, *self._size)
        image = self._enlarged(image)
        box = (self._box[index] * scale + np.tile(corner, 2)) * self._factor
        _draw_box(image, box, self._sizes.line)
        self._gauge.draw(image, index, left=self._gauge_left, top=self._sizes.margin)
        self._lamps.draw(image, index, left=self._lamps_left, top=self._sizes.margin)
        self._words.draw(image, index, middle=self._shown_width // 2, bottom=self._shown_height - self._sizes.margin)
        return image

    def _enlarged(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._factor > 1:
            image = image.repeat(self._factor, axis=0).repeat(self._factor, axis=1)
        missing = self.height - image.shape[0], self.width - image.shape[1]
        if any(missing):
            image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        return image if image.flags.writeable else image.copy()

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
    fitted = np.zeros((height, width, 3), np.uint8)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    fitted[top : top + size[1], left : left + size[0]] = resized
    return fitted, scale, (left, top)


def _draw_box(image: NDArray[np.uint8], box: NDArray[np.float64], line: int) -> None:
    """A frame of one colour with a dark edge outside, so that it shows on any ground."""
    if np.isnan(box).any():
        return
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    edge = max(1, line // 2)
    for colour, out, thick in ((_DARK, edge, line + 2 * edge), (_FACE, 0, line)):
        left, top, right, bottom = x1 - out, y1 - out, x2 + out, y2 + out
        for rows, columns in (
            ((top, top + thick), (left, right)),
            ((bottom - thick, bottom), (left, right)),
            ((top, bottom), (left, left + thick)),
            ((top, bottom), (right - thick, right)),
        ):
            image[max(0, rows[0]) : max(0, rows[1]), max(0, columns[0]) : max(0, columns[1])] = colour[:3]


class _Gauge:
    """The plane of valence and arousal with the last seconds, and the two numbers below."""

    def __init__(self, pen: _Pen, sizes: _Sizes, prediction: Prediction) -> None:
        self._pen, self._sizes = pen, sizes
        self._times = np.asarray(prediction.time_s, np.float64)
        self._values = np.clip(np.asarray(prediction.values, np.float64), -1, 1)
        self._row = round(1.3 * sizes.small)
        self.width = sizes.plane + 2 * sizes.pad
        self.height = sizes.plane + len(TARGETS) * self._row + 2 * sizes.pad
        self._panel = self._draw_panel()
        radius = max(2.5, 0.032 * sizes.plane)
        self._dot = _disc(radius, _ACCENT, edge=_DARK)
        self._trail = [_disc(0.5 * radius, (*_ACCENT[:3], round(opacity))) for opacity in np.linspace(20, 170, 8)]
        spacing_s = float(np.median(np.diff(self._times))) if len(self._times) > 1 else _TRAIL_S
        self._every = max(1, math.ceil(_TRAIL_S / max(spacing_s, 1e-6) / _MOST_DOTS))
        self._numbers: dict[int, tuple[str, _Sprite]] = {}

    def draw(self, image: NDArray[np.uint8], index: int, *, left: int, top: int) -> None:
        """Draw the state at frame ``index``."""
        self._panel.lay_over(image, left, top)
        corner = left + self._sizes.pad, top + self._sizes.pad
        now_s = self._times[index]
        first = int(np.searchsorted(self._times, now_s - _TRAIL_S))
        # The same frames as long as they are shown, whatever the frame now is: the trail must not flicker.
        for before in range(first + -first % self._every, index, self._every):
            age = (now_s - self._times[before]) / _TRAIL_S
            self._lay_dot(self._trail[math.floor((1 - age) * (len(self._trail) - 1))], image, before, corner)
        self._lay_dot(self._dot, image, index, corner)
        for number, value in enumerate(self._values[index]):
            sprite = self._number(number, float(value))
            row_top = corner[1] + self._sizes.plane + self._sizes.pad // 2 + number * self._row
            sprite.lay_over(image, left + self.width - self._sizes.pad - sprite.width, row_top)

    def _lay_dot(self, dot: _Sprite, image: NDArray[np.uint8], index: int, corner: tuple[int, int]) -> None:
        valence, arousal = self._values[index]
        if not math.isnan(valence + arousal):
            half = (self._sizes.plane - 1) / 2
            x, y = corner[0] + half * (1 + valence), corner[1] + half * (1 - arousal)
            dot.lay_over(image, round(x - (dot.width - 1) / 2), round(y - (dot.height - 1) / 2))

    def _number(self, number: int, value: float) -> _Sprite:
        """The value as text; drawn again only when it changes."""
        # Plus zero: no "-0.00". A minus sign is as wide as a plus.
        text = "–" if math.isnan(value) else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
        if self._numbers.get(number, ("",))[0] != text:
            font = self._pen.font(text, self._sizes.small)
            picture = Image.new("RGBA", (math.ceil(font.getlength(text)), self._row))
            ImageDraw.Draw(picture).text((0, self._row / 2), text, font=font, fill=_WHITE, anchor="lm")
            self._numbers[number] = text, _Sprite.of(picture)
        return self._numbers[number][1]

    def _draw_panel(self) -> _Sprite:
        sizes, side = self._sizes, self._sizes.plane
        picture = _rounded(self.width, self.height, sizes.pad)
        draw = ImageDraw.Draw(picture)
        first, last, middle = sizes.pad, sizes.pad + side - 1, sizes.pad + (side - 1) // 2
        thin = max(1, round(side / 160))
        draw.rectangle((first, first, last, last), outline=_LINES, width=thin)
        draw.line((first, middle, last, middle), fill=_LINES, width=thin)
        draw.line((middle, first, middle, last), fill=_LINES, width=thin)
        tiny = round(0.8 * sizes.small)
        font, gap = self._pen.font("valence", tiny), 2 * thin
        if font.getlength("arousal") + 3 * gap < side / 2:
            draw.text((last - gap, middle + gap), "valence", font=font, fill=_GREY, anchor="rt")
            draw.text((middle + 2 * gap, first + gap), "arousal", font=font, fill=_GREY, anchor="lt")
        font = self._pen.font("valence", sizes.small)
        room = side - font.getlength("+0.00") - sizes.pad
        for number, name in enumerate(TARGETS):
            text = name if font.getlength(name) <= room else name[0].upper()
            row_middle = sizes.pad + side + sizes.pad // 2 + (number + 0.5) * self._row
            draw.text((first, row_middle), text, font=font, fill=_GREY, anchor="lm")
        return _Sprite.of(picture)


class _Lamps:
    """Which modalities a frame had: a lamp each, lit or not."""

    def __init__(self, pen: _Pen, sizes: _Sizes, prediction: Prediction) -> None:
        self._pen, self._sizes = pen, sizes
        self._names = [modality for modality in MODALITIES if modality in prediction.present]
        flags = [np.asarray(prediction.present[name], np.bool_) for name in self._names]
        self._lit = np.stack(flags, axis=1) if flags else np.zeros((len(prediction.time_s), 0), np.bool_)
        self._panels: dict[tuple[bool, ...], _Sprite] = {}
        texts = [text for name in self._names for text in _MODALITY_NAMES[name]]
        self._row = round(1.35 * sizes.small)
        self._lamp = round(0.8 * sizes.small)
        text_width = max([math.ceil(pen.font(text, sizes.small).getlength(text)) for text in texts], default=0)
        self.width = self._lamp + 3 * sizes.pad + text_width

    def draw(self, image: NDArray[np.uint8], index: int, *, left: int, top: int) -> None:
        """Draw the lamps of frame ``index``."""
        if not self._names:
            return
        lit = tuple(bool(flag) for flag in self._lit[index])
        if lit not in self._panels:
            self._panels[lit] = self._draw_panel(lit)
        self._panels[lit].lay_over(image, left, top)

    def _draw_panel(self, lit: tuple[bool, ...]) -> _Sprite:
        sizes = self._sizes
        picture = _rounded(self.width, len(lit) * self._row + sizes.pad, sizes.pad)
        draw = ImageDraw.Draw(picture)
        for number, (name, on) in enumerate(zip(self._names, lit, strict=True)):
            text = _MODALITY_NAMES[name][0 if on else 1]
            middle = sizes.pad / 2 + (number + 0.5) * self._row
            lamp = _round_lamp(self._lamp, on=on)
            picture.alpha_composite(lamp, (sizes.pad, round(middle - self._lamp / 2)))
            font = self._pen.font(text, sizes.small)
            place = (2 * sizes.pad + self._lamp, middle)
            draw.text(place, text, font=font, fill=_WHITE if on else _GREY, anchor="lm")
        return _Sprite.of(picture)


@dataclass(frozen=True)
class _Line:
    """Words that are shown together: ``first`` to ``stop - 1``."""

    first: int
    stop: int
    start_s: float
    end_s: float


class _Words:
    """The line of words around the one being spoken, which is highlighted."""

    def __init__(self, pen: _Pen, sizes: _Sizes, features: Features, *, room: int) -> None:
        self._pen, self._sizes = pen, sizes
        self._room = room - 2 * sizes.pad
        self._texts = [self._shorten(word.text) for word in features.words]
        unspaced = features.meta.get("language") in _UNSPACED
        self._space = 0.0 if unspaced else pen.font(" ", sizes.text).getlength(" ")
        self._lines = self._group(features.words)
        self._frame_word = np.asarray(features.frame_word)
        self._frame_line = self._lines_at(np.asarray(features.time_s, np.float64))
        self._last: tuple[int, int] = (-1, -1)
        self._sprite: _Sprite | None = None

    def draw(self, image: NDArray[np.uint8], index: int, *, middle: int, bottom: int) -> None:
        """Draw the line of frame ``index``, if there is one."""
        wanted = int(self._frame_line[index]), int(self._frame_word[index])
        if wanted != self._last:
            self._last = wanted
            self._sprite = self._draw_line(self._lines[wanted[0]], wanted[1]) if wanted[0] >= 0 else None
        if self._sprite is not None:
            self._sprite.lay_over(image, middle - self._sprite.width // 2, bottom - self._sprite.height)

    def _width(self, text: str) -> float:
        return float(self._pen.font(text, self._sizes.text).getlength(self._pen.literal(text)))

    def _shorten(self, text: str) -> str:
        """A word that fits into a line."""
        if self._width(text) <= self._room:
            return text
        kept = next(n for n in range(len(text) - 1, -1, -1) if n == 0 or self._width(text[:n] + "…") <= self._room)
        return text[:kept] + "…"

    def _group(self, words: Sequence[Word]) -> list[_Line]:
        """Lines end with a sentence, at a pause, and where there is no more room."""
        lines: list[_Line] = []
        width = 0.0
        for number, word in enumerate(words):
            own = self._width(self._texts[number])
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

    def _draw_line(self, line: _Line, spoken: int) -> _Sprite:
        pad, height = self._sizes.pad, self._sizes.text
        order = range(line.first, line.stop)
        texts = {word: self._texts[word] for word in order}
        widths = {word: self._width(text) for word, text in texts.items()}
        total = sum(widths.values()) + self._space * (len(texts) - 1)
        picture = _rounded(math.ceil(total) + 2 * pad, round(1.75 * height), pad)
        draw = ImageDraw.Draw(picture)
        x, baseline = float(pad), round(1.25 * height)
        for word in reversed(order) if _is_right_to_left("".join(texts.values())) else order:
            place = (x, baseline)
            if word == spoken:
                around = min(pad, max(2.0, self._space / 2))
                highlight = (x - around, 0.22 * height, x + widths[word] + around, 1.58 * height)
                draw.rounded_rectangle(highlight, radius=0.2 * height, fill=_ACCENT)
            font = self._pen.font(texts[word], height)
            fill = _DARK if word == spoken else _WHITE
            draw.text(place, self._pen.literal(texts[word]), font=font, fill=fill, anchor="ls")
            x += widths[word] + self._space
        return _Sprite.of(picture)


def _is_right_to_left(text: str) -> bool:
    """By the first letter that has a direction, as the Unicode Bidirectional Algorithm decides it (rules P2 and P3)."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction != "L" for direction in directions if direction in ("L", "R", "AL")), False)


def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """An empty panel."""
    size = width * _FINER, height * _FINER
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius=radius * _FINER, fill=_PANEL)
    return picture.resize((width, height), Image.Resampling.BOX)


def _disc(radius: float, colour: Colour, *, edge: Colour | None = None) -> _Sprite:
    side = 2 * math.ceil(radius + 1) + 1
    picture = Image.new("RGBA", (side * _FINER, side * _FINER))
    middle, reach = side * _FINER / 2, radius * _FINER
    around = (middle - reach, middle - reach, middle + reach, middle + reach)
    ImageDraw.Draw(picture).ellipse(around, fill=colour, outline=edge, width=_FINER)
    return _Sprite.of(picture.resize((side, side), Image.Resampling.BOX))


def _round_lamp(side: int, *, on: bool) -> Image.Image:
    picture = Image.new("RGBA", (side * _FINER, side * _FINER))
    around = (_FINER // 2, _FINER // 2, side * _FINER - _FINER // 2, side * _FINER - _FINER // 2)
    thick = max(1.0, side / 8) * _FINER
    ImageDraw.Draw(picture).ellipse(
        around, fill=_FACE if on else None, outline=_FACE if on else _GREY, width=round(thick)
    )
    return picture.resize((side, side), Image.Resampling.BOX)


# Fonts.


@dataclass(frozen=True)
class _Typeface:
    """A font file and the characters, of those that are needed, that it has."""

    path: str
    number: int
    """Of the font in its file."""
    characters: frozenset[str]


class _Pen:
    """Fonts of all sizes for the words of one video, whatever their script."""

    def __init__(self, typefaces: Sequence[_Typeface]) -> None:
        self._typefaces = typefaces
        self._fonts: dict[tuple[_Typeface, int], FreeTypeFont] = {}

    @classmethod
    def for_words(cls, features: Features) -> _Pen:
        """Choose the fonts; characters that none has are told in a warning."""
        needed = frozenset(character for word in features.words for character in word.text if character.isprintable())
        typefaces = _choose_typefaces(needed | _OWN_CHARACTERS)
        missing = needed.difference(*(typeface.characters for typeface in typefaces))
        if missing:
            log.warning(
                "%s: no installed font has %d of the %d characters of its words, boxes stand for them; "
                "install a font of that script, for example one of Noto",
                features.video_id,
                len(missing),
                len(needed),
            )
        return cls(typefaces)

    def font(self, text: str, height: int) -> FreeTypeFont:
        """The first font that has most of the characters of a text."""
        typeface = self._typeface(text)
        key = typeface, height
        if key not in self._fonts:
            self._fonts[key] = ImageFont.truetype(typeface.path, height, index=typeface.number)
        return self._fonts[key]

    def literal(self, text: str) -> str:
        """The text with a box for each character that its font does not have."""
        has = self._typeface(text).characters
        return "".join(character if character in has else "□" for character in text)

    def _typeface(self, text: str) -> _Typeface:
        return max(self._typefaces, key=lambda typeface: sum(character in typeface.characters for character in text))


_OWN_CHARACTERS = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("…□–−")


def _choose_typefaces(characters: frozenset[str]) -> list[_Typeface]:
    """DejaVu Sans, which comes with matplotlib, then what is installed and has the characters that are missing."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    def typeface(name: str) -> _Typeface:
        path = fontManager.findfont(FontProperties(family=[name]), fallback_to_default=False)
        charmap = get_font(path).get_charmap()
        number = int(getattr(path, "face_index", 0))
        # Pillow does not take fonts of bitmaps in any size.
        ImageFont.truetype(str(path), 12, index=number)
        return _Typeface(str(path), number, frozenset(one for one in characters if ord(one) in charmap))

    chosen = [typeface("DejaVu Sans")]
    missing = characters - chosen[0].characters
    for name in sorted({entry.name for entry in fontManager.ttflist} - {"DejaVu Sans", "Last Resort High-Efficiency"}):
        if not missing:
            break
        try:
            found = typeface(name)
        except (OSError, RuntimeError, ValueError):
            continue
        if not missing.isdisjoint(found.characters):
            chosen.append(found)
            missing -= found.characters
    return chosen
