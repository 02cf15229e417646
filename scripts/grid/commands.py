"""Where the runs of a grid are made, and the command of each."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import transformers

from bert_of_theseus import successor_size
from bert_of_theseus.data.scores import chance_score
from bert_of_theseus.data.task import Examples
from bert_of_theseus.run.command_line import UserError
from bert_of_theseus.run.files import write_whole
from glue_processors import GlueTask, find_task, read_dev_sets, read_examples
from grid.cells import CONSTANT_ANSWER, CUT, FIRST_RATE, MORE, VARIANTS, Cell
from grid.held_out import hold_out
from grid.plan import Plan
from replacement_scheduler import slope_to_1

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable.removeprefix(f"{ROOT}/")  # relative where it can be, since it is in every record


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
