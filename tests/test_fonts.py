"""Texts of any script are measured, shortened and drawn as one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from preprocessing.fonts import Fonts

UNASSIGNED = "\U000e0fff"
"""No font has it."""


@pytest.mark.parametrize("text", ["hello", "два слова", "a" + UNASSIGNED + "b", "tab\tand \x1b"])
def test_a_text_takes_the_width_that_is_measured(text: str) -> None:
    picture = Image.new("L", (400, 40))
    fonts = Fonts([text])
    fonts.write(ImageDraw.Draw(picture), (200, 20), text, 20, 255, anchor="mm")
    columns = np.flatnonzero(np.asarray(picture).any(axis=0))
    width = fonts.width(text, 20)
    assert 0.7 * width < columns[-1] - columns[0] < width + 4
    assert (columns[0] + columns[-1]) / 2 == pytest.approx(200, abs=8)


def test_a_box_stands_for_a_character_without_a_font() -> None:
    fonts = Fonts(["plain text"])
    assert fonts.missing == frozenset()
    assert fonts.width("a" + UNASSIGNED * 3, 20) == fonts.width("a", 20) + fonts.width("□" * 3, 20)


def test_shortened_text_fits_and_keeps_its_beginning() -> None:
    fonts = Fonts([])
    text = "a rather long text that does not fit"
    assert fonts.shorten(text, 12, 10_000) == text
    for room in (20.0, 60.0, 120.0):
        short = fonts.shorten(text, 12, room)
        assert fonts.width(short, 12) <= room
        assert short.endswith("…") and text.startswith(short[:-1])
