"""A lock on a folder, so that two runs never write to the same one.

The lock is the system's, on an open file: it ends with the process, however that ends.
"""

import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from bert_of_theseus.run.command_line import UserError

logger = logging.getLogger(__name__)

LOCK = ".lock"


class FolderLock:
    """Holds a folder, which is made if need be, for this process alone, from `take` to `release`.

    Raises (in `take`):
        UserError: another process holds the folder, or it is a file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / LOCK
        self._file = None

    def take(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--output_dir {self.folder} is a file; name a folder")
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = open(self._path, "a+")
            self._lock(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    self._file = file
                    break
            file.close()  # its holder has just removed it: that lock would bind nobody
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def _lock(self, file) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise UserError(
                f"--output_dir {self.folder} is in use by {holder}; wait for its end, or name another"
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): let no other run use it", self.folder, error.strerror)

    def release(self) -> None:
        """Remove the lock, and the folders that `take` has made, where nothing was written to them."""
        if self._file is None:
            return
        self._path.unlink(missing_ok=True)  # before the lock ends: afterwards the file can be another process's
        self._file.close()
        self._file = None
        with suppress(OSError):
            for empty in self._made:
                empty.rmdir()
