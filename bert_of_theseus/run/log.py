"""What a run reports step by step: on standard output, in log.jsonl, and for TensorBoard."""

import json
import os
import sys
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm


def as_line(step: int, values: dict[str, float]) -> str:
    return json.dumps({"step": step} | values)


def print_line(step: int, values: dict[str, float]) -> None:
    """Print the values of a step on standard output, rounded, as a line of JSON, above a progress bar."""
    tqdm.write(as_line(step, {name: float(f"{value:.5g}") for name, value in values.items()}))
    sys.stdout.flush()


class RunLog:
    """Writes values as a line of JSON in `log.jsonl`, and as TensorBoard scalars.

    Args:
        folder: of the run.
        n_bytes: to which `log.jsonl` is cut: what was written after the saved step will be written again.
        first_step: TensorBoard hides what an earlier part of the run has written from this step on; None: a new run.
    """

    def __init__(self, folder: Path, n_bytes: int = 0, first_step: int | None = None):
        self.path = folder / "log.jsonl"
        self.file = open(self.path, "a")
        os.truncate(self.path, min(n_bytes, self.path.stat().st_size))
        (folder / "runs").mkdir(exist_ok=True)
        earlier = set(folder.glob("runs/events.*"))
        # Not SummaryWriter: its thread would still hold values back when the state is saved, and a kill lose them.
        # The suffix keeps two parts apart that begin in the same second.
        self.board = EventsWriter(str(folder / "runs" / "events"), f".{len(earlier)}")
        self.event_files = sorted(set(folder.glob("runs/events.*")) - earlier)  # made by this writer
        if first_step is not None:
            start = SessionLog(status=SessionLog.START)  # TensorBoard takes back what is of this step or later
            self.board.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))
            self.board.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        print(as_line(step, values), file=self.file, flush=True)
        for name, value in values.items():
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self.board.flush()

    def flush_to_disk(self) -> int:
        """Flush `log.jsonl` to the disk; returns its length in bytes."""
        os.fsync(self.file.fileno())
        return self.path.stat().st_size

    def close(self) -> None:
        self.board.close()
        self.file.close()
