"""A run in its folder: the lock, the record, the log, the checkpoints, and the wish to stop."""

import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from bert_of_theseus.run import record as records
from bert_of_theseus.run.command_line import MENDABLE, UserError
from bert_of_theseus.run.files import (
    REPLACED,
    TEMPORARY,
    readable_size,
    remove_folder,
    tidy_up,
    whole_files,
    whole_folder,
    write_whole,
)
from bert_of_theseus.run.folder import (
    BEST,
    FINISHED,
    RESULTS,
    STATE,
    UNFINISHED,
    as_json,
    checkpoint_folders,
    is_finished,
    newest_state,
    read_record,
    read_results,
    step_of,
)
from bert_of_theseus.run.lock import LOCK, FolderLock
from bert_of_theseus.run.log import RunLog, print_line
from bert_of_theseus.run.processes import gather, is_main, leave, on_main, wait_for_all
from bert_of_theseus.run.signals import StopSignals

logger = logging.getLogger(__name__)


class Run:
    """One run of a training command in its folder. Every process makes one; the main process alone writes.

    Use it as a context: inside, the folder is locked and signals are heard. `find` looks for an earlier part of the
    run to resume, `check` holds the two against each other, and only `begin` writes.

    Args:
        folder: of the run.
        save_total_limit: how many `checkpoint-N` are kept; None: all.

    Attributes:
        earlier: the record of the run to resume; None for a new run.
    """

    def __init__(self, folder: Path, save_total_limit: int | None = None):
        self.folder = folder
        self.save_total_limit = save_total_limit
        self.earlier: dict | None = None
        self._lock = FolderLock(folder)
        self._signals = StopSignals()
        self._log: RunLog | None = None
        self._record: dict = {}

    def __enter__(self) -> "Run":
        self._signals.listen()
        try:
            on_main(self._lock.take)
        except BaseException:
            self._signals.close()
            raise
        return self

    def __exit__(self, *error) -> None:
        if self._log:
            with suppress(OSError):  # the disk can be full; each line was flushed when it was written
                self._log.close()
        self._lock.release()
        self._signals.close()

    # ----------------------------------------------------------------------------- before anything is written

    def find(self, resume: bool, overwrite: bool, source: str) -> None:
        """Look for the run to resume.

        Raises:
            UserError: the folder holds other files, a run that is neither to be resumed nor to be replaced, or
                `source`, the model to start from.
        """
        record = on_main(read_record, self.folder)
        if record and "files" not in record and (resume or overwrite):
            raise UserError(f"{self.folder} holds a run of an older version; name another --output_dir, or remove it")
        if record and resume:
            self.earlier = record
        elif not overwrite and on_main(self._is_in_use):
            if record and not is_finished(record):
                raise UserError(
                    f"--output_dir {self.folder} holds a run that is not finished; --resume resumes it, "
                    "--overwrite_output_dir replaces it"
                )
            what = "is not empty, and holds no run to resume" if resume else "is not empty"
            raise UserError(
                f"--output_dir {self.folder} {what}; name another, or give --overwrite_output_dir, which replaces the "
                "run there and leaves other files as they are, but for those with the name of a file of the run"
            )

        path = Path(source).resolve()
        if not self.earlier and path.is_dir() and self.folder.resolve() in (path, *path.parents):
            raise UserError(f"--model_name_or_path {source} lies in --output_dir {self.folder}, and would be replaced")

    def _is_in_use(self) -> bool:
        """Whether the folder holds more than a lock, cached features, and what killed processes left."""
        return not all(
            name == LOCK
            or re.fullmatch(r"cached_.*\.npz", name)
            or TEMPORARY.fullmatch(name)
            or REPLACED.fullmatch(name)
            for name in os.listdir(self.folder)
        )

    def check(self, record: dict, may_differ: Collection[str] = ()) -> None:
        """UserError, with all differences, where the run to resume was started with something else.

        Args:
            record: of this command.
            may_differ: names of the arguments that may be others.
        """
        if not self.earlier:
            return
        different = records.differences(self.earlier, record, may_differ)
        changes = records.environment_changes(self.earlier, record)
        if different:
            advice = "give what it was started with, or name another --output_dir"
            if self.is_finished():
                advice += f" (to train its result further, give {self.folder} as --model_name_or_path)"
            raise UserError(f"--resume: not the run that {self.folder} holds: {'; '.join(different)}; {advice}")
        if changes:
            logger.warning("Results can differ in the last digits: %s", "; ".join(changes))

    def is_finished(self) -> bool:
        """Whether the run to resume has come to its end."""
        return self.earlier is not None and is_finished(self.earlier)

    def state_folder(self) -> Path | None:
        """The checkpoint from which the run can be resumed; None: from its beginning."""
        return on_main(newest_state, self.folder) if self.earlier else None

    def check_disk(self, n_saves: int, saves_best: bool, of_weights: int, of_state: int) -> str:
        """Say what the run's checkpoints will take; UserError where the disk cannot hold them.

        Args:
            n_saves: how often a checkpoint is saved.
            saves_best: whether there is a `checkpoint-best`.
            of_weights, of_state: bytes of a model and of a state.
        """
        n_kept = min(n_saves, self.save_total_limit or n_saves)
        n_models = n_kept + saves_best + 1
        # A new checkpoint stands beside the one that it replaces for a moment.
        n_bytes = (n_models + (n_saves > n_kept or saves_best)) * of_weights + min(max(n_saves, 1), 2) * of_state
        n_free = on_main(self._free_bytes)
        needed, free = readable_size(n_bytes), readable_size(n_free)
        if n_bytes > n_free:
            advice = "make room, raise --save_steps, or set --save_total_limit"
            raise UserError(f"{self.folder}: {needed} of checkpoints do not fit in {free}; {advice}")
        models = f"{n_models:,} checkpoint{'s' * (n_models > 1)} of {readable_size(of_weights)}"
        state = f"{readable_size(of_state)} of state " + ("in the newest" if n_saves else "where it is stopped")
        return f"{models}, {state}: at most {needed}, of {free} free"

    def _free_bytes(self) -> int:
        """What is free, and what the files take that this run replaces."""
        record = read_record(self.folder)
        paths = [self.folder / name for name in (record or {}).get("files", [])]
        files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
        return shutil.disk_usage(self.folder).free + sum(file.stat().st_size for file in files)

    # ----------------------------------------------------------------------------------- from begin to finish

    def begin(self, record: dict) -> dict | None:
        """Make the folder ready: for a new run, or for the rest of the earlier one.

        From here on a signal waits for `stop_requested`.

        Args:
            record: of this command, as JSON has it.

        Returns:
            The newest `state` and, by rank, the own ones of the `processes`; None where the run starts at step 0.
        """
        newest = self.state_folder()
        saved = torch.load(newest / STATE, map_location="cpu", weights_only=True) if newest else None
        on_main(self._begin, record, newest, saved["log_bytes"] if saved else 0)
        self._signals.can_wait = True
        return saved

    def _begin(self, record: dict, newest: Path | None, log_bytes: int) -> None:
        tidy_up(self.folder)
        if newest is None:
            self._clear()
        self._record = (self.earlier or record) | ({} if newest else {"files": [], "resumed": []})
        step = step_of(newest) if newest else 0
        if self.earlier:  # the command may have changed what changes no weight, and read a dev set for the first time
            self._record |= {"arguments": record["arguments"], "data": self.earlier["data"] | record["data"]}
            names = ("start", "command", "device", "versions", "git_commit")
            self._record["resumed"].append({"after_step": step} | {name: record[name] for name in names})
        with self._writing(self.folder / UNFINISHED):
            self._write_record()
            if newest:
                self._forget_older(newest)
            self._log = RunLog(self.folder, log_bytes, step + 1 if newest else None)
            event_files = (f"runs/{path.name}" for path in self._log.event_files)
            self._claim("log.jsonl", RESULTS, *event_files)  # a later command without training may write the results

    def _clear(self) -> None:
        """Remove what the record of an earlier run says is that run's, and nothing else."""
        record = read_record(self.folder)
        if record and is_finished(record):  # a run that is half removed is not finished, and can be removed again
            write_whole(self.folder / UNFINISHED, as_json({k: v for k, v in record.items() if k != "end"}))
            (self.folder / FINISHED).unlink()
        for name in (record or {}).get("files", []):
            path = self.folder / name
            remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)
        runs = self.folder / "runs"
        if runs.is_dir() and not any(runs.iterdir()):
            runs.rmdir()

    def _claim(self, *names: str) -> None:
        """Note in the record that these names in the folder are the run's, before it makes them."""
        new = [name for name in names if name not in self._record["files"]]
        if new:
            self._record["files"] += new
            self._write_record()

    def checkpoints(self) -> list[Path]:
        """The run's own `checkpoint-N` folders, by `N`."""
        return on_main(self._checkpoints)

    def _checkpoints(self) -> list[Path]:
        return [path for path in checkpoint_folders(self.folder) if path.name in self._record["files"]]

    def best_results(self) -> dict[str, float]:
        """The results of `checkpoint-best`, its `step` among them; nothing where the run has none (yet)."""
        return on_main(lambda: read_results(self.folder / BEST) if BEST in self._record["files"] else {})

    def _write_record(self) -> None:
        write_whole(self.folder / (FINISHED if is_finished(self._record) else UNFINISHED), as_json(self._record))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Report values of a step, by name: on standard output, in `log.jsonl`, for TensorBoard."""
        if self._log:
            with self._writing("standard output"):
                print_line(step, values)
            with self._writing(self._log.path):
                self._log.write(step, values)

    def write(self, name: str, text: str) -> None:
        """Write a small file of the run into its folder."""
        if is_main():
            with self._writing(self.folder / name):
                self._claim(name)
                write_whole(self.folder / name, text)

    def save_model(self, write_model: Callable[[Path], None]) -> None:
        """Write the files of the final model into the run's folder; `write_model` writes them into an empty one."""
        if is_main():
            with self._writing(self.folder), whole_files(self.folder) as temporary:
                write_model(temporary)
                self._claim(*(path.name for path in temporary.iterdir()))

    def save_best(self, write_model: Callable[[Path], None]) -> None:
        """Write `checkpoint-best`, in place of an earlier one."""
        if is_main():
            self._save_folder(BEST, write_model)

    def save_state(self, state, write_model: Callable[[Path], None], stopped: bool = False) -> None:
        """Write a checkpoint from which the run can be resumed, and remove older states. All processes must call this.

        Args:
            state: has the attribute `step`, `state_dict()`, the same in all processes, and `own_state_dict()`.
            write_model: writes the model into an empty folder.
            stopped: whether the run ends here, between two of its checkpoints.
        """
        own_states = gather(state.own_state_dict())
        if is_main():
            name = f"checkpoint-{state.step}{'-stopped' * stopped}"
            if not (self.folder / name / STATE).exists():

                def write(folder: Path) -> None:
                    write_model(folder)
                    saved = {
                        "state": state.state_dict(),
                        "processes": own_states,
                        "log_bytes": self._log.flush_to_disk(),
                    }
                    with open(folder / STATE, "wb") as file:  # a path would hide the system's error
                        torch.save(saved, file)

                self._save_folder(name, write)
            self._forget_older(self.folder / name)

    def _save_folder(self, name: str, write: Callable[[Path], None]) -> None:
        with self._writing(self.folder / name):
            self._claim(name)
            with whole_folder(self.folder / name) as temporary:
                write(temporary)

    def _forget_older(self, newest: Path | None) -> None:
        """Remove older states, checkpoints of stops, and the checkpoints beyond `save_total_limit`.

        Args:
            newest: the checkpoint that holds the run's state; None once the run has ended.
        """
        kept = self._checkpoints()
        for path in kept:
            if path != newest:
                (path / STATE).unlink(missing_ok=True)
        stops = (self.folder / name for name in self._record["files"] if name.endswith("-stopped"))
        superfluous = [path for path in stops if path != newest and path.is_dir()]
        if self.save_total_limit:
            superfluous += kept[: -self.save_total_limit]
        for path in superfluous:
            remove_folder(path)

    def stop_requested(self) -> bool:
        """Whether a signal asks for the end; all processes must ask, and get the same answer."""
        return self._signals.requested()

    def end_stopped(self, step: int) -> None:
        """End this process, whose state is saved, with the status that tells the signal."""
        wait_for_all()
        if is_main():
            tqdm.write(  # above the progress bar
                f"{Path(sys.argv[0]).name}: stopped by {self._signals.name()} after step {step}; the same command with "
                "--resume resumes it",
                file=sys.stderr,
            )
        leave()
        raise SystemExit(128 + self._signals.signal)

    def clean_up(self) -> None:
        """Remove what a process left that was killed after it had finished the run."""
        self._record = self.earlier
        on_main(self._forget_older, None)
        on_main(self._clean_up)

    def _clean_up(self) -> None:
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        tidy_up(self.folder)

    def finish(self, results: dict) -> None:
        """Write `run.json`, with which the run is finished, and remove what only resuming needs."""
        wait_for_all()
        if is_main():
            with self._writing(self.folder / FINISHED):
                write_whole(self.folder / FINISHED, as_json(self._record | results | {"end": records.now()}))
            self._forget_older(None)
            self._clean_up()

    @contextmanager
    def _writing(self, path: Path | str) -> Iterator[None]:
        """UserError where the block cannot write to the disk, with what is left to resume from."""
        try:
            yield
        except Exception as error:
            # The libraries written in Rust report an error of the system as text, with its number.
            in_text = re.search(r"\(os error (\d+)\)", str(error))
            number = error.errno if isinstance(error, OSError) else int(in_text[1]) if in_text else None
            if number not in MENDABLE:
                raise
            free = readable_size(shutil.disk_usage(self.folder).free)
            advice = {errno.ENOSPC: "make room, then ", errno.EFBIG: "raise the limit of file sizes (ulimit -f), then "}
            state = newest_state(self.folder)
            left = f"from {state}" if state else "from the beginning, since nothing is saved yet"
            reason = f"{os.strerror(number)}; {free} are free"
            raise UserError(
                f"{path} cannot be written ({reason}): {advice.get(number, '')}resume with --resume {left}"
            ) from error
