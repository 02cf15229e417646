"""Which runs a grid is made of, in stages that follow from the results so far."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_of_theseus.run.command_line import UserError
from bert_of_theseus.run.folder import FINISHED
from grid.cells import (
    COMPARED,
    FIRST_SEED_ONLY,
    RATES,
    SEARCHED_RATES,
    SHARES,
    VARIANTS,
    Cell,
    at_equivalent_rate,
    at_first,
    at_rate,
    best_cell,
    never_alone,
    read_grid,
)
from grid.records import FinishedRun


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
        return self.results / cell.folder / FINISHED

    def is_done(self, cell: Cell) -> bool:
        """Whether it has a record, of a run from this predecessor, scored on these rows."""
        if not self.record(cell).exists():
            return False
        record = json.loads(self.record(cell).read_text())
        has_these_rows = record.get("held_out_sha256") == self.held_out_sha256[cell.task]
        return has_these_rows and self.starts_from_predecessor(record, cell)

    def starts_from_predecessor(self, record: dict, cell: Cell) -> bool:
        """Whether the run of a record starts from the cell's predecessor, wherever that lay."""
        starts_from = record["arguments"]["model_name_or_path"]
        return cell.method == "predecessor" or starts_from.endswith(self.predecessor(cell.task, cell.seed).folder)

    def predecessor(self, task: str, seed: int) -> Cell:
        """The run whose model the others of this seed start from."""
        return self.best(task, "predecessor")._replace(seed=seed)

    def runs(self, task: str, method: str) -> dict[Cell, FinishedRun]:
        return read_grid(self.results, f"{task}/{method}/*").runs

    def found(self, task: str, method: str, as_first: bool = False) -> Cell | None:
        """The `best_cell` so far."""
        found = best_cell(self.runs(task, method), task, method, as_first)
        if found and found.learning_rate not in self.learning_rates:
            raise UserError(f"--learning_rates: {found.learning_rate} has been searched; name it as well")
        return found

    def best(self, task: str, method: str, as_first: bool = False) -> Cell:
        """The `best_cell` so far; where there is none, a guess, from which the plan is made."""
        return self.found(task, method, as_first) or self.first(task, method, self.middle_two()[-1])

    def middle_two(self) -> Sequence[str]:
        """The learning rates from which the search starts."""
        middle = (len(self.learning_rates) - 1) // 2
        return self.learning_rates[middle : middle + 2]

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
        """Learning rates, round by round: the middle two, and then those beside the best as long as there are any.

        Where no run has succeeded so far, lower ones.
        """
        ladder = self.learning_rates
        tried = {(task, method): set() for method in methods for task in self.tasks}
        new = dict.fromkeys(tried, self.middle_two())
        while any(new.values()):
            cells = [self.first(*key, learning_rate) for key, rates in new.items() for learning_rate in rates]
            yield f"search: learning rate {', '.join(sorted({c.learning_rate for c in cells}, key=float))}", cells
            for key in tried:
                tried[key].update(new[key])
                best = self.found(*key)
                at = ladder.index(best.learning_rate) if best else min(map(ladder.index, tried[key]))
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
        runs = self.runs(cell.task, cell.method)
        return best_cell(runs, cell.task, cell.method, n_layer=cell.n_layer, n_steps=cell.n_steps) or cell

    def variants(self) -> list[Cell]:
        """All else: variants at the best settings of their methods, other depths and lengths at their own."""
        methods, cells = self.methods, []
        for task in self.variant_tasks:
            cells += [self.best(task, "linear")._replace(method=method) for method in VARIANTS if method in methods]
            cells += [never_alone(self.best(task, "constant", as_first=True))] if "one-module" in methods else []
        cells += [self.best_changed(cell) for cell in self.changed()]
        for name, at in (("constant-rates", at_rate), ("equivalent-rates", at_equivalent_rate)):
            if name in methods:
                constant = self.best(self.rate_task, "constant")
                cells += [at(constant, rate) for rate in RATES if rate != constant.rate]
        return cells
