"""The order in which the data come, and how a batch is cut for this process and its device."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from bert_of_theseus.cpu_kernels import ROWS
from bert_of_theseus.data_parallel import n_processes, rank

# On a CPU a part of a batch has this many tokens at most, so that its activations stay in the caches and memory stays
# small; and one part more costs as much time as this many tokens do. Measured in docs/performance.md.
PART_TOKENS = 1024
PART_OVERHEAD = 64


def padded_length(n_rows: int | np.ndarray, longest: int) -> int | np.ndarray:
    """Tokens that rows are padded to: no fewer than `longest`, and the part's tokens a multiple of `ROWS`."""
    multiple = ROWS // np.gcd(n_rows, ROWS)
    return -(-longest // multiple) * multiple


def split_by_length(lengths: np.ndarray, max_tokens: int = PART_TOKENS, overhead: int = PART_OVERHEAD) -> list:
    """Cut a batch into parts of like lengths so that the least time goes into padding and into parts.

    Args:
        lengths: (rows,) tokens in each row.
        max_tokens: of a part, padding counted; a longer row makes a part of its own.
        overhead: what a part costs beside its tokens, counted in tokens.

    Returns:
        Arrays of indices into `lengths`, each row in one of them; of all cuts of the rows in order of length the
        one with the least sum of tokens, padding counted (`padded_length`), and overhead.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    least, first = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):  # the cheapest cut of the shortest `end` rows
        n_rows = np.arange(end, 0, -1)  # of a last part that begins at 0, 1, ...
        tokens = n_rows * padded_length(n_rows, ordered[end - 1])
        costs = least[:end] + tokens + overhead
        costs[:-1][tokens[:-1] > max_tokens] = np.inf
        first[end] = costs.argmin()
        least[end] = costs.min()
    parts, end = [], len(order)
    while end:
        parts.append(order[first[end] : end])
        end = first[end]
    return parts


def micro_batch(features, rows: np.ndarray, device: torch.device, **limits) -> list[tuple[dict, float]]:
    """What this process has to compute of a micro-batch: parts, each with its share of the micro-batch's rows.

    Args:
        features: the data set, with `lengths`, `longest` and `batch(rows, length)`; labels as the model counts them.
        rows: numbers of the micro-batch's rows, those of all processes.
        device: where the tensors go.
        limits: of the parts, for `split_by_length`.

    Returns:
        (tensors, share) pairs. The sum of the parts' mean losses, each times its share, over all processes is the
        micro-batch's mean loss, whatever the number of processes and however few the rows.
    """
    lengths = features.lengths[rows]
    by_length = np.argsort(lengths, kind="stable")
    mine = by_length[rank() :: n_processes()]  # every process gets as many long rows as short ones
    n_rows = len(rows)
    if len(mine) == 0:  # a share of nothing, so that this process, too, has gradients to add up
        mine, n_rows = by_length[:1], math.inf
    # A GPU is quicker with one large part: there the time goes into starting kernels.
    parts = split_by_length(lengths[mine], **limits) if device.type == "cpu" else [np.arange(len(mine))]
    shares = []
    for part in parts:
        longest = int(lengths[mine[part]].max())
        if device.type == "cpu":  # but not beyond what the model has positions for
            longest = max(longest, min(padded_length(len(part), longest), features.longest))
        tensors = features.batch(rows[mine[part]], longest)
        if device.type == "cuda":  # copied while the GPU works on what came before
            tensors = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
        shares.append((tensors, len(part) / n_rows))
    return shares


def train_batches(n_rows: int, batch_size: int, accumulation: int, seed: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """For each optimiser step, for ever: (epoch, list of micro-batches of row numbers, (rows,) int64 each).

    The order of an epoch follows from the seed and the epoch alone. The last micro-batch may be
    smaller; micro-batches left over at an epoch's end, too few for a step, are dropped.
    """
    epoch = 0
    while True:
        # Mixed, not added: or epoch 1 of one seed would be epoch 0 of the next.
        epoch_seed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(epoch_seed[0] >> 1))
        rows = torch.randperm(n_rows, generator=generator).numpy()
        rows = [rows[start : start + batch_size] for start in range(0, n_rows, batch_size)]
        for start in range(0, len(rows) - accumulation + 1, accumulation):
            yield epoch, rows[start : start + accumulation]
        epoch += 1
