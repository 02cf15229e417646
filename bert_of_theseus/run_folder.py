"""A run's folder: who may write to it, what in it is the run's, and which checkpoints are kept.

    checkpoint-N/          the model after step N
    checkpoint-N-stopped/  the same, of a run that was stopped between two of those
    checkpoint-best/       the model at the best step

The newest of the first two also holds what the run needs to go on.
"""

import errno
import fcntl
import itertools
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bert_of_theseus.files import REPLACED, TEMPORARY, readable_size, remove_folder, tidy_up, whole_file

logger = logging.getLogger(__name__)

LOCK = ".lock"
STATE = "training_state.safetensors"
STARTED = "unfinished_run.json"  # what a run was started with; while it is there the run can be resumed
FINISHED = "run.json"

# What runs write: of the run, and of the model, which may have another tokenizer than the next one's.
OF_RUN = rf"runs|log\.jsonl|{FINISHED}|{STARTED}|eval_results\.txt|checkpoint-(\d+|best|\d+-stopped)"
OF_MODEL = r"config\.json|model.*\.safetensors.*|README\.md|tokenizer.*\.json|special_tokens_map\.json|"
OF_MODEL += r"added_tokens\.json|vocab\.(txt|json)|merges\.txt|chat_template\.jinja|additional_chat_templates"


class FolderInUse(Exception):
    """Another process is at work in the folder; the message says which."""


class CannotWrite(Exception):
    """Something of the run cannot be written; the message says what, how large it is, and what is left."""


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(folder: Path, what: Path | str, n_bytes: int) -> Iterator[None]:
    """CannotWrite where the block cannot write something, of about so many bytes, of the run in `folder`."""
    try:
        yield
    except Exception as error:
        # The Rust libraries tell the system's errors in exceptions of their own, by number.
        by_rust = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(by_rust[1]) if by_rust else None
        if number is None:
            raise
        reason, first = os.strerror(number), ""
        if number in NO_ROOM:
            free = shutil.disk_usage(folder).free
            reason += f"; it takes {readable_size(n_bytes)}, {readable_size(free)} are free"
            first = "make room, then " if number != errno.EFBIG else "raise the limit of file sizes (ulimit -f), then "
        saved = newest_state(folder)
        state = f"{saved} is whole" if saved else "from the beginning, as nothing is saved yet"
        raise CannotWrite(f"{what} cannot be written ({reason}): {first}go on with --resume: {state}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, for this process alone; where the block leaves it empty it is removed again.

    The lock is the system's on an open file: it ends with the process, however that ends.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: or another process might lose its own
        lock.close()
        with suppress(OSError):
            for empty in made:
                empty.rmdir()


def check_free(folder: Path) -> None:
    """FolderInUse where another process holds the folder now; nothing in it is touched."""
    with suppress(FileNotFoundError, NotADirectoryError), open(folder / LOCK) as lock:
        _try_lock(lock, fcntl.LOCK_SH)


def _try_lock(lock, kind: int = fcntl.LOCK_EX) -> None:
    folder = Path(lock.name).parent
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise FolderInUse(f"{folder} is in use by {lock.read() or 'another process'}") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see to it that no other run uses it", folder, error.strerror)


def _lock(path: Path):
    for attempt in itertools.count():
        lock = open(path, "a+")
        try:
            _try_lock(lock)
        except FolderInUse:
            lock.close()
            if attempt < 5:  # it may be no more than a look, by `check_free`
                time.sleep(0.02)
                continue
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
        lock.close()  # whoever held it has just removed it
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in it, or no such folder; a lock and what killed processes left count for nothing."""
    if not folder.is_dir():
        return True
    names = (path.name for path in folder.iterdir())
    return all(name == LOCK or TEMPORARY.fullmatch(name) or REPLACED.fullmatch(name) for name in names)


def clear(folder: Path, but_not: str = "") -> None:
    """Remove what an earlier run left in the folder, and nothing else, so that two runs never mix."""
    ours = f"{OF_RUN}|{OF_MODEL}" if (folder / "config.json").is_file() else OF_RUN
    # Should this process be killed here: what says that a run is finished goes first, then what could be gone on with,
    # and last what says that there is a run.
    order = {FINISHED: 0, STARTED: 3}
    for path in sorted(folder.iterdir(), key=lambda path: order.get(path.name, 1 if path.is_dir() else 2)):
        if re.fullmatch(ours, path.name) and path.name != but_not:
            remove_folder(path) if path.is_dir() else path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Its `checkpoint-N` folders, by `N`."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The `N` of a `checkpoint-N` or `checkpoint-N-stopped`."""
    return int(checkpoint.name.split("-")[1])


def stopped_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*-stopped") if path.name.split("-")[1].isdigit()]


def newest_state(folder: Path) -> Path | None:
    """The checkpoint that the run can go on from; None where there is none."""
    found = [path for path in checkpoints(folder) + stopped_checkpoints(folder) if (path / STATE).is_file()]
    return max(found, key=step_of, default=None)


def forget_older(folder: Path, newest: Path | None, limit: int | None) -> None:
    """Remove what is no longer needed once `newest`, a checkpoint, is whole, or, with None, the run is.

    These are older checkpoints' states, those of stopped runs, and of all others those beyond the newest `limit`.
    """
    for path in checkpoints(folder):
        if path != newest:
            (path / STATE).unlink(missing_ok=True)
    unneeded = [path for path in stopped_checkpoints(folder) if path != newest]
    for path in unneeded + (checkpoints(folder)[:-limit] if limit else []):
        remove_folder(path)


def begin(folder: Path, record: dict, earlier: dict | None, checkpoint: Path | None, limit: int | None) -> None:
    """Make a folder that is held ready for a new run, or for what is left of an earlier one.

    Args:
        folder: of the run.
        record: what a new run is started with, as JSON has it.
        earlier: the record of the run to go on with; None for a new one.
        checkpoint: from which it goes on; None: from its beginning.
        limit: of the number of checkpoints.

    Raises:
        CannotWrite: the record cannot be written.
    """
    tidy_up(folder)
    if not earlier:
        clear(folder)
        write_text(folder / STARTED, as_json(record))
    elif checkpoint:
        forget_older(folder, checkpoint, limit)
    else:
        clear(folder, but_not=STARTED)


def finish(folder: Path, results: dict | None = None) -> None:
    """Write the record of a finished run, with its results, unless it is there, and remove what only going on needs."""
    if results is not None:
        write_text(folder / FINISHED, as_json(json.loads((folder / STARTED).read_text()) | results))
    forget_older(folder, None, None)
    (folder / STARTED).unlink(missing_ok=True)
    tidy_up(folder)


def earlier_record(folder: Path) -> dict | None:
    """What the run in the folder was started with and, where it is finished, its results; None where there is no run.

    Raises:
        ValueError: the record is damaged, or of another version.
    """
    for name in (FINISHED, STARTED):
        path = folder / name
        if path.is_file():
            try:
                record = json.loads(path.read_text())
                return record | {part: dict(record[part]) for part in ("arguments", "data", "versions")}
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{path} is damaged, or no record of a run of this version") from error
    return None


def is_finished(record: dict) -> bool:
    return "end" in record


def as_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """A file of the run in its folder, whole or not there; CannotWrite where that cannot be."""
    with writing(path.parent, path, len(text)), whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
