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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid import (
    COMPARED,
    CUT,
    FIRST_RATE,
    RATES,
    SEARCHED_RATES,
    TITLES,
    VARIANTS,
    Results,
    at_equivalent_rate,
    at_rate,
    best_cell,
    read_results,
    searched,
    with_module,
)
from summarize import BLUE, GREY, ORANGE, Run, draw, mean, spread, write

from bert_of_theseus.run.command_line import OneLineParser, UserError, markdown, one_line_errors

Score = Callable[[Run], float]  # of a run, in per cent


def aside(run: Run) -> float:
    """After the last step, on the rows kept aside."""
    return 100 * run.held_out["last"]


def on_dev(run: Run) -> float:
    """After the last step, on the dev set."""
    return 100 * run.scores["last"]


def judged(results: Results) -> Score:
    """The score by which claims are judged: on the rows kept aside, where all runs were scored on them."""
    return aside if all(run.held_out for run in results.runs.values()) else on_dev


def best_on_dev(run: Run) -> float:
    """At the best step on the dev set; of a predecessor after the last one."""
    return 100 * run.scores.get("best", run.scores["last"])


def median(values: np.ndarray) -> str:
    return f"{np.median(values):.1f}" if len(values) else "-"


# ------------------------------------------------------------------------------------------ numbers


def by_seed(columns: Sequence[Sequence[Run]], score: Score) -> dict[int, np.ndarray]:
    """The scores in all columns, which are mostly tasks, of the seeds that all columns have."""
    found = [{run.seed: score(run) for run in runs} for runs in columns]
    seeds = sorted(set.intersection(*map(set, found)))
    return {seed: np.array([of[seed] for of in found]) for seed in seeds}


def difference(ours: Sequence[Sequence[Run]], others: Sequence[Sequence[Run]], score: Score) -> str:
    """The mean over the seeds of the difference of two means over the columns, ± its standard error."""
    a, b = by_seed(ours, score), by_seed(others, score)
    values = np.array([a[seed].mean() - b[seed].mean() for seed in a if seed in b])
    if not len(values):
        return "-"
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{values.mean():+.1f}{error}"


def percent_kept(ours: Sequence[Sequence[Run]], predecessors: Sequence[Sequence[Run]], score: Score) -> np.ndarray:
    """Of each seed, the share of the predecessor's mean over the columns that is kept."""
    a, b = by_seed(ours, score), by_seed(predecessors, score)
    return np.array([100 * a[seed].mean() / b[seed].mean() for seed in a if seed in b and b[seed].mean() > 0])


# ------------------------------------------------------------------------------------------- tables


def grid(results: Results) -> str:
    """What was run."""
    runs, hours = results.runs, sum(run.seconds for run in results.runs.values()) / 3600
    steps = {task: {run.steps for cell, run in runs.items() if cell.task == task} for task in results.tasks()}
    of_steps = ", ".join(f"{'/'.join(map(str, sorted(counts)))} steps on {task}" for task, counts in steps.items())
    setting = next(iter(runs.values())).setting
    seeds = ", ".join(map(str, sorted({cell.seed for cell in runs})))
    return (
        f"{len(runs)} runs, {hours:.1f} hours of training, in batches of {setting['per_gpu_train_batch_size']} "
        f"({of_steps}); seeds {seeds}.\n"
    )


def comparison(results: Results, score: Score, show: Callable[[np.ndarray], str] = spread) -> str:
    """The paper's table 2, with what is kept of the mean and the mean of what is kept."""
    tasks = results.tasks()
    rows = [["", *(f"{task}, {results.metric(task)}" for task in tasks), "mean", "kept of the mean, %", "seeds"]]
    predecessors = [results.best(task, "predecessor") for task in tasks]
    for method in ("predecessor", *results.compared()):
        ours = [results.best(task, method) for task in tasks]
        values = by_seed(ours, score)
        row = [TITLES[method], *(show(np.array([score(run) for run in runs])) for runs in ours)]
        row.append(show(np.array([of.mean() for of in values.values()])) if values else "-")
        row.append("-" if method == "predecessor" else show(percent_kept(ours, predecessors, score)))
        rows.append([*row, str(len(values))])
    return markdown(rows)


def held_out(results: Results) -> str:
    """The comparison on the rows kept aside, of the runs that were scored on them."""
    scored = {cell: run for cell, run in results.runs.items() if run.held_out}
    return comparison(Results(scored, {}), aside) if scored else ""


def differences(results: Results) -> str:
    """What Theseus is ahead of each cut baseline, and its schedules of each other; over the seeds that both have."""
    tasks, compared, score = results.tasks(), results.compared(), judged(results)
    replacing = [method for method in compared if method not in CUT]
    pairs = [(ours, other) for ours in replacing for other in compared if other in CUT]
    pairs += [(ours, other) for i, other in enumerate(replacing) for ours in replacing[i + 1 :]]
    rows = [["", *tasks, "mean"]]
    for ours, other in pairs:
        a, b = ([results.best(task, method) for task in tasks] for method in (ours, other))
        cells = [difference([one], [two], score) for one, two in zip(a, b, strict=True)]
        rows.append([f"{TITLES[ours]} less {TITLES[other]}", *cells, difference(a, b, score)])
    return markdown(rows) if pairs else ""


def variants(results: Results) -> str:
    """What each variant is ahead of the linear schedule; over the seeds that both have."""
    tasks, score, made = results.tasks(), judged(results), {cell.method for cell in results.runs}
    rows = [["less the linear schedule", *tasks, "mean"]]
    for method in (method for method in VARIANTS if method in made):
        linear = [results.best(task, "linear") for task in tasks]
        cells = [best_cell(results.runs, task, "linear") for task in tasks]
        ours = [results.of(cell and cell._replace(method=method)) for cell in cells]
        alike = [difference([one], [two], score) for one, two in zip(ours, linear, strict=True)]
        rows.append([VARIANTS[method], *alike, difference(ours, linear, score)])
    return markdown(rows) if len(rows) > 1 else ""


def modules(results: Results) -> str:
    """The paper's table 5: what is lost where one module alone is replaced."""
    tasks, score = results.tasks(), judged(results)
    names = sorted({cell.method for cell in results.runs if cell.method.startswith("module-")})
    rows = [["less the predecessor", *tasks, "mean"]]
    for name in names:
        best = [best_cell(results.runs, task, "linear") for task in tasks]
        ours = [results.of(cell and with_module(cell, int(name[7:]))) for cell in best]
        predecessors = [results.best(task, "predecessor") for task in tasks]
        cells = [difference([one], [two], score) for one, two in zip(ours, predecessors, strict=True)]
        rows.append([f"{name.replace('-', ' ')} replaced", *cells, difference(ours, predecessors, score)])
    return markdown(rows) if names else ""


def changed(results: Results, what: str) -> list[tuple[str, int, list[list[Run]]]]:
    """Methods at their best settings, with `what`, "n_layer" or "n_steps", changed.

    Returns:
        (method, value, for each task the runs), without the value that all other runs have.
    """
    found, tasks = [], results.tasks()
    for method in results.compared():
        values = {getattr(cell, what) for cell in results.runs if cell.method == method} - {None}
        for value in sorted(values, reverse=what == "n_layer"):
            best = [best_cell(results.runs, task, method) for task in tasks]
            found.append((method, value, [results.of(cell and cell._replace(**{what: value})) for cell in best]))
    return found


def of_changed(results: Results, what: str, words: str, as_always: str) -> str:
    """The rows of `changed`, and what is kept of the mean over the tasks that all have."""
    found, score = changed(results, what), judged(results)
    tasks = [task for i, task in enumerate(results.tasks()) if found and all(columns[i] for _, _, columns in found)]
    at = [results.tasks().index(task) for task in tasks]
    methods = dict.fromkeys(method for method, _, _ in found)
    full = [(method, as_always, [results.best(task, method) for task in results.tasks()]) for method in methods]
    rows, predecessors = [["", words, *tasks, "kept of the mean, %"]], [results.best(t, "predecessor") for t in tasks]
    for method, value, columns in sorted([*full, *found], key=lambda row: list(methods).index(row[0])):
        ours = [columns[i] for i in at]
        scores = [spread(np.array([score(run) for run in runs])) for runs in ours]
        rows.append([TITLES[method], str(value), *scores, spread(percent_kept(ours, predecessors, score))])
    return markdown(rows) if tasks else ""


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
    columns = [
        (task, learning_rate)
        for task in results.tasks()
        for learning_rate in sorted(
            {c.learning_rate for c in results.runs if c.method in ("predecessor", *COMPARED)}, key=float
        )
    ]
    rows = [["", *map(" ".join, columns)]]
    for method in ("predecessor", *results.compared()):
        cells = [cell for task in results.tasks() for cell in searched(results.runs, task, method)]
        best = [best_cell(results.runs, task, method) for task in results.tasks()]
        for rate, share in sorted({(cell.rate or FIRST_RATE, cell.share or 0) for cell in cells}):
            ours = [cell for cell in cells if (cell.rate or FIRST_RATE, cell.share or 0) == (rate, share)]
            found = {(cell.task, cell.learning_rate): cell for cell in ours}
            start = f" {rate:g}" if method == "constant" else f", from {rate:g}"
            row = [TITLES[method] + (f"{start}, 1 after {share:g}" if share else "")]
            for cell in map(found.get, columns):
                text = f"{on_dev(results.runs[cell]):.1f}" if cell else "-"
                row.append(f"**{text}**" if cell and cell in best else text)
            rows.append(row)
    return markdown(rows)


def of_rates(results: Results) -> tuple[str, dict[str, dict[float, list[Run]]]]:
    """The task with the most constant rates, and its runs at each: "fixed" learning rate, and "equivalent" one."""
    task = max(results.tasks(), key=lambda task: len({cell.rate for cell in results.runs if cell.task == task}))
    best = best_cell(results.runs, task, "constant")
    found = {"fixed": {}, "equivalent": {}}
    for rate in RATES if best else ():
        found["fixed"][rate] = results.of(at_rate(best, rate))
        found["equivalent"][rate] = results.of(at_equivalent_rate(best, rate))
    return task, {name: {rate: runs for rate, runs in of.items() if runs} for name, of in found.items()}


def rates(results: Results) -> str:
    """The paper's figure 3."""
    (task, found), score = of_rates(results), judged(results)
    rows = [["constant replacing rate", f"{task}, learning rate fixed", "learning rate times rate fixed"]]
    for rate in sorted({*found["fixed"], *found["equivalent"]}):
        cells = [np.array([score(run) for run in of.get(rate, [])]) for of in found.values()]
        rows.append([f"{rate:g}", *map(spread, cells)])
    linear = spread(np.array([score(run) for run in results.best(task, "linear")]))
    return markdown([*rows, [TITLES["linear"], linear, "-"]]) if len(rows) > 1 else ""


def speed(results: Results) -> str:
    rows = [["", "predecessor, rows/s", "successor, rows/s", "times as fast", "ms for one row, of both"]]
    for name, figures in results.speed.items():
        both = [figures["inference"][name] for name in ("predecessor", "successor")]
        single = " / ".join(f"{1000 * of['seconds_for_one']:.1f}" for of in both)
        per_second = [f"{of['examples_per_second']:.0f}" for of in both]
        rows.append([name, *per_second, f"{both[1]['times_the_predecessor']:.2f}", single])
    return markdown(rows) if len(rows) > 1 else ""


TABLES: dict[str, Callable[[Results], str]] = {
    "grid": grid,
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


def draw_comparison(results: Results, figure) -> None:
    """A panel for each task: each run of each method, and the means."""
    score = judged(results)
    tasks, methods = results.tasks(), ("predecessor", *results.compared())
    figure.set_size_inches(2.6 * len(tasks) + 2.6, 1 + 0.45 * len(methods))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False).flat
    for axis, task in zip(axes, tasks, strict=True):
        for y, method in enumerate(methods):
            values = np.array([score(run) for run in results.best(task, method)])
            axis.plot(values, [y] * len(values), "o", color=colour(method), alpha=0.45)
            axis.plot(mean(values), y, "|", color=colour(method), markersize=22, markeredgewidth=2.5)
        axis.set(title=task, xlabel=results.metric(task).replace(" of ", " of\n"))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), [TITLES[method] for method in methods])
    axes[0].set_ylim(len(methods) - 0.4, -0.6)


def draw_rates(results: Results, figure) -> None:
    """The score against constant replacing rates."""
    (task, found), score = of_rates(results), judged(results)
    figure.set_size_inches(7, 4)
    axis = figure.subplots()
    for (name, of), style in zip(found.items(), ("o-", "s--"), strict=True):
        points = [(rate, np.mean([score(run) for run in runs])) for rate, runs in of.items()]
        what = "learning rate" if name == "fixed" else "learning rate times rate"
        if points:
            axis.plot(*zip(*points, strict=True), style, color=BLUE, label=f"{what} fixed")
    for method, line in (("predecessor", "--"), ("linear", ":")):
        values = [score(run) for run in results.best(task, method)]
        axis.axhline(np.mean(values), color=GREY, linestyle=line, label=TITLES[method])
    axis.set(title=task, xlabel="constant replacing rate", ylabel=f"{results.metric(task)}, %", xlim=(0, 1.05))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=9)


def draw_curves(results: Results, figure) -> None:
    """What is kept of the predecessor's mean score against the number of steps."""
    score = judged(results)
    figure.set_size_inches(7, 4)
    axis = figure.subplots()
    tasks, found = results.tasks(), changed(results, "n_steps")
    predecessors = [results.best(task, "predecessor") for task in tasks]
    for method in dict.fromkeys(method for method, _, _ in found):
        ours = [results.best(task, method) for task in tasks]
        points = [(max(run.steps for runs in ours for run in runs), ours)]
        points += [(n_steps, columns) for name, n_steps, columns in found if name == method and all(columns)]
        line = [(steps, mean(percent_kept(columns, predecessors, score))) for steps, columns in sorted(points)]
        axis.plot(*zip(*line, strict=True), "o-", color=colour(method), label=TITLES[method])
    axis.set(xlabel="steps", ylabel="kept of the predecessor's mean, %", xscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def times_as_fast(results: Results, n_layer: int | None) -> float:
    """The mean over the tasks whose speed was measured; a file is TASK.json or TASK-layersN.json."""
    names = [task + (f"-layers{n_layer}" if n_layer else "") for task in results.tasks()]
    found = [results.speed[name]["inference"]["successor"] for name in names if name in results.speed]
    return mean(np.array([of["times_the_predecessor"] for of in found]))


def draw_speed(results: Results, figure) -> None:
    """What is kept of the predecessor's mean score against the speed, for each depth."""
    score = judged(results)
    figure.set_size_inches(7, 4.2)
    axis = figure.subplots()
    found = changed(results, "n_layer")
    with_depths = dict.fromkeys(method for method, _, _ in found) or results.compared()
    at = [i for i in range(len(results.tasks())) if all(columns[i] for _, _, columns in found)]
    predecessors = [results.best(results.tasks()[i], "predecessor") for i in at]
    axis.plot(1, 100, "D", color=GREY, label="predecessor")
    for method, marker in zip(with_depths, "osv^<>*", strict=False):
        half = [results.best(task, method) for task in results.tasks()]
        of_method = [(None, half), *((n_layer, columns) for name, n_layer, columns in found if name == method)]
        points = [
            (times_as_fast(results, n_layer), mean(percent_kept([columns[i] for i in at], predecessors, score)))
            for n_layer, columns in of_method
        ]
        axis.plot(*zip(*points, strict=True), f"{marker}-", color=colour(method), label=TITLES[method], alpha=0.8)
    axis.set(xlabel="times as fast as the predecessor", ylabel="kept of the predecessor's mean, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def pictures(results: Results) -> dict[str, Callable]:
    """What draws each picture that the results have, by its name."""
    found = {"comparison": draw_comparison}
    if len(of_rates(results)[1]["fixed"]) > len(SEARCHED_RATES["constant"]):
        found["rates"] = draw_rates
    if changed(results, "n_steps"):
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
        return f"<!-- {match[1]} -->\n{TABLES[name](read(folder))}<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([a-z/-]+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


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
        tables = [f"<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES]
        text = "\n".join(["# Results\n", *tables, *(f"![](results_{name}.png)\n" for name in pictures(read("")))])
    text = filled(text, read)
    shown = {}
    for file, folder, name in re.findall(r"!\[[^]]*\]\(((?:(\w+)_)?(\w+)\.png)\)", text):
        draw_on = pictures(read("" if folder == "results" else folder)).get(name)
        shown |= {file: draw_on} if draw_on else {}
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
