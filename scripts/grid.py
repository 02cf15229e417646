"""The grid of reproduce.py: a run's place in it, the records of its runs, and which runs there are.

Each run has its record in TASK/METHOD/SETTING/run.json below the grid's folder of results, and each task in
TASK/constant_answer.json what a model scores that gives every row the same answer. Nothing else is remembered: what is
best, and so what comes next, follows from the records.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from summarize import METRICS, Run, read_runs

from bert_of_theseus.run.command_line import UserError

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
    "falling": "falling rate",
    "anti-curriculum": "1 minus the linear rate",
    "missing-gradients": "gradients missing, not zeroed",
    "every-second-layer": "start from every second layer",
}
MORE = ("one-module", "constant-rates", "equivalent-rates")  # the paper's table 5, and figure 3's two curves
CONSTANT_ANSWER = "constant_answer.json"  # {"dev": the main metric, "held-out": the same}, in 0 to 1
NEEDED = dict.fromkeys(VARIANTS, "linear") | dict.fromkeys(MORE, "constant")  # whose best setting each has
TITLES = {"predecessor": "predecessor"} | COMPARED | VARIANTS
SHARES = (0.25, 0.5, 0.67)  # of the steps, after which the replacing rate is 1
FIRST_SHARE = 0.5  # with which the learning rate is searched
FIRST_RATE = 0.3  # from which the linear schedule starts, where its cell has no rate
RATES = tuple(round(0.1 * i, 1) for i in range(1, 11))
SEARCHED_RATES = {"constant": (0.5, 0.3, 0.7), "linear": (0.3, 0.1, 0.5), "linear-whole": (0.3, 0.1, 0.5)}


class Cell(NamedTuple):
    """A run's place in the grid; the name of its folder tells all of it."""

    task: str  # as GLUE names its folder
    method: str  # of COMPARED or VARIANTS, predecessor, one-module or equivalent-rates
    seed: int
    learning_rate: str  # as it was typed
    share: float | None = None  # of the steps, after which the replacing rate is 1
    rate: float | None = None  # the constant one, or the start of the linear schedule, where not `FIRST_RATE`
    n_layer: int | None = None  # of the successor, where it is not half of the predecessor's
    n_steps: int | None = None  # where it is not the number of all others

    @property
    def folder(self) -> str:
        values = {"rate": self.rate, "lr": self.learning_rate, "by": self.share}
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
        return cls(task, method, int(seed), learning_rate, share, rate, n_layer, n_steps)


class Results(NamedTuple):
    runs: dict[Cell, Run]
    speed: dict[tuple[str, int | None], dict]  # what benchmark.py --json wrote, by task and, if not half, layers
    constant_answers: dict[str, dict[str, float]]  # what is in the file of each task

    def tasks(self) -> list[str]:
        """Those on which anything has been made of a predecessor."""
        compared = {cell.task for cell in self.runs if cell.method != "predecessor"}
        return sorted(compared or {cell.task for cell in self.runs}, key=str.lower)

    def metric(self, task: str) -> str:
        """The task's metric in words."""
        return METRICS[next(run.metric for cell, run in self.runs.items() if cell.task == task)]

    def compared(self) -> list[str]:
        """The methods of the comparison of which there are runs."""
        made = {cell.method for cell in self.runs}
        return [method for method in COMPARED if method in made]

    def of(self, cell: Cell | None) -> list[Run]:
        """The runs of all seeds with the setting of a cell, by seed; none of none."""
        cells = [other for other in self.runs if cell and other._replace(seed=cell.seed) == cell]
        return [self.runs[other] for other in sorted(cells, key=lambda other: other.seed)]

    def best(self, task: str, method: str, as_first: bool = False) -> list[Run]:
        """The runs of a method at its best setting, by seed; `as_first` is that of `best_cell`."""
        return self.of(best_cell(self.runs, task, method, as_first))


def read_results(folder: Path) -> Results:
    """The runs below a folder of results, which may be none, and what its folder speed tells."""
    speed = {}
    for path in folder.glob("speed/*.json"):  # TASK.json, or TASK-layersN.json
        task, _, n_layer = path.stem.partition("-layers")
        speed[task, int(n_layer) if n_layer else None] = json.loads(path.read_text())
    constant_answers = {path.parent.name: json.loads(path.read_text()) for path in folder.glob(f"*/{CONSTANT_ANSWER}")}
    return Results({Cell.at(run.folder): run for run in read_runs(folder)}, speed, constant_answers)


def searched(
    runs: dict[Cell, Run], task: str, method: str, n_layer: int | None = None, n_steps: int | None = None
) -> list[Cell]:
    """The runs of the search, which are those of the first seed, by setting."""
    rates = (None, *SEARCHED_RATES.get(method, ()))
    ours = [c for c in runs if (c.task, c.method, c.n_layer, c.n_steps) == (task, method, n_layer, n_steps)]
    ours = [c for c in ours if c.rate in rates]
    first = min((cell.seed for cell in ours), default=None)

    def order(cell: Cell):  # of equals the first one is the best
        return float(cell.learning_rate), cell.share or 0, rates.index(cell.rate)

    return sorted((cell for cell in ours if cell.seed == first), key=order)


def best_cell(
    runs: dict[Cell, Run],
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
    return cell._replace(rate=None if cell.method != "constant" and rate == FIRST_RATE else rate)


def at_first(cell: Cell) -> Cell:
    """With the share and the rate with which the learning rate is searched, where something is replaced."""
    if cell.method not in SEARCHED_RATES:
        return cell
    return at_rate(cell, SEARCHED_RATES[cell.method][0])._replace(share=FIRST_SHARE)


def at_equivalent_rate(cell: Cell, rate: float) -> Cell:
    """A constant rate with the learning rate times rate of `cell` (the paper's figure 3, "ELR")."""
    learning_rate = f"{float(cell.learning_rate) * cell.rate / rate:.3g}"
    return cell._replace(method="equivalent-rates", learning_rate=learning_rate, rate=rate)


def never_alone(cell: Cell) -> Cell:
    """The constant rate up to the end: of such a run the modules are judged one by one (the paper's table 5)."""
    return cell._replace(method="one-module", share=1.0)


@dataclass
class Plan:
    """Which runs there are, as far as the results so far tell.

    Attributes:
        results: the folder of the records.
        methods: of COMPARED, VARIANTS and MORE, those to make.
        search: what is searched: "learning_rate", and perhaps "share" and "rate".
        learning_rates: the ladder, from low to high, as they are typed.
        variant_tasks: on which variants, depths and lengths are tried.
        rate_task: on which constant rates are tried.
        held_out_sha256: for each task a digest of the held-out rows, which the records have too.
        depths: numbers of the successor's layers to try beside that, each with a search of the learning rate.
        lengths: numbers of steps to try, likewise.
    """

    results: Path
    tasks: Sequence[str]
    seeds: Sequence[int]
    methods: Sequence[str]
    search: Sequence[str]
    learning_rates: Sequence[str]
    variant_tasks: Sequence[str]
    rate_task: str
    held_out_sha256: Mapping[str, str]
    depths: Sequence[int] = ()
    lengths: Sequence[int] = ()

    def record(self, cell: Cell) -> Path:
        return self.results / cell.folder / "run.json"

    def is_done(self, cell: Cell) -> bool:
        """Whether it has a record, of a run from this predecessor, scored on these rows."""
        if not self.record(cell).exists():
            return False
        record = json.loads(self.record(cell).read_text())
        return record.get("held_out_sha256") == self.held_out_sha256[cell.task] and self.is_from_best(record, cell)

    def is_from_best(self, record: dict, cell: Cell) -> bool:
        """Whether the run of a record starts from the cell's predecessor, wherever that lay."""
        starts_from = record["arguments"]["model_name_or_path"]
        return cell.method == "predecessor" or starts_from.endswith(self.predecessor(cell.task, cell.seed).folder)

    def predecessor(self, task: str, seed: int) -> Cell:
        """The run whose model the others of this seed start from."""
        return self.best(task, "predecessor")._replace(seed=seed)

    def best(self, task: str, method: str, as_first: bool = False) -> Cell:
        """The `best_cell` so far; before the search has begun, a guess, from which the plan is made."""
        ladder = self.learning_rates
        found = best_cell(read_results(self.results / task / method).runs, task, method, as_first)
        if found is None:  # the search will need as many runs as if the higher one of the middle two were the best
            middle = min(len(ladder) - 1, (len(ladder) + 1) // 2)
            return self.first(task, method, ladder[middle])
        if found.learning_rate not in ladder:
            raise UserError(f"--learning_rates: {found.learning_rate} has been searched; name it as well")
        return found

    def first(self, task: str, method: str, learning_rate: str) -> Cell:
        """The cell in which a learning rate of the search is tried."""
        return at_first(Cell(task, method, self.seeds[0], learning_rate))

    def compared(self) -> list[str]:
        return [method for method in COMPARED if method in self.methods]

    def stages(self) -> Iterator[tuple[str, list[Cell]]]:
        """(name, cells); each stage is asked for when the one before is done, and depends on its results."""
        yield from self.learning_rate_search(["predecessor"])
        yield from self.learning_rate_search(self.compared())
        if "share" in self.search:
            first = self.best_of_replacing(as_first=True)
            yield "search: when the rate is 1", [cell._replace(share=share) for share in SHARES for cell in first]
        if "rate" in self.search:
            best = self.best_of_replacing()
            yield "search: the rate", [at_rate(cell, r) for cell in best for r in SEARCHED_RATES[cell.method]]
        if self.depths or self.lengths:
            changed = [c._replace(learning_rate=rate) for c in self.changed() for rate in self.learning_rates]
            yield "search: other depths and lengths", changed

        def of_seed(cells: list[Cell], seed: int) -> list[Cell]:
            return [c._replace(seed=seed) for c in cells if seed == self.seeds[0] or c.method != FIRST_SEED_ONLY]

        for seed in self.seeds:
            yield f"predecessors, seed {seed}", [self.predecessor(task, seed) for task in self.tasks]
            yield f"comparison, seed {seed}", of_seed(self.comparison(), seed)
        for seed in self.seeds:
            yield f"variants, seed {seed}", of_seed(self.variants(), seed)

    def best_of_replacing(self, as_first: bool = False) -> list[Cell]:
        """The best cell of each method that replaces something; `as_first` is that of `best_cell`."""
        replacing = [method for method in SEARCHED_RATES if method in self.methods]
        return [self.best(task, method, as_first) for method in replacing for task in self.tasks]

    def learning_rate_search(self, methods: Sequence[str]) -> Iterator[tuple[str, list[Cell]]]:
        """Learning rates, round by round: the middle two, and then those beside the best as long as there are any."""
        ladder = self.learning_rates
        middle = (len(ladder) - 1) // 2
        tried = {(task, method): set() for method in methods for task in self.tasks}
        new = dict.fromkeys(tried, ladder[middle : middle + 2])
        while any(new.values()):
            cells = [self.first(*key, learning_rate) for key, rates in new.items() for learning_rate in rates]
            yield f"search: learning rate {', '.join(sorted({c.learning_rate for c in cells}, key=float))}", cells
            for key in tried:
                tried[key].update(new[key])
                at = ladder.index(self.best(*key).learning_rate)
                new[key] = [rate for rate in ladder[max(0, at - 1) : at + 2] if rate not in tried[key]]

    def comparison(self) -> list[Cell]:
        """Every method at its best setting, and with the share and the rate that are tried first."""
        best = [self.best(task, method) for method in self.compared() for task in self.tasks]
        return list(dict.fromkeys([*best, *self.best_of_replacing(as_first=True)]))

    def changed(self) -> list[Cell]:
        """Every method with other numbers of layers and of steps, else at its best setting."""
        best = [self.best(task, method) for method in self.compared() for task in self.variant_tasks]
        other_depths = [cell._replace(n_layer=n_layer) for cell in best for n_layer in self.depths]
        return other_depths + [cell._replace(n_steps=n_steps) for cell in best for n_steps in self.lengths]

    def best_changed(self, cell: Cell) -> Cell:
        """The best one of the search so far with this number of layers and of steps; else `cell` itself."""
        runs = read_results(self.results / cell.task / cell.method).runs
        return best_cell(runs, cell.task, cell.method, n_layer=cell.n_layer, n_steps=cell.n_steps) or cell

    def variants(self) -> list[Cell]:
        """All else: variants at the best settings of their methods, other depths and lengths at their own."""
        methods, cells = self.methods, []
        for task in self.variant_tasks:
            cells += [self.best(task, "linear")._replace(method=method) for method in VARIANTS if method in methods]
            cells += [never_alone(self.best(task, "constant"))] if "one-module" in methods else []
        cells += [self.best_changed(cell) for cell in self.changed()]
        for name, at in (("constant-rates", at_rate), ("equivalent-rates", at_equivalent_rate)):
            if name in methods:
                constant = self.best(self.rate_task, "constant")
                cells += [at(constant, rate) for rate in RATES if rate != constant.rate]
        return cells
