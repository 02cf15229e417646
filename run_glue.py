#!/usr/bin/env python
"""Fine-tune a predecessor, or compress it into a successor by progressive module replacing.

The data are a GLUE task's (--task_name, --data_dir) or files of your own (--train_file, --validation_file).
With --replacing_rate the model is compressed (BERT-of-Theseus, EMNLP 2020); without it, it is fine-tuned.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from bert_of_theseus import compress, export_successor, find_layers, successor_size
from bert_of_theseus.batches import micro_batch, train_batches
from bert_of_theseus.classifier import (
    BAR,
    Classifier,
    ModelError,
    ModelSource,
    count_parameters,
    load_classifier,
    read_labels,
)
from bert_of_theseus.cpu_kernels import describe_kernels, fast_kernels
from bert_of_theseus.data.features import Features, FeaturesCache
from bert_of_theseus.data.own_files import OwnFiles, Texts, as_predictions, listed, read_own_files, read_texts
from bert_of_theseus.data.scores import DevSets, Score, chance_score, comparison
from bert_of_theseus.data.task import Data, DataError, Examples, Task
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
from bert_of_theseus.run.device import choose_device, device_name, enough_memory
from bert_of_theseus.run.files import write_whole
from bert_of_theseus.run.folder import (
    BEST,
    PREDICTIONS,
    RESULTS,
    as_results,
    checkpoint_folders,
    input_length,
    read_record,
    record_of,
    step_of,
)
from bert_of_theseus.run.processes import is_main, on_main
from bert_of_theseus.run.run import Run
from bert_of_theseus.training import (
    LossError,
    TrainState,
    compile_layers,
    enable_gradient_checkpointing,
    finetune_whole,
    optimizer_groups,
    train_step,
)
from glue_processors import LABELLED, TASKS, labelled_task, read_task
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler, slope_to_1

logger = logging.getLogger("run_glue")

# How --scheduler_type makes a schedule of the arguments. A new schedule is a class in replacement_scheduler.py, a line
# here, and its flags.
SCHEDULES: dict[str, Callable] = {
    "none": lambda args, layers: ConstantReplacementScheduler(layers, args.replacing_rate, args.steps_for_replacing),
    "linear": lambda args, layers: LinearReplacementScheduler(layers, args.replacing_rate, args.scheduler_linear_k),
}


def main(args, variant: Callable | None = None) -> None:
    """Load the predecessor, score it, compress it, train the successor, export it, compare; or fine-tune a model.

    Args:
        args: of `parse_args`.
        variant: changes what is trained, as `variant(args, state)`; scripts/ablate.py has some. The run's record and
            the model card tell its name, with hyphens.
    """
    args.variant = variant.__name__.replace("_", "-") if variant else None
    device = choose_device(not args.no_cuda, args.fp16, args.tf32, args.deterministic)
    with Run(Path(args.output_dir), args.save_total_limit) as run:
        if not args.do_train:
            evaluate_alone(args, device, run.folder)
            return
        run.find(args.resume, args.overwrite_output_dir, source=args.model_name_or_path)
        data = read_data(args)
        steps_an_epoch, n_steps = count_steps(args, len(data.train.first))
        if args.scheduler_type == "linear" and args.scheduler_linear_k is None:
            args.scheduler_linear_k = slope_to_1(args.replacing_rate, max(1, n_steps // 2))
        record = describe_run(args, device, data)
        texts = read_texts(args.test_file, OwnFiles.of(vars(args), record)) if args.test_file else None
        if run.is_finished():
            run.check(record, may_differ(args))
            use_finished(args, data.task, run, texts, device)
            return
        transformers.set_seed(args.seed)
        classifier = load_model(args, data.task, device)
        record["predecessor_sha256"] = model_sha256(args, classifier)
        run.check(record, may_differ(args))
        announce_model(args, classifier, data)
        n_parameters = count_parameters(classifier.model)
        train_set, dev_sets = tokenize_data(args, classifier, data)

        predecessor = None
        if args.replacing_rate is not None and data.dev:
            predecessor = score_predecessor(classifier, dev_sets)
            dev_sets = replace(dev_sets, predecessor=predecessor)
        state = new_state(args, classifier.model, n_steps)  # compresses the model
        if variant:
            say("Variant", f"{args.variant}: {variant.__doc__}")
            variant(args, state)
        if rank():  # each process has dropout of its own
            torch.manual_seed(np.random.SeedSequence([args.seed, rank()]).generate_state(1)[0].item())
        announce_training(args, state, run, steps_an_epoch)
        check_disk(args, state, run)
        restore(args, state, run.begin(record))  # from here on the run writes
        checkpoints = Checkpoints(args, data.task, state, classifier, run)
        last = train(args, state, train_set, dev_sets, checkpoints)
        last = conclude(args, state, dev_sets, checkpoints, last)
        if texts:
            run.write(PREDICTIONS, predict_texts(args, data.task, texts, device))
        finish(args, data.task, state, run, {"predecessor": predecessor, "last": last}, n_parameters)


def restore(args, state: TrainState, saved: dict | None) -> None:
    """Go on from what `run.begin` gave; nothing in a new run."""
    if saved:
        if args.finetune_whole_successor and saved["state"]["step"] > state.steps_with_predecessor():
            finetune_whole(state, partial(new_optimizer, args))
        state.load_state_dict(saved["state"], saved["processes"][rank()])


def use_finished(args, task: Task, run: Run, texts: Texts | None, device: torch.device) -> None:
    """Evaluate a run that was finished before, and predict with it, as far as that is asked for."""
    logger.info("The run in %s is finished: nothing is left to train", run.folder)
    run.clean_up()
    if args.do_eval:
        evaluate_alone(args, device, run.folder)
    if texts:
        run.write(PREDICTIONS, predict_texts(args, task, texts, device))


def train(args, state: TrainState, data: Features, dev_sets: DevSets, checkpoints: "Checkpoints") -> Score | None:
    """Train up to the last step. Returns the score after it, if it was evaluated.

    Raises:
        SystemExit: a signal has asked for the end; the state is saved.
        LossError: a loss or a weight is not a finite number; nothing of it is saved.
    """
    score, run, n_replacing = None, checkpoints.run, state.steps_with_predecessor()
    batches = train_batches(len(data), batch_rows(args), args.gradient_accumulation_steps, args.seed)
    with tqdm(total=state.n_steps, initial=state.step, desc="Training", disable=not is_main(), **BAR) as bar:
        for epoch, rows in islice(batches, state.step, state.n_steps):
            if has_stalled(args, state, run, n_replacing):
                break
            if args.finetune_whole_successor and state.step == n_replacing:
                finetune_whole(state, partial(new_optimizer, args))
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
                score = dev_sets.score(checkpoints.classifier)
                run.log(state.step, score.logged())
                checkpoints.keep_if_best(score)
            if is_saved:
                checkpoints.save_state(score)
            checkpoints.end_if_stopped(score)
    state.check_weights()
    return score


def has_stalled(args, state: TrainState, run: Run, n_replacing: int) -> bool:
    """Whether the evaluations of --early_stopping_patience have brought nothing better.

    Those of the first `n_replacing` steps do not count. It follows from the step and the best step alone, so that a
    resumed run stops where one without a stop does.
    """
    if not args.early_stopping_patience or not is_multiple(state.step, args.logging_steps):
        return False
    best_step = int(run.best_results().get("step", 0))
    n_without = state.step // args.logging_steps - max(best_step, n_replacing) // args.logging_steps
    if n_without < args.early_stopping_patience:
        return False
    logger.info("Stopped early after step %d: no evaluation since step %d was better", state.step, best_step)
    return True


def conclude(
    args, state: TrainState, dev_sets: DevSets, checkpoints: "Checkpoints", last: Score | None
) -> Score | None:
    """Write the run's model, and its metrics where they are asked for. Returns the score after the last step."""
    run = checkpoints.run
    is_best = args.early_stopping_patience is not None  # the model is that of checkpoint-best
    checkpoints.save_model(last, is_best)
    if last is None and dev_sets.features:  # after saving: if it fails, the model is safe
        last = dev_sets.score(checkpoints.classifier)
        if state.layers and not is_best:
            run.write("README.md", checkpoints.card(last))
    if args.do_eval:
        found = run.best_results() if is_best else last.metrics
        results = {name: found[name] for name in last.metrics}
        if args.eval_all_checkpoints:
            stop_between = partial(checkpoints.end_if_stopped, last)
            results |= checkpoint_results(args, dev_sets, state.device, run.checkpoints(), stop_between)
        run.write(RESULTS, as_results(results))
        if not args.evaluate_during_training:  # after the last moment at which a signal stops the run
            run.log(state.step, last.logged())
    return last


@dataclass
class Checkpoints:
    """Writes what a run keeps: ordinary checkpoints of the successor, or of the model that is fine-tuned."""

    args: argparse.Namespace
    task: Task
    state: TrainState
    classifier: Classifier
    run: Run

    def write(self, score: Score | None, folder: Path) -> None:
        """Write weights, config, tokenizer, and of a successor its card, with its score, if it has one."""
        model = export_successor(self.state.model) if self.state.layers else self.state.model
        model.save_pretrained(folder)
        self.classifier.tokenizer.save_pretrained(folder)
        if self.state.layers:
            (folder / "README.md").write_text(self.card(score), encoding="utf-8", errors="replace")

    def card(self, score: Score | None) -> str:
        """The README.md of the successor as it is now."""
        args, source = self.args, self.args.model_name_or_path
        predecessor = Path(source).resolve().name if os.path.isdir(source) else source
        of_variant = f" (variant {args.variant} of the method)" if args.variant else ""
        name = Path(args.output_dir).resolve().name + of_variant
        return model_card(self.state, name, self.task.title, predecessor, score.metrics if score else {})

    def save_state(self, score: Score | None, stopped: bool = False) -> None:
        """Save a checkpoint from which the run can be resumed."""
        self.state.check_losses()
        self.state.check_weights()
        self.run.save_state(self.state, partial(self.write, score), stopped)

    def end_if_stopped(self, score: Score | None) -> None:
        """Where a signal has asked for the end, save the state and end the process."""
        if self.run.stop_requested():
            self.save_state(score, stopped=not is_multiple(self.state.step, self.args.save_steps))
            self.run.end_stopped(self.state.step)

    def keep_if_best(self, score: Score) -> None:
        """Save checkpoint-best, with its results, where the main metric is better than that of the one there."""

        def write(folder: Path) -> None:
            self.write(score, folder)
            results = score.metrics | score.loyalty | {"step": self.state.step}
            (folder / RESULTS).write_text(as_results(results))

        best = self.run.best_results()
        if self.task.main_key not in best or score.main > best[self.task.main_key]:
            self.run.save_best(write)

    def save_model(self, score: Score | None, best: bool) -> None:
        """Write the model as it is now, or that of checkpoint-best, into the run's folder."""
        write = self.copy_best if best else partial(self.write, score)
        self.run.save_model(write)

    def copy_best(self, folder: Path) -> None:
        """Write the model of checkpoint-best."""
        ignored = shutil.ignore_patterns(RESULTS)
        shutil.copytree(self.run.folder / BEST, folder, ignore=ignored, dirs_exist_ok=True)


def read_data(args) -> Data:
    """The task, the training set, and the dev sets by name: those that are needed."""
    evaluates = args.do_eval or args.evaluate_during_training
    given = vars(args) | ({} if evaluates else {"validation_file": None})
    if args.task_name:
        task = TASKS[args.task_name].judged_by(args.metric_for_best_model)
        data = read_task(task, args.data_dir, args.do_train, evaluates)
    elif args.train_file:
        data = read_own_files(OwnFiles.of(given))
    else:  # the model knows the labels, and the run that trained it the columns
        model = args.output_dir if os.path.isfile(f"{args.output_dir}/config.json") else args.model_name_or_path
        files = OwnFiles.of(given, record_of(model))
        data = read_own_files(files, read_labels(model, args.cache_dir), f"{model} (or give a --train_file)")
    data = data.head(args.max_train_samples, args.max_eval_samples)
    if data.train and len(np.unique(data.train.labels)) == 1:
        limit = f" (--max_train_samples {args.max_train_samples})" if args.max_train_samples else ""
        raise DataError(f"all rows to train on{limit} have the same label: there is nothing to learn")
    return data


def load_model(args, task: Task, device: torch.device) -> Classifier:
    """The model to start from, on this process's device; with a new head, if need be, where it is fine-tuned."""
    source = ModelSource(
        args.model_name_or_path, args.config_name, args.tokenizer_name, args.cache_dir, args.do_lower_case
    )
    compressing = args.do_train and args.replacing_rate is not None
    classifier = load_classifier(source, task.labels, args.do_train and not compressing, args.max_seq_length)
    classifier.model.to(device)
    processes.share_weights(classifier.model)
    if compressing:
        with refused(args.model_name_or_path):
            successor_size(len(classifier.model.get_submodule(find_layers(classifier.model))), args.scc_n_layer)
    return classifier


def tokenize_data(args, classifier: Classifier, data: Data) -> tuple[Features, DevSets]:
    """Features of the training set, its labels as the model counts them, and of the dev sets."""
    train_set = featurize(args, classifier, data.task.name, "train", data.train)
    if data.task.labels:
        train_set.labels = np.array(classifier.label_order)[train_set.labels]
    return train_set, tokenize_dev_sets(args, classifier, data)


def tokenize_dev_sets(args, classifier: Classifier, data: Data) -> DevSets:
    features = {name: featurize(args, classifier, name, "dev", examples) for name, examples in data.dev.items()}
    return DevSets(data.task, features, args.per_gpu_eval_batch_size)


def featurize(args, classifier: Classifier, name: str, split: str, examples: Examples) -> Features:
    """The tokenised data set. The main process tokenises; the others read its cache, if it could write one."""
    data_dir = args.data_dir or Path(args.train_file if split == "train" else args.validation_file).parent
    cache = FeaturesCache([data_dir, args.output_dir], args.overwrite_cache and is_main(), is_main())
    takes_types = classifier.takes_token_types()
    with processes.main_process_first():
        return cache.features(name, split, examples, classifier.tokenizer, args.max_seq_length, takes_types)


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
        shown = {"epoch": epoch + 1} | ({} if loss is None else {"loss": loss.item() * n_processes()})
        if "replacing_rate" in rates:
            shown["rate"] = rates["replacing_rate"]
        bar.set_postfix(shown)


def score_predecessor(classifier: Classifier, dev_sets: DevSets) -> Score:
    """The predecessor's score, with a warning where it is no better than chance."""
    task, features = dev_sets.task, next(iter(dev_sets.features.values()))
    # A first batch warms the device up: else the predecessor's seconds would flatter the successor.
    classifier.predict(features.head(dev_sets.batch_size * n_processes()), dev_sets.batch_size)
    score, chance = dev_sets.score(classifier), chance_score(task, features.labels)
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


def load_trained(args, folder: Path, task: Task, device: torch.device) -> Classifier:
    """The model that a run has left in a folder, on this process's device."""
    classifier = load_classifier(str(folder), task.labels, max_seq_length=args.max_seq_length)
    classifier.model.to(device)
    return classifier


def evaluate_alone(args, device: torch.device, folder: Path) -> None:
    """--do_eval without training: evaluate the model in output_dir or, if it has none, model_name_or_path."""
    has_model = on_main((folder / "config.json").is_file)
    if not has_model and on_main(read_record, folder):
        raise UserError(
            f"--output_dir {folder} holds a run without a model: it is not finished, or the model was removed; to "
            "evaluate one of its checkpoints, give that folder as --output_dir"
        )
    data = read_data(args)
    args.max_seq_length = input_length(args.max_seq_length, folder if has_model else args.model_name_or_path)
    # The flags about loading are about model_name_or_path.
    classifier = load_trained(args, folder, data.task, device) if has_model else load_model(args, data.task, device)
    logger.info("Evaluating %s", folder if has_model else args.model_name_or_path)
    dev_sets = tokenize_dev_sets(args, classifier, data)
    score = dev_sets.score(classifier)
    results = dict(score.metrics)
    if args.eval_all_checkpoints:
        results |= checkpoint_results(args, dev_sets, device, on_main(checkpoint_folders, folder))
    if is_main():
        # A score of some of the rows replaces none of all; and a resumed run reads the best score from checkpoint-best.
        if folder.name != BEST and not args.max_eval_samples:
            write_whole(folder / RESULTS, as_results(results))
        print(json.dumps(score.logged()))


def predict_texts(args, task: Task, texts: Texts, device: torch.device) -> str:
    """What the run's model predicts of texts, as CSV."""
    processes.wait_for_all()  # for the files of the model
    classifier = load_trained(args, Path(args.output_dir), task, device)
    logits = classifier.predict_examples(texts.examples, args.max_seq_length, args.per_gpu_eval_batch_size)
    return as_predictions(texts, task.labels, logits)


def checkpoint_results(
    args, dev_sets: DevSets, device: torch.device, folders: list[Path], before_each: Callable = lambda: None
) -> dict[str, float]:
    """The metrics of each checkpoint-N, their names ending in `_N`."""
    task, results = dev_sets.task, {}
    for folder in folders:
        before_each()
        score = dev_sets.score(load_trained(args, folder, task, device))
        logger.info("%s: %s %.4f", folder.name, task.main_key, score.main)
        results |= {f"{key}_{step_of(folder)}": value for key, value in score.metrics.items()}
    return results


def finish(args, task: Task, state: TrainState, run: Run, scores: dict[str, Score | None], n_parameters: int) -> None:
    """Write the record with its results, with which the run is finished, and print the comparison.

    Args:
        scores: "predecessor", "last", where there are any.
        n_parameters: of the model to start from.
    """
    results = results_of(task, state, run, scores, n_parameters)
    has_best = args.early_stopping_patience is not None
    results["metrics"] = results["best" if has_best else "last"]["metrics"] if scores["last"] else {}
    run.finish(results)
    of_best = f": that of checkpoint-best, step {results['best']['step']}" if has_best else ""
    logger.info("The %s is in %s%s", "successor" if state.layers else "model", run.folder, of_best)
    if not (scores["predecessor"] and is_main()):
        return
    rows = []
    for which, who in (
        ("predecessor", "predecessor"),
        ("last", "successor, last step"),
        ("best", "successor, best step"),
    ):
        if score := results.get(which):
            seconds = f"{score['seconds']:.2f}" if "seconds" in score else "-"
            title = f"{who} ({score['step']})" if "step" in score else who
            rows.append((title, score, {"parameters": f"{score['parameters']:,}", "seconds for dev": seconds}))
    print(comparison("", rows, task.main_key))


def results_of(task: Task, state: TrainState, run: Run, scores: dict[str, Score | None], n_parameters: int) -> dict:
    """The part of the record that tells the results, from the arguments of `finish`."""
    n_exported, last = exported_parameters(state), scores["last"]
    results = {"steps": state.step, "parameters": n_exported, "training_seconds": state.seconds}
    if scores["predecessor"]:
        results["predecessor"] = scores["predecessor"].recorded() | {"parameters": n_parameters}
    if last:
        results["last"] = {"step": state.step} | last.recorded() | {"parameters": n_exported}
    if best := run.best_results():
        metrics, loyalty = ({key: best[key] for key in of if key in best} for of in (last.metrics, last.loyalty))
        of_best = {"metrics": metrics, "main": best[task.main_key], "loyalty": loyalty, "parameters": n_exported}
        results["best"] = {"step": int(best["step"])} | of_best
    return results


def describe_run(args, device: torch.device, data: Data) -> dict:
    """What makes the results, but for the model to start from, for the run's record."""
    task = data.task
    names = {name: TASKS[name].dev if args.task_name else "--validation_file" for name in data.dev}
    files = {names[name]: examples for name, examples in data.dev.items()}
    files[task.train if args.task_name else "--train_file"] = data.train
    return records.describe(vars(args), device, Path(__file__).resolve().parent) | {
        "processes": n_processes(),
        "task": task.name,
        "main_metric": task.main_key,
        "variant": args.variant,
        "pairs": data.train.second is not None,  # of texts, or single ones
        "data": {name: examples.sha256 for name, examples in files.items()},
    }


def may_differ(args) -> set[str]:
    """Arguments that a resumed run may change: names, places (contents are compared), and what changes no weight.

    `record.differences` compares the variant.
    """
    found = set(
        "data_dir train_file validation_file test_file model_name_or_path config_name tokenizer_name cache_dir "
        "output_dir overwrite_output_dir overwrite_cache resume do_eval eval_all_checkpoints logging_steps save_steps "
        "save_total_limit per_gpu_eval_batch_size model_type fp16_opt_level local_rank variant".split()
    )
    return found - {"logging_steps"} if args.early_stopping_patience else found  # which counts evaluations


def model_sha256(args, classifier: Classifier) -> str:
    """A digest of the model to start from. A new head is random: the main process's is everybody's."""
    config_name = args.config_name or args.model_name_or_path
    config, _ = transformers.PretrainedConfig.get_config_dict(config_name, cache_dir=args.cache_dir or None)
    return on_main(records.model_sha256, classifier.model, classifier.tokenizer, config)


def exported_parameters(state: TrainState) -> int:
    """Parameters of the model that is saved."""
    return count_parameters(state.model) - (count_parameters(state.layers.predecessor) if state.layers else 0)


def say(what: str, text: str) -> None:
    logger.info("%-12s %s", what, text)


def announce_model(args, classifier: Classifier, data: Data) -> None:
    """Say what is trained on what."""
    dev_rows = [f", {len(dev.first):,} {f'{name} ' * (len(data.dev) > 1)}dev rows" for name, dev in data.dev.items()]
    say("Task", f"{data.task.name}: {len(data.train.first):,} training rows{''.join(dev_rows)}")
    if not args.task_name:
        say("Labels", listed(data.task.labels) if data.task.labels else "scores")
    model = classifier.model
    n_layer, n_parameters = model.config.get_text_config().num_hidden_layers, count_parameters(model)
    say(
        "Model" if args.replacing_rate is None else "Predecessor",
        f"{type(model).__name__} of {n_layer} layers, {n_parameters:,} parameters, from {args.model_name_or_path}",
    )


def announce_training(args, state: TrainState, run: Run, steps_an_epoch: int) -> None:
    """Say what the training will take."""
    n_steps, device = state.n_steps, state.device
    if state.layers:
        say("Successor", f"{len(state.layers.successor)} layers, {exported_parameters(state):,} parameters")
        say("Rate", state.rate_schedule.describe(n_steps))
        n_before = state.steps_with_predecessor()
        n_alone = n_steps - n_before
        if n_before == 1 < n_steps:
            logger.warning(
                "Only the first step has a replacing rate below 1, so hardly anything is replaced: give "
                "--steps_for_replacing, or --scheduler_type linear"
            )
        if n_alone < n_steps / 10:
            logger.warning(
                "The successor trains alone in %d of the %d steps, and may be poor: let the replacing rate reach 1 "
                "after about half of them",
                n_alone,
                n_steps,
            )
        if n_alone and args.finetune_whole_successor:
            say("Whole", f"embeddings, pooler and head learn too, from step {n_before + 1:,} on")
    where = device_name(device)
    if n_processes() > 1:
        where = f"{n_processes()} processes, {args.per_gpu_train_batch_size} rows each; {where}"
    examples_a_step = batch_rows(args) * args.gradient_accumulation_steps
    size = f"{n_steps:,} with {examples_a_step} rows each, {steps_an_epoch:,} an epoch"
    say("Steps", f"{size}, on {device.type} ({where})")
    if device.type == "cpu" and not args.no_fast_kernels:
        say("Kernels", describe_kernels())
    folder = run.state_folder()
    if run.earlier:
        say("Resume", f"from {folder}" if folder else "from the beginning: nothing is saved")
    if args.do_eval or args.evaluate_during_training:
        say("Evaluation", passes_over_dev(args, state))


def count_saves(args, state: TrainState) -> int:
    """How often a `checkpoint-N` is saved in the whole training."""
    return state.n_steps // args.save_steps if args.save_steps else 0


def check_disk(args, state: TrainState, run: Run) -> None:
    """Say what the run's checkpoints take; UserError where the disk cannot hold them."""
    n_exported, n_trained = exported_parameters(state), sum(p.numel() for p in state.trained().values())
    of_state = 3 * 4 * (n_exported if args.finetune_whole_successor else n_trained)  # weights, and Adam's two moments
    n_saves, saves_best = count_saves(args, state), args.evaluate_during_training
    say("Disk", run.check_disk(n_saves, saves_best, 4 * n_exported, of_state))


def passes_over_dev(args, state: TrainState) -> str:
    """How often a model is evaluated on the dev sets, the predecessor's evaluation counted."""
    during = -(-state.n_steps // args.logging_steps) if args.logging_steps else 1
    of_checkpoints = count_saves(args, state) if args.eval_all_checkpoints else 0
    of_checkpoints = min(of_checkpoints, args.save_total_limit or of_checkpoints)
    passes = (during if args.evaluate_during_training else 1) + bool(state.layers) + of_checkpoints
    at_most = "at most " if args.early_stopping_patience else ""
    return f"{at_most}{passes:,} pass{'es' * (passes > 1)} over the dev rows"


def flags_of_task(add: Callable) -> None:
    add("--task_name", type=labelled_task, metavar="TASK", help=f"a task of GLUE: {', '.join(LABELLED)}; in any case")
    add("--data_dir", help="folder with the task's .tsv files")
    add("--model_name_or_path", required=True, help="the model to start from: a folder or a name on the Hub")
    add("--output_dir", required=True, help="where the successor (or the fine-tuned model) and its checkpoints go")
    add("--do_train", action="store_true", help="train")
    add("--do_eval", action="store_true", help="evaluate on the dev set; without --do_train, the model in output_dir")
    add("--evaluate_during_training", action="store_true", help="evaluate every logging_steps, keep the best step")
    add("--eval_all_checkpoints", action="store_true", help="with --do_eval, evaluate every checkpoint-N as well")
    add("--overwrite_output_dir", action="store_true", help="replace the run that output_dir holds")
    add("--resume", action="store_true", help="resume the run that output_dir holds, if it holds one")


def flags_of_own_data(add: Callable) -> None:
    add("--train_file", metavar="FILE", help=".csv, .tsv, .json or .jsonl")
    add("--validation_file", metavar="FILE", help="the dev set, in the same formats")
    add("--test_file", metavar="FILE", help="texts to predict after training, into predictions.csv")
    add(
        "--text_column_names",
        metavar="NAME[,NAME]",
        help="columns of the text, or of the pair of texts (default: sentence, or sentence1,sentence2)",
    )
    add("--label_column_name", metavar="NAME", help="column of the labels (default: label)")
    add("--do_regression", action="store_true", help="the labels are scores (default: classes)")
    add("--positive_label", metavar="LABEL", help="measure the F1 of this class (default: the mean over the classes)")


def flags_of_compression(add: Callable) -> None:
    add("--replacing_rate", type=float, help="constant replacing rate, or the start of the schedule; in (0, 1]")
    add("--scheduler_type", choices=SCHEDULES, default="none", help="none: a constant rate (default: %(default)s)")
    add(
        "--scheduler_linear_k",
        type=at_least(0, float),
        help="what the linear rate gains each step (default: so that the rate is 1 after half of the steps)",
    )
    add(
        "--steps_for_replacing",
        type=at_least(0),
        default=0,
        help="steps at the constant rate; then it is 1 (default: 0)",
    )
    add(
        "--finetune_whole_successor",
        action="store_true",
        help="from the first step at replacing rate 1 on, train embeddings, pooler and head too, with a new optimiser "
        "and learning rate",
    )
    add("--scc_n_layer", type=at_least(1), help="layers of the successor (default: half of the predecessor's)")


def flags_of_training(add: Callable) -> None:
    add("--num_train_epochs", type=above(0), default=20.0, help="default: %(default)s")
    add("--max_steps", type=at_least(-1), default=-1, help="if above 0, train for exactly so many optimiser steps")
    add("--learning_rate", type=at_least(0, float), default=5e-5, help="default: %(default)s")
    add("--warmup_steps", type=at_least(0), default=0, help="steps of linear warm-up (default: %(default)s)")
    add("--weight_decay", type=at_least(0, float), default=0.0, help="not on biases and LayerNorm (default: 0)")
    add("--adam_epsilon", type=at_least(0, float), default=1e-8, help="default: %(default)s")
    add("--max_grad_norm", type=above(0), default=1.0, help="gradient clipping (default: %(default)s)")
    for name in ("train", "eval"):
        flags = f"--per_gpu_{name}_batch_size", f"--per_device_{name}_batch_size"
        add(*flags, type=at_least(1), metavar="N", default=8, help="rows (default: %(default)s)")
    add("--gradient_accumulation_steps", type=at_least(1), default=1, help="micro-batches a step (default: 1)")
    add("--seed", type=at_least(0), default=42, help="default: %(default)s")
    add("--logging_steps", type=at_least(0), default=50, help="optimiser steps; 0: only the last (default: 50)")
    add("--save_steps", type=at_least(0), default=50, help="optimiser steps; 0: never (default: %(default)s)")
    add("--metric_for_best_model", metavar="METRIC", help="the main metric (default: the task's)")
    add(
        "--early_stopping_patience",
        type=at_least(1),
        metavar="N",
        help="with --evaluate_during_training: end after N evaluations at replacing rate 1 without a better one; the "
        "result is checkpoint-best",
    )
    add("--save_total_limit", type=at_least(1), help="keep at most so many checkpoint-N (default: all)")


def flags_of_input(add: Callable) -> None:
    add(
        "--max_seq_length",
        type=at_least(4),
        help="tokens; longer input is cut (default: 128; without --do_train, what the model was trained with)",
    )
    add("--max_train_samples", type=at_least(1), metavar="N", help="train on the first N rows (default: all)")
    add("--max_eval_samples", type=at_least(1), metavar="N", help="evaluate on the first N rows (default: all)")
    add("--do_lower_case", action="store_true", help="lower-case the text (default: as the tokenizer is set)")
    add("--config_name", default="", help="if not model_name_or_path")
    add("--tokenizer_name", default="", help="if not model_name_or_path")
    add("--cache_dir", default="", help="where downloaded models are kept")
    add("--overwrite_cache", action="store_true", help="tokenise anew")


def flags_of_device(add: Callable) -> None:
    add("--no_cuda", action="store_true", help="use the CPU even where there are GPUs")
    add("--fp16", action="store_true", help="mixed precision with float16 (GPU)")
    add("--bf16", action="store_true", help="mixed precision with bfloat16 (GPU, or a processor with AMX)")
    add("--tf32", action="store_true", help="matrix products in TensorFloat-32 (GPU)")
    add("--torch_compile", action="store_true", help="compile the layers, which is slow to start (GPU)")
    add("--gradient_checkpointing", action="store_true", help="less memory: activations are computed twice")
    add("--deterministic", action="store_true", help="the same weights from the same command on a GPU too; slower")
    add("--no_fast_kernels", action="store_true", help="torch's own operators on a CPU; slower")


def flags_of_published_commands(add: Callable) -> None:
    add("--model_type", default="bert", help="the model's config decides")
    add("--fp16_opt_level", help="was for NVIDIA apex")
    add("--local_rank", type=int, default=-1, help="was set by the launcher")


FLAGS: dict[str, Callable] = {
    "what to run": flags_of_task,
    "your own data, in place of --task_name and --data_dir": flags_of_own_data,
    "compression (only with --replacing_rate)": flags_of_compression,
    "training": flags_of_training,
    "input": flags_of_input,
    "device": flags_of_device,
    "accepted so that published commands run; without effect": flags_of_published_commands,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = OneLineParser(prog="run_glue.py", description=__doc__)
    for title, add_flags in FLAGS.items():
        add_flags(parser.add_argument_group(title).add_argument)
    args = parser.parse_args(argv)
    check_args(parser, args)
    fill_in(args)
    return args


def check_args(parser: OneLineParser, args) -> None:
    """Refuse arguments that contradict each other."""
    check_data_args(parser, args)
    if not (args.do_train or args.do_eval):
        parser.error("nothing to do: give --do_train, --do_eval or both")
    for flag in ("evaluate_during_training", "resume"):
        if getattr(args, flag) and not args.do_train:
            parser.error(f"--{flag} needs --do_train")
    if args.eval_all_checkpoints and not args.do_eval:
        parser.error("--eval_all_checkpoints needs --do_eval")
    if args.early_stopping_patience and not (args.evaluate_during_training and args.logging_steps):
        parser.error("--early_stopping_patience needs --evaluate_during_training, every --logging_steps above 0")
    if args.replacing_rate is None:
        of_compression = argparse.ArgumentParser(parser.prog)
        flags_of_compression(of_compression.add_argument)
        for name, default in vars(of_compression.parse_args([])).items():
            if getattr(args, name) != default:
                parser.error(f"--{name} is for compression: give --replacing_rate too")
    elif not 0 < args.replacing_rate <= 1:
        parser.error(f"--replacing_rate is a probability in (0, 1], not {args.replacing_rate}")
    if args.seed >= 2**32:
        parser.error(f"--seed {args.seed} is not below 2**32")
    if args.fp16 and args.bf16:
        parser.error("--fp16 and --bf16 exclude each other")


def check_data_args(parser: OneLineParser, args) -> None:
    """Refuse arguments about the data that contradict each other."""
    files, columns = ("train_file", "validation_file", "test_file"), ("text_column_names", "label_column_name")
    given = [flag for flag in (*files, *columns, "do_regression", "positive_label") if getattr(args, flag)]
    if args.task_name is None and args.data_dir is None:
        if not (args.train_file or args.validation_file):
            parser.error("no data: give --task_name and --data_dir, or --train_file and --validation_file")
        if args.do_train and not args.train_file:
            parser.error("--do_train needs --train_file")
        if args.test_file and not args.do_train:
            parser.error("--test_file needs --do_train; scripts/predict_glue.py predicts with a model that is there")
        if (args.do_eval or args.evaluate_during_training) and not args.validation_file:
            parser.error("--do_eval and --evaluate_during_training need --validation_file")
        return
    if given:
        parser.error(f"--task_name and --data_dir are for GLUE's files, --{given[0]} is for your own: leave out either")
    for flag in ("task_name", "data_dir"):
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing")


def fill_in(args) -> None:
    """Set what was not given and follows from other arguments; what follows from the data, `main` sets."""
    if args.do_train:  # else it depends on the model that is evaluated
        args.max_seq_length = input_length(args.max_seq_length)
    if args.scheduler_linear_k is None and args.scheduler_type != "linear":
        args.scheduler_linear_k = 0.0


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
    if args.scheduler_type == "linear" and args.scheduler_linear_k == 0.0:
        logger.warning("--scheduler_linear_k is 0: the replacing rate stays at %g", args.replacing_rate)


def start(args, variant: Callable | None = None) -> None:
    """`run_command` in a process for each GPU of the machine, unless torchrun has started this one."""
    if not args.no_cuda:
        processes.use_all_gpus()
    run_command(args, variant, Path(sys.argv[0]).name)


def run_command(args, variant: Callable | None = None, name: str = "run_glue.py") -> None:
    """`main`, with errors in one line, in all processes that torchrun has started; `name` is that of the command."""
    log_plainly()
    if not is_main():  # the main process says it for all
        logging.disable(logging.WARNING)
    warn_about(args)
    with one_line_errors(name, ModelError, DataError, LossError, ConnectionError), enough_memory():
        with processes.failing_together(), nullcontext() if args.no_fast_kernels else fast_kernels():
            main(args, variant)
        processes.leave()


if __name__ == "__main__":
    start(parse_args())
