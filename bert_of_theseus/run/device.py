"""The device of a run, and the settings of torch that go with it."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bert_of_theseus.run import processes
from bert_of_theseus.run.command_line import UserError


def choose_device(use_cuda: bool, fp16: bool, tf32: bool, deterministic: bool) -> torch.device:
    """This process's device; where torchrun has started several processes, they meet here.

    Raises:
        UserError: a precision needs a GPU and there is none, or there are fewer GPUs than processes.
    """
    use_cuda = use_cuda and torch.cuda.is_available()
    for flag, wanted in (("fp16", fp16), ("tf32", tf32)):
        if wanted and not use_cuda:
            raise UserError(f"--{flag} needs a GPU; on a CPU, leave it out or try --bf16")
    if tf32:
        torch.set_float32_matmul_precision("high")
    if deterministic and use_cuda:  # a CPU always is
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    return processes.join(use_cuda)


def first_device(use_cuda: bool) -> torch.device:
    """The device of what needs only one: the first GPU or, where there is none or it is not wanted, the CPU."""
    return torch.device("cuda" if use_cuda and torch.cuda.is_available() else "cpu")


@contextmanager
def enough_memory() -> Iterator[None]:
    """UserError, with what to do, where the block needs more memory than the GPU has."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = (
            "lower the batch size; in training, --gradient_accumulation_steps and --gradient_checkpointing help too"
        )
        raise UserError(f"{error} -- {advice}") from error


def device_name(device: torch.device) -> str:
    """The part of a device that decides the last digits of results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n_threads = torch.get_num_threads()
    return f"{processor_name()}, {n_threads} thread{'s' * (n_threads > 1)}"


def processor_name() -> str:
    """The model of the processor, or where the system does not tell it, its kind, as x86_64."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        fields = []
    return next((value.strip() for name, value in fields if name.strip() == "model name"), platform.machine())
