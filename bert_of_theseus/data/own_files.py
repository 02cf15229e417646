"""Files of one's own as a task: its classes, its examples, and what is predicted of new texts."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from bert_of_theseus.data.tables import Table, read_table
from bert_of_theseus.data.task import Data, DataError, Examples, Task

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
        pairs: whether the model was trained on pairs of texts; None: not known.
    """

    train: str = ""
    validation: str = ""
    text_columns: tuple[str, ...] = ()
    label_column: str = "label"
    do_regression: bool = False
    positive_label: str = ""
    main_metric: str = ""
    pairs: bool | None = None

    @classmethod
    def of(cls, arguments: Mapping, *records: Mapping | None) -> "OwnFiles":
        """Those that a command's arguments name, by their flags; a flag can be missing, or be None.

        Args:
            arguments: of the command.
            records: of the runs that trained its models, None where there is none. What the command leaves open, but
                for the files, is as in the first of them that says it, of those that were on files of one's own;
                `positive_label` and the main metric, which belong together, as in the first that says either.

        Raises:
            DataError: more than two columns of text.
        """
        given, known = {}, [record for record in records if record]
        of_runs = [record["arguments"] for record in reversed(known) if not record["arguments"].get("task_name")]
        for one in of_runs:
            said = {name: value for name, value in one.items() if value}
            if said.keys() & {"positive_label", "metric_for_best_model"}:  # together they name the metrics
                given.pop("positive_label", None)
                given.pop("metric_for_best_model", None)
            given |= said
        given |= {name: value for name, value in arguments.items() if value}
        columns = tuple(filter(None, map(str.strip, given.get("text_column_names", "").split(","))))
        if len(columns) > 2:
            raise DataError(f"--text_column_names {','.join(columns)}: a model takes one text, or two")
        return cls(
            train=arguments.get("train_file") or "",
            validation=arguments.get("validation_file") or "",
            text_columns=columns,
            label_column=given.get("label_column_name", cls.label_column),
            do_regression=given.get("do_regression", False),
            positive_label=given.get("positive_label", "").strip(),
            main_metric=given.get("metric_for_best_model", ""),
            pairs=next((record["pairs"] for record in known if "pairs" in record), None),
        )


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
        check_pairs(table, len(train.columns) == 2 if train else files.pairs)
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


def check_pairs(table: Table, pairs: bool | None) -> None:
    """DataError where a file has single texts and the training has pairs, or the reverse; `pairs` None: not known."""
    if pairs is not None and pairs != (len(table.columns) == 2):
        found, expected = ("single texts", "pairs") if pairs else ("pairs of texts", "single ones")
        raise DataError(f"{table.path}: {found}; the model is trained on {expected} (see --text_column_names)")


def class_name(table: Table, row: int) -> str:
    """The class of a row; DataError where it is neither text nor a whole number."""
    value = table.labels[row]
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        advice = "; --do_regression takes scores" if isinstance(value, float) else ""
        what = f"label {value}" if value not in ("", None) else "no label"
        raise DataError(f"{table.path}{table.places[row]}: {what}; expected text or a whole number{advice}")
    return str(value)


def is_number(value: object) -> bool:
    """Whether it is a finite number, or the text of one."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


# --------------------------------------------------------------------------------------- predictions


class Texts(NamedTuple):
    """What is to be predicted."""

    rows: list[dict]  # as the file has them, with all its columns
    examples: Examples  # of the columns of text, without labels


def read_texts(path: str | Path, files: OwnFiles) -> Texts:
    """The texts of a file that may have no labels; errors as `read_table`."""
    table = read_table(path, files.text_columns, None)
    check_pairs(table, files.pairs)
    return Texts(table.rows, table.examples(None, None))


def as_predictions(texts: Texts, labels: tuple[str, ...] | None, logits: np.ndarray) -> str:
    """CSV with a row for each text: its named columns, what is predicted, and the probability of each label.

    Args:
        labels: None where the predictions are scores.
        logits: (rows, labels) in the order of the labels, or (rows, 1) scores.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    if labels:
        found = [[labels[row.argmax()], *(f"{p:.6f}" for p in row)] for row in softmax(logits.astype(float), axis=1)]
    else:
        found = [[f"{score:.6g}"] for score in logits[:, 0]]
    new = ["prediction", *(f"probability_{label}" for label in labels or ())]
    columns = [name for name in dict.fromkeys(name for row in texts.rows for name in row) if name and name not in new]
    writer.writerow([*columns, *new])
    for row, values in zip(texts.rows, found, strict=True):
        writer.writerow([*(as_cell(row.get(name)) for name in columns), *values])
    return text.getvalue()


def as_cell(value: object) -> object:
    """A value of JSON as CSV has it: text and numbers as they are, nothing for none, all else as JSON."""
    plain = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
    return value if plain else json.dumps(value, ensure_ascii=False)
