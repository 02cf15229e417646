"""One optimiser step of the method, and the order in which the data come.

Where it changes results this follows the 2020 release: gradients are zeroed, not removed, and what is
clipped is the norm over the trained parameters.
"""

import numpy as np
import torch

from bert_of_theseus.theseus_layers import TheseusLayers


def optimizer_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters, in AdamW's groups: no weight decay on biases and LayerNorm weights."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.dim() > 1}
    return [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]


def train_step(
    model: torch.nn.Module,
    layers: TheseusLayers | None,
    micro_batches: list[dict],
    optimizer: torch.optim.Optimizer,
    schedulers: list,
    max_grad_norm: float,
    scaler: torch.amp.GradScaler,
    autocast_dtype: torch.dtype | None = None,
) -> torch.Tensor | None:
    """One optimiser step on micro-batches of tensors on the model's device, the model in training mode.

    Where no module is drawn in any micro-batch nothing can be learned: the passes are left out, and
    the optimiser runs on zeroed gradients.

    Returns:
        The mean loss, or None where the passes were left out.
    """
    draws = [layers.draw_replacements() for _ in micro_batches] if layers else [[True]] * len(micro_batches)
    total = None
    if any(map(any, draws)):
        total = 0.0
        for batch, draw in zip(micro_batches, draws, strict=True):
            if layers:
                layers.fix_draw(draw)
            # Without a drawn module the loss depends on nothing that is trained: it is computed for the log.
            with (
                torch.set_grad_enabled(any(draw)),
                torch.autocast(batch["input_ids"].device.type, autocast_dtype, enabled=autocast_dtype is not None),
            ):
                loss = model(**batch).loss / len(micro_batches)
            if any(draw):
                scaler.scale(loss).backward()
            total += loss.detach()
        if layers:
            layers.fix_draw(None)

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.grad is not None for p in trained):
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
    return total


def train_batches(n_rows: int, batch_size: int, accumulation: int, seed: int):
    """For each optimiser step, for ever: (epoch, list of micro-batches of row numbers).

    The order of an epoch follows from the seed and the epoch alone. The last micro-batch may be
    smaller; micro-batches left over at an epoch's end, too few for a step, are dropped.
    """
    epoch = 0
    while True:
        # Mixed, not added: or epoch 1 of one seed would be epoch 0 of the next.
        epoch_seed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(epoch_seed[0] >> 1))
        rows = torch.randperm(n_rows, generator=generator).split(batch_size)
        for start in range(0, len(rows) - accumulation + 1, accumulation):
            yield epoch, rows[start : start + accumulation]
        epoch += 1
