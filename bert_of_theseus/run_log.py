"""What a run tells while it goes on, step by step."""

import json
import logging
import os
import sys
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar
from tqdm import tqdm

from bert_of_theseus.distributed import rank
from bert_of_theseus.run_folder import writing

logger = logging.getLogger(__name__)


class RunLog:
    """The same values as TensorBoard scalars, as lines of JSON on standard output, and in `log.jsonl`.

    Only the main process writes them.

    Args:
        output_dir: of the run.
        sizes: of the files, in bytes, as `sizes()` gave them, to which they are cut back; empty for a new run.
    """

    def __init__(self, output_dir: Path, sizes: dict[str, int]):
        self.folder = output_dir
        if rank() == 0:
            (output_dir / "runs").mkdir(exist_ok=True)
            for path in self._paths():
                size, found = sizes.get(str(path.relative_to(output_dir)), 0), path.stat().st_size
                if size == 0:
                    path.unlink()
                elif found < size:
                    logger.warning("%s has lost its end since it was written", path)
                    size = path.read_bytes().rfind(b"\n") + 1 if path.suffix == ".jsonl" else found
                if 0 < size < found:
                    os.truncate(path, size)
            part = len(self._paths())  # or two parts begun in the same second would be one file
            self.board = EventsWriter(str(output_dir / "runs" / "events"), f".{part}")
            self.file = open(output_dir / "log.jsonl", "a")

    def _paths(self) -> list[Path]:
        return [*self.folder.glob("log.jsonl"), *self.folder.glob("runs/events.*")]

    def sizes(self) -> dict[str, int]:
        """How long the files are, by name; so much of them is on the disk."""
        with writing(self.folder, self.folder / "log.jsonl", 1000):
            self.board.flush()
            os.fsync(self.file.fileno())
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in self._paths()}

    def write(self, step: int, values: dict[str, float]) -> None:
        if rank() > 0:
            return
        line = json.dumps({"step": step} | values)
        with writing(self.folder, "standard output", len(line)):  # a file, perhaps
            tqdm.write(line)
            sys.stdout.flush()
        with writing(self.folder, self.folder / "log.jsonl", 1000):
            print(line, file=self.file, flush=True)
            for name, value in values.items():
                self.board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self.board.flush()

    def close(self) -> None:
        if rank() == 0:
            self.board.close()
            self.file.close()
