"""The pictures of a grid; scores in them are of the held-out rows."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from grid.averages import deviation, mean, on_held_out, percent_kept, scores
from grid.cells import COMPARED, CUT, TITLES, Results
from grid.output import BLUE, GREY, ORANGE
from grid.records import FinishedRun
from grid.selection import changed, depth, of_rates


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
    tasks, methods = results.tasks(), ("predecessor", *results.compared())
    figure.set_size_inches(2.6 * len(tasks) + 2.6, 1 + 0.45 * len(methods))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    compared = [results.comparable(method) for method in methods]
    for i, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        for y, (method, ours) in enumerate(zip(methods, compared, strict=True)):
            values = scores(ours[i], on_held_out)
            axis.plot(values, [y] * len(values), "o", color=colour(method), alpha=0.45)
            axis.plot(mean(values), y, "|", color=colour(method), markersize=22, markeredgewidth=2.5)
        axis.set(title=task, xlabel=results.metric(task).replace(" of ", " of\n") + ",\nheld-out rows")
        axis.grid(axis="x", alpha=0.3)
    middles, half = middle_and_half(np.array([axis.get_xlim() for axis in axes]))
    for axis, task, middle in zip(axes, tasks, middles, strict=True):
        constant = results.constant_answers.get(task)
        if constant is not None:  # it may lie far outside
            axis.axvline(constant, color=GREY, linestyle=":")
        axis.set_xlim(middle - half, middle + half)
    axes[0].set_yticks(range(len(methods)), [TITLES[method] for method in methods])
    axes[0].set_ylim(len(methods) - 0.4, -0.6)


def draw_rates(results: Results, figure) -> None:
    """The score against constant replacing rates, mean ± standard deviation over the seeds."""
    task, found = of_rates(results)
    figure.set_size_inches(7, 4)
    axis = figure.subplots()
    for name, of in found.items():
        values = [scores(runs, on_held_out) for runs in of.values()]
        line, fixed = ("o-", "learning rate") if name == "fixed" else ("s--", "learning rate times rate")
        label = f"{TITLES['constant']}, {fixed} fixed"
        heights, bars = map(mean, values), map(deviation, values)
        axis.errorbar(list(of), list(heights), list(bars), fmt=line, color=BLUE, capsize=3, label=label)
    seeds = {run.seed for of in found.values() for runs in of.values() for run in runs}
    lines = {name: results.comparable(name)[results.tasks().index(task)] for name in ("predecessor", "linear")}
    draw_lines(axis, {name: [run for run in runs if run.seed in seeds] for name, runs in lines.items()})
    axis.set(title=f"{task}, held-out rows", xlabel="constant replacing rate", xlim=(0, 1.05))
    axis.set_ylabel(f"{results.metric(task)}, %")
    axis.legend(fontsize=9)


def draw_lines(axis, methods: dict[str, list[FinishedRun]]) -> None:
    """A level line for the mean of each method that has runs."""
    for (method, runs), line in zip(methods.items(), ("--", ":"), strict=False):
        if runs:
            axis.axhline(mean(scores(runs, on_held_out)), color=GREY, linestyle=line, label=TITLES[method])
    axis.grid(axis="y", alpha=0.3)


def draw_curves(results: Results, figure) -> None:
    """A panel for each task: the score against the number of steps, and the predecessors' of the same seeds.

    A point is as high in all panels.
    """
    tasks, found = changed(results, "n_steps")
    figure.set_size_inches(3.8 * len(tasks) + 1.5, 3.6)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for i, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        for method in dict.fromkeys(method for method, _, _ in found):
            runs = [columns[i] for name, _, columns in found if name == method and columns[i]]
            points = sorted((of[0].steps, mean(scores(of, on_held_out))) for of in runs)
            if points:
                axis.plot(*zip(*points, strict=True), **style(method))
        shown = [run for _, _, columns in found for run in columns[i]]
        seeds, steps = {run.seed for run in shown}, sorted({run.steps for run in shown})
        predecessors = [run for run in results.best(task, "predecessor") if run.seed in seeds]
        draw_lines(axis, {"predecessor": predecessors})
        title = f"{task}, held-out rows, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
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
    tasks, found = changed(results, "n_layer")
    if not found:
        tasks = results.tasks()
        found = [(name, None, results.comparable(name)) for name in results.compared()]
    at = [i for i in range(len(tasks)) if all(columns[i] for _, _, columns in found)]
    predecessors = [results.best(tasks[i], "predecessor") for i in at]
    figure.set_size_inches(7, 4.2)
    axis = figure.subplots()
    axis.plot(1, 100, "D", color=GREY, label="predecessor")
    kept = [mean(percent_kept([columns[i] for i in at], predecessors, on_held_out)) for _, _, columns in found]
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
    axis.set_title(f"{', '.join(tasks[i] for i in at)}, held-out rows")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


def pictures(results: Results) -> dict[str, Callable]:
    """What draws each picture that the results have, by its name."""
    found = {"comparison": draw_comparison}
    if of_rates(results)[1]:
        found["rates"] = draw_rates
    if changed(results, "n_steps")[1]:
        found["curves"] = draw_curves
    if results.speed:
        found["speed"] = draw_speed
    return {name: partial(draw_on, results) for name, draw_on in found.items()}
