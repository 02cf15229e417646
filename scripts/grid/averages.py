"""Scores of runs, their averages over seeds and tasks, and how far these can be trusted."""

from collections.abc import Callable, Sequence

import numpy as np

from grid.records import FinishedRun

ScoreOf = Callable[[FinishedRun], float]  # what counts of a run, in per cent
Columns = Sequence[Sequence[FinishedRun]]  # the runs in each column of a table; most columns are tasks


def on_held_out(run: FinishedRun, which: str = "last") -> float:
    return 100 * run.held_out[which]


def on_dev(run: FinishedRun) -> float:
    return 100 * run.scores["last"]


def best_on_held_out(run: FinishedRun) -> float:
    """After the step that is best on the dev set; of predecessors, which are evaluated once, after the last one."""
    return 100 * run.held_out.get("best", run.held_out["last"])


def best_on_dev(run: FinishedRun) -> float:
    """After the step that is best on the dev set; of predecessors after the last one."""
    return 100 * run.scores.get("best", run.scores["last"])


def mean(values: np.ndarray) -> float:
    """nan for no values."""
    return float(values.mean()) if len(values) else np.nan


def deviation(values: np.ndarray) -> float:
    """The standard deviation (n - 1); nan for fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def spread(values: np.ndarray) -> str:
    """Mean and, of several values, their standard deviation."""
    return f"{mean(values):.1f} ± {deviation(values):.1f}".removesuffix(" ± nan").replace("nan", "-")


def scores(runs: Sequence[FinishedRun], score: ScoreOf) -> np.ndarray:
    return np.array([score(run) for run in runs])


def with_error(values: np.ndarray) -> str:
    """The mean of differences, with its sign, ± its standard error where there are several."""
    if not len(values):
        return "-"
    error = f" ± {deviation(values) / np.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{values.mean():+.1f}{error}"


def by_seed(columns: Columns, score: ScoreOf) -> dict[int, np.ndarray]:
    """The scores in all columns, of the seeds that all columns have."""
    found = [{run.seed: score(run) for run in runs} for runs in columns]
    seeds = sorted(set.intersection(*map(set, found))) if found else []
    return {seed: np.array([of[seed] for of in found]) for seed in seeds}


def common_seeds(columns: Columns) -> set[int]:
    """The seeds that all columns have, but for those without any run."""
    seeds = [{run.seed for run in runs} for runs in columns if runs]
    return set.intersection(*seeds) if seeds else set()


def difference(ours: Columns, others: Columns, score: ScoreOf, score_of_others: ScoreOf) -> str:
    """The mean over the seeds of the difference of two means over the columns, ± its standard error."""
    a, b = by_seed(ours, score), by_seed(others, score_of_others)
    return with_error(np.array([a[seed].mean() - b[seed].mean() for seed in a if seed in b]))


def by_column(
    ours: Columns, others: Columns, score: ScoreOf = on_held_out, score_of_others: ScoreOf = on_held_out
) -> list[str]:
    """The `difference` in each column, and of several that of the means over them."""
    of_both = score, score_of_others
    alone = [difference([one], [two], *of_both) for one, two in zip(ours, others, strict=True)]
    return [*alone, difference(ours, others, *of_both)] if len(ours) > 1 else alone


def and_mean(tasks: Sequence[str]) -> list[str]:
    """The heads of the columns of `by_column`."""
    return [*tasks, "mean"] if len(tasks) > 1 else list(tasks)


def percent_kept(ours: Columns, predecessors: Columns, score: ScoreOf, floor: float = 0.0) -> np.ndarray:
    """Of each seed, the share that is kept of what the predecessor's mean over the columns is above the floor."""
    a, b = ({seed: of.mean() - floor for seed, of in by_seed(runs, score).items()} for runs in (ours, predecessors))
    return np.array([100 * a[seed] / b[seed] for seed in a if b.get(seed, 0) > 0])
