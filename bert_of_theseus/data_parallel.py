"""Several processes that compute one batch together: which of them this is, and the sum over all.

Without torchrun there is one process, and a sum is its own value.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum the tensors of all processes, in place. All processes get the same bits."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def add_up_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes in one exchange. All must have gradients for the same parameters.

    `DistributedDataParallel` would exchange them by hooks during the backward pass, and would wait for the gradients
    of modules that are not drawn.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not dist.is_initialized() or not gradients:
        return
    summed = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
