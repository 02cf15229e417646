#!/usr/bin/env python
"""Fill in the tables of documents from the records of reproduce.sh, and draw the pictures that the documents show.

report.py RESULTS_DIR DOCUMENT ...

What stands in a document between <!-- NAME --> and <!-- /NAME --> becomes the table NAME of the results in
RESULTS_DIR, and of <!-- FOLDER/NAME --> that of RESULTS_DIR/FOLDER; a picture is FOLDER_NAME.png beside the document. A
new document gets all tables and pictures.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid import (
    COMPARED,
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
    read_results,
    searched,
)
from summarize import BLUE, GREY, ORANGE, Run, deviation, draw, mean, spread, write

from bert_of_theseus.run.command_line import OneLineParser, UserError, markdown, one_line_errors

Score = Callable[[Run], float]  # of a run, in per cent


def on_held_out(run: Run, which: str = "last") -> float:
    """On the held-out rows: after the last step, or with "module 1", "module 2", ... alone."""
    return 100 * run.held_out[which]


def on_dev(run: Run) -> float:
    """After the last step, on the dev set."""
    return 100 * run.scores["last"]


def judged(results: Results) -> tuple[Score, str]:
    """The score by which claims are judged, and in words: on the held-out rows, if all runs were scored on them."""
    if all(run.held_out for run in results.runs.values()):
        return on_held_out, "held-out rows"
    return on_dev, "dev set"


def best_on_dev(run: Run) -> float:
    """At the best step on the dev set; of a predecessor after the last one."""
    return 100 * run.scores.get("best", run.scores["last"])


def median(values: np.ndarray) -> str:
    return f"{np.median(values):.1f}" if len(values) else "-"


def with_error(values: np.ndarray) -> str:
    """The mean of differences, with its sign, ± its standard error where there are several."""
    if not len(values):
        return "-"
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{values.mean():+.1f}{error}"


# ------------------------------------------------------------------------------------------ numbers


def by_seed(columns: Sequence[Sequence[Run]], score: Score) -> dict[int, np.ndarray]:
    """The scores in all columns, which are mostly tasks, of the seeds that all columns have."""
    found = [{run.seed: score(run) for run in runs} for runs in columns]
    seeds = sorted(set.intersection(*map(set, found))) if found else []
    return {seed: np.array([of[seed] for of in found]) for seed in seeds}


def common_seeds(columns: Sequence[Sequence[Run]]) -> set[int]:
    """The seeds that all columns have, but for those without any run."""
    seeds = [{run.seed for run in runs} for runs in columns if runs]
    return set.intersection(*seeds) if seeds else set()


def difference(
    ours: Sequence[Sequence[Run]], others: Sequence[Sequence[Run]], score: Score, of_others: Score | None = None
) -> str:
    """The mean over the seeds of the difference of two means over the columns, ± its standard error.

    Args:
        of_others: the score of the others, where it is not `score` too.
    """
    a, b = by_seed(ours, score), by_seed(others, of_others or score)
    return with_error(np.array([a[seed].mean() - b[seed].mean() for seed in a if seed in b]))


def by_column(ours: Sequence[Sequence[Run]], others: Sequence[Sequence[Run]], *scores: Score) -> list[str]:
    """The `difference` in each column, and of several that of the means over them."""
    alone = [difference([one], [two], *scores) for one, two in zip(ours, others, strict=True)]
    return [*alone, difference(ours, others, *scores)] if len(ours) > 1 else alone


def and_mean(tasks: Sequence[str]) -> list[str]:
    """The heads of the columns of `by_column`."""
    return [*tasks, "mean"] if len(tasks) > 1 else list(tasks)


def percent_kept(
    ours: Sequence[Sequence[Run]], predecessors: Sequence[Sequence[Run]], score: Score, floor: float = 0.0
) -> np.ndarray:
    """Of each seed, the share that is kept of what the predecessor's mean over the columns is above the floor."""
    a, b = ({seed: of.mean() - floor for seed, of in by_seed(runs, score).items()} for runs in (ours, predecessors))
    return np.array([100 * a[seed] / b[seed] for seed in a if b.get(seed, 0) > 0])


# ------------------------------------------------------------------------------------------- tables


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


# ------------------------------------------------------------------------------------------ pictures


def colour(method: str) -> str:
    """Blue where something is replaced."""
    return GREY if method == "predecessor" else ORANGE if method in CUT else BLUE


def style(method: str) -> dict:
    """Of a method's line, apart from all others' by its marker."""
    marker = "osv^<>*"[list(COMPARED).index(method)]
    return {"color": colour(method), "marker": marker, "label": TITLES[method], "alpha": 0.8}


def draw_comparison(results: Results, figure) -> None:
    """A panel for each task: each run of each method, the means, and dotted a constant answer.

    A point is as wide in all panels.
    """
    score, judged_on = judged(results)
    tasks, methods = results.tasks(), ("predecessor", *results.compared())
    figure.set_size_inches(2.6 * len(tasks) + 2.6, 1 + 0.45 * len(methods))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        for y, method in enumerate(methods):
            values = np.array([score(run) for run in results.best(task, method)])
            axis.plot(values, [y] * len(values), "o", color=colour(method), alpha=0.45)
            axis.plot(mean(values), y, "|", color=colour(method), markersize=22, markeredgewidth=2.5)
        axis.set(title=task, xlabel=results.metric(task).replace(" of ", " of\n") + f",\n{judged_on}")
        axis.grid(axis="x", alpha=0.3)
    middles, half = middle_and_half(np.array([axis.get_xlim() for axis in axes]))
    for axis, task, middle in zip(axes, tasks, middles, strict=True):
        constant = constant_answer(results, task, score)
        if constant is not None:  # it may lie far outside
            axis.axvline(constant, color=GREY, linestyle=":")
        axis.set_xlim(middle - half, middle + half)
    axes[0].set_yticks(range(len(methods)), [TITLES[method] for method in methods])
    axes[0].set_ylim(len(methods) - 0.4, -0.6)


def draw_rates(results: Results, figure) -> None:
    """The score against constant replacing rates, mean ± standard deviation over the seeds."""
    (task, found), (score, judged_on) = of_rates(results), judged(results)
    figure.set_size_inches(7, 4)
    axis = figure.subplots()
    for (name, of), line in zip(found.items(), ("o-", "s--"), strict=True):
        scores = [np.array([score(run) for run in runs]) for runs in of.values()]
        if len(scores) > 1:
            label = f"{TITLES['constant']}, learning rate{'' if name == 'fixed' else ' times rate'} fixed"
            axis.errorbar(
                list(of),
                list(map(mean, scores)),
                list(map(deviation, scores)),
                fmt=line,
                color=BLUE,
                capsize=3,
                label=label,
            )
    draw_lines(axis, {name: results.best(task, name) for name in ("predecessor", "linear")}, score)
    axis.set(title=f"{task}, {judged_on}", xlabel="constant replacing rate", xlim=(0, 1.05))
    axis.set_ylabel(f"{results.metric(task)}, %")
    axis.legend(fontsize=9)


def draw_lines(axis, methods: dict[str, list[Run]], score: Score) -> None:
    """A level line for the mean of each method that has runs."""
    for (method, runs), line in zip(methods.items(), ("--", ":"), strict=False):
        if runs:
            axis.axhline(np.mean([score(run) for run in runs]), color=GREY, linestyle=line, label=TITLES[method])
    axis.grid(axis="y", alpha=0.3)


def draw_curves(results: Results, figure) -> None:
    """A panel for each task: the score against the number of steps, and the predecessors' of the same seeds.

    A point is as high in all panels.
    """
    (tasks, found), (score, judged_on) = changed(results, "n_steps"), judged(results)
    figure.set_size_inches(3.8 * len(tasks) + 1.5, 3.6)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for i, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        for method in dict.fromkeys(method for method, _, _ in found):
            runs = [columns[i] for name, _, columns in found if name == method and columns[i]]
            points = sorted((of[0].steps, np.mean([score(run) for run in of])) for of in runs)
            if points:
                axis.plot(*zip(*points, strict=True), **style(method))
        shown = [run for _, _, columns in found for run in columns[i]]
        seeds, steps = {run.seed for run in shown}, sorted({run.steps for run in shown})
        predecessors = [run for run in results.best(task, "predecessor") if run.seed in seeds]
        draw_lines(axis, {"predecessor": predecessors}, score)
        title = f"{task}, {judged_on}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
        axis.set(title=title, xlabel="steps", ylabel=f"{results.metric(task)}, %", xscale="log")
        axis.title.set_fontsize(10)
        axis.set_xticks(steps, [f"{n:,}" for n in steps])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    middles, half = middle_and_half(np.array([axis.get_ylim() for axis in axes]))
    for axis, middle in zip(axes, middles, strict=True):
        axis.set_ylim(middle - half, middle + half)


def middle_and_half(ends: np.ndarray) -> tuple[np.ndarray, float]:
    """Of the ends of several axes, (axes, 2), their middles, and half of the longest."""
    return ends.mean(axis=1), np.ptp(ends, axis=1).max() / 2


def times_as_fast(results: Results, tasks: Sequence[str], n_layer: int | None) -> float:
    """The mean over those of the tasks whose speed was measured."""
    keys = [(task, n_layer) for task in tasks]
    found = [results.speed[key]["inference"]["successor"] for key in keys if key in results.speed]
    return mean(np.array([of["times_the_predecessor"] for of in found]))


def draw_speed(results: Results, figure) -> None:
    """What is kept of the predecessor's mean score against the speed, for each depth."""
    (tasks, found), (score, judged_on) = changed(results, "n_layer"), judged(results)
    if not found:
        tasks = results.tasks()
        found = [(name, None, [results.best(task, name) for task in tasks]) for name in results.compared()]
    at = [i for i in range(len(tasks)) if all(columns[i] for _, _, columns in found)]
    predecessors = [results.best(tasks[i], "predecessor") for i in at]
    figure.set_size_inches(7, 4.2)
    axis = figure.subplots()
    axis.plot(1, 100, "D", color=GREY, label="predecessor")
    kept = [mean(percent_kept([columns[i] for i in at], predecessors, score)) for _, _, columns in found]
    sizes = [n_layer for _, n_layer, _ in found]
    faster = [times_as_fast(results, tasks, n_layer) for n_layer in sizes]
    for method in dict.fromkeys(method for method, _, _ in found):
        points = [(x, y) for x, y, (name, _, _) in zip(faster, kept, found, strict=True) if name == method]
        axis.plot(*zip(*points, strict=True), **style(method))
    for n_layer in dict.fromkeys(sizes):
        point = max((x, y) for x, y, size in zip(faster, kept, sizes, strict=True) if size == n_layer)
        axis.annotate(depth(n_layer), point, (7, 7), textcoords="offset points", fontsize=9)
    axis.margins(x=0.12)
    measured = ", ".join(task for task in tasks if (task, None) in results.speed)
    axis.set(xlabel=f"times as fast as the predecessor ({measured})", ylabel="kept of the predecessor's mean, %")
    axis.set_title(f"{', '.join(tasks[i] for i in at)}, {judged_on}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def pictures(results: Results) -> dict[str, Callable]:
    """What draws each picture that the results have, by its name."""
    found = {"comparison": draw_comparison}
    if len(of_rates(results)[1]["fixed"]) > len(SEARCHED_RATES["constant"]):
        found["rates"] = draw_rates
    if changed(results, "n_steps")[1]:
        found["curves"] = draw_curves
    if results.speed:
        found["speed"] = draw_speed
    return {name: partial(draw_on, results) for name, draw_on in found.items()}


# ---------------------------------------------------------------------------------------- documents


def filled(text: str, read: Callable[[str], Results]) -> str:
    """The text with each table as the results of its folder give it; UserError where it names one that there is not."""

    def fill(match: re.Match) -> str:
        folder, _, name = match[1].rpartition("/")
        if name not in TABLES:
            raise UserError(f"there is no table {name}; there are {', '.join(TABLES)}")
        table = TABLES[name](read(folder)) or "No run tells this.\n"
        return f"<!-- {match[1]} -->\n{table}<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([\w/-]+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


def reader(results_dir: Path) -> Callable[[str], Results]:
    """What reads, once, the results of a folder in `results_dir`."""
    known: dict[str, Results] = {}

    def read(folder: str) -> Results:
        if folder not in known:
            known[folder] = read_results(results_dir / folder)
            if not known[folder].runs:
                raise UserError(
                    f"{results_dir / folder}: there is no run.json that can be read; reproduce.sh makes them"
                )
        return known[folder]

    return read


def fill_in(document: Path, results_dir: Path) -> str:
    """Fill in the document's tables, or write a new one, and the pictures that it shows; returns its text."""
    read = reader(results_dir)
    if document.exists():
        text = document.read_text()
    else:
        tables = [f"## {name.capitalize()}\n\n<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES]
        text = "\n".join(["# Results\n", *tables, *(f"![](results_{name}.png)\n" for name in pictures(read("")))])
    text = filled(text, read)
    shown = {}
    for file, folder, name in re.findall(r"!\[[^]]*\]\((([\w-]+)_([a-z]+)\.png)\)", text):
        if folder == "results" or (results_dir / folder).is_dir():
            found = pictures(read("" if folder == "results" else folder))
            if name not in found:
                raise UserError(f"{document}: there is no picture {file}; there are {', '.join(found)}")
            shown[file] = found[name]
    write(document.parent, {document.name: text} | draw(shown))
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="report.py", description=__doc__)
    parser.add_argument("results_dir", type=Path, metavar="RESULTS_DIR", help="of the records")
    parser.add_argument("documents", type=Path, nargs="+", metavar="DOCUMENT", help="Markdown files; a new one is made")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    with one_line_errors("report.py"):
        for document in args.documents:
            fill_in(document, args.results_dir)


if __name__ == "__main__":
    main()
