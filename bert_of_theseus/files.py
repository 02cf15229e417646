"""Files that are whole or not there: written under another name, flushed to disk, renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields the name to write to; what was written there becomes `path` when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder to write files to, which becomes `path` when the block ends without an error.

    Where `path` exists already its files are replaced one by one, each whole at any moment, and what
    else is in it stays; `config.json`, without which a folder is no model, comes last.
    """
    path = Path(path)
    name = f"{path.name}.{os.getpid()}.tmp"
    temporary = path / f".{name}" if path.is_dir() else path.with_name(f".{name}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(temporary.iterdir(), key=lambda file: file.name == "config.json")
        for file in files:
            _flush(file)
        if path.is_dir():
            for file in files:
                file.replace(path / file.name)
        else:
            _flush(temporary)
            temporary.rename(path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
