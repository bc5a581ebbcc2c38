"""What is printed: one line a message, whatever a name holds, on a terminal of any encoding."""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from preprocessing.cli import main
from preprocessing.console import Reporter, log, print_failure, print_table, run_command
from preprocessing.errors import InputError

NO_SPEECH = ["--set", "speech.backend=none", "--device", "cpu", "--workers", "1"]
NAMES = ["два 한국 😀", "première", "two\nlines", "\x1b[31mred", "no text \udce9"]

ENCODINGS = ["utf-8", "latin-1", "ascii", "cp1252"]


class Terminal(io.BytesIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        """Bars are shown."""
        return True


def replace_streams(monkeypatch: pytest.MonkeyPatch, encoding: str) -> dict[str, io.BytesIO]:
    """Make standard output a pipe and standard error a terminal, both of an encoding."""
    written: dict[str, io.BytesIO] = {"stdout": io.BytesIO(), "stderr": Terminal()}
    for name, raw in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    monkeypatch.setenv("TERM", "xterm")
    return written


def lines_of(stream: io.BytesIO, encoding: str) -> list[str]:
    """What a terminal shows, without the sequences that move its cursor."""
    text = stream.getvalue().decode(encoding)
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in text.split("\n")]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_shown_on_any_terminal(monkeypatch: pytest.MonkeyPatch, name: str, encoding: str) -> None:
    streams = replace_streams(monkeypatch, encoding)

    def work(_: argparse.Namespace) -> int:
        print(name)
        with Reporter(1, unit="video") as reporter:
            reporter.status(name)
            log.warning("warned of %s", name)
            reporter.finished(name)
        print_table(f"title {name}", ("video", "remarks"), [[name, "—"], ["other", "…"]])
        print_failure(f"{name}: broken")
        raise InputError(f"{name}: wrong")

    parser = argparse.ArgumentParser(prog="command")
    parser.set_defaults(log_level="warning")
    assert run_command(work, parser, []) == 2
    error_lines = lines_of(streams["stderr"], encoding)
    assert sum(line.startswith("failed: ") and line.endswith(": broken") for line in error_lines) == 1
    assert error_lines[-1] == ""
    assert error_lines[-2].startswith("command: error: ") and error_lines[-2].endswith(": wrong")
    output = lines_of(streams["stdout"], encoding)
    table = output[[line.startswith("title") for line in output].index(True) :]
    assert len(table) == 8  # title, three rules, head, two rows, nothing after the last line end


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_videos_of_any_name_are_processed_on_any_terminal(
    short_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    streams = replace_streams(monkeypatch, encoding)
    videos = tmp_path / "videos"
    videos.mkdir()
    made = 0
    for name in NAMES:
        try:
            shutil.copy(short_clip, os.fsencode(f"{videos}{os.sep}{name}.mp4"))
            made += 1
        except (OSError, UnicodeError):
            continue  # not every file system takes every name
    (videos / "broken.mp4").write_bytes(b"nothing")
    assert main([str(videos), "--out", str(tmp_path / "features"), *NO_SPEECH]) == 1
    assert f"{made} of {made + 1} videos are in" in "".join(lines_of(streams["stdout"], encoding))
    assert sum(line.startswith("failed: ") for line in lines_of(streams["stderr"], encoding)) == 1
