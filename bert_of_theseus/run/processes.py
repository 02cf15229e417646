"""Processes that train as one, started by torchrun: they meet, agree, wait for each other, and part.

Without torchrun there is one process, which is the main one and agrees with itself.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from bert_of_theseus.run.command_line import UserError

_between_cpus: dist.ProcessGroup | None = None


def is_launched() -> bool:
    """Whether torchrun has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_main() -> bool:
    """Whether this is the one process that writes files, logs and prints."""
    return not is_launched() or int(os.environ["RANK"]) == 0


def use_all_gpus() -> None:
    """On a machine with several GPUs replace this process by torchrun with one process for each; else return."""
    command = launch_command(torch.cuda.device_count())
    if command:
        torchrun = " ".join(["torchrun", *command[2:]])
        print(f"Using all GPUs, as {torchrun} would; CUDA_VISIBLE_DEVICES=0 uses one", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *command, *sys.argv])


def launch_command(n_gpus: int) -> list[str]:
    """What Python is given to run a script in one process for each GPU; nothing where this process will do."""
    if n_gpus < 2 or is_launched():
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_gpus}"]


def join(use_cuda: bool) -> torch.device:
    """Meet the other processes, if torchrun has started several, and return this process's device.

    GPUs exchange tensors by NCCL, one GPU a process; CPUs by gloo.

    Raises:
        UserError: there are more processes on this machine than GPUs.
    """
    global _between_cpus
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "start as many as there are GPUs (torchrun --nproc_per_node)"
            )
        torch.cuda.set_device(device)
    if is_launched():
        dist.init_process_group("nccl" if use_cuda else "gloo", device_id=device if use_cuda else None)
        # For what is not on a GPU, so that nobody waits for the GPU's work; and the main process may tokenise for long.
        _between_cpus = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    return device


def leave() -> None:
    """Wait for the other processes, and part from them. If one ends earlier, torchrun ends all."""
    wait_for_all()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def failing_together() -> Iterator[None]:
    """If one process fails, let all end, and let each error be told once.

    Raises:
        ConnectionError: another process has ended, and tells why itself.
    """
    try:
        yield
    except Exception as error:
        if not is_main():
            # The main process tells the errors that all have; then torchrun ends this process.
            time.sleep(5)
        if isinstance(error, RuntimeError) and dist.is_initialized() and _is_about_connections(error):
            raise ConnectionError(f"lost the other processes of this run: {str(error).splitlines()[0]}") from error
        raise


def _is_about_connections(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier(_between_cpus)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the main process, then in the others, which find what it has written."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def on_main(function: Callable, *arguments):
    """Call the function in the main process alone. All processes get its result, or its UserError."""
    outcome = None
    if is_main():
        try:
            outcome = function(*arguments), None
        except UserError as error:
            outcome = None, str(error)
    if dist.is_initialized():
        outcomes = [outcome]
        dist.broadcast_object_list(outcomes, group=_between_cpus)
        outcome = outcomes[0]
    result, error = outcome
    if error is not None:
        raise UserError(error)
    return result


def largest(value: float) -> float:
    """The largest of the processes' values."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(shared, dist.ReduceOp.MAX, _between_cpus)
    return shared.item()


def gather(value) -> list:
    """The values of all processes, by rank."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value, _between_cpus)
    return values


def share_weights(model: torch.nn.Module) -> None:
    """Give all processes the main one's parameters and buffers: a new head is random."""
    if dist.is_initialized():
        with torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)
