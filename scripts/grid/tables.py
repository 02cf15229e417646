"""The tables of a grid."""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from bert_of_theseus.run.command_line import markdown
from grid.averages import (
    Score,
    and_mean,
    best_on_dev,
    by_column,
    by_seed,
    common_seeds,
    median,
    on_dev,
    on_held_out,
    percent_kept,
    spread,
)
from grid.cells import (
    CUT,
    FIRST_RATE,
    FIRST_SHARE,
    RATES,
    SEARCHED_RATES,
    TITLES,
    VARIANTS,
    Cell,
    Results,
    at_equivalent_rate,
    at_rate,
    best_cell,
    never_alone,
    searched,
)
from grid.records import Run


def judged(results: Results) -> tuple[Score, str]:
    """The score by which claims are judged, and in words: on the held-out rows, if all runs were scored on them."""
    if all(run.held_out for run in results.runs.values()):
        return on_held_out, "held-out rows"
    return on_dev, "dev set"


class Entry(NamedTuple):
    """A method of the comparison, and its runs on each task."""

    title: str
    method: str
    runs: list[list[Run]]


def entries(results: Results) -> list[Entry]:
    """The methods at their best settings; and with the share and the rate that are tried first, where these are others.

    The latter only where they were run on the same seeds.
    """
    tasks, found = results.tasks(), []
    for method in results.compared():
        best, first = ([results.best(task, method, as_first) for task in tasks] for as_first in (False, True))
        found.append(Entry(TITLES[method], method, best))
        if first != best and common_seeds(first) == common_seeds(best):
            rate = SEARCHED_RATES[method][0]
            found.append(Entry(TITLES[method] + setting_in_words(method, rate, FIRST_SHARE), method, first))
    return found


def setting_in_words(method: str, rate: float, share: float) -> str:
    """What follows the title of a method; nothing where nothing is replaced."""
    start = f", at {rate:g}" if method == "constant" else f", from {rate:g}"
    return f"{start}, 1 after {share:g}" if share else ""


def what_was_run(results: Results) -> str:
    """What was run."""
    tasks = results.tasks()
    runs = {cell: run for cell, run in results.runs.items() if cell.task in tasks}
    hours = sum(run.seconds for run in runs.values()) / 3600
    steps = {task: {run.steps for cell, run in runs.items() if cell.task == task} for task in tasks}
    of_steps = ", ".join(f"{'/'.join(map(str, sorted(counts)))} steps on {task}" for task, counts in steps.items())
    setting = next(iter(runs.values())).setting
    seeds = ", ".join(map(str, sorted({cell.seed for cell in runs})))
    return (
        f"{len(runs)} runs, {hours:.1f} hours of training, in batches of {setting['per_gpu_train_batch_size']} "
        f"({of_steps}); seeds {seeds}.\n"
    )


def constant_answer(results: Results, task: str, score: Score) -> float | None:
    """What the same answer for all rows scores, in per cent; None where that was not noted."""
    noted = results.constant_answers.get(task)
    return noted and 100 * noted["held-out" if score is on_held_out else "dev"]


def comparison(results: Results, score: Score, show: Callable[[np.ndarray], str] = spread) -> str:
    """The paper's table 2, with what is kept of the mean, and of what lies above that of a constant answer."""
    tasks = results.tasks()
    of = "" if len(tasks) == 1 else " of the mean"
    rows = [["", *and_mean([f"{task}, {results.metric(task)}" for task in tasks]), f"kept{of}, %", "seeds"]]
    constant, floors = [constant_answer(results, task, score) for task in tasks], [0.0]
    if None not in constant:
        floors.append(np.mean(constant))
        rows[0].insert(-1, f"kept{of} above a constant answer, %")
        values = [*constant, floors[-1]] if len(tasks) > 1 else constant
        rows.append(["constant answer", *(f"{value:.1f}" for value in values), "-", "-", "-"])
    predecessors = [results.best(task, "predecessor") for task in tasks]
    for title, method, ours in [Entry("predecessor", "predecessor", predecessors), *entries(results)]:
        values = by_seed(ours, score)
        row = [title, *(show(np.array([score(run) for run in runs])) for runs in ours)]
        if len(tasks) > 1:
            row.append(show(np.array([of.mean() for of in values.values()])) if values else "-")
        for floor in floors:
            row.append("-" if method == "predecessor" else show(percent_kept(ours, predecessors, score, floor)))
        rows.append([*row, str(len(common_seeds(ours)))])
    return markdown(rows)


def held_out(results: Results) -> str:
    """The comparison on the held-out rows, of the runs that were scored on them."""
    scored = {cell: run for cell, run in results.runs.items() if run.held_out}
    return comparison(results._replace(runs=scored), on_held_out) if scored else ""


def differences(results: Results) -> str:
    """What Theseus is ahead of each cut baseline, and its schedules of each other; over the seeds that both have."""
    compared, (score, judged_on) = entries(results), judged(results)
    replacing = [entry for entry in compared if entry.method not in CUT]
    pairs = [(ours, other) for ours in replacing for other in compared if other.method in CUT]
    pairs += [(ours, other) for i, other in enumerate(replacing) for ours in replacing[i + 1 :]]
    rows = [[judged_on, *and_mean(results.tasks())]]
    for ours, other in pairs:
        rows.append([f"{ours.title} minus {other.title}", *by_column(ours.runs, other.runs, score)])
    return markdown(rows) if pairs else ""


def variants(results: Results) -> str:
    """What each variant is ahead of the linear schedule; over the seeds that both have."""
    tasks, (score, judged_on) = results.tasks(), judged(results)
    linear = [results.best(task, "linear") for task in tasks]
    rows = [[f"minus linear; {judged_on}", *and_mean(tasks)]]
    for method in VARIANTS:
        cells = [best_cell(results.runs, task, "linear") for task in tasks]
        ours = [results.of(cell and cell._replace(method=method)) for cell in cells]
        rows += [[VARIANTS[method], *by_column(ours, linear, score)]] if any(ours) else []
    return markdown(rows) if len(rows) > 1 else ""


def modules(results: Results) -> str:
    """The paper's table 5: what is lost where one module of a run at a constant rate stands in for its own."""
    tasks = results.tasks()
    best = [best_cell(results.runs, task, "constant") for task in tasks]
    ours = [results.of(cell and never_alone(cell)) for cell in best]
    predecessors = [results.best(task, "predecessor") for task in tasks]
    rows = [["minus the predecessor; held-out rows", *and_mean(tasks)]]
    names = {name: int(name[7:]) for runs in ours for run in runs for name in run.held_out if name[:7] == "module "}
    for name in sorted(names, key=names.get):
        rows.append([f"{name} alone", *by_column(ours, predecessors, partial(on_held_out, which=name), on_held_out)])
    return markdown(rows) if names else ""


Changed = list[tuple[str, int | None, list[list[Run]]]]  # method, value, for each task the runs


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
        found += of_common_seeds(of_method) if len(of_method) > 1 else []
    return tasks, found


def of_common_seeds(of_method: Changed) -> Changed:
    """Without the runs, task by task, of the seeds that some value does not have."""
    common = [common_seeds(of_task) for of_task in zip(*(columns for _, _, columns in of_method), strict=True)]
    return [
        (method, value, [[run for run in runs if run.seed in of] for runs, of in zip(columns, common, strict=True)])
        for method, value, columns in of_method
    ]


def of_changed(results: Results, what: str, words: str, as_always: str) -> str:
    """The rows of `changed`, and what is kept of the mean over the tasks that all rows have."""
    (tasks, found), (score, judged_on) = changed(results, what), judged(results)
    at = [i for i in range(len(tasks)) if all(columns[i] for _, _, columns in found)]
    predecessors = [results.best(tasks[i], "predecessor") for i in at]
    common = ", ".join(tasks[i] for i in at)
    rows = [[judged_on, words, *tasks, f"kept of the mean ({common}), %", "seeds"]]
    for method, value, columns in found:
        scores = [spread(np.array([score(run) for run in runs])) for runs in columns]
        kept = percent_kept([columns[i] for i in at], predecessors, score)
        rows.append([TITLES[method], str(value or as_always), *scores, spread(kept), str(len(common_seeds(columns)))])
    return markdown(rows) if found else ""


def depths(results: Results) -> str:
    """The paper's table 7."""
    return of_changed(results, "n_layer", "layers", "half")


def lengths(results: Results) -> str:
    return of_changed(results, "n_steps", "steps", "as above")


def loyalty(results: Results) -> str:
    columns = sorted({(cell.task, name) for cell, run in results.runs.items() for name in run.loyalty})
    rows = [["", *(f"{task}, {name.replace('_', ' ')}" for task, name in columns)]]
    for method in results.compared():
        values = [[run.loyalty[name] for run in results.best(task, method)] for task, name in columns]
        rows.append([TITLES[method], *(spread(100 * np.array(of)) for of in values)])
    return markdown(rows)


def search(results: Results) -> str:
    """Every run of the search; the best of each method and task in bold."""
    methods, tasks = ("predecessor", *results.compared()), results.tasks()
    of_method = {name: [cell for task in tasks for cell in searched(results.runs, task, name)] for name in methods}
    tried = {(cell.task, cell.learning_rate) for cells in of_method.values() for cell in cells}
    columns = sorted(tried, key=lambda column: (tasks.index(column[0]), float(column[1])))
    rows = [["", *map(" ".join, columns)]]
    for method, cells in of_method.items():
        best = [best_cell(results.runs, task, method) for task in tasks]
        for rate, share in sorted({(cell.rate or FIRST_RATE, cell.share or 0) for cell in cells}):
            ours = [cell for cell in cells if (cell.rate or FIRST_RATE, cell.share or 0) == (rate, share)]
            found = {(cell.task, cell.learning_rate): cell for cell in ours}
            row = [TITLES[method] + setting_in_words(method, rate, share)]
            for cell in map(found.get, columns):
                text = f"{on_dev(results.runs[cell]):.1f}" if cell else "-"
                row.append(f"**{text}**" if cell and cell in best else text)
            rows.append(row)
    return markdown(rows)


def of_rates(results: Results) -> tuple[str, dict[str, dict[float, list[Run]]]]:
    """The task with the most constant rates, and its runs at each: "fixed" learning rate, and "equivalent" one."""
    task = max(results.tasks(), key=lambda task: len({cell.rate for cell in results.runs if cell.task == task}))
    best, found = best_cell(results.runs, task, "constant"), {}
    for name, at in (("fixed", at_rate), ("equivalent", at_equivalent_rate)):
        of_rate = {rate: results.of(best if rate == best.rate else at(best, rate)) for rate in RATES if best}
        found[name] = {rate: runs for rate, runs in of_rate.items() if runs}
    return task, found


def rates(results: Results) -> str:
    """The paper's figure 3."""
    (task, found), (score, judged_on) = of_rates(results), judged(results)
    found = {name: of for name, of in found.items() if len(of) > 1}
    rows = [[f"constant rate; {task}, {judged_on}"]]
    for name in found:
        rows[0] += ["learning rate fixed" if name == "fixed" else "learning rate times rate fixed", "seeds"]
    for rate in sorted({rate for of in found.values() for rate in of}):
        cells = [np.array([score(run) for run in of.get(rate, [])]) for of in found.values()]
        rows.append([f"{rate:g}", *(text for values in cells for text in (spread(values), str(len(values))))])
    return markdown(rows) if len(rows) > len(SEARCHED_RATES["constant"]) + 1 else ""


def depth(n_layer: int | None) -> str:
    """The number of a successor's layers in words."""
    return f"{n_layer} layer{'s' * (n_layer > 1)}" if n_layer else "half of the layers"


def speed(results: Results) -> str:
    rows = [["", "predecessor, rows/s", "successor, rows/s", "times as fast", "ms for one row, of both"]]
    for task, n_layer in sorted(results.speed, key=lambda key: (key[0], -(key[1] or sys.maxsize))):
        figures = results.speed[task, n_layer]
        both = [figures["inference"][which] for which in ("predecessor", "successor")]
        single = " / ".join(f"{1000 * of['seconds_for_one']:.1f}" for of in both)
        per_second = [f"{of['examples_per_second']:.0f}" for of in both]
        rows.append([f"{task}, {depth(n_layer)}", *per_second, f"{both[1]['times_the_predecessor']:.2f}", single])
    return markdown(rows) if len(rows) > 1 else ""


TABLES: dict[str, Callable[[Results], str]] = {
    "grid": what_was_run,
    "held-out": held_out,
    "dev": partial(comparison, score=on_dev),
    "as-the-paper": partial(comparison, score=best_on_dev, show=median),
    "differences": differences,
    "depths": depths,
    "lengths": lengths,
    "rates": rates,
    "variants": variants,
    "modules": modules,
    "loyalty": loyalty,
    "search": search,
    "speed": speed,
}
