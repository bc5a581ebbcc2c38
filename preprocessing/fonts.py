"""Fonts for drawing texts of any script with Pillow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from PIL import ImageFont

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_ALWAYS = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("…□–−·")
_LAST_RESORT = "Last Resort High-Efficiency"
"""Has a box for every character."""


class _Typeface(NamedTuple):
    path: str
    number: int
    """Of the font in its file."""
    characters: frozenset[str]
    """Those that are needed and that it has."""


class Fonts:
    """DejaVu Sans, which comes with matplotlib, then installed fonts that have the characters it lacks."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Choose the fonts for some texts; others may show boxes."""
        needed = frozenset(character for text in texts for character in text if character.isprintable())
        self._typefaces = _choose_typefaces(needed | _ALWAYS)
        self._loaded: dict[tuple[str, int, int], FreeTypeFont] = {}
        self.n_needed = len(needed)
        self.missing = needed.difference(*(typeface.characters for typeface in self._typefaces))
        """Characters that no installed font has; a box stands for each."""

    def width(self, text: str, size: int) -> float:
        """Pixels that a text takes."""
        return sum(font.getlength(run) for run, font in self._runs(text, size))

    def shorten(self, text: str, size: int, width: float) -> str:
        """The beginning of a text that fits into a width, in pixels."""
        if self.width(text, size) <= width:
            return text
        fits, too_long = 0, len(text)
        while fits + 1 < too_long:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if self.width(text[:middle] + "…", size) <= width else (fits, middle)
        return text[:fits] + "…"

    def write(
        self,
        draw: ImageDraw,
        place: tuple[float, float],
        text: str,
        size: int,
        fill: str | tuple[int, ...],
        *,
        anchor: str = "lm",
        bold: bool = False,
    ) -> None:
        """Write one line; ``anchor`` is Pillow's, the text's point that is put at ``place``."""
        x, y = place
        x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * self.width(text, size)
        for run, font in self._runs(text, size):
            draw.text((x, y), run, font=font, fill=fill, anchor="l" + anchor[1], stroke_width=0.4 if bold else 0)
            x += font.getlength(run)

    def _runs(self, text: str, size: int) -> Iterator[tuple[str, FreeTypeFont]]:
        """A text in parts, each with the first font that has its characters."""

        def typeface_of(character: str) -> _Typeface | None:
            return next((typeface for typeface in self._typefaces if character in typeface.characters), None)

        for typeface, characters in groupby(text, typeface_of):
            run = "".join(characters)
            path, number, _ = typeface or self._typefaces[0]
            if (path, number, size) not in self._loaded:
                self._loaded[path, number, size] = ImageFont.truetype(path, size, index=number)
            yield run if typeface else "□" * len(run), self._loaded[path, number, size]


def _choose_typefaces(characters: frozenset[str]) -> list[_Typeface]:
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
    for name in sorted({entry.name for entry in fontManager.ttflist} - {"DejaVu Sans", _LAST_RESORT}):
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
