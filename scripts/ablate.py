#!/usr/bin/env python
"""Compress with one thing changed that run_glue.py does not offer, to see what it is worth.

    ablate.py VARIANT ARGUMENT OF run_glue.py ...

  all-trained          the predecessor's first layers fine-tuned, with embeddings and head, and nothing replaced
  distilled            the same with half of the loss from the predecessor's logits (Hinton et al., 2015: T = 2)
  pretrained-layers    as all-trained, with all weights those of --pretrained_model, and a new head
  anti-curriculum      1 minus the rate of the linear schedule (table 6 of the paper): in the end nothing is drawn
  missing-gradients    gradients removed, not zeroed: the optimiser does not move a layer that is not drawn
  every-second-layer   each successor layer starts as the first layer of its module: of 6 as layers 0, 2, 4

The first three need no --replacing_rate. All write what run_glue.py writes, resume as it does, and are compared with
the predecessor, --model_name_or_path.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import transformers
from torch.nn.functional import kl_div, log_softmax, mse_loss

import run_glue
from bert_of_theseus import compress, export_successor, load_successor
from bert_of_theseus.classifier import ModelSource, labels_of, load_classifier
from bert_of_theseus.run.command_line import OneLineParser, UserError
from bert_of_theseus.training import TrainState, finetune_whole
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler


class AntiCurriculumScheduler(LinearReplacementScheduler):
    """One less the rate of the linear schedule: `p_t = 1 - min(1, k * t + b)` (table 6 of the paper).

    Where that is 0 it is a rate at which no module is ever drawn, since `TheseusLayers` takes no 0.
    """

    def replacing_rate_at(self, steps: int) -> float:
        return max(1 - super().replacing_rate_at(steps), sys.float_info.min)

    def describe(self, n_steps: int) -> str:
        first, last = (round(self.replacing_rate_at(step), 6) for step in (0, n_steps - 1))
        return f"falling linearly, by {self.k:g} a step, from {first:g} to {last:g} at the end"


# A variant is a function that changes the state before training starts.


def all_trained(args: argparse.Namespace, state: TrainState) -> None:
    """The predecessor's first layers are fine-tuned, with embeddings and head; nothing is replaced."""
    state.rate_schedule = ConstantReplacementScheduler(state.layers, 1.0)
    finetune_whole(state, partial(run_glue.new_optimizer, args))


TEMPERATURE = 2.0


def distilled(args: argparse.Namespace, state: TrainState) -> None:
    """As all-trained, with half of the loss from the predecessor's logits."""
    all_trained(args, state)
    source = ModelSource(args.model_name_or_path, args.config_name, args.tokenizer_name, args.cache_dir)
    predecessor = load_classifier(source, labels_of(state.model.config), max_seq_length=args.max_seq_length).model
    predecessor.requires_grad_(False).eval().to(state.device)

    def loss_of(model: torch.nn.Module, tensors: dict) -> torch.Tensor:
        output = model(**tensors)
        theirs = predecessor(**{name: tensor for name, tensor in tensors.items() if name != "labels"}).logits
        return (output.loss + distillation_loss(output.logits, theirs)) / 2

    state.loss_of = loss_of


def distillation_loss(logits: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The mean over the rows: of scores (rows, 1) the squared difference, of (rows, labels) the divergence times T²."""
    if logits.shape[1] == 1:
        return mse_loss(logits, theirs)
    p, q = (log_softmax(of.float() / TEMPERATURE, dim=1) for of in (theirs, logits))
    return TEMPERATURE**2 * kl_div(q, p, reduction="batchmean", log_target=True)


def pretrained_layers(args: argparse.Namespace, state: TrainState) -> None:
    """The pre-trained model's first layers are fine-tuned, with embeddings and a new head; nothing is replaced."""
    transformers.set_seed(args.seed)  # of the new head
    source, labels = ModelSource(args.pretrained_model, cache_dir=args.cache_dir), labels_of(state.model.config)
    pretrained = load_classifier(source, labels, new_head=True, max_seq_length=args.max_seq_length)
    try:
        layers = compress(pretrained.model, len(state.layers.successor))
        if len(layers.predecessor) != len(state.layers.predecessor):
            raise ValueError("another number of layers")
        load_successor(state.model, export_successor(pretrained.model))
    except ValueError as error:
        raise UserError(f"--pretrained_model {args.pretrained_model}: not what the predecessor was made of") from error
    all_trained(args, state)


def anti_curriculum(args: argparse.Namespace, state: TrainState) -> None:
    """The rate is 1 minus that of the linear schedule."""
    state.rate_schedule = AntiCurriculumScheduler(state.layers, args.replacing_rate, args.scheduler_linear_k)


def missing_gradients(args: argparse.Namespace, state: TrainState) -> None:
    """Gradients are removed, not zeroed."""

    def remove_zeros(optimizer: torch.optim.Optimizer, *_) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        has_gradient = torch.stack([p.grad.any() for p in trained]).tolist() if trained else []
        for p, keep in zip(trained, has_gradient, strict=True):
            if not keep:
                p.grad = None

    state.optimizer.register_step_pre_hook(remove_zeros)


def every_second_layer(args: argparse.Namespace, state: TrainState) -> None:
    """Each successor layer starts as the first layer of its module."""
    predecessor, successor = state.layers.predecessor, state.layers.successor
    module_size = len(predecessor) // len(successor)
    for i, layer in enumerate(successor):
        layer.load_state_dict(predecessor[i * module_size].state_dict())


VARIANTS: dict[str, Callable[[argparse.Namespace, TrainState], None]] = {
    "all-trained": all_trained,
    "distilled": distilled,
    "pretrained-layers": pretrained_layers,
    "anti-curriculum": anti_curriculum,
    "missing-gradients": missing_gradients,
    "every-second-layer": every_second_layer,
}
FINE_TUNED = ("all-trained", "distilled", "pretrained-layers")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of run_glue.py, `variant` and `pretrained_model`."""
    parser = OneLineParser(prog="ablate.py", description=__doc__)
    parser.add_argument("variant", choices=VARIANTS, metavar="VARIANT", help="one of the above")
    parser.add_argument("--pretrained_model", help="pretrained-layers: what the predecessor was fine-tuned from")
    own, others = parser.parse_known_args(argv)
    if (own.variant == "pretrained-layers") != bool(own.pretrained_model):
        parser.error("--pretrained_model is for pretrained-layers, which needs it")
    if own.variant in FINE_TUNED:
        others = ["--replacing_rate", "1", "--steps_for_replacing", "1", *others]
    args = run_glue.parse_args(others)
    if not args.do_train or args.replacing_rate is None:
        parser.error("a variant changes a compression: give --do_train and --replacing_rate")
    if own.variant in FINE_TUNED and args.replacing_rate != 1:
        parser.error(f"--replacing_rate is not for {own.variant}, which replaces nothing")
    if own.variant in FINE_TUNED and args.scheduler_type != "none":
        parser.error(f"--scheduler_type is not for {own.variant}, which replaces nothing")
    if args.finetune_whole_successor and own.variant in (*FINE_TUNED, "missing-gradients"):
        parser.error(f"--finetune_whole_successor is not for {own.variant}, which changes what is optimised")
    if own.variant == "anti-curriculum" and args.scheduler_type != "linear":
        parser.error(f"{own.variant} is the linear schedule turned round: give --scheduler_type linear")
    args.variant, args.pretrained_model = own.variant, own.pretrained_model
    return args


if __name__ == "__main__":
    ARGS = parse_args()
    run_glue.start(ARGS, VARIANTS[ARGS.variant])
