#!/usr/bin/env python
"""Predict GLUE's test sets with fine-tuned models, in the files that the leaderboard takes.

One task, into its file in OUTPUT_DIR (for MNLI, one each for matched and mismatched):

    predict_glue.py --model_name_or_path runs/MRPC --task_name MRPC --data_dir glue_data/MRPC --output_dir predictions

All tasks, from a folder that holds one run of run_glue.py for each, into OUTPUT_DIR/submission.zip:

    predict_glue.py --runs_dir runs --data_dir glue_data --output_dir predictions

Is a submission as the leaderboard wants it?

    predict_glue.py --check predictions/submission.zip
"""

import argparse
import json
import logging
import sys
import zipfile
from pathlib import Path

from command_line import OneLineParser, at_least, log_plainly, one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS, Examples, GlueDataError, Task, find_task, read_examples

logger = logging.getLogger("predict_glue")

HEADER = "index\tprediction"
SUBMITTED = {task.submission_file: task for task in TASKS.values()}
MAX_FILE = 2**26  # bytes; the largest file of predictions, QQP's, has a fifteenth of it


class SubmissionError(Exception):
    """A submission cannot be made; the message says what is missing."""


# --------------------------------------------------------------------------------------------- arguments


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    parser = OneLineParser(prog="predict_glue.py", description=__doc__)
    add = parser.add_argument
    add("--model_name_or_path", help="one task: the fine-tuned model, a folder or a name on the Hub")
    add("--task_name", help=f"one task: {', '.join(TASKS)}; in any case")
    add("--runs_dir", type=Path, help="all tasks: a folder of runs, one a task, told by its run.json or its name")
    add("--data_dir", type=Path, help="one task: the folder with its test file; all tasks: the folder of those folders")
    add("--output_dir", type=Path, help="where the predictions go")
    add(
        "--checkpoint",
        choices=["best", "last"],
        default="best",
        help="all tasks: predict with a run's checkpoint-best where it has one, or with its last step (default: best)",
    )
    add("--fill_missing", action="store_true", help="all tasks: give a task without a run one label in every row")
    add("--check", type=Path, metavar="FILE.zip", help="say whether the leaderboard would take this submission")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=32, help="rows at a time (default: %(default)s)")
    add("--max_seq_length", type=at_least(4), help="tokens; default: what the run was trained with, else 128")
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    args = parser.parse_args(argv)
    if args.check:
        needed, more = (), ()
    elif args.runs_dir:
        needed, more = ("data_dir", "output_dir"), ("model_name_or_path", "task_name")
    else:
        needed, more = ("model_name_or_path", "task_name", "data_dir", "output_dir"), ("fill_missing",)
    for name in needed:
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    for name in more:
        if getattr(args, name):
            parser.error(f"--{name} does not go with --{'runs_dir' if args.runs_dir else 'model_name_or_path'}")
    if args.task_name is not None:
        try:
            args.task_name = find_task(args.task_name).name
        except KeyError:
            parser.error(f"--task_name {args.task_name}: there is no such task; there are {', '.join(TASKS)}")
    return args


# ------------------------------------------------------------------------------------------- predictions


def run_record(model: str | Path) -> dict:
    """The run.json beside a model of run_glue.py's, or of its checkpoint's run; empty where there is none."""
    for folder in (Path(model), Path(model).parent):
        try:
            record = json.loads((folder / "run.json").read_text())
            return record if isinstance(record, dict) else {}
        except (OSError, ValueError, RecursionError):
            continue
    return {}


def trained_length(model: str | Path) -> int:
    """The max_seq_length that a model was trained with, as its run.json tells, else 128."""
    arguments = run_record(model).get("arguments")
    length = arguments.get("max_seq_length") if isinstance(arguments, dict) else None
    return length if isinstance(length, int) and length >= 4 else 128


def load(model: str | Path, labels: tuple[str, ...] | None, args: argparse.Namespace):
    """(`Loaded`, length to which its input is cut); UserError where the model does not fit a task of these labels."""
    from bert_of_theseus.classifier import load_model

    max_seq_length = args.max_seq_length or trained_length(model)
    return load_model(str(model), labels, max_seq_length=max_seq_length), max_seq_length


def predict_tasks(model: str | Path, tests: dict[Task, Examples], args: argparse.Namespace) -> dict[Task, list[str]]:
    """For each task the leaderboard's text of every row's prediction, all by the same model.

    Args:
        tests: each task's test set; the tasks have the same labels.

    Raises:
        UserError: the model does not fit the tasks, or gives no numbers.
    """
    import torch

    from bert_of_theseus.classifier import UserError, predict, takes_token_types
    from glue_processors import tokenize

    labels = next(iter(tests)).labels
    loaded, max_seq_length = load(model, labels, args)
    loaded.model.to("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
    predictions = {}
    for task, examples in tests.items():
        logger.info("%s: %s rows by %s", task.submission_file, f"{len(examples.first):,}", model)
        features = tokenize(examples, loaded.tokenizer, max_seq_length, takes_token_types(loaded.model))
        logits = predict(loaded.model, features, args.per_gpu_eval_batch_size, loaded.tokenizer.pad_token_id or 0)
        if not logits.isfinite().all():
            raise UserError(f"{model}: gives no numbers for rows of {task.name}'s test set; was its training sound?")
        if labels:
            predictions[task] = [labels[i] for i in logits[:, loaded.label_order].argmax(1)]
        else:
            predictions[task] = [f"{score:.3f}" for score in logits[:, 0].clamp(0, 5).tolist()]
    return predictions


def write_predictions(path: Path, predictions: list[str]) -> None:
    """The leaderboard's file: `index<TAB>prediction`, counted from 0 in the order of the test file."""
    from bert_of_theseus.files import whole_file

    rows = (f"{index}\t{prediction}" for index, prediction in enumerate(predictions))
    with whole_file(path) as temporary:
        temporary.write_text("\n".join([HEADER, *rows]) + "\n")


def predict_one(args: argparse.Namespace) -> None:
    """One model, one task: its files in output_dir."""
    task = TASKS[args.task_name]
    tests = {TASKS[name]: read_examples(TASKS[name], args.data_dir, "test") for name in task.dev_tasks or [task.name]}
    for predicted, predictions in predict_tasks(args.model_name_or_path, tests, args).items():
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_predictions(args.output_dir / predicted.submission_file, predictions)
        print(args.output_dir / predicted.submission_file)


# -------------------------------------------------------------------------------------------- submission


def find_runs(runs_dir: Path, checkpoint: str) -> dict[str, Path]:
    """The model that predicts for each task, by the task's name.

    Raises:
        SubmissionError: there is no such folder, or it holds two runs of one task.
    """
    if not runs_dir.is_dir():
        raise SubmissionError(f"--runs_dir {runs_dir}: no such folder")
    runs: dict[str, Path] = {}
    for folder in sorted(path for path in runs_dir.iterdir() if (path / "config.json").is_file()):
        try:
            task = find_task(str(run_record(folder).get("task", folder.name)))
        except KeyError:
            logger.warning("%s is left out: neither a run.json nor its name tells its task", folder)
            continue
        name = task.predicted_by or task.name
        if name in runs:
            both = f"{runs[name].name} and {folder.name}"
            raise SubmissionError(f"{runs_dir} holds two runs of {name}: {both}; move one away")
        runs[name] = folder
    if checkpoint == "last":
        return runs
    best = {name: folder / "checkpoint-best" for name, folder in runs.items()}
    return {name: best[name] if (best[name] / "config.json").is_file() else runs[name] for name in runs}


def predict_all(args: argparse.Namespace) -> list[str]:
    """All eleven files and `submission.zip` in output_dir; returns why the leaderboard would refuse it, if so."""
    from bert_of_theseus.files import whole_file

    runs = find_runs(args.runs_dir, args.checkpoint)
    missing = [task.name for task in TASKS.values() if not task.predicted_by and task.name not in runs]
    if missing and not args.fill_missing:
        reason = f"{args.runs_dir} holds no run of {', '.join(missing)}"
        raise SubmissionError(f"{reason}: the submission would be incomplete; --fill_missing gives them one label")
    tests: dict[str, dict[Task, Examples]] = {name: {} for name in runs}  # by the task whose model predicts them
    predictions: dict[Task, list[str]] = {}
    for task in TASKS.values():
        name = task.predicted_by or task.name
        if name in runs:
            tests[name][task] = read_examples(task, args.data_dir / task.folder, "test")
        else:
            predictions[task] = [task.labels[0] if task.labels else "0.000"] * task.rows[2]
            logger.info("%s: %s rows filled with %s", task.submission_file, f"{task.rows[2]:,}", predictions[task][0])
    for name, model in runs.items():  # all of them before the first prediction, which may take hours
        load(model, TASKS[name].labels, args)
    for name, model in runs.items():
        predictions |= predict_tasks(model, tests[name], args)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output_dir / "submission.zip") as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for task in TASKS.values():
                path = args.output_dir / task.submission_file
                write_predictions(path, predictions[task])
                archive.write(path, path.name)
    return check_submission(args.output_dir / "submission.zip")


def check_submission(path: Path) -> list[str]:
    """What is wrong with a submission, in words; nothing where the leaderboard would take it.

    Raises:
        SubmissionError: there is no such file, or it is no zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            problems = [f"{name}: is missing" for name in SUBMITTED if name not in members]
            others = [name if name and name.isprintable() else repr(name) for name in members if name not in SUBMITTED]
            problems += [f"{name}: is none of the eleven files" for name in others]
            for name, task in SUBMITTED.items():
                if name in members and members[name].file_size > MAX_FILE:
                    problems.append(f"{name}: {members[name].file_size:,} bytes are no file of predictions")
                elif name in members:
                    problems += check_file(task, archive.read(name))
    except FileNotFoundError:
        raise SubmissionError(f"{path}: no such file") from None
    except Exception as error:  # whatever a damaged archive makes zipfile and its decompressors raise
        raise SubmissionError(f"{path} is no zip that can be read ({error})") from error
    return problems


def check_file(task: Task, data: bytes) -> list[str]:
    """What is wrong with one task's file: the first wrong line, how many more, and the number of rows."""
    name, n_rows = task.submission_file, task.rows[2]
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n").removesuffix("\n")
    n_found = text.count("\n")
    header, *rows = text.split("\n", n_rows + 1)[: n_rows + 1]  # those beyond are but counted: there may be millions
    problems = []
    if header != HEADER:
        problems.append(f"{name}:1: {header[:40]!r}, expected {HEADER!r}")
    wrong = [(number, reason) for number, row in enumerate(rows, 2) if (reason := check_row(task, number, row))]
    if wrong:
        more = f" ({len(wrong):,} such lines)" if len(wrong) > 1 else ""
        problems.append(f"{name}:{wrong[0][0]}: {wrong[0][1]}{more}")
    if n_found != n_rows:
        problems.append(f"{name}: {n_found:,} rows, expected {n_rows:,}")
    return problems


def check_row(task: Task, number: int, line: str) -> str:
    """What is wrong with a file's line of that number, or nothing."""
    index, _, prediction = line.partition("\t")
    if index != str(number - 2):
        return f"index {index[:40]!r}, expected {number - 2}"
    if task.labels:
        return "" if prediction in task.labels else f"{prediction[:40]!r}, expected one of {', '.join(task.labels)}"
    try:
        in_range = 0 <= float(prediction) <= 5
    except ValueError:
        in_range = False
    return "" if in_range else f"{prediction[:40]!r}, expected a number from 0 to 5"


# -------------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> None:
    if args.check:
        with one_line_errors("predict_glue.py", SubmissionError):
            report(args.check, check_submission(args.check))
        return
    log_plainly()
    from bert_of_theseus.classifier import UserError
    from bert_of_theseus.cpu_kernels import fast_kernels

    with one_line_errors("predict_glue.py", UserError, GlueDataError, SubmissionError), fast_kernels():
        if args.runs_dir:
            report(args.output_dir / "submission.zip", predict_all(args))
        else:
            predict_one(args)


def report(path: Path, problems: list[str]) -> None:
    """Print a submission's verdict; exit status 1 where the leaderboard would refuse it."""
    for problem in problems:
        print(problem)
    if problems:
        raise SubmissionError(f"{path}: the leaderboard would refuse it")
    print(f"{path}: all {len(SUBMITTED)} files are there, with every row and label as the leaderboard wants them")


if __name__ == "__main__":
    main(parse_args())
