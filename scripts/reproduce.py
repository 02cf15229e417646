#!/usr/bin/env python
"""Make the runs that test the paper's claims: a grid of tasks, methods and seeds, in stages.

First the learning rate and the step from which the successor trains alone are searched on the first seed, for every
method alike: learning rates from the middle two outwards, until the best one lies between others or there are none
left. Then every method is run at its best setting with all seeds, then variants of the linear schedule, and last
constant rates from 0.1 to 1.0 on one task. What is finished is not run again: give the same command to go on.

Each run's record is OUTPUT_DIR/results/TASK/METHOD/SETTING/run.json, from which OUTPUT_DIR/results.md is made. Weights
are removed when a run is done, but the predecessors'.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from command_line import OneLineParser, above, at_least, one_line_errors, write_whole
from report import (
    ABLATIONS,
    COMPARED,
    CONSTANT_RATE,
    FIRST_RATE,
    RATES,
    SHARES,
    UserError,
    best_setting,
    read_records,
    read_results,
    write_report,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS, GlueDataError, find_task, read_examples

ROOT = Path(__file__).resolve().parents[1]
PAPER_TASKS = "CoLA MNLI MRPC QNLI QQP RTE SST-2 STS-B".split()
PREDECESSORS = "predecessors"  # the stage after which others start from them
FREE = "--save_steps --save_total_limit --logging_steps".split()  # flags of run_glue.py that change no result
# Flags of run_glue.py that are the grid's own, or that would change its number of steps.
FIXED = """--task_name --data_dir --model_name_or_path --output_dir --do_train --do_eval --resume --max_seq_length
--per_gpu_train_batch_size --num_train_epochs --learning_rate --seed --replacing_rate --scheduler_type
--scheduler_linear_k --steps_for_replacing --max_steps --gradient_accumulation_steps"""
FIRST_SHARE = {"constant": 0.5, "linear": 0.5}  # of the steps, with which the learning rate is searched
FIXED_RATE = {"constant": CONSTANT_RATE}
OVERHEAD = 15  # seconds that a run takes beside its training, roughly
# Of what a step of fine-tuning the predecessor takes, roughly, until there are runs to know it from.
COSTS = {"predecessor": 1.0, "pretrained-layers": 0.5, "all-trained": 0.5, "frozen": 0.4}


class Run(NamedTuple):
    task: str  # as its folder is named
    method: str
    seed: int
    learning_rate: str
    by: float | None = None  # after this share of the steps the replacing rate is 1
    rate: float | None = None  # the constant one

    @property
    def folder(self) -> str:
        rate = "" if self.rate is None else f"rate{self.rate:g}-"
        by = "" if self.by is None else f"-by{self.by:g}"
        return f"{self.task}/{self.method}/{rate}lr{self.learning_rate}{by}-seed{self.seed}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    extra = argv[argv.index("--") + 1 :] if "--" in argv else []
    epilog = "What follows -- is handed to run_glue.py."
    parser = OneLineParser(prog="reproduce.sh", description=__doc__, epilog=epilog, allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="the pre-trained model: a folder or a name on the Hub")
    add("--glue_dir", required=True, type=Path, help="folder with the tasks' data")
    add("--tasks", required=True, help="names, parted by spaces; all: the paper's eight")
    add("--output_dir", required=True, type=Path, help="where the records go and, while it is needed, all else")
    add("--seeds", default="42 43 44", help="default: %(default)s")
    add("--learning_rates", required=True, help="that are searched, parted by spaces: from the middle two outwards")
    add("--num_train_epochs", type=above(0), required=True, help="of every method")
    add("--batch_size", type=at_least(1), required=True, help="of every method")
    add("--rate_task", default="", help="on which constant rates are tried (default: STS-B, or the first task)")
    add("--ablation_tasks", default="", help="on which variants are tried (default: all)")
    add("--jobs", type=at_least(1), help="runs at a time (default: one on each GPU; one where there is none)")
    add("--keep_weights", action="store_true", help="keep the successors too")
    add("--dry_run", action="store_true", help="print the plan and the estimate, and make no run of it")
    args = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    args.extra = extra
    args.tasks = PAPER_TASKS if args.tasks == "all" else args.tasks.split()
    try:
        args.tasks = [folder_of(task) for task in args.tasks]
        args.ablation_tasks = [folder_of(task) for task in args.ablation_tasks.split()] or args.tasks
        default = "STS-B" if "STS-B" in args.tasks else args.tasks[0]
        args.rate_task = folder_of(args.rate_task) if args.rate_task else default
    except (KeyError, IndexError):
        parser.error("--tasks: name some of GLUE's tasks")
    args.tasks = list(dict.fromkeys(args.tasks))
    unknown = {args.rate_task, *args.ablation_tasks} - set(args.tasks)
    if unknown:
        parser.error(f"--tasks does not name {', '.join(sorted(unknown))}, which is to be tried")
    try:
        args.seeds = sorted({int(seed) for seed in args.seeds.split()})
        args.learning_rates = sorted(set(args.learning_rates.split()), key=float)
        rates = [float(rate) for rate in args.learning_rates]
    except ValueError:
        parser.error("--seeds are whole numbers and --learning_rates numbers, parted by spaces")
    if not args.seeds or not rates or min(rates) <= 0:
        parser.error("--seeds and --learning_rates name one or more each, the latter above 0")
    fixed = sorted(set(FIXED.split()) & {word.split("=")[0] for word in extra})
    if fixed:
        parser.error(f"{fixed[0]} after --: the grid sets it, or counts on it")
    return args


def folder_of(task: str) -> str:
    """The folder's name of a task that has labels; KeyError where there is none."""
    task = find_task(task)
    if not task.metrics:
        raise KeyError(task.name)
    return task.folder


# ---------------------------------------------------------------------------------------------- plan


class Grid:
    """What is to be run, as far as the results so far tell."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.n_steps = {}
        for folder in args.tasks:
            task = next(task for task in TASKS.values() if task.folder == folder and task.metrics)
            n_rows = len(read_examples(task, args.glue_dir / folder, "train").first)
            self.n_steps[folder] = max(1, int(-(-n_rows // args.batch_size) * args.num_train_epochs + 1e-9))

    def best(self, task: str, method: str) -> tuple[str, float | None]:
        """(learning rate, by) of the search's best run so far; where there is none, a guess."""
        found = best_setting(read_records(self.args.output_dir / "results" / task / method), task, method)
        if found is None:
            ladder = self.args.learning_rates  # as many runs lie ahead as if it were the higher of the first two
            return ladder[min(len(ladder) - 1, (len(ladder) + 1) // 2)], FIRST_SHARE.get(method)
        rates = {float(rate): rate for rate in self.args.learning_rates}
        if found.learning_rate not in rates:
            raise UserError(f"--learning_rates: {found.learning_rate:g} has been searched; name it as well")
        return rates[found.learning_rate], found.by

    def stages(self) -> Iterator[tuple[str, list[Run]]]:
        """(name, runs); each stage is asked for when the one before is done, and depends on its results."""
        args, tasks, seeds = self.args, self.args.tasks, self.args.seeds

        yield from self.search(["predecessor"])
        chosen = {task: self.best(task, "predecessor") for task in tasks}
        yield PREDECESSORS, [Run(task, "predecessor", s, *chosen[task]) for s in seeds for task in tasks]

        yield from self.search(COMPARED)
        chosen = {(task, method): self.best(task, method)[0] for method in FIRST_SHARE for task in tasks}
        yield (
            "search: when the rate is 1",
            [
                Run(task, method, seeds[0], lr, by, FIXED_RATE.get(method))
                for by in SHARES
                for (task, method), lr in chosen.items()
            ],
        )

        chosen = {(task, method): self.best(task, method) for method in COMPARED for task in tasks}
        yield (
            "comparison",
            [
                Run(task, method, seed, *setting, FIXED_RATE.get(method))
                for seed in seeds
                for (task, method), setting in chosen.items()
            ],
        )

        yield (
            "variants",
            [
                Run(task, method, seed, *chosen[task, "linear"])
                for task in args.ablation_tasks
                for seed in seeds
                for method in ABLATIONS
            ],
        )

        task = args.rate_task
        yield (
            "constant rates",
            [
                Run(task, "constant", seed, *chosen[task, "constant"], r)
                if r < 1
                else Run(task, "frozen", seed, *chosen[task, "frozen"])
                for seed in seeds
                for r in RATES
            ],
        )

    def search(self, methods: Sequence[str]) -> Iterator[tuple[str, list[Run]]]:
        """Learning rates, round by round: the middle two, and then those beside the best as long as there are any."""
        first, ladder = self.args.seeds[0], self.args.learning_rates
        middle = (len(ladder) - 1) // 2
        tried = {(task, method): ladder[middle : middle + 2] for method in methods for task in self.args.tasks}
        todo = tried
        while todo:
            runs = {
                (task, method, lr): Run(task, method, first, lr, FIRST_SHARE.get(method), FIXED_RATE.get(method))
                for (task, method), rates in todo.items()
                for lr in rates
            }
            yield f"search: learning rate ({', '.join(dict.fromkeys(lr for *_, lr in runs))})", list(runs.values())
            todo = {}
            for (task, method), rates in tried.items():
                at = ladder.index(self.best(task, method)[0])
                beside = [lr for lr in ladder[max(0, at - 1) : at + 2] if lr not in rates]
                if beside:
                    todo[task, method] = beside
            tried = {key: [*rates, *todo.get(key, [])] for key, rates in tried.items()}

    def command(self, run: Run) -> list[str]:
        """The words of the run's command, for the repository's root."""
        args = self.args
        n_steps = self.n_steps[run.task]
        n_replacing = max(1, round((run.by or 0) * n_steps))
        model = args.model
        if run.method != "predecessor":
            source = Run(run.task, "predecessor", run.seed, self.best(run.task, "predecessor")[0])
            model = args.output_dir / "runs" / source.folder
        if run.method in ("predecessor", "frozen", "constant", "linear"):
            words = ["python", "run_glue.py"]
        else:
            words = ["python", "scripts/ablate.py", run.method]
        words += ["--task_name", run.task, "--data_dir", args.glue_dir / run.task, "--model_name_or_path", model]
        words += ["--output_dir", args.output_dir / "runs" / run.folder, "--do_train", "--do_eval"]
        words += ["--overwrite_output_dir", "--resume", "--save_steps", 0, "--max_seq_length", 128]
        words += ["--per_gpu_train_batch_size", args.batch_size, "--per_gpu_eval_batch_size", 32]
        words += ["--num_train_epochs", f"{args.num_train_epochs:g}", "--learning_rate", run.learning_rate]
        words += ["--seed", run.seed]
        if run.method == "pretrained-layers":
            words += ["--pretrained_model", args.model]
        elif run.method == "frozen":
            words += ["--replacing_rate", 1, "--steps_for_replacing", 1]
        elif run.method == "constant":
            words += ["--replacing_rate", f"{run.rate:g}", "--steps_for_replacing", n_replacing]
        elif run.by is not None:
            words += ["--replacing_rate", FIRST_RATE, "--scheduler_type", "linear"]
            words += ["--scheduler_linear_k", f"{(1 - FIRST_RATE) / n_replacing:.6g}"]
        return [str(word) for word in words] + args.extra


# ---------------------------------------------------------------------------------------------- runs


def is_done(args: argparse.Namespace, run: Run, with_weights: bool = False) -> bool:
    """Whether there is the run's record and, if they are needed, its weights."""
    if with_weights and not (args.output_dir / "runs" / run.folder / "config.json").exists():
        return False
    return (args.output_dir / "results" / run.folder / "run.json").exists()


def remove_weights(args: argparse.Namespace, runs: Sequence[Run], needed: Sequence[Run] = ()) -> None:
    """Remove what is left of finished runs, but of those that are needed."""
    for run in set(runs) - set(needed):
        if is_done(args, run) and not args.keep_weights:
            shutil.rmtree(args.output_dir / "runs" / run.folder, ignore_errors=True)


def keep(args: argparse.Namespace, run: Run) -> None:
    """Put the record of a finished run where results are, and remove the rest, unless it is needed."""
    source, target = args.output_dir / "runs" / run.folder, args.output_dir / "results" / run.folder
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / "run.json", (source / "run.json").read_bytes())
    if run.method != "predecessor":
        remove_weights(args, [run])


class Workers:
    """Make runs, one at a time on each device."""

    def __init__(self, args: argparse.Namespace, grid: Grid, devices: list[str | None]):
        self.args, self.grid, self.devices = args, grid, devices
        self.processes: set[subprocess.Popen] = set()
        self.failed: dict[Run, str] = {}  # with the reason
        self.stopped, self.heard = 0, 0.0  # by this signal, and when

    def stop(self, number: int, frame=None) -> None:
        # A second signal ends the runs at once; but one to a whole job comes to them twice.
        if self.stopped and time.monotonic() < self.heard + 2:
            return
        self.stopped, self.heard = number, time.monotonic()
        for process in list(self.processes):
            process.send_signal(signal.SIGTERM)  # each ends its step and saves

    def make(self, stage: str, runs: list[Run]) -> None:
        """Make all runs that are not done; those that fail are kept in `failed`."""
        done = {run for run in runs if is_done(self.args, run, stage == PREDECESSORS)}
        todo = deque(run for run in dict.fromkeys(runs) if run not in done and run not in self.failed)
        print(f"== {stage}: {len(todo)} of {len(set(runs))} runs to make", flush=True)
        total = len(todo)

        def work(device: str | None) -> None:
            while todo and not self.stopped:
                try:
                    run = todo.popleft()
                except IndexError:
                    return
                self.make_one(run, f"{total - len(todo)} of {total}", device)

        threads = [threading.Thread(target=work, args=(device,)) for device in self.devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # in steps, so that a signal is heard
                thread.join(0.5)

    def make_one(self, run: Run, number: str, device: str | None) -> None:
        folder = self.args.output_dir / "runs" / run.folder
        start = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = folder.with_name(f"{folder.name}.log")
            with open(log, "wb") as file:
                command = self.grid.command(run)
                options = {"cwd": ROOT, "env": environment(device, len(self.devices)), "start_new_session": True}
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options)
                self.processes.add(process)
                if self.stopped:  # while it was started
                    process.send_signal(signal.SIGTERM)
                status = process.wait()
                self.processes.discard(process)
            if status == 0:
                keep(self.args, run)
                record = json.loads((self.args.output_dir / "results" / run.folder / "run.json").read_text())
                outcome = f"{record['main_metric']} {record['last']['main']:.4f}"
                log.unlink()
            elif self.stopped:
                outcome = "stopped"
            else:
                lines = log.read_text(errors="replace").strip().splitlines() or [""]
                self.failed[run] = f"{log}: {lines[-1]}"
                outcome = f"failed with status {status}: {lines[-1]}"
        except Exception as error:  # whatever it is, the other runs are made, and it is told
            outcome = f"failed: {error}"
            self.failed[run] = f"{folder}: {error}"
        print(f"{number}: {run.folder}: {outcome} after {time.monotonic() - start:.0f} s", flush=True)


def find_devices(jobs: int | None) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each run at a time; None: as it is."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    names = names if torch.cuda.is_available() else [None]
    return [names[i % len(names)] for i in range(jobs or len(names))]


def environment(device: str | None, jobs: int) -> dict[str, str]:
    """A run's: this Python first, one device, and its share of the processors."""
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if device is not None:
        variables["CUDA_VISIBLE_DEVICES"] = device
    n_threads = max(1, (os.cpu_count() or 1) // jobs)
    return {"OMP_NUM_THREADS": str(n_threads)} | variables if jobs > 1 else variables


# ------------------------------------------------------------------------------------------ estimate


def step_seconds(args: argparse.Namespace, grid: Grid, devices: list[str | None]) -> dict[str, float]:
    """Seconds of a step of fine-tuning the predecessor, by task: ten are made, unless that has been done here."""
    path = args.output_dir / "step_seconds.json"
    try:
        known = {str(task): float(seconds) for task, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        known = {}
    for task in args.tasks:
        if task in known:
            continue
        print(f"Timing ten steps of {task} ...", flush=True)
        folder = args.output_dir / "timing"
        words = grid.command(Run(task, "predecessor", args.seeds[0], args.learning_rates[0]))
        words = [word for word in words if word not in ("--do_eval", "--resume")]
        words += ["--max_steps", "10", "--output_dir", str(folder)]
        done = subprocess.run(
            words, cwd=ROOT, env=environment(devices[0], len(devices)), capture_output=True, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [""]
            raise UserError(f"{shlex.join(words)}: {lines[-1]}")
        known[task] = json.loads((folder / "run.json").read_text())["training_seconds"] / 10
        shutil.rmtree(folder)
        write_whole(path, json.dumps(known).encode())
    return known


def estimate(args: argparse.Namespace, grid: Grid, runs: list[Run], devices: list[str | None]) -> float:
    """Seconds that the runs will take, one after another on each device."""
    seconds = step_seconds(args, grid, devices)
    taken: dict[tuple[str, str], list[float]] = {}
    for record in read_records(args.output_dir / "results"):
        taken.setdefault((record.task, record.method), []).append(record.run.seconds / record.run.steps)
    total = 0.0
    for run in runs:
        like = taken.get((run.task, run.method))
        a_step = sum(like) / len(like) if like else COSTS.get(run.method, 0.6) * seconds[run.task]
        total += OVERHEAD + a_step * grid.n_steps[run.task]
    return total / len(devices)


# ---------------------------------------------------------------------------------------------- main


def lasting(extra: list[str]) -> list[str]:
    """The words after -- but for flags that change no result, and their values."""
    free, kept = False, []
    for word in extra:
        free = word.split("=")[0] in FREE if word.startswith("--") else free
        kept += [] if free else [word]
    return kept


def check_grid(args: argparse.Namespace) -> None:
    """UserError where output_dir holds the runs of another grid."""
    now = {"model": args.model, "num_train_epochs": args.num_train_epochs, "batch_size": args.batch_size}
    now |= {"first_seed": args.seeds[0], "extra": lasting(args.extra)}
    path = args.output_dir / "grid.json"
    try:
        was = json.loads(path.read_text())
    except FileNotFoundError:
        if args.dry_run:
            return
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(now, indent=2).encode() + b"\n")
        return
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); name another --output_dir") from error
    different = [f"{name} was {was.get(name)}, is {value}" for name, value in now.items() if was.get(name) != value]
    if different:
        raise UserError(f"--output_dir {args.output_dir} holds other runs: {'; '.join(different)}; name another")


def main() -> None:
    args = parse_args()
    with one_line_errors("reproduce.sh", UserError, GlueDataError):
        grid = Grid(args)
        check_grid(args)
        planned = list(dict.fromkeys(run for _, runs in grid.stages() for run in runs))
        todo = [run for run in planned if not is_done(args, run)]
        devices = find_devices(args.jobs)
        hours = estimate(args, grid, todo, devices) / 3600
        say = f"{len(planned)} runs, {len(planned) - len(todo)} of them done; the others take about {hours:.1f} hours"
        print(f"{say}, {len(devices)} at a time", flush=True)
        if args.dry_run:
            for run in todo:
                print(shlex.join(grid.command(run)))
            return
        remove_weights(args, [run for run in planned if run.method != "predecessor"])  # if it was killed just then
        workers = Workers(args, grid, devices)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup lets SIGHUP be
                signal.signal(number, workers.stop)
        searched: list[Run] = []
        for stage, runs in grid.stages():
            workers.make(stage, runs)
            if workers.stopped:
                print("reproduce.sh: stopped; the same command goes on", file=sys.stderr)
                raise SystemExit(128 + workers.stopped)
            if stage == PREDECESSORS:
                if not all(is_done(args, run, True) for run in runs):  # which all others start from
                    break
                remove_weights(args, searched, runs)
            searched += runs
        if any((args.output_dir / "results").rglob("run.json")):
            print(write_report(read_results(args.output_dir / "results"), args.output_dir / "results.md"), end="")
        if workers.failed:  # a learning rate of the search may have been too high for a method
            raise UserError(f"{len(workers.failed)} runs failed: {'; '.join(workers.failed.values())}")


if __name__ == "__main__":
    main()
