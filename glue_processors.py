"""GLUE as data: one table of tasks, and how their files are read.

Facts about the files: https://gluebenchmark.com (Wang et al., ICLR 2019), in their classic TSV layout.
"""

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_of_theseus.data.task import Data, DataError, Examples, Task, numbered_lines, without_end


@dataclass(frozen=True)
class GlueTask(Task):
    """What there is to know about a GLUE task. Columns count from 0; -1 is the last one. Scores are from 0 to 5."""

    folder: str
    sentences: tuple[int, ...] = (1, 2)  # columns of train and dev
    label: int = -1
    test_sentences: tuple[int, ...] = (1, 2)
    train: str | None = "train.tsv"
    dev: str | None = "dev.tsv"
    test: str = "test.tsv"
    header: bool = True  # of train and dev; a test file always has one
    skip_short_rows: bool = False  # in train and dev
    dev_tasks: tuple[str, ...] = ()  # the tasks whose dev sets evaluate this one, where not just its own
    predicted_by: str = ""  # the task whose model predicts this one's test set, where not its own
    rows: tuple[int, int, int] = (0, 0, 0)  # of train, dev and test, without headers and short rows
    submission: str = ""  # the leaderboard's name for the file of predictions, where not the folder's

    @property
    def main_key(self) -> str:
        return f"{self.name}/{self.main_metric}" if self.dev_tasks else self.main_metric

    @property
    def title(self) -> str:
        return f"GLUE {self.folder}"

    @property
    def submission_file(self) -> str:
        """What the leaderboard calls the file of test predictions."""
        return f"{self.submission or self.folder}.tsv"


_BINARY = ("0", "1")
_MNLI = ("contradiction", "entailment", "neutral")
_ENTAILMENT = ("entailment", "not_entailment")
_ACC_AND_F1 = ("acc", "f1", "acc_and_f1")
_CORRELATIONS = ("pearson", "spearmanr", "corr")
_TEST_ONLY = {"train": None, "dev": None, "test": "diagnostic.tsv"}


def _mnli(name: str, genres: str, submission: str, **more) -> GlueTask:
    files = {"dev": f"dev_{genres}.tsv", "test": f"test_{genres}.tsv"}
    return GlueTask(name, _MNLI, ("acc",), "MNLI", (8, 9), -1, (8, 9), submission=submission, **files, **more)


TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("cola", _BINARY, ("mcc",), "CoLA", (3,), 1, (1,), header=False, rows=(8551, 1043, 1063)),
        GlueTask("sst-2", _BINARY, ("acc",), "SST-2", (0,), 1, (1,), rows=(67349, 872, 1821)),
        GlueTask("mrpc", _BINARY, _ACC_AND_F1, "MRPC", (3, 4), 0, (3, 4), rows=(3668, 408, 1725)),
        GlueTask("sts-b", None, _CORRELATIONS, "STS-B", (7, 8), -1, (7, 8), rows=(5749, 1500, 1379)),
        GlueTask("qqp", _BINARY, _ACC_AND_F1, "QQP", (3, 4), 5, skip_short_rows=True, rows=(363846, 40430, 390965)),
        _mnli("mnli", "matched", "MNLI-m", rows=(392702, 9815, 9796), dev_tasks=("mnli", "mnli-mm")),
        _mnli("mnli-mm", "mismatched", "MNLI-mm", predicted_by="mnli", rows=(392702, 9832, 9847)),
        GlueTask("qnli", _ENTAILMENT, ("acc",), "QNLI", rows=(104743, 5463, 5463)),
        GlueTask("rte", _ENTAILMENT, ("acc",), "RTE", rows=(2490, 277, 3000)),
        GlueTask("wnli", _BINARY, ("acc",), "WNLI", rows=(635, 71, 146)),
        GlueTask("ax", _MNLI, (), "diagnostic", **_TEST_ONLY, predicted_by="mnli", rows=(0, 0, 1104), submission="AX"),
    )
}
LABELLED = tuple(name for name, task in TASKS.items() if task.metrics)  # those that a model can be trained on
_SPELLINGS = {"sst2": "sst-2", "stsb": "sts-b", "diagnostic": "ax"}


def find_task(name: str) -> GlueTask:
    """The task of that name, in any case; KeyError where there is none."""
    name = name.lower()
    return TASKS[_SPELLINGS.get(name, name)]


def task_name(text: str, tasks: Iterable[str] = TASKS) -> str:
    """An argparse type: the name of a task, in any case."""
    try:
        return find_task(text).name
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no task {text!r}; there are {', '.join(tasks)}") from None


def labelled_task(text: str) -> str:
    """An argparse type: the name of a task that a model can be trained on."""
    task = TASKS[task_name(text, LABELLED)]
    if task.name not in LABELLED:
        raise argparse.ArgumentTypeError(f"{task.name} has no labels; the model of {task.predicted_by} predicts it")
    return task.name


def read_examples(task: GlueTask, data_dir: str | Path, split: str) -> Examples:
    """Read the task's "train", "dev" or "test" file in `data_dir`.

    Rows end at a line feed, with or without a carriage return before it, and nowhere else; columns
    are separated by tabs, without quoting.

    Raises:
        DataError: no such file, not UTF-8, no rows, a row with a missing column, or a label that is not the
            task's; with file, line and what was expected.
    """
    file_name = getattr(task, split)
    if file_name is None:
        raise DataError(f"{task.name} has no {split} file: only {task.test}, to predict")
    path = Path(data_dir) / file_name
    if not path.is_file():
        inner = Path(data_dir) / task.folder
        hint = (
            f"give {inner}" if inner.is_dir() else f"{task.name}'s {split} set should be there ({task.folder} of GLUE)"
        )
        raise DataError(f"{path}: no such file; {hint}")
    labelled = split != "test"
    has_header = task.header or not labelled
    sentences = task.sentences if labelled else task.test_sentences
    n_cut = max(*sentences, task.label if labelled else 0) + 1  # columns that are read, but for a last one
    n_columns = n_cut

    columns: list[list[str]] = [[] for _ in sentences]
    labels: list[float] = []
    digest, number = hashlib.sha256(), 0
    for number, line in numbered_lines(path, digest):
        line = without_end(line)
        n_found = line.count("\t") + 1
        if number == 1 and labelled and task.label == -1:
            # The last column is the label's only in a row that is as long as the header.
            n_columns = max(n_columns + 1, n_found)
        if number == 1 and has_header:
            continue
        if n_found < n_columns:
            if labelled and task.skip_short_rows:
                continue
            raise DataError(f"{path}:{number}: {n_found} columns; expected at least {n_columns}, separated by tabs")
        row = line.split("\t", n_cut)
        for column, index in zip(columns, sentences, strict=True):
            column.append(row[index])
        if labelled:
            try:
                labels.append(_label_id(task, line.rpartition("\t")[2] if task.label == -1 else row[task.label]))
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from None
    if number <= has_header:
        raise DataError(f"{path}:1: no rows; expected {'a header line and ' * has_header}the {split} set")
    if not columns[0]:
        raise DataError(f"{path}: no complete row; expected rows of at least {n_columns} columns, separated by tabs")
    return Examples(
        first=columns[0],
        second=columns[1] if len(columns) > 1 else None,
        labels=np.array(labels, dtype=np.int64 if task.labels else np.float32) if labelled else None,
        sha256=digest.hexdigest(),
    )


def _label_id(task: GlueTask, text: str) -> float:
    """The id of a label, or the score itself; ValueError says what was expected."""
    if task.labels:
        if text not in task.labels:
            raise ValueError(f"label {text[:40]!r}; expected one of {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 5:
        raise ValueError(f"label {text[:40]!r}; expected a number from 0 to 5")
    return score


def read_dev_sets(task: GlueTask, data_dir: str | Path) -> dict[str, Examples]:
    """The dev sets that a task is evaluated on, by the name of the task whose they are; errors as `read_examples`."""
    return {name: read_examples(TASKS[name], data_dir, "dev") for name in task.dev_tasks or (task.name,)}


def read_task(task: GlueTask, data_dir: str | Path, train: bool, dev: bool) -> Data:
    """The task's training set and its dev sets, those that are asked for; errors as `read_examples`."""
    train_set = read_examples(task, data_dir, "train") if train else None
    return Data(task, train_set, read_dev_sets(task, data_dir) if dev else {})
