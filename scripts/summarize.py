#!/usr/bin/env python
"""Make tables and pictures from the run.json files of a sweep.

summarize.py RUNS_DIR writes summary.md and summary.csv with a row for each setting, summary_replacing_rate.png with the
score against the replacing rate, and summary_run.png with one run step by step.
"""

import argparse
import csv
import hashlib
import io
import json
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
    held_out: dict[str, float]  # the same on reproduce.py's held-out rows; perhaps of "module 1", ... too
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
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    print(f"{Path(sys.argv[0]).name}: warning: {message}", file=sys.stderr)


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
there are. Loyalty is to the predecessor, after the last step: how often both give a row the same label; 1 minus the
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


# ------------------------------------------------------------------------------------------ pictures

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # apart for colour-blind eyes too
COLOURS = (ORANGE, BLUE, "#009e73", "#cc79a7")
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


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
        title, metric = TASKS[task].folder if task in TASKS else task, METRICS[ours[0][0].metric]
        axis.set(title=title, ylabel=f"{metric}, %", xlim=(0, 1.05))
        axis.set_xlabel("replacing rate (constant, or at the start)")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=9)


def draw_run(run: Run, figure) -> None:
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
