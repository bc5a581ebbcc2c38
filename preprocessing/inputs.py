"""Turns the inputs of a command (files, folders, lists) into videos with unique identifiers."""

from __future__ import annotations

import logging
import mimetypes
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from preprocessing.errors import InputError
from preprocessing.names import as_video_id, by_video_id, refuse_shared_ids, video_id_of
from preprocessing.text import read_text

log = logging.getLogger("rcma.preprocessing")

_VIDEO_SUFFIXES = """
    .264 .265 .3g2 .3gp .3gp2 .3gpp .amv .asf .avc .avi .dav .divx .dv .dvr-ms .f4v .flv .gxf .h264 .h265 .hevc .ifv
    .insv .ismv .ivf .m1v .m2p .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mod .mov .movie .mp2v .mp4 .mp4v .mpe
    .mpeg .mpg .mpv .mqv .mts .mxf .nsv .nut .obu .ogm .ogv .ogx .psp .qt .rm .rmvb .tod .tp .trp .ts .vc1 .vob .vro
    .webm .wm .wmv .wtv .xvid .y4m
"""
_COMPANION_SUFFIXES = """
    .aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .m4b .mka .mp2 .mp3 .mpa .oga .ogg .opus .ra .spx .wav
    .weba .wma .wv .gif .lrv
"""
"""Sound, previews and the small copies of action cameras. They are left out if there is a video of the same name;
otherwise they are taken, so that a recording without pictures is reported as unusable."""
_OTHER_SUFFIXES = """
    .7z .ass .bz2 .cfg .db .docx .eaf .gz .idx .ini .ipynb .jfif .jxl .log .lrc .md .npy .npz .ods .odt .parquet .pkl
    .pptx .psd .rar .rst .rtf .safetensors .ssa .sub .textgrid .thm .toml .webp .xlsx .xz .yaml .yml
"""
_MIME_TYPES = mimetypes.MimeTypes(filenames=())  # without the machine's own tables, which differ

MEDIA_SUFFIXES = frozenset((_VIDEO_SUFFIXES + _COMPANION_SUFFIXES).split())
"""Suffixes of the files that are taken from a folder; a file that the user names may have any suffix."""
_NO_MEDIA_SUFFIXES = {*_OTHER_SUFFIXES.split(), *_MIME_TYPES.types_map[True], *_MIME_TYPES.types_map[False]}
"""Suffixes of files that are known not to be videos: ignored in a folder without a warning."""

_LONGEST_NAME = 255
"""Most bytes of the name of a folder."""
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """One video to work on."""

    video_id: str
    path: Path
    provided_faces: dict[str, Path] | None = None
    """Folder of faces of each annotated person, by the person's name; None: faces are to be detected."""
    first_image: int = 1
    """Number of the provided image of the first frame: 0 or 1."""
    problem: str = ""
    """One line: why it cannot be used; it fails without being opened."""


class Inputs(NamedTuple):
    """Inputs of a prediction."""

    folders: list[Path]
    """Feature folders."""
    sources: list[Source]
    """Raw videos."""

    @property
    def video_ids(self) -> list[str]:
        """Of the feature folders, then of the raw videos."""
        return [*map(_id_of_folder, self.folders), *(source.video_id for source in self.sources)]


class _Found(NamedTuple):
    """A file, or a folder that cannot be searched."""

    path: Path
    in_folder: bool = False
    """Found in a folder, and not named by the user."""
    problem: str = ""


def collect_sources(inputs: Sequence[Path], *, cropped_aligned: Path | None = None) -> list[Source]:
    """Find the videos in ``inputs``: files, folders and their subfolders, ``.txt`` files with one path per line.

    Inputs that cannot be used (an unreadable folder, a broken link, a name that no feature folder may have) are
    returned as sources with a ``problem``, so that they are reported and the others are processed. In folders, files
    of unknown type and sound beside a video of the same name are left out with a warning.

    Args:
        inputs: paths that the user names.
        cropped_aligned: folder of provided faces, see :mod:`preprocessing.faces.provided`.

    Raises:
        InputError: no input can be used, a list is empty, is no text or contains itself, or two inputs would get the
            same video_id.
    """
    found = [file for given in inputs for file in _expand(given, above=())]
    sources = list(_as_sources(found))
    usable = [source for source in sources if not source.problem]
    if not usable:
        raise InputError(_shortened([source.problem for source in sources], separator="; "))
    named = ((source.video_id, source.path) for source in usable)
    refuse_shared_ids(named, advice="rename one of them, or run it with another --out")
    return sources if cropped_aligned is None else _with_provided_faces(sources, cropped_aligned)


def sort_inputs(inputs: Sequence[Path]) -> Inputs:
    """Separate feature folders, and folders of them, from raw videos, which :func:`collect_sources` finds.

    Raises:
        InputError: see there, or two of them would get the same video_id.
    """
    folders: dict[Path, None] = {}
    videos = []
    for given in inputs:
        below = [path.parent for path in sorted(given.glob("*/meta.json"))] if given.is_dir() else []
        if given.is_dir() and any(given.glob("*.npy")):
            # Not by meta.json: a folder that has lost it is reported as damaged, not searched for videos.
            folders.setdefault(given)
        elif below:
            folders.update(dict.fromkeys(below))
        else:
            videos.append(given)
    found = Inputs(list(folders), collect_sources(videos) if videos else [])
    paths = [*found.folders, *(source.path for source in found.sources)]
    refuse_shared_ids(zip(found.video_ids, paths, strict=True))
    return found


def _id_of_folder(folder: Path) -> str:
    # The folder may be given as ``.``.
    return as_video_id(folder.resolve().name)


def take_shard(sources: Sequence[Source], shard: str) -> list[Source]:
    """Take one of n equal parts of the videos, so that n machines can share them.

    Args:
        sources: the same, in the same order, on all machines.
        shard: ``i/n`` with i from 1 to n; raises InputError otherwise.
    """
    first, slash, n = shard.partition("/")
    if not (slash and first.isdecimal() and n.isdecimal() and 1 <= int(first) <= int(n)):
        raise InputError(f"--shard {shard}: write i/n with i from 1 to n, for example 3/16")
    return list(sources[int(first) - 1 :: int(n)])


def _expand(given: Path, *, above: tuple[Path, ...]) -> list[_Found]:
    """Files of one input; ``above``: the lists that contain it."""
    kind = _kind(given)
    if kind == "folder":
        return _search(given) or [_Found(given, problem=f"{given}: no video files in this folder")]
    if kind == "file" and given.suffix.lower() == ".txt":
        return _read_list(given, above=above)
    return [_Found(given, problem=_problem_of(given))]


def _search(root: Path) -> list[_Found]:
    """Media files below a folder, sorted by path; links to folders are followed, each folder is searched once."""
    found: list[_Found] = []
    unknown: list[str] = []
    searched: set[str] = set()
    waiting = deque([root])
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) in searched:
            continue
        searched.add(real)
        try:
            with os.scandir(folder) as scan:
                entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            found.append(_Found(folder, problem=f"{folder}: this folder cannot be searched: {error.strerror}"))
            continue
        for entry in entries:
            path, is_link = Path(entry.path), entry.is_symlink()
            suffix = path.suffix.lower()
            if is_link and _kind(path) == "folder":
                waiting.append(path)  # after the folders that are no links, whose paths are preferred
            elif entry.is_dir(follow_symlinks=False):
                waiting.appendleft(path)
            elif suffix in MEDIA_SUFFIXES or (
                suffix not in _NO_MEDIA_SUFFIXES and is_link and _kind(path) == "nothing"
            ):
                found.append(_Found(path, in_folder=True, problem=_problem_of(path)))
            elif suffix not in _NO_MEDIA_SUFFIXES:
                unknown.append(str(path.relative_to(root)))
    if unknown:
        log.warning(
            "%s: files of unknown type left out: %s; name them to have them tried", root, _shortened(sorted(unknown))
        )
    return sorted(found)


def _read_list(listing: Path, *, above: tuple[Path, ...]) -> list[_Found]:
    if any(listing.samefile(other) for other in above):
        names = " and ".join(str(path) for path in dict.fromkeys(above))
        raise InputError(f"{listing}: this list contains itself: {names}; take it out of the list")
    paths = [
        path
        for line in read_text(listing, errors="surrogateescape").split("\n")
        if (path := _path_in_line(line.strip(), listing.parent)) is not None
    ]
    if not paths:
        raise InputError(f"{listing}: no paths in it; write one a line")
    return [file for path in paths for file in _expand(path, above=(*above, listing))]


def _path_in_line(line: str, folder: Path) -> Path | None:
    """The path in a line of a list; None for blank lines and comments."""
    # As the operating system spells it, even if that is not UTF-8.
    text = os.fsdecode(line.encode("utf-8", errors="surrogateescape"))
    # Relative paths count from the list's own folder, so that the list works from anywhere.
    if not text or (text.startswith("#") and _kind(folder / text) == "nothing"):
        return None
    if _kind(folder / text) != "nothing":
        return folder / text
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":  # as copied from a file manager or a shell
        text = text[1:-1]
    with suppress(RuntimeError):  # no such user: then it is a name that starts with ~
        return folder / Path(text).expanduser()
    return folder / text


def _problem_of(path: Path) -> str:
    """Why a file cannot be a video, in one line; empty for a missing file, which is reported when it is opened."""
    video_id = video_id_of(path)
    if video_id.startswith("."):
        return f"{path}: its name starts with a dot, and hidden folders are not read as features; rename it"
    if len(os.fsencode(video_id)) > _LONGEST_NAME:
        return f"{path}: its name is too long for a folder ({_LONGEST_NAME} bytes); rename it"
    kind = _kind(path)
    if kind == "nothing" and path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which does not exist or cannot be reached"
    return f"{path}: not a regular file" if kind == "other" else ""


def _kind(path: Path) -> Literal["file", "folder", "other", "nothing"]:
    """Type of a path, following links; Path.is_dir() raises OSError for some paths that cannot be reached."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "nothing"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _as_sources(found: Iterable[_Found]) -> Iterator[Source]:
    """Take each file once, under whatever paths it was found; leaves out files that only accompany a video."""
    files: dict[tuple[str, str], _Found] = {}
    for file in found:
        key = video_id_of(file.path), os.path.realpath(file.path)
        if key not in files or not file.in_folder:
            files[key] = file
    taken = {video_id for (video_id, _), file in files.items() if not _is_companion(file)}
    left_out = []
    for (video_id, _), file in files.items():
        if _is_companion(file) and video_id in taken:
            left_out.append(file.path.name)
            continue
        taken.add(video_id)
        yield Source(as_video_id(str(file.path)) if file.problem else video_id, file.path, problem=file.problem)
    if left_out:
        log.warning("left out, because a video of the same name is there: %s", _shortened(left_out))


def _is_companion(file: _Found) -> bool:
    return file.in_folder and file.path.suffix.lower() in _COMPANION_SUFFIXES.split()


def _with_provided_faces(sources: Sequence[Source], cropped_aligned: Path) -> list[Source]:
    """Add to each video the folders of its people: ``<video_id>``, ``<video_id>_left``, ``<video_id>_right``."""
    if _kind(cropped_aligned) != "folder":
        raise InputError(f"--cropped-aligned {cropped_aligned}: no such folder")
    try:
        paths = sorted(path for path in cropped_aligned.iterdir() if _kind(path) == "folder")
    except OSError as error:
        raise InputError(f"--cropped-aligned {cropped_aligned}: cannot be read: {error.strerror}") from None
    folders = by_video_id((as_video_id(path.name), path) for path in paths)
    # Where one video's images are numbered from 0, all are, even those of a video without a face in its first frame.
    first_image = 0 if any(_has_image_0(folder) for folder in folders.values()) else 1
    video_ids = {source.video_id for source in sources}
    with_faces, unused = [], dict(folders)
    for source in sources:
        names = [source.video_id + suffix for suffix in ("", "_left", "_right")]
        # A folder such as talk_left may belong to another video of that name.
        of_others = video_ids - {source.video_id}
        provided = {name: folders[name] for name in names if name in folders and name not in of_others}
        with_faces.append(replace(source, provided_faces=provided, first_image=first_image))
        for name in provided:
            del unused[name]
    if unused:
        named = _shortened(list(unused))
        log.warning("%s: no raw video for %d folders of faces (%s): not used", cropped_aligned, len(unused), named)
    return with_faces


def _has_image_0(folder: Path) -> bool:
    # By name: listing the images of all videos would take minutes.
    names = (f"{'0' * n_digits}.{kind}" for n_digits in range(1, 9) for kind in ("jpg", "jpeg", "png"))
    return any(_kind(folder / name) == "file" for name in names)


def _shortened(names: Sequence[str], *, separator: str = ", ") -> str:
    more = len(names) - _NAMES_SHOWN
    return separator.join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
