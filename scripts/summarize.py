#!/usr/bin/env python
"""Make tables and pictures from the run.json files of a sweep.

summarize.py RUNS_DIR writes summary.md and summary.csv with a row for each setting, summary_replacing_rate.png with the
score against the replacing rate, and summary_run.png with one run step by step.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid.averages import deviation, mean
from grid.output import BLUE, COLOURS, GREY, draw, warn, write
from grid.records import METRIC_NAMES, FinishedRun, read_run, read_runs

from bert_of_theseus.run.command_line import OneLineParser, UserError, markdown, one_line_errors
from glue_processors import TASKS


def scores(runs: Iterable[FinishedRun], which: str = "last") -> np.ndarray:
    """Those of "last", "best" or "predecessor", of the runs that have one."""
    return np.array([run.scores[which] for run in runs if which in run.scores])


def kept(runs: list[FinishedRun], which: str = "last") -> np.ndarray:
    """Per cent of the predecessor's score that is kept; empty where a run has none above 0 to keep."""
    ours, theirs = scores(runs, which), scores(runs, "predecessor")
    return 100 * ours / theirs if len(ours) == len(theirs) and (theirs > 0).all() else np.array([])


# ------------------------------------------------------------------------------------------- a sweep


Setting = list[FinishedRun]  # runs that differ in nothing but the seed, by seed
ALWAYS_SHOWN = ("replacing_rate", "scheduler_linear_k", "steps_for_replacing", "learning_rate")
NOTES = """
{n_runs} runs. A score is the main metric on the dev set (for MNLI the mean of both sets) after the last step or at the
best one. Std is the standard deviation (n - 1) over the seeds; kept is per cent of the predecessor's score. The best
step was chosen on the same dev set, so its score is optimistic; the last step's is not. A task's best setting has the
best mean after the last step. It was chosen on the dev set too, so its score is the more optimistic the more settings
there are. Loyalty is to the predecessor, after the last step: how often both give a row the same label; 1 minus the
square root of the Jensen-Shannon divergence of their probabilities; and the correlation of scores.
Made with {made_with}.
"""


def group(runs: list[FinishedRun]) -> list[Setting]:
    """The settings, by task, schedule and values."""
    settings: dict[str, dict[int, FinishedRun]] = {}
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


# ------------------------------------------------------------------------------------------ pictures


def of_schedules(settings: list[Setting]) -> list[Setting]:
    """Those of a replacing rate, without the variants."""
    return [s for s in settings if s[0].schedule != "fine-tuning" and not s[0].setting["variant"]]


def draw_replacing_rates(settings: list[Setting], figure) -> None:
    """A panel for each task: the score after the last step, of the best setting at each replacing rate."""
    settings = of_schedules(settings)
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
        title, metric = TASKS[task].folder if task in TASKS else task, METRIC_NAMES[ours[0][0].metric]
        axis.set(title=title, ylabel=f"{metric}, %", xlim=(0, 1.05))
        axis.set_xlabel("replacing rate (constant, or at the start)")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=9)


def draw_run(run: FinishedRun, figure) -> None:
    """Loss, replacing rate and dev score over the optimiser steps of one run, as its log tells them."""
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    predecessor = json.loads((run.folder / "run.json").read_text()).get("predecessor", {"metrics": {}})["metrics"]
    keys = dict.fromkeys(key for line in lines for key in line)
    shown = ("loss", "replacing_rate", run.metric)
    keys = [key for key in keys if key.removeprefix("eval_").rpartition("/")[2] in shown]
    figure.set_size_inches(8, 1 + 2.2 * len(keys))
    axes = figure.subplots(len(keys), sharex=True, squeeze=False).flat
    for axis, key in zip(axes, keys, strict=True):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), ".-", color=BLUE)
        axis.set_ylabel(key.replace("eval_", "dev ").replace("_", " "))
        axis.grid(alpha=0.3)
        if key.removeprefix("eval_") in predecessor:
            axis.axhline(predecessor[key.removeprefix("eval_")], color=GREY, linestyle="--", label="predecessor")
            axis.legend()
    axes[-1].set(xlabel="optimiser step", xlim=(0, None))
    figure.suptitle(f"{run.task}: {run.folder.resolve().name}", fontsize=12)
    figure.align_ylabels()


# -------------------------------------------------------------------------------------- command line


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
    if of_schedules(settings):
        pictures["summary_replacing_rate.png"] = partial(draw_replacing_rates, settings)
    if (run.folder / "log.jsonl").exists():
        pictures["summary_run.png"] = partial(draw_run, run)
    print(files["summary.md"], end="")
    write(output_dir, files | draw(pictures))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="summarize.py", description=__doc__)
    add = parser.add_argument
    add("runs_dir", type=Path, metavar="RUNS_DIR", help="folder with runs, at any depth")
    add("--output_dir", type=Path, metavar="DIR", help="where the summary of a sweep goes (default: RUNS_DIR)")
    add("--run", type=Path, metavar="FOLDER", help="the run to draw (default: first seed of a best setting)")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    with one_line_errors("summarize.py"):
        summarize(args.runs_dir, args.output_dir or args.runs_dir, args.run)


if __name__ == "__main__":
    main()
