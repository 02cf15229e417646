"""Files and folders that are whole or not there: written under another name, flushed to disk, renamed."""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a killed process can leave: something half-written, or the folder that a new one was to replace.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.tmp")
REPLACED = re.compile(r"\.(?P<name>.+)\.replaced")
STALE_SECONDS = 3600  # without a write, after which nobody can be at work on a temporary file


def _flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(folder.stat().st_mode & 0o666)  # safetensors' are for their owner alone, whatever the umask
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    # Not the process id: processes of several machines may share the folder.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields the name to write to; what was written there becomes `path` when the block ends without an error."""
    path = Path(path)
    _remove_stale(path)
    temporary = _temporary(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove what killed processes left of this file in a folder that is nobody's own."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process was quicker
            if TEMPORARY.fullmatch(left.name) and left.stat().st_mtime < time.time() - STALE_SECONDS:
                left.unlink()


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder to write files to, which becomes `path` when the block ends without an error.

    Where `path` exists it is replaced, with all that is in it; whoever looks finds the old one or the new one.
    """
    path = Path(path)
    temporary = _temporary(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _flush_files(temporary)
        _flush(temporary)
        replaced = path.with_name(f".{path.name}.replaced")
        if not path.is_dir():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            path.rename(replaced)  # a kill after this line: `tidy_up` puts it back
            temporary.rename(path)
        _flush(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once; False where the system, or this file system, cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # no Linux
        return False
    at_fdcwd, rename_exchange = -100, 2
    return renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0


@contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Yields an empty folder to write files to, which take their places in `folder` when the block ends without error.

    Each of them is whole at any moment, and what else is in `folder` stays; `config.json`, without which a folder is
    no model, comes last.
    """
    folder = Path(folder)
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder / "files")
    temporary.mkdir()
    try:
        yield temporary
        _flush_files(temporary)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
            if path.is_dir() and (folder / path.name).is_dir():
                remove_folder(folder / path.name)
            path.replace(folder / path.name)
        _flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def remove_folder(path: Path) -> None:
    """Remove a folder and all that is in it; it is never seen in part."""
    temporary = _temporary(path)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)  # what somebody still reads is left for `tidy_up`


def tidy_up(folder: Path) -> None:
    """Remove, or put back, what killed processes left in a folder that is this process's own now."""
    for path in list(folder.iterdir()):
        replaced = REPLACED.fullmatch(path.name)
        if replaced and not (folder / replaced["name"]).exists():
            path.rename(folder / replaced["name"])
        elif replaced or TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def readable_size(n_bytes: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
