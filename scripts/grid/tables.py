"""The tables of a grid."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from bert_of_theseus.run.command_line import markdown
from grid.averages import (
    BEST_ON_DEV,
    BEST_ON_HELD_OUT,
    ON_DEV,
    ON_HELD_OUT,
    Score,
    and_mean,
    by_column,
    by_seed,
    common_seeds,
    median,
    percent_kept,
    scores,
    spread,
)
from grid.cells import (
    CUT,
    FIRST_SEED_ONLY,
    TITLES,
    VARIANTS,
    Results,
    best_cell,
    never_alone,
    searched,
)
from grid.selection import Entry, changed, constant_answer, depth, entries, of_rates, setting_in_words


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
        row = [title, *(show(scores(runs, score)) for runs in ours)]
        if len(tasks) > 1:
            row.append(show(np.array([of.mean() for of in values.values()])) if values else "-")
        for floor in floors:
            row.append("-" if method == "predecessor" else show(percent_kept(ours, predecessors, score, floor)))
        rows.append([*row, str(len(common_seeds(ours)))])
    return markdown(rows)


def differences(results: Results) -> str:
    """What Theseus is ahead of each cut baseline, and its schedules of each other; over the seeds that both have."""
    compared = [entry for entry in entries(results) if entry.method != FIRST_SEED_ONLY]
    replacing = [entry for entry in compared if entry.method not in CUT]
    pairs = [(ours, other) for ours in replacing for other in compared if other.method in CUT]
    pairs += [(a, b) for i, b in enumerate(replacing) for a in replacing[i + 1 :] if a.method != b.method]
    rows = [["held-out rows", *and_mean(results.tasks())]]
    for ours, other in pairs:
        rows.append([f"{ours.title} minus {other.title}", *by_column(ours.runs, other.runs, ON_HELD_OUT)])
    return markdown(rows) if pairs else ""


def variants(results: Results) -> str:
    """What each variant is ahead of the linear schedule; over the seeds that both have."""
    tasks = results.tasks()
    best = [best_cell(results.runs, task, "linear") for task in tasks]
    linear = list(map(results.of, best))
    rows = [["minus linear; held-out rows", *and_mean(tasks)]]
    for method in VARIANTS:
        ours = [results.of(cell and cell._replace(method=method)) for cell in best]
        rows += [[VARIANTS[method], *by_column(ours, linear, ON_HELD_OUT)]] if any(ours) else []
    return markdown(rows) if len(rows) > 1 else ""


def modules(results: Results) -> str:
    """The paper's table 5: what is lost where one module of a run at a constant rate stands in for its own."""
    tasks = results.tasks()
    best = [best_cell(results.runs, task, "constant", as_first=True) for task in tasks]
    ours = [results.of(cell and never_alone(cell)) for cell in best]
    predecessors = [results.best(task, "predecessor") for task in tasks]
    rows = [["minus the predecessor; held-out rows", *and_mean(tasks)]]
    names = {name: int(name[7:]) for runs in ours for run in runs for name in run.held_out if name[:7] == "module "}
    for name in sorted(names, key=names.get):
        alone = [[run._replace(held_out={"last": run.held_out[name]}) for run in runs] for runs in ours]
        rows.append([f"{name} alone", *by_column(alone, predecessors, ON_HELD_OUT)])
    return markdown(rows) if names else ""


def of_changed(results: Results, what: str, words: str, as_always: str) -> str:
    """The rows of `changed`, and what is kept of the mean over the tasks that all rows have."""
    tasks, found = changed(results, what)
    at = [i for i in range(len(tasks)) if all(columns[i] for _, _, columns in found)]
    predecessors = [results.best(tasks[i], "predecessor") for i in at]
    common = f" ({', '.join(tasks[i] for i in at)})" if at else ""
    rows = [["held-out rows", words, *tasks, f"kept of the mean{common}, %", "seeds"]]
    for method, value, columns in found:
        shown = [spread(scores(runs, ON_HELD_OUT)) for runs in columns]
        kept = percent_kept([columns[i] for i in at], predecessors, ON_HELD_OUT)
        rows.append([TITLES[method], str(value or as_always), *shown, spread(kept), str(len(common_seeds(columns)))])
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
    return markdown(rows) if columns else ""


def search(results: Results) -> str:
    """Every run of the search; the best of each method and task in bold."""
    methods, tasks = ("predecessor", *results.compared()), results.tasks()
    of_method = {name: [cell for task in tasks for cell in searched(results.runs, task, name)] for name in methods}
    tried = {(cell.task, cell.learning_rate) for cells in of_method.values() for cell in cells}
    columns = sorted(tried, key=lambda column: (tasks.index(column[0]), float(column[1])))
    rows = [["", *map(" ".join, columns)]]
    for method, cells in of_method.items():
        best = [best_cell(results.runs, task, method) for task in tasks]
        for rate, share in sorted({(cell.rate or 0, cell.share or 0) for cell in cells}):
            ours = [cell for cell in cells if (cell.rate or 0, cell.share or 0) == (rate, share)]
            found = {(cell.task, cell.learning_rate): cell for cell in ours}
            row = [TITLES[method] + setting_in_words(method, rate, share)]
            for cell in map(found.get, columns):
                text = f"{ON_DEV.of(results.runs[cell]):.1f}" if cell else "-"
                row.append(f"**{text}**" if cell and cell in best else text)
            rows.append(row)
    return markdown(rows)


def rates(results: Results) -> str:
    """The paper's figure 3."""
    task, found = of_rates(results)
    rows = [[f"constant rate; {task}, held-out rows"]]
    for name in found:
        rows[0] += ["learning rate fixed" if name == "fixed" else "learning rate times rate fixed", "seeds"]
    for rate in sorted({rate for of in found.values() for rate in of}):
        columns = [scores(of.get(rate, []), ON_HELD_OUT) for of in found.values()]
        rows.append([f"{rate:g}", *(text for values in columns for text in (spread(values), str(len(values))))])
    return markdown(rows) if found else ""


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
    "held-out": partial(comparison, score=ON_HELD_OUT),
    "best-step": partial(comparison, score=BEST_ON_HELD_OUT),
    "dev": partial(comparison, score=ON_DEV),
    "as-the-paper": partial(comparison, score=BEST_ON_DEV, show=median),
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
