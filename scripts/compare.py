#!/usr/bin/env python
"""Compare successors with their predecessor on a dev set: score, loyalty, size, speed.

    compare.py --task_name MRPC --data_dir glue_data/MRPC runs/predecessor runs/successor
    compare.py --validation_file reviews/dev.csv runs/predecessor runs/successor

Speed is the median of several rounds. In a round the models take turns, so that a busy machine slows them all alike.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.classifier import Classifier, ModelError, count_parameters, load_classifier, read_labels
from bert_of_theseus.cpu_kernels import fast_kernels
from bert_of_theseus.data.features import Features, FeaturesCache
from bert_of_theseus.data.own_files import OwnFiles, read_own_files
from bert_of_theseus.data.scores import DevSets, comparison
from bert_of_theseus.data.task import Data, DataError
from bert_of_theseus.run.command_line import OneLineParser, at_least, log_plainly, one_line_errors
from bert_of_theseus.run.device import enough_memory, first_device
from bert_of_theseus.run.folder import input_length, record_of
from glue_processors import LABELLED, TASKS, labelled_task, read_task

N_BATCHED, N_SINGLE = 256, 20  # the first rows of the dev set that each round times in batches and one by one


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="compare.py", description=__doc__)
    add = parser.add_argument
    add("predecessor", metavar="PREDECESSOR", help="a fine-tuned model: a folder or a name on the Hub")
    add("successors", metavar="SUCCESSOR", nargs="+", help="a model to compare with it")
    add("--task_name", type=labelled_task, metavar="TASK", help=f"a task of GLUE: {', '.join(LABELLED)}; in any case")
    add("--data_dir", help="the folder with the task's dev set")
    add(
        "--validation_file",
        metavar="FILE",
        help="a dev set of your own; its columns and metrics are those of the runs that trained the models, "
        "unless flags that run_glue.py has too name others",
    )
    columns = ("text_column_names", "label_column_name", "positive_label")
    for flag in columns:
        add(f"--{flag}", metavar="NAME", help="with --validation_file")
    add("--metric_for_best_model", metavar="METRIC", help="the metric of which is said how much is kept")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=32, help="rows of a batch (default: %(default)s)")
    add(
        "--max_seq_length",
        type=at_least(4),
        help="tokens; default: those of the last model whose run is known",
    )
    add("--rounds", type=at_least(1), default=5, help="timings of each model (default: %(default)s)")
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    args = parser.parse_args(argv)
    if args.validation_file:
        if args.task_name or args.data_dir:
            parser.error("--task_name and --data_dir are for GLUE's files, --validation_file is for your own")
        return args
    for flag in columns:
        if getattr(args, flag):
            parser.error(f"--{flag} is for a --validation_file")
    for flag in ("task_name", "data_dir"):
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing; for data of your own, give --validation_file")
    return args


def seconds_a_row(classifier: Classifier, features: Features, batch_size: int) -> float:
    start = time.perf_counter()
    classifier.predict(features, batch_size)
    return (time.perf_counter() - start) / len(features)


def measure_speed(models: list[tuple[Classifier, Features]], batch_size: int, rounds: int) -> np.ndarray:
    """(models, 2): the seconds that a model takes for a row in batches, and for a row alone."""
    timings = []
    for _ in range(rounds + 1):
        timings.append([])
        for classifier, dev_set in models:
            in_batches = seconds_a_row(classifier, dev_set.head(N_BATCHED), batch_size)
            alone = seconds_a_row(classifier, dev_set.head(N_SINGLE), 1)
            timings[-1].append((in_batches, alone))
    return np.median(timings[1:], axis=0)  # the first round warms up


def n_bytes(path: str, model: torch.nn.Module) -> int:
    """Bytes of the weights: of their files, or in memory where the model comes from the Hub."""
    sizes = [file.stat().st_size for file in Path(path).glob("*.safetensors")]
    return sum(sizes) or sum(p.numel() * p.element_size() for p in model.parameters())


def read_data(args: argparse.Namespace) -> Data:
    """The task and its dev sets."""
    if args.task_name:
        task = TASKS[args.task_name].judged_by(args.metric_for_best_model)
        return read_task(task, args.data_dir, train=False, dev=True)
    successor = args.successors[-1]  # knows the labels as the files have them; a predecessor may be from elsewhere
    files = OwnFiles.of(vars(args), record_of(successor), record_of(args.predecessor))
    return read_own_files(files, read_labels(successor), successor)


def compare(args: argparse.Namespace) -> str:
    """The table; ModelError or DataError where a model or the data cannot be read."""
    data, paths = read_data(args), [args.predecessor, *args.successors]
    length = input_length(args.max_seq_length, *reversed(paths))
    task, cache = data.task, FeaturesCache([args.data_dir or Path(args.validation_file).parent])
    device = first_device(not args.no_cuda)
    classifiers = [load_classifier(path, task.labels, max_seq_length=length) for path in paths]
    models, scores = [], []
    for classifier in classifiers:
        classifier.model.to(device)
        tokenizer, takes_types = classifier.tokenizer, classifier.takes_token_types()
        features = {
            name: cache.features(name, "dev", dev, tokenizer, length, takes_types) for name, dev in data.dev.items()
        }
        dev_sets = DevSets(task, features, args.per_gpu_eval_batch_size, scores[0] if scores else None)
        scores.append(dev_sets.score(classifier))
        models.append((classifier, features[task.name]))
    speeds = measure_speed(models, args.per_gpu_eval_batch_size, args.rounds)

    rows = []
    for path, classifier, score, (in_batches, alone) in zip(paths, classifiers, scores, speeds, strict=True):
        model = classifier.model
        more = {
            "layers": f"{model.config.get_text_config().num_hidden_layers}",
            "parameters": f"{count_parameters(model):,}",
            "MB on disk": f"{n_bytes(path, model) / 1e6:.1f}",
            "sentences/s": f"{1 / in_batches:.0f}",
            "ms for one": f"{1000 * alone:.1f}",
        }
        rows.append((path, score.recorded(), more))
    return comparison(f"{task.title} on {device}", rows, task.main_key)


def main(args: argparse.Namespace) -> None:
    log_plainly()
    with one_line_errors("compare.py", ModelError, DataError), enough_memory(), fast_kernels():
        print(compare(args))


if __name__ == "__main__":
    main(parse_args())
