"""The video_id: one spelling of a name, whatever file system or program it comes from."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.text import one_line


def as_video_id(name: str) -> str:
    r"""Turn a name into a video_id.

    The same name can have several spellings: macOS writes ``é`` as two characters (NFD), most other programs as one
    (NFC). A video_id is always NFC. Bytes of a file name that cannot be decoded, and control characters, are written as
    ``\xff``, so that a video_id can be printed and written to any file.
    """
    if name.isascii() and name.isprintable():
        return name  # fast, for files with a million rows
    text = os.fsencode(name).decode(sys.getfilesystemencoding(), errors="backslashreplace")
    return unicodedata.normalize("NFC", one_line(text))


def video_id_of(path: Path) -> str:
    """The video_id of a file: its name without the suffix."""
    return as_video_id(path.stem)


def refuse_shared_ids(named: Iterable[tuple[str, Path]], *, advice: str = "rename one of them") -> None:
    """Raise InputError if two paths have the same video_id."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for video_id, path in named:
        groups[video_id].append(path)
    shared = [
        f"{' and '.join(str(path) for path in paths)} would both be {video_id!r}"
        + (", their names differ only in Unicode normalisation" if any(map(_is_respelt, paths)) else "")
        for video_id, paths in groups.items()
        if len(paths) > 1
    ]
    if shared:
        raise InputError(f"{'; '.join(shared)}: {advice}")


def _is_respelt(path: Path) -> bool:
    return unicodedata.normalize("NFC", path.name) != path.name


def by_video_id(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Paths by their video_id, in the order given; raises InputError if two of them have the same."""
    pairs = list(named)
    refuse_shared_ids(pairs)
    return dict(pairs)
