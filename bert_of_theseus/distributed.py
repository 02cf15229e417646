"""Processes that train as one, started by torchrun: who they are, and all that they tell each other.

Without torchrun there is one process, and every function here does nothing.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

_between_cpus: dist.ProcessGroup | None = None  # None stands for the one group that there is


def is_launched() -> bool:
    """Whether torchrun has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def launched_rank() -> int:
    """What `rank` will be once this process has joined the others."""
    return int(os.environ["RANK"]) if is_launched() else 0


def join(use_cuda: bool) -> torch.device:
    """Meet the other processes, if torchrun started several; returns the device that is this one's.

    On GPUs they talk by NCCL, each process with a GPU of its own; on CPUs by gloo.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "start as many as there are (torchrun --nproc_per_node)"
            )
        torch.cuda.set_device(device)
    if is_launched():
        dist.init_process_group("nccl" if use_cuda else "gloo", device_id=device if use_cuda else None)
        if use_cuda:  # what is not on a GPU is told without one: the GPUs' work goes on meanwhile
            global _between_cpus
            _between_cpus = dist.new_group(backend="gloo")
    return device


def leave() -> None:
    """Part from the other processes, once all of them are done: torchrun ends them all when one fails to end well."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def failing_together() -> Iterator[None]:
    """Where a process fails all end, and each error is told once.

    Raises:
        ConnectionError: another process has ended, and tells why itself, or cannot be reached.
    """
    try:
        yield
    except Exception as error:
        if launched_rank() > 0:
            # What all processes meet is the main one's to tell: torchrun ends this one when that one has failed.
            time.sleep(5)
        if isinstance(error, RuntimeError) and dist.is_initialized() and _is_about_connections(error):
            raise ConnectionError(f"lost the other processes of this run: {str(error).splitlines()[0]}") from error
        raise


def _is_about_connections(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def rank() -> int:
    """The number of this process; 0 is the main one, the only one to write files."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block, then the others do, which find what it has written."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def from_main(value):
    """The main process's value, on all processes: for what they must not each decide by themselves."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def largest(value: float) -> float:
    """The largest of what the processes give."""
    if not dist.is_initialized():
        return value
    together = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(together, dist.ReduceOp.MAX, _between_cpus)
    return together.item()


def gather(value) -> list:
    """What each process gives, by rank."""
    values = [value]
    if dist.is_initialized():
        values *= n_processes()
        dist.all_gather_object(values, value, _between_cpus)
    return values


def share_weights(model: torch.nn.Module) -> None:
    """Give all processes the main one's parameters and buffers, as what each has loaded may differ."""
    if dist.is_initialized():
        with torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' tensors, in place, the same to the bit on all of them."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def add_up_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes, which must have them for the same parameters, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not dist.is_initialized() or not gradients:
        return
    together = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, summed in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
