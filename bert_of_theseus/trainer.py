"""Progressive module replacing in the `Trainer` of transformers."""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from bert_of_theseus.theseus_layers import TheseusLayers, export_successor


class ReplacementCallback(TrainerCallback):
    """Compresses the `Trainer`'s model: `Trainer(model, args, ..., callbacks=[ReplacementCallback(scheduler)])`.

    After each optimiser step the schedule makes a step. Beside each checkpoint the successor is written as an ordinary
    model, with the Trainer's `processing_class`, to `checkpoint-N/successor`. A resumed training goes on with the same
    rate and the same draws. As in the 2020 release, a layer that has been drawn before and is not drawn now still
    moves, by its momentum; with `fp16`, whose scaler wants gradients in each step, this holds for all layers from the
    start.

    The lines of the log with a `loss` get the `replacing_rate` of the last step. What comes before this callback in the
    Trainer's list does not see it, and all that `report_to` names does: with `report_to="none"`, give
    `callbacks=[ReplacementCallback(scheduler), TensorBoardCallback()]`.

    Args:
        scheduler: of the replacing rate, made for the `TheseusLayers` that `compress` has put into the model.

    Raises:
        ValueError: by `train()`, where the scheduler's layers are not in the Trainer's model.
    """

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self._hook = None

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        layers = self.scheduler.layers
        _compressed(model, layers)
        self.scheduler.load_state_dict({"steps": state.global_step})
        anchor = torch.zeros(1, device=args.device, requires_grad=True)
        if args.world_size > 1:
            # Each pass must reach a trained parameter, or the processes do not add up what was accumulated before.
            anchor = list(layers.successor.parameters())[-1]
        self.on_train_end(args, state, control)  # of a training that an error has ended
        self._hook = layers.predecessor[-1].register_forward_hook(partial(_join_graph, anchor))
        _fill_gradients(optimizer, args.fp16)

    def on_step_end(self, args, state, control, optimizer, **kwargs):
        self.scheduler.step()
        _fill_gradients(optimizer, args.fp16)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            logs["replacing_rate"] = self.scheduler.replacing_rate_at(max(state.global_step - 1, 0))
            state.log_history[-1]["replacing_rate"] = logs["replacing_rate"]

    def on_save(self, args, state, control, model, processing_class=None, **kwargs):
        if not args.should_save:  # another process does
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / "successor"
        export_successor(_compressed(model, self.scheduler.layers)).save_pretrained(folder)
        if processing_class is not None:
            processing_class.save_pretrained(folder)

    def on_train_end(self, args, state, control, **kwargs):
        if self._hook:
            self._hook.remove()


def _compressed(model: nn.Module, layers: TheseusLayers) -> PreTrainedModel:
    """The model of transformers that holds the layers: `model` itself, or one in it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and any(part is layers for part in module.modules()):
            return module
    raise ValueError("the scheduler's layers are not in the Trainer's model: make it with what compress(model) returns")


def _join_graph(anchor: torch.Tensor, last_layer: nn.Module, inputs: tuple, output: torch.Tensor | tuple):
    """The layer's output, in a graph even where no module has been drawn: the Trainer calls `backward` in any case."""

    def joined(part):
        lacks_graph = isinstance(part, torch.Tensor) and part.is_floating_point() and not part.requires_grad
        return part + 0 * anchor.to(part).sum() if lacks_graph else part

    return tuple(map(joined, output)) if isinstance(output, tuple) else joined(output)


def _fill_gradients(optimizer: torch.optim.Optimizer, everywhere: bool) -> None:
    """Zeros for the gradients that the Trainer removes, so that Adam makes a step with them."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad and p.grad is None and (everywhere or optimizer.state.get(p)):
                p.grad = torch.zeros_like(p)
