#!/usr/bin/env python
"""Fine-tune a predecessor on a GLUE task, or compress it into a successor by progressive module replacing.

With --replacing_rate the model is compressed (BERT-of-Theseus, EMNLP 2020); without, it is fine-tuned.
"""

import argparse
import functools
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from glue_processors import TASKS, GlueDataError, find_task

logger = logging.getLogger("run_glue")


# ------------------------------------------------------------------------------------------ arguments


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def _number(kind: type, at_least: float, above: bool = False):
    """An argparse type: a finite number that is at least (or above) a bound."""

    def parse(text: str):
        value = kind(text)
        if not (value > at_least if above else value >= at_least) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if above else 'at least'} {at_least}")
        return value

    parse.__name__ = kind.__name__
    return parse


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = OneLineParser(
        prog="run_glue.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    at_least_0, at_least_1 = _number(int, 0), _number(int, 1)

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
        "--scheduler_linear_k", type=_number(float, 0), default=0, help="what the linear rate gains each optimiser step"
    )
    add("--steps_for_replacing", type=at_least_0, default=0, help="steps at the constant rate before it becomes 1")
    add("--scc_n_layer", type=at_least_1, help="layers of the successor (default: half of the predecessor's)")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--num_train_epochs", type=_number(float, 0, above=True), default=20.0, help="default: %(default)s")
    add("--max_steps", type=int, default=-1, help="if above 0, train for exactly so many optimiser steps")
    add("--learning_rate", type=_number(float, 0), default=5e-5, help="default: %(default)s")
    add("--warmup_steps", type=at_least_0, default=0, help="steps of linear warm-up (default: %(default)s)")
    add(
        "--weight_decay", type=_number(float, 0), default=0.0, help="not on biases and LayerNorm (default: %(default)s)"
    )
    add("--adam_epsilon", type=_number(float, 0), default=1e-8, help="default: %(default)s")
    add(
        "--max_grad_norm",
        type=_number(float, 0, above=True),
        default=1.0,
        help="gradient clipping (default: %(default)s)",
    )
    add("--per_gpu_train_batch_size", type=at_least_1, default=8, help="per device (default: %(default)s)")
    add("--per_gpu_eval_batch_size", type=at_least_1, default=8, help="per device (default: %(default)s)")
    add("--gradient_accumulation_steps", type=at_least_1, default=1, help="micro-batches a step (default: %(default)s)")
    add("--seed", type=at_least_0, default=42, help="default: %(default)s")
    add("--logging_steps", type=at_least_0, default=50, help="optimiser steps; 0: never (default: %(default)s)")
    add("--save_steps", type=at_least_0, default=50, help="optimiser steps; 0: never (default: %(default)s)")

    group = parser.add_argument_group("input")
    add = group.add_argument
    add(
        "--max_seq_length", type=_number(int, 4), default=128, help="tokens; longer input is cut (default: %(default)s)"
    )
    add("--do_lower_case", action="store_true", help="lower-case the text (default: as the tokenizer is set)")
    add("--config_name", default="", help="if not model_name_or_path")
    add("--tokenizer_name", default="", help="if not model_name_or_path")
    add("--cache_dir", default="", help="where downloaded models are kept")
    add("--overwrite_cache", action="store_true", help="tokenise anew")

    group = parser.add_argument_group("device")
    add = group.add_argument
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    add("--fp16", action="store_true", help="mixed precision with float16 (GPU)")
    add("--bf16", action="store_true", help="mixed precision with bfloat16")

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
        parser.error(f"--task_name {task.name}: this set has no labels to train or evaluate with; its model is mnli's")
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


def fail(message: object):
    """End the program with one line on standard error and exit status 1."""
    raise SystemExit("run_glue.py: error: " + " ".join(str(message).split()))


if __name__ == "__main__":
    # Parsed before the heavy imports, so that --help and a mistyped flag answer at once.
    ARGS = parse_args()

# ruff: noqa: E402
import numpy as np
import torch
import transformers
from tensorboardX import SummaryWriter
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from bert_of_theseus import TheseusLayers, compress, export_successor, find_layers, successor_size
from bert_of_theseus.files import whole_file, whole_folder
from glue_processors import Features, Task, cached_features, chance_score, compute_metrics, read_examples
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler

# ---------------------------------------------------------------------------------------- load


def load_config(path: str, args: argparse.Namespace):
    """The model's config; fails where `path` is no model, and never asks the Hub for what must be a folder."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not os.path.isdir(path):
        fail(f"{path}: no such folder; --model_name_or_path is a folder or a name on the Hub")
    if os.path.isdir(path) and not args.config_name and not os.path.isfile(os.path.join(path, "config.json")):
        fail(f"{path} is no model: it holds no config.json")
    name = args.config_name or path
    try:
        return AutoConfig.from_pretrained(name, cache_dir=args.cache_dir or None, trust_remote_code=False)
    except Exception as error:  # whatever a damaged or missing file makes the loaders raise
        fail(f"{name}: no config could be loaded: {error}")


def load_tokenizer(path: str, args: argparse.Namespace):
    """The model's fast tokenizer, lower-casing if the flag says so."""
    name = args.tokenizer_name or path
    load = functools.partial(
        AutoTokenizer.from_pretrained, name, cache_dir=args.cache_dir or None, trust_remote_code=False
    )
    try:
        tokenizer = load()
        if args.do_lower_case and tokenizer.is_fast:
            if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
                tokenizer = load(do_lower_case=True)
            else:
                logger.warning("--do_lower_case is ignored: %s is not a WordPiece tokenizer", type(tokenizer).__name__)
    except Exception as error:  # as above
        fail(f"{name}: no tokenizer could be loaded: {error}")
    if not tokenizer.is_fast:
        fail(f"{name}: {type(tokenizer).__name__} has no fast version, which is needed here")
    return tokenizer


class Loaded(NamedTuple):
    model: torch.nn.Module
    tokenizer: object
    label_order: list[int]  # the model's output for each of the table's labels


def load_model(path: str, args: argparse.Namespace, task: Task, new_head: bool) -> Loaded:
    """The model in float32, with the task's label names in its config, and its tokenizer.

    Args:
        new_head: make the task head anew where the model has none, or one for another number of labels.
    """
    config = load_config(path, args)
    if not new_head and config.num_labels != task.num_labels:
        fail(
            f"{path}: its task head has {config.num_labels} outputs, {task.name} needs {task.num_labels}: "
            "fine-tune it first (--do_train without --replacing_rate)"
        )
    kept_head = config.num_labels == task.num_labels
    names = [str(config.id2label.get(i)) for i in range(config.num_labels)]
    config.num_labels = task.num_labels
    config.problem_type = "single_label_classification" if task.labels else "regression"
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            cache_dir=args.cache_dir or None,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # as above
        fail(f"{path}: no model could be loaded: {error}")
    if any("scc_layer" in key for key in report["unexpected_keys"]):
        fail(f"{path} is a checkpoint of the 2020 release; scripts/convert_to_hf_ckpt.py makes a model of it")
    made_anew = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if made_anew and not new_head:
        fail(
            f"{path} has no task head ({', '.join(made_anew)} missing): "
            "fine-tune it first (--do_train without --replacing_rate)"
        )
    if made_anew:
        logger.info("Made anew: %s", ", ".join(made_anew))

    order = list(range(task.num_labels))
    if task.labels:
        if kept_head and not made_anew:
            order = label_order(task, names)
        for label, output in zip(task.labels, order, strict=True):
            config.id2label[output] = label
        config.label2id = {label: output for output, label in config.id2label.items()}
    model.config.id2label, model.config.label2id = config.id2label, config.label2id

    tokenizer = load_tokenizer(path, args)
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or args.max_seq_length)
    if args.max_seq_length > longest:
        fail(f"--max_seq_length {args.max_seq_length}: {path} takes {longest} tokens at most")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        fail(f"{args.tokenizer_name or path}: the tokenizer has {len(tokenizer)} tokens, more than the model embeds")
    return Loaded(model.float(), tokenizer, order)


def label_order(task: Task, names: list[str]) -> list[int]:
    """The output of each of the table's labels, for a head whose outputs have these names."""
    lowered = [name.lower() for name in names]
    if sorted(lowered) == sorted(task.labels):
        return [lowered.index(label) for label in task.labels]
    if not all(name.startswith("label_") for name in lowered):
        logger.warning("The model calls its labels %s; they are taken as %s", ", ".join(names), ", ".join(task.labels))
    return list(range(task.num_labels))


def takes_token_types(model: torch.nn.Module) -> bool:
    """Whether the model tells a pair's two sentences apart by `token_type_ids`."""
    return (getattr(model.config, "type_vocab_size", None) or 0) > 1


# ------------------------------------------------------------------------------------ evaluate


class Score(NamedTuple):
    metrics: dict[str, float]
    main: float  # the main metric
    seconds: float  # for the forward passes over the dev set


def read_dev_sets(args: argparse.Namespace, task: Task) -> dict:
    """The examples of each dev set that the task is evaluated on, by task name."""
    names = task.dev_tasks or (task.name,)
    return {name: read_examples(TASKS[name], args.data_dir, "dev") for name in names}


def predict(model: torch.nn.Module, features: Features, batch_size: int, pad_token_id: int) -> torch.Tensor:
    """Logits (rows, outputs) in file order, float32 on the CPU; in evaluation mode, in which the model is left."""
    model.eval()
    device = next(model.parameters()).device
    by_length = np.argsort(-features.lengths, kind="stable")  # batches of like lengths need little padding
    logits = []
    with torch.no_grad():
        for start in tqdm(range(0, len(features), batch_size), desc="Evaluating", leave=False, **BAR):
            batch = features.batch(by_length[start : start + batch_size], pad_token_id)
            batch.pop("labels", None)
            logits.append(model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float().cpu())
    ordered = torch.cat(logits)
    ordered[torch.from_numpy(by_length)] = ordered.clone()
    return ordered


def evaluate(args: argparse.Namespace, task: Task, loaded: Loaded, dev_features: dict[str, Features]) -> Score:
    """Score the model on the task's dev sets; with several of them the metrics' names tell which."""
    metrics, seconds = {}, 0.0
    for name, features in dev_features.items():
        start = time.perf_counter()
        logits = predict(loaded.model, features, args.per_gpu_eval_batch_size, loaded.tokenizer.pad_token_id or 0)
        seconds += time.perf_counter() - start
        predictions = logits[:, loaded.label_order].argmax(1) if task.labels else logits[:, 0]
        result = compute_metrics(TASKS[name], predictions.numpy(), features.labels)
        metrics |= {f"{name}/{key}" if len(dev_features) > 1 else key: value for key, value in result.items()}
    return Score(metrics, metrics[main_key(task)], seconds)


def main_key(task: Task) -> str:
    """The name of the task's main metric in `Score.metrics`."""
    return f"{task.name}/{task.main_metric}" if task.dev_tasks else task.main_metric


def write_results(folder: str | Path, results: dict[str, float]) -> None:
    """`eval_results.txt`: `key = value` a line, sorted."""
    with whole_file(Path(folder) / "eval_results.txt") as temporary:
        temporary.write_text("".join(f"{key} = {value}\n" for key, value in sorted(results.items())))


# --------------------------------------------------------------------------------------- train


def optimizer_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters, in AdamW's groups: no weight decay on biases and LayerNorm weights."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.dim() > 1}
    return [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]


def train_step(
    model: torch.nn.Module,
    layers: TheseusLayers | None,
    micro_batches: list[dict],
    optimizer: torch.optim.Optimizer,
    schedulers: list,
    max_grad_norm: float,
    scaler: torch.amp.GradScaler,
    autocast_dtype: torch.dtype | None = None,
) -> torch.Tensor | None:
    """One optimiser step on micro-batches of tensors on the model's device, the model in training mode.

    Where no module is drawn in any micro-batch nothing can be learned: the passes are left out, and
    the optimiser runs on zeroed gradients.

    Returns:
        The mean loss, or None where the passes were left out.
    """
    draws = [layers.draw_replacements() for _ in micro_batches] if layers else [[True]] * len(micro_batches)
    total = None
    if any(map(any, draws)):
        total = 0.0
        for batch, draw in zip(micro_batches, draws, strict=True):
            if layers:
                layers.fix_draw(draw)
            # Without a drawn module the loss depends on nothing that is trained: it is computed for the log.
            with (
                torch.set_grad_enabled(any(draw)),
                torch.autocast(batch["input_ids"].device.type, autocast_dtype, enabled=autocast_dtype is not None),
            ):
                loss = model(**batch).loss / len(micro_batches)
            if any(draw):
                scaler.scale(loss).backward()
            total += loss.detach()
        if layers:
            layers.fix_draw(None)

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.grad is not None for p in trained):
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
    else:  # before the first draw; the scaler refuses a step without gradients
        optimizer.step()
    for scheduler in schedulers:
        scheduler.step()
    # Zeroed, not set to None: as in the 2020 release, a layer that is not drawn still takes an Adam
    # step, on its momentum, once it has been drawn for the first time.
    optimizer.zero_grad(set_to_none=False)
    return total


def train_batches(n_rows: int, batch_size: int, accumulation: int, seed: int):
    """For each optimiser step, for ever: (epoch, list of micro-batches of row numbers).

    The order of an epoch follows from the seed and the epoch alone. The last micro-batch may be
    smaller; micro-batches left over at an epoch's end, too few for a step, are dropped.
    """
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed + epoch)
        rows = torch.randperm(n_rows, generator=generator).split(batch_size)
        for start in range(0, len(rows) - accumulation + 1, accumulation):
            yield epoch, rows[start : start + accumulation]
        epoch += 1


def count_steps(args: argparse.Namespace, n_rows: int) -> tuple[int, int]:
    """(optimiser steps an epoch, optimiser steps in all)."""
    an_epoch = -(-n_rows // args.per_gpu_train_batch_size) // args.gradient_accumulation_steps
    if an_epoch == 0:
        fail(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: {n_rows} rows make fewer batches of "
            f"{args.per_gpu_train_batch_size} than one step takes"
        )
    return an_epoch, args.max_steps if args.max_steps > 0 else max(1, int(an_epoch * args.num_train_epochs))


def train(
    args, task, loaded, layers, features, dev_features, n_steps, writer
) -> tuple[Score | None, int, Score | None]:
    """Train the model in place for `n_steps`, writing logs and checkpoints.

    Returns:
        The last score, the best step and its score; None where there was no evaluation.
    """
    model = loaded.model
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(optimizer_groups(model, args.weight_decay), args.learning_rate, eps=args.adam_epsilon)
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, args.warmup_steps, n_steps)
    schedulers = [lr_scheduler]
    if layers and args.scheduler_type == "linear":
        schedulers.append(LinearReplacementScheduler(layers, args.replacing_rate, args.scheduler_linear_k))
    elif layers:
        schedulers.append(ConstantReplacementScheduler(layers, args.replacing_rate, args.steps_for_replacing))
    scaler = torch.amp.GradScaler(device.type, enabled=args.fp16)
    autocast_dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
    to_output = torch.tensor(loaded.label_order) if task.labels else None

    def micro_batch(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = features.batch(rows, loaded.tokenizer.pad_token_id or 0)
        if to_output is not None:  # the data count labels as the table does, the loss as the model does
            batch["labels"] = to_output[batch["labels"]]
        return {name: tensor.to(device) for name, tensor in batch.items()}

    score, best_step, best = None, 0, None
    losses = []  # of the steps since the last log line that had one
    batches = train_batches(len(features), args.per_gpu_train_batch_size, args.gradient_accumulation_steps, args.seed)
    bar = tqdm(total=n_steps, desc="Training", **BAR)
    for step in range(1, n_steps + 1):
        in_force = {"learning_rate": lr_scheduler.get_last_lr()[0]}
        if layers:
            in_force["replacing_rate"] = layers.replacing_rate
        epoch, rows = next(batches)
        model.train()
        loss = train_step(
            model,
            layers,
            [micro_batch(r) for r in rows],
            optimizer,
            schedulers,
            args.max_grad_norm,
            scaler,
            autocast_dtype,
        )
        if loss is not None:
            losses.append(loss)
        if bar.update():  # reading the loss waits for the device, so only when the bar is redrawn
            shown = {"loss": losses[-1].item()} if losses else {}
            if layers:
                shown["rate"] = layers.replacing_rate
            bar.set_description(f"Epoch {epoch + 1}", refresh=False)
            bar.set_postfix(shown, refresh=False)

        if step == n_steps or (args.logging_steps and step % args.logging_steps == 0):
            log(writer, step, ({"loss": torch.stack(losses).mean().item()} if losses else {}) | in_force)
            losses = []
            if args.evaluate_during_training:
                score = evaluate(args, task, loaded, dev_features)
                log_score(writer, step, score)
                if best is None or score.main > best.main:
                    best_step, best = step, score
                    save(loaded, Path(args.output_dir) / "checkpoint-best", score.metrics | {"step": step})
        if args.save_steps and step % args.save_steps == 0:
            save(loaded, Path(args.output_dir) / f"checkpoint-{step}")
    bar.close()
    return score, best_step, best


def log(writer: SummaryWriter, step: int, values: dict[str, float]) -> None:
    """The same values as TensorBoard scalars and as a line of JSON on standard output."""
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    tqdm.write(json.dumps({"step": step} | values))
    sys.stdout.flush()


def log_score(writer: SummaryWriter, step: int, score: Score) -> None:
    log(writer, step, {f"eval_{key}": value for key, value in score.metrics.items()})


def save(loaded: Loaded, folder: Path, results: dict[str, float] | None = None) -> None:
    """An ordinary checkpoint of the model, or of its successor: weights, config, tokenizer; and results, if any."""
    compressed = any(isinstance(module, TheseusLayers) for module in loaded.model.modules())
    model = export_successor(loaded.model) if compressed else loaded.model
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        if results:
            write_results(temporary, results)


# ---------------------------------------------------------------------------------------- main

# Bars that are not watched, in a log file, say, are redrawn every half minute.
BAR = {"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 30}


def check_output_dir(args: argparse.Namespace) -> None:
    """Fail where training would mix with, or destroy, what is there."""
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        fail(f"--output_dir {output_dir} is a file")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not args.overwrite_output_dir:
        fail(f"--output_dir {output_dir} is not empty; name another, or give --overwrite_output_dir to replace its run")
    source = Path(args.model_name_or_path).resolve()
    if source.is_dir() and output_dir.resolve() in (source, *source.parents):
        fail(
            f"--model_name_or_path {args.model_name_or_path} lies in --output_dir {output_dir} and would be overwritten"
        )


def clear_output_dir(output_dir: Path) -> None:
    """Remove what an earlier run left in the folder, and nothing else, so that two runs never mix."""
    for pattern in ("checkpoint-*", "runs"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder)
    for pattern in ("config.json", "model*.safetensors*", "eval_results.txt"):
        for file in output_dir.glob(pattern):
            file.unlink()


def choose_device(args: argparse.Namespace) -> torch.device:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        fail(f"started as one of {os.environ['WORLD_SIZE']} processes, but runs as one: start it with python")
    device = torch.device("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
    if args.fp16 and device.type == "cpu":
        fail("--fp16 needs a GPU; on a CPU, leave it out or try --bf16")
    return device


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
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    n_layer = model.config.get_text_config().num_hidden_layers
    role = "Predecessor" if scc_n_layer else "Model"
    say(role, f"{type(model).__name__} of {n_layer} layers, {parameters:,} parameters, from {args.model_name_or_path}")
    if scc_n_layer:
        parameters -= count_parameters(model.get_submodule(find_layers(model))[scc_n_layer:])
        say("Successor", f"{scc_n_layer} layers, {parameters:,} parameters")
        rate, k = args.replacing_rate, args.scheduler_linear_k
        if args.scheduler_type == "linear":
            steps_to_1 = (1 - rate) / k if k else float("inf")
            end = (
                f"1 at step {steps_to_1:,.0f}"
                if steps_to_1 < n_steps
                else f"{min(1, rate + k * n_steps):.3g} at the end"
            )
            say("Rate", f"from {rate:g} linearly to {end}")
        elif max(args.steps_for_replacing, 1) < n_steps:
            say("Rate", f"{rate:g} for {max(args.steps_for_replacing, 1):,} steps, then 1")
        else:
            say("Rate", f"{rate:g} in all steps")
    examples_a_step = args.per_gpu_train_batch_size * args.gradient_accumulation_steps
    say("Steps", f"{n_steps:,} of {examples_a_step} examples, {steps_an_epoch:,} an epoch, on {device} ({where})")
    if dev_examples:
        during = (n_steps // args.logging_steps if args.logging_steps else 0) * args.evaluate_during_training
        predecessor = ", 1 of them of the predecessor" if scc_n_layer else ""
        ends_on_one = during and n_steps % args.logging_steps == 0
        say("Dev passes", f"{during + (not ends_on_one) + bool(scc_n_layer):,}{predecessor}")
    n_checkpoints = (n_steps // args.save_steps if args.save_steps else 0) + args.evaluate_during_training + 1
    # A checkpoint that takes another's place stands beside it for a moment.
    needed = (n_checkpoints + args.evaluate_during_training) * parameters * 4
    existing = next(
        p for p in (Path(args.output_dir).resolve(), *Path(args.output_dir).resolve().parents) if p.is_dir()
    )
    free = shutil.disk_usage(existing).free
    spare = ", room for one more while the best is replaced" * args.evaluate_during_training
    say("Disk", f"{n_checkpoints:,} checkpoints of {size(parameters * 4)}{spare}: {size(needed)} of {size(free)} free")
    if needed > free:
        fail(f"{args.output_dir}: {size(needed)} of checkpoints do not fit in {size(free)}; raise --save_steps")


def compare(rows: list[tuple[str, Score, int]], main: str) -> str:
    """A table of (who, score, parameters), each held against the first."""
    keys = list(rows[0][1].metrics)
    head = ["", *keys, f"{main} kept", "parameters", "seconds for dev"]
    table = [head]
    for who, score, parameters in rows:
        kept = f"{100 * score.main / rows[0][1].main:.1f} %" if rows[0][1].main > 0 else "-"
        table.append([who, *(f"{score.metrics[k]:.4f}" for k in keys), kept, f"{parameters:,}", f"{score.seconds:.2f}"])
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def checkpoint_results(args: argparse.Namespace, task: Task, device, dev_features: dict) -> dict[str, float]:
    """The metrics of every checkpoint-N in output_dir, their names ending in `_N`."""
    results = {}
    found = (folder for folder in Path(args.output_dir).glob("checkpoint-*") if folder.name[11:].isdigit())
    for folder in sorted(found, key=lambda folder: int(folder.name[11:])):
        loaded = load_model(str(folder), args, task, new_head=False)
        loaded.model.to(device)
        score = evaluate(args, task, loaded, dev_features)
        logger.info("%s: %s %.4f", folder.name, main_key(task), score.main)
        results |= {f"{key}_{folder.name[11:]}": value for key, value in score.metrics.items()}
    return results


def featurize(args, task_name, split, examples, loaded) -> Features:
    return cached_features(
        TASKS[task_name],
        split,
        examples,
        loaded.tokenizer,
        args.max_seq_length,
        takes_token_types(loaded.model),
        folders=(args.data_dir, args.output_dir),
        overwrite=args.overwrite_cache,
    )


def run_evaluation(args: argparse.Namespace, task: Task) -> None:
    """--do_eval alone: evaluate the model in output_dir or, where there is none, model_name_or_path."""
    dev_examples = read_dev_sets(args, task)
    device = choose_device(args)
    has_model = os.path.isfile(os.path.join(args.output_dir, "config.json"))
    path = args.output_dir if has_model else args.model_name_or_path
    logger.info("Evaluating %s", path)
    loaded = load_model(path, args, task, new_head=False)
    loaded.model.to(device)

    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    dev_features = {name: featurize(args, name, "dev", examples, loaded) for name, examples in dev_examples.items()}
    score = evaluate(args, task, loaded, dev_features)
    results = dict(score.metrics)
    if args.eval_all_checkpoints:
        results |= checkpoint_results(args, task, device, dev_features)
    write_results(args.output_dir, results)
    print(json.dumps({f"eval_{key}": value for key, value in score.metrics.items()}))


def run_training(args: argparse.Namespace, task: Task) -> None:
    """Fine-tune or compress, evaluate, and leave the result in output_dir."""
    # First all that can be wrong, so that a run that fails has written nothing.
    check_output_dir(args)
    examples = read_examples(task, args.data_dir, "train")
    dev_examples = read_dev_sets(args, task) if args.do_eval or args.evaluate_during_training else {}
    steps_an_epoch, n_steps = count_steps(args, len(examples.first))
    device = choose_device(args)
    compressing = args.replacing_rate is not None
    transformers.set_seed(args.seed)
    loaded = load_model(args.model_name_or_path, args, task, new_head=not compressing)
    model = loaded.model.to(device)
    scc_n_layer = None
    if compressing:
        try:
            scc_n_layer = successor_size(len(model.get_submodule(find_layers(model))), args.scc_n_layer)
        except ValueError as error:
            fail(f"{args.model_name_or_path}: {error}")
    announce(args, task, loaded, examples, dev_examples, scc_n_layer, n_steps, steps_an_epoch)

    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    clear_output_dir(output_dir)
    features = featurize(args, task.name, "train", examples, loaded)
    dev_features = {name: featurize(args, name, "dev", examples, loaded) for name, examples in dev_examples.items()}

    rows, layers = [], None
    parameters = count_parameters(model)
    if compressing:
        if dev_features:
            warm_up = next(iter(dev_features.values())).batch([0], loaded.tokenizer.pad_token_id or 0)
            warm_up.pop("labels")
            model.eval()(**{name: tensor.to(device) for name, tensor in warm_up.items()})  # or its seconds would count
            score = evaluate(args, task, loaded, dev_features)
            rows.append(("predecessor", score, parameters))
            first = next(iter(dev_features))
            chance = chance_score(TASKS[first], dev_features[first].labels)
            logger.info("%-12s %s %.4f", "Predecessor", main_key(task), score.main)
            if score.main <= chance:
                logger.warning(
                    "The predecessor is no better than chance (%s %.4f against %.4f): is it fine-tuned for %s?",
                    main_key(task),
                    score.main,
                    chance,
                    task.name,
                )
        layers = compress(model, scc_n_layer, args.seed)
        parameters -= count_parameters(layers.predecessor)
        parameters += count_parameters(layers.successor)

    writer = SummaryWriter(str(output_dir / "runs"))
    last, best_step, best = train(args, task, loaded, layers, features, dev_features, n_steps, writer)
    save(loaded, output_dir)
    if args.do_eval:
        if last is None:
            last = evaluate(args, task, loaded, dev_features)
            log_score(writer, n_steps, last)
        results = dict(last.metrics)
        if args.eval_all_checkpoints:
            results |= checkpoint_results(args, task, device, dev_features)
        write_results(output_dir, results)
    writer.close()
    logger.info("The %s is in %s", "successor" if compressing else "model", output_dir)
    if rows:
        rows.append((f"successor, last step ({n_steps})", last, parameters))
        if best:
            rows.append((f"successor, best step ({best_step})", best, parameters))
        print(compare(rows, main_key(task)))


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for chatty in ("httpx", "httpcore", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warn_about(args)
    task = TASKS[args.task_name]
    try:
        run_training(args, task) if args.do_train else run_evaluation(args, task)
    except (GlueDataError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main(ARGS)
