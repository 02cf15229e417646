#!/usr/bin/env python
"""Hold successors against their predecessor on a task's dev set: score, loyalty, size, speed.

    compare.py --task_name MRPC --data_dir glue_data/MRPC runs/predecessor runs/successor

Speed is the median of rounds in which the models take turns, so that a busy machine slows them all alike.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from command_line import OneLineParser, aligned, at_least, check_task, log_plainly, one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS, GlueDataError, cached_features

N_BATCHED, N_SINGLE = 256, 20  # the dev set's first rows that are timed in batches and one by one in each round


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="compare.py", description=__doc__)
    add = parser.add_argument
    add("predecessor", metavar="PREDECESSOR", help="a fine-tuned model: a folder or a name on the Hub")
    add("successors", metavar="SUCCESSOR", nargs="+", help="what is held against it, likewise")
    tasks = [name for name, task in TASKS.items() if task.metrics]
    add("--task_name", required=True, help=f"{', '.join(tasks)}; in any case")
    add("--data_dir", required=True, help="the folder with the task's dev set")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=32, help="rows of a batch (default: %(default)s)")
    add("--max_seq_length", type=at_least(4), default=128, help="tokens; longer input is cut (default: %(default)s)")
    add("--rounds", type=at_least(1), default=5, help="timings of each model (default: %(default)s)")
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    args = parser.parse_args(argv)
    check_task(parser, args, "evaluate")
    return args


def measure_speed(models: list, features: list, batch_size: int, rounds: int) -> list[tuple[float, float]]:
    """(rows a second in batches, seconds for one row) of each `Loaded` model on rows of its `Features`."""
    from bert_of_theseus.classifier import predict

    features, heads = [some.head(N_BATCHED) for some in features], [some.head(N_SINGLE) for some in features]
    seconds: list[list[tuple[float, float]]] = [[] for _ in models]
    for timing in range(rounds + 1):
        for loaded, rows, head, taken in zip(models, features, heads, seconds, strict=True):
            pad_token_id = loaded.tokenizer.pad_token_id or 0
            start = time.perf_counter()
            predict(loaded.model, rows, batch_size, pad_token_id)
            half = time.perf_counter()
            predict(loaded.model, head, 1, pad_token_id)
            if timing:  # the first round warms up
                taken.append((len(rows) / (half - start), (time.perf_counter() - half) / len(head)))
    return [tuple(map(statistics.median, zip(*taken, strict=True))) for taken in seconds]


def compare(args: argparse.Namespace) -> str:
    """The table; UserError or GlueDataError where a model or the data cannot be read."""
    import torch

    from bert_of_theseus.classifier import load_model, takes_token_types
    from run_glue import DevSets, count_parameters, predict_dev, read_dev_sets, score_logits

    task = TASKS[args.task_name]
    examples = read_dev_sets(args, task)
    folders = [args.predecessor, *args.successors]
    models = [load_model(folder, task.labels, max_seq_length=args.max_seq_length) for folder in folders]
    device = "cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu"
    scores, features, predecessor = [], [], {}
    for loaded in models:
        loaded.model.to(device)
        token_types = takes_token_types(loaded.model)
        dev_features = {
            name: cached_features(
                *(TASKS[name], "dev", some, loaded.tokenizer, args.max_seq_length, token_types, [args.data_dir])
            )
            for name, some in examples.items()
        }
        dev_sets = DevSets(dev_features, predecessor)
        logits, seconds = predict_dev(task, loaded, dev_sets, args.per_gpu_eval_batch_size)
        scores.append(score_logits(task, dev_sets, logits, seconds))
        predecessor = predecessor or logits  # which is the first
        features.append(dev_features[task.name])
    speeds = measure_speed(models, features, args.per_gpu_eval_batch_size, args.rounds)

    head = [*scores[0].metrics, "kept", *scores[-1].loyalty]
    head += ["layers", "parameters", "MB on disk", "sentences/s", "ms for one"]
    table = [[f"{task.folder} on {device}", *head]]
    for folder, loaded, score, (rate, latency) in zip(folders, models, scores, speeds, strict=True):
        megabytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters()) / 1e6
        weights = list(Path(folder).glob("*.safetensors"))
        if weights:
            megabytes = sum(path.stat().st_size for path in weights) / 1e6
        kept = f"{100 * score.main / scores[0].main:.1f} %" if scores[0].main > 0 else "-"
        numbers = (f"{loaded.model.config.num_hidden_layers}", f"{count_parameters(loaded.model):,}")
        speed = (f"{megabytes:.1f}", f"{rate:.0f}", f"{1000 * latency:.1f}")
        loyalty = [f"{score.loyalty[name]:.4f}" if score.loyalty else "-" for name in scores[-1].loyalty]
        metrics = [f"{value:.4f}" for value in score.metrics.values()]
        table.append([str(folder), *metrics, kept, *loyalty, *numbers, *speed])
    return aligned(table)


def main(args: argparse.Namespace) -> None:
    log_plainly()
    from bert_of_theseus.classifier import UserError
    from bert_of_theseus.cpu_kernels import fast_kernels

    with one_line_errors("compare.py", UserError, GlueDataError), fast_kernels():
        print(compare(args))


if __name__ == "__main__":
    main(parse_args())
