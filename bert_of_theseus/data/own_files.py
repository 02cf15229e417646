"""Files of one's own as data: .csv, .tsv, .json and .jsonl, with columns of texts and a column of labels."""

import csv
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from bert_of_theseus.data.task import Data, DataError, Examples, Task, numbered_lines, without_end

WHOLE_NUMBER = re.compile(r"-?\d+")
SHOWN = 10  # of the names in a message


@dataclass(frozen=True)
class OwnFiles:
    """Which files, and what of them.

    Attributes:
        train, validation: paths; one that is not given is empty.
        text_columns: one, or two for pairs; empty: `sentence`, or else `sentence1` and `sentence2`.
        label_column: of train and validation.
        do_regression: the labels are scores, not classes.
        positive_label: the class whose F1 is a metric, in place of the mean over the classes; empty: none.
        main_metric: empty: accuracy, or the mean of the two correlations.
    """

    train: str = ""
    validation: str = ""
    text_columns: tuple[str, ...] = ()
    label_column: str = "label"
    do_regression: bool = False
    positive_label: str = ""
    main_metric: str = ""

    @classmethod
    def of(cls, arguments: Mapping) -> "OwnFiles":
        """Those that a command's arguments name, by their flags; a flag can be missing, or be None."""
        given = {name: value for name, value in arguments.items() if value}
        return cls(
            train=given.get("train_file", ""),
            validation=given.get("validation_file", ""),
            text_columns=tuple(given["text_column_names"].split(",")) if "text_column_names" in given else (),
            label_column=given.get("label_column_name", cls.label_column),
            do_regression=given.get("do_regression", False),
            positive_label=given.get("positive_label", ""),
            main_metric=given.get("metric_for_best_model", ""),
        )


class Table(NamedTuple):
    """What is read of a file."""

    path: Path
    columns: tuple[str, ...]  # of the texts
    texts: list[list[str]]  # a list of rows for each of these columns
    labels: list  # as the file has them
    places: list[str]  # of each row, after the path: a line or, in a list of JSON, a row
    sha256: str  # of the file

    def examples(self, labels: np.ndarray | None, made_by: object) -> Examples:
        """The rows with these labels; `made_by` is what the labels depend on beside the file."""
        parts = json.dumps([self.sha256, self.columns, made_by])
        second = self.texts[1] if len(self.texts) > 1 else None
        return Examples(self.texts[0], second, labels, hashlib.sha256(parts.encode()).hexdigest())


# --------------------------------------------------------------------------------------------- tasks


def read_own_files(files: OwnFiles, model_labels: tuple[str, ...] | None = None, model: str = "") -> Data:
    """The task that the files set, its training set and its validation set, those that are given.

    Args:
        model_labels: where there is no training file, the labels of the model (None: it gives scores).
        model: its name, for messages.

    Raises:
        DataError: a file that is missing or not as it should be, or settings that do not fit it.
    """
    train = read_table(files.train, files.text_columns, files.label_column) if files.train else None
    labels, origin = model_labels, model
    if files.do_regression:
        labels = None
    elif train:
        labels, origin = find_classes(train), files.train
    named_after = Path(files.train or files.validation).resolve()
    task = own_task(f"{named_after.parent.name}/{named_after.stem}", labels, files)
    train_set, dev = train and labelled(train, task, origin, files), {}
    if files.validation:
        table = read_table(files.validation, files.text_columns, files.label_column)
        dev[task.name] = labelled(table, task, origin, files)
    return Data(task, train_set, dev)


def own_task(name: str, labels: tuple[str, ...] | None, files: OwnFiles) -> Task:
    """The task of that name; DataError where a setting does not fit the labels."""
    if files.positive_label and files.positive_label not in (labels or ()):
        raise DataError(f"--positive_label {files.positive_label}: the labels are {listed(labels or ('scores',))}")
    if labels is None:
        return Task(name, None, ("pearson", "spearmanr", "corr")).judged_by(files.main_metric)
    if files.positive_label:
        positive = labels.index(files.positive_label)
        return Task(name, labels, ("acc", "f1"), positive=positive).judged_by(files.main_metric or "acc")
    return Task(name, labels, ("acc", "macro_f1")).judged_by(files.main_metric or "acc")


def find_classes(table: Table) -> tuple[str, ...]:
    """The classes of a training set, sorted: whole numbers by value, else as text.

    Raises:
        DataError: there is but one, or they are numbers with fractions.
    """
    found = {class_name(table, row) for row in range(len(table.labels))}
    if len(found) == 1:
        raise DataError(f"{table.path}: one class only, {found.pop()!r}: there is nothing to learn")
    if all(map(WHOLE_NUMBER.fullmatch, found)):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    fraction = next((name for name in sorted(found) if not WHOLE_NUMBER.fullmatch(name)), "")
    if all(map(is_number, found)):
        raise DataError(
            f"{table.path}: its labels are numbers with fractions, such as {fraction}: give --do_regression if they "
            "are scores; classes are text or whole numbers"
        )
    return tuple(sorted(found))


def labelled(table: Table, task: Task, origin: str, files: OwnFiles) -> Examples:
    """The table's rows with their labels as the task counts them.

    Raises:
        DataError: a label that is none of the task's; `origin` is what has these.
    """
    labels = []
    if task.labels:
        ids = {name: i for i, name in enumerate(task.labels)}
        for row in range(len(table.labels)):
            name = class_name(table, row)
            if name not in ids:
                raise DataError(
                    f"{table.path}{table.places[row]}: label {name[:40]!r}; expected one of {listed(task.labels)}, "
                    f"which are those of {origin}"
                )
            labels.append(ids[name])
    else:
        for value, place in zip(table.labels, table.places, strict=True):
            if isinstance(value, bool) or not is_number(value):
                raise DataError(f"{table.path}{place}: label {str(value)[:40]!r}; expected a number")
            labels.append(float(value))
    kind = np.int64 if task.labels else np.float32
    return table.examples(np.array(labels, dtype=kind), [files.label_column, task.labels])


def class_name(table: Table, row: int) -> str:
    """The class of a row; DataError where it is neither text nor a whole number."""
    value = table.labels[row]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        advice = "; --do_regression takes scores" if isinstance(value, float) else ""
        what = f"label {value}" if value not in ("", None) else "no label"
        raise DataError(f"{table.path}{table.places[row]}: {what}; expected text or a whole number{advice}")
    return str(value)


def is_number(value: object) -> bool:
    """Whether it is a finite number, or the text of one."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


# --------------------------------------------------------------------------------------- predictions


class Texts(NamedTuple):
    """What is to be predicted."""

    columns: tuple[str, ...]
    examples: Examples  # without labels


def read_texts(path: str | Path, files: OwnFiles) -> Texts:
    """The texts of a file that may have no labels; errors as `read_table`."""
    table = read_table(path, files.text_columns, None)
    return Texts(table.columns, table.examples(None, None))


def as_predictions(texts: Texts, labels: tuple[str, ...] | None, logits: np.ndarray) -> str:
    """CSV with a row for each text: the text, what is predicted of it, and the probability of each label.

    Args:
        labels: None where the predictions are scores.
        logits: (rows, labels) in the order of the labels, or (rows, 1) scores.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    columns = [texts.examples.first, *([] if texts.examples.second is None else [texts.examples.second])]
    if labels:
        writer.writerow([*texts.columns, "prediction", *(f"probability_{label}" for label in labels)])
        found = [[labels[row.argmax()], *(f"{p:.6f}" for p in row)] for row in softmax(logits.astype(float), axis=1)]
    else:
        writer.writerow([*texts.columns, "prediction"])
        found = [[f"{score:.6g}"] for score in logits[:, 0]]
    writer.writerows([*row, *values] for *row, values in zip(*columns, found, strict=True))
    return text.getvalue()


# --------------------------------------------------------------------------------------------- files


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
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: {path.suffix or 'no suffix'} is not known; there are {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    columns, texts, labels, places = text_columns, [[] for _ in text_columns], [], []
    for place, row in READERS[path.suffix.lower()](path, digest):
        if not places:
            columns = columns or choose_text_columns(path, tuple(row))
            texts = [[] for _ in columns]
        places.append(place)
        for name in columns if label_column is None else (*columns, label_column):
            if name not in row:
                raise DataError(f"{path}{place}: no column {name!r}; there are {', '.join(map(repr, row))}")
        for name, column in zip(columns, texts, strict=True):
            if not isinstance(row[name], str):
                raise DataError(f"{path}{place}: {name!r} is {json.dumps(row[name])[:40]}; expected text")
            column.append(row[name])
        if label_column is not None:
            labels.append(row[label_column])
    if not places:
        raise DataError(f"{path}: no rows")
    return Table(path, columns, texts, labels, places, digest.hexdigest())


def choose_text_columns(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are there by their usual names; DataError where there are none."""
    for usual in (("sentence",), ("sentence1", "sentence2")):
        if set(usual) <= set(names):
            return usual
    raise DataError(
        f"{path}: no column 'sentence', and no 'sentence1' and 'sentence2'; there are {', '.join(map(repr, names))}: "
        "--text_column_names says which one, or which two, parted by a comma"
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
            header = header or row
            number = lines.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: {error}; expected CSV as RFC 4180 has it") from None


def tsv_rows(path: Path, digest) -> Rows:
    header: list[str] = []
    for number, line in numbered_lines(path, digest):
        row = without_end(line).split("\t")
        if header and (row != [""] or len(header) == 1):
            yield f":{number}", with_names(path, number, header, row)
        header = header or row


def with_names(path: Path, number: int, header: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise DataError(f"{path}:{number}: {len(row)} columns; the header has {len(header)}")
    return dict(zip(header, row, strict=True))


def jsonl_rows(path: Path, digest) -> Rows:
    for number, line in numbered_lines(path, digest):
        if line.strip():
            yield f":{number}", as_object(f"{path}:{number}", line)


def json_rows(path: Path, digest) -> Rows:
    with open(path, "rb") as file:
        is_list = file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:
        yield from jsonl_rows(path, digest)
        return
    text = "".join(line for _, line in numbered_lines(path, digest))
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})") from None
    for number, row in enumerate(rows, start=1):
        yield f": row {number}", as_object(f"{path}: row {number}", row)


def as_object(place: str, value: object) -> dict:
    """The object, or the one that the text is; DataError where it is none."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{place}: {json.dumps(found)[:40]}; expected an object, with the columns as its keys")
    return found


READERS = {".csv": csv_rows, ".tsv": tsv_rows, ".json": json_rows, ".jsonl": jsonl_rows}
