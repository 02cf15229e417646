#!/usr/bin/env python
"""Make the runs that test the paper's claims: a grid of tasks, methods and seeds, in stages.

A tenth of each training file, at least 300 rows, chosen by a hash of the row, is held out: no run sees it, no setting
is chosen on it, and all runs are scored on it in the end, but for sentences that a training row contains.

First the settings are searched on the first seed, for every method alike: learning rates from the middle two outwards,
until the best one lies between others or there are none left; then, where something is replaced, the step from which
the successor trains alone, and the replacing rate, constant or at the start; and for other depths and lengths all the
learning rates. Then every method runs at its best setting, and with the step and the rate that were tried first, seed
by seed, and last the variants. The same command again skips the finished runs and resumes the others.

Each run leaves OUTPUT_DIR/results/TASK/METHOD/SETTING/run.json, from which OUTPUT_DIR/results.md is made. Of the
weights only the predecessors' are kept, in OUTPUT_DIR/runs.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid import COMPARED, CONSTANT_ANSWER, CUT, FIRST_RATE, MORE, NEEDED, VARIANTS, Cell, Plan, read_results
from report import fill_in

from bert_of_theseus import compress, load_successor, successor_size
from bert_of_theseus.classifier import Classifier, ModelError, load_classifier
from bert_of_theseus.data.scores import chance_score, compute_metrics, predictions_of
from bert_of_theseus.data.task import DataError, Examples
from bert_of_theseus.run.command_line import OneLineParser, UserError, above, at_least, log_plainly, one_line_errors
from bert_of_theseus.run.device import first_device
from bert_of_theseus.run.files import write_whole
from bert_of_theseus.run.folder import BEST, input_length, is_finished, read_record
from glue_processors import TASKS, GlueTask, find_task, labelled_task, read_dev_sets, read_examples
from replacement_scheduler import slope_to_1

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable.removeprefix(f"{ROOT}/")  # relative where it can be, since it is in every record
PHRASES = {"SST-2"}  # of which a training row is a sentence or one of its phrases
PAPER_TASKS = "CoLA MNLI MRPC QNLI QQP RTE SST-2 STS-B".split()
HELD_OUT, LEAST_HELD_OUT = 0.1, 300  # rows of the training file that are held out: the share, and at least so many
SEARCHED = ("learning_rate", "share", "rate")
METHODS = (*COMPARED, *VARIANTS, *MORE)
FIXED = set(
    "--task_name --data_dir --model_name_or_path --output_dir --do_train --do_eval --resume --max_seq_length "
    "--per_gpu_train_batch_size --per_device_train_batch_size --evaluate_during_training --logging_steps "
    "--early_stopping_patience --finetune_whole_successor --num_train_epochs --learning_rate --seed --replacing_rate "
    "--scheduler_type --scheduler_linear_k --steps_for_replacing --max_steps --scc_n_layer "
    "--gradient_accumulation_steps --metric_for_best_model --max_eval_samples".split()
)
OVERHEAD = 15  # seconds that a run takes beside its training, roughly
PART = 0.6  # of the time of a step of fine-tuning, that a step takes in the mean of the methods, roughly


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    epilog = "What follows -- is handed to run_glue.py."
    parser = OneLineParser(prog="reproduce.py", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--model", required=True, help="the pre-trained model: a folder or a name on the Hub")
    add("--glue_dir", required=True, type=Path, help="folder with the tasks' data")
    add("--tasks", required=True, help="names, separated by spaces; all: the paper's eight")
    add("--output_dir", required=True, type=Path, help="where everything goes")
    add("--seeds", default="42 43 44", help="default: %(default)s")
    add("--methods", default=" ".join(METHODS), help="those to make (default: %(default)s)")
    add("--depths", default="", help="more numbers of layers, each with a search of the learning rate")
    add("--lengths", default="", help="more numbers of steps, likewise")
    add("--search", default=" ".join(SEARCHED), help="what is searched (default: %(default)s)")
    add("--learning_rates", required=True, help="those to search, separated by spaces: from the middle two outwards")
    add("--num_train_epochs", type=above(0), default=4.0, help="of every method (default: %(default)s)")
    add("--predecessor_epochs", type=above(0), default=4.0, help="of the predecessors (default: %(default)s)")
    add("--max_steps", type=at_least(1), help="steps of a run at most (default: those of its epochs)")
    add("--n_evaluations", type=at_least(1), default=5, help="of a successor, evenly spread (default: %(default)s)")
    add("--batch_size", type=at_least(1), default=32, help="of every method (default: %(default)s)")
    add("--rate_task", default="", help="on which constant rates are tried (default: STS-B, or the first task)")
    add("--variant_tasks", default="", help="on which variants, depths and lengths are tried (default: all)")
    add("--jobs", type=at_least(1), help="runs at a time (default: one on each GPU; one where there is none)")
    add("--keep_weights", action="store_true", help="keep the successors too")
    add("--dry_run", action="store_true", help="print the estimate and the commands, and start none of them")
    args = parser.parse_args(argv[:end])
    args.extra = argv[end + 1 :]
    if Path.cwd() != ROOT:  # where the runs are started; elsewhere paths stay short, since they are in every record
        args.glue_dir, args.output_dir = args.glue_dir.resolve(), args.output_dir.resolve()
        args.model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model

    def folders(names: str) -> list[str]:
        return [TASKS[labelled_task(name)].folder for name in dict.fromkeys(names.split())]

    try:
        args.tasks = PAPER_TASKS if args.tasks == "all" else folders(args.tasks)
        args.variant_tasks = folders(args.variant_tasks) or args.tasks
        rate_tasks = folders(args.rate_task) or [task for task in ("STS-B", *args.tasks) if task in args.tasks][:1]
        for name in ("seeds", "depths", "lengths"):
            setattr(args, name, sorted({int(number) for number in getattr(args, name).split()}))
        args.learning_rates = sorted(set(args.learning_rates.split()), key=float)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except ValueError as error:
        parser.error(f"whole numbers as seeds, depths and lengths, numbers as learning rates: not {error}")
    args.methods, args.search = args.methods.split(), args.search.split()
    check_methods(parser, args)
    unknown = {*rate_tasks, *args.variant_tasks} - set(args.tasks)
    if unknown or len(rate_tasks) != 1 or not args.seeds or not args.learning_rates:
        parser.error("name a task, a seed and a learning rate; --rate_task is one of --tasks, --variant_tasks are some")
    args.rate_task = rate_tasks[0]
    fixed = FIXED & {word.split("=")[0] for word in args.extra}
    if fixed:
        parser.error(f"{' '.join(sorted(fixed))} after --: the grid sets that")
    return args


def check_methods(parser: OneLineParser, args: argparse.Namespace) -> None:
    if "learning_rate" not in args.search or {*args.search} - {*SEARCHED}:
        parser.error(f"--search {' '.join(args.search)}: learning_rate and, if you like, share and rate")
    if unknown := {*args.methods} - {*METHODS}:
        parser.error(f"--methods {' '.join(sorted(unknown))}: there are {', '.join(METHODS)}")
    for method, needed in NEEDED.items():
        if method in args.methods and needed not in args.methods:
            parser.error(f"--methods {method}: it has the setting that is best for {needed}; name that as well")
    if "constant-rates" in args.methods and "rate" not in args.search:  # which would take some of them for its own
        parser.error("--methods constant-rates: it needs --search rate as well; or name the other methods alone")
    if min([1, *args.depths, *args.lengths]) < 1:
        parser.error("--depths and --lengths are at least 1")


# ---------------------------------------------------------------------------------------------- data


def hold_out(task: GlueTask, glue_dir: Path, data_dir: Path, held_out_dir: Path) -> None:
    """Write the task's files without the held-out rows, and these as a dev set in a folder of their own.

    Of SST-2 whole sentences are held out, each with the phrases that no longer one has: else nearly every held-out
    sentence would have a phrase among the training rows. Of single sentences those that a training row contains are in
    neither.
    """
    examples = read_examples(task, glue_dir, "train")
    read_dev_sets(task, glue_dir)  # what is wrong with them is told here
    with open(glue_dir / task.train, "rb") as file:
        lines = [line for line in file if line.strip()]
    head, rows = (lines[:1], lines[1:]) if task.header else ([], lines)
    whole = longest_containing(examples.first) if task.folder in PHRASES else range(len(rows))
    by_hash = sorted(range(len(rows)), key=lambda row: (hashlib.sha256(rows[whole[row]]).digest(), row))
    held_out = set(by_hash[: min(len(rows) // 2, max(LEAST_HELD_OUT, int(HELD_OUT * len(rows))))])
    scored = held_out
    if examples.second is None:
        trained_on = "\n".join(text for row, text in enumerate(examples.first) if row not in held_out)
        scored = {row for row in held_out if examples.first[row] not in trained_on}
    data_dir.mkdir(parents=True, exist_ok=True)
    held_out_dir.mkdir(parents=True, exist_ok=True)
    write_whole(data_dir / task.train, b"".join([*head, *(row for i, row in enumerate(rows) if i not in held_out)]))
    for name in task.dev_tasks or [task.name]:
        write_whole(data_dir / TASKS[name].dev, (glue_dir / TASKS[name].dev).read_bytes())
    write_whole(held_out_dir / task.dev, b"".join([*head, *(row for i, row in enumerate(rows) if i in scored)]))


def longest_containing(texts: Sequence[str]) -> list[int]:
    """Of each text the number of the longest text that contains its words in a row, which may be itself."""
    found: dict[tuple[str, ...], int] = {}
    words = [tuple(text.split()) for text in texts]
    for i in sorted(range(len(texts)), key=lambda i: -len(words[i])):
        if words[i] not in found:  # else all its phrases are those of a longer one
            found[words[i]] = i
            ends = range(1, len(words[i]) + 1)
            for phrase in (words[i][start:end] for end in ends for start in range(end)):
                found.setdefault(phrase, i)
    return [found[of] for of in words]


# ---------------------------------------------------------------------------------------------- runs


class Commands:
    """Where the runs of the plan are made, and the command of each."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.steps_an_epoch, held_out_sha256 = {}, {}
        for name in args.tasks:
            task, data_dir = find_task(name), self.data_dir(name)
            hold_out(task, args.glue_dir / name, data_dir, self.held_out_dir(name))
            n_rows = len(read_examples(task, data_dir, "train").first)
            self.steps_an_epoch[name] = -(-n_rows // args.batch_size)
            held_out = self.held_out(name)
            held_out_sha256[name] = held_out.sha256
            self.note_constant_answer(task, {"dev": [*read_dev_sets(task, data_dir).values()], "held-out": [held_out]})
        names = "tasks seeds methods search learning_rates variant_tasks rate_task depths lengths"
        settings = {name: getattr(args, name) for name in names.split()}
        if args.depths:
            try:
                n_layer = transformers.AutoConfig.from_pretrained(args.model).num_hidden_layers
                for depth in args.depths:
                    successor_size(n_layer, depth)
            except (OSError, ValueError) as error:
                raise UserError(f"--depths {' '.join(map(str, args.depths))} of {args.model}: {error}") from error
        self.plan = Plan(args.output_dir / "results", held_out_sha256=held_out_sha256, **settings)

    def data_dir(self, task: str) -> Path:
        """The data of the runs."""
        return self.args.output_dir / "data" / task

    def held_out_dir(self, task: str) -> Path:
        """The held-out rows, as a dev set."""
        return self.args.output_dir / "held_out" / task

    def held_out(self, task: str) -> Examples:
        return read_examples(find_task(task), self.held_out_dir(task), "dev")

    def note_constant_answer(self, task: GlueTask, sets: dict[str, list[Examples]]) -> None:
        """Write what a model scores that gives every row the same answer; of several dev sets the mean, as of runs."""
        scores = {name: np.mean([chance_score(task, one.labels) for one in of]) for name, of in sets.items()}
        path = self.args.output_dir / "results" / task.folder / CONSTANT_ANSWER
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(scores, indent=2) + "\n")

    def n_steps(self, cell: Cell) -> int:
        if cell.method == "pretrained-layers":  # as many as the other methods and their predecessors have together
            others = cell._replace(method="all-trained")
            return self.n_steps(others) + self.n_steps(cell._replace(method="predecessor", n_steps=None))
        epochs = self.args.predecessor_epochs if cell.method == "predecessor" else self.args.num_train_epochs
        n_steps = max(1, int(self.steps_an_epoch[cell.task] * epochs + 1e-9))
        return cell.n_steps or min(n_steps, self.args.max_steps or n_steps)

    def runs_folder(self, cell: Cell) -> Path:
        """Where the run is made, with its weights."""
        return self.args.output_dir / "runs" / cell.folder

    def has_weights(self, cell: Cell) -> bool:
        return self.plan.is_done(cell) and (self.runs_folder(cell) / "model.safetensors").exists()

    def command(self, cell: Cell) -> list[str]:
        """The words of the run's command, for the repository's root."""
        args, n_steps = self.args, self.n_steps(cell)
        words = [PYTHON, *self.script(cell), "--task_name", cell.task, "--data_dir", self.data_dir(cell.task)]
        is_predecessor = cell.method == "predecessor"
        model = args.model if is_predecessor else self.runs_folder(self.plan.predecessor(cell.task, cell.seed))
        words += ["--model_name_or_path", model, "--output_dir", self.runs_folder(cell)]
        words += ["--do_train", "--do_eval", "--resume", "--save_steps", 0, "--max_steps", n_steps]
        if not is_predecessor:
            words += ["--evaluate_during_training", "--logging_steps", -(-n_steps // args.n_evaluations)]
        words += ["--scc_n_layer", cell.n_layer] if cell.n_layer else []
        words += ["--per_gpu_train_batch_size", args.batch_size, "--per_gpu_eval_batch_size", 32]
        words += ["--learning_rate", cell.learning_rate, "--seed", cell.seed, *self.replacing(cell)]
        return [str(word) for word in words] + args.extra

    def script(self, cell: Cell) -> list[str | int]:
        """The script that makes the run, and of ablate.py its variant."""
        if cell.method == "pretrained-layers":
            return ["scripts/ablate.py", cell.method, "--pretrained_model", self.args.model]
        if cell.method in VARIANTS or (cell.method in CUT and cell.method != "frozen"):
            return ["scripts/ablate.py", cell.method]
        return ["run_glue.py"]

    def replacing(self, cell: Cell) -> list[str | int]:
        """The flags about replacing."""
        if cell.method == "frozen":
            return ["--replacing_rate", 1, "--steps_for_replacing", 1]
        if cell.share is None:
            return []
        n_replacing = max(1, round(cell.share * self.n_steps(cell)))
        if cell.method in ("constant", *MORE):
            return ["--replacing_rate", f"{cell.rate:g}", "--steps_for_replacing", n_replacing]
        start = cell.rate or FIRST_RATE
        words = ["--replacing_rate", f"{start:g}", "--scheduler_type", "linear"]
        words += ["--scheduler_linear_k", slope_to_1(start, n_replacing)]
        return words + (["--finetune_whole_successor"] if cell.method == "linear-whole" else [])


class Runner:
    """Makes runs, one at a time on each device, until a signal comes."""

    def __init__(self, commands: Commands):
        self.commands = commands
        self.devices = find_devices(commands.args.jobs)
        self.n_threads = max(1, (os.cpu_count() or 1) // len(self.devices))  # of each run, where there are several
        if len(self.devices) > 1:  # threads that wait for each other's cores are many times slower
            torch.set_num_threads(self.n_threads)
        self.failed: dict[Cell, str] = {}  # with the last line of its log
        self.signals: list[int] = []

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP: that must stay so
                signal.signal(number, lambda number, frame: self.signals.append(number))

    def make(self, stage: str, cells: list[Cell]) -> None:
        """Make the runs that are neither done nor failed, and first the predecessors whose weights are not there."""
        plan, has_weights = self.commands.plan, self.commands.has_weights
        todo = [c for c in dict.fromkeys(cells) if not (plan.is_done(c) or c in self.failed)]
        start_from = {c: plan.predecessor(c.task, c.seed) for c in todo if c.method != "predecessor"}
        missing = [p for p in dict.fromkeys(start_from.values()) if not (has_weights(p) or p in self.failed)]
        if missing:
            print(f"== {stage}: {len(missing)} predecessors to make", flush=True)
            self.make_all(missing)
        for cell, predecessor in start_from.items():
            if predecessor in self.failed:
                self.failed[cell] = self.failed[predecessor]
        print(f"== {stage}: {len(todo)} of {len(set(cells))} runs to make", flush=True)
        self.make_all([c for c in todo if c not in self.failed])

    def make_all(self, cells: list[Cell]) -> None:
        """Make these runs, one at a time on each device."""
        todo = deque(cells)
        free, working, n_passed_on = list(self.devices), {}, len(self.signals)
        while working or (todo and not self.signals):
            while todo and free and not self.signals:
                cell, device = todo.popleft(), free.pop()
                working[self.start(cell, device)] = cell, device, time.monotonic()
            time.sleep(0.1)
            for _ in self.signals[n_passed_on:]:  # at the first a run saves and ends, at a second it ends at once
                n_passed_on += 1
                for process in working:
                    process.terminate()
            for process in [process for process in working if process.poll() is not None]:
                cell, device, start = working.pop(process)
                free.append(device)
                try:
                    outcome = self.end(cell, process.returncode)
                except (ModelError, torch.OutOfMemoryError) as error:
                    outcome = self.failed[cell] = f"not scored: {error}"
                print(f"{cell.folder}: {outcome} after {time.monotonic() - start:.0f} s", flush=True)

    def start(self, cell: Cell, device: str | None) -> subprocess.Popen:
        folder = self.commands.runs_folder(cell)
        if self.holds_another(cell, folder):
            shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.log", "wb") as log:
            # In a session of its own, so that Ctrl-C does not reach it twice.
            options = {"cwd": ROOT, "env": self.environment(device), "start_new_session": True}
            return subprocess.Popen(
                self.commands.command(cell), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    def holds_another(self, cell: Cell, folder: Path) -> bool:
        """Whether the folder holds a run that is not this one: from another predecessor, or to be made again."""
        found = read_record(folder)
        if found is None:
            return False
        plan = self.commands.plan
        return (is_finished(found) and plan.record(cell).exists()) or not plan.is_from_best(found, cell)

    def environment(self, device: str | None) -> dict[str, str]:
        variables = dict(os.environ)
        if device is not None:
            variables["CUDA_VISIBLE_DEVICES"] = device
        if len(self.devices) > 1:
            variables.setdefault("OMP_NUM_THREADS", str(self.n_threads))
        return variables

    def end(self, cell: Cell, status: int) -> str:
        """Keep the record of a finished run, and note a failed one; returns what became of it."""
        folder, record = self.commands.runs_folder(cell), self.commands.plan.record(cell)
        log = Path(f"{folder}.log")
        if status == 0:
            record.parent.mkdir(parents=True, exist_ok=True)
            result = json.loads((folder / "run.json").read_text())
            result["held_out_sha256"] = self.commands.plan.held_out_sha256[cell.task]
            result["held_out"] = self.score_held_out(cell, folder)
            write_whole(record, json.dumps(result, indent=2) + "\n")
            log.unlink()
            self.remove_weights(cell)
            return f"{result['main_metric']} {result['last']['main']:.4f}"
        if self.signals:
            return "stopped"
        last_line = (log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
        self.failed[cell] = f"{log}: {last_line}"
        return f"failed with status {status}: {last_line}"

    def score_held_out(self, cell: Cell, folder: Path) -> dict[str, dict[str, float]]:
        """The metrics of a run on the held-out rows: of its last step, of its best one, of its modules."""
        task, scores = find_task(cell.task), {}
        examples, length = self.commands.held_out(cell.task), input_length(None, folder)

        def score(classifier: Classifier) -> dict[str, float]:
            classifier.model.to(first_device(use_cuda=True))
            logits = classifier.predict_examples(examples, length, 32)
            return compute_metrics(task, predictions_of(task, logits), examples.labels)

        for which, path in (("last", folder), ("best", folder / BEST)):
            if (path / "config.json").exists():
                scores[which] = score(load_classifier(str(path), task.labels))
        if cell.method == "one-module":
            source = self.commands.runs_folder(self.commands.plan.predecessor(cell.task, cell.seed))
            successor = load_classifier(str(folder), task.labels).model
            for i in range(successor.config.num_hidden_layers):
                predecessor = load_classifier(str(source), task.labels)
                replace_one_module(predecessor.model, successor, i)
                scores[f"module {i + 1}"] = score(predecessor)
        return scores

    def remove_weights(self, cell: Cell) -> None:
        if cell.method != "predecessor" and not self.commands.args.keep_weights:
            shutil.rmtree(self.commands.runs_folder(cell), ignore_errors=True)

    def estimate(self, cells: Sequence[Cell]) -> float:
        """Hours that the runs will take, from the finished runs of the same task or from ten steps."""
        finished = read_results(self.commands.args.output_dir / "results").runs
        hours = 0.0
        for task in sorted({cell.task for cell in cells}):
            known = [run.seconds / run.steps for cell, run in finished.items() if cell.task == task]
            a_step = np.mean(known) if known else PART * self.time_fine_tuning(task)
            hours += sum(OVERHEAD + a_step * self.commands.n_steps(cell) for cell in cells if cell.task == task) / 3600
        return hours / len(self.devices)

    def time_fine_tuning(self, task: str) -> float:
        """Seconds of a step, of which ten are made."""
        print(f"Timing ten steps of {task} ...", flush=True)
        folder = self.commands.args.output_dir / "timing"
        cell = self.commands.plan.first(task, "predecessor", self.commands.args.learning_rates[0])
        words = self.commands.command(cell)
        words = [word for word in words if word not in ("--do_eval", "--resume")]
        words += ["--max_steps", "10", "--output_dir", str(folder), "--overwrite_output_dir"]
        env = self.environment(self.devices[0])
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{shlex.join(words)}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        seconds = json.loads((folder / "run.json").read_text())["training_seconds"] / 10
        shutil.rmtree(folder)
        return seconds


def replace_one_module(model: torch.nn.Module, successor: torch.nn.Module, i: int) -> None:
    """Make a predecessor a model of which module `i` is the successor's, and all others its own (table 5)."""
    layers = compress(model, successor.config.num_hidden_layers)
    load_successor(model, successor)
    size = len(layers.predecessor) // len(layers.successor)
    before, after = layers.predecessor[: i * size], layers.predecessor[(i + 1) * size :]
    layers.successor = torch.nn.ModuleList([*before, layers.successor[i], *after])
    model.eval()


def find_devices(jobs: int | None) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each run at a time; None: as it is."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    names = names if torch.cuda.is_available() else [None]
    return [names[i % len(names)] for i in range(jobs or len(names))]


# ---------------------------------------------------------------------------------------------- main


def check_grid(args: argparse.Namespace) -> None:
    """UserError where output_dir holds another grid, of which finished runs would be taken for runs of this one."""
    names = "model num_train_epochs predecessor_epochs max_steps batch_size n_evaluations extra"
    now = {name: getattr(args, name) for name in names.split()}
    now["first_seed"] = args.seeds[0]
    path = args.output_dir / "grid.json"
    before = json.loads(path.read_text()) if path.exists() else now
    different = [
        f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value
    ]
    if different:
        raise UserError(f"--output_dir {args.output_dir} holds another grid: {'; '.join(different)}; name another")
    if not args.dry_run:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(now, indent=2) + "\n")


def make_all(plan: Plan, runner: Runner) -> None:
    """Make all runs, stage by stage, as far as signals let it."""
    for stage, cells in plan.stages():
        runner.make(stage, cells)
        if runner.signals:
            print("reproduce.py: stopped; the same command resumes", file=sys.stderr)
            raise SystemExit(128 + runner.signals[0])


def main() -> None:
    args = parse_args()
    log_plainly()
    with one_line_errors("reproduce.py", DataError):
        check_grid(args)
        commands = Commands(args)
        plan, runner = commands.plan, Runner(commands)
        planned = list(dict.fromkeys(cell for _, cells in plan.stages() for cell in cells))
        todo = [cell for cell in planned if not plan.is_done(cell)]
        print(
            f"{len(planned)} runs, {len(planned) - len(todo)} of them done; the others take about "
            f"{runner.estimate(todo):.1f} hours, {len(runner.devices)} at a time",
            flush=True,
        )
        if args.dry_run:
            print("\n".join(shlex.join(commands.command(cell)) for cell in todo))
            return
        runner.listen()
        make_all(plan, runner)
        if read_results(args.output_dir / "results").runs:
            (args.output_dir / "results.md").unlink(missing_ok=True)  # a new one has all tables and pictures
            print(fill_in(args.output_dir / "results.md", args.output_dir / "results"), end="")
        if runner.failed:  # a learning rate of the search may have been too high for a method
            raise UserError(f"{len(runner.failed)} runs failed: {'; '.join(dict.fromkeys(runner.failed.values()))}")


if __name__ == "__main__":
    main()
