#!/usr/bin/env python
"""Predict with fine-tuned models: files of your own, or GLUE's test sets in the files that the leaderboard takes.

A file of your own, .csv, .tsv, .json or .jsonl, into a .csv with a row for each text, in order:

    predict_glue.py --model_name_or_path runs/reviews --test_file new.csv --output_file predictions.csv

One task of GLUE, into its file in OUTPUT_DIR (for MNLI, one each for matched and mismatched):

    predict_glue.py --model_name_or_path runs/MRPC --task_name MRPC --data_dir glue_data/MRPC --output_dir predictions

All tasks of GLUE, from a folder that holds one run of run_glue.py for each, into OUTPUT_DIR/submission.zip:

    predict_glue.py --runs_dir runs --data_dir glue_data --output_dir predictions

Is a submission as the leaderboard wants it?

    predict_glue.py --check predictions/submission.zip
"""

import argparse
import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.classifier import Classifier, ModelError, load_classifier, read_labels
from bert_of_theseus.cpu_kernels import fast_kernels
from bert_of_theseus.data.own_files import OwnFiles, as_predictions, read_texts
from bert_of_theseus.data.task import DataError, Examples
from bert_of_theseus.run.command_line import OneLineParser, UserError, at_least, log_plainly, one_line_errors
from bert_of_theseus.run.device import enough_memory, first_device
from bert_of_theseus.run.files import whole_file, write_whole
from bert_of_theseus.run.folder import BEST, input_length, read_record, record_of
from glue_processors import TASKS, GlueTask, find_task, read_examples, task_name

logger = logging.getLogger("predict_glue")

HEADER = "index\tprediction"
SUBMITTED = {task.submission_file: task for task in TASKS.values()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = OneLineParser(prog="predict_glue.py", description=__doc__)
    add = parser.add_argument
    add("--model_name_or_path", help="one file or task: the fine-tuned model, a folder or a name on the Hub")
    add("--test_file", metavar="FILE", help="one file: the texts")
    add("--output_file", type=Path, metavar="OUT.csv", help="one file: the texts, what is predicted, probabilities")
    add(
        "--text_column_names",
        metavar="NAME[,NAME]",
        help="one file: columns of the texts (default: those of the training; else sentence, or sentence1,sentence2)",
    )
    add("--task_name", type=task_name, metavar="TASK", help=f"one task: {', '.join(TASKS)}; in any case")
    add("--runs_dir", type=Path, help="all tasks: a folder of runs, one a task, told by its run.json or its name")
    add("--data_dir", type=Path, help="one task: the folder with its test file; all tasks: the folder of those folders")
    add("--output_dir", type=Path, help="where the predictions go")
    add(
        "--checkpoint",
        choices=["last", "best"],
        help="all tasks: predict with the model in a run's folder, or with its checkpoint-best, if it has one "
        "(default: last)",
    )
    add("--fill_missing", action="store_true", help="all tasks: give a task without a run one label in every row")
    add("--check", type=Path, metavar="ZIP", help="only check a submission: would the leaderboard take it?")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=32, help="rows of a batch (default: %(default)s)")
    add("--max_seq_length", type=at_least(4), help="tokens; default: what the run was trained with, else 128")
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    args = parser.parse_args(argv)
    if args.check:
        return args
    if not args.runs_dir and (args.checkpoint or args.fill_missing):
        parser.error("--checkpoint and --fill_missing are for --runs_dir; for one task name the folder of the model")
    needed = ["data_dir", "output_dir"]
    if args.test_file:
        needed = ["model_name_or_path", "output_file"]
        if args.task_name or args.runs_dir or args.data_dir or args.output_dir:
            parser.error("--test_file is for your own data: it needs --model_name_or_path and --output_file alone")
    elif args.output_file or args.text_column_names:
        parser.error("--output_file and --text_column_names are for a --test_file")
    elif not args.runs_dir:
        needed += ["model_name_or_path", "task_name"]
    elif args.model_name_or_path or args.task_name:
        parser.error("--runs_dir is for all tasks: leave out --model_name_or_path and --task_name")
    for name in needed:
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    return args


def check_folder(folder: Path, what: str) -> None:
    """UserError, of `what` was given, where no file can be written into the folder, before hours of predictions."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{what}: nothing can be written there")


def load(model: str | Path, labels: Sequence[str] | None, length: int, no_cuda: bool) -> Classifier:
    classifier = load_classifier(str(model), labels, max_seq_length=length)
    classifier.model.to(first_device(not no_cuda))
    return classifier


def predict_file(args: argparse.Namespace) -> None:
    """Predict a file of one's own, into output_file."""
    model = args.model_name_or_path
    if args.output_file.resolve() == Path(args.test_file).resolve():
        raise UserError(f"--output_file {args.output_file} is the --test_file; name another")
    texts, labels = read_texts(args.test_file, OwnFiles.of(vars(args), record_of(model))), read_labels(model)
    if args.output_file.is_dir():
        raise UserError(f"--output_file {args.output_file} is a folder; name a file")
    check_folder(args.output_file.parent, f"--output_file {args.output_file}")
    length = input_length(args.max_seq_length, model)
    classifier = load(model, labels, length, args.no_cuda)
    logits = classifier.predict_examples(texts.examples, length, args.per_gpu_eval_batch_size)
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.output_file, as_predictions(texts, labels, logits))
    print(args.output_file)


def predict_tasks(
    model: str | Path, tests: dict[GlueTask, Examples], args: argparse.Namespace
) -> dict[GlueTask, list[str]]:
    """For each task the predictions of all rows, as text for the leaderboard, all by the same model.

    Args:
        tests: the test set of each task; the tasks have the same labels.

    Raises:
        ModelError: the model does not fit the tasks, or an output is not a finite number.
    """
    labels, length, predictions = next(iter(tests)).labels, input_length(args.max_seq_length, model), {}
    classifier = load(model, labels, length, args.no_cuda)
    for task, examples in tests.items():
        logger.info("%s: %s rows by %s", task.submission_file, f"{len(examples.first):,}", model)
        logits = classifier.predict_examples(examples, length, args.per_gpu_eval_batch_size)
        if labels:
            predictions[task] = [labels[i] for i in logits.argmax(1)]
        else:
            predictions[task] = [f"{score:.3f}" for score in logits[:, 0].clip(0, 5)]
    return predictions


def write_predictions(path: Path, predictions: list[str]) -> None:
    """The leaderboard's file: `index<TAB>prediction`, counted from 0 in the order of the test file."""
    rows = [f"{index}\t{prediction}" for index, prediction in enumerate(predictions)]
    write_whole(path, "\n".join([HEADER, *rows]) + "\n")


def predict_one(args: argparse.Namespace) -> None:
    """Predict one task with one model, into its files in output_dir."""
    names = TASKS[args.task_name].dev_tasks or [args.task_name]
    tests = {TASKS[name]: read_examples(TASKS[name], args.data_dir, "test") for name in names}
    predictions = predict_tasks(args.model_name_or_path, tests, args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for task in tests:
        write_predictions(args.output_dir / task.submission_file, predictions[task])
        print(args.output_dir / task.submission_file)


def find_runs(runs_dir: Path, checkpoint: str | None) -> dict[str, Path]:
    """The model that predicts for each task, by the task's name.

    Raises:
        UserError: there is no such folder, or it holds two runs of one task.
    """
    if not runs_dir.is_dir():
        raise UserError(f"--runs_dir {runs_dir}: no such folder")
    runs: dict[str, Path] = {}
    for folder in sorted(path.parent for path in runs_dir.glob("*/config.json")):
        record = read_record(folder)
        try:
            task = find_task(record["task"] if record else folder.name)
        except KeyError:
            what = f"its task, {record['task']}, is none of GLUE" if record else "its name is not that of a task"
            logger.warning("%s is left out: %s", folder, what)
            continue
        name = task.predicted_by or task.name
        if name in runs:
            raise UserError(f"{runs_dir} holds two runs of {name}: {runs[name]} and {folder}; move one away")
        takes_best = checkpoint == "best" and (folder / BEST / "config.json").is_file()
        runs[name] = folder / BEST if takes_best else folder
    return runs


def predict_all(args: argparse.Namespace) -> None:
    """Predict all tasks, into their files and `submission.zip` in output_dir."""
    runs = find_runs(args.runs_dir, args.checkpoint)
    if not runs:
        raise UserError(f"--runs_dir {args.runs_dir}: no run of a task of GLUE")
    missing = [task.name for task in TASKS.values() if not task.predicted_by and task.name not in runs]
    if missing and not args.fill_missing:
        reason = f"{args.runs_dir} holds no run of {', '.join(missing)}"
        raise UserError(f"{reason}: the submission would be incomplete; --fill_missing gives them one label")
    tests: dict[str, dict[GlueTask, Examples]] = {name: {} for name in runs}  # by the task whose model predicts them
    predictions: dict[GlueTask, list[str]] = {}
    for task in TASKS.values():
        name = task.predicted_by or task.name
        if name in runs:
            tests[name][task] = read_examples(task, args.data_dir / task.folder, "test")
        else:
            predictions[task] = [task.labels[0] if task.labels else "0.000"] * task.rows[2]
            logger.info("%s: %s rows filled with %s", task.submission_file, f"{task.rows[2]:,}", predictions[task][0])
    for name, model in runs.items():  # a model that does not fit is found before hours of predictions
        load_classifier(str(model), TASKS[name].labels, max_seq_length=input_length(args.max_seq_length, model))
    for name, model in runs.items():
        predictions |= predict_tasks(model, tests[name], args)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "submission.zip"
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, task in SUBMITTED.items():
            write_predictions(args.output_dir / name, predictions[task])
            archive.write(args.output_dir / name, name)
    report(path)


def check_submission(path: Path) -> list[str]:
    """What is wrong with a submission, in words; nothing where the leaderboard would take it.

    Raises:
        UserError: there is no such file, or it is no zip.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            problems = [f"{name}: is missing" for name in SUBMITTED if name not in names]
            problems += [f"{name}: is none of the eleven files" for name in names if name not in SUBMITTED]
            for name, task in SUBMITTED.items():
                if name in names:
                    problems += check_file(task, archive.read(name))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no zip that can be read ({error})") from error
    return problems


def check_file(task: GlueTask, data: bytes) -> list[str]:
    """What is wrong with one task's file: the header, the first wrong line, the number of rows."""
    name, n_rows = task.submission_file, task.rows[2]
    header, *rows = data.decode(errors="replace").splitlines() or [""]
    problems = []
    if header != HEADER:
        problems.append(f"{name}:1: {header[:40]!r}, expected {HEADER!r}")
    wrong = [(index, reason) for index, row in enumerate(rows) if (reason := check_row(task, index, row))]
    if wrong:
        index, reason = wrong[0]
        more = f" ({len(wrong):,} such lines)" if len(wrong) > 1 else ""
        problems.append(f"{name}:{index + 2}: {reason}{more}")
    if len(rows) != n_rows:
        problems.append(f"{name}: {len(rows):,} rows, expected {n_rows:,}")
    return problems


def check_row(task: GlueTask, index: int, line: str) -> str:
    """What is wrong with the row of this index; empty where nothing is."""
    found, _, prediction = line.partition("\t")
    if found != str(index):
        return f"index {found[:40]!r}, expected {index}"
    if task.labels:
        return "" if prediction in task.labels else f"{prediction[:40]!r}, expected one of {', '.join(task.labels)}"
    try:
        in_range = 0 <= float(prediction) <= 5
    except ValueError:
        in_range = False
    return "" if in_range else f"{prediction[:40]!r}, expected a number from 0 to 5"


def report(path: Path) -> None:
    """Print what is wrong with a submission; UserError where the leaderboard would refuse it."""
    problems = check_submission(path)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(f"{path}: the leaderboard would refuse it")
    print(f"{path}: all {len(SUBMITTED)} files are there, with every row and label as the leaderboard wants them")


def main(args: argparse.Namespace) -> None:
    log_plainly()
    with one_line_errors("predict_glue.py", ModelError, DataError), enough_memory(), fast_kernels():
        if args.check:
            report(args.check)
        elif args.test_file:
            predict_file(args)
        else:
            check_folder(args.output_dir, f"--output_dir {args.output_dir}")
            predict = predict_all if args.runs_dir else predict_one
            predict(args)


if __name__ == "__main__":
    main(parse_args())
