"""Files and folders that are whole or not there: written under another name, flushed to the disk, renamed."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What a killed process can leave: something half-written, or the folder that a new one was about to replace.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")
REPLACED = re.compile(r"\.(?P<name>.+)\.replaced")


def _temporary(path: Path) -> Path:
    # Random, since processes of several machines may write to the folder.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read, whatever the umask
        _flush(path)
    _flush(folder)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a name to write to. The file becomes `path` when the block ends without an error."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, text as UTF-8, that is whole or not there."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder. It becomes `path`, in place of an older one, when the block ends without an error."""
    path = Path(path)
    temporary, replaced = _temporary(path), path.with_name(f".{path.name}.replaced")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _flush_files(temporary)
        if path.is_dir():
            path.rename(replaced)  # a process killed after this line: `tidy_up` puts the folder back
        temporary.rename(path)
        _flush(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder. Its files move into `folder` when the block ends without error; other files there stay.

    `config.json`, without which a folder is no model, moves last.
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
            with suppress(OSError):  # the folder is not empty
                folder.rmdir()


def remove_folder(path: Path) -> None:
    """Remove a folder and all that is in it. Nobody sees it in part."""
    temporary = _temporary(path)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def tidy_up(folder: Path) -> None:
    """Remove, or put back, what killed processes left in a folder that only this process uses."""
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
