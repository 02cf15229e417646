"""How well a model does: metrics, loyalty to a predecessor, and the table that compares the two."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bert_of_theseus.data.features import Features
from bert_of_theseus.data.task import Task
from bert_of_theseus.run.command_line import aligned


def _correlation(correlate: Callable, predictions: np.ndarray, labels: np.ndarray) -> float:
    """0 with a constant, or with what is no number, where it is undefined, so that runs stay comparable."""
    defined = all(np.isfinite(values).all() and np.ptp(values) > 0 for values in (predictions, labels))
    return float(correlate(predictions, labels).statistic) if defined else 0.0


METRICS: dict[str, Callable[[Task, np.ndarray, np.ndarray], float]] = {
    "acc": lambda task, predictions, labels: accuracy_score(labels, predictions),
    "f1": lambda task, predictions, labels: f1_score(
        labels == task.positive, predictions == task.positive, zero_division=0
    ),
    "macro_f1": lambda task, predictions, labels: f1_score(labels, predictions, average="macro", zero_division=0),
    "mcc": lambda task, predictions, labels: matthews_corrcoef(labels, predictions),
    "pearson": lambda task, predictions, labels: _correlation(pearsonr, predictions, labels),
    "spearmanr": lambda task, predictions, labels: _correlation(spearmanr, predictions, labels),
}
MEANS = {"acc_and_f1": ("acc", "f1"), "corr": ("pearson", "spearmanr")}  # of two metrics


def predictions_of(task: Task, logits: np.ndarray) -> np.ndarray:
    """What logits, (rows, labels) in the task's order, predict: (rows,) label ids, or scores."""
    return logits.argmax(1) if task.labels else logits[:, 0]


def compute_metrics(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics, as fractions.

    Args:
        predictions: (rows,) label ids in the task's order, or scores.
        labels: (rows,) likewise.
    """

    def value(metric: str) -> float:
        if metric in MEANS:
            return sum(map(value, MEANS[metric])) / 2
        return float(METRICS[metric](task, predictions, labels))

    return {metric: value(metric) for metric in task.metrics}


def compute_loyalty(task: Task, logits: np.ndarray, predecessor: np.ndarray) -> dict[str, float]:
    """How far a successor answers as its predecessor does, right or wrong.

    Args:
        logits: (rows, labels), the successor's, in the task's order; (rows, 1) scores where there are no labels.
        predecessor: likewise, the predecessor's on the same rows.

    Returns:
        `label_loyalty`, the share of rows with the same label, and `probability_loyalty`, the mean over the rows of
        1 minus the square root of the Jensen-Shannon divergence to base 2 (Xu et al., "Beyond Preserved Accuracy",
        EMNLP 2021); of scores `score_correlation`, Pearson's.
    """
    if not task.labels:
        return {"score_correlation": _correlation(pearsonr, logits[:, 0], predecessor[:, 0])}
    p, q = (softmax(rows.astype(np.float64), axis=1) for rows in (logits, predecessor))
    # Rounding can bring the divergence of nearly equal rows below 0, and its root is no number then.
    with np.errstate(invalid="ignore"):
        distances = np.nan_to_num(jensenshannon(p, q, base=2, axis=1))
    return {
        "label_loyalty": float((logits.argmax(1) == predecessor.argmax(1)).mean()),
        "probability_loyalty": float(1 - distances.mean()),
    }


def chance_score(task: Task, labels: np.ndarray) -> float:
    """The main metric of the best constant prediction: what a model that has learned nothing can score."""
    constants = range(task.num_labels) if task.labels else [0.0]
    return max(compute_metrics(task, np.full(len(labels), c), labels)[task.main_metric] for c in constants)


class Score(NamedTuple):
    """How well a model did on a task's dev sets.

    Attributes:
        metrics: by name; with several dev sets as `mnli/acc`.
        main: the main metric.
        loyalty: of a successor to its predecessor, by name.
        seconds: of the predictions.
        logits: (rows, labels) of each dev set, in the task's order of labels.
    """

    metrics: dict[str, float]
    main: float
    loyalty: dict[str, float]
    seconds: float
    logits: dict[str, np.ndarray]

    def logged(self) -> dict[str, float]:
        """The values under their names in the log."""
        return {f"eval_{key}": value for key, value in (self.metrics | self.loyalty).items()}

    def recorded(self) -> dict:
        """The score for a run's record."""
        return {name: getattr(self, name) for name in ("metrics", "main", "seconds", "loyalty")}


@dataclass(frozen=True)
class DevSets:
    """What the models of a task are evaluated on.

    Attributes:
        task: whose models they are.
        features: of each dev set, by its name.
        batch_size: of a process.
        predecessor: its score, which a successor's loyalty is measured against.
    """

    task: Task
    features: dict[str, Features]
    batch_size: int
    predecessor: Score | None = None

    def score(self, classifier) -> Score:
        """Score what has `predict(features, batch_size)`, which gives logits in the task's order of labels."""
        started = time.perf_counter()
        logits = {name: classifier.predict(features, self.batch_size) for name, features in self.features.items()}
        seconds = time.perf_counter() - started
        metrics, loyalty = {}, {}
        for name, features in self.features.items():
            prefix = f"{name}/" if len(self.features) > 1 else ""
            found = compute_metrics(self.task, predictions_of(self.task, logits[name]), features.labels)
            metrics |= {prefix + key: value for key, value in found.items()}
            if self.predecessor:
                found = compute_loyalty(self.task, logits[name], self.predecessor.logits[name])
                loyalty |= {prefix + key: value for key, value in found.items()}
        return Score(metrics, metrics[self.task.main_key], loyalty, seconds, logits)


def comparison(corner: str, rows: list[tuple[str, dict, dict[str, str]]], main_key: str) -> str:
    """A table that holds models against the first one.

    Args:
        corner: what stands above the names.
        rows: (who, its score as a record has it, what else there is to show, by column).
        main_key: of the metric of which is said how much is kept.
    """
    first, last = rows[0][1], rows[-1][1]
    table = [[corner, *first["metrics"], f"{main_key} kept", *last["loyalty"], *rows[0][2]]]
    for who, score, more in rows:
        metrics = [f"{score['metrics'][key]:.4f}" for key in first["metrics"]]
        kept = f"{100 * score['main'] / first['main']:.1f} %" if first["main"] > 0 else "-"
        loyalty = [f"{score['loyalty'][key]:.4f}" if key in score["loyalty"] else "-" for key in last["loyalty"]]
        table.append([who, *metrics, kept, *loyalty, *more.values()])
    return aligned(table)
