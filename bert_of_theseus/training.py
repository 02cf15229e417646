"""One optimiser step of the method, and the state that it moves.

Where it changes results this follows the 2020 release: gradients are zeroed, not removed. The norm that is clipped is
that of the trained parameters; the release counted the gradients of the frozen ones too.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bert_of_theseus.data_parallel import add_up, add_up_gradients
from bert_of_theseus.theseus_layers import TheseusLayers, find_layers


class LossError(ValueError):
    """A loss, or a trained weight, that is not a finite number; the message names the step."""


def task_loss(model: torch.nn.Module, tensors: dict) -> torch.Tensor:
    """The mean loss over a batch's rows, as the model itself computes it from their labels: that of the task alone."""
    return model(**tensors).loss


@dataclass
class TrainState:
    """All that moves in training. Resuming a run is loading it.

    Attributes:
        model: the model; only its parameters that require gradients change.
        layers: the model's `TheseusLayers`; None where it is fine-tuned.
        optimizer: of those parameters.
        lr_schedule, rate_schedule: of the learning rate and of the replacing rate (None where it is fine-tuned).
        scaler: of mixed precision with float16; elsewhere one that is not enabled.
        n_steps: optimiser steps of the whole training.
        step: optimiser steps made.
        seconds: that they took.
        losses: sum and number of the steps' losses since the last `take_mean_loss`, this process's share.
        loss_of: what is minimised, as `loss_of(model, tensors)`: the mean over the rows of a batch.
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
    loss_of: Callable[[torch.nn.Module, dict], torch.Tensor] = task_loss

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

    def steps_with_predecessor(self) -> int:
        """The steps before the replacing rate is 1 and the successor trains alone: all, where it never does.

        Without replacing there are none.
        """
        if self.layers is None:
            return 0
        alone_from = self.rate_schedule.full_replacement_step(self.n_steps)
        return self.n_steps if alone_from is None else alone_from - 1

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
                loss = state.loss_of(state.model, tensors) * share
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


def finetune_whole(state: TrainState, new_optimizer: Callable) -> None:
    """Let embeddings, pooler and head of the successor learn too, in the steps that it makes alone.

    Section 3.1 of the paper freezes them while modules are replaced; section 3.2 then fine-tunes the successor.

    Args:
        new_optimizer: makes, as `new_optimizer(model, n_steps)`, the optimiser and the schedule of its learning rate.
    """
    state.model.requires_grad_(True)
    state.layers.predecessor.requires_grad_(False)
    n_steps = state.n_steps - state.steps_with_predecessor()
    state.optimizer, state.lr_schedule = new_optimizer(state.model, n_steps)


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
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
