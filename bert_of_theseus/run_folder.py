"""A run's folder: who may write to it, what in it is the run's, and which checkpoints are kept.

    checkpoint-N/          the model after step N
    checkpoint-N-stopped/  the same, of a run that was stopped between two of those
    checkpoint-best/       the model at the best step

The newest of the first two also holds what the run needs to go on.
"""

import fcntl
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from bert_of_theseus.files import REPLACED, TEMPORARY, remove_folder, size

logger = logging.getLogger(__name__)

LOCK = ".lock"
STATE = "training_state.safetensors"
STARTED = "unfinished_run.json"  # what a run was started with; while it is there the run can be resumed
FINISHED = "run.json"

# What runs write: of the run, and of the model, which may have another tokenizer than the next one's.
OF_RUN = rf"runs|log\.jsonl|{FINISHED}|{STARTED}|eval_results\.txt|checkpoint-(\d+|best|\d+-stopped)"
OF_MODEL = r"config\.json|model.*\.safetensors.*|README\.md|tokenizer.*\.json|special_tokens_map\.json|"
OF_MODEL += r"added_tokens\.json|vocab\.(txt|json)|merges\.txt|chat_template\.jinja"


class FolderInUse(Exception):
    """Another process is at work in the folder; the message says which."""


class CannotWrite(Exception):
    """Something of the run cannot be written; the message says what, how large it is, and what is left."""


@contextmanager
def writing(folder: Path, what: Path | str, n_bytes: int) -> Iterator[None]:
    """CannotWrite where the block cannot write something, of about so many bytes, of the run in `folder`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        saved = newest_state(folder)
        then = f"go on with --resume: {saved} is whole" if saved else "start again: nothing is saved yet"
        free = size(shutil.disk_usage(folder).free)
        raise CannotWrite(
            f"{what} cannot be written ({reason}): it takes {size(n_bytes)}, {free} are free; make room, then {then}"
        ) from error


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
        _try_lock(lock)


def _try_lock(lock) -> None:
    folder = Path(lock.name).parent
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise FolderInUse(f"{folder} is in use by {lock.read() or 'another process'}") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see to it that no other run uses it", folder, error.strerror)


def _lock(path: Path):
    while True:
        lock = open(path, "a+")
        try:
            _try_lock(lock)
        except FolderInUse:
            lock.close()
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
    # Should this process be killed here: what could be gone on with goes first, what says that there is a run last.
    for path in sorted(folder.iterdir(), key=lambda path: (path.name in (STARTED, FINISHED), not path.is_dir())):
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
