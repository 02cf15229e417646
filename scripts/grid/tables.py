"""The tables of a grid."""

import sys
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from bert_of_theseus.run.command_line import markdown
from grid.averages import (
    and_mean,
    best_on_dev,
    best_on_held_out,
    by_column,
    by_seed,
    common_seeds,
    on_dev,
    on_held_out,
    percent_kept,
    scores,
    spread,
)
from grid.cells import CUT, FIRST_SEED_ONLY, TITLES, VARIANTS, Results, best_cell, never_alone, searched
from grid.selection import changed, depth, of_common_seeds, of_rates, setting_in_words


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


def comparison(results: Results) -> str:
    """The paper's table 2 on the held-out rows, with what is kept, of the mean and of that above a constant answer."""
    tasks, floors = results.tasks(), {"": 0.0}
    constant = list(map(results.constant_answers.get, tasks))
    if None not in constant:
        floors[" above a constant answer"] = np.mean(constant)
    rows = [head(results, "held-out rows", floors)]
    if None not in constant:
        values = [*constant, np.mean(constant)] if len(tasks) > 1 else constant
        rows.append(["constant answer", *(f"{value:.1f}" for value in values), "-", "-", "-"])
    predecessors = results.comparable("predecessor")
    for method in ("predecessor", *results.compared()):
        ours = results.comparable(method)
        means = np.array([of.mean() for of in by_seed(ours, on_held_out).values()])
        row = [TITLES[method], *(spread(scores(runs, on_held_out)) for runs in ours)]
        row += [spread(means)] if len(tasks) > 1 else []
        for floor in floors.values():
            kept = percent_kept(ours, predecessors, on_held_out, floor)
            row.append("-" if method == "predecessor" else spread(kept))
        rows.append([*row, str(len(common_seeds(ours)))])
    return markdown(rows)


def head(results: Results, title: str, floors: Iterable[str] = ("",)) -> list[str]:
    """The head of a comparison: the tasks with their metrics, and what is kept above each of the floors."""
    tasks = results.tasks()
    of = "" if len(tasks) == 1 else " of the mean"
    named = [f"{task}, {results.metric(task)}" for task in tasks]
    return [title, *and_mean(named), *(f"kept{of}{floor}, %" for floor in floors), "seeds"]


def as_the_paper(results: Results) -> str:
    """The comparison as the paper has it: the best step on the dev set, the seeds' median, and the mean of these."""
    rows, predecessors = [head(results, "best step, dev rows")], results.comparable("predecessor")
    for method in ("predecessor", *results.compared()):
        ours, theirs = of_common_seeds([results.comparable(method), predecessors])
        medians, of_theirs = (
            np.array([np.median(scores(runs, best_on_dev)) if runs else np.nan for runs in of]) for of in (ours, theirs)
        )
        values = [*medians, *[medians.mean()] * (len(medians) > 1), 100 * medians.mean() / of_theirs.mean()]
        shown = ["-" if np.isnan(value) else f"{value:.1f}" for value in values]
        shown[-1] = "-" if method == "predecessor" else shown[-1]
        rows.append([TITLES[method], *shown, str(len(common_seeds(ours)))])
    return markdown(rows)


def minus(title: str, results: Results, rows: dict[str, list[str]]) -> str:
    """A table of differences `by_column`; nothing of no rows."""
    first = [f"{title}; held-out rows", *and_mean(results.tasks())]
    return markdown([first, *([name, *row] for name, row in rows.items())]) if rows else ""


def differences(results: Results) -> str:
    """What Theseus is ahead of each cut baseline, and its schedules of each other; over the seeds that both have."""
    runs = {method: results.comparable(method) for method in results.compared() if method != FIRST_SEED_ONLY}
    replacing = [method for method in runs if method not in CUT]
    pairs = [(ours, other) for ours in replacing for other in runs if other in CUT]
    pairs += [(ours, other) for i, other in enumerate(replacing) for ours in replacing[i + 1 :]]
    rows = {f"{TITLES[a]} minus {TITLES[b]}": by_column(runs[a], runs[b]) for a, b in pairs}
    return minus("difference", results, rows)


def more_search(results: Results) -> str:
    """What is gained where the rate or the share is searched as well."""
    rows = {}
    for method in results.compared():
        best, first = [results.best(task, method) for task in results.tasks()], results.comparable(method)
        if best != first:
            rows[TITLES[method]] = by_column(best, first)
    return minus("searched minus tried first", results, rows)


def best_step(results: Results) -> str:
    """What is gained by the step that is best on the dev set."""
    runs = {method: results.comparable(method) for method in results.compared()}
    rows = {TITLES[method]: by_column(of, of, best_on_held_out, on_held_out) for method, of in runs.items()}
    return minus("best step minus last", results, rows)


def variants(results: Results) -> str:
    """What each variant is ahead of the linear schedule; over the seeds that both have."""
    best = [best_cell(results.runs, task, "linear") for task in results.tasks()]
    linear, rows = list(map(results.of, best)), {}
    for method in VARIANTS:
        ours = [results.of(cell and cell._replace(method=method)) for cell in best]
        rows |= {VARIANTS[method]: by_column(ours, linear)} if any(ours) else {}
    return minus("minus linear", results, rows)


def modules(results: Results) -> str:
    """The paper's table 5: what is lost where one module of a run at a constant rate stands in for its own."""
    best = [best_cell(results.runs, task, "constant", as_first=True) for task in results.tasks()]
    ours, rows = [results.of(cell and never_alone(cell)) for cell in best], {}
    predecessors = results.comparable("predecessor")
    numbers = sorted({int(name[7:]) for runs in ours for run in runs for name in run.held_out if name[:7] == "module "})
    for i in numbers:
        alone = partial(on_held_out, which=f"module {i}")
        rows[f"module {i} alone"] = by_column(ours, predecessors, alone)
    return minus("minus the predecessor", results, rows)


def of_changed(results: Results, what: str, words: str, as_always: str) -> str:
    """The rows of `changed`, and what is kept of the mean over the tasks that all rows have."""
    tasks, found = changed(results, what)
    at = [i for i in range(len(tasks)) if all(columns[i] for _, _, columns in found)]
    predecessors = [results.best(tasks[i], "predecessor") for i in at]
    common = f" ({', '.join(tasks[i] for i in at)})" if at else ""
    rows = [["held-out rows", words, *tasks, f"kept of the mean{common}, %", "seeds"]]
    for method, value, columns in found:
        shown = [spread(scores(runs, on_held_out)) for runs in columns]
        kept = percent_kept([columns[i] for i in at], predecessors, on_held_out)
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
        runs = dict(zip(results.tasks(), results.comparable(method), strict=True))
        values = [[run.loyalty[name] for run in runs[task]] for task, name in columns]
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
                text = f"{on_dev(results.runs[cell]):.1f}" if cell else "-"
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
        columns = [scores(of.get(rate, []), on_held_out) for of in found.values()]
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
    "held-out": comparison,
    "differences": differences,
    "more-search": more_search,
    "best-step": best_step,
    "as-the-paper": as_the_paper,
    "depths": depths,
    "lengths": lengths,
    "rates": rates,
    "variants": variants,
    "modules": modules,
    "loyalty": loyalty,
    "search": search,
    "speed": speed,
}
