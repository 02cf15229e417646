"""The order of the data, and how a batch is cut into parts."""

import itertools
import math

import numpy as np
import pytest
import torch

from bert_of_theseus.batches import micro_batch, padded_length, split_by_length, train_batches
from bert_of_theseus.data.features import Features


def test_every_epoch_has_another_order_that_follows_from_the_seed():
    def epochs(seed):
        batches = train_batches(10, 4, 1, seed)
        return [np.concatenate([next(batches)[1][0] for _ in range(3)]).tolist() for _ in range(2)]

    first, second = epochs(1)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert epochs(1) == [first, second]
    assert not {tuple(order) for order in epochs(2)} & {tuple(first), tuple(second)}


def test_left_over_micro_batches_of_an_epoch_make_no_step():
    steps = itertools.islice(train_batches(20, 6, 3, 1), 3)  # four micro-batches an epoch
    assert [(epoch, len(micro_batches)) for epoch, micro_batches in steps] == [(0, 3), (1, 3), (2, 3)]


def features_of(lengths: list[int], labels=None) -> Features:
    """Random tokens in rows of these lengths, with labels that take turns."""
    ids = np.random.default_rng(0).integers(5, 20, sum(lengths)).astype(np.int32)
    labels = np.arange(len(lengths)) % 2 if labels is None else labels
    return Features(ids, np.array(lengths), np.zeros(sum(lengths), np.int8), labels)


def test_a_batch_is_cut_where_least_time_is_lost():
    lengths = np.array([10, 48, 12, 9, 46, 11, 50, 44])
    parts = split_by_length(lengths, max_tokens=1000, overhead=5)
    assert sorted(sorted(part.tolist()) for part in parts) == [[0, 2, 3, 5], [1, 4, 6, 7]]
    assert len(split_by_length(lengths, max_tokens=1000, overhead=10**6)) == 1
    assert len(split_by_length(lengths, max_tokens=52 * 2, overhead=5)) == 4
    assert len(split_by_length(np.array([7] * 16), max_tokens=1000, overhead=1)) == 1


@pytest.mark.parametrize(
    ("n_rows", "longest", "length"), [(1, 17, 32), (16, 17, 17), (4, 17, 20), (6, 8, 8), (3, 1, 16)]
)
def test_a_part_has_a_multiple_of_16_tokens(n_rows, longest, length):
    assert padded_length(n_rows, longest) == length


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_of_the_rows_in_order_is_cheaper_and_none_is_too_large(seed):
    rng = np.random.default_rng(seed)
    lengths, max_tokens, overhead = rng.integers(1, 40, 9), int(rng.integers(20, 200)), int(rng.integers(0, 30))

    def cost(parts):
        tokens = [len(part) * int(padded_length(len(part), max(part))) for part in parts]
        if any(len(part) > 1 and n > max_tokens for part, n in zip(parts, tokens, strict=True)):
            return math.inf
        return sum(tokens) + overhead * len(parts)

    parts = split_by_length(lengths, max_tokens, overhead)
    assert sorted(np.concatenate(parts)) == list(range(9))
    ordered = sorted(lengths.tolist())
    cuts = [[i + 1 for i in range(8) if bits >> i & 1] for bits in range(2**8)]
    every = [[ordered[a:b] for a, b in zip([0, *cut], [*cut, 9], strict=True)] for cut in cuts]
    assert cost([lengths[part].tolist() for part in parts]) == min(map(cost, every))


def test_no_part_is_padded_beyond_the_longest_row_of_the_data():
    parts = micro_batch(features_of([3, 5, 29]), np.array([0, 1]), torch.device("cpu"))
    assert {tensors["input_ids"].shape[1] for tensors, _ in parts} <= set(range(5, 30))
    ((tensors, share),) = micro_batch(features_of([3, 5, 29]), np.array([2]), torch.device("cpu"))
    assert tensors["input_ids"].shape == (1, 29) and share == 1
