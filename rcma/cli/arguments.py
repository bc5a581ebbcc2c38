"""Options that several commands share, and arguments that argparse alone cannot read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.errors import InputError

if TYPE_CHECKING:
    from rcma.config import LabelSettings


def add_column_arguments(parser: argparse.ArgumentParser, *, example: str) -> None:
    """Add ``--columns`` and ``--unit``."""
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN,...",
        help=f"columns of tables that do not have the usual names, such as {example}",
    )
    parser.add_argument(
        "--unit",
        choices=("auto", "s", "ms"),
        default="auto",
        help="unit of times in tables; auto: from the column's name, otherwise ms if all are whole numbers and their "
        "usual step is 10 or more",
    )


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for tables of labels; ABAW files need none."""
    add_column_arguments(parser, example="time=timestamp,valence=val")
    parser.add_argument(
        "--scale",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="lowest and highest possible label; default: -1 1",
    )
    parser.add_argument(
        "--raters",
        choices=("mean", "ewe"),
        default="mean",
        help="how several raters are combined: their mean, or weighted by their agreement with the others",
    )


def label_settings(args: argparse.Namespace) -> LabelSettings:
    """Settings from the options of :func:`add_label_arguments`.

    Raises:
        InputError: an option cannot be used.
    """
    from preprocessing.config import build_config
    from rcma.config import LabelSettings

    given = {"columns": parse_columns(args.columns), "unit": args.unit, "raters": args.raters}
    if args.scale is not None:
        given["scale"] = args.scale
    return build_config(LabelSettings, given, source="labels")


def parse_columns(text: str | None) -> dict[str, str]:
    """``time=timestamp,valence=val`` as a dictionary.

    Raises:
        InputError: a part has no ``=``, or a name occurs twice.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        name, equals, column = part.partition("=")
        name = name.strip().lower()
        if not (equals and name and column.strip()) or name in columns:
            raise InputError(f"--columns {text}: write NAME=COLUMN,..., such as time=timestamp,valence=val")
        columns[name] = column.strip()
    return columns


def split_checkpoints(given: Sequence[Sequence[str]], inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate checkpoints from inputs: argparse gives ``--checkpoint`` the inputs that follow it as well.

    Args:
        given: the values of each ``--checkpoint``: a checkpoint, then checkpoints and inputs.
        inputs: the other inputs.

    Raises:
        InputError: there are no inputs.
    """
    from rcma.model import is_run

    checkpoints, others = [], []
    for first, *more in given:
        checkpoints += [first, *(text for text in more if is_run(Path(text)))]
        others += [text for text in more if text not in checkpoints]
    others += inputs
    if not others:
        raise InputError("give INPUT...: feature folders, folders of them, or raw videos")
    return checkpoints, others
