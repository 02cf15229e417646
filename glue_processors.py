"""GLUE as data: one table of tasks; reading, features, metrics.

Facts about the files: https://gluebenchmark.com (Wang et al., ICLR 2019), in their classic TSV layout.
"""

import codecs
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
        GlueDataError: no such file or none that can be read, not UTF-8, no rows, a row with a missing column, of more
            than `MAX_LINE` bytes or with a NUL, or a label that is not the task's; with file, line and what was
            expected.
    """
    file_name = getattr(task, split)
    if file_name is None:
        raise GlueDataError(f"{task.name} has no {split} file: only {task.test}, to predict")
    path = Path(data_dir) / file_name
    if not path.exists():
        raise GlueDataError(f"{path}: no such file; {task.name}'s {split} set should be there ({task.folder} of GLUE)")
    labelled = split != "test"
    has_header = task.header or not labelled
    sentences = task.sentences if labelled else task.test_sentences
    n_cut = max(*sentences, task.label if labelled else 0) + 1  # what lies beyond is not even cut into columns
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


# Bytes of a line, a hundred times what GLUE's longest has: a tokenizer takes up to 600 times as many.
MAX_LINE = 2**21


def _lines(path: Path, digest) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, without its end, `digest` fed with all bytes; errors as `read_examples` has them."""
    if not path.is_file():  # a FIFO would never end
        raise GlueDataError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE + 1)
                if not line:
                    return
                digest.update(line)
                yield number, _text(path, number, line)
    except OSError as error:
        raise GlueDataError(f"{path}: cannot be read ({error.strerror})") from error


def _text(path: Path, number: int, line: bytes) -> str:
    """The text of a file's line, without its end."""
    if len(line) > MAX_LINE:
        raise GlueDataError(f"{path}:{number}: more than {MAX_LINE:,} bytes; rows should end at a line feed")
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x}"
        raise GlueDataError(f"{path}:{number}: not UTF-8 ({byte}); save it as UTF-8") from None
    if "\0" in text:
        raise GlueDataError(f"{path}:{number}: a NUL character, as in UTF-16; save it as UTF-8")
    return text.removesuffix("\n").removesuffix("\r")


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


class Features:
    """A tokenised data set, in file order, without padding.

    Args:
        input_ids: (tokens,) int32, the rows one after the other.
        lengths: (rows,) int64, tokens in each row.
        token_type_ids: (tokens,) int8, or None where the model has none.
        labels: (rows,) as in `Examples`, or None.
    """

    def __init__(self, input_ids, lengths, token_type_ids=None, labels=None):
        self.input_ids = input_ids
        self.lengths = lengths
        self.token_type_ids = token_type_ids
        self.labels = labels
        self.longest = int(lengths.max())
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def head(self, n_rows: int) -> "Features":
        """The first rows alone."""
        lengths, tokens = self.lengths[:n_rows], slice(int(self.lengths[:n_rows].sum()))
        types = None if self.token_type_ids is None else self.token_type_ids[tokens]
        return Features(self.input_ids[tokens], lengths, types, None if self.labels is None else self.labels[:n_rows])

    def batch(self, rows: Sequence[int], pad_token_id: int, length: int | None = None) -> dict:
        """Tensors of these rows, padded to `length` tokens, by default to the longest of them.

        Returns:
            `input_ids` and `attention_mask`, and `token_type_ids` and `labels` where there are any:
            (rows, length) int64; labels (rows,).
        """
        import torch

        rows = np.asarray(rows)
        lengths = self.lengths[rows, None]
        columns = np.arange(length or lengths.max())
        is_token = columns < lengths
        places = np.where(is_token, self._ends[rows, None] - lengths + columns, 0)

        def padded(values: np.ndarray, padding_value: int) -> torch.Tensor:
            return torch.from_numpy(np.where(is_token, values[places], padding_value).astype(np.int64))

        tensors = {
            "input_ids": padded(self.input_ids, pad_token_id),
            "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
        }
        if self.token_type_ids is not None:
            tensors["token_type_ids"] = padded(self.token_type_ids, 0)
        if self.labels is not None:
            tensors["labels"] = torch.from_numpy(self.labels[rows])
        return tensors


def tokenize(examples: Examples, tokenizer, max_seq_length: int, token_type_ids: bool) -> Features:
    """Features by the fast tokenizer, which stays as it is, cut to `max_seq_length` tokens, longest sentence first."""
    from bert_of_theseus.classifier import as_it_was

    input_ids, types, lengths = [], [], []
    for chunk in _chunks(examples, max_seq_length):
        first, second = examples.first[chunk], examples.second[chunk] if examples.second else None
        with as_it_was(tokenizer):
            if second and _is_long_pair(first[0], second[0], max_seq_length):  # a chunk of its own
                encoded = _long_pair(tokenizer, first[0], second[0], max_seq_length)
            else:
                encoded = tokenizer(
                    first,
                    second,
                    truncation=True,
                    max_length=max_seq_length,
                    return_token_type_ids=token_type_ids,
                    return_attention_mask=False,
                )
        # Of an empty text nothing is left where the tokenizer adds no tokens of its own.
        ids = [row or [tokenizer.pad_token_id] for row in encoded["input_ids"]]
        lengths += map(len, ids)
        input_ids.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        if token_type_ids:
            rows = (row or [0] for row in encoded["token_type_ids"])
            types.append(np.fromiter(itertools.chain.from_iterable(rows), np.int8))
    return Features(
        np.concatenate(input_ids),
        np.array(lengths, dtype=np.int64),
        np.concatenate(types) if token_type_ids else None,
        examples.labels,
    )


def _is_long_pair(first: str, second: str, max_seq_length: int) -> bool:
    """Whether a tokenizer might cut off many pieces of both: it makes pairs of them all, which can fill any memory."""
    return (len(first) // max_seq_length) * (len(second) // max_seq_length) > 1000


def _long_pair(tokenizer, first: str, second: str, max_seq_length: int) -> dict[str, list[list[int]]]:
    """What the tokenizer makes of a pair, by steps in which next to nothing is cut off at once."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch([first, second], add_special_tokens=False)
    longer = len(encodings[0]) <= len(encodings[1])
    for number, encoding in enumerate(encodings):
        keep = max_seq_length + (number == longer)  # an odd token is the longer one's
        while len(encoding) > keep:  # each time one piece takes the place of the last one
            encoding.truncate(max(keep, -(-len(encoding) // 2)), direction=tokenizer.truncation_side)
    backend.enable_truncation(max_seq_length, direction=tokenizer.truncation_side)
    encoding = backend.post_process(*encodings)
    return {"input_ids": [encoding.ids], "token_type_ids": [encoding.type_ids]}


def _chunks(
    examples: Examples, max_seq_length: int, n_rows: int = 1000, n_characters: int = MAX_LINE
) -> Iterator[slice]:
    """Slices of so many rows, and characters, at most: a tokenizer's lists of ids are large.

    A row of more characters, or a long pair, has a slice of its own.
    """
    start, characters = 0, 0
    seconds = examples.second or [""] * len(examples.first)
    for row, texts in enumerate(zip(examples.first, seconds, strict=True)):
        length = n_characters + 1 if _is_long_pair(*texts, max_seq_length) else sum(map(len, texts))
        if row > start and (row - start == n_rows or characters + length > n_characters):
            yield slice(start, row)
            start, characters = row, 0
        characters += length
    yield slice(start, len(examples.first))


def cached_features(
    task: Task,
    split: str,
    examples: Examples,
    tokenizer,
    max_seq_length: int,
    token_type_ids: bool,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    write: bool = True,
) -> Features:
    """`tokenize`, or what an earlier run has left of it in one of `folders`.

    The cache's key covers all that its content depends on: the file's bytes, the tokenizer, the
    length, the task and the split. It is written to the first of `folders` that takes it, if `write` is set.
    """
    import tokenizers

    tokenizer_state = json.loads(tokenizer.backend_tokenizer.to_str())
    for leftover in ("truncation", "padding"):  # of the tokenizer's last call; this one sets its own
        tokenizer_state.pop(leftover, None)
    parts = {
        "format": 1,
        "task": task.name,
        "split": split,
        "data": examples.sha256,
        "tokenizer": tokenizer_state,
        "tokenizers": tokenizers.__version__,
        "max_seq_length": max_seq_length,
        "token_type_ids": token_type_ids,
        "truncation_side": tokenizer.truncation_side,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    name = f"cached_{split}_{task.name}_{max_seq_length}_{key[:16]}.npz"
    paths = [Path(folder) / name for folder in folders]
    for path in paths if not overwrite else []:
        features = _read_cache(path, key, examples, tokenizer, max_seq_length, token_type_ids)
        if features is not None:
            return features
    features = tokenize(examples, tokenizer, max_seq_length, token_type_ids)
    for path, folder in itertools.zip_longest(paths, folders[1:]) if write else []:
        try:
            _write_cache(path, key, features)
            break
        except OSError as error:
            instead = f"it goes to {folder}" if folder else "this run does without"
            _warn_once(f"The features cache cannot be written to {path.parent} ({error.strerror}); {instead}")
    return features


def _read_cache(path: Path, key: str, examples, tokenizer, max_seq_length, token_type_ids) -> Features | None:
    """The features in a cache file, or None where it is missing, damaged or another key's."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > path.stat().st_size:
                raise ValueError("it would unpack to more than it has")
            if str(arrays["key"]) != key:
                return None
            found = [arrays.get(name) for name in ("input_ids", "lengths", "token_type_ids", "labels")]
            if not _fit(*found, examples, max(tokenizer.get_vocab().values()), max_seq_length, token_type_ids):
                raise ValueError("its arrays are not of these rows")
            return Features(*found)
    except OSError:
        return None
    except Exception as error:  # whatever a damaged archive makes numpy and zipfile raise
        logger.warning("%s is damaged (%s) and is made anew", path, error)
        return None


def _fit(input_ids, lengths, types, labels, examples, last_id, max_seq_length, token_type_ids) -> bool:
    """Whether arrays can be those that `tokenize` makes of the examples."""
    sound = lengths.shape == (len(examples.first),) and lengths.dtype == np.int64
    sound = sound and 1 <= lengths.min() and lengths.max() <= max_seq_length
    sound = sound and input_ids.shape == (lengths.sum(),) and input_ids.dtype == np.int32
    sound = sound and 0 <= input_ids.min() and input_ids.max() <= last_id
    if sound and token_type_ids:
        sound = types.shape == input_ids.shape and types.dtype == np.int8 and types.min() >= 0
    if sound and examples.labels is not None:
        sound = labels.dtype == examples.labels.dtype and np.array_equal(labels, examples.labels)
    return sound and token_type_ids == (types is not None) and (labels is None) == (examples.labels is None)


def _write_cache(path: Path, key: str, features: Features) -> None:
    from bert_of_theseus.files import whole_file

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
        from sklearn.metrics import matthews_corrcoef

        return {"mcc": float(matthews_corrcoef(labels, predictions))}
    if task.main_metric == "corr":
        from scipy.stats import pearsonr, spearmanr

        defined = all(np.isfinite(values).all() and np.ptp(values) > 0 for values in (predictions, labels))
        pearson = float(pearsonr(predictions, labels).statistic) if defined else 0.0
        spearman = float(spearmanr(predictions, labels).statistic) if defined else 0.0
        return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
    from sklearn.metrics import accuracy_score, f1_score

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
    from scipy.special import rel_entr, softmax

    p, q = (softmax(of.astype(np.float64), 1) for of in (logits, predecessor))
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(1) / (2 * np.log(2))
    distances = np.sqrt(np.maximum(divergence, 0))  # rounding can bring that of equals below 0
    return {
        "label_loyalty": float((logits.argmax(1) == predecessor.argmax(1)).mean()),
        "probability_loyalty": float(1 - distances.mean()),
    }


def chance_score(task: Task, labels: np.ndarray) -> float:
    """The main metric of the best constant prediction: what a model that has learned nothing can score."""
    constants = range(task.num_labels) if task.labels else [0.0]
    return max(compute_metrics(task, np.full(len(labels), c), labels)[task.main_metric] for c in constants)
