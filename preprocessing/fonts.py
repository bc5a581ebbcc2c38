"""Fonts for text of any script, drawn with Pillow or matplotlib."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from PIL import ImageFont

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_ALWAYS_NEEDED = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("…□–−·●○")
_DEFAULT, _LAST_RESORT = "DejaVu Sans", "Last Resort High-Efficiency"
"""Fonts that come with matplotlib; the second has a box for every character."""


class _Typeface(NamedTuple):
    family: str
    path: str
    number: int
    """Of the font in its file."""


class Fonts:
    """DejaVu Sans, then installed fonts that have the characters it lacks."""

    families: list[str]
    """Names for matplotlib's ``font.family``, in the order in which it should try them."""
    missing: frozenset[str]
    """Characters that no installed font has; a box stands for each."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Choose the fonts for some texts; others may show boxes."""
        from matplotlib.font_manager import fontManager

        self.missing = _ALWAYS_NEEDED.union(one for text in texts for one in text if one.isprintable())
        self._typeface_of: dict[str, _Typeface] = {}
        for family in [_DEFAULT, *sorted({*fontManager.get_font_names()} - {_DEFAULT, _LAST_RESORT})]:
            if self.missing:
                # Fonts of bitmaps cannot be scaled.
                with suppress(OSError, RuntimeError, ValueError):
                    self._typeface_of |= _find_typeface(family, self.missing)
                    self.missing -= self._typeface_of.keys()
        self.families = list(dict.fromkeys(typeface.family for typeface in self._typeface_of.values()))
        self._load = cache(lambda path, number, size: ImageFont.truetype(path, size, index=number))

    def with_boxes(self, text: str) -> str:
        """The text with a box in place of each character that no font has."""
        return "".join(character if character in self._typeface_of else "□" for character in text)

    def width(self, text: str, size: int) -> float:
        """Width of a line of text, pixels."""
        return sum(font.getlength(run) for run, font in self._runs(text, size))

    def shorten(self, text: str, size: int, width: float) -> str:
        """The beginning of a text, with an ellipsis, if the whole is wider than ``width`` pixels."""
        if self.width(text, size) <= width:
            return text
        n = bisect_right(range(1, len(text)), width, key=lambda n: self.width(f"{text[:n]}…", size))
        return f"{text[:n]}…"

    def write(
        self,
        draw: ImageDraw,
        place: tuple[float, float],
        text: str,
        size: int,
        fill: tuple[int, ...],
        *,
        anchor: str = "lm",
    ) -> None:
        """Write one line of text; ``anchor`` is Pillow's: which point of the text is at ``place``."""
        x, y = place
        x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * self.width(text, size)
        for run, font in self._runs(text, size):
            draw.text((x, y), run, font=font, fill=fill, anchor=f"l{anchor[1]}")
            x += font.getlength(run)

    def _runs(self, text: str, size: int) -> Iterator[tuple[str, FreeTypeFont]]:
        """Parts of a text, each with the first font that has its characters."""
        for typeface, characters in groupby(self.with_boxes(text), self._typeface_of.__getitem__):
            yield "".join(characters), self._load(typeface.path, typeface.number, size)


def _find_typeface(family: str, characters: frozenset[str]) -> dict[str, _Typeface]:
    """The characters that a font has."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    path = fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False)
    typeface = _Typeface(family, str(path), int(getattr(path, "face_index", 0)))
    ImageFont.truetype(typeface.path, 12, index=typeface.number)
    charmap = get_font(path).get_charmap()
    return {one: typeface for one in characters if ord(one) in charmap}
