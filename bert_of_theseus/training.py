"""One optimiser step of the method, the state that it moves, and the order in which the data come.

Where it changes results this follows the 2020 release: gradients are zeroed, not removed. The norm that is clipped is
that of the trained parameters; the release counted the gradients of the frozen ones too.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from bert_of_theseus.cpu_kernels import ROWS
from bert_of_theseus.data_parallel import add_up, add_up_gradients, n_processes, rank
from bert_of_theseus.theseus_layers import TheseusLayers, find_layers


class LossError(ValueError):
    """A loss, or a trained weight, that is not a finite number; the message names the step."""


@dataclass
class TrainState:
    """All that moves in training. Resuming a run is loading it.

    Attributes:
        model: that is trained; its parameters that require gradients are all that changes of it.
        layers: the model's `TheseusLayers`; None where it is fine-tuned.
        optimizer: of those parameters.
        lr_schedule, rate_schedule: of the learning rate and of the replacing rate (None where it is fine-tuned).
        scaler: of mixed precision with float16; elsewhere one that is not enabled.
        n_steps: optimiser steps of the whole training.
        step: optimiser steps made.
        seconds: that they took.
        losses: sum and number of the steps' losses since the last `take_mean_loss`, this process's share.
    """

    model: torch.nn.Module
    layers: TheseusLayers | None
    optimizer: torch.optim.Optimizer
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    rate_schedule: object | None
    scaler: torch.amp.GradScaler
    n_steps: int
    step: int = 0
    seconds: float = 0.0
    losses: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    def __post_init__(self):
        self.losses = self.losses.to(self.device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def rates(self) -> dict[str, float]:
        """The learning rate and the replacing rate in force, under their names in the log."""
        rates = {"learning_rate": self.lr_schedule.get_last_lr()[0]}
        return rates | ({"replacing_rate": self.layers.replacing_rate} if self.layers else {})

    def take_mean_loss(self) -> float | None:
        """The mean loss since the last call, over all processes; None where no step had a loss. All must call it."""
        total, count = add_up(self.losses[:1].clone()).item(), self.losses[1].item()
        self.losses.zero_()
        return total / count if count else None

    def check_losses(self) -> None:
        """LossError, in all processes, where a loss since the last `take_mean_loss` is not a finite number."""
        if add_up((~self.losses[:1].isfinite()).float()).item():
            raise LossError(
                f"the loss is not a finite number at or shortly before step {self.step}: the learning rate may be too "
                "high"
            )

    def check_weights(self) -> None:
        """LossError where a trained weight is not a finite number. A finite loss can have gradients that are not."""
        if not torch.stack([p.isfinite().all() for p in self.trained().values()]).all():  # the same in all processes
            raise LossError(
                f"after step {self.step} some weights are not finite numbers, and are not saved: the learning rate may "
                "be too high"
            )

    def state_dict(self) -> dict:
        """What resuming needs and is the same in all processes: tensors, numbers and text."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "weights": {name: p.detach() for name, p in self.trained().items()},
            # A gradient of zeros is not a missing one: Adam makes a step with it.
            "with_gradient": [name for name, p in self.trained().items() if p.grad is not None],
            "optimizer": self.optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "rate_schedule": self.rate_schedule.state_dict() if self.rate_schedule else None,
            "scaler": self.scaler.state_dict(),
            "draws": self.layers.generator.get_state() if self.layers else None,
        }

    def own_state_dict(self) -> dict:
        """What resuming needs of this process: its random state and its share of the losses."""
        cuda = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        return {"random": torch.get_rng_state(), "cuda_random": cuda, "losses": self.losses.cpu()}

    def load_state_dict(self, state: dict, own_state: dict) -> None:
        """Continue from what `state_dict` and `own_state_dict` of such a state gave."""
        self.step, self.seconds = state["step"], state["seconds"]
        trained = self.trained()
        with torch.no_grad():
            for name, weight in state["weights"].items():
                trained[name].copy_(weight)
        for name in state["with_gradient"]:
            trained[name].grad = torch.zeros_like(trained[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.layers:
            self.rate_schedule.load_state_dict(state["rate_schedule"])
            self.layers.generator.set_state(state["draws"])
        torch.set_rng_state(own_state["random"])
        if own_state["cuda_random"] is not None:
            torch.cuda.set_rng_state(own_state["cuda_random"])
        self.losses.copy_(own_state["losses"])


def train_step(
    state: TrainState,
    micro_batches: list[list[tuple[dict, float]]],
    max_grad_norm: float = 1.0,
    autocast_dtype: torch.dtype | None = None,
) -> torch.Tensor | None:
    """Make one optimiser step, with the model in training mode.

    Each micro-batch has one draw, which its parts and all processes share. Where no module is drawn nothing can be
    learned, so the passes are left out. If that is so in all micro-batches, the optimiser steps on zeroed gradients.

    Args:
        state: its `step` and `losses` are counted on.
        micro_batches: of (tensors, share) pairs, as `micro_batch` makes them.
        max_grad_norm: to which the gradients of the trained parameters are clipped.
        autocast_dtype: of mixed precision.

    Returns:
        The mean loss over the micro-batches that had a module drawn, of which this process has its share; None where
        there were none.
    """
    layers, n_drawn = state.layers, 0
    total = torch.zeros((), device=state.device)
    for parts in micro_batches:
        replaced = layers.draw_replacements() if layers else [True]
        if not any(replaced):
            continue
        n_drawn += 1
        if layers:
            layers.fix_draw(replaced)
        for tensors, share in parts:
            with torch.autocast(state.device.type, autocast_dtype, enabled=autocast_dtype is not None):
                loss = state.model(**tensors).loss * share
            state.scaler.scale(loss / len(micro_batches)).backward()
            total += loss.detach()
    if layers:
        layers.fix_draw(None)
    loss = total / n_drawn if n_drawn else None
    move_weights(state, loss, max_grad_norm)
    state.lr_schedule.step()
    if state.rate_schedule:
        state.rate_schedule.step()
    state.step += 1
    return loss


def move_weights(state: TrainState, loss: torch.Tensor | None, max_grad_norm: float) -> None:
    """Let the optimiser step, on the gradients of a loss or, where there is None, on zeroed ones; and zero them."""
    if loss is not None:
        trained = [p for group in state.optimizer.param_groups for p in group["params"]]
        add_up_gradients(trained)
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.losses += torch.stack([loss, torch.ones_like(loss)])
    else:
        # Without the scaler: it has nothing to unscale, and after a resume it does not know its scale yet.
        state.optimizer.step()
    # Zeroed, not set to None, as in the 2020 release: a layer that has been drawn before and is not drawn now
    # still takes an Adam step, on its momentum.
    state.optimizer.zero_grad(set_to_none=False)


def enable_gradient_checkpointing(model: torch.nn.Module) -> None:
    """Compute activations twice instead of keeping them; ValueError where the model cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the only name that old and new transformers share
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each layer, of predecessor and successor; ValueError where the model has no one list of layers."""
    layers = next((module for module in model.modules() if isinstance(module, TheseusLayers)), None)
    compiled = [*layers.predecessor, *layers.successor] if layers else model.get_submodule(find_layers(model))
    for layer in compiled:
        layer.compile(dynamic=True)


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
