"""Where the runs of a grid are made, and the command of each."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from grid.cells import CONSTANT, CUT, VARIANTS, Cell
from grid.data import TaskData
from grid.plan import Plan
from replacement_scheduler import slope_to_1

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable.removeprefix(f"{ROOT}/")  # relative where it can be, since it is in every record


class Commands:
    """Where the runs of the plan are made, and the command of each."""

    def __init__(self, args: argparse.Namespace, plan: Plan, data: Mapping[str, TaskData]):
        self.args, self.plan, self.data = args, plan, data
        self.steps_an_epoch = {task: -(-of.n_rows() // args.batch_size) for task, of in data.items()}

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
        words = [PYTHON, *self.script(cell), "--task_name", cell.task, "--data_dir", self.data[cell.task].folder]
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
        if cell.method in CONSTANT:
            return ["--replacing_rate", f"{cell.rate:g}", "--steps_for_replacing", n_replacing]
        words = ["--replacing_rate", f"{cell.rate:g}", "--scheduler_type", "linear"]
        words += ["--scheduler_linear_k", slope_to_1(cell.rate, n_replacing)]
        return words + (["--finetune_whole_successor"] if cell.method == "linear-whole" else [])
