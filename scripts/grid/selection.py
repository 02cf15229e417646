"""The runs of a grid that tables and pictures show side by side."""

from collections.abc import Sequence

from grid.averages import Columns, common_seeds
from grid.cells import RATES, SEARCHED_RATES, Cell, Results, at_equivalent_rate, at_rate, best_cell, searched
from grid.records import FinishedRun


def setting_in_words(method: str, rate: float, share: float) -> str:
    """What follows the title of a method; nothing where nothing is replaced."""
    start = f", at {rate:g}" if method == "constant" else f", from {rate:g}"
    return f"{start}, 1 after {share:g}" if share else ""


Changed = list[tuple[str, int | None, list[list[FinishedRun]]]]  # method, value, for each task the runs


def changed_from(results: Results, task: str, method: str, what: str) -> Cell | None:
    """The best cell of a method of those that were run with another `what`; where none was, the best of all."""
    settings = {cell._replace(seed=0, **{what: None}) for cell in results.runs if getattr(cell, what)}
    tried = [cell for cell in searched(results.runs, task, method) if cell._replace(seed=0) in settings]
    return best_cell({cell: results.runs[cell] for cell in tried} or results.runs, task, method)


def changed(results: Results, what: str) -> tuple[list[str], Changed]:
    """Methods with `what`, "n_layer" or "n_steps", as it is, at the settings of `changed_from`, and changed.

    Of what is changed the best run of its own search counts.

    Returns:
        The tasks on which it was changed, and the runs, of the seeds that all values of a method and task have; the
        value None is that of all other runs.
    """
    tasks = sorted({cell.task for cell in results.runs if getattr(cell, what)}, key=str.lower)
    found: Changed = []
    for method in results.compared():
        values = {getattr(cell, what) for cell in results.runs if cell.method == method} - {None}
        of_method = [(method, None, [results.of(changed_from(results, task, method, what)) for task in tasks])]
        for value in sorted(values, reverse=what == "n_layer"):
            best = [best_cell(results.runs, task, method, **{what: value}) for task in tasks]
            of_method.append((method, value, list(map(results.of, best))))
        of_method = [row for row in of_method if any(row[2])]
        if len(of_method) > 1:
            columns = of_common_seeds([row[2] for row in of_method])
            found += [(method, value, of) for (method, value, _), of in zip(of_method, columns, strict=True)]
    return tasks, found


def of_common_seeds(rows: Sequence[Columns]) -> list[Columns]:
    """Without the runs, column by column, of the seeds that some row with runs there does not have."""
    common = list(map(common_seeds, zip(*rows, strict=True)))
    return [[[run for run in runs if run.seed in of] for runs, of in zip(row, common, strict=True)] for row in rows]


def of_rates(results: Results) -> tuple[str, dict[str, dict[float, list[FinishedRun]]]]:
    """The task with the most constant rates, and its runs: with "fixed" learning rate, and with "equivalent" one.

    Either is there, by rate, if it has more rates than the search alone; and of the seeds that all its rates have.
    """
    task = max(results.tasks(), key=lambda task: len({cell.rate for cell in results.runs if cell.task == task}))
    best, found = best_cell(results.runs, task, "constant"), {}
    for name, at in (("fixed", at_rate), ("equivalent", at_equivalent_rate)):
        of_rate = {rate: results.of(best if rate == best.rate else at(best, rate)) for rate in RATES if best}
        of_rate = {rate: runs for rate, runs in of_rate.items() if runs}
        if len(of_rate) > len(SEARCHED_RATES["constant"]):
            seeds = common_seeds([*of_rate.values()])
            found[name] = {rate: [run for run in runs if run.seed in seeds] for rate, runs in of_rate.items()}
    return task, found


def depth(n_layer: int | None) -> str:
    """The number of a successor's layers in words."""
    return f"{n_layer} layer{'s' * (n_layer > 1)}" if n_layer else "half of the layers"
