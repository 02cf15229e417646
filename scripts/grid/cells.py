"""The runs of a grid by their places in it, and the best one of each method.

Each run has its record in TASK/METHOD/SETTING/run.json below the grid's folder of results, and each task in
TASK/constant_answer.json what a model scores that gives every held-out row the same answer. Nothing else is
remembered: what is best, and so what comes next, follows from the records.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from bert_of_theseus.run.command_line import UserError
from grid.records import METRIC_NAMES, FinishedRun, read_runs

COMPARED = {
    "pretrained-layers": "cut pre-trained model",
    "all-trained": "cut predecessor",
    "distilled": "cut predecessor (distilled)",
    "frozen": "cut predecessor (layers alone)",
    "constant": "Theseus (constant rate)",
    "linear": "Theseus (linear)",
    "linear-whole": "Theseus (linear, then whole)",
}
CUT = ("pretrained-layers", "all-trained", "distilled", "frozen")  # those that replace nothing
FIRST_SEED_ONLY = "pretrained-layers"  # far behind all others
VARIANTS = {  # of the linear schedule
    "anti-curriculum": "1 minus the linear rate",
    "missing-gradients": "gradients missing, not zeroed",
    "every-second-layer": "start from every second layer",
}
MORE = ("one-module", "constant-rates", "equivalent-rates")  # the paper's table 5, and figure 3's two curves
CONSTANT = ("constant", *MORE)  # at a constant rate
CONSTANT_ANSWER = "constant_answer.json"  # {"held-out": the main metric, in 0 to 1}
NEEDED = dict.fromkeys(VARIANTS, "linear") | dict.fromkeys(MORE, "constant")  # whose best setting each has
TITLES = {"predecessor": "predecessor"} | COMPARED | VARIANTS
SHARES = (0.25, 0.5, 0.67)  # of the steps, after which the replacing rate is 1
FIRST_SHARE = 0.5  # with which the learning rate is searched
FIRST_RATE = 0.3  # from which the linear schedule starts, where a folder tells no rate
RATES = tuple(round(0.1 * i, 1) for i in range(1, 11))
SEARCHED_RATES = {"constant": (0.5, 0.3, 0.7), "linear": (0.3, 0.1, 0.5), "linear-whole": (0.3, 0.1, 0.5)}


class Cell(NamedTuple):
    """A run's place in the grid; the name of its folder tells all of it."""

    task: str  # as GLUE names its folder
    method: str  # of COMPARED or VARIANTS, predecessor, one-module or equivalent-rates
    seed: int
    learning_rate: str  # as it was typed
    share: float | None = None  # of the steps, after which the replacing rate is 1
    rate: float | None = None  # the constant one, or that from which the linear schedule starts
    n_layer: int | None = None  # of the successor, where it is not half of the predecessor's
    n_steps: int | None = None  # where it is not the number of all others

    @property
    def folder(self) -> str:
        is_told = self.method in CONSTANT or self.rate != FIRST_RATE
        values = {"rate": self.rate if is_told else None, "lr": self.learning_rate, "by": self.share}
        values |= {"layers": self.n_layer, "steps": self.n_steps, "seed": self.seed}
        name = "-".join(f"{name}{value}" for name, value in values.items() if value is not None)
        return f"{self.task}/{self.method}/{name}"

    @classmethod
    def at(cls, folder: Path) -> "Cell":
        task, method, name = folder.resolve().parts[-3:]
        pattern = r"(?:rate(.+?)-)?lr(.+?)(?:-by(.+?))?(?:-layers(\d+))?(?:-steps(\d+))?-seed(\d+)"
        match = re.fullmatch(pattern, name)
        if match is None or method not in {*TITLES, *MORE} - {"constant-rates"}:
            raise UserError(f"{folder} is no folder of reproduce.sh, such as CoLA/linear/lr2e-4-by0.5-seed42")
        rate, learning_rate, share, n_layer, n_steps, seed = match.groups()
        share, rate = (value and float(value) for value in (share, rate))
        n_layer, n_steps = (value and int(value) for value in (n_layer, n_steps))
        if share and rate is None:
            rate = FIRST_RATE
        return cls(task, method, int(seed), learning_rate, share, rate, n_layer, n_steps)


class Results(NamedTuple):
    runs: dict[Cell, FinishedRun]
    speed: dict[tuple[str, int | None], dict]  # what benchmark.py --json wrote, by task and, if not half, layers
    constant_answers: dict[str, float]  # of each task, in per cent

    def tasks(self) -> list[str]:
        """Those on which anything has been made of a predecessor."""
        compared = {cell.task for cell in self.runs if cell.method != "predecessor"}
        return sorted(compared or {cell.task for cell in self.runs}, key=str.lower)

    def metric(self, task: str) -> str:
        """The task's metric in words."""
        return METRIC_NAMES[next(run.metric for cell, run in self.runs.items() if cell.task == task)]

    def compared(self) -> list[str]:
        """The methods of the comparison of which there are runs."""
        made = {cell.method for cell in self.runs}
        return [method for method in COMPARED if method in made]

    def of(self, cell: Cell | None) -> list[FinishedRun]:
        """The runs of all seeds with the setting of a cell, by seed; none of none."""
        cells = [other for other in self.runs if cell and other._replace(seed=cell.seed) == cell]
        return [self.runs[other] for other in sorted(cells, key=lambda other: other.seed)]

    def best(self, task: str, method: str) -> list[FinishedRun]:
        """The runs of a method at its best setting, by seed."""
        return self.of(best_cell(self.runs, task, method))

    def comparable(self, method: str) -> list[list[FinishedRun]]:
        """For each task the runs of a method, by seed, at the best learning rate; all else is as it is tried first.

        So all methods have searched alike: those that replace nothing have a learning rate alone.
        """
        return [self.of(best_cell(self.runs, task, method, as_first=True)) for task in self.tasks()]


def read_grid(folder: Path, where: str = "*/*/*") -> Results:
    """The runs of a grid, of which there may be none, from its folder of results, and what its folder speed tells.

    Args:
        where: of the folders of the runs, in the form TASK/METHOD/SETTING, those to read.
    """
    speed = {}
    for path in folder.glob("speed/*.json"):  # TASK.json, or TASK-layersN.json
        task, _, n_layer = path.stem.partition("-layers")
        speed[task, int(n_layer) if n_layer else None] = json.loads(path.read_text())
    constant_answers = {
        path.parent.name: 100 * json.loads(path.read_text())["held-out"] for path in folder.glob(f"*/{CONSTANT_ANSWER}")
    }
    return Results({Cell.at(run.folder): run for run in read_runs(folder, where)}, speed, constant_answers)


def searched(
    runs: dict[Cell, FinishedRun], task: str, method: str, n_layer: int | None = None, n_steps: int | None = None
) -> list[Cell]:
    """The runs of the search, which are those of the first seed, by setting."""
    rates = SEARCHED_RATES.get(method, (None,))
    ours = [c for c in runs if (c.task, c.method, c.n_layer, c.n_steps) == (task, method, n_layer, n_steps)]
    ours = [c for c in ours if c.rate in rates]
    first = min((cell.seed for cell in ours), default=None)

    def order(cell: Cell):  # of equals the first one is the best
        return float(cell.learning_rate), cell.share or 0, rates.index(cell.rate)

    return sorted((cell for cell in ours if cell.seed == first), key=order)


def best_cell(
    runs: dict[Cell, FinishedRun],
    task: str,
    method: str,
    as_first: bool = False,
    n_layer: int | None = None,
    n_steps: int | None = None,
) -> Cell | None:
    """The run of the search with the best dev score after the last step; None where there is none.

    Args:
        as_first: of the runs with the share and the rate that are tried first.
        n_layer, n_steps: of the runs with this number of layers or of steps.
    """
    cells = searched(runs, task, method, n_layer, n_steps)
    if as_first:
        cells = [cell for cell in cells if cell == at_first(cell)]
    return max(cells, key=lambda cell: runs[cell].scores["last"], default=None)


# What is made of a method's best cell. The tables find the runs by the same functions.


def at_rate(cell: Cell, rate: float) -> Cell:
    return cell._replace(rate=rate)


def at_first(cell: Cell) -> Cell:
    """With the share and the rate with which the learning rate is searched, where something is replaced."""
    if cell.method not in SEARCHED_RATES:
        return cell
    return cell._replace(share=FIRST_SHARE, rate=SEARCHED_RATES[cell.method][0])


def at_equivalent_rate(cell: Cell, rate: float) -> Cell:
    """A constant rate with the learning rate times rate of `cell` (the paper's figure 3, "ELR")."""
    learning_rate = f"{float(cell.learning_rate) * cell.rate / rate:.3g}"
    return cell._replace(method="equivalent-rates", learning_rate=learning_rate, rate=rate)


def never_alone(cell: Cell) -> Cell:
    """The constant rate up to the end: of such a run the modules are judged one by one (the paper's table 5)."""
    return cell._replace(method="one-module", share=1.0)
