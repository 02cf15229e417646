#!/usr/bin/env python
"""Compress with one thing changed that run_glue.py does not offer, to see what it is worth.

    ablate.py VARIANT ARGUMENT OF run_glue.py ...

  all-trained          the predecessor's first layers fine-tuned, with embeddings and head, and nothing replaced
  pretrained-layers    the same with all weights those of --pretrained_model, and a new head
  falling              the linear schedule backwards in time: from 1 down to the positive --replacing_rate
  missing-gradients    gradients removed, not zeroed: where a layer is not drawn the optimiser leaves it alone
  every-second-layer   each successor layer starts as its module's first layer, so of 6 as layers 0, 2, 4, not 0, 1, 2

The first two need no --replacing_rate. All write what run_glue.py writes, resume as it does, and hold the successor
against the predecessor, --model_name_or_path.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from command_line import OneLineParser, log_plainly

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import transformers

import run_glue
from bert_of_theseus import compress
from bert_of_theseus.classifier import Loaded, UserError, load_model
from bert_of_theseus.training_state import Parts
from glue_processors import Task
from replacement_scheduler import ReplacementScheduler

logger = logging.getLogger("ablate")


class FallingReplacementScheduler(ReplacementScheduler):
    """The linear schedule backwards in time: `p_t = min(1, k * (n_steps - 1 - t) + floor)`.

    Args:
        layers: the `TheseusLayers` of the model.
        floor: the rate of the last step, in (0, 1].
        k: what the rate loses in each optimiser step while it falls, at least 0.
        n_steps: of the training, at least 1.
    """

    def __init__(self, layers, floor: float, k: float, n_steps: int):
        self.floor, self.k, self.n_steps = floor, k, n_steps
        super().__init__(layers, self.replacing_rate_at(0))

    def replacing_rate_at(self, steps: int) -> float:
        return min(1.0, self.k * max(0, self.n_steps - 1 - steps) + self.floor)


# Each variant is a `build` for run_glue.main: it makes of a loaded model what is trained.


def all_trained(args: argparse.Namespace, task: Task, loaded: Loaded, n_steps: int) -> Parts:
    """The predecessor's first layers fine-tuned, with embeddings and head; nothing is replaced."""
    layers = compress(loaded.model, args.scc_n_layer, args.seed)
    loaded.model.requires_grad_(True)
    layers.predecessor.requires_grad_(False)
    return run_glue.make_parts(args, loaded.model, layers, n_steps)


def pretrained_layers(args: argparse.Namespace, task: Task, loaded: Loaded, n_steps: int) -> Parts:
    """The pre-trained model's first layers fine-tuned, with embeddings and a new head; nothing is replaced."""
    transformers.set_seed(args.seed)  # of the new head
    options = run_glue.model_options(args)
    pretrained = load_model(args.pretrained_model, task.labels, True, **options).model
    try:
        loaded.model.load_state_dict(pretrained.state_dict())
    except RuntimeError as error:
        raise UserError(f"--pretrained_model {args.pretrained_model}: not what the predecessor was made of") from error
    return all_trained(args, task, loaded, n_steps)


def falling(args: argparse.Namespace, task: Task, loaded: Loaded, n_steps: int) -> Parts:
    """The rate's schedule below, backwards in time."""
    parts = run_glue.build(args, task, loaded, n_steps)
    floor, k = args.replacing_rate, args.scheduler_linear_k
    parts.schedulers[-1] = FallingReplacementScheduler(parts.layers, floor, k, n_steps)
    return parts


def missing_gradients(args: argparse.Namespace, task: Task, loaded: Loaded, n_steps: int) -> Parts:
    """Gradients are removed, not zeroed."""
    parts = run_glue.build(args, task, loaded, n_steps)

    def remove_zeros(optimizer: torch.optim.Optimizer, *_) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        there = torch.stack([p.grad.any() for p in trained]).tolist() if trained else []  # waits for a GPU once
        for p, is_there in zip(trained, there, strict=True):
            if not is_there:
                p.grad = None

    parts.optimizer.register_step_pre_hook(remove_zeros)
    return parts


def every_second_layer(args: argparse.Namespace, task: Task, loaded: Loaded, n_steps: int) -> Parts:
    """Successor layers start as the first of each module."""
    parts = run_glue.build(args, task, loaded, n_steps)
    predecessor, successor = parts.layers.predecessor, parts.layers.successor
    for i, layer in enumerate(successor):
        layer.load_state_dict(predecessor[i * len(predecessor) // len(successor)].state_dict())
    return parts


VARIANTS: dict[str, Callable] = {
    "all-trained": all_trained,
    "pretrained-layers": pretrained_layers,
    "falling": falling,
    "missing-gradients": missing_gradients,
    "every-second-layer": every_second_layer,
}
FINE_TUNED = ("all-trained", "pretrained-layers")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of run_glue.py, `variant` and `pretrained_model`."""
    parser = OneLineParser(prog="ablate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("variant", choices=VARIANTS, metavar="VARIANT", help="one of the above")
    parser.add_argument("--pretrained_model", help="pretrained-layers: what the predecessor was fine-tuned from")
    own, others = parser.parse_known_args(argv)
    if (own.variant == "pretrained-layers") != bool(own.pretrained_model):
        parser.error("--pretrained_model is for pretrained-layers, which needs it")
    if own.variant in FINE_TUNED:
        others = ["--replacing_rate", "1", "--steps_for_replacing", "1", *others]
    args = run_glue.parse_args(others)
    if not args.do_train or args.replacing_rate is None:
        parser.error("a variant is of a compression: give --do_train and --replacing_rate")
    if own.variant in FINE_TUNED and args.replacing_rate != 1:
        parser.error(f"--replacing_rate is not for {own.variant}, which replaces nothing")
    if own.variant == "falling" and args.scheduler_type != "linear":
        parser.error("falling is the linear schedule backwards: give --scheduler_type linear")
    args.variant, args.pretrained_model = own.variant, own.pretrained_model
    return args


if __name__ == "__main__":
    ARGS = parse_args()
    run_glue.use_all_gpus(ARGS)
    log_plainly()
    logger.info("%-12s %s: %s", "Variant", ARGS.variant, VARIANTS[ARGS.variant].__doc__)
    run_glue.main(ARGS, VARIANTS[ARGS.variant])
