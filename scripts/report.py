"""The paper's claims as tables and pictures, from the records of the runs that reproduce.py makes."""

import sys
from pathlib import Path
from typing import NamedTuple

import summarize
from summarize import Run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS

COMPARED = ("pretrained-layers", "all-trained", "frozen", "constant", "linear")
ABLATIONS = ("falling", "missing-gradients", "every-second-layer")
RATES = tuple(round(0.1 * i, 1) for i in range(1, 11))
FIRST_RATE, CONSTANT_RATE = 0.3, 0.5  # of the linear schedule, and of the search
SHARES = (0.25, 0.5, 0.67)  # of the steps, after which the rate is 1


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
    method, rate, by = arguments.get("variant"), None, None
    if run.schedule == "fine-tuning":
        method = "predecessor"
    elif run.schedule == "linear":
        method = method or "linear"
        steps = (1 - arguments["replacing_rate"]) / (arguments["scheduler_linear_k"] or 1)
        by = min(SHARES, key=lambda share: abs(share - steps / run.steps))
    elif method is None and arguments["replacing_rate"] == 1:
        method = "frozen"
    elif method is None:
        method, rate = "constant", arguments["replacing_rate"]
        by = min(SHARES, key=lambda share: abs(share - arguments["steps_for_replacing"] / run.steps))
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
