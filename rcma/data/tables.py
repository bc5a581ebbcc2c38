"""Tables in text files, as spreadsheets, rating programs and toolkits write them; what is wrong is named with its line.

The separator is a comma, a semicolon or a tab, whichever divides the header into most cells. Cells may be quoted. Lines
before the header, as CARMA and DARMA write them, are skipped.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.text import read_text

TABLE_SUFFIXES = (".csv", ".tsv")
_SEPARATORS = ",;\t"
_MOST_LINES_BEFORE_HEADER = 30
_MISSING = ("", "nan", "na", "n/a", "null", "none")
_WITH_COMMA = re.compile(r"[+-]?\d*(,\d+)+(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_RULER = re.compile(r"%+")
"""CARMA and DARMA draw a line of percent signs below the header."""


@dataclass(frozen=True)
class Table:
    """N rows of text under a header of C names."""

    path: Path
    header: tuple[str, ...]
    """Without spaces and quotes around the names."""
    header_line: int
    """Number of the header's line in the file, from 1."""
    rows: Sequence[Sequence[str]]
    """N rows of C cells."""
    lines: Sequence[int]
    """(N,) number of each row's line in the file."""

    def where(self, row: int | None = None) -> str:
        """File and line of a row, or of the header, for messages."""
        return f"{self.path}, line {self.header_line if row is None else self.lines[row]}"

    def texts(self, column: int) -> list[str]:
        """Texts of a column, without spaces and quotes around them."""
        return [row[column].strip().strip("'") for row in self.rows]

    def groups(self, column: int | None) -> dict[str, Table]:
        """The rows of each text in a column, in the order of the table; all rows under ``""`` without a column."""
        if column is None:
            return {"": self}
        numbers: dict[str, list[int]] = {}
        for row, text in enumerate(self.texts(column)):
            numbers.setdefault(text, []).append(row)
        return {
            text: replace(self, rows=[self.rows[n] for n in rows], lines=[self.lines[n] for n in rows])
            for text, rows in numbers.items()
        }

    def numbers(self, columns: Sequence[int]) -> NDArray[np.float64]:
        """Numbers of some columns, (N,len(columns)); NaN where a cell is empty or says so.

        A comma is a decimal comma where it can be nothing else: no number in these columns has a point, and not all of
        those with a comma could have it between thousands.

        Raises:
            InputError: a cell is no number, infinite, or has a comma that could mean two things; its line is named.
        """
        cells = [[row[column] for column in columns] for row in self.rows]
        try:
            # Several times as fast as numpy.array(cells).
            values = np.array([list(map(float, row)) for row in cells]).reshape(len(cells), len(columns))
        except ValueError:
            values = self._parse(cells, columns)
        if np.isinf(values).any():
            row, place = np.argwhere(np.isinf(values))[0]
            raise self._bad_cell(row, cells[row][place], columns[place], "is infinite; leave the cell empty")
        return values

    def _parse(self, cells: Sequence[Sequence[str]], columns: Sequence[int]) -> NDArray[np.float64]:
        stripped = [[cell.strip() for cell in row] for row in cells]
        with_comma = [cell for row in stripped for cell in row if _WITH_COMMA.fullmatch(cell)]
        decimal_comma = not all(map(_THOUSANDS.fullmatch, with_comma)) and not any(
            "." in cell and cell.replace(".", "").lstrip("+-").isdecimal() for row in stripped for cell in row
        )
        values = np.full((len(cells), len(columns)), np.nan)
        for row, texts in enumerate(stripped):
            for place, text in enumerate(texts):
                if text.lower() in _MISSING:
                    continue
                if _WITH_COMMA.fullmatch(text) and not decimal_comma:
                    advice = "can be read in two ways; write a decimal point, and nothing between thousands"
                    raise self._bad_cell(row, text, columns[place], advice)
                try:
                    values[row, place] = float(text.replace(",", "."))
                except ValueError:
                    raise self._bad_cell(row, text, columns[place], "is not a number") from None
        return values

    def _bad_cell(self, row: int, text: str, column: int, problem: str) -> InputError:
        return InputError(f"{self.where(row)}: {text[:60]!r} in column {self.header[column]!r} {problem}")


def read_table(path: Path, is_header: Callable[[Sequence[str]], bool], *, wanted: str) -> Table:
    """Read a table whose header is the first line, or one of the first, with certain names.

    Args:
        path: the file.
        is_header: tells whether these names, without spaces and quotes around them, are those of the header.
        wanted: the names, for the message: ``a column time``.

    Raises:
        InputError: the file cannot be read, has no such header or no rows, or a row has another number of cells; the
            line is named.
    """
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path}: is empty; it should hold a table with {wanted}")
    lines = text.split("\n")
    for number, line in enumerate(lines[:_MOST_LINES_BEFORE_HEADER]):
        for separator in sorted(_SEPARATORS, key=line.count, reverse=True):
            header = _names(next(csv.reader([line], delimiter=separator), []))
            if is_header(header):
                rest = "\n".join(lines[number + 1 :])
                rows, row_lines = _read_rows(path, rest, separator, n_columns=len(header), first_line=number + 2)
                if not rows:
                    raise InputError(f"{path}, line {number + 1}: no rows after the header")
                return Table(path, header, number + 1, rows, row_lines)
    first = next(n for n, line in enumerate(lines) if line.strip())
    raise InputError(f"{path}, line {first + 1}: {wanted} is needed, but the line is {lines[first][:60]!r}")


def column_of(table: Table, name: str) -> int:
    """Place of the one column of this name, whatever its case.

    Raises:
        InputError: there is none, or there are two; the header's line is named.
    """
    places = [place for place, other in enumerate(table.header) if other.lower() == name.strip().lower()]
    if len(places) != 1:
        found = "two columns" if places else "no column"
        raise InputError(f"{table.where()}: {found} {name!r}; there are {some_names(table.header)}")
    return places[0]


def some_names(names: Iterable[str]) -> str:
    """Names for a message, the first ten of them."""
    known = list(names)
    return ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")


def _names(cells: Sequence[str]) -> tuple[str, ...]:
    names = tuple(cell.strip().strip("'\"").strip() for cell in cells)
    return names[:-1] if names and not names[-1] else names  # a separator at the end of each line


def _read_rows(
    path: Path, text: str, separator: str, *, n_columns: int, first_line: int
) -> tuple[list[list[str]], list[int]]:
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        for row in reader:
            line = first_line + reader.line_num - 1
            if not any(cell.strip() for cell in row) or all(_RULER.fullmatch(cell.strip()) for cell in row):
                continue
            if len(row) == n_columns + 1 and not row[-1].strip():
                row.pop()
            if len(row) != n_columns:
                raise InputError(f"{path}, line {line}: {len(row)} cells, but the header has {n_columns}")
            rows.append(row)
            lines.append(line)
    except csv.Error as error:
        raise InputError(f"{path}, line {first_line + reader.line_num - 1}: {error}") from None
    return rows, lines
