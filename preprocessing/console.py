"""Shared by all commands: arguments, progress, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from preprocessing.errors import InputError, describe_os_error
from preprocessing.text import one_line

EXIT_DONE, EXIT_SOME_FAILED, EXIT_BAD_REQUEST, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143

_WIDTH_OF_FILES = 160
"""Columns of output that goes to a file or a pipe."""

_CHATTY_LIBRARIES = (
    "facenet_pytorch",
    "faster_whisper",
    "huggingface_hub",
    "libav",
    "matplotlib",
    "transformers",
    "whisper",
)
"""Libraries whose warnings and log messages below errors do not concern users of these commands."""

log = logging.getLogger("rcma")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and examples as they were written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def add_common_arguments(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """Add ``--device`` and ``--log-level``."""
    if device:
        parser.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="where networks run; auto uses a GPU if there is one",
        )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="least severe messages printed on stderr; debug adds tracebacks",
    )


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool, example: str) -> None:
    """Add ``--config`` and ``--set``."""
    parser.add_argument("--config", metavar="FILE", required=required, help="YAML file of settings")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help=f"change one setting, for example {example}; may be given many times",
    )


def worker_count(text: str) -> int:
    """Type of ``--workers`` for argparse."""
    number = int(text)
    if number < 1:
        raise InputError(f"--workers {text}: at least 1 is needed")
    return number


def run_command(
    work: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments and do the work; turns errors into one line on stderr and an exit code.

    Returns:
        0 everything was done; 1 some inputs failed, or something could not be read or written; 2 the request itself is
        wrong; 130 interrupted; 143 ended by SIGTERM.
    """
    # What standard output and error cannot encode is written as \u2014: a name must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            args = parser.parse_args(argv)
            set_up_logging(args.log_level.upper())
            with _terminated_by_exception():
                return work(args)
        finally:
            # Here errors are still reported in one line; at the interpreter's exit they would be a traceback.
            if sys.stdout is not None:
                sys.stdout.flush()
    except InputError as error:
        return _give_up(f"{parser.prog}: error: {error}", EXIT_BAD_REQUEST)
    except OSError as error:
        return _give_up(f"{parser.prog}: error: {describe_os_error(error)}", EXIT_SOME_FAILED)
    except KeyboardInterrupt:
        return _give_up(f"{parser.prog}: interrupted; nothing half-written was left", EXIT_INTERRUPTED)
    except _TerminatedError:
        return _give_up(f"{parser.prog}: terminated; nothing half-written was left", EXIT_TERMINATED)


def _give_up(line: str, code: int) -> int:
    log.debug("traceback of the error below", exc_info=True)
    with suppress(OSError):
        print(one_line(line), file=sys.stderr)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # What is still in its buffer would fail once more when the interpreter exits.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    return code


class _TerminatedError(BaseException):
    """SIGTERM was received; caught only by :func:`run_command`, as Ctrl-C is."""


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Let SIGTERM unwind the program as Ctrl-C does, so that workers are ended and partial files removed."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _ConsoleHandler(logging.Handler):
    """One line for each message, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record on the current standard error."""
        # Tracebacks, which only --log-level debug shows, have many lines.
        text = self.format(record) if record.exc_info else one_line(self.format(record))
        error_console().print(Text(f"{record.levelname.lower()}: {text}"), soft_wrap=True)


def set_up_logging(level: int | str) -> None:
    """Print messages of at least this level on stderr, one line each; those of libraries only if they concern users."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ConsoleHandler()], force=True)
    log.setLevel(level)
    if log.level > logging.DEBUG:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)  # meant for developers of the libraries
        for library in _CHATTY_LIBRARIES:
            # Not PyTorch: it warns when results cannot be reproduced.
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
            logging.getLogger(library).setLevel(logging.ERROR)


class _Console(Console):
    """Leaves a broken pipe to :func:`run_command`, as every other error of writing."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise


def error_console() -> Console:
    """Console for progress and messages, on stderr."""
    return _Console(stderr=True, width=_width(sys.stderr), highlight=False)


def _width(stream: TextIO | None) -> int | None:
    """Columns; None leaves it to the terminal. A closed stream is None."""
    return None if stream is not None and stream.isatty() else _WIDTH_OF_FILES


class Reporter:
    """Progress over a known number of items: a bar on a terminal, one plain line for each item elsewhere."""

    def __init__(self, total: int, *, unit: str) -> None:
        """Prepare for ``total`` items, each called a ``unit``."""
        self._total, self._finished = total, 0
        self._console = error_console()
        self._bar = Progress(
            SpinnerColumn("line"),  # the only one that is ASCII
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(f"{unit}s", total=total)

    def __enter__(self) -> Reporter:
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def status(self, text: str) -> None:
        """Show what is being done, on terminals only."""
        self._bar.update(self._task, description=text)

    def finished(self, line: str, *, position: int | None = None) -> None:
        """Print the result of one item; ``position``, from 1, is by default the one after the last."""
        self._finished = self._finished + 1 if position is None else position
        self._console.print(Text(f"[{self._finished}/{self._total}] {one_line(line)}"), soft_wrap=True)
        self._bar.update(self._task, completed=self._finished)


def print_failure(problem: object) -> None:
    """Name one input that failed, in one line on stderr."""
    print(f"failed: {one_line(str(problem))}", file=sys.stderr)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; columns whose cells are all numbers are aligned to the right."""
    console = _Console(width=_width(sys.stdout), highlight=False)
    rows = [[_encodable(one_line(cell), console.encoding) for cell in row] for row in rows]
    table = Table()
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, not str: square brackets in a file name are not markup.
        table.add_row(*(Text(cell) for cell in row))
    # Not the table's own title, which would be wrapped to the width of the table.
    console.print(Text(one_line(title)), soft_wrap=True)
    console.print(table)


def _encodable(text: str, encoding: str) -> str:
    """Text as the terminal will show it, so that the width of a column is known."""
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def _is_number(cell: str) -> bool:
    return cell.strip("+-.%0123456789") in ("", "nan")
