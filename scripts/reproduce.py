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
import json
import shlex
import sys
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid.cells import COMPARED, MORE, NEEDED, VARIANTS, read_grid
from grid.commands import ROOT, Commands
from grid.data import TaskData
from grid.documents import fill_in
from grid.plan import Plan
from grid.runner import Runner

from bert_of_theseus import successor_size
from bert_of_theseus.data.task import DataError
from bert_of_theseus.run.command_line import OneLineParser, UserError, above, at_least, log_plainly, one_line_errors
from bert_of_theseus.run.files import write_whole
from glue_processors import TASKS, labelled_task

PAPER_TASKS = "CoLA MNLI MRPC QNLI QQP RTE SST-2 STS-B".split()
SEARCHED = ("learning_rate", "share", "rate")
METHODS = (*COMPARED, *VARIANTS, *MORE)
FIXED = set(
    "--task_name --data_dir --model_name_or_path --output_dir --do_train --do_eval --resume "
    "--per_gpu_train_batch_size --per_device_train_batch_size --evaluate_during_training --logging_steps "
    "--early_stopping_patience --finetune_whole_successor --num_train_epochs --learning_rate --seed --replacing_rate "
    "--scheduler_type --scheduler_linear_k --steps_for_replacing --max_steps --scc_n_layer "
    "--gradient_accumulation_steps --metric_for_best_model --max_eval_samples".split()
)


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
    add("--dry_run", action="store_true", help="only print the commands and an estimate; a new task is timed for it")
    args = parser.parse_args(argv[:end])
    args.extra = argv[end + 1 :]
    if Path.cwd() != ROOT:  # where the runs are started; elsewhere paths stay short, since they are in every record
        args.glue_dir, args.output_dir = args.glue_dir.resolve(), args.output_dir.resolve()
        args.model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model

    def folders(names: str) -> list[str]:
        return list(dict.fromkeys(TASKS[labelled_task(name)].folder for name in names.split()))

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
        parser.error(f"{' '.join(sorted(fixed))} after --: the grid decides on that")
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


def prepare(args: argparse.Namespace) -> Commands:
    """Write the data of the grid, and make its plan and commands."""
    if args.depths:
        try:
            n_layer = transformers.AutoConfig.from_pretrained(args.model).num_hidden_layers
            for depth in args.depths:
                successor_size(n_layer, depth)
        except (OSError, ValueError) as error:
            raise UserError(f"--depths {' '.join(map(str, args.depths))} of {args.model}: {error}") from error
    data = {task: TaskData(task, args.output_dir) for task in args.tasks}
    for of in data.values():
        of.prepare(args.glue_dir)
    names = "tasks seeds methods search learning_rates variant_tasks rate_task depths lengths"
    settings = {name: getattr(args, name) for name in names.split()}
    held_out_sha256 = {task: of.held_out.sha256 for task, of in data.items()}
    return Commands(args, Plan(args.output_dir / "results", held_out_sha256=held_out_sha256, **settings), data)


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
        commands = prepare(args)
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
        if read_grid(plan.results).runs:
            (args.output_dir / "results.md").unlink(missing_ok=True)  # a new one has all tables and pictures
            print(fill_in(args.output_dir / "results.md", plan.results), end="")
        if runner.failed:  # a learning rate of the search may have been too high for a method
            raise UserError(f"{len(runner.failed)} runs failed: {'; '.join(dict.fromkeys(runner.failed.values()))}")


if __name__ == "__main__":
    main()
