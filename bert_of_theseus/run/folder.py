"""What a run's folder holds, and how it is read.

    unfinished_run.json    the record, from the start to the end
    run.json               the record with the results; written last
    log.jsonl, runs/       the log
    checkpoint-N/          the model after step N
    checkpoint-N-stopped/  the same, where a signal has stopped the run between two of those
    checkpoint-best/       the model at the best step
    eval_results.txt       metrics, `key = value` a line
    predictions.csv        of texts without labels

The newest of `checkpoint-N` and `checkpoint-N-stopped` also holds the state, from which the run can be resumed.
"""

import json
import re
from pathlib import Path

from bert_of_theseus.run.command_line import UserError

STATE = "training_state.pt"
UNFINISHED = "unfinished_run.json"
FINISHED = "run.json"
BEST = "checkpoint-best"
RESULTS = "eval_results.txt"
PREDICTIONS = "predictions.csv"


def read_record(folder: Path) -> dict | None:
    """The record of the run in a folder, finished or not; None where there is no run.

    Raises:
        UserError: the record is no JSON, or none of a run.
    """
    for name in (FINISHED, UNFINISHED):
        path = folder / name
        if path.is_file():
            try:
                record = json.loads(path.read_text())
                record["arguments"]["seed"]
                return record
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path} is not the record of a run of run_glue.py; remove it, or name another folder"
                ) from error
    return None


def record_of(model: str | Path) -> dict | None:
    """The record of the run that trained a model, which lies in its folder or is one of its checkpoints."""
    path = Path(model)
    return read_record(path.parent if path.name.startswith("checkpoint-") else path)


def input_length(given: int | None, *models: str | Path) -> int:
    """Tokens to which the input of models is cut: those given, else those of the first model whose run is known."""
    known = (record["arguments"]["max_seq_length"] for record in map(record_of, models) if record)
    return given or next(known, 128)


def is_finished(record: dict) -> bool:
    return "end" in record


def checkpoint_folders(folder: Path) -> list[Path]:
    """The `checkpoint-N` folders, by `N`."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The `N` of a `checkpoint-N` or `checkpoint-N-stopped`."""
    return int(checkpoint.name.split("-")[1])


def newest_state(folder: Path) -> Path | None:
    """The checkpoint from which the run in a folder can be resumed; None where there is none."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]
    found = [path for path in found if re.fullmatch(r"checkpoint-\d+(-stopped)?", path.name)]
    return max(found, key=step_of, default=None)


def as_results(results: dict[str, float]) -> str:
    """The text of an `eval_results.txt`: `key = value` a line, sorted."""
    return "".join(f"{key} = {value}\n" for key, value in sorted(results.items()))


def read_results(folder: Path) -> dict[str, float]:
    """What `eval_results.txt` in the folder says; nothing where there is none."""
    path = folder / RESULTS
    lines = path.read_text().splitlines() if path.is_file() else []
    return {key: float(value) for key, value in (line.split(" = ") for line in lines)}


def as_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
