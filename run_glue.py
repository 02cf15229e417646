#!/usr/bin/env python
"""Fine-tune a predecessor on a GLUE task, or compress it into a successor by progressive module replacing.

With --replacing_rate the model is compressed (BERT-of-Theseus, EMNLP 2020); without it, it is fine-tuned.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from bert_of_theseus import compress, export_successor, find_layers, successor_size
from bert_of_theseus.classifier import BAR, Classifier, ModelError, ModelSource, load_classifier
from bert_of_theseus.cpu_kernels import describe_kernels, fast_kernels
from bert_of_theseus.data_parallel import n_processes, rank
from bert_of_theseus.model_card import model_card
from bert_of_theseus.run import processes
from bert_of_theseus.run import record as records
from bert_of_theseus.run.command_line import (
    OneLineParser,
    UserError,
    above,
    at_least,
    log_plainly,
    one_line_errors,
)
from bert_of_theseus.run.device import choose_device, device_name
from bert_of_theseus.run.files import write_whole
from bert_of_theseus.run.folder import BEST, RESULTS, as_results, checkpoints, read_record, read_results
from bert_of_theseus.run.processes import is_main, on_main
from bert_of_theseus.run.run import Run
from bert_of_theseus.training import (
    LossError,
    TrainState,
    compile_layers,
    enable_gradient_checkpointing,
    micro_batch,
    optimizer_groups,
    train_batches,
    train_step,
)
from glue_processors import (
    TASKS,
    DevSets,
    Examples,
    Features,
    FeaturesCache,
    GlueDataError,
    Score,
    comparison,
    find_task,
    read_dev_sets,
    read_examples,
)
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler

logger = logging.getLogger("run_glue")

# How --scheduler_type makes a schedule of the arguments. A new schedule is a class in replacement_scheduler.py, a line
# here, and its flags.
SCHEDULES: dict[str, Callable] = {
    "none": lambda args, layers: ConstantReplacementScheduler(layers, args.replacing_rate, args.steps_for_replacing),
    "linear": lambda args, layers: LinearReplacementScheduler(layers, args.replacing_rate, args.scheduler_linear_k),
}


# ------------------------------------------------------------------------------------------ arguments


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = OneLineParser(prog="run_glue.py", description=__doc__)
    tasks = [name for name, task in TASKS.items() if task.metrics]

    add = parser.add_argument_group("what to run").add_argument
    add("--task_name", required=True, metavar="TASK", help=f"{', '.join(tasks)}; in any case")
    add("--data_dir", required=True, help="folder with the task's .tsv files")
    add("--model_name_or_path", required=True, help="the model to start from: a folder or a name on the Hub")
    add("--output_dir", required=True, help="where the successor (or the fine-tuned model) and its checkpoints go")
    add("--do_train", action="store_true", help="train")
    add("--do_eval", action="store_true", help="evaluate on the dev set; without --do_train, the model in output_dir")
    add("--evaluate_during_training", action="store_true", help="evaluate every logging_steps, keep the best step")
    add("--eval_all_checkpoints", action="store_true", help="with --do_eval, evaluate every checkpoint-N as well")
    add("--overwrite_output_dir", action="store_true", help="replace the run that output_dir holds")
    add("--resume", action="store_true", help="resume the run that output_dir holds, if it holds one")

    add = parser.add_argument_group("compression (only with --replacing_rate)").add_argument
    add("--replacing_rate", type=float, help="constant replacing rate, or the start of the schedule; in (0, 1]")
    add("--scheduler_type", choices=SCHEDULES, default="none", help="none: a constant rate (default: %(default)s)")
    add("--scheduler_linear_k", type=at_least(0, float), default=0, help="what the linear rate gains each step")
    add("--steps_for_replacing", type=at_least(0), default=0, help="steps at the constant rate before it becomes 1")
    add("--scc_n_layer", type=at_least(1), help="layers of the successor (default: half of the predecessor's)")

    add = parser.add_argument_group("training").add_argument
    add("--num_train_epochs", type=above(0), default=20.0, help="default: %(default)s")
    add("--max_steps", type=at_least(-1), default=-1, help="if above 0, train for exactly so many optimiser steps")
    add("--learning_rate", type=at_least(0, float), default=5e-5, help="default: %(default)s")
    add("--warmup_steps", type=at_least(0), default=0, help="steps of linear warm-up (default: %(default)s)")
    add("--weight_decay", type=at_least(0, float), default=0.0, help="not on biases and LayerNorm (default: 0)")
    add("--adam_epsilon", type=at_least(0, float), default=1e-8, help="default: %(default)s")
    add("--max_grad_norm", type=above(0), default=1.0, help="gradient clipping (default: %(default)s)")
    add("--per_gpu_train_batch_size", type=at_least(1), default=8, help="per device (default: %(default)s)")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=8, help="per device (default: %(default)s)")
    add("--gradient_accumulation_steps", type=at_least(1), default=1, help="micro-batches a step (default: 1)")
    add("--seed", type=at_least(0), default=42, help="default: %(default)s")
    add("--logging_steps", type=at_least(0), default=50, help="optimiser steps; 0: only the last (default: 50)")
    add("--save_steps", type=at_least(0), default=50, help="optimiser steps; 0: never (default: %(default)s)")
    add("--save_total_limit", type=at_least(1), help="keep at most so many checkpoint-N (default: all)")

    add = parser.add_argument_group("input").add_argument
    add("--max_seq_length", type=at_least(4), default=128, help="tokens; longer input is cut (default: %(default)s)")
    add("--do_lower_case", action="store_true", help="lower-case the text (default: as the tokenizer is set)")
    add("--config_name", default="", help="if not model_name_or_path")
    add("--tokenizer_name", default="", help="if not model_name_or_path")
    add("--cache_dir", default="", help="where downloaded models are kept")
    add("--overwrite_cache", action="store_true", help="tokenise anew")

    add = parser.add_argument_group("device").add_argument
    add("--no_cuda", action="store_true", help="use the CPU even where there are GPUs")
    add("--fp16", action="store_true", help="mixed precision with float16 (GPU)")
    add("--bf16", action="store_true", help="mixed precision with bfloat16")
    add("--tf32", action="store_true", help="matrix products in TensorFloat-32 (GPU)")
    add("--torch_compile", action="store_true", help="compile the layers, which is slow to start (GPU)")
    add("--gradient_checkpointing", action="store_true", help="less memory: activations are computed twice")
    add("--deterministic", action="store_true", help="the same weights from the same command on a GPU too; slower")
    add("--no_fast_kernels", action="store_true", help="torch's own operators on a CPU; slower")

    add = parser.add_argument_group("accepted so that published commands run; without effect").add_argument
    add("--model_type", default="bert", help="the model's config decides")
    add("--fp16_opt_level", help="was for NVIDIA apex")
    add("--local_rank", type=int, default=-1, help="was set by the launcher")

    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def check_args(parser: OneLineParser, args) -> None:
    """Refuse arguments that contradict each other."""
    tasks = [name for name, task in TASKS.items() if task.metrics]
    try:
        task = find_task(args.task_name)
    except KeyError:
        parser.error(f"--task_name {args.task_name}: there is no such task; there are {', '.join(tasks)}")
    args.task_name = task.name
    if not task.metrics:
        parser.error(f"--task_name {task.name} has no labels; the model of {task.predicted_by} predicts it")
    if not (args.do_train or args.do_eval):
        parser.error("nothing to do: give --do_train, --do_eval or both")
    for flag in ("evaluate_during_training", "resume"):
        if getattr(args, flag) and not args.do_train:
            parser.error(f"--{flag} needs --do_train")
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


def warn_about(args) -> None:
    """Warn of flags that do something else than their user may think."""
    if args.fp16_opt_level is not None:
        logger.warning("--fp16_opt_level is ignored: --fp16 is torch's own mixed precision")
    if args.replacing_rate is None or not args.do_train:
        return
    if args.scheduler_type == "linear" and args.steps_for_replacing:
        logger.warning("--steps_for_replacing is ignored: it is for a constant rate")
    if args.scheduler_type == "none" and args.scheduler_linear_k:
        logger.warning("--scheduler_linear_k is ignored: it is for --scheduler_type linear")
    if args.scheduler_type == "linear" and args.scheduler_linear_k == 0:
        logger.warning("--scheduler_linear_k is 0: the replacing rate stays at %g", args.replacing_rate)
    if args.scheduler_type == "none" and args.steps_for_replacing == 0:
        logger.warning(
            "--steps_for_replacing is 0: only the first step runs at replacing rate %g, all others at 1",
            args.replacing_rate,
        )


# ----------------------------------------------------------------------------------------------- main


def main(args, variant: Callable | None = None) -> None:
    """Load the predecessor, score it, compress it, train the successor, export it, compare; or fine-tune a model.

    Args:
        args: of `parse_args`.
        variant: changes what is trained, as `variant(args, state)`; scripts/ablate.py has some.
    """
    device = choose_device(not args.no_cuda, args.fp16, args.tf32, args.deterministic)
    with Run(Path(args.output_dir), args.save_total_limit) as run:
        if not args.do_train:
            evaluate_alone(args, device, run.folder)
            return
        run.find(args.resume, args.overwrite_output_dir, source=args.model_name_or_path)
        train_examples, dev_examples = read_data(args)
        steps_an_epoch, n_steps = count_steps(args, len(train_examples.first))
        record = describe_run(args, device, train_examples, dev_examples)
        if run.is_finished():
            run.check(record)
            logger.info("The run in %s is finished: nothing is left to train", run.folder)
            run.clean_up()
            if args.do_eval:
                evaluate_alone(args, device, run.folder)
            return
        transformers.set_seed(args.seed)
        classifier = load_model(args, device)
        record["predecessor_sha256"] = model_sha256(args, classifier)
        run.check(record)
        announce_model(args, classifier, train_examples, dev_examples)
        n_parameters = count_parameters(classifier.model)
        train_set, dev_sets = tokenize_data(args, classifier, train_examples, dev_examples)

        predecessor = None
        if args.replacing_rate is not None and dev_examples:
            predecessor = score_predecessor(classifier, dev_sets)
            dev_sets = replace(dev_sets, predecessor=predecessor)
        state = new_state(args, classifier.model, n_steps)  # compresses the model
        if variant:
            variant(args, state)
        if rank():  # each process has dropout of its own
            torch.manual_seed(np.random.SeedSequence([args.seed, rank()]).generate_state(1)[0].item())
        announce_training(args, state, run, steps_an_epoch)  # refuses what does not fit on the disk
        saved = run.begin(record)  # from here on the run writes
        if saved:
            state.load_state_dict(saved["state"], saved["processes"][rank()])
        del saved  # three times the size of the trained layers

        last = train(args, state, classifier, train_set, dev_sets, run)
        run.save_model(lambda folder: write_model(folder, args, state, classifier, last))
        if last is None and dev_examples:  # after saving: if it fails, the model is safe
            last = dev_sets.score(classifier)
            if state.layers:
                run.write("README.md", card(args, state, last))
        if args.do_eval:
            results = dict(last.metrics)
            if args.eval_all_checkpoints:
                stop_between = partial(end_if_stopped, args, state, classifier, run, last)
                results |= checkpoint_results(args, dev_sets, device, run.checkpoints(), stop_between)
            run.write(RESULTS, as_results(results))
            if not args.evaluate_during_training:  # after the last moment at which a signal stops the run
                run.log(n_steps, last.logged())
        finish(args, state, run, {"predecessor": predecessor, "last": last}, n_parameters)


def train(args, state: TrainState, classifier: Classifier, data: Features, dev_sets: DevSets, run: Run) -> Score | None:
    """Train up to the last step. Returns the score after it, if it was evaluated.

    Raises:
        SystemExit: a signal has asked for the end; the state is saved.
        UserError: a loss or a weight is not a finite number; nothing of it is saved.
    """
    score = None
    batches = train_batches(len(data), batch_rows(args), args.gradient_accumulation_steps, args.seed)
    with tqdm(total=state.n_steps, initial=state.step, desc="Training", disable=not is_main(), **BAR) as bar:
        for epoch, rows in islice(batches, state.step, state.n_steps):
            started, rates, score = time.perf_counter(), state.rates(), None
            state.model.train()
            micro_batches = [micro_batch(data, micro_rows, state.device) for micro_rows in rows]
            loss = train_step(state, micro_batches, args.max_grad_norm, autocast_dtype(args))  # both schedules step too
            is_saved = is_multiple(state.step, args.save_steps)
            is_logged = is_multiple(state.step, args.logging_steps) or state.step == state.n_steps
            if state.device.type == "cpu" or is_logged or is_saved or state.step % 100 == 0:  # it waits for a GPU
                state.check_losses()
            mean_loss = state.take_mean_loss() if is_logged else None
            show_progress(bar, epoch, rates, loss)
            state.seconds += time.perf_counter() - started

            if is_logged:
                run.log(state.step, rates if mean_loss is None else {"loss": mean_loss} | rates)
            if is_logged and args.evaluate_during_training:
                state.check_weights()
                score = dev_sets.score(classifier)
                run.log(state.step, score.logged())
                keep_if_best(args, state, classifier, score, run)
            if is_saved:
                save_state(args, state, classifier, run, score)
            end_if_stopped(args, state, classifier, run, score)
    state.check_weights()
    return score


# ------------------------------------------------------------------------------- what training needs


def read_data(args) -> tuple[Examples, dict[str, Examples]]:
    """The training set, and the dev sets by name, if any are evaluated."""
    task = TASKS[args.task_name]
    evaluates = args.do_eval or args.evaluate_during_training
    return read_examples(task, args.data_dir, "train"), read_dev_sets(task, args.data_dir) if evaluates else {}


def load_model(args, device: torch.device) -> Classifier:
    """The model to start from, on this process's device; with a new head, if need be, where it is fine-tuned."""
    source = ModelSource(
        args.model_name_or_path, args.config_name, args.tokenizer_name, args.cache_dir, args.do_lower_case
    )
    compressing = args.do_train and args.replacing_rate is not None
    classifier = load_classifier(
        source, TASKS[args.task_name].labels, args.do_train and not compressing, args.max_seq_length
    )
    classifier.model.to(device)
    processes.share_weights(classifier.model)
    if compressing:
        with refused(args.model_name_or_path):
            successor_size(len(classifier.model.get_submodule(find_layers(classifier.model))), args.scc_n_layer)
    return classifier


def tokenize_data(
    args, classifier: Classifier, train_examples: Examples, dev_examples: dict[str, Examples]
) -> tuple[Features, DevSets]:
    """Features of the training set, its labels as the model counts them, and of the dev sets."""
    task = TASKS[args.task_name]
    train_set = featurize(args, classifier, task.name, "train", train_examples)
    if task.labels:
        train_set.labels = np.array(classifier.label_order)[train_set.labels]
    return train_set, tokenize_dev_sets(args, classifier, dev_examples)


def tokenize_dev_sets(args, classifier: Classifier, dev_examples: dict[str, Examples]) -> DevSets:
    features = {name: featurize(args, classifier, name, "dev", examples) for name, examples in dev_examples.items()}
    return DevSets(TASKS[args.task_name], features, args.per_gpu_eval_batch_size)


def featurize(args, classifier: Classifier, task_name: str, split: str, examples: Examples) -> Features:
    """The tokenised data set. The main process tokenises; the others read its cache, if it could write one."""
    cache = FeaturesCache([args.data_dir, args.output_dir], args.overwrite_cache and is_main(), is_main())
    with processes.main_process_first():
        return cache.features(
            TASKS[task_name],
            split,
            examples,
            classifier.tokenizer,
            args.max_seq_length,
            classifier.takes_token_types(),
        )


def new_state(args, model: torch.nn.Module, n_steps: int) -> TrainState:
    """Compress the model, unless it is fine-tuned, and make all that moves in training."""
    layers = rate_schedule = None
    if args.replacing_rate is not None:
        with refused(args.model_name_or_path):
            layers = compress(model, args.scc_n_layer, args.seed)  # the same draws in all processes
        rate_schedule = SCHEDULES[args.scheduler_type](args, layers)
    if args.gradient_checkpointing:
        with refused("--gradient_checkpointing"):
            enable_gradient_checkpointing(model)
    if args.torch_compile:
        with refused("--torch_compile"):
            compile_layers(model)
    optimizer, lr_schedule = new_optimizer(args, model, n_steps)
    device_type = next(model.parameters()).device.type
    scaler = torch.amp.GradScaler(device_type, enabled=args.fp16)
    return TrainState(model, layers, optimizer, lr_schedule, rate_schedule, scaler, n_steps)


def new_optimizer(args, model: torch.nn.Module, n_steps: int):
    """AdamW over the parameters that require gradients, and the schedule of its learning rate."""
    groups = optimizer_groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, args.learning_rate, eps=args.adam_epsilon, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, args.warmup_steps, n_steps)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """UserError, of `what` and why, where the block raises ValueError."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def batch_rows(args) -> int:
    """Rows of a micro-batch, those of all processes together."""
    return args.per_gpu_train_batch_size * n_processes()


def count_steps(args, n_rows: int) -> tuple[int, int]:
    """(optimiser steps an epoch, optimiser steps in all)."""
    an_epoch = -(-n_rows // batch_rows(args)) // args.gradient_accumulation_steps
    if an_epoch == 0:
        raise UserError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: {n_rows} rows make fewer batches of "
            f"{batch_rows(args)} than one step takes"
        )
    return an_epoch, args.max_steps if args.max_steps > 0 else max(1, int(an_epoch * args.num_train_epochs + 1e-9))


def autocast_dtype(args) -> torch.dtype | None:
    return torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None


def is_multiple(step: int, every: int) -> bool:
    """Whether it is time for what happens every so many steps; 0: never."""
    return every > 0 and step % every == 0


def show_progress(bar: tqdm, epoch: int, rates: dict[str, float], loss: torch.Tensor | None) -> None:
    if bar.update():  # the bar has been redrawn: only then a GPU has to be waited for
        bar.set_description(f"Epoch {epoch + 1}", refresh=False)
        shown = {} if loss is None else {"loss": loss.item() * n_processes()}
        bar.set_postfix(shown | {"rate": rates["replacing_rate"]} if "replacing_rate" in rates else shown)


# ------------------------------------------------------------------------------------------ evaluate


def score_predecessor(classifier: Classifier, dev_sets: DevSets) -> Score:
    """The predecessor's score, with a warning where it is no better than chance."""
    task, features = dev_sets.task, next(iter(dev_sets.features.values()))
    # A first batch warms the device up: else the predecessor's seconds would flatter the successor.
    classifier.predict(features.head(dev_sets.batch_size * n_processes()), dev_sets.batch_size)
    score, chance = dev_sets.score(classifier), dev_sets.chance()
    say("Predecessor", f"{task.main_key} {score.main:.4f}")
    if score.main <= chance:
        logger.warning(
            "The predecessor is no better than chance (%s %.4f against %.4f): is it fine-tuned for %s?",
            task.main_key,
            score.main,
            chance,
            task.name,
        )
    return score


def evaluate_alone(args, device: torch.device, folder: Path) -> None:
    """--do_eval without training: evaluate the model in output_dir or, if it has none, model_name_or_path."""
    has_model = on_main((folder / "config.json").is_file)
    if not has_model and on_main(read_record, folder):
        raise UserError(
            f"--output_dir {folder} holds a run without a model: it is not finished, or the model was removed; to "
            "evaluate one of its checkpoints, give that folder as --output_dir"
        )
    task = TASKS[args.task_name]
    dev_examples = read_dev_sets(task, args.data_dir)
    if has_model:  # the flags about loading are about model_name_or_path
        classifier = load_classifier(str(folder), task.labels, max_seq_length=args.max_seq_length)
        classifier.model.to(device)
    else:
        classifier = load_model(args, device)
    logger.info("Evaluating %s", folder if has_model else args.model_name_or_path)
    dev_sets = tokenize_dev_sets(args, classifier, dev_examples)
    score = dev_sets.score(classifier)
    results = dict(score.metrics)
    if args.eval_all_checkpoints:
        results |= checkpoint_results(args, dev_sets, device, on_main(checkpoints, folder))
    if folder.name == BEST:  # its step is needed where the run is resumed
        results = on_main(read_results, folder) | results
    if is_main():
        write_whole(folder / RESULTS, as_results(results))
        print(json.dumps(score.logged()))


def checkpoint_results(
    args, dev_sets: DevSets, device: torch.device, folders: list[Path], before_each: Callable = lambda: None
) -> dict[str, float]:
    """The metrics of each checkpoint-N, their names ending in `_N`."""
    task, results = dev_sets.task, {}
    for folder in folders:
        before_each()
        classifier = load_classifier(str(folder), task.labels, max_seq_length=args.max_seq_length)
        classifier.model.to(device)
        score = dev_sets.score(classifier)
        logger.info("%s: %s %.4f", folder.name, task.main_key, score.main)
        results |= {f"{key}_{folder.name[11:]}": value for key, value in score.metrics.items()}
    return results


# ---------------------------------------------------------------------------------- what is written


def write_model(folder: Path, args, state: TrainState, classifier: Classifier, score: Score | None) -> None:
    """Write an ordinary checkpoint: weights, config, tokenizer, and of a successor its card."""
    model = export_successor(state.model) if state.layers else state.model
    model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    if state.layers:
        (folder / "README.md").write_text(card(args, state, score), encoding="utf-8", errors="replace")


def card(args, state: TrainState, score: Score | None) -> str:
    """The README.md of the successor as it is now."""
    source, task = args.model_name_or_path, TASKS[args.task_name]
    predecessor = Path(source).resolve().name if os.path.isdir(source) else source
    variant = getattr(args, "variant", None)
    name = Path(args.output_dir).resolve().name + (f" (variant {variant} of the method)" if variant else "")
    return model_card(state, name, f"GLUE {task.folder}", predecessor, score.metrics if score else {})


def save_state(args, state: TrainState, classifier: Classifier, run: Run, score: Score | None, stopped=False) -> None:
    """Save a checkpoint from which the run can be resumed."""
    state.check_losses()
    state.check_weights()
    run.save_state(state, lambda folder: write_model(folder, args, state, classifier, score), stopped)


def end_if_stopped(args, state: TrainState, classifier: Classifier, run: Run, score: Score | None) -> None:
    """Where a signal has asked for the end, save the state and end the process."""
    if run.stop_requested():
        save_state(args, state, classifier, run, score, stopped=not is_multiple(state.step, args.save_steps))
        run.end_stopped(state.step)


def keep_if_best(args, state: TrainState, classifier: Classifier, score: Score, run: Run) -> None:
    """Save checkpoint-best, with its results, where the main metric is better than that of the one there."""
    task = TASKS[args.task_name]

    def write(folder: Path) -> None:
        write_model(folder, args, state, classifier, score)
        results = score.metrics | score.loyalty | {"step": state.step}
        (folder / RESULTS).write_text(as_results(results))

    best = run.best_results()
    if task.main_key not in best or score.main > best[task.main_key]:
        run.save_best(write)


def finish(args, state: TrainState, run: Run, scores: dict[str, Score | None], n_parameters: int) -> None:
    """Write the record with its results, with which the run is finished, and print the comparison.

    Args:
        scores: "predecessor", "last", where there are any.
        n_parameters: of the model to start from.
    """
    main_key, n_exported = TASKS[args.task_name].main_key, exported_parameters(state)
    last, predecessor = scores["last"], scores["predecessor"]
    results = {"steps": state.n_steps, "parameters": n_exported, "training_seconds": state.seconds}
    results["metrics"] = last.metrics if last else {}
    rows = []
    if predecessor:
        results["predecessor"] = predecessor.recorded() | {"parameters": n_parameters}
        rows.append(("predecessor", results["predecessor"]))
    if last:
        results["last"] = {"step": state.n_steps} | last.recorded() | {"parameters": n_exported}
        rows.append((f"successor, last step ({state.n_steps})", results["last"]))
    if best := run.best_results():
        step = int(best.pop("step"))
        metrics = {key: value for key, value in best.items() if key in last.metrics}
        loyalty = {key: value for key, value in best.items() if key in last.loyalty}
        results["best"] = {"step": step, "metrics": metrics, "main": best[main_key], "loyalty": loyalty}
        rows.append((f"successor, best step ({step})", results["best"] | {"parameters": n_exported}))
    run.finish(results)
    logger.info("The %s is in %s", "successor" if state.layers else "model", run.folder)
    if predecessor and is_main():
        print(comparison(rows, main_key))


# ------------------------------------------------------------------------- before anything is written


def describe_run(args, device: torch.device, train_examples: Examples, dev_examples: dict[str, Examples]) -> dict:
    """What makes the results, but for the model to start from, for the run's record."""
    task = TASKS[args.task_name]
    return records.describe(vars(args), device, Path(__file__).resolve().parent) | {
        "task": task.name,
        "main_metric": task.main_key,
        "variant": getattr(args, "variant", None),  # of the method, in scripts/ablate.py
        "data": {task.train: train_examples.sha256} | {TASKS[n].dev: dev.sha256 for n, dev in dev_examples.items()},
    }


def model_sha256(args, classifier: Classifier) -> str:
    """A digest of the model to start from. A new head is random: the main process's is everybody's."""
    config_name = args.config_name or args.model_name_or_path
    config, _ = transformers.PretrainedConfig.get_config_dict(config_name, cache_dir=args.cache_dir or None)
    return on_main(records.model_sha256, classifier.model, classifier.tokenizer, config)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def exported_parameters(state: TrainState) -> int:
    """Parameters of the model that is saved."""
    return count_parameters(state.model) - (count_parameters(state.layers.predecessor) if state.layers else 0)


def say(what: str, text: str) -> None:
    logger.info("%-12s %s", what, text)


def announce_model(args, classifier: Classifier, train_examples: Examples, dev_examples: dict[str, Examples]) -> None:
    """Say what is trained on what."""
    dev_rows = "".join(f", {len(dev.first):,} {name} dev rows" for name, dev in dev_examples.items())
    say("Task", f"{args.task_name}: {len(train_examples.first):,} training rows{dev_rows}")
    model = classifier.model
    n_layer, n_parameters = model.config.get_text_config().num_hidden_layers, count_parameters(model)
    say(
        "Model" if args.replacing_rate is None else "Predecessor",
        f"{type(model).__name__} of {n_layer} layers, {n_parameters:,} parameters, from {args.model_name_or_path}",
    )


def announce_training(args, state: TrainState, run: Run, steps_an_epoch: int) -> None:
    """Say what the training will take; UserError where the disk cannot hold its checkpoints."""
    n_steps, device = state.n_steps, state.device
    if state.layers:
        say("Successor", f"{len(state.layers.successor)} layers, {exported_parameters(state):,} parameters")
        say("Rate", state.rate_schedule.describe(n_steps))
        if state.rate_schedule.full_replacement_step(n_steps) is None:
            logger.warning("The successor never trains alone: the replacing rate does not stay at 1 before the end")
    where = device_name(device)
    if n_processes() > 1:
        where = f"{n_processes()} processes, {args.per_gpu_train_batch_size} examples each; {where}"
    examples_a_step = batch_rows(args) * args.gradient_accumulation_steps
    say("Steps", f"{n_steps:,} of {examples_a_step} examples, {steps_an_epoch:,} an epoch, on {device.type} ({where})")
    if device.type == "cpu" and not args.no_fast_kernels:
        say("Kernels", describe_kernels())
    folder = run.state_folder()
    if run.earlier:
        say("Resume", f"from {folder}" if folder else "from the beginning: nothing is saved")
    if args.do_eval or args.evaluate_during_training:
        say("Dev passes", f"{count_dev_passes(args, state):,}")
    n_saves = state.n_steps // args.save_steps if args.save_steps else 0
    of_state = 3 * 4 * sum(p.numel() for p in state.trained().values())  # weights, and Adam's two moments
    say("Disk", run.check_disk(n_saves, args.evaluate_during_training, 4 * exported_parameters(state), of_state))


def count_dev_passes(args, state: TrainState) -> int:
    """Passes over the dev sets, the one of the predecessor counted."""
    during = -(-state.n_steps // args.logging_steps) if args.logging_steps else 1
    of_checkpoints = state.n_steps // args.save_steps if args.save_steps and args.eval_all_checkpoints else 0
    return (during if args.evaluate_during_training else 1) + bool(state.layers) + of_checkpoints


# ------------------------------------------------------------------------------------------- command


def run_command(args, variant: Callable | None = None) -> None:
    """`main`, with errors in one line, in all processes that torchrun has started."""
    log_plainly()
    if not is_main():  # the main process says it for all
        logging.disable(logging.WARNING)
    warn_about(args)
    with one_line_errors("run_glue.py", ModelError, GlueDataError, LossError, torch.OutOfMemoryError, ConnectionError):
        with processes.failing_together(), nullcontext() if args.no_fast_kernels else fast_kernels():
            main(args, variant)
        processes.leave()


if __name__ == "__main__":
    ARGS = parse_args()
    if not ARGS.no_cuda:
        processes.use_all_gpus()
    run_command(ARGS)
