"""One optimiser step of the method, and the order in which the data come.

Where it changes results this follows the 2020 release: gradients are zeroed, not removed. What is clipped is
the norm over the trained parameters; the release counted the frozen ones' gradients too.
"""

import math

import numpy as np
import torch

from bert_of_theseus.cpu_kernels import ROWS
from bert_of_theseus.distributed import add_up, add_up_gradients, largest, n_processes, rank
from bert_of_theseus.theseus_layers import TheseusLayers


def optimizer_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters, in AdamW's groups: no weight decay on biases and LayerNorm weights."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.dim() > 1}
    return [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]


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


def micro_batch(features, rows: np.ndarray, pad_token_id: int, device: torch.device, outputs=None, **limits) -> list:
    """What this process has to compute of a micro-batch: parts, each with its share of the micro-batch's rows.

    Args:
        features: the data set, with `lengths`, `longest` and `batch(rows, pad_token_id, length)`.
        rows: numbers of the micro-batch's rows, those of all processes.
        pad_token_id: of the tokenizer.
        device: where the tensors go.
        outputs: (labels,) int64, the model's output for each label; None leaves `labels` as they are.
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
        tensors = features.batch(rows[mine[part]], pad_token_id, longest)
        if outputs is not None:
            tensors["labels"] = outputs[tensors["labels"]]
        if device.type == "cuda":  # copied while the GPU works on what came before
            tensors = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
        shares.append((tensors, len(part) / n_rows))
    return shares


def train_step(
    model: torch.nn.Module,
    layers: TheseusLayers | None,
    micro_batches: list[list[tuple[dict, float]]],
    optimizer: torch.optim.Optimizer,
    schedulers: list,
    max_grad_norm: float,
    scaler: torch.amp.GradScaler,
    autocast_dtype: torch.dtype | None = None,
) -> torch.Tensor | None:
    """One optimiser step, the model in training mode.

    Each micro-batch, a list of (tensors, share) pairs such as `micro_batch` makes, has a draw of its own, which all
    its parts and all processes share. Where no module is drawn nothing can be learned: the passes are left out, and
    if that is so in all micro-batches the optimiser runs on zeroed gradients.

    Returns:
        The mean loss over the micro-batches that had a module drawn, of which this process has its share; None where
        there were none.
    """
    device_type = next(model.parameters()).device.type
    total, n_drawn = 0.0, 0
    for parts in micro_batches:
        draw = layers.draw_replacements() if layers else [True]
        if not any(draw):
            continue
        n_drawn += 1
        if layers:
            layers.fix_draw(draw)
        for tensors, share in parts:
            with torch.autocast(device_type, autocast_dtype, enabled=autocast_dtype is not None):
                loss = model(**tensors).loss * share
            scaler.scale(loss / len(micro_batches)).backward()
            total += loss.detach()
    if layers:
        layers.fix_draw(None)

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.grad is not None for p in trained):
        if n_drawn:
            add_up_gradients(trained)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
    else:  # before the first draw; the scaler refuses a step without gradients
        optimizer.step()
    for scheduler in schedulers:
        scheduler.step()
    # Zeroed, not set to None: as in the 2020 release, a layer that is not drawn still takes an Adam
    # step, on its momentum, once it has been drawn for the first time.
    optimizer.zero_grad(set_to_none=False)
    return total / n_drawn if n_drawn else None


class LossError(ValueError):
    """A loss, or a weight, that is not a finite number; the message says of which step, and of which rows."""


def check_weights(model: torch.nn.Module, step: int) -> None:
    """LossError where a trained weight is not a finite number: a finite loss can have gradients that are not."""
    finite = [p.isfinite().all() for p in model.parameters() if p.requires_grad]
    if not torch.stack(finite).all():
        raise LossError(f"after step {step} there are weights that are not finite numbers; they are not saved")


class Losses:
    """The losses since the last log line, on the device they come from until they are asked for.

    Args:
        values: (steps,) float32, this process's shares of the losses of an earlier part of the run.
    """

    def __init__(self, values: torch.Tensor | None = None):
        self.values = [] if values is None else list(values)
        self._unchecked: list[tuple[int, list[np.ndarray], torch.Tensor]] = []

    def add(self, step: int, rows: list[np.ndarray], loss: torch.Tensor) -> None:
        """Take the loss of a step, and the numbers of its rows, by micro-batch."""
        self.values.append(loss)
        self._unchecked.append((step, rows, loss))

    def mean(self) -> float | None:
        """Over steps and processes, the same in all of them; None where no step had a loss."""
        return add_up(self.stacked().mean()).item() if self.values else None

    def stacked(self) -> torch.Tensor:
        return torch.stack(self.values) if self.values else torch.zeros(0)

    def check(self) -> None:
        """Wait for the device, in all processes, and raise LossError in all of them where a loss is not finite."""
        if not self._unchecked:
            return
        finite = torch.stack([loss for *_, loss in self._unchecked]).isfinite().tolist()
        from_end = int(largest(len(finite) - finite.index(False) if False in finite else 0))
        if from_end:
            step, rows, loss = self._unchecked[-from_end]
            numbers = ", ".join(map(str, sorted(np.concatenate(rows).tolist())))
            kind = "not a number" if loss.isnan() else "infinite" if loss.isinf() else "not finite in another process"
            raise LossError(
                f"the loss of step {step} is {kind}: the learning rate may be too high; its training rows, counted "
                f"from 0: {numbers}"
            )
        self._unchecked = []


def train_batches(n_rows: int, batch_size: int, accumulation: int, seed: int):
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
