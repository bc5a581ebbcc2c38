"""From files, folders and lists to videos with identifiers."""

from __future__ import annotations

import codecs
import errno
import logging
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from preprocessing.errors import InputError
from preprocessing.inputs import MEDIA_SUFFIXES, Source, collect_sources

ODD_NAMES = [
    "it's a+b & c?.mp4",
    "-dash.mp4",
    os.fsdecode("два.mp4".encode()),
    "two  spaces [x].MOV",
    '"quoted".mkv',
    "100%d.webm",
    "a:b.mp4",
    "back\\slash.mp4",
    "ends in a dot..mp4",
    "ends in a space .mp4",
    "#1.mp4",
    "~.mp4",
]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def ids(sources: list[Source]) -> list[str]:
    return [source.video_id for source in sources if not source.problem]


def problems(sources: list[Source]) -> list[str]:
    return [source.problem for source in sources if source.problem]


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="rcma"):
        yield caplog


def test_any_file_name_is_found_and_keeps_its_stem(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ODD_NAMES))
    sources = collect_sources([tmp_path])
    assert {source.path.name for source in sources} == set(ODD_NAMES)
    assert all(source.video_id == source.path.stem and not source.problem for source in sources)
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{name}\n" for name in ODD_NAMES), encoding="utf-8")
    assert {source.path.name for source in collect_sources([listing])} == set(ODD_NAMES)


def test_folders_are_searched_below_and_only_for_media(tmp_path: Path) -> None:
    touch(
        tmp_path / "a.mp4", tmp_path / "day2" / "b.MKV", tmp_path / "notes.md", tmp_path / ".c.mp4", tmp_path / "d.wav"
    )
    assert [source.video_id for source in collect_sources([tmp_path])] == ["a", "d", "b"]


# Endings.


def test_endings_that_libraries_know_as_video_are_taken(tmp_path: Path, warned: pytest.LogCaptureFixture) -> None:
    by_type = mimetypes.MimeTypes(filenames=()).types_map[True]
    known = {suffix for suffix, kind in by_type.items() if kind.startswith("video/")}
    for demuxer in ("mov", "matroska", "avi", "flv", "gif", "dv", "h264", "hevc", "mjpeg", "nut", "yuv4mpegpipe"):
        known |= {f".{extension}" for extension in av.format.ContainerFormat(demuxer, "r").extensions}
    # Formats for still pictures, streaming manifests and subtitles that share a demuxer with videos.
    known -= {".avif", ".heic", ".heif", ".ism", ".isma", ".mks", ".mpo", ".dif", ".h26l"}
    known |= {".m2t", ".mts", ".m2ts", ".ts", ".mpg", ".wmv", ".3g2", ".gif"}
    assert known <= MEDIA_SUFFIXES
    touch(*(tmp_path / f"clip{number}{suffix}" for number, suffix in enumerate(sorted(known))))
    assert len(collect_sources([tmp_path])) == len(known)
    assert not warned.messages


def test_unknown_files_are_told_and_those_that_are_plainly_no_video_are_not(
    tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "sub" / "recording", tmp_path / "b.mp4.part")
    plain = ["x.txt", "x.csv", "x.jpg", "x.json", "x.srt", "x.vtt", "x.ass", "x.npy", "x.py", "Thumbs.db", ".DS_Store"]
    touch(*(tmp_path / name for name in plain))
    assert ids(collect_sources([tmp_path])) == ["a"]
    assert len(warned.messages) == 1
    for name in ("sub/recording", "b.mp4.part"):
        assert name in warned.messages[0].replace(os.sep, "/")
    assert ids(collect_sources([tmp_path / "sub" / "recording"])) == ["recording"]


def test_sound_and_previews_beside_a_video_are_left_out_and_told(
    tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    touch(*(tmp_path / "video" / name for name in ("talk.mp4", "talk.wav", "talk.gif", "other.mov")))
    touch(tmp_path / "sound" / "talk.mp3", tmp_path / "sound" / "alone.m4a", tmp_path / "sound" / "alone.wav")
    assert sorted(source.path.name for source in collect_sources([tmp_path])) == ["alone.m4a", "other.mov", "talk.mp4"]
    assert all(name in warned.messages[0] for name in ("talk.wav", "talk.gif", "talk.mp3", "alone.wav"))
    with pytest.raises(InputError, match="would both be 'talk'"):
        collect_sources([tmp_path / "video", tmp_path / "video" / "talk.wav"])
    assert ids(collect_sources([tmp_path / "video" / "talk.wav"])) == ["talk"]


# Links, and what cannot be read.


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "b.mp4", tmp_path / "in" / "real" / "a.mp4")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "real", target_is_directory=True)
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "c.mp4").symlink_to(tmp_path / "elsewhere" / "b.mp4")
    sources = collect_sources([tmp_path / "in"])
    assert [source.path.relative_to(tmp_path / "in").as_posix() for source in sources] == [
        "c.mp4",
        "linked/b.mp4",
        "real/a.mp4",
    ]


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    for name in ("b.mp4", "day2", "notes.txt"):
        (tmp_path / name).symlink_to(tmp_path / "gone" / name)
    (tmp_path / "itself.mkv").symlink_to("itself.mkv")
    sources = collect_sources([tmp_path])
    assert ids(sources) == ["a"]
    told = problems(sources)
    assert len(told) == 3
    for name in ("b.mp4", "day2", "itself.mkv"):
        assert any(problem.startswith(str(tmp_path / name)) for problem in told)


def test_folder_that_cannot_be_searched_is_named_and_the_others_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "locked" / "b.mp4", tmp_path / "open" / "c.mp4")
    scandir = os.scandir

    def refuse(path: os.PathLike[str]) -> object:  # not by permissions, which do not bind root
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    sources = collect_sources([tmp_path])
    assert ids(sources) == ["a", "c"]
    (problem,) = problems(sources)
    assert str(tmp_path / "locked") in problem and os.strerror(errno.EACCES) in problem
    with pytest.raises(InputError, match="locked"):
        collect_sources([tmp_path / "locked"])


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    touch(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    for inputs in ([tmp_path], [tmp_path / "a.mp4", tmp_path / "pipe.mp4"]):
        sources = collect_sources(inputs)
        assert ids(sources) == ["a"]
        assert "pipe.mp4: not a regular file" in problems(sources)[0]


def test_empty_folder_does_not_stop_the_others(tmp_path: Path) -> None:
    touch(tmp_path / "day1" / "a.mp4")
    (tmp_path / "day2").mkdir()
    sources = collect_sources([tmp_path / "day1", tmp_path / "day2"])
    assert ids(sources) == ["a"]
    assert str(tmp_path / "day2") in problems(sources)[0]


def test_folder_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no video files"):
        collect_sources([tmp_path])


# Lists.


def test_list_of_paths_counts_from_its_own_folder(tmp_path: Path) -> None:
    touch(tmp_path / "clips" / "a b.mp4")
    listing = tmp_path / "clips" / "list.txt"
    listing.write_text("# two\n\na b.mp4\n  /elsewhere/c.mp4\n")
    assert [source.path for source in collect_sources([listing])] == [
        tmp_path / "clips" / "a b.mp4",
        Path("/elsewhere/c.mp4"),
    ]


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_list_is_read_as_any_program_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: bytes, end: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    touch(*(tmp_path / name for name in ("première.mp4", "b c.mp4", "home/d.mp4", "e\u2028f.mp4", "'g'.mp4")))
    lines = ["première.mp4", f'"{tmp_path / "b c.mp4"}"', "~/d.mp4", "# a comment", "e\u2028f.mp4", "'g'.mp4", '""', ""]
    listing = tmp_path / "list.txt"
    listing.write_bytes(mark + end.join(lines).encode())
    sources = collect_sources([listing])
    assert [source.path.name for source in sources] == [
        "première.mp4", "b c.mp4", "d.mp4", "e\u2028f.mp4", "'g'.mp4", '""',
    ]  # fmt: skip
    assert all(source.path.is_file() for source in sources[:-1])


def test_list_holds_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"caf\xe9.mp4\n")
    (source,) = collect_sources([listing])
    assert source.path.is_file()
    source.video_id.encode("utf-8")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_list_in_utf_16_is_refused(tmp_path: Path, encoding: str) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("a.mp4\nb.mp4\n", encoding=encoding)
    with pytest.raises(InputError, match=r"list\.txt.*UTF-8"):
        collect_sources([listing])


def test_list_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    alone, first, second = (tmp_path / name for name in ("alone.txt", "first.txt", "second.txt"))
    alone.write_text("a.mp4\n./alone.txt\n")
    first.write_text("a.mp4\nsecond.txt\n")
    second.write_text("first.txt\n")
    for listing in (alone, first, second):
        with pytest.raises(InputError) as error:
            collect_sources([listing])
        assert str(listing) in str(error.value) and "\n" not in str(error.value)
    second.write_text("a.mp4\n")
    third = tmp_path / "third.txt"
    third.write_text("first.txt\nsecond.txt\n")
    assert ids(collect_sources([third])) == ["a"]


# Identifiers.


def test_same_file_named_twice_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "sub" / "b.mp4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to("sub", target_is_directory=True)
    inputs = [tmp_path, tmp_path / "a.mp4", Path("a.mp4"), Path("sub/../a.mp4"), Path("linked")]
    assert sorted(ids(collect_sources(inputs))) == ["a", "b"]


@pytest.mark.parametrize("second", ["a.mov", "a.MP4", "other/a.mp4"])
def test_two_inputs_with_one_id_are_refused_by_name(tmp_path: Path, second: str) -> None:
    touch(tmp_path / "a.mp4", tmp_path / second, tmp_path / "b.mp4")
    with pytest.raises(InputError) as error:
        collect_sources([tmp_path])
    assert str(tmp_path / "a.mp4") in str(error.value)
    assert str(tmp_path / second) in str(error.value)
    assert "b.mp4" not in str(error.value)


@pytest.mark.parametrize("name", ["..mp4", "...mp4", ".hidden.mp4", ".mp4", "..."])
def test_names_whose_folder_would_be_hidden_or_above_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name, tmp_path / "a.mp4")
    sources = collect_sources([tmp_path / name, tmp_path / "a.mp4"])
    assert ids(sources) == ["a"]
    assert problems(sources)[0].startswith(str(tmp_path / name))
