"""Finished runs, as their run.json files tell them."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from bert_of_theseus.run.command_line import UserError
from bert_of_theseus.run.folder import FINISHED, UNFINISHED
from grid.output import warn

METRIC_NAMES = {
    "acc": "accuracy",
    "f1": "F1",
    "macro_f1": "mean F1 of the classes",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
    "mcc": "Matthews",
    "acc_and_f1": "mean of accuracy and F1",
    "corr": "mean of Pearson and Spearman",
}
# Arguments that are no part of a setting: the seed, over which scores are averaged; what has a column of its own;
# names and places; and what changes no score.
NO_SETTING = set(
    "seed task_name scheduler_type variant data_dir train_file validation_file test_file output_dir "
    "overwrite_output_dir resume cache_dir overwrite_cache save_steps save_total_limit eval_all_checkpoints "
    "per_gpu_eval_batch_size do_train no_cuda model_type fp16_opt_level local_rank pretrained_model".split()
)


class FinishedRun(NamedTuple):
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


def read_run(path: Path) -> FinishedRun:
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
        return FinishedRun(
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


def read_runs(folder: Path, where: str = "**") -> list[FinishedRun]:
    """All finished runs in the folders `where` below a folder, in the order of their paths; warns of the others."""
    runs = []
    for path in sorted(folder.glob(f"{where}/{FINISHED}")):
        try:
            runs.append(read_run(path))
        except UserError as error:
            warn(f"{error}; left out")
    unfinished = [str(path.parent) for path in sorted(folder.glob(f"{where}/{UNFINISHED}"))]
    if unfinished:
        warn(f"not finished, and left out: {', '.join(unfinished)}")
    return runs
