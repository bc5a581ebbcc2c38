"""Reads text files that people write by hand or with a spreadsheet, and makes any text one line."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Literal

from preprocessing.errors import InputError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, *, errors: Literal["strict", "surrogateescape"] = "strict") -> str:
    r"""Read a text file in UTF-8, with or without a byte order mark; every line ends with ``\n``.

    Args:
        path: the file.
        errors: ``surrogateescape`` keeps bytes that are not UTF-8, as in file names.

    Raises:
        InputError: the file cannot be read, or is not text in UTF-8; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if data.startswith(_UTF_16):
        raise InputError(f"{path}: is text in UTF-16; save it as UTF-8")
    if b"\0" in data:
        raise InputError(f"{path}: is not a text file; save it as text in UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8", errors=errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: holds a character that is not UTF-8; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def one_line(text: str) -> str:
    r"""Write line breaks and other control characters, which file names may contain, as ``\n``, ``\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
