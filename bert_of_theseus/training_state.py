"""What a run needs to go on, beside its weights: in one file of tensors and JSON, that can hold no code.

It holds the optimiser's moments, which parameters have a gradient, the schedules, the scaler, the generator of the
draws, each process's random state, and whatever figures the caller adds.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bert_of_theseus.distributed import gather, rank
from bert_of_theseus.theseus_layers import TheseusLayers

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # Adam's, of each parameter


class Parts(NamedTuple):
    """The objects whose state it is.

    Attributes:
        optimizer: over the trained parameters.
        schedulers: with `state_dict()` of plain numbers.
        scaler: of mixed precision, or one that is not enabled.
        layers: of the model; None where it is fine-tuned.
    """

    optimizer: torch.optim.Optimizer
    schedulers: Sequence
    scaler: torch.amp.GradScaler
    layers: TheseusLayers | None

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def collect(parts: Parts, losses: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict]:
    """The state as (tensors, figures), the same in all processes, each of which must call this.

    Args:
        parts: the objects; the tensors may be their own.
        losses: (steps,) float32, this process's own, with which its random state goes.
    """
    optimizer = parts.optimizer.state_dict()
    tensors = {
        f"optimizer.{number}.{name}": value
        for number, state in optimizer["state"].items()
        for name, value in state.items()
    }
    if parts.layers:
        tensors["draws"] = parts.layers.generator.get_state()
    own = {"losses": losses.cpu(), "random": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        own["cuda_random"] = torch.cuda.get_rng_state()
    for process, its in enumerate(gather(own)):
        tensors |= {f"process.{process}.{name}": value for name, value in its.items()}
    figures = {
        "param_groups": optimizer["param_groups"],
        # Zeroed gradients are not none: Adam moves on with them.
        "with_gradient": [number for number, p in enumerate(parts.parameters()) if p.grad is not None],
        "schedulers": [scheduler.state_dict() for scheduler in parts.schedulers],
        "scaler": parts.scaler.state_dict(),
        "weights_sha256": _sha256(dict(enumerate(parts.parameters()))),
    }
    return tensors, figures


def restore(parts: Parts, tensors: dict[str, torch.Tensor], figures: dict) -> torch.Tensor:
    """Put the objects, and this process's random state, into the state of `collect`; their weights are there already.

    Returns:
        This process's losses.

    Raises:
        ValueError: it is not the state of such objects.
    """
    own = f"process.{rank()}."
    try:
        parameters = parts.parameters()
        if figures["weights_sha256"] != _sha256(dict(enumerate(parameters))):
            raise ValueError("the weights beside it are not those that were saved with it")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                shape = () if name == "step" else parameters[int(number)].shape
                if value.shape != shape or value.dtype != torch.float32:
                    raise ValueError(f"{key} is {value.dtype} of shape {tuple(value.shape)}, not {tuple(shape)}")
                state.setdefault(int(number), {})[name] = value
        if any(its.keys() != MOMENTS for its in state.values()):
            raise ValueError("not all moments of a parameter are there")
        groups = parts.optimizer.state_dict()["param_groups"]
        _check_alike(figures["param_groups"], groups)
        for group, its in zip(groups, figures["param_groups"], strict=True):
            group["lr"] = its["lr"]  # all else is as the run's arguments say
        parts.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for number in figures["with_gradient"]:
            parameters[number].grad = torch.zeros_like(parameters[number])
        for scheduler, its in zip(parts.schedulers, figures["schedulers"], strict=True):
            _check_alike(its, scheduler.state_dict())
            scheduler.load_state_dict(its)
        parts.scaler.load_state_dict(figures["scaler"])
        if parts.layers:
            parts.layers.generator.set_state(tensors["draws"])
        torch.set_rng_state(tensors[f"{own}random"])
        if f"{own}cuda_random" in tensors:
            torch.cuda.set_rng_state(tensors[f"{own}cuda_random"])
        losses = tensors[f"{own}losses"]
        if losses.dim() != 1 or losses.dtype != torch.float32:
            raise ValueError(f"the losses are {losses.dtype} of shape {tuple(losses.shape)}")
        return losses
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"not this run's state ({type(error).__name__}: {error})") from error


def _check_alike(saved, own) -> None:
    """ValueError where figures are not of the shape and kinds of one's own; numbers may differ, within all use."""
    inner = ()
    alike = type(saved) is type(own) or (isinstance(saved, list) and isinstance(own, tuple))
    if alike and isinstance(own, dict):
        alike, inner = saved.keys() == own.keys(), [(saved.get(name), own[name]) for name in own]
    elif alike and isinstance(own, list | tuple):
        alike, inner = len(saved) == len(own), zip(saved, own, strict=False)
    elif alike and isinstance(own, int | float):
        alike = 0 <= saved <= 10**15
    if not alike:
        raise ValueError(f"{str(saved)[:40]!r} is there in the place of {str(own)[:40]!r}")
    for its, ours in inner:
        _check_alike(its, ours)


def _sha256(tensors: dict, text: str = "") -> str:
    """A digest of a text, and of tensors under their names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(str(name).encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write(path: Path, tensors: dict[str, torch.Tensor], figures: dict) -> None:
    tensors, text = {name: value.contiguous() for name, value in tensors.items()}, json.dumps(figures)
    save_file(tensors, path, {"figures": text, "sha256": _sha256(tensors, text)})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The (tensors, figures) of `write`; ValueError where the file is damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            text, sha256 = (file.metadata()[name] for name in ("figures", "sha256"))
            # Copies: the tensors of safetensors are the file's own pages, which are gone once somebody cuts it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            if sha256 != _sha256(tensors, text):
                raise ValueError("its bytes are not those that were written")
            return tensors, json.loads(text)
    except Exception as error:  # whatever a damaged file makes safetensors raise
        raise ValueError(f"damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
