"""The cells of a CSV as programs and people write it: its encoding, its separator, the names of its columns."""

import codecs
import csv
import difflib
import io
import math
import os
import re
import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from histoloc.data.labels import show
from histoloc.data.table_problems import nearest, refuse
from histoloc.errors import InputError

SEPARATORS = (",", ";", "\t")
FILES = ("image", "mask", "slide", "annotation")  # columns of paths
# UTF-32 before UTF-16, whose mark is the beginning of its own.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_cells(path: Path, required: Sequence[str], optional: Sequence[str], columns: str = "") -> pd.DataFrame:
    """All cells of a CSV as stripped strings, absent columns empty, without blank rows; the index is the line.

    Cells are separated by commas, semicolons or tabs, in UTF-8, or in UTF-16 or UTF-32 with its mark. Names of columns
    may differ by case.

    Args:
        path: the file.
        required: columns that must be there.
        optional: those that may be.
        columns: what the file calls them, as `image=path,label=diagnosis`, where not so.

    Raises:
        InputError: there is no such file, it is no CSV or empty, or its header is not as it must be.
    """
    known = (*required, *optional)
    lines = _lines(path, known)
    header = lines[0][1] if lines else list(required)
    places, problems = _places(header, required, known, column_names(columns, known))
    refuse(path, problems)
    if len(lines) < 2:
        raise InputError(f"{path}: the table is empty; list one image per row")
    long = [(line, len(row)) for line, row in lines if any(row[len(header) :])]
    refuse(
        path, [f"line {line} has {n} cells and the header {len(header)}; quote cells with commas" for line, n in long]
    )
    index = [line for line, _ in lines[1:]]
    cells = {
        name: [row[place] if place is not None and place < len(row) else "" for _, row in lines[1:]]
        for name, place in places.items()
    }
    for name in set(FILES) & set(known):
        cells[name] = [_with_slashes(cell, path.parent) for cell in cells[name]]
    return pd.DataFrame(cells, index=index, dtype=object)


def number_in(cell: str, *, whole: bool = False) -> float | None:
    """The number in a cell, a positive or a whole one; None where there is none.

    A whole number may be written as `1.0`, as pandas does in a column with empty cells; another one with a comma.
    """
    text = cell if whole else re.sub(r"^(\d*),(\d+)$", r"\1.\2", cell)
    value = float(text) if re.fullmatch(r"\+?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) else -1.0
    if whole:
        return int(value) if 0 <= value < 1e15 and value.is_integer() else None
    return value if 0 < value < math.inf else None


def places_in(folder: Path) -> Callable[[str], Path]:
    """How cells name files: relative to the folder, absolute.

    Links to folders are followed, those to files are not: in a store the file behind a link has another name.
    """
    folder = Path(os.path.realpath(folder))
    parent = cache(lambda path: Path(os.path.realpath(path)))  # a folder has many files

    def place(cell: str) -> Path:
        path = folder / cell
        return parent(path.parent) / path.name

    return place


def _with_slashes(cell: str, folder: Path) -> str:
    """A path as Windows writes it, where no file has this very name."""
    return cell.replace("\\", "/") if "\\" in cell and not os.path.lexists(folder / cell) else cell


def column_names(text: str, known: Sequence[str]) -> dict[str, str]:
    """`image=path,label=diagnosis` as a mapping.

    Raises:
        InputError: it is not written so, or names a column that is not among `known`.
    """
    names: dict[str, str] = {}
    for pair in re.split(r",(?=\s*\w+\s*=)", text) if text else ():
        column, _, name = (part.strip() for part in pair.partition("="))
        if not name or column in names:
            raise InputError(f"--columns {text}: write it as image=path,label=diagnosis, each column once")
        if column not in known:
            raise InputError(f"--columns {text}: there is no column {column!r}; {nearest(column, known)}")
        names[column] = name
    return names


def _places(
    header: Sequence[str], required: Sequence[str], known: Sequence[str], names: dict[str, str]
) -> tuple[dict[str, int | None], list[str]]:
    """Where in the header each column is, and what is wrong with the header."""
    places: dict[str, int | None] = {}
    problems: list[str] = []
    for column in known:
        name = names.get(column, column)
        alike = [i for i, cell in enumerate(header) if cell.casefold() == name.casefold()]
        if column in names and name in header:
            alike = [i for i in alike if header[i] == name]
        if len(alike) > 1:
            problems.append(
                f"the columns {' and '.join(repr(header[i]) for i in alike)} may both be {column}; rename one of them"
            )
        places[column] = next(iter(alike), None)
    missing = [c for c, place in places.items() if place is None and (c in required or c in names)]
    if missing:
        near = [next(iter(difflib.get_close_matches(c, header, n=1)), "NAME") for c in missing]
        remedy = ",".join(f"{column}={name}" for column, name in zip(missing, near, strict=True))
        problems.append(
            f"missing columns: {', '.join(names.get(c, c) for c in missing)}; the header has "
            f"{', '.join(show(cell)[:40] for cell in header if cell)}; rename columns, or say which they are by "
            f"--columns {remedy}"
        )
    return places, problems


def _lines(path: Path, known: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Number and stripped cells of each line that has any, the header first."""
    text = _text(path)
    text = re.sub(r"\Asep=.(?=[\r\n])", "", text)  # what Excel writes before the header; its line stays
    header = text.lstrip().partition("\n")[0]
    words = {c: {cell.strip(string.whitespace + "\"'").casefold() for cell in header.split(c)} for c in SEPARATORS}
    separator = max(SEPARATORS, key=lambda c: (len(words[c] & set(known)), len(words[c])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    end = 0
    try:
        for row in reader:
            # Not other spaces: in a label or group they are refused, where they could make two of one.
            cells = [cell.strip(string.whitespace) for cell in row]
            if any(cells):
                lines.append((end + 1, cells))
            end = reader.line_num
    except csv.Error as error:
        raise InputError(
            f"{path}: is no readable CSV from line {end + 1} on ({error}); save it as UTF-8 CSV"
        ) from error
    return lines


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; make a table of it with `histoloc data folder`")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such table; write one with `histoloc data`") from error
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise InputError(f"{str(path)[:200]}: cannot be read ({error}); correct the path") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: is no CSV in UTF-8 (line {line}); save it as UTF-8 CSV, in Excel by Save As, CSV UTF-8"
        ) from error
    if "\0" in text.partition("\n")[0]:
        raise InputError(f"{path}: has zero bytes in its header; save it as UTF-8 CSV")
    return text
