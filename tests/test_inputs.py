"""From files, folders and lists to videos with identifiers."""

from pathlib import Path

import pytest

from preprocessing.errors import InputError
from preprocessing.inputs import collect_sources

ODD_NAMES = [
    "it's a+b & c?.mp4",
    "-dash.mp4",
    "два.mp4",
    "two  spaces [x].MOV",
    '"quoted".mkv',
    "100%d.webm",
    "a:b.mp4",
]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_any_file_name_is_found_and_keeps_its_stem(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ODD_NAMES))
    sources = collect_sources([tmp_path])
    assert {source.path.name for source in sources} == set(ODD_NAMES)
    assert all(source.video_id == source.path.stem for source in sources)


def test_folders_are_searched_below_and_only_for_media(tmp_path: Path) -> None:
    touch(
        tmp_path / "a.mp4", tmp_path / "day2" / "b.MKV", tmp_path / "notes.md", tmp_path / ".c.mp4", tmp_path / "d.wav"
    )
    assert [source.video_id for source in collect_sources([tmp_path])] == ["a", "d", "b"]


def test_list_of_paths_counts_from_its_own_folder(tmp_path: Path) -> None:
    touch(tmp_path / "clips" / "a b.mp4")
    listing = tmp_path / "clips" / "list.txt"
    listing.write_text("# two\n\na b.mp4\n  /elsewhere/c.mp4\n")
    assert [source.path for source in collect_sources([listing])] == [
        tmp_path / "clips" / "a b.mp4",
        Path("/elsewhere/c.mp4"),
    ]


def test_same_file_named_twice_is_done_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    assert len(collect_sources([tmp_path, tmp_path / "a.mp4"])) == 1


@pytest.mark.parametrize("second", ["a.mov", "other/a.mp4"])
def test_two_inputs_with_one_id_are_refused_by_name(tmp_path: Path, second: str) -> None:
    touch(tmp_path / "a.mp4", tmp_path / second, tmp_path / "b.mp4")
    with pytest.raises(InputError) as error:
        collect_sources([tmp_path])
    assert str(tmp_path / "a.mp4") in str(error.value)
    assert str(tmp_path / second) in str(error.value)
    assert "b.mp4" not in str(error.value)


def test_folder_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no video files"):
        collect_sources([tmp_path])
