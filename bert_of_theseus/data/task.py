"""What a task is, the rows of its files, and how lines are read."""

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """A data file that is missing or not as it should be; the message names file and line, and what was expected."""


@dataclass(frozen=True)
class Task:
    """What a model learns to tell of a text, or of a pair of texts."""

    name: str
    labels: tuple[str, ...] | None  # in id order; None: a score (regression)
    metrics: tuple[str, ...]  # of `scores.METRICS`; none where labels are not published
    _: KW_ONLY
    chosen_metric: str = ""  # the main metric, where not the last one
    positive: int = 1  # id of the label whose F1 is `f1`

    @property
    def num_labels(self) -> int:
        """Outputs of the task head: one a label, or one score."""
        return len(self.labels) if self.labels else 1

    @property
    def main_metric(self) -> str:
        return self.chosen_metric or self.metrics[-1]

    @property
    def main_key(self) -> str:
        """The main metric's name among those of all dev sets."""
        return self.main_metric

    def judged_by(self, metric: str) -> "Task":
        """The task with this main metric; as it is for none. DataError where the task has no such metric."""
        if metric and metric not in self.metrics:
            raise DataError(f"--metric_for_best_model {metric}: there are {', '.join(self.metrics)}")
        return replace(self, chosen_metric=metric) if metric else self

    @property
    def title(self) -> str:
        """What model cards and tables call the task."""
        return self.name


class Examples(NamedTuple):
    """The rows of one file, in its order."""

    first: list[str]
    second: list[str] | None  # None for tasks of single texts
    labels: np.ndarray | None  # (rows,) int64 ids in the task's order, or float32 scores; None in a test set
    sha256: str  # of the file, and of what else has made these of it

    def head(self, n_rows: int | None) -> "Examples":
        """The first rows alone; all of them for None."""
        if n_rows is None or n_rows >= len(self.first):
            return self
        second, labels = (None if column is None else column[:n_rows] for column in (self.second, self.labels))
        sha256 = hashlib.sha256(f"{n_rows} rows of {self.sha256}".encode()).hexdigest()
        return Examples(self.first[:n_rows], second, labels, sha256)


class Data(NamedTuple):
    """A task, and those of its rows that a command asks for."""

    task: Task
    train: Examples | None
    dev: dict[str, Examples]  # by name; GLUE's MNLI has two dev sets

    def head(self, n_train: int | None, n_dev: int | None) -> "Data":
        """The first rows of each set alone."""
        dev = {name: examples.head(n_dev) for name, examples in self.dev.items()}
        return Data(self.task, self.train and self.train.head(n_train), dev)


def numbered_lines(path: Path, digest) -> Iterator[tuple[int, str]]:
    """Yield (number, text with its end) of each line, and feed `digest` with the file's bytes.

    Lines end at a line feed and nowhere else. A byte-order mark is no part of the first one.

    Raises:
        DataError: a line is not UTF-8.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x}"
                raise DataError(f"{path}:{number}: not UTF-8 ({byte}); save it as UTF-8") from None
            if "\0" in text:
                raise DataError(f"{path}:{number}: a NUL character, as in UTF-16; save it as UTF-8")
            yield number, text


def without_end(line: str) -> str:
    """The line without its line feed and a carriage return before that."""
    return line.removesuffix("\n").removesuffix("\r")
