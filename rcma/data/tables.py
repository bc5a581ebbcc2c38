"""Tables in CSV and TSV files, as spreadsheets, rating tools and feature extractors write them.

The delimiter is the comma, semicolon or tab that splits the header into most cells. Cells may be quoted. Lines before
the header, as CARMA and DARMA write them, are skipped.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.text import read_text

TABLE_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t"
_MAX_LINES_BEFORE_HEADER = 30
_MISSING = ("", "nan", "na", "n/a", "null", "none")
_WITH_COMMA = re.compile(r"[+-]?\d*(,\d+)+(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_WITH_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+)")
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Table:
    """N rows of text under a header of C names."""

    path: Path
    header: tuple[str, ...]
    """Column names, without spaces and quotes around them."""
    header_line: int
    """Line number of the header in the file, from 1."""
    rows: Sequence[Sequence[str]]
    """N rows of C cells."""
    lines: Sequence[int]
    """(N,) line number of each row in the file."""

    def where(self, row: int | None = None) -> str:
        """File and line of a row, or of the header, for error messages."""
        return f"{self.path}, line {self.header_line if row is None else self.lines[row]}"

    def texts(self, column: int) -> list[str]:
        """Cells of a column, without spaces and single quotes around them."""
        return [row[column].strip().strip("'") for row in self.rows]

    def groups(self, column: int | None) -> dict[str, Table]:
        """Group the rows by the text in a column; without a column, all rows are the group ``""``."""
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
        """Parse columns as numbers, (N,len(columns)); NaN where a cell is empty or a word for a missing value.

        A comma is a decimal comma only if it can be nothing else: no number in these columns has a point, and at least
        one comma cannot separate thousands.

        Raises:
            InputError: a cell is not a number, is infinite or has an ambiguous comma; the message names its line.
        """
        cells = [[row[column] for column in columns] for row in self.rows]
        try:
            # Several times as fast as numpy.array(cells).
            values = np.array([list(map(float, row)) for row in cells]).reshape(len(cells), len(columns))
        except ValueError:
            values = self._parse([[cell.strip() for cell in row] for row in cells], columns)
        infinite = np.argwhere(np.isinf(values))
        if len(infinite):
            row, place = infinite[0]
            raise self._bad_cell(row, columns[place], "is infinite; leave the cell empty")
        return values

    def refuse(self, is_bad: NDArray[np.bool_] | np.bool_, problem: Callable[[int], str]) -> None:
        """Raise InputError for the first bad row (N,), with its line and the text from ``problem``."""
        if is_bad.any():
            row = int(np.argmax(is_bad))
            raise InputError(f"{self.where(row)}: {problem(row)}")

    def _parse(self, cells: Sequence[Sequence[str]], columns: Sequence[int]) -> NDArray[np.float64]:
        texts = [text for row in cells for text in row]
        has_thousands = all(_THOUSANDS.fullmatch(text) for text in texts if _WITH_COMMA.fullmatch(text))
        decimal_comma = not has_thousands and not any(map(_WITH_POINT.fullmatch, texts))
        values = np.full((len(cells), len(columns)), np.nan)
        for row, own in enumerate(cells):
            for place, text in enumerate(own):
                if text.lower() in _MISSING:
                    continue
                if _WITH_COMMA.fullmatch(text) and not decimal_comma:
                    advice = "can be read in two ways; write a decimal point, and nothing between thousands"
                    raise self._bad_cell(row, columns[place], advice)
                try:
                    values[row, place] = float(text.replace(",", "."))
                except ValueError:
                    raise self._bad_cell(row, columns[place], "is not a number") from None
        return values

    def _bad_cell(self, row: int, column: int, problem: str) -> InputError:
        text = self.rows[row][column].strip()[:60]
        return InputError(f"{self.where(row)}: {text!r} in column {self.header[column]!r} {problem}")


def read_table(path: Path, is_header: Callable[[Sequence[str]], bool], *, wanted: str) -> Table:
    """Read a table whose header is one of the first lines of the file.

    Args:
        path: the file.
        is_header: tells whether these column names are the header's.
        wanted: the columns that the header must have, for the error message: ``a column time``.

    Raises:
        InputError: the file cannot be read, has no such header or no rows, or a row has another number of cells; the
            message names the line.
    """
    lines = list(io.StringIO(read_text(path)))
    first = next((number for number, line in enumerate(lines, start=1) if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: is empty; it should hold a table with {wanted}")
    for number, line in enumerate(lines[:_MAX_LINES_BEFORE_HEADER], start=1):
        for delimiter in sorted(_DELIMITERS, key=line.count, reverse=True):
            cells = next(csv.reader([line], delimiter=delimiter), [])
            header = tuple(cell.strip().strip("'\"").strip() for cell in cells)
            if header and not header[-1]:  # a delimiter at the end of each line
                header = header[:-1]
            if is_header(header):
                return _read_rows(Table(path, header, number, [], []), lines[number:], delimiter)
    raise InputError(f"{path}, line {first}: {wanted} is needed, but the line is {lines[first - 1].rstrip()[:60]!r}")


def _read_rows(table: Table, lines: Sequence[str], delimiter: str) -> Table:
    n_columns = len(table.header)
    rows, numbers = [], []
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            number = table.header_line + reader.line_num
            # CARMA and DARMA draw a line of percent signs below the header.
            if not any(cell.strip().strip("%") for cell in row):
                continue
            if len(row) == n_columns + 1 and not row[-1].strip():
                row.pop()
            if len(row) != n_columns:
                raise InputError(f"{table.path}, line {number}: {len(row)} cells, but the header has {n_columns}")
            rows.append(row)
            numbers.append(number)
    except csv.Error as error:
        raise InputError(f"{table.path}, line {table.header_line + reader.line_num}: {error}") from None
    if not rows:
        raise InputError(f"{table.where()}: no rows after the header")
    return replace(table, rows=rows, lines=numbers)


def column_of(table: Table, name: str) -> int:
    """Index of the column with this name, whatever its case.

    Raises:
        InputError: no column, or more than one, has the name.
    """
    places = [place for place, other in enumerate(table.header) if other.lower() == name.strip().lower()]
    if len(places) != 1:
        found = "two columns" if places else "no column"
        raise InputError(f"{table.where()}: {found} {name!r}; there are {some(table.header)}")
    return places[0]


def some(names: Sequence[str]) -> str:
    """The first ten names and the number of the others, for messages."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
