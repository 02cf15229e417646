#!/usr/bin/env python
"""Sum up the runs of a sweep: a table of settings as Markdown and CSV, and two pictures.

Reads each run.json below RUNS_DIR and the log.jsonl beside it, and writes summary.md, summary.csv,
summary_replacing_rate.png (dev score against replacing rate) and summary_run.png (one run step by step).
"""

import argparse
import csv
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command_line import OneLineParser, markdown, one_line_errors, write_whole

ALWAYS_SHOWN = ("replacing_rate", "scheduler_linear_k", "steps_for_replacing", "learning_rate")
TITLES = {"scheduler_linear_k": "k", "steps_for_replacing": "steps at the rate"}
# Arguments that make no setting: names and places, what the table tells anyway, what changes no score. Over seeds the
# scores are averaged.
LEFT_OUT = (
    "seed task_name scheduler_type output_dir overwrite_output_dir resume cache_dir overwrite_cache save_steps "
    "save_total_limit eval_all_checkpoints per_gpu_eval_batch_size do_train no_cuda model_type fp16_opt_level "
    "local_rank pretrained_model"
).split()
RESULTS = ("last_mean", "last_std", "best_mean", "best_std", "predecessor", "last_kept", "best_kept")
LOYALTY = ("label_loyalty", "probability_loyalty", "score_correlation")  # the last for tasks of scores
NOTES = """
{n_runs} runs. Scores are the main metric on the dev set, mean ± standard deviation (n - 1) over the seeds; kept is
per cent of the predecessor's score. The best step was chosen on the same dev set, so its score is optimistic;
the last step's is not. Bold: each task's best setting by the mean after the last step. It was chosen on the dev
set as well, so its score is the more optimistic the more settings there are.{loyalty}
Made with {made_with}.
"""
LOYALTY_NOTE = """ Loyalty is the last step's, to
the predecessor: how often both give a row the same label, and one less the square root of the Jensen-Shannon
divergence of their probabilities; of scores the correlation."""


# ------------------------------------------------------------------------------------------ reading


class UserError(Exception):
    """Something that the user can put right."""


class Run(NamedTuple):
    folder: Path
    task: str
    metric: str  # the task's main metric, of which the scores are
    schedule: str  # linear, constant or fine-tuning
    seed: int
    arguments: dict  # those that make the setting
    last: float | None
    best: float | None
    predecessor: float | None
    best_step: int | None
    loyalty: dict[str, float]  # to the predecessor after the last step, on the dev set that the metric is of
    metrics: dict[str, float]  # all of them, after the last step
    predecessor_metrics: dict[str, float]
    steps: int
    seconds: float  # of training
    made_with: str  # versions


Setting = list[Run]  # that differ in nothing but the seed, ordered by it


def warn(message: str) -> None:
    print(f"summarize.py: warning: {message}", file=sys.stderr)


def number(value, kind=int | float):
    """The value, a number of this kind, perhaps one that is not a number; TypeError or ValueError where it is none."""
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} is no number that it can be")
    if abs(value) > 10**15:
        raise ValueError(f"{str(value)[:40]} is beyond all use")
    return value


def read_run(path: Path) -> Run:
    """What a run.json tells; UserError where it is none."""
    try:
        record = json.loads(path.read_text())
        given = record["arguments"]
        arguments = {name: value for name, value in given.items() if name not in LEFT_OUT}
        arguments["processes"] = record.get("processes", 1)  # by which batches are larger
        # Runs on other files in the same place are another setting.
        data = json.dumps(record.get("data"), sort_keys=True).encode()
        arguments["data"] = hashlib.sha256(data).hexdigest()[:8]
        made_with = [f"{name} {record['versions'].get(name, '?')}" for name in ("torch", "transformers")]
        if record.get("git_commit"):
            made_with.append(f"commit {record['git_commit'][:10]}{record['git_commit'][40:]}")
        schedule = "linear" if given["scheduler_type"] == "linear" else "constant"
        if given["replacing_rate"] is None:
            schedule = "fine-tuning"
        if schedule != "linear":
            arguments["scheduler_linear_k"] = None
        if schedule != "constant":
            arguments["steps_for_replacing"] = None
        for name in ALWAYS_SHOWN:
            number(arguments.get(name) or 0)
        last, best, predecessor = (
            float(number(record[name]["main"])) if name in record else None for name in ("last", "best", "predecessor")
        )
        best_step = number(record["best"]["step"], int) if "best" in record else None
        task, metric = record["task"], record["main_metric"]
        if not (isinstance(task, str) and isinstance(metric, str)):
            raise TypeError("task and main_metric are names")
        seed = number(given["seed"], int)
        # A predecessor for each seed is one setting.
        arguments["model_name_or_path"] = str(given["model_name_or_path"]).replace(f"seed{seed}", "seed*")
        of_set = metric.rpartition("/")[0]
        loyalty = {
            name.rpartition("/")[2]: float(number(value))
            for name, value in record.get("last", {}).get("loyalty", {}).items()
            if name.rpartition("/")[0] == of_set
        }
        metrics, its = (
            {str(name): float(number(value)) for name, value in record.get(who, {}).get("metrics", {}).items()}
            for who in ("last", "predecessor")
        )
        steps, seconds = number(record["steps"], int), float(number(record["training_seconds"]))
        scores = (last, best, predecessor, best_step, loyalty, metrics, its, steps, seconds)
        return Run(path.parent, task, metric, schedule, seed, arguments, *scores, ", ".join(made_with))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no run.json of run_glue.py ({type(error).__name__}: {error})") from error


def read_runs(folder: Path) -> list[Run]:
    """All runs below a folder; a damaged one is left out with a warning."""
    runs = []
    for path in sorted(folder.rglob("run.json")):
        try:
            runs.append(read_run(path))
        except UserError as error:
            warn(f"{error}; left out")
    unfinished = [str(path.parent) for path in sorted(folder.rglob("unfinished_run.json"))]
    if unfinished:
        warn(f"not finished, and left out: {', '.join(unfinished)}")
    if not runs:
        raise UserError(f"{folder}: no run.json there that can be read; a finished run has one")
    return runs


def group(runs: list[Run]) -> list[Setting]:
    """The settings, ordered by task, schedule and values."""
    settings: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = settings.setdefault(json.dumps([run.task, run.schedule, run.arguments], sort_keys=True), {})
        if run.seed in seeds:  # counted twice it would make the deviation too small
            warn(f"{run.folder} has the setting and the seed of {seeds[run.seed].folder}; left out")
        else:
            seeds[run.seed] = run

    def order(setting: Setting):
        run = setting[0]
        return run.task, run.schedule, [run.arguments.get(name) or 0 for name in ALWAYS_SHOWN]

    return sorted(([seeds[seed] for seed in sorted(seeds)] for seeds in settings.values()), key=order)


# ------------------------------------------------------------------------------------------- tables


def scores(setting: Setting, which: str) -> np.ndarray:
    """(runs,) scores of "last", "best" or "predecessor"; empty where the runs have none."""
    return np.array([getattr(run, which) for run in setting if getattr(run, which) is not None])


def kept(setting: Setting, which: str) -> np.ndarray:
    """(runs,) per cent of the predecessor's score; empty where there is none, or none above 0."""
    both = [(getattr(run, which), run.predecessor) for run in setting]
    both = [(score, predecessor) for score, predecessor in both if score is not None and predecessor is not None]
    return np.array([100 * s / p for s, p in both] if all(p > 0 for _, p in both) else [])


def mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def deviation(values: np.ndarray) -> float | None:
    """The standard deviation (n - 1); None for fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def merit(setting: Setting) -> float:
    """The mean after the last step; where it is not there, or not a number, below all others."""
    value = mean(scores(setting, "last"))
    return -np.inf if value is None or np.isnan(value) else value


def best_settings(settings: list[Setting]) -> dict[str, Setting]:
    """Each task's setting of most merit; a fine-tuned model, often the predecessor, only where nothing else is."""
    best: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda s: (s[0].schedule == "fine-tuning", -merit(s))):
        best.setdefault(setting[0].task, setting)
    return best


def differing(settings: list[Setting]) -> list[str]:
    """The arguments, beside those always shown, in which compressions, or fine-tunings, of one task differ."""
    values: dict[tuple, set[str]] = {}
    for run in (setting[0] for setting in settings):
        for name, value in run.arguments.items():
            values.setdefault((name, run.task, run.schedule == "fine-tuning"), set()).add(json.dumps(value))
    return sorted({key[0] for key, found in values.items() if len(found) > 1} - set(ALWAYS_SHOWN))


def table(settings: list[Setting]) -> list[dict]:
    """A row a setting, by column of summary.csv; None where there is no value."""
    rows, best = [], best_settings(settings)
    names = [*ALWAYS_SHOWN, *differing(settings)]
    for setting in settings:
        run = setting[0]
        row = {"task": run.task, "schedule": run.schedule} | {name: run.arguments.get(name) for name in names}
        row |= {"seeds": len(setting), "metric": run.metric}
        last, best_step = scores(setting, "last"), scores(setting, "best")
        results = (mean(last), deviation(last), mean(best_step), deviation(best_step))
        results += (mean(scores(setting, "predecessor")), mean(kept(setting, "last")), mean(kept(setting, "best")))
        row |= dict(zip(RESULTS, results, strict=True))
        row |= {name: mean(np.array([r.loyalty[name] for r in setting if name in r.loyalty])) for name in LOYALTY}
        rows.append(row | {"best_setting": setting is best[run.task]})
    unmeasured = [name for name in LOYALTY if all(row[name] is None for row in rows)]
    return [{name: value for name, value in row.items() if name not in unmeasured} for row in rows]


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def show(value, form: str = "g") -> str:
    if value is None or value == "":
        return "-"
    return format(value, form) if isinstance(value, float) else " ".join(str(value).split()).replace("|", "\\|")


def spread(mean: float | None, deviation: float | None) -> str:
    return "-" if mean is None else f"{mean:.4f} ± {show(deviation, '.4f')}"


def as_markdown(rows: list[dict], made_with: str) -> str:
    names = [name for name in rows[0] if name not in (*RESULTS, *LOYALTY, "best_setting")]
    loyalties = [name for name in LOYALTY if name in rows[0]]
    head = [TITLES.get(name, show(name.replace("_", " "))) for name in names]
    lines = [[*head, "last step", "best step", "predecessor", "last kept %", "best kept %"]]
    lines[0] += [name.replace("_", " ") for name in loyalties]
    for row in rows:
        last, best = (spread(row[f"{which}_mean"], row[f"{which}_std"]) for which in ("last", "best"))
        last = f"**{last}**" if row["best_setting"] else last
        results = [last, best, show(row["predecessor"], ".4f")]
        results += [show(row["last_kept"], ".1f"), show(row["best_kept"], ".1f")]
        results += [show(row[name], ".4f") for name in loyalties]
        lines.append([show(row[name]) for name in names] + results)
    return markdown(lines) + NOTES.format(
        n_runs=sum(row["seeds"] for row in rows), made_with=made_with, loyalty=LOYALTY_NOTE if loyalties else ""
    )


# ------------------------------------------------------------------------------------------ pictures

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # apart for colour-blind eyes too
COLOURS = {"linear": BLUE, "constant": ORANGE}
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def draw_replacing_rates(plt, settings: list[Setting]):
    """A panel a task: score after the last step against replacing rate; UserError where nothing was compressed."""
    settings = [s for s in settings if s[0].schedule in COLOURS and merit(s) > -np.inf]
    tasks = sorted({setting[0].task for setting in settings})
    if not tasks:
        raise UserError("no run with a replacing rate and a score")
    n_columns = 2 if len(tasks) == 4 else min(len(tasks), 3)
    n_rows = -(-len(tasks) // n_columns)
    size = (max(6, 4.2 * n_columns), 1 + 3.3 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    handles = {}
    for axis, task in zip(axes.flat, tasks, strict=False):
        ours = sorted((setting for setting in settings if setting[0].task == task), key=merit)
        for schedule, colour in COLOURS.items():
            # Of several settings with one rate the last, which is the best.
            of_rate = {s[0].arguments["replacing_rate"]: s for s in ours if s[0].schedule == schedule}
            points = [(rate, scores(of_rate[rate], "last")) for rate in sorted(of_rate)]
            if points:
                rates, values = zip(*points, strict=True)
                bars = [deviation(v) or np.nan for v in values]
                line = axis.errorbar(rates, [v.mean() for v in values], bars, fmt="o-", color=colour, capsize=4)
                handles[f"{schedule} schedule"] = line
        predecessor = scores([run for setting in ours for run in setting], "predecessor")
        if len(predecessor):
            handles["predecessor"] = axis.axhline(predecessor.mean(), color=GREY, linestyle="--")
        axis.set(title=task, xlim=(0, 1.05), xlabel="replacing rate (constant, or at the start)")
        axis.set_ylabel(f"dev {ours[0][0].metric.split('/')[-1]}, last step")
        axis.grid(axis="y", alpha=0.3)
    title = "mean ± standard deviation over seeds, of the best setting at each rate"
    names = sorted(handles, key=[*(f"{schedule} schedule" for schedule in COLOURS), "predecessor"].index)
    figure.legend([handles[name] for name in names], names, title=title, loc="outside upper center", ncols=3)
    return figure


def draw_run(plt, run: Run):
    """Loss, replacing rate and dev score over the optimiser steps of one run; UserError without a sound log."""
    path, score = run.folder / "log.jsonl", f"eval_{run.metric}"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        labels = {"loss": "training loss", "replacing_rate": "replacing rate", score: f"dev {run.metric}"}
        points = {key: [(number(line["step"]), number(line[key])) for line in lines if key in line] for key in labels}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    keys = [key for key in labels if points[key]]
    if not keys:
        raise UserError(f"{path} has nothing to draw")
    size = (8, 1 + 2.2 * len(keys))
    figure, axes = plt.subplots(len(keys), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axis, key in zip(axes.flat, keys, strict=True):
        axis.plot(*zip(*points[key], strict=True), "o-" if len(points[key]) <= 60 else "-", markersize=3.5, color=BLUE)
        axis.set_ylabel(labels[key])
        axis.grid(alpha=0.3)
        if key == "replacing_rate":
            axis.set_ylim(0, 1.05)
        if key == score and run.predecessor is not None:
            axis.axhline(run.predecessor, color=GREY, linestyle="--", label="predecessor")
        if key == score and run.best is not None:
            axis.plot(run.best_step, run.best, "*", color=ORANGE, markersize=13, label="best step")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    axes.flat[-1].set(xlabel="optimiser step", xlim=(0, None))
    figure.suptitle(f"{run.task}: {run.folder.resolve().name}", fontsize=12)
    figure.align_ylabels()
    return figure


def draw(settings: list[Setting], run: Run) -> dict[str, bytes]:
    """The pictures, as PNG by file name; none where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        warn("no pictures: they need matplotlib (pip install matplotlib); --no_pictures leaves them out")
        return {}
    pictures = {}
    for name, draw_one, what in (
        ("summary_replacing_rate.png", draw_replacing_rates, settings),
        ("summary_run.png", draw_run, run),
    ):
        try:
            with plt.rc_context(STYLE):
                png = io.BytesIO()
                draw_one(plt, what).savefig(png, format="png", dpi=150)
            pictures[name] = png.getvalue()
        except UserError as error:
            warn(f"no {name}: {error}")
    return pictures


# ------------------------------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="summarize.py", description=__doc__)
    add = parser.add_argument
    add("runs_dir", type=Path, metavar="RUNS_DIR", help="folder with runs of run_glue.py, at any depth")
    add("--output_dir", type=Path, metavar="DIR", help="where the summary goes (default: RUNS_DIR)")
    add("--run", type=Path, metavar="FOLDER", help="the run to draw (default: first seed of a best setting)")
    add("--no_pictures", action="store_true", help="make the tables only; then matplotlib is not needed")
    args = parser.parse_args(argv)
    if args.run and args.no_pictures:
        parser.error("--run is for a picture: not with --no_pictures")
    return args


def main() -> None:
    args = parse_args()
    output_dir = args.output_dir or args.runs_dir
    with one_line_errors("summarize.py", UserError):
        settings = group(read_runs(args.runs_dir))
        rows = table(settings)
        made_with = "; ".join(sorted({run.made_with for setting in settings for run in setting}))
        files = {"summary.md": as_markdown(rows, made_with), "summary.csv": as_csv(rows)}
        files = {name: text.encode(errors="replace") for name, text in files.items()}
        if not args.no_pictures:
            run = read_run(args.run / "run.json") if args.run else next(iter(best_settings(settings).values()))[0]
            files |= draw(settings, run)
        output_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(output_dir / name, content)
    print(files["summary.md"].decode(), end="")
    print(f"Written to {output_dir}: {', '.join(files)}", file=sys.stderr)


if __name__ == "__main__":
    main()
