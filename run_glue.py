#!/usr/bin/env python
"""Fine-tune a predecessor on a GLUE task, or compress it into a successor by progressive module replacing.

With --replacing_rate the model is compressed (BERT-of-Theseus, EMNLP 2020); without, it is fine-tuned.
"""

import argparse
import functools
import json
import logging
import math
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from glue_processors import TASKS, GlueDataError, find_task
from scripts.command_line import OneLineParser, above, aligned, at_least, log_plainly, one_line_errors

logger = logging.getLogger("run_glue")


# ------------------------------------------------------------------------------------------ arguments


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = OneLineParser(prog="run_glue.py", description=__doc__)

    group = parser.add_argument_group("what to run")
    add = group.add_argument
    tasks = [name for name, task in TASKS.items() if task.metrics]
    add("--task_name", required=True, metavar="TASK", help=f"{', '.join(tasks)}; in any case")
    add("--data_dir", required=True, help="folder with the task's .tsv files")
    add("--model_name_or_path", required=True, help="the model to start from: a folder or a name on the Hub")
    add("--output_dir", required=True, help="where the successor (or the fine-tuned model) and its checkpoints go")
    add("--do_train", action="store_true", help="train")
    add("--do_eval", action="store_true", help="evaluate on the dev set; without --do_train, what output_dir holds")
    add("--evaluate_during_training", action="store_true", help="evaluate every logging_steps, keep the best step")
    add("--eval_all_checkpoints", action="store_true", help="with --do_eval, evaluate every checkpoint-N as well")
    add("--overwrite_output_dir", action="store_true", help="replace the run that output_dir holds")
    add("--resume", action="store_true", help="go on with the run that output_dir holds, if it holds one")

    group = parser.add_argument_group("compression (none of it without --replacing_rate)")
    add = group.add_argument
    add("--replacing_rate", type=float, help="constant replacing rate, or the start of the linear schedule; in (0, 1]")
    add(
        "--scheduler_type", choices=["none", "linear"], default="none", help="how the rate moves (default: %(default)s)"
    )
    add(
        "--scheduler_linear_k",
        type=at_least(0, float),
        default=0,
        help="what the linear rate gains each optimiser step",
    )
    add("--steps_for_replacing", type=at_least(0), default=0, help="steps at the constant rate before it becomes 1")
    add("--scc_n_layer", type=at_least(1), help="layers of the successor (default: half of the predecessor's)")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--num_train_epochs", type=above(0), default=20.0, help="default: %(default)s")
    add("--max_steps", type=at_least(-1), default=-1, help="if above 0, train for exactly so many optimiser steps")
    add("--learning_rate", type=at_least(0, float), default=5e-5, help="default: %(default)s")
    add("--warmup_steps", type=at_least(0), default=0, help="steps of linear warm-up (default: %(default)s)")
    add(
        "--weight_decay",
        type=at_least(0, float),
        default=0.0,
        help="not on biases and LayerNorm (default: %(default)s)",
    )
    add("--adam_epsilon", type=at_least(0, float), default=1e-8, help="default: %(default)s")
    add(
        "--max_grad_norm",
        type=above(0),
        default=1.0,
        help="gradient clipping (default: %(default)s)",
    )
    add("--per_gpu_train_batch_size", type=at_least(1), default=8, help="per device (default: %(default)s)")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=8, help="per device (default: %(default)s)")
    add(
        "--gradient_accumulation_steps", type=at_least(1), default=1, help="micro-batches a step (default: %(default)s)"
    )
    add("--seed", type=at_least(0), default=42, help="default: %(default)s")
    add(
        "--logging_steps",
        type=at_least(0),
        default=50,
        help="optimiser steps; 0: the last only (default: %(default)s)",
    )
    add("--save_steps", type=at_least(0), default=50, help="optimiser steps; 0: never (default: %(default)s)")
    add("--save_total_limit", type=at_least(1), help="keep no more than so many checkpoint-N (default: all)")

    group = parser.add_argument_group("input")
    add = group.add_argument
    add("--max_seq_length", type=at_least(4), default=128, help="tokens; longer input is cut (default: %(default)s)")
    add("--do_lower_case", action="store_true", help="lower-case the text (default: as the tokenizer is set)")
    add("--config_name", default="", help="if not model_name_or_path")
    add("--tokenizer_name", default="", help="if not model_name_or_path")
    add("--cache_dir", default="", help="where downloaded models are kept")
    add("--overwrite_cache", action="store_true", help="tokenise anew")

    group = parser.add_argument_group("device")
    add = group.add_argument
    add("--no_cuda", action="store_true", help="use the CPU even where there are GPUs")
    add("--fp16", action="store_true", help="mixed precision with float16 (GPU)")
    add("--bf16", action="store_true", help="mixed precision with bfloat16")
    add("--tf32", action="store_true", help="matrix products in TensorFloat-32 (GPU)")
    add("--torch_compile", action="store_true", help="compile the layers, which is slow to start (GPU)")
    add("--gradient_checkpointing", action="store_true", help="less memory: activations are computed twice")
    add("--deterministic", action="store_true", help="the same weights from the same command on a GPU too; slower")

    group = parser.add_argument_group("accepted so that published commands run; without effect")
    add = group.add_argument
    add("--model_type", default="bert", help="the model's config decides")
    add("--fp16_opt_level", help="was for NVIDIA apex")
    add("--local_rank", type=int, default=-1, help="was set by the launcher")

    args = parser.parse_args(argv)
    try:
        task = find_task(args.task_name)
    except KeyError:
        parser.error(f"--task_name {args.task_name}: there is no such task; there are {', '.join(tasks)}")
    args.task_name = task.name
    if not task.metrics:
        parser.error(
            f"--task_name {task.name} has no labels to train or evaluate with; {task.predicted_by}'s model predicts it"
        )
    if not (args.do_train or args.do_eval):
        parser.error("nothing to do: give --do_train, --do_eval or both")
    if args.evaluate_during_training and not args.do_train:
        parser.error("--evaluate_during_training needs --do_train")
    if args.resume and not args.do_train:
        parser.error("--resume needs --do_train")
    if args.eval_all_checkpoints and not args.do_eval:
        parser.error("--eval_all_checkpoints needs --do_eval")
    if args.replacing_rate is None:
        for flag in ("scheduler_type", "scheduler_linear_k", "steps_for_replacing", "scc_n_layer"):
            if getattr(args, flag) != parser.get_default(flag):
                parser.error(f"--{flag} is for compression: give --replacing_rate too")
    elif not 0 < args.replacing_rate <= 1:
        parser.error(f"--replacing_rate is a probability in (0, 1], not {args.replacing_rate}")
    if args.seed >= 2**32:
        parser.error(f"--seed {args.seed} is not below 2**32")
    if args.fp16 and args.bf16:
        parser.error("--fp16 and --bf16 exclude each other")
    return args


def warn_about(args: argparse.Namespace) -> None:
    """Warn of flags that do something else than their user may think."""
    if args.fp16_opt_level is not None:
        logger.warning("--fp16_opt_level is ignored: --fp16 is torch's own mixed precision")
    if args.replacing_rate is None or not args.do_train:
        return
    if args.scheduler_type == "linear":
        if args.scheduler_linear_k == 0:
            logger.warning("--scheduler_linear_k is 0: the replacing rate stays at %g", args.replacing_rate)
        if args.steps_for_replacing:
            logger.warning("--steps_for_replacing is ignored: it is for a constant rate, this one is linear")
    else:
        if args.steps_for_replacing == 0:
            logger.warning(
                "--steps_for_replacing is 0: only the first step runs at replacing rate %g, all others at 1",
                args.replacing_rate,
            )
        if args.scheduler_linear_k:
            logger.warning("--scheduler_linear_k is ignored: the rate is constant without --scheduler_type linear")


if __name__ == "__main__":
    # Parsed before the heavy imports, so that --help and a mistyped flag answer at once.
    ARGS = parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to interrupt

# ruff: noqa: E402
import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from bert_of_theseus import (
    TheseusLayers,
    compress,
    distributed,
    export_successor,
    find_layers,
    load_successor,
    run_folder,
    run_record,
    successor_size,
    training_state,
)
from bert_of_theseus.classifier import BAR, Loaded, UserError, load_model, predict, takes_token_types
from bert_of_theseus.cpu_kernels import RETURN_EVERY, fast_kernels, return_freed_memory
from bert_of_theseus.files import readable_size, whole_files, whole_folder
from bert_of_theseus.model_card import model_card
from bert_of_theseus.run_log import RunLog
from bert_of_theseus.stopping import Stop, Stopped
from bert_of_theseus.training import (
    LossError,
    Losses,
    check_weights,
    micro_batch,
    optimizer_groups,
    train_batches,
    train_step,
)
from glue_processors import (
    Features,
    Task,
    cached_features,
    chance_score,
    compute_loyalty,
    compute_metrics,
    read_examples,
)
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler


def model_options(args: argparse.Namespace) -> dict:
    """The flags that say how a model is loaded, for `load_model`."""
    names = ("max_seq_length", "do_lower_case", "config_name", "tokenizer_name", "cache_dir")
    return {name: getattr(args, name) for name in names}


# ------------------------------------------------------------------------------------ evaluate


class Score(NamedTuple):
    metrics: dict[str, float]
    main: float  # the main metric
    seconds: float  # for the pass over the dev set
    loyalty: dict[str, float]  # of a successor to its predecessor

    def logged(self) -> dict[str, float]:
        """What was measured under the names that it has in the logs."""
        return {f"eval_{key}": value for key, value in (self.metrics | self.loyalty).items()}


@dataclass
class DevSets:
    """What a task's models are evaluated on; false where that is nothing."""

    features: dict[str, Features]  # by the name of the dev set's task
    predecessor: dict[str, np.ndarray] = field(default_factory=dict)  # its logits, once there are any

    def __bool__(self) -> bool:
        return bool(self.features)


def read_dev_sets(args: argparse.Namespace, task: Task) -> dict:
    """The examples of each dev set that the task is evaluated on, by task name."""
    names = task.dev_tasks or (task.name,)
    return {name: read_examples(TASKS[name], args.data_dir, "dev") for name in names}


def predict_dev(
    task: Task, loaded: Loaded, dev_sets: DevSets, batch_size: int, check: Callable = lambda: None
) -> tuple[dict[str, np.ndarray], float]:
    """The model's logits for each dev set, (rows, outputs) in the table's order of labels, and the seconds it took.

    `check` is called before each batch, and may raise an error.
    """
    logits, start = {}, time.perf_counter()
    for name, features in dev_sets.features.items():
        outputs = predict(loaded.model, features, batch_size, loaded.tokenizer.pad_token_id or 0, check).numpy()
        logits[name] = outputs[:, loaded.label_order] if task.labels else outputs
    return logits, time.perf_counter() - start


def score_logits(task: Task, dev_sets: DevSets, logits: dict[str, np.ndarray], seconds: float) -> Score:
    """Score logits, by dev set, against the labels and, where it has been evaluated, against the predecessor."""
    metrics, loyalty = {}, {}
    for name, features in dev_sets.features.items():
        predictions = logits[name].argmax(1) if task.labels else logits[name][:, 0]
        prefix = f"{name}/" if len(dev_sets.features) > 1 else ""
        result = compute_metrics(TASKS[name], predictions, features.labels)
        metrics |= {prefix + key: value for key, value in result.items()}
        if dev_sets.predecessor:
            result = compute_loyalty(TASKS[name], logits[name], dev_sets.predecessor[name])
            loyalty |= {prefix + key: value for key, value in result.items()}
    return Score(metrics, metrics[main_key(task)], seconds, loyalty)


def evaluate(task: Task, loaded: Loaded, dev_sets: DevSets, batch_size: int, check: Callable = lambda: None) -> Score:
    """Score the model on the task's dev sets; with several of them the metrics' names tell which."""
    return score_logits(task, dev_sets, *predict_dev(task, loaded, dev_sets, batch_size, check))


def main_key(task: Task) -> str:
    """The name of the task's main metric in `Score.metrics`."""
    return f"{task.name}/{task.main_metric}" if task.dev_tasks else task.main_metric


def is_main() -> bool:
    """Whether this is the one process that writes files, logs and prints."""
    return distributed.rank() == 0


def as_results(results: dict[str, float]) -> str:
    """The text of an `eval_results.txt`: `key = value` a line, sorted."""
    return "".join(f"{key} = {value}\n" for key, value in sorted(results.items()))


def read_results(folder: Path) -> dict[str, float]:
    """What the folder's `eval_results.txt` tells; empty where there is none that can be read."""
    try:
        lines = (folder / "eval_results.txt").read_text().splitlines()
        return {key: float(value) for key, value in (line.split(" = ") for line in lines)}
    except (OSError, ValueError):
        return {}


# --------------------------------------------------------------------------------------- train


def micro_batch_rows(args: argparse.Namespace) -> int:
    """Rows of a micro-batch, those of all processes together."""
    return args.per_gpu_train_batch_size * distributed.n_processes()


def count_steps(args: argparse.Namespace, n_rows: int) -> tuple[int, int]:
    """(optimiser steps an epoch, optimiser steps in all)."""
    an_epoch = -(-n_rows // micro_batch_rows(args)) // args.gradient_accumulation_steps
    if an_epoch == 0:
        raise UserError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: {n_rows} rows make fewer batches of "
            f"{micro_batch_rows(args)} than one step takes"
        )
    return an_epoch, args.max_steps if args.max_steps > 0 else max(1, int(an_epoch * args.num_train_epochs + 1e-9))


@dataclass
class Progress:
    """How far a run has come, beside what its model, optimiser and schedules hold."""

    step: int = 0  # optimiser steps made
    evaluated: bool = True  # whether the evaluation that is due after this step has been made
    losses: Losses = field(default_factory=Losses)
    last: Score | None = None
    best_step: int = 0
    best: Score | None = None
    predecessor: Score | None = None
    seconds: float = 0.0  # of training
    resumed: list[dict] = field(default_factory=list)  # after which steps the run was gone on with, when and by what

    def figures(self) -> dict:
        """What `read_state` needs, as JSON has it."""
        scores = {name: getattr(self, name) for name in ("last", "best", "predecessor")}
        figures = {name: score and score._asdict() for name, score in scores.items()}
        names = ("step", "evaluated", "best_step", "seconds", "resumed")
        return figures | {name: getattr(self, name) for name in names}


def build(args, task: Task, loaded: Loaded, n_steps: int) -> training_state.Parts:
    """Make of the loaded model one that holds the successor, unless it is fine-tuned, and what moves in training."""
    layers = None
    if args.replacing_rate is not None:  # the same seed and so the same draws in every process
        layers = compress(loaded.model, args.scc_n_layer, args.seed)
    return make_parts(args, loaded.model, layers, n_steps)


def make_parts(args, model: torch.nn.Module, layers: TheseusLayers | None, n_steps: int) -> training_state.Parts:
    """The optimiser and all that moves with it, for the parameters of the model that require gradients."""
    prepare(args, model, layers)
    groups = optimizer_groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, args.learning_rate, eps=args.adam_epsilon, fused=True)
    schedulers = [get_linear_schedule_with_warmup(optimizer, args.warmup_steps, n_steps)]
    if layers and args.scheduler_type == "linear":
        schedulers.append(LinearReplacementScheduler(layers, args.replacing_rate, args.scheduler_linear_k))
    elif layers:
        schedulers.append(ConstantReplacementScheduler(layers, args.replacing_rate, args.steps_for_replacing))
    device_type = next(model.parameters()).device.type
    return training_state.Parts(optimizer, schedulers, torch.amp.GradScaler(device_type, enabled=args.fp16), layers)


def train(args, task, loaded, parts, features, dev_sets, n_steps, log, progress: Progress, stop: Stop) -> None:
    """Train the model in place up to step `n_steps`, writing logs and checkpoints and counting in `progress`.

    Raises:
        Stopped: a signal asked for the end; `progress` is where the training can go on.
        LossError: a loss is not finite; nothing that came of it has been saved.
    """
    model, layers = loaded.model, parts.layers
    device = next(model.parameters()).device
    autocast_dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
    # The data count labels as the table does, the loss as the model does.
    outputs = torch.tensor(loaded.label_order) if task.labels else None
    to_tensors = functools.partial(
        micro_batch, features, pad_token_id=loaded.tokenizer.pad_token_id or 0, device=device, outputs=outputs
    )
    losses = progress.losses
    batches = train_batches(len(features), micro_batch_rows(args), args.gradient_accumulation_steps, args.seed)
    batches = islice(batches, progress.step, None)
    bar = tqdm(total=n_steps, initial=progress.step, desc="Training", disable=not is_main(), **BAR)
    start = time.perf_counter() - progress.seconds
    with bar:
        if not progress.evaluated:
            after_step(args, task, loaded, parts, dev_sets, log, progress, stop)
        while progress.step < n_steps:
            step = progress.step + 1
            in_force = {"learning_rate": parts.schedulers[0].get_last_lr()[0]}
            if layers:
                in_force["replacing_rate"] = layers.replacing_rate
            epoch, rows = next(batches)
            micro_batches = [to_tensors(r) for r in rows]
            model.train()
            loss = train_step(
                model,
                layers,
                micro_batches,
                parts.optimizer,
                parts.schedulers,
                args.max_grad_norm,
                parts.scaler,
                autocast_dtype,
            )
            if device.type == "cpu" and step % RETURN_EVERY == 0:
                return_freed_memory()
            if loss is not None:
                losses.add(step, rows, loss)
            is_logged = step == n_steps or (args.logging_steps and step % args.logging_steps == 0)
            # A GPU is waited for only where its losses are needed.
            if device.type == "cpu" or is_logged or is_saved(args, step) or step % 100 == 0:
                losses.check()
            if bar.update() and losses.values:  # as above, only when the bar is redrawn
                share = sum(share for parts_ in micro_batches for _, share in parts_) / len(micro_batches)
                shown = {"loss": losses.values[-1].item() / share} if share else {}
                bar.set_description(f"Epoch {epoch + 1}", refresh=False)
                bar.set_postfix(shown | ({"rate": layers.replacing_rate} if layers else {}))
            if is_logged:
                mean = losses.mean()
                log.write(step, ({} if mean is None else {"loss": mean}) | in_force)
                losses.values.clear()
            progress.step, progress.evaluated = step, not (is_logged and args.evaluate_during_training)
            progress.seconds = time.perf_counter() - start
            after_step(args, task, loaded, parts, dev_sets, log, progress, stop)
    progress.seconds = time.perf_counter() - start


def is_saved(args: argparse.Namespace, step: int) -> bool:
    """Whether there is a `checkpoint-N` of this step."""
    return bool(args.save_steps) and step % args.save_steps == 0


def after_step(args, task, loaded, parts, dev_sets, log, progress: Progress, stop: Stop) -> None:
    """Evaluate and save where it is time to, and end where a signal asks for it."""
    evaluated = None
    if not progress.evaluated or is_saved(args, progress.step):
        check_weights(loaded.model, progress.step)
    if not progress.evaluated:
        evaluated = evaluate(task, loaded, dev_sets, args.per_gpu_eval_batch_size, stop.check)
        log.write(progress.step, evaluated.logged())
        progress.evaluated, progress.last = True, evaluated
        if progress.best is None or evaluated.main > progress.best.main:
            save(args, task, loaded, Path(args.output_dir) / "checkpoint-best", progress.step, evaluated)
            progress.best_step, progress.best = progress.step, evaluated
        elif progress.best_step == progress.step:  # a run that goes on comes here a second time
            progress.best = progress.best._replace(seconds=evaluated.seconds, loyalty=evaluated.loyalty)
    if is_saved(args, progress.step):
        save_checkpoint(args, task, loaded, parts, log, progress, evaluated)
    stop.check()


def save(args, task, loaded: Loaded, folder: Path, step: int, score: Score | None = None, state=None) -> None:
    """An ordinary checkpoint: weights, config and tokenizer; of a successor also its card, of a score its metrics.

    `state`, the tensors and figures of `training_state.collect`, is written beside them.
    """
    if not is_main():
        return
    model = loaded.model
    card = describe_successor(args, task, model, step, score)
    saved = export_successor(model) if card else model
    n_bytes = 4 * count_parameters(saved) + (sum(t.nbytes for t in state[0].values()) if state else 0)
    whole = whole_files if folder == Path(args.output_dir) else whole_folder
    with run_folder.writing(Path(args.output_dir), folder, n_bytes), whole(folder) as temporary:
        saved.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8", errors="replace")
        if score and folder.name == "checkpoint-best":
            (temporary / "eval_results.txt").write_text(as_results(score.metrics | {"step": step}))
        if state:
            training_state.write(temporary / run_folder.STATE, *state)


def save_checkpoint(args, task, loaded, parts, log: RunLog, progress: Progress, score=None, stopped=False) -> None:
    """A checkpoint that the run can go on from; what it makes superfluous is removed."""
    tensors, figures = training_state.collect(parts, progress.losses.stacked())
    if is_main():
        output_dir = Path(args.output_dir)
        folder = output_dir / f"checkpoint-{progress.step}{'-stopped' * stopped}"
        figures |= progress.figures() | {"log": log.sizes()}
        save(args, task, loaded, folder, progress.step, score, (tensors, figures))
        run_folder.forget_older(output_dir, folder, args.save_total_limit)


def read_state(args, task: Task, checkpoint: Path) -> tuple[Progress, tuple]:
    """How far the run had come at `checkpoint`, and what `restore_state` needs; UserError where it is damaged."""
    progress = Progress()
    try:
        tensors, figures = training_state.read(checkpoint / run_folder.STATE)
        for name, kind in (("step", int), ("evaluated", bool), ("best_step", int), ("seconds", float)):
            setattr(progress, name, kind(figures[name]))
        if progress.step != run_folder.step_of(checkpoint):
            raise ValueError(f"of step {progress.step}")
        for name in ("last", "best", "predecessor"):
            setattr(progress, name, figures[name] and read_score(task, **figures[name]))
        progress.resumed = [dict(part) for part in figures["resumed"]]
        figures["log"] = {str(name): int(n_bytes) for name, n_bytes in figures["log"].items()}
        # What the folder of the best step holds can be of a later step than the state.
        best = read_results(checkpoint.parent / "checkpoint-best")
        step = int(best.pop("step", progress.best_step))
        if args.evaluate_during_training and step != progress.best_step and main_key(task) in best:
            progress.best_step, progress.best = step, read_score(task, best, best[main_key(task)], 0.0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise state_error(checkpoint, error) from error
    return progress, (tensors, figures)


def read_score(task: Task, metrics: dict, main: float, seconds: float, loyalty: dict | None = None) -> Score:
    """A score as it was saved; some error where it is none of the task's."""
    names = task.dev_tasks or (task.name,)
    keys = [f"{name}/{key}" if len(names) > 1 else key for name in names for key in TASKS[name].metrics]
    loyalty = {str(key): float(value) for key, value in (loyalty or {}).items()}
    return Score({key: float(metrics[key]) for key in keys}, float(main), float(seconds), loyalty)


def restore_state(args, task, checkpoint: Path, loaded: Loaded, parts, progress: Progress, state: tuple) -> None:
    """Put model, optimiser, schedules and random states where they were when `checkpoint` was saved."""
    model = loaded.model
    try:
        saved = load_model(str(checkpoint), task.labels, max_seq_length=args.max_seq_length).model
        load_successor(model, saved) if parts.layers else model.load_state_dict(saved.state_dict())
        losses = training_state.restore(parts, *state)
    except (UserError, ValueError, RuntimeError) as error:
        raise state_error(checkpoint, error) from error
    progress.losses = Losses(losses.to(next(model.parameters()).device))


def state_error(checkpoint: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"{checkpoint}: the run cannot go on from {run_folder.STATE} ({reason}); to start anew, give "
        "--overwrite_output_dir without --resume"
    )


def describe_successor(args, task, model: torch.nn.Module, step: int, score: Score | None) -> str:
    """The card of the successor that this model holds; empty for a model that is not compressed."""
    layers = next((module for module in model.modules() if isinstance(module, TheseusLayers)), None)
    if layers is None:
        return ""
    source = args.model_name_or_path
    predecessor = Path(source).resolve().name if os.path.isdir(source) else source
    return model_card(
        name=f"{Path(args.output_dir).resolve().name}, a successor by BERT-of-Theseus",
        model_class=type(model).__name__,
        task=f"GLUE {task.folder}",
        predecessor=f"{predecessor} ({len(layers.predecessor)} layers)",
        n_layer=len(layers.successor),
        schedule=describe_schedule(args),
        step=step,
        metrics=score.metrics if score else {},
    )


def describe_schedule(args: argparse.Namespace) -> str:
    """The replacing rate's schedule in words."""
    if getattr(args, "variant", None):
        return f"the variant {args.variant} of scripts/ablate.py"
    if args.scheduler_type == "linear":
        return f"replacing rate {args.replacing_rate:g}, rising linearly by {args.scheduler_linear_k:g} a step"
    return f"replacing rate {args.replacing_rate:g} for {max(args.steps_for_replacing, 1):,} steps, then 1"


# ---------------------------------------------------------------------------------------- main


def check_output_dir(args: argparse.Namespace) -> None:
    """Fail where training would mix with, or destroy, what is there."""
    output_dir = Path(args.output_dir)
    if not run_folder.is_empty(output_dir) and not args.overwrite_output_dir:
        if (output_dir / run_folder.STARTED).exists():
            raise UserError(
                f"--output_dir {output_dir} holds a run that is not finished; --resume goes on with it, "
                "--overwrite_output_dir replaces it"
            )
        what = "is not empty, and holds no run to go on with" if args.resume else "is not empty"
        raise UserError(
            f"--output_dir {output_dir} {what}; name another, or give --overwrite_output_dir to replace its run, "
            "where other files stay"
        )
    source = Path(args.model_name_or_path).resolve()
    if source.is_dir() and output_dir.resolve() in (source, *source.parents):
        raise UserError(
            f"--model_name_or_path {args.model_name_or_path} lies in --output_dir {output_dir} and would be overwritten"
        )


def earlier_run(args: argparse.Namespace) -> dict | None:
    """The record of the run in output_dir, finished or not, that --resume is to go on with; None for a new run.

    Raises:
        UserError: there is no such run, and none can be begun there.
    """
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file")
    try:
        earlier = run_folder.earlier_record(output_dir) if args.resume else None
    except ValueError as error:
        advice = "name another --output_dir, or give --overwrite_output_dir without --resume"
        raise UserError(f"{error}; {advice}") from error
    if args.do_train and not earlier:
        check_output_dir(args)
    return earlier


def found_free(args: argparse.Namespace) -> dict | None:
    """`earlier_run`, which all processes must call; UserError where another run is at work there."""
    refused = None
    if is_main():
        try:
            run_folder.check_free(Path(args.output_dir))
        except (run_folder.FolderInUse, OSError) as error:
            refused = f"--output_dir: {error}; wait for its end, or name another"
    refused = distributed.from_main(refused)
    if refused:
        raise UserError(refused)
    return earlier_run(args)


@contextmanager
def held(args: argparse.Namespace, earlier: dict | None) -> Iterator[None]:
    """Within the block output_dir, which is made, is this run's alone; UserError where it is not as it was found."""
    distributed.wait_for_all()  # until every process has found it
    with ExitStack() as stack:
        refused = None
        if is_main():  # which holds it for all processes
            try:
                stack.enter_context(run_folder.locked(Path(args.output_dir)))
                if earlier_run(args) != earlier:
                    refused = f"--output_dir {args.output_dir}: another run has just been at work there; try again"
            except (UserError, run_folder.FolderInUse, OSError) as error:
                refused = str(error)
        refused = distributed.from_main(refused)
        if refused:
            raise UserError(refused)
        yield


# Arguments in which a run may differ from the one that it goes on with: names and places (what lies there is compared
# itself), and what changes nothing in the training.
FREE = (
    "data_dir model_name_or_path config_name tokenizer_name cache_dir output_dir overwrite_output_dir overwrite_cache "
    "resume do_eval eval_all_checkpoints logging_steps save_steps save_total_limit per_gpu_eval_batch_size model_type "
    "fp16_opt_level local_rank"
).split()


def refuse_differences(output_dir: str, was: dict, now: dict) -> None:
    """UserError, naming all of them, where the run differs from what the one it goes on with was started with."""
    found = run_record.differences(was, now, FREE)
    before, after = (
        {"device": record.get("device"), "git commit": record.get("git_commit")} | record["versions"]
        for record in (was, now)
    )
    others = [
        f"{name} was {before.get(name)}, is {value}" for name, value in after.items() if before.get(name) != value
    ]
    if found:
        advice = "give what it was started with, or name another --output_dir"
        if run_folder.is_finished(was):
            advice += f" (to train its result further, give {output_dir} as --model_name_or_path)"
        raise UserError(f"--resume: not the run that {output_dir} holds: {'; '.join(found + others)}; {advice}")
    if others:
        logger.warning("Results can differ in the last digits: %s", "; ".join(others))


def choose_device(args: argparse.Namespace) -> torch.device:
    """This process's device, in the company of the other processes where torchrun has started several."""
    use_cuda = torch.cuda.is_available() and not args.no_cuda
    if not use_cuda:
        for flag in ("fp16", "tf32"):
            if getattr(args, flag):
                raise UserError(f"--{flag} needs a GPU; on a CPU, leave it out or try --bf16")
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    if args.deterministic and use_cuda:  # as a CPU is anyway
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return distributed.join(use_cuda)
    except ValueError as error:
        raise UserError(str(error)) from error


def use_all_gpus(args: argparse.Namespace) -> None:
    """On a machine with several GPUs start again as one process for each of them; returns where there is one."""
    command = launch_command(args, torch.cuda.device_count())
    if command:
        torchrun = " ".join(["torchrun", *command[2:]])
        print(f"Using all GPUs, as {torchrun} would; CUDA_VISIBLE_DEVICES=0 uses one", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *command, *sys.argv])


def launch_command(args: argparse.Namespace, n_gpus: int) -> list[str]:
    """What Python is given to run a script in one process for each GPU; nothing where this process will do."""
    if n_gpus < 2 or args.no_cuda or distributed.is_launched():
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_gpus}"]


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def device_name(device: torch.device) -> str:
    """What on a device decides the last digits of results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def announce(args, task, loaded, examples, dev_examples, scc_n_layer, n_steps, steps_an_epoch) -> None:
    """Say what the run will take; fail where the disk cannot hold it."""
    model = loaded.model
    say = functools.partial(logger.info, "%-12s %s")
    dev_rows = "".join(f", {len(e.first):,} {name} dev rows" for name, e in dev_examples.items())
    say("Task", f"{task.name}: {len(examples.first):,} training rows{dev_rows}")
    parameters = count_parameters(model)
    device = next(model.parameters()).device
    where = device_name(device)
    n_layer = model.config.get_text_config().num_hidden_layers
    role = "Predecessor" if scc_n_layer else "Model"
    say(role, f"{type(model).__name__} of {n_layer} layers, {parameters:,} parameters, from {args.model_name_or_path}")
    trained = parameters
    if scc_n_layer:
        own_layers = model.get_submodule(find_layers(model))
        parameters, trained = (
            parameters - count_parameters(own_layers[scc_n_layer:]),
            count_parameters(own_layers[:scc_n_layer]),
        )
        say("Successor", f"{scc_n_layer} layers, {parameters:,} parameters")
        rate, k = args.replacing_rate, args.scheduler_linear_k
        if args.scheduler_type == "linear":
            # Rounded down by a hair, lest a rounding error count as one more step.
            first_at_1 = math.ceil((1 - rate) / k - 1e-9) + 1 if k else math.inf
            end = f"1 at step {first_at_1:,}" if first_at_1 <= n_steps else f"{rate + k * (n_steps - 1):.3g} at the end"
            say("Rate", f"from {rate:g} linearly to {end}")
            if k and first_at_1 > n_steps:
                logger.warning("The successor never trains alone: raise --scheduler_linear_k for the rate to reach 1")
        elif rate < 1 and max(args.steps_for_replacing, 1) < n_steps:
            say("Rate", f"{rate:g} for {max(args.steps_for_replacing, 1):,} steps, then 1")
        else:
            say("Rate", f"{rate:g} in all steps")
    examples_a_step = micro_batch_rows(args) * args.gradient_accumulation_steps
    n_processes = distributed.n_processes()
    if n_processes > 1:
        where = f"{n_processes} processes, {args.per_gpu_train_batch_size} examples each; {where}"
    say("Steps", f"{n_steps:,} of {examples_a_step} examples, {steps_an_epoch:,} an epoch, on {device.type} ({where})")
    if dev_examples:
        during = (n_steps // args.logging_steps if args.logging_steps else 0) * args.evaluate_during_training
        predecessor = ", 1 of them of the predecessor" if scc_n_layer else ""
        ends_on_one = during and n_steps % args.logging_steps == 0
        of_checkpoints = n_steps // args.save_steps if args.save_steps and args.eval_all_checkpoints else 0
        say("Dev passes", f"{during + (not ends_on_one) + bool(scc_n_layer) + of_checkpoints:,}{predecessor}")
    check_disk(args, n_steps, 4 * parameters, 2 * 4 * trained)


def check_disk(args: argparse.Namespace, n_steps: int, weights: int, state: int) -> None:
    """Say how many bytes the checkpoints will take; fail where the disk cannot hold them.

    Args:
        args: of the command line.
        n_steps: optimiser steps.
        weights: bytes of a checkpoint.
        state: bytes that the newest one takes more: Adam's two moments of each trained parameter.
    """
    output_dir = Path(args.output_dir)
    n_saved = n_steps // args.save_steps if args.save_steps else 0
    n_kept = min(n_saved, args.save_total_limit or n_saved)
    n_checkpoints = n_kept + args.evaluate_during_training + 1
    # What takes another's place stands beside it for a moment.
    n_states = min(n_saved, 2) or 1
    needed = (n_checkpoints + (n_saved > n_kept or args.evaluate_during_training)) * weights + n_states * state
    there = [*output_dir.glob("checkpoint-*/*.safetensors")] if args.resume else []
    existing = next(path for path in (output_dir.resolve(), *output_dir.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free + sum(path.stat().st_size for path in there)
    of_weights, of_state, in_all, there = map(readable_size, (weights, state, needed, free))
    plural = "s" * (n_checkpoints > 1)
    parts = f"{n_checkpoints:,} checkpoint{plural} of {of_weights}, {of_state} to go on from beside the newest"
    logger.info("%-12s %s: at most %s, of %s free", "Disk", parts, in_all, there)
    if needed > free:
        advice = "raise --save_steps, or set --save_total_limit"
        raise UserError(f"{output_dir}: {in_all} of checkpoints do not fit in {there}; {advice}")


def compare(rows: list[tuple[str, Score, int]], main: str) -> str:
    """A table of (who, score, parameters), each held against the first."""
    keys, loyalties = list(rows[0][1].metrics), list(rows[-1][1].loyalty)
    table = [["", *keys, f"{main} kept", *loyalties, "parameters", "seconds for dev"]]
    for who, score, parameters in rows:
        kept = f"{100 * score.main / rows[0][1].main:.1f} %" if rows[0][1].main > 0 else "-"
        loyalty = [f"{score.loyalty[k]:.4f}" if k in score.loyalty else "-" for k in loyalties]
        metrics = [f"{score.metrics[k]:.4f}" for k in keys]
        table.append([who, *metrics, kept, *loyalty, f"{parameters:,}", f"{score.seconds:.2f}"])
    return aligned(table)


def checkpoint_results(
    args: argparse.Namespace, task: Task, device, dev_sets: DevSets, check: Callable = lambda: None
) -> dict[str, float]:
    """The metrics of every checkpoint-N in output_dir, their names ending in `_N`."""
    results = {}
    for folder in distributed.from_main(run_folder.checkpoints(Path(args.output_dir))):
        loaded = load_model(str(folder), task.labels, max_seq_length=args.max_seq_length)
        loaded.model.to(device)
        score = evaluate(task, loaded, dev_sets, args.per_gpu_eval_batch_size, check)
        logger.info("%s: %s %.4f", folder.name, main_key(task), score.main)
        results |= {f"{key}_{folder.name[11:]}": value for key, value in score.metrics.items()}
    return results


def featurize(args, task_name, split, examples, loaded) -> Features:
    """The tokenised data set; the main process tokenises and the others read its cache, if it could write one."""
    return cached_features(
        TASKS[task_name],
        split,
        examples,
        loaded.tokenizer,
        args.max_seq_length,
        takes_token_types(loaded.model),
        folders=(args.data_dir, args.output_dir),
        overwrite=args.overwrite_cache and is_main(),
        write=is_main(),
    )


def featurize_dev_sets(args, dev_examples: dict, loaded: Loaded) -> DevSets:
    return DevSets({name: featurize(args, name, "dev", examples, loaded) for name, examples in dev_examples.items()})


def run_evaluation(args: argparse.Namespace, task: Task) -> None:
    """--do_eval alone: evaluate the model in output_dir or, where there is none, model_name_or_path."""
    earlier = found_free(args)
    dev_examples = read_dev_sets(args, task)
    device = choose_device(args)
    with held(args, earlier):
        evaluate_alone(args, task, dev_examples, device)


def evaluate_alone(args, task: Task, dev_examples: dict, device: torch.device) -> None:
    """The whole of an evaluation without training, in a folder that is held."""
    has_model = distributed.from_main(os.path.isfile(os.path.join(args.output_dir, "config.json")))
    if not has_model and distributed.from_main((Path(args.output_dir) / run_folder.STARTED).exists()):
        raise UserError(
            f"--output_dir {args.output_dir} holds a run that is not finished and has no result yet; to evaluate a "
            "checkpoint of it, give that folder as --output_dir"
        )
    path = args.output_dir if has_model else args.model_name_or_path
    # The other flags about loading are about model_name_or_path.
    options = {"max_seq_length": args.max_seq_length} if has_model else model_options(args)
    loaded = load_model(path, task.labels, **options)
    loaded.model.to(device)
    logger.info("Evaluating %s", path)

    with distributed.main_process_first():
        dev_sets = featurize_dev_sets(args, dev_examples, loaded)
    score = evaluate(task, loaded, dev_sets, args.per_gpu_eval_batch_size)
    results = dict(score.metrics)
    if args.eval_all_checkpoints:
        results |= checkpoint_results(args, task, device, dev_sets)
    if is_main():
        run_folder.write_text(Path(args.output_dir) / "eval_results.txt", as_results(results))
        print(json.dumps(score.logged()))


def run_training(args: argparse.Namespace, task: Task, stop: Stop, build: Callable) -> None:
    """Fine-tune or compress, or go on with it, evaluate, and leave the result in output_dir."""
    # First all that can be wrong, so that a run that fails has written nothing.
    device = choose_device(args)
    earlier = found_free(args)
    record = describe_run(args, task, device)
    if earlier:
        refuse_differences(args.output_dir, earlier, record)
    examples = read_examples(task, args.data_dir, "train")
    dev_examples = read_dev_sets(args, task) if args.do_eval or args.evaluate_during_training else {}
    steps_an_epoch, n_steps = count_steps(args, len(examples.first))
    files = {task.train: examples} | {TASKS[name].dev: dev for name, dev in dev_examples.items()}
    record["data"] = {name: its.sha256 for name, its in files.items()}
    if earlier and run_folder.is_finished(earlier):
        refuse_differences(args.output_dir, earlier, record)
        logger.info("The run in %s is finished: nothing is left to train", args.output_dir)
        if args.do_eval and not os.path.isfile(os.path.join(args.output_dir, "config.json")):
            raise UserError(f"{args.output_dir} holds the record of a finished run, but no model to evaluate")
        with held(args, earlier):
            if is_main():
                run_folder.finish(Path(args.output_dir))
            if args.do_eval:
                evaluate_alone(args, task, dev_examples, device)
        return
    compressing = args.replacing_rate is not None
    transformers.set_seed(args.seed)
    loaded = load_model(args.model_name_or_path, task.labels, not compressing, **model_options(args))
    record["predecessor_sha256"] = distributed.from_main(model_digest(args, loaded) if is_main() else None)
    model = loaded.model.to(device)
    distributed.share_weights(model)
    scc_n_layer = None
    if compressing:
        try:
            scc_n_layer = successor_size(len(model.get_submodule(find_layers(model))), args.scc_n_layer)
        except ValueError as error:
            raise UserError(f"{args.model_name_or_path}: {error}") from error
    if earlier:
        refuse_differences(args.output_dir, earlier, record)
    announce(args, task, loaded, examples, dev_examples, scc_n_layer, n_steps, steps_an_epoch)
    with held(args, earlier):
        carry_out(args, task, stop, build, loaded, examples, dev_examples, scc_n_layer, n_steps, record, earlier)


def carry_out(args, task, stop, build, loaded, examples, dev_examples, scc_n_layer, n_steps, record, earlier) -> None:
    """The whole of a training, or what is left of it, in a folder that is held."""
    model, output_dir = loaded.model, Path(args.output_dir)
    device = next(model.parameters()).device
    checkpoint = distributed.from_main(run_folder.newest_state(output_dir) if earlier else None)
    if earlier:
        logger.info(
            "%-12s %s",
            "Resume",
            f"from {checkpoint}, of {n_steps:,} steps" if checkpoint else "from the beginning: nothing is saved",
        )
    with distributed.main_process_first():
        if is_main():
            run_folder.begin(output_dir, record, earlier, checkpoint, args.save_total_limit)
        features = featurize(args, task.name, "train", examples, loaded)
        dev_sets = featurize_dev_sets(args, dev_examples, loaded)

    n_parameters = count_parameters(model)
    progress, state = Progress(), None
    if checkpoint:
        progress, state = read_state(args, task, checkpoint)
        names = ("start", "command", "device", "versions", "git_commit")
        progress.resumed.append({"after_step": progress.step} | {name: record[name] for name in names})
    if scc_n_layer and dev_sets:  # in a run that goes on as well, for what the successor is compared with
        progress.predecessor = score_predecessor(args, task, loaded, dev_sets)
    parts = build(args, task, loaded, n_steps)
    if distributed.rank():  # each process has dropout of its own
        torch.manual_seed(np.random.SeedSequence([args.seed, distributed.rank()]).generate_state(1)[0].item())
    if checkpoint:
        restore_state(args, task, checkpoint, loaded, parts, progress, state)

    log = RunLog(output_dir, state[1]["log"] if state else {})
    with stop.when_asked():
        try:
            train(args, task, loaded, parts, features, dev_sets, n_steps, log, progress, stop)
            check_weights(model, n_steps)
            save(args, task, loaded, output_dir, n_steps, progress.last)
            if args.do_eval and progress.last is None:  # only now: should it fail, the model is safe
                progress.last = evaluate(task, loaded, dev_sets, args.per_gpu_eval_batch_size, stop.check)
                log.write(n_steps, progress.last.logged())
                if scc_n_layer and is_main():
                    card = describe_successor(args, task, model, n_steps, progress.last)
                    run_folder.write_text(output_dir / "README.md", card)
            distributed.wait_for_all()  # until the main process has written the last checkpoint
            if args.do_eval:
                checkpoints = {}
                if args.eval_all_checkpoints:
                    checkpoints = checkpoint_results(args, task, device, dev_sets, stop.check)
                if is_main():
                    results = as_results(progress.last.metrics | checkpoints)
                    run_folder.write_text(output_dir / "eval_results.txt", results)
        except Stopped as stopped:
            stop_early(args, task, loaded, parts, log, progress, stopped)
        log.close()
        if is_main():
            report(args, task, parts, loaded, n_steps, n_parameters, progress)


def report(args, task, parts, loaded: Loaded, n_steps: int, n_parameters: int, progress: Progress) -> None:
    """Write run.json, from which moment the run is finished, and print the comparison."""
    output_dir = Path(args.output_dir)
    parameters = count_parameters(loaded.model)
    if parts.layers:
        parameters -= count_parameters(parts.layers.predecessor)
    results = {"resumed": progress.resumed, "end": run_record.now()}
    results |= {"steps": n_steps, "parameters": parameters, "training_seconds": progress.seconds}
    results["metrics"] = progress.last.metrics if progress.last else {}
    rows = []
    if progress.predecessor:
        results["predecessor"] = progress.predecessor._asdict() | {"parameters": n_parameters}
        rows.append(("predecessor", progress.predecessor, n_parameters))
    for name, step, score in (("last", n_steps, progress.last), ("best", progress.best_step, progress.best)):
        if score:
            results[name] = {"step": step} | score._asdict()
            rows.append((f"successor, {name} step ({step})", score, parameters))
    run_folder.finish(output_dir, results)
    logger.info("The %s is in %s", "successor" if parts.layers else "model", output_dir)
    if progress.predecessor:
        print(compare(rows, main_key(task)))


def stop_early(args, task, loaded, parts, log: RunLog, progress: Progress, stopped: Stopped) -> None:
    """Save what the run needs to go on, unless that is there already, and end the process as the signal asks."""
    progress.losses.check()
    check_weights(loaded.model, progress.step)
    newest = distributed.from_main(run_folder.newest_state(Path(args.output_dir)))
    if newest is None or run_folder.step_of(newest) != progress.step:
        save_checkpoint(args, task, loaded, parts, log, progress, stopped=True)
    log.close()
    if is_main():
        print(
            f"run_glue.py: {stopped} after step {progress.step}; the same command with --resume goes on from there",
            file=sys.stderr,
        )
    distributed.leave()
    raise SystemExit(128 + stopped.signal)


def prepare(args: argparse.Namespace, model: torch.nn.Module, layers: TheseusLayers | None) -> None:
    """Turn on what the flags ask for in training; in evaluation the model computes the same."""
    if args.gradient_checkpointing:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the only name that old and new transformers share
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"--gradient_checkpointing: {error}") from error
    if args.torch_compile:
        for layer in [*layers.predecessor, *layers.successor] if layers else model.get_submodule(find_layers(model)):
            layer.compile(dynamic=True)


def score_predecessor(args, task: Task, loaded: Loaded, dev_sets: DevSets) -> Score:
    """The predecessor's score, with a warning where it is none to speak of; its logits are kept in `dev_sets`."""
    name, features = next(iter(dev_sets.features.items()))
    pad_token_id = loaded.tokenizer.pad_token_id or 0
    # A first batch warms the devices up; or the predecessor's seconds would hold it and flatter the successor.
    one_each = features.head(args.per_gpu_eval_batch_size * distributed.n_processes())
    predict(loaded.model, one_each, args.per_gpu_eval_batch_size, pad_token_id)
    logits, seconds = predict_dev(task, loaded, dev_sets, args.per_gpu_eval_batch_size)
    score = score_logits(task, dev_sets, logits, seconds)
    dev_sets.predecessor = logits
    logger.info("%-12s %s %.4f", "Predecessor", main_key(task), score.main)
    chance = chance_score(TASKS[name], features.labels)
    if score.main <= chance:
        logger.warning(
            "The predecessor is no better than chance (%s %.4f against %.4f): is it fine-tuned for %s?",
            main_key(task),
            score.main,
            chance,
            task.name,
        )
    return score


def model_digest(args: argparse.Namespace, loaded: Loaded) -> str:
    """What tells the model to start from, wherever it lies, from every other."""
    name = args.config_name or args.model_name_or_path
    config, _ = transformers.PretrainedConfig.get_config_dict(name, cache_dir=args.cache_dir or None)
    return run_record.model_sha256(loaded.model, loaded.tokenizer, config)


def describe_run(args: argparse.Namespace, task: Task, device: torch.device) -> dict:
    """What makes the results, beside data and predecessor, for `run.json`."""
    return {
        "task": task.name,
        "main_metric": main_key(task),
        "command": run_record.command(),
        "arguments": vars(args),
        "seed": args.seed,
        "variant": getattr(args, "variant", None),  # of the method, in scripts/ablate.py
        "device": device_name(device),
        "device_type": device.type,
        "processes": distributed.n_processes(),
        "versions": run_record.versions(),
        "git_commit": run_record.git_commit(Path(__file__).resolve().parent),
        "start": run_record.now(),
    }


def main(args: argparse.Namespace, build: Callable = build) -> None:
    """Make the run that the command line asks for; `build` makes of a loaded model what is trained."""
    log_plainly()
    if distributed.launched_rank() > 0:  # the main process says it for all
        logging.disable(logging.WARNING)
    warn_about(args)
    task = TASKS[args.task_name]
    stop = Stop()
    errors = (UserError, GlueDataError, LossError, run_folder.CannotWrite, torch.OutOfMemoryError)
    with one_line_errors("run_glue.py", *errors), stop.listening():
        with distributed.failing_together(), fast_kernels():
            run_training(args, task, stop, build) if args.do_train else run_evaluation(args, task)
        distributed.leave()


if __name__ == "__main__":
    use_all_gpus(ARGS)
    main(ARGS)
