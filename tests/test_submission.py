"""A submission for a synthetic sample of three videos is accepted, and every broken variant refused with its reason."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preprocessing.errors import InputError
from rcma import cli
from rcma.abaw import read_predictions, read_template, write_per_video, write_single_file
from rcma.abaw.submission import MAX_CONSTANT_FRAMES, SubmissionReport, check_submission

HEADER = "image_location,valence,arousal\n"
N_FRAMES = {"video7": 40, "video12_left": 30, "video9": 12}
N_ROWS = sum(N_FRAMES.values())


def predictions() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {video: random.uniform(-1, 1, (n, 2)).astype(np.float32) for video, n in N_FRAMES.items()}


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    rows = [f"{video}/{k:05d}.jpg" for video, n in N_FRAMES.items() for k in range(1, n + 1)]
    path = tmp_path / "sample.txt"
    path.write_text(HEADER + "".join(f"{row},0,0\n" for row in rows))
    return path


@pytest.fixture
def right(tmp_path: Path, sample: Path) -> str:
    """A submission as the project writes it."""
    write_single_file(tmp_path / "right.txt", predictions(), template=read_template(sample))
    return (tmp_path / "right.txt").read_text()


def check(folder: Path, text: str, sample: Path | None) -> SubmissionReport:
    path = folder / "submission.txt"
    path.write_bytes(text.encode())
    return check_submission(path, template=sample)


def described(report: SubmissionReport) -> dict[str, str]:
    return {finding.kind: str(finding).removeprefix(f"{finding.kind}: ") for finding in report.problems}


def line(number: int, change: Callable[[str], str]) -> Callable[[str], str]:
    """A file with one line, counted from 1, changed; its line end stays."""

    def changed(text: str) -> str:
        lines = text.splitlines()
        lines[number - 1] = change(lines[number - 1])
        return "\n".join(lines) + "\n"

    return changed


def values(number: int, written: str) -> Callable[[str], str]:
    return line(number, lambda row: f"{row.split(',')[0]},{written}")


def name(number: int, written: str) -> Callable[[str], str]:
    return line(number, lambda row: ",".join([written, *row.split(",")[1:]]))


def without(first: int, last: int) -> Callable[[str], str]:
    """A file without some of its lines, counted from 1, both ends included."""
    return lambda text: "".join(text.splitlines(keepends=True)[: first - 1] + text.splitlines(keepends=True)[last:])


def swapped(text: str) -> str:
    lines = text.splitlines(keepends=True)
    lines[4], lines[5] = lines[5], lines[4]
    return "".join(lines)


def sorted_by_name(text: str) -> str:
    header, *rows = text.splitlines(keepends=True)
    return header + "".join(sorted(rows))


def constant(text: str, video: str, column: int) -> str:
    lines = [row.split(",") for row in text.splitlines()]
    for cells in lines[1:]:
        if cells[0].startswith(video):
            cells[column] = "0.25"
    return "".join(",".join(cells) + "\n" for cells in lines)


# Lines 2 to 41 are video7, 42 to 71 video12_left, 72 to 83 video9.
BROKEN: dict[str, tuple[Callable[[str], str], dict[str, str]]] = {
    "no header": (without(1, 1), {"no header": "1 (line 1: 'video7/00001.jpg,0.273923,-0.460427', expected image"}),
    "header of one video": (
        line(1, lambda _: "valence,arousal"),
        {"wrong header": "1 (line 1: 'valence,arousal', expected"},
    ),
    "spaces in the header": (line(1, lambda row: row.replace(",", ", ")), {"wrong header": "1 (line 1: 'image_loc"}),
    "byte order mark": (
        lambda text: "\ufeff" + text,
        {"byte order mark, which becomes part of the header": "1 (line 1)"},
    ),
    "empty": (
        lambda _: "",
        {"empty file": "1 (submission.txt)", "missing row": "82 (first video7/00001.jpg; video7: all 40, "},
    ),
    "header alone": (lambda _: HEADER, {"no rows": "1 (submission.txt)", "missing row": "82 (first video7/00001.jpg"}),
    "one row missing": (without(3, 3), {"missing row": "1 (first video7/00002.jpg; video7: 1 of 40)"}),
    "one video and a half missing": (
        without(60, 83),
        {"missing row": "24 (first video12_left/00019.jpg; video12_left: 12 of 30, video9: all 12)"},
    ),
    "two rows swapped": (
        swapped,
        {"row out of order": "2 (from line 5: video7/00005.jpg where the sample has video7/00004.jpg)"},
    ),
    "sorted by name": (
        sorted_by_name,
        {"row out of order": "70 (from line 2: video12_left/00001.jpg where the sample has video7/00001.jpg)"},
    ),
    "a row twice": (
        lambda text: text + text.splitlines(keepends=True)[4],
        {"duplicate row": "1 (line 84: 'video7/00004.jpg', first in line 5)"},
    ),
    "frame beyond the last": (
        lambda text: text + "video9/00013.jpg,0,0\n",
        {"frame not in the sample": "1 (line 84: 'video9/00013.jpg')"},
    ),
    "unknown video": (
        lambda text: text + "".join(f"video8/{k:05d}.jpg,0.{k},0\n" for k in range(1, 6)),
        {
            "row of a video not in the sample": "5 (line 84: 'video8/00001.jpg'; line 85: "
            "'video8/00002.jpg'; line 86: 'video8/00003.jpg'; ...)"
        },
    ),
    "frames counted from 0": (
        name(2, "video7/00000.jpg"),
        {
            "row that names no frame": "1 (line 2: 'video7/00000.jpg')",
            "missing row": "1 (first video7/00001.jpg; video7: 1 of 40)",
        },
    ),
    "png instead of jpg": (
        lambda text: text.replace(".jpg", ".png"),
        {
            "row not spelled like the sample": "82 (line 2: 'video7/00001.png' instead of video7/00001.jpg; "
            "line 3: 'video7/00002.png' instead of video7/00002.jpg; line 4: "
        },
    ),
    "four digits": (
        lambda text: text.replace("/0", "/"),
        {"row not spelled like the sample": "82 (line 2: 'video7/0001.jpg' instead of video7/00001.jpg; "},
    ),
    "paths of Windows": (
        lambda text: text.replace("/", "\\"),
        {"row not spelled like the sample": "82 (line 2: 'video7\\\\00001.jpg' instead of video7/00001.jpg"},
    ),
    "space after the name": (
        name(83, "video9/00012.jpg "),
        {"row not spelled like the sample": "1 (line 83: 'video9/00012.jpg ' instead of video9/00012.jpg)"},
    ),
    "only numbers as names": (
        name(2, "00001.jpg"),
        {"row that names no frame": "1 (line 2: '00001.jpg')", "missing row": "1 (first video7/00001.jpg; video7: 1"},
    ),
    "just above 1": (values(9, "0.5,1.0000001"), {"value outside [-1, 1]": "1 (line 9: '1.0000001')"}),
    "huge": (values(9, "-1e999,2"), {"value outside [-1, 1]": "2 (line 9: '-1e999'; line 9: '2')"}),
    "-5": (
        values(9, "-5.0,-5"),
        {"value of -5, which marks a frame without annotation": "2 (line 9; line 9)"},
    ),
    "nan": (values(9, "nan,-NaN"), {"value that is NaN or infinite": "2 (line 9: 'nan'; line 9: '-NaN')"}),
    "inf": (values(9, "inf,+Infinity"), {"value that is NaN or infinite": "2 (line 9: 'inf'; line 9: '+Infinity')"}),
    "no value": (values(9, ",0.5"), {"missing value": "1 (line 9)"}),
    "words": (values(9, "None,0_1"), {"value that is not a number": "2 (line 9: 'None'; line 9: '0_1')"}),
    "digits of another script": (values(9, "0,\u0661"), {"value that is not a number": "1 (line 9: '\u0661')"}),
    "a value too many": (
        values(9, "0.1,0.2,0.3"),
        {"number of columns other than 3": "1 (line 9: 'video7/00008.jpg,0.1,0.2,0.3')"},
    ),
    "decimal commas": (
        values(9, "0,5,0,25"),
        {"number of columns other than 3": "1 (line 9: 'video7/00008.jpg,0,5,0,25')"},
    ),
    "semicolons": (
        lambda text: text.replace(",", ";"),
        {
            "wrong header": "1 (line 1: 'image_location;valence;arousal', expected",
            "number of columns other than 3": "82 (line 2: 'video7/00001.jpg;",
            "missing row": "82 (first video7/00001.jpg; video7: all 40, video12_left: all 30, video9: all 12)",
        },
    ),
    "index column": (
        lambda text: "".join(f"{k},{row}" for k, row in enumerate(text.splitlines(keepends=True))),
        {
            "wrong header": "1 (line 1: '0,image_location,valence,arousal', expected",
            "number of columns other than 3": "82 (line 2: '1,video7/00001.jpg,",
            "missing row": "82 (first ",
        },
    ),
    "blank lines between rows": (
        lambda text: text.replace("video9/00001.jpg", "\n \nvideo9/00001.jpg"),
        {"blank line before the last row": "2 (line 72; line 73)"},
    ),
    "line ends written twice": (
        lambda text: text.replace("\n", "\r\r\n"),
        {
            "wrong header": "1 (line 1: 'image_location,valence,arousal\\r', expected",
            "value that is not a number": "82 (line 2: '",
        },
    ),
    "cut off in a name": (
        lambda text: text[: text.rindex("12.jpg")],
        {
            "last line is cut off": "1 (line 83: 'video9/000')",
            "missing row": "1 (first video9/00012.jpg; video9: 1 of",
        },
    ),
    "cut off before a value": (
        lambda text: text[: text.rindex(",") + 1],
        {"last line is cut off": "1 (line 83: 'video9/00012.jpg,"},
    ),
    "valence of a video constant": (
        lambda text: constant(text, "video12_left", 1),
        {"video of constant valence": "1 (video12_left: 0.25 in all 30 rows)"},
    ),
    "arousal constant": (lambda text: constant(text, "", 2), {"constant arousal in all rows": "82 (0.25)"}),
    "all of it constant": (
        lambda text: constant(constant(text, "", 1), "", 2),
        {"constant valence in all rows": "82 (0.25)", "constant arousal in all rows": "82 (0.25)"},
    ),
    "zero bytes between the letters": (
        lambda text: "\ufeff" + "\0".join(text),
        {
            "byte order mark, which becomes part of the header": "1 (line 1)",
            "wrong header": "1 (line 1: 'i\\x00m\\x00a",
            "row that names no frame": "82 (line 2: '\\x00v\\x00i",
            "value that is not a number": "164 (line 2: ",
            "missing row": "82 (first ",
        },
    ),
}


def test_files_of_the_project_are_accepted(tmp_path: Path, sample: Path, right: str) -> None:
    report = check(tmp_path, right, sample)
    assert (report.n_rows, report.n_videos, report.problems, report.remarks) == (N_ROWS, 3, [], [])
    write_single_file(tmp_path / "untold.txt", predictions())
    assert check_submission(tmp_path / "untold.txt").problems == []


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_variant_is_refused_with_its_reason_and_no_other(
    tmp_path: Path, sample: Path, right: str, kind: str
) -> None:
    break_it, expected = BROKEN[kind]
    problems = described(check(tmp_path, break_it(right), sample))
    assert problems.keys() == expected.keys()
    for what, starts in expected.items():
        assert problems[what].startswith(starts)


@pytest.mark.parametrize("kind", BROKEN)
def test_command_lists_the_problems_and_fails(
    tmp_path: Path, sample: Path, right: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, expected = BROKEN[kind]
    path = tmp_path / "submission.txt"
    path.write_bytes(break_it(right).encode())
    assert cli.check_submission.main([str(path), "--template", str(sample)]) == 1
    printed, error = capsys.readouterr()
    first, *others = printed.splitlines()
    assert first.startswith(f"{path}: refused; ")
    wrong = [text for text in others if text.startswith("  wrong: ")]
    assert len(wrong) == len(expected)
    for text, (what, starts) in zip(sorted(wrong), sorted(expected.items()), strict=True):
        assert text.startswith(f"  wrong: {what}: {starts}")
    assert error == ""


def test_command_accepts_a_right_submission(
    tmp_path: Path, sample: Path, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "right.txt"
    assert cli.check_submission.main([str(path), "--template", str(sample)]) == 0
    assert capsys.readouterr().out == f"{path}: accepted; 82 rows of 3 videos\n"
    assert cli.check_submission.main([str(path)]) == 0
    assert "coverage and order were not checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda text: text.replace("\n", "\r\n"), "Windows line ends: 83 (submission.txt)"),
        (
            line(1, lambda _: "Image_location,Valence,Arousal"),
            "header in other letter case: 1 (line 1: 'Image_location,Valence,Arousal', expected "
            "image_location,valence,arousal)",
        ),
        (lambda text: text + "\n  \n", "blank line after the last row: 2 (line 84; line 85)"),
        (lambda text: text[:-1], "no line end after the last line: 1 (line 83)"),
        (lambda text: constant(text, "video9", 1), "short video of constant valence: 1 (video9: 0.25 in all 12 rows)"),
        (values(5, "1e-05,-2.5E-1"), None),
        (values(5, "1,-1.000"), None),
        (values(5, " .5, +0.5 "), None),
    ],
)
def test_unusual_but_right_files_are_accepted(
    tmp_path: Path, sample: Path, right: str, change: Callable[[str], str], remark: str | None
) -> None:
    report = check(tmp_path, change(right), sample)
    assert report.problems == []
    assert [str(finding) for finding in report.remarks] == ([remark] if remark else [])


@pytest.mark.parametrize("seed", range(4))
def test_damage_to_one_character_is_refused_unless_every_row_still_reads_right(
    tmp_path: Path, sample: Path, right: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    names = [row.text for row in read_template(sample)]
    n_accepted = 0
    for _ in range(100):
        at = int(random.integers(len(right)))
        put = str(random.choice(["", "x", "0", "7", ",", ".", "-", " ", "\n", "\r", "\0", "/", "e", "\x1c", "\u2028"]))
        damaged = right[:at] + put + right[at + int(random.integers(2)) :]
        if check(tmp_path, damaged, sample).problems:
            continue
        n_accepted += 1
        header, *rows = damaged.rstrip("\n").split("\n")
        assert f"{header}\n" == HEADER and [row.split(",")[0] for row in rows] == names
        read = read_predictions(tmp_path / "submission.txt")
        assert {video: len(made) for video, made in read.items()} == N_FRAMES
        assert all(np.isfinite(made).all() for made in read.values())
    assert 0 < n_accepted < 100, "another digit cannot be detected"


def test_all_problems_are_reported_at_once(tmp_path: Path, sample: Path, right: str) -> None:
    kinds = ["spaces in the header", "just above 1", "png instead of jpg", "unknown video"]
    text = right
    for kind in kinds:
        text = BROKEN[kind][0](text)
    text = values(20, "nan,-5")(without(50, 51)(text))
    assert described(check(tmp_path, text, sample)).keys() == {
        "wrong header",
        "value outside [-1, 1]",
        "value that is NaN or infinite",
        "value of -5, which marks a frame without annotation",
        "row not spelled like the sample",
        "row of a video not in the sample",
        "missing row",
    }


def test_line_with_two_mistakes_has_both_reported(tmp_path: Path, sample: Path, right: str) -> None:
    problems = described(check(tmp_path, right + "video8/00001.jpg,nan,7\n", sample))
    assert {text.partition(" (line 84")[0] for text in problems.values()} == {"1"}
    assert len(problems) == 3


def test_rows_must_have_the_order_of_the_sample(tmp_path: Path, right: str) -> None:
    sample = tmp_path / "unsorted.txt"
    header, *rows = right.splitlines(keepends=True)
    shuffled = [rows[k] for k in np.random.default_rng(3).permutation(N_ROWS)]
    sample.write_text(header + "".join(shuffled))
    assert check(tmp_path, header + "".join(shuffled), sample).problems == []
    # A missing row does not put those after it out of order.
    assert described(check(tmp_path, header + "".join(shuffled[1:]), sample)).keys() == {"missing row"}
    assert described(check(tmp_path, right, sample)).keys() == {"row out of order"}


def test_names_are_right_as_the_sample_spells_them(tmp_path: Path, sample: Path, right: str) -> None:
    sample.write_text(sample.read_text().replace("/000", "/").replace(".jpg", ".png"))
    assert check(tmp_path, right.replace("/000", "/").replace(".jpg", ".png"), sample).problems == []
    problems = described(check(tmp_path, right, sample))
    assert list(problems) == ["row not spelled like the sample"]


@pytest.mark.parametrize("kind", BROKEN)
def test_without_a_sample_all_but_coverage_and_order_is_checked(tmp_path: Path, right: str, kind: str) -> None:
    break_it, expected = BROKEN[kind]
    found = described(check(tmp_path, break_it(right), None))
    only_by_sample = {
        "missing row",
        "row out of order",
        "frame not in the sample",
        "row of a video not in the sample",
    }
    spelling = {"row not spelled like the sample": "row not spelled like video7/00001.jpg"}
    assert found.keys() == {spelling.get(what, what) for what in expected} - only_by_sample


def test_one_row_in_two_spellings_is_a_duplicate(tmp_path: Path) -> None:
    text = HEADER + "v/00001.jpg,0,0.1\nv/0001.jpg,0.5,0.2\nv/100000.jpg,0.6,0.3\n"
    problems = described(check(tmp_path, text, None))
    assert problems == {
        "row not spelled like video7/00001.jpg": "1 (line 3: 'v/0001.jpg' instead of v/00001.jpg)",
        "duplicate row": "1 (line 3: 'v/0001.jpg', first in line 2)",
    }


@pytest.mark.parametrize(("n", "refused"), [(MAX_CONSTANT_FRAMES, False), (MAX_CONSTANT_FRAMES + 1, True)])
def test_constant_video_is_refused_if_it_is_long(tmp_path: Path, n: int, refused: bool) -> None:
    rows = [f"a/{k:05d}.jpg,0.1,{k / 100}\n" for k in range(1, n + 1)] + ["b/00001.jpg,0.2,0\n"]
    report = check(tmp_path, HEADER + "".join(rows), None)
    assert bool(report.problems) == refused and bool(report.remarks) != refused


def test_memory_does_not_grow_with_the_number_of_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "submission.txt"
    path.write_text(HEADER + "what is this\n" * 20_000)
    tracemalloc.start()
    report = check_submission(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.problems[0].count == 20_000 and len(str(report.problems[0])) < 200
    assert peak < 500_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of editions 2 and 3, as the project writes them."""
    for video, made in predictions().items():
        write_per_video(tmp_path / "folder", video, made)
    return tmp_path / "folder"


def test_folders_of_the_project_are_accepted(folder: Path, sample: Path) -> None:
    for template in (sample, None):
        report = check_submission(folder, template=template)
        assert (report.n_rows, report.n_videos, report.problems, report.remarks) == (N_ROWS, 3, [], [])


def rewritten(file: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def change_it(folder: Path) -> None:
        (folder / file).write_text(change((folder / file).read_text()))

    return change_it


BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "video missing": (lambda folder: (folder / "video7.txt").unlink(), {"missing video": "1 (video7)"}),
    "video renamed": (
        lambda folder: (folder / "video7.txt").rename(folder / "video7.mp4.txt"),
        {"missing video": "1 (video7)", "video not in the sample": "1 (video7.mp4)"},
    ),
    "a row too few": (
        rewritten("video9.txt", without(13, 13)),
        {"wrong number of rows": "1 (video9: 11 rows, 12 frames)"},
    ),
    "header missing": (
        rewritten("video9.txt", without(1, 1)),
        {"no header": "1 (video9.txt, line 1: '"},
    ),
    "empty": (
        rewritten("video9.txt", lambda _: ""),
        {
            "empty file": "1 (video9.txt)",
            "wrong number of rows": "1 (video9: 0 rows, 12 frames)",
        },
    ),
    "rows with names": (
        rewritten("video9.txt", line(3, lambda row: f"video9/00002.jpg,{row}")),
        {"number of columns other than 2": "1 (video9.txt, line 3: 'video9/00002.jpg,"},
    ),
    "-5": (
        rewritten("video9.txt", line(3, lambda _: "-5,-5")),
        {"value of -5, which marks a frame without annotation": "2 (video9.txt, line 3; video9.txt, line 3)"},
    ),
    "blank line": (
        rewritten("video9.txt", line(3, lambda row: f"\n{row}")),
        {"blank line before the last row": "1 (video9.txt, line 3)"},
    ),
    "constant": (
        rewritten("video7.txt", lambda text: "valence,arousal\n" + "0.5,0.25\n" * (text.count("\n") - 1)),
        {
            "video of constant valence": "1 (video7: 0.5 in all 40 rows)",
            "video of constant arousal": "1 (video7: 0.25 in all 40 rows)",
        },
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FOLDERS)
def test_broken_folder_is_refused_with_its_reason_and_no_other(
    folder: Path, sample: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, expected = BROKEN_FOLDERS[kind]
    break_it(folder)
    problems = described(check_submission(folder, template=sample))
    assert problems.keys() == expected.keys()
    for what, starts in expected.items():
        assert problems[what].startswith(starts)
    assert cli.check_submission.main([str(folder), "--template", str(sample)]) == 1
    assert capsys.readouterr().out.startswith(f"{folder}: refused; ")


def test_other_files_of_a_folder_are_named(folder: Path, sample: Path) -> None:
    (folder / "features").mkdir()
    (folder / "scores.json").write_text("{}")
    (folder / ".hidden.txt").write_text("")
    report = check_submission(folder, template=sample)
    assert report.problems == []
    assert [str(finding) for finding in report.remarks] == ["ignored in the folder: 2 (features; scores.json)"]


def test_unreadable_input_is_an_error(
    tmp_path: Path, folder: Path, sample: Path, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    (folder / "all.txt").write_text(right)
    unusable = [
        ([str(tmp_path / "nowhere.txt")], "nowhere.txt: cannot be read"),
        ([str(tmp_path / "right.txt"), "--template", str(tmp_path / "nowhere.txt")], "nowhere.txt: cannot be read"),
        ([str(tmp_path / "right.txt"), "--template", str(folder)], "folder: cannot be read"),
        ([str(tmp_path / "nothing")], "nothing: no .txt files in it"),
        ([str(folder), "--template", str(sample)], "all.txt in it holds all videos"),
    ]
    for arguments, says in unusable:
        assert cli.check_submission.main(arguments) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and says in error
    with pytest.raises(InputError, match="cannot be read"):
        check_submission(tmp_path / "nowhere.txt")


def test_help_shows_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.check_submission.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and "exit code: 0 accepted" in text
    assert f"more than {MAX_CONSTANT_FRAMES} rows" in " ".join(text.split())
