#!/usr/bin/env python
"""Answer the paper's claims with tables and pictures, from the records of the runs that reproduce.sh makes.

Fills in, in each Markdown file, what stands between <!-- NAME --> and <!-- /NAME --> for each table's NAME, and writes
the pictures that it shows beside it. Everything comes from the run.json files below RESULTS_DIR and, for the speed,
from what benchmark.py --json wrote to RESULTS_DIR/speed.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import summarize
from command_line import OneLineParser, markdown, one_line_errors, write_whole
from summarize import BLUE, GREY, ORANGE, STYLE, Run, UserError, deviation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS

COMPARED = ("pretrained-layers", "all-trained", "frozen", "constant", "linear")
ABLATIONS = ("falling", "missing-gradients", "every-second-layer")
RATES = tuple(round(0.1 * i, 1) for i in range(1, 11))
FIRST_RATE, CONSTANT_RATE = 0.3, 0.5  # of the linear schedule, and of the search
SHARES = (0.25, 0.5, 0.67)  # of the steps, after which the rate is 1
METHODS = {
    "predecessor": "predecessor",
    "pretrained-layers": "pre-trained model, cut and fine-tuned",
    "all-trained": "predecessor, cut and fine-tuned",
    "frozen": "predecessor, cut, layers alone fine-tuned",
    "constant": f"Theseus, constant rate {CONSTANT_RATE:g}",
    "linear": f"Theseus, linear from {FIRST_RATE:g}",
    "falling": "falling rate",
    "missing-gradients": "gradients missing, not zeroed",
    "every-second-layer": "start from every second layer",
}


class Record(NamedTuple):
    """A run as one of the grid."""

    task: str  # as its folder is named
    method: str
    seed: int
    learning_rate: float
    by: float | None  # one of SHARES
    rate: float | None  # the constant one
    run: Run


def read_records(folder: Path) -> list[Record]:
    """The records below a folder, which may be none."""
    if not any(folder.rglob("run.json")):
        return []
    return [as_record(run) for run in summarize.read_runs(folder)]


def as_record(run: Run) -> Record:
    arguments = run.arguments
    method, rate, replacing = arguments.get("variant"), None, None
    if run.schedule == "fine-tuning":
        method = "predecessor"
    elif run.schedule == "linear":
        method = method or "linear"
        replacing = (1 - arguments["replacing_rate"]) / (arguments["scheduler_linear_k"] or 1)
    elif method is None and arguments["replacing_rate"] == 1:
        method = "frozen"
    elif method is None:
        method, rate, replacing = "constant", arguments["replacing_rate"], arguments["steps_for_replacing"]
    by = None if replacing is None else min(SHARES, key=lambda share: abs(share - replacing / run.steps))
    return Record(TASKS[run.task].folder, method, run.seed, arguments["learning_rate"], by, rate, run)


def searched(records: list[Record], task: str, method: str) -> list[Record]:
    """The runs of the search, ordered by setting: those of the first seed."""
    ours = [r for r in records if r.task == task and r.method == method and r.rate in (None, CONSTANT_RATE)]
    first = min((record.seed for record in ours), default=None)
    return sorted((r for r in ours if r.seed == first), key=lambda r: (r.learning_rate, r.by or 0))


def best_setting(records: list[Record], task: str, method: str) -> Record | None:
    """The search's run with the best main metric after the last step; None where there is none."""
    ours = [record for record in searched(records, task, method) if record.run.last is not None]
    return max(ours, key=lambda record: record.run.last, default=None)


# ------------------------------------------------------------------------------------------- choosing


class Results(NamedTuple):
    records: list[Record]
    speed: dict[str, dict]  # what benchmark.py wrote, by task

    def tasks(self) -> list[str]:
        return sorted({record.task for record in self.records}, key=str.lower)

    def of(self, task: str, method: str, rate: float | None = None) -> list[Record]:
        """The runs of a method at its best setting, ordered by seed; a variant's is that of the linear schedule."""
        if method == "constant" and rate == 1:
            return self.of(task, "frozen")
        best = best_setting(self.records, task, "linear" if method in ABLATIONS else method)
        if best is None:
            return []
        rate = rate or best.rate
        wanted = (task, method, best.learning_rate, best.by, rate)
        found = [r for r in self.records if (r.task, r.method, r.learning_rate, r.by, r.rate) == wanted]
        return sorted(found, key=lambda record: record.seed)


def main_scores(records: list[Record]) -> np.ndarray:
    """(seeds,) main metric after the last step, in per cent."""
    return 100 * np.array([record.run.last for record in records])


def paper_scores(records: list[Record], of_predecessor: bool = False) -> np.ndarray:
    """(seeds,) the metric of the paper's table, in per cent."""
    scores = []
    for record in records:
        metrics = record.run.predecessor_metrics if of_predecessor else record.run.metrics
        of_set, _, metric = record.run.metric.rpartition("/")
        metric = {"acc_and_f1": "f1", "corr": "spearmanr"}.get(metric, metric)
        scores.append(metrics[f"{of_set}/{metric}" if of_set else metric])
    return 100 * np.array(scores)


def pooled(a: np.ndarray, b: np.ndarray) -> float:
    """The standard deviation within two groups of as many values."""
    return float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)) if min(len(a), len(b)) > 1 else float("nan")


# --------------------------------------------------------------------------------------------- tables


def spread(values: np.ndarray) -> str:
    """Mean and, of several values, their standard deviation."""
    if not len(values):
        return "-"
    return f"{values.mean():.1f}" + (f" ± {deviation(values):.1f}" if len(values) > 1 else "")


METRICS = {
    "acc": "accuracy",
    "mcc": "Matthews",
    "acc_and_f1": "mean of accuracy and F1",
    "corr": "mean of Pearson and Spearman",
}


def metric_of(results: Results, task: str) -> str:
    """The task's main metric in words."""
    metric = next(record.run.metric for record in results.records if record.task == task)
    return METRICS[metric.rpartition("/")[2]]


def grid(results: Results) -> str:
    """What was run, in one sentence each."""
    runs = [record.run for record in results.records]
    seeds = sorted({record.seed for record in results.records})
    steps = {task: {r.run.steps for r in results.records if r.task == task} for task in results.tasks()}
    of_steps = ", ".join(f"{'/'.join(map(str, sorted(counts)))} steps on {task}" for task, counts in steps.items())
    arguments = runs[0].arguments
    batch = arguments["per_gpu_train_batch_size"]
    return (
        f"{len(runs)} runs, {sum(run.seconds for run in runs) / 3600:.1f} hours of training, of "
        f"{arguments['num_train_epochs']:g} epochs in batches of {batch} ({of_steps}); seeds "
        f"{', '.join(map(str, seeds))}.\n"
    )


def comparison(results: Results) -> str:
    rows = [["", *(f"{task}, {metric_of(results, task)}" for task in results.tasks()), "kept, mean of the tasks, %"]]
    for method in ("predecessor", *COMPARED):
        row, kept = [METHODS[method]], []
        for task in results.tasks():
            ours = results.of(task, method)
            row.append(spread(main_scores(ours)))
            kept.append({record.seed: summarize.kept([record.run], "last") for record in ours})
        seeds = sorted(set.intersection(*(set(of) for of in kept)))
        values = np.array([np.mean([of[seed] for of in kept]) for seed in seeds if all(len(of[seed]) for of in kept)])
        rows.append([*row, spread(values)])
    return markdown(rows)


def paper_metrics(results: Results) -> str:
    """The paper's metrics, and what is kept of their mean."""
    rows = [["", *results.tasks(), "mean", "kept, %"]]
    for method in COMPARED:
        ours = [results.of(task, method) for task in results.tasks()]
        scores = [paper_scores(records).mean() for records in ours if records]
        theirs = [paper_scores(records, True).mean() for records in ours if records]
        if len(scores) < len(ours):
            continue
        if len(rows) == 1:
            rows.append([METHODS["predecessor"], *(f"{s:.1f}" for s in theirs), f"{np.mean(theirs):.1f}", "100.0"])
        kept = 100 * np.mean(scores) / np.mean(theirs)
        rows.append([METHODS[method], *(f"{s:.1f}" for s in scores), f"{np.mean(scores):.1f}", f"{kept:.1f}"])
    return markdown(rows)


def difference(ours: list[Record], others: list[Record]) -> str:
    """Of the means, in points and in standard deviations; over the seeds that both have."""
    seeds = {record.seed for record in ours} & {record.seed for record in others}
    a, b = (main_scores([record for record in records if record.seed in seeds]) for records in (ours, others))
    if not seeds:
        return "-"
    points, sd = a.mean() - b.mean(), pooled(a, b)
    return f"{points:+.1f}" + (f" ({points / sd:+.1f} sd)" if sd > 0 else "")


def differences(results: Results) -> str:
    pairs = [("linear", other) for other in ("pretrained-layers", "all-trained", "frozen", "constant")]
    pairs += [("constant", "all-trained"), ("constant", "frozen"), ("all-trained", "pretrained-layers")]
    rows = [["", *results.tasks()]]
    for one, other in pairs:
        cells = [difference(results.of(task, one), results.of(task, other)) for task in results.tasks()]
        rows.append([f"{METHODS[one]} less {METHODS[other]}", *cells])
    return markdown(rows)


def loyalty(results: Results) -> str:
    kinds = {
        task: sorted({name for r in results.records if r.task == task for name in r.run.loyalty})
        for task in results.tasks()
    }
    rows = [["", *(f"{task}, {kind.replace('_', ' ')}" for task, names in kinds.items() for kind in names)]]
    for method in COMPARED:
        row = [METHODS[method]]
        for task, names in kinds.items():
            ours = results.of(task, method)
            row += [spread(100 * np.array([r.run.loyalty[name] for r in ours])) for name in names]
        rows.append(row)
    return markdown(rows)


def search(results: Results) -> str:
    """Every run of the search; the best of each method and task in bold."""
    rates = sorted({record.learning_rate for record in results.records})
    names = [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates]
    rows = [["", *(f"{task} {name}" for task in results.tasks() for name in names)]]
    for method in ("predecessor", *COMPARED):
        found = {
            (r.task, r.learning_rate, r.by): r
            for task in results.tasks()
            for r in searched(results.records, task, method)
        }
        best = [best_setting(results.records, task, method) for task in results.tasks()]
        for by in sorted({key[2] for key in found}, key=lambda by: by or 0):
            row = [METHODS[method] + (f", 1 after {by:g}" if by else "")]
            for task in results.tasks():
                for rate in rates:
                    record = found.get((task, rate, by))
                    text = "-" if record is None else f"{100 * record.run.last:.1f}"
                    row.append(f"**{text}**" if record is not None and record in best else text)
            rows.append(row)
    return markdown(rows)


def rate_task(results: Results) -> str:
    """The task on which constant rates were tried: that with the most of them."""
    return max(results.tasks(), key=lambda task: len({r.rate for r in results.records if r.task == task}))


def by_rate(results: Results) -> dict[float | str, list[Record]]:
    """The runs of each constant rate, of the linear schedule and of the predecessor, of the seeds that all have."""
    task = rate_task(results)
    found = {rate: results.of(task, "constant", rate) for rate in RATES}
    found |= {method: results.of(task, method) for method in ("linear", "predecessor")}
    found = {name: records for name, records in found.items() if records}
    seeds = set.intersection(*({record.seed for record in records} for records in found.values()))
    return {name: [record for record in records if record.seed in seeds] for name, records in found.items()}


def rates(results: Results) -> str:
    task = rate_task(results)
    rows = [["constant replacing rate", f"{task}, {metric_of(results, task)}", "seeds"]]
    for name, records in by_rate(results).items():
        title = METHODS[name] if name in METHODS else f"{name:g}"
        rows.append([title, spread(main_scores(records)), " ".join(str(record.seed) for record in records)])
    return markdown(rows)


def variants(results: Results) -> str:
    rows = [["", *(text for task in results.tasks() for text in (task, "difference"))]]
    for method in ("linear", *ABLATIONS):
        row = [METHODS[method]]
        for task in results.tasks():
            ours, base = results.of(task, method), results.of(task, "linear")
            row += [spread(main_scores(ours)), "" if method == "linear" else difference(ours, base)]
        rows.append(row)
    return markdown(rows)


def speed(results: Results) -> str:
    rows = [["", "predecessor, rows/s", "successor, rows/s", "times as fast", "ms for one row, of both"]]
    for task, figures in results.speed.items():
        of = figures["inference"]
        rates = [f"{of[who]['examples_per_second']:.0f}" for who in ("predecessor", "successor")]
        single = " / ".join(f"{1000 * of[who]['seconds_for_one']:.1f}" for who in ("predecessor", "successor"))
        rows.append([task, *rates, f"{of['successor']['times_the_predecessor']:.2f}", single])
    return markdown(rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "grid": grid,
    "comparison": comparison,
    "paper-metrics": paper_metrics,
    "differences": differences,
    "loyalty": loyalty,
    "search": search,
    "rates": rates,
    "variants": variants,
    "speed": speed,
}


# ------------------------------------------------------------------------------------------- pictures


def draw_rates(plt, results: Results):
    """Score against constant rate on one task, with the linear schedule and the predecessor beside it."""
    task, found = rate_task(results), {name: main_scores(records) for name, records in by_rate(results).items()}
    points = [(rate, found[rate]) for rate in RATES if rate in found]
    figure, axis = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    for rate, values in points:
        axis.plot([rate] * len(values), values, "o", color=ORANGE, alpha=0.35, markersize=5)
    axis.plot([r for r, _ in points], [v.mean() for _, v in points], "o-", color=ORANGE, label="constant rate")
    if "linear" in found:
        axis.axhline(found["linear"].mean(), color=BLUE, label=f"linear schedule from {FIRST_RATE:g}")
        axis.axhspan(found["linear"].min(), found["linear"].max(), color=BLUE, alpha=0.12, linewidth=0)
    if "predecessor" in found:
        axis.axhline(found["predecessor"].mean(), color=GREY, linestyle="--", label="predecessor")
    axis.set(xlabel="constant replacing rate", ylabel=metric_of(results, task), title=f"{task}, means and runs")
    axis.set_xlim(0, 1.05)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_comparison(plt, results: Results):
    """A panel a task: each run of each method, and the means."""
    tasks, methods = results.tasks(), ("predecessor", *COMPARED)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(3.6 * len(tasks) + 2.6, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, tasks, strict=True):
        for y, method in enumerate(methods):
            values = main_scores(results.of(task, method))
            colour = GREY if method == "predecessor" else BLUE if method in ("constant", "linear") else ORANGE
            axis.plot(values, [y] * len(values), "o", color=colour, alpha=0.45)
            if len(values):
                axis.plot(values.mean(), y, "|", color=colour, markersize=22, markeredgewidth=2.5)
        axis.set(title=task, xlabel=metric_of(results, task))
        axis.grid(axis="x", alpha=0.3)
    axes.flat[0].set_yticks(range(len(methods)), [METHODS[method] for method in methods])
    axes.flat[0].set_ylim(len(methods) - 0.4, -0.6)
    return figure


PICTURES = {"results_rates.png": draw_rates, "results_comparison.png": draw_comparison}


def draw(results: Results, names: list[str]) -> dict[str, bytes]:
    """These pictures, as PNG by file name."""
    if not names:
        return {}
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    pictures = {}
    for name in names:
        with plt.rc_context(STYLE):
            png = io.BytesIO()
            PICTURES[name](plt, results).savefig(png, format="png", dpi=130, metadata={"Software": None})
            plt.close("all")
        pictures[name] = png.getvalue()
    return pictures


# --------------------------------------------------------------------------------------- command line


def read_results(folder: Path) -> Results:
    records = read_records(folder)
    if not records:
        raise UserError(f"{folder}: there is no run.json; reproduce.sh makes them")
    speed = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "speed").glob("*.json"))}
    return Results(records, speed)


def filled(document: str, results: Results) -> str:
    """The document with each table as the results give it; UserError where it names one that there is not."""

    def fill(match: re.Match) -> str:
        name = match[1]
        if name not in TABLES:
            raise UserError(f"there is no table {name}; there are {', '.join(TABLES)}")
        return f"<!-- {name} -->\n{TABLES[name](results)}<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z-]+) -->\n.*?<!-- /\1 -->", fill, document, flags=re.DOTALL)


def write_report(results: Results, document: Path) -> str:
    """Fill in the document, or write a plain one where there is none, and the pictures it shows; returns its text."""
    plain = "# Results\n\n" + "".join(f"<!-- {name} -->\n<!-- /{name} -->\n\n" for name in TABLES)
    plain += "\n".join(f"![]({name})" for name in PICTURES) + "\n"
    text = filled(document.read_text() if document.exists() else plain, results)
    names = [name for name in PICTURES if name in text]
    try:
        pictures = draw(results, names)
    except ImportError as error:
        raise UserError(f"{document} shows pictures, which need matplotlib (pip install matplotlib)") from error
    write_whole(document, text.encode())
    for name, png in pictures.items():
        write_whole(document.parent / name, png)
    print(f"Filled in: {', '.join([str(document), *pictures])}", file=sys.stderr)
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="report.py", description=__doc__)
    add = parser.add_argument
    add("results_dir", type=Path, metavar="RESULTS_DIR", help="folder with the records")
    add("documents", type=Path, nargs="+", metavar="DOCUMENT", help="a Markdown file; one that is not there is made")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    with one_line_errors("report.py", UserError):
        results = read_results(args.results_dir)
        for document in args.documents:
            write_report(results, document)


if __name__ == "__main__":
    main()
