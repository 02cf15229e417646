#!/usr/bin/env python
"""Make tables and pictures from the run.json files of finished runs.

summarize.py RUNS_DIR
    of a sweep: summary.md and summary.csv with a row for each setting, summary_replacing_rate.png with the score
    against the replacing rate, and summary_run.png with one run step by step
summarize.py RESULTS_DIR --fill docs/results.md README.md
    of the runs of reproduce.sh: fills in what stands between <!-- NAME --> and <!-- /NAME --> for each table's NAME,
    and writes the pictures that a document shows beside it
"""

import argparse
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.run.command_line import OneLineParser, UserError, markdown, one_line_errors
from bert_of_theseus.run.files import write_whole
from glue_processors import TASKS

METRICS = {
    "acc": "accuracy",
    "f1": "F1",
    "macro_f1": "mean F1 of the classes",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
    "mcc": "Matthews",
    "acc_and_f1": "mean of accuracy and F1",
    "corr": "mean of Pearson and Spearman",
}

# ------------------------------------------------------------------------------------------ reading

# Arguments that are no part of a setting: the seed, over which scores are averaged; what has a column of its own;
# names and places; and what changes no score.
NO_SETTING = set(
    "seed task_name scheduler_type variant data_dir train_file validation_file test_file output_dir "
    "overwrite_output_dir resume cache_dir overwrite_cache save_steps save_total_limit eval_all_checkpoints "
    "per_gpu_eval_batch_size do_train no_cuda model_type fp16_opt_level local_rank pretrained_model".split()
)


class Run(NamedTuple):
    """A finished run, as its run.json tells it."""

    folder: Path
    task: str
    metric: str  # the task's main metric
    schedule: str  # of the replacing rate: "constant", --scheduler_type, or "fine-tuning" where nothing was replaced
    seed: int
    setting: dict  # the arguments that make the setting
    scores: dict[str, float]  # "last", "best", "predecessor", where there are any: the mean of the metric over dev sets
    held_out: dict[str, float]  # the same of "last" and "best" on the rows that reproduce.py has kept aside
    loyalty: dict[str, float]  # to the predecessor, after the last step
    steps: int
    seconds: float  # of training
    made_with: str  # versions and commit


def over_dev_sets(values: dict[str, float]) -> dict[str, float]:
    """The mean of each metric over the dev sets, of which MNLI has two, as the paper's tables have it (section 4.1)."""
    found: dict[str, list[float]] = {}
    for key, value in values.items():
        found.setdefault(key.rpartition("/")[2], []).append(value)
    return {name: sum(several) / len(several) for name, several in found.items()}


def read_run(path: Path) -> Run:
    """What a run.json tells; UserError where it cannot be read."""
    try:
        record = json.loads(path.read_text())
        arguments, seed = record["arguments"], record["arguments"]["seed"]
        schedule = "constant" if arguments["scheduler_type"] == "none" else arguments["scheduler_type"]
        metric = record["main_metric"].rpartition("/")[2]
        setting = {name: value for name, value in arguments.items() if name not in NO_SETTING}
        setting["variant"] = record.get("variant") or arguments.get("variant")
        setting["processes"] = record.get("processes", 1)  # more of them make larger batches
        data = json.dumps(record.get("data"), sort_keys=True).encode()
        setting["data"] = hashlib.sha256(data).hexdigest()[:8]  # other files may have been in the same place
        # Seeds that have a predecessor each are one setting.
        setting["model_name_or_path"] = str(arguments["model_name_or_path"]).replace(f"seed{seed}", "seed*")
        names = [name for name in ("last", "best", "predecessor") if name in record]
        made_with = [f"{name} {record['versions'][name]}" for name in ("torch", "transformers")]
        commit = record.get("git_commit") or "unknown"  # perhaps with "-dirty" behind its 40 digits
        return Run(
            folder=path.parent,
            task=record["task"],
            metric=metric,
            schedule="fine-tuning" if arguments["replacing_rate"] is None else schedule,
            seed=seed,
            setting=setting,
            scores={name: over_dev_sets(record[name]["metrics"])[metric] for name in names},
            held_out={name: over_dev_sets(found)[metric] for name, found in record.get("held_out", {}).items()},
            loyalty=over_dev_sets(record["last"].get("loyalty", {})) if "last" in names else {},
            steps=record["steps"],
            seconds=record["training_seconds"],
            made_with=", ".join([*made_with, f"commit {commit[:10]}{commit[40:]}"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no record of a run of run_glue.py ({type(error).__name__}: {error})") from error


def read_runs(folder: Path) -> list[Run]:
    """All finished runs below a folder, in the order of their paths; warns of the others."""
    runs = []
    for path in sorted(folder.rglob("run.json")):
        try:
            runs.append(read_run(path))
        except UserError as error:
            warn(f"{error}; left out")
    unfinished = [str(path.parent) for path in sorted(folder.rglob("unfinished_run.json"))]
    if unfinished:
        warn(f"not finished, and left out: {', '.join(unfinished)}")
    return runs


def warn(message: str) -> None:
    print(f"summarize.py: warning: {message}", file=sys.stderr)


# ------------------------------------------------------------------------------------------ numbers


def scores(runs: Iterable[Run], which: str = "last") -> np.ndarray:
    """Those of "last", "best" or "predecessor", of the runs that have one."""
    return np.array([run.scores[which] for run in runs if which in run.scores])


def kept(runs: list[Run], which: str = "last") -> np.ndarray:
    """Per cent of the predecessor's score that is kept; empty where a run has none above 0 to keep."""
    ours, theirs = scores(runs, which), scores(runs, "predecessor")
    return 100 * ours / theirs if len(ours) == len(theirs) and (theirs > 0).all() else np.array([])


def mean(values: np.ndarray) -> float:
    """nan for no values."""
    return float(values.mean()) if len(values) else np.nan


def deviation(values: np.ndarray) -> float:
    """The standard deviation (n - 1); nan for fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def spread(values: np.ndarray) -> str:
    """Mean and, of several values, their standard deviation."""
    return f"{mean(values):.1f} ± {deviation(values):.1f}".removesuffix(" ± nan").replace("nan", "-")


# ------------------------------------------------------------------------------------------- a sweep

Setting = list[Run]  # runs that differ in nothing but the seed, by seed

ALWAYS_SHOWN = ("replacing_rate", "scheduler_linear_k", "steps_for_replacing", "learning_rate")
NOTES = """
{n_runs} runs. A score is the main metric on the dev set (for MNLI the mean of both sets) after the last step or at the
best one. Std is the standard deviation (n - 1) over the seeds; kept is per cent of the predecessor's score. The best
step was chosen on the same dev set, so its score is optimistic; the last step's is not. A task's best setting has the
best mean after the last step. It was chosen on the dev set too, so its score is the more optimistic the more settings
there are. Loyalty is to the predecessor, after the last step: how often both give a row the same label; one less the
square root of the Jensen-Shannon divergence of their probabilities; and the correlation of scores.
Made with {made_with}.
"""


def group(runs: list[Run]) -> list[Setting]:
    """The settings, by task, schedule and values."""
    settings: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = settings.setdefault(json.dumps([run.task, run.schedule, run.setting], sort_keys=True), {})
        if run.seed in seeds:  # a copy, which would make the deviation too small
            warn(f"{run.folder} has the setting and the seed of {seeds[run.seed].folder}; left out")
        seeds.setdefault(run.seed, run)

    def order(setting: Setting):
        run = setting[0]
        return run.task, run.schedule, [run.setting.get(name) or 0 for name in ALWAYS_SHOWN]

    return sorted(([seeds[seed] for seed in sorted(seeds)] for seeds in settings.values()), key=order)


def merit(setting: Setting) -> float:
    """The mean after the last step; below all others where it is not there, or not a number."""
    return float(np.nan_to_num(mean(scores(setting)), nan=-np.inf))


def best_settings(settings: list[Setting]) -> dict[str, Setting]:
    """Each task's best setting; a fine-tuned model, which often is the predecessor, only where nothing else is."""
    best: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda s: (s[0].schedule == "fine-tuning", -merit(s))):
        best.setdefault(setting[0].task, setting)
    return best


def differing(settings: list[Setting]) -> list[str]:
    """The arguments, beside those always shown, in which compressions, or fine-tunings, of one task differ."""
    values: dict[tuple, set[str]] = {}
    for run in (setting[0] for setting in settings):
        for name, value in run.setting.items():
            values.setdefault((name, run.task, run.schedule == "fine-tuning"), set()).add(json.dumps(value))
    return sorted({name for (name, *_), found in values.items() if len(found) > 1} - set(ALWAYS_SHOWN))


def table(settings: list[Setting]) -> list[dict]:
    """A row for each setting, by the columns of summary.csv."""
    rows, best, also_shown = [], best_settings(settings), differing(settings)
    loyalties = sorted({name for setting in settings for run in setting for name in run.loyalty})
    for setting in settings:
        run = setting[0]
        row = {"task": run.task, "schedule": run.schedule}
        row |= {name: run.setting.get(name) for name in (*ALWAYS_SHOWN, *also_shown)}
        row |= {"seeds": len(setting), "metric": run.metric}
        for which in ("last", "best"):
            values = scores(setting, which)
            row |= {f"{which}_mean": mean(values), f"{which}_std": deviation(values)}
        row["predecessor"] = mean(scores(setting, "predecessor"))
        row |= {f"{which}_kept": mean(kept(setting, which)) for which in ("last", "best")}
        row |= {name: mean(np.array([r.loyalty[name] for r in setting if name in r.loyalty])) for name in loyalties}
        row["best_setting"] = "yes" if setting is best[run.task] else ""
        rows.append({name: "" if value is None or value != value else value for name, value in row.items()})
    return rows


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(rows: list[dict]) -> str:
    def show(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")

    return markdown([[name.replace("_", " ") for name in rows[0]], *(list(map(show, row.values())) for row in rows)])


# ------------------------------------------------------------------------- the grid of reproduce.py

COMPARED = ("pretrained-layers", "all-trained", "distilled", "frozen", "constant", "linear", "linear-whole")
ABLATIONS = ("falling", "anti-curriculum", "missing-gradients", "every-second-layer")
RATES = tuple(round(0.1 * i, 1) for i in range(1, 11))
FIRST_RATE = 0.3  # from which the linear schedule starts, where its cell has no rate
SEARCHED_RATES = {"constant": (0.5, 0.3, 0.7), "linear": (0.3, 0.1, 0.5), "linear-whole": (0.3, 0.1, 0.5)}
METHODS = {
    "predecessor": "predecessor",
    "pretrained-layers": "pre-trained model, cut and fine-tuned",
    "all-trained": "predecessor, cut and fine-tuned",
    "distilled": "predecessor, cut and distilled",
    "frozen": "predecessor, cut, layers alone fine-tuned",
    "constant": "Theseus, constant rate",
    "linear": "Theseus, linear",
    "linear-whole": "Theseus, linear, then fine-tuned whole",
    "falling": "falling rate",
    "anti-curriculum": "one less the linear rate",
    "missing-gradients": "gradients missing, not zeroed",
    "every-second-layer": "start from every second layer",
}


class Cell(NamedTuple):
    """A run's place in the grid; the name of its folder tells all of it."""

    task: str  # as GLUE names its folder
    method: str  # of METHODS
    seed: int
    learning_rate: str  # as it was typed
    share: float | None = None  # of the steps, after which the replacing rate is 1
    rate: float | None = None  # the constant one, or the start of the linear schedule, where not `FIRST_RATE`

    @property
    def folder(self) -> str:
        rate = "" if self.rate is None else f"rate{self.rate:g}-"
        by = "" if self.share is None else f"-by{self.share:g}"
        return f"{self.task}/{self.method}/{rate}lr{self.learning_rate}{by}-seed{self.seed}"

    @classmethod
    def at(cls, folder: Path) -> "Cell":
        task, method, name = folder.resolve().parts[-3:]
        match = re.fullmatch(r"(?:rate(?P<rate>.+?)-)?lr(?P<lr>.+?)(?:-by(?P<by>.+?))?-seed(?P<seed>\d+)", name)
        if match is None or method not in METHODS:
            raise UserError(f"{folder} is no folder of reproduce.sh, such as CoLA/linear/lr2e-4-by0.5-seed42")
        share, rate = (match[name] and float(match[name]) for name in ("by", "rate"))
        return cls(task, method, int(match["seed"]), match["lr"], share, rate)


class Results(NamedTuple):
    runs: dict[Cell, Run]
    speed: dict[str, dict]  # what benchmark.py --json wrote, by task

    def tasks(self) -> list[str]:
        return sorted({cell.task for cell in self.runs}, key=str.lower)

    def metric(self, task: str) -> str:
        """The task's metric in words."""
        return METRICS[next(run.metric for cell, run in self.runs.items() if cell.task == task)]

    def compared(self) -> list[str]:
        """The methods of the comparison of which there are runs."""
        made = {cell.method for cell in self.runs}
        return [method for method in COMPARED if method in made]

    def of(self, task: str, method: str, rate: float | None = None) -> list[Run]:
        """The runs of a method at its best setting, by seed; a variant has that of the linear schedule."""
        if method == "constant" and rate == 1:
            return self.of(task, "frozen")
        best = best_cell(self.runs, task, "linear" if method in ABLATIONS else method)
        if best is None:
            return []
        wanted = best._replace(method=method, rate=rate or best.rate)
        cells = [cell for cell in self.runs if cell._replace(seed=best.seed) == wanted]
        return [self.runs[cell] for cell in sorted(cells)]


def read_results(folder: Path) -> Results:
    """The runs below a folder of reproduce.sh, which may be none, and what its folder speed tells."""
    speed = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("speed/*.json"))}
    return Results({Cell.at(run.folder): run for run in read_runs(folder)}, speed)


def searched(runs: dict[Cell, Run], task: str, method: str) -> list[Cell]:
    """The runs of the search, which are those of the first seed, by setting."""
    rates = (None, *SEARCHED_RATES.get(method, ()))
    ours = [c for c in runs if (c.task, c.method) == (task, method) and c.rate in rates]
    first = min((cell.seed for cell in ours), default=None)

    def order(cell: Cell):  # of equals the first one is the best
        return float(cell.learning_rate), cell.share or 0, rates.index(cell.rate)

    return sorted((cell for cell in ours if cell.seed == first), key=order)


def best_cell(runs: dict[Cell, Run], task: str, method: str) -> Cell | None:
    """The run of the search with the best score after the last step; None where there is none."""
    return max(searched(runs, task, method), key=lambda cell: runs[cell].scores["last"], default=None)


def grid(results: Results) -> str:
    """What was run."""
    runs = results.runs
    steps = {task: {run.steps for cell, run in runs.items() if cell.task == task} for task in results.tasks()}
    of_steps = ", ".join(f"{'/'.join(map(str, sorted(counts)))} steps on {task}" for task, counts in steps.items())
    setting, hours = next(iter(runs.values())).setting, sum(run.seconds for run in runs.values()) / 3600
    seeds = ", ".join(map(str, sorted({cell.seed for cell in runs})))
    return (
        f"{len(runs)} runs, {hours:.1f} hours of training, in batches of {setting['per_gpu_train_batch_size']} "
        f"({of_steps}); seeds {seeds}.\n"
    )


def comparison(results: Results, score: Callable[[Run], float] = lambda run: run.scores["last"]) -> str:
    """The paper's table 2, with what is kept of the predecessor's scores.

    Args:
        score: which one of a run; by default that of the dev set after the last step.
    """
    tasks = results.tasks()
    head = [f"{task}, {results.metric(task)}" for task in tasks]
    rows = [["", *head, "mean", "kept of the mean, %", "mean of what is kept, %"]]
    predecessors = [{run.seed: score(run) for run in results.of(task, "predecessor")} for task in tasks]
    for method in ("predecessor", *results.compared()):
        by_seed = [{run.seed: score(run) for run in results.of(task, method)} for task in tasks]
        seeds = sorted(set.intersection(*map(set, by_seed + predecessors)))  # those that all tasks have
        ours = np.array([[of[seed] for seed in seeds] for of in by_seed])  # (tasks, seeds)
        theirs = np.array([[of[seed] for seed in seeds] for of in predecessors])
        row = [METHODS[method], *(spread(100 * np.array(list(of.values()))) for of in by_seed)]
        row.append(spread(100 * ours.mean(0)))
        if method != "predecessor" and theirs.size and (theirs > 0).all():
            row += [spread(100 * ours.mean(0) / theirs.mean(0)), spread(100 * (ours / theirs).mean(0))]
        rows.append([*row, "-", "-"][: len(rows[0])])
    return markdown(rows)


def held_out(results: Results) -> str:
    """The same on the rows that were kept aside, of the runs that have been scored on them."""
    scored = Results({cell: run for cell, run in results.runs.items() if run.held_out}, {})
    return comparison(scored, lambda run: run.held_out["last"]) if scored.runs else ""


def difference(ours: list[Run], others: list[Run]) -> str:
    """Of the means, in points and in standard deviations within the two; over the seeds that both have."""
    seeds = {run.seed for run in ours} & {run.seed for run in others}
    if not seeds:
        return "-"
    a, b = (100 * scores(run for run in runs if run.seed in seeds) for runs in (ours, others))
    points = a.mean() - b.mean()
    sd = np.sqrt((deviation(a) ** 2 + deviation(b) ** 2) / 2)
    return f"{points:+.1f}" + (f" ({points / sd:+.1f} sd)" if sd > 0 else "")


def differences(results: Results) -> str:
    pairs = [("linear", other) for other in ("pretrained-layers", "all-trained", "frozen", "constant")]
    pairs += [("linear", "distilled"), ("linear-whole", "linear"), ("linear-whole", "all-trained")]
    pairs += [("constant", "all-trained"), ("constant", "frozen"), ("all-trained", "pretrained-layers")]
    rows = [["", *results.tasks()]]
    for one, other in (pair for pair in pairs if {*pair} <= {*results.compared()}):
        cells = [difference(results.of(task, one), results.of(task, other)) for task in results.tasks()]
        rows.append([f"{METHODS[one]} less {METHODS[other]}", *cells])
    return markdown(rows)


def loyalty(results: Results) -> str:
    columns = sorted({(cell.task, name) for cell, run in results.runs.items() for name in run.loyalty})
    rows = [["", *(f"{task}, {name.replace('_', ' ')}" for task, name in columns)]]
    for method in results.compared():
        values = [[run.loyalty[name] for run in results.of(task, method)] for task, name in columns]
        rows.append([METHODS[method], *(spread(100 * np.array(of)) for of in values)])
    return markdown(rows)


def search(results: Results) -> str:
    """Every run of the search; the best of each method and task in bold."""
    columns = [
        (task, learning_rate)
        for task in results.tasks()
        for learning_rate in sorted({cell.learning_rate for cell in results.runs}, key=float)
    ]
    rows = [["", *map(" ".join, columns)]]
    for method in ("predecessor", *results.compared()):
        cells = [cell for task in results.tasks() for cell in searched(results.runs, task, method)]
        best = [best_cell(results.runs, task, method) for task in results.tasks()]
        for rate, share in sorted({(cell.rate or FIRST_RATE, cell.share or 0) for cell in cells}):
            ours = [cell for cell in cells if (cell.rate or FIRST_RATE, cell.share or 0) == (rate, share)]
            found = {(cell.task, cell.learning_rate): cell for cell in ours}
            start = f" {rate:g}" if method == "constant" else f", from {rate:g}"
            row = [METHODS[method] + (f"{start}, 1 after {share:g}" if share else "")]
            for cell in map(found.get, columns):
                text = f"{100 * results.runs[cell].scores['last']:.1f}" if cell else "-"
                row.append(f"**{text}**" if cell and cell in best else text)
            rows.append(row)
    return markdown(rows)


def of_rates(results: Results) -> tuple[str, dict[float | str, list[Run]]]:
    """The task with the most constant rates; its runs of each, of the linear schedule and of the predecessor.

    All of them with the same seeds.
    """
    task = max(results.tasks(), key=lambda task: len({cell.rate for cell in results.runs if cell.task == task}))
    found = {rate: results.of(task, "constant", rate) for rate in RATES}
    found |= {method: results.of(task, method) for method in ("linear", "predecessor")}
    found = {name: runs for name, runs in found.items() if runs}
    seeds = set.intersection(*({run.seed for run in runs} for runs in found.values()))
    return task, {name: [run for run in runs if run.seed in seeds] for name, runs in found.items()}


def rates(results: Results) -> str:
    if "constant" not in results.compared():
        return ""
    task, found = of_rates(results)
    rows = [["constant replacing rate", f"{task}, {results.metric(task)}", "seeds"]]
    for name, runs in found.items():
        title = METHODS[name] if name in METHODS else f"{name:g}"
        rows.append([title, spread(100 * scores(runs)), " ".join(str(run.seed) for run in runs)])
    return markdown(rows)


def variants(results: Results) -> str:
    if "linear" not in results.compared():
        return ""
    rows = [["", *(text for task in results.tasks() for text in (task, "difference"))]]
    made = {cell.method for cell in results.runs}
    for method in (method for method in ("linear", *ABLATIONS) if method in made):
        row = [METHODS[method]]
        for task in results.tasks():
            ours, linear = results.of(task, method), results.of(task, "linear")
            row += [spread(100 * scores(ours)), "" if method == "linear" else difference(ours, linear)]
        rows.append(row)
    return markdown(rows)


def speed(results: Results) -> str:
    rows = [["", "predecessor, rows/s", "successor, rows/s", "times as fast", "ms for one row, of both"]]
    for task, figures in results.speed.items():
        both = [figures["inference"][name] for name in ("predecessor", "successor")]
        single = " / ".join(f"{1000 * of['seconds_for_one']:.1f}" for of in both)
        per_second = [f"{of['examples_per_second']:.0f}" for of in both]
        rows.append([task, *per_second, f"{both[1]['times_the_predecessor']:.2f}", single])
    return markdown(rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "grid": grid,
    "paper-metrics": comparison,
    "held-out": held_out,
    "differences": differences,
    "loyalty": loyalty,
    "search": search,
    "rates": rates,
    "variants": variants,
    "speed": speed,
}


# ------------------------------------------------------------------------------------------ pictures

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # apart for colour-blind eyes too
COLOURS = (ORANGE, BLUE, "#009e73", "#cc79a7")
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def draw_replacing_rates(settings: list[Setting], figure) -> None:
    """A panel for each task: the score after the last step, of the best setting at each replacing rate."""
    settings = [s for s in settings if s[0].schedule != "fine-tuning" and not s[0].setting["variant"]]
    tasks = sorted({setting[0].task for setting in settings})
    schedules = sorted({setting[0].schedule for setting in settings})
    n_columns = min(len(tasks), 3)
    n_rows = -(-len(tasks) // n_columns)
    figure.set_size_inches(max(7, 4.2 * n_columns), 0.7 + 3.6 * n_rows)
    figure.suptitle("mean ± standard deviation over seeds, of the best setting at each rate", fontsize=12)
    for place, task in enumerate(tasks, start=1):
        axis = figure.add_subplot(n_rows, n_columns, place)
        ours = sorted((setting for setting in settings if setting[0].task == task), key=merit)
        for schedule, colour in zip(schedules, 3 * COLOURS, strict=False):
            # Of several settings with one rate the last, which is the best.
            best = {s[0].setting["replacing_rate"]: 100 * scores(s) for s in ours if s[0].schedule == schedule}
            points = [(rate, mean(values), deviation(values)) for rate, values in sorted(best.items())]
            if points:
                label = f"{schedule} schedule"
                axis.errorbar(*zip(*points, strict=True), fmt="o-", color=colour, capsize=4, label=label)
        predecessor = 100 * mean(scores((run for setting in ours for run in setting), "predecessor"))
        axis.axhline(predecessor, color=GREY, linestyle="--", label="predecessor")
        title, metric = TASKS[task].folder if task in TASKS else task, METRICS[ours[0][0].metric]
        axis.set(title=title, ylabel=f"{metric}, %", xlim=(0, 1.05))
        axis.set_xlabel("replacing rate (constant, or at the start)")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=9)


def draw_constant_rates(results: Results, figure) -> None:
    """The same of the grid: constant rates, with the linear schedule where it starts."""
    draw_replacing_rates(list(of_rates(results)[1].values()), figure)
    figure.suptitle("mean ± standard deviation over seeds; constant rates at the setting found for 0.5", fontsize=12)


def draw_run(run: Run, figure) -> None:
    """Loss, replacing rate and dev score over the optimiser steps of one run, as its log tells them."""
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    keys = dict.fromkeys(key for line in lines for key in line)
    keys = [key for key in keys if key in ("loss", "replacing_rate") or key.endswith(run.metric)]
    figure.set_size_inches(8, 1 + 2.2 * len(keys))
    axes = figure.subplots(len(keys), sharex=True, squeeze=False).flat
    for axis, key in zip(axes, keys, strict=True):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), ".-", color=BLUE)
        axis.set_ylabel(key.replace("eval_", "dev ").replace("_", " "))
        axis.grid(alpha=0.3)
        if key.startswith("eval_") and "predecessor" in run.scores:
            axis.axhline(run.scores["predecessor"], color=GREY, linestyle="--", label="predecessor")
            axis.legend()
    axes[-1].set(xlabel="optimiser step", xlim=(0, None))
    figure.suptitle(f"{run.task}: {run.folder.resolve().name}", fontsize=12)
    figure.align_ylabels()


def draw_comparison(results: Results, figure) -> None:
    """A panel for each task: each run of each method, and the means."""
    tasks, methods = results.tasks(), ("predecessor", *results.compared())
    colours = {"predecessor": GREY} | dict.fromkeys(SEARCHED_RATES, BLUE)  # blue where something is replaced
    figure.set_size_inches(3.6 * len(tasks) + 2.6, 3.6)
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False).flat
    for axis, task in zip(axes, tasks, strict=True):
        for y, method in enumerate(methods):
            values = 100 * scores(results.of(task, method))
            colour = colours.get(method, ORANGE)
            axis.plot(values, [y] * len(values), "o", color=colour, alpha=0.45)
            axis.plot(mean(values), y, "|", color=colour, markersize=22, markeredgewidth=2.5)
        axis.set(title=task, xlabel=results.metric(task))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), [METHODS[method] for method in methods])
    axes[0].set_ylim(len(methods) - 0.4, -0.6)


def pictures(results: Results) -> dict[str, Callable]:
    """What draws each picture that the results have."""
    found = {"results_comparison.png": partial(draw_comparison, results)}
    if "constant" in results.compared():
        found["results_rates.png"] = partial(draw_constant_rates, results)
    return found


def draw(pictures: dict[str, Callable]) -> dict[str, bytes]:
    """PNG files by name, of functions that draw on a figure; none, with a warning, where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        warn("no pictures: they need matplotlib (pip install matplotlib)")
        return {}
    files = {}
    for name, draw_on in pictures.items():
        with matplotlib.rc_context(STYLE):
            figure, png = Figure(layout="constrained"), io.BytesIO()
            draw_on(figure)
            figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
        files[name] = png.getvalue()
    return files


# -------------------------------------------------------------------------------------- command line


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    print(f"Written to {folder}: {', '.join(files)}", file=sys.stderr)


def summarize(runs_dir: Path, output_dir: Path, drawn: Path | None) -> None:
    """Print and write the tables of a sweep, and draw its pictures."""
    settings = group(read_runs(runs_dir))
    if not settings:
        raise UserError(f"{runs_dir}: no run.json there that can be read; a finished run has one")
    rows, runs = table(settings), [run for setting in settings for run in setting]
    notes = NOTES.format(n_runs=len(runs), made_with="; ".join(sorted({run.made_with for run in runs})))
    run = read_run(drawn / "run.json") if drawn else next(iter(best_settings(settings).values()))[0]
    files = {"summary.md": as_markdown(rows) + notes, "summary.csv": as_csv(rows)}
    pictures = {}
    if any(setting[0].schedule != "fine-tuning" for setting in settings):
        pictures["summary_replacing_rate.png"] = partial(draw_replacing_rates, settings)
    if (run.folder / "log.jsonl").exists():
        pictures["summary_run.png"] = partial(draw_run, run)
    print(files["summary.md"], end="")
    write(output_dir, files | draw(pictures))


def filled(text: str, results: Results) -> str:
    """The text with each table as the results give it; UserError where it names one that there is not."""

    def fill(match: re.Match) -> str:
        if match[1] not in TABLES:
            raise UserError(f"there is no table {match[1]}; there are {', '.join(TABLES)}")
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](results)}<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([a-z-]+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


def fill_in(document: Path, results: Results) -> str:
    """Fill in the document's tables, or write a new one, and the pictures that it shows; returns its text."""
    if not results.runs:
        raise UserError("there is no run.json that can be read; reproduce.sh makes them")
    found = pictures(results)
    blocks = [f"<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES] + [f"![]({name})\n" for name in found]
    text = filled(document.read_text() if document.exists() else "\n".join(["# Results\n", *blocks]), results)
    drawn = draw({name: draw_on for name, draw_on in found.items() if name in text})
    write(document.parent, {document.name: text} | drawn)
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="summarize.py", description=__doc__)
    add = parser.add_argument
    add("runs_dir", type=Path, metavar="RUNS_DIR", help="folder with runs, at any depth")
    add("--fill", type=Path, nargs="+", metavar="FILE", help="Markdown files to fill in; a new one is made")
    add("--output_dir", type=Path, metavar="DIR", help="where the summary of a sweep goes (default: RUNS_DIR)")
    add("--run", type=Path, metavar="FOLDER", help="the run to draw (default: first seed of a best setting)")
    args = parser.parse_args(argv)
    if args.fill and (args.output_dir or args.run):
        parser.error("--output_dir and --run are for a sweep: not with --fill")
    return args


def main() -> None:
    args = parse_args()
    with one_line_errors("summarize.py"):
        if args.fill:
            results = read_results(args.runs_dir)
            for document in args.fill:
                fill_in(document, results)
        else:
            summarize(args.runs_dir, args.output_dir or args.runs_dir, args.run)


if __name__ == "__main__":
    main()
