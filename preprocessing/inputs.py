"""From what the user names (files, folders, lists) to videos, each with an identifier of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.errors import InputError

_VIDEO_SUFFIXES = """
    .3gp .asf .avi .divx .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf .ogm .ogv .qt .rm .rmvb
    .ts .vob .webm .wmv
"""
# Recordings without pictures are taken up too, so that they are named as unusable rather than passed over.
_SOUND_SUFFIXES = ".aac .flac .m4a .mp3 .oga .ogg .opus .wav .wma"
MEDIA_SUFFIXES = frozenset((_VIDEO_SUFFIXES + _SOUND_SUFFIXES).split())
"""Endings of the files that are taken from a folder; a file that is named itself may end in anything."""


@dataclass(frozen=True)
class Source:
    """One video to work on."""

    video_id: str
    path: Path
    provided_faces: dict[str, Path] | None = None
    """Folders with the faces of each annotated person, by the person's name; None: faces are to be detected."""


def collect_sources(inputs: Sequence[Path], *, cropped_aligned: Path | None = None) -> list[Source]:
    """Find the videos behind ``inputs``: files, folders (searched below too), ``.txt`` files with one path a line.

    Args:
        inputs: what the user names.
        cropped_aligned: folder of provided faces, see :mod:`preprocessing.provided_faces`.

    Raises:
        InputError: a folder holds no media file, a list is empty or no text, or two inputs would get the same video_id.
    """
    paths: dict[Path, None] = {}
    for given in inputs:
        for path in _expand(given):
            paths.setdefault(path)
    sources = [Source(video_id=path.stem, path=path) for path in paths]
    refuse_shared_ids((source.video_id, source.path) for source in sources)
    if cropped_aligned is None:
        return sources
    if not cropped_aligned.is_dir():
        raise InputError(f"--cropped-aligned {cropped_aligned}: no such folder")
    names = {source.video_id for source in sources}
    return [
        replace(
            source,
            provided_faces=find_provided(cropped_aligned, source.video_id, other_videos=names - {source.video_id}),
        )
        for source in sources
    ]


def find_provided(root: Path, video_id: str, *, other_videos: Container[str]) -> dict[str, Path]:
    """Folders of provided faces that belong to a video, by the name of the person; empty when there is none.

    Args:
        root: Aff-Wild2's ``cropped_aligned``, with ``<video_id>``, ``<video_id>_left``, ``<video_id>_right``.
        video_id: of the raw video.
        other_videos: video_ids that own the folder of their name, even if it ends in ``_left`` or ``_right``.
    """
    names = [video_id + suffix for suffix in ("", "_left", "_right")]
    return {name: root / name for name in names if name not in other_videos and (root / name).is_dir()}


def take_shard(sources: Sequence[Source], shard: str) -> list[Source]:
    """One of n equal parts of the videos, so that n machines can share them.

    Args:
        sources: the same, in the same order, on all machines.
        shard: ``i/n`` with i from 1 to n.

    Raises:
        InputError: another form, or i is not from 1 to n.
    """
    first, slash, n = shard.partition("/")
    if not (slash and first.isdecimal() and n.isdecimal() and 1 <= int(first) <= int(n)):
        raise InputError(f"--shard {shard}: write i/n with i from 1 to n, for example 3/16")
    return list(sources[int(first) - 1 :: int(n)])


def refuse_shared_ids(named: Iterable[tuple[str, Path]]) -> None:
    """Raise InputError if two paths stand for the same video_id."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for video_id, path in named:
        groups[video_id].append(path)
    shared = [
        f"{' and '.join(str(path) for path in paths)} would both be {video_id!r}"
        for video_id, paths in groups.items()
        if len(paths) > 1
    ]
    if shared:
        raise InputError(f"{'; '.join(shared)}: rename one of them, or run it with another --out")


def _expand(given: Path) -> list[Path]:
    if given.is_dir():
        found = sorted(path for path in given.rglob("*") if _is_media(path, given))
        if not found:
            raise InputError(f"{given}: no video files in this folder")
        return found
    if given.suffix.lower() == ".txt" and given.exists():
        return _read_list(given)
    # A file that does not exist stays in: it is named at the end, and the others are done.
    return [given]


def _is_media(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in MEDIA_SUFFIXES and not hidden and path.is_file()


def _read_list(listing: Path) -> list[Path]:
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: cannot be read as a list of paths, one a line: {error}") from None
    # Relative paths count from the list's own folder, so that the list works from anywhere.
    paths = [listing.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not paths:
        raise InputError(f"{listing}: no paths in it; write one a line")
    return [file for path in paths for file in _expand(path)]
