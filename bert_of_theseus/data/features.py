"""Data sets as tokens: tokenised once, cached, and batched with as little padding as need be."""

import copy
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch

from bert_of_theseus.data.task import Examples
from bert_of_theseus.run.files import whole_file

logger = logging.getLogger(__name__)


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
        self, task: str, split: str, examples: Examples, tokenizer, max_seq_length: int, token_type_ids: bool
    ) -> Features:
        """What `tokenize` makes of the split of a task of that name, or has made of it in an earlier run."""
        key = _cache_key(task, split, examples, tokenizer, max_seq_length, token_type_ids)
        name = f"cached_{split}_{task.replace('/', '-')}_{max_seq_length}_{key[:16]}.npz"
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
        "task": task,
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
