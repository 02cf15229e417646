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
import re
import shutil
import sys
import time
import warnings
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
    add("--max_steps", type=int, default=-1, help="if above 0, train for exactly so many optimiser steps")
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

# ruff: noqa: E402
import numpy as np
import torch
import transformers
from tensorboardX import SummaryWriter
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from bert_of_theseus import TheseusLayers, compress, distributed, export_successor, find_layers, successor_size
from bert_of_theseus.classifier import BAR, Loaded, UserError, load_model, predict, takes_token_types
from bert_of_theseus.cpu_kernels import RETURN_EVERY, fast_kernels, return_freed_memory
from bert_of_theseus.files import whole_file, whole_folder
from bert_of_theseus.model_card import model_card
from bert_of_theseus.training import micro_batch, optimizer_groups, train_batches, train_step
from glue_processors import Features, Task, cached_features, chance_score, compute_metrics, read_examples
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


def read_dev_sets(args: argparse.Namespace, task: Task) -> dict:
    """The examples of each dev set that the task is evaluated on, by task name."""
    names = task.dev_tasks or (task.name,)
    return {name: read_examples(TASKS[name], args.data_dir, "dev") for name in names}


def evaluate(task: Task, loaded: Loaded, dev_features: dict[str, Features], batch_size: int) -> Score:
    """Score the model on the task's dev sets; with several of them the metrics' names tell which."""
    metrics, seconds = {}, 0.0
    for name, features in dev_features.items():
        start = time.perf_counter()
        logits = predict(loaded.model, features, batch_size, loaded.tokenizer.pad_token_id or 0)
        seconds += time.perf_counter() - start
        predictions = logits[:, loaded.label_order].argmax(1) if task.labels else logits[:, 0]
        result = compute_metrics(TASKS[name], predictions.numpy(), features.labels)
        metrics |= {f"{name}/{key}" if len(dev_features) > 1 else key: value for key, value in result.items()}
    return Score(metrics, metrics[main_key(task)], seconds)


def main_key(task: Task) -> str:
    """The name of the task's main metric in `Score.metrics`."""
    return f"{task.name}/{task.main_metric}" if task.dev_tasks else task.main_metric


def is_main() -> bool:
    """Whether this is the one process that writes files, logs and prints."""
    return distributed.rank() == 0


def write_results(folder: str | Path, results: dict[str, float]) -> None:
    """`eval_results.txt`: `key = value` a line, sorted."""
    if not is_main():
        return
    with whole_file(Path(folder) / "eval_results.txt") as temporary:
        temporary.write_text("".join(f"{key} = {value}\n" for key, value in sorted(results.items())))


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


def train(args, task, loaded, layers, features, dev_features, n_steps, log) -> tuple[Score | None, int, Score | None]:
    """Train the model in place for `n_steps`, writing logs and checkpoints.

    Returns:
        The last score, the best step and its score; None where there was no evaluation.
    """
    model = loaded.model
    device = next(model.parameters()).device
    groups = optimizer_groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, args.learning_rate, eps=args.adam_epsilon, fused=True)
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, args.warmup_steps, n_steps)
    schedulers = [lr_scheduler]
    if layers and args.scheduler_type == "linear":
        schedulers.append(LinearReplacementScheduler(layers, args.replacing_rate, args.scheduler_linear_k))
    elif layers:
        schedulers.append(ConstantReplacementScheduler(layers, args.replacing_rate, args.steps_for_replacing))
    scaler = torch.amp.GradScaler(device.type, enabled=args.fp16)
    autocast_dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
    # The data count labels as the table does, the loss as the model does.
    outputs = torch.tensor(loaded.label_order) if task.labels else None
    to_tensors = functools.partial(
        micro_batch, features, pad_token_id=loaded.tokenizer.pad_token_id or 0, device=device, outputs=outputs
    )

    last, best_step, best = None, 0, None
    output_dir = Path(args.output_dir)
    losses = []  # of the steps since the last log line that had one
    batches = train_batches(len(features), micro_batch_rows(args), args.gradient_accumulation_steps, args.seed)
    with tqdm(total=n_steps, desc="Training", disable=not is_main(), **BAR) as bar:
        for step in range(1, n_steps + 1):
            in_force = {"learning_rate": lr_scheduler.get_last_lr()[0]}
            if layers:
                in_force["replacing_rate"] = layers.replacing_rate
            epoch, rows = next(batches)
            micro_batches = [to_tensors(r) for r in rows]
            model.train()
            loss = train_step(
                model,
                layers,
                micro_batches,
                optimizer,
                schedulers,
                args.max_grad_norm,
                scaler,
                autocast_dtype,
            )
            if device.type == "cpu" and step % RETURN_EVERY == 0:
                return_freed_memory()
            if loss is not None:
                losses.append(loss)
            if bar.update():  # reading the loss waits for the device, so only when the bar is redrawn
                share = sum(share for parts in micro_batches for _, share in parts) / len(micro_batches)
                shown = {"loss": losses[-1].item() / share} if losses else {}
                if layers:
                    shown["rate"] = layers.replacing_rate
                bar.set_description(f"Epoch {epoch + 1}", refresh=False)
                bar.set_postfix(shown)

            evaluated = None
            if step == n_steps or (args.logging_steps and step % args.logging_steps == 0):
                mean = {"loss": distributed.add_up(torch.stack(losses).mean()).item()} if losses else {}
                log.write(step, mean | in_force)
                losses = []
                if args.evaluate_during_training:
                    evaluated = last = evaluate(task, loaded, dev_features, args.per_gpu_eval_batch_size)
                    log.write_score(step, evaluated)
                    if best is None or evaluated.main > best.main:
                        best_step, best = step, evaluated
                        save(args, task, loaded, output_dir / "checkpoint-best", step, evaluated)
            if args.save_steps and step % args.save_steps == 0:
                save(args, task, loaded, output_dir / f"checkpoint-{step}", step, evaluated)
    return last, best_step, best


class Log:
    """The same values as TensorBoard scalars, as lines of JSON on standard output, and in `log.jsonl`.

    Only the main process writes them.
    """

    def __init__(self, output_dir: Path):
        if is_main():
            self.board = SummaryWriter(str(output_dir / "runs"))
            self.file = open(output_dir / "log.jsonl", "w")

    def write(self, step: int, values: dict[str, float]) -> None:
        if not is_main():
            return
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        line = json.dumps({"step": step} | values)
        tqdm.write(line)
        sys.stdout.flush()
        print(line, file=self.file, flush=True)

    def write_score(self, step: int, score: Score) -> None:
        self.write(step, {f"eval_{key}": value for key, value in score.metrics.items()})

    def close(self) -> None:
        if is_main():
            self.board.close()
            self.file.close()


def save(args, task, loaded: Loaded, folder: Path, step: int, score: Score | None = None) -> None:
    """An ordinary checkpoint: weights, config and tokenizer; of a successor also its card, of a score its metrics."""
    if not is_main():
        return
    model = loaded.model
    card = describe_successor(args, task, model, step, score)
    with whole_folder(folder) as temporary:
        (export_successor(model) if card else model).save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        if card:
            (temporary / "README.md").write_text(card)
        if score and folder.name == "checkpoint-best":
            write_results(temporary, score.metrics | {"step": step})


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
    if args.scheduler_type == "linear":
        return f"replacing rate {args.replacing_rate:g}, rising linearly by {args.scheduler_linear_k:g} a step"
    return f"replacing rate {args.replacing_rate:g} for {max(args.steps_for_replacing, 1):,} steps, then 1"


# ---------------------------------------------------------------------------------------- main


def check_output_dir(args: argparse.Namespace) -> None:
    """Fail where training would mix with, or destroy, what is there."""
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not args.overwrite_output_dir:
        raise UserError(
            f"--output_dir {output_dir} is not empty; name another, or give --overwrite_output_dir to replace its run"
        )
    source = Path(args.model_name_or_path).resolve()
    if source.is_dir() and output_dir.resolve() in (source, *source.parents):
        raise UserError(
            f"--model_name_or_path {args.model_name_or_path} lies in --output_dir {output_dir} and would be overwritten"
        )


# What runs write to output_dir: of the run, and of the model, which may have another tokenizer than the next one's.
OF_RUN = r"runs|log\.jsonl|run\.json|eval_results\.txt|checkpoint-(\d+|best)|\.checkpoint-(\d+|best)\.\d+\.tmp"
OF_MODEL = r"config\.json|model.*\.safetensors.*|README\.md|tokenizer.*\.json|special_tokens_map\.json|"
OF_MODEL += r"added_tokens\.json|vocab\.(txt|json)|merges\.txt|chat_template\.jinja"


def clear_output_dir(output_dir: Path) -> None:
    """Remove what an earlier run left in the folder, and nothing else, so that two runs never mix."""
    left = f"{OF_RUN}|{OF_MODEL}" if (output_dir / "config.json").is_file() else OF_RUN
    for path in list(output_dir.iterdir()):
        if re.fullmatch(left, path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def choose_device(args: argparse.Namespace) -> torch.device:
    """This process's device, in the company of the other processes where torchrun has started several."""
    use_cuda = torch.cuda.is_available() and not args.no_cuda
    if not use_cuda:
        for flag in ("fp16", "tf32"):
            if getattr(args, flag):
                raise UserError(f"--{flag} needs a GPU; on a CPU, leave it out or try --bf16")
    if args.tf32:
        torch.set_float32_matmul_precision("high")
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


def size(n_bytes: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def announce(args, task, loaded, examples, dev_examples, scc_n_layer, n_steps, steps_an_epoch) -> None:
    """Say what the run will take; fail where the disk cannot hold it."""
    model = loaded.model
    say = functools.partial(logger.info, "%-12s %s")
    dev_rows = "".join(f", {len(e.first):,} {name} dev rows" for name, e in dev_examples.items())
    say("Task", f"{task.name}: {len(examples.first):,} training rows{dev_rows}")
    parameters = count_parameters(model)
    device = next(model.parameters()).device
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    )
    n_layer = model.config.get_text_config().num_hidden_layers
    role = "Predecessor" if scc_n_layer else "Model"
    say(role, f"{type(model).__name__} of {n_layer} layers, {parameters:,} parameters, from {args.model_name_or_path}")
    if scc_n_layer:
        parameters -= count_parameters(model.get_submodule(find_layers(model))[scc_n_layer:])
        say("Successor", f"{scc_n_layer} layers, {parameters:,} parameters")
        rate, k = args.replacing_rate, args.scheduler_linear_k
        if args.scheduler_type == "linear":
            # Rounded down by a hair, lest a rounding error count as one more step.
            first_at_1 = math.ceil((1 - rate) / k - 1e-9) + 1 if k else math.inf
            end = f"1 at step {first_at_1:,}" if first_at_1 <= n_steps else f"{rate + k * (n_steps - 1):.3g} at the end"
            say("Rate", f"from {rate:g} linearly to {end}")
            if k and first_at_1 > n_steps:
                logger.warning("The successor never trains alone: raise --scheduler_linear_k for the rate to reach 1")
        elif max(args.steps_for_replacing, 1) < n_steps:
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
    n_checkpoints = (n_steps // args.save_steps if args.save_steps else 0) + args.evaluate_during_training + 1
    # A checkpoint that takes another's place stands beside it for a moment.
    needed = (n_checkpoints + args.evaluate_during_training) * parameters * 4
    existing = next(
        p for p in (Path(args.output_dir).resolve(), *Path(args.output_dir).resolve().parents) if p.is_dir()
    )
    free = shutil.disk_usage(existing).free
    spare = ", room for one more while the best is replaced" * args.evaluate_during_training
    checkpoints = f"{n_checkpoints:,} checkpoint{'s' * (n_checkpoints > 1)} of {size(parameters * 4)}"
    say("Disk", f"{checkpoints}{spare}: {size(needed)} of {size(free)} free")
    if needed > free:
        raise UserError(
            f"{args.output_dir}: {size(needed)} of checkpoints do not fit in {size(free)}; raise --save_steps"
        )


def compare(rows: list[tuple[str, Score, int]], main: str) -> str:
    """A table of (who, score, parameters), each held against the first."""
    keys = list(rows[0][1].metrics)
    table = [["", *keys, f"{main} kept", "parameters", "seconds for dev"]]
    for who, score, parameters in rows:
        kept = f"{100 * score.main / rows[0][1].main:.1f} %" if rows[0][1].main > 0 else "-"
        table.append([who, *(f"{score.metrics[k]:.4f}" for k in keys), kept, f"{parameters:,}", f"{score.seconds:.2f}"])
    return aligned(table)


def checkpoint_results(args: argparse.Namespace, task: Task, device, dev_features: dict) -> dict[str, float]:
    """The metrics of every checkpoint-N in output_dir, their names ending in `_N`."""
    results = {}
    found = (folder for folder in Path(args.output_dir).glob("checkpoint-*") if folder.name[11:].isdigit())
    for folder in distributed.from_main(sorted(found, key=lambda folder: int(folder.name[11:]))):
        loaded = load_model(str(folder), task.labels, max_seq_length=args.max_seq_length)
        loaded.model.to(device)
        score = evaluate(task, loaded, dev_features, args.per_gpu_eval_batch_size)
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


def run_evaluation(args: argparse.Namespace, task: Task) -> None:
    """--do_eval alone: evaluate the model in output_dir or, where there is none, model_name_or_path."""
    if os.path.isfile(args.output_dir):
        raise UserError(f"--output_dir {args.output_dir} is a file")
    dev_examples = read_dev_sets(args, task)
    device = choose_device(args)
    has_model = distributed.from_main(os.path.isfile(os.path.join(args.output_dir, "config.json")))
    path = args.output_dir if has_model else args.model_name_or_path
    # The other flags about loading are about model_name_or_path.
    options = {"max_seq_length": args.max_seq_length} if has_model else model_options(args)
    loaded = load_model(path, task.labels, **options)
    loaded.model.to(device)
    logger.info("Evaluating %s", path)

    with distributed.main_process_first():
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        dev_features = {name: featurize(args, name, "dev", examples, loaded) for name, examples in dev_examples.items()}
    score = evaluate(task, loaded, dev_features, args.per_gpu_eval_batch_size)
    results = dict(score.metrics)
    if args.eval_all_checkpoints:
        results |= checkpoint_results(args, task, device, dev_features)
    write_results(args.output_dir, results)
    if is_main():
        print(json.dumps({f"eval_{key}": value for key, value in score.metrics.items()}))


def run_training(args: argparse.Namespace, task: Task) -> None:
    """Fine-tune or compress, evaluate, and leave the result in output_dir."""
    # First all that can be wrong, so that a run that fails has written nothing.
    device = choose_device(args)
    check_output_dir(args)
    examples = read_examples(task, args.data_dir, "train")
    dev_examples = read_dev_sets(args, task) if args.do_eval or args.evaluate_during_training else {}
    steps_an_epoch, n_steps = count_steps(args, len(examples.first))
    compressing = args.replacing_rate is not None
    transformers.set_seed(args.seed)
    loaded = load_model(args.model_name_or_path, task.labels, not compressing, **model_options(args))
    model = loaded.model.to(device)
    distributed.share_weights(model)
    scc_n_layer = None
    if compressing:
        try:
            scc_n_layer = successor_size(len(model.get_submodule(find_layers(model))), args.scc_n_layer)
        except ValueError as error:
            raise UserError(f"{args.model_name_or_path}: {error}") from error
    announce(args, task, loaded, examples, dev_examples, scc_n_layer, n_steps, steps_an_epoch)

    output_dir = Path(args.output_dir)
    distributed.wait_for_all()  # until every process has found the folder as it was
    with distributed.main_process_first():
        if is_main():
            output_dir.mkdir(parents=True, exist_ok=True)
            clear_output_dir(output_dir)
        features = featurize(args, task.name, "train", examples, loaded)
        dev_features = {name: featurize(args, name, "dev", examples, loaded) for name, examples in dev_examples.items()}

    results = {"steps": n_steps, "parameters": count_parameters(model)}
    rows, layers = [], None
    if compressing:
        if dev_features:
            score = score_predecessor(args, task, loaded, dev_features)
            rows.append(("predecessor", score, results["parameters"]))
            results["predecessor"] = score._asdict() | {"parameters": results["parameters"]}
        layers = compress(model, scc_n_layer, args.seed)  # the same seed and so the same draws in every process
        results["parameters"] = count_parameters(model) - count_parameters(layers.predecessor)

    if distributed.rank():  # each process has dropout of its own
        torch.manual_seed(np.random.SeedSequence([args.seed, distributed.rank()]).generate_state(1)[0].item())
    prepare(args, model, layers)
    log = Log(output_dir)
    start = time.perf_counter()
    last, best_step, best = train(args, task, loaded, layers, features, dev_features, n_steps, log)
    results["training_seconds"] = time.perf_counter() - start
    save(args, task, loaded, output_dir, n_steps, last)
    if args.do_eval and last is None:  # only now: should it fail, the model is safe
        last = evaluate(task, loaded, dev_features, args.per_gpu_eval_batch_size)
        log.write_score(n_steps, last)
        if compressing and is_main():
            with whole_file(output_dir / "README.md") as temporary:
                temporary.write_text(describe_successor(args, task, model, n_steps, last))
    log.close()
    for name, step, score in (("last", n_steps, last), ("best", best_step, best)):
        if score:
            results[name] = {"step": step} | score._asdict()
            rows.append((f"successor, {name} step ({step})", score, results["parameters"]))
    distributed.wait_for_all()  # until the main process has written the last checkpoint
    if args.do_eval:
        checkpoints = checkpoint_results(args, task, device, dev_features) if args.eval_all_checkpoints else {}
        write_results(output_dir, last.metrics | checkpoints)
    if not is_main():
        return
    with whole_file(output_dir / "run.json") as temporary:
        temporary.write_text(json.dumps(describe_run(args, task, device) | results, indent=2) + "\n")
    logger.info("The %s is in %s", "successor" if compressing else "model", output_dir)
    if "predecessor" in results:
        print(compare(rows, main_key(task)))


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


def score_predecessor(args, task: Task, loaded: Loaded, dev_features: dict[str, Features]) -> Score:
    """The predecessor's score, with a warning where it is none to speak of."""
    name, features = next(iter(dev_features.items()))
    pad_token_id = loaded.tokenizer.pad_token_id or 0
    # A first batch warms the devices up; or the predecessor's seconds would hold it and flatter the successor.
    one_each = features.head(args.per_gpu_eval_batch_size * distributed.n_processes())
    predict(loaded.model, one_each, args.per_gpu_eval_batch_size, pad_token_id)
    score = evaluate(task, loaded, dev_features, args.per_gpu_eval_batch_size)
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


def describe_run(args: argparse.Namespace, task: Task, device: torch.device) -> dict:
    """What made the results, for `run.json`."""
    return {
        "task": task.name,
        "main_metric": main_key(task),
        "arguments": vars(args),
        "device": str(device),
        "processes": distributed.n_processes(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main(args: argparse.Namespace) -> None:
    log_plainly()
    if distributed.launched_rank() > 0:  # the main process says it for all
        logging.disable(logging.WARNING)
    warn_about(args)
    task = TASKS[args.task_name]
    with one_line_errors("run_glue.py", UserError, GlueDataError, torch.OutOfMemoryError):
        with distributed.failing_together(), fast_kernels():
            run_training(args, task) if args.do_train else run_evaluation(args, task)
        distributed.leave()


if __name__ == "__main__":
    use_all_gpus(ARGS)
    main(ARGS)
