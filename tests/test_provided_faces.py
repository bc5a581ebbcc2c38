"""Faces from folders of images: which frame each belongs to, and its colours, however it was saved."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.cli import main
from preprocessing.errors import InputError
from preprocessing.faces.provided import read_provided
from preprocessing.features.folder import load_features
from preprocessing.inputs import collect_sources

SIZE = 48
LEFT, RIGHT = (200, 60, 20), (10, 120, 240)
NO_SPEECH = ["--set", "speech.backend=none", "--device", "cpu", "--workers", "1"]


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (112, 112), (value,) * 3)


def two_colours() -> Image.Image:
    """Left half of one colour, right half of another."""
    image = Image.new("RGB", (112, 112), LEFT)
    image.paste(RIGHT, (56, 0, 112, 112))
    return image


def write_images(folder: Path, numbers: list[int], *, value: Callable[[int], int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        grey(value(number)).save(folder / f"{number:05d}.png")
    return folder


def read(folder: Path, n_frames: int, *, first_image: int = 1) -> tuple[np.ndarray, np.ndarray, str]:
    """Crops (T,S,S,3), whether there is a face (T,), and the remarks."""
    with io.BytesIO() as store:
        faces, remarks = read_provided(folder, n_frames=n_frames, size=SIZE, store=store, first_image=first_image)
        return faces.read_crops(0, n_frames), np.isfinite(faces.scores), "; ".join(remarks)


# Numbers.


def test_images_numbered_from_0_belong_to_the_frames_from_the_first_on(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "v", [0, 1, 3, 9], value=lambda number: 20 * number + 10)
    crops, there, remarks = read(folder, 10)
    assert np.flatnonzero(there).tolist() == [0, 1, 3, 9]
    np.testing.assert_array_equal(crops[there].mean(axis=(1, 2, 3)), [10, 30, 70, 190])
    assert "numbered from 0" in remarks and "surplus" not in remarks


@pytest.mark.slow
def test_video_without_a_face_in_its_first_frame_is_numbered_as_the_others(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        shutil.copy(short_clip, tmp_path / f"{name}.mp4")
    faces = tmp_path / "faces"
    write_images(faces / "a", list(range(12)), value=lambda number: 20 * number)
    write_images(faces / "b", [4, 7], value=lambda number: 20 * number)
    write_images(faces / "c", [4, 12], value=lambda number: 20 * number)  # an image 12 of 12 frames counts from 1
    out = tmp_path / "out"
    assert main([str(tmp_path), "--out", str(out), "--cropped-aligned", str(faces), *NO_SPEECH]) == 1
    b = load_features(out / "b")
    assert np.flatnonzero(np.isfinite(b.face_score)).tolist() == [4, 7]
    np.testing.assert_array_equal(b.faces[[4, 7]].mean(axis=(1, 2, 3)), [80, 140])
    assert any("numbered from 0" in remark for remark in b.meta["warnings"]["faces"])
    said = capsys.readouterr()
    failures = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 1 and str(faces / "c") in failures[0]
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]


def test_folders_that_count_from_1_stay_so(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "faces" / "v", [1, 12], value=lambda number: 20 * number)
    (tmp_path / "v.mp4").touch()
    (source,) = collect_sources([tmp_path / "v.mp4"], cropped_aligned=tmp_path / "faces")
    _, there, remarks = read(folder, 12, first_image=source.first_image)
    assert np.flatnonzero(there).tolist() == [0, 11]
    assert not remarks


@pytest.mark.parametrize("second", ["1.png", "00001.jpg", "00001.PNG"])
def test_two_images_of_one_frame_are_refused_by_name(tmp_path: Path, second: str) -> None:
    folder = write_images(tmp_path / "v", [1, 2], value=lambda number: number)
    grey(100).save(folder / second, format="PNG")
    if len(list(folder.iterdir())) == 2:
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(InputError, match=r"00001\.png") as error:
        read(folder, 3)
    assert second in str(error.value)


def test_images_that_are_not_named_by_frame_are_told(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "v", [1], value=lambda _: 50)
    grey(100).save(folder / "frame_2.png")
    (folder / "._00003.jpg").write_bytes(b"resource fork")
    _, there, remarks = read(folder, 3)
    assert there.tolist() == [True, False, False]
    assert "frame_2.png" in remarks and "._" not in remarks


# Pixels.


def save_16_bit_grey(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def save_with_orientation(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, as a camera held so writes it
    image.rotate(180).save(path, quality=95, exif=exif)


SAVED: dict[str, tuple[str, Callable[[Image.Image, Path], None], bool]] = {
    "jpeg": ("00001.jpg", lambda image, path: image.save(path, quality=95), False),
    "palette": ("00001.png", lambda image, path: image.convert("P", palette=Image.Palette.ADAPTIVE).save(path), False),
    "transparent": ("00001.png", lambda image, path: image.convert("RGBA").save(path), False),
    "CMYK": ("00001.jpg", lambda image, path: image.convert("CMYK").save(path, quality=95), False),
    "turned": ("00001.JPEG", save_with_orientation, False),
    "grey": ("00001.png", lambda image, path: image.convert("L").save(path), True),
    "grey, 16 bits": ("00001.png", save_16_bit_grey, True),
    "grey, 16 bits, TIFF": ("00001.tif", save_16_bit_grey, True),
    "bitmap": ("00001.bmp", lambda image, path: image.save(path), False),
}


@pytest.mark.parametrize("kind", SAVED)
def test_colours_are_right_however_an_image_was_saved(tmp_path: Path, kind: str) -> None:
    name, save, is_grey = SAVED[kind]
    image = two_colours()
    save(image, tmp_path / name)
    crops, there, remarks = read(tmp_path, 1)
    assert there.all() and not remarks
    expected = np.asarray((image.convert("L") if is_grey else image).convert("RGB"), dtype=np.float64)
    for columns, pixels in ((slice(2, 20), expected[0, 10]), (slice(28, 46), expected[0, 100])):
        np.testing.assert_allclose(crops[0, :, columns].mean(axis=(0, 1)), pixels, atol=6)


def test_what_is_wrong_with_images_is_told(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4, 6):
        grey(40 * number).save(tmp_path / f"{number:05d}.jpg")
    whole = (tmp_path / "00002.jpg").read_bytes()
    (tmp_path / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "00003.jpg").write_bytes(b"")
    Image.new("RGB", (112, 60), (90, 90, 90)).save(tmp_path / "00004.jpg")
    Image.new("RGB", (112, 112)).save(tmp_path / "00005.png")
    crops, there, remarks = read(tmp_path, 5)
    assert there.tolist() == [True, False, False, True, True]
    assert not crops[[1, 2]].any()
    for told in (
        "cannot be read, taken as missing: 2 (00002.jpg",
        "not square",
        "00004.jpg",
        "black all over: 1",
        "up to 6",
    ):
        assert told in remarks
