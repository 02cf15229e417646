"""Tables of texts and labels from files: .csv, .tsv, .json and .jsonl."""

import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_of_theseus.data.task import DataError, Examples, numbered_lines, without_end


class Table(NamedTuple):
    """What is read of a file."""

    path: Path
    columns: tuple[str, ...]  # of the texts
    texts: list[list[str]]  # a list of rows for each of these columns
    labels: list  # as the file has them; none where they are not read
    rows: list[dict]  # with all columns, where the labels are not read
    places: list[str]  # of each row, after the path: a line or, in a list of JSON, a row
    sha256: str  # of the file

    def examples(self, labels: np.ndarray | None, made_by: object) -> Examples:
        """The rows with these labels; `made_by` is what the labels depend on beside the file."""
        parts = json.dumps([self.sha256, self.columns, made_by])
        second = self.texts[1] if len(self.texts) > 1 else None
        return Examples(self.texts[0], second, labels, hashlib.sha256(parts.encode()).hexdigest())


def read_table(path: str | Path, text_columns: tuple[str, ...], label_column: str | None) -> Table:
    """Read what is needed of a file.

    Args:
        path: of a .csv (RFC 4180), a .tsv (without quoting, as GLUE's), a .jsonl (one object a line), or a .json (the
            same, or a list of objects).
        text_columns: empty: `sentence`, or else `sentence1` and `sentence2`.
        label_column: None: the labels are not read.

    Raises:
        DataError: another suffix, no such file, not UTF-8, no rows, a missing column, a row with more or fewer
            columns than the header has, a text that is none.
    """
    path, digest = Path(path), hashlib.sha256()
    if label_column in text_columns:
        raise DataError(f"--text_column_names {','.join(text_columns)}: {label_column!r} is the column of the labels")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: its name should end in {', '.join(READERS)}; save a spreadsheet as CSV in UTF-8")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    columns, texts, labels, rows, places = text_columns, [[] for _ in text_columns], [], [], []
    for place, row in READERS[path.suffix.lower()](path, digest):
        if not places:
            columns = columns or choose_text_columns(path, row)
            texts = [[] for _ in columns]
        places.append(place)
        for name in columns if label_column is None else (*columns, label_column):
            if name not in row:
                where, flag = f"{path}{place}" if len(places) > 1 else path, flag_of(name, columns)
                raise DataError(f"{where}: no column {name!r}; there are {names(row)}: give {flag}")
        for name, column in zip(columns, texts, strict=True):
            if not is_text(row[name]):
                raise DataError(f"{path}{place}: {name!r} is {json.dumps(row[name])[:40]}; expected text")
            column.append(row[name])
        if label_column is None:
            rows.append(row)
        else:
            labels.append(row[label_column])
    if not places:
        raise DataError(f"{path}: no rows")
    return Table(path, columns, texts, labels, rows, places, digest.hexdigest())


def flag_of(name: str, text_columns: Sequence[str]) -> str:
    """The flag that names a column."""
    return "--text_column_names" if name in text_columns else "--label_column_name"


def names(row: dict) -> str:
    """The row's columns, for a message, with a hint where they seem to be one for want of the right separator."""
    found = ", ".join(map(repr, row))
    is_one = len(row) == 1 and any(mark in next(iter(row)) for mark in ";,\t")
    return found + " (.csv needs commas between the columns, .tsv tabs)" * is_one


def is_text(value: object) -> bool:
    """Whether it is text, and whole: JSON can hold half of a character, as cutting a text leaves it."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def choose_text_columns(path: Path, row: dict) -> tuple[str, ...]:
    """Those that are there by their usual names; DataError where there are none."""
    for usual in (("sentence",), ("sentence1", "sentence2")):
        if set(usual) <= set(row):
            return usual
    raise DataError(
        f"{path}: no column 'sentence', and no 'sentence1' and 'sentence2'; there are {names(row)}: give "
        "--text_column_names, one of them or two, separated by a comma"
    )


Rows = Iterator[tuple[str, dict]]  # (place, value by column)


def csv_rows(path: Path, digest) -> Rows:
    csv.field_size_limit(sys.maxsize)  # else 131,072 characters
    lines = csv.reader((line for _, line in numbered_lines(path, digest)), strict=True)
    number = 1
    header: list[str] = []
    try:
        for row in lines:
            if header and (row or len(header) == 1):
                yield f":{number}", with_names(path, number, header, row or [""])
            header = header or as_header(path, row)
            number = lines.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: {error}; expected CSV as RFC 4180 has it") from None


def tsv_rows(path: Path, digest) -> Rows:
    header: list[str] = []
    for number, line in numbered_lines(path, digest):
        row = without_end(line).split("\t")
        if header and (row != [""] or len(header) == 1):
            yield f":{number}", with_names(path, number, header, row)
        header = header or as_header(path, row)


def as_header(path: Path, names: list[str]) -> list[str]:
    """The names; DataError where two columns have the same one."""
    named = list(filter(None, names))
    if len(set(named)) < len(named):
        raise DataError(f"{path}:1: two columns have the same name; there are {', '.join(map(repr, names))}")
    return names


def with_names(path: Path, number: int, header: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise DataError(f"{path}:{number}: {len(row)} columns; the header has {len(header)}")
    return dict(zip(header, row, strict=True))


def jsonl_rows(path: Path, digest) -> Rows:
    for number, line in numbered_lines(path, digest):
        if line.strip():
            place = f":{number}"
            yield place, as_object(f"{path}{place}", parsed(f"{path}{place}", line))


def json_rows(path: Path, digest) -> Rows:
    with open(path, "rb") as file:
        is_list = file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:
        yield from jsonl_rows(path, digest)
        return
    rows = parsed(str(path), "".join(line for _, line in numbered_lines(path, digest)))
    for number, row in enumerate(rows, start=1):
        yield f": row {number}", as_object(f"{path}: row {number}", row)


def parsed(place: str, text: str) -> object:
    """What the JSON text says; DataError where it is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error})") from None


def as_object(place: str, value: object) -> dict:
    """The value, which is an object; DataError where it is none."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: {json.dumps(value)[:40]}; expected an object, with the columns as its keys")
    return value


READERS = {".csv": csv_rows, ".tsv": tsv_rows, ".json": json_rows, ".jsonl": jsonl_rows}
