"""GLUE as data: one table of tasks; reading, features, metrics.

Facts about the files: https://gluebenchmark.com (Wang et al., ICLR 2019), in their classic TSV layout.
"""

import codecs
import copy
import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bert_of_theseus.run.command_line import aligned
from bert_of_theseus.run.files import whole_file

logger = logging.getLogger(__name__)


class GlueDataError(ValueError):
    """A data file that is missing or not as GLUE's layout has it; the message names file and line."""


@dataclass(frozen=True)
class Task:
    """What there is to know about a GLUE task. Columns count from 0; -1 is the last one."""

    name: str
    folder: str
    labels: tuple[str, ...] | None  # in id order; None: a score from 0 to 5 (regression)
    metrics: tuple[str, ...]  # the last one is the main metric; none where labels are not published
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
    def num_labels(self) -> int:
        """Outputs of the task head: one a label, or one score."""
        return len(self.labels) if self.labels else 1

    @property
    def main_metric(self) -> str:
        return self.metrics[-1]

    @property
    def main_key(self) -> str:
        """The main metric's name among those of all dev sets."""
        return f"{self.name}/{self.main_metric}" if self.dev_tasks else self.main_metric

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


def _mnli(name: str, genres: str, submission: str, **more) -> Task:
    files = {"dev": f"dev_{genres}.tsv", "test": f"test_{genres}.tsv"}
    return Task(name, "MNLI", _MNLI, ("acc",), (8, 9), -1, (8, 9), submission=submission, **files, **more)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", "CoLA", _BINARY, ("mcc",), (3,), 1, (1,), header=False, rows=(8551, 1043, 1063)),
        Task("sst-2", "SST-2", _BINARY, ("acc",), (0,), 1, (1,), rows=(67349, 872, 1821)),
        Task("mrpc", "MRPC", _BINARY, _ACC_AND_F1, (3, 4), 0, (3, 4), rows=(3668, 408, 1725)),
        Task("sts-b", "STS-B", None, _CORRELATIONS, (7, 8), -1, (7, 8), rows=(5749, 1500, 1379)),
        Task("qqp", "QQP", _BINARY, _ACC_AND_F1, (3, 4), 5, (1, 2), skip_short_rows=True, rows=(363846, 40430, 390965)),
        _mnli("mnli", "matched", "MNLI-m", rows=(392702, 9815, 9796), dev_tasks=("mnli", "mnli-mm")),
        _mnli("mnli-mm", "mismatched", "MNLI-mm", predicted_by="mnli", rows=(392702, 9832, 9847)),
        Task("qnli", "QNLI", _ENTAILMENT, ("acc",), rows=(104743, 5463, 5463)),
        Task("rte", "RTE", _ENTAILMENT, ("acc",), rows=(2490, 277, 3000)),
        Task("wnli", "WNLI", _BINARY, ("acc",), rows=(635, 71, 146)),
        Task("ax", "diagnostic", _MNLI, (), **_TEST_ONLY, predicted_by="mnli", rows=(0, 0, 1104), submission="AX"),
    )
}
_SPELLINGS = {"sst2": "sst-2", "stsb": "sts-b"}


def find_task(name: str) -> Task:
    """The task of that name, in any case; KeyError where there is none."""
    name = name.lower()
    return TASKS[_SPELLINGS.get(name, name)]


class Examples(NamedTuple):
    """The rows of one file, in its order."""

    first: list[str]
    second: list[str] | None  # None for tasks of single sentences
    labels: np.ndarray | None  # (rows,) int64 ids in the table's order, or float32 scores; None in a test set
    sha256: str  # of the file


def read_examples(task: Task, data_dir: str | Path, split: str) -> Examples:
    """Read the task's "train", "dev" or "test" file in `data_dir`.

    Rows end at a line feed, with or without a carriage return before it, and nowhere else; columns
    are parted by tabs, without quoting.

    Raises:
        GlueDataError: no such file, not UTF-8, no rows, a row with a missing column, or a label that is not the
            task's; with file, line and what was expected.
    """
    file_name = getattr(task, split)
    if file_name is None:
        raise GlueDataError(f"{task.name} has no {split} file: only {task.test}, to predict")
    path = Path(data_dir) / file_name
    if not path.is_file():
        raise GlueDataError(f"{path}: no such file; {task.name}'s {split} set should be there ({task.folder} of GLUE)")
    labelled = split != "test"
    has_header = task.header or not labelled
    sentences = task.sentences if labelled else task.test_sentences
    n_cut = max(*sentences, task.label if labelled else 0) + 1  # columns that are read, but for a last one
    n_columns = n_cut

    columns: list[list[str]] = [[] for _ in sentences]
    labels: list[float] = []
    digest, number = hashlib.sha256(), 0
    for number, line in _lines(path, digest):
        n_found = line.count("\t") + 1
        if number == 1 and labelled and task.label == -1:
            # The last column is the label's only in a row that is as long as the header.
            n_columns = max(n_columns + 1, n_found)
        if number == 1 and has_header:
            continue
        if n_found < n_columns:
            if labelled and task.skip_short_rows:
                continue
            raise GlueDataError(f"{path}:{number}: {n_found} columns; expected at least {n_columns}, parted by tabs")
        row = line.split("\t", n_cut)
        for column, index in zip(columns, sentences, strict=True):
            column.append(row[index])
        if labelled:
            try:
                labels.append(_label_id(task, line.rpartition("\t")[2] if task.label == -1 else row[task.label]))
            except ValueError as error:
                raise GlueDataError(f"{path}:{number}: {error}") from None
    if number <= has_header:
        raise GlueDataError(f"{path}:1: no rows; expected {'a header line and ' * has_header}the {split} set")
    if not columns[0]:
        raise GlueDataError(f"{path}: no complete row; expected rows of at least {n_columns} columns, parted by tabs")
    return Examples(
        first=columns[0],
        second=columns[1] if len(columns) > 1 else None,
        labels=np.array(labels, dtype=np.int64 if task.labels else np.float32) if labelled else None,
        sha256=digest.hexdigest(),
    )


def _lines(path: Path, digest) -> Iterator[tuple[int, str]]:
    """Yield (number, text without its end) of each line, and feed `digest` with the file's bytes."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x}"
                raise GlueDataError(f"{path}:{number}: not UTF-8 ({byte}); save it as UTF-8") from None
            if "\0" in text:
                raise GlueDataError(f"{path}:{number}: a NUL character, as in UTF-16; save it as UTF-8")
            yield number, text.removesuffix("\n").removesuffix("\r")


def _label_id(task: Task, text: str) -> float:
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


def read_dev_sets(task: Task, data_dir: str | Path) -> dict[str, Examples]:
    """The dev sets that a task is evaluated on, by the name of the task whose they are; errors as `read_examples`."""
    return {name: read_examples(TASKS[name], data_dir, "dev") for name in task.dev_tasks or (task.name,)}


class Features:
    """A tokenised data set, in file order, without padding.

    Args:
        input_ids: (tokens,) int32, the rows one after the other.
        lengths: (rows,) int64, tokens in each row.
        token_type_ids: (tokens,) int8, or None where the model has none.
        labels: (rows,) as in `Examples`, or None.
        pad_token_id: with which batches are padded.
    """

    def __init__(self, input_ids, lengths, token_type_ids=None, labels=None, pad_token_id: int = 0):
        self.input_ids = input_ids
        self.lengths = lengths
        self.token_type_ids = token_type_ids
        self.labels = labels
        self.pad_token_id = pad_token_id
        self.longest = int(lengths.max())
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def head(self, n_rows: int) -> "Features":
        """The first rows alone."""
        lengths, tokens = self.lengths[:n_rows], slice(int(self.lengths[:n_rows].sum()))
        types = None if self.token_type_ids is None else self.token_type_ids[tokens]
        labels = None if self.labels is None else self.labels[:n_rows]
        return Features(self.input_ids[tokens], lengths, types, labels, self.pad_token_id)

    def batch(self, rows: Sequence[int], length: int | None = None) -> dict[str, torch.Tensor]:
        """Tensors of these rows, padded to `length` tokens, by default to the longest of them.

        Returns:
            `input_ids` and `attention_mask`, and `token_type_ids` and `labels` where there are any:
            (rows, length) int64; labels (rows,).
        """
        rows = np.asarray(rows)
        lengths = self.lengths[rows, None]
        columns = np.arange(length or lengths.max())
        is_token = columns < lengths
        places = np.where(is_token, self._ends[rows, None] - lengths + columns, 0)

        def padded(values: np.ndarray, padding_value: int) -> torch.Tensor:
            return torch.from_numpy(np.where(is_token, values[places], padding_value).astype(np.int64))

        tensors = {
            "input_ids": padded(self.input_ids, self.pad_token_id),
            "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
        }
        if self.token_type_ids is not None:
            tensors["token_type_ids"] = padded(self.token_type_ids, 0)
        if self.labels is not None:
            tensors["labels"] = torch.from_numpy(self.labels[rows])
        return tensors


CHUNK = 1000  # rows that are tokenised at once: the tokenizer's lists of numbers are large


def tokenize(examples: Examples, tokenizer, max_seq_length: int, token_type_ids: bool) -> Features:
    """Tokenise by the fast tokenizer, and cut pairs to `max_seq_length` tokens, the longer sentence first."""
    tokenizer = copy.deepcopy(tokenizer)  # a call sets truncation in it, which would be saved with the model
    input_ids, types, lengths = [], [], []
    for start in range(0, len(examples.first), CHUNK):
        encoded = tokenizer(
            examples.first[start : start + CHUNK],
            examples.second[start : start + CHUNK] if examples.second else None,
            truncation=True,
            max_length=max_seq_length,
            return_token_type_ids=token_type_ids,
            return_attention_mask=False,
        )
        # Of an empty text nothing is left where the tokenizer adds no tokens of its own.
        ids = [row or [tokenizer.pad_token_id] for row in encoded["input_ids"]]
        lengths += map(len, ids)
        input_ids.append(np.fromiter(chain.from_iterable(ids), np.int32))
        if token_type_ids:
            rows = (row or [0] for row in encoded["token_type_ids"])
            types.append(np.fromiter(chain.from_iterable(rows), np.int8))
    return Features(
        np.concatenate(input_ids),
        np.array(lengths, dtype=np.int64),
        np.concatenate(types) if token_type_ids else None,
        examples.labels,
        tokenizer.pad_token_id,
    )


class FeaturesCache(NamedTuple):
    """Where tokenised data sets are kept for later runs.

    Attributes:
        folders: that are searched; a new file goes to the first one that can be written to.
        overwrite: tokenise anew.
        write: whether this process writes.
    """

    folders: Sequence[str | Path]
    overwrite: bool = False
    write: bool = True

    def features(
        self, task: Task, split: str, examples: Examples, tokenizer, max_seq_length: int, token_type_ids: bool
    ) -> Features:
        """What `tokenize` makes of a task's split, or has made of it in an earlier run."""
        key = _cache_key(task, split, examples, tokenizer, max_seq_length, token_type_ids)
        name = f"cached_{split}_{task.name}_{max_seq_length}_{key[:16]}.npz"
        for folder in self.folders if not self.overwrite else []:
            features = _read_cache(Path(folder) / name, key, tokenizer.pad_token_id)
            if features is not None:
                return features
        features = tokenize(examples, tokenizer, max_seq_length, token_type_ids)
        for folder in self.folders if self.write else []:
            try:
                _write_cache(Path(folder) / name, key, features)
                break
            except OSError as error:
                _warn_once(f"The features cache cannot be written to {folder} ({error.strerror})")
        return features


def _cache_key(task, split, examples, tokenizer, max_seq_length, token_type_ids) -> str:
    """A digest of all that the features depend on."""
    tokenizer_state = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # each call sets its own
        tokenizer_state.pop(setting, None)
    parts = {
        "format": 2,
        "task": task.name,
        "split": split,
        "data": examples.sha256,
        "tokenizer": tokenizer_state,
        "tokenizers": tokenizers.__version__,
        "max_seq_length": max_seq_length,
        "token_type_ids": token_type_ids,
        "truncation_side": tokenizer.truncation_side,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_cache(path: Path, key: str, pad_token_id: int) -> Features | None:
    """The features in a cache file; None where it is missing, damaged or another key's."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            found = [arrays.get(name) for name in ("input_ids", "lengths", "token_type_ids", "labels")]
            return Features(*found, pad_token_id)
    except OSError:
        return None
    except Exception as error:  # numpy and zipfile raise errors of many kinds where a file is cut short
        logger.warning("%s is damaged (%s) and is made anew", path, error)
        return None


def _write_cache(path: Path, key: str, features: Features) -> None:
    arrays = {name: getattr(features, name) for name in ("input_ids", "lengths", "token_type_ids", "labels")}
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key, **{name: array for name, array in arrays.items() if array is not None})


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def compute_metrics(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics, as fractions.

    Args:
        predictions: (rows,) label ids in the table's order, or scores.
        labels: (rows,) likewise.

    The correlation with a constant, or with what is no number, is undefined; here it counts as 0, so
    that runs stay comparable.
    """
    if task.main_metric == "mcc":
        return {"mcc": float(matthews_corrcoef(labels, predictions))}
    if task.main_metric == "corr":
        defined = all(np.isfinite(values).all() and np.ptp(values) > 0 for values in (predictions, labels))
        pearson = float(pearsonr(predictions, labels).statistic) if defined else 0.0
        spearman = float(spearmanr(predictions, labels).statistic) if defined else 0.0
        return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
    metrics = {"acc": float(accuracy_score(labels, predictions))}
    if task.main_metric == "acc_and_f1":
        metrics["f1"] = float(f1_score(labels, predictions, zero_division=0))
        metrics["acc_and_f1"] = (metrics["acc"] + metrics["f1"]) / 2
    return metrics


def compute_loyalty(task: Task, logits: np.ndarray, predecessor: np.ndarray) -> dict[str, float]:
    """How far a successor answers as its predecessor does, right or wrong.

    Args:
        logits: (rows, labels), the successor's, in the table's order; (rows, 1) scores where there are no labels.
        predecessor: likewise, the predecessor's on the same rows.

    Returns:
        `label_loyalty`, the share of rows with the same label, and `probability_loyalty`, the mean over the rows of
        one less the square root of the Jensen-Shannon divergence to base 2 (Xu et al., "Beyond Preserved Accuracy",
        EMNLP 2021); of scores `score_correlation`, Pearson's.
    """
    if not task.labels:
        return {"score_correlation": compute_metrics(task, logits[:, 0], predecessor[:, 0])["pearson"]}
    p, q = (softmax(rows.astype(np.float64), axis=1) for rows in (logits, predecessor))
    # Rounding can bring the divergence of nearly equal rows below 0, and its root is no number then.
    with np.errstate(invalid="ignore"):
        distances = np.nan_to_num(jensenshannon(p, q, base=2, axis=1))
    return {
        "label_loyalty": float((logits.argmax(1) == predecessor.argmax(1)).mean()),
        "probability_loyalty": float(1 - distances.mean()),
    }


def chance_score(task: Task, labels: np.ndarray) -> float:
    """The main metric of the best constant prediction: what a model that has learned nothing can score."""
    constants = range(task.num_labels) if task.labels else [0.0]
    return max(compute_metrics(task, np.full(len(labels), c), labels)[task.main_metric] for c in constants)


class Score(NamedTuple):
    """How well a model did on a task's dev sets.

    Attributes:
        metrics: by name; with several dev sets as `mnli/acc`.
        main: the main metric.
        loyalty: of a successor to its predecessor, by name.
        seconds: of the predictions.
        logits: (rows, labels) of each dev set, in the table's order of labels.
    """

    metrics: dict[str, float]
    main: float
    loyalty: dict[str, float]
    seconds: float
    logits: dict[str, np.ndarray]

    def logged(self) -> dict[str, float]:
        """The values under their names in the log."""
        return {f"eval_{key}": value for key, value in (self.metrics | self.loyalty).items()}

    def recorded(self) -> dict:
        """The score for a run's record."""
        return {name: getattr(self, name) for name in ("metrics", "main", "seconds", "loyalty")}


@dataclass(frozen=True)
class DevSets:
    """What the models of a task are evaluated on.

    Attributes:
        task: whose models they are.
        features: of each dev set, by the name of its task.
        batch_size: of a process.
        predecessor: its score, which a successor's loyalty is measured against.
    """

    task: Task
    features: dict[str, Features]
    batch_size: int
    predecessor: Score | None = None

    def score(self, classifier) -> Score:
        """Score what has `predict(features, batch_size)`, which gives logits in the table's order of labels."""
        started = time.perf_counter()
        logits = {name: classifier.predict(features, self.batch_size) for name, features in self.features.items()}
        seconds = time.perf_counter() - started
        metrics, loyalty = {}, {}
        for name, features in self.features.items():
            prefix = f"{name}/" if len(self.features) > 1 else ""
            predictions = logits[name].argmax(1) if self.task.labels else logits[name][:, 0]
            found = compute_metrics(TASKS[name], predictions, features.labels)
            metrics |= {prefix + key: value for key, value in found.items()}
            if self.predecessor:
                found = compute_loyalty(TASKS[name], logits[name], self.predecessor.logits[name])
                loyalty |= {prefix + key: value for key, value in found.items()}
        return Score(metrics, metrics[self.task.main_key], loyalty, seconds, logits)

    def chance(self) -> float:
        """The main metric of the best constant prediction: what a model that has learned nothing can score."""
        name, features = next(iter(self.features.items()))
        return chance_score(TASKS[name], features.labels)


def comparison(rows: list[tuple[str, dict]], main_key: str) -> str:
    """A table of (who, its score as a record has it, with its parameters); each is held against the first."""
    predecessor, last = rows[0][1], rows[-1][1]
    table = [["", *predecessor["metrics"], f"{main_key} kept", *last["loyalty"], "parameters", "seconds for dev"]]
    for who, score in rows:
        metrics = [f"{score['metrics'][key]:.4f}" for key in predecessor["metrics"]]
        kept = f"{100 * score['main'] / predecessor['main']:.1f} %" if predecessor["main"] > 0 else "-"
        loyalty = [f"{score['loyalty'][key]:.4f}" if key in score["loyalty"] else "-" for key in last["loyalty"]]
        seconds = f"{score['seconds']:.2f}" if "seconds" in score else "-"
        table.append([who, *metrics, kept, *loyalty, f"{score['parameters']:,}", seconds])
    return aligned(table)
